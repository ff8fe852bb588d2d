//! Normalizations that are flows.

mod act_norm;

pub use act_norm::{ActNorm, LOG_SCALE_FACTOR};
