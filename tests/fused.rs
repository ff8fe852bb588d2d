//! The fused couplings of the CPU against the formulation in tensors.
//!
//! A tensor that takes part in autodiff goes through the formulation in tensors, a plain one through
//! the fused kernels: the same coupling computes both.

mod common;

use burn::module::{Module, ParamGroup};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use burn_flows::conditioner::{GlowNetConfig, MlpConfig, NetNorm, ResidualNet, ResidualNetConfig};
use burn_flows::coupling::{AffineCoupling, AffineOrder, Coupling, Mask, Parity, ScaleMap};
use burn_flows::testing::{inputs, move_parameters, seeded, to_f64};
use burn_flows::training::Tape;
use burn_flows::{At, Flow};
use common::{cases, flat, gradients, hosts};
use proptest::prelude::*;

/// Largest error relative to one plus the largest value of the tensor: rounding of sums of at most a
/// few thousand products.
const F32: f64 = 1e-4;
const F64: f64 = 1e-10;

fn compare(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f64, |max, value| max.max(value.abs()));
    for (index, (a, b)) in got.iter().zip(expected).enumerate() {
        let error = (a - b).abs() / (1.0 + largest);
        assert!(error <= tolerance, "{what}[{index}]: {a} is not {b} (largest {largest:e})");
    }
}

/// The norm of the error beside one plus the norm of what is expected.
fn error_of_norm(got: &[f64], expected: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    error / (1.0 + norm(&mut expected.iter().copied()))
}

/// The error of a gradient by its norm. Where rounding puts a hidden value on the other side of ReLU's
/// kink, single entries differ by much, in f32 about once in a million values.
fn compare_norms(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let error = error_of_norm(got, expected);
    assert!(error <= tolerance, "{what}: an error of {error:e} of its norm");
}

/// Outputs, inverse and every gradient, in f32 and f64.
fn check<const D: usize, F: Flow<D>>(flow: F, shape: [usize; D], device: &Device) {
    // Moved little: with `Exp`, rounding in the inverse grows with the scale itself.
    let flow = move_parameters(flow, 1, 0.1);
    let exact = to_f64(flow.clone());
    let seed = off_kinks(&exact, shape, device);
    agree(&exact, inputs(shape, seed, device, DType::F64), [F64; 2]);
    agree(&flow, inputs(shape, seed, device, DType::F32), [F32; 2]);
}

/// More than what the rounding of f32 does to a hidden value.
const NEAR: f64 = 2e-6;

/// The first seed of inputs near which no hidden value changes its sign: where one does, gradients jump,
/// and one road may be on one side of ReLU's kink and one on the other.
fn off_kinks<const D: usize, F: Flow<D>>(flow: &F, shape: [usize; D], device: &Device) -> u64 {
    let training = flow.clone().train();
    let seed = (10..60).find(|&seed| {
        let x = inputs(shape, seed, device, DType::F64);
        let here = by_autodiff(&training, x.clone());
        [0, 1].into_iter().flat_map(|way| [(way, NEAR), (way, -NEAR)]).all(|(way, step)| {
            let moved = x.clone() + inputs(shape, way, device, DType::F64) * step;
            let there = by_autodiff(&training, moved);
            let pairs = || here.gradients.iter().zip(&there.gradients);
            error_of_norm(&there.dx, &here.dx) < F32 / 2.0
                && pairs().all(|((_, a), (_, b))| error_of_norm(b, a) < F32 / 2.0)
        })
    });
    seed.expect("inputs off the kinks")
}

/// What autodiff makes of the formulation in tensors.
struct Plain {
    z: Vec<f64>,
    log_det: Vec<f64>,
    dx: Vec<f64>,
    gradients: Vec<(String, Vec<f64>)>,
}

/// Gradients given for the outputs at `x`.
fn output_gradients<const D: usize>(x: &Tensor<D>) -> (Tensor<D>, Tensor<1>) {
    let (device, dtype) = (x.device(), x.dtype());
    (inputs(x.dims(), 3, &device, dtype), inputs([x.dims()[0]], 4, &device, dtype))
}

fn by_autodiff<const D: usize, F: Flow<D>>(training: &F, x: Tensor<D>) -> Plain {
    let (dz, dlog_det) = output_gradients(&x);
    let tracked = x.autodiff().require_grad();
    let (z, log_det) = training.forward(tracked.clone());
    let (plain_z, plain_log_det) = (flat(z.clone().inner()), flat(log_det.clone().inner()));
    let loss = (z * dz.autodiff()).sum() + (log_det * dlog_det.autodiff()).sum();
    let mut tape = loss.backward();
    let dx = flat(tracked.grad_remove(&mut tape).expect("x is tracked"));
    let gradients = gradients(training, &GradientsParams::from_grads(tape, training));
    Plain { z: plain_z, log_det: plain_log_det, dx, gradients }
}

fn agree<const D: usize, F: Flow<D>>(flow: &F, x: Tensor<D>, [tolerance, of_gradients]: [f64; 2]) {
    let training = flow.clone().train();
    let Plain { z: plain_z, log_det: plain_log_det, dx: plain_dx, gradients: plain } =
        by_autodiff(&training, x.clone());
    let (dz, dlog_det) = output_gradients(&x);

    let (z, log_det) = flow.forward(x.clone());
    compare("z", &flat(z.clone()), &plain_z, tolerance);
    compare("log_det", &flat(log_det), &plain_log_det, tolerance);
    compare("inverse", &flat(flow.inverse(z.clone())), &flat(x.clone()), tolerance);

    let mut grads = GradientsParams::new();
    let (back, dx) =
        training.pull_back(At::Output(z), dz, dlog_det, &mut Tape::default(), &mut grads);
    compare("x", &flat(back), &flat(x), tolerance);
    compare_norms("dx", &flat(dx), &plain_dx, of_gradients);
    let fused = gradients(&training, &grads);
    assert_eq!(fused.len(), plain.len(), "every parameter has its gradient");
    for ((name, got), (_, expected)) in fused.iter().zip(&plain) {
        compare_norms(name, got, expected, of_gradients);
    }
}

fn scale_maps() -> impl Strategy<Value = ScaleMap> {
    prop_oneof![
        Just(ScaleMap::Sigmoid),
        Just(ScaleMap::InverseSigmoid),
        Just(ScaleMap::Exp),
        (0.5..3.0f64).prop_map(|bound| ScaleMap::BoundedExp { bound }),
        Just(ScaleMap::Tanh),
    ]
}

fn parities() -> impl Strategy<Value = Parity> {
    any::<bool>().prop_map(|even| if even { Parity::Even } else { Parity::Odd })
}

fn masks() -> impl Strategy<Value = Mask> {
    (any::<bool>(), parities()).prop_map(|(halves, parity)| {
        if halves { Mask::ChannelHalves(parity) } else { Mask::Alternating(parity) }
    })
}

fn orders() -> impl Strategy<Value = AffineOrder> {
    prop_oneof![Just(AffineOrder::ScaleThenShift), Just(AffineOrder::ShiftThenScale)]
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn images(
        (batch, channels, height, width) in (1usize..4, 2usize..7, 1usize..8, 1usize..8),
        (hidden, act_norm, slope) in (1usize..20, any::<bool>(), prop_oneof![Just(0.0), Just(0.1)]),
        (scale_map, mask, order) in (scale_maps(), masks(), orders()),
    ) {
        for device in hosts() {
            let (seen, changed) = (mask.num_identity(channels), mask.num_transformed(channels));
            let net = |outputs| {
                let net = GlowNetConfig::new(seen, hidden, outputs)
                    .with_norm(if act_norm { NetNorm::ActNorm } else { NetNorm::Bias })
                    .with_negative_slope(slope);
                seeded(1, &device, || net.init(&device)).unwrap()
            };
            let shape = [batch, channels, height, width];
            check(Coupling::additive(net(changed), mask), shape, &device);
            let affine = Coupling::affine_ordered(
                net(2 * changed), mask, scale_map, order, channels, &device,
            );
            check(affine.unwrap(), shape, &device);
        }
    }

    #[test]
    fn residual_nets(
        (batch, channels, height, width) in (1usize..5, 1usize..6, 1usize..9, 1usize..9),
        (hidden, blocks, gain) in (1usize..19, 0usize..3, 0.5..2.5f64),
        (halves, parity, additive) in (any::<bool>(), parities(), any::<bool>()),
    ) {
        let halves = halves && channels > 1;
        let mask = if halves { Mask::ChannelHalves(parity) } else { Mask::Checkerboard(parity) };
        for device in hosts() {
            let (seen, changed) = (mask.num_identity(channels), mask.num_transformed(channels));
            let net = |outputs| {
                let net = ResidualNetConfig::new(seen, hidden, outputs, blocks);
                seeded(1, &device, || net.with_input_gain(gain).init(&device)).unwrap()
            };
            let shape = [batch, channels, height, width];
            // More than a pixel, for the moments.
            let first = inputs([3, channels, height + 1, width], 5, &device, DType::F32);
            let additive_coupling = Coupling::additive(net(changed), mask);
            let affine = Coupling::affine(net(2 * changed), mask, ScaleMap::Tanh, channels, &device);
            if additive {
                check(additive_coupling.initialize(first).0, shape, &device);
            } else {
                check(affine.unwrap().initialize(first).0, shape, &device);
            }
        }
    }

    #[test]
    fn vectors(
        (batch, features) in (1usize..70, 2usize..9),
        hidden in proptest::collection::vec(1usize..40, 0..4),
        (scale_map, mask, order) in (scale_maps(), masks(), orders()),
    ) {
        for device in hosts() {
            let (seen, changed) = (mask.num_identity(features), mask.num_transformed(features));
            let net = |outputs| {
                let net = MlpConfig::new(seen, hidden.clone(), outputs);
                seeded(1, &device, || net.init(&device)).unwrap()
            };
            check(Coupling::additive(net(changed), mask), [batch, features], &device);
            let affine = Coupling::affine_ordered(
                net(2 * changed), mask, scale_map, order, features, &device,
            );
            check(affine.unwrap(), [batch, features], &device);
        }
    }
}

fn large<const D: usize, F: Flow<D>>(flow: &F, shape: [usize; D], device: &Device) {
    agree(&to_f64(flow.clone()), inputs(shape, 2, device, DType::F64), [F64; 2]);
    // Of more than a million hidden values, some are within rounding of the kink in f32: each gives or
    // takes one pixel of a channel's gradient.
    agree(flow, inputs(shape, 2, device, DType::F32), [F32, 2e-3]);
}

/// Sizes of a real model, where several blocks and threads take part.
#[test]
fn blocks_and_threads() {
    for device in hosts() {
        let net = GlowNetConfig::new(2, 128, 4);
        let net = seeded(1, &device, || net.init(&device)).unwrap();
        let coupling = Coupling::affine_ordered(
            net,
            Mask::first_half(),
            ScaleMap::Sigmoid,
            AffineOrder::ShiftThenScale,
            4,
            &device,
        )
        .unwrap();
        let coupling = move_parameters(coupling, 1, 0.02);
        large(&coupling, [33, 4, 14, 14], &device);
        let mask = Mask::Checkerboard(Parity::Odd);
        let net = ResidualNetConfig::new(2, 18, 4, 1);
        let net = seeded(1, &device, || net.init(&device)).unwrap();
        let coupling = Coupling::affine(net, mask, ScaleMap::Tanh, 2, &device).unwrap();
        let shape = [33, 2, 14, 14];
        let coupling = coupling.initialize(inputs(shape, 6, &device, DType::F32)).0;
        large(&move_parameters(coupling, 1, 0.02), shape, &device);
    }
}

/// Whether moments inside of a net count as the batch's in gradients is the same on both roads, and only
/// then a sample's gradient depends on the batch.
#[test]
fn moments_of_residual_nets() {
    let masks = [Mask::second_half(), Mask::Checkerboard(Parity::Odd)];
    for (device, mask) in hosts().iter().flat_map(|device| masks.map(|mask| (device, mask))) {
        let batch = |size, seed| inputs([size, 4, 5, 4], seed, device, DType::F64);
        let (seen, changed) = (mask.num_identity(4), mask.num_transformed(4));
        let net = ResidualNetConfig::new(seen, 5, 2 * changed, 2);
        let net = seeded(1, device, || net.init(device)).unwrap();
        let coupling = Coupling::affine(net, mask, ScaleMap::Tanh, 4, device).unwrap();
        let fresh = to_f64(move_parameters(coupling, 1, 0.3));
        let after = |x| fresh.clone().initialize(x).0;
        let near = after(batch(8, 5) * 1.2 + 0.1);
        let norms = || ParamGroup::from_any_predicates(vec!["norm"]);
        let cases = [
            ("fresh", fresh.clone(), false),
            ("far", after(batch(8, 5) * 1e-4), false),
            ("frozen norms", near.clone().freeze_group(norms()), false),
            ("frozen", near.clone().no_grad(), false),
            ("near", near, true),
        ];
        let pulled = |flow: &AffineCoupling<ResidualNet>, x: Tensor<4>| {
            let (z, log_det) = flow.forward(x);
            let mut grads = GradientsParams::new();
            let training = flow.clone().train();
            let (at, tape) = (At::Output(z), &mut Tape::default());
            let dz = batch(3, 3);
            let (_, dx) = training.pull_back(at, dz, log_det.ones_like(), tape, &mut grads);
            (dx, gradients(&training, &grads))
        };
        for (what, flow, follows) in cases {
            println!("{what}, {mask:?}");
            agree(&flow, batch(3, 2), [F64; 2]);
            let with = |others: Tensor<4>| {
                let x = Tensor::cat(vec![batch(1, 2), others], 0);
                pulled(&flow, x).0.narrow(0, 0, 1)
            };
            let change = (with(batch(2, 6)) - with(batch(2, 7))).abs().max().into_scalar::<f64>();
            assert_eq!(change > 1e-6, follows, "{what}, {mask:?}: {change:e}");
        }
        // By its own moments a batch is normalized whatever the bias in front.
        let (_, grads) = pulled(&after(batch(3, 2)), batch(3, 2));
        for (name, grad) in grads {
            let largest = grad.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
            let vanishes = name.ends_with(".bias") && !name.contains("norm");
            let vanishes = vanishes && !name.contains("conv_out");
            assert_eq!(largest < 1e-12, vanishes, "{name}: {largest:e}");
        }
    }
}
