//! Flows of zuko, with the masks that their files hold.

use burn::module::Param;
use burn_flows::autoregressive::{Autoregressive, AutoregressiveNet, Made, MadeContext, MaskedNet};
use burn_flows::conditioner::{Activation, Block, BlockNet, Mlp};
use burn_flows::context::{Context, WithContext};
use burn_flows::coupling::{
    Coupling, Mapped, RationalQuadratic, RationalQuadraticConfig, ScaleMap, SplineForm, Transform,
};
use burn_flows::preprocess::{ByColumn, ScalarMap};
use burn_flows::prior::{DiagonalNormal, DiagonalStudentT, StandardNormal, Uniform};
use burn_flows::weights::Array;
use serde_json::Value;

use super::super::cases::text;
use super::super::traced::{Params, Reader, Traced};
use super::super::{Computed, Golden, cast, variational};
use super::model::{self, Base, Layer, Model, Step, frozen};
use super::nets::{Numbers, Split, first_layer, layer, masked_net, net};
use super::nflows::{affine, fitted, standardize};
use super::spec::Spec;

/// The least slope of every map.
const SLOPE: f64 = 1e-3;

/// How far splines reach, and those on a circle.
const BOUND: f64 = 5.0;
const PI: f64 = std::f64::consts::PI;

const OPTIONS: &[&str] = &[
    "features",
    "context",
    "transforms",
    "hidden_features",
    "bins",
    "base",
    "standardize",
    "randperm",
    "randmask",
    "passes",
    "residual",
    "activation",
    "adjacency",
    "target",
];

pub fn flow(golden: &Golden) -> Result<Computed, String> {
    let kind = golden.meta("class").to_string();
    let mut options: Value = serde_json::from_str(golden.meta("hyperparameters"))
        .map_err(|error| format!("hyperparameters: {error}"))?;
    options["class"] = Value::String(kind);
    let spec = Spec::of(&options, OPTIONS)?;
    let reader = Reader::new(golden)?;
    let all = reader.params();
    let is_standardized = spec.flag("standardize");
    let params = if is_standardized { all.under("net") } else { all.clone() };
    let mut steps = Vec::new();
    let mut transforms = params.under("transform.transforms");
    if is_standardized {
        let [scale, shift] = scale_and_shift(&transforms.under("0"))?;
        let maps = ByColumn::affine(scale.into_iter().zip(shift)).map_err(text)?;
        steps.push(Layer::ByColumn(maps));
        transforms = transforms.under("1.transforms");
    }
    for index in transforms.indices() {
        steps.extend(of_layer(&spec, &transforms.under(index.to_string()))?);
    }
    if golden.hyper("target").is_ok() {
        return fitted_to_target(&reader, Step::all(steps), &params.under("base"));
    }
    let mut model = Model::new(Step::all(steps), base(&spec, &params.under("base"))?);
    if is_standardized {
        model.embedding.push(standardize(&all.under("embedding_net"))?);
    }
    let mut computed = model::compute(&reader, model)?;
    if golden.array("fit_x").is_ok() {
        let of_x = scale_and_shift(&params.under("transform.transforms.0"))?;
        let of_context = ["_mean", "_std"].map(|name| all.under("embedding_net").array(name));
        let [mean, deviation] = of_context.map(|array| array.map(|array| array.values().to_vec()));
        fitted(golden, &mut computed, of_x, [mean?, deviation?])?;
    }
    Ok(computed)
}

/// A flow fitted by the reverse KL divergence.
fn fitted_to_target(
    reader: &Reader<'_>,
    steps: Vec<Step>,
    base: &Params<'_>,
) -> Result<Computed, String> {
    let [scale, mean] = scale_and_shift(base)?;
    let golden = reader.golden;
    let row = |values: Vec<f64>| frozen(golden.tensor_of(&Array::new([1, values.len()], values)));
    let log_std = row(scale.into_iter().map(f64::ln).collect());
    let normal = DiagonalNormal { mean: row(mean), log_std };
    variational::reverse_kl(golden, steps, normal, |model, grads| {
        let mut sums = reader.no_gradients();
        reader.add_gradients(model, grads, &mut sums);
        let params = golden.params();
        let named = params.names().map(|name| {
            let gradient = reader.of_param(name, &sums).ok_or("a parameter without a place")?;
            Ok((name.to_string(), gradient))
        });
        named.collect()
    })
}

fn scale_and_shift(params: &Params<'_>) -> Result<[Vec<f64>; 2], String> {
    let part = |name: &str| Ok::<_, String>(params.array(name)?.values().to_vec());
    Ok([part("scale")?, part("loc")?])
}

fn base(spec: &Spec, params: &Params<'_>) -> Result<Base, String> {
    let reader = params.reader;
    match spec.get("base").as_str().unwrap_or("default") {
        "StudentT" => Ok(Base::StudentT(DiagonalStudentT {
            raw_degrees: reader.param(params.traced("df")?),
            mean: reader.param(params.traced("loc")?),
            log_scale: reader.param(params.traced("log_scale")?),
        })),
        "default" if spec.class() == "flows.NCSF" => {
            let ends = ["lower", "upper"].map(|name| params.array(name));
            let [lower, upper] = ends.map(|end| end.map(|end| end.values().to_vec()));
            let (lower, upper) = (lower?, upper?);
            let is_same = |end: &[f64]| end.iter().all(|value| *value == end[0]);
            if !is_same(&lower) || !is_same(&upper) {
                return Err("a uniform base of different widths is not built".into());
            }
            Ok(Base::Uniform(Uniform::new(lower[0], upper[0]).map_err(text)?))
        }
        "default" => {
            let (mean, scale) = (params.array("loc")?, params.array("scale")?);
            let is_standard = mean.values().iter().all(|&value| value == 0.0)
                && scale.values().iter().all(|&value| value == 1.0);
            if is_standard {
                return Ok(Base::Standard(StandardNormal::new()));
            }
            let row = |array: Array| {
                let values = array.values().to_vec();
                frozen(reader.golden.tensor_of(&Array::new([1, values.len()], values)))
            };
            Ok(Base::Diagonal(DiagonalNormal { mean: row(mean), log_std: row(scale.map(f64::ln)) }))
        }
        other => Err(format!("unknown base {other:?}")),
    }
}

/// What a feature is mapped by.
enum Map {
    Affine,
    Spline(RationalQuadratic),
    /// A spline whose ends are half a turn away from the data's.
    OnCircle(Mapped<RationalQuadratic>),
}

impl Map {
    fn of(spec: &Spec) -> Result<Self, String> {
        let spline = |bound: f64| {
            let bins = spec.size("bins")?;
            let form = SplineForm::Bent { slope: SLOPE };
            RationalQuadraticConfig::new(bins, bound).with_form(form).init().map_err(text)
        };
        match spec.class() {
            "flows.MAF" | "flows.NICE" | "flows.RealNVP" => Ok(Self::Affine),
            "flows.NSF" => Ok(Self::Spline(spline(BOUND)?)),
            "flows.NCSF" => {
                let circle = ScalarMap::Circle { lower: -PI, turn: 2.0 * PI, shift: -PI };
                Ok(Self::OnCircle(Mapped::new(circle, spline(PI)?).map_err(text)?))
            }
            other => Err(format!("unknown class {other:?}")),
        }
    }

    fn kinds(&self) -> usize {
        match self {
            Self::Affine => 2,
            Self::Spline(spline) => spline.params_per_channel(),
            Self::OnCircle(spline) => spline.params_per_channel(),
        }
    }
}

/// The scale map of every affine layer.
fn scale_map() -> ScaleMap {
    ScaleMap::SoftClip { bound: -SLOPE.ln() }
}

fn of_layer(spec: &Spec, params: &Params<'_>) -> Result<Vec<Layer>, String> {
    let (map, context) = (Map::of(spec)?, spec.number_or("context", 0.0)? as usize);
    let activation = spec.activation("activation")?;
    if params.has("mask") {
        return coupling(spec, params, &map, context, activation);
    }
    let features = spec.size("features")?;
    let is_plain = activation == Activation::Relu && !spec.flag("residual");
    let layer = if is_plain && params.has("order") {
        autoregressive(map, params, made(params, context, kinds_of(spec)?)?, features)?
    } else {
        let (net, names) = masked_blocks(params, features, context, activation, &map)?;
        let masked: MaskedNet = masked_net(&params.under("hyper"), &names, net)?;
        match map {
            Map::Affine => {
                Layer::AffineMasked(join(masked, affine(params, scale_map(), features))?)
            }
            Map::Spline(spline) => Layer::SplineMasked(join(masked, spline)?),
            Map::OnCircle(spline) => Layer::CircleMasked(join(masked, spline)?),
        }
    };
    Ok(vec![layer])
}

fn kinds_of(spec: &Spec) -> Result<usize, String> {
    Ok(Map::of(spec)?.kinds())
}

fn join<T: Transform, N: AutoregressiveNet>(
    net: N,
    transform: T,
) -> Result<Autoregressive<T, N>, String> {
    Autoregressive::new(net, transform).map_err(text)
}

fn autoregressive(
    map: Map,
    params: &Params<'_>,
    made: Made,
    features: usize,
) -> Result<Layer, String> {
    Ok(match map {
        Map::Affine => Layer::AffineMade(join(made, affine(params, scale_map(), features))?),
        Map::Spline(spline) => Layer::SplineMade(join(made, spline)?),
        Map::OnCircle(spline) => Layer::CircleMade(join(made, spline)?),
    })
}

/// The blocks of a masked net, and the names of the masked layers from the first to the last.
fn masked_blocks(
    params: &Params<'_>,
    features: usize,
    context: usize,
    activation: Activation,
    map: &Map,
) -> Result<(BlockNet, Vec<String>), String> {
    let hyper = params.under("hyper");
    let (mut blocks, mut names) = (Vec::new(), Vec::new());
    let indices = hyper.indices();
    let last = *indices.last().ok_or("a net without layers")?;
    let is_residual = hyper.has("1.0.weight");
    for index in indices {
        let place = hyper.under(index.to_string());
        if place.has("0.weight") {
            let inner = |at: usize| layer(&place.under(at.to_string()));
            blocks.push(Block::residual(inner(0)?, inner(2)?));
            names.extend([0, 2].map(|at| format!("{index}.{at}")));
            continue;
        }
        names.push(index.to_string());
        let (linear, of_context) = match index {
            0 => first_layer(&place, features)?,
            _ if index == last => (Numbers::same(map.kinds()).layer(&place)?, None),
            _ => (layer(&place)?, None),
        };
        let block = match is_residual || index == last {
            true => Block::linear(linear),
            false => Block::feed_forward(linear),
        };
        blocks.push(block.with_context(of_context));
    }
    Ok((net(params, blocks, activation, context), names))
}

fn coupling(
    spec: &Spec,
    params: &Params<'_>,
    map: &Map,
    context: usize,
    activation: Activation,
) -> Result<Vec<Layer>, String> {
    if !matches!(map, Map::Affine) {
        return Err(format!("{}: couplings of splines are not built", spec.class()));
    }
    let kept: Vec<bool> = params.array("mask")?.values().iter().map(|&kept| kept > 0.0).collect();
    let split = Split::new(&kept)?;
    let hyper = params.under("hyper");
    let indices = hyper.indices();
    let last = *indices.last().ok_or("a net without layers")?;
    let numbers = Numbers::same(map.kinds());
    let of_map = affine(params, scale_map(), split.changed.len());
    let layer = if activation == Activation::Relu {
        let layers = indices.into_iter().map(|index| {
            let place = hyper.under(index.to_string());
            if index == last { Ok(numbers.layer(&place)?.linear) } else { place.linear() }
        });
        let net = Mlp { layers: layers.collect::<Result<_, String>>()? };
        let weights = &params.reader.golden.weights;
        let net = WithContext::new(net, context, weights.device());
        let net = WithContext { context: cast(net.context, weights.dtype()), ..net };
        Layer::AffineMlp(Coupling::from_transform(net, of_map, split.mask))
    } else {
        let mut blocks = Vec::new();
        for index in indices {
            let place = hyper.under(index.to_string());
            let (linear, of_context) = match index {
                0 => first_layer(&place, split.kept.len())?,
                _ if index == last => (numbers.layer(&place)?, None),
                _ => (layer(&place)?, None),
            };
            let block = match index == last {
                true => Block::linear(linear),
                false => Block::feed_forward(linear),
            };
            blocks.push(block.with_context(of_context));
        }
        let net = net(params, blocks, activation, context);
        Layer::AffineCoupling(Coupling::from_transform(net, of_map, split.mask))
    };
    split.around(params, vec![layer])
}

/// A perceptron with ReLU, its hidden units sorted by what they see.
fn made(params: &Params<'_>, context_width: usize, kinds: usize) -> Result<Made, String> {
    let reader = params.reader;
    let golden = reader.golden;
    let order = params.sizes("order")?;
    let net = params.under("hyper");
    let indices = net.indices();
    let last = indices.len() - 1;
    // The steps that must be over before a unit is known, and the place of each unit in that order.
    let mut known: Vec<usize> = order.iter().map(|step| step + 1).collect();
    let mut places: Vec<usize> = (0..order.len()).collect();
    let mut context = None;
    let (mut layers, mut masks, mut degrees) = (Vec::new(), Vec::new(), Vec::new());
    for (position, index) in indices.into_iter().enumerate() {
        let part = net.under(index.to_string());
        let (weight, mask) = (part.traced("weight")?, part.array("mask")?);
        let inputs = mask.shape()[1];
        // The first layer sees the context behind the features, all of it.
        known.resize(inputs, 0);
        let rows: Vec<usize> = if position == last {
            // Feature by feature there, kind by kind here.
            (0..kinds * order.len()).map(|at| at % order.len() * kinds + at / order.len()).collect()
        } else {
            let degree = |unit: usize| {
                let seen = (0..inputs).filter(|&input| mask.values()[unit * inputs + input] > 0.0);
                seen.map(|input| known[input]).max().unwrap_or(0)
            };
            let degree: Vec<usize> = (0..mask.shape()[0]).map(degree).collect();
            let mut rows: Vec<usize> = (0..degree.len()).collect();
            rows.sort_by_key(|&unit| degree[unit]);
            known = degree;
            degrees.push(rows.iter().map(|&unit| known[unit] as f64).collect::<Vec<_>>());
            rows
        };
        if inputs > places.len() {
            let columns = weight.rows(rows.iter().copied()).transposed();
            let weight = columns.rows(places.len()..inputs);
            let place = Context::new(context_width, golden.weights.device());
            context = Some(MadeContext {
                weight: reader.param(weight),
                context: cast(place, golden.weights.dtype()),
            });
        }
        let arranged = |array: &Traced| {
            let array = array.rows(rows.iter().copied()).transposed();
            array.rows(places.iter().copied())
        };
        let bias = part.traced("bias")?.rows(rows.iter().copied());
        layers.push(reader.linear(arranged(&weight).transposed(), Some(bias)));
        let mask = arranged(&Traced::constant(mask.shape().to_vec(), mask.values().to_vec()));
        let mask = Array::new(mask.shape().to_vec(), mask.values());
        masks.push(frozen(golden.tensor_of::<2>(&mask)));
        places = rows;
    }
    let numbers = |values: Vec<f64>| -> Param<_> {
        frozen(golden.tensor_of::<1>(&Array::new(vec![values.len()], values)))
    };
    Ok(Made {
        layers,
        masks,
        order: numbers(order.iter().map(|&step| step as f64).collect()),
        degrees: degrees.into_iter().map(numbers).collect(),
        context,
    })
}
