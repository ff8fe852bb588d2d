//! The ready-made models of images, by their configurations.

use serde::{Deserialize, Serialize};

use super::{GlowConfig, NiceConfig, RealNvpConfig};
use crate::data::Preparation;

/// One of the ready-made models of images, by its configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageModelConfig {
    /// Glow.
    Glow(GlowConfig),
    /// RealNVP.
    RealNvp(RealNvpConfig),
    /// NICE, for which an image is a vector.
    Nice(NiceConfig),
}

impl ImageModelConfig {
    /// How pictures became the images that the model is trained on, if that is known.
    pub fn preparation(&self) -> Option<Preparation> {
        match self {
            Self::Glow(glow) => glow.preparation,
            Self::RealNvp(real_nvp) => real_nvp.preparation,
            Self::Nice(nice) => nice.preparation,
        }
    }

    /// Whether the model starts with a logit.
    pub fn has_logit(&self) -> bool {
        match self {
            Self::Glow(glow) => glow.logit_alpha.is_some(),
            Self::RealNvp(real_nvp) => real_nvp.logit_alpha.is_some(),
            Self::Nice(_) => false,
        }
    }
}
