//! The conventions of chrischute/real-nvp (PyTorch).
//!
//! Couplings are `z = (x + t) * exp(s)`, `s = rescale * tanh(h_s)`, their nets give the scales first,
//! and the first coupling keeps the squares with `row + column` odd.
//!
//! Source: chrischute/real-nvp, `models/real_nvp`, `models/resnet`, `util`.

use super::torch::{running_moments, swapped_halves, tanh_coupling};
use super::{Array, Weights};
use crate::conditioner::{
    NetBatchNorm, ResidualBlock, ResidualNet, ResidualNetConfig, WeightNormConv,
};
use crate::coupling::{AffineCoupling, AffineOrder, Mask, Parity};
use crate::error::Result;
use crate::models::RealNvp;
use crate::norm::BATCH_NORM_MOMENTUM;
use crate::preprocess::{Logit, LogitForm};
use crate::prior::StandardNormal;
use crate::stack::FlowStack;

/// `eps` of PyTorch's `nn.BatchNorm2d`.
const TORCH_EPSILON: f64 = 1e-5;

/// `nn.BatchNorm2d`.
///
/// # Errors
/// If a tensor is not there.
pub fn net_batch_norm(weights: &Weights) -> Result<NetBatchNorm> {
    Ok(NetBatchNorm {
        moments: running_moments(weights, BATCH_NORM_MOMENTUM, TORCH_EPSILON)?,
        weight: weights.param(weights.array("weight")?)?,
        bias: weights.param(weights.array("bias")?)?,
    })
}

/// `nn.utils.weight_norm(nn.Conv2d)`: `weight_g`, `weight_v` and perhaps `bias`.
///
/// # Errors
/// If a tensor is not there.
pub fn weight_norm_conv(weights: &Weights) -> Result<WeightNormConv> {
    let count = weights.array("weight_g")?.flat().shape()[0];
    reordered_conv(weights, &(0..count).collect::<Vec<_>>())
}

/// The output channels of the given numbers, in that order.
fn reordered_conv(weights: &Weights, order: &[usize]) -> Result<WeightNormConv> {
    let rows = |array: Array| array.rows(order.iter().copied());
    Ok(WeightNormConv {
        direction: weights.param(rows(weights.array("weight_v")?))?,
        gain: weights.param(rows(weights.array("weight_g")?.flat()))?,
        bias: match weights.has("bias") {
            true => Some(weights.param(rows(weights.array("bias")?))?),
            false => None,
        },
    })
}

/// `ResNet`, the `st_net` of a coupling; for checkerboard masks it doubles its normalized input.
///
/// # Errors
/// If a tensor is not there.
pub fn residual_net(weights: &Weights, checkerboard: bool) -> Result<ResidualNet> {
    let conv = |name: &str| weight_norm_conv(&weights.under(name).under("conv"));
    let numbered = weights.under("blocks").indices();
    let blocks = numbered.iter().map(|index| {
        let block = weights.under(format!("blocks.{index}"));
        Ok(ResidualBlock {
            norm1: net_batch_norm(&block.under("in_norm"))?,
            conv1: weight_norm_conv(&block.under("in_conv.conv"))?,
            norm2: net_batch_norm(&block.under("out_norm"))?,
            conv2: weight_norm_conv(&block.under("out_conv.conv"))?,
        })
    });
    let skips = numbered.iter().map(|index| conv(&format!("skips.{index}")));
    let out = weights.under("out_conv.conv");
    let outputs = out.array("weight_g")?.flat().shape()[0];
    let norm_in = net_batch_norm(&weights.under("in_norm"))?;
    let norm_out = net_batch_norm(&weights.under("out_norm"))?;
    let [channels, width] = [&norm_in, &norm_out].map(|norm| norm.weight.dims()[0]);
    // The configuration alone knows the factor on the input; every parameter is replaced.
    let mut net = ResidualNetConfig::new(channels, width, outputs, 0)
        .with_input_gain(if checkerboard { 2.0 } else { 1.0 })
        .init(weights.device())?;
    (net.norm_in, net.norm_out) = (norm_in, norm_out);
    (net.conv_in, net.skip_in) = (conv("in_conv")?, conv("in_skip")?);
    net.blocks = blocks.collect::<Result<_>>()?;
    net.skips = skips.collect::<Result<_>>()?;
    net.conv_out = reordered_conv(&out, &swapped_halves(outputs))?;
    Ok(net)
}

/// `CouplingLayer`: `st_net` and `rescale`.
///
/// # Errors
/// If a tensor is not there.
pub fn coupling(weights: &Weights, mask: Mask) -> Result<AffineCoupling<ResidualNet>> {
    let checkerboard = matches!(mask, Mask::Checkerboard(_));
    let net = residual_net(&weights.under("st_net"), checkerboard)?;
    // One number a channel: the length of v is its magnitude.
    let direction = weights.array("rescale.weight_v")?.flat();
    let gain = weights.array("rescale.weight_g")?.flat();
    let gain = gain.zip(&direction, |g, v| g * v / v.abs());
    tanh_coupling(weights, net, mask, gain, AffineOrder::ShiftThenScale)
}

/// `RealNVP` of one scale: the logit preprocessing and four checkerboard couplings.
///
/// # Errors
/// If a tensor is not there, or the model has more than one scale: those of this library squeeze in
/// another order.
pub fn one_scale(weights: &Weights, image_shape: [usize; 3]) -> Result<RealNvp> {
    let flows = weights.under("flows");
    if flows.has("next_block") {
        return Err(weights.error("a model of several scales", "give one of a single scale"));
    }
    let constraint = weights.array("data_constraint")?.values()[0];
    let logit = Logit::new((1.0 - constraint) / 2.0, LogitForm::Code)?;
    let couplings = flows.under("in_couplings");
    let steps = couplings.indices().into_iter().map(|index| {
        let mask = Mask::Checkerboard(Parity::of(index).flip());
        Ok((coupling(&couplings.under(index.to_string()), mask)?, None))
    });
    let level = (Some(logit), steps.collect::<Result<Vec<_>>>()?, None, Vec::new());
    FlowStack::single(level, StandardNormal::new(), &image_shape)
}
