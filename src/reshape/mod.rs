//! Flows that only move values: squeeze; and the split of a multi-scale stack.

mod haar;
mod split;
mod squeeze;

pub use haar::HaarSqueeze;
pub(crate) use split::{merge_channels, num_kept, split_channels};
pub use squeeze::Squeeze;
