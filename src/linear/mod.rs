//! Linear flows across the channels.

mod conv1x1;
mod diagonal_scaling;
mod lu_linear;
mod orthogonal;
mod permutation;
mod shift;

pub use conv1x1::{Conv1x1Weight, InvertibleConv1x1, PluWeight};
pub use diagonal_scaling::DiagonalScaling;
pub use lu_linear::LuLinear;
pub use orthogonal::{Householder, Rotation};
pub use permutation::Permutation;
pub use shift::Shift;
