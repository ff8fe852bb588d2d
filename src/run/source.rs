//! Where the batches of a run come from.

use std::time::{Duration, Instant};

use crate::data::Batches;
use crate::error::{FlowError, Result};
use crate::training::Batch;
use crate::training::trainable::check_contexts;

/// The batches that a run trains on, by the step: batch `n` is the same one whenever it is asked for, so that
/// a run that was interrupted goes on with the batches that it would have had.
///
/// | You have | Use |
/// |---|---|
/// | a tensor, or samples and their contexts | [`Source::rows`] |
/// | a function of the step | [`Source::by_step`] |
/// | an iterator | [`Source::iter`] |
/// | images | [`ImageRun`](super::ImageRun) |
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use burn_flows::run::Source;
///
/// let device = burn_flows::backend::device();
/// let x = Tensor::<2>::random([100, 3], Distribution::Default, &device);
/// // Three passes of four batches, each in an order of its own.
/// let source = Source::rows(x, 25, 0)?;
/// assert_eq!(source.steps_a_pass(), Some(4));
///
/// // Every step draws points of its own.
/// let endless = Source::by_step(move |step| {
///     device.seed(step as u64);
///     Ok(Tensor::<2>::random([64, 3], Distribution::Normal(0.0, 1.0), &device))
/// });
/// # let _: (Source<Tensor<2>>, Source<Tensor<2>>) = (source, endless);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
pub struct Source<B> {
    start: Box<dyn FnOnce(usize, usize) -> Box<dyn Feed<B>>>,
    initialization: Option<Box<dyn FnOnce() -> Result<B>>>,
    steps_a_pass: Option<usize>,
}

/// Batches in order.
pub(super) trait Feed<B> {
    fn next(&mut self) -> Option<Result<B>>;

    /// The time that the run waited for batches, and the time that it took to make them, where they are made
    /// ahead.
    fn loading(&self) -> Option<(Duration, Duration)> {
        None
    }
}

struct Plain<I>(I);

impl<B, I: Iterator<Item = Result<B>>> Feed<B> for Plain<I> {
    fn next(&mut self) -> Option<Result<B>> {
        self.0.next()
    }
}

impl<B: 'static> Source<B> {
    pub(super) fn of_feed(
        start: impl FnOnce(usize, usize) -> Box<dyn Feed<B>> + 'static,
        steps_a_pass: Option<usize>,
    ) -> Self {
        Self { start: Box::new(start), initialization: None, steps_a_pass }
    }

    /// Samples in memory, `x` or `(x, context)`: in batches of `batch_size` (all of them if there are fewer), in
    /// an order that depends on `seed` and the number of the pass alone. The last samples of a pass that do
    /// not fill a batch are left out of it; other ones in each.
    ///
    /// # Errors
    /// [`FlowError::Config`] if there are no samples, or `batch_size` is 0; [`FlowError::Invalid`] if there are
    /// neither as many contexts as samples nor one for all.
    pub fn rows(samples: B, batch_size: usize, seed: u64) -> Result<Self>
    where
        B: Batch,
    {
        check_contexts("Source::rows", &samples)?;
        let count = samples.num_samples();
        let batches = Batches::training(count, batch_size.min(count), seed)?;
        let start = move |first: usize, end: usize| {
            let steps = batches.from_step(first as u64).take(end - first);
            let batches = steps.map(move |step| Ok(samples.select(&step.indices)));
            Box::new(Plain(batches)) as Box<dyn Feed<B>>
        };
        Ok(Self::of_feed(start, Some(batches.batches_per_epoch())))
    }

    /// The batch of each step, counted from 0. Where it is random, it draws from
    /// [`random_for`](crate::data::random_for) with the step, and an interrupted run goes on exactly.
    pub fn by_step(batch: impl FnMut(usize) -> Result<B> + 'static) -> Self {
        let start = move |first: usize, end: usize| {
            let batches = (first..end).map(batch);
            Box::new(Plain(batches)) as Box<dyn Feed<B>>
        };
        Self::of_feed(start, None)
    }

    /// Batches one after the other. A run that goes on takes those away first that it had before, so the
    /// iterator is one that starts from the beginning.
    pub fn iter(batches: impl IntoIterator<Item = B> + 'static) -> Self {
        let start = move |first: usize, end: usize| {
            let batches = batches.into_iter().skip(first).take(end - first).map(Ok);
            Box::new(Plain(batches)) as Box<dyn Feed<B>>
        };
        Self::of_feed(start, None)
    }

    /// How many steps are a pass over the data, for what has no passes by itself.
    pub fn with_steps_a_pass(mut self, steps: usize) -> Self {
        self.steps_a_pass = Some(steps.max(1));
        self
    }

    /// Steps of a pass over the data, where there is such a thing.
    pub fn steps_a_pass(&self) -> Option<usize> {
        self.steps_a_pass
    }

    /// A batch that layers are initialized from in place of the first one, a larger one for example; see
    /// [`Trainer::with_initialization`](crate::training::Trainer::with_initialization).
    pub fn with_initialization(mut self, batch: impl FnOnce() -> Result<B> + 'static) -> Self {
        self.initialization = Some(Box::new(batch));
        self
    }

    /// The batches of the steps from `first` to below `end`.
    pub(super) fn start(self, first: usize, end: usize) -> Started<B> {
        let feed = (self.start)(first, end);
        Started {
            feed,
            initialization: self.initialization,
            first: None,
            waited: Duration::ZERO,
            taken: 0,
        }
    }
}

/// A source at work.
pub(super) struct Started<B> {
    feed: Box<dyn Feed<B>>,
    pub initialization: Option<Box<dyn FnOnce() -> Result<B>>>,
    /// A batch that was looked at and is still to be taken.
    first: Option<B>,
    waited: Duration,
    taken: usize,
}

impl<B: Batch> Started<B> {
    /// The next batch, which stays the next one.
    pub fn peek(&mut self, step: usize) -> Result<&B> {
        if self.first.is_none() {
            self.first = Some(self.take(step)?);
        }
        Ok(self.first.as_ref().expect("just taken"))
    }

    /// The next batch, of a step counted from 0.
    pub fn next(&mut self, step: usize) -> Result<B> {
        let batch = match self.first.take() {
            Some(batch) => batch,
            None => self.take(step)?,
        };
        self.taken += batch.num_samples();
        Ok(batch)
    }

    fn take(&mut self, step: usize) -> Result<B> {
        let start = Instant::now();
        let batch = self.feed.next();
        self.waited += start.elapsed();
        batch.unwrap_or_else(|| {
            Err(FlowError::invalid(
                "Source: the batches of a run",
                step,
                format!("more: one for step {}", step + 1),
                "give more batches, or fewer steps to Run::with_steps",
            ))
        })
    }

    /// Samples handed out.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Seconds in which the run waited.
    pub fn waited(&self) -> f64 {
        self.feed.loading().map_or(self.waited, |(waited, _)| waited).as_secs_f64()
    }

    /// Seconds that it took to make the batches, of those ahead too.
    pub fn working(&self) -> f64 {
        self.feed.loading().map_or(self.waited, |(_, working)| working).as_secs_f64()
    }
}
