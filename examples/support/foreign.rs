//! Models that other libraries trained.

use std::path::Path;

use burn::tensor::Device;
use burn_flows::Result;
use burn_flows::preprocess::Quantization;
use burn_flows::weights::{Weights, chrischute, normflows, rosinality, y0ast};
use clap::{Args, ValueEnum};

use super::arguments::invalid;
use super::saved::Visitor;

/// Options for a model that was not trained here.
#[derive(Args, Debug, Clone)]
pub struct ForeignArguments {
    /// The library whose state dict --model is, a file then: .pt, .pth or .safetensors
    #[arg(long, value_enum)]
    pub from: Option<Library>,
    /// Height and width of the images of such a model, where its file does not hold them: 64 or 48x64
    /// [default: the library's]
    #[arg(long, requires = "from", value_name = "SIZE")]
    image_size: Option<String>,
    /// Bits of the pixels that such a model was trained on [default: the library's]
    #[arg(long, requires = "from")]
    bits: Option<u32>,
}

/// A library and its model of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
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

impl ForeignArguments {
    /// How many bits the pixels of the model's images have.
    pub fn quantization(&self, library: Library) -> Result<Quantization> {
        Quantization::new(self.bits.unwrap_or(match library {
            Library::Rosinality => rosinality::BITS,
            Library::Y0ast => y0ast::BITS,
            Library::Normflows => normflows::BITS,
            Library::Chrischute => chrischute::BITS,
        }))
    }

    /// Reads the model, for pixels in [0, 1), and passes it on.
    pub fn visit<V: Visitor>(
        &self,
        library: Library,
        file: &Path,
        device: &Device,
        visitor: V,
    ) -> Result<V::Answer> {
        let weights = Weights::read(file, device)?;
        let size = self.image_size.as_deref().map(parse_size).transpose()?;
        let or_side = |side| size.unwrap_or([side; 2]);
        match library {
            Library::Rosinality => {
                let model = rosinality::model(&weights, or_side(rosinality::IMAGE_SIDE))?;
                visitor.visit(&rosinality::for_pixels(model))
            }
            Library::Y0ast => {
                let model = y0ast::model(&weights, &y0ast::Mixing::Conv1x1)?;
                visitor.visit(&y0ast::for_pixels(model))
            }
            Library::Normflows if normflows::is_class_conditional(&weights) => {
                visitor.visit(&normflows::class_glow(&weights, size)?)
            }
            Library::Normflows => visitor.visit(&normflows::glow(&weights, size)?),
            Library::Chrischute => {
                visitor.visit(&chrischute::model(&weights, or_side(chrischute::IMAGE_SIDE))?)
            }
        }
    }
}

fn parse_size(text: &str) -> Result<[usize; 2]> {
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    match (height.parse(), width.parse()) {
        (Ok(height), Ok(width)) if height > 0 && width > 0 => Ok([height, width]),
        _ => Err(invalid("--image-size", text, "a side, or HEIGHTxWIDTH", "64 or 48x64")),
    }
}
