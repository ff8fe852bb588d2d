//! Options of the training examples.

use std::path::PathBuf;

use burn::tensor::Device;
use burn_flows::backend::{self, NamedDevice};
use burn_flows::training::Memory;
use burn_flows::{FlowError, Result};
use clap::Args;
use serde::Serialize;

/// Options that every training example has.
#[derive(Args, Debug, Clone, Serialize)]
pub struct TrainingArguments {
    /// Passes over the training images [default: what suits the model]
    #[arg(long)]
    pub epochs: Option<usize>,
    /// Upper bound on optimizer steps
    #[arg(long)]
    pub steps: Option<usize>,
    /// Images a step [default: what suits the model]
    #[arg(long)]
    pub batch: Option<usize>,
    /// Bits a pixel, 1 to 8 [default: 8 for digits, 5 for photographs]
    #[arg(long)]
    pub bits: Option<u32>,
    /// Seed of parameters, data order, noise and samples
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Peak learning rate [default: what suits the model]
    #[arg(long)]
    pub learning_rate: Option<f64>,
    /// Temperatures of the samples, a row each [default: those of the papers]
    #[arg(long = "temperature", value_delimiter = ',')]
    pub temperatures: Option<Vec<f64>>,
    /// What a step keeps of its forward pass: reversible (nothing), checkpoint or checkpoint:N (the
    /// input of every N-th layer), stored (of every layer) [default: reversible, unless it is more than
    /// 10 % slower than stored and that fits the memory]
    #[arg(long)]
    #[serde(skip)]
    pub memory: Option<Memory>,
    /// Images whose gradients are computed at once, the step's being their sum [default: all]
    #[arg(long)]
    pub micro_batch: Option<usize>,
    /// Steps between two checkpoints
    #[arg(long, default_value_t = 500)]
    pub checkpoint_every: usize,
    /// Go on from the last checkpoint in --out
    #[arg(long)]
    #[serde(skip)]
    pub resume: bool,
    /// Replace the run that is in --out
    #[arg(long, conflicts_with = "resume")]
    #[serde(skip)]
    pub overwrite: bool,
    /// Folder of the run
    #[arg(long)]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    #[serde(skip)]
    pub device: DeviceArgument,
}

/// The option that chooses between the backends that are compiled in.
#[derive(Args, Debug, Clone)]
pub struct DeviceArgument {
    /// Which of the compiled-in backends computes [default: the preferred one]
    #[arg(long)]
    device: Option<String>,
}

impl DeviceArgument {
    /// The device asked for.
    pub fn get(&self) -> Result<Device> {
        self.named().map(|(_, device)| device())
    }

    /// The device asked for, by name.
    pub fn named(&self) -> Result<NamedDevice> {
        let devices = backend::devices();
        let Some(wanted) = &self.device else { return Ok(devices[0]) };
        let found = devices.iter().find(|(name, _)| name == wanted);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = devices.iter().map(|(name, _)| *name).collect();
            let advice = "others are compiled in with --features NAME";
            invalid("--device", wanted, &names.join(" or "), advice)
        })
    }
}

impl TrainingArguments {
    /// The folder of a run of an example and a model.
    pub fn out(&self, example: &str, model: &str) -> PathBuf {
        self.out.clone().unwrap_or_else(|| format!("runs/{example}-{model}").into())
    }

    /// Checks what does not depend on model or data.
    pub fn validate(&self) -> Result<()> {
        at_least_one("--epochs", self.epochs)?;
        at_least_one("--steps", self.steps)?;
        at_least_one("--batch", self.batch)?;
        at_least_one("--micro-batch", self.micro_batch)?;
        at_least_one("--checkpoint-every", Some(self.checkpoint_every))?;
        if let Some(rate) = self.learning_rate
            && !(rate > 0.0 && rate.is_finite())
        {
            return Err(invalid(
                "--learning-rate",
                &rate.to_string(),
                "a positive number",
                "1e-3 is a good start",
            ));
        }
        if let Some(bits) = self.bits
            && !(1..=8).contains(&bits)
        {
            let advice = "8 keeps the pixels as they are, 5 is what Glow uses for faces";
            return Err(invalid("--bits", &bits.to_string(), "1 to 8", advice));
        }
        for &temperature in self.temperatures.iter().flatten() {
            if !(temperature >= 0.0 && temperature.is_finite()) {
                let advice = "0.7 is what Glow uses for faces";
                let got = temperature.to_string();
                return Err(invalid("--temperature", &got, "0 or more", advice));
            }
        }
        Ok(())
    }
}

/// Checks an option that counts something.
pub fn at_least_one(option: &str, value: Option<usize>) -> Result<()> {
    match value {
        Some(0) => Err(invalid(option, "0", "at least 1", "leave it out for the default")),
        _ => Ok(()),
    }
}

/// An option that cannot be used.
pub fn invalid(option: &str, got: &str, needed: &str, advice: &str) -> FlowError {
    FlowError::Invalid {
        what: option.into(),
        got: got.into(),
        needed: needed.into(),
        advice: advice.into(),
    }
}
