//! A step's way through a model and back, for whoever owns model and optimizer: the [`Trainer`](super::Trainer)
//! or Burn's Learner.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::gradients::first_not_finite;
use super::shared::share_data_pass;
use super::{Batch, Trainable};
use crate::error::{FlowError, Result};
use crate::flow::Pass;
use crate::host;
use crate::support::{Question, watch};
use crate::tape::{Drift, Memory, Tape};

/// A loss that was read, or is on its device still, `[1]`.
#[allow(clippy::large_enum_variant)] // there is one of it at a time
pub(super) enum Loss {
    Known(f64),
    OnDevice(Tensor<1>),
}

impl Loss {
    fn plus(self, more: Self) -> Self {
        match (self, more) {
            (Self::Known(loss), Self::Known(more)) => Self::Known(loss + more),
            (Self::Known(known), Self::OnDevice(loss))
            | (Self::OnDevice(loss), Self::Known(known)) => Self::OnDevice(loss + known),
            (Self::OnDevice(loss), Self::OnDevice(more)) => Self::OnDevice(loss + more),
        }
    }

    pub fn may_be_finite(&self) -> bool {
        !matches!(self, Self::Known(loss) if !loss.is_finite())
    }

    pub fn read(&self) -> f64 {
        match self {
            Self::Known(loss) => *loss,
            Self::OnDevice(loss) => host::scalar(loss.clone()),
        }
    }
}

/// How the gradients of a batch are computed.
pub(super) struct Backward {
    /// The factor of each sample's `ln p`.
    pub weight: f64,
    /// The most samples at once.
    pub micro_batch: usize,
    /// Which of the measurements of the drift this is, if any.
    pub turn: Option<usize>,
    /// The largest drift that is accepted.
    pub drift_bound: f64,
    /// Whether the loss is read before the way back, which is not taken from one that is not finite.
    pub looks: bool,
}

/// What [`Backward`] computes.
pub(super) struct Computed {
    /// The weighted sum.
    pub loss: Loss,
    pub grads: GradientsParams,
    pub drift: Option<Drift>,
}

impl Backward {
    /// Loss and gradients of a model in training. Where the drift is above the bound, `memory` becomes
    /// checkpoints, and all is computed again.
    pub fn compute<M: Trainable<B>, B: Batch>(
        &self,
        model: &M,
        batch: &B,
        memory: &mut Memory,
    ) -> Computed {
        let samples = batch.num_samples();
        let mut measured = None;
        loop {
            let mut grads = GradientsParams::new();
            let mut loss = Loss::Known(0.0);
            let mut drift = None;
            for start in (0..samples).step_by(self.micro_batch) {
                let part = batch.narrow(start, self.micro_batch.min(samples - start));
                let mut tape = Tape::new(*memory);
                // One part is enough: the error depends on the layers more than on the samples.
                if let Some(turn) = self.turn
                    && start == 0
                {
                    tape = tape.measuring(turn);
                }
                let mut read = None;
                let part = model.gradients(part, self.weight, &mut tape, &mut grads, |loss| {
                    // Before the way back: a matrix that is not finite has no inverse.
                    read = self.looks.then(|| host::scalar(loss.clone()));
                    read.is_none_or(f64::is_finite)
                });
                loss = loss.plus(match read {
                    Some(read) => Loss::Known(read),
                    None => Loss::OnDevice(part),
                });
                if !loss.may_be_finite() {
                    return Computed { loss, grads, drift: measured };
                }
                drift = drift.or(tape.into_drift());
            }
            let every = drift.as_ref().and_then(|drift| drift.checkpoint_every(self.drift_bound));
            measured = drift.or(measured);
            match every {
                None => return Computed { loss, grads, drift: measured },
                Some(every) => *memory = Memory::Checkpoint { every },
            }
        }
    }
}

/// Whether a step can be taken on a batch of as many samples.
pub(super) fn check_batch<M: Trainable<B>, B: Batch>(model: &M, batch: &B) -> Result<()> {
    if batch.num_samples() > 0 {
        return model.check_batch(batch);
    }
    Err(FlowError::invalid(
        "Trainer: the samples of a batch",
        0,
        "at least 1",
        "pass over the batch, or join it to another one",
    ))
}

/// A model in training after a data pass, its parameters put together again where layers share them.
pub(super) fn passed<M: Trainable<B>, B: Batch>(
    model: &M,
    batch: B,
    pass: Pass,
    shares: bool,
) -> Result<M> {
    let model = model.valid();
    let (model, refusal) = watch(Question::Variance, || model.data_pass(batch, pass));
    match refusal {
        Some(error) => Err(error),
        None => Ok(if shares { share_data_pass(model) } else { model }.train()),
    }
}

/// The error of step `number` for a batch, itself finite or not, whose loss is not finite. The model is in
/// training.
pub(super) fn why_not_finite<M: Trainable<B>, B: Batch>(
    model: &M,
    batch: B,
    is_finite: bool,
    number: usize,
) -> FlowError {
    // The place in which the activations stop being finite, and the parameter there whose
    // gradient does.
    let valid = model.valid();
    let (place, reason) = watch(Question::Support, || valid.first_not_finite(batch.clone()));
    if let Some(reason) = reason {
        return reason;
    }
    // Moments that have just taken in what their numbers cannot hold. Those of a batch that is not
    // finite are no more than that.
    if is_finite && let Err(reason) = Trainable::<B>::check(&valid) {
        return reason;
    }
    let layer = place.unwrap_or_else(|| "the prior".into());
    let layer = if layer.starts_with("level") {
        let log_prob = host::to_f64(valid.log_prob(batch.clone()));
        let sample = log_prob.iter().position(|value| !value.is_finite()).unwrap_or(0);
        // Stored, because nothing can be inverted there.
        let mut tape = Tape::new(Memory::Stored);
        let mut grads = GradientsParams::new();
        model.gradients(batch.narrow(sample, 1), -1.0, &mut tape, &mut grads, |_| true);
        match first_not_finite(model, &grads) {
            Some(parameter) => format!("{layer} ({parameter})"),
            None => layer,
        }
    } else {
        layer
    };
    FlowError::NotFinite { step: number, layer, what: "the loss".into() }
}
