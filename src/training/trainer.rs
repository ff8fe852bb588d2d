//! Maximum likelihood, step by step.

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Bool, Int, Tensor};

use super::Schedule;
use super::adam::adam;
use super::gradients::{first_not_finite, gradient_norm, scale_gradients};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::prior::{Prior, SplitPrior};
use crate::stack::FlowStack;
use crate::tape::{Drift, Memory, Tape};

/// Trains a [`FlowStack`] by maximum likelihood: Adam, a [`Schedule`], clipping by the global norm.
///
/// A step whose loss or gradients are not finite changes nothing and is an error that names step and
/// layer, so the model that [`model`](Trainer::model) gives is always the last good one.
///
/// # Memory
///
/// Gradients are computed by [reversible backpropagation](super::reversible); what a step keeps of
/// its forward pass is chosen by [`with_memory`](Trainer::with_memory). Every
/// [`DRIFT_EVERY`] steps, the first included, the activations computed again by inverses are
/// compared with those of the forward pass ([`Step::drift`]). Where the error is above
/// [`DRIFT_BOUND`], checkpoints are kept as often as
/// [`Drift::checkpoint_every`] says, from then on, and the step is computed again until it is within
/// the bound, or nothing is inverted any more.
/// [`with_drift_control`](Trainer::with_drift_control) changes both figures, and
/// [`with_micro_batch`](Trainer::with_micro_batch) divides the batch, whose activations grow with
/// its size.
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
    pub(super) memory: Memory,
    drift_every: usize,
    drift_bound: f64,
    drift: Option<Drift>,
    micro_batch: usize,
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
    /// Largest drift, where this step measured it; 0 where no layer is inverted. All that was
    /// measured is in [`Trainer::drift`].
    pub drift: Option<f64>,
}

/// Steps from one measurement of the drift to the next, by default: a measurement costs about one
/// forward pass of the narrow tensors between the layers, less than a thousandth of this many steps.
pub const DRIFT_EVERY: usize = 100;

/// Largest drift accepted, by default: reconstructed activations that are off by a thousandth of
/// their root mean square move gradients by about as much, far below the noise of a batch.
pub const DRIFT_BOUND: f64 = 1e-3;

impl<M: Module> Trainer<M> {
    /// A trainer at step 0 of a model on a plain device.
    ///
    /// The parameters are numbered anew, in order, so that the optimizer's state fits the model
    /// again after both were saved and loaded.
    pub fn new(model: M, schedule: Schedule) -> Self {
        Self {
            model: Some(number_parameters(model).train()),
            optimizer: adam(),
            schedule,
            max_gradient_norm: f64::INFINITY,
            memory: Memory::Reversible,
            drift_every: DRIFT_EVERY,
            drift_bound: DRIFT_BOUND,
            drift: None,
            micro_batch: usize::MAX,
            num_steps: 0,
        }
    }

    /// Gradients whose norm is larger are scaled down to it; default: no clipping.
    pub fn with_max_gradient_norm(mut self, max_gradient_norm: f64) -> Self {
        self.max_gradient_norm = max_gradient_norm;
        self
    }

    /// What a step keeps of its forward pass; default: [`Memory::Reversible`].
    pub fn with_memory(mut self, memory: Memory) -> Self {
        self.memory = memory;
        self
    }

    /// Measures the drift every `every` steps and keeps it within `bound` (largest error of an
    /// activation over the root mean square of its tensor); default: [`DRIFT_EVERY`] and
    /// [`DRIFT_BOUND`]. An infinite bound measures only.
    ///
    /// # Panics
    /// If `every` is 0 or `bound` is not positive.
    pub fn with_drift_control(mut self, every: usize, bound: f64) -> Self {
        assert!(every > 0, "Trainer: drift is measured every 0 steps, but it must be at least 1");
        assert!(bound > 0.0, "Trainer: the bound on the drift is {bound}, but must be positive");
        (self.drift_every, self.drift_bound) = (every, bound);
        self
    }

    /// Computes the gradients of a batch in parts of at most `micro_batch` samples and adds them up:
    /// the step is that of the whole batch within rounding, with the activations of a part.
    ///
    /// The same holds with [`BatchNorm`](crate::norm::BatchNorm): its moments take in the whole batch
    /// before the step (by a forward pass alone, see [`Flow::observe`]) and are constants in the step
    /// itself. It does not hold with batch normalization inside of nets: the values are still those of
    /// the whole batch, but gradients through the moments are those of each part, see
    /// [`NetBatchNorm`](crate::conditioner::NetBatchNorm).
    ///
    /// # Panics
    /// If `micro_batch` is 0.
    pub fn with_micro_batch(mut self, micro_batch: usize) -> Self {
        assert!(micro_batch > 0, "Trainer: micro_batch is 0, but it must be at least 1");
        self.micro_batch = micro_batch;
        self
    }

    /// What a step keeps of its forward pass now: what was asked for, or the checkpoints that the
    /// drift made necessary.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// The drift as it was measured last, layer by layer.
    pub fn drift(&self) -> Option<&Drift> {
        self.drift.as_ref()
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

    fn update(
        &mut self,
        loss: f64,
        mut grads: GradientsParams,
        drift: Option<f64>,
    ) -> Result<Step> {
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
        Ok(Step { number, loss, gradient_norm, learning_rate, drift })
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
        let memory = self.memory;
        let before = self.observe(x.clone());
        let (loss, grads, drift) = self.gradients(&x);
        match self.update(loss, grads, drift) {
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
                self.memory = memory;
                Err(FlowError::NotFinite { step, layer, what })
            }
            other => other,
        }
    }

    /// Loss, gradients and, where it is this step's turn, the largest drift.
    fn gradients(&mut self, x: &Tensor<D>) -> (f64, GradientsParams, Option<f64>) {
        let turn = self.num_steps / self.drift_every;
        let measures = self.num_steps.is_multiple_of(self.drift_every);
        let batch = x.dims()[0];
        loop {
            let model = self.training_model();
            let mut grads = GradientsParams::new();
            let mut loss = 0.0;
            let mut drift = None;
            for start in (0..batch).step_by(self.micro_batch) {
                let part = x.clone().narrow(0, start, self.micro_batch.min(batch - start));
                let mut tape = Tape::new(self.memory);
                // One part is enough: the error depends on the layers more than on the samples.
                if measures && start == 0 {
                    tape = tape.measuring(turn);
                }
                let weight = -1.0 / batch as f64;
                let (part, _, _) = model.pull_back_log_prob(part, weight, &mut tape, &mut grads);
                loss += part.into_scalar::<f64>();
                drift = drift.or(tape.into_drift());
            }
            let Some(drift) = drift else { return (loss, grads, None) };
            let largest = drift.largest();
            // A loss that is not finite ends the training, whatever the drift.
            let every = drift.checkpoint_every(self.drift_bound).filter(|_| loss.is_finite());
            self.drift = Some(drift);
            match every {
                None => return (loss, grads, Some(largest)),
                Some(every) => self.memory = Memory::Checkpoint { every },
            }
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
