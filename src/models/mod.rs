//! Ready-made models: configurations and paper presets, no tensor arithmetic.

mod glow;
mod nice;
mod real_nvp;
mod real_nvp_vector;
mod size;

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

pub use glow::{
    Glow, GlowConfig, GlowCoupling, GlowCouplingKind, GlowLevel, GlowMixing, GlowMixingKind,
    GlowPrior, GlowSplitPrior, GlowStep,
};
pub use nice::{NICE_INIT_RANGE, Nice, NiceConfig, NiceFlow, NicePrior, NicePriorKind};
pub use real_nvp::{RealNvp, RealNvpConfig, RealNvpLevel, RealNvpStep};
pub use real_nvp_vector::{RealNvpVector, RealNvpVectorConfig, RealNvpVectorStep, VectorMaskKind};
