//! Adam, in one pass over memory where parameters live in main memory.

use burn::optim::{Adam, AdamConfig, AdamState, AdaptiveMomentumState, ModuleOptimizer, Optimizer};
use burn::tensor::{DType, Device, Tensor};

use crate::backend::{HostScalar, HostValues, is_host};
use crate::host;
use crate::kernels::AdamStep;

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;

/// As the flow papers and PyTorch have it (Burn's own default is larger).
const EPSILON: f32 = 1e-8;

/// Burn's `Adam` with the same state, so that either goes on from the other's records. Operation by
/// operation it passes over a parameter and its moments about ten times, which for a net of many
/// millions of parameters takes a quarter of a training step; here they are read and written once.
#[derive(Clone)]
struct HostAdam {
    elsewhere: Adam,
}

/// Adam with beta 0.9 and 0.999 and epsilon 1e-8.
///
/// Source: Kingma and Ba, *Adam*, [arXiv:1412.6980](https://arxiv.org/abs/1412.6980), algorithm 1,
/// with the bias corrections folded into the step as at the end of section 2.
pub(super) fn adam() -> ModuleOptimizer {
    HostAdam { elsewhere: burns() }.into()
}

fn burns() -> Adam {
    AdamConfig::new().with_beta_1(BETA_1).with_beta_2(BETA_2).with_epsilon(EPSILON).build()
}

impl Optimizer for HostAdam {
    type State<const D: usize> = AdamState<D>;

    fn step<const D: usize>(
        &self,
        rate: f64,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<AdamState<D>>,
    ) -> (Tensor<D>, Option<AdamState<D>>) {
        let on_host = is_host(&parameter.device()) && gradient.dtype() == parameter.dtype();
        match parameter.dtype() {
            DType::F32 if on_host => step::<f32, D>(rate, parameter, gradient, state),
            DType::F64 if on_host => step::<f64, D>(rate, parameter, gradient, state),
            _ => self.elsewhere.step(rate, parameter, gradient, state),
        }
    }

    fn to_device<const D: usize>(state: AdamState<D>, device: &Device) -> AdamState<D> {
        Adam::to_device(state, device)
    }
}

fn step<T: HostScalar, const D: usize>(
    rate: f64,
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    state: Option<AdamState<D>>,
) -> (Tensor<D>, Option<AdamState<D>>) {
    let (device, shape) = (parameter.device(), parameter.dims());
    let (time, mut first, mut second) = match state.map(|state| state.momentum) {
        Some(AdaptiveMomentumState { time, moment_1, moment_2, .. }) => {
            (time + 1, HostValues::of(moment_1).into_vec(), HostValues::of(moment_2).into_vec())
        }
        None => (1, vec![T::ZERO; shape.iter().product()], vec![T::ZERO; shape.iter().product()]),
    };
    let mut values = HostValues::of(parameter).into_vec::<T>();
    // The factors in f32, as Burn has them.
    let root = (1.0 - BETA_2.powi(time as i32)).sqrt();
    let scalar = |value: f32| T::from_f64(value.into());
    let step = AdamStep {
        beta_1: scalar(BETA_1),
        rest_1: scalar(1.0 - BETA_1),
        beta_2: scalar(BETA_2),
        rest_2: scalar(1.0 - BETA_2),
        correction: scalar(root / (1.0 - BETA_1.powi(time as i32))),
        epsilon: scalar(EPSILON * root),
        rate: T::from_f64(rate),
    };
    let gradient = HostValues::of(gradient);
    step.apply(gradient.as_slice(), &mut values, [&mut first, &mut second]);
    let tensor = |values| host::tensor(values, shape, &device);
    let momentum = AdaptiveMomentumState::new(time, tensor(first), tensor(second));
    (tensor(values), Some(AdamState::new(momentum)))
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param};
    use burn::optim::GradientsParams;
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
    #[test]
    fn steps_and_records_are_those_of_burn() {
        for (name, device) in crate::backend::devices() {
            let device = device();
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
            let (mut adam, mut burn) = (adam(), ModuleOptimizer::from(burns()));
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
                    let exchange = |optimizer: &ModuleOptimizer| {
                        let bytes = optimizer.into_bytes().unwrap();
                        Bytes::from_bytes_vec(bytes.to_vec())
                    };
                    let (a, b) = (exchange(&adam), exchange(&burn));
                    adam = super::adam().from_bytes(b).unwrap();
                    burn = ModuleOptimizer::from(burns()).from_bytes(a).unwrap();
                }
                for (a, b) in values(&ours).into_iter().zip(values(&theirs)) {
                    assert!((a - b).abs() <= 1e-7 * (1.0 + b.abs()), "{name}: {a} is not {b}");
                }
            }
        }
    }
}
