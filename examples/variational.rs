//! Fits flows to posteriors that are known up to a constant, and estimates the constant.
//!
//! `cargo run --release --example variational`
//!
//! Two of them, whose evidence `ln Z` is known exactly: a bent density in the plane, and the weights of a
//! Bayesian linear regression. Each is fitted by the reverse KL divergence, from draws of the flow alone.
//! Into `--out`, by default `runs/variational`, go for each
//!
//! - `NAME.png`: the posterior as a heat map, and draws from the flow;
//! - `NAME.csv`: the draws with `ln q` subtracted from `ln p`, the importance weights.

#[path = "support/mod.rs"]
mod support;

use std::f64::consts::TAU;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_flows::coupling::ScaleMap;
use burn_flows::data::{random_for, streams};
use burn_flows::models::RealNvpVectorConfig;
use burn_flows::training::{Schedule, Trainer};
use burn_flows::variational::{ReverseKl, weighted_draws};
use burn_flows::{FlowError, Result};
use clap::Parser;
use plotters::style::{Color, RGBColor};
use serde::Serialize;
use support::arguments::{DeviceArgument, at_least_one};
use support::moons::{Point, to_points, to_tensor};
use support::plane::{Layer, Panel, write_panels};
use support::run::{create_folder, refuse_to_replace, remove, write_config};
use support::say;

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
    #[command(flatten)]
    #[serde(skip)]
    device: DeviceArgument,
    /// Replace the run that is in --out
    #[arg(long)]
    #[serde(skip)]
    overwrite: bool,
    /// Folder of the pictures and draws
    #[arg(long, default_value = "runs/variational")]
    #[serde(skip)]
    out: PathBuf,
}

const OUTPUTS: [&str; 5] =
    ["config.json", "banana.png", "banana.csv", "regression.png", "regression.csv"];

/// Draws that the evidence is estimated from, and those of them that are drawn.
const NUM_DRAWS: usize = 10_000;
const NUM_DRAWN: usize = 2000;

const BLUE: RGBColor = RGBColor(38, 110, 180);

/// A density of two variables, known up to its constant.
struct Posterior {
    name: &'static str,
    log_p: fn(Tensor<2>) -> Tensor<1>,
    log_evidence: f64,
    window: [[f64; 2]; 2],
}

fn columns(x: Tensor<2>) -> [Tensor<1>; 2] {
    [0, 1].map(|at| x.clone().narrow(1, at, 1).squeeze_dim::<1>(1))
}

/// `a` is normal with deviation 1.5, and `b` given `a` with deviation 0.6 around a parabola.
fn banana(x: Tensor<2>) -> Tensor<1> {
    let [a, b] = columns(x);
    let bend = (a.clone().square() - 1.0) * 0.5;
    ((a / 1.5).square() + ((b - bend) / 0.6).square()) * -0.5
}

/// Observations of a line with noise of this deviation; offset and slope are standard normals.
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

/// `ln p(observed)`, the integral of `exp(regression)`: that of a Gaussian in two variables, from its top
/// `m = A^-1 b` and its curvature `A = 1 + X^T X / NOISE^2`.
fn regression_evidence() -> f64 {
    let sum = |f: fn(&Point) -> f64| OBSERVED.iter().map(f).sum::<f64>() / (NOISE * NOISE);
    let (n, x, xx) = (1.0 + sum(|_| 1.0), sum(|[x, _]| *x), 1.0 + sum(|[x, _]| x * x));
    let (y, xy, yy) = (sum(|[_, y]| *y), sum(|[x, y]| x * y), sum(|[_, y]| y * y));
    let determinant = n * xx - x * x;
    let square = (xx * y * y - 2.0 * x * y * xy + n * xy * xy) / determinant;
    let constants = OBSERVED.len() as f64 * (NOISE * TAU.sqrt()).ln();
    0.5 * (square - yy - determinant.ln()) - constants
}

fn main() -> ExitCode {
    support::run(run)
}

fn run(arguments: &Arguments) -> Result<()> {
    at_least_one("--steps", Some(arguments.steps))?;
    at_least_one("--batch", Some(arguments.batch))?;
    let out = &arguments.out;
    let device = arguments.device.get()?;
    if !arguments.overwrite {
        refuse_to_replace(out, &OUTPUTS, "--overwrite replaces it, another --out keeps it")?;
    }
    create_folder(out)?;
    remove(out, &OUTPUTS)?;
    write_config(out, arguments)?;
    let (log_evidence, window) = ((TAU * 1.5 * 0.6).ln(), [[-5.0, 5.0], [-3.0, 7.0]]);
    fit(&Posterior { name: "banana", log_p: banana, log_evidence, window }, arguments, &device)?;
    let (log_evidence, window) = (regression_evidence(), [[-0.6, 1.0], [0.2, 1.8]]);
    let posterior = Posterior { name: "regression", log_p: regression, log_evidence, window };
    fit(&posterior, arguments, &device)
}

fn fit(posterior: &Posterior, arguments: &Arguments, device: &Device) -> Result<()> {
    let Posterior { name, log_p, log_evidence, .. } = *posterior;
    device.seed(arguments.seed);
    let config = RealNvpVectorConfig::new(2, 8, vec![32, 32]).with_scale_map(ScaleMap::default());
    let schedule = Schedule::new(3e-3, arguments.steps).with_warm_up(50.min(arguments.steps / 10));
    let mut trainer = Trainer::new(config.init(device)?, schedule).with_max_gradient_norm(5.0);
    let objective = ReverseKl::new(arguments.batch).with_path_gradient(true);
    for step in 0..arguments.steps {
        let mut rng = random_for(arguments.seed, streams::USER, step as u64);
        let gradients = objective.gradients(&trainer.model().train(), log_p, &mut rng)?;
        let loss = trainer.apply(gradients)?.loss;
        if step.is_multiple_of(arguments.steps.div_ceil(10)) {
            say!("{name}, step {}: -ELBO {loss:.3} nats", step + 1);
        }
    }

    let mut rng = random_for(arguments.seed, streams::SAMPLE, 0);
    let (x, weights) = weighted_draws(&trainer.model(), NUM_DRAWS, log_p, &mut rng)?;
    let draws = to_points(x);
    let rows = draws.iter().zip(weights.values()).map(|([a, b], w)| format!("{a},{b},{w}\n"));
    write(
        &arguments.out,
        &format!("{name}.csv"),
        &rows.fold(String::from("x0,x1,log_w\n"), |a, b| a + &b),
    )?;
    let density = |points: &[Point]| {
        let log_p = log_p(to_tensor(points, device)) - log_evidence;
        log_p.exp().try_into_vec_as().expect("a density is a float")
    };
    let [x, y] = posterior.window.map(|[from, to]| from..to);
    let panel = |title: &str, layer| Panel {
        title: title.into(),
        x: x.clone(),
        y: y.clone(),
        layers: vec![layer],
    };
    write_panels(
        &arguments.out.join(format!("{name}.png")),
        &[
            panel("posterior", Layer::Density(&density)),
            panel("draws from the flow", Layer::Points(&draws[..NUM_DRAWN], BLUE.mix(0.5), 2)),
        ],
    )?;
    let share = weights.effective_sample_size() / NUM_DRAWS as f64;
    say!(
        "{name}: log-evidence {:.4} ± {:.4} nats, where {log_evidence:.4} is exact; {:.1} % of {NUM_DRAWS} \
         draws effective, in {}",
        weights.log_evidence(),
        weights.log_evidence_error(),
        100.0 * share,
        arguments.out.display()
    );
    Ok(())
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    let advice = "choose a folder that can be written to with --out";
    std::fs::write(&path, text).map_err(|source| FlowError::Io {
        action: "write",
        path,
        source,
        advice,
    })
}
