//! Learns the density of two moons in the plane and shows it.
//!
//! `cargo run --release --example two_moons`
//!
//! A RealNVP for vectors, a stack of affine couplings, in less than a minute. Into `--out`, by
//! default `runs/two-moons`, go
//!
//! - `density.png`: the learned density as a heat map, and samples;
//! - `samples.png`: points held out from training, and as many samples;
//! - `latent.png`: the held-out points in latent space, and the grid of the latent space mapped back.

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::tensor::Device;
use burn_flows::coupling::ScaleMap;
use burn_flows::data::{random_for, streams};
use burn_flows::models::{RealNvpVector, RealNvpVectorConfig};
use burn_flows::training::{Schedule, Trainer};
use burn_flows::{Latents, Result, metrics};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use plotters::style::{Color, RGBColor};
use serde::Serialize;
use support::arguments::{DeviceArgument, at_least_one};
use support::moons::{self, Point};
use support::plane::{Layer, Panel, write_panels};
use support::run::{create_folder, refuse_to_replace, remove, write_config};
use support::say;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Learn the density of two moons.
#[derive(Parser, Serialize)]
struct Arguments {
    /// Optimizer steps
    #[arg(long, default_value_t = 4000)]
    steps: usize,
    /// Points a step
    #[arg(long, default_value_t = 256)]
    batch: usize,
    /// Seed of parameters, points and samples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    #[serde(skip)]
    device: DeviceArgument,
    /// Replace the run that is in --out
    #[arg(long)]
    #[serde(skip)]
    overwrite: bool,
    /// Folder of the pictures
    #[arg(long, default_value = "runs/two-moons")]
    #[serde(skip)]
    out: PathBuf,
}

/// What a run leaves in its folder.
const OUTPUTS: [&str; 4] = ["config.json", "density.png", "samples.png", "latent.png"];

/// A normal prior is in one piece, and so is every density that a flow makes of it: a thread stays
/// between the moons, and it takes many couplings to make it faint.
const NUM_COUPLINGS: usize = 24;
const HIDDEN: usize = 64;
const LEARNING_RATE: f64 = 2e-3;
const WARM_UP: usize = 100;

/// Above the gradients of a usual step, below those of a batch with a point far off.
const MAX_GRADIENT_NORM: f64 = 5.0;

/// Points that the log-likelihood is measured on.
const NUM_HELD_OUT: usize = 10_000;

/// Points drawn into a picture.
const NUM_DRAWN: usize = 2000;

/// The window of the plane that holds the moons.
const WINDOW: [f64; 2] = [-1.7, 2.7];
const WINDOW_Y: [f64; 2] = [-1.2, 1.7];

/// Half the side of the window of the latent space: beyond lie 5 of 10,000 points.
const LATENT_SIDE: f64 = 3.9;

/// The latent grid: a line each half standard deviation, out to three.
const GRID_LINES: i32 = 6;
const GRID_SPACING: f64 = 0.5;

/// Points on a line, so that it bends smoothly.
const POINTS_A_LINE: usize = 1200;

const UPPER: RGBColor = RGBColor(214, 96, 50);
const LOWER: RGBColor = RGBColor(38, 110, 180);
const GREY: RGBColor = RGBColor(110, 110, 110);

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
    let model = train(arguments, &device)?;

    let mut rng = random_for(arguments.seed, streams::EVALUATE, 0);
    let held_out = moons::draw(NUM_HELD_OUT, &mut rng);
    let x = moons::to_tensor(&held_out, &device);
    let log_prob = model.log_prob(x.clone()).mean().into_scalar::<f64>();
    let inversion_error = metrics::inversion_error(&model, x);

    let best = moons::mean_log_prob(&held_out);

    let held_out = &held_out[..NUM_DRAWN];
    let mut rng = random_for(arguments.seed, streams::SAMPLE, 0);
    let samples = moons::to_points(model.sample_with(NUM_DRAWN, 1.0, &mut rng));
    draw_density(&out.join("density.png"), &model, &samples, &device)?;
    draw_samples(&out.join("samples.png"), held_out, &samples)?;
    draw_latent(&out.join("latent.png"), &model, held_out, &device)?;
    say!(
        "{log_prob:.3} nats a point over {NUM_HELD_OUT} held-out points, where the moons' own density \
         has {best:.3}; largest inversion error {inversion_error:.1e}, in {}",
        out.display()
    );
    Ok(())
}

fn train(arguments: &Arguments, device: &Device) -> Result<RealNvpVector> {
    device.seed(arguments.seed);
    let config = RealNvpVectorConfig::new(2, NUM_COUPLINGS, vec![HIDDEN, HIDDEN])
        .with_scale_map(ScaleMap::default());
    let schedule = Schedule::new(LEARNING_RATE, arguments.steps)
        .with_warm_up(WARM_UP.min(arguments.steps / 10));
    let mut trainer =
        Trainer::new(config.init(device)?, schedule).with_max_gradient_norm(MAX_GRADIENT_NORM);

    let bar = ProgressBar::new(arguments.steps as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}  {eta} left");
    bar.set_style(style.expect("the template is valid"));
    for step in 0..arguments.steps {
        // Every step has points of its own: nothing can be learned by heart.
        let mut rng = random_for(arguments.seed, streams::USER, step as u64);
        let x = moons::to_tensor(&moons::draw(arguments.batch, &mut rng), device);
        let loss = trainer.step(x)?.loss;
        bar.set_message(format!("{:.3} nats a point", -loss));
        bar.inc(1);
    }
    bar.finish();
    Ok(trainer.model())
}

fn draw_density(
    path: &Path,
    model: &RealNvpVector,
    samples: &[Point],
    device: &Device,
) -> Result<()> {
    let density = |points: &[Point]| {
        let log_prob = model.log_prob(moons::to_tensor(points, device));
        log_prob.exp().try_into_vec_as().expect("a density is a float")
    };
    write_panels(
        path,
        &[
            window("learned density p(x)", vec![Layer::Density(&density)]),
            window("samples of the model", vec![Layer::Points(samples, GREY.mix(0.7), 2)]),
        ],
    )
}

fn draw_samples(path: &Path, held_out: &[Point], samples: &[Point]) -> Result<()> {
    write_panels(
        path,
        &[
            window("held-out points", vec![Layer::Points(held_out, LOWER.mix(0.6), 2)]),
            window("samples of the model", vec![Layer::Points(samples, UPPER.mix(0.6), 2)]),
        ],
    )
}

fn draw_latent(
    path: &Path,
    model: &RealNvpVector,
    held_out: &[Point],
    device: &Device,
) -> Result<()> {
    let (latents, _) = model.encode(moons::to_tensor(held_out, device));
    let latents = moons::to_points(latents.flatten());
    let [upright, level] = [true, false].map(grid);
    let to_data = |lines: &[Vec<Point>]| -> Vec<Vec<Point>> {
        let map = |line: &Vec<Point>| {
            let latents = Latents::new(vec![moons::to_tensor(line, device)]);
            moons::to_points(model.decode(latents))
        };
        lines.iter().map(map).collect()
    };
    let (bent_upright, bent_level) = (to_data(&upright), to_data(&level));
    let [upper, lower] = [0, 1].map(|moon| every_second(&latents, moon));
    let [data_upper, data_lower] = [0, 1].map(|moon| every_second(held_out, moon));
    let side = -LATENT_SIDE..LATENT_SIDE;
    let grid_color = GREY.mix(0.6);
    write_panels(
        path,
        &[
            Panel {
                title: "the moons in latent space".into(),
                x: side.clone(),
                y: side,
                layers: vec![
                    Layer::Curves(&upright, grid_color),
                    Layer::Curves(&level, grid_color),
                    Layer::Points(&upper, UPPER.mix(0.6), 2),
                    Layer::Points(&lower, LOWER.mix(0.6), 2),
                ],
            },
            window(
                "the latent grid mapped to data",
                vec![
                    Layer::Points(&data_upper, UPPER.mix(0.35), 2),
                    Layer::Points(&data_lower, LOWER.mix(0.35), 2),
                    Layer::Curves(&bent_upright, grid_color),
                    Layer::Curves(&bent_level, grid_color),
                ],
            ),
        ],
    )
}

fn window<'a>(title: &str, layers: Vec<Layer<'a>>) -> Panel<'a> {
    let ([left, right], [bottom, top]) = (WINDOW, WINDOW_Y);
    Panel { title: title.into(), x: left..right, y: bottom..top, layers }
}

/// The points of one moon.
fn every_second(points: &[Point], first: usize) -> Vec<Point> {
    points.iter().copied().skip(first).step_by(2).collect()
}

/// The lines of the latent grid in one direction.
fn grid(upright: bool) -> Vec<Vec<Point>> {
    let end = f64::from(GRID_LINES) * GRID_SPACING;
    let line = |number: i32| {
        let across = f64::from(number) * GRID_SPACING;
        let point = |i: usize| {
            let along = end * (2.0 * i as f64 / (POINTS_A_LINE - 1) as f64 - 1.0);
            if upright { [across, along] } else { [along, across] }
        };
        (0..POINTS_A_LINE).map(point).collect()
    };
    (-GRID_LINES..=GRID_LINES).map(line).collect()
}
