//! Trains a flow on MNIST.
//!
//! `cargo run --release --example mnist`
//!
//! The 60,000 training images are bundled; `--data DIR` takes any folder with the four standard IDX
//! files (Fashion-MNIST, for one). Metrics, curves, a report, samples, reconstructions and the model go into
//! `--out`, by default `runs/mnist-MODEL`. Ctrl-C or `kill` writes a checkpoint; `--resume` goes on from it,
//! and a run that is there already is replaced with `--overwrite` only.

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn_flows::Result;
use clap::Parser;
use support::arguments::TrainingArguments;
use support::data::Parts;
use support::images;
use support::model::{ModelArguments, Subject};

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
    let (device_name, device) = training.device.named()?;
    let device = device();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let parts = Parts::of_idx_files(arguments.data.as_deref().unwrap_or(&bundled))?;
    let model = &arguments.model;
    let out = training.out("mnist", &model.name);
    images::run(&out, Subject::Digits, parts, training, model, (device_name, &device))
}
