//! What the fused kernels of the CPU need of a net. Nothing here can be named outside of the crate: a
//! net of someone else's is run by its `forward` alone.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::flow::{pull_back_surrogate, weighted};

/// A net that is affine layers with a (leaky) ReLU between: couplings on the CPU run it fused with their
/// elementwise map.
pub trait Fold {
    /// The layers, if the net as it is built has kernels; made of differentiable operations on the
    /// parameters.
    fn fold(&self) -> Option<FoldedNet>;

    /// [`fold`](Fold::fold) of a model in training, in plain tensors: what autodiff would hold on to for
    /// a backward pass that never comes would be memory that grows with depth.
    fn fold_plain(&self) -> Option<FoldedNet>;

    /// Adds to `grads` the parameters' gradients that follow from those of the layers of `net`, which
    /// [`fold_plain`](Fold::fold_plain) gave.
    fn pull_back_folded(
        &self,
        net: FoldedNet,
        gradients: Vec<(Tensor<2>, Tensor<1>)>,
        grads: &mut GradientsParams,
    );
}

/// A net as affine layers with a (leaky) ReLU after each but the last.
#[derive(Debug, Clone)]
pub struct FoldedNet {
    /// For each layer the weight, `[out, in]` or [`transposed`](Self::transposed), and the bias
    /// `[out]`. Where the layer is a 3x3 convolution its `in` index is `9 channel + tap`: the weight
    /// `[out, channels, 3, 3]` flattened.
    pub layers: Vec<(Tensor<2>, Tensor<1>)>,
    /// For each layer a factor for every weight of its first rows, 0 for those that are left out; empty where
    /// all are used.
    pub masks: Vec<Tensor<2>>,
    /// Whether the weights are `[in, out]`, as Burn's `Linear` has them, instead of `[out, in]`.
    pub transposed: bool,
    /// Whether the first layer is a 3x3 convolution (zero padding 1).
    pub first_3x3: bool,
    /// Whether the last layer is a 3x3 convolution (zero padding 1).
    pub last_3x3: bool,
    /// Slope of the activation for negative values; 0 is ReLU.
    pub negative_slope: f64,
}

impl FoldedNet {
    /// Inputs and outputs of a layer for each pixel: a first convolution reads nine neighbours of each
    /// channel, a last one writes to nine.
    pub(crate) fn sizes(&self, index: usize) -> [usize; 2] {
        let [rows, columns] = self.layers[index].0.dims();
        if self.transposed {
            [rows, columns]
        } else if self.last_3x3 && index + 1 == self.layers.len() {
            [columns / 9, 9 * rows]
        } else {
            [columns, rows]
        }
    }

    /// Adds to `grads` the gradients of the parameters of `module` that follow from those of the
    /// folded layers, in order: the surrogate `sum(W * dW)` has the gradient that the chain rule asks
    /// for.
    pub(crate) fn pull_back<M: Module>(
        self,
        module: &M,
        gradients: impl IntoIterator<Item = (Tensor<2>, Tensor<1>)>,
        grads: &mut GradientsParams,
    ) {
        let terms =
            self.layers.into_iter().zip(gradients).flat_map(|((weight, bias), back)| {
                [weighted(weight, back.0), weighted(bias, back.1)]
            });
        pull_back_surrogate(module, terms.flatten(), grads);
    }
}
