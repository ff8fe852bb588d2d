//! Training: maximum likelihood, reversible backpropagation, schedules, checkpoints.

mod adam;
mod checkpoint;
mod gradients;
pub mod reversible;
mod schedule;
mod trainer;

pub use checkpoint::remove_checkpoint;
pub use gradients::{first_not_finite, gradient_norm, scale_gradients};
pub use schedule::Schedule;
pub use trainer::{DRIFT_BOUND, DRIFT_EVERY, Step, Trainer};

pub use crate::tape::{CHECKPOINT_EVERY, Drift, LayerDrift, Memory, Tape};
