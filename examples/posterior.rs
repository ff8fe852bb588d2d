//! Simulation-based inference: learns the posterior of a simulator's parameters from simulations alone.
//!
//! `cargo run --release --example posterior`
//!
//! Parameters are drawn from the prior and data are simulated from them; a neural spline flow learns
//! `p(parameters | data)` for all data at once (neural posterior estimation). Then it is asked about
//! observations: those given with `--observation`, or one that is simulated. Into `--out`, by default
//! `runs/posterior-TASK`, go the model and, for each observation,
//!
//! - `posterior-1.csv`: samples of its posterior;
//! - `corner-1.png`: each parameter by itself, and each pair.
//!
//! With `--reference`, samples of the true posterior, it also says how well a classifier tells the two
//! apart (C2ST): 0.5 is perfect.

use std::f64::consts::{FRAC_PI_2, SQRT_2};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::slice;
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flows::data::{Table, random_for, streams};
use burn_flows::metrics::c2st;
use burn_flows::models::{ConditionalSplineFlow, ConditionalSplineFlowConfig};
use burn_flows::run::{Corner, Run, at_least_one, end_program, positive, say, zero_or_more};
use burn_flows::training::{Adam, Fit, Schedule, Stopped, Trainer};
use burn_flows::{FlowError, Result, backend};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Learn the posterior of a simulator's parameters.
#[derive(Parser, Serialize)]
struct Arguments {
    /// The simulator
    #[arg(long, value_enum, default_value = "two-moons")]
    task: Task,
    /// Simulations to learn from
    #[arg(long, default_value_t = 10_000)]
    simulations: usize,
    /// Simulations a step
    #[arg(long, default_value_t = 200)]
    batch: usize,
    /// Learning rate
    #[arg(long, default_value_t = 1e-3)]
    learning_rate: f64,
    /// Weight decay of Adam, which keeps a flow of few simulations from learning them by heart
    #[arg(long, default_value_t = 0.5)]
    weight_decay: f32,
    /// Decay of the averages of the parameters, which are what is kept
    #[arg(long, default_value_t = 0.99)]
    average: f64,
    /// Upper bound on passes over the simulations; early stopping usually ends before
    #[arg(long, default_value_t = 1000)]
    epochs: usize,
    /// Samples of each posterior
    #[arg(long, default_value_t = 10_000)]
    samples: usize,
    /// Seed of simulations, parameters and samples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Observed data: a CSV with one row; again for more [default: simulated]
    #[arg(long)]
    observation: Vec<PathBuf>,
    /// Samples of the true posterior of each observation, CSV or CSV.gz, in the same order
    #[arg(long)]
    reference: Vec<PathBuf>,
    /// Which of the compiled-in backends computes [default: the preferred one]
    #[arg(long)]
    #[serde(skip)]
    device: Option<String>,
    /// Replace the run that is in --out
    #[arg(long)]
    #[serde(skip)]
    overwrite: bool,
    /// Folder of the model, the samples and the pictures
    #[arg(long)]
    #[serde(skip)]
    out: Option<PathBuf>,
}

/// One simulation of ten is held out, to stop early by: sbi's `validation_fraction`.
const HELD_OUT: usize = 10;

/// sbi's.
const MAX_GRADIENT_NORM: f64 = 5.0;

/// Draws outside of the prior are drawn again, at most this often.
const MAX_ROUNDS: usize = 100;

/// The names of the library by which its errors are told, as options.
const WORDS: [(&str, &str); 4] = [
    ("Run::new", "--out"),
    ("another folder", "another --out"),
    ("Run::with_", "--"),
    ("backend::named", "--device"),
];

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => end_program(run(&arguments).map(|()| ""), &WORDS),
        Err(error) if error.use_stderr() => end_program(Err::<String, _>(error), &[]),
        Err(help) => end_program(Ok::<_, clap::Error>(help), &[]),
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    for (option, count) in [
        ("--batch", arguments.batch),
        ("--epochs", arguments.epochs),
        ("--samples", arguments.samples),
    ] {
        at_least_one(option, Some(count))?;
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
    if arguments.simulations < 2 * HELD_OUT {
        return Err(FlowError::invalid(
            "--simulations",
            arguments.simulations,
            "at least 20",
            "10000 is usual",
        ));
    }
    let (task, device) = (arguments.task, backend::named(arguments.device.as_deref())?.1());
    let observations = observations(arguments)?;
    let default = || format!("runs/posterior-{}", task.name()).into();
    let out = arguments.out.clone().unwrap_or_else(default);
    let outputs: Vec<String> = (1..=observations.len())
        .flat_map(|number| [format!("posterior-{number}.csv"), format!("corner-{number}.png")])
        .chain(["model.safetensors".into()])
        .collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let training = Training::new(arguments, &device)?;
    // Last of all that can fail for an option: an earlier run stays, and no folder is left in the way.
    let run = Run::new(&out).with_overwrite(arguments.overwrite);
    let _claim = run.with_configuration(arguments).make_folder(&outputs)?;

    let posterior = training.run(arguments)?;
    posterior.save(out.join("model.safetensors"))?;
    let mut accuracies = Vec::new();
    for (index, observation) in observations.iter().enumerate() {
        accuracies.extend(show(arguments, &posterior, observation, index + 1, &out)?);
    }
    if accuracies.len() > 1 {
        let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
        let count = accuracies.len();
        say(format_args!("C2ST {mean:.3} in the mean over {count} observations"));
    }
    Ok(())
}

/// All that a training starts from: the trainer, the parameters and the data simulated from them.
struct Training {
    trainer: Trainer<ConditionalSplineFlow>,
    theta: Tensor<2>,
    data: Tensor<2>,
}

impl Training {
    fn new(arguments: &Arguments, device: &Device) -> Result<Self> {
        let (task, seed) = (arguments.task, arguments.seed);
        device.seed(seed);
        let mut rng = random_for(seed, streams::USER, 0);
        let theta: Vec<_> = (0..arguments.simulations).map(|_| task.draw(&mut rng)).collect();
        let data: Vec<_> = theta.iter().map(|theta| task.simulate(theta, &mut rng)).collect();
        let (theta, data) = (to_tensor(&theta, device), to_tensor(&data, device));

        let config = ConditionalSplineFlowConfig::sbi(task.num_parameters(), task.num_data());
        let mut rng = random_for(seed, streams::PARAMETERS, 0);
        let model = config.fit(theta.clone(), data.clone(), &mut rng)?;
        let trainer = Trainer::new(model, Schedule::constant(arguments.learning_rate))
            .with_optimizer(Adam::new().with_weight_decay(arguments.weight_decay))
            .with_max_gradient_norm(MAX_GRADIENT_NORM)
            .with_average(arguments.average);
        Ok(Self { trainer, theta, data })
    }

    fn run(self, arguments: &Arguments) -> Result<ConditionalSplineFlow> {
        let Self { trainer, theta, data } = self;
        let fit =
            Fit::new(arguments.batch).with_max_epochs(arguments.epochs).with_seed(arguments.seed);
        let held_out = arguments.simulations / HELD_OUT;
        let part = |from, count| {
            (theta.clone().narrow(0, from, count), data.clone().narrow(0, from, count))
        };
        let bar = ProgressBar::no_length();
        bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is valid"));
        let start = Instant::now();
        let fitted = fit.run(
            trainer,
            part(held_out, arguments.simulations - held_out),
            part(0, held_out),
            |epoch| {
                bar.set_message(format!(
                    "pass {}: {:.3} nats in training, {:.3} held out",
                    epoch.number, -epoch.train_loss, -epoch.held_out_loss
                ));
                ControlFlow::Continue(())
            },
        )?;
        bar.finish_and_clear();
        if let Stopped::Diverged(error) = &fitted.stopped {
            say(error);
        }
        say(format_args!(
            "{:.3} nats over {held_out} held-out simulations after pass {} of {}, {:.1} s",
            -fitted.held_out_loss,
            fitted.best_epoch,
            fitted.num_epochs,
            start.elapsed().as_secs_f64()
        ));
        Ok(fitted.model)
    }
}

/// What was observed, and what is known of it.
struct Observation {
    data: Vec<f64>,
    /// The parameters that it was simulated from.
    truth: Option<Vec<f64>>,
    /// Samples of the true posterior.
    reference: Option<Table>,
}

fn observations(arguments: &Arguments) -> Result<Vec<Observation>> {
    let task = arguments.task;
    let (given, references) = (&arguments.observation, &arguments.reference);
    if !references.is_empty() && references.len() != given.len() {
        let got = format!("{} for {} observations", references.len(), given.len());
        return Err(FlowError::invalid(
            "--reference",
            got,
            "one for each observation",
            "leave it out, or give all",
        ));
    }
    if given.is_empty() {
        let mut rng = random_for(arguments.seed, streams::USER, 1);
        let truth = task.draw(&mut rng);
        let data = task.simulate(&truth, &mut rng);
        return Ok(vec![Observation { data, truth: Some(truth), reference: None }]);
    }
    let references = references.iter().map(Some).chain(std::iter::repeat(None));
    given
        .iter()
        .zip(references)
        .map(|(path, reference)| {
            let [data]: [Vec<f64>; 1] =
                table(path, task.num_data())?.rows.try_into().map_err(|rows: Vec<_>| {
                    let advice = "give each observation a file of its own";
                    FlowError::invalid(
                        "--observation",
                        format!("{} rows", rows.len()),
                        "one row",
                        advice,
                    )
                })?;
            let reference = reference.map(|path| table(path, task.num_parameters())).transpose()?;
            Ok(Observation { data, truth: None, reference })
        })
        .collect()
}

/// The numbers of a file that must have as many columns.
fn table(path: &Path, columns: usize) -> Result<Table> {
    let table = Table::read(path)?;
    if table.columns() == columns {
        return Ok(table);
    }
    let got = format!("{} with {} columns", path.display(), table.columns());
    Err(FlowError::invalid(
        "a file",
        got,
        format!("{columns} for this --task"),
        "check the file and the task",
    ))
}

/// Writes samples of the posterior of an observation; gives back C2ST where there is a reference.
fn show(
    arguments: &Arguments,
    posterior: &ConditionalSplineFlow,
    observation: &Observation,
    number: usize,
    out: &Path,
) -> Result<Option<f64>> {
    let (task, device) = (arguments.task, backend::named(arguments.device.as_deref())?.1());
    let posterior = posterior.given(&to_tensor(slice::from_ref(&observation.data), &device))?;
    let mut rng = random_for(arguments.seed, streams::SAMPLE, number as u64);
    let names: Vec<String> = (1..=task.num_parameters()).map(|i| format!("theta_{i}")).collect();
    let mut samples = Table { names: names.clone(), rows: Vec::new() };
    let (wanted, mut drawn) = (arguments.samples, 0);
    for _ in 0..MAX_ROUNDS {
        let batch = posterior.sample_with(wanted, 1.0, &mut rng);
        drawn += wanted;
        let inside = |row: &Vec<f64>| match task.bound() {
            Some(bound) => row.iter().all(|value| value.abs() < bound),
            None => true,
        };
        samples.rows.extend(Table::of(&names, batch).rows.into_iter().filter(inside));
        if samples.rows.len() >= wanted {
            break;
        }
    }
    let share = samples.rows.len() as f64 / drawn as f64;
    samples.rows.truncate(wanted);
    if samples.rows.is_empty() {
        let advice = "give more --simulations, or check that the observation is of this --task";
        return Err(FlowError::invalid(
            "the posterior",
            "no draw inside of the prior",
            "some",
            advice,
        ));
    }
    samples.write(out.join(format!("posterior-{number}.csv")))?;
    let reference = observation.reference.as_ref().map(|table| &table.rows[..]);
    let corner = Corner {
        names: &names,
        samples: &samples.rows,
        reference,
        truth: observation.truth.as_deref(),
    };
    corner.write(out.join(format!("corner-{number}.png")))?;
    let accuracy = reference
        .map(|reference| {
            let count = reference.len().min(samples.rows.len());
            let (x, y) = (&reference[..count], &samples.rows[..count]);
            c2st(to_tensor(x, &device), to_tensor(y, &device), arguments.seed)
        })
        .transpose()?;
    let compared = accuracy.map_or(String::new(), |accuracy| format!(", C2ST {accuracy:.3}"));
    say(format_args!(
        "observation {number}: {} samples, {:.1} % of the draws inside of the prior{compared}, in {}",
        samples.rows.len(),
        100.0 * share,
        out.display()
    ));
    Ok(accuracy)
}

/// Rows as a batch, `[rows, columns]`, in f32.
fn to_tensor(rows: &[Vec<f64>], device: &Device) -> Tensor<2> {
    let columns = rows.first().map_or(0, Vec::len);
    let data = TensorData::new(rows.concat(), [rows.len(), columns]);
    Tensor::from_data(data, (device, DType::F32))
}

/// A prior of parameters and a simulator of data whose posterior is known, from the benchmark `sbibm` (Lueckmann et
/// al., *Benchmarking simulation-based inference*, [arXiv:2101.04653](https://arxiv.org/abs/2101.04653)).
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Task {
    /// 2 parameters, 2 data: a posterior of two crescents
    TwoMoons,
    /// 5 parameters, 8 data: a simple likelihood, four modes
    Slcp,
    /// 10 parameters, 10 data: a normal posterior
    GaussianLinear,
    /// 2 parameters, 2 data: a broad and a narrow normal around one mean
    GaussianMixture,
}

/// Variance of prior and noise of the linear Gaussian.
const LINEAR_VARIANCE: f64 = 0.1;

impl Task {
    /// The name that the option takes.
    fn name(self) -> String {
        self.to_possible_value().expect("no task is hidden").get_name().into()
    }

    fn num_parameters(self) -> usize {
        match self {
            Self::TwoMoons | Self::GaussianMixture => 2,
            Self::Slcp => 5,
            Self::GaussianLinear => 10,
        }
    }

    fn num_data(self) -> usize {
        match self {
            Self::TwoMoons | Self::GaussianMixture => 2,
            Self::Slcp => 8,
            Self::GaussianLinear => 10,
        }
    }

    /// The prior is uniform from minus this to this; without a bound it is normal.
    fn bound(self) -> Option<f64> {
        match self {
            Self::TwoMoons => Some(1.0),
            Self::Slcp => Some(3.0),
            Self::GaussianMixture => Some(10.0),
            Self::GaussianLinear => None,
        }
    }

    /// Parameters of the prior.
    fn draw(self, rng: &mut StdRng) -> Vec<f64> {
        let mut parameter = || match self.bound() {
            Some(bound) => rng.random_range(-bound..bound),
            None => LINEAR_VARIANCE.sqrt() * normal(rng),
        };
        (0..self.num_parameters()).map(|_| parameter()).collect()
    }

    /// Data of these parameters.
    fn simulate(self, theta: &[f64], rng: &mut StdRng) -> Vec<f64> {
        match self {
            Self::TwoMoons => {
                let angle = rng.random_range(-FRAC_PI_2..FRAC_PI_2);
                let radius = 0.1 + 0.01 * normal(rng);
                vec![
                    radius * angle.cos() + 0.25 - (theta[0] + theta[1]).abs() / SQRT_2,
                    radius * angle.sin() + (theta[1] - theta[0]) / SQRT_2,
                ]
            }
            Self::Slcp => {
                let (s1, s2, correlation) = (theta[2].powi(2), theta[3].powi(2), theta[4].tanh());
                // The factor of the covariance, which has 1e-6 on its diagonal so that it never is singular.
                let (a, b) = (s1.powi(2) + 1e-6, correlation * s1 * s2);
                let rest = (s2.powi(2) + 1e-6 - b * b / a).max(0.0).sqrt();
                let mut point = || {
                    let (u, v) = (normal(rng), normal(rng));
                    [theta[0] + a.sqrt() * u, theta[1] + b / a.sqrt() * u + rest * v]
                };
                (0..4).flat_map(|_| point()).collect()
            }
            Self::GaussianLinear => {
                theta.iter().map(|mean| mean + LINEAR_VARIANCE.sqrt() * normal(rng)).collect()
            }
            Self::GaussianMixture => {
                let deviation = if rng.random::<bool>() { 1.0 } else { 0.1 };
                theta.iter().map(|mean| mean + deviation * normal(rng)).collect()
            }
        }
    }
}

fn normal(rng: &mut impl Rng) -> f64 {
    StandardNormal.sample(rng)
}
