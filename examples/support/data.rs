//! Images to train on and to test on.

use std::path::Path;

use burn_flows::Result;
use burn_flows::data::{Images, Mnist};

/// Images in two parts.
pub struct Parts {
    pub train: Images,
    pub test: Images,
    /// What the images are and what divides them, in a few words.
    pub about: String,
}

impl Parts {
    /// A data set in the layout of MNIST.
    pub fn of_idx_files(folder: &Path) -> Result<Self> {
        let Mnist { train, test } = Mnist::load(folder)?;
        Ok(Self { train, test, about: "four IDX files".into() })
    }
}
