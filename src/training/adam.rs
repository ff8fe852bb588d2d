//! Adam, in one pass over memory where parameters live in main memory.

use burn::optim::{
    self, AdamConfig, AdamState, AdaptiveMomentumState, Optimizer, RecordState, StateSink,
    StateSource, join_path,
};
use burn::tensor::{DType, Device, Tensor};

use crate::backend::{self, HostScalar, HostValues, is_host};
use crate::host;
use crate::kernels::AdamStep;

/// Adam, and with a weight decay AdamW: the optimizer that a [`Trainer`](super::Trainer) has unless it
/// is given another.
///
/// `m <- beta_1 m + (1 - beta_1) g`, `v <- beta_2 v + (1 - beta_2) g^2`,
/// `p <- p (1 - rate weight_decay) - rate m' / (sqrt(v') + epsilon)`
///
/// with `g` the gradient of a parameter `p`, `m' = m / (1 - beta_1^t)` and `v' = v / (1 - beta_2^t)`
/// at step `t`. Defaults: beta 0.9 and 0.999, epsilon 1e-8 (as the flow papers and PyTorch have it;
/// Burn's own default is larger), no weight decay.
///
/// The numbers are those of Burn's `Adam` and `AdamW`, and the state is that of `Adam`, so that either
/// goes on from the other's checkpoint. Operation by operation these pass over a parameter and its
/// moments about ten times, which for a net of many millions of parameters takes a quarter of a
/// training step; here they are read and written once, on a host device.
///
/// Sources: Kingma and Ba, *Adam*, [arXiv:1412.6980](https://arxiv.org/abs/1412.6980), algorithm 1,
/// with the bias corrections folded into the step as at the end of section 2; Loshchilov and Hutter,
/// *Decoupled weight decay regularization*, [arXiv:1711.05101](https://arxiv.org/abs/1711.05101),
/// algorithm 2.
///
/// ```
/// use burn_flows::training::{Adam, Schedule, Trainer};
/// use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
///
/// let device = burn_flows::backend::device();
/// let flow = DiagonalScaling::new(2, &device)?;
/// let stack: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2])?;
/// let adam = Adam::new().with_betas(0.9, 0.99).with_weight_decay(1e-4);
/// let trainer = Trainer::new(stack, Schedule::constant(1e-3)).with_optimizer(adam);
/// assert_eq!(trainer.num_steps(), 0);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    beta_1: f32,
    beta_2: f32,
    epsilon: f32,
    weight_decay: f32,
}

impl Default for Adam {
    fn default() -> Self {
        Self { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

impl Adam {
    /// Adam with the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decays of the averages of the gradient and of its square; default: 0.9 and 0.999.
    ///
    /// # Panics
    /// If one is not within 0 to 1, 1 excluded.
    pub fn with_betas(mut self, beta_1: f32, beta_2: f32) -> Self {
        for beta in [beta_1, beta_2] {
            assert!((0.0..1.0).contains(&beta), "Adam: a beta is {beta}, but must be in 0..1");
        }
        (self.beta_1, self.beta_2) = (beta_1, beta_2);
        self
    }

    /// Added to the root of the second average; default: 1e-8.
    ///
    /// # Panics
    /// If it is not positive and finite: a gradient of zero would divide zero by zero.
    pub fn with_epsilon(mut self, epsilon: f32) -> Self {
        assert!(
            epsilon > 0.0 && epsilon.is_finite(),
            "Adam: epsilon is {epsilon}, but must be positive and finite"
        );
        self.epsilon = epsilon;
        self
    }

    /// The fraction of a parameter that is taken off it at every step, in units of the learning rate;
    /// default: 0.
    ///
    /// # Panics
    /// If it is negative or not finite.
    pub fn with_weight_decay(mut self, weight_decay: f32) -> Self {
        assert!(
            weight_decay >= 0.0 && weight_decay.is_finite(),
            "Adam: weight_decay is {weight_decay}, but must be finite and not negative"
        );
        self.weight_decay = weight_decay;
        self
    }

    /// What the learning rate `rate` leaves of a parameter.
    fn kept(&self, rate: f64) -> f64 {
        1.0 - rate * f64::from(self.weight_decay)
    }

    /// The same, operation by operation, but for the weight decay.
    fn burns(&self) -> optim::Adam {
        let config = AdamConfig::new().with_beta_1(self.beta_1).with_beta_2(self.beta_2);
        config.with_epsilon(self.epsilon).build()
    }

    fn step_on_host<T: HostScalar, const D: usize>(
        &self,
        rate: f64,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Moments<D>>,
    ) -> (Tensor<D>, Option<Moments<D>>) {
        let (device, shape) = (parameter.device(), parameter.dims());
        let (time, mut first, mut second) = match state.map(|Moments(state)| state.momentum) {
            Some(AdaptiveMomentumState { time, moment_1, moment_2, .. }) => {
                (time + 1, HostValues::of(moment_1).into_vec(), HostValues::of(moment_2).into_vec())
            }
            None => {
                let zeros = || vec![T::ZERO; shape.iter().product()];
                (1, zeros(), zeros())
            }
        };
        let mut values = HostValues::of(parameter).into_vec::<T>();
        let &Self { beta_1, beta_2, epsilon, .. } = self;
        // The factors in f32, as Burn has them.
        let root = (1.0 - beta_2.powi(time as i32)).sqrt();
        let scalar = |value: f32| T::from_f64(value.into());
        let step = AdamStep {
            beta_1: scalar(beta_1),
            rest_1: scalar(1.0 - beta_1),
            beta_2: scalar(beta_2),
            rest_2: scalar(1.0 - beta_2),
            correction: scalar(root / (1.0 - beta_1.powi(time as i32))),
            epsilon: scalar(epsilon * root),
            kept: T::from_f64(self.kept(rate)),
            rate: T::from_f64(rate),
        };
        let gradient = HostValues::of(gradient);
        step.apply(gradient.as_slice(), &mut values, [&mut first, &mut second]);
        let tensor = |values| host::tensor(values, shape, &device);
        let momentum = AdaptiveMomentumState::new(time, tensor(first), tensor(second));
        (tensor(values), Some(Moments(AdamState::new(momentum))))
    }
}

/// The state of [`Adam`]: that of Burn's, under the same names in a record, but read in the dtype in
/// which it was written, where Burn reads every state in the device's default one.
#[derive(Clone)]
pub struct Moments<const D: usize>(AdamState<D>);

impl<const D: usize> RecordState for Moments<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        self.0.state_flatten(prefix, out);
    }

    fn state_unflatten(prefix: &str, from: &mut StateSource, device: &Device) -> Option<Self> {
        let prefix = join_path(prefix, "momentum");
        let time = from.take_scalar(&prefix, "time")?.try_into().ok()?;
        let mut tensor = |leaf| {
            let data = from.take_tensor(&prefix, leaf)?;
            let dtype = data.dtype();
            // Which is the only kind of device that is sure to have it.
            let host =
                || backend::devices().into_iter().rev().map(|(_, device)| device()).find(is_host);
            let device = if dtype == DType::F64 { host()? } else { device.clone() };
            Some(Tensor::from_data(data, (&device, dtype)))
        };
        let momentum = AdaptiveMomentumState::new(time, tensor("moment_1")?, tensor("moment_2")?);
        Some(Self(AdamState::new(momentum)))
    }
}

impl Optimizer for Adam {
    type State<const D: usize> = Moments<D>;

    fn step<const D: usize>(
        &self,
        rate: f64,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Moments<D>>,
    ) -> (Tensor<D>, Option<Moments<D>>) {
        let on_host = is_host(&parameter.device()) && gradient.dtype() == parameter.dtype();
        match parameter.dtype() {
            DType::F32 if on_host => self.step_on_host::<f32, D>(rate, parameter, gradient, state),
            DType::F64 if on_host => self.step_on_host::<f64, D>(rate, parameter, gradient, state),
            _ => {
                let decayed = match self.weight_decay {
                    0.0 => parameter,
                    _ => parameter * self.kept(rate),
                };
                // Its step does not depend on the parameter.
                let state = state.map(|Moments(state)| state);
                let (parameter, state) = self.burns().step(rate, decayed, gradient, state);
                (parameter, state.map(Moments))
            }
        }
    }

    fn to_device<const D: usize>(state: Moments<D>, device: &Device) -> Moments<D> {
        Moments(optim::Adam::to_device(state.0, device))
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param};
    use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
    use burn::tensor::{Bytes, Distribution};

    use super::*;

    #[derive(Module, Debug)]
    struct Parameters {
        matrix: Param<Tensor<2>>,
        vector: Param<Tensor<1>>,
    }

    fn gradients(model: &Parameters, step: usize) -> GradientsParams {
        let mut grads = GradientsParams::new();
        let scale = [1e-4, 1.0, 30.0][step % 3];
        let matrix = model.matrix.val().inner();
        let random = matrix.random_like(Distribution::Normal(0.1, scale));
        grads.register(model.matrix.id, random);
        grads.register(model.vector.id, model.vector.val().inner() * scale - 0.5);
        grads
    }

    fn values(model: &Parameters) -> Vec<f64> {
        let matrix = host::to_f64(model.matrix.val());
        matrix.into_iter().chain(host::to_f64(model.vector.val())).collect()
    }

    /// Both optimizers from the same start, with the state of one handed to the other through bytes
    /// on the way: every number stays the same.
    fn compare(own: Adam, burns: impl Fn() -> ModuleOptimizer) {
        for (name, device) in crate::backend::devices() {
            let device = device();
            device.seed(1);
            let start = Parameters {
                // More than one block of the kernel.
                matrix: Param::from_tensor(Tensor::random(
                    [300, 257],
                    Distribution::Default,
                    &device,
                )),
                vector: Param::from_tensor(Tensor::random([5], Distribution::Default, &device)),
            };
            let (mut ours, mut theirs) = (start.clone().train(), start.train());
            let (mut adam, mut burn) = (ModuleOptimizer::from(own), burns());
            for step in 0..9 {
                let rate = 1e-3 * (step + 1) as f64;
                let grads = gradients(&theirs, step);
                let same = {
                    let mut same = GradientsParams::new();
                    same.register(ours.matrix.id, grads.get::<2>(theirs.matrix.id).unwrap());
                    same.register(ours.vector.id, grads.get::<1>(theirs.vector.id).unwrap());
                    same
                };
                ours = adam.step(rate, ours, same);
                theirs = burn.step(rate, theirs, grads);
                if step == 4 {
                    let bytes = |optimizer: &ModuleOptimizer| {
                        let bytes = optimizer.into_bytes().unwrap();
                        Bytes::from_bytes_vec(bytes.to_vec())
                    };
                    let (a, b) = (bytes(&adam), bytes(&burn));
                    adam = ModuleOptimizer::from(own).from_bytes(b).unwrap();
                    burn = burns().from_bytes(a).unwrap();
                }
                for (a, b) in values(&ours).into_iter().zip(values(&theirs)) {
                    assert!((a - b).abs() <= 1e-7 * (1.0 + b.abs()), "{name}: {a} is not {b}");
                }
            }
        }
    }

    #[test]
    fn steps_and_records_are_those_of_burn() {
        compare(Adam::new(), || AdamConfig::new().with_epsilon(1e-8).init());
        let ours = Adam::new().with_betas(0.8, 0.95).with_epsilon(1e-3);
        let config = AdamConfig::new().with_beta_1(0.8).with_beta_2(0.95).with_epsilon(1e-3);
        compare(ours, || config.init());
    }

    #[test]
    fn weight_decay_is_that_of_burns_adam_w() {
        let ours = Adam::new().with_weight_decay(0.3);
        let config = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.3);
        compare(ours, || config.init());
    }
}
