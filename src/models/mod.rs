//! Ready-made models: configurations and paper presets, no tensor arithmetic.
//!
//! In the guide: [Which flow for which job](crate::guide::which_flow).

mod conditional_spline_flow;
mod glow;
mod image_model;
mod maf;
mod nice;
mod real_nvp;
mod real_nvp_vector;
mod size;
mod spline_flow;

/// Gives a ready-made model its `load`.
macro_rules! loads {
    ($model:ident, $configuration:ident) => {
        impl $model {
            /// The model of a record that [`save`](crate::FlowStack::save) or
            /// [`record::save`](crate::record::save) wrote: built as the record says, with the
            /// record's parameters.
            ///
            /// # Errors
            /// As [`record::restore`](crate::record::restore).
            pub fn load(
                path: impl AsRef<std::path::Path>,
                device: &burn::tensor::Device,
            ) -> crate::Result<Self> {
                crate::record::restore::<$configuration>(path, device)
            }
        }
    };
}
use loads;

pub use conditional_spline_flow::{ConditionalSplineFlow, ConditionalSplineFlowConfig};
pub use glow::{
    Glow, GlowConfig, GlowCoupling, GlowCouplingKind, GlowLevel, GlowMixing, GlowMixingKind,
    GlowPrior, GlowSplitPrior, GlowStep,
};
pub use image_model::ImageModelConfig;
pub use maf::{Maf, MafConfig, MafStep};
pub use nice::{NICE_INIT_RANGE, Nice, NiceConfig, NiceFlow, NicePrior, NicePriorKind};
pub use real_nvp::{RealNvp, RealNvpConfig, RealNvpLevel, RealNvpStep};
pub use real_nvp_vector::{RealNvpVector, RealNvpVectorConfig, RealNvpVectorStep, VectorMaskKind};
pub use spline_flow::{SplineFlow, SplineFlowConfig, SplineFlowKind, SplineLayer, SplineStep};

use crate::error::{FlowError, Result};

/// The order of the features in layer `index`: first to last, last to first, in turn.
fn in_turn(num_features: usize, index: usize) -> Vec<usize> {
    let order = 0..num_features;
    if index.is_multiple_of(2) { order.collect() } else { order.rev().collect() }
}

/// Refuses a model of vectors without features, without layers, or with a hidden layer of no units.
fn validate_steps(
    layer: &'static str,
    num_features: usize,
    steps: (&'static str, usize),
    hidden: &[usize],
) -> Result<()> {
    for (parameter, value) in [("num_features", num_features), steps] {
        if value == 0 {
            let advice = "set it to at least 1";
            return Err(FlowError::config(layer, parameter, 0, "at least 1", advice));
        }
    }
    if hidden.contains(&0) {
        let advice = "give every layer a width";
        let got = format!("{hidden:?}");
        return Err(FlowError::config(layer, "hidden", got, "at least 1 each", advice));
    }
    Ok(())
}
