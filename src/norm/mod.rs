//! Normalizations that are flows.

mod act_norm;
mod batch_norm;
mod running_moments;

pub use act_norm::{ActNorm, LOG_SCALE_FACTOR};
pub use batch_norm::{BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, BatchNorm};
pub use running_moments::{Moments, RunningMoments};
