//! Times the workloads that the PyTorch peers are timed on: training step, log_prob and sample.
//!
//! `cargo bench --bench peers -- --runs 7 --only glow-mnist`
//!
//! Prints one JSON object a line: workload, peer, operation, median milliseconds and peak resident
//! memory in MiB. Figures of different programs compare only when taken in the same minutes on the
//! same machine, as ratios.

mod support;

use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use burn_flows::autoregressive::{Autoregressive, MadeConfig};
use burn_flows::conditioner::{Mlp, MlpConfig, NetNorm};
use burn_flows::context::{Given, WithContext};
use burn_flows::coupling::{
    Affine, AffineOrder, Coupling, Mask, Parity, RationalQuadratic, RationalQuadraticConfig,
    ScaleMap, Transform,
};
use burn_flows::linear::Permutation;
use burn_flows::models::{
    GlowConfig, GlowMixingKind, NiceConfig, RealNvpConfig, RealNvpVectorConfig, VectorMaskKind,
};
use burn_flows::prior::StandardNormal;
use burn_flows::training::{Memory, Schedule, Trainer};
use burn_flows::{Flow, FlowStack, Result, backend, prior};
use clap::Parser;
use rand::{SeedableRng, rngs::StdRng};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Times flows on the compiled-in backend.
#[derive(Parser)]
struct Arguments {
    /// Timed runs of each operation, after two that are not counted.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// One workload alone.
    #[arg(long)]
    only: Option<String>,
    /// One operation alone: train, log_prob or sample.
    #[arg(long)]
    operation: Option<String>,
    /// One of the compiled-in backends by name, instead of the preferred one.
    #[arg(long)]
    device: Option<String>,
    /// What a training step keeps of its forward pass: reversible, checkpoint:N or stored.
    #[arg(long, default_value_t = Memory::Stored)]
    memory: Memory,
    /// Plain 1x1 convolutions in Glow, not PLU.
    #[arg(long)]
    plain: bool,
    /// Writes the models of images as ONNX into this folder, for `tests/onnx/check_onnx.py --time`.
    #[cfg(feature = "onnx")]
    #[arg(long)]
    onnx: Option<std::path::PathBuf>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Writes a model to the folder of `--onnx`, if there is one.
macro_rules! export {
    ($arguments:expr, $name:expr, $model:expr) => {
        #[cfg(feature = "onnx")]
        if let Some(folder) = &$arguments.onnx {
            let path = |kind| folder.join(format!("{}.{kind}.onnx", $name));
            burn_flows::onnx::save_log_prob(&$model, path("log_prob"))
                .expect("it has a counterpart");
            burn_flows::onnx::save_sample(&$model, path("sample")).expect("it has a counterpart");
        }
    };
}

struct ImageWorkload {
    name: &'static str,
    batch: usize,
    image_shape: [usize; 3],
    num_levels: usize,
    num_steps: usize,
    hidden_width: usize,
}

/// Of them `glow-cifar`, which is for GPUs, runs only where it is asked for.
const IMAGES: [ImageWorkload; 4] = [
    ImageWorkload {
        name: "glow-mnist",
        batch: 64,
        image_shape: [1, 28, 28],
        num_levels: 2,
        num_steps: 8,
        hidden_width: 128,
    },
    ImageWorkload {
        name: "glow-faces",
        batch: 8,
        image_shape: [3, 64, 64],
        num_levels: 3,
        num_steps: 8,
        hidden_width: 256,
    },
    ImageWorkload {
        name: "glow-wide",
        batch: 16,
        image_shape: [3, 32, 32],
        num_levels: 2,
        num_steps: 4,
        hidden_width: 512,
    },
    ImageWorkload {
        name: "glow-cifar",
        batch: 64,
        image_shape: [3, 32, 32],
        num_levels: 3,
        num_steps: 32,
        hidden_width: 512,
    },
];

fn main() {
    let arguments = Arguments::parse();
    let wanted = |name: &str| arguments.only.as_deref().is_none_or(|only| only == name);
    let device = match &arguments.device {
        None => backend::device(),
        Some(wanted) => {
            let mut devices = backend::devices().into_iter();
            let (_, device) =
                devices.find(|(name, _)| name == wanted).expect("--device is compiled in");
            device()
        }
    };
    let is_for_gpus = |name: &str| name == "glow-cifar" && arguments.only.is_none();
    let images = IMAGES.iter().filter(|workload| wanted(workload.name));
    for workload in images.filter(|workload| !is_for_gpus(workload.name)) {
        device.seed(0);
        // As normflows builds its GlowBlock: PLU, biases in the net, standard normal priors.
        let glow = GlowConfig::new(
            workload.image_shape,
            workload.num_levels,
            workload.num_steps,
            workload.hidden_width,
        )
        .with_mixing(match arguments.plain {
            true => GlowMixingKind::Conv1x1,
            false => GlowMixingKind::Conv1x1Plu,
        })
        .with_net_norm(NetNorm::Bias)
        .with_learned_top(false)
        .with_conditional_split(false)
        .init(&mut StdRng::seed_from_u64(0), &device)
        .expect("the workloads are valid");
        let [c, h, w] = workload.image_shape;
        let x = Tensor::random([workload.batch, c, h, w], Distribution::Normal(0.0, 1.0), &device);
        export!(arguments, workload.name, glow);
        time(workload.name, &arguments, glow, x);
    }
    let run = |name: &str| wanted(name).then(|| device.seed(0)).is_some();
    for (name, batch, features, hidden) in VECTORS {
        if run(name) {
            let stack = RealNvpVectorConfig::new(features, 8, vec![hidden; 2])
                .with_mask(VectorMaskKind::Halves)
                .init(&device)
                .expect("the workload is valid");
            time(name, &arguments, stack, normal([batch, features], &device));
        }
    }
    if run("nice-mnist") {
        let nice = NiceConfig::mnist().init(&device).expect("the workload is valid");
        let x = Tensor::random([100, 784], Distribution::Uniform(0.0, 1.0), &device);
        export!(arguments, "nice-mnist", nice);
        time("nice-mnist", &arguments, nice, x);
    }
    if run("realnvp-mnist") {
        let model = RealNvpConfig::new([1, 28, 28], 2, 16, 1).init(&device);
        let x = Tensor::random([32, 1, 28, 28], Distribution::Uniform(0.0, 1.0), &device);
        let model = model.expect("the workload is valid");
        export!(arguments, "realnvp-mnist", model);
        time("realnvp-mnist", &arguments, model, x);
    }
    if run("nsf-vec16") {
        let stack = spline_couplings(&device).expect("the workload is valid");
        time("nsf-vec16", &arguments, stack, normal([1024, 16], &device));
    }
    for (name, features) in [("maf-vec16", 16), ("maf-vec64", 64)] {
        if run(name) {
            let stack = masked_autoregressive(features, &device).expect("the workload is valid");
            time(name, &arguments, stack, normal([1024, features], &device));
        }
    }
    if run("cnsf-sbi") {
        let stack = conditional_spline_couplings(&device).expect("the workload is valid");
        let (x, context) = (normal([200, 2], &device), normal([200, 8], &device));
        let name = "cnsf-sbi";
        let mut trainer =
            Trainer::new(stack, Schedule::constant(1e-4)).with_memory(arguments.memory);
        report(name, "train", &arguments, || {
            trainer.step((x.clone(), context.clone())).expect("the steps are finite");
        });
        let stack = trainer.model();
        let posterior = || stack.given(&context).expect("the context fits");
        report(name, "log_prob", &arguments, || {
            posterior().log_prob(x.clone()).into_data();
        });
        report(name, "sample", &arguments, || {
            posterior().sample(200, 1.0).into_data();
        });
    }
}

/// Affine couplings of halves in turn: name, batch, features, width of the two hidden layers.
const VECTORS: [(&str, usize, usize, usize); 2] =
    [("realnvp-2d", 1024, 2, 64), ("realnvp-vec64", 4096, 64, 256)];

fn normal(shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

/// Eight spline couplings of even and odd features in turn, 8 bins on [-3, 3].
fn spline_couplings(
    device: &Device,
) -> Result<FlowStack<2, Vec<Coupling<Mlp, RationalQuadratic>>>> {
    let coupling = |index: usize| {
        let spline = RationalQuadraticConfig::new(8, 3.0).init()?;
        let net = MlpConfig::new(8, vec![128; 2], 8 * spline.params_per_channel()).init(device)?;
        Ok(Coupling::from_transform(net, spline, Mask::Alternating(Parity::of(index))))
    };
    let couplings = (0..8).map(coupling).collect::<Result<Vec<_>>>()?;
    FlowStack::single(couplings, StandardNormal::new(), &[16])
}

type ConditionalCoupling = Coupling<WithContext<Mlp>, RationalQuadratic>;

/// Five spline couplings of two features in turn, 10 bins on [-3, 3], that see a context of 8.
fn conditional_spline_couplings(device: &Device) -> Result<FlowStack<2, Vec<ConditionalCoupling>>> {
    let coupling = |index: usize| {
        let spline = RationalQuadraticConfig::new(10, 3.0).init()?;
        let net = MlpConfig::new(1 + 8, vec![50; 2], spline.params_per_channel());
        let net = WithContext::new(net.with_zero_init(true).init(device)?, 8, device);
        Ok(Coupling::from_transform(net, spline, Mask::Alternating(Parity::of(index))))
    };
    let couplings = (0..5).map(coupling).collect::<Result<Vec<_>>>()?;
    FlowStack::single(couplings, StandardNormal::new(), &[2])
}

type AutoregressiveStep = (Autoregressive<Affine>, Permutation);

/// Five masked autoregressive layers, the order reversed from one to the next.
fn masked_autoregressive(
    features: usize,
    device: &Device,
) -> Result<FlowStack<2, Vec<AutoregressiveStep>>> {
    let layer = |_| {
        let made = MadeConfig::new(features, vec![128; 2], 2).init(device)?;
        let order = AffineOrder::ScaleThenShift;
        let affine = Affine::new(ScaleMap::default(), order, features, device);
        Ok((Autoregressive::new(made, affine)?, Permutation::reverse(features, device)?))
    };
    let layers = (0..5).map(layer).collect::<Result<Vec<_>>>()?;
    FlowStack::single(layers, StandardNormal::new(), &[features])
}

fn time<const D: usize, F, P, S>(
    name: &str,
    arguments: &Arguments,
    stack: FlowStack<D, F, P, S>,
    x: Tensor<D>,
) where
    F: Flow<D>,
    P: prior::Prior<D>,
    S: prior::SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    let batch = x.dims()[0];
    let (stack, _) = stack.initialize(x.clone());
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-4)).with_memory(arguments.memory);
    report(name, "train", arguments, || {
        trainer.step(x.clone()).expect("the steps are finite");
    });
    let stack = trainer.model();
    report(name, "log_prob", arguments, || {
        stack.log_prob(x.clone()).into_data();
    });
    report(name, "sample", arguments, || {
        stack.sample(batch, 1.0).into_data();
    });
}

fn report(workload: &str, operation: &str, arguments: &Arguments, mut run: impl FnMut()) {
    if arguments.operation.as_deref().is_some_and(|only| only != operation) {
        return;
    }
    run();
    run();
    let mut milliseconds: Vec<f64> = (0..arguments.runs.max(1))
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    milliseconds.sort_by(f64::total_cmp);
    let line = serde_json::json!({
        "workload": workload,
        "peer": "burn-flows",
        "op": operation,
        "ms": (milliseconds[milliseconds.len() / 2] * 1e3).round() / 1e3,
        "peak_mib": support::peak_mib().map(f64::round),
    });
    println!("{line}");
}
