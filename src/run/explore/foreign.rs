//! Models that other libraries trained.

use std::path::Path;
use std::str::FromStr;

use burn::tensor::Device;

use super::{Explore, Opened, open};
use crate::error::{FlowError, Result};
use crate::preprocess::Quantization;
use crate::weights::{Weights, chrischute, normflows, rosinality, y0ast};

/// A library and its model of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// Glow of rosinality/glow-pytorch
    Rosinality,
    /// Glow of y0ast/Glow-PyTorch
    Y0ast,
    /// MultiscaleFlow of GlowBlocks of normflows, with its defaults
    Normflows,
    /// RealNVP of chrischute/real-nvp
    Chrischute,
}

impl FromStr for Library {
    type Err = FlowError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "rosinality" => Ok(Self::Rosinality),
            "y0ast" => Ok(Self::Y0ast),
            "normflows" => Ok(Self::Normflows),
            "chrischute" => Ok(Self::Chrischute),
            _ => {
                let needed = "rosinality, y0ast, normflows or chrischute";
                Err(FlowError::invalid("Explorer::from", name, needed, "pass one of the four"))
            }
        }
    }
}

impl Library {
    /// How many bits the pixels of the model's images have.
    pub(super) fn quantization(self, bits: Option<u32>) -> Result<Quantization> {
        Quantization::new(bits.unwrap_or(match self {
            Self::Rosinality => rosinality::BITS,
            Self::Y0ast => y0ast::BITS,
            Self::Normflows => normflows::BITS,
            Self::Chrischute => chrischute::BITS,
        }))
    }

    /// Reads the model, for pixels in [0, 1).
    pub(super) fn load(
        self,
        size: Option<&str>,
        file: &Path,
        device: &Device,
        opened: Opened,
    ) -> Result<Box<dyn Explore>> {
        let weights = Weights::read(file, device)?;
        let size = size.map(parse_size).transpose()?;
        let or_side = |side| size.unwrap_or([side; 2]);
        match self {
            Self::Rosinality => {
                let model = rosinality::model(&weights, or_side(rosinality::IMAGE_SIDE))?;
                open::<4, _>(rosinality::for_pixels(model), opened)
            }
            Self::Y0ast => {
                let model = y0ast::model(&weights, &y0ast::Mixing::Conv1x1)?;
                open::<4, _>(y0ast::for_pixels(model), opened)
            }
            Self::Normflows if normflows::is_class_conditional(&weights) => {
                open::<4, _>(normflows::class_glow(&weights, size)?, opened)
            }
            Self::Normflows => open::<4, _>(normflows::glow(&weights, size)?, opened),
            Self::Chrischute => {
                let model = chrischute::model(&weights, or_side(chrischute::IMAGE_SIDE))?;
                open::<4, _>(model, opened)
            }
        }
    }
}

fn parse_size(text: &str) -> Result<[usize; 2]> {
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    match (height.parse(), width.parse()) {
        (Ok(height), Ok(width)) if height > 0 && width > 0 => Ok([height, width]),
        _ => Err(FlowError::invalid(
            "Explorer::image_size",
            text,
            "a side, or HEIGHTxWIDTH",
            "64 or 48x64",
        )),
    }
}
