//! The nets inside couplings and conditional priors: ordinary nets, no log-determinants here.

mod activation;
mod block_net;
pub mod conv;
mod conv_net;
mod folded;
mod glow_net;
mod mlp;
mod mlp_pair;
mod residual_host;
mod residual_net;
mod weight_norm;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

pub use activation::Activation;
pub use block_net::{
    Block, BlockContext, BlockForm, BlockNet, BlockNetConfig, ContextEntry, MaskedLinear,
    PeriodicInput,
};
pub use conv_net::ConvNet;
pub(crate) use folded::{Fold, FoldedNet};
pub use glow_net::{GlowNet, GlowNetConfig, NetNorm};
pub(crate) use mlp::drawn;
pub use mlp::{Mlp, MlpConfig};
pub use mlp_pair::MlpPair;
pub(crate) use residual_net::first_following_norm;
pub use residual_net::{NetBatchNorm, ResidualBlock, ResidualNet, ResidualNetConfig};
pub use weight_norm::WeightNormConv;

use crate::context::Context;
use crate::error::{FlowError, Result};
use crate::flow::{Pass, pull_back_through};

/// A net from the part of the data that passes unchanged to the parameters for the other part.
///
/// Any module becomes one with a single method. It is a function of its input and its parameters, the same
/// at every call, in training as at inference: a coupling runs it again on the way back. Dropout and the
/// like are refused in training, see [`reversible::check`](crate::training::reversible::check).
///
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

    /// Sends a batch through, by which the net may change, as
    /// [`Flow::data_pass`](crate::Flow::data_pass): ActNorm inside is initialized, running statistics take
    /// the batch in. The default changes nothing; a net with such layers hands the batch on to them.
    fn data_pass(self, x: Tensor<D>, _pass: Pass) -> (Self, Tensor<D>) {
        let y = self.forward(x);
        (self, y)
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

    /// The net as the fused kernels of the CPU know it, if they do.
    #[doc(hidden)]
    fn folded(&self) -> Option<&dyn Fold> {
        None
    }

    /// The place of what the folded net sees behind its input.
    #[doc(hidden)]
    fn folded_context(&self) -> Option<&Context> {
        None
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
