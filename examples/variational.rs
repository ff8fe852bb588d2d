//! Fits flows to posteriors that are known up to a constant, and estimates the constant, the evidence.
//!
//! `cargo run --release --example variational`
//!
//! A bent density in the plane, and the weights of a Bayesian linear regression, whose evidences are known
//! exactly. Each is fitted by the reverse KL divergence, from draws of the flow alone. Into `--out`, by
//! default `runs/variational`, go for each `NAME.png`, the posterior and draws from the flow, and
//! `NAME.csv`, the draws with their importance weights `ln w`.

use std::f64::consts::TAU;
use std::path::PathBuf;
use std::process::ExitCode;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_flows::coupling::ScaleMap;
use burn_flows::data::{random_for, streams};
use burn_flows::models::RealNvpVectorConfig;
use burn_flows::record::write_atomically;
use burn_flows::run::plane::{Ink, Layer, Point, Window, to_points, to_tensor, write_panels};
use burn_flows::run::{Run, at_least_one, end_program, say};
use burn_flows::training::{Schedule, Trainer};
use burn_flows::variational::{ReverseKl, weighted_draws};
use burn_flows::{Result, backend};
use clap::Parser;
use serde::Serialize;

/// Fit flows to posteriors by variational inference.
#[derive(Parser, Serialize)]
struct Arguments {
    /// Optimizer steps for each posterior
    #[arg(long, default_value_t = 1500)]
    steps: usize,
    /// Draws a step
    #[arg(long, default_value_t = 256)]
    batch: usize,
    /// Seed of parameters and draws
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
    /// Folder of the pictures and draws
    #[arg(long, default_value = "runs/variational")]
    #[serde(skip)]
    out: PathBuf,
}

const OUTPUTS: [&str; 4] = ["banana.png", "banana.csv", "regression.png", "regression.csv"];

/// Draws that the evidence is estimated from.
const NUM_DRAWS: usize = 10_000;
const BLUE: Ink = Ink([38, 110, 180], 0.5);

fn columns(x: Tensor<2>) -> [Tensor<1>; 2] {
    [0, 1].map(|at| x.clone().narrow(1, at, 1).squeeze_dim::<1>(1))
}

/// `a` is normal with deviation 1.5, and `b` given `a` with deviation 0.6 around a parabola.
fn banana(x: Tensor<2>) -> Tensor<1> {
    let [a, b] = columns(x);
    let bend = (a.clone().square() - 1.0) * 0.5;
    ((a / 1.5).square() + ((b - bend) / 0.6).square()) * -0.5
}

/// Points of a line, observed with noise of this deviation; its offset and slope are standard normals.
const OBSERVED: [Point; 6] =
    [[-1.2, -1.1], [-0.5, -0.2], [0.1, 0.6], [0.6, 0.5], [1.1, 1.6], [1.8, 1.9]];
const NOISE: f64 = 0.4;

/// `ln p(observed | offset, slope) + ln p(offset, slope)`, with all its constants.
fn regression(weights: Tensor<2>) -> Tensor<1> {
    let [offset, slope] = columns(weights);
    let prior = (offset.clone().square() + slope.clone().square()) * -0.5 - TAU.ln();
    OBSERVED.into_iter().fold(prior, |sum, [input, output]| {
        let off = (offset.clone() + slope.clone() * input - output) / NOISE;
        sum + off.square() * -0.5 - (NOISE * TAU.sqrt()).ln()
    })
}

/// `ln p(observed)`: `exp(regression)` is a Gaussian of curvature `1 + X^T X / NOISE^2`.
fn regression_evidence() -> f64 {
    let sum = |f: fn(&Point) -> f64| OBSERVED.iter().map(f).sum::<f64>() / (NOISE * NOISE);
    let (n, x, xx) = (1.0 + sum(|_| 1.0), sum(|[x, _]| *x), 1.0 + sum(|[x, _]| x * x));
    let (y, xy, yy) = (sum(|[_, y]| *y), sum(|[x, y]| x * y), sum(|[_, y]| y * y));
    let determinant = n * xx - x * x;
    let square = (xx * y * y - 2.0 * x * y * xy + n * xy * xy) / determinant;
    let constants = OBSERVED.len() as f64 * (NOISE * TAU.sqrt()).ln();
    0.5 * (square - yy - determinant.ln()) - constants
}

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
    at_least_one("--steps", Some(arguments.steps))?;
    at_least_one("--batch", Some(arguments.batch))?;
    let device = backend::named(arguments.device.as_deref())?.1();
    let run = Run::new(&arguments.out).with_overwrite(arguments.overwrite);
    let _claim = run.with_configuration(arguments).make_folder(&OUTPUTS)?;
    let (evidence, window) = ((TAU * 1.5 * 0.6).ln(), Window { x: -5.0..5.0, y: -3.0..7.0 });
    fit("banana", banana, evidence, window, arguments, &device)?;
    let (evidence, window) = (regression_evidence(), Window { x: -0.6..1.0, y: 0.2..1.8 });
    fit("regression", regression, evidence, window, arguments, &device)
}

/// Fits a flow to the posterior `exp(log_p) / evidence`; the window of the plane is for the picture.
fn fit(
    name: &str,
    log_p: fn(Tensor<2>) -> Tensor<1>,
    log_evidence: f64,
    window: Window,
    Arguments { steps, batch, seed, out, .. }: &Arguments,
    device: &Device,
) -> Result<()> {
    device.seed(*seed);
    let config = RealNvpVectorConfig::new(2, 8, vec![32, 32]).with_scale_map(ScaleMap::default());
    let schedule = Schedule::new(3e-3, *steps).with_warm_up(50usize.min(steps / 10));
    let mut trainer = Trainer::new(config.init(device)?, schedule).with_max_gradient_norm(5.0);
    for step in 0..*steps {
        let mut rng = random_for(*seed, streams::USER, step as u64);
        let objective = ReverseKl::new(*batch).with_path_gradient(true);
        let gradients = objective.gradients(&trainer.model().train(), log_p, &mut rng)?;
        let loss = trainer.apply(gradients)?.loss;
        if step.is_multiple_of(steps.div_ceil(10)) {
            say(format_args!("{name}, step {}: -ELBO {loss:.3} nats", step + 1));
        }
    }

    let mut rng = random_for(*seed, streams::SAMPLE, 0);
    let (x, weights) = weighted_draws(&trainer.model(), NUM_DRAWS, log_p, &mut rng)?;
    let draws = to_points(x);
    let rows = draws.iter().zip(weights.values()).map(|([a, b], w)| format!("{a},{b},{w}\n"));
    let csv = rows.fold(String::from("x0,x1,log_w\n"), |csv, row| csv + &row);
    write_atomically(out.join(format!("{name}.csv")), csv.as_bytes())?;

    let density = |points: &[Point]| {
        let log_p = log_p(to_tensor(points, device)) - log_evidence;
        log_p.exp().try_into_vec_as().expect("a density is a float")
    };
    let dots = Layer::Points(&draws[..NUM_DRAWS / 5], BLUE, 2);
    let panels = [
        window.panel("posterior", vec![Layer::Density(&density)]),
        window.panel("draws from the flow", vec![dots]),
    ];
    write_panels(out.join(format!("{name}.png")), &panels)?;
    say(format_args!(
        "{name}: log-evidence {:.4} ± {:.4} nats, where {log_evidence:.4} is exact; {:.1} % of {NUM_DRAWS} \
         draws effective, in {}",
        weights.log_evidence(),
        weights.log_evidence_error(),
        100.0 * weights.effective_sample_size() / NUM_DRAWS as f64,
        out.display()
    ));
    Ok(())
}
