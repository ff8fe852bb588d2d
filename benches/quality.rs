//! Time to quality: bits/dim on MNIST against seconds of training, beside normflows.
//!
//! ```text
//! cargo bench --bench quality -- --write-order order.bin
//! python benches/quality_normflows.py --order order.bin --minutes 10 > normflows.jsonl
//! cargo bench --bench quality -- --minutes 10 > burn-flows.jsonl
//! cargo bench --bench quality -- --compare burn-flows.jsonl normflows.jsonl --plot quality.png
//! ```
//!
//! The same model (Glow, L = 2, K = 8, hidden width 128, affine by a sigmoid, standard normal priors),
//! images in the same order, batch 64, Adam with the same constant learning rate, the same test images
//! (every tenth). Seconds are those of training alone, without the measurements. Every line of the
//! output is a measurement; `--compare` gives the ratio of the times to the bits/dim that the second
//! file ends with.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flows::conditioner::NetNorm;
use burn_flows::coupling::ScaleMap;
use burn_flows::data::{Batches, Images, Mnist, random_for, streams};
use burn_flows::models::{GlowConfig, GlowCouplingKind, GlowMixingKind};
use burn_flows::preprocess::Quantization;
use burn_flows::run::curves::{Curve, Panel, Upright, write_panels};
use burn_flows::training::{Memory, Schedule, Trainer};
use burn_flows::{Flow, backend};
use clap::Parser;
use rand::{SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 64;
const LEARNING_RATE: f64 = 5e-4;
const LOGIT_ALPHA: f64 = 1e-6;

/// Trains, or compares two trainings.
#[derive(Parser)]
struct Arguments {
    /// Minutes of training.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seconds of training from one measurement to the next.
    #[arg(long, default_value_t = 20.0)]
    every: f64,
    /// Writes the order of the images, 32-bit numbers in little-endian order, instead of training.
    #[arg(long)]
    write_order: Option<PathBuf>,
    /// The lines of two trainings, instead of training: ours and the one to compare with.
    #[arg(long, num_args = 2)]
    compare: Option<Vec<PathBuf>>,
    /// With --compare, draws both into this PNG file.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// One of the compiled-in backends by name, instead of the preferred one.
    #[arg(long)]
    device: Option<String>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Measurement {
    peer: String,
    step: usize,
    seconds: f64,
    bits_per_dim: f64,
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(files) = &arguments.compare {
        let [ours, other] = [read(&files[0]), read(&files[1])];
        return compare(&ours, &other, arguments.plot.as_deref());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let data = Mnist::load(folder).expect("MNIST is bundled");
    let batches = Batches::training(data.train.len(), BATCH, 0).expect("there are many images");
    if let Some(path) = &arguments.write_order {
        // More steps than either program takes in an hour.
        let indices = batches.from_step(0).take(50_000).flat_map(|batch| batch.indices);
        let bytes: Vec<u8> = indices.flat_map(|index| (index as u32).to_le_bytes()).collect();
        fs::write(path, bytes).expect("the order can be written");
        return;
    }
    let (_, device) = backend::named(arguments.device.as_deref()).expect("--device is compiled in");
    let device = device();
    device.seed(0);
    let stack = GlowConfig::new([1, 28, 28], 2, 8, 128)
        .with_coupling(GlowCouplingKind::Affine(ScaleMap::Sigmoid))
        .with_mixing(GlowMixingKind::Conv1x1Plu)
        .with_net_norm(NetNorm::Bias)
        .with_learned_top(false)
        .with_conditional_split(false)
        .with_logit(LOGIT_ALPHA)
        .init(&mut StdRng::seed_from_u64(0), &device)
        .expect("the model is valid");
    let first = batches.epoch(0).swap_remove(0);
    let (stack, _) = stack.initialize(to_tensor(&data.train, &first, 0, &device));
    let mut trainer =
        Trainer::new(stack, Schedule::constant(LEARNING_RATE)).with_memory(Memory::Stored);
    let start = Instant::now();
    let mut measuring = 0.0;
    let mut next = 0.0;
    for batch in batches.from_step(0) {
        let seconds = start.elapsed().as_secs_f64() - measuring;
        let last = seconds >= arguments.minutes * 60.0;
        if seconds >= next || last {
            let bits_per_dim = bits_per_dim(&trainer, &data.test, &device);
            let measurement = Measurement {
                peer: "burn-flows".into(),
                step: trainer.num_steps(),
                seconds,
                bits_per_dim,
            };
            println!("{}", serde_json::to_string(&measurement).expect("plain data"));
            measuring = start.elapsed().as_secs_f64() - seconds;
            next = seconds + arguments.every;
        }
        if last {
            break;
        }
        let x = to_tensor(&data.train, &batch.indices, batch.step + 1, &device);
        trainer.step(x).expect("the steps are finite");
    }
}

fn to_tensor(images: &Images, indices: &[usize], stream: u64, device: &Device) -> Tensor<4> {
    let mut rng = random_for(0, streams::DEQUANTIZE, stream);
    let quantization = Quantization::new(8).expect("8 bits are valid");
    let values = quantization.dequantize(&images.gather(indices), &mut rng);
    let [channels, height, width] = images.image_shape();
    let data = TensorData::new(values, [indices.len(), channels, height, width]);
    Tensor::from_data(data, (device, DType::F32))
}

/// Over every tenth test image.
fn bits_per_dim(
    trainer: &Trainer<burn_flows::models::Glow>,
    test: &Images,
    device: &Device,
) -> f64 {
    let model = trainer.model();
    let chosen: Vec<usize> = (0..test.len()).step_by(10).collect();
    let sum: f64 = chosen
        .chunks(100)
        .enumerate()
        .map(|(index, indices)| {
            // Streams of their own, the same at every measurement.
            let x = to_tensor(test, indices, u64::MAX - index as u64, device);
            model.bits_per_dim(x, 256).sum().into_scalar::<f64>()
        })
        .sum();
    sum / chosen.len() as f64
}

fn read(path: &Path) -> Vec<Measurement> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let line =
        |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    text.lines().map(line).collect()
}

fn compare(ours: &[Measurement], other: &[Measurement], plot: Option<&Path>) {
    let goal = other.last().expect("the other training has a measurement");
    match seconds_to(ours, goal.bits_per_dim) {
        Some(seconds) => println!(
            "{}: {:.3} bits/dim after {:.0} s; burn-flows reaches that in {seconds:.0} s, {:.2} times \
             faster",
            goal.peer,
            goal.bits_per_dim,
            goal.seconds,
            goal.seconds / seconds
        ),
        None => println!("burn-flows does not reach {:.3} bits/dim", goal.bits_per_dim),
    }
    let Some(path) = plot else { return };
    let curves = [ours, other].map(|lines| Curve {
        name: lines[0].peer.clone(),
        // The first measurements are far above the rest.
        points: lines.iter().skip(1).map(|m| (m.seconds, m.bits_per_dim)).collect(),
        dots: true,
    });
    let panel = Panel {
        title: "bits/dim of 1,000 test images".into(),
        x: "seconds of training",
        upright: Upright::Settled,
        curves: curves.into(),
    };
    write_panels(path, "The same Glow, data order and optimizer", &[panel])
        .expect("the plot is written");
}

/// When a training first was at a goal, between two measurements by a straight line.
fn seconds_to(lines: &[Measurement], goal: f64) -> Option<f64> {
    let at = lines.iter().position(|line| line.bits_per_dim <= goal)?;
    let after = &lines[at];
    let Some(before) = at.checked_sub(1).map(|at| &lines[at]) else { return Some(after.seconds) };
    let share = (before.bits_per_dim - goal) / (before.bits_per_dim - after.bits_per_dim);
    Some(before.seconds + share * (after.seconds - before.seconds))
}
