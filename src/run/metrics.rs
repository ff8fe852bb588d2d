//! The figures of a run.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{FlowError, Result};
use crate::metrics;

/// One line of `metrics.jsonl`. JSON has no numbers that are not finite: they are written as `null`, and read as
/// NaN or as what was not measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// Optimizer steps taken.
    pub step: usize,
    /// Passes over the training data, where there is such a thing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub epoch: Option<f64>,
    /// Seconds of training, measuring included.
    pub seconds: f64,
    /// Of these, spent in waiting for batches.
    pub seconds_waited: f64,
    /// Mean of `-ln p` over the batches since the line before, in nats; of images there are bits instead.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub train_loss: Option<f64>,
    /// Mean of `-ln p` over the held-out samples, where measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held_out_loss: Option<f64>,
    /// How many held-out samples were measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held_out_samples: Option<usize>,
    /// Of images, the mean over the batches since the line before; of a class-conditional model given the
    /// classes, and with the classifier's part of the loss.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub train_bits_per_dim: Option<f64>,
    /// Mean over `test_images` test images, where measured; of a class-conditional model given their
    /// classes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub test_bits_per_dim: Option<f64>,
    /// How many test images were measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub test_images: Option<usize>,
    /// What the test images' bits/dim are made of: the two numbers of each level, finest first, are
    /// what its log-determinant takes off and what the prior of its part of the latent adds. Together
    /// with the bits of a pixel they add up to `test_bits_per_dim`.
    #[serde(skip_serializing_if = "Option::is_none", default, deserialize_with = "levels_or_nan")]
    pub level_bits_per_dim: Option<Vec<[f64; 2]>>,
    /// Largest |x - inverse(forward(x))| over a batch, where measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub inversion_error: Option<f64>,
    /// Of a class-conditional model, the share of the test images whose class Bayes' rule finds, a class
    /// being as likely as it is frequent in training.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub test_accuracy: Option<f64>,
    /// Bits/dim of the same images without their classes: of the sum of p(x | class) p(class).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub test_marginal_bits_per_dim: Option<f64>,
    /// Figures of an [`Evaluation`](super::Evaluation) of your own, by their names.
    #[serde(flatten, deserialize_with = "figures_or_nan")]
    pub more: BTreeMap<String, f64>,
    /// Norm of all gradients before clipping, at the last step.
    #[serde(deserialize_with = "number_or_nan")]
    pub gradient_norm: f64,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// What the last step kept of its forward pass.
    pub memory: String,
    /// Largest drift of the activations that were computed again, where measured since the line
    /// before: the error over the root mean square.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub drift: Option<f64>,
}

/// The names of the fields of [`Metrics`], which no figure in `more` can have.
const TAKEN: [&str; 18] = [
    "step",
    "epoch",
    "seconds",
    "seconds_waited",
    "train_loss",
    "held_out_loss",
    "held_out_samples",
    "train_bits_per_dim",
    "test_bits_per_dim",
    "test_images",
    "level_bits_per_dim",
    "inversion_error",
    "test_accuracy",
    "test_marginal_bits_per_dim",
    "gradient_norm",
    "learning_rate",
    "memory",
    "drift",
];

fn number_or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

fn figures_or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let figures = BTreeMap::<String, Option<f64>>::deserialize(from)?;
    Ok(figures.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

fn levels_or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<[f64; 2]>>, D::Error> {
    let levels = Option::<Vec<[Option<f64>; 2]>>::deserialize(from)?;
    let or_nan = |level: [Option<f64>; 2]| level.map(|value| value.unwrap_or(f64::NAN));
    Ok(levels.map(|levels| levels.into_iter().map(or_nan).collect()))
}

/// In which unit the loss of a run is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unit {
    /// Mean of `-ln p`, in nats.
    Nats,
    /// Bits per dimension of images, by [`metrics::bits_per_dim`].
    BitsPerDim {
        /// Values of an image.
        num_dims: usize,
        /// Levels of a pixel.
        levels: u32,
    },
}

impl Unit {
    /// A mean of `-ln p` in nats, in this unit.
    pub fn of(self, loss: f64) -> f64 {
        match self {
            Self::Nats => loss,
            Self::BitsPerDim { num_dims, levels } => metrics::bits_per_dim(-loss, num_dims, levels),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::BitsPerDim { .. } => "bits/dim",
        }
    }

    /// What the samples are called.
    pub(super) fn samples(self) -> &'static str {
        match self {
            Self::Nats => "samples",
            Self::BitsPerDim { .. } => "images",
        }
    }
}

/// What an [`Evaluation`](super::Evaluation) measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Mean of `-ln p` over the held-out samples, in nats: what [`Run::with_patience`](super::Run::with_patience)
    /// judges by.
    pub loss: f64,
    /// How many they were.
    pub num_samples: usize,
    /// [`Metrics::level_bits_per_dim`].
    pub level_bits_per_dim: Option<Vec<[f64; 2]>>,
    /// [`Metrics::inversion_error`].
    pub inversion_error: Option<f64>,
    /// [`Metrics::test_accuracy`].
    pub accuracy: Option<f64>,
    /// [`Metrics::test_marginal_bits_per_dim`].
    pub marginal_bits_per_dim: Option<f64>,
    /// Figures of your own; each has a curve in the report. Their names are none of the fields of [`Metrics`],
    /// which are beside them in `metrics.jsonl`.
    pub more: BTreeMap<String, f64>,
}

impl Metrics {
    /// Takes in what was measured.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if a figure has the name of a field.
    pub(super) fn take(&mut self, measured: Measured, unit: Unit) -> Result<()> {
        if let Some(name) = measured.more.keys().find(|name| TAKEN.contains(&name.as_str())) {
            return Err(FlowError::invalid(
                "Measured::more: the name of a figure",
                name,
                "a name that is no field of Metrics",
                "give the figure another name",
            ));
        }
        let (loss, samples) = (Some(unit.of(measured.loss)), Some(measured.num_samples));
        match unit {
            Unit::Nats => (self.held_out_loss, self.held_out_samples) = (loss, samples),
            Unit::BitsPerDim { .. } => (self.test_bits_per_dim, self.test_images) = (loss, samples),
        }
        self.level_bits_per_dim = measured.level_bits_per_dim;
        self.inversion_error = measured.inversion_error;
        self.test_accuracy = measured.accuracy;
        self.test_marginal_bits_per_dim = measured.marginal_bits_per_dim;
        self.more = measured.more;
        Ok(())
    }

    /// Whether something was measured.
    pub(super) fn is_measured(&self) -> bool {
        self.held_out_loss.is_some() || self.test_bits_per_dim.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Metrics {
        Metrics {
            epoch: Some(1.0),
            train_loss: Some(1.0),
            held_out_loss: Some(1.0),
            held_out_samples: Some(1),
            train_bits_per_dim: Some(1.0),
            test_bits_per_dim: Some(1.0),
            test_images: Some(1),
            level_bits_per_dim: Some(vec![[f64::NAN, 1.0]]),
            inversion_error: Some(1.0),
            test_accuracy: Some(1.0),
            test_marginal_bits_per_dim: Some(1.0),
            drift: Some(1.0),
            gradient_norm: f64::NAN,
            ..Metrics::default()
        }
    }

    #[test]
    fn every_field_is_a_taken_name() {
        let serde_json::Value::Object(fields) = serde_json::to_value(full()).unwrap() else {
            panic!("a line is an object");
        };
        let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
        let mut taken = TAKEN;
        names.sort_unstable();
        taken.sort_unstable();
        assert_eq!(names, taken);
    }

    #[test]
    fn numbers_that_are_none_are_read_as_they_were_written() {
        let more = BTreeMap::from([("good".into(), 2.0), ("lost".into(), f64::NAN)]);
        let line = serde_json::to_string(&Metrics { more, ..full() }).unwrap();
        let read: Metrics = serde_json::from_str(&line).unwrap();
        assert_eq!(read.more.keys().collect::<Vec<_>>(), ["good", "lost"]);
        assert!(read.more["good"] == 2.0 && read.more["lost"].is_nan());
        assert!(read.gradient_norm.is_nan() && read.level_bits_per_dim.unwrap()[0][0].is_nan());
    }
}
