//! Flows of nflows, from their layers.

use burn_flows::autoregressive::{Autoregressive, MaskedNet};
use burn_flows::conditioner::{Activation, Block, BlockContext, ContextEntry};
use burn_flows::coupling::{
    Affine, AffineOrder, Coupling, Elementwise, KeptPart, RationalQuadraticConfig, ScaleMap,
    SplineTails, Transform,
};
use burn_flows::linear::Householder;
use burn_flows::preprocess::{ByColumn, Standardize};
use burn_flows::prior::{DiagonalNormal, StandardNormal};
use burn_flows::record::Setting;
use serde_json::Value;

use super::super::cases::text;
use super::super::traced::{Params, Reader, Traced};
use super::super::{Computed, Golden, values};
use super::model::{self, Base, EmbeddingLayer, Layer, Model, Step, frozen};
use super::nets::{
    Numbers, Split, block_context, floored_spline, layer, lu_linear, masked_net, net, num_slopes,
    permutation, residual_blocks, residual_net,
};
use super::spec::{self, Spec};

/// The smallest scale of affine layers.
const FLOOR: f64 = 1e-3;

pub fn flow(golden: &Golden) -> Result<Computed, String> {
    let reader = Reader::new(golden)?;
    let params = reader.params();
    let transforms = params.under("_transform._transforms");
    let mut steps = Vec::new();
    for (index, layer) in spec::layers(golden.hyper("layers")?)?.iter().enumerate() {
        steps.extend(of_layer(layer, &transforms.under(index.to_string()))?);
    }
    let base = match golden.text("base")?.as_str() {
        "StandardNormal" => Base::Standard(StandardNormal::new()),
        "DiagonalNormal" => {
            let place = params.under("_distribution");
            Base::Diagonal(DiagonalNormal {
                mean: reader.param(place.traced("mean_")?),
                log_std: reader.param(place.traced("log_std_")?),
            })
        }
        other => return Err(format!("unknown base {other:?}")),
    };
    let mut model = Model::new(steps, base);
    if let Ok(layers) = golden.hyper("embedding_net") {
        let place = params.under("_embedding_net");
        for (index, layer) in spec::layers(layers)?.iter().enumerate() {
            model.embedding.push(embedding(layer, &place.under(index.to_string()))?);
        }
    }
    let mut computed = model::compute(&reader, model)?;
    if golden.array("fit_x").is_ok() {
        let [scale, shift] = scale_and_shift(&transforms.under("0"))?;
        let place = params.under("_embedding_net.0");
        let of_context = ["_mean", "_std"].map(|name| place.array(name));
        let [mean, deviation] = of_context.map(|array| array.map(|array| array.values().to_vec()));
        fitted(golden, &mut computed, [scale, shift], [mean?, deviation?])?;
    }
    Ok(computed)
}

/// The standardization that was fitted elsewhere is the one that this crate fits.
pub fn fitted(
    golden: &Golden,
    computed: &mut Computed,
    [scale, shift]: [Vec<f64>; 2],
    [mean, deviation]: [Vec<f64>; 2],
) -> Result<(), String> {
    let of_x = Standardize::fit::<2>(golden.tensor("fit_x")?).map_err(text)?;
    let (fit_mean, fit_deviation) = (values(of_x.mean.val()), values(of_x.deviation.val()));
    let fit_shift = fit_mean.iter().zip(&fit_deviation).map(|(mean, deviation)| -mean / deviation);
    computed.compare("fitted shift", fit_shift.collect(), shift);
    computed.compare(
        "fitted scale",
        fit_deviation.iter().map(|value| value.recip()).collect(),
        scale,
    );
    let of_context = Standardize::fit::<2>(golden.tensor("fit_context")?).map_err(text)?;
    computed.compare("fitted mean", values(of_context.mean.val()), mean);
    computed.compare("fitted deviation", values(of_context.deviation.val()), deviation);
    Ok(())
}

fn embedding(value: &Value, params: &Params<'_>) -> Result<EmbeddingLayer, String> {
    match spec::class(value)? {
        "Linear" => Ok(EmbeddingLayer::Linear(params.linear()?)),
        "Standardize" => standardize(params),
        name => Ok(EmbeddingLayer::Activation(Setting::new(spec::activation(name)?))),
    }
}

/// `(c - _mean) / _std`.
pub fn standardize(params: &Params<'_>) -> Result<EmbeddingLayer, String> {
    let golden = params.reader.golden;
    let part = |name: &str| Ok::<_, String>(frozen(golden.tensor_of(&params.array(name)?)));
    Ok(EmbeddingLayer::Standardize(Standardize { mean: part("_mean")?, deviation: part("_std")? }))
}

fn of_layer(value: &Value, params: &Params<'_>) -> Result<Vec<Step>, String> {
    let layers = match spec::class(value)? {
        "InverseTransform" => {
            let spec = Spec::of(value, &["transform"])?;
            let inner = of_layer(spec.get("transform"), &params.under("_transform"))?;
            return Ok(Step::inverted(inner));
        }
        "Permutation" | "ReversePermutation" | "RandomPermutation" => {
            Spec::of(value, &["features", "permutation", "dim"])?;
            vec![permutation(params, &params.sizes("_permutation")?)?]
        }
        "LULinear" => {
            Spec::of(value, &["features", "identity_init", "using_cache"])?;
            lu_linear(params)?
        }
        "HouseholderSequence" => {
            Spec::of(value, &["features", "num_transforms"])?;
            let vectors = params.reader.param(params.traced("q_vectors")?);
            vec![Layer::Householder(Householder { vectors })]
        }
        "PointwiseAffineTransform" => {
            Spec::of(value, &["features"])?;
            let [scale, shift] = scale_and_shift(params)?;
            let maps = ByColumn::affine(scale.into_iter().zip(shift)).map_err(text)?;
            vec![Layer::ByColumn(maps)]
        }
        "AffineCouplingTransform" => affine_coupling(value, params)?,
        "PiecewiseRationalQuadraticCouplingTransform" => spline_coupling(value, params)?,
        "MaskedAffineAutoregressiveTransform" => {
            let spec = Spec::of(value, MADE_OPTIONS)?;
            let net = made(&spec, params, &Numbers::scale_and_shift())?;
            let map = ScaleMap::FlooredSoftplus { floor: FLOOR };
            let affine = affine(params, map, net.net.features_in());
            vec![Layer::AffineMasked(Autoregressive::new(net, affine).map_err(text)?)]
        }
        "MaskedPiecewiseRationalQuadraticAutoregressiveTransform" => {
            let spec = Spec::of(value, &[MADE_OPTIONS, SPLINE_OPTIONS].concat())?;
            let (config, numbers) = spline(&spec, 1.0)?;
            let transform = config.init().map_err(text)?;
            let net = made(&spec, params, &numbers)?;
            vec![Layer::SplineMasked(Autoregressive::new(net, transform).map_err(text)?)]
        }
        other => return Err(format!("unknown layer {other:?}")),
    };
    Ok(Step::all(layers))
}

/// `_scale` and `_shift` for each feature; one number stands for all.
fn scale_and_shift(params: &Params<'_>) -> Result<[Vec<f64>; 2], String> {
    let features = params.reader.golden.array("x")?.shape()[1];
    let part = |name: &str| {
        let values = params.array(name)?.values().to_vec();
        Ok::<_, String>(if values.len() == 1 { vec![values[0]; features] } else { values })
    };
    Ok([part("_scale")?, part("_shift")?])
}

pub fn affine(params: &Params<'_>, map: ScaleMap, features: usize) -> Affine {
    let device = params.reader.golden.weights.device();
    Affine::new(map, AffineOrder::ScaleThenShift, features, device)
}

/// How a net inside a coupling is built.
struct Net {
    context: usize,
    activation: Activation,
    hidden: f64,
}

fn net_options(spec: &Spec) -> Result<Net, String> {
    let net = Spec::of(
        spec.get("net"),
        &[
            "hidden_features",
            "context_features",
            "num_blocks",
            "activation",
            "use_batch_norm",
            "dropout_probability",
        ],
    )?;
    if net.class() != "ResidualNet" {
        return Err(format!("unknown net {:?}", net.class()));
    }
    if net.flag("use_batch_norm") {
        return Err("batch normalization inside of nets is not built".into());
    }
    Ok(Net {
        context: net.number_or("context_features", 0.0)? as usize,
        activation: net.activation("activation")?,
        hidden: net.number("hidden_features")?,
    })
}

/// Positive entries of the mask are changed.
fn split(spec: &Spec) -> Result<Split, String> {
    let kept: Vec<bool> = spec.numbers("mask")?.into_iter().map(|entry| entry <= 0.0).collect();
    Split::new(&kept)
}

fn affine_coupling(value: &Value, params: &Params<'_>) -> Result<Vec<Layer>, String> {
    let spec = Spec::of(value, &["mask", "net"])?;
    let (split, options) = (split(&spec)?, net_options(&spec)?);
    let (kept, changed) = (split.kept.len(), split.changed.len());
    // All shifts, then all scales: one feature of so many numbers stands for theirs.
    let numbers = Numbers::same(2 * changed);
    let net = params.under("transform_net");
    let net = residual_net(&net, kept, options.context, options.activation, &numbers)?;
    let map = ScaleMap::FlooredSigmoid { floor: FLOOR };
    let coupling = Coupling::from_transform(net, affine(params, map, changed), split.mask);
    split.around(params, vec![Layer::AffineCoupling(coupling)])
}

const SPLINE_OPTIONS: &[&str] =
    &["num_bins", "tails", "tail_bound", "min_bin_width", "min_bin_height", "min_derivative"];

/// A spline, and how its numbers stand in theirs.
fn spline(spec: &Spec, divisor: f64) -> Result<(RationalQuadraticConfig, Numbers), String> {
    let bins = spec.size("num_bins")?;
    let tails = match spec.get("tails").as_str() {
        Some("linear") => SplineTails::Identity,
        // A domain of its own and nothing outside of it.
        None => SplineTails::Linear,
        Some(other) => return Err(format!("unknown tails {other:?}")),
    };
    let (config, min_slope) =
        floored_spline(spec, bins, spec.number_or("tail_bound", 1.0)?, tails)?;
    let config = match tails {
        SplineTails::Linear => config.with_interval(0.0, 1.0),
        _ => config,
    };
    Ok((config, Numbers::spline(bins, num_slopes(bins, tails), divisor, min_slope)))
}

fn spline_coupling(value: &Value, params: &Params<'_>) -> Result<Vec<Layer>, String> {
    let options = [SPLINE_OPTIONS, &["mask", "net", "apply_unconditional_transform"]].concat();
    let spec = Spec::of(value, &options)?;
    let (split, options) = (split(&spec)?, net_options(&spec)?);
    let (config, numbers) = spline(&spec, options.hidden.sqrt())?;
    let transform = config.init().map_err(text)?;
    let net = params.under("transform_net");
    let net = residual_net(&net, split.kept.len(), options.context, options.activation, &numbers)?;
    let coupling = Coupling::from_transform(net, transform, split.mask);
    let mut layers = vec![Layer::SplineCoupling(coupling)];
    if spec.flag("apply_unconditional_transform") {
        let (_, numbers) = spline(&spec, 1.0)?;
        let transform = config.init().map_err(text)?;
        let kept = unconditional(params, transform, &numbers)?;
        layers.push(Layer::KeptSplines(KeptPart::new(kept, split.mask)));
    }
    split.around(params, layers)
}

/// The spline of the features that a coupling keeps.
pub fn unconditional<T: Transform>(
    params: &Params<'_>,
    transform: T,
    numbers: &Numbers,
) -> Result<Elementwise<T>, String> {
    let place = params.under("unconditional_transform");
    let parts = ["unnormalized_widths", "unnormalized_heights", "unnormalized_derivatives"];
    let parts = parts.map(|name| place.traced(name));
    let parts = parts.into_iter().collect::<Result<Vec<Traced>, _>>()?;
    Ok(Elementwise { params: params.reader.param(numbers.elementwise(&parts)), transform })
}

const MADE_OPTIONS: &[&str] = &[
    "features",
    "hidden_features",
    "context_features",
    "num_blocks",
    "use_residual_blocks",
    "random_mask",
    "activation",
    "dropout_probability",
    "use_batch_norm",
];

fn made(spec: &Spec, params: &Params<'_>, numbers: &Numbers) -> Result<MaskedNet, String> {
    if spec.flag("use_batch_norm") {
        return Err("batch normalization inside of nets is not built".into());
    }
    let place = params.under("autoregressive_net");
    let context: Option<BlockContext> = block_context(&place, ContextEntry::Activated)?;
    let width = spec.number_or("context_features", 0.0)? as usize;
    let first = layer(&place.under("initial_layer"))?;
    let indices = place.under("blocks").indices();
    let mut names = vec!["initial_layer".to_string()];
    let mut blocks = Vec::new();
    // The library's own default.
    if spec.get("use_residual_blocks").as_bool().unwrap_or(true) {
        blocks.push(Block::linear(first).with_context(context));
        blocks.extend(residual_blocks(&place, ContextEntry::Added)?);
        names.extend(indices.iter().flat_map(|block| {
            (0..2).map(move |index| format!("blocks.{block}.linear_layers.{index}"))
        }));
    } else {
        blocks.push(Block::feed_forward(first).with_context(context));
        for block in indices {
            let name = format!("blocks.{block}.linear");
            blocks.push(Block::feed_forward(layer(&place.under(&name))?));
            names.push(name);
        }
    }
    blocks.push(Block::linear(numbers.layer(&place.under("final_layer"))?));
    names.push("final_layer".into());
    let net = net(&place, blocks, spec.activation("activation")?, width);
    masked_net(&place, &names, net)
}
