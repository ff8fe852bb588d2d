//! Peak memory of a training step against depth, by what the step keeps of its forward pass.
//!
//! `cargo bench --bench memory -- --only 3x64x64`
//!
//! A Glow of L = 3 levels of K steps, hidden width 128, batch 8, on 3x64x64 and 3x256x256; the case
//! `3x256x256-paper` is the published CelebA-HQ model (L = 6, K = 32, hidden width 512, additive).
//! Every row is measured in a process of its own, which takes two steps of Adam, and is printed as a
//! JSON object:
//!
//! - `mode`: reversible, checkpoint (every 16 layers), stored (every layer's input and the hidden values
//!   of its net); autodiff, for comparison, is Burn's graph of the whole stack
//! - `k`: steps a level
//! - `peak_mib`: peak resident memory of the two steps
//! - `activation_mib`: peak of the bytes allocated during a forward and backward pass, less those that
//!   model, optimizer state and gradients hold, which is what is freed when they are dropped; buffers
//!   that the kernels keep for reuse from pass to pass count as activations
//! - `resident_mib`: the same from outside, as programs are compared that do not count their bytes:
//!   `peak_mib` less the resident memory before the first step and less the parameters three
//!   times, for the gradients and Adam's two moments, and a fourth time where the trainer keeps the
//!   last good model; what the books of each parameter and unused parts of
//!   pages take is left in it
//! - `ms`: the second step
//!
//! Rows that would not fit the memory available are left out, with a line on standard error.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{DType, Tensor};
use burn_flows::conditioner::NetNorm;
use burn_flows::models::{Glow, GlowConfig, GlowMixingKind};
use burn_flows::testing::inputs;
use burn_flows::training::available_memory;
use burn_flows::training::{DRIFT_BOUND, Memory, Schedule, Tape, Trainer};
use burn_flows::{At, Flow, backend};
use clap::Parser;
use rand::{SeedableRng, rngs::StdRng};

#[global_allocator]
static ALLOCATOR: Counting = Counting { live: AtomicUsize::new(0), peak: AtomicUsize::new(0) };

/// The system's allocator, which gives large blocks back at once, with a count of the bytes.
struct Counting {
    live: AtomicUsize,
    peak: AtomicUsize,
}

impl Counting {
    fn add(&self, size: usize) {
        let live = self.live.fetch_add(size, Ordering::Relaxed) + size;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }

    fn take(&self, size: usize) {
        self.live.fetch_sub(size, Ordering::Relaxed);
    }
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: see above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: see above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.add(size);
        self.take(layout.size());
        // SAFETY: see above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.take(layout.size());
        // SAFETY: see above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Why resident memory may be unknown.
const LINUX: &str = "resident memory is read as Linux tells it, from /proc/self/status";

const MIB: f64 = 1024.0 * 1024.0;

const DEPTHS: [usize; 6] = [4, 8, 16, 32, 64, 128];

const BATCH: usize = 8;

const MODES: [&str; 4] = ["reversible", "checkpoint", "stored", "autodiff"];

/// Values that autodiff keeps for every hidden channel and pixel of a coupling's net: what goes into
/// and out of two ReLUs. An estimate, to leave out what cannot fit.
const KEPT_BY_AUTODIFF: usize = 4;

/// Measures the memory of training steps.
#[derive(Parser)]
struct Arguments {
    /// One case: 3x64x64, 3x256x256 or 3x256x256-paper.
    #[arg(long)]
    only: Option<String>,
    /// One mode: reversible, checkpoint, stored or autodiff.
    #[arg(long)]
    mode: Option<String>,
    /// Depths, instead of 4 to 128.
    #[arg(long, value_delimiter = ',')]
    depths: Vec<usize>,
    /// Images a step, instead of 8 (paper: 1).
    #[arg(long)]
    batch: Option<usize>,
    /// Measures one row in this process.
    #[arg(long, hide = true)]
    here: bool,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A model at one depth.
struct Case {
    name: String,
    config: GlowConfig,
    batch: usize,
}

impl Case {
    fn of(name: &str, depth: usize, batch: Option<usize>) -> Self {
        let (config, usual) = match name {
            "3x64x64" => (GlowConfig::new([3, 64, 64], 3, depth, 128), BATCH),
            "3x256x256" => (GlowConfig::new([3, 256, 256], 3, depth, 128), BATCH),
            "3x256x256-paper" => (GlowConfig { num_steps: depth, ..GlowConfig::celeba_hq256() }, 1),
            other => panic!("--only {other}: give 3x64x64, 3x256x256 or 3x256x256-paper"),
        };
        // The small models as the peers build theirs.
        let config = match name {
            "3x256x256-paper" => config,
            _ => config
                .with_mixing(GlowMixingKind::Conv1x1Plu)
                .with_net_norm(NetNorm::Bias)
                .with_learned_top(false)
                .with_conditional_split(false),
        };
        Self { name: name.into(), config, batch: batch.unwrap_or(usual) }
    }

    fn batch(&self, size: usize) -> Tensor<4> {
        let [channels, height, width] = self.config.image_shape;
        inputs([size, channels, height, width], 0, &backend::device(), DType::F32)
    }

    fn build(&self) -> Glow {
        let device = backend::device();
        device.seed(0);
        let config = &self.config;
        let stack = config.init(&mut StdRng::seed_from_u64(0), &device).expect("a valid case");
        stack.initialize(self.batch(1)).0
    }

    /// Bytes that a mode keeps of the forward pass, about.
    fn kept_bytes(&self, mode: &str) -> usize {
        let GlowConfig { image_shape, num_levels, num_steps, hidden_width, .. } = self.config;
        let values: usize = image_shape.iter().product();
        let (mut narrow, mut hidden) = (0, 0);
        for level in 0..num_levels {
            narrow += num_steps * 3 * (values >> level);
            hidden += num_steps * hidden_width * ((values / 3) >> (2 * level + 2));
        }
        let kept = match mode {
            "autodiff" => 4 * narrow + KEPT_BY_AUTODIFF * hidden,
            "stored" => narrow + hidden,
            "checkpoint" => narrow / 16,
            _ => 0,
        };
        kept * self.batch * size_of::<f32>()
    }
}

fn main() {
    let arguments = Arguments::parse();
    if arguments.here {
        let mode = arguments.mode.as_deref().expect("a mode");
        let name = arguments.only.as_deref().expect("a case");
        return measure(&Case::of(name, arguments.depths[0], arguments.batch), mode);
    }
    let wanted = |name: &str| match &arguments.only {
        // The paper's model takes many minutes: only where it is asked for.
        None => name != "3x256x256-paper",
        Some(only) => only == name,
    };
    let cases = ["3x64x64", "3x256x256", "3x256x256-paper"];
    if let Some(only) = &arguments.only {
        assert!(cases.contains(&only.as_str()), "--only {only}: give one of {}", cases.join(", "));
    }
    for name in cases.into_iter().filter(|name| wanted(name)) {
        let depths = match (arguments.depths.as_slice(), name) {
            ([], "3x256x256-paper") => &[32],
            ([], _) => DEPTHS.as_slice(),
            (depths, _) => depths,
        };
        let modes = MODES.into_iter().filter(|&mode| match &arguments.mode {
            Some(wanted) => wanted == mode,
            None => name != "3x256x256-paper" || mode == "reversible",
        });
        for mode in modes {
            for &depth in depths {
                in_a_process(&Case::of(name, depth, arguments.batch), mode, depth);
            }
        }
    }
}

/// Measures a row in a process of its own, whose memory no other row has touched.
fn in_a_process(case: &Case, mode: &str, depth: usize) {
    let kept = case.kept_bytes(mode);
    if let Some(available) = available_memory()
        && kept > available
    {
        let (needed, there) = (kept as f64 / MIB, available as f64 / MIB);
        eprintln!(
            "{}, {mode}, K = {depth}: left out, it would keep about {needed:.0} MiB of {there:.0} \
             available",
            case.name
        );
        return;
    }
    let program = std::env::current_exe().expect("a program has a path");
    let status = Command::new(program)
        .args(["--here", "--only", &case.name, "--mode", mode])
        .args(["--depths", &depth.to_string(), "--batch", &case.batch.to_string()])
        .status()
        .expect("this program starts");
    if !status.success() {
        eprintln!("{}, {mode}, K = {depth}: ended with {status}", case.name);
    }
}

fn measure(case: &Case, mode: &str) {
    let stack = case.build();
    let parameters = num_trained(&stack.clone().train()) as f64 * size_of::<f32>() as f64 / MIB;
    // Whatever is set up by the first pass (thread pools, inverse matrices) belongs to the model.
    stack.log_prob(case.batch(1)).into_data();
    let resident = support::status_mib("VmRSS:").expect(LINUX);
    // Forgets the peak of the initialization, where the system can.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let x = case.batch(case.batch);
    let (peak, activations, milliseconds, beside) = match mode.parse::<Memory>() {
        Ok(memory) => {
            // Every step measures the drift, which takes memory as well.
            let mut trainer = Trainer::new(stack, Schedule::constant(1e-5))
                .with_memory(memory)
                .with_drift_control(1, DRIFT_BOUND);
            let (milliseconds, _) = twice(|| {
                trainer.step(x.clone()).expect("the steps are finite");
            });
            let peak = support::peak_mib().expect(LINUX);
            let plain = trainer.model();
            let model = plain.clone().train();
            let mut grads = GradientsParams::new();
            let (_, allocated) = twice(|| {
                let mut tape = Tape::new(memory).measuring(0);
                let (z, log_det) = plain.forward_on(x.clone(), &mut tape);
                let dz = z.clone() / case.batch as f64;
                let at = At::Output(z);
                model.pull_back(at, dz, log_det.ones_like(), &mut tape, &mut grads);
            });
            let activations = allocated - freed(|| drop((trainer, plain, model, grads)));
            (peak, activations, milliseconds, 4.0)
        }
        Err(_) => {
            let mut optimizer: ModuleOptimizer = AdamConfig::new().with_epsilon(1e-8).init();
            let mut model = Some(stack.train());
            let (milliseconds, allocated) = twice(|| {
                let stack = model.take().expect("put back after every step");
                let loss = stack.log_prob(Tensor::from_inner(x.clone())).mean().neg();
                let grads = GradientsParams::from_grads(loss.backward(), &stack);
                model = Some(optimizer.step(1e-5, stack, grads));
            });
            let peak = support::peak_mib().expect(LINUX);
            // Its gradients are gone by now.
            let held = freed(|| drop((model, optimizer))) + parameters;
            (peak, allocated - held, milliseconds, 3.0)
        }
    };
    let round = |mib: f64| (mib * 10.0).round() / 10.0;
    let [channels, height, width] = case.config.image_shape;
    let line = serde_json::json!({
        "shape": format!("{channels}x{height}x{width}"),
        "mode": mode,
        "k": case.config.num_steps,
        "levels": case.config.num_levels,
        "hidden": case.config.hidden_width,
        "batch": case.batch,
        "parameters_mib": round(parameters),
        "peak_mib": round(peak),
        "activation_mib": round(activations),
        "resident_mib": round(peak - resident - beside * parameters),
        "ms": milliseconds.round(),
    });
    println!("{line}");
}

/// Values of the parameters that get gradients, of a model in training.
fn num_trained<M: Module>(module: &M) -> usize {
    struct Count(usize);
    impl ModuleVisitor for Count {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if param.is_require_grad() {
                self.0 += param.val().shape().num_elements();
            }
        }
    }
    let mut count = Count(0);
    module.visit(&mut count);
    count.0
}

/// Of the second of two runs: milliseconds, and the peak in MiB of all bytes allocated.
fn twice(mut run: impl FnMut()) -> (f64, f64) {
    run();
    ALLOCATOR.peak.store(ALLOCATOR.live.load(Ordering::Relaxed), Ordering::Relaxed);
    let start = Instant::now();
    run();
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    (milliseconds, ALLOCATOR.peak.load(Ordering::Relaxed) as f64 / MIB)
}

/// MiB that `run` frees, the books of autodiff about it included, which Burn gives up at the next
/// backward pass.
fn freed(run: impl FnOnce()) -> f64 {
    let before = ALLOCATOR.live.load(Ordering::Relaxed);
    run();
    let one = Tensor::from_inner(Tensor::<1>::ones([1], &backend::device())).require_grad();
    drop((one.clone() * one).backward());
    (before - ALLOCATOR.live.load(Ordering::Relaxed)) as f64 / MIB
}
