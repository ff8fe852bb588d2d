//! Maximum likelihood, step by step.

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Bool, Int, Tensor};

use super::gradients::{first_not_finite, gradient_norm, scale_gradients};
use super::{Schedule, reversible};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::prior::{Prior, SplitPrior};
use crate::stack::FlowStack;

/// Trains a [`FlowStack`] by maximum likelihood: Adam, a [`Schedule`], clipping by the global norm.
///
/// A step whose loss or gradients are not finite changes nothing and is an error that names step and
/// layer, so the model that [`model`](Trainer::model) gives is always the last good one.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::training::{Schedule, Trainer};
/// use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
///
/// let device = burn_flows::backend::device();
/// let flow = DiagonalScaling::new(2, &device)?;
/// let stack: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2])?;
/// let mut trainer = Trainer::new(stack, Schedule::constant(0.05));
/// let x = Tensor::from_data([[3.0, -2.0], [-3.0, 2.0]], &device);
/// let first = trainer.step(x.clone())?.loss;
/// let last = (0..20).map(|_| trainer.step(x.clone()).map(|step| step.loss)).last().unwrap()?;
/// assert!(last < first);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
pub struct Trainer<M> {
    /// `None` only inside a step.
    pub(super) model: Option<M>,
    pub(super) optimizer: ModuleOptimizer,
    schedule: Schedule,
    max_gradient_norm: f64,
    pub(super) num_steps: usize,
}

/// What a training step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The step, counted from 1.
    pub number: usize,
    /// Mean of `-ln p(x)` over the batch before the step, in nats.
    pub loss: f64,
    /// Euclidean norm of all gradients before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
}

/// Adam's epsilon as the flow papers and PyTorch have it (Burn's own default is larger).
const ADAM_EPSILON: f32 = 1e-8;

impl<M: Module> Trainer<M> {
    /// A trainer at step 0 of a model on a plain device.
    ///
    /// The parameters are numbered anew, in order, so that the optimizer's state fits the model
    /// again after both were saved and loaded.
    pub fn new(model: M, schedule: Schedule) -> Self {
        Self {
            model: Some(number_parameters(model).train()),
            optimizer: AdamConfig::new().with_epsilon(ADAM_EPSILON).init(),
            schedule,
            max_gradient_norm: f64::INFINITY,
            num_steps: 0,
        }
    }

    /// Gradients whose norm is larger are scaled down to it; default: no clipping.
    pub fn with_max_gradient_norm(mut self, max_gradient_norm: f64) -> Self {
        self.max_gradient_norm = max_gradient_norm;
        self
    }

    /// Steps taken.
    pub fn num_steps(&self) -> usize {
        self.num_steps
    }

    /// The model as it is now, ready for inference.
    pub fn model(&self) -> M {
        self.training_model().valid()
    }

    fn training_model(&self) -> &M {
        self.model.as_ref().expect("the model is put back after every step")
    }

    fn update(&mut self, loss: f64, mut grads: GradientsParams) -> Result<Step> {
        let number = self.num_steps + 1;
        let model = self.training_model();
        let gradient_norm = gradient_norm(model, &grads);
        if !loss.is_finite() || !gradient_norm.is_finite() {
            let layer = first_not_finite(model, &grads).unwrap_or_else(|| "the prior".into());
            let what = if loss.is_finite() { "the gradient" } else { "the loss" };
            return Err(FlowError::NotFinite { step: number, layer, what: what.into() });
        }
        if gradient_norm > self.max_gradient_norm {
            scale_gradients(model, &mut grads, self.max_gradient_norm / gradient_norm);
        }
        let learning_rate = self.schedule.learning_rate(self.num_steps);
        let model = self.model.take().expect("the model is put back after every step");
        self.model = Some(self.optimizer.step(learning_rate, model, grads));
        self.num_steps = number;
        Ok(Step { number, loss, gradient_norm, learning_rate })
    }
}

impl<const D: usize, F, P, S> Trainer<FlowStack<D, F, P, S>>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    /// One step on the batch `x`, a plain tensor.
    ///
    /// # Errors
    /// [`FlowError::NotFinite`], with step and layer, where loss or gradients are not finite; the
    /// model is then unchanged.
    pub fn step(&mut self, x: Tensor<D>) -> Result<Step> {
        let before = self.observe(x.clone());
        let (loss, grads) = reversible::gradients(self.training_model(), x.clone());
        let loss = loss.into_scalar::<f64>();
        match self.update(loss, grads) {
            Err(FlowError::NotFinite { step, layer, what }) => {
                // Where the activations stop being finite says more than where the gradients do.
                let layer = match self.model().first_not_finite(x) {
                    Some(place) if place.starts_with("level") => format!("{place} ({layer})"),
                    Some(place) => place,
                    None => layer,
                };
                if before.is_some() {
                    self.model = before;
                }
                Err(FlowError::NotFinite { step, layer, what })
            }
            other => other,
        }
    }

    /// Takes the batch into the model's running statistics, if it has any; returns the model as it
    /// was.
    fn observe(&mut self, x: Tensor<D>) -> Option<FlowStack<D, F, P, S>> {
        let before = self.training_model();
        if !before.has_running_statistics() {
            return None;
        }
        let (model, _) = before.valid().observe(x);
        self.model.replace(model.train())
    }
}

/// Gives the parameters of `module` the ids 1, 2, 3, … in order.
fn number_parameters<M: Module>(module: M) -> M {
    struct Number(u64);
    impl Number {
        fn next(&mut self) -> ParamId {
            self.0 += 1;
            ParamId::from(self.0)
        }
    }
    impl ModuleMapper for Number {
        fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
            let (_, value, mapper) = param.consume();
            Param::from_mapped_value(self.next(), value, mapper)
        }
        fn map_int<const N: usize>(
            &mut self,
            param: Param<Tensor<N, Int>>,
        ) -> Param<Tensor<N, Int>> {
            let (_, value, mapper) = param.consume();
            Param::from_mapped_value(self.next(), value, mapper)
        }
        fn map_bool<const N: usize>(
            &mut self,
            param: Param<Tensor<N, Bool>>,
        ) -> Param<Tensor<N, Bool>> {
            let (_, value, mapper) = param.consume();
            Param::from_mapped_value(self.next(), value, mapper)
        }
    }
    module.map(&mut Number(0))
}
