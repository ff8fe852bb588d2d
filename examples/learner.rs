//! Trains Glow on MNIST with Burn's Learner: dashboard, checkpointers, early stopping and scheduler are Burn's,
//! the model with its reversible gradients is this crate's.
//!
//! `cargo run --release --features train,burn/tui --example learner`
//!
//! Without `burn/tui` the progress is printed as text. Into `--out`, by default `runs/learner`, go Burn's logs and
//! checkpoints, the model and samples. `--resume EPOCH` goes on from the checkpoint of an epoch.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataset::InMemDataset;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::train::metric::store::{Aggregate, Direction, Split};
use burn::train::metric::{LearningRateMetric, LossMetric};
use burn::train::{Learner, MetricEarlyStoppingStrategy, StoppingCondition, SupervisedTraining};
use burn_flows::backend;
use burn_flows::data::{Images, Mnist, random_for, streams};
use burn_flows::models::GlowConfig;
use burn_flows::preprocess::Quantization;
use burn_flows::run::{at_least_one, end_program, write_grid};
use burn_flows::training::Adam;
use burn_flows::training::learner::{
    BitsPerDimMetric, DriftMetric, ImageBatcher, InversionErrorMetric, Learnable,
};
use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train Glow on MNIST with Burn's Learner.
#[derive(Parser)]
struct Arguments {
    #[arg(long, help = "Folder with the four IDX files, gz or not [default: the bundled MNIST]")]
    data: Option<PathBuf>,
    #[arg(long, default_value_t = 10, help = "Passes over the training images, at most")]
    epochs: usize,
    #[arg(long, default_value_t = 2, help = "Passes without a gain after which no more is made")]
    patience: usize,
    #[arg(long, default_value_t = 64, help = "Images a step")]
    batch: usize,
    #[arg(long, default_value_t = 8, help = "Steps a level")]
    steps_per_level: usize,
    #[arg(long, default_value_t = 128, help = "Hidden width of the couplings' nets")]
    hidden: usize,
    #[arg(long, default_value_t = 0, help = "Seed of parameters, data order, noise and samples")]
    seed: u64,
    #[arg(long, value_name = "EPOCH", help = "Go on from the checkpoint of this epoch in --out")]
    resume: Option<usize>,
    #[arg(long, default_value = "runs/learner", help = "Folder of the training")]
    out: PathBuf,
    #[arg(long, help = "Which of the compiled-in backends computes [default: the preferred one]")]
    device: Option<String>,
}

/// At the start; it falls as a cosine.
const LEARNING_RATE: f64 = 1e-3;

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => end_program(run(&arguments), &[("backend::named", "--device")]),
        Err(error) if error.use_stderr() => end_program(Err::<String, _>(error), &[]),
        Err(help) => end_program(Ok::<_, clap::Error>(help), &[]),
    }
}

fn run(arguments: &Arguments) -> Result<String, Box<dyn Error>> {
    at_least_one("--epochs", arguments.epochs)?;
    at_least_one("--batch", arguments.batch)?;
    at_least_one("--patience", arguments.patience)?;
    let out = &arguments.out;
    match arguments.resume {
        Some(epoch) if !out.join(format!("checkpoint/model-{epoch}.bpk")).exists() => {
            return Err(
                format!("--resume: {} has no checkpoint of epoch {epoch}", out.display()).into()
            );
        }
        None if out.exists() => {
            return Err(format!("--out: {} exists; go on with --resume", out.display()).into());
        }
        _ => {}
    }
    let device = backend::named(arguments.device.as_deref())?.1();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let Mnist { train, test } = Mnist::load(arguments.data.as_deref().unwrap_or(&bundled))?;
    let (shape, num_dims) = (train.image_shape(), train.image_len());
    let quantization = Quantization::new(8)?;
    let config = GlowConfig::new(shape, 2, arguments.steps_per_level, arguments.hidden);
    let parameters = &mut random_for(arguments.seed, streams::PARAMETERS, 0);
    let model = config.with_logit(1e-6).init(parameters, &device)?;

    let loader = |images: Images| {
        let indices = InMemDataset::new((0..images.len()).collect());
        DataLoaderBuilder::new(ImageBatcher::new(images, quantization, arguments.seed))
            .batch_size(arguments.batch)
            .shuffle(arguments.seed)
            .set_device(device.clone())
            .build(indices)
    };
    let (train, valid) = (loader(train), loader(test));
    let first = train.iter().next().ok_or("there are no images")??;
    let num_steps = arguments.epochs * train.num_items().div_ceil(arguments.batch);

    let bits_per_dim = BitsPerDimMetric::new(num_dims, quantization.num_levels());
    let early_stopping = MetricEarlyStoppingStrategy::new(
        &bits_per_dim,
        Aggregate::Mean,
        Direction::Lowest,
        Split::Valid,
        StoppingCondition::NoImprovementSince { n_epochs: arguments.patience },
    );
    let mut training = SupervisedTraining::new(out, train, valid)
        .early_stopping(early_stopping)
        .metrics((LossMetric::new(), bits_per_dim))
        .metric_train_numeric(LearningRateMetric::new())
        .metric_train_numeric(DriftMetric::new())
        .metric_valid_numeric(InversionErrorMetric::new())
        .with_default_checkpointers()
        .num_epochs(arguments.epochs)
        .summary();
    if let Some(epoch) = arguments.resume {
        training = training.checkpoint(epoch);
    }
    let model = Learnable::new(model, first)?.with_interrupter(training.interrupter());
    let rates = CosineAnnealingLrSchedulerConfig::new(LEARNING_RATE, num_steps).init()?;
    let result = training.launch(Learner::new(model, Adam::new().into(), rates));
    if let Some(error) = result.error {
        return Err(error.to_string().into());
    }

    let model = result.model.model;
    model.save(out.join("model.safetensors"))?;
    let mut rng = random_for(arguments.seed, streams::SAMPLE, 0);
    let rows: Vec<_> = [0.7, 1.0].map(|t| model.sample_with(8, t, &mut rng)).into();
    write_grid(out.join("samples.png"), &rows, quantization)?;
    Ok(format!("the model and samples are in {}", out.display()))
}
