//! Glow of y0ast/Glow-PyTorch.
//!
//! Its ActNorms keep their log-scale as it is. Couplings and splits interleave shift and scale; the
//! learned top has them in halves, from a blank picture. Which channels a shuffle or a reversal moves is
//! not in the file: see [`Mixing`].
//!
//! Images are given as `pixel - 0.5` with pixels in [0, 1): see [`for_pixels`].
//!
//! Source: y0ast/Glow-PyTorch, `model.py`, `modules.py`, `datasets.py`.

use std::path::Path;

use burn::module::Param;
use burn::tensor::Tensor;

use super::exchange::{Exchange, Rows};
use super::layers::{PluNames, conv, is_plu, plain_conv1x1, zero_conv};
use super::{MOST_CHANNELS, Weights, check_invertible};
use crate::backend;
use crate::conditioner::GlowNet;
use crate::conditioner::conv::{Conv, Padding, ZeroConv};
use crate::coupling::{Affine, AffineOrder, Coupling, Mask, ScaleMap};
use crate::error::{FlowError, Result};
use crate::linear::Permutation;
use crate::models::{Glow, GlowCoupling, GlowMixing, GlowPrior, GlowSplitPrior, GlowStep};
use crate::norm::ActNorm;
use crate::param::replace;
use crate::prior::{BlankNormal, ConditionalNormal, StandardNormal};
use crate::reshape::Squeeze;
use crate::stack::FlowStack;

/// Bits of the pixels: the default of `datasets.py`.
pub const BITS: u32 = 8;

/// What is taken off pixels in [0, 1) before the model sees them.
const CENTRE: f64 = 0.5;

const NAME: &str = "model.Glow of y0ast/Glow-PyTorch";

/// A tensor that every such model has.
const MARKER: &str = "flow.layers.1.actnorm.bias";

const PLU: PluNames =
    PluNames { permutation: "p", lower: "lower", upper: "upper", log_s: "log_s", sign_s: "sign_s" };

/// What mixes the channels in a model, as far as its file does not hold it (`flow_permutation`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mixing {
    /// `invconv`, whose matrices are in the file.
    #[default]
    Conv1x1,
    /// `reverse`: the channels in reverse.
    Reverse,
    /// `shuffle`: for each step its `shuffle.indices`, `z[i] = x[indices[i]]`.
    Shuffle(Vec<Vec<usize>>),
}

/// Reads a model with 1x1 convolutions from the file that `train.py` saved, on the compiled-in device in
/// f32; for others see [`model`].
///
/// # Errors
/// As [`Weights::read`] and [`model`].
pub fn load(path: impl AsRef<Path>) -> Result<Glow> {
    model(&Weights::read(path, &backend::device())?, &Mixing::Conv1x1)
}

/// The model of a state dict.
///
/// # Errors
/// [`FlowError::Record`] if tensors are missing, superfluous, of another shape
/// or not finite, which lists all of them, if the model is class-conditional, or if `mixing` is not that
/// of the file; [`FlowError::Config`] for an order that is no permutation;
/// [`FlowError::Singular`] if a 1x1 convolution has no inverse.
pub fn model(weights: &Weights, mixing: &Mixing) -> Result<Glow> {
    let weights = weights.state_dict(NAME, MARKER)?;
    if weights.has("project_ycond") || weights.has("project_class") {
        return Err(weights.error(
            "a class-conditional model (project_ycond, project_class)",
            "give a model without classes; those with classes are not read from here",
        ));
    }
    let layers = weights.under("flow.layers");
    let is_step = |index: &usize| layers.has(&format!("{index}.actnorm"));
    let mut steps: Vec<usize> = Vec::new();
    let mut last = None;
    for index in layers.indices().into_iter().filter(is_step) {
        // Between two levels are a split and a squeeze.
        match steps.last_mut().filter(|_| last.is_some_and(|last| last + 1 == index)) {
            Some(count) => *count += 1,
            None => steps.push(1),
        }
        last = Some(index);
    }
    let has_matrices = layers.names().any(|name| name.contains(".invconv."));
    if has_matrices != (*mixing == Mixing::Conv1x1) {
        let reason = match has_matrices {
            true => "its steps have 1x1 convolutions, whose matrices are in the file",
            false => {
                "its steps have no 1x1 convolutions, and the order of its channels is not in it"
            }
        };
        let advice = "call y0ast::model with the flow_permutation that the model was built with";
        return Err(weights.error(reason, advice));
    }
    let channels = weights.size(MARKER, 1) / 4;
    let orders = orders(&weights, mixing, channels, &steps)?;
    let sizes = Sizes {
        channels,
        hidden: weights.size("flow.layers.1.block.0.conv.weight", 0),
        side: [2, 3].map(|axis| weights.size("prior_h", axis)),
        steps,
    };
    let mut io = Exchange::reading(&weights);
    let (levels, priors, top) = tables(&mut io, &sizes, &orders, None);
    io.check(NAME)?;
    let factor = 2usize.saturating_pow(sizes.steps.len() as u32).min(MOST_CHANNELS);
    let [height, width] = sizes.side.map(|side| side * factor);
    let levels = levels.into_iter().map(|steps| (None, Squeeze::new(), steps)).collect();
    let priors = priors.into_iter().map(ConditionalNormal::new).map(GlowSplitPrior::Conditional);
    let shape = [sizes.channels, height, width];
    let model = FlowStack::new(levels, priors.collect(), top, &shape)?;
    check_invertible(&model)?;
    Ok(model)
}

/// For each step of all levels the permutation that the file does not hold.
fn orders(
    weights: &Weights,
    mixing: &Mixing,
    channels: usize,
    steps: &[usize],
) -> Result<Vec<Permutation>> {
    let channels = steps.iter().enumerate().flat_map(|(level, &count)| {
        let factor = 2usize.saturating_pow(level as u32).min(MOST_CHANNELS);
        std::iter::repeat_n((4 * channels * factor).min(MOST_CHANNELS), count)
    });
    match mixing {
        Mixing::Conv1x1 => Ok(Vec::new()),
        Mixing::Reverse => {
            channels.map(|channels| Permutation::reverse(channels, weights.device())).collect()
        }
        Mixing::Shuffle(orders) => {
            let needed: Vec<usize> = channels.collect();
            let given: Vec<usize> = orders.iter().map(Vec::len).collect();
            if given != needed {
                return Err(weights.error(
                    format!("orders of {given:?} channels for steps of {needed:?}"),
                    "give the shuffle.indices of every FlowStep, from the first to the last",
                ));
            }
            orders.iter().map(|order| Permutation::new(order, weights.device())).collect()
        }
    }
}

/// The state dict of a model, which `Glow.load_state_dict` takes: of one that was read from there, or of
/// one that was trained here with `GlowConfig::new` (affine couplings with the sigmoid or additive ones,
/// ActNorm in the nets, conditional splits, no logit).
///
/// # Errors
/// [`FlowError::Invalid`] if the model has a part that there is none of in
/// that library.
pub fn weights(model: &Glow) -> Result<Weights> {
    check_exportable(model)?;
    let [channels, height, width]: [usize; 3] =
        model.sample_shape().try_into().expect("a Glow is of images");
    let sizes = Sizes {
        channels,
        hidden: net_of(&model.levels[0].2[0].2).conv1.weight.dims()[0],
        side: [height, width].map(|side| side >> model.levels.len()),
        steps: model.levels.iter().map(|(_, _, steps)| steps.len()).collect(),
    };
    let mut io = Exchange::writing(model);
    tables(&mut io, &sizes, &[], Some(model));
    Ok(io.into_weights())
}

/// Writes the state dict of a model: a file for `torch.load` where the name ends in `.pt` or `.pth`, else
/// safetensors.
///
/// # Errors
/// As [`weights`] and [`Weights::write`].
pub fn save(model: &Glow, path: impl AsRef<Path>) -> Result<()> {
    weights(model)?.write(path)
}

/// The model for pixels in [0, 1), as everything else in this crate takes them: what is taken off the
/// pixels first becomes part of the first ActNorm. Saved, it would be another model there.
pub fn for_pixels(mut model: Glow) -> Glow {
    let norm = &mut model.levels[0].2[0].0;
    let bias = norm.bias.val() - CENTRE;
    norm.bias = replace(norm.bias.clone(), bias);
    model
}

fn check_exportable(model: &Glow) -> Result<()> {
    let invalid = |got: &str, needed: &str| {
        Err(FlowError::invalid(
            format!("weights for {NAME}"),
            got,
            needed,
            "train a model that there is a counterpart of, or save it as a record",
        ))
    };
    for (index, (logit, _, steps)) in model.levels.iter().enumerate() {
        if logit.is_some() {
            return invalid("a logit before the first level", "none");
        }
        if steps.is_empty() {
            return invalid(&format!("level {index} without steps"), "at least one step a level");
        }
        for (_, _, coupling) in steps {
            let net = net_of(coupling);
            let is_alike = net.norm1.is_some()
                && net.norm2.is_some()
                && net.conv1.bias.is_none()
                && net.conv2.bias.is_none()
                && *net.negative_slope == 0.0
                && net.conv3.padding() == Padding::Zeros;
            if !is_alike {
                return invalid(
                    "a net of another kind",
                    "nets with ActNorm, ReLU and zero padding",
                );
            }
            let (mask, map) = match coupling {
                GlowCoupling::Additive(coupling) => (coupling.mask(), None),
                GlowCoupling::Affine(coupling) => (coupling.mask(), Some(&coupling.transform)),
            };
            let is_sigmoid = map.is_none_or(|map| {
                map.scale_map() == ScaleMap::Sigmoid && map.order() == AffineOrder::ShiftThenScale
            });
            if mask != Mask::first_half() || !is_sigmoid {
                return invalid(
                    "a coupling of another kind",
                    "couplings that keep the first half, additive or with ScaleMap::Sigmoid",
                );
            }
        }
    }
    let is_conditional = |prior: &GlowSplitPrior| matches!(prior, GlowSplitPrior::Conditional(_));
    if !model.split_priors.iter().all(is_conditional) {
        return invalid("a split prior that is standard normal", "conditional split priors");
    }
    match &model.prior {
        GlowPrior::Learned(prior) if prior.mean.dims()[2..] != [1, 1] => {
            invalid("a top prior for each pixel", "one for each channel")
        }
        GlowPrior::Class(_) => invalid("a class-conditional top prior", "one for all classes"),
        _ => Ok(()),
    }
}

/// What tells how large a model is.
struct Sizes {
    /// Of the images.
    channels: usize,
    /// `hidden_channels` of the nets.
    hidden: usize,
    /// Height and width of the deepest latent.
    side: [usize; 2],
    /// Steps of each level.
    steps: Vec<usize>,
}

fn net_of(coupling: &GlowCoupling) -> &GlowNet {
    match coupling {
        GlowCoupling::Additive(coupling) => &coupling.conditioner,
        GlowCoupling::Affine(coupling) => &coupling.conditioner,
    }
}

/// `Glow`: the steps of each level, the priors of the splits, that of the top.
fn tables(
    io: &mut Exchange,
    sizes: &Sizes,
    orders: &[Permutation],
    ours: Option<&Glow>,
) -> (Vec<Vec<GlowStep>>, Vec<ZeroConv>, GlowPrior) {
    let (mut levels, mut priors) = (Vec::new(), Vec::new());
    let mut orders = orders.iter();
    // The first layer is a squeeze.
    let (mut index, mut channels) = (1, sizes.channels);
    for (level, &num_steps) in sizes.steps.iter().enumerate() {
        channels = (4 * channels).min(MOST_CHANNELS);
        let own_steps = ours.map(|model| &model.levels[level].2);
        let steps = (0..num_steps).map(|at| {
            let (order, own) = (orders.next(), own_steps.map(|steps| &steps[at]));
            io.under(format!("flow.layers.{}", index + at), |io| {
                step(io, channels, sizes.hidden, order, own)
            })
        });
        levels.push(steps.collect());
        index += num_steps;
        if level + 1 < sizes.steps.len() {
            let prior = ours.and_then(|model| match &model.split_priors[level] {
                GlowSplitPrior::Conditional(prior) => Some(&prior.conditioner),
                _ => None,
            });
            let size = [channels / 2, channels];
            priors.push(io.under(format!("flow.layers.{index}.conv"), |io| {
                conv2d_zeros(io, size, Rows::deinterleaved(channels), prior)
            }));
            index += 2;
            channels /= 2;
        }
    }
    let [height, width] = sizes.side;
    let shape = [1, 2 * channels, height, width];
    let dtype = io.dtype();
    io.constant("prior_h", &shape, dtype, || vec![0.0; shape.iter().product()]);
    let top = top(io, channels, ours.map(|model| &model.prior));
    (levels, priors, top)
}

fn step(
    io: &mut Exchange,
    channels: usize,
    hidden: usize,
    order: Option<&Permutation>,
    ours: Option<&GlowStep>,
) -> GlowStep {
    let norm = io.under("actnorm", |io| act_norm(io, channels, ours.map(|step| &step.0)));
    let mixing = match (order, ours.map(|step| &step.1)) {
        (Some(order), _) | (None, Some(GlowMixing::Permutation(order))) => {
            GlowMixing::Permutation(order.clone())
        }
        (None, ours) => GlowMixing::Conv1x1(io.under("invconv", |io| {
            let ours = ours.and_then(|mixing| match mixing {
                GlowMixing::Conv1x1(conv) => Some(conv),
                GlowMixing::Permutation(_) => None,
            });
            match ours.map_or_else(|| io.has("log_s"), is_plu) {
                true => PLU.conv1x1(io, channels, ours),
                false => plain_conv1x1(io, "weight", &[channels; 2], ours),
            }
        })),
    };
    let ours = ours.map(|step| &step.2);
    let coupling = io.under("block", |io| coupling(io, channels, hidden, ours));
    (norm, mixing, coupling)
}

/// `ActNorm2d`.
fn act_norm(io: &mut Exchange, channels: usize, ours: Option<&ActNorm>) -> ActNorm {
    let shape = [1, channels, 1, 1];
    let logs = ours.map(|norm| Param::from_tensor(norm.effective_log_scale()));
    let bias = io.param("bias", &shape, Rows::same(), ours.map(|norm| &norm.bias));
    ActNorm::from_parts(bias, io.param("logs", &shape, Rows::same(), logs.as_ref()), 1.0)
}

/// `get_block`, with a scale or without.
fn coupling(
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
        true => (channels, Rows::deinterleaved(channels)),
        false => (half, Rows::same()),
    };
    let net = ours.map(net_of);
    let mut hidden_conv = |name: &str, shape, ours: Option<(&Conv, &Option<ActNorm>)>| {
        io.under(name, |io| {
            let (own_conv, own_norm) = ours.unzip();
            let conv = io.under("conv", |io| conv(io, shape, false, Rows::same(), own_conv));
            let own_norm = own_norm.and_then(|norm| norm.as_ref());
            (conv, Some(io.under("actnorm", |io| act_norm(io, hidden, own_norm))))
        })
    };
    let own = net.map(|net| (&net.conv1, &net.norm1));
    let first = hidden_conv("0", [hidden, half, 3, 3], own);
    let own = net.map(|net| (&net.conv2, &net.norm2));
    let second = hidden_conv("2", [hidden, hidden, 1, 1], own);
    let own = net.map(|net| &net.conv3);
    let last = io.under("4", |io| conv2d_zeros(io, [hidden, outputs], rows, own));
    let ((conv1, norm1), (conv2, norm2)) = (first, second);
    let net = GlowNet { conv1, norm1, conv2, norm2, conv3: last, negative_slope: 0.0.into() };
    if !is_affine {
        return GlowCoupling::Additive(Coupling::additive(net, Mask::first_half()));
    }
    let transform = Affine::new(ScaleMap::Sigmoid, AffineOrder::ShiftThenScale, half, io.device());
    GlowCoupling::Affine(Coupling::from_transform(net, transform, Mask::first_half()))
}

/// `Conv2dZeros`.
fn conv2d_zeros(
    io: &mut Exchange,
    channels: [usize; 2],
    rows: Rows,
    ours: Option<&ZeroConv>,
) -> ZeroConv {
    zero_conv(io, channels, ("logs", &[channels[1], 1, 1]), rows, ours)
}

/// `learn_top_fn`, or no learned top.
fn top(io: &mut Exchange, channels: usize, ours: Option<&GlowPrior>) -> GlowPrior {
    let is_learned = match ours {
        Some(prior) => !matches!(prior, GlowPrior::Standard(_)),
        None => io.has("learn_top_fn"),
    };
    if !is_learned {
        return GlowPrior::Standard(StandardNormal::new());
    }
    // A normal for each channel is what a bias alone gives.
    let of_bias = match ours {
        Some(GlowPrior::Learned(prior)) => {
            let mut conv = ZeroConv::new([2 * channels; 2], io.device());
            let parameters = Tensor::cat(vec![prior.mean.val(), prior.log_std.val()], 1);
            conv.conv.bias = Some(Param::from_tensor(parameters.reshape([2 * channels])));
            Some(conv)
        }
        _ => None,
    };
    let own = match ours {
        Some(GlowPrior::Blank(prior)) => Some(&prior.conv),
        _ => of_bias.as_ref(),
    };
    let conv =
        io.under("learn_top_fn", |io| conv2d_zeros(io, [2 * channels; 2], Rows::same(), own));
    GlowPrior::Blank(BlankNormal { conv })
}
