//! RealNVP of chrischute/real-nvp.
//!
//! Couplings are `z = (x + t) * exp(s)`, `s = rescale * tanh(h_s)`, their nets give the scales first,
//! and the first coupling keeps the squares with `row + column` odd, or the second half of the channels.
//! Between two scales the squeeze is undone and made again in another order of the channels, by which a
//! split takes every second pixel of each 2x2 block: here a permutation of the channels.
//!
//! Images are given as pixels in (0, 1); the logit is part of the model.
//!
//! Source: chrischute/real-nvp, `models/real_nvp`, `models/resnet`, `util`, `train.py`.

use std::path::Path;

use burn::module::Param;
use burn::tensor::{DType, Tensor};

use super::exchange::{Exchange, Rows};
use super::{MOST_CHANNELS, Weights};
use crate::backend;
use crate::conditioner::{NetBatchNorm, ResidualBlock, ResidualNet, WeightNormConv};
use crate::coupling::{Affine, AffineCoupling, AffineOrder, Coupling, Mask, Parity};
use crate::error::{FlowError, Result};
use crate::linear::Permutation;
use crate::models::{RealNvp, RealNvpStep};
use crate::norm::{BATCH_NORM_MOMENTUM, RunningMoments};
use crate::preprocess::{Logit, LogitForm};
use crate::prior::StandardNormal;
use crate::reshape::Squeeze;
use crate::stack::FlowStack;

/// `eps` of PyTorch's `nn.BatchNorm2d`.
const TORCH_EPSILON: f64 = 1e-5;

/// Factor on the normalized input of a net behind a checkerboard mask (`double_after_norm`).
const CHECKERBOARD_GAIN: f64 = 2.0;

/// The side of the images of a model whose file [`load`] reads: those of CIFAR-10, which `train.py`
/// trains on.
pub const IMAGE_SIDE: usize = 32;

/// Bits of the pixels.
pub const BITS: u32 = 8;

const NAME: &str = "models.RealNVP of chrischute/real-nvp";

/// A tensor that every such model has.
const MARKER: &str = "flows.in_couplings.0.rescale.weight_g";

/// For `next_block` behind `next_block`: more scales than any image can be squeezed to.
const MOST_SCALES: usize = 24;

/// A scale: logit (in the first one), checkerboard couplings; but for the last squeeze, couplings of
/// channel halves and the order in which the split takes the channels.
pub type Level =
    (Option<Logit>, Vec<RealNvpStep>, Option<Squeeze>, Vec<RealNvpStep>, Option<Permutation>);

/// `RealNVP`, scale by scale: what [`load`] reads and [`save`] writes.
pub type Model = FlowStack<4, Level>;

/// Reads the model that `train.py` saved, of images of 32x32 pixels, on the compiled-in device in f32.
///
/// The file holds everything else; for images of another size see [`model`].
///
/// # Errors
/// As [`Weights::read`] and [`model`].
pub fn load(path: impl AsRef<Path>) -> Result<Model> {
    model(&Weights::read(path, &backend::device())?, [IMAGE_SIDE; 2])
}

/// The model of a state dict, for images of the given height and width.
///
/// # Errors
/// [`FlowError::Record`] if tensors are missing, superfluous, of another shape
/// or not finite, which lists all of them;
/// [`FlowError::Config`] if the sides cannot be halved as often as the model
/// squeezes, or the logit's constant is out of range.
pub fn model(weights: &Weights, [height, width]: [usize; 2]) -> Result<Model> {
    let weights = weights.state_dict(NAME, MARKER)?;
    let mut io = Exchange::reading(&weights);
    let (constraint, levels) = tables(&mut io, weights.size(MARKER, 0), None);
    io.check(NAME)?;
    let logit = Logit::new((1.0 - constraint) / 2.0, LogitForm::Code)?;
    let mut levels = levels
        .into_iter()
        .map(|Scale { checkerboard, channel, channels }| match channel {
            None => Ok((None, checkerboard, None, Vec::new(), None)),
            Some(channel) => {
                let order = Permutation::new(&alternative_order(channels), weights.device())?;
                Ok((None, checkerboard, Some(Squeeze::new()), channel, Some(order)))
            }
        })
        .collect::<Result<Vec<Level>>>()?;
    levels[0].0 = Some(logit);
    let priors = vec![StandardNormal::new(); levels.len() - 1];
    let channels = weights.size(MARKER, 0);
    FlowStack::new(levels, priors, StandardNormal::new(), &[channels, height, width])
}

/// The state dict of a model that [`model`] or [`load`] made, which `RealNVP.load_state_dict` takes.
///
/// Of how many batches a batch normalization saw nothing is known here: `num_batches_tracked` is 0.
///
/// # Errors
/// [`FlowError::Invalid`] if the model has no logit, or one of another form.
pub fn weights(model: &Model) -> Result<Weights> {
    let mut io = Exchange::writing(model);
    match &model.levels[0].0 {
        Some(logit) if logit.form() == LogitForm::Code => {}
        _ => {
            return Err(FlowError::invalid(
                format!("weights for {NAME}"),
                "a model without the logit of that library",
                "Logit::new(alpha, LogitForm::Code) before the first coupling",
                "export a model that was read from there",
            ));
        }
    }
    tables(&mut io, model.sample_shape()[0], Some(model));
    Ok(io.into_weights())
}

/// Writes the state dict of a model: a file for `torch.load` where the name ends in `.pt` or `.pth`, else
/// safetensors.
///
/// # Errors
/// As [`weights`] and [`Weights::write`].
pub fn save(model: &Model, path: impl AsRef<Path>) -> Result<()> {
    weights(model)?.write(path)
}

/// The channels that a squeeze gives, `4 c + 2 dy + dx`, in the order of the squeeze before a split:
/// pixel by pixel of the block, top left, bottom right, top right, bottom left.
fn alternative_order(channels: usize) -> Vec<usize> {
    [0, 3, 1, 2].into_iter().flat_map(|pixel| (0..channels).map(move |c| 4 * c + pixel)).collect()
}

/// The couplings of a scale, and the channels of the images in it.
struct Scale {
    checkerboard: Vec<RealNvpStep>,
    channel: Option<Vec<RealNvpStep>>,
    channels: usize,
}

/// `RealNVP`: the constant of its logit, and its scales.
fn tables(io: &mut Exchange, channels: usize, ours: Option<&Model>) -> (f64, Vec<Scale>) {
    let own_alpha = ours.and_then(|model| model.levels[0].0.as_ref()).map(Logit::alpha);
    let constraint = io.number("data_constraint", &[1], own_alpha.map(|alpha| 1.0 - 2.0 * alpha));
    let mut scales = Vec::new();
    let (mut name, mut channels) = ("flows".to_string(), channels);
    loop {
        let own = ours.map(|model| &model.levels[scales.len()]);
        let is_last = match ours {
            Some(model) => scales.len() + 1 == model.levels.len(),
            None => !io.has(&format!("{name}.out_couplings")) || scales.len() == MOST_SCALES,
        };
        let mut couplings = |name: String, mask: fn(Parity) -> Mask, channels, own| {
            couplings(io, &name, mask, channels, own)
        };
        let checkerboard = couplings(
            format!("{name}.in_couplings"),
            Mask::Checkerboard,
            channels,
            own.map(|level| &level.1[..]),
        );
        let channel = (!is_last).then(|| {
            couplings(
                format!("{name}.out_couplings"),
                Mask::ChannelHalves,
                (4 * channels).min(MOST_CHANNELS),
                own.map(|level| &level.3[..]),
            )
        });
        scales.push(Scale { checkerboard, channel, channels });
        if is_last {
            return (constraint, scales);
        }
        name += ".next_block";
        channels = (2 * channels).min(MOST_CHANNELS);
    }
}

fn couplings(
    io: &mut Exchange,
    name: &str,
    mask: fn(Parity) -> Mask,
    channels: usize,
    ours: Option<&[RealNvpStep]>,
) -> Vec<RealNvpStep> {
    let count = ours.map_or_else(|| io.count(name), <[_]>::len);
    let coupling = |index: usize| {
        let own = ours.map(|steps| &steps[index].0);
        // The first one keeps the other part than ours would.
        let mask = mask(Parity::of(index).flip());
        let coupling =
            io.under(format!("{name}.{index}"), |io| coupling_table(io, mask, channels, own));
        (coupling, None)
    };
    (0..count).map(coupling).collect()
}

/// `CouplingLayer` of images of `channels` channels: `st_net` and `rescale`.
fn coupling_table(
    io: &mut Exchange,
    mask: Mask,
    channels: usize,
    ours: Option<&AffineCoupling<ResidualNet>>,
) -> AffineCoupling<ResidualNet> {
    let (seen, changed) = (mask.num_identity(channels), mask.num_transformed(channels));
    let gain = match mask {
        Mask::Checkerboard(_) => CHECKERBOARD_GAIN,
        _ => 1.0,
    };
    let net = ours.map(|coupling| &coupling.conditioner);
    let net = io.under("st_net", |io| st_net(io, [seen, 2 * changed], gain, net));
    let own = ours.and_then(|coupling| coupling.transform.gain.as_ref());
    let gain = io.under("rescale", |io| rescale(io, changed, own));
    let transform = Affine::tanh(AffineOrder::ShiftThenScale, gain);
    Coupling::from_transform(net, transform, mask)
}

/// `nn.utils.weight_norm(Rescale)`: one number a channel, the length of `v` being its magnitude.
fn rescale(
    io: &mut Exchange,
    channels: usize,
    ours: Option<&Param<Tensor<1>>>,
) -> Param<Tensor<1>> {
    let shape = [channels, 1, 1];
    if ours.is_some() {
        let dtype = io.dtype();
        io.given("weight_v", &shape, dtype, || vec![1.0; channels]);
        return io.param("weight_g", &shape, Rows::same(), ours);
    }
    let (v, g) = (io.values("weight_v", &shape), io.values("weight_g", &shape));
    io.vector(v.into_iter().zip(g).map(|(v, g)| g * v.signum()).collect())
}

/// `ResNet`, from and to so many channels.
fn st_net(
    io: &mut Exchange,
    [inputs, outputs]: [usize; 2],
    input_gain: f64,
    ours: Option<&ResidualNet>,
) -> ResidualNet {
    let num_blocks = ours.map_or_else(|| io.count("blocks"), |net| net.blocks.len());
    let width = match ours {
        Some(net) => net.norm_out.weight.dims()[0],
        None => io.size("out_norm.weight", 0),
    };
    let conv_in = [width, 2 * inputs, 3, 3];
    let (inside, skip) = ([width, width, 3, 3], [width, width, 1, 1]);
    let own_block = |index: usize| ours.map(|net| &net.blocks[index]);
    let own_skip = |index: usize| ours.map(|net| &net.skips[index]);
    ResidualNet {
        norm_in: io.under("in_norm", |io| batch_norm(io, inputs, ours.map(|net| &net.norm_in))),
        conv_in: weight_norm(io, "in_conv", conv_in, true, ours.map(|net| &net.conv_in)),
        skip_in: weight_norm(io, "in_skip", skip, true, ours.map(|net| &net.skip_in)),
        blocks: (0..num_blocks)
            .map(|index| {
                let own = own_block(index);
                io.under(format!("blocks.{index}"), |io| ResidualBlock {
                    norm1: io.under("in_norm", |io| {
                        batch_norm(io, width, own.map(|block| &block.norm1))
                    }),
                    conv1: weight_norm(io, "in_conv", inside, false, own.map(|block| &block.conv1)),
                    norm2: io.under("out_norm", |io| {
                        batch_norm(io, width, own.map(|block| &block.norm2))
                    }),
                    conv2: weight_norm(io, "out_conv", inside, true, own.map(|block| &block.conv2)),
                })
            })
            .collect(),
        skips: (0..num_blocks)
            .map(|index| weight_norm(io, &format!("skips.{index}"), skip, true, own_skip(index)))
            .collect(),
        norm_out: io.under("out_norm", |io| batch_norm(io, width, ours.map(|net| &net.norm_out))),
        conv_out: io.under("out_conv.conv", |io| {
            let rows = Rows::halves_swapped(outputs);
            let shape = [outputs, width, 1, 1];
            weight_norm_table(io, shape, true, rows, ours.map(|net| &net.conv_out))
        }),
        input_gain: input_gain.into(),
    }
}

/// `nn.BatchNorm2d`; how many batches it saw is not kept.
fn batch_norm(io: &mut Exchange, channels: usize, ours: Option<&NetBatchNorm>) -> NetBatchNorm {
    let (shape, same) = ([channels], Rows::same);
    let moments = ours.map(|norm| &norm.moments);
    io.given("num_batches_tracked", &[], DType::I64, || vec![0.0]);
    let mean = io.frozen("running_mean", &shape, same(), moments.map(|own| &own.mean));
    let variance = io.frozen("running_var", &shape, same(), moments.map(|own| &own.variance));
    NetBatchNorm {
        moments: RunningMoments::seen(mean, variance, BATCH_NORM_MOMENTUM, TORCH_EPSILON),
        weight: io.param("weight", &shape, same(), ours.map(|norm| &norm.weight)),
        bias: io.param("bias", &shape, same(), ours.map(|norm| &norm.bias)),
    }
}

/// `WNConv2d` of a shape `[out, in, k, k]`.
fn weight_norm(
    io: &mut Exchange,
    name: &str,
    shape: [usize; 4],
    has_bias: bool,
    ours: Option<&WeightNormConv>,
) -> WeightNormConv {
    io.under(name, |io| {
        io.under("conv", |io| weight_norm_table(io, shape, has_bias, Rows::same(), ours))
    })
}

/// `nn.utils.weight_norm(nn.Conv2d)`: `weight_g`, `weight_v` and perhaps `bias`.
fn weight_norm_table(
    io: &mut Exchange,
    shape: [usize; 4],
    has_bias: bool,
    rows: Rows,
    ours: Option<&WeightNormConv>,
) -> WeightNormConv {
    let gain = [shape[0], 1, 1, 1];
    let bias = ours.and_then(|conv| conv.bias.as_ref());
    WeightNormConv {
        direction: io.param("weight_v", &shape, rows.clone(), ours.map(|conv| &conv.direction)),
        gain: io.param("weight_g", &gain, rows.clone(), ours.map(|conv| &conv.gain)),
        bias: has_bias.then(|| io.param("bias", &shape[..1], rows, bias)),
    }
}

/// `nn.BatchNorm2d`.
///
/// # Errors
/// If a tensor is not there, of another shape or not finite.
pub fn net_batch_norm(weights: &Weights) -> Result<NetBatchNorm> {
    let mut io = Exchange::reading(weights);
    let channels = weights.size("weight", 0);
    let norm = batch_norm(&mut io, channels, None);
    io.check_layer("nn.BatchNorm2d")?;
    Ok(norm)
}

/// `nn.utils.weight_norm(nn.Conv2d)`: `weight_g`, `weight_v` and perhaps `bias`.
///
/// # Errors
/// If a tensor is not there, of another shape or not finite.
pub fn weight_norm_conv(weights: &Weights) -> Result<WeightNormConv> {
    let mut io = Exchange::reading(weights);
    let shape = [0, 1, 2, 3].map(|axis| weights.size("weight_v", axis));
    let conv = weight_norm_table(&mut io, shape, weights.has("bias"), Rows::same(), None);
    io.check_layer("weight_norm(nn.Conv2d)")?;
    Ok(conv)
}

/// `ResNet`, the `st_net` of a coupling; for checkerboard masks it doubles its normalized input.
///
/// # Errors
/// If a tensor is not there, of another shape or not finite.
pub fn residual_net(weights: &Weights, checkerboard: bool) -> Result<ResidualNet> {
    let mut io = Exchange::reading(weights);
    let channels = [weights.size("in_norm.weight", 0), weights.size("out_conv.conv.weight_g", 0)];
    let net = st_net(&mut io, channels, if checkerboard { CHECKERBOARD_GAIN } else { 1.0 }, None);
    io.check_layer("ResNet")?;
    Ok(net)
}

/// `CouplingLayer`: `st_net` and `rescale`.
///
/// # Errors
/// If a tensor is not there, of another shape or not finite.
pub fn coupling(weights: &Weights, mask: Mask) -> Result<AffineCoupling<ResidualNet>> {
    let mut io = Exchange::reading(weights);
    let changed = weights.size("rescale.weight_g", 0);
    let channels = if matches!(mask, Mask::Checkerboard(_)) { changed } else { 2 * changed };
    let coupling = coupling_table(&mut io, mask, channels, None);
    io.check_layer("CouplingLayer")?;
    Ok(coupling)
}

/// `RealNVP` of one scale: the logit preprocessing and four checkerboard couplings; [`model`] takes any
/// number of scales.
///
/// # Errors
/// As [`model`], or the model has more than one scale: those of this library squeeze in another order.
pub fn one_scale(weights: &Weights, [channels, height, width]: [usize; 3]) -> Result<RealNvp> {
    let mut levels = model(weights, [height, width])?.levels;
    match (levels.pop(), levels.is_empty()) {
        (Some((logit, steps, None, _, _)), true) => {
            let level = (logit, steps, None, Vec::new());
            FlowStack::single(level, StandardNormal::new(), &[channels, height, width])
        }
        _ => Err(weights.error("a model of several scales", "call chrischute::model")),
    }
}
