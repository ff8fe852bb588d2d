//! Plain PyTorch layers, and NICE and RealNVP as written with them.

use burn::nn::Linear;

use super::{Array, Weights};
use crate::conditioner::conv::Conv;
use crate::conditioner::{ConvNet, Mlp};
use crate::coupling::{AdditiveCoupling, Affine, AffineCoupling, AffineOrder, Mask, Parity};
use crate::error::Result;
use crate::linear::DiagonalScaling;
use crate::models::{Nice, NicePrior};
use crate::norm::{BatchNorm, RunningMoments};
use crate::prior::StandardLogistic;
use crate::stack::FlowStack;

/// Weight `[out, in]` and bias `[out]` of a linear layer as PyTorch keeps them.
pub(super) struct LinearParts {
    pub(super) weight: Array,
    pub(super) bias: Array,
}

impl LinearParts {
    /// All linear layers of an `nn.Sequential`.
    pub(super) fn sequence(weights: &Weights) -> Result<Vec<Self>> {
        let indices = weights.indices();
        if indices.is_empty() {
            return Err(weights.error(
                "a net without linear layers",
                "give the weights of an nn.Sequential of nn.Linear",
            ));
        }
        indices
            .into_iter()
            .map(|index| {
                let layer = weights.under(index.to_string());
                Ok(Self { weight: layer.array("weight")?, bias: layer.array("bias")? })
            })
            .collect()
    }
}

/// A multilayer perceptron from its layers; PyTorch keeps weights as `[out, in]`, Burn as `[in, out]`.
pub(super) fn mlp_of(weights: &Weights, layers: Vec<LinearParts>) -> Result<Mlp> {
    let layers = layers
        .into_iter()
        .map(|layer| {
            Ok(Linear {
                weight: weights.param(layer.weight.transposed())?,
                bias: Some(weights.param(layer.bias)?),
            })
        })
        .collect::<Result<_>>()?;
    Ok(Mlp { layers })
}

/// `nn.Sequential` of `nn.Linear` with ReLU between, whatever its length.
///
/// # Errors
/// If the layers are not there.
pub fn mlp(weights: &Weights) -> Result<Mlp> {
    mlp_of(weights, LinearParts::sequence(weights)?)
}

/// `nn.Conv2d` with a 1x1 or 3x3 kernel, with or without bias.
///
/// # Errors
/// If the tensors are not there.
pub fn conv(weights: &Weights) -> Result<Conv> {
    let bias = match weights.has("bias") {
        true => Some(weights.param(weights.array("bias")?)?),
        false => None,
    };
    Ok(Conv { weight: weights.param(weights.array("weight")?)?, bias })
}

/// The order that turns outputs `first half, second half` into `second half, first half`.
pub(super) fn swapped_halves(count: usize) -> Vec<usize> {
    (count / 2..count).chain(0..count / 2).collect()
}

/// NICE: `couplings.k` (nets of even or odd positions) and `log_scale`.
///
/// `a = x[0::2]`, `b = x[1::2]`; coupling `k` even: `b += net_k(a)`, odd: `a += net_k(b)`;
/// `z = h exp(log_scale)`.
///
/// # Errors
/// If a tensor is not there.
pub fn nice(weights: &Weights) -> Result<Nice> {
    let couplings = weights.under("couplings");
    let couplings = couplings
        .indices()
        .into_iter()
        .map(|k| {
            let net = mlp(&couplings.under(k.to_string()))?;
            Ok(AdditiveCoupling::additive(net, Mask::Alternating(Parity::of(k))))
        })
        .collect::<Result<Vec<_>>>()?;
    let log_scale = weights.array("log_scale")?;
    let features = log_scale.shape()[0];
    let scaling = DiagonalScaling { log_scale: weights.param(log_scale)? };
    let prior = NicePrior::Logistic(StandardLogistic::new());
    FlowStack::single((couplings, scaling), prior, &[features])
}

/// A RealNVP image coupling: `net` of 3x3 convolutions and ReLU, whose output holds the scales
/// first, then the shifts, and `scale_gain`.
///
/// `z = x exp(s) + t`, `s = scale_gain tanh(h_s)`.
///
/// # Errors
/// If a tensor is not there.
pub fn real_nvp_coupling(weights: &Weights, mask: Mask) -> Result<AffineCoupling<ConvNet>> {
    let net = weights.under("net");
    let indices = net.indices();
    let mut layers = indices
        .iter()
        .map(|index| conv(&net.under(index.to_string())))
        .collect::<Result<Vec<_>>>()?;
    let Some(last) = layers.pop() else {
        return Err(weights.error("a net without layers", "give the weights of a coupling"));
    };
    let name = net.under(indices[layers.len()].to_string());
    let order = swapped_halves(last.weight.dims()[0]);
    layers.push(Conv {
        weight: weights.param(name.array("weight")?.rows(order.iter().copied()))?,
        bias: match last.bias {
            Some(_) => Some(weights.param(name.array("bias")?.rows(order))?),
            None => None,
        },
    });
    let gain = weights.array("scale_gain")?.flat();
    tanh_coupling(weights, ConvNet { layers }, mask, gain, AffineOrder::ScaleThenShift)
}

/// An affine coupling with `s = gain tanh(h)`, `gain` being given for each transformed channel.
pub(super) fn tanh_coupling<C: burn::module::Module>(
    weights: &Weights,
    conditioner: C,
    mask: Mask,
    gain: Array,
    order: AffineOrder,
) -> Result<AffineCoupling<C>> {
    let transform = Affine::tanh(order, weights.param(gain)?);
    Ok(AffineCoupling::from_transform(conditioner, transform, mask))
}

/// Batch normalization as a flow: `running_mean`, `running_var` and, where it is affine,
/// `log_gamma` and `beta`.
///
/// # Errors
/// If a tensor is not there, or `momentum` or `epsilon` is out of range.
pub fn batch_norm(weights: &Weights, momentum: f64, epsilon: f64) -> Result<BatchNorm> {
    let moments = running_moments(weights, momentum, epsilon)?;
    if !weights.has("log_gamma") {
        return Ok(BatchNorm::from_moments(moments));
    }
    let mut norm = BatchNorm::from_moments(moments);
    norm.log_scale = Some(weights.param(weights.array("log_gamma")?)?);
    norm.shift = Some(weights.param(weights.array("beta")?)?);
    Ok(norm)
}

/// `running_mean` and `running_var`, which count as initialized.
pub(super) fn running_moments(
    weights: &Weights,
    momentum: f64,
    epsilon: f64,
) -> Result<RunningMoments> {
    let mean = weights.array("running_mean")?;
    let mut moments = RunningMoments::new(mean.shape()[0], momentum, epsilon, weights.device())?;
    moments.mean = weights.frozen(mean)?;
    moments.variance = weights.frozen(weights.array("running_var")?)?;
    moments.initialized = weights.frozen(Array::new([1], vec![1.0]))?;
    Ok(moments)
}
