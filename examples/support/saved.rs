//! Models that a training example left in the folder of its run.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use burn_flows::data::Crop;
use burn_flows::models::{GlowConfig, RealNvpConfig};
use burn_flows::preprocess::Quantization;
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::record::{Configuration, Header, restore_with};
use burn_flows::{Flow, FlowError, FlowStack, Result};
use serde::Deserialize;

use super::model::Model;

/// A saved model of images.
pub struct SavedModel {
    model: Model,
    /// `[channels, height, width]`.
    pub image_shape: [usize; 3],
    num_bits: u32,
    record: PathBuf,
}

/// What of a run's `config.json` ([`Configuration`](super::run::Configuration)) its model depends on.
#[derive(Deserialize)]
struct SavedConfiguration {
    model: Model,
    image_shape: [usize; 3],
    bits: u32,
}

/// What is done to a model, whichever of the models it is.
pub trait Visitor {
    type Answer;

    fn visit<const D: usize, F, P, S>(self, model: &FlowStack<D, F, P, S>) -> Result<Self::Answer>
    where
        F: Flow<D>,
        P: Prior<D>,
        S: SplitPrior<D>,
        FlowStack<D, F, P, S>: Module;
}

impl SavedModel {
    /// The model of the run in a folder, or of a record that says how its pictures were prepared.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() { Self::of_record(path) } else { Self::of_run(path) }
    }

    fn of_run(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let advice = "give --model the folder that a training example wrote (its --out)";
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
                needed: "what mnist or celeba writes".into(),
                advice: "give --model the folder of such a run, of this version".into(),
            })?;
        Ok(Self { model, image_shape, num_bits: bits, record: folder.join("model.safetensors") })
    }

    fn of_record(path: &Path) -> Result<Self> {
        let header = Header::read(path)?;
        let model = match header.model() {
            Some(GlowConfig::NAME) => Model::Glow(header.configuration()?),
            Some(RealNvpConfig::NAME) => Model::RealNvp(header.configuration()?),
            // Of others it says what they are.
            _ => Model::Nice(header.configuration()?),
        };
        let Some(preparation) = model.preparation() else {
            return Err(FlowError::Record {
                path: path.into(),
                reason: "it does not say how pictures became its images".into(),
                advice:
                    "give --model the folder of its run, or save a model that was built from a \
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

    /// Whether the model starts with a logit.
    pub fn has_logit(&self) -> bool {
        match &self.model {
            Model::Glow(glow) => glow.logit_alpha.is_some(),
            Model::RealNvp(real_nvp) => real_nvp.logit_alpha.is_some(),
            Model::Nice(_) => false,
        }
    }

    /// Builds the model, loads its parameters and passes it on.
    pub fn visit<V: Visitor>(&self, device: &Device, visitor: V) -> Result<V::Answer> {
        if !self.record.exists() {
            return Err(FlowError::Io {
                action: "read",
                path: self.record.clone(),
                source: std::io::ErrorKind::NotFound.into(),
                advice: "a run writes its model at its first measurement; wait for it, or train anew",
            });
        }
        match &self.model {
            Model::Glow(glow) => self.visit_built(glow, device, visitor),
            Model::RealNvp(real_nvp) => self.visit_built(real_nvp, device, visitor),
            Model::Nice(nice) => self.visit_built(nice, device, visitor),
        }
    }

    fn visit_built<V: Visitor, const D: usize, F, P, S, C>(
        &self,
        configuration: &C,
        device: &Device,
        visitor: V,
    ) -> Result<V::Answer>
    where
        F: Flow<D>,
        P: Prior<D>,
        S: SplitPrior<D>,
        FlowStack<D, F, P, S>: Module,
        C: Configuration<Model = FlowStack<D, F, P, S>>,
    {
        let model = restore_with(configuration, &self.record, device)?;
        let [channels, height, width] = self.image_shape.map(|size| size as f64);
        if channels * height * width != model.num_dims() as f64 {
            return Err(FlowError::Invalid {
                what: "the shape of the images".into(),
                got: format!("{:?}", self.image_shape),
                needed: format!("{} values for this model", model.num_dims()),
                advice: "use the config.json that the run wrote".into(),
            });
        }
        visitor.visit(&model)
    }
}
