//! RealNVP of vectors.

use std::path::Path;

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::DType;

use super::super::Weights;
use super::super::exchange::{Exchange, Rows};
use super::act_norm::act_norm_table;
use super::bases::{class_gaussian_table, diag_gaussian_table};
use super::{CouplingScale, MaskedScale, SplitMode, affine, invalid};
use crate::conditioner::{Mlp, MlpPair};
use crate::coupling::{
    AdditiveCoupling, Affine, AffineCoupling, AffineOrder, Coupling, Mask, Parity, ScaleMap,
};
#[cfg(doc)]
use crate::error::FlowError;
use crate::error::Result;
use crate::linear::Permutation;
use crate::norm::ActNorm;
use crate::param::frozen;
use crate::prior::{ContextNormal, DiagonalNormal, Prior};
use crate::stack::FlowStack;
use crate::{Flow, backend, host};

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

/// `ClassCondFlow(ClassCondDiagGaussian, [...])` of vectors: the class is the context of the prior.
pub type ClassVectorModel = FlowStack<2, Vec<VectorStep>, ContextNormal<Mlp>>;

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
    let features = weights.size(VECTOR_MARKER, 1);
    read(&weights, options, features, |io| diag_gaussian_table(io, &[1, features], None))
}

/// [`real_nvp`] of a model whose base is class-conditional: of the model that is made, the prior depends on a
/// class ([`Given::given_classes`](crate::context::Given::given_classes)), and [`FlowStack::classify`] finds
/// it.
///
/// # Errors
/// As [`real_nvp`].
pub fn class_real_nvp(weights: &Weights, options: &RealNvpOptions) -> Result<ClassVectorModel> {
    let weights = weights.state_dict(CLASS_NAME, VECTOR_MARKER)?;
    let features = weights.size(VECTOR_MARKER, 0);
    read(&weights, options, features, |io| class_gaussian_table(io, features, None))
}

fn read<P: Prior<2>>(
    weights: &Weights,
    options: &RealNvpOptions,
    features: usize,
    prior: impl FnOnce(&mut Exchange) -> P,
) -> Result<FlowStack<2, Vec<VectorStep>, P>> {
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
    let mut io = Exchange::reading(weights);
    let steps = vector_tables(&mut io, features, &kinds, options, None);
    let prior = io.under("q0", prior);
    io.check(VECTOR_NAME)?;
    FlowStack::single(steps.into_iter().collect::<Result<_>>()?, prior, &[features])
}

const VECTOR_NAME: &str = "NormalizingFlow of normflows";
const CLASS_NAME: &str = "ClassCondFlow of normflows";

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

/// The flows in the order data → latent, `kinds` being in theirs.
fn vector_tables(
    io: &mut Exchange,
    features: usize,
    kinds: &[Kind],
    options: &RealNvpOptions,
    ours: Option<&[VectorStep]>,
) -> Vec<Result<VectorStep>> {
    let mut num_blocks = 0;
    let mut steps: Vec<Result<VectorStep>> = Vec::new();
    for (index, &kind) in kinds.iter().enumerate() {
        let own = ours.map(|steps| &steps[kinds.len() - 1 - index]);
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
    steps
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
    write(model, |io, features| {
        diag_gaussian_table(io, &[1, features], Some(&model.prior));
    })
}

/// The state dict of a model that [`class_real_nvp`] made, which `ClassCondFlow.load_state_dict` takes.
///
/// # Errors
/// As [`real_nvp_weights`].
pub fn class_real_nvp_weights(model: &ClassVectorModel) -> Result<Weights> {
    if model.prior.net.layers.len() != 1 || model.prior.net.layers[0].bias.is_some() {
        return Err(invalid("a prior with a deeper net", "one matrix from the class"));
    }
    write(model, |io, features| {
        class_gaussian_table(io, features, Some(&model.prior));
    })
}

fn write<P: Prior<2>>(
    model: &FlowStack<2, Vec<VectorStep>, P>,
    prior: impl FnOnce(&mut Exchange, usize),
) -> Result<Weights>
where
    FlowStack<2, Vec<VectorStep>, P>: Module,
{
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
    for step in vector_tables(&mut io, features, &kinds, &options, Some(&model.levels[0])) {
        step?;
    }
    io.under("q0", |io| prior(io, features));
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
