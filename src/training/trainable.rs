//! What a [`Trainer`](super::Trainer) trains, and on what.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::repeats;
use crate::context::{
    Embedded, Embedding, Given, assert_rows, filled_with, first_empty, first_empty_beside,
};
use crate::error::{FlowError, Result};
use crate::flow::{Flow, Pass, collect};
use crate::host;
use crate::metrics;
use crate::prior::{Prior, SplitPrior};
use crate::stack::FlowStack;
use crate::tape::Tape;

/// Samples that go through a training step together: a tensor, batch first, or a pair of one and its
/// contexts (one a sample, or one for all).
pub trait Batch: Clone {
    /// The number of samples.
    fn num_samples(&self) -> usize;

    /// The number of contexts, where there are any: as many as samples, or one for all.
    fn num_contexts(&self) -> Option<usize> {
        None
    }

    /// `length` samples from `start` on.
    fn narrow(&self, start: usize, length: usize) -> Self;

    /// The samples of these numbers, in their order.
    fn select(&self, samples: &[usize]) -> Self;

    /// Whether every value is finite.
    fn is_finite(&self) -> bool;

    /// The same samples as plain tensors: Burn's loaders make them on a device with autodiff.
    fn without_autodiff(self) -> Self;
}

impl<const D: usize> Batch for Tensor<D> {
    fn num_samples(&self) -> usize {
        self.dims()[0]
    }

    fn narrow(&self, start: usize, length: usize) -> Self {
        self.clone().narrow(0, start, length)
    }

    fn select(&self, samples: &[usize]) -> Self {
        self.clone().select(0, host::places(samples.iter().copied(), &self.device()))
    }

    fn is_finite(&self) -> bool {
        host::is_finite(self.clone())
    }

    fn without_autodiff(self) -> Self {
        host::plain(self)
    }
}

impl<const D: usize, const C: usize> Batch for (Tensor<D>, Tensor<C>) {
    fn num_samples(&self) -> usize {
        self.0.num_samples()
    }

    fn num_contexts(&self) -> Option<usize> {
        Some(self.1.dims()[0])
    }

    fn narrow(&self, start: usize, length: usize) -> Self {
        let (x, context) = self;
        let context = match is_for_all(context) {
            true => context.clone(),
            false => Batch::narrow(context, start, length),
        };
        (Batch::narrow(x, start, length), context)
    }

    fn select(&self, samples: &[usize]) -> Self {
        let (x, context) = self;
        let context = match is_for_all(context) {
            true => context.clone(),
            false => Batch::select(context, samples),
        };
        (Batch::select(x, samples), context)
    }

    fn is_finite(&self) -> bool {
        Batch::is_finite(&self.0) && Batch::is_finite(&self.1)
    }

    fn without_autodiff(self) -> Self {
        (host::plain(self.0), host::plain(self.1))
    }
}

/// An error where samples, `what` they are, have contexts that are not theirs.
pub(crate) fn check_contexts<B: Batch>(what: &str, batch: &B) -> Result<()> {
    let samples = batch.num_samples();
    match batch.num_contexts() {
        Some(contexts) if !are_enough(contexts, samples) => Err(FlowError::invalid(
            format!("{what}: the contexts"),
            format!("{contexts} for {samples} samples"),
            "one for each sample, or one for all",
            "give samples and contexts in pairs",
        )),
        _ => Ok(()),
    }
}

/// Whether there are as many contexts as the samples need: one for each, or one for all.
fn are_enough(contexts: usize, samples: usize) -> bool {
    contexts == 1 || contexts == samples
}

/// Whether a context is not one a sample.
fn is_for_all<const C: usize>(context: &Tensor<C>) -> bool {
    context.dims()[0] == 1
}

/// A density that a [`Trainer`](super::Trainer) can train on batches of a kind: a [`FlowStack`] on
/// `x` or on `(x, context)`, an [`Embedded`] stack on `(x, raw)`, a stack
/// [`WithClassifier`](super::WithClassifier) on `(x, classes)`.
///
/// For a model that is none of these, implement the methods by those of the stack inside.
pub trait Trainable<B: Batch>: Module {
    /// `ln p(x)`, or `ln p(x | context)`, in nats: `[batch]`.
    fn log_prob(&self, batch: B) -> Tensor<1>;

    /// [`Flow::data_pass`] of a model that is not in training.
    fn data_pass(self, batch: B, pass: Pass) -> Self;

    /// Whether the model can take the batch.
    ///
    /// # Errors
    /// If not.
    fn check_batch(&self, batch: &B) -> Result<()>;

    /// [`Flow::check`].
    ///
    /// # Errors
    /// As [`Flow::check`].
    fn check(&self) -> Result<()>;

    /// Whether the model, in training, is one function; see
    /// [`reversible::check`](super::reversible::check).
    ///
    /// # Errors
    /// If not.
    fn check_repeats(&self, batch: B) -> Result<()>;

    /// `weight` times the sum of `ln p` over the batch, `[1]`, by a model in training, and, where `goes_back`
    /// says so of that sum, its gradients added to `grads`. The sum is a tensor so that a GPU is not waited
    /// for in the middle of a step.
    fn gradients(
        &self,
        batch: B,
        weight: f64,
        tape: &mut Tape,
        grads: &mut GradientsParams,
        goes_back: impl FnOnce(&Tensor<1>) -> bool,
    ) -> Tensor<1>;

    /// [`FlowStack::first_not_finite`].
    fn first_not_finite(&self, batch: B) -> Option<String>;

    /// [`metrics::inversion_error`] over the batch, of a model that is not in training; `None`, as by default,
    /// of a model that does not tell.
    fn inversion_error(&self, _batch: B) -> Option<f64> {
        None
    }
}

impl<const D: usize, F, P, S> Trainable<Tensor<D>> for FlowStack<D, F, P, S>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    Self: Module,
{
    fn log_prob(&self, x: Tensor<D>) -> Tensor<1> {
        self.log_prob(x)
    }

    fn data_pass(self, x: Tensor<D>, pass: Pass) -> Self {
        Flow::data_pass(self, x, pass).0
    }

    fn check_batch(&self, _x: &Tensor<D>) -> Result<()> {
        check_given(first_empty(self), "pass (x, context) to the step")
    }

    fn check(&self) -> Result<()> {
        Flow::check(self)
    }

    fn check_repeats(&self, x: Tensor<D>) -> Result<()> {
        repeats::check(self, x)
    }

    fn gradients(
        &self,
        x: Tensor<D>,
        weight: f64,
        tape: &mut Tape,
        grads: &mut GradientsParams,
        goes_back: impl FnOnce(&Tensor<1>) -> bool,
    ) -> Tensor<1> {
        let pass = self.forward_log_prob(x, weight, tape);
        let sum = pass.weighted_log_prob.clone();
        if goes_back(&sum) {
            self.backward_log_prob(pass, tape, grads);
        }
        sum
    }

    fn first_not_finite(&self, x: Tensor<D>) -> Option<String> {
        self.first_not_finite(x)
    }

    fn inversion_error(&self, x: Tensor<D>) -> Option<f64> {
        Some(metrics::inversion_error(self, x))
    }
}

/// [`are_enough`], as an error of a step.
fn check_rows<const D: usize, const C: usize>(x: &Tensor<D>, context: &Tensor<C>) -> Result<()> {
    let (samples, rows) = (x.dims()[0], context.dims()[0]);
    if are_enough(rows, samples) {
        return Ok(());
    }
    Err(FlowError::invalid(
        "Trainer: the contexts of a batch",
        rows,
        format!("{samples}, one for each sample, or 1 for all"),
        "take the rows of the samples and of their contexts together",
    ))
}

const OF_ANOTHER_RANK: &str =
    "give the model the context of the other rank before it is trained (Given::given)";

/// Refuses a model with a place, if there is one, that waits for a context.
fn check_given(empty: Option<String>, advice: &str) -> Result<()> {
    let Some(path) = empty else { return Ok(()) };
    Err(FlowError::invalid(
        "Trainer: the context of a batch",
        "none",
        format!("one for {path}"),
        advice,
    ))
}

/// The stack given a context that no gradient is asked for.
pub(super) fn constant<const C: usize, M: Module>(stack: &M, context: Tensor<C>) -> M {
    filled_with(stack, &Param::from_tensor(context).set_require_grad(false))
}

impl<const D: usize, const C: usize, F, P, S> Trainable<(Tensor<D>, Tensor<C>)>
    for FlowStack<D, F, P, S>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    Self: Module,
{
    fn log_prob(&self, (x, context): (Tensor<D>, Tensor<C>)) -> Tensor<1> {
        constant(self, context).log_prob(x)
    }

    fn data_pass(self, (x, context): (Tensor<D>, Tensor<C>), pass: Pass) -> Self {
        Flow::data_pass(constant(&self, context), x, pass).0.without_context::<C>()
    }

    fn check_batch(&self, (x, context): &(Tensor<D>, Tensor<C>)) -> Result<()> {
        check_rows(x, context)?;
        check_given(first_empty_beside(self, context)?, OF_ANOTHER_RANK)
    }

    fn check(&self) -> Result<()> {
        Flow::check(self)
    }

    fn check_repeats(&self, (x, context): (Tensor<D>, Tensor<C>)) -> Result<()> {
        let (x, context) = Batch::narrow(&(x.clone(), context), 0, repeats::samples(&x));
        repeats::check(&constant(self, Tensor::from_inner(context)), x)
    }

    fn gradients(
        &self,
        (x, context): (Tensor<D>, Tensor<C>),
        weight: f64,
        tape: &mut Tape,
        grads: &mut GradientsParams,
        goes_back: impl FnOnce(&Tensor<1>) -> bool,
    ) -> Tensor<1> {
        let stack = constant(self, Tensor::from_inner(context));
        Trainable::gradients(&stack, x, weight, tape, grads, goes_back)
    }

    fn first_not_finite(&self, (x, context): (Tensor<D>, Tensor<C>)) -> Option<String> {
        constant(self, context).first_not_finite(x)
    }

    fn inversion_error(&self, (x, context): (Tensor<D>, Tensor<C>)) -> Option<f64> {
        Some(metrics::inversion_error(&constant(self, context), x))
    }
}

impl<const D: usize, const R: usize, const C: usize, E, F, P, S> Trainable<(Tensor<D>, Tensor<R>)>
    for Embedded<E, FlowStack<D, F, P, S>, C>
where
    E: Embedding<R, C>,
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
    Self: Module,
{
    fn log_prob(&self, (x, raw): (Tensor<D>, Tensor<R>)) -> Tensor<1> {
        Trainable::log_prob(&self.model, (x, self.context(raw)))
    }

    fn data_pass(mut self, (x, raw): (Tensor<D>, Tensor<R>), pass: Pass) -> Self {
        let rows = raw.dims()[0];
        let (embedding, context) = self.embedding.embed_pass(raw, pass);
        assert_rows(rows, &context);
        self.embedding = embedding;
        self.model = Trainable::data_pass(self.model, (x, context), pass);
        self
    }

    fn check_batch(&self, (x, raw): &(Tensor<D>, Tensor<R>)) -> Result<()> {
        check_rows(x, raw)?;
        let first = self.embedding.valid().embed(Batch::narrow(raw, 0, 1));
        assert_rows(1, &first);
        check_given(first_empty_beside(&self.model, &first)?, OF_ANOTHER_RANK)
    }

    fn check(&self) -> Result<()> {
        Flow::check(&self.model)
    }

    fn check_repeats(&self, (x, raw): (Tensor<D>, Tensor<R>)) -> Result<()> {
        let (x, raw) = Batch::narrow(&(x.clone(), raw), 0, repeats::samples(&x));
        let context = repeats::check_embedding::<R, C, E>(&self.embedding, raw)?;
        Trainable::check_repeats(&self.model, (x, context))
    }

    fn gradients(
        &self,
        (x, raw): (Tensor<D>, Tensor<R>),
        weight: f64,
        tape: &mut Tape,
        grads: &mut GradientsParams,
        goes_back: impl FnOnce(&Tensor<1>) -> bool,
    ) -> Tensor<1> {
        let context = self.context(Tensor::from_inner(raw));
        if !context.is_tracked() {
            let batch = (x, context.inner());
            return Trainable::gradients(&self.model, batch, weight, tape, grads, goes_back);
        }
        let leaf = Param::from_tensor(Tensor::from_inner(context.clone().inner()).require_grad());
        let stack = filled_with(&self.model, &leaf);
        let mut went_back = false;
        let sum = Trainable::gradients(&stack, x, weight, tape, grads, |sum| {
            went_back = goes_back(sum);
            went_back
        });
        if went_back && let Some(dcontext) = grads.remove::<C>(leaf.id) {
            let mut graph = (context * Tensor::from_inner(dcontext)).sum().backward();
            collect(&mut graph, &self.embedding, grads);
        }
        sum
    }

    fn first_not_finite(&self, (x, raw): (Tensor<D>, Tensor<R>)) -> Option<String> {
        let context = self.context(raw);
        if !host::is_finite(context.clone()) {
            return Some("the embedding".into());
        }
        Trainable::first_not_finite(&self.model, (x, context))
    }

    fn inversion_error(&self, (x, raw): (Tensor<D>, Tensor<R>)) -> Option<f64> {
        Trainable::inversion_error(&self.model, (x, self.context(raw)))
    }
}
