//! Plain PyTorch layers, and NICE and RealNVP as written with them.

use std::path::Path;

use burn::nn::Linear;

use super::Weights;
use super::exchange::{Exchange, Rows};
use super::layers;
use crate::backend;
use crate::conditioner::conv::Conv;
use crate::conditioner::{ConvNet, Mlp};
use crate::coupling::{AdditiveCoupling, Affine, AffineCoupling, AffineOrder, Mask, Parity};
use crate::error::{FlowError, Result};
use crate::linear::DiagonalScaling;
use crate::models::{Nice, NicePrior};
use crate::norm::{BatchNorm, RunningMoments};
use crate::prior::StandardLogistic;
use crate::stack::FlowStack;

/// `nn.Sequential` of `nn.Linear` with ReLU between, whatever its length.
///
/// # Errors
/// If the layers are not there, or their tensors are of another shape or not finite.
pub fn mlp(weights: &Weights) -> Result<Mlp> {
    let mut io = Exchange::reading(weights);
    let net = mlp_table(&mut io, None);
    io.check_layer("an nn.Sequential of nn.Linear")?;
    match net.layers.is_empty() {
        true => Err(weights.error(
            "a net without linear layers",
            "give the weights of an nn.Sequential of nn.Linear",
        )),
        false => Ok(net),
    }
}

/// Layers that take what the one before gives; an activation follows each but the last.
fn mlp_table(io: &mut Exchange, ours: Option<&Mlp>) -> Mlp {
    let places = match ours {
        Some(own) => (0..own.layers.len()).map(|at| 2 * at).collect(),
        None => io.indices(""),
    };
    let mut before = None;
    let layers = places.iter().enumerate().map(|(at, place)| {
        let own = ours.map(|own| &own.layers[at]);
        io.under(place.to_string(), |io| {
            let [inputs, outputs] = match own {
                Some(own) => own.weight.dims(),
                None => [io.size("weight", 1), io.size("weight", 0)],
            };
            let inputs = before.replace(outputs).unwrap_or(inputs);
            let weight = own.map(|own| &own.weight);
            let bias = own.and_then(|own| own.bias.as_ref());
            Linear {
                weight: io.transposed("weight", [outputs, inputs], Rows::same(), weight),
                bias: Some(io.param("bias", &[outputs], Rows::same(), bias)),
            }
        })
    });
    Mlp { layers: layers.collect() }
}

/// `nn.Conv2d` with a 1x1 or 3x3 kernel, with or without bias.
///
/// # Errors
/// If the tensors are not there, of another shape or not finite.
pub fn conv(weights: &Weights) -> Result<Conv> {
    let mut io = Exchange::reading(weights);
    let outputs = weights.size("weight", 0);
    let conv = conv_table(&mut io, weights.size("weight", 1), outputs, Rows::same());
    io.check_layer("nn.Conv2d")?;
    Ok(conv)
}

fn conv_table(io: &mut Exchange, inputs: usize, outputs: usize, rows: Rows) -> Conv {
    let side = if io.size("weight", 2) == 1 { 1 } else { 3 };
    let has_bias = io.has("bias");
    layers::conv(io, [outputs, inputs, side, side], has_bias, rows, None)
}

/// NICE: `couplings.k` (nets of even or odd positions) and `log_scale`.
///
/// `a = x[0::2]`, `b = x[1::2]`; coupling `k` even: `b += net_k(a)`, odd: `a += net_k(b)`;
/// `z = h exp(log_scale)`.
///
/// # Errors
/// [`FlowError::Record`] if tensors are missing, superfluous, of another shape or not finite, which lists all
/// of them, or if a net does not go from one half to the other.
pub fn nice(weights: &Weights) -> Result<Nice> {
    let weights = weights.state_dict(NICE, LOG_SCALE)?;
    let features = weights.size(LOG_SCALE, 0);
    let mut io = Exchange::reading(&weights);
    let (couplings, scaling) = nice_table(&mut io, features, None);
    io.check(NICE)?;
    for (k, coupling) in couplings.iter().enumerate() {
        let layers = &coupling.conditioner.layers;
        let ends = layers.first().zip(layers.last());
        let ends = ends.map(|(first, last)| [first.weight.dims()[0], last.weight.dims()[1]]);
        let mask = coupling.mask();
        let needed = [mask.num_identity(features), mask.num_transformed(features)];
        if ends != Some(needed) {
            let reason =
                format!("couplings.{k} is no net from {} to {} values", needed[0], needed[1]);
            return Err(
                weights.error(reason, "give nets of the even and the odd positions in turn")
            );
        }
    }
    let prior = NicePrior::Logistic(StandardLogistic::new());
    FlowStack::single((couplings, scaling), prior, &[features])
}

const NICE: &str = "NICE";
const LOG_SCALE: &str = "log_scale";

/// Reads a [`nice`], on the compiled-in device in f32.
///
/// # Errors
/// As [`Weights::read`] and [`nice`].
pub fn load_nice(path: impl AsRef<Path>) -> Result<Nice> {
    nice(&Weights::read(path, &backend::device())?)
}

/// The state dict of a model that [`nice`] reads. Its prior has no tensors.
///
/// # Errors
/// [`FlowError::Invalid`] if the couplings are not of even and odd positions in turn.
pub fn nice_weights(model: &Nice) -> Result<Weights> {
    let (couplings, scaling) = &model.levels[0];
    let is_in_turn =
        |(k, own): (usize, &AdditiveCoupling<Mlp>)| own.mask() == Mask::Alternating(Parity::of(k));
    if !couplings.iter().enumerate().all(is_in_turn) {
        return Err(FlowError::invalid(
            "weights for NICE",
            "couplings of other masks",
            "couplings of even and odd positions in turn",
            "export a model of NiceConfig",
        ));
    }
    let mut io = Exchange::writing(model);
    nice_table(&mut io, scaling.log_scale.dims()[0], Some((couplings, scaling)));
    Ok(io.into_weights())
}

/// Writes the state dict of a model: a file for `torch.load` where the name ends in `.pt` or `.pth`, else
/// safetensors.
///
/// # Errors
/// As [`nice_weights`] and [`Weights::write`].
pub fn save_nice(model: &Nice, path: impl AsRef<Path>) -> Result<()> {
    nice_weights(model)?.write(path)
}

fn nice_table(
    io: &mut Exchange,
    features: usize,
    ours: Option<(&Vec<AdditiveCoupling<Mlp>>, &DiagonalScaling)>,
) -> (Vec<AdditiveCoupling<Mlp>>, DiagonalScaling) {
    let count = ours.map_or_else(|| io.count("couplings"), |(own, _)| own.len());
    let couplings = (0..count).map(|k| {
        let own = ours.map(|(own, _)| &own[k].conditioner);
        let net = io.under(format!("couplings.{k}"), |io| mlp_table(io, own));
        AdditiveCoupling::additive(net, Mask::Alternating(Parity::of(k)))
    });
    let couplings = couplings.collect();
    let own = ours.map(|(_, own)| &own.log_scale);
    let log_scale = io.param(LOG_SCALE, &[features], Rows::same(), own);
    (couplings, DiagonalScaling { log_scale })
}

/// A RealNVP image coupling: `net` of 3x3 convolutions and ReLU, whose output holds the scales
/// first, then the shifts, and `scale_gain`.
///
/// `z = x exp(s) + t`, `s = scale_gain tanh(h_s)`.
///
/// # Errors
/// If tensors are missing, of another shape or not finite.
pub fn real_nvp_coupling(weights: &Weights, mask: Mask) -> Result<AffineCoupling<ConvNet>> {
    let mut io = Exchange::reading(weights);
    let changed = io.size("scale_gain", 1);
    let gain = io.param("scale_gain", &[1, changed, 1, 1], Rows::same(), None);
    let places = io.indices("net");
    let mut before = None;
    let layers = places.iter().enumerate().map(|(at, place)| {
        io.under(format!("net.{place}"), |io| {
            let is_last = at + 1 == places.len();
            let outputs = if is_last { 2 * changed } else { io.size("weight", 0) };
            let inputs = before.replace(outputs).unwrap_or_else(|| io.size("weight", 1));
            let rows = if is_last { Rows::halves_swapped(outputs) } else { Rows::same() };
            conv_table(io, inputs, outputs, rows)
        })
    });
    let net = ConvNet { layers: layers.collect() };
    io.check_layer("a RealNVP coupling")?;
    if net.layers.is_empty() {
        return Err(weights.error("a net without layers", "give the weights of a coupling"));
    }
    let transform = Affine::tanh(AffineOrder::ScaleThenShift, gain);
    Ok(AffineCoupling::from_transform(net, transform, mask))
}

/// Batch normalization as a flow: `running_mean`, `running_var` and, where it is affine,
/// `log_gamma` and `beta`.
///
/// # Errors
/// If tensors are missing, of another shape or not finite, or `momentum` or `epsilon` is out of range.
pub fn batch_norm(weights: &Weights, momentum: f64, epsilon: f64) -> Result<BatchNorm> {
    let mut io = Exchange::reading(weights);
    let shape = [io.size("running_mean", 0)];
    let mean = io.frozen("running_mean", &shape, Rows::same(), None);
    let variance = io.frozen("running_var", &shape, Rows::same(), None);
    let is_affine = io.has("log_gamma") || io.has("beta");
    let affine = is_affine
        .then(|| ["log_gamma", "beta"].map(|name| io.param(name, &shape, Rows::same(), None)));
    io.check_layer("a batch normalization")?;
    // Checks the two numbers; the moments count as seen.
    RunningMoments::new(shape[0], momentum, epsilon, weights.device())?;
    let moments = RunningMoments::seen(mean, variance, momentum, epsilon);
    let mut norm = BatchNorm::from_moments(moments);
    if let Some([log_scale, shift]) = affine {
        (norm.log_scale, norm.shift) = (Some(log_scale), Some(shift));
    }
    Ok(norm)
}
