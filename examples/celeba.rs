//! Trains a flow on CelebA, or on any folder of pictures.
//!
//! `cargo run --release --example celeba -- --data DIR`
//!
//! DIR is CelebA in its official layout or Kaggle's (the lists may be missing), the binary files of CIFAR-10, or
//! any folder of JPEG and PNG pictures, nested as they are: below `train` and `test` if both are there, else every
//! tenth is held out to test on. The pictures are reduced to `--size` pixels a side and 5 bits, and mirrored at
//! random. They are decoded once, on all cores, and kept in memory, a byte a value (2.5 GB for all of CelebA at 64
//! pixels), and in `--cache`. What the examples write is no data, even where it lies among the pictures.
//!
//! Metrics, curves, a report, samples, reconstructions and the model go into `--out`, by default
//! `runs/celeba-MODEL`. Ctrl-C or `kill` writes a checkpoint; `--resume` goes on from it,
//! and a run that is there already is replaced with `--overwrite` only.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use burn_flows::run::{End, ImageRun, PictureFolder, Run, Subject, end_program};
use burn_flows::training::Memory;
use burn_flows::{Result, backend};
use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train a normalizing flow on CelebA, or on any folder of pictures, and draw from it.
#[derive(Parser)]
struct Arguments {
    #[arg(long, help = "Folder of CelebA, or of any pictures (JPEG, PNG)")]
    data: Option<PathBuf>,
    /// Name of the folder of CelebA's pictures in it
    #[arg(long, default_value = "img_align_celeba")]
    pictures: PathBuf,
    /// Side that the pictures are reduced to, in pixels: 32, 64 or 128
    #[arg(long, default_value_t = 32)]
    size: usize,
    /// Folder where decoded pictures are kept for the next run [default: runs/cache, or cache in --out
    /// where that cannot be written]
    #[arg(long)]
    cache: Option<PathBuf>,
    #[arg(long, default_value = "glow", help = "The model: glow, realnvp or nice")]
    model: String,
    #[arg(long, help = "Levels of glow, scales of realnvp [default: what suits the pictures]")]
    levels: Option<usize>,
    /// Steps a level of glow, blocks of realnvp's nets [default: what suits the pictures]
    #[arg(long)]
    steps_per_level: Option<usize>,
    #[arg(long, help = "Hidden width of the couplings' nets [default: what suits the pictures]")]
    hidden: Option<usize>,
    #[arg(long, help = "Passes over the training images [default: what suits the model]")]
    epochs: Option<usize>,
    #[arg(long, help = "Upper bound on optimizer steps")]
    steps: Option<usize>,
    #[arg(long, help = "Images a step [default: what suits the model]")]
    batch: Option<usize>,
    #[arg(long, help = "Bits a pixel, 1 to 8 [default: 5]")]
    bits: Option<u32>,
    #[arg(long, default_value_t = 0, help = "Seed of parameters, data order, noise and samples")]
    seed: u64,
    #[arg(long, help = "Peak learning rate [default: what suits the model]")]
    learning_rate: Option<f64>,
    /// Temperatures of the samples, a row each [default: those of Glow's paper]
    #[arg(long, value_delimiter = ',')]
    temperature: Option<Vec<f64>>,
    /// What a step keeps of its forward pass: reversible (nothing), checkpoint or checkpoint:N (the
    /// input of every N-th layer), stored (of every layer) [default: stored where that saves work and fits
    /// the memory, else reversible]
    #[arg(long)]
    memory: Option<Memory>,
    /// Images whose gradients are computed at once, the step's being their sum [default: all]
    #[arg(long)]
    micro_batch: Option<usize>,
    #[arg(long, default_value_t = 500, help = "Steps between two checkpoints")]
    checkpoint_every: usize,
    #[arg(long, help = "Go on from the last checkpoint in --out")]
    resume: bool,
    #[arg(long, conflicts_with = "resume", help = "Replace the run that is in --out")]
    overwrite: bool,
    #[arg(long, help = "Folder of the run")]
    out: Option<PathBuf>,
    #[arg(long, help = "Which of the compiled-in backends computes [default: the preferred one]")]
    device: Option<String>,
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

/// The names of the library by which its errors are told, as options.
const WORDS: [(&str, &str); 5] = [
    ("ImageRun::", "--"),
    ("PictureFolder::", "--"),
    ("Run::new", "--out"),
    ("Run::with_", "--"),
    ("backend::named", "--device"),
];

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => match run(&arguments) {
            Ok(None) => {
                let _ = writeln!(std::io::stderr(), "{WHERE_TO_GET_IT}");
                ExitCode::from(USAGE)
            }
            answer => end_program(answer.map(Option::unwrap_or_default), &WORDS),
        },
        Err(error) if error.use_stderr() => end_program(Err::<String, _>(error), &[]),
        Err(help) => end_program(Ok::<_, clap::Error>(help), &[]),
    }
}

fn run(arguments: &Arguments) -> Result<Option<String>> {
    let images = ImageRun {
        subject: Subject::Photographs,
        model: arguments.model.parse()?,
        levels: arguments.levels,
        steps_per_level: arguments.steps_per_level,
        hidden: arguments.hidden,
        batch: arguments.batch,
        micro_batch: arguments.micro_batch,
        bits: arguments.bits,
        learning_rate: arguments.learning_rate,
        temperature: arguments.temperature.clone(),
        seed: arguments.seed,
        ..ImageRun::default()
    };
    images.validate()?;
    let mut pictures = PictureFolder::new(arguments.data.clone().unwrap_or_default());
    pictures.pictures.clone_from(&arguments.pictures);
    (pictures.size, pictures.cache) = (arguments.size, arguments.cache.clone());
    pictures.validate()?;
    let (name, device) = backend::named(arguments.device.as_deref())?;
    let out = || format!("runs/celeba-{}", images.model).into();
    let run = Run::new(arguments.out.clone().unwrap_or_else(out))
        .with_epochs(arguments.epochs)
        .with_steps(arguments.steps)
        .with_memory(arguments.memory)
        .with_checkpoint_every(arguments.checkpoint_every)
        .with_resume(arguments.resume)
        .with_overwrite(arguments.overwrite)
        .with_device_name(name);
    run.validate()?;
    if arguments.data.is_none() {
        return Ok(None);
    }
    let parts = pictures.parts(run.folder())?;
    let outcome = images.train(run, parts, &device())?;
    Ok(Some(match outcome.end {
        End::Interrupted { step } => {
            format!("interrupted after step {step}; go on with the same command and --resume")
        }
        _ => outcome.to_string(),
    }))
}
