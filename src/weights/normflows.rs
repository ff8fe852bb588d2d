//! The conventions of normflows (PyTorch).
//!
//! normflows names latent → data `forward`; its `inverse` is this crate's `forward`. Its flow lists
//! are stored in that direction: they are read from the last entry to the first. Couplings subtract
//! the shift first, `z = (x - shift) * scale`, and their nets interleave shift and scale.
//!
//! Source: VincentStimper/normflows, `flows/affine/coupling.py`, `flows/affine/glow.py`,
//! `flows/normalization.py`, `flows/mixing.py`, `core.py`.

use burn::module::Module;
use burn::tensor::Tensor;

use super::torch::{LinearParts, conv, mlp_of};
use super::{Array, Weights};
use crate::Flow;
use crate::conditioner::{GlowNet, GlowNetConfig, Mlp, NetNorm};
use crate::coupling::{
    AdditiveCoupling, Affine, AffineCoupling, AffineOrder, Coupling, Mask, Parity, ScaleMap,
};
use crate::error::Result;
use crate::linear::{InvertibleConv1x1, Permutation, PluWeight};
use crate::models::{GlowCoupling, GlowMixing, GlowStep};
use crate::norm::{ActNorm, LOG_SCALE_FACTOR};
use crate::preprocess::Logit;
use crate::prior::DiagonalNormal;
use crate::reshape::Squeeze;
use crate::stack::FlowStack;

/// Added to the standard deviation in normflows' ActNorm initialization.
const INIT_EPSILON: f64 = 1e-6;

/// `scale_map` of `AffineCoupling`, or none (`scale=False`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CouplingScale {
    /// `z = x - shift`.
    None,
    /// `z = (x - shift) * exp(-h)`.
    Exp,
    /// `z = (x - shift) * sigmoid(h + 2)`.
    Sigmoid,
    /// `z = (x - shift) / sigmoid(h + 2)`.
    SigmoidInv,
}

impl CouplingScale {
    /// Our map, and the factor on `h` that makes it theirs.
    fn scale_map(self) -> (ScaleMap, f64) {
        match self {
            Self::None | Self::Exp => (ScaleMap::Exp, -1.0),
            Self::Sigmoid => (ScaleMap::Sigmoid, 1.0),
            Self::SigmoidInv => (ScaleMap::InverseSigmoid, 1.0),
        }
    }

    /// For each of our output rows the number of theirs, and how many of ours are shifts.
    fn output_order(self, outputs: usize) -> (Vec<usize>, usize) {
        match self {
            Self::None => ((0..outputs).collect(), outputs),
            _ => {
                let shifts = (0..outputs).step_by(2);
                (shifts.chain((1..outputs).step_by(2)).collect(), outputs / 2)
            }
        }
    }

    /// Their output rows in our order and with our signs.
    fn convert(self, rows: &Array) -> Array {
        let (order, shifts) = self.output_order(rows.shape()[0]);
        let (_, factor) = self.scale_map();
        let negated = rows.rows(order[..shifts].iter().copied()).map(|value| -value);
        negated.stack(&rows.rows(order[shifts..].iter().copied()).map(|value| value * factor))
    }
}

/// `split_mode` of a coupling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitMode {
    /// The first half is kept.
    Channel,
    /// The second half is kept.
    ChannelInv,
}

impl SplitMode {
    fn mask(self) -> Mask {
        match self {
            Self::Channel => Mask::first_half(),
            Self::ChannelInv => Mask::second_half(),
        }
    }
}

/// What a `MaskedAffineFlow`'s net `s` ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskedScale {
    /// `scale = exp(-s)`.
    Linear,
    /// `scale = exp(-tanh(s))` (`output_fn="tanh"`).
    Tanh,
}

/// `flows.ActNorm` (`s`, `t`): `z = (x - t) * exp(-s)`.
///
/// # Errors
/// If the tensors are not there.
pub fn act_norm(weights: &Weights) -> Result<ActNorm> {
    let (s, t) = (weights.array("s")?.flat(), weights.array("t")?.flat());
    from_bias_and_log_scale(weights, t.map(|t| -t), s.map(|s| -s))
}

/// `ActNorm` inside a net, which runs in normflows' forward direction: `y = h * exp(s) + t`.
///
/// # Errors
/// If the tensors are not there.
pub fn act_norm_in_net(weights: &Weights) -> Result<ActNorm> {
    let (s, t) = (weights.array("s")?.flat(), weights.array("t")?.flat());
    from_bias_and_log_scale(weights, t.zip(&s, |t, s| t * (-s).exp()), s)
}

/// `z = (x + bias) * exp(log_scale)`.
fn from_bias_and_log_scale(weights: &Weights, bias: Array, log_scale: Array) -> Result<ActNorm> {
    Ok(ActNorm {
        bias: weights.param(bias)?,
        log_scale: weights.param(log_scale.map(|value| value / LOG_SCALE_FACTOR))?,
        initialized: weights.frozen(Array::new([1], vec![1.0]))?,
    })
}

/// In which of normflows' directions its ActNorm saw its first batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitDirection {
    /// Data → latent: `s = ln(std + 1e-6)`, `t = mean`.
    Inverse,
    /// Latent → data: `s = -ln(std + 1e-6)`, `t = -mean * exp(s)`.
    Forward,
}

/// normflows' `(s, t)`, `[channels]` each, for the batch that initialized `norm`, of `count` values
/// a channel. normflows divides the variance by `count - 1`, this crate by `count`.
pub fn act_norm_initialization(
    norm: &ActNorm,
    count: usize,
    direction: InitDirection,
) -> (Vec<f64>, Vec<f64>) {
    let bias = crate::host::to_f64(norm.bias.val());
    let log_scale = crate::host::to_f64(norm.effective_log_scale());
    let unbiased = (count as f64 / (count as f64 - 1.0)).sqrt();
    let log_std = log_scale.into_iter().map(|log_scale| {
        let deviation = (-log_scale).exp() - INIT_EPSILON;
        (deviation * unbiased + INIT_EPSILON).ln()
    });
    match direction {
        InitDirection::Inverse => (log_std.collect(), bias.into_iter().map(|b| -b).collect()),
        InitDirection::Forward => {
            let s: Vec<f64> = log_std.map(|log_std| -log_std).collect();
            let t = bias.into_iter().zip(&s).map(|(bias, s)| bias * s.exp()).collect();
            (s, t)
        }
    }
}

/// `flows.Invertible1x1Conv`: `W`, or `P`, `L`, `U`, `sign_S`, `log_S`; `z = W x`.
///
/// # Errors
/// If the tensors are not there.
pub fn conv1x1(weights: &Weights) -> Result<InvertibleConv1x1> {
    if weights.has("W") {
        return Ok(InvertibleConv1x1::from_weight(weights.tensor(weights.array("W")?)?));
    }
    Ok(InvertibleConv1x1::from_parts(PluWeight {
        permutation: weights.frozen(weights.array("P")?)?,
        lower: weights.param(weights.array("L")?)?,
        upper: weights.param(weights.array("U")?)?,
        log_s: weights.param(weights.array("log_S")?)?,
        sign_s: weights.frozen(weights.array("sign_S")?)?,
    }))
}

/// A step of a normflows model of vectors.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // a handful of them exist in a model
pub enum VectorStep {
    /// A coupling without scale.
    Additive(AdditiveCoupling<Mlp>),
    /// A coupling with scale.
    Affine(AffineCoupling<Mlp>),
    /// `Permute(mode="swap")`.
    Swap(Permutation),
}

/// `NormalizingFlow(DiagGaussian, [...])` of vectors.
pub type VectorModel = FlowStack<2, Vec<VectorStep>, DiagonalNormal<2>>;

/// `MaskedAffineFlow` (`b`, `t`, `s`): `z = b x + (1 - b) (x - t(b x)) exp(-s(b x))`.
///
/// Its two nets become one, with blocks of zeros between them.
///
/// # Errors
/// If tensors are missing, the mask does not alternate, or the nets differ in their number of layers.
pub fn masked_affine(weights: &Weights, scale: MaskedScale) -> Result<VectorStep> {
    let mask = alternating(weights)?;
    let shift = LinearParts::sequence(&weights.under("t.net"))?;
    let last = shift.len() - 1;
    if !weights.has("s") {
        let layers = shift.into_iter().enumerate();
        let layers = layers.map(|(i, layer)| if i == last { layer.scaled(-1.0) } else { layer });
        let net = mlp_of(weights, layers.collect())?;
        return Ok(VectorStep::Additive(Coupling::additive(net, mask)));
    }
    let log_scale = LinearParts::sequence(&weights.under("s.net"))?;
    if log_scale.len() != shift.len() {
        return Err(weights.error(
            "the nets s and t have different numbers of layers",
            "give couplings whose two nets are built alike",
        ));
    }
    let features = shift[last].bias.shape()[0];
    // The sign of the exponent: in the last layer, or in the gain where a tanh follows that.
    let factor = if scale == MaskedScale::Tanh { 1.0 } else { -1.0 };
    let layers = shift.into_iter().zip(log_scale).enumerate().map(|(i, (t, s))| {
        let (t, s) = if i == last { (t.scaled(-1.0), s.scaled(factor)) } else { (t, s) };
        if i == 0 {
            t.stack(&s)
        } else {
            LinearParts { weight: t.weight.block_diagonal(&s.weight), bias: t.bias.stack(&s.bias) }
        }
    });
    let net = mlp_of(weights, layers.collect())?;
    let order = AffineOrder::ShiftThenScale;
    let map = if scale == MaskedScale::Tanh { ScaleMap::Tanh } else { ScaleMap::Exp };
    let mut transform = Affine::new(map, order, features, weights.device());
    if scale == MaskedScale::Tanh {
        transform.gain = Some(weights.param(Array::new([features], vec![-1.0; features]))?);
    }
    Ok(VectorStep::Affine(Coupling::from_transform(net, transform, mask)))
}

fn alternating(weights: &Weights) -> Result<Mask> {
    let b = weights.array("b")?;
    let parity = if b.values().first() == Some(&1.0) { Parity::Even } else { Parity::Odd };
    let expected = |i: usize| f64::from(u8::from(i.is_multiple_of(2) == (parity == Parity::Even)));
    if b.values().iter().enumerate().any(|(i, &kept)| kept != expected(i)) {
        return Err(weights.error(
            format!("the mask b is {:?}", b.values()),
            "only masks that alternate between 0 and 1 can be converted",
        ));
    }
    Ok(Mask::Checkerboard(parity))
}

/// A model of `MaskedAffineFlow`s and its `DiagGaussian`.
///
/// # Errors
/// As [`masked_affine`].
pub fn masked_affine_model(weights: &Weights, scale: MaskedScale) -> Result<VectorModel> {
    let flows = weights.under("flows");
    let steps = flows.indices().into_iter().rev();
    let steps = steps.map(|k| masked_affine(&flows.under(k.to_string()), scale));
    vector_model(weights, steps.collect::<Result<_>>()?)
}

/// `AffineCouplingBlock` of vectors, its net an `MLP`.
///
/// # Errors
/// If tensors are missing.
pub fn vector_coupling(
    weights: &Weights,
    scale: CouplingScale,
    split: SplitMode,
) -> Result<VectorStep> {
    let mut layers = LinearParts::sequence(&weights.under("flows.1.param_map.net"))?;
    let last = layers.pop().expect("a sequence has at least one layer");
    let outputs = last.bias.shape()[0];
    layers
        .push(LinearParts { weight: scale.convert(&last.weight), bias: scale.convert(&last.bias) });
    let net = mlp_of(weights, layers)?;
    Ok(if scale == CouplingScale::None {
        VectorStep::Additive(Coupling::additive(net, split.mask()))
    } else {
        VectorStep::Affine(affine(weights, net, scale, split, outputs / 2))
    })
}

fn affine<C: Module>(
    weights: &Weights,
    net: C,
    scale: CouplingScale,
    split: SplitMode,
    transformed: usize,
) -> AffineCoupling<C> {
    let (map, _) = scale.scale_map();
    let transform = Affine::new(map, AffineOrder::ShiftThenScale, transformed, weights.device());
    Coupling::from_transform(net, transform, split.mask())
}

/// A model of `num_layers` `AffineCouplingBlock`s, split by `splits` in turn. With one split alone
/// each coupling is followed by `Permute(mode="swap")`, as such models are built.
///
/// # Errors
/// If tensors are missing or no split is given.
pub fn coupling_model(
    weights: &Weights,
    num_layers: usize,
    scale: CouplingScale,
    splits: &[SplitMode],
) -> Result<VectorModel> {
    if splits.is_empty() || num_layers == 0 {
        return Err(weights.error("no couplings or no splits", "give at least one of each"));
    }
    let features = weights.array("q0.loc")?.flat().shape()[0];
    let stride = if splits.len() == 1 { 2 } else { 1 };
    let mut steps = Vec::new();
    for layer in (0..num_layers).rev() {
        if stride == 2 {
            steps.push(VectorStep::Swap(Permutation::swap_halves(features, weights.device())?));
        }
        let block = weights.under(format!("flows.{}", stride * layer));
        steps.push(vector_coupling(&block, scale, splits[layer % splits.len()])?);
    }
    vector_model(weights, steps)
}

fn vector_model(weights: &Weights, steps: Vec<VectorStep>) -> Result<VectorModel> {
    let features = weights.array("q0.loc")?.flat().shape()[0];
    FlowStack::single(steps, diag_gaussian(&weights.under("q0"))?, &[features])
}

/// `DiagGaussian` (`loc`, `log_scale`, `[1, ...]`).
///
/// # Errors
/// If the tensors are not there.
pub fn diag_gaussian<const D: usize>(weights: &Weights) -> Result<DiagonalNormal<D>> {
    Ok(DiagonalNormal {
        mean: weights.param(weights.array("loc")?)?,
        log_std: weights.param(weights.array("log_scale")?)?,
    })
}

/// `GlowBase`: `mean = loc exp(3 loc_logs)`, `ln std = log_scale exp(3 log_scale_logs)`; or a
/// `DiagGaussian`, whichever is there.
///
/// # Errors
/// If the tensors are not there.
pub fn glow_base(weights: &Weights) -> Result<DiagonalNormal<4>> {
    if !weights.has("loc_logs") {
        return diag_gaussian(weights);
    }
    let scaled = |value: &str, logs: &str| -> Result<_> {
        let logs = weights.array(logs)?;
        let scaled =
            weights.array(value)?.zip(&logs, |value, log| value * (LOG_SCALE_FACTOR * log).exp());
        weights.param::<4>(scaled)
    };
    Ok(DiagonalNormal {
        mean: scaled("loc", "loc_logs")?,
        log_std: scaled("log_scale", "log_scale_logs")?,
    })
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

/// `GlowBlock`: ActNorm (`flows.2`), 1x1 convolution (`flows.1`) and coupling (`flows.0`), in the
/// order data → latent.
///
/// # Errors
/// If tensors are missing.
pub fn glow_block(weights: &Weights, options: GlowBlockOptions) -> Result<GlowStep> {
    let net = glow_net(&weights.under("flows.0.flows.1.param_map.net"), options)?;
    let outputs = net.conv3.log_scale.dims()[0];
    let coupling = if options.scale == CouplingScale::None {
        GlowCoupling::Additive(Coupling::additive(net, options.split.mask()))
    } else {
        GlowCoupling::Affine(affine(weights, net, options.scale, options.split, outputs / 2))
    };
    let mixing = GlowMixing::Conv1x1(conv1x1(&weights.under("flows.1"))?);
    Ok((act_norm(&weights.under("flows.2"))?, mixing, coupling))
}

fn glow_net(weights: &Weights, options: GlowBlockOptions) -> Result<GlowNet> {
    let convs: Vec<Weights> = weights
        .indices()
        .into_iter()
        .map(|index| weights.under(index.to_string()))
        .filter(|layer| layer.has("weight"))
        .collect();
    let norms: Vec<Weights> = weights
        .indices()
        .into_iter()
        .map(|index| weights.under(format!("{index}.actNorm")))
        .filter(|layer| layer.has("s"))
        .collect();
    let ([first, second, last], true) = (&convs[..], norms.is_empty() || norms.len() == 2) else {
        return Err(weights.error(
            format!("{} convolutions and {} norms in a net", convs.len(), norms.len()),
            "give a net of three convolutions, with ActNorm after the first two or none",
        ));
    };
    let (conv1, conv2) = (conv(first)?, conv(second)?);
    let (weight, bias) = (last.array("weight")?, last.array("bias")?);
    let [hidden, channels_in, _, _] = conv1.weight.dims();
    let norm = if norms.is_empty() { NetNorm::Bias } else { NetNorm::ActNorm };
    let mut net = GlowNetConfig::new(channels_in, hidden, bias.shape()[0])
        .with_norm(norm)
        .with_negative_slope(options.negative_slope)
        .init(weights.device())?;
    (net.conv1, net.conv2) = (conv1, conv2);
    if let [norm1, norm2] = &norms[..] {
        net.norm1 = Some(act_norm_in_net(norm1)?);
        net.norm2 = Some(act_norm_in_net(norm2)?);
    }
    net.conv3.log_scale = weights.param(Array::new(bias.shape(), vec![0.0; bias.shape()[0]]))?;
    net.conv3.conv.weight = weights.param(options.scale.convert(&weight))?;
    net.conv3.conv.bias = Some(weights.param(options.scale.convert(&bias))?);
    Ok(net)
}

/// One level of a `MultiscaleFlow`: the preprocessing (first level), squeeze, steps.
pub type MultiscaleLevel = (Option<Logit>, Squeeze, Vec<GlowStep>);

/// `MultiscaleFlow` of `GlowBlock`s with `GlowBase` or `DiagGaussian` priors.
pub type MultiscaleModel = FlowStack<4, MultiscaleLevel, DiagonalNormal<4>, DiagonalNormal<4>>;

/// `MultiscaleFlow` of levels `[GlowBlock, ..., Squeeze]`, with `transform` before the first.
///
/// normflows counts levels and latents from the deepest; [`FlowStack`] counts from the data.
///
/// # Errors
/// If tensors are missing.
pub fn multiscale(
    weights: &Weights,
    options: GlowBlockOptions,
    transform: Option<Logit>,
    image_shape: [usize; 3],
) -> Result<MultiscaleModel> {
    let flows = weights.under("flows");
    let (mut levels, mut priors) = (Vec::new(), Vec::new());
    for level in flows.indices().into_iter().rev() {
        let blocks = flows.under(level.to_string());
        let steps = blocks.indices().into_iter().rev();
        let steps = steps.map(|block| glow_block(&blocks.under(block.to_string()), options));
        let transform = transform.clone().filter(|_| levels.is_empty());
        levels.push((transform, Squeeze::new(), steps.collect::<Result<Vec<_>>>()?));
        priors.push(glow_base(&weights.under(format!("q0.{level}")))?);
    }
    let Some(prior) = priors.pop() else {
        return Err(weights.error("a model without levels", "give a MultiscaleFlow"));
    };
    FlowStack::new(levels, priors, prior, &image_shape)
}

/// normflows' `z.i` counts from the deepest latent: the parts of a [`FlowStack`] in that order.
pub fn multiscale_order<const D: usize>(mut parts: Vec<Tensor<D>>) -> Vec<Tensor<D>> {
    parts.reverse();
    parts
}
