//! From 8-bit pixels to real numbers and back.

mod by_column;
mod logit;
mod quantize;
mod scalar_map;
mod standardize;
mod unconstrain;
mod whiten;

pub use by_column::ByColumn;
pub use logit::{LOGIT_ALPHA, Logit, LogitForm};
pub use quantize::Quantization;
pub use scalar_map::{DirectedMap, ScalarMap};
pub use standardize::Standardize;
pub use unconstrain::{Domain, Unconstrain};
pub use whiten::Whiten;
