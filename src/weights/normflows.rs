//! The conventions of normflows (PyTorch).
//!
//! normflows names latent → data `forward`; its `inverse` is this crate's `forward`. Its flow lists
//! are stored in that direction: they are read from the last entry to the first. Couplings subtract
//! the shift first, `z = (x - shift) * scale`, and their nets interleave shift and scale.
//!
//! Which scale map, split and activation a coupling has is not in a file, nor whether a logit comes first:
//! they are asked for where they are not normflows' defaults. Models of images with class-conditional
//! bases have a reader of their own, [`class_multiscale`].
//!
//! Source: VincentStimper/normflows, `flows/affine/coupling.py`, `flows/affine/glow.py`,
//! `flows/normalization.py`, `flows/mixing.py`, `core.py`.

use std::path::Path;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use super::exchange::{Exchange, Rows};
use super::layers::{PluNames, conv, is_plu, plain_conv1x1};
use super::{MOST_CHANNELS, Weights, check_invertible};
use crate::Flow;
use crate::backend;
use crate::conditioner::conv::{Conv, ZeroConv};
use crate::conditioner::{GlowNet, Mlp, MlpPair};
use crate::context::Context;
use crate::coupling::{
    AdditiveCoupling, Affine, AffineCoupling, AffineOrder, Coupling, Mask, Parity, ScaleMap,
};
use crate::error::{FlowError, Result};
use crate::host;
use crate::linear::{InvertibleConv1x1, Permutation};
use crate::models::{GlowCoupling, GlowMixing, GlowStep};
use crate::norm::{ActNorm, LOG_SCALE_FACTOR};
use crate::param::frozen;
use crate::preprocess::Logit;
use crate::prior::{ContextNormal, DiagonalNormal, Prior, SplitPrior};
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
    fn of(map: ScaleMap) -> Result<Self> {
        match map {
            ScaleMap::Exp => Ok(Self::Exp),
            ScaleMap::Sigmoid => Ok(Self::Sigmoid),
            ScaleMap::InverseSigmoid => Ok(Self::SigmoidInv),
            _ => Err(invalid(&format!("the scale map {map:?}"), "Exp, Sigmoid or InverseSigmoid")),
        }
    }

    /// Our map, and the factor on `h` that makes it theirs.
    fn scale_map(self) -> (ScaleMap, f64) {
        match self {
            Self::None | Self::Exp => (ScaleMap::Exp, -1.0),
            Self::Sigmoid => (ScaleMap::Sigmoid, 1.0),
            Self::SigmoidInv => (ScaleMap::InverseSigmoid, 1.0),
        }
    }

    /// Our output rows made of theirs.
    fn rows(self, outputs: usize) -> Rows {
        match self {
            Self::None => Rows::all_negated(outputs),
            _ => {
                let (_, factor) = self.scale_map();
                let shifts = (0..outputs).step_by(2).map(|row| (row, -1.0));
                Rows::signed(shifts.chain((1..outputs).step_by(2).map(|row| (row, factor))))
            }
        }
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
    fn of(mask: Mask) -> Result<Self> {
        match mask {
            Mask::ChannelHalves(Parity::Even) => Ok(Self::Channel),
            Mask::ChannelHalves(Parity::Odd) => Ok(Self::ChannelInv),
            _ => Err(invalid("a coupling of another mask", "channel halves")),
        }
    }

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
/// If the tensors are not there, of another shape or not finite.
pub fn act_norm(weights: &Weights) -> Result<ActNorm> {
    let mut io = Exchange::reading(weights);
    let shape = weights.shape("s").unwrap_or_default().to_vec();
    let norm = act_norm_table(&mut io, &shape, None);
    io.check_layer("flows.ActNorm")?;
    Ok(norm)
}

/// `shape` is `[1, channels]` or `[1, channels, 1, 1]`.
fn act_norm_table(io: &mut Exchange, shape: &[usize], ours: Option<&ActNorm>) -> ActNorm {
    let channels = shape.get(1).copied().unwrap_or(0);
    let rows = || Rows::all_negated(channels);
    let log_scale = ours.map(|norm| Param::from_tensor(norm.effective_log_scale()));
    let bias = io.param("t", shape, rows(), ours.map(|norm| &norm.bias));
    let log_scale = io.param("s", shape, rows(), log_scale.as_ref());
    let dtype = io.dtype();
    io.given_if_there("data_dep_init_done", &[], dtype, || vec![1.0]);
    ActNorm::from_parts(bias, log_scale, 1.0)
}

/// `ActNorm` inside a net, which runs in normflows' forward direction: `y = h * exp(s) + t`.
///
/// # Errors
/// If the tensors are not there, of another shape or not finite.
pub fn act_norm_in_net(weights: &Weights) -> Result<ActNorm> {
    let mut io = Exchange::reading(weights);
    let norm = act_norm_in_net_table(&mut io, weights.size("s", 1), None);
    io.check_layer("ActNorm")?;
    Ok(norm)
}

/// Ours is `(h + bias) * exp(s)`, so that `t` comes back from a round trip up to rounding alone.
fn act_norm_in_net_table(io: &mut Exchange, channels: usize, ours: Option<&ActNorm>) -> ActNorm {
    let shape = [1, channels, 1, 1];
    let dtype = io.dtype();
    io.given_if_there("data_dep_init_done", &[], dtype, || vec![1.0]);
    if let Some(norm) = ours {
        let log_scale = norm.effective_log_scale();
        let t = Param::from_tensor(norm.bias.val() * log_scale.clone().exp());
        io.param("t", &shape, Rows::same(), Some(&t));
        io.param("s", &shape, Rows::same(), Some(&Param::from_tensor(log_scale)));
        return norm.clone();
    }
    let (t, s) = (io.values("t", &shape), io.values("s", &shape));
    let bias = t.iter().zip(&s).map(|(t, s)| t * (-s).exp()).collect();
    ActNorm::from_parts(io.vector(bias), io.vector(s), 1.0)
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

/// A step of a normflows model of vectors.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // a handful of them exist in a model
pub enum VectorStep {
    /// A coupling without scale.
    Additive(AdditiveCoupling<Mlp>),
    /// A coupling with scale.
    Affine(AffineCoupling<Mlp>),
    /// A coupling with scale, and a net of its own for it.
    Masked(AffineCoupling<MlpPair>),
    /// `Permute`.
    Swap(Permutation),
    /// `ActNorm`.
    Norm(ActNorm),
}

/// `NormalizingFlow(DiagGaussian, [...])` of vectors.
pub type VectorModel = FlowStack<2, Vec<VectorStep>, DiagonalNormal<2>>;

/// `nets.MLP` below `name`, the rows of its last layer being ours by `rows`.
fn mlp_table(
    io: &mut Exchange,
    name: &str,
    rows: impl FnOnce(usize) -> Rows,
    ours: Option<&Mlp>,
) -> Mlp {
    let count = ours.map_or_else(|| io.count(name), |mlp| mlp.layers.len());
    let mut rows = Some(rows);
    let layers = (0..count).map(|index| {
        let own = ours.map(|mlp| &mlp.layers[index]);
        // An activation follows each layer but the last.
        io.under(format!("{name}.{}", 2 * index), |io| {
            let shape = match own {
                Some(layer) => {
                    let [inputs, outputs] = layer.weight.dims();
                    [outputs, inputs]
                }
                None => [io.size("weight", 0), io.size("weight", 1)],
            };
            let rows = match rows.take_if(|_| index + 1 == count) {
                Some(rows) => rows(shape[0]),
                None => Rows::same(),
            };
            let bias = own.and_then(|layer| layer.bias.as_ref());
            Linear {
                weight: io.transposed("weight", shape, rows.clone(), own.map(|own| &own.weight)),
                bias: Some(io.param("bias", &shape[..1], rows, bias)),
            }
        })
    });
    Mlp { layers: layers.collect() }
}

/// `MaskedAffineFlow` (`b`, `t`, `s`): `z = b x + (1 - b) (x - t(b x)) exp(-s(b x))`.
///
/// # Errors
/// If tensors are missing, of another shape or not finite, or the mask does not alternate.
pub fn masked_affine(weights: &Weights, scale: MaskedScale) -> Result<VectorStep> {
    let mut io = Exchange::reading(weights);
    let step = masked_table(&mut io, weights.size("b", 1), scale, None);
    io.check_layer("MaskedAffineFlow")?;
    Ok(step)
}

fn masked_table(
    io: &mut Exchange,
    features: usize,
    scale: MaskedScale,
    ours: Option<&VectorStep>,
) -> VectorStep {
    let (own_mask, own_shift, own_scale) = match ours {
        Some(VectorStep::Additive(own)) => (Some(own.mask()), Some(&own.conditioner), None),
        Some(VectorStep::Masked(own)) => {
            let MlpPair { shift, scale } = &own.conditioner;
            (Some(own.mask()), Some(shift), Some(scale))
        }
        _ => (None, None, None),
    };
    let mask = alternating(io, features, own_mask);
    let has_scale = if ours.is_some() { own_scale.is_some() } else { io.has("s") };
    let shift = io.under("t", |io| mlp_table(io, "net", Rows::all_negated, own_shift));
    if !has_scale {
        return VectorStep::Additive(Coupling::additive(shift, mask));
    }
    // The sign of the exponent: in the last layer, or in the gain where a tanh follows that.
    let is_tanh = match ours {
        Some(VectorStep::Masked(own)) => own.transform.scale_map() == ScaleMap::Tanh,
        _ => scale == MaskedScale::Tanh,
    };
    let rows = move |outputs| if is_tanh { Rows::same() } else { Rows::all_negated(outputs) };
    let net = MlpPair { shift, scale: io.under("s", |io| mlp_table(io, "net", rows, own_scale)) };
    let order = AffineOrder::ShiftThenScale;
    let transform = if is_tanh {
        let gain = io.vector(vec![-1.0; features]);
        Affine::tanh(order, frozen(gain.val()))
    } else {
        Affine::new(ScaleMap::Exp, order, 0, io.device())
    };
    VectorStep::Masked(Coupling::from_transform(net, transform, mask))
}

/// The mask `b`, which has to alternate.
fn alternating(io: &mut Exchange, features: usize, ours: Option<Mask>) -> Mask {
    let shape = [1, features];
    let kept = |parity: Parity| {
        let kept = move |i: usize| i.is_multiple_of(2) == (parity == Parity::Even);
        (0..features).map(|i| f64::from(u8::from(kept(i)))).collect::<Vec<_>>()
    };
    if let Some(mask) = ours {
        let parity = match mask {
            Mask::ChannelHalves(parity) | Mask::Alternating(parity) => parity,
            Mask::Checkerboard(parity) | Mask::SplitAt(_, parity) => parity,
        };
        let dtype = io.dtype();
        io.given("b", &shape, dtype, || kept(parity));
        return mask;
    }
    let b = io.values("b", &shape);
    let parity = if b.first() == Some(&1.0) { Parity::Even } else { Parity::Odd };
    if !b.is_empty() && b != kept(parity) {
        io.refuse_value("b", "is a mask that does not alternate between 0 and 1");
    }
    Mask::Checkerboard(parity)
}

/// A model of `MaskedAffineFlow`s and its `DiagGaussian`.
///
/// # Errors
/// As [`real_nvp`].
pub fn masked_affine_model(weights: &Weights, scale: MaskedScale) -> Result<VectorModel> {
    real_nvp(weights, &RealNvpOptions { masked: scale, ..RealNvpOptions::default() })
}

/// `AffineCouplingBlock` of vectors, its net an `MLP`.
///
/// # Errors
/// If tensors are missing, of another shape or not finite.
pub fn vector_coupling(
    weights: &Weights,
    scale: CouplingScale,
    split: SplitMode,
) -> Result<VectorStep> {
    let mut io = Exchange::reading(weights);
    let step = vector_coupling_table(&mut io, scale, split, None);
    io.check_layer("AffineCouplingBlock")?;
    Ok(step)
}

fn vector_coupling_table(
    io: &mut Exchange,
    scale: CouplingScale,
    split: SplitMode,
    ours: Option<&VectorStep>,
) -> VectorStep {
    let own = match ours {
        Some(VectorStep::Additive(own)) => Some(&own.conditioner),
        Some(VectorStep::Affine(own)) => Some(&own.conditioner),
        _ => None,
    };
    let rows = |outputs| scale.rows(outputs);
    let net = io.under("flows.1.param_map", |io| mlp_table(io, "net", rows, own));
    if scale == CouplingScale::None {
        VectorStep::Additive(Coupling::additive(net, split.mask()))
    } else {
        VectorStep::Affine(affine(io, net, scale, split))
    }
}

fn affine<C: Module>(
    io: &Exchange,
    net: C,
    scale: CouplingScale,
    split: SplitMode,
) -> AffineCoupling<C> {
    let transform = Affine::new(scale.scale_map().0, AffineOrder::ShiftThenScale, 0, io.device());
    Coupling::from_transform(net, transform, split.mask())
}

/// A model of `num_layers` `AffineCouplingBlock`s, split by `splits` in turn. With one split alone
/// each coupling is followed by `Permute(mode="swap")`, as such models are built.
///
/// # Errors
/// As [`real_nvp`], or if no split is given or there are not as many layers.
pub fn coupling_model(
    weights: &Weights,
    num_layers: usize,
    scale: CouplingScale,
    splits: &[SplitMode],
) -> Result<VectorModel> {
    if splits.is_empty() || num_layers == 0 {
        return Err(weights.error("no couplings or no splits", "give at least one of each"));
    }
    let options = RealNvpOptions { scale, splits: splits.to_vec(), ..RealNvpOptions::default() };
    let model = real_nvp(weights, &options)?;
    let is_coupling =
        |step: &&VectorStep| matches!(step, VectorStep::Additive(_) | VectorStep::Affine(_));
    let found = model.levels[0].iter().filter(is_coupling).count();
    if found != num_layers {
        let reason = format!("{found} couplings, not {num_layers}");
        return Err(weights.error(reason, "give the number of layers that the model has"));
    }
    Ok(model)
}

/// How a model of vectors was built, as far as its tensors do not tell.
#[derive(Debug, Clone, PartialEq)]
pub struct RealNvpOptions {
    /// What the nets `s` of `MaskedAffineFlow`s end with.
    pub masked: MaskedScale,
    /// `scale` and `scale_map` of `AffineCouplingBlock`s.
    pub scale: CouplingScale,
    /// `split_mode` of `AffineCouplingBlock`s, in turn.
    pub splits: Vec<SplitMode>,
}

impl Default for RealNvpOptions {
    /// normflows' own defaults.
    fn default() -> Self {
        Self {
            masked: MaskedScale::Linear,
            scale: CouplingScale::Exp,
            splits: vec![SplitMode::Channel],
        }
    }
}

/// Reads a RealNVP of vectors with normflows' default options, on the compiled-in device in f32; for
/// others see [`real_nvp`].
///
/// # Errors
/// As [`Weights::read`] and [`real_nvp`].
pub fn load_real_nvp(path: impl AsRef<Path>) -> Result<VectorModel> {
    real_nvp(&Weights::read(path, &backend::device())?, &RealNvpOptions::default())
}

/// `NormalizingFlow(DiagGaussian, flows)` of vectors, the flows being `MaskedAffineFlow`,
/// `AffineCouplingBlock`, `Permute` and `ActNorm` in any order.
///
/// A `Permute(mode="swap")` leaves nothing in a file but a gap in the numbers of the flows; one behind
/// the last coupling is assumed where one is behind every other.
///
/// # Errors
/// [`FlowError::Record`] if tensors are missing, superfluous, of another shape or not finite, which lists
/// all of them, or if a mask does not alternate.
pub fn real_nvp(weights: &Weights, options: &RealNvpOptions) -> Result<VectorModel> {
    let weights = weights.state_dict(VECTOR_NAME, VECTOR_MARKER)?;
    if options.splits.is_empty() {
        return Err(weights.error("no splits", "give at least one"));
    }
    let flows = weights.under("flows");
    let numbers = flows.indices();
    let is_block = |index: &usize| flows.has(&format!("{index}.flows.1.param_map"));
    let blocks: Vec<usize> = numbers.iter().copied().filter(is_block).collect();
    let mut kinds = Vec::new();
    for (at, &index) in numbers.iter().enumerate() {
        // What has no tensors swaps.
        let gap = index - if at == 0 { 0 } else { numbers[at - 1] + 1 };
        if gap > MOST_SWAPS {
            let reason = format!("{gap} flows without tensors before flows.{index}");
            return Err(weights.error(reason, "give a model of couplings, Permute and ActNorm"));
        }
        kinds.extend(std::iter::repeat_n(Kind::Swap, gap));
        let has = |name: &str| flows.has(&format!("{index}.{name}"));
        kinds.push(match () {
            () if has("b") => Kind::Masked,
            () if has("perm") => Kind::Permute,
            () if has("s") && has("t") => Kind::Norm,
            () => Kind::Block,
        });
    }
    let last_is_block = blocks.last().is_some_and(|last| numbers.last() == Some(last));
    if last_is_block
        && (blocks.len() == 1 || blocks.windows(2).all(|pair| pair[1] == pair[0] + 2))
        && options.splits.len() == 1
    {
        kinds.push(Kind::Swap);
    }
    let features = weights.size(VECTOR_MARKER, 1);
    let mut io = Exchange::reading(&weights);
    let (steps, prior) = vector_tables(&mut io, features, &kinds, options, None);
    io.check(VECTOR_NAME)?;
    FlowStack::single(steps.into_iter().collect::<Result<_>>()?, prior, &[features])
}

const VECTOR_NAME: &str = "NormalizingFlow of normflows";

/// A tensor that every such model has.
const VECTOR_MARKER: &str = "q0.loc";

/// No model has as many `Permute`s in a row.
const MOST_SWAPS: usize = 8;

/// What a flow of a model of vectors is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Masked,
    Block,
    Norm,
    /// `Permute(mode="swap")`.
    Swap,
    /// `Permute(mode="shuffle")`.
    Permute,
}

/// The flows in the order data → latent, `kinds` being in theirs, and the prior.
fn vector_tables(
    io: &mut Exchange,
    features: usize,
    kinds: &[Kind],
    options: &RealNvpOptions,
    ours: Option<&VectorModel>,
) -> (Vec<Result<VectorStep>>, DiagonalNormal<2>) {
    let mut num_blocks = 0;
    let mut steps: Vec<Result<VectorStep>> = Vec::new();
    for (index, &kind) in kinds.iter().enumerate() {
        let own = ours.map(|model| &model.levels[0][kinds.len() - 1 - index]);
        let split = options.splits[num_blocks % options.splits.len()];
        num_blocks += usize::from(kind == Kind::Block);
        steps.push(io.under(format!("flows.{index}"), |io| match kind {
            Kind::Masked => Ok(masked_table(io, features, options.masked, own)),
            Kind::Block => Ok(vector_coupling_table(io, options.scale, split, own)),
            Kind::Swap => Permutation::swap_halves(features, io.device()).map(VectorStep::Swap),
            Kind::Permute => shuffle_table(io, features, own).map(VectorStep::Swap),
            Kind::Norm => {
                let own = own.and_then(|step| match step {
                    VectorStep::Norm(norm) => Some(norm),
                    _ => None,
                });
                Ok(VectorStep::Norm(act_norm_table(io, &[1, features], own)))
            }
        }));
    }
    steps.reverse();
    let prior = ours.map(|model| &model.prior);
    let prior = io.under("q0", |io| diag_gaussian_table(io, &[1, features], prior));
    (steps, prior)
}

/// `Permute(mode="shuffle")`: `perm` and `inv_perm`. normflows' forward is our inverse.
fn shuffle_table(
    io: &mut Exchange,
    features: usize,
    ours: Option<&VectorStep>,
) -> Result<Permutation> {
    if let Some(VectorStep::Swap(own)) = ours {
        let order = host::to_f64(own.order.val());
        let mut back = vec![0.0; order.len()];
        order.iter().enumerate().for_each(|(to, from)| back[*from as usize] = to as f64);
        io.given("perm", &[features], DType::I64, || back);
        io.given("inv_perm", &[features], DType::I64, || order);
        return Ok(own.clone());
    }
    let order = io.values("inv_perm", &[features]);
    let forward = io.values("perm", &[features]);
    let order: Vec<usize> = order.into_iter().map(|index| index as usize).collect();
    let is_inverse = forward
        .iter()
        .enumerate()
        .all(|(to, &from)| order.get(from as usize).is_some_and(|&back| back == to));
    if order.is_empty() || !is_inverse {
        if !order.is_empty() {
            io.refuse_value("perm", "is not the inverse of inv_perm");
        }
        return Permutation::reverse(1, io.device());
    }
    Permutation::new(&order, io.device())
}

/// The state dict of a model that [`real_nvp`] made, which `NormalizingFlow.load_state_dict` takes.
///
/// # Errors
/// [`FlowError::Invalid`] if its couplings are not of one kind, or a permutation neither swaps the
/// halves nor is there one.
pub fn real_nvp_weights(model: &VectorModel) -> Result<Weights> {
    let [features]: [usize; 1] = model.sample_shape().try_into().expect("a model of vectors");
    let swap = Permutation::swap_halves(features, &backend::device())?;
    let swap = host::to_f64(swap.order.val());
    let (mut scale, mut splits) = (None, Vec::new());
    let mut kinds = Vec::new();
    for step in model.levels[0].iter().rev() {
        let block = match step {
            VectorStep::Norm(_) => Err(Kind::Norm),
            VectorStep::Masked(_) => Err(Kind::Masked),
            VectorStep::Swap(own) if host::to_f64(own.order.val()) == swap => Err(Kind::Swap),
            VectorStep::Swap(_) => Err(Kind::Permute),
            VectorStep::Additive(own) if matches!(own.mask(), Mask::Checkerboard(_)) => {
                Err(Kind::Masked)
            }
            VectorStep::Additive(own) => Ok((own.mask(), CouplingScale::None)),
            VectorStep::Affine(own) => {
                Ok((own.mask(), CouplingScale::of(own.transform.scale_map())?))
            }
        };
        kinds.push(match block {
            Err(kind) => kind,
            Ok((mask, own)) => {
                splits.push(SplitMode::of(mask)?);
                if *scale.get_or_insert(own) != own {
                    return Err(invalid(
                        "couplings of several scale maps",
                        "couplings of one kind",
                    ));
                }
                Kind::Block
            }
        });
    }
    if splits.is_empty() {
        splits.push(SplitMode::Channel);
    }
    let scale = scale.unwrap_or(CouplingScale::Exp);
    let options = RealNvpOptions { masked: MaskedScale::Linear, scale, splits };
    let mut io = Exchange::writing(model);
    for step in vector_tables(&mut io, features, &kinds, &options, Some(model)).0 {
        step?;
    }
    Ok(io.into_weights())
}

/// Writes the state dict of a model of vectors: a file for `torch.load` where the name ends in `.pt` or
/// `.pth`, else safetensors.
///
/// # Errors
/// As [`real_nvp_weights`] and [`Weights::write`].
pub fn save_real_nvp(model: &VectorModel, path: impl AsRef<Path>) -> Result<()> {
    real_nvp_weights(model)?.write(path)
}

fn invalid(got: &str, needed: &str) -> FlowError {
    FlowError::Invalid {
        what: "weights for normflows".into(),
        got: got.into(),
        needed: needed.into(),
        advice: "export a model that was read from there".into(),
    }
}

/// `DiagGaussian` (`loc`, `log_scale`, `[1, ...]`).
///
/// # Errors
/// If the tensors are not there, of another shape or not finite.
pub fn diag_gaussian<const D: usize>(weights: &Weights) -> Result<DiagonalNormal<D>> {
    let mut io = Exchange::reading(weights);
    let prior = diag_gaussian_table(&mut io, weights.shape("loc").unwrap_or_default(), None);
    io.check_layer("DiagGaussian")?;
    Ok(prior)
}

fn diag_gaussian_table<const D: usize>(
    io: &mut Exchange,
    shape: &[usize],
    ours: Option<&DiagonalNormal<D>>,
) -> DiagonalNormal<D> {
    DiagonalNormal {
        mean: io.param("loc", shape, Rows::same(), ours.map(|prior| &prior.mean)),
        log_std: io.param("log_scale", shape, Rows::same(), ours.map(|prior| &prior.log_std)),
    }
}

/// `GlowBase`: `mean = loc exp(3 loc_logs)`, `ln std = log_scale exp(3 log_scale_logs)`; or a
/// `DiagGaussian`, whichever is there.
///
/// # Errors
/// If the tensors are not there, of another shape or not finite.
pub fn glow_base(weights: &Weights) -> Result<DiagonalNormal<4>> {
    let mut io = Exchange::reading(weights);
    let shape = weights.shape("loc").unwrap_or_default().to_vec();
    let prior = glow_base_table(&mut io, &shape, None);
    io.check_layer("GlowBase")?;
    Ok(prior)
}

/// One normal a channel is a `GlowBase`, written with logs of zero; one a pixel a `DiagGaussian`.
fn glow_base_table(
    io: &mut Exchange,
    shape: &[usize],
    ours: Option<&DiagonalNormal<4>>,
) -> DiagonalNormal<4> {
    let is_glow = match ours {
        Some(prior) => prior.mean.dims()[2..] == [1, 1],
        None => io.has("loc_logs"),
    };
    if !is_glow {
        return diag_gaussian_table(io, shape, ours);
    }
    let names = [("loc", "loc_logs"), ("log_scale", "log_scale_logs")];
    if let Some(prior) = ours {
        let dtype = io.dtype();
        for ((name, logs), own) in names.into_iter().zip([&prior.mean, &prior.log_std]) {
            io.param(name, shape, Rows::same(), Some(own));
            io.given(logs, shape, dtype, || vec![0.0; shape.iter().product()]);
        }
        return prior.clone();
    }
    let [mean, log_std] = names.map(|(name, logs)| {
        let (values, logs) = (io.values(name, shape), io.values(logs, shape));
        let scaled = values.iter().zip(logs).map(|(v, log)| v * (LOG_SCALE_FACTOR * log).exp());
        let scaled = io.vector(scaled.collect()).val();
        let channels = scaled.dims()[0];
        Param::from_tensor(scaled.reshape([1, channels, 1, 1]))
    });
    DiagonalNormal { mean, log_std }
}

/// The normal of each class `y`, a context of 0 and 1: means, then log standard deviations, are
/// `bias + classes[y]`.
fn class_normal(io: &Exchange, bias: Vec<f64>, classes: &[Vec<f64>]) -> ContextNormal<Mlp> {
    let (width, outputs) = (classes.len(), bias.len());
    let (device, dtype) = (io.device(), io.dtype());
    let weight = host::from_f64(classes.concat(), [width, outputs], device, dtype);
    let bias = Some(io.vector(bias));
    let layers = vec![Linear { weight: Param::from_tensor(weight), bias }];
    ContextNormal { net: Mlp { layers }, context: Context::in_dtype(width, device, dtype) }
}

/// `ClassCondDiagGaussian` (`loc`, `log_scale`, `[features, classes]`), the class being the context.
///
/// # Errors
/// If the tensors are not there, of another shape or not finite.
pub fn class_cond_diag_gaussian(weights: &Weights) -> Result<ContextNormal<Mlp>> {
    let mut io = Exchange::reading(weights);
    let shape = [weights.size("loc", 0), weights.size("loc", 1)];
    let [mean, log_std] = ["loc", "log_scale"].map(|name| io.values(name, &shape));
    io.check_layer("ClassCondDiagGaussian")?;
    let [features, num_classes] = shape;
    if features * num_classes == 0 {
        return Err(weights.error("a base without classes", "give one with classes"));
    }
    let column = |values: &[f64], class: usize| -> Vec<f64> {
        values.iter().skip(class).step_by(num_classes).copied().collect()
    };
    let of_class = |class| [column(&mean, class), column(&log_std, class)].concat();
    let classes: Vec<_> = (0..num_classes).map(of_class).collect();
    Ok(class_normal(&io, vec![0.0; 2 * features], &classes))
}

/// `GlowBase` with classes: `mean = loc exp(3 loc_logs) + loc_cc[y]`, and so the log standard deviation.
fn class_base_table(
    io: &mut Exchange,
    channels: usize,
    ours: Option<&ContextNormal<Mlp>>,
) -> ContextNormal<Mlp> {
    let shape = [1, channels, 1, 1];
    let names = [("loc", "loc_logs", "loc_cc"), ("log_scale", "log_scale_logs", "log_scale_cc")];
    if let Some(ours) = ours {
        let layer = &ours.net.layers[0];
        let (dtype, width) = (io.dtype(), ours.context.width());
        let weight = host::to_f64(host::plain(layer.weight.val()));
        let bias = layer.bias.as_ref();
        let bias = bias.map_or(vec![0.0; 2 * channels], |b| host::to_f64(host::plain(b.val())));
        for (part, (name, logs, classes)) in names.into_iter().enumerate() {
            let own = part * channels..(part + 1) * channels;
            io.given(name, &shape, dtype, || bias[own.clone()].to_vec());
            io.given(logs, &shape, dtype, || vec![0.0; channels]);
            io.given(classes, &[width, channels], dtype, || {
                weight.chunks(2 * channels).flat_map(|row| row[own.clone()].to_vec()).collect()
            });
        }
        return ours.clone();
    }
    let num_classes = io.size("loc_cc", 0);
    let mut bias = Vec::new();
    let mut rows = vec![Vec::new(); num_classes];
    for (name, logs, classes) in names {
        let (values, logs) = (io.values(name, &shape), io.values(logs, &shape));
        bias.extend(values.iter().zip(logs).map(|(v, log)| v * (LOG_SCALE_FACTOR * log).exp()));
        let values = io.values(classes, &[num_classes, channels]);
        for (row, values) in rows.iter_mut().zip(values.chunks(channels.max(1))) {
            row.extend_from_slice(values);
        }
    }
    if num_classes == 0
        || bias.len() != 2 * channels
        || rows.iter().any(|row| row.len() != 2 * channels)
    {
        // What is missing is reported at the end; the model is not given to anyone.
        return class_normal(io, vec![0.0], &[vec![0.0]]);
    }
    class_normal(io, bias, &rows)
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

fn glow_block_table(
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

/// One level of a `MultiscaleFlow`: the preprocessing (first level), squeeze, steps.
pub type MultiscaleLevel = (Option<Logit>, Squeeze, Vec<GlowStep>);

/// `MultiscaleFlow` of `GlowBlock`s with `GlowBase` or `DiagGaussian` priors.
pub type MultiscaleModel = FlowStack<4, MultiscaleLevel, DiagonalNormal<4>, DiagonalNormal<4>>;

/// `MultiscaleFlow` of `GlowBlock`s with class-conditional `GlowBase`s: the class is the context of
/// every prior.
pub type ClassMultiscaleModel =
    FlowStack<4, MultiscaleLevel, ContextNormal<Mlp>, ContextNormal<Mlp>>;

const GLOW_NAME: &str = "MultiscaleFlow of GlowBlocks of normflows";

/// A tensor that every such model has.
const GLOW_MARKER: &str = "flows.0.0.flows.2.s";

/// The side of the images of a model whose file [`load`] reads, where the file does not hold it: that of
/// CIFAR-10, normflows' own example.
pub const IMAGE_SIDE: usize = 32;

/// More levels than any image can be squeezed to.
const MOST_LEVELS: usize = 24;

/// Bits of the pixels.
pub const BITS: u32 = 8;

/// Reads a `MultiscaleFlow` of `GlowBlock`s with normflows' default options and no `transform`, on the
/// compiled-in device in f32; for others see [`multiscale`].
///
/// # Errors
/// As [`Weights::read`] and [`multiscale`].
pub fn load(path: impl AsRef<Path>) -> Result<MultiscaleModel> {
    glow(&Weights::read(path, &backend::device())?, None)
}

/// [`multiscale`] with normflows' default options and no `transform`. Where no height and width are given
/// its images are as large as its `DiagGaussian`s say, or of 32x32 pixels.
///
/// # Errors
/// As [`multiscale`].
pub fn glow(weights: &Weights, image_size: Option<[usize; 2]>) -> Result<MultiscaleModel> {
    let shape = image_shape(weights, image_size)?;
    multiscale(weights, GlowBlockOptions::default(), None, shape)
}

/// [`glow`] of a model whose bases are class-conditional: see [`class_multiscale`].
///
/// # Errors
/// As [`class_multiscale`].
pub fn class_glow(
    weights: &Weights,
    image_size: Option<[usize; 2]>,
) -> Result<ClassMultiscaleModel> {
    let shape = image_shape(weights, image_size)?;
    class_multiscale(weights, GlowBlockOptions::default(), None, shape)
}

/// Whether these are the tensors of a `MultiscaleFlow` with class-conditional bases, which
/// [`class_glow`] reads and [`glow`] does not.
pub fn is_class_conditional(weights: &Weights) -> bool {
    weights.state_dict(GLOW_NAME, GLOW_MARKER).is_ok_and(|own| has_classes(&own))
}

fn image_shape(weights: &Weights, image_size: Option<[usize; 2]>) -> Result<[usize; 3]> {
    let own = weights.state_dict(GLOW_NAME, GLOW_MARKER)?;
    let num_levels = own.under("flows").indices().len().min(MOST_LEVELS);
    let of_file = |axis: usize| match own.size("q0.0.loc", axis) {
        0 | 1 => IMAGE_SIDE,
        side => side << num_levels,
    };
    let [height, width] = image_size.unwrap_or_else(|| [of_file(2), of_file(3)]);
    let channels = own.size(GLOW_MARKER, 1) >> (num_levels + 1);
    Ok([channels, height, width])
}

/// `MultiscaleFlow` of levels `[GlowBlock, ..., Squeeze]`, with `transform` before the first.
///
/// normflows counts levels and latents from the deepest; [`FlowStack`] counts from the data.
///
/// # Errors
/// [`FlowError::Record`] if tensors are missing, superfluous, of another shape or not finite, which lists
/// all of them, or if the bases are class-conditional;
/// [`FlowError::Config`] if the sides cannot be halved as often as the model squeezes;
/// [`FlowError::Singular`] if a 1x1 convolution has no inverse.
pub fn multiscale(
    weights: &Weights,
    options: GlowBlockOptions,
    transform: Option<Logit>,
    image_shape: [usize; 3],
) -> Result<MultiscaleModel> {
    let weights = weights.state_dict(GLOW_NAME, GLOW_MARKER)?;
    if has_classes(&weights) {
        return Err(weights.error(
            "class-conditional bases (loc_cc, log_scale_cc)",
            "give a model without classes, or read it with class_multiscale",
        ));
    }
    read_multiscale(&weights, options, transform, image_shape, base_table)
}

/// [`multiscale`] of a model whose bases are class-conditional: of the model that is made, every prior
/// depends on a class ([`Given::given_classes`](crate::context::Given::given_classes)), and
/// [`FlowStack::classify`] finds it.
///
/// # Errors
/// As [`multiscale`], but that the bases have to be class-conditional.
pub fn class_multiscale(
    weights: &Weights,
    options: GlowBlockOptions,
    transform: Option<Logit>,
    image_shape: [usize; 3],
) -> Result<ClassMultiscaleModel> {
    let weights = weights.state_dict(GLOW_NAME, GLOW_MARKER)?;
    if !has_classes(&weights) {
        let advice = "give a model with classes, or read it with multiscale";
        return Err(weights.error("no class-conditional bases", advice));
    }
    let table =
        |io: &mut Exchange, channels, _, ours: Option<&_>| class_base_table(io, channels, ours);
    read_multiscale(&weights, options, transform, image_shape, table)
}

/// Whether the bases of a `MultiscaleFlow` are class-conditional.
fn has_classes(weights: &Weights) -> bool {
    let is_of_class = |name: &str| name.ends_with("loc_cc") || name.ends_with("log_scale_cc");
    weights.under("q0").names().any(is_of_class)
}

fn read_multiscale<P: Prior<4> + SplitPrior<4>>(
    weights: &Weights,
    options: GlowBlockOptions,
    transform: Option<Logit>,
    image_shape: [usize; 3],
    table: impl Fn(&mut Exchange, usize, [usize; 2], Option<&P>) -> P,
) -> Result<FlowStack<4, MultiscaleLevel, P, P>>
where
    FlowStack<4, MultiscaleLevel, P, P>: Module,
{
    let flows = weights.under("flows");
    let steps: Vec<usize> = (0..flows.indices().len())
        .map(|level| flows.under(level.to_string()).indices().len())
        .collect();
    let mut io = Exchange::reading(weights);
    let (mut levels, mut priors) =
        multiscale_tables(&mut io, image_shape, &steps, options, None, table);
    io.check(GLOW_NAME)?;
    levels[0].0 = transform;
    let prior = priors.pop().expect("as many priors as levels");
    let model = FlowStack::new(levels, priors, prior, &image_shape)?;
    check_invertible(&model)?;
    Ok(model)
}

/// `GlowBase` or `DiagGaussian`.
fn base_table(
    io: &mut Exchange,
    channels: usize,
    sides: [usize; 2],
    ours: Option<&DiagonalNormal<4>>,
) -> DiagonalNormal<4> {
    let is_glow = match ours {
        Some(prior) => prior.mean.dims()[2..] == [1, 1],
        None => io.has("loc_logs"),
    };
    let [height, width] = if is_glow { [1, 1] } else { sides };
    glow_base_table(io, &[1, channels, height, width], ours)
}

/// Levels and priors from the data on; `steps` are those of normflows' levels, from the deepest on.
fn multiscale_tables<P: Module>(
    io: &mut Exchange,
    [channels, height, width]: [usize; 3],
    steps: &[usize],
    options: GlowBlockOptions,
    ours: Option<&FlowStack<4, MultiscaleLevel, P, P>>,
    table: impl Fn(&mut Exchange, usize, [usize; 2], Option<&P>) -> P,
) -> (Vec<MultiscaleLevel>, Vec<P>) {
    let (mut levels, mut priors) = (Vec::new(), Vec::new());
    let (mut channels, mut sides) = (channels.min(MOST_CHANNELS), [height, width]);
    for (index, &num_steps) in steps.iter().rev().enumerate() {
        channels = (4 * channels).min(MOST_CHANNELS);
        sides = sides.map(|side| side / 2);
        // They count levels from the deepest, and steps from the latent.
        let theirs = steps.len() - 1 - index;
        let is_last = theirs == 0;
        let own = ours.map(|model| &model.levels[index].2);
        let blocks = (0..num_steps).map(|at| {
            let (name, own) =
                (format!("flows.{theirs}.{}", num_steps - 1 - at), own.map(|steps| &steps[at]));
            io.under(name, |io| glow_block_table(io, channels, options, own))
        });
        levels.push((None, Squeeze::new(), blocks.collect()));
        let part = if is_last { channels } else { channels / 2 };
        let own = ours.map(|model| if is_last { &model.prior } else { &model.split_priors[index] });
        priors.push(io.under(format!("q0.{theirs}"), |io| table(io, part, sides, own)));
        channels /= 2;
    }
    (levels, priors)
}

/// The state dict of a model that [`multiscale`] or [`load`] made, which `MultiscaleFlow.load_state_dict`
/// takes. A `transform` has no tensors there and is not written.
///
/// # Errors
/// [`FlowError::Invalid`] if its couplings are not of one kind that is known there, or a step has no 1x1
/// convolution.
pub fn multiscale_weights(model: &MultiscaleModel) -> Result<Weights> {
    write_multiscale(model, base_table)
}

/// The state dict of a model that [`class_multiscale`] made, which `MultiscaleFlow.load_state_dict` takes.
///
/// # Errors
/// As [`multiscale_weights`], or if the net of a prior is not one linear layer.
pub fn class_multiscale_weights(model: &ClassMultiscaleModel) -> Result<Weights> {
    let priors = model.split_priors.iter().chain([&model.prior]);
    if priors.into_iter().any(|prior| prior.net.layers.len() != 1) {
        return Err(invalid("a prior with a deeper net", "one linear layer from the class"));
    }
    write_multiscale(model, |io, channels, _, ours| class_base_table(io, channels, ours))
}

fn write_multiscale<P: Prior<4> + SplitPrior<4>>(
    model: &FlowStack<4, MultiscaleLevel, P, P>,
    table: impl Fn(&mut Exchange, usize, [usize; 2], Option<&P>) -> P,
) -> Result<Weights>
where
    FlowStack<4, MultiscaleLevel, P, P>: Module,
{
    let mut options: Option<GlowBlockOptions> = None;
    for (_, mixing, coupling) in model.levels.iter().flat_map(|level| &level.2) {
        if !matches!(mixing, GlowMixing::Conv1x1(_)) {
            return Err(invalid("a step with a permutation", "1x1 convolutions"));
        }
        let (scale, mask, net) = match coupling {
            GlowCoupling::Additive(own) => (CouplingScale::None, own.mask(), &own.conditioner),
            GlowCoupling::Affine(own) => {
                (CouplingScale::of(own.transform.scale_map())?, own.mask(), &own.conditioner)
            }
        };
        let (split, negative_slope) = (SplitMode::of(mask)?, *net.negative_slope);
        let own = GlowBlockOptions { scale, split, negative_slope };
        if *options.get_or_insert(own) != own {
            return Err(invalid("couplings of several kinds", "couplings of one kind"));
        }
        if host::to_f64(host::plain(net.conv3.log_scale.val())).iter().any(|&scale| scale != 0.0) {
            return Err(invalid("a net that ends in a scale", "nets that end in a convolution"));
        }
    }
    let Some(options) = options else {
        return Err(invalid("a model without steps", "at least one"));
    };
    let shape: [usize; 3] = model.sample_shape().try_into().expect("a model of images");
    let steps: Vec<usize> = model.levels.iter().rev().map(|level| level.2.len()).collect();
    let mut io = Exchange::writing(model);
    multiscale_tables(&mut io, shape, &steps, options, Some(model), table);
    Ok(io.into_weights())
}

/// Writes the state dict of a multi-scale model: a file for `torch.load` where the name ends in `.pt` or
/// `.pth`, else safetensors.
///
/// # Errors
/// As [`multiscale_weights`] and [`Weights::write`].
pub fn save(model: &MultiscaleModel, path: impl AsRef<Path>) -> Result<()> {
    multiscale_weights(model)?.write(path)
}

/// normflows' `z.i` counts from the deepest latent: the parts of a [`FlowStack`] in that order.
pub fn multiscale_order<const D: usize>(mut parts: Vec<Tensor<D>>) -> Vec<Tensor<D>> {
    parts.reverse();
    parts
}
