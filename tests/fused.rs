//! The fused couplings of the CPU against the formulation in tensors.
//!
//! A tensor that takes part in autodiff goes through the formulation in tensors, a plain one through
//! the fused kernels: the same coupling computes both.

mod common;

use burn::module::{Module, ParamGroup};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use burn_flows::autoregressive::{Autoregressive, MadeConfig};
use burn_flows::conditioner::{GlowNetConfig, MlpConfig, NetNorm, ResidualNet, ResidualNetConfig};
use burn_flows::context::{Given, WithContext};
use burn_flows::coupling::{
    Additive, Affine, AffineCoupling, AffineOrder, Coupling, Mask, Parity, RationalQuadraticConfig,
    ScaleMap, SplineForm, SplineTails, Transform,
};
use burn_flows::prior::StandardNormal;
use burn_flows::testing::{inputs, move_parameters, seeded, to_f64};
use burn_flows::training::{Memory, Schedule, StepGradients, Tape, Trainer};
use burn_flows::{At, Flow, FlowStack};
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

fn splines() -> impl Strategy<Value = RationalQuadraticConfig> {
    let tails = prop_oneof![
        Just(SplineTails::Identity),
        Just(SplineTails::Linear),
        Just(SplineTails::Circular)
    ];
    let forms = prop_oneof![Just(SplineForm::default()), Just(SplineForm::Bent { slope: 1e-2 })];
    (2usize..12, tails, forms).prop_map(|(bins, tails, form)| {
        // On a circle the inverse gives values within the interval.
        let bound = if tails == SplineTails::Circular { 7.0 } else { 1.3 };
        RationalQuadraticConfig::new(bins, bound).with_tails(tails).with_form(form)
    })
}

/// With a context for each sample, of so many features.
fn given<F: Flow<2>>(flow: F, samples: usize, width: usize, device: &Device) -> F {
    match width {
        0 => flow,
        _ => flow.given(&inputs([samples, width], 9, device, DType::F32)).unwrap(),
    }
}

/// Orders of steps: one feature each, the other way around, two at a time.
fn order(kind: usize, features: usize) -> Vec<usize> {
    let step = |feature| match kind {
        0 => feature,
        1 => features - 1 - feature,
        _ => feature / 2,
    };
    (0..features).map(step).collect()
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn spline_couplings(
        (batch, features, context) in (1usize..70, 2usize..7, 0usize..4),
        hidden in proptest::collection::vec(1usize..30, 0..3),
        (spline, mask) in (splines(), masks()),
    ) {
        for device in hosts() {
            let spline = spline.init().unwrap();
            let (seen, changed) = (mask.num_identity(features), mask.num_transformed(features));
            let outputs = changed * spline.params_per_channel();
            let net = MlpConfig::new(seen + context, hidden.clone(), outputs);
            let net = seeded(1, &device, || net.init(&device)).unwrap();
            let net = WithContext::new(net, context, &device);
            let coupling = Coupling::from_transform(net, spline, mask);
            check(given(coupling, batch, context, &device), [batch, features], &device);
        }
    }

    #[test]
    fn affine_couplings_with_a_context(
        (batch, features, context) in (1usize..70, 2usize..7, 1usize..4),
        hidden in proptest::collection::vec(1usize..30, 0..3),
        (scale_map, mask, order) in (scale_maps(), masks(), orders()),
    ) {
        for device in hosts() {
            let (seen, changed) = (mask.num_identity(features), mask.num_transformed(features));
            let net = MlpConfig::new(seen + context, hidden.clone(), 2 * changed);
            let net = seeded(1, &device, || net.init(&device)).unwrap();
            let net = WithContext::new(net, context, &device);
            let coupling = Coupling::affine_ordered(net, mask, scale_map, order, features, &device);
            check(given(coupling.unwrap(), batch, context, &device), [batch, features], &device);
        }
    }

    #[test]
    fn autoregressive(
        (batch, features, context) in (1usize..70, 1usize..6, 0usize..4),
        hidden in proptest::collection::vec(1usize..30, 0..3),
        (kind, map, spline) in (0usize..3, 0usize..4, splines()),
    ) {
        for device in hosts() {
            let made = |kinds| {
                let config = MadeConfig::new(features, hidden.clone(), kinds)
                    .with_order(order(kind, features))
                    .with_context(context);
                seeded(1, &device, || config.init(&device)).unwrap()
            };
            let affine = |scale_map| {
                Affine::new(scale_map, AffineOrder::ScaleThenShift, features, &device)
            };
            let shape = [batch, features];
            let scale_map = match map {
                0 => {
                    let spline = spline.init().unwrap();
                    let made = made(spline.params_per_channel());
                    let layer = Autoregressive::new(made, spline).unwrap();
                    check(given(layer, batch, context, &device), shape, &device);
                    continue;
                }
                1 => {
                    let layer = Autoregressive::new(made(1), Additive::default()).unwrap();
                    check(given(layer, batch, context, &device), shape, &device);
                    continue;
                }
                2 => ScaleMap::Tanh,
                _ => ScaleMap::default(),
            };
            let layer = Autoregressive::new(made(2), affine(scale_map)).unwrap();
            check(given(layer, batch, context, &device), shape, &device);
        }
    }
}

/// Training by the kernels takes the way of training by autodiff.
#[test]
fn training_has_the_curve_of_autodiff() {
    for device in hosts() {
        let spline = || RationalQuadraticConfig::new(5, 2.0).init().unwrap();
        let outputs = spline().params_per_channel();
        let layers = seeded(1, &device, || {
            let net = MlpConfig::new(1 + 2, vec![16, 16], outputs).init(&device).unwrap();
            let net = WithContext::new(net, 2, &device);
            let made = MadeConfig::new(2, vec![16, 16], 2).with_context(2).init(&device).unwrap();
            let affine = Affine::new(ScaleMap::default(), AffineOrder::ScaleThenShift, 2, &device);
            (
                Coupling::from_transform(net, spline(), Mask::Alternating(Parity::Odd)),
                Autoregressive::new(made, affine).unwrap(),
            )
        });
        let stack = FlowStack::<2, _>::single(layers, StandardNormal::new(), &[2]).unwrap();
        let stack = to_f64(stack);
        let batch = |step| {
            let x = inputs([64, 2], step, &device, DType::F64);
            let context = inputs([64, 2], 1000 + step, &device, DType::F64);
            (x * 0.5 + context.clone().sin(), context)
        };
        let rates = || Schedule::constant(3e-3);
        let mut fused = Trainer::new(stack.clone(), rates()).with_memory(Memory::Stored);
        let mut plain = Trainer::new(stack, rates());
        let mut losses = Vec::new();
        for step in 0..200 {
            let (x, context) = batch(step);
            let model = plain.model().train();
            let filled = model.given(&context).unwrap();
            let loss = filled.log_prob(x.clone().autodiff()).mean().neg();
            let value = loss.clone().into_scalar::<f64>();
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            plain.apply(StepGradients { loss: value, grads, drift: None }).unwrap();
            let got = fused.step((x, context)).unwrap().loss;
            assert!((got - value).abs() < 1e-6, "step {step}: {got} is not {value}");
            losses.push(value);
        }
        assert!(losses[199] < losses[0] - 0.3, "{} to {}", losses[0], losses[199]);
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
