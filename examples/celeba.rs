//! Trains a flow on CelebA, or on any folder of pictures.
//!
//! `cargo run --release --example celeba -- --data DIR`
//!
//! DIR is CelebA in its official layout (`img_align_celeba/`, `list_eval_partition.txt`,
//! `list_attr_celeba.txt`; the lists may be missing) or in Kaggle's, or any folder of JPEG and PNG pictures, nested as
//! they are: below `train` and `test` if both are there, else every tenth is held out to test on; or the
//! binary files of CIFAR-10. The pictures are reduced to `--size` pixels a side and 5 bits, and mirrored at
//! random. They are decoded once, on all cores, and kept in memory, a byte a value: 0.6 GB for all of
//! CelebA at 32 pixels, 2.5 GB at 64, 10 GB at 128; and in `--cache`, so that the next run starts at once.
//! What the examples write is no data, even where it lies among the pictures.
//!
//! Metrics, curves, a report (`report.html`), samples, reconstructions and the model go into `--out`, by default
//! `runs/celeba-MODEL`. Ctrl-C or `kill` writes a checkpoint; `--resume` goes on from it,
//! and a run that is there already is replaced with `--overwrite` only.

#[path = "support/mod.rs"]
mod support;

use std::process::ExitCode;

use burn_flows::Result;
use clap::Parser;
use support::arguments::TrainingArguments;
use support::data::Parts;
use support::images;
use support::model::{ModelArguments, Subject};
use support::photographs::PictureArguments;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train a normalizing flow on CelebA, or on any folder of pictures, and draw from it.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    pictures: PictureArguments,
    #[command(flatten)]
    training: TrainingArguments,
    #[command(flatten)]
    model: ModelArguments,
}

/// What is said without `--data`.
const WHERE_TO_GET_IT: &str = "\
CelebA is at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html: unpack img_align_celeba.zip and put \
list_eval_partition.txt and list_attr_celeba.txt beside the folder img_align_celeba.
It is for non-commercial research only, and neither it nor a part of it may be passed on; the page has \
the whole agreement.
Then: cargo run --release --example celeba -- --data FOLDER_THAT_HOLDS_img_align_celeba";

/// The status of a program that was not told what it needs.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    support::run(run)
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { pictures, training, model } = arguments;
    training.validate()?;
    pictures.validate()?;
    let Some(folder) = &pictures.data else {
        support::say_err!("{WHERE_TO_GET_IT}");
        return Ok(ExitCode::from(USAGE));
    };
    let (device_name, device) = training.device.named()?;
    let device = device();
    let out = training.out("celeba", &model.name);
    let parts = Parts::of_pictures(folder, pictures, &out)?;
    let device = (device_name, &device);
    images::run(&out, Subject::Photographs, parts, training, model, None, device)?;
    Ok(ExitCode::SUCCESS)
}
