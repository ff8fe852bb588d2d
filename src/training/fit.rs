//! Training on data in memory until held-out samples gain no more.

use std::ops::ControlFlow;

use super::early::{EarlyStopping, held_out_loss};
use super::trainable::check_contexts;
use super::{Batch, Trainable, Trainer};
use crate::data::Batches;
use crate::error::{FlowError, Result};

/// Trains in passes over data that are in memory, and stops early: when held-out samples have not
/// become likelier for some passes, the model for which they were likeliest is the answer.
///
/// Of a trainer that keeps [averages](Trainer::with_average) the averaged model is the one that is measured
/// and kept.
///
/// What the order of the samples is depends on the seed and the number of the pass alone. The last
/// samples of a pass that do not fill a batch are left out of it; other ones in each.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use burn::tensor::{Distribution, Tensor};
/// use burn_flows::models::MafConfig;
/// use burn_flows::preprocess::Standardize;
/// use burn_flows::training::{Fit, Schedule, Trainer};
///
/// let device = burn_flows::backend::device();
/// let x = Tensor::<2>::random([400, 2], Distribution::Normal(5.0, 3.0), &device);
/// let (train, held_out) = (x.clone().narrow(0, 0, 300), x.narrow(0, 300, 100));
///
/// let trainer = Trainer::new(MafConfig::new(2, 2, vec![16]).init(&device)?, Schedule::constant(5e-3));
/// let fit = Fit::new(50).with_max_epochs(3);
/// let fitted = fit.run(trainer, train, held_out, |epoch| {
///     println!("{}: {:.3} nats a sample held out", epoch.number, epoch.held_out_loss);
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(fitted.num_epochs, 3);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    batch_size: usize,
    max_epochs: usize,
    patience: usize,
    seed: u64,
}

/// A pass over the data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Epoch {
    /// The pass, counted from 1.
    pub number: usize,
    /// Mean of `-ln p` over the batches, each before its step, in nats.
    pub train_loss: f64,
    /// Mean of `-ln p` over the held-out samples after the pass, in nats.
    pub held_out_loss: f64,
    /// Whether that is the lowest so far.
    pub is_best: bool,
}

/// What [`Fit::run`] comes to.
#[derive(Debug)]
pub struct Fitted<M> {
    /// The model after the best pass, ready for inference.
    pub model: M,
    /// Mean of `-ln p` over the held-out samples by that model, in nats.
    pub held_out_loss: f64,
    /// The best pass, counted from 1.
    pub best_epoch: usize,
    /// Passes made, the one that was broken off included.
    pub num_epochs: usize,
    /// Why there were no more.
    pub stopped: Stopped,
}

/// Why a [`Fit`] ended.
#[derive(Debug)]
pub enum Stopped {
    /// The held-out samples have not become likelier for as many passes as the patience says.
    Early,
    /// All passes were made.
    MaxEpochs,
    /// The function that is told of each pass said so.
    ByCaller,
    /// Loss or gradients were not finite, or a layer had no inverse any more. The model is that of the best
    /// pass before.
    Diverged(FlowError),
}

/// Passes without a gain, by default: sbi's `stop_after_epochs`.
const PATIENCE: usize = 20;

/// Held-out samples whose densities are computed at once, in batches of training: no gradients are kept.
const HELD_OUT_BATCHES: usize = 4;

impl Fit {
    /// Batches of so many samples (all of them if there are fewer), at most 1000 passes, 20 of them without
    /// a gain, seed 0.
    pub fn new(batch_size: usize) -> Self {
        Self { batch_size, max_epochs: 1000, patience: PATIENCE, seed: 0 }
    }

    /// The most passes over the data.
    pub fn with_max_epochs(mut self, max_epochs: usize) -> Self {
        self.max_epochs = max_epochs;
        self
    }

    /// Passes without a gain on the held-out samples after which no more is made.
    pub fn with_patience(mut self, patience: usize) -> Self {
        self.patience = patience;
        self
    }

    /// The seed of the order of the samples.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Trains on batches of `train` and measures on `held_out`, both `x` or `(x, context)`; `on_epoch` is told of
    /// each pass and may break off.
    ///
    /// # Errors
    /// [`FlowError::Config`] where there are no samples, or a number of the configuration is 0;
    /// [`FlowError::Invalid`] where there are neither as many contexts as samples nor one for all; those of
    /// [`Trainer::step`] where the samples do not fit the model, or where the training diverges before the first
    /// pass is over. Later it ends by that, see [`Stopped::Diverged`].
    pub fn run<M: Trainable<B>, B: Batch>(
        &self,
        mut trainer: Trainer<M>,
        train: B,
        held_out: B,
        mut on_epoch: impl FnMut(&Epoch) -> ControlFlow<()>,
    ) -> Result<Fitted<M>> {
        self.validate(&train, &held_out)?;
        let samples = train.num_samples();
        let batches = Batches::training(samples, self.batch_size.min(samples), self.seed)?;
        let mut best: Option<Fitted<M>> = None;
        let mut stopping = EarlyStopping::new(self.patience);
        let mut number = 0;
        loop {
            let order = batches.epoch(number as u64);
            number += 1;
            let losses = train_on(&mut trainer, &train, &order).and_then(|train_loss| {
                let (model, step) = (trainer.averaged(), trainer.num_steps());
                let at_once = HELD_OUT_BATCHES.saturating_mul(self.batch_size);
                Ok((train_loss, held_out_loss(&model, &held_out, at_once, step)?))
            });
            let (train_loss, held_out_loss) = match losses {
                Ok(losses) => losses,
                Err(error) => {
                    return match best {
                        Some(best) if is_divergence(&error) => {
                            Ok(best.stopped(number, Stopped::Diverged(error)))
                        }
                        _ => Err(error),
                    };
                }
            };
            let is_best = stopping.take(held_out_loss);
            let epoch = Epoch { number, train_loss, held_out_loss, is_best };
            let kept = match best.take() {
                Some(best) if !is_best => best,
                _ => Fitted::of(epoch, trainer.averaged()),
            };
            let stopped = if on_epoch(&epoch).is_break() {
                Stopped::ByCaller
            } else if stopping.is_over() {
                Stopped::Early
            } else if number == self.max_epochs {
                Stopped::MaxEpochs
            } else {
                best = Some(kept);
                continue;
            };
            return Ok(kept.stopped(number, stopped));
        }
    }

    fn validate<B: Batch>(&self, train: &B, held_out: &B) -> Result<()> {
        let counts = [
            ("batch_size", self.batch_size, "200 is usual"),
            ("max_epochs", self.max_epochs, "leave it at its default where early stopping decides"),
            ("patience", self.patience, "20 is usual"),
            ("train samples", train.num_samples(), "check the data"),
            ("held_out samples", held_out.num_samples(), "hold out a tenth of the data"),
        ];
        match counts.into_iter().find(|(_, count, _)| *count == 0) {
            None => {
                check_contexts("Fit: train", train)?;
                check_contexts("Fit: held_out", held_out)
            }
            Some((name, _, advice)) => Err(FlowError::config("Fit", name, 0, "at least 1", advice)),
        }
    }
}

/// Steps on the batches of a pass; mean loss.
fn train_on<M: Trainable<B>, B: Batch>(
    trainer: &mut Trainer<M>,
    data: &B,
    batches: &[Vec<usize>],
) -> Result<f64> {
    let mut sum = 0.0;
    for samples in batches {
        sum += trainer.step(data.select(samples))?.loss;
    }
    Ok(sum / batches.len() as f64)
}

/// Whether it is the training that went wrong, not what it was given.
fn is_divergence(error: &FlowError) -> bool {
    matches!(
        error,
        FlowError::NotFinite { .. } | FlowError::Singular { .. } | FlowError::Scale { .. }
    )
}

impl<M> Fitted<M> {
    fn of(epoch: Epoch, model: M) -> Self {
        Self {
            model,
            held_out_loss: epoch.held_out_loss,
            best_epoch: epoch.number,
            num_epochs: epoch.number,
            stopped: Stopped::MaxEpochs,
        }
    }

    fn stopped(self, num_epochs: usize, stopped: Stopped) -> Self {
        Self { num_epochs, stopped, ..self }
    }
}
