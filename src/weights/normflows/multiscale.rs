//! Multi-scale Glow, also with classes.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Tensor;

use super::super::exchange::Exchange;
use super::super::{MOST_CHANNELS, Weights, check_invertible};
use super::bases::{class_base_table, glow_base_table};
use super::block::{GlowBlockOptions, glow_block_table};
use super::{CouplingScale, SplitMode, invalid};
use crate::backend;
use crate::conditioner::Mlp;
#[cfg(doc)]
use crate::error::FlowError;
use crate::error::Result;
use crate::host;
use crate::models::{GlowCoupling, GlowMixing, GlowStep};
use crate::preprocess::Logit;
use crate::prior::{ContextNormal, DiagonalNormal, Prior, SplitPrior};
use crate::reshape::Squeeze;
use crate::stack::FlowStack;

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
