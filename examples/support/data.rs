//! Images to train on and to test on.

use std::path::Path;

use burn_flows::Result;
use burn_flows::data::{Crop, Images, Mnist};

/// Images in two parts.
pub struct Parts {
    pub train: Images,
    pub test: Images,
    /// What was kept of each picture; of another picture the same is kept.
    pub crop: Crop,
    /// What the images are and what divides them, in a few words.
    pub about: String,
}

impl Parts {
    /// A data set in the layout of MNIST.
    pub fn of_idx_files(folder: &Path) -> Result<Self> {
        let Mnist { train, test } = Mnist::load(folder)?;
        let crop = Self::whole(&train);
        Ok(Self { train, test, crop, about: "four IDX files".into() })
    }

    /// The crop of images that come as they are: all of what has their proportions.
    pub fn whole(images: &Images) -> Crop {
        let [_, height, width] = images.image_shape();
        if height == width { Crop::Square } else { Crop::Whole }
    }
}
