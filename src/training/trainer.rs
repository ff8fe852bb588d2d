//! Maximum likelihood, step by step.

use std::any::type_name;

use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;

use super::average::Average;
use super::backward::{Backward, Computed, Loss, check_batch, passed, why_not_finite};
use super::gradients::{SumOfSquares, first_not_finite, gradient_norm, scale_gradients};
use super::memory::{self, Choice};
use super::shared::{number_parameters, share_step};
use super::{Adam, Batch, LearningRates, Trainable};
use crate::backend::is_host;
use crate::error::{FlowError, Result};
use crate::flow::Pass;
use crate::host;
use crate::norm::{first_uninitialized, first_unobserved, observes_moments};
use crate::stack::device_and_dtype;
use crate::tape::{Drift, Memory};

/// Trains a [`FlowStack`](crate::FlowStack), or what else is [`Trainable`], by maximum likelihood:
/// [`Adam`] or any other optimizer, a [`Schedule`](super::Schedule) or any other learning rates, clipping
/// by the global norm.
///
/// # Initialization
///
/// Layers that start from data ([`ActNorm`](crate::norm::ActNorm)) are initialized from the whole
/// first batch, or from the one given to
/// [`with_initialization`](Trainer::with_initialization), unless they are already: a model that was
/// loaded or resumed goes on as it is, and one in which some are missing gets these alone. A layer of
/// your own takes part if it keeps a mark as ActNorm does: a frozen parameter named `initialized`,
/// `[1]`, 0 until [`Flow::data_pass`](crate::Flow::data_pass) sets it to 1.
///
/// # The last good model
///
/// A step whose loss or gradients are not finite is an error that names step and layer. If the batch
/// is to blame, because a value of it is not finite, nothing has changed. Otherwise the updates before
/// it are: the trainer goes back to the last good model that it has kept, at most [`GOOD_EVERY`] steps
/// ago ([`with_good_every`](Trainer::with_good_every)). Good is a model for which the batch after it had a finite loss and finite gradients.
/// Parameters, their averages, running statistics, the optimizer's state, the schedule and
/// [`num_steps`](Trainer::num_steps) go back together, so that [`model`](Trainer::model),
/// [`save`](Trainer::save) and further steps go on from there.
///
/// What is kept takes as much memory as parameters and optimizer's state, and the time of a copy of
/// them each time.
///
/// # Memory
///
/// Gradients are computed by [reversible backpropagation](super::reversible); what a step keeps of
/// its forward pass the first batch decides, or [`with_memory`](Trainer::with_memory). Every
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
    /// The optimizer's type, where it is known.
    pub(super) optimizer_name: Option<String>,
    rates: LearningRates,
    max_gradient_norm: f64,
    pub(super) memory: Memory,
    /// Whether what a step keeps is decided by the first batch.
    pub(super) chooses_memory: bool,
    drift_every: usize,
    drift_bound: f64,
    drift: Option<Drift>,
    pub(super) average: Option<Average<M>>,
    micro_batch: usize,
    /// Whether any parameter is in several places.
    pub(super) shares: bool,
    /// How often it is still to be checked whether the model is one function.
    checks_left: usize,
    initializes: bool,
    good_every: usize,
    pub(super) num_steps: usize,
    /// The model as it was before the batch of the step in progress went into it.
    before: Option<M>,
    pub(super) good: Option<Good<M>>,
    /// Updates since `good` was kept, those that were taken back included: where every fifth batch
    /// makes the trainer go back, it still gets on.
    updates_since_good: usize,
}

/// A model for which the batch after it had finite gradients, and what belongs to it.
pub(super) struct Good<M> {
    model: M,
    average: Option<Average<M>>,
    optimizer: ModuleOptimizer,
    num_steps: usize,
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
    /// Learning rate; with Burn's groups of parameters, that of the parameters in none.
    pub learning_rate: f64,
    /// Largest drift, where this step measured it; 0 where no layer is inverted. All that was
    /// measured is in [`Trainer::drift`].
    pub drift: Option<f64>,
}

/// What [`Trainer::gradients`] computes and [`Trainer::apply`] takes.
#[derive(Debug)]
pub struct StepGradients {
    /// Mean of `-ln p(x)` over the batch, in nats.
    pub loss: f64,
    /// Gradients of the loss, by the ids that the parameters have in [`Trainer::model`].
    pub grads: GradientsParams,
    /// Largest drift, where it was measured.
    pub drift: Option<f64>,
}

/// [`StepGradients`] of a loss that may be on its device still.
struct Gradients {
    loss: Loss,
    grads: GradientsParams,
    drift: Option<f64>,
    /// What the trainer kept of a forward pass before.
    memory: Memory,
}

/// Steps from one measurement of the drift to the next, by default: a measurement costs about one
/// forward pass of the narrow tensors between the layers, less than a thousandth of this many steps.
pub const DRIFT_EVERY: usize = 100;

/// What to do about a layer that data do not reach.
const UNREACHED: &str = "write #[derive(Flow)] on the struct or enum that holds the layer, or hand the pass \
     on in its data_pass; in what is turned around by Inverse, initialize or observe it before, and freeze it \
     or train without_initialization";

/// How often a model is checked: before the first step, and when the drift is measured next, by when
/// nets that start as zero have left it.
const CHECKS: usize = 2;

/// Largest drift accepted, by default: reconstructed activations that are off by a thousandth of
/// their root mean square move gradients by about as much, far below the noise of a batch.
pub const DRIFT_BOUND: f64 = 1e-3;

/// Updates from one good model that is kept to the next. The copy of parameters and optimizer's state
/// that each one costs is then a hundredth of the time even of a net whose layers are large and whose
/// batches are small, and less than a training has to lose that diverges.
pub const GOOD_EVERY: usize = 10;

impl<M: Module> Trainer<M> {
    /// A trainer at step 0 of a model on a plain device.
    ///
    /// `rates` is a [`Schedule`](super::Schedule), a function of the step, counted from 0
    /// (`|step: usize| 1e-3 / (1.0 + step as f64).sqrt()`), or one of Burn's schedulers, as their
    /// configurations' `init` gives them.
    ///
    /// The parameters are numbered anew, in order, so that the optimizer's state fits the model
    /// again after both were saved and loaded. Those of clones of a layer, which have one id and one
    /// value, stay one parameter: its gradients from all places add up, and one step is taken on it.
    pub fn new(model: M, rates: impl Into<LearningRates>) -> Self {
        let (model, shares) = number_parameters(model);
        Self {
            model: Some(model.train()),
            optimizer: Adam::new().into(),
            optimizer_name: name_of::<Adam>(),
            rates: rates.into(),
            max_gradient_norm: f64::INFINITY,
            memory: Memory::Reversible,
            chooses_memory: true,
            drift_every: DRIFT_EVERY,
            drift_bound: DRIFT_BOUND,
            drift: None,
            average: None,
            micro_batch: usize::MAX,
            shares,
            checks_left: CHECKS,
            initializes: true,
            good_every: GOOD_EVERY,
            num_steps: 0,
            before: None,
            good: None,
            updates_since_good: 0,
        }
    }

    /// Updates by another optimizer than [`Adam`] with its defaults: an [`Adam`] with other numbers,
    /// any of Burn's (`AdamWConfig::new().init()`, ...), or your own `impl Optimizer`.
    ///
    /// Of a [`ModuleOptimizer`] with groups of parameters, those by path are the ones to take: the ids
    /// of parameters are not those they had before [`Trainer::new`]. Burn's gradient clipping, an
    /// option of its optimizers, clips every parameter by itself, after
    /// [`with_max_gradient_norm`](Trainer::with_max_gradient_norm) has scaled them all together.
    pub fn with_optimizer<O: Into<ModuleOptimizer>>(mut self, optimizer: O) -> Self {
        self.optimizer = optimizer.into();
        self.optimizer_name = name_of::<O>();
        self
    }

    /// Leaves the model as it is where layers are not initialized from data; the other way is
    /// [`with_initialization`](Trainer::with_initialization).
    pub fn without_initialization(mut self) -> Self {
        self.initializes = false;
        self
    }

    /// Gradients whose norm is larger are scaled down to it; default: no clipping.
    ///
    /// # Panics
    /// If `max_gradient_norm` is not above 0.
    pub fn with_max_gradient_norm(mut self, max_gradient_norm: f64) -> Self {
        assert!(
            max_gradient_norm > 0.0,
            "Trainer: the largest gradient norm is {max_gradient_norm}, but must be above 0"
        );
        self.max_gradient_norm = max_gradient_norm;
        self
    }

    /// What a step keeps of its forward pass; default: decided by the first batch, [`Memory::Stored`] where
    /// that saves products of the couplings' nets and fits the memory that is free, else
    /// [`Memory::Reversible`].
    pub fn with_memory(mut self, memory: Memory) -> Self {
        (self.memory, self.chooses_memory) = (memory, false);
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

    /// Keeps averages of the trained parameters beside them; [`averaged`](Trainer::averaged) is the model
    /// that has them.
    ///
    /// `a <- d a + (1 - d) p` after each step, with `d = min(decay, (1 + n) / (10 + n))` after `n` of them: an
    /// average over the last `1 / (1 - decay)` steps or so, 0.999 for the last thousand. It wanders less than
    /// the parameters do, and its densities of held-out samples are higher for that. What is not trained,
    /// running moments for one, is that of the trained model.
    ///
    /// Source: Polyak and Juditsky, *Acceleration of Stochastic Approximation by Averaging*, 1992.
    ///
    /// # Panics
    /// If `decay` is not within 0 to 1, 1 excluded.
    pub fn with_average(mut self, decay: f64) -> Self {
        assert!(
            (0.0..1.0).contains(&decay),
            "Trainer: the average decays by {decay}, but it must be in 0..1"
        );
        self.average = Some(Average::new(decay));
        self
    }

    /// Computes the gradients of a batch in parts of at most `micro_batch` samples and adds them up:
    /// the step is that of the whole batch within rounding, with the activations of a part.
    ///
    /// The same holds with [`BatchNorm`](crate::norm::BatchNorm): its moments take in the whole batch
    /// before the step (by a forward pass alone, see [`Flow::data_pass`](crate::Flow::data_pass)) and are
    /// constants in the step itself. It does not hold with batch normalization inside of nets: the values are still those of
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

    /// Keeps a good model every `every` updates, to go back to; default: [`GOOD_EVERY`]. With 1 a single
    /// update is lost where the trainer goes back, at the price of a copy of parameters and optimizer's
    /// state in every step.
    ///
    /// # Panics
    /// If `every` is 0.
    pub fn with_good_every(mut self, every: usize) -> Self {
        assert!(every > 0, "Trainer: a model is kept every 0 updates, but it must be at least 1");
        self.good_every = every;
        self
    }

    /// What a step keeps of its forward pass now: what was asked for or what the first batch decided
    /// (before it [`Memory::Reversible`]), or the checkpoints that the drift made necessary.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Whether layers wait for data that the first batch is to initialize.
    #[cfg(feature = "run")]
    pub(crate) fn is_to_be_initialized(&self) -> bool {
        self.initializes
            && self.num_steps == 0
            && first_uninitialized(self.training_model()).is_some()
    }

    /// The drift as it was measured last, layer by layer.
    pub fn drift(&self) -> Option<&Drift> {
        self.drift.as_ref()
    }

    /// Steps taken; fewer than before where an error made the trainer go back.
    pub fn num_steps(&self) -> usize {
        self.num_steps
    }

    /// The model as it is now, ready for inference; after an error the last good one.
    pub fn model(&self) -> M {
        self.training_model().valid()
    }

    /// The model with [averaged](Trainer::with_average) parameters, ready for inference; without them, or
    /// before the first step, [`model`](Trainer::model).
    pub fn averaged(&self) -> M {
        let average = self.average.as_ref().and_then(Average::model);
        average.cloned().unwrap_or_else(|| self.model())
    }

    pub(crate) fn training_model(&self) -> &M {
        self.model.as_ref().expect("the model is put back after every step")
    }

    /// The second half of a step: clips the gradients and updates the model.
    ///
    /// # Errors
    /// [`FlowError::NotFinite`] where loss or gradients are not finite, with the parameter concerned;
    /// [`FlowError::Invalid`] where the learning rate is not a finite number above 0. See
    /// [`step`](Trainer::step).
    pub fn apply(&mut self, gradients: StepGradients) -> Result<Step> {
        let gradient_norm = gradient_norm(self.training_model(), &gradients.grads);
        self.apply_of_norm(gradients, gradient_norm)
    }

    fn apply_of_norm(&mut self, gradients: StepGradients, gradient_norm: f64) -> Result<Step> {
        let StepGradients { loss, mut grads, drift } = gradients;
        let number = self.num_steps + 1;
        let model = self.training_model();
        if !loss.is_finite() || !gradient_norm.is_finite() {
            let layer = first_not_finite(model, &grads).unwrap_or_else(|| "the prior".into());
            let what = if loss.is_finite() { "the gradient" } else { "the loss" };
            self.go_back();
            return Err(FlowError::NotFinite { step: number, layer, what: what.into() });
        }
        if gradient_norm > self.max_gradient_norm {
            scale_gradients(model, &mut grads, self.max_gradient_norm / gradient_norm);
        }
        let rates = self.rates.of_step(self.num_steps).inspect_err(|_| self.restore())?;
        let learning_rate = rates.base();
        // Another owner of the parameters would make the update copy them.
        self.before = None;
        self.keep_if_due();
        let model = self.model.take().expect("the model is put back after every step");
        let model = self.optimizer.step(rates, model, grads);
        let model = if self.shares { share_step(model) } else { model };
        if let Some(average) = &mut self.average {
            average.update(&model);
        }
        self.model = Some(model);
        self.num_steps = number;
        Ok(Step { number, loss, gradient_norm, learning_rate, drift })
    }

    /// Keeps the model, which the batch has just found good.
    fn keep_if_due(&mut self) {
        if self.good.is_none() || self.updates_since_good >= self.good_every {
            self.good = Some(Good {
                model: self.training_model().clone(),
                average: self.average.clone(),
                optimizer: self.optimizer.clone(),
                num_steps: self.num_steps,
            });
            self.updates_since_good = 0;
        }
        self.updates_since_good += 1;
    }

    /// To the last good model; where there is none yet, to the one before the batch.
    fn go_back(&mut self) {
        self.restore();
        if let Some(good) = &self.good {
            self.model = Some(good.model.clone());
            self.average = good.average.clone();
            self.optimizer = good.optimizer.clone();
            self.num_steps = good.num_steps;
        }
    }

    /// Takes back what the batch of the step in progress has changed.
    pub(super) fn restore(&mut self) {
        if let Some(before) = self.before.take() {
            self.model = Some(before);
        }
    }
}

/// The name of an optimizer's type, without its path; `None` for Burn's wrapper around any of them.
fn name_of<O>() -> Option<String> {
    let path = type_name::<O>().split('<').next()?;
    let name = path.rsplit("::").next()?;
    (path != type_name::<ModuleOptimizer>()).then(|| name.into())
}

impl<M: Module> Trainer<M> {
    /// Initializes the layers that start from data by this batch in place of the first batch of
    /// training; those that are initialized already stay as they are.
    ///
    /// # Errors
    /// As [`step`](Trainer::step), which initializes where this was not called.
    pub fn with_initialization<B: Batch>(mut self, batch: B) -> Result<Self>
    where
        M: Trainable<B>,
    {
        check_batch(self.training_model(), &batch)?;
        if !batch.is_finite() {
            return Err(FlowError::invalid(
                "Trainer: the batch for the initialization",
                "values that are not finite",
                "finite values",
                "look at how the data are prepared",
            ));
        }
        self.initialize(batch)?;
        self.before = None;
        Ok(self)
    }

    /// One step on a batch of plain tensors, `x` or `(x, context)`: [`gradients`](Trainer::gradients), then
    /// [`apply`](Trainer::apply).
    ///
    /// # Errors
    /// - [`FlowError::NotFinite`], with step and layer, where loss or gradients are not finite, and
    ///   [`FlowError::Singular`] and [`FlowError::Scale`] where a flow has no inverse
    ///   ([`Flow::check`](crate::Flow::check)); see [the last good model](Trainer#the-last-good-model).
    /// - [`FlowError::Invalid`] for contexts that are missing, of other numbers, widths, dtypes or devices
    ///   than the model's layers take, for an empty batch, and for a single sample, or a single context for all,
    ///   where batch normalization would see one value a channel, which has no variance; [`FlowError::OutsideSupport`] where the
    ///   batch has values to which a layer gives no density. Nothing has changed then.
    /// - [`FlowError::NotRepeatable`], at the first step, for nets with chance or a state of their own; see
    ///   [`reversible::check`](super::reversible::check). Nothing has changed then.
    /// - [`FlowError::Invalid`] where the learning rate of the step is not a finite number above 0,
    ///   where a parameter of the model was not finite from the start, or where a layer is not
    ///   reached by the [`Flow::data_pass`](crate::Flow::data_pass) that initializes. Nothing has changed
    ///   then.
    pub fn step<B: Batch>(&mut self, batch: B) -> Result<Step>
    where
        M: Trainable<B>,
    {
        let computed = self.compute(&batch)?;
        let squares = SumOfSquares::of(self.training_model(), &computed.grads);
        let (loss, on_device) = match (&computed.loss, squares.on_device) {
            // One read from the device, at the end of all that the step computes before its update.
            (Loss::OnDevice(loss), Some(sum)) => {
                let read = host::to_f64(Tensor::cat(vec![loss.clone(), sum], 0));
                (read[0], read[1])
            }
            (loss, sum) => (loss.read(), sum.map_or(0.0, host::scalar)),
        };
        let gradients = self.finite(batch, computed, loss)?;
        self.apply_of_norm(gradients, (squares.known + on_device).sqrt())
    }

    /// The first half of a step on a batch of plain tensors: initialization where it is due,
    /// running statistics, loss and gradients. What is done to the gradients before
    /// [`apply`](Trainer::apply), a clipping of one's own or a sum over machines, has its place between
    /// the two.
    ///
    /// ```
    /// # use burn::tensor::Tensor;
    /// # use burn_flows::training::{Schedule, Trainer};
    /// # use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
    /// use burn_flows::training::scale_gradients;
    ///
    /// # let device = burn_flows::backend::device();
    /// # let flow = DiagonalScaling::new(2, &device)?;
    /// # let stack: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2])?;
    /// let mut trainer = Trainer::new(stack, Schedule::constant(0.05));
    /// let mut gradients = trainer.gradients(Tensor::from_data([[3.0, -2.0]], &device))?;
    /// scale_gradients(&trainer.model(), &mut gradients.grads, 0.5);
    /// // With respect to the log-scales they are 9 - 1 and 4 - 1.
    /// assert!((trainer.apply(gradients)?.gradient_norm - 73f64.sqrt() / 2.0).abs() < 1e-5);
    /// # Ok::<(), burn_flows::FlowError>(())
    /// ```
    ///
    /// # Errors
    /// As [`step`](Trainer::step), for a loss that is not finite.
    pub fn gradients<B: Batch>(&mut self, batch: B) -> Result<StepGradients>
    where
        M: Trainable<B>,
    {
        let computed = self.compute(&batch)?;
        let loss = computed.loss.read();
        self.finite(batch, computed, loss)
    }

    /// What [`gradients`](Trainer::gradients) does before it knows the loss.
    fn compute<B: Batch>(&mut self, batch: &B) -> Result<Gradients>
    where
        M: Trainable<B>,
    {
        let looks = self.prepare(batch)?;
        let memory = self.memory;
        let (loss, grads, drift) = self.loss_and_gradients(batch, looks);
        Ok(Gradients { loss, grads, drift, memory })
    }

    /// What comes before the gradients of a batch, and before the first of all; whether the loss is to be read
    /// before the way back.
    pub(super) fn prepare<B: Batch>(&mut self, batch: &B) -> Result<bool>
    where
        M: Trainable<B>,
    {
        check_batch(self.training_model(), batch)?;
        self.before = None;
        let is_start = self.initializes && self.num_steps == 0;
        if is_start && first_uninitialized(self.training_model()).is_some() {
            self.initialize(batch.clone())?;
        }
        // A GPU is not waited for at every step: there the loss shows what would be found.
        let looks = self.measures() || is_host(&device_and_dtype(self.training_model()).0);
        if looks && let Err(error) = Trainable::<B>::check(self.training_model()) {
            let error = self.not_finite_from_the_start().unwrap_or(error);
            self.go_back();
            return Err(error);
        }
        if self.checks_left > 0 && self.measures() {
            let checked = self.training_model().check_repeats(batch.clone());
            checked.inspect_err(|_| self.restore())?;
            self.checks_left -= 1;
        }
        self.observe(batch.clone())?;
        self.choose_memory(batch);
        Ok(looks)
    }

    /// What was computed of a batch, if its loss is finite.
    fn finite<B: Batch>(
        &mut self,
        batch: B,
        computed: Gradients,
        loss: f64,
    ) -> Result<StepGradients>
    where
        M: Trainable<B>,
    {
        let Gradients { grads, drift, memory, .. } = computed;
        if loss.is_finite() {
            return Ok(StepGradients { loss, grads, drift });
        }
        self.memory = memory;
        let is_finite = batch.is_finite();
        let error = self.why_not_finite(batch, is_finite);
        let is_of_the_batch = matches!(error, FlowError::OutsideSupport { .. }) || !is_finite;
        if is_of_the_batch {
            self.restore();
        } else {
            self.go_back();
        }
        Err(error)
    }

    /// Whether this step measures the drift.
    fn measures(&self) -> bool {
        self.num_steps.is_multiple_of(self.drift_every)
    }

    /// Loss, gradients and, where it is this step's turn, the largest drift. Where `looks` says so, the loss
    /// is read before the way back, which is not taken from one that is not finite.
    fn loss_and_gradients<B: Batch>(
        &mut self,
        batch: &B,
        looks: bool,
    ) -> (Loss, GradientsParams, Option<f64>)
    where
        M: Trainable<B>,
    {
        let pass = Backward {
            weight: -1.0 / batch.num_samples() as f64,
            micro_batch: self.micro_batch,
            turn: self.measures().then(|| self.num_steps / self.drift_every),
            drift_bound: self.drift_bound,
            looks,
        };
        let mut memory = self.memory;
        let Computed { loss, grads, drift } =
            pass.compute(self.training_model(), batch, &mut memory);
        self.memory = memory;
        let largest = drift.as_ref().map(Drift::largest);
        self.drift = drift.or(self.drift.take());
        (loss, grads, largest)
    }

    /// Decides what a step keeps, where the user did not, and says why.
    pub(crate) fn choose_memory<B: Batch>(&mut self, batch: &B) -> Option<String>
    where
        M: Trainable<B>,
    {
        if !std::mem::take(&mut self.chooses_memory) {
            return None;
        }
        let at_once = self.micro_batch.min(batch.num_samples());
        let Choice { memory, reason } = memory::choose(self.training_model(), batch, at_once);
        self.memory = memory;
        Some(reason)
    }

    /// Initializes what is not; the model as it was is then in `before`.
    fn initialize<B: Batch>(&mut self, batch: B) -> Result<()>
    where
        M: Trainable<B>,
    {
        let model = self.training_model();
        let initialized = passed(model, batch, Pass::Initialize, self.shares)?;
        if let Some(layer) = first_uninitialized(&initialized) {
            return Err(FlowError::invalid(
                format!("Trainer: the initialization of {layer}"),
                "a layer that Flow::data_pass of the model does not reach",
                "every layer marked as initialized",
                UNREACHED,
            ));
        }
        self.before = self.model.replace(initialized);
        Ok(())
    }

    /// Takes the batch into the model's running statistics, if it has any; the model as it was is then
    /// in `before`.
    fn observe<B: Batch>(&mut self, batch: B) -> Result<()>
    where
        M: Trainable<B>,
    {
        let model = self.training_model();
        if observes_moments(model) {
            let model = passed(model, batch, Pass::Observe, self.shares);
            let model = model.inspect_err(|_| self.restore())?;
            if self.num_steps == 0
                && let Some(moments) = first_unobserved(&model)
            {
                self.restore();
                return Err(FlowError::invalid(
                    format!("Trainer: the running moments of {moments}"),
                    "moments that Flow::data_pass of the model does not reach",
                    "all of them to see the batch",
                    UNREACHED,
                ));
            }
            let before = self.model.replace(model);
            self.before = self.before.take().or(before);
        }
        Ok(())
    }

    /// The error for a model that had a parameter that is not finite before any update.
    fn not_finite_from_the_start(&self) -> Option<FlowError> {
        if self.good.is_some() {
            return None;
        }
        let model = self.before.as_ref().unwrap_or(self.training_model());
        let parameter = first_not_finite(model, &GradientsParams::new())?;
        let number = self.num_steps + 1;
        Some(FlowError::invalid(
            format!("Trainer: the parameter {parameter} before step {number}"),
            "values that are not finite",
            "finite values",
            "the model was like this when it was given; start from another one",
        ))
    }

    /// The error for a batch, itself finite or not, whose loss is not finite.
    fn why_not_finite<B: Batch>(&self, batch: B, is_finite: bool) -> FlowError
    where
        M: Trainable<B>,
    {
        if let Some(error) = self.not_finite_from_the_start() {
            return error;
        }
        why_not_finite(self.training_model(), batch, is_finite, self.num_steps + 1)
    }
}
