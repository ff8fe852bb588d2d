//! From 8-bit pixels to real numbers and back.

mod quantize;

pub use quantize::Quantization;
