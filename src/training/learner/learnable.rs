//! A density model as Burn's Learner takes it.

use std::fmt::{self, Debug};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::module::{Content, Module, ModuleDisplay, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer, MultiGradientsParams};
use burn::tensor::{DType, Device, Tensor};
use burn::train::train::WorkerFailure;
use burn::train::{InferenceStep, Interrupter, TrainOutput, TrainStep, TrainingError};

use super::DensityOutput;
use crate::backend::is_host;
use crate::error::{FlowError, Result};
use crate::flow::Pass;
use crate::host;
use crate::norm::running_moments;
use crate::param::{frozen, replace};
use crate::stack::device_and_dtype;
use crate::tape::{Drift, Memory};
use crate::training::backward::{Backward, Computed, Loss, check_batch, passed, why_not_finite};
use crate::training::gradients::{SumOfSquares, first_not_finite, scale_gradients};
use crate::training::shared::share_step;
use crate::training::{Batch, DRIFT_BOUND, DRIFT_EVERY, Trainable, Trainer};

/// Samples of a batch of validation of which a round trip through the model is made.
const ROUND_TRIPS: usize = 8;

/// A density model in training that Burn's `Learner` takes: what is [`Trainable`] on batches `B`.
///
/// A step is that of [`Trainer`]: [reversible gradients](crate::training::reversible), the batch taken into
/// running moments before, gradients clipped by their norm together. See [the room](super) for an example.
///
/// # Gradients
///
/// The `grads` of a step are *sums* over the samples of its batch; with them goes how many these were. What
/// is added up by Burn, over devices or batches, `optimize` divides by the number of all samples: it
/// updates by the gradient of the mean of `-ln p(x)`.
///
/// # What is not finite
///
/// A step whose loss or gradients are not finite, or whose batch the model cannot take, changes nothing and ends
/// the training: with an [`Interrupter`] as `LearningResult::error`, else by a panic with the same words, those of
/// [`Trainer::step`]. The model is then the one before the step; the last one that is known for good is in
/// the checkpoint of the last epoch.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Learnable<M, B> {
    /// The model.
    pub model: M,
    /// Never read: its place among the gradients is that of the number of samples and of the sum of
    /// their `-ln p(x)`.
    tally: Param<Tensor<1>>,
    #[module(skip)]
    settings: Settings,
    #[module(skip)]
    batch: PhantomData<B>,
}

/// How a model is trained.
#[derive(Clone)]
struct Settings {
    max_gradient_norm: f64,
    drift_every: usize,
    drift_bound: f64,
    /// Of all clones and forks, so that what one step finds is known to the next.
    memory: Arc<Mutex<Memory>>,
    /// Whether any parameter is in several places.
    shares: bool,
    num_steps: usize,
    interrupter: Option<Interrupter>,
}

impl Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("max_gradient_norm", &self.max_gradient_norm)
            .field("drift_every", &self.drift_every)
            .field("drift_bound", &self.drift_bound)
            .field("memory", &self.memory)
            .field("num_steps", &self.num_steps)
            .finish_non_exhaustive()
    }
}

/// Prints the model alone.
impl<M, B> ModuleDisplay for Learnable<M, B>
where
    M: Module + ModuleDisplay,
    B: Clone + Debug + Send,
{
    fn custom_content(&self, content: Content) -> Option<Content> {
        content.add("model", &self.model).optional()
    }
}

/// Loss and gradients of a batch, summed over its samples.
struct Summed {
    loss: Tensor<1>,
    grads: GradientsParams,
    drift: Option<f64>,
}

impl<M, B: Batch> Learnable<M, B>
where
    M: Trainable<B>,
{
    /// A model on a plain device, initialized from a batch as [`Trainer::with_initialization`] does, and what
    /// a step keeps of its forward pass chosen by it as [`Trainer`] does. Layers that are initialized already
    /// stay as they are.
    ///
    /// Parameters are numbered anew, as [`Trainer::new`] does it.
    ///
    /// # Errors
    /// As [`Trainer::step`], for a model that cannot be trained on such batches.
    pub fn new(model: M, batch: B) -> Result<Self> {
        let batch = batch.without_autodiff();
        let mut trainer = Trainer::new(model, |_| 1.0).with_initialization(batch.clone())?;
        // Moments that it observes show that all of them are reached: the first step observes them.
        trainer.prepare(&batch)?;
        trainer.restore();
        let Trainer { model, memory, shares, .. } = trainer;
        let model = model.expect("there was no step");
        let (device, dtype) = device_and_dtype(&model);
        Ok(Self {
            model,
            tally: frozen(Tensor::zeros([2], (&device.without_autodiff(), dtype))).train(),
            settings: Settings {
                max_gradient_norm: f64::INFINITY,
                drift_every: DRIFT_EVERY,
                drift_bound: DRIFT_BOUND,
                memory: Arc::new(Mutex::new(memory)),
                shares,
                num_steps: 0,
                interrupter: None,
            },
            batch: PhantomData,
        })
    }

    /// [`Trainer::with_max_gradient_norm`].
    ///
    /// # Panics
    /// If `max_gradient_norm` is not above 0.
    pub fn with_max_gradient_norm(mut self, max_gradient_norm: f64) -> Self {
        assert!(
            max_gradient_norm > 0.0,
            "Learnable: the largest gradient norm is {max_gradient_norm}, but must be above 0"
        );
        self.settings.max_gradient_norm = max_gradient_norm;
        self
    }

    /// [`Trainer::with_memory`].
    pub fn with_memory(mut self, memory: Memory) -> Self {
        self.settings.memory = Arc::new(Mutex::new(memory));
        self
    }

    /// [`Trainer::with_drift_control`].
    ///
    /// # Panics
    /// If `every` is 0 or `bound` is not positive.
    pub fn with_drift_control(mut self, every: usize, bound: f64) -> Self {
        assert!(every > 0, "Learnable: drift is measured every 0 steps, but it must be at least 1");
        assert!(bound > 0.0, "Learnable: the bound on the drift is {bound}, but must be positive");
        (self.settings.drift_every, self.settings.drift_bound) = (every, bound);
        self
    }

    /// The handle by which an error ends the training, that of `SupervisedTraining::interrupter`; without it an
    /// error is a panic.
    pub fn with_interrupter(mut self, interrupter: Interrupter) -> Self {
        self.settings.interrupter = Some(interrupter);
        self
    }

    /// What a step keeps of its forward pass now: as [`Trainer::memory`].
    pub fn memory(&self) -> Memory {
        *self.settings.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates made by this model and those it was cloned from, since [`new`](Self::new).
    pub fn num_steps(&self) -> usize {
        self.settings.num_steps
    }

    fn plain_device(&self) -> (Device, DType) {
        let (device, dtype) = device_and_dtype(&self.model);
        (device.without_autodiff(), dtype)
    }

    fn fail(&self, error: &FlowError) {
        let Some(interrupter) = &self.settings.interrupter else { panic!("{error}") };
        // The only kind of error that takes a text. A step does not know its device.
        let failure = WorkerFailure { device_id: 0, message: error.to_string() };
        interrupter.fail(TrainingError::Workers(vec![failure]));
    }

    fn gradients(&self, batch: &B) -> Result<Summed> {
        check_batch(&self.model, batch)?;
        let Settings { drift_every, drift_bound, shares, num_steps, .. } = self.settings;
        let turn = num_steps.is_multiple_of(drift_every).then_some(num_steps / drift_every);
        let (device, dtype) = self.plain_device();
        // As in Trainer: a GPU is not waited for at every step.
        let looks = turn.is_some() || is_host(&device);
        if looks {
            self.model.check()?;
        }
        let moments = running_moments(&self.model);
        let observed = (!moments.is_empty())
            .then(|| passed(&self.model, batch.clone(), Pass::Observe, shares))
            .transpose()?;
        let model = observed.as_ref().unwrap_or(&self.model);

        let pass = Backward { weight: -1.0, micro_batch: usize::MAX, turn, drift_bound, looks };
        let before = self.memory();
        let mut memory = before;
        let Computed { loss, mut grads, drift } = pass.compute(model, batch, &mut memory);
        let loss = match loss {
            Loss::OnDevice(loss) => loss,
            Loss::Known(loss) if loss.is_finite() => {
                host::from_f64(vec![loss], [1], &device, dtype)
            }
            Loss::Known(_) => {
                let is_finite = batch.is_finite();
                return Err(why_not_finite(model, batch.clone(), is_finite, num_steps + 1));
            }
        };
        if memory != before {
            *self.settings.memory.lock().unwrap_or_else(PoisonError::into_inner) = memory;
        }
        register_moments(model, &moments, batch.num_samples(), &mut grads);
        Ok(Summed { loss, grads, drift: drift.as_ref().map(Drift::largest) })
    }
}

impl<M, B> TrainStep for Learnable<M, B>
where
    M: Trainable<B>,
    B: Batch + Send + 'static,
    Self: Module,
{
    type Input = B;
    type Output = DensityOutput;

    fn step(&self, batch: B) -> TrainOutput<DensityOutput> {
        let batch = batch.without_autodiff();
        let num_samples = batch.num_samples();
        let (device, dtype) = self.plain_device();
        let scalar = |value| host::from_f64::<1>(vec![value], [1], &device, dtype);
        let Summed { loss, mut grads, drift } = self.gradients(&batch).unwrap_or_else(|error| {
            self.fail(&error);
            // What it is added up with makes no update either.
            Summed { loss: scalar(f64::NAN), grads: GradientsParams::new(), drift: None }
        });
        let count = num_samples as f64;
        grads.register(self.tally.id, Tensor::cat(vec![scalar(count), loss.clone()], 0));
        let loss = loss / count;
        let item = DensityOutput { loss, num_samples, drift, inversion_error: None };
        TrainOutput { grads, item }
    }

    /// # Panics
    /// If the gradients are not of a [`step`](TrainStep::step) of this model, or, without an interrupter, if they
    /// are not finite.
    fn optimize(
        mut self,
        optimizer: &mut ModuleOptimizer,
        rates: ModuleLearningRate,
        mut grads: GradientsParams,
    ) -> Self {
        let tally = grads.remove::<1>(self.tally.id);
        let tally = tally.expect("Learnable: optimize takes the gradients of its own step");
        let moments = take_moments(&self.model, &mut grads);
        let squares = SumOfSquares::of(&self.model, &grads);
        // One read from the device, at the end of all that the step computes before its update.
        let numbers = [Some(tally), squares.on_device].into_iter().flatten().collect();
        let numbers = host::to_f64(Tensor::<1>::cat(numbers, 0));
        let (count, loss) = (numbers[0], numbers[1]);
        let squares = squares.known + numbers.get(2).unwrap_or(&0.0);
        let gradient_norm = squares.sqrt() / count;
        if !loss.is_finite() || !gradient_norm.is_finite() {
            let layer = first_not_finite(&self.model, &grads).unwrap_or_else(|| "the prior".into());
            let what = if loss.is_finite() { "the gradient" } else { "the loss" };
            let step = self.settings.num_steps + 1;
            self.fail(&FlowError::NotFinite { step, layer, what: what.into() });
            return self;
        }
        let clipping = (self.settings.max_gradient_norm / gradient_norm).min(1.0);
        scale_gradients(&self.model, &mut grads, clipping / count);
        self.model = load_moments(self.model, &moments, count);
        self.model = optimizer.step(rates, self.model, grads);
        if self.settings.shares {
            self.model = share_step(self.model);
        }
        self.settings.num_steps += 1;
        self
    }

    fn optimize_multi(
        self,
        optimizer: &mut ModuleOptimizer,
        rates: ModuleLearningRate,
        grads: MultiGradientsParams,
    ) -> Self {
        let (device, _) = self.plain_device();
        let mut sum = GradientsAccumulator::new();
        for (grads, _) in grads.grads {
            sum.accumulate(&self, grads.to_device(&device, &self));
        }
        self.optimize(optimizer, rates, sum.grads())
    }
}

impl<M, B> InferenceStep for Learnable<M, B>
where
    M: Trainable<B>,
    B: Batch + Send + 'static,
{
    type Input = B;
    type Output = DensityOutput;

    fn step(&self, batch: B) -> DensityOutput {
        let batch = batch.without_autodiff();
        let num_samples = batch.num_samples();
        let some = batch.narrow(0, num_samples.min(ROUND_TRIPS));
        let inversion_error = self.model.inversion_error(some);
        let loss = -self.model.log_prob(batch).mean();
        DensityOutput { loss, num_samples, drift: None, inversion_error }
    }
}

/// Puts running moments, times the number of samples that they have seen last, beside the gradients.
fn register_moments<M: Module>(
    model: &M,
    moments: &[ParamId],
    samples: usize,
    grads: &mut GradientsParams,
) {
    struct Register<'a> {
        moments: &'a [ParamId],
        samples: f64,
        grads: &'a mut GradientsParams,
    }
    impl ModuleVisitor for Register<'_> {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if self.moments.contains(&param.id) {
                self.grads.register(param.id, host::plain(param.val()) * self.samples);
            }
        }
    }
    model.visit(&mut Register { moments, samples: samples as f64, grads });
}

/// Takes what [`register_moments`] has put there out of the gradients.
fn take_moments<M: Module>(model: &M, grads: &mut GradientsParams) -> GradientsParams {
    struct Take<'a> {
        moments: Vec<ParamId>,
        grads: &'a mut GradientsParams,
        taken: GradientsParams,
    }
    impl ModuleVisitor for Take<'_> {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if self.moments.contains(&param.id)
                && let Some(value) = self.grads.remove::<N>(param.id)
            {
                self.taken.register(param.id, value);
            }
        }
    }
    let moments = running_moments(model);
    let mut take = Take { moments, grads, taken: GradientsParams::new() };
    model.visit(&mut take);
    take.taken
}

/// The model with the moments that its copies have, the mean over all samples.
fn load_moments<M: Module>(model: M, moments: &GradientsParams, samples: f64) -> M {
    struct Load<'a> {
        moments: &'a GradientsParams,
        samples: f64,
    }
    impl ModuleMapper for Load<'_> {
        fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
            match self.moments.get::<N>(param.id) {
                Some(sum) => replace(param, sum / self.samples),
                None => param,
            }
        }
    }
    if moments.is_empty() {
        return model;
    }
    // What is counted and summed are plain tensors.
    model.valid().map(&mut Load { moments, samples }).train()
}
