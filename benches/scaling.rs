//! Time and memory of a training step against batch, width, depth, image size and threads.
//!
//! `cargo bench --bench scaling -- --plot scaling.png`
//!
//! A Glow on 3x32x32 images, L = 2, K = 4, hidden width 128, batch 16, of which one size is varied at
//! a time. Every point is measured in a process of its own and printed as a JSON object: what is
//! varied (`axis`), its value (`size`), `threads`, milliseconds a step (`ms`, the median) and peak
//! resident memory (`peak_mib`). With `--plot` the same is drawn.

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use burn::tensor::DType;
use burn_flows::models::GlowConfig;
use burn_flows::run::curves::{Curve, Panel, Upright, write_panels};
use burn_flows::testing::inputs;
use burn_flows::training::{Memory, Schedule, Trainer};
use burn_flows::{Flow, backend};
use clap::Parser;
use rand::{SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures how a training step grows.
#[derive(Parser)]
struct Arguments {
    /// Timed steps of each point, after two that are not counted.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// One axis alone: batch, hidden, depth or side.
    #[arg(long)]
    only: Option<String>,
    /// What a step keeps of its forward pass: reversible, checkpoint:N or stored.
    #[arg(long, default_value_t = Memory::Stored)]
    memory: Memory,
    /// Draws the points into this PNG file.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Measures one point in this process: batch, hidden, depth and side.
    #[arg(long, hide = true, num_args = 4)]
    here: Option<Vec<usize>>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The sizes in the middle, of which one is varied.
const BASE: [usize; 4] = [16, 128, 4, 32];

/// An axis: its name, its place among the sizes, and what it takes.
const AXES: [(&str, usize, [usize; 5]); 4] = [
    ("batch", 0, [4, 8, 16, 32, 64]),
    ("hidden", 1, [32, 64, 128, 256, 512]),
    ("depth", 2, [1, 2, 4, 8, 16]),
    ("side", 3, [16, 32, 48, 64, 96]),
];

#[derive(Serialize, Deserialize)]
struct Measured {
    ms: f64,
    peak_mib: f64,
}

struct Point {
    axis: &'static str,
    size: usize,
    threads: usize,
    measured: Measured,
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(sizes) = &arguments.here {
        let sizes = sizes.as_slice().try_into().expect("four sizes");
        let measured = measure(sizes, arguments.memory, arguments.runs);
        println!("{}", serde_json::to_string(&measured).expect("plain data"));
        return;
    }
    let mut points = Vec::new();
    for (axis, place, sizes) in AXES {
        if arguments.only.as_deref().is_some_and(|only| only != axis) {
            continue;
        }
        for size in sizes {
            for threads in [1, 2] {
                let mut all = BASE;
                all[place] = size;
                let measured = in_a_process(all, threads, &arguments);
                let Measured { ms, peak_mib } = measured;
                let line = serde_json::json!({
                    "axis": axis, "size": size, "threads": threads, "ms": ms, "peak_mib": peak_mib,
                });
                println!("{line}");
                points.push(Point { axis, size, threads, measured });
            }
        }
    }
    if let Some(path) = &arguments.plot {
        write_panels(path, "A training step of Glow", &panels(&points))
            .expect("the plot is written");
    }
}

fn in_a_process(sizes: [usize; 4], threads: usize, arguments: &Arguments) -> Measured {
    let program = std::env::current_exe().expect("a program has a path");
    let output = Command::new(program)
        .env("RAYON_NUM_THREADS", threads.to_string())
        .args(["--runs", &arguments.runs.to_string(), "--memory", &arguments.memory.to_string()])
        .arg("--here")
        .args(sizes.map(|size| size.to_string()))
        .output()
        .expect("this program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the line that `measure` gives")
}

fn measure([batch, hidden, depth, side]: [usize; 4], memory: Memory, runs: usize) -> Measured {
    let device = backend::device();
    device.seed(0);
    let config = GlowConfig::new([3, side, side], 2, depth, hidden);
    let stack = config.init(&mut StdRng::seed_from_u64(0), &device).expect("the sizes are valid");
    let x = inputs([batch, 3, side, side], 0, &device, DType::F32);
    let (stack, _) = stack.initialize(x.clone());
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-5)).with_memory(memory);
    let mut step = || {
        let start = Instant::now();
        trainer.step(x.clone()).expect("the steps are finite");
        start.elapsed().as_secs_f64() * 1e3
    };
    step();
    step();
    let mut milliseconds: Vec<f64> = (0..runs.max(1)).map(|_| step()).collect();
    milliseconds.sort_by(f64::total_cmp);
    let ms = (milliseconds[milliseconds.len() / 2] * 100.0).round() / 100.0;
    Measured { ms, peak_mib: support::peak_mib().unwrap_or(f64::NAN).round() }
}

fn panels(points: &[Point]) -> Vec<Panel> {
    let mut panels = Vec::new();
    for (axis, ..) in AXES {
        let titles = match axis {
            "batch" => ["milliseconds against batch", "peak MiB against batch"],
            "hidden" => ["milliseconds against hidden width", "peak MiB against hidden width"],
            "depth" => ["milliseconds against depth", "peak MiB against depth"],
            _ => ["milliseconds against pixels", "peak MiB against pixels"],
        };
        let x = match axis {
            "batch" => "images a step",
            "hidden" => "channels of the couplings' nets",
            "depth" => "steps a level",
            _ => "pixels of an image",
        };
        let values: [fn(&Measured) -> f64; 2] = [|point| point.ms, |point| point.peak_mib];
        for (title, value) in titles.into_iter().zip(values) {
            let curves = [(2, "2 threads"), (1, "1 thread")].map(|(threads, name)| {
                let points = points.iter().filter(|p| p.axis == axis && p.threads == threads);
                let points = points.map(|p| (work(axis, p.size), value(&p.measured))).collect();
                Curve { name: name.into(), points, dots: true }
            });
            if curves.iter().any(|curve| !curve.points.is_empty()) {
                let curves = curves.into();
                panels.push(Panel { title: title.into(), x, upright: Upright::FromZero, curves });
            }
        }
    }
    panels
}

/// What a step's time should be proportional to.
fn work(axis: &str, size: usize) -> f64 {
    match axis {
        "side" => (size * size) as f64,
        _ => size as f64,
    }
}
