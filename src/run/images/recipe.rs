//! What suits a model of images where nothing else is said.

use std::fmt;
use std::str::FromStr;

use super::ImageRun;
use crate::coupling::ScaleMap;
use crate::data::Preparation;
use crate::error::{FlowError, Result};
use crate::models::{GlowConfig, GlowCouplingKind, ImageModelConfig, NiceConfig, RealNvpConfig};
use crate::preprocess::LogitForm;

/// A ready-made model of images: `glow`, `realnvp` or `nice`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ImageModelName {
    /// Glow.
    #[default]
    Glow,
    /// RealNVP.
    RealNvp,
    /// NICE.
    Nice,
}

impl fmt::Display for ImageModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Glow => "glow",
            Self::RealNvp => "realnvp",
            Self::Nice => "nice",
        })
    }
}

impl FromStr for ImageModelName {
    type Err = FlowError;

    fn from_str(name: &str) -> Result<Self> {
        let of_name = |model: &Self| model.to_string() == name;
        let model = [Self::Glow, Self::RealNvp, Self::Nice].into_iter().find(of_name);
        model.ok_or_else(|| {
            let needed = "glow, realnvp or nice";
            FlowError::invalid("ImageRun::model", name, needed, "pass one of the three")
        })
    }
}

/// What images show: what suits a model depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Subject {
    /// Grey, mostly black: MNIST and its like.
    #[default]
    Digits,
    /// In colour: CelebA, or any other photographs.
    Photographs,
}

/// Steps over which the learning rate rises to its peak.
const WARM_UP: usize = 200;

impl Subject {
    /// Bits a pixel; for faces as in Glow's paper.
    pub(super) fn bits(self) -> u32 {
        match self {
            Self::Digits => 8,
            Self::Photographs => 5,
        }
    }

    /// Temperatures of the samples; for photographs those of Glow's paper, figure 8.
    pub(super) fn temperatures(self) -> Vec<f64> {
        match self {
            Self::Digits => vec![0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
            Self::Photographs => vec![0.0, 0.25, 0.6, 0.7, 0.8, 0.9, 1.0],
        }
    }

    /// Steps of warm-up. Wide nets of photographs need all of it, however short the run: the first steps
    /// of Adam move every weight by the learning rate, and all in the same direction.
    pub(super) fn warm_up(self, num_steps: usize) -> usize {
        match self {
            Self::Digits => WARM_UP.min(num_steps / 20),
            Self::Photographs => WARM_UP,
        }
    }

    /// Whether an image and its mirror image are equally likely.
    pub(super) fn flips(self) -> bool {
        self == Self::Photographs
    }

    /// The end of the range that the logit spreads out: small for digits, because most pixels of one are
    /// black; for photographs as in the paper of RealNVP.
    fn logit_alpha(self) -> f64 {
        match self {
            Self::Digits => 1e-6,
            Self::Photographs => 0.05,
        }
    }
}

/// What suits a model, on two cores: about 15 minutes for digits, an hour for faces of 32 x 32 pixels with
/// Glow.
pub(super) struct Recipe {
    levels: usize,
    steps_per_level: usize,
    hidden: usize,
    pub steps: usize,
    pub batch: usize,
    pub learning_rate: f64,
}

/// The recipe for pictures with `side` pixels a side.
///
/// Glow's levels for photographs are those of the paper (table 4): the last one is of 4 x 4 pixels.
pub(super) fn of(model: ImageModelName, subject: Subject, side: usize) -> Recipe {
    use ImageModelName::{Glow, Nice, RealNvp};
    use Subject::{Digits, Photographs};
    let levels_to_4x4 = (side / 4).max(2).ilog2() as usize;
    let (sizes, training) = match (model, subject) {
        (Glow, Digits) => ((2, 8, 64), (9_400, 32, 2e-3)),
        (Glow, Photographs) => ((levels_to_4x4, 12, 128), (6_000, 32, 1e-3)),
        (RealNvp, Digits) => ((2, 1, 16), (5_000, 32, 3e-3)),
        (RealNvp, Photographs) => ((2, 2, 32), (500, 32, 1e-3)),
        // Its nets, five layers deep, have neither levels nor blocks.
        (Nice, Digits) => ((1, 1, 1000), (4_000, 100, 4e-3)),
        (Nice, Photographs) => ((1, 1, 1000), (1_000, 100, 1e-3)),
    };
    let (levels, steps_per_level, hidden) = sizes;
    let (steps, batch, learning_rate) = training;
    Recipe { levels, steps_per_level, hidden, steps, batch, learning_rate }
}

/// The configuration of the model that a run asks for, for images that are prepared so.
pub(super) fn configuration(
    run: &ImageRun,
    image_shape: [usize; 3],
    preparation: Preparation,
) -> ImageModelConfig {
    let recipe = of(run.model, run.subject, image_shape[1]);
    let levels = run.levels.unwrap_or(recipe.levels);
    let steps = run.steps_per_level.unwrap_or(recipe.steps_per_level);
    let hidden = run.hidden.unwrap_or(recipe.hidden);
    let alpha = run.subject.logit_alpha();
    match run.model {
        ImageModelName::Glow => {
            let coupling = GlowCouplingKind::Affine(ScaleMap::default());
            let config =
                GlowConfig::new(image_shape, levels, steps, hidden).with_coupling(coupling);
            let config = config.with_preparation(preparation);
            ImageModelConfig::Glow(match run.subject {
                Subject::Digits => config.with_logit(alpha),
                Subject::Photographs => config,
            })
        }
        ImageModelName::RealNvp => ImageModelConfig::RealNvp(
            RealNvpConfig::new(image_shape, levels, hidden, steps)
                .with_logit(Some(alpha), LogitForm::Code)
                .with_preparation(preparation),
        ),
        ImageModelName::Nice => ImageModelConfig::Nice(
            NiceConfig::new(image_shape.iter().product(), vec![hidden; 5])
                .with_preparation(preparation),
        ),
    }
}
