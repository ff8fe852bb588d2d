//! Models that a training example left in the folder of its run.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use burn_flows::data::{random_for, streams};
use burn_flows::preprocess::Quantization;
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::{Flow, FlowError, FlowStack, Result, record};

use serde::Deserialize;

use super::model::Model;

/// A run with a saved model.
pub struct SavedModel {
    pub configuration: SavedConfiguration,
    path: PathBuf,
}

/// What of a run's `config.json` ([`Configuration`](super::run::Configuration)) its model depends on.
#[derive(Deserialize)]
pub struct SavedConfiguration {
    pub model: Model,
    /// `[channels, height, width]`.
    pub image_shape: [usize; 3],
    pub bits: u32,
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
    /// Reads the configuration of the run in `folder`.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let advice = "give --model the folder that a training example wrote (its --out)";
        let text = fs::read_to_string(&path).map_err(|source| FlowError::Io {
            action: "read",
            path: path.clone(),
            source,
            advice,
        })?;
        let configuration = serde_json::from_str(&text).map_err(|error| FlowError::Format {
            path,
            got: format!("not the configuration of an image model ({error})"),
            needed: "what mnist or celeba writes".into(),
            advice: "give --model the folder of such a run, of this version".into(),
        })?;
        Ok(Self { configuration, path: folder.join("model.safetensors") })
    }

    /// How many bits the pixels of its images have.
    pub fn quantization(&self) -> Result<Quantization> {
        Quantization::new(self.configuration.bits)
    }

    /// Whether the model starts with a logit.
    pub fn has_logit(&self) -> bool {
        match &self.configuration.model {
            Model::Glow(glow) => glow.logit_alpha.is_some(),
            Model::RealNvp(real_nvp) => real_nvp.logit_alpha.is_some(),
            Model::Nice(_) => false,
        }
    }

    /// Builds the model, loads its parameters and passes it on.
    pub fn visit<V: Visitor>(&self, device: &Device, visitor: V) -> Result<V::Answer> {
        if !self.path.exists() {
            return Err(FlowError::Io {
                action: "read",
                path: self.path.clone(),
                source: std::io::ErrorKind::NotFound.into(),
                advice: "a run writes its model at its first measurement; wait for it, or train anew",
            });
        }
        // Loading replaces all parameters, drawn with this seed or another.
        match &self.configuration.model {
            Model::Glow(glow) => {
                let mut rng = random_for(0, streams::PARAMETERS, 0);
                visitor.visit(&record::load(glow.init(&mut rng, device)?, &self.path)?)
            }
            Model::RealNvp(real_nvp) => {
                visitor.visit(&record::load(real_nvp.init(device)?, &self.path)?)
            }
            Model::Nice(nice) => visitor.visit(&record::load(nice.init(device)?, &self.path)?),
        }
    }
}
