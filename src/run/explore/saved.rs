//! Models that a run left in its folder.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::Deserialize;

use super::{Explore, Opened, open};
use crate::Density;
use crate::data::Crop;
use crate::error::{FlowError, Result};
use crate::models::{GlowConfig, ImageModelConfig, RealNvpConfig};
use crate::preprocess::Quantization;
use crate::record::{Configuration, Header, restore_with};

/// A saved model of images.
pub(super) struct SavedModel {
    model: ImageModelConfig,
    /// `[channels, height, width]`.
    pub image_shape: [usize; 3],
    num_bits: u32,
    record: PathBuf,
}

/// What of a run's `config.json` its model depends on.
#[derive(Deserialize)]
struct SavedConfiguration {
    model: ImageModelConfig,
    image_shape: [usize; 3],
    bits: u32,
}

impl SavedModel {
    /// The model of the run in a folder, or of a record that says how its pictures were prepared.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() { Self::of_record(path) } else { Self::of_run(path) }
    }

    fn of_run(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let advice = "give Explorer::open the folder of a run";
        let text = fs::read_to_string(&path).map_err(|source| FlowError::Io {
            action: "read",
            path: path.clone(),
            source,
            advice,
        })?;
        let SavedConfiguration { model, image_shape, bits } =
            serde_json::from_str(&text).map_err(|error| FlowError::Format {
                path,
                got: format!("not the configuration of an image model ({error})"),
                needed: "what ImageRun writes".into(),
                advice: "give Explorer::open the folder of such a run, of this version".into(),
            })?;
        Ok(Self { model, image_shape, num_bits: bits, record: folder.join("model.safetensors") })
    }

    fn of_record(path: &Path) -> Result<Self> {
        let header = Header::read(path)?;
        let model = match header.model() {
            Some(GlowConfig::NAME) => ImageModelConfig::Glow(header.configuration()?),
            Some(RealNvpConfig::NAME) => ImageModelConfig::RealNvp(header.configuration()?),
            // Of others it says what they are.
            _ => ImageModelConfig::Nice(header.configuration()?),
        };
        let Some(preparation) = model.preparation() else {
            return Err(FlowError::Record {
                path: path.into(),
                reason: "it does not say how pictures became its images".into(),
                advice:
                    "give Explorer::open the folder of its run, or save a model that was built from a \
                         configuration with a preparation"
                        .into(),
            });
        };
        let (image_shape, num_bits) = (preparation.image_shape, preparation.num_bits);
        Ok(Self { model, image_shape, num_bits, record: path.into() })
    }

    /// How many bits the pixels of its images have.
    pub fn quantization(&self) -> Result<Quantization> {
        Quantization::new(self.num_bits)
    }

    /// What was kept of each picture in training, if that is known.
    pub fn crop(&self) -> Option<Crop> {
        Some(self.model.preparation()?.crop)
    }

    /// Builds the model and loads its parameters.
    pub fn load(&self, device: &Device, opened: Opened) -> Result<Box<dyn Explore>> {
        if !self.record.exists() {
            return Err(FlowError::Io {
                action: "read",
                path: self.record.clone(),
                source: std::io::ErrorKind::NotFound.into(),
                advice: "a run writes its model at its first measurement; wait for it, or train anew",
            });
        }
        match &self.model {
            ImageModelConfig::Glow(glow) => self.built::<4, _>(glow, device, opened),
            ImageModelConfig::RealNvp(real_nvp) => self.built::<4, _>(real_nvp, device, opened),
            ImageModelConfig::Nice(nice) => self.built::<2, _>(nice, device, opened),
        }
    }

    fn built<const D: usize, C>(
        &self,
        configuration: &C,
        device: &Device,
        opened: Opened,
    ) -> Result<Box<dyn Explore>>
    where
        C: Configuration,
        C::Model: Density<D> + 'static,
    {
        let model = restore_with(configuration, &self.record, device)?;
        let [channels, height, width] = self.image_shape.map(|size| size as f64);
        if channels * height * width != model.num_dims() as f64 {
            return Err(FlowError::invalid(
                "the shape of the images",
                format!("{:?}", self.image_shape),
                format!("{} values for this model", model.num_dims()),
                "use the config.json that the run wrote",
            ));
        }
        open(model, opened)
    }

    /// Whether the model starts with a logit.
    pub fn has_logit(&self) -> bool {
        self.model.has_logit()
    }
}
