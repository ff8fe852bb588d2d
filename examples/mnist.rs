//! Trains a flow on MNIST.
//!
//! `cargo run --release --example mnist`
//!
//! The 60,000 training images are bundled; `--data DIR` takes any folder with the four standard IDX
//! files (Fashion-MNIST, for one). Metrics, curve, samples, reconstructions and the model go into
//! `--out`, by default `runs/mnist-glow`.

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn_flows::Result;
use burn_flows::coupling::ScaleMap;
use burn_flows::data::{Mnist, random_for, streams};
use burn_flows::models::{GlowConfig, GlowCouplingKind};
use burn_flows::preprocess::Quantization;
use clap::Parser;
use serde::Serialize;
use support::arguments::{TrainingArguments, invalid};
use support::train::{Plan, train};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train a normalizing flow on MNIST and draw digits from it.
#[derive(Parser)]
struct Arguments {
    /// The model: glow
    #[arg(long, default_value = "glow")]
    model: String,
    /// Folder with the four IDX files, gz or not [default: the bundled MNIST]
    #[arg(long)]
    data: Option<PathBuf>,
    #[command(flatten)]
    training: TrainingArguments,
    /// Levels of the model
    #[arg(long, default_value_t = 2)]
    levels: usize,
    /// Steps a level
    #[arg(long, default_value_t = 8)]
    steps_per_level: usize,
    /// Hidden channels of the couplings' nets
    #[arg(long, default_value_t = 64)]
    hidden: usize,
}

/// What a default run trains for.
const EPOCHS: usize = 5;
const BATCH: usize = 32;
const LEARNING_RATE: f64 = 2e-3;
const LOGIT_ALPHA: f64 = 1e-6;

#[derive(Serialize)]
struct Configuration<'a> {
    version: &'static str,
    model: &'a str,
    glow: &'a GlowConfig,
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
    if arguments.model != "glow" {
        return Err(invalid("--model", &arguments.model, "glow", "pass --model glow"));
    }
    let device = training.device.get()?;
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let data = Mnist::load(arguments.data.as_deref().unwrap_or(&bundled))?;
    device.seed(training.seed);

    let config = GlowConfig::new(
        data.train.image_shape(),
        arguments.levels,
        arguments.steps_per_level,
        arguments.hidden,
    )
    .with_coupling(GlowCouplingKind::Affine(ScaleMap::BoundedExp { bound: 2.0 }))
    .with_logit(LOGIT_ALPHA);
    let glow = config.init(&mut random_for(training.seed, streams::PARAMETERS, 0), &device)?;

    let batch = training.batch.unwrap_or(BATCH);
    let steps_an_epoch = data.train.len() / batch;
    let wanted = training.epochs.unwrap_or(EPOCHS) * steps_an_epoch;
    let num_steps = wanted.min(training.steps.unwrap_or(usize::MAX)).max(1);
    let plan = Plan {
        num_steps,
        batch_size: batch,
        learning_rate: training.learning_rate.unwrap_or(LEARNING_RATE),
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
    let out = training.out.clone().unwrap_or_else(|| "runs/mnist-glow".into());
    let configuration = Configuration {
        version: env!("CARGO_PKG_VERSION"),
        model: &arguments.model,
        glow: &config,
        batch,
        num_steps,
        learning_rate: plan.learning_rate,
        bits: training.bits,
        seed: training.seed,
    };
    let outcome = train(glow, &data.train, &data.test, &plan, &out, &configuration, &device)?;
    let Some(outcome) = outcome else { return Ok(()) };
    println!(
        "{:.3} bits/dim over {} test images, largest inversion error {:.1e}, in {}",
        outcome.test_bits_per_dim,
        outcome.test_images,
        outcome.inversion_error,
        out.display()
    );
    Ok(())
}
