//! When held-out samples gain no more.

use super::{Batch, Trainable};
use crate::error::{FlowError, Result};
use crate::host;
use crate::support::{Question, watch};

/// The lowest loss of held-out samples so far, and how long ago that was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct EarlyStopping {
    /// Measurements without a gain after which it is enough.
    pub patience: usize,
    /// The lowest loss.
    pub best: f64,
    /// Measurements since then.
    pub without_gain: usize,
}

impl EarlyStopping {
    pub fn new(patience: usize) -> Self {
        Self { patience, best: f64::INFINITY, without_gain: 0 }
    }

    /// Takes in a measurement; whether it is the best one.
    pub fn take(&mut self, loss: f64) -> bool {
        let is_best = loss < self.best;
        if is_best {
            (self.best, self.without_gain) = (loss, 0);
        } else {
            self.without_gain += 1;
        }
        is_best
    }

    pub fn is_over(&self) -> bool {
        self.without_gain >= self.patience
    }
}

/// Mean of `-ln p` over held-out samples, in nats, `at_once` of them at a time.
///
/// # Errors
/// [`FlowError::OutsideSupport`] if samples are where a layer gives no density; else
/// [`FlowError::NotFinite`] if it is not finite, as after `step` steps.
pub(crate) fn held_out_loss<M: Trainable<B>, B: Batch>(
    model: &M,
    held_out: &B,
    at_once: usize,
    step: usize,
) -> Result<f64> {
    let samples = held_out.num_samples();
    let mut sum = 0.0;
    for start in (0..samples).step_by(at_once) {
        let batch = held_out.narrow(start, at_once.min(samples - start));
        let part = host::scalar(model.log_prob(batch.clone()).sum());
        if !part.is_finite() {
            let (place, reason) = watch(Question::Support, || model.first_not_finite(batch));
            if let Some(reason) = reason {
                return Err(reason);
            }
            return Err(FlowError::NotFinite {
                step,
                layer: place.unwrap_or_else(|| "the prior".into()),
                what: "the density of held-out samples".into(),
            });
        }
        sum += part;
    }
    Ok(-sum / samples as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_after_as_many_measurements_without_a_gain() {
        let mut stopping = EarlyStopping::new(2);
        let taken = [3.0, 3.0, 2.0, 2.5, 2.0].map(|loss| (stopping.take(loss), stopping.is_over()));
        let expected =
            [(true, false), (false, false), (true, false), (false, false), (false, true)];
        assert_eq!(taken, expected);
        assert_eq!(stopping.best, 2.0);
    }
}
