//! From 8-bit pixels to real numbers and back.

mod logit;
mod quantize;

pub use logit::{LOGIT_ALPHA, Logit, LogitForm};
pub use quantize::Quantization;
