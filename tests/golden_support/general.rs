//! Splines, autoregressive layers, rotations and mixtures of nflows, zuko, normflows and distrax.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{DType, Tensor};
use burn_flows::FlowStack;
use burn_flows::autoregressive::{Autoregressive, Made, MadeContext};
use burn_flows::context::Context;
use burn_flows::coupling::{
    Elementwise, RationalQuadratic, RationalQuadraticConfig, SplineForm, SplineTails, Transform,
};
use burn_flows::linear::{Householder, Rotation};
use burn_flows::prior::{GaussianMixture, StandardNormal};
use burn_flows::weights::normflows::{self, MaskedScale};
use burn_flows::weights::{Array, Weights};

use super::cases::{in_order, layer, stack, text};
use super::{Computed, Golden, INVERSE, cast, values};

/// The case for a class, if it is one of these.
pub fn case(golden: &Golden) -> Option<Result<Computed, String>> {
    Some(match golden.meta("class") {
        "transforms.PiecewiseRationalQuadraticCDF" => nflows_splines(golden),
        "transforms.MonotonicRQSTransform" => zuko_splines(golden),
        "RationalQuadraticSpline" => distrax_splines(golden),
        "transforms.RotationTransform" => rotation(golden),
        "flows.NSF" => zuko_nsf(golden),
        class if class.starts_with("flows.Flow(CompositeTransform(layers)") => nflows(golden),
        "NormalizingFlow" => mixture(golden),
        _ => return None,
    })
}

/// One spline a column, from its numbers, one row a kind.
fn splines(
    golden: &Golden,
    config: RationalQuadraticConfig,
    numbers: Array,
) -> Result<Computed, String> {
    let transform = config.init().map_err(text)?;
    let (kinds, columns) = (numbers.shape()[0], numbers.shape()[1]);
    let params: Tensor<2> = golden.tensor_of(&numbers);
    let x: Tensor<2> = golden.tensor("x")?;
    let batch = x.dims()[0];
    let rows = params.clone().reshape([1, kinds * columns]).expand([batch, kinds * columns]);
    let (_, log_slope) = transform.forward(x.clone(), rows.clone());
    let flow = Elementwise {
        params: Param::from_tensor(params.clone().reshape([kinds * columns])),
        transform: config.init().map_err(text)?,
    };
    let mut computed = layer::<2>(golden, Ok(flow))?;
    let log_slope = log_slope.ok_or("a spline has a slope")?;
    if golden.weights.dtype() == DType::F32 {
        // The rounding of `z` alone moves `x` by that over the slope: where the spline is flat, `z` is
        // what the way back has to meet.
        let weights = log_slope.clone().clamp_max(0.0).exp();
        let back = (transform.inverse(golden.tensor("z")?, rows) - x.clone()) * weights;
        computed.compare(INVERSE, values(back + x.clone()), values(x));
    }
    computed.set("log_det_elementwise", log_slope);
    let knots = transform.knots(params.reshape([1, kinds, columns]));
    for (name, knots) in [("knots_x", knots.x), ("knots_y", knots.y), ("knots_slope", knots.slope)]
    {
        let [_, count, columns] = knots.dims();
        computed.set(name, knots.reshape([count, columns]).transpose());
    }
    Ok(computed)
}

/// The numbers of an nflows spline: its slopes lack the constant that makes 0 the slope 1.
fn nflows_numbers(params: &Weights, min_slope: f64) -> Result<Array, String> {
    let part = |name: &str| params.array(name).map(|array| array.transposed()).map_err(text);
    let offset = (1.0 - min_slope).exp_m1().ln();
    let slopes = part("unnormalized_derivatives")?.map(|slope| slope - offset);
    Ok(part("unnormalized_widths")?.stack(&part("unnormalized_heights")?).stack(&slopes))
}

fn nflows_splines(golden: &Golden) -> Result<Computed, String> {
    let min_slope = golden.number("min_derivative")?;
    let config = RationalQuadraticConfig::new(
        golden.number("num_bins")? as usize,
        golden.number("tail_bound")?,
    );
    let config = config.with_form(SplineForm::Floored {
        min_width: golden.number("min_bin_width")?,
        min_height: golden.number("min_bin_height")?,
        min_slope,
    });
    let config = match golden.hyper("tails")?.as_str() {
        Some("linear") => config,
        // A domain of its own and nothing outside of it.
        None => config.with_interval(0.0, 1.0).with_tails(SplineTails::Linear),
        Some(other) => return Err(format!("unknown tails {other:?}")),
    };
    splines(golden, config, nflows_numbers(&golden.params(), min_slope)?)
}

fn zuko_splines(golden: &Golden) -> Result<Computed, String> {
    let params = golden.params();
    let part = |name: &str| params.array(name).map(|array| array.transposed()).map_err(text);
    let config =
        RationalQuadraticConfig::new(golden.number("bins")? as usize, golden.number("bound")?)
            .with_form(SplineForm::Bent { slope: golden.number("slope")? });
    let numbers = part("widths")?.stack(&part("heights")?).stack(&part("derivatives")?);
    splines(golden, config, numbers)
}

fn distrax_splines(golden: &Golden) -> Result<Computed, String> {
    let modes = golden.hyper("boundary_slopes")?;
    let modes = modes.as_array().ok_or("boundary_slopes is not a list")?;
    if modes.iter().any(|mode| mode != "unconstrained") {
        return Err("only splines with unconstrained ends are built".into());
    }
    let (lower, upper) = (golden.number("range_min")?, golden.number("range_max")?);
    // In units of x there, of the interval here.
    let least = golden.number("min_bin_size")? / (upper - lower);
    let config = RationalQuadraticConfig::new(golden.number("num_bins")? as usize, 1.0)
        .with_interval(lower, upper)
        .with_tails(SplineTails::Linear)
        .with_form(SplineForm::Floored {
            min_width: least,
            min_height: least,
            min_slope: golden.number("min_knot_slope")?,
        });
    let numbers = golden.params().array("params").map_err(text)?.transposed();
    splines(golden, config, numbers)
}

fn rotation(golden: &Golden) -> Result<Computed, String> {
    let flow = Rotation::from_generator(golden.tensor("param.A")?);
    let matrix = flow.matrix();
    let mut computed = layer::<2>(golden, Ok(flow))?;
    computed.set("matrix", matrix);
    Ok(computed)
}

fn nflows(golden: &Golden) -> Result<Computed, String> {
    let layers = golden.hyper("layers")?;
    let layers = layers.as_array().ok_or("layers is not a list")?;
    let params = golden.params().under("_transform._transforms");
    let mut flows = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        match layer["class"].as_str() {
            Some("HouseholderSequence") => {
                let vectors = params.array(&format!("{index}.q_vectors")).map_err(text)?;
                flows.push(Householder::from_vectors(golden.tensor_of(&vectors)));
            }
            other => return Err(format!("unknown layer {other:?}")),
        }
    }
    let features = golden.number("features")? as usize;
    stack(golden, FlowStack::single(flows, StandardNormal::new(), &[features]), in_order::<2>)
}

fn mixture(golden: &Golden) -> Result<Computed, String> {
    let base = golden.hyper("base")?;
    if base["class"] != "GaussianMixture" {
        return Err(format!("unknown base {base}"));
    }
    let params = golden.params();
    let flows = params.under("flows");
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
    let part = |name: &str| params.array(&format!("q0.{name}")).map_err(text);
    let shape = part("loc")?.shape().to_vec();
    let (components, features) = (shape[1], shape[2]);
    let rows = |array: Array| Array::new(vec![components, features], array.values().to_vec());
    let prior = GaussianMixture {
        logits: Param::from_tensor(golden.tensor_of(&part("weight_scores")?.flat())),
        mean: Param::from_tensor(golden.tensor_of(&rows(part("loc")?))),
        log_std: Param::from_tensor(golden.tensor_of(&rows(part("log_scale")?))),
    };
    stack(golden, FlowStack::single(steps, prior, &[features]), in_order::<2>)
}

/// Autoregressive splines of zuko, with the masks that the file holds.
fn zuko_nsf(golden: &Golden) -> Result<Computed, String> {
    let config = RationalQuadraticConfig::new(golden.number("bins")? as usize, 5.0)
        .with_form(SplineForm::Bent { slope: 1e-3 });
    let features = golden.number("features")? as usize;
    let transforms = golden.params().under("transform.transforms");
    let layers = transforms
        .indices()
        .into_iter()
        .map(|k| {
            let transform = config.init().map_err(text)?;
            let made = zuko_made(golden, &transforms.under(k.to_string()), &transform)?;
            Autoregressive::new(made, transform).map_err(text)
        })
        .collect::<Result<Vec<_>, String>>()?;
    stack(golden, FlowStack::single(layers, StandardNormal::new(), &[features]), in_order::<2>)
}

fn zuko_made(
    golden: &Golden,
    params: &Weights,
    transform: &RationalQuadratic,
) -> Result<Made, String> {
    let array = |name: &str| params.array(name).map_err(text);
    let order: Vec<usize> = array("order")?.values().iter().map(|&step| step as usize).collect();
    let net = params.under("hyper");
    let indices = net.indices();
    let (kinds, last) = (transform.params_per_channel(), indices.len() - 1);
    // The steps that must be over before a unit is known, and the place of each unit in that order.
    let mut known: Vec<usize> = order.iter().map(|step| step + 1).collect();
    let mut places: Vec<usize> = (0..order.len()).collect();
    let mut context = None;
    let (mut layers, mut masks, mut degrees) = (Vec::new(), Vec::new(), Vec::new());
    for (position, index) in indices.into_iter().enumerate() {
        let part = |name: &str| net.array(&format!("{index}.{name}")).map_err(text);
        let (weight, bias, mask) = (part("weight")?, part("bias")?, part("mask")?);
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
            context = Some(MadeContext {
                weight: Param::from_tensor(golden.tensor_of(&weight)),
                context: cast(
                    Context::new(inputs - places.len(), golden.weights.device()),
                    golden.weights.dtype(),
                ),
            });
        }
        let arranged = |array: &Array| {
            let array = array.rows(rows.iter().copied()).transposed();
            array.rows(places.iter().copied())
        };
        layers.push(Linear {
            weight: Param::from_tensor(golden.tensor_of(&arranged(&weight))),
            bias: Some(Param::from_tensor(golden.tensor_of(&bias.rows(rows.iter().copied())))),
        });
        masks.push(golden.tensor_of(&arranged(&mask)));
        places = rows;
    }
    let frozen = |values: Vec<f64>| {
        let array = Array::new(vec![values.len()], values);
        Param::from_tensor(golden.tensor_of::<1>(&array)).set_require_grad(false)
    };
    Ok(Made {
        layers,
        masks: masks
            .into_iter()
            .map(|mask: Tensor<2>| Param::from_tensor(mask).set_require_grad(false))
            .collect(),
        order: frozen(order.iter().map(|&step| step as f64).collect()),
        degrees: degrees.into_iter().map(frozen).collect(),
        context,
    })
}
