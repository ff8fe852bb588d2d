//! The image models that the examples train, by their configurations.

use burn_flows::Result;
use burn_flows::coupling::ScaleMap;
use burn_flows::data::Preparation;
use burn_flows::models::{GlowConfig, GlowCouplingKind, NiceConfig, RealNvpConfig};
use burn_flows::preprocess::LogitForm;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::arguments::invalid;

/// Options that choose a model.
#[derive(Args, Debug, Clone)]
pub struct ModelArguments {
    /// The model: glow, realnvp or nice
    #[arg(id = "model", long, default_value = "glow")]
    pub name: String,
    /// Levels of glow, scales of realnvp [default: what suits the pictures]
    #[arg(long)]
    pub levels: Option<usize>,
    /// Steps a level of glow, blocks of realnvp's nets [default: what suits the pictures]
    #[arg(long)]
    pub steps_per_level: Option<usize>,
    /// Hidden width of the couplings' nets [default: what suits the pictures]
    #[arg(long)]
    pub hidden: Option<usize>,
}

/// What the images show: the defaults depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Grey, mostly black: MNIST and its like.
    Digits,
    /// In colour: CelebA, or any other photographs.
    Photographs,
}

/// The end of the range that the logit spreads out: small, because most pixels of a digit are black.
const DIGITS_ALPHA: f64 = 1e-6;

/// The same for photographs, as in the paper of RealNVP.
const PHOTOGRAPHS_ALPHA: f64 = 0.05;

/// What suits a model where the options do not say, on two cores: about 15 minutes for digits, an hour
/// for faces of 32 x 32 pixels with Glow.
pub struct Defaults {
    levels: usize,
    steps_per_level: usize,
    hidden: usize,
    pub steps: usize,
    pub batch: usize,
    pub learning_rate: f64,
}

impl ModelArguments {
    /// The defaults of the model asked for, for pictures with `side` pixels a side.
    ///
    /// Glow's levels for photographs are those of the paper (table 4): the last one is of 4 x 4
    /// pixels.
    pub fn defaults(&self, subject: Subject, side: usize) -> Result<Defaults> {
        use Subject::{Digits, Photographs};
        let levels_to_4x4 = (side / 4).max(2).ilog2() as usize;
        let (sizes, training) = match (self.name.as_str(), subject) {
            ("glow", Digits) => ((2, 8, 64), (9_400, 32, 2e-3)),
            ("glow", Photographs) => ((levels_to_4x4, 12, 128), (6_000, 32, 1e-3)),
            ("realnvp", Digits) => ((2, 1, 16), (5_000, 32, 3e-3)),
            ("realnvp", Photographs) => ((2, 2, 32), (500, 32, 1e-3)),
            // Its nets, five layers deep, have neither levels nor blocks.
            ("nice", Digits) => ((1, 1, 1000), (4_000, 100, 4e-3)),
            ("nice", Photographs) => ((1, 1, 1000), (1_000, 100, 1e-3)),
            (other, _) => {
                let needed = "glow, realnvp or nice";
                return Err(invalid("--model", other, needed, "pass one of the three"));
            }
        };
        let (levels, steps_per_level, hidden) = sizes;
        let (steps, batch, learning_rate) = training;
        Ok(Defaults { levels, steps_per_level, hidden, steps, batch, learning_rate })
    }
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
    /// The model asked for, for images that are prepared so.
    pub fn choose(
        arguments: &ModelArguments,
        defaults: &Defaults,
        subject: Subject,
        preparation: Preparation,
    ) -> Self {
        let image_shape = preparation.image_shape;
        let levels = arguments.levels.unwrap_or(defaults.levels);
        let steps = arguments.steps_per_level.unwrap_or(defaults.steps_per_level);
        let hidden = arguments.hidden.unwrap_or(defaults.hidden);
        let alpha = match subject {
            Subject::Digits => DIGITS_ALPHA,
            Subject::Photographs => PHOTOGRAPHS_ALPHA,
        };
        match arguments.name.as_str() {
            "glow" => {
                let coupling = GlowCouplingKind::Affine(ScaleMap::default());
                let config =
                    GlowConfig::new(image_shape, levels, steps, hidden).with_coupling(coupling);
                let config = config.with_preparation(preparation);
                Self::Glow(match subject {
                    Subject::Digits => config.with_logit(alpha),
                    Subject::Photographs => config,
                })
            }
            "realnvp" => Self::RealNvp(
                RealNvpConfig::new(image_shape, levels, hidden, steps)
                    .with_logit(Some(alpha), LogitForm::Code)
                    .with_preparation(preparation),
            ),
            _ => Self::Nice(
                NiceConfig::new(image_shape.iter().product(), vec![hidden; 5])
                    .with_preparation(preparation),
            ),
        }
    }

    /// How pictures became the images that the model is trained on, if that is known.
    pub fn preparation(&self) -> Option<Preparation> {
        match self {
            Self::Glow(glow) => glow.preparation,
            Self::RealNvp(real_nvp) => real_nvp.preparation,
            Self::Nice(nice) => nice.preparation,
        }
    }
}
