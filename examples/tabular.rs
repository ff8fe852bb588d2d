//! The density of a table: comma-separated numbers in, log-densities and samples out.
//!
//! `cargo run --release --example tabular -- --data FILE.csv`
//!
//! Every fifth row is kept for the test, a tenth of the rest is held out to stop early by. Into `--out`,
//! by default `runs/tabular`, go
//!
//! - `model.safetensors`: the model, standardization included;
//! - `scores.csv`: for each row of the file its part and `ln p` in nats;
//! - `samples.csv`: as many rows drawn from the model as the table has, or `--samples`.
//!
//! Without `--data` it draws a table whose density is known, Breiman's *twonorm*, and says how near the
//! model comes.

use std::f64::consts::TAU;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_flows::coupling::{Elementwise, RationalQuadratic, RationalQuadraticConfig, ScaleMap};
use burn_flows::data::{Table, random_for, streams};
use burn_flows::metrics::log_mean_exp;
use burn_flows::models::{
    Maf, MafConfig, RealNvpVector, RealNvpVectorConfig, SplineFlow, SplineFlowConfig,
    SplineFlowKind,
};
use burn_flows::preprocess::{Standardize, Whiten};
use burn_flows::prior::StandardNormal;
use burn_flows::record::write_atomically;
use burn_flows::run::{Run, at_least_one, end_program, positive, say, zero_or_more};
use burn_flows::training::{Adam, Fit, Schedule, Stopped, Trainer};
use burn_flows::{Flow, FlowError, FlowStack, Result, backend};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use rand::{Rng, RngExt};
use rand_distr::{Distribution, StandardNormal as Normal};
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Learn the density of a table.
#[derive(Parser, Serialize)]
struct Arguments {
    /// Comma-separated numbers, one sample a line, CSV or CSV.gz [default: a table of known density]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Columns to leave out, by name, or by number from 1; a class for instance
    #[arg(long, value_delimiter = ',')]
    drop: Vec<String>,
    /// Columns of whole numbers, which get uniform noise between 0 and 1: without it their density has no
    /// bound
    #[arg(long, value_delimiter = ',')]
    whole: Vec<String>,
    /// Columns that were rounded, each with the width of the uniform noise that it gets: 2=0.01,price=0.5
    #[arg(long, value_delimiter = ',', value_name = "COLUMN=WIDTH")]
    noise: Vec<String>,
    /// The flow
    #[arg(long, value_enum, default_value = "spline")]
    flow: Kind,
    /// Start from the principal axes of the rows, not from the columns one by one: for tables that are near
    /// normal in most directions
    #[arg(long)]
    whiten: bool,
    /// Layers [default: 8 couplings or 5 autoregressive layers]
    #[arg(long)]
    layers: Option<usize>,
    /// Width of the two hidden layers of every net
    #[arg(long, default_value_t = 64)]
    width: usize,
    /// Rows a step
    #[arg(long, default_value_t = 256)]
    batch: usize,
    /// Learning rate
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// Weight decay of Adam, which keeps a flow of few rows from learning them by heart
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f32,
    /// Decay of the averages of the parameters, which are what is kept
    #[arg(long, default_value_t = 0.99)]
    average: f64,
    /// Upper bound on passes over the rows; early stopping usually ends before
    #[arg(long, default_value_t = 1000)]
    epochs: usize,
    /// Passes without a gain on the held-out rows after which it stops
    #[arg(long, default_value_t = 20)]
    patience: usize,
    /// Rows to draw from the model [default: as many as the table has]
    #[arg(long)]
    samples: Option<usize>,
    /// Seed of parameters, noise, order and samples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which of the compiled-in backends computes [default: the preferred one]
    #[arg(long)]
    #[serde(skip)]
    device: Option<String>,
    /// Replace the run that is in --out
    #[arg(long)]
    #[serde(skip)]
    overwrite: bool,
    /// Folder of the results
    #[arg(long, default_value = "runs/tabular")]
    #[serde(skip)]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// Affine couplings
    RealNvp,
    /// Affine autoregressive layers
    Maf,
    /// Spline couplings
    Spline,
    /// Spline autoregressive layers
    SplineAr,
    /// A spline for each coordinate by itself, without any net; with --whiten that is enough for what is
    /// normal in most directions, and all that few rows can teach
    Marginals,
}

/// What a run leaves in its folder, beside `config.json`.
const OUTPUTS: [&str; 3] = ["model.safetensors", "scores.csv", "samples.csv"];

/// Of so many rows one is kept for the test, and of the rest one is held out.
const TEST: usize = 5;
const HELD_OUT: usize = 10;

const MAX_GRADIENT_NORM: f64 = 5.0;

/// Rows whose densities are computed at once.
const ROWS_AT_ONCE: usize = 1000;

/// Rows of the table that is drawn without `--data`.
const NUM_DRAWN: usize = 7400;

/// The names of the library by which its errors are told, as options.
const WORDS: [(&str, &str); 4] = [
    ("Run::new", "--out"),
    ("another folder", "another --out"),
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
    for (option, count) in [
        ("--layers", arguments.layers),
        ("--width", Some(arguments.width)),
        ("--batch", Some(arguments.batch)),
        ("--epochs", Some(arguments.epochs)),
        ("--patience", Some(arguments.patience)),
        ("--samples", arguments.samples),
    ] {
        at_least_one(option, count)?;
    }
    positive("--learning-rate", arguments.learning_rate, "1e-3 is a good start")?;
    zero_or_more("--weight-decay", arguments.weight_decay, "leave it out for the default")?;
    if !(0.0..1.0).contains(&arguments.average) {
        return Err(FlowError::invalid(
            "--average",
            arguments.average,
            "at least 0 and below 1",
            "0.99 is usual",
        ));
    }
    let (out, device) = (&arguments.out, backend::named(arguments.device.as_deref())?.1());
    let table = table(arguments)?;
    if table.rows.len() < TEST * HELD_OUT {
        let got = format!("{} rows", table.rows.len());
        return Err(FlowError::invalid(
            "--data",
            got,
            "at least 50",
            "a density cannot be learned from fewer",
        ));
    }
    let training = Training::new(arguments, &table, &device)?;
    // Last of all that can fail for an option: an earlier run stays, and no folder is left in the way.
    let run = Run::new(out).with_overwrite(arguments.overwrite);
    let _claim = run.with_configuration(arguments).make_folder(&OUTPUTS)?;

    let (model, held_out) = training.run(arguments)?;
    model.save(out.join("model.safetensors"))?;
    let scores = scores(&model, &table, &device);
    let test = mean_of_test(&scores);
    let mut said =
        format!("{test:.3} nats a row over the test rows, {held_out:.3} over those held out");
    if arguments.data.is_none() {
        let true_scores: Vec<f64> = table.rows.iter().map(|row| twonorm_log_prob(row)).collect();
        said +=
            &format!(", {:.3} by the true density of the test rows", mean_of_test(&true_scores));
    }
    let mut lines = String::from("part,log_prob\n");
    for (row, score) in scores.iter().enumerate() {
        lines += &format!("{},{score}\n", part(row).name());
    }
    write_atomically(out.join("scores.csv"), lines.as_bytes())?;
    let count = arguments.samples.unwrap_or(table.rows.len());
    let mut rng = random_for(arguments.seed, streams::SAMPLE, 0);
    Table::of(&table.names, model.sample_with(count, 1.0, &mut rng))
        .write(out.join("samples.csv"))?;
    Ok(format!("{said}, in {}", out.display()))
}

/// What a row is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Train,
    HeldOut,
    Test,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held-out",
            Self::Test => "test",
        }
    }
}

fn part(row: usize) -> Part {
    match (row % TEST, row / TEST) {
        (4, _) => Part::Test,
        (place, group) if (group * (TEST - 1) + place).is_multiple_of(HELD_OUT) => Part::HeldOut,
        _ => Part::Train,
    }
}

/// The table as it is to be learned: without the columns to drop, with noise on whole numbers.
fn table(arguments: &Arguments) -> Result<Table> {
    let mut rng = random_for(arguments.seed, streams::USER, 0);
    let mut table = match &arguments.data {
        Some(path) => Table::read(path)?,
        None => twonorm(NUM_DRAWN, &mut rng),
    };
    let number = |option: &str, column: &String| {
        let by_name = table.names.iter().position(|name| name == column);
        let by_number =
            || column.parse().ok().filter(|number| (1..=table.names.len()).contains(number));
        by_name.or_else(|| by_number().map(|number: usize| number - 1)).ok_or_else(|| {
            let needed = format!(
                "a name of {} or a number up to {}",
                table.names.join(", "),
                table.names.len()
            );
            FlowError::invalid(option, column, needed, "look at the first line of the file")
        })
    };
    let numbers = |option, columns: &[String]| {
        columns.iter().map(|column| number(option, column)).collect::<Result<Vec<usize>>>()
    };
    let (dropped, whole) =
        (numbers("--drop", &arguments.drop)?, numbers("--whole", &arguments.whole)?);
    let mut noisy: Vec<(usize, f64)> = whole.into_iter().map(|column| (column, 1.0)).collect();
    for entry in &arguments.noise {
        let (column, width) = entry.rsplit_once('=').unwrap_or((entry, ""));
        let width = width.parse().ok().filter(|width: &f64| *width > 0.0 && width.is_finite());
        let width = width.ok_or_else(|| {
            let advice = "write 2=0.01 for the second column, rounded to hundredths";
            FlowError::invalid("--noise", entry, "a column, =, and a width above 0", advice)
        })?;
        noisy.push((number("--noise", &column.to_string())?, width));
    }
    let kept = |column: &usize| !dropped.contains(column);
    for row in &mut table.rows {
        for &(column, width) in &noisy {
            row[column] += width * rng.random::<f64>();
        }
        *row = (0..row.len()).filter(kept).map(|column| row[column]).collect();
    }
    table.names =
        (0..table.names.len()).filter(kept).map(|column| table.names[column].clone()).collect();
    if table.names.is_empty() {
        return Err(FlowError::invalid(
            "--drop",
            "every column",
            "one to be left at least",
            "drop fewer",
        ));
    }
    Ok(table)
}

/// A flow behind a standardization, so that densities and samples are those of the table's own units.
type Tabular = FlowStack<2, (Start, AnyFlow)>;

#[derive(Module, Debug, Flow)]
enum Start {
    Standardize(Standardize),
    Whiten(Whiten),
}

/// One of the ready-made models, as a layer.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // there is one of it
enum AnyFlow {
    RealNvp(RealNvpVector),
    Maf(Maf),
    Spline(SplineFlow),
    Marginals(Elementwise<RationalQuadratic>),
}

/// Bins of the splines of single coordinates, and where their tails begin: in deviations.
const MARGINAL_BINS: usize = 8;
const MARGINAL_BOUND: f64 = 4.0;

fn flow(arguments: &Arguments, features: usize, device: &Device) -> Result<AnyFlow> {
    let hidden = vec![arguments.width; 2];
    let layers = |usual| arguments.layers.unwrap_or(usual);
    let spline = |usual, kind| {
        let config = SplineFlowConfig::new(features, layers(usual), hidden.clone()).with_kind(kind);
        config.init(&mut random_for(arguments.seed, streams::PARAMETERS, 0), device)
    };
    Ok(match arguments.flow {
        Kind::RealNvp => {
            let config = RealNvpVectorConfig::new(features, layers(8), hidden);
            AnyFlow::RealNvp(config.with_scale_map(ScaleMap::default()).init(device)?)
        }
        Kind::Maf => AnyFlow::Maf(MafConfig::new(features, layers(5), hidden).init(device)?),
        Kind::Spline => AnyFlow::Spline(spline(8, SplineFlowKind::Coupling)?),
        Kind::SplineAr => AnyFlow::Spline(spline(5, SplineFlowKind::Autoregressive)?),
        Kind::Marginals => {
            let splines = RationalQuadraticConfig::new(MARGINAL_BINS, MARGINAL_BOUND).init()?;
            AnyFlow::Marginals(Elementwise::new(splines, features, device)?)
        }
    })
}

/// All that a training starts from.
struct Training {
    trainer: Trainer<Tabular>,
    train: Tensor<2>,
    held_out: Tensor<2>,
}

impl Training {
    fn new(arguments: &Arguments, table: &Table, device: &Device) -> Result<Self> {
        device.seed(arguments.seed);
        let rows =
            |wanted| -> Tensor<2> { table.divide(|row| part(row) == wanted).1.to_tensor(device) };
        let (train, held_out) = (rows(Part::Train), rows(Part::HeldOut));
        let features = table.names.len();
        let start = match arguments.whiten {
            true => Start::Whiten(Whiten::fit(train.clone())?),
            false => Start::Standardize(Standardize::fit(train.clone())?),
        };
        let flow = (start, flow(arguments, features, device)?);
        let model = FlowStack::single(flow, StandardNormal::new(), &[features])?;
        let trainer = Trainer::new(model, Schedule::constant(arguments.learning_rate))
            .with_optimizer(Adam::new().with_weight_decay(arguments.weight_decay))
            .with_max_gradient_norm(MAX_GRADIENT_NORM)
            .with_average(arguments.average);
        Ok(Self { trainer, train, held_out })
    }

    /// The model and its mean log-density of the held-out rows.
    fn run(self, arguments: &Arguments) -> Result<(Tabular, f64)> {
        let fit = Fit::new(arguments.batch)
            .with_max_epochs(arguments.epochs)
            .with_patience(arguments.patience)
            .with_seed(arguments.seed);
        let bar = ProgressBar::no_length();
        bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is valid"));
        let start = Instant::now();
        let fitted = fit.run(self.trainer, self.train, self.held_out, |epoch| {
            bar.set_message(format!(
                "pass {}: {:.3} nats in training, {:.3} held out",
                epoch.number, -epoch.train_loss, -epoch.held_out_loss
            ));
            ControlFlow::Continue(())
        })?;
        bar.finish_and_clear();
        if let Stopped::Diverged(error) = &fitted.stopped {
            say(error);
        }
        say(format_args!(
            "best pass {} of {}, {:.1} s",
            fitted.best_epoch,
            fitted.num_epochs,
            start.elapsed().as_secs_f64()
        ));
        Ok((fitted.model, -fitted.held_out_loss))
    }
}

/// `ln p` of each row of the table, in nats.
fn scores(model: &Tabular, table: &Table, device: &Device) -> Vec<f64> {
    let scores = |rows: &[Vec<f64>]| -> Vec<f64> {
        let part = Table { names: table.names.clone(), rows: rows.to_vec() };
        let log_prob = model.log_prob(part.to_tensor(device));
        log_prob.try_into_vec_as().expect("a density is a float")
    };
    table.rows.chunks(ROWS_AT_ONCE).flat_map(scores).collect()
}

fn mean_of_test(scores: &[f64]) -> f64 {
    let test = || scores.iter().enumerate().filter(|(row, _)| part(*row) == Part::Test);
    test().map(|(_, score)| score).sum::<f64>() / test().count() as f64
}

/// Features of twonorm, and how far each of its two normals is off in all of them.
const TWONORM_FEATURES: usize = 20;
const TWONORM_MEAN: f64 = 0.447_213_595_499_957_9;

/// Breiman, *Bias, variance, and arcing classifiers*, 1996: two normals of deviation 1, half each.
fn twonorm(rows: usize, rng: &mut impl Rng) -> Table {
    let mut row = || -> Vec<f64> {
        let mean = if rng.random::<bool>() { TWONORM_MEAN } else { -TWONORM_MEAN };
        (0..TWONORM_FEATURES).map(|_| mean + Distribution::<f64>::sample(&Normal, rng)).collect()
    };
    let rows = (0..rows).map(|_| row()).collect();
    Table { names: (1..=TWONORM_FEATURES).map(|i| format!("x{i}")).collect(), rows }
}

fn twonorm_log_prob(row: &[f64]) -> f64 {
    let of_side = |mean: f64| {
        let squares: f64 = row.iter().map(|value| (value - mean).powi(2)).sum();
        -squares / 2.0 - row.len() as f64 * TAU.ln() / 2.0
    };
    log_mean_exp(&[of_side(TWONORM_MEAN), of_side(-TWONORM_MEAN)])
}
