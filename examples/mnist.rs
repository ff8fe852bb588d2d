//! Trains a flow on MNIST.
//!
//! `cargo run --release --example mnist`
//!
//! The 60,000 training images are bundled; `--data DIR` takes any folder with the four standard IDX
//! files (Fashion-MNIST, for one). Metrics, curves, a report, samples, reconstructions and the model go into
//! `--out`, by default `runs/mnist-MODEL`. `--conditional` trains on the labels too. Ctrl-C or `kill` writes a checkpoint; `--resume` goes on from it,
//! and a run that is there already is replaced with `--overwrite` only.

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn_flows::Result;
use clap::Parser;
use support::arguments::TrainingArguments;
use support::data::Parts;
use support::images::{self, Conditional};
use support::model::{ModelArguments, Subject};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `weight_y` of openai/glow, `train.py`.
const CLASSIFIER_WEIGHT: f64 = 0.01;

/// Train a normalizing flow on MNIST and draw digits from it.
#[derive(Parser)]
struct Arguments {
    /// Folder with the four IDX files, gz or not [default: the bundled MNIST]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Train a density for each class: the top prior of glow depends on the label; samples by class, and
    /// classification of the test images by Bayes' rule
    #[arg(long)]
    conditional: bool,
    /// With --conditional, the weight of a linear classifier on the top latent in the loss, 0 for none
    /// [default: 0.01, as in Glow's code]
    #[arg(long, requires = "conditional", allow_negative_numbers = true, value_name = "WEIGHT")]
    classifier_weight: Option<f64>,
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
    let (device_name, device) = training.device.named()?;
    let device = device();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let parts = Parts::of_idx_files(arguments.data.as_deref().unwrap_or(&bundled))?;
    let model = &arguments.model;
    let conditional = arguments.conditional.then(|| Conditional {
        classifier_weight: arguments.classifier_weight.unwrap_or(CLASSIFIER_WEIGHT),
    });
    let name = if conditional.is_some() { "conditional-" } else { "" };
    let out = training.out("mnist", &format!("{name}{}", model.name));
    let device = (device_name, &device);
    images::run(&out, Subject::Digits, parts, training, model, conditional, device)
}
