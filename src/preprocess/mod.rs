//! From 8-bit pixels to real numbers and back.

mod logit;
mod quantize;
mod standardize;
mod unconstrain;

pub use logit::{LOGIT_ALPHA, Logit, LogitForm};
pub use quantize::Quantization;
pub use standardize::Standardize;
pub use unconstrain::{Domain, Unconstrain};
