//! The image models that the examples train, by their configurations.

use burn_flows::Result;
use burn_flows::coupling::ScaleMap;
use burn_flows::models::{GlowConfig, GlowCouplingKind, NiceConfig, RealNvpConfig};
use burn_flows::preprocess::LogitForm;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::arguments::invalid;

/// Options that choose a model.
#[derive(Args, Debug, Clone)]
pub struct ModelArguments {
    /// The model: glow, realnvp or nice
    #[arg(long = "model", default_value = "glow")]
    pub name: String,
    /// Levels of glow, scales of realnvp [default: 2]
    #[arg(long)]
    pub levels: Option<usize>,
    /// Steps a level of glow, blocks of realnvp's nets [default: 8, 1]
    #[arg(long)]
    pub steps_per_level: Option<usize>,
    /// Hidden width of the couplings' nets [default: glow 64, realnvp 16, nice 1000]
    #[arg(long)]
    pub hidden: Option<usize>,
}

/// The end of the range that the logit spreads out: small, because most pixels of a digit are black.
const LOGIT_ALPHA: f64 = 1e-6;

/// What suits a model in about 15 minutes on two cores.
pub struct Defaults {
    pub steps: usize,
    pub batch: usize,
    pub learning_rate: f64,
}

/// A model by its configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    Glow(GlowConfig),
    RealNvp(RealNvpConfig),
    Nice(NiceConfig),
}

impl Model {
    /// The model asked for, for images of a shape.
    pub fn choose(arguments: &ModelArguments, image_shape: [usize; 3]) -> Result<Self> {
        let levels = arguments.levels.unwrap_or(2);
        match arguments.name.as_str() {
            "glow" => {
                let steps = arguments.steps_per_level.unwrap_or(8);
                let hidden = arguments.hidden.unwrap_or(64);
                let coupling = GlowCouplingKind::Affine(ScaleMap::default());
                let config = GlowConfig::new(image_shape, levels, steps, hidden)
                    .with_coupling(coupling)
                    .with_logit(LOGIT_ALPHA);
                Ok(Self::Glow(config))
            }
            "realnvp" => {
                let blocks = arguments.steps_per_level.unwrap_or(1);
                let hidden = arguments.hidden.unwrap_or(16);
                let config = RealNvpConfig::new(image_shape, levels, hidden, blocks)
                    .with_logit(Some(LOGIT_ALPHA), LogitForm::Code);
                Ok(Self::RealNvp(config))
            }
            "nice" => {
                let hidden = vec![arguments.hidden.unwrap_or(1000); 5];
                Ok(Self::Nice(NiceConfig::new(image_shape.iter().product(), hidden)))
            }
            other => {
                Err(invalid("--model", other, "glow, realnvp or nice", "pass one of the three"))
            }
        }
    }

    /// How it is trained on MNIST where the options do not say.
    pub fn defaults(&self) -> Defaults {
        match self {
            Self::Glow(_) => Defaults { steps: 9_400, batch: 32, learning_rate: 2e-3 },
            Self::RealNvp(_) => Defaults { steps: 500, batch: 32, learning_rate: 1e-3 },
            Self::Nice(_) => Defaults { steps: 1_000, batch: 100, learning_rate: 1e-3 },
        }
    }
}
