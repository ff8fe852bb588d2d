//! Training: maximum likelihood, reversible backpropagation, schedules, checkpoints.
//!
//! In the guide: [Training](crate::guide::training).
#![cfg_attr(
    feature = "train",
    doc = "\nWith the feature `train`, [`learner`] has the models for Burn's `SupervisedTraining`."
)]

mod adam;
mod available;
mod average;
mod backward;
mod checkpoint;
mod classifier;
pub(crate) mod early;
mod fit;
mod gradients;
#[cfg(feature = "train")]
pub mod learner;
mod memory;
mod rates;
mod repeats;
pub mod reversible;
mod schedule;
mod shared;
pub(crate) mod trainable;
mod trainer;

pub use adam::Adam;
pub use available::bytes as available_memory;
pub use checkpoint::remove_checkpoint;
pub use classifier::WithClassifier;
pub use fit::{Epoch, Fit, Fitted, Stopped};
pub use gradients::{first_not_finite, gradient_norm, scale_gradients};
pub use rates::LearningRates;
pub use schedule::Schedule;
pub use trainable::{Batch, Trainable};
pub use trainer::{DRIFT_BOUND, DRIFT_EVERY, GOOD_EVERY, Step, StepGradients, Trainer};

pub use crate::tape::{CHECKPOINT_EVERY, Drift, LayerDrift, Memory, Tape};
