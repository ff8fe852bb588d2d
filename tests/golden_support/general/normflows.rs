//! Flows of normflows, from their layers, which it keeps from the latent to the data.

use burn_flows::FlowStack;
use burn_flows::autoregressive::{Autoregressive, MaskedNet};
use burn_flows::conditioner::{Block, BlockNet, ContextEntry, PeriodicInput};
use burn_flows::coupling::{
    ChannelSplines, Coupling, KeptPart, RationalQuadraticConfig, ScaleMap, SplineTails,
};
use burn_flows::preprocess::{ByColumn, ScalarMap};
use burn_flows::prior::{
    ContextNormal, DiagonalNormal, FeatureDensity, GaussianMixture, PerFeature,
};
use burn_flows::weights::normflows::{self, MaskedScale};
use serde_json::Value;

use super::super::cases::{in_order, stack, text};
use super::super::traced::{Params, Reader};
use super::super::{Computed, Golden, cast};
use super::model::{self, Base, Layer, Model, Step};
use super::nets::{
    Numbers, Split, block_context, floored_spline, layer, lu_linear, masked_net, net, num_slopes,
    periodic, permutation, residual_blocks, residual_net,
};
use super::nflows::{affine, unconditional};
use super::spec::{self, Spec};

/// Added to the scales of affine layers.
const FLOOR: f64 = 1e-3;
const PI: f64 = std::f64::consts::PI;

pub fn flow(golden: &Golden) -> Result<Computed, String> {
    let layers = spec::layers(golden.hyper("layers")?)?;
    if layers.iter().all(|layer| layer["class"] == "MaskedAffineFlow") {
        return masked_affine(golden);
    }
    let reader = Reader::new(golden)?;
    let params = reader.params();
    let flows = params.under("flows");
    let mut steps = Vec::new();
    for (index, layer) in layers.iter().enumerate().rev() {
        steps.extend(of_layer(layer, &flows.under(index.to_string()))?);
    }
    let mut model = Model::new(steps, base(golden, &params.under("q0"))?);
    model.back = wrapped(golden, &layers)?;
    model::compute(&reader, model)
}

fn base(golden: &Golden, params: &Params<'_>) -> Result<Base, String> {
    let reader = params.reader;
    let value = golden.hyper("base")?;
    match spec::class(&value)? {
        "DiagGaussian" => {
            let part = |name: &str| Ok::<_, String>(reader.param(params.traced(name)?));
            Ok(Base::Diagonal(DiagonalNormal { mean: part("loc")?, log_std: part("log_scale")? }))
        }
        "ConditionalDiagGaussian" => {
            let width = golden.number("context")? as usize;
            let blocks = vec![Block::linear(layer(&params.under("context_encoder"))?)];
            let net = net(params, blocks, Default::default(), 0);
            let prior = ContextNormal::new(net, width, golden.weights.device());
            Ok(Base::Context(cast(prior, golden.weights.dtype())))
        }
        "UniformGaussian" => {
            let circles = params.sizes("ind")?;
            let scale = params.array("scale")?.values().to_vec();
            let densities = scale.iter().enumerate().map(|(feature, &scale)| {
                match circles.contains(&feature) {
                    true => FeatureDensity::Uniform(-scale / 2.0, scale / 2.0),
                    false => FeatureDensity::Normal(scale),
                }
            });
            Ok(Base::PerFeature(PerFeature::new(densities.collect()).map_err(text)?))
        }
        "GaussianMixture" => {
            let rows = |name: &str| {
                let traced = params.traced(name)?;
                let shape = traced.shape()[1..].to_vec();
                Ok::<_, String>(traced.reshaped(shape))
            };
            Ok(Base::Mixture(GaussianMixture {
                logits: reader.param(rows("weight_scores")?),
                mean: reader.param(rows("loc")?),
                log_std: reader.param(rows("log_scale")?),
            }))
        }
        other => Err(format!("unknown base {other:?}")),
    }
}

fn of_layer(value: &Value, params: &Params<'_>) -> Result<Vec<Step>, String> {
    let layers = match spec::class(value)? {
        "LULinearPermute" => {
            Spec::of(value, &["num_channels", "identity_init"])?;
            let order = params.sizes("permutation._permutation")?;
            let mut layers = vec![permutation(params, &order)?];
            layers.extend(lu_linear(&params.under("linear"))?);
            layers
        }
        "PeriodicShift" | "PeriodicWrap" => vec![Layer::ByColumn(periodic_map(value, params)?)],
        "CoupledRationalQuadraticSpline" | "CircularCoupledRationalQuadraticSpline" => {
            coupled(value, &params.under("prqct"))?
        }
        "AutoregressiveRationalQuadraticSpline"
        | "CircularAutoregressiveRationalQuadraticSpline" => {
            autoregressive(value, &params.under("mprqat"))?
        }
        "MaskedAffineAutoregressive" => {
            let options = &[
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
            let spec = Spec::of(value, options)?;
            let numbers = Numbers::scale_and_shift();
            let net = made(&spec, params, spec.get("context_features"), &numbers, None)?;
            let map = ScaleMap::FlooredSigmoid { floor: FLOOR };
            let affine = affine(params, map, net.net.features_in());
            let layer = Layer::AffineMasked(Autoregressive::new(net, affine).map_err(text)?);
            // Its one pass is from the latent to the data.
            return Ok(Step::inverted(Step::all(vec![layer])));
        }
        other => return Err(format!("unknown layer {other:?}")),
    };
    Ok(Step::all(layers))
}

/// The circle on which the features of a periodic layer live, by feature.
fn circles(value: &Value) -> Result<(Spec, Vec<usize>, Vec<f64>), String> {
    let spec = Spec::of(value, &["ind", "bound", "shift"])?;
    let features = spec.sizes("ind")?;
    let bounds = match spec.get("bound").is_array() {
        true => spec.numbers("bound")?,
        false => vec![spec.number_or("bound", 1.0)?; features.len()],
    };
    if bounds.len() != features.len() {
        return Err(format!("{}: bound does not go with ind", spec.class()));
    }
    Ok((spec, features, bounds))
}

fn periodic_map(value: &Value, params: &Params<'_>) -> Result<ByColumn, String> {
    let (spec, features, bounds) = circles(value)?;
    let shifts = match spec.class() {
        "PeriodicWrap" => vec![0.0; features.len()],
        _ if params.has("shift") => params.array("shift")?.values().to_vec(),
        _ => vec![spec.number_or("shift", 0.0)?; features.len()],
    };
    let count = params.reader.golden.array("x")?.shape()[1];
    let mut maps = vec![ScalarMap::Identity.into(); count];
    for (at, &feature) in features.iter().enumerate() {
        let (bound, shift) = (bounds[at], shifts[if shifts.len() == 1 { 0 } else { at }]);
        maps[feature] =
            ScalarMap::Circle { lower: -bound, turn: 2.0 * bound, shift: -shift }.into();
    }
    ByColumn::new(maps).map_err(text)
}

/// What the way back gives of data outside of their circle: where they are on it.
fn wrapped(golden: &Golden, layers: &[Value]) -> Result<Option<Vec<f64>>, String> {
    let last = layers.last().ok_or("a flow without layers")?;
    if !matches!(spec::class(last)?, "PeriodicShift" | "PeriodicWrap") {
        return Ok(None);
    }
    let (_, features, bounds) = circles(last)?;
    let x = golden.array("x")?;
    let width = x.shape()[1];
    let mut values = x.values().to_vec();
    for (at, value) in values.iter_mut().enumerate() {
        if let Some(place) = features.iter().position(|&feature| feature == at % width) {
            let bound = bounds[place];
            *value = (*value + bound).rem_euclid(2.0 * bound) - bound;
        }
    }
    Ok(Some(values))
}

const SPLINE_OPTIONS: &[&str] = &[
    "num_input_channels",
    "num_blocks",
    "num_hidden_channels",
    "num_context_channels",
    "ind_circ",
    "num_bins",
    "tails",
    "tail_bound",
    "activation",
    "reverse_mask",
    "permute_mask",
    "mask",
    "init_identity",
    "dropout_probability",
];

/// The splines of a layer.
struct Splines {
    spec: Spec,
    config: RationalQuadraticConfig,
    min_slope: f64,
    bins: usize,
    bound: f64,
    /// The features on a circle, of layers that have both.
    circles: Option<Vec<usize>>,
}

impl Splines {
    fn of(value: &Value) -> Result<Self, String> {
        let spec = Spec::of(value, SPLINE_OPTIONS)?;
        let bins = spec.number_or("num_bins", 8.0)? as usize;
        let bound = spec.number_or("tail_bound", 3.0)?;
        let circles = match spec.get("ind_circ").is_null() {
            true => None,
            false => Some(spec.sizes("ind_circ")?),
        };
        let tails = match spec.get("tails").as_str() {
            _ if circles.is_some() => SplineTails::Linear,
            Some("circular") => SplineTails::Circular,
            Some("linear") => SplineTails::Identity,
            None if spec.get("tails").is_null() => SplineTails::Identity,
            other => return Err(format!("unknown tails {other:?}")),
        };
        let (config, min_slope) = floored_spline(&spec, bins, bound, tails)?;
        Ok(Self { spec, config, min_slope, bins, bound, circles })
    }

    /// How the numbers of the splines stand in theirs.
    fn numbers(&self, divisor: f64) -> Numbers {
        let slopes = num_slopes(self.bins, self.config.tails);
        Numbers::spline(self.bins, slopes, divisor, self.min_slope)
    }

    /// Splines of some of the features, of a layer that has both kinds.
    fn by_channel(&self, circles: &[usize], features: &[usize]) -> Result<ChannelSplines, String> {
        let tails = features.iter().map(|feature| match circles.contains(feature) {
            true => SplineTails::Circular,
            false => SplineTails::Identity,
        });
        ChannelSplines::new(self.config, tails.collect()).map_err(text)
    }
}

fn coupled(value: &Value, params: &Params<'_>) -> Result<Vec<Layer>, String> {
    let splines = Splines::of(value)?;
    let spec = &splines.spec;
    let features = spec.size("num_input_channels")?;
    let kept = params.sizes("identity_features")?;
    let split = Split::new(&(0..features).map(|at| kept.contains(&at)).collect::<Vec<_>>())?;
    let divisor = spec.number_or("num_hidden_channels", 128.0)?.sqrt();
    let context = spec.number_or("num_context_channels", 0.0)? as usize;
    let place = params.under("transform_net");
    let numbers = splines.numbers(divisor);
    let activation = spec.activation("activation")?;
    let net = residual_net(&place, kept.len(), context, activation, &numbers)?;
    let net: BlockNet = net.with_periodic(periodic(&place, PI / splines.bound)?);
    let numbers = splines.numbers(1.0);
    let has_spline_of_kept = params.has("unconditional_transform");
    let mut layers = Vec::new();
    match &splines.circles {
        Some(circles) => {
            let transform = splines.by_channel(circles, &split.changed)?;
            let coupling = Coupling::from_transform(net, transform, split.mask);
            layers.push(Layer::ChannelSplineCoupling(coupling));
            if has_spline_of_kept {
                let transform = splines.by_channel(circles, &split.kept)?;
                let kept = unconditional(params, transform, &numbers)?;
                layers.push(Layer::KeptChannelSplines(KeptPart::new(kept, split.mask)));
            }
        }
        None => {
            let transform = || splines.config.init().map_err(text);
            let coupling = Coupling::from_transform(net, transform()?, split.mask);
            layers.push(Layer::SplineCoupling(coupling));
            if has_spline_of_kept {
                let kept = unconditional(params, transform()?, &numbers)?;
                layers.push(Layer::KeptSplines(KeptPart::new(kept, split.mask)));
            }
        }
    }
    split.around(params, layers)
}

fn autoregressive(value: &Value, params: &Params<'_>) -> Result<Vec<Layer>, String> {
    let splines = Splines::of(value)?;
    let numbers = splines.numbers(1.0);
    let place = params.under("autoregressive_net");
    let periodic = periodic(&place, PI / splines.bound)?;
    let context = splines.spec.get("num_context_channels");
    let net = made(&splines.spec, params, context, &numbers, periodic)?;
    Ok(vec![match &splines.circles {
        Some(circles) => {
            let features: Vec<usize> = (0..net.net.features_in()).collect();
            let transform = splines.by_channel(circles, &features)?;
            Layer::ChannelSplineMasked(Autoregressive::new(net, transform).map_err(text)?)
        }
        None => {
            let transform = splines.config.init().map_err(text)?;
            Layer::SplineMasked(Autoregressive::new(net, transform).map_err(text)?)
        }
    }])
}

/// No activation behind the first layer; the context enters blocks by a gate.
fn made(
    spec: &Spec,
    params: &Params<'_>,
    context: &Value,
    numbers: &Numbers,
    periodic: Option<PeriodicInput>,
) -> Result<MaskedNet, String> {
    if spec.flag("use_batch_norm") {
        return Err("batch normalization inside of nets is not built".into());
    }
    let place = params.under("autoregressive_net");
    let width = context.as_u64().unwrap_or(0) as usize;
    let first = Block::linear(layer(&place.under("initial_layer"))?);
    let mut blocks = vec![first.with_context(block_context(&place, ContextEntry::Added)?)];
    let mut names = vec!["initial_layer".to_string()];
    for block in place.under("blocks").indices() {
        let name = format!("blocks.{block}.linear");
        if place.under(&name).has("weight") {
            blocks.push(Block::feed_forward(layer(&place.under(&name))?));
            names.push(name);
        } else {
            names.extend((0..2).map(|index| format!("blocks.{block}.linear_layers.{index}")));
        }
    }
    if blocks.len() == 1 {
        blocks.extend(residual_blocks(&place, ContextEntry::Gated)?);
    }
    blocks.push(Block::linear(numbers.layer(&place.under("final_layer"))?));
    names.push("final_layer".into());
    let activation = spec.activation("activation")?;
    let net = net(&place, blocks, activation, width).with_periodic(periodic);
    masked_net(&place, &names, net)
}

/// Affine couplings by masks.
fn masked_affine(golden: &Golden) -> Result<Computed, String> {
    let flows = golden.params().under("flows");
    // The file's arguments leave it open, its formula says it.
    let scale = match golden.meta("formula").contains("tanh at the end of s") {
        true => MaskedScale::Tanh,
        false => MaskedScale::Linear,
    };
    let steps = flows.indices().into_iter().rev();
    let steps = steps
        .map(|k| normflows::masked_affine(&flows.under(k.to_string()), scale))
        .collect::<Result<Vec<_>, _>>()
        .map_err(text)?;
    let features = golden.array("x")?.shape()[1];
    let base = base(golden, &Reader::new(golden)?.params().under("q0"))?;
    stack(golden, FlowStack::single(steps, base, &[features]), in_order::<2>)
}
