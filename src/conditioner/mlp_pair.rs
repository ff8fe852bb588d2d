//! Two multilayer perceptrons side by side.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{Conditioner, Mlp};

/// One net for the shifts and one for the raw scales of an affine coupling, of the same input.
///
/// Source: RealNVP as libraries of vectors write it, with nets `t` and `s`.
#[derive(Module, Debug)]
pub struct MlpPair {
    /// Gives the first half of the output.
    pub shift: Mlp,
    /// Gives the second half.
    pub scale: Mlp,
}

impl Conditioner<2> for MlpPair {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        Tensor::cat(vec![self.shift.forward(x.clone()), self.scale.forward(x)], 1)
    }
}
