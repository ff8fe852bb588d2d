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

use std::path::PathBuf;
use std::process::ExitCode;

use burn::tensor::Device;
use burn_flows::coupling::ScaleMap;
use burn_flows::data::{random_for, streams, two_moons, two_moons_log_prob};
use burn_flows::models::{RealNvpVector, RealNvpVectorConfig};
use burn_flows::run::plane::{
    Ink, Layer, Point, Window, to_points, to_tensor, write_density, write_latent, write_panels,
};
use burn_flows::run::{Run, at_least_one, end_program};
use burn_flows::training::{Schedule, Trainer};
use burn_flows::{Result, backend, metrics};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Learn the density of two moons.
#[derive(Parser, Serialize)]
struct Arguments {
    #[arg(long, default_value_t = 4000, help = "Optimizer steps")]
    steps: usize,
    #[arg(long, default_value_t = 256, help = "Points a step")]
    batch: usize,
    #[arg(long, default_value_t = 0, help = "Seed of parameters, points and samples")]
    seed: u64,
    #[arg(long, help = "Which of the compiled-in backends computes [default: the preferred one]")]
    #[serde(skip)]
    device: Option<String>,
    #[arg(long, help = "Replace the run that is in --out")]
    #[serde(skip)]
    overwrite: bool,
    #[arg(long, default_value = "runs/two-moons", help = "Folder of the pictures")]
    #[serde(skip)]
    out: PathBuf,
}

/// What a run leaves in its folder, beside `config.json`.
const OUTPUTS: [&str; 3] = ["density.png", "samples.png", "latent.png"];

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

const UPPER: [u8; 3] = [214, 96, 50];
const LOWER: [u8; 3] = [38, 110, 180];

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
    at_least_one("--steps", arguments.steps)?;
    at_least_one("--batch", arguments.batch)?;
    let (_, device) = backend::named(arguments.device.as_deref())?;
    let device = device();
    let trainer = trainer(arguments, &device)?;
    // Last of all that can fail for an option: an earlier run stays, and no folder is left in the way.
    let run = Run::new(&arguments.out).with_overwrite(arguments.overwrite);
    let _claim = run.with_configuration(arguments).make_folder(&OUTPUTS)?;
    let model = train(trainer, arguments, &device)?;

    let mut rng = random_for(arguments.seed, streams::EVALUATE, 0);
    let held_out = two_moons(NUM_HELD_OUT, &mut rng);
    let x = to_tensor(&held_out, &device);
    let log_prob = model.log_prob(x.clone()).mean().into_scalar::<f64>();
    let inversion_error = metrics::inversion_error(&model, x);
    let best = two_moons_log_prob(&held_out);

    let held_out = &held_out[..NUM_DRAWN];
    let mut rng = random_for(arguments.seed, streams::SAMPLE, 0);
    let samples = to_points(model.sample_with(NUM_DRAWN, 1.0, &mut rng));
    let window = Window { x: -1.7..2.7, y: -1.2..1.7 };
    let [density, drawn, latent] = OUTPUTS.map(|name| arguments.out.join(name));
    write_density(density, &model, &samples, &window)?;
    let dots = |points, color| vec![Layer::Points(points, Ink(color, 0.6), 2)];
    let panels = [
        window.panel("held-out points", dots(held_out, LOWER)),
        window.panel("samples of the model", dots(&samples, UPPER)),
    ];
    write_panels(drawn, &panels)?;
    // The moons take turns.
    let [upper, lower]: [Vec<Point>; 2] =
        [0, 1].map(|moon| held_out.iter().copied().skip(moon).step_by(2).collect());
    write_latent(latent, &model, &[(&upper, UPPER), (&lower, LOWER)], &window)?;
    Ok(format!(
        "{log_prob:.3} nats a point over {NUM_HELD_OUT} held-out points, where the moons' own density \
         has {best:.3}; largest inversion error {inversion_error:.1e}, in {}",
        arguments.out.display()
    ))
}

fn trainer(arguments: &Arguments, device: &Device) -> Result<Trainer<RealNvpVector>> {
    device.seed(arguments.seed);
    let config = RealNvpVectorConfig::new(2, NUM_COUPLINGS, vec![HIDDEN, HIDDEN])
        .with_scale_map(ScaleMap::default());
    let schedule = Schedule::new(LEARNING_RATE, arguments.steps)
        .with_warm_up(WARM_UP.min(arguments.steps / 10));
    Ok(Trainer::new(config.init(device)?, schedule).with_max_gradient_norm(MAX_GRADIENT_NORM))
}

fn train(
    mut trainer: Trainer<RealNvpVector>,
    arguments: &Arguments,
    device: &Device,
) -> Result<RealNvpVector> {
    let bar = ProgressBar::new(arguments.steps as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}  {eta} left");
    bar.set_style(style.expect("the template is valid"));
    for step in 0..arguments.steps {
        // Every step has points of its own: nothing can be learned by heart.
        let mut rng = random_for(arguments.seed, streams::USER, step as u64);
        let loss = trainer.step(to_tensor(&two_moons(arguments.batch, &mut rng), device))?.loss;
        bar.set_message(format!("{:.3} nats a point", -loss));
        bar.inc(1);
    }
    bar.finish();
    Ok(trainer.model())
}
