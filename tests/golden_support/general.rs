//! Flows of nflows, zuko, normflows and distrax, each built from the layers that its file names.

mod maps;
mod model;
mod nets;
mod nflows;
mod normflows;
mod spec;
mod splines;
mod zuko;

use burn_flows::linear::Rotation;

use super::cases::layer;
use super::{Computed, Golden};

/// The case for a class, if it is one of these.
pub fn case(golden: &Golden) -> Option<Result<Computed, String>> {
    Some(match golden.meta("class") {
        "transforms.PiecewiseRationalQuadraticCDF" => splines::nflows(golden),
        "transforms.MonotonicRQSTransform" => splines::zuko(golden),
        "RationalQuadraticSpline" => splines::distrax(golden),
        "transforms.RotationTransform" => rotation(golden),
        "transforms, one per column" => maps::by_column(golden),
        "mixtures.GMM" => maps::mixture(golden),
        "flows.MAF" | "flows.NSF" | "flows.NCSF" | "flows.NICE" | "flows.RealNVP" => {
            zuko::flow(golden)
        }
        class if class.starts_with("flows.Flow(CompositeTransform(layers)") => nflows::flow(golden),
        "NormalizingFlow" | "ConditionalNormalizingFlow" => normflows::flow(golden),
        _ => return None,
    })
}

fn rotation(golden: &Golden) -> Result<Computed, String> {
    let flow = Rotation::from_generator(golden.tensor("param.A")?);
    let matrix = flow.matrix();
    let mut computed = layer::<2>(golden, Ok(flow))?;
    computed.set("matrix", matrix);
    Ok(computed)
}
