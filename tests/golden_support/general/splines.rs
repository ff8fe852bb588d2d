//! Rational-quadratic splines of nflows, zuko and distrax, one a column.

use burn::module::Param;
use burn::tensor::{DType, Tensor};
use burn_flows::coupling::{
    Elementwise, RationalQuadraticConfig, SplineForm, SplineTails, Transform,
};
use burn_flows::weights::{Array, Weights};
use serde_json::Value;

use super::super::cases::{layer, text};
use super::super::{Computed, Golden, INVERSE, values};
use super::spec;

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

pub fn nflows(golden: &Golden) -> Result<Computed, String> {
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

pub fn zuko(golden: &Golden) -> Result<Computed, String> {
    let params = golden.params();
    let part = |name: &str| params.array(name).map(|array| array.transposed()).map_err(text);
    let config =
        RationalQuadraticConfig::new(golden.number("bins")? as usize, golden.number("bound")?)
            .with_form(SplineForm::Bent { slope: golden.number("slope")? });
    let numbers = part("widths")?.stack(&part("heights")?).stack(&part("derivatives")?);
    splines(golden, config, numbers)
}

pub fn distrax(golden: &Golden) -> Result<Computed, String> {
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
    let params = golden.params().array("params").map_err(text)?;
    let width = params.shape()[1];
    let columns = params.values().chunks(width).map(<[f64]>::to_vec).collect();
    let columns = distrax_ends(golden, columns)?;
    let numbers = Array::new([columns.len(), width], columns.concat());
    splines(golden, config, numbers.transposed())
}

/// The numbers of distrax' splines for their ends: a slope of 1 is the number 0, a circle has the same
/// slope at both ends.
fn distrax_ends(golden: &Golden, numbers: Vec<Vec<f64>>) -> Result<Vec<Vec<f64>>, String> {
    let modes = spec::layers(golden.hyper("boundary_slopes")?)?;
    let column = |(mode, mut numbers): (&Value, Vec<f64>)| {
        let bins = (numbers.len() - 1) / 3;
        let (first, last) = (2 * bins, 3 * bins);
        match mode.as_str() {
            Some("unconstrained") => {}
            Some("identity") => (numbers[first], numbers[last]) = (0.0, 0.0),
            Some("lower_identity") => numbers[first] = 0.0,
            Some("upper_identity") => numbers[last] = 0.0,
            Some("circular") => numbers[last] = numbers[first],
            _ => return Err(format!("unknown boundary_slopes {mode}")),
        }
        Ok(numbers)
    };
    if modes.len() != numbers.len() {
        return Err("boundary_slopes has not one for each column".into());
    }
    modes.iter().zip(numbers).map(column).collect()
}
