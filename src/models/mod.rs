//! Ready-made models: configurations and paper presets, no tensor arithmetic.

mod glow;

pub use glow::{
    Glow, GlowConfig, GlowCoupling, GlowCouplingKind, GlowLevel, GlowMixing, GlowMixingKind,
    GlowPrior, GlowSplitPrior, GlowStep,
};
