//! What is done to a picture before a model sees it.

#[cfg(feature = "images")]
use std::path::Path;

use serde::{Deserialize, Serialize};

#[cfg(feature = "images")]
use super::{Images, read_picture};
use crate::Result;
use crate::preprocess::Quantization;

/// What is done to the pictures that a model is trained on, and so to every picture it is asked
/// about.
///
/// It is a part of the configurations of models of images
/// ([`GlowConfig::with_preparation`](crate::models::GlowConfig::with_preparation)), and so of their
/// records: what is done to the pixels after that, a logit say, is a layer of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Preparation {
    /// Channels (1 for grey, 3 for colour), height and width of an image.
    pub image_shape: [usize; 3],
    /// The part of a picture that is kept before it is resized.
    pub crop: Crop,
    /// Bits of a pixel.
    pub num_bits: u32,
}

impl Preparation {
    /// How pixels become what the model takes.
    ///
    /// # Errors
    /// If [`num_bits`](Preparation::num_bits) is not within 1 to 8.
    pub fn quantization(&self) -> Result<Quantization> {
        Quantization::new(self.num_bits)
    }

    /// Reads one picture as [`read_picture`] does it.
    ///
    /// # Errors
    /// As [`read_picture`].
    ///
    /// ```no_run
    /// use burn_flows::models::{Glow, GlowConfig};
    ///
    /// # fn main() -> Result<(), burn_flows::FlowError> {
    /// let device = burn_flows::backend::device();
    /// let glow = Glow::load("faces.safetensors", &device)?;
    /// let config: GlowConfig = glow.configuration().expect("a record has it");
    /// let preparation = config.preparation.expect("of a model that was trained on pictures");
    /// let face = preparation.read("face.jpg")?; // cut and reduced as in training
    /// # let _ = face;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "images")]
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Images> {
        read_picture(path, self.image_shape, self.crop)
    }
}

/// The part of a picture that is kept before it is resized to a square.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Crop {
    /// All of it; a picture that is not square is distorted.
    Whole,
    /// The largest square in the centre.
    #[default]
    Square,
    /// The square of `side` pixels in the centre of a picture of `width` x `height` pixels, and the
    /// same proportion of a picture of another size.
    Proportion {
        /// The side of the square.
        side: u32,
        /// The width of the pictures that `side` is meant for.
        width: u32,
        /// Their height.
        height: u32,
    },
}

impl Crop {
    /// 148 of 178x218 pixels: the crop of the CelebA pictures that the papers use.
    pub const CELEBA: Self = Self::Proportion { side: 148, width: 178, height: 218 };

    /// The rectangle `[x, y, width, height]` kept of a picture of `width` x `height` pixels.
    ///
    /// The centre is rounded as torchvision's `CenterCrop` does it: half a pixel goes to the even
    /// neighbour.
    #[cfg(feature = "images")]
    pub(super) fn area(self, width: u32, height: u32) -> [u32; 4] {
        let side = match self {
            Self::Whole => return [0, 0, width, height],
            Self::Square => width.min(height),
            Self::Proportion { side, width: full_width, height: full_height } => {
                let scale = (f64::from(width) / f64::from(full_width))
                    .min(f64::from(height) / f64::from(full_height));
                let side = (f64::from(side) * scale).round() as u32;
                side.clamp(1, width.min(height))
            }
        };
        let offset = |length: u32| (f64::from(length - side) / 2.0).round_ties_even() as u32;
        [offset(width), offset(height), side, side]
    }
}

/// The channels of the images that pictures are converted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Channels {
    /// Three: red, green, blue. Grey pictures get three equal ones.
    #[default]
    Rgb,
    /// One: the luma of ITU-R BT.601, `0.299 R + 0.587 G + 0.114 B`, as Pillow's mode `L`.
    Grey,
}

impl Channels {
    /// The number of channels.
    pub fn count(self) -> usize {
        match self {
            Self::Rgb => 3,
            Self::Grey => 1,
        }
    }
}
