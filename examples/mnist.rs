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
    /// The model: glow, realnvp or nice
    #[arg(long, default_value = "glow")]
    model: String,
    /// Levels of glow, scales of realnvp [default: what suits the pictures]
    #[arg(long)]
    levels: Option<usize>,
    /// Steps a level of glow, blocks of realnvp's nets [default: what suits the pictures]
    #[arg(long)]
    steps_per_level: Option<usize>,
    /// Hidden width of the couplings' nets [default: what suits the pictures]
    #[arg(long)]
    hidden: Option<usize>,
    /// Passes over the training images [default: what suits the model]
    #[arg(long)]
    epochs: Option<usize>,
    /// Upper bound on optimizer steps
    #[arg(long)]
    steps: Option<usize>,
    /// Images a step [default: what suits the model]
    #[arg(long)]
    batch: Option<usize>,
    /// Bits a pixel, 1 to 8 [default: 8]
    #[arg(long)]
    bits: Option<u32>,
    /// Seed of parameters, data order, noise and samples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Peak learning rate [default: what suits the model]
    #[arg(long)]
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
    /// Steps between two checkpoints
    #[arg(long, default_value_t = 500)]
    checkpoint_every: usize,
    /// Go on from the last checkpoint in --out
    #[arg(long)]
    resume: bool,
    /// Replace the run that is in --out
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Folder of the run
    #[arg(long)]
    out: Option<PathBuf>,
    /// Which of the compiled-in backends computes [default: the preferred one]
    #[arg(long)]
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
