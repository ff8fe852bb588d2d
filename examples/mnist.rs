//! Trains a flow on MNIST.
//!
//! `cargo run --release --example mnist`
//!
//! The 60,000 training images are bundled; `--data DIR` takes any folder with the four standard IDX
//! files (Fashion-MNIST, for one). Metrics, curve, samples, reconstructions and the model go into
//! `--out`, by default `runs/mnist-MODEL`. Ctrl-C writes a checkpoint; `--resume` goes on from it.

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn_flows::Result;
use burn_flows::coupling::ScaleMap;
use burn_flows::data::{Mnist, random_for, streams};
use burn_flows::models::{GlowConfig, GlowCouplingKind, NiceConfig, RealNvpConfig};
use burn_flows::preprocess::{LogitForm, Quantization};
use clap::Parser;
use serde::Serialize;
use support::arguments::{TrainingArguments, invalid};
use support::train::{Outcome, Plan, train};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train a normalizing flow on MNIST and draw digits from it.
#[derive(Parser)]
struct Arguments {
    /// The model: glow, realnvp or nice
    #[arg(long, default_value = "glow")]
    model: String,
    /// Folder with the four IDX files, gz or not [default: the bundled MNIST]
    #[arg(long)]
    data: Option<PathBuf>,
    #[command(flatten)]
    training: TrainingArguments,
    /// Levels of glow, scales of realnvp [default: 2]
    #[arg(long)]
    levels: Option<usize>,
    /// Steps a level of glow, blocks of realnvp's nets [default: 8, 1]
    #[arg(long)]
    steps_per_level: Option<usize>,
    /// Hidden width of the couplings' nets [default: glow 64, realnvp 16, nice 1000]
    #[arg(long)]
    hidden: Option<usize>,
}

/// The end of the range that the logit spreads out: small, because most pixels of a digit are black.
const LOGIT_ALPHA: f64 = 1e-6;

/// What suits a model in about 15 minutes on two cores.
struct Defaults {
    steps: usize,
    batch: usize,
    learning_rate: f64,
}

/// A model by its configuration.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Model {
    Glow(GlowConfig),
    RealNvp(RealNvpConfig),
    Nice(NiceConfig),
}

impl Model {
    fn choose(arguments: &Arguments, image_shape: [usize; 3]) -> Result<Self> {
        let levels = arguments.levels.unwrap_or(2);
        match arguments.model.as_str() {
            "glow" => {
                let steps = arguments.steps_per_level.unwrap_or(8);
                let hidden = arguments.hidden.unwrap_or(64);
                let coupling = GlowCouplingKind::Affine(ScaleMap::default());
                let config = GlowConfig::new(image_shape, levels, steps, hidden)
                    .with_coupling(coupling)
                    .with_logit(LOGIT_ALPHA);
                Ok(Self::Glow(config))
            }
            "realnvp" => {
                let blocks = arguments.steps_per_level.unwrap_or(1);
                let hidden = arguments.hidden.unwrap_or(16);
                let config = RealNvpConfig::new(image_shape, levels, hidden, blocks)
                    .with_logit(Some(LOGIT_ALPHA), LogitForm::Code);
                Ok(Self::RealNvp(config))
            }
            "nice" => {
                let hidden = vec![arguments.hidden.unwrap_or(1000); 5];
                Ok(Self::Nice(NiceConfig::new(image_shape.iter().product(), hidden)))
            }
            other => {
                Err(invalid("--model", other, "glow, realnvp or nice", "pass one of the three"))
            }
        }
    }

    fn defaults(&self) -> Defaults {
        match self {
            Self::Glow(_) => Defaults { steps: 9_400, batch: 32, learning_rate: 2e-3 },
            Self::RealNvp(_) => Defaults { steps: 500, batch: 32, learning_rate: 1e-3 },
            Self::Nice(_) => Defaults { steps: 1_000, batch: 100, learning_rate: 1e-3 },
        }
    }
}

/// `config.json`: all that the run depends on.
#[derive(Serialize)]
struct Configuration<'a> {
    version: &'static str,
    model: &'a Model,
    batch: usize,
    num_steps: usize,
    learning_rate: f64,
    bits: u32,
    seed: u64,
}

fn main() -> ExitCode {
    support::run(run)
}

fn run(arguments: &Arguments) -> Result<()> {
    let training = &arguments.training;
    training.validate()?;
    let device = training.device.get()?;
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let data = Mnist::load(arguments.data.as_deref().unwrap_or(&bundled))?;
    let model = Model::choose(arguments, data.train.image_shape())?;
    let defaults = model.defaults();

    let batch_size = training.batch.unwrap_or(defaults.batch);
    let steps_an_epoch = data.train.len() / batch_size;
    let wanted = match training.epochs {
        Some(epochs) => epochs.saturating_mul(steps_an_epoch),
        None => defaults.steps,
    };
    let num_steps = wanted.min(training.steps.unwrap_or(usize::MAX)).max(1);
    let plan = Plan {
        num_steps,
        batch_size,
        learning_rate: training.learning_rate.unwrap_or(defaults.learning_rate),
        warm_up: (num_steps / 20).min(200),
        max_gradient_norm: f64::INFINITY,
        initialization_batch: 256.min(data.train.len()),
        seed: training.seed,
        quantization: Quantization::new(training.bits)?,
        temperatures: vec![0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        title: format!("{} on {} images", arguments.model, data.train.len()),
        checkpoint_every: training.checkpoint_every,
        resume: training.resume,
    };
    let out =
        training.out.clone().unwrap_or_else(|| format!("runs/mnist-{}", arguments.model).into());
    let config = Configuration {
        version: env!("CARGO_PKG_VERSION"),
        model: &model,
        batch: batch_size,
        num_steps,
        learning_rate: plan.learning_rate,
        bits: training.bits,
        seed: training.seed,
    };
    device.seed(training.seed);
    let outcome = match &model {
        Model::Glow(glow) => {
            let mut rng = random_for(training.seed, streams::PARAMETERS, 0);
            let stack = glow.init(&mut rng, &device)?;
            train(stack, &data.train, &data.test, &plan, &out, &config, &device)?
        }
        Model::RealNvp(real_nvp) => {
            let stack = real_nvp.init(&device)?;
            train(stack, &data.train, &data.test, &plan, &out, &config, &device)?
        }
        Model::Nice(nice) => {
            let stack = nice.init(&device)?;
            train(stack, &data.train, &data.test, &plan, &out, &config, &device)?
        }
    };
    if let Some(outcome) = outcome {
        announce(&outcome, &out);
    }
    Ok(())
}

/// The last line of a whole run.
fn announce(outcome: &Outcome, out: &Path) {
    println!(
        "{:.3} bits/dim over {} test images, largest inversion error {:.1e}, in {}",
        outcome.test_bits_per_dim,
        outcome.test_images,
        outcome.inversion_error,
        out.display()
    );
}
