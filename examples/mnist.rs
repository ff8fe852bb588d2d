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
use burn_flows::data::{Mnist, random_for, streams};
use burn_flows::preprocess::Quantization;
use clap::Parser;
use support::arguments::TrainingArguments;
use support::model::{Model, ModelArguments};
use support::run::Configuration;
use support::train::{Outcome, Plan, train};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train a normalizing flow on MNIST and draw digits from it.
#[derive(Parser)]
struct Arguments {
    /// Folder with the four IDX files, gz or not [default: the bundled MNIST]
    #[arg(long)]
    data: Option<PathBuf>,
    #[command(flatten)]
    training: TrainingArguments,
    #[command(flatten)]
    model: ModelArguments,
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
    let model = Model::choose(&arguments.model, data.train.image_shape())?;
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
        title: format!("{} on {} images", arguments.model.name, data.train.len()),
        checkpoint_every: training.checkpoint_every,
        resume: training.resume,
    };
    let out = training
        .out
        .clone()
        .unwrap_or_else(|| format!("runs/mnist-{}", arguments.model.name).into());
    let config = Configuration {
        version: env!("CARGO_PKG_VERSION").into(),
        image_shape: data.train.image_shape(),
        model: model.clone(),
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
