//! The nets inside couplings and conditional priors: ordinary nets, no log-determinants here.

pub mod conv;
mod conv_net;
mod glow_net;
mod mlp;
mod residual_host;
mod residual_net;
mod weight_norm;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

pub use conv_net::ConvNet;
pub use glow_net::{GlowNet, GlowNetConfig, NetNorm};
pub use mlp::{Mlp, MlpConfig};
pub use residual_net::{NetBatchNorm, ResidualBlock, ResidualNet, ResidualNetConfig};
pub use weight_norm::WeightNormConv;

use crate::error::{FlowError, Result};
use crate::flow::{pull_back_surrogate, pull_back_through, weighted};

/// A net from the part of the data that passes unchanged to the parameters for the other part.
///
/// Any module becomes one with a single method:
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::tensor::Tensor;
/// use burn_flows::{conditioner::Conditioner, coupling::{AffineCoupling, Mask, ScaleMap}};
///
/// #[derive(Module, Debug)]
/// struct OneLayer {
///     linear: Linear,
/// }
///
/// impl Conditioner<2> for OneLayer {
///     fn forward(&self, x: Tensor<2>) -> Tensor<2> {
///         self.linear.forward(x)
///     }
/// }
///
/// let device = burn_flows::backend::device();
/// let net = OneLayer { linear: LinearConfig::new(2, 4).init(&device) };
/// AffineCoupling::affine(net, Mask::first_half(), ScaleMap::default(), 4, &device)?;
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
pub trait Conditioner<const D: usize>: Module {
    /// `[batch, channels in, ...] -> [batch, channels out, ...]`.
    fn forward(&self, x: Tensor<D>) -> Tensor<D>;

    /// Data-dependent initialization from one batch (ActNorm inside the net); default: none.
    fn initialize(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        let y = self.forward(x);
        (self, y)
    }

    /// Takes a batch into running statistics (batch normalization inside the net), as
    /// [`Flow::observe`](crate::Flow::observe); default: none.
    fn observe(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        let y = self.forward(x);
        (self, y)
    }

    /// Whether [`observe`](Conditioner::observe) changes anything.
    fn has_running_statistics(&self) -> bool {
        false
    }

    /// Runs the net on `x` and goes back through it: `dparams` is told the output and gives the
    /// gradient of the loss by it; the parameters' gradients are added to `grads`, the gradient by
    /// `x` is returned. All tensors are plain, `self` is a model in training.
    ///
    /// The default uses autodiff; nets with a hand-written backward override it.
    fn pull_back(
        &self,
        x: Tensor<D>,
        dparams: impl FnOnce(Tensor<D>) -> Tensor<D>,
        grads: &mut GradientsParams,
    ) -> Tensor<D> {
        pull_back_by_autodiff(self, x, dparams, grads)
    }

    /// The net as affine layers with a (leaky) ReLU between, if it is one: couplings on the CPU then
    /// run it fused with their elementwise map. Made of differentiable operations on the parameters.
    fn fold(&self) -> Option<FoldedNet> {
        None
    }

    /// [`fold`](Conditioner::fold) of a model in training, in plain tensors: what autodiff would hold
    /// on to for a backward pass that never comes would be memory that grows with depth.
    fn fold_plain(&self) -> Option<FoldedNet> {
        self.valid().fold()
    }

    /// Adds to `grads` the parameters' gradients that follow from those of the layers of `net`, which
    /// [`fold_plain`](Conditioner::fold_plain) gave; the default takes them through
    /// [`fold`](Conditioner::fold) by autodiff.
    fn pull_back_folded(
        &self,
        net: FoldedNet,
        gradients: Vec<(Tensor<2>, Tensor<1>)>,
        grads: &mut GradientsParams,
    ) {
        self.fold().unwrap_or(net).pull_back(self, gradients, grads);
    }
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

/// The default [`Conditioner::pull_back`].
fn pull_back_by_autodiff<const D: usize, C: Conditioner<D>>(
    net: &C,
    x: Tensor<D>,
    dparams: impl FnOnce(Tensor<D>) -> Tensor<D>,
    grads: &mut GradientsParams,
) -> Tensor<D> {
    let loss = |x| {
        let params = net.forward(x);
        let dparams = dparams(params.clone().inner());
        (params * Tensor::from_inner(dparams)).sum()
    };
    pull_back_through(net, x, loss, grads)
}

/// A net as affine layers with a (leaky) ReLU after each but the last.
#[derive(Debug, Clone)]
pub struct FoldedNet {
    /// For each layer the weight, `[out, in]` or [`transposed`](Self::transposed), and the bias
    /// `[out]`. Where the layer is a 3x3 convolution its `in` index is `9 channel + tap`: the weight
    /// `[out, channels, 3, 3]` flattened.
    pub layers: Vec<(Tensor<2>, Tensor<1>)>,
    /// Whether the weights are `[in, out]`, as Burn's `Linear` has them, instead of `[out, in]`.
    pub transposed: bool,
    /// Whether the first layer is a 3x3 convolution (zero padding 1).
    pub first_3x3: bool,
    /// Whether the last layer is a 3x3 convolution (zero padding 1).
    pub last_3x3: bool,
    /// Slope of the activation for negative values; 0 is ReLU.
    pub negative_slope: f64,
}

/// Refuses a net with a layer of no channels.
fn check_widths(
    layer: &'static str,
    channels_in: usize,
    hidden_width: usize,
    channels_out: usize,
) -> Result<()> {
    for (parameter, value) in [
        ("channels_in", channels_in),
        ("hidden_width", hidden_width),
        ("channels_out", channels_out),
    ] {
        if value == 0 {
            let advice = "give every layer a width";
            return Err(FlowError::config(layer, parameter, 0, "at least 1", advice));
        }
    }
    Ok(())
}
