//! A flow of your own: one layer, proven, in a stack with layers of the library.
//!
//! `cargo run --release --example custom_flow`
//!
//! The prior of a flow is a normal distribution, whose tails are thin; data that sometimes lies far out
//! (prices, claims, anything with bursts) does not suit it. `Tails` is an elementwise map that makes
//! tails heavier or lighter and skews them, both learned. The example
//! proves the layer, and a stack with it, by one call each to [`check_laws`], trains the stack with and without it
//! on data with heavy tails, and prints what the layer is worth in nats.

use std::process::ExitCode;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use burn_flows::conditioner::{Mlp, MlpConfig};
use burn_flows::coupling::{AffineCoupling, Mask, ScaleMap};
use burn_flows::norm::ActNorm;
use burn_flows::prior::{Prior, StandardNormal};
use burn_flows::run::{at_least_one, end_program, say};
use burn_flows::testing::{Laws, check_laws, inputs};
use burn_flows::training::{Schedule, Trainer};
use burn_flows::{Flow, FlowStack, Result, backend, data, metrics};
use clap::Parser;

/// Write a flow of your own, prove it and train it.
#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 400, help = "Optimizer steps")]
    steps: usize,
    #[arg(long, default_value_t = 256, help = "Points a step")]
    batch: usize,
    #[arg(long, default_value_t = 0, help = "Seed of parameters and points")]
    seed: u64,
    #[arg(long, help = "Which of the compiled-in backends computes [default: the preferred one]")]
    device: Option<String>,
}

/// The sinh-arcsinh transformation, on every feature by itself:
///
/// `z = sinh(u)`, `u = exp(log_tail) asinh(x) - skew`
///
/// `exp(log_tail) > 1` stretches what is far out, `< 1` pulls it in; `skew` moves weight from one
/// tail to the other. At zero parameters it is the identity, which is a good start for any layer.
///
/// Source: Jones and Pewsey, *Sinh-arcsinh distributions*, Biometrika 96 (2009).
// `Module` brings training, records and devices. What must survive saving and loading is a `Param`: a
// plain field would not be in the record.
#[derive(Module, Debug)]
struct Tails {
    log_tail: Param<Tensor<1>>,
    skew: Param<Tensor<1>>,
}

impl Tails {
    fn new(num_features: usize, device: &Device) -> Self {
        let zeros = || Param::from_tensor(Tensor::zeros([num_features], device));
        Self { log_tail: zeros(), skew: zeros() }
    }
}

// Two methods make a flow. `Flow<2>`: batches of vectors, `[batch, features]`; images are `Flow<4>`.
impl Flow<2> for Tails {
    /// Data to latent, always this direction, with `ln|det dz/dx|` of each sample: the Jacobian is diagonal, so
    /// it is the sum of the logarithms `ln dz/dx = ln cosh(u) + log_tail - ln sqrt(1 + x^2)`.
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let tail = self.log_tail.val().unsqueeze();
        let u = x.clone().asinh() * tail.clone().exp() - self.skew.val().unsqueeze();
        // sqrt(1 + x^2) is cosh(asinh(x)), and x^2 could be infinite where its logarithm is not.
        let log_slope = ln_cosh(u.clone()) - ln_cosh(x.asinh()) + tail;
        (u.sinh(), log_slope.sum_dim(1).squeeze_dim(1))
    }

    /// Latent to data: the formula solved for `x`.
    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        let u = z.asinh() + self.skew.val().unsqueeze();
        (u * self.log_tail.val().neg().exp().unsqueeze()).sinh()
    }
}

/// `ln cosh(u) = |u| + ln(1 + exp(-2|u|)) - ln 2`: cosh itself is infinite in f32 from `u = 90` on, and
/// one infinity in a batch ends a training.
fn ln_cosh(u: Tensor<2>) -> Tensor<2> {
    let u = u.abs();
    u.clone() + (u * -2.0).exp().log1p() - std::f64::consts::LN_2
}

/// The flow: your layers and the library's side by side, in the order in which the data go through them.
/// `derive(Flow)` makes a struct of flows a flow, with all that the trait has: initialization reaches
/// every layer, training inverts one after the other. (An enum of flows is one of several; tuples,
/// arrays, `Vec`s and `Option`s of flows are flows as well.)
#[derive(Module, Debug, Flow)]
struct Layers {
    tails: Option<Tails>,
    norm: ActNorm,
    couple: AffineCoupling<Mlp>,
}

/// How many layers there are, with `tails`.
const NUM_LAYERS: usize = 3;
const NUM_FEATURES: usize = 2;

fn layers(with_tails: bool, device: &Device) -> Result<Layers> {
    // The coupling changes the second feature by what a net makes of the first. The net gives two
    // numbers, a shift and a scale; it ends in zeros, so that the coupling starts as the identity.
    let net = MlpConfig::new(1, vec![32, 32], 2).with_zero_init(true).init(device)?;
    let mask = Mask::first_half();
    Ok(Layers {
        tails: with_tails.then(|| Tails::new(NUM_FEATURES, device)),
        norm: ActNorm::new(NUM_FEATURES, device)?,
        couple: AffineCoupling::affine(net, mask, ScaleMap::default(), NUM_FEATURES, device)?,
    })
}

const NUM_HELD_OUT: usize = 10_000;

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => end_program(run(&arguments), &[("backend::named", "--device")]),
        Err(error) if error.use_stderr() => end_program(Err::<String, _>(error), &[]),
        Err(help) => end_program(Ok::<_, clap::Error>(help), &[]),
    }
}

fn run(arguments: &Arguments) -> Result<String> {
    at_least_one("--steps", arguments.steps)?;
    at_least_one("--batch", arguments.batch)?;
    let device = backend::named(arguments.device.as_deref())?.1();
    device.seed(arguments.seed);

    // One call: inverse both ways, log-determinant against the Jacobian that autodiff computes, samples
    // that do not see their batch, gradients to every parameter, inputs a millionth to 10,000 times as
    // large, saving and loading. The parameters are moved off the identity first: a layer that does
    // nothing would pass whatever its formulas are.
    let x = inputs([8, NUM_FEATURES], arguments.seed, &device, DType::F32);
    let report = check_laws(&Tails::new(NUM_FEATURES, &device), x.clone())?;
    say(format_args!("Tails keeps the laws of a flow: {report}"));
    // So is the whole. Every layer adds its rounding, which the tolerances must allow for.
    let laws = Laws::new().layers(NUM_LAYERS);
    let report = laws.check(&layers(true, &device)?, x)?;
    say(format_args!("So does the flow of {NUM_LAYERS} layers: {report}"));

    let points = format!("nats a point over {NUM_HELD_OUT} held-out points");
    let (without, _) = train(arguments, false, &device)?;
    say(format_args!("without Tails: {without:.3} {points}"));
    let (with, error) = train(arguments, true, &device)?;
    say(format_args!("with Tails:    {with:.3} {points}"));
    let gain = with - without;
    Ok(format!("Tails is worth {gain:.3} nats a point; largest inversion error {error:.1e}"))
}

/// The mean of `ln p` over held-out points, in nats, and the largest inversion error.
fn train(arguments: &Arguments, with_tails: bool, device: &Device) -> Result<(f64, f64)> {
    // A flow and a prior make a density. The types of a stack say what is in it: this one holds one
    // level, the `Layers`.
    let flow = layers(with_tails, device)?;
    let stack: FlowStack<2, Layers> =
        FlowStack::single(flow, StandardNormal::new(), &[NUM_FEATURES])?;
    let schedule = Schedule::new(5e-3, arguments.steps).with_warm_up(arguments.steps / 10);
    // ActNorm starts from data: the trainer's first batch leaves it with mean 0 and variance 1. A single
    // point far out can have a gradient larger than all others together.
    let mut trainer = Trainer::new(stack, schedule).with_max_gradient_norm(1.0);
    for step in 0..arguments.steps {
        let batch = draw(arguments.batch, (arguments.seed, data::streams::USER, step), device);
        trainer.step(batch)?;
    }

    let model = trainer.model();
    let held_out = draw(NUM_HELD_OUT, (arguments.seed, data::streams::EVALUATE, 0), device);
    let log_prob = model.log_prob(held_out.clone()).mean().into_scalar();
    Ok((log_prob, metrics::inversion_error(&model, held_out)))
}

/// Points with heavy, skewed tails in one feature, and a second one that follows the first.
fn draw(count: usize, (seed, stream, step): (u64, u64, usize), device: &Device) -> Tensor<2> {
    let mut rng = data::random_for(seed, stream, step as u64);
    let mut normal = || -> Tensor<2> {
        StandardNormal::new().sample([count, 1], 1.0, &mut rng, device, DType::F32)
    };
    let heavy = (normal().asinh() * 2.0 + 0.5).sinh();
    let second = heavy.clone().asinh().sin() + normal() * 0.5;
    Tensor::cat(vec![heavy, second], 1)
}
