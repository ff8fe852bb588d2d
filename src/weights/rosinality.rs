//! Glow of rosinality/glow-pytorch.
//!
//! Its steps are ActNorm with a scale that is not a logarithm and may be negative, 1x1 convolution and a
//! coupling whose net gives the scales first, then the shifts. Nets and priors end in a convolution that
//! pads with ones. The priors of the splits depend on the kept half; the top's is that of a blank
//! picture, so that it differs at the border. The last level's 1x1 convolutions are always PLU, whatever
//! those of the others are.
//!
//! Images are given as `pixel - 0.5` with pixels in [0, 1): see [`for_pixels`].
//!
//! Source: rosinality/glow-pytorch, `model.py`, `train.py`.

use std::path::Path;

use burn::tensor::DType;

use super::exchange::{Exchange, Rows, that_read_back};
use super::layers::{PluNames, conv, is_plu, plain_conv1x1, zero_conv};
use super::{MOST_CHANNELS, Weights, check_invertible};
use crate::backend;
use crate::conditioner::GlowNet;
use crate::conditioner::conv::{Padding, ZeroConv};
use crate::coupling::{Affine, AffineOrder, Coupling, Mask, ScaleMap};
use crate::error::Result;
use crate::linear::InvertibleConv1x1;
use crate::models::GlowCoupling;
use crate::norm::LinearActNorm;
use crate::param::replace;
use crate::prior::{BlankNormal, ConditionalNormal};
use crate::reshape::Squeeze;
use crate::stack::FlowStack;

/// The side of the images of a model whose file [`load`] reads: the default of `train.py --img_size`.
pub const IMAGE_SIDE: usize = 64;

/// Bits of the pixels: the default of `train.py --n_bits`.
pub const BITS: u32 = 5;

/// What is taken off pixels in [0, 1) before the model sees them.
const CENTRE: f64 = 0.5;

const NAME: &str = "model.Glow of rosinality/glow-pytorch";

/// A tensor that every such model has.
const MARKER: &str = "blocks.0.flows.0.actnorm.loc";

const PLU: PluNames =
    PluNames { permutation: "w_p", lower: "w_l", upper: "w_u", log_s: "w_s", sign_s: "s_sign" };

/// ActNorm, 1x1 convolution, coupling: `Flow`.
pub type Step = (LinearActNorm, InvertibleConv1x1, GlowCoupling);

/// `Glow`, levels of squeeze and steps: what [`load`] reads and [`save`] writes.
pub type Model = FlowStack<4, (Squeeze, Vec<Step>), BlankNormal, ConditionalNormal<ZeroConv>>;

/// Reads the model that `train.py` saved, of images of 64x64 pixels, on the compiled-in device in f32.
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
/// [`FlowError::Record`](crate::FlowError::Record) if tensors are missing, superfluous, of another shape
/// or not finite, which lists all of them;
/// [`FlowError::Config`](crate::FlowError::Config) if the sides cannot be halved as often as the model
/// squeezes; [`FlowError::Singular`](crate::FlowError::Singular) if a 1x1 convolution has no inverse.
pub fn model(weights: &Weights, [height, width]: [usize; 2]) -> Result<Model> {
    let weights = weights.state_dict(NAME, MARKER)?;
    let sizes = Sizes {
        channels: weights.size(MARKER, 1) / 4,
        hidden: weights.size("blocks.0.flows.0.coupling.net.0.weight", 0),
        steps: (0..weights.under("blocks").indices().len())
            .map(|block| weights.under(format!("blocks.{block}.flows")).indices().len())
            .collect(),
    };
    let mut io = Exchange::reading(&weights);
    let (levels, mut priors) = blocks(&mut io, &sizes, None);
    io.check(NAME)?;
    let top = priors.pop().map(|conv| BlankNormal { conv });
    let top = top.ok_or_else(|| weights.error("a model without blocks", "give a whole model"))?;
    let priors = priors.into_iter().map(ConditionalNormal::new).collect();
    let model = FlowStack::new(levels, priors, top, &[sizes.channels, height, width])?;
    check_invertible(&model)?;
    Ok(model)
}

/// The state dict of a model, which `Glow.load_state_dict` takes.
///
/// # Errors
/// [`FlowError::Invalid`](crate::FlowError::Invalid) if it is not the state dict of this model: of a scale map or
/// another setting that the class does not have.
pub fn weights(model: &Model) -> Result<Weights> {
    let mut io = Exchange::writing(model);
    let net = net_of(&model.levels[0].1[0].2);
    let sizes = Sizes {
        channels: model.sample_shape()[0],
        hidden: net.conv1.weight.dims()[0],
        steps: model.levels.iter().map(|(_, steps)| steps.len()).collect(),
    };
    blocks(&mut io, &sizes, Some(model));
    let &[_, height, width] = model.sample_shape() else { unreachable!("a model of images") };
    that_read_back(NAME, model, io.into_weights(), |weights| self::model(weights, [height, width]))
}

/// Writes the state dict of a model: a file for `torch.load` where the name ends in `.pt` or `.pth`, else
/// safetensors.
///
/// # Errors
/// As [`weights`] and [`Weights::write`].
pub fn save(model: &Model, path: impl AsRef<Path>) -> Result<()> {
    weights(model)?.write(path)
}

/// The model for pixels in [0, 1), as everything else in this crate takes them: what is taken off the
/// pixels first becomes part of the first ActNorm. Saved, it would be another model there.
pub fn for_pixels(mut model: Model) -> Model {
    let norm = &mut model.levels[0].1[0].0;
    let bias = norm.bias.val() - CENTRE;
    norm.bias = replace(norm.bias.clone(), bias);
    model
}

/// What tells how large a model is.
struct Sizes {
    /// Of the images.
    channels: usize,
    /// `filter_size` of the nets.
    hidden: usize,
    /// Steps of each block.
    steps: Vec<usize>,
}

fn net_of(coupling: &GlowCoupling) -> &GlowNet {
    match coupling {
        GlowCoupling::Additive(coupling) => &coupling.conditioner,
        GlowCoupling::Affine(coupling) => &coupling.conditioner,
    }
}

/// `Glow.blocks`: the levels and each one's prior.
fn blocks(
    io: &mut Exchange,
    sizes: &Sizes,
    ours: Option<&Model>,
) -> (Vec<(Squeeze, Vec<Step>)>, Vec<ZeroConv>) {
    let (mut levels, mut priors) = (Vec::new(), Vec::new());
    let mut channels = sizes.channels;
    for (index, &num_steps) in sizes.steps.iter().enumerate() {
        channels = (4 * channels).min(MOST_CHANNELS);
        let is_last = index + 1 == sizes.steps.len();
        let own_steps = ours.map(|model| &model.levels[index].1);
        let prior = ours.map(|model| match is_last {
            true => &model.prior.conv,
            false => &model.split_priors[index].conditioner,
        });
        io.under(format!("blocks.{index}"), |io| {
            let steps = (0..num_steps).map(|at| {
                let own = own_steps.map(|steps| &steps[at]);
                io.under(format!("flows.{at}"), |io| step(io, channels, sizes.hidden, own))
            });
            levels.push((Squeeze::new(), steps.collect()));
            // Seen and given: half of the channels at a split, all of them at the top.
            let part = if is_last { channels } else { channels / 2 };
            let prior =
                io.under("prior", |io| ones_conv(io, [part, 2 * part], Rows::same(), prior));
            priors.push(prior);
        });
        channels /= 2;
    }
    (levels, priors)
}

fn step(io: &mut Exchange, channels: usize, hidden: usize, ours: Option<&Step>) -> Step {
    let norm = ours.map(|step| &step.0);
    let norm = io.under("actnorm", |io| {
        let shape = [1, channels, 1, 1];
        LinearActNorm {
            bias: io.param("loc", &shape, Rows::same(), norm.map(|norm| &norm.bias)),
            scale: io.param("scale", &shape, Rows::same(), norm.map(|norm| &norm.scale)),
            initialized: io.mark("initialized", DType::U8, norm.map(|norm| &norm.initialized)),
        }
    });
    let mixing = ours.map(|step| &step.1);
    let mixing = io.under("invconv", |io| inv_conv(io, channels, mixing));
    let coupling = ours.map(|step| &step.2);
    let coupling = io.under("coupling.net", |io| affine_coupling(io, channels, hidden, coupling));
    (norm, mixing, coupling)
}

/// `InvConv2d` or `InvConv2dLU`.
fn inv_conv(io: &mut Exchange, n: usize, ours: Option<&InvertibleConv1x1>) -> InvertibleConv1x1 {
    if !ours.map_or_else(|| io.has("w_p"), is_plu) {
        return plain_conv1x1(io, "weight", &[n, n, 1, 1], ours);
    }
    // Row and column of each entry.
    let entries = |is: fn(usize, usize) -> bool| {
        move || (0..n * n).map(|at| f64::from(u8::from(is(at / n, at % n)))).collect()
    };
    let dtype = io.dtype();
    io.constant("u_mask", &[n, n], dtype, entries(|row, column| column > row));
    io.constant("l_mask", &[n, n], dtype, entries(|row, column| row > column));
    io.constant("l_eye", &[n, n], dtype, entries(|row, column| row == column));
    PLU.conv1x1(io, n, ours)
}

/// `AffineCoupling`, with a scale or without.
fn affine_coupling(
    io: &mut Exchange,
    channels: usize,
    hidden: usize,
    ours: Option<&GlowCoupling>,
) -> GlowCoupling {
    let half = channels / 2;
    let is_affine = match ours {
        Some(coupling) => matches!(coupling, GlowCoupling::Affine(_)),
        None => io.size("4.conv.bias", 0) != half,
    };
    let (outputs, rows) = match is_affine {
        true => (channels, Rows::halves_swapped(channels)),
        false => (half, Rows::same()),
    };
    let net = ours.map(net_of);
    let mut hidden_conv = |name: &str, shape, ours| {
        (io.under(name, |io| conv(io, shape, true, Rows::same(), ours)), None)
    };
    let first = hidden_conv("0", [hidden, half, 3, 3], net.map(|net| &net.conv1));
    let second = hidden_conv("2", [hidden, hidden, 1, 1], net.map(|net| &net.conv2));
    let last = net.map(|net| &net.conv3);
    let last = io.under("4", |io| ones_conv(io, [hidden, outputs], rows, last));
    let ((conv1, norm1), (conv2, norm2)) = (first, second);
    let net = GlowNet { conv1, norm1, conv2, norm2, conv3: last, negative_slope: 0.0.into() };
    if !is_affine {
        return GlowCoupling::Additive(Coupling::additive(net, Mask::first_half()));
    }
    let transform = Affine::new(ScaleMap::Sigmoid, AffineOrder::ShiftThenScale, half, io.device());
    GlowCoupling::Affine(Coupling::from_transform(net, transform, Mask::first_half()))
}

/// `ZeroConv2d`.
fn ones_conv(
    io: &mut Exchange,
    channels: [usize; 2],
    rows: Rows,
    ours: Option<&ZeroConv>,
) -> ZeroConv {
    let scale = ("scale", &[1, channels[1], 1, 1][..]);
    zero_conv(io, channels, scale, rows, ours).with_padding(Padding::Ones)
}
