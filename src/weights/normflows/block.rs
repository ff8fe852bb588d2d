//! 1x1 convolutions and the block of Glow.

use burn::tensor::Tensor;

use super::super::Weights;
use super::super::exchange::{Exchange, Rows};
use super::super::layers::{PluNames, conv, is_plu, plain_conv1x1};
use super::act_norm::{act_norm_in_net_table, act_norm_table};
use super::{CouplingScale, SplitMode, affine};
use crate::conditioner::GlowNet;
use crate::conditioner::conv::{Conv, ZeroConv};
use crate::coupling::Coupling;
use crate::error::Result;
use crate::linear::InvertibleConv1x1;
use crate::models::{GlowCoupling, GlowMixing, GlowStep};
use crate::norm::ActNorm;
use crate::param::frozen;

const PLU: PluNames =
    PluNames { permutation: "P", lower: "L", upper: "U", log_s: "log_S", sign_s: "sign_S" };

/// `flows.Invertible1x1Conv`: `W`, or `P`, `L`, `U`, `sign_S`, `log_S`; `z = W x`.
///
/// # Errors
/// If the tensors are not there, of another shape or not finite.
pub fn conv1x1(weights: &Weights) -> Result<InvertibleConv1x1> {
    let mut io = Exchange::reading(weights);
    let name = if weights.has("W") { "W" } else { "P" };
    let conv = conv1x1_table(&mut io, weights.size(name, 0), None);
    io.check_layer("flows.Invertible1x1Conv")?;
    Ok(conv)
}

fn conv1x1_table(
    io: &mut Exchange,
    channels: usize,
    ours: Option<&InvertibleConv1x1>,
) -> InvertibleConv1x1 {
    if !ours.map_or_else(|| io.has("P"), is_plu) {
        return plain_conv1x1(io, "W", &[channels; 2], ours);
    }
    let identity = || (0..channels * channels).map(|at| u8::from(at % (channels + 1) == 0).into());
    let dtype = io.dtype();
    io.constant("eye", &[channels; 2], dtype, || identity().collect());
    PLU.conv1x1(io, channels, ours)
}

/// How a `GlowBlock` was built, as far as its tensors do not tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GlowBlockOptions {
    /// `scale` and `scale_map`.
    pub scale: CouplingScale,
    /// `split_mode`.
    pub split: SplitMode,
    /// `leaky`, the slope of the net's activation for negative values.
    pub negative_slope: f64,
}

impl Default for GlowBlockOptions {
    /// normflows' own defaults.
    fn default() -> Self {
        Self { scale: CouplingScale::Sigmoid, split: SplitMode::Channel, negative_slope: 0.0 }
    }
}

/// `GlowBlock`: ActNorm (`flows.2`), 1x1 convolution (`flows.1`) and coupling (`flows.0`), in the
/// order data → latent.
///
/// # Errors
/// If tensors are missing, of another shape or not finite.
pub fn glow_block(weights: &Weights, options: GlowBlockOptions) -> Result<GlowStep> {
    let mut io = Exchange::reading(weights);
    let step = glow_block_table(&mut io, weights.size("flows.2.s", 1), options, None);
    io.check_layer("GlowBlock")?;
    Ok(step)
}

pub(super) fn glow_block_table(
    io: &mut Exchange,
    channels: usize,
    options: GlowBlockOptions,
    ours: Option<&GlowStep>,
) -> GlowStep {
    let mask = options.split.mask();
    let (seen, changed) = (mask.num_identity(channels), mask.num_transformed(channels));
    let outputs = if options.scale == CouplingScale::None { changed } else { 2 * changed };
    let own = ours.map(|step| match &step.2 {
        GlowCoupling::Additive(coupling) => &coupling.conditioner,
        GlowCoupling::Affine(coupling) => &coupling.conditioner,
    });
    let net = io.under("flows.0.flows.1.param_map.net", |io| {
        glow_net_table(io, [seen, outputs], options, own)
    });
    let coupling = if options.scale == CouplingScale::None {
        GlowCoupling::Additive(Coupling::additive(net, mask))
    } else {
        GlowCoupling::Affine(affine(io, net, options.scale, options.split))
    };
    let own = ours.and_then(|step| match &step.1 {
        GlowMixing::Conv1x1(conv) => Some(conv),
        GlowMixing::Permutation(_) => None,
    });
    let mixing = GlowMixing::Conv1x1(io.under("flows.1", |io| conv1x1_table(io, channels, own)));
    let own = ours.map(|step| &step.0);
    let norm = io.under("flows.2", |io| act_norm_table(io, &[1, channels, 1, 1], own));
    (norm, mixing, coupling)
}

/// `ConvNet2d` of three convolutions, with ActNorm after the first two or none.
fn glow_net_table(
    io: &mut Exchange,
    [inputs, outputs]: [usize; 2],
    options: GlowBlockOptions,
    ours: Option<&GlowNet>,
) -> GlowNet {
    let has_norms = ours.map_or_else(|| io.has("1.actNorm"), |net| net.norm1.is_some());
    // A norm is a layer of its own, and takes the place of the bias.
    let stride = if has_norms { 3 } else { 2 };
    let hidden = match ours {
        Some(net) => net.conv1.weight.dims()[0],
        None => io.size("0.weight", 0),
    };
    let mut layer = |at: usize, shape, own: Option<(&Conv, &Option<ActNorm>)>| {
        let (own_conv, own_norm) = own.unzip();
        let conv =
            io.under(at.to_string(), |io| conv(io, shape, !has_norms, Rows::same(), own_conv));
        let norm = has_norms.then(|| {
            let own = own_norm.and_then(|norm| norm.as_ref());
            io.under(format!("{}.actNorm", at + 1), |io| act_norm_in_net_table(io, hidden, own))
        });
        (conv, norm)
    };
    let own = ours.map(|net| (&net.conv1, &net.norm1));
    let (conv1, norm1) = layer(0, [hidden, inputs, 3, 3], own);
    let own = ours.map(|net| (&net.conv2, &net.norm2));
    let (conv2, norm2) = layer(stride, [hidden, hidden, 1, 1], own);
    let own = ours.map(|net| &net.conv3.conv);
    let last = io.under((2 * stride).to_string(), |io| {
        conv(io, [outputs, hidden, 3, 3], true, options.scale.rows(outputs), own)
    });
    // There is no scale behind the last convolution there, so this one is not trained.
    let width = last.weight.dims()[0];
    let log_scale = frozen(Tensor::zeros([width], (io.device(), io.dtype())));
    let conv3 = ZeroConv::from_parts(last, log_scale);
    GlowNet { conv1, norm1, conv2, norm2, conv3, negative_slope: options.negative_slope.into() }
}
