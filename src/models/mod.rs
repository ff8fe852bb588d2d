//! Ready-made models: configurations and paper presets, no tensor arithmetic.

mod glow;
mod nice;
mod real_nvp;
mod real_nvp_vector;

pub use glow::{
    Glow, GlowConfig, GlowCoupling, GlowCouplingKind, GlowLevel, GlowMixing, GlowMixingKind,
    GlowPrior, GlowSplitPrior, GlowStep,
};
pub use nice::{NICE_INIT_RANGE, Nice, NiceConfig, NiceFlow, NicePrior, NicePriorKind};
pub use real_nvp::{RealNvp, RealNvpConfig, RealNvpLevel, RealNvpStep};
pub use real_nvp_vector::{RealNvpVector, RealNvpVectorConfig, RealNvpVectorStep, VectorMaskKind};
