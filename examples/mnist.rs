//! Trains a flow on MNIST.
//!
//! `cargo run --release --example mnist`
//!
//! The 60,000 training images are bundled; `--data DIR` takes any folder with the four standard IDX
//! files (Fashion-MNIST, for one). Metrics, curves, a report, samples, reconstructions and the model go into
//! `--out`, by default `runs/mnist-MODEL`. `--conditional` trains on the labels too. Ctrl-C or `kill` writes a
//! checkpoint; `--resume` goes on from it, and a run that is there already is replaced with `--overwrite` only.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn_flows::run::{End, ImageParts, ImageRun, Run, Subject, end_program};
use burn_flows::training::Memory;
use burn_flows::{Result, backend};
use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train a normalizing flow on MNIST and draw digits from it.
#[derive(Parser)]
struct Arguments {
    #[arg(long, help = "Folder with the four IDX files, gz or not [default: the bundled MNIST]")]
    data: Option<PathBuf>,
    /// Train a density for each class: the top prior of glow depends on the label; samples by class, and
    /// classification of the test images by Bayes' rule
    #[arg(long)]
    conditional: bool,
    /// With --conditional, the weight of a linear classifier on the top latent in the loss, 0 for none
    /// [default: 0.01, as in Glow's code]
    #[arg(long, requires = "conditional", allow_negative_numbers = true, value_name = "WEIGHT")]
    classifier_weight: Option<f64>,
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
    #[arg(long, help = "Bits a pixel, 1 to 8 [default: 8]")]
    bits: Option<u32>,
    #[arg(long, default_value_t = 0, help = "Seed of parameters, data order, noise and samples")]
    seed: u64,
    #[arg(long, help = "Peak learning rate [default: what suits the model]")]
    learning_rate: Option<f64>,
    /// Temperatures of the samples, a row each [default: 0.5 to 1]
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

/// The names of the library by which its errors are told, as options.
const WORDS: [(&str, &str); 4] = [
    ("ImageRun::", "--"),
    ("Run::new", "--out"),
    ("Run::with_", "--"),
    ("backend::named", "--device"),
];

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => end_program(run(&arguments), &WORDS),
        Err(error) if error.use_stderr() => end_program(Err::<String, _>(error), &[]),
        Err(help) => end_program(Ok::<_, clap::Error>(help), &[]),
    }
}

fn run(arguments: &Arguments) -> Result<String> {
    let images = ImageRun {
        subject: Subject::Digits,
        model: arguments.model.parse()?,
        levels: arguments.levels,
        steps_per_level: arguments.steps_per_level,
        hidden: arguments.hidden,
        batch: arguments.batch,
        micro_batch: arguments.micro_batch,
        bits: arguments.bits,
        learning_rate: arguments.learning_rate,
        temperature: arguments.temperature.clone(),
        conditional: arguments.conditional,
        classifier_weight: arguments.classifier_weight,
        seed: arguments.seed,
    };
    images.validate()?;
    let (name, device) = backend::named(arguments.device.as_deref())?;
    let kind = if arguments.conditional { "conditional-" } else { "" };
    let out = || format!("runs/mnist-{kind}{}", images.model).into();
    let run = Run::new(arguments.out.clone().unwrap_or_else(out))
        .with_epochs(arguments.epochs)
        .with_steps(arguments.steps)
        .with_memory(arguments.memory)
        .with_checkpoint_every(arguments.checkpoint_every)
        .with_resume(arguments.resume)
        .with_overwrite(arguments.overwrite)
        .with_device_name(name);
    run.validate()?;
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let parts = ImageParts::of_idx_files(arguments.data.as_deref().unwrap_or(&bundled))?;
    let outcome = images.train(run, parts, &device())?;
    Ok(match outcome.end {
        End::Interrupted { step } => {
            format!("interrupted after step {step}; go on with the same command and --resume")
        }
        _ => outcome.to_string(),
    })
}
