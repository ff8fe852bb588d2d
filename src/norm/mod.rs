//! Normalizations that are flows.

mod act_norm;
mod batch_norm;
mod linear_act_norm;
mod marks;
mod running_moments;

pub use act_norm::{ActNorm, LOG_SCALE_FACTOR};
pub use batch_norm::{BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, BatchNorm};
pub use linear_act_norm::LinearActNorm;
#[cfg(feature = "train")]
pub(crate) use marks::running_moments;
pub(crate) use marks::{first_uninitialized, first_unobserved, observes_moments, waiting_for_data};
pub(crate) use running_moments::assert_variance;
pub use running_moments::{Moments, RunningMoments};
