//! Reversible backpropagation against plain autodiff, whatever is kept; its drift, and micro-batches.

mod common;

use burn::module::{Module, Param, ParamGroup};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flows::conditioner::conv::ZeroConv;
use burn_flows::conditioner::{
    GlowNet, GlowNetConfig, Mlp, MlpConfig, ResidualNet, ResidualNetConfig,
};
use burn_flows::coupling::{
    AdditiveCoupling, AffineCoupling, AffineOrder, Coupling, Mask, Parity, ScaleMap,
};
use burn_flows::data::{Batches, Images, Mnist, random_for, streams};
use burn_flows::linear::{DiagonalScaling, InvertibleConv1x1, Permutation};
use burn_flows::models::{
    Glow, GlowConfig, GlowCoupling, GlowCouplingKind, GlowMixing, GlowMixingKind, GlowPrior,
    GlowSplitPrior,
};
use burn_flows::norm::{ActNorm, BatchNorm};
use burn_flows::preprocess::Quantization;
use burn_flows::prior::{
    ConditionalNormal, DiagonalNormal, Prior, SplitPrior, StandardLogistic, StandardNormal,
};
use burn_flows::reshape::Squeeze;
use burn_flows::testing::{inputs, move_parameters, seeded, to_f64};
use burn_flows::training::{
    DRIFT_BOUND, Drift, LayerDrift, Memory, Schedule, Tape, Trainer, reversible,
};
use burn_flows::{At, Flow, FlowStack, Pass};
use common::{cases, flat, gradients, host};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Relative error of a parameter's gradient, by norm, in f64.
const F64: f64 = 1e-9;

/// The same in f32 at K = 32.
const F32: f64 = 1e-3;

const MEMORIES: [Memory; 3] = [Memory::Reversible, Memory::Checkpoint { every: 5 }, Memory::Stored];

type Gradients = Vec<(String, Vec<f64>)>;

/// Loss and gradients of autodiff through the whole stack.
fn by_autodiff<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>>(
    model: &FlowStack<D, F, P, S>,
    x: Tensor<D>,
) -> (f64, Gradients)
where
    FlowStack<D, F, P, S>: Module,
{
    let loss = model.log_prob(Tensor::from_inner(x)).mean().neg();
    let value = loss.clone().inner().into_scalar::<f64>();
    (value, gradients(model, &GradientsParams::from_grads(loss.backward(), model)))
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// The largest error of a parameter's gradient, relative to its norm.
fn largest_error(got: &Gradients, expected: &Gradients) -> (f64, String) {
    assert_eq!(got.len(), expected.len(), "every parameter has its gradient");
    let errors = got.iter().zip(expected).map(|((name, got), (other, expected))| {
        assert_eq!((name, got.len()), (other, expected.len()));
        let error = norm(got.iter().zip(expected).map(|(a, b)| a - b));
        (error / norm(expected.iter().copied()), name.clone())
    });
    errors.max_by(|a, b| a.0.total_cmp(&b.0)).expect("the stack has parameters")
}

/// Loss and every gradient, whatever is kept, are those of autodiff.
fn agree<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>>(
    what: &str,
    stack: &FlowStack<D, F, P, S>,
    x: Tensor<D>,
    tolerance: f64,
) where
    FlowStack<D, F, P, S>: Module,
{
    let model = stack.clone().train();
    let (loss, expected) = by_autodiff(&model, x.clone());
    for memory in MEMORIES {
        let mut tape = Tape::new(memory);
        let (value, grads) = reversible::gradients_on(&model, x.clone(), &mut tape);
        let value = value.into_scalar::<f64>();
        assert!(
            (value - loss).abs() <= tolerance * (1.0 + loss.abs()),
            "{what}, {memory}: a loss of {value}, not {loss}"
        );
        let (error, name) = largest_error(&gradients(&model, &grads), &expected);
        println!("{what}, {memory}: {error:.1e} at {name}");
        assert!(error <= tolerance, "{what}, {memory}: {name} is off by {error:e}");
    }
}

/// The start is the identity in part; the more steps, the less they are moved.
fn moved<M: Module>(module: M, num_steps: usize) -> M {
    move_parameters(module, 1, 0.1 / (num_steps as f64).sqrt())
}

type Nice = FlowStack<2, (Vec<AdditiveCoupling<Mlp>>, DiagonalScaling), StandardLogistic>;

/// 16 features, halved at each split.
fn nice(num_steps: usize, num_levels: usize, device: &Device) -> Nice {
    let level = |features: usize| {
        let step = |index| {
            let mask = Mask::Alternating(Parity::of(index));
            let (seen, changed) = (mask.num_identity(features), mask.num_transformed(features));
            let net = MlpConfig::new(seen, vec![6], changed);
            let net = seeded(index as u64, device, || net.init(device)).unwrap();
            Coupling::additive(net, mask)
        };
        let steps = (0..num_steps).map(step).collect();
        (steps, DiagonalScaling::new(features, device).unwrap())
    };
    let levels = (0..num_levels).map(|index| level(16 >> index)).collect();
    let split_priors = vec![StandardNormal::new(); num_levels - 1];
    FlowStack::new(levels, split_priors, StandardLogistic::new(), &[16]).unwrap()
}

type RealNvp = FlowStack<4, (Vec<(AffineCoupling<ResidualNet>, BatchNorm)>, Squeeze)>;

/// Checkerboard couplings with residual nets, batch normalization and squeezes, on 1x16x16.
fn real_nvp(num_steps: usize, num_levels: usize, device: &Device) -> RealNvp {
    let level = |channels: usize| {
        let step = |index| {
            let mask = Mask::Checkerboard(Parity::of(index));
            let net = ResidualNetConfig::new(channels, 2, 2 * channels, 1);
            let net = seeded(index as u64, device, || net.init(device)).unwrap();
            let coupling = Coupling::affine(net, mask, ScaleMap::Tanh, channels, device).unwrap();
            (coupling, BatchNorm::new(channels, device).unwrap())
        };
        ((0..num_steps).map(step).collect(), Squeeze::new())
    };
    let levels = (0..num_levels).map(|index| level(1 << index)).collect();
    let split_priors = vec![StandardNormal::new(); num_levels - 1];
    FlowStack::new(levels, split_priors, StandardNormal::new(), &[1, 16, 16]).unwrap()
}

fn glow(num_steps: usize, num_levels: usize, device: &Device) -> Glow {
    let config = GlowConfig::new([1, 16, 16], num_levels, num_steps, 4);
    seeded(0, device, || config.init(&mut StdRng::seed_from_u64(0), device)).unwrap()
}

fn images(batch: usize, dtype: DType) -> Tensor<4> {
    inputs([batch, 1, 16, 16], 2, &host(), dtype)
}

/// A batch for running moments, another one than gradients are of: by its own moments what a net's
/// normalization takes away again, the bias in front of it, has no gradient but rounding.
fn observed(dtype: DType) -> Tensor<4> {
    inputs([8, 1, 16, 16], 5, &host(), dtype) * 0.7 + 0.2
}

#[test]
fn nice_agrees_with_autodiff() {
    for (num_steps, num_levels) in depths() {
        let stack = to_f64(moved(nice(num_steps, num_levels, &host()), num_steps));
        let x = inputs([3, 16], 2, &host(), DType::F64);
        agree(&format!("NICE, K = {num_steps}, L = {num_levels}"), &stack, x, F64);
    }
}

#[test]
fn real_nvp_agrees_with_autodiff() {
    for (num_steps, num_levels) in depths() {
        let stack = to_f64(moved(real_nvp(num_steps, num_levels, &host()), num_steps));
        let (stack, _) = stack.data_pass(observed(DType::F64), Pass::Observe);
        let x = images(3, DType::F64);
        agree(&format!("RealNVP, K = {num_steps}, L = {num_levels}"), &stack, x, F64);
    }
}

#[test]
fn glow_agrees_with_autodiff() {
    for (num_steps, num_levels) in depths() {
        let stack = to_f64(moved(glow(num_steps, num_levels, &host()), num_steps));
        // The moments of a few values divide by next to nothing, and that in every step.
        let (stack, _) = stack.initialize(images(64, DType::F64));
        let x = images(3, DType::F64);
        agree(&format!("Glow, K = {num_steps}, L = {num_levels}"), &stack, x, F64);
    }
}

fn depths() -> impl Iterator<Item = (usize, usize)> {
    [1, 4, 32].into_iter().flat_map(|num_steps| (1..5).map(move |levels| (num_steps, levels)))
}

#[test]
fn single_precision_agrees_with_autodiff() {
    let x = images(3, DType::F32);
    let (stack, _) = moved(glow(32, 2, &host()), 32).initialize(x.clone());
    agree("Glow, K = 32, f32", &stack, x.clone(), F32);
    let (stack, _) =
        moved(real_nvp(32, 2, &host()), 32).data_pass(observed(DType::F32), Pass::Observe);
    agree("RealNVP, K = 32, f32", &stack, x, F32);
    let x = inputs([3, 16], 2, &host(), DType::F32);
    agree("NICE, K = 32, f32", &moved(nice(32, 2, &host()), 32), x, F32);
}

/// A user's flow, with no method that knows of gradients: `z = asinh(x exp(log_scale))`.
#[derive(Module, Debug)]
struct Compress {
    log_scale: Param<Tensor<1>>,
}

impl Compress {
    fn new(device: &Device) -> Self {
        Self { log_scale: Param::from_data([0.1], device) }
    }
}

impl<const D: usize> Flow<D> for Compress {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        let batch = x.dims()[0];
        let dims = x.dims()[1..].iter().product::<usize>();
        let y = x * self.log_scale.val().exp().reshape([1; D]);
        let root = (y.clone().square() + 1.0).sqrt();
        // asinh is odd; of a magnitude its logarithm does not cancel.
        let z = (y.clone().abs() + root.clone()).log() * y.sign();
        let log_det = root.log().reshape([batch, dims]).sum_dim(1).reshape([batch]).neg();
        (z, log_det + self.log_scale.val() * dims as f64)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        let sinh = (z.clone().exp() - z.neg().exp()) / 2.0;
        sinh * self.log_scale.val().neg().exp().reshape([1; D])
    }
}

/// What random compositions are made of.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)]
enum Step {
    ActNorm(ActNorm),
    Mixing(InvertibleConv1x1),
    Permutation(Permutation),
    Scaling(DiagonalScaling),
    Own(Compress),
    Additive(AdditiveCoupling<GlowNet>),
    Affine(AffineCoupling<GlowNet>),
    Checkerboard(AffineCoupling<ResidualNet>),
    Pair((ActNorm, BatchNorm)),
    Nested(FlowStack<4, [ActNorm; 2], StandardNormal, StandardNormal>),
}

const KINDS: usize = 10;

type Composition =
    FlowStack<4, (Option<Step>, Squeeze, Vec<Step>, [Step; 2]), GlowPrior, GlowSplitPrior>;

fn step(kind: usize, index: usize, side: usize, channels: usize, device: &Device) -> Step {
    let rng = &mut StdRng::seed_from_u64(index as u64);
    let mask = match index % 3 {
        0 => Mask::first_half(),
        1 => Mask::second_half(),
        _ => Mask::Alternating(Parity::Odd),
    };
    let (seen, changed) = (mask.num_identity(channels), mask.num_transformed(channels));
    let net = |outputs| {
        let net = GlowNetConfig::new(seen, 3, outputs);
        seeded(index as u64, device, || net.init(device)).unwrap()
    };
    let norm = || ActNorm::new(channels, device).unwrap();
    let board = Mask::Checkerboard(Parity::of(index));
    match kind {
        0 => Step::ActNorm(norm()),
        1 if index.is_multiple_of(2) => {
            Step::Mixing(InvertibleConv1x1::plain(channels, rng, device).unwrap())
        }
        1 => Step::Mixing(InvertibleConv1x1::plu(channels, rng, device).unwrap()),
        2 => Step::Permutation(Permutation::shuffle(channels, rng, device).unwrap()),
        3 => Step::Scaling(DiagonalScaling::new(channels, device).unwrap()),
        4 => Step::Own(Compress::new(device)),
        5 if channels > 1 => Step::Additive(Coupling::additive(net(changed), mask)),
        6 if channels > 1 => Step::Affine(
            Coupling::affine(net(2 * changed), mask, ScaleMap::Sigmoid, channels, device).unwrap(),
        ),
        5..=7 => {
            let net = ResidualNetConfig::new(channels, 2, 2 * channels, 1);
            let net = seeded(index as u64, device, || net.init(device)).unwrap();
            let order = AffineOrder::ShiftThenScale;
            let scale_map = ScaleMap::BoundedExp { bound: 1.0 };
            let coupling = Coupling::affine_ordered(net, board, scale_map, order, channels, device);
            Step::Checkerboard(coupling.unwrap())
        }
        8 => Step::Pair((norm(), BatchNorm::new(channels, device).unwrap())),
        _ => {
            let levels = vec![[norm(), norm()]];
            let shape = [channels, side, side];
            Step::Nested(FlowStack::new(levels, Vec::new(), StandardNormal::new(), &shape).unwrap())
        }
    }
}

/// Levels by the kinds of their steps: one before the squeeze, if any, and those after it.
fn composition(levels: &[(Option<usize>, Vec<usize>)], device: &Device) -> Composition {
    // After three squeezes a checkerboard still has squares of both kinds.
    let (mut channels, mut side) = (1, 16);
    let mut index = 0;
    let (mut parts, mut split_priors) = (Vec::new(), Vec::new());
    for (number, (first, kinds)) in levels.iter().enumerate() {
        let mut next = |kind, channels, side| {
            index += 1;
            step(kind, index, side, channels, device)
        };
        let first = first.map(|kind| next(kind, channels, side));
        (channels, side) = (4 * channels, side / 2);
        let steps = kinds.iter().map(|&kind| next(kind, channels, side)).collect();
        let last = [0, 1].map(|i| next((kinds.len() + i) % KINDS, channels, side));
        parts.push((first, Squeeze::new(), steps, last));
        if number + 1 < levels.len() {
            let kept = channels / 2;
            split_priors.push(if number.is_multiple_of(2) {
                let prior = ConditionalNormal::<ZeroConv>::glow(kept, channels - kept, device);
                GlowSplitPrior::Conditional(prior)
            } else {
                GlowSplitPrior::Standard(StandardNormal::new())
            });
            channels = kept;
        }
    }
    let prior = GlowPrior::Learned(DiagonalNormal::per_channel(channels, device));
    FlowStack::new(parts, split_priors, prior, &[1, 16, 16]).unwrap()
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn random_compositions_agree_with_autodiff(
        levels in proptest::collection::vec(
            (proptest::option::of(0..KINDS), proptest::collection::vec(0..KINDS, 0..5)), 1..4,
        ),
        every in 1usize..6,
    ) {
        let stack = to_f64(move_parameters(composition(&levels, &host()), 3, 0.05));
        let x = inputs([2, 1, 16, 16], 4, &host(), DType::F64);
        let (stack, _) = stack.data_pass(observed(DType::F64), Pass::Observe);
        agree(&format!("{levels:?}"), &stack, x.clone(), F64);

        // Any other distance of the checkpoints, and the composition as a flow without its priors.
        let model = stack.train();
        let (_, expected) = by_autodiff(&model, x.clone());
        let mut tape = Tape::new(Memory::Checkpoint { every }).measuring(every);
        let (_, grads) = reversible::gradients_on(&model, x.clone(), &mut tape);
        prop_assert!(largest_error(&gradients(&model, &grads), &expected).0 < F64);
        prop_assert!(tape.into_drift().expect("it was measured").largest() < F64);
    }
}

/// Any function of the outputs of any flow, without a stack around it.
#[test]
fn gradients_of_another_loss() {
    let device = host();
    let flow = (Compress::new(&device), DiagonalScaling::new(3, &device).unwrap());
    let flow = to_f64(move_parameters(flow, 1, 0.1)).train();
    let x = inputs([4, 3], 2, &device, DType::F64);
    let loss = |z: Tensor<2>, log_det: Tensor<1>| z.powi_scalar(4).mean() - log_det.sum() * 0.3;

    let tracked = Tensor::from_inner(x.clone()).require_grad();
    let (z, log_det) = flow.forward(tracked.clone());
    let value = loss(z, log_det);
    let mut graph = value.backward();
    let expected_dx = flat(tracked.grad_remove(&mut graph).unwrap());
    let expected = gradients(&flow, &GradientsParams::from_module(&mut graph, &flow));
    for memory in MEMORIES {
        let (got, dx, grads) =
            reversible::gradients_of(&flow, x.clone(), &mut Tape::new(memory), loss);
        assert!(
            (got.into_scalar::<f64>() - value.clone().inner().into_scalar::<f64>()).abs() < F64
        );
        assert!(largest_error(&gradients(&flow, &grads), &expected).0 < F64);
        let error = norm(flat(dx).iter().zip(&expected_dx).map(|(a, b)| a - b));
        assert!(error < F64, "dx is off by {error:e}");
    }
}

/// A Glow whose first ActNorms are initialized, moved.
fn started(num_steps: usize, dtype: DType) -> Glow {
    let stack = moved(glow(num_steps, 2, &host()), num_steps);
    let stack = if dtype == DType::F64 { to_f64(stack) } else { stack };
    stack.initialize(images(32, dtype)).0
}

#[test]
fn measuring_changes_nothing() {
    let model = started(8, DType::F32).train();
    let x = images(4, DType::F32);
    for memory in MEMORIES {
        let (_, plain) = reversible::gradients_on(&model, x.clone(), &mut Tape::new(memory));
        let mut tape = Tape::new(memory).measuring(3);
        let (_, measured) = reversible::gradients_on(&model, x.clone(), &mut tape);
        assert_eq!(gradients(&model, &plain), gradients(&model, &measured), "{memory}");
        let drift = tape.into_drift().expect("it was measured");
        assert_eq!(drift.layers.is_empty(), memory == Memory::Stored, "{memory}");
        assert!(drift.largest() < 1e-4, "{memory}: {}", drift.largest());
    }
}

/// Two levels of a squeeze and 8 steps of 3 layers.
const LAYERS: usize = 2 * (1 + 8 * 3);

fn measure(memory: Memory, turn: usize) -> Drift {
    let model = started(8, DType::F32).train();
    let mut tape = Tape::new(memory).measuring(turn);
    reversible::gradients_on(&model, images(2, DType::F32), &mut tape);
    tape.into_drift().expect("it was measured")
}

#[test]
fn every_layer_has_its_turn() {
    let mut seen = [false; LAYERS];
    for turn in 0..8 {
        let drift = measure(Memory::Reversible, turn);
        assert!((5..=9).contains(&drift.layers.len()), "{} layers", drift.layers.len());
        assert_eq!(drift.layers[0].layer, 0, "the first one is always measured");
        for layer in &drift.layers {
            assert_eq!(layer.distance, LAYERS - layer.layer);
            seen[layer.layer] = true;
        }
    }
    assert_eq!(seen, [true; LAYERS]);
    // Right after a checkpoint, all others are inverted.
    let layers = measure(Memory::Checkpoint { every: 10 }, 0).layers;
    let places: Vec<_> = layers.iter().map(|layer| (layer.layer, layer.distance)).collect();
    assert_eq!(places, [(1, 9), (11, 9), (21, 9), (31, 9), (41, 9)]);
}

#[test]
fn a_tape_keeps_what_its_memory_says() {
    let stack = started(8, DType::F32);
    let x = images(2, DType::F32);
    let bytes = |memory| {
        let mut tape = Tape::new(memory);
        stack.forward_on(x.clone(), &mut tape);
        tape.num_bytes()
    };
    let input = 2 * 256 * 4;
    assert_eq!(bytes(Memory::Reversible), 0);
    // Half of the values go on to the second level.
    assert_eq!(bytes(Memory::Checkpoint { every: 1 }), LAYERS / 2 * (input + input / 2));
    // Layers may add values of their own.
    assert!(bytes(Memory::Stored) >= LAYERS / 2 * (input + input / 2));
    assert_eq!(bytes(Memory::Checkpoint { every: LAYERS / 2 }), input + input / 2);
    assert_eq!(bytes(Memory::Checkpoint { every: LAYERS }), input);
}

/// A layer that keeps something better than its input.
#[derive(Module, Debug)]
struct Keeper {
    scaling: DiagonalScaling,
}

impl Flow<2> for Keeper {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        self.scaling.forward(x)
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.scaling.inverse(z)
    }

    fn forward_on(&self, x: Tensor<2>, tape: &mut Tape) -> (Tensor<2>, Tensor<1>) {
        tape.push(&x);
        if tape.memory() == Memory::Stored {
            tape.keep(x.dims()[0], size_of::<usize>());
        }
        self.forward(x)
    }

    fn pull_back(
        &self,
        at: At<2>,
        dz: Tensor<2>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<2>, Tensor<2>) {
        let at = tape.pop(at);
        if tape.memory() == Memory::Stored {
            assert_eq!(tape.take::<usize>(), Some(dz.dims()[0]));
        }
        self.scaling.pull_back(at, dz, dlog_det, &mut Tape::default(), grads)
    }
}

#[test]
fn a_layer_keeps_values_of_its_own() {
    let device = host();
    let keeper = || Keeper { scaling: DiagonalScaling::new(3, &device).unwrap() };
    let flow = vec![keeper(), keeper()];
    let stack: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[3]).unwrap();
    let x = inputs([5, 3], 1, &device, DType::F64);
    let stack = to_f64(moved(stack, 1));
    agree("layers with values of their own", &stack, x.clone(), F64);
    let mut tape = Tape::new(Memory::Stored);
    stack.forward_on(x, &mut tape);
    assert_eq!(tape.num_bytes(), 2 * (5 * 3 * 8 + size_of::<usize>()));
}

#[test]
#[should_panic(expected = "must go through the same layers")]
fn a_flow_that_pops_what_it_did_not_push() {
    let mut tape = Tape::new(Memory::Stored);
    let flow = Compress::new(&host()).train();
    let x = inputs([2, 2], 1, &host(), DType::F32);
    let dlog_det = Tensor::zeros([2], &host());
    let mut grads = GradientsParams::new();
    flow.pull_back(At::Output(x.clone()), x, dlog_det, &mut tape, &mut grads);
}

#[test]
fn checkpoints_are_half_the_distance_of_the_first_error() {
    let layer = |layer, distance, error| LayerDrift { layer, distance, error };
    let drift = |layers: &[LayerDrift]| Drift { layers: layers.to_vec() };
    let measured = drift(&[layer(0, 40, f64::INFINITY), layer(20, 20, 2e-3), layer(30, 10, 1e-4)]);
    assert_eq!(measured.largest(), f64::INFINITY);
    assert_eq!(measured.checkpoint_every(1e-3), Some(10));
    assert_eq!(measured.checkpoint_every(1e-5), Some(5));
    assert_eq!(drift(&[layer(39, 1, 1.0)]).checkpoint_every(1e-3), Some(1));
    assert_eq!(drift(&[layer(0, 40, 1e-4)]).checkpoint_every(1e-3), None);
    assert_eq!(drift(&[]).largest(), 0.0);
}

#[test]
fn memories_are_written_as_they_are_read() {
    for memory in MEMORIES {
        assert_eq!(memory.to_string().parse::<Memory>().unwrap(), memory);
    }
    for wrong in ["", "all", "checkpoint:", "checkpoint:0", "checkpoint:-1", "stored:2"] {
        let error = wrong.parse::<Memory>().unwrap_err().to_string();
        assert!(error.contains("reversible, checkpoint, checkpoint:N or stored"), "{error}");
    }
}

/// A first step on `x` of a trainer of `stack`: what was measured, and what the gradients are off by
/// from autodiff through the model in f64, without and with the control of the drift.
fn controlled(what: &str, stack: Glow, x: Tensor<4>) -> Controlled {
    let double = to_f64(stack.clone()).train();
    let (_, exact) = by_autodiff(&double, x.clone().cast(DType::F64));
    let error = |memory| {
        let model = stack.clone().train();
        let (_, grads) = reversible::gradients_on(&model, x.clone(), &mut Tape::new(memory));
        let (error, name) = largest_error(&gradients(&model, &grads), &exact);
        println!("{what}, {memory}: gradients off by {error:.1e} at {name}");
        if error.is_nan() { f64::INFINITY } else { error }
    };
    let mut tape = Tape::new(Memory::Reversible).measuring(0);
    reversible::gradients_on(&stack.clone().train(), x.clone(), &mut tape);
    let free = tape.into_drift().expect("it was measured").largest();
    let mut trainer = Trainer::new(stack.clone(), Schedule::constant(1e-4))
        .with_memory(Memory::Reversible)
        .without_initialization();
    let held = trainer.step(x.clone()).unwrap().drift.expect("the first step is measured");
    println!("{what}: drift {free:.1e}, held at {held:.1e} by {}", trainer.memory());
    Controlled {
        free,
        held,
        memory: trainer.memory(),
        free_error: error(Memory::Reversible),
        held_error: error(trainer.memory()),
        stored_error: error(Memory::Stored),
    }
}

struct Controlled {
    free: f64,
    held: f64,
    memory: Memory,
    free_error: f64,
    held_error: f64,
    stored_error: f64,
}

/// A Glow of 64 steps, in single precision.
#[test]
fn depth_alone_drifts_little() {
    let Controlled { free, held, memory, free_error, .. } =
        controlled("K = 64", started(64, DType::F32), images(3, DType::F32));
    assert!(free < DRIFT_BOUND && held == free, "{free:e}, {held:e}");
    assert_eq!(memory, Memory::Reversible);
    assert!(free_error < F32, "{free_error:e}");
}

/// Scales at their bound: every coupling's inverse multiplies errors by `exp(2)`.
#[test]
fn couplings_at_their_bound_are_checkpointed() {
    let config = GlowConfig::new([1, 16, 16], 1, 16, 4)
        .with_coupling(GlowCouplingKind::Affine(ScaleMap::BoundedExp { bound: 2.0 }))
        .with_mixing(GlowMixingKind::Reverse);
    let rng = &mut StdRng::seed_from_u64(0);
    let mut stack = seeded(0, &host(), || config.init(rng, &host())).unwrap();
    for (_, _, coupling) in &mut stack.levels[0].2 {
        let GlowCoupling::Affine(coupling) = coupling else { unreachable!("affine was asked for") };
        // The raw scales are the last two of the net's four outputs; at -40 they are saturated.
        let bias = &mut coupling.conditioner.conv3.conv.bias;
        *bias = Some(Param::from_data([0.0, 0.0, -40.0, -40.0], &host()));
    }
    let stack = moved(stack, 16);
    check_control(controlled("bounded scales", stack, images(3, DType::F32)));
}

/// 1x1 convolutions whose matrices have a condition of 1000.
#[test]
fn ill_conditioned_mixing_is_checkpointed() {
    let mut stack = started(16, DType::F32);
    for level in &mut stack.levels {
        for (_, mixing, _) in &mut level.2 {
            let GlowMixing::Conv1x1(conv) = mixing else { unreachable!("the default mixing") };
            let matrix = conv.matrix();
            let [size, _] = matrix.dims();
            // A rotation, of which one row is next to another one.
            let row = matrix.clone().narrow(0, 0, 1) + matrix.clone().narrow(0, 1, 1) * 1e-3;
            let rest = matrix.narrow(0, 2, size - 2);
            let first = conv.matrix().narrow(0, 0, 1);
            *conv = InvertibleConv1x1::from_weight(Tensor::cat(vec![first, row, rest], 0));
        }
    }
    check_control(controlled("condition 1000", stack, images(3, DType::F32)));
}

fn check_control(controlled: Controlled) {
    let Controlled { free, held, memory, free_error, held_error, stored_error } = controlled;
    assert!(free > DRIFT_BOUND, "nothing to control at {free:e}");
    assert!(held <= DRIFT_BOUND, "held at {held:e}");
    let Memory::Checkpoint { every } = memory else { panic!("{memory} holds nothing") };
    assert!(every > 1, "the inputs of all layers are kept");
    assert!(held_error < free_error, "{held_error:e} with, {free_error:e} without");
    assert!(held_error < 0.01 + 2.0 * stored_error, "{held_error:e}, stored {stored_error:e}");
}

/// Where nets' products are saved and the memory is there, a step keeps them; without a net, nothing; and what
/// the user says stays.
#[test]
fn the_first_batch_decides_the_memory() {
    let x = images(3, DType::F32);
    let mut glow = Trainer::new(started(2, DType::F32), Schedule::constant(1e-3));
    assert_eq!(glow.memory(), Memory::Reversible, "before the first batch");
    glow.step(x.clone()).unwrap();
    assert_eq!(glow.memory(), Memory::Stored);

    let scaling = DiagonalScaling::new(2, &host()).unwrap();
    let plain: FlowStack<2, _> = FlowStack::single(scaling, StandardNormal::new(), &[2]).unwrap();
    let mut plain = Trainer::new(plain, Schedule::constant(1e-3));
    plain.step(inputs([4, 2], 1, &host(), DType::F32)).unwrap();
    assert_eq!(plain.memory(), Memory::Reversible, "there is nothing to save");

    let asked = Trainer::new(started(2, DType::F32), Schedule::constant(1e-3));
    let mut asked = asked.with_memory(Memory::Checkpoint { every: 3 });
    asked.step(x).unwrap();
    assert_eq!(asked.memory(), Memory::Checkpoint { every: 3 });
}

#[test]
fn a_checkpoint_restores_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let trainer =
        |memory| Trainer::new(started(2, DType::F32), Schedule::constant(1e-3)).with_memory(memory);
    for memory in MEMORIES {
        let mut saved = trainer(memory);
        saved.step(images(2, DType::F32)).unwrap();
        saved.save(folder.path(), "a note\nof two lines").unwrap();
        let (resumed, note) = trainer(Memory::Reversible).resume(folder.path()).unwrap();
        assert_eq!((resumed.memory(), resumed.num_steps()), (memory, 1));
        assert_eq!(note.unwrap(), "a note\nof two lines");
    }
}

/// Steps in parts are steps of the whole batch, the last part being smaller.
fn micro_batches_add_up<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>>(
    stack: FlowStack<D, F, P, S>,
    x: Tensor<D>,
) where
    FlowStack<D, F, P, S>: Module,
{
    let run = |micro_batch| {
        let mut trainer = Trainer::new(stack.clone(), Schedule::constant(1e-4))
            .with_memory(Memory::Reversible)
            .with_micro_batch(micro_batch);
        let steps: Vec<_> = (0..3).map(|_| trainer.step(x.clone()).unwrap()).collect();
        (steps, flat(trainer.model().log_prob(x.clone())))
    };
    let (whole, expected) = run(usize::MAX);
    for micro_batch in [1, 3, 7] {
        let (parts, log_prob) = run(micro_batch);
        for (part, whole) in parts.iter().zip(&whole) {
            assert!((part.loss - whole.loss).abs() < 1e-10 * (1.0 + whole.loss.abs()));
            assert!((part.gradient_norm / whole.gradient_norm - 1.0).abs() < 1e-9);
        }
        let error = norm(log_prob.iter().zip(&expected).map(|(a, b)| a - b));
        assert!(error < 1e-6 * norm(expected.iter().copied()), "{micro_batch}: {error:e}");
    }
}

#[test]
fn micro_batches_of_glow_add_up() {
    micro_batches_add_up(started(2, DType::F64), images(7, DType::F64));
}

/// In nets whose normalizations are not trained; else each part has the gradients of its own moments.
#[test]
fn micro_batches_with_batch_norm_add_up() {
    let stack = to_f64(moved(real_nvp(2, 2, &host()), 2));
    let stack = stack.freeze_group(ParamGroup::from_any_predicates(vec!["norm"]));
    micro_batches_add_up(stack, images(7, DType::F64));
}

/// A training of a small Glow on MNIST.
struct Training {
    stack: Glow,
    batches: Batches,
    images: Images,
}

impl Training {
    fn new() -> Self {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
        let images = Mnist::load(&folder).unwrap().train;
        let config = GlowConfig::new([1, 28, 28], 2, 4, 16).with_logit(1e-6);
        let rng = &mut StdRng::seed_from_u64(0);
        let stack = seeded(0, &host(), || config.init(rng, &host())).unwrap();
        let batches = Batches::training(images.len(), 16, 0).unwrap();
        let training = Self { stack, batches, images };
        let first: Vec<usize> = (0..64).collect();
        let (stack, _) = training.stack.clone().initialize(training.batch(&first, 0));
        Self { stack, ..training }
    }

    fn batch(&self, indices: &[usize], step: u64) -> Tensor<4> {
        let mut rng = random_for(0, streams::DEQUANTIZE, step);
        let pixels = self.images.gather(indices);
        let values = Quantization::new(8).unwrap().dequantize(&pixels, &mut rng);
        let shape = [indices.len(), 1, 28, 28];
        Tensor::from_data(TensorData::new(values, shape), (&host(), DType::F32))
    }

    /// The loss of each step.
    fn curve(&self, num_steps: usize, mut step: impl FnMut(Tensor<4>) -> f64) -> Vec<f64> {
        let steps = self.batches.from_step(0).take(num_steps);
        steps.map(|batch| step(self.batch(&batch.indices, batch.step))).collect()
    }

    fn curve_of(&self, memory: Memory, num_steps: usize) -> Vec<f64> {
        let mut trainer =
            Trainer::new(self.stack.clone(), Schedule::constant(1e-3)).with_memory(memory);
        self.curve(num_steps, |x| trainer.step(x).unwrap().loss)
    }
}

/// The curve of a training on MNIST, whatever is kept; longer runs are the same with the example
/// `mnist` and its option `--memory`.
#[test]
fn a_training_on_mnist_has_one_curve() {
    const STEPS: usize = 25;
    let training = Training::new();
    let stored = training.curve_of(Memory::Stored, STEPS);
    assert!(stored[STEPS - 1] < stored[0] - 100.0, "it learns: {stored:?}");
    for memory in [Memory::Reversible, Memory::Checkpoint { every: 5 }] {
        let curve = training.curve_of(memory, STEPS);
        for (step, (got, expected)) in curve.iter().zip(&stored).enumerate() {
            let error = (got - expected).abs() / expected.abs();
            assert!(error < 1e-4, "{memory}, step {step}: {got} nats, stored {expected}");
        }
    }
}

/// The fused kernels and the Adam of one pass against the formulation in tensors, Burn's autodiff and
/// Burn's Adam, over a whole training.
#[test]
fn both_roads_have_one_curve() {
    const STEPS: usize = 200;
    let training = Training::new();
    let fused = training.curve_of(Memory::Stored, STEPS);
    let mut optimizer: ModuleOptimizer = AdamConfig::new().with_epsilon(1e-8).init();
    let mut model = Some(training.stack.clone().train());
    let plain = training.curve(STEPS, |x| {
        let stack = model.take().unwrap();
        let loss = stack.log_prob(Tensor::from_inner(x)).mean().neg();
        let grads = GradientsParams::from_grads(loss.backward(), &stack);
        model = Some(optimizer.step(1e-3, stack, grads));
        loss.into_scalar::<f64>()
    });
    // Each step goes on from the rounding of all before it.
    for (step, (got, expected)) in fused.iter().zip(&plain).enumerate() {
        let error = (got - expected).abs() / expected.abs();
        let noise = if step < 25 { 1e-4 } else { 1e-2 };
        assert!(error < noise, "step {step}: {got} nats by the kernels, {expected} by autodiff");
    }
}
