//! Splines at their knots, ends and tails, far out and on circles.

mod common;

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flows::conditioner::{Mlp, MlpConfig};
use burn_flows::context::{Given, WithContext};
use burn_flows::coupling::{
    Coupling, Elementwise, Mask, Parity, RationalQuadratic, RationalQuadraticConfig, SplineForm,
    SplineTails, Transform,
};
use burn_flows::prior::Uniform;
use burn_flows::testing::move_parameters;
use burn_flows::{Flow, FlowStack, backend};
use common::flat as values;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const ALL_TAILS: [SplineTails; 3] =
    [SplineTails::Identity, SplineTails::Linear, SplineTails::Circular];

const ALL_FORMS: [SplineForm; 2] = [
    SplineForm::Floored { min_width: 1e-3, min_height: 1e-3, min_slope: 1e-3 },
    SplineForm::Bent { slope: 1e-3 },
];

fn host_devices() -> Vec<(&'static str, Device)> {
    let devices: Vec<_> =
        backend::hosts().into_iter().map(|(name, device)| (name, device())).collect();
    assert!(!devices.is_empty(), "splines in f64 need a backend that computes in main memory");
    devices
}

/// A value of any size that f32 has, of either sign, zeros and whole numbers among them.
fn extreme(rng: &mut StdRng) -> f32 {
    match rng.random_range(0..8) {
        0 => 0.0,
        1 => [3.0, -3.0, 1.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE][rng.random_range(0..6)],
        2 | 3 => (rng.random::<f32>() - 0.5) * 8.0,
        _ => {
            let size = 10f32.powf(rng.random::<f32>() * 76.0 - 38.0);
            if rng.random() { size } else { -size }
        }
    }
}

/// A coupling of two features whose second one is mapped by the numbers in the context.
fn handing_on(
    spline: RationalQuadratic,
    device: &Device,
) -> Coupling<WithContext<Mlp>, RationalQuadratic> {
    let kinds = spline.params_per_channel();
    let mut net = MlpConfig::new(1 + kinds, vec![], kinds).init(device).unwrap();
    let layer = &mut net.layers[0];
    let weight =
        Tensor::cat(vec![Tensor::zeros([1, kinds], device), Tensor::eye(kinds, device)], 0);
    layer.weight = Param::from_tensor(weight);
    layer.bias = Some(Param::from_tensor(Tensor::zeros([kinds], device)));
    Coupling::from_transform(WithContext::new(net, kinds, device), spline, Mask::first_half())
}

/// Ten million values and numbers of any size: everything stays finite, both ways.
#[test]
fn extreme_draws_stay_finite() {
    let device = host_devices().remove(0).1;
    let (draws, batch) = (10_000_000, 100_000);
    let mut rng = StdRng::seed_from_u64(1);
    for round in 0..draws / batch {
        let tails = ALL_TAILS[round % 3];
        let spline = RationalQuadraticConfig::new(4, 3.0)
            .with_tails(tails)
            .with_form(ALL_FORMS[round % 2])
            .init()
            .unwrap();
        let kinds = spline.params_per_channel();
        let draw = |count: usize, rng: &mut StdRng| -> Tensor<2> {
            let numbers = (0..count * batch).map(|_| extreme(rng)).collect::<Vec<_>>();
            Tensor::from_data(TensorData::new(numbers, [batch, count]), &device)
        };
        let (x, params) = (draw(1, &mut rng), draw(kinds, &mut rng));
        let (z, log_slope) = spline.forward(x.clone(), params.clone());
        let back = spline.inverse(x.clone(), params.clone());
        // By the kernels, through a net that hands the numbers on.
        let coupling = handing_on(spline, &device).given(&params).unwrap();
        let beside = Tensor::cat(vec![x.zeros_like(), x], 1);
        let (kernel_z, kernel_log_det) = coupling.forward(beside.clone());
        let kernel_back = coupling.inverse(beside);
        let tensors = [
            ("z", z),
            ("ln dz/dx", log_slope.unwrap()),
            ("x", back),
            ("z of the kernel", kernel_z),
            ("ln dz/dx of the kernel", kernel_log_det.reshape([batch, 1])),
            ("x of the kernel", kernel_back),
        ];
        for (what, tensor) in tensors {
            // A straight line may leave f32 where its value was at the end of it.
            let bad = match tails {
                SplineTails::Linear => tensor.is_nan(),
                SplineTails::Identity | SplineTails::Circular => tensor.is_finite().bool_not(),
            };
            assert!(!bad.any().into_scalar::<bool>(), "{what} is not finite, {tails:?}");
        }
    }
}

/// At the knots the values are the knots', and from both sides nearly so.
#[test]
fn knots_and_ends_are_exact() {
    for (name, device) in host_devices() {
        for (tails, form) in
            ALL_TAILS.into_iter().flat_map(|tails| ALL_FORMS.map(|form| (tails, form)))
        {
            let spline = RationalQuadraticConfig::new(5, 2.0)
                .with_tails(tails)
                .with_form(form)
                .init()
                .unwrap();
            let kinds = spline.params_per_channel();
            let mut rng = StdRng::seed_from_u64(2);
            let numbers: Vec<f64> = (0..kinds).map(|_| rng.random::<f64>() * 6.0 - 3.0).collect();
            let numbers = TensorData::new(numbers, [1, kinds, 1]);
            let params = Tensor::<3>::from_data(numbers, (&device, DType::F64));
            let knots = spline.knots(params.clone());
            let count = knots.x.dims()[1];
            let (x, y) = (knots.x.reshape([count, 1]), knots.y.reshape([count, 1]));
            let rows = params.reshape([1, kinds]).expand([count, kinds]);
            let (z, log_slope) = spline.forward(x.clone(), rows.clone());
            let back = spline.inverse(y.clone(), rows);
            for (what, got, expected) in [("z", z, y), ("x", back, x)] {
                for (got, expected) in values(got).into_iter().zip(values(expected)) {
                    let error = (got - expected).abs();
                    assert!(error <= 1e-15, "{name}, {tails:?}: {what} {got} is not {expected}");
                }
            }
            let slopes = values(knots.slope.reshape([count, 1]));
            for (log_slope, slope) in values(log_slope.unwrap()).into_iter().zip(slopes) {
                assert!((log_slope - slope.ln()).abs() < 1e-12, "{name}: {log_slope}, {slope}");
            }
        }
    }
}

/// A circular spline is the same map after a turn.
#[test]
fn circles_close() {
    let device = host_devices().remove(0).1;
    let pi = std::f64::consts::PI;
    let spline =
        RationalQuadraticConfig::new(6, pi).with_tails(SplineTails::Circular).init().unwrap();
    let kinds = spline.params_per_channel();
    let numbers: Vec<f64> = (0..kinds).map(|i| (i as f64 * 1.7).sin() * 2.0).collect();
    let params =
        Tensor::<2>::from_data(TensorData::new(numbers, [1, kinds]), (&device, DType::F64));
    let at = |x: f64| {
        let x = Tensor::<2>::from_data([[x]], (&device, DType::F64));
        let (z, log_slope) = spline.forward(x, params.clone());
        (values(z)[0], values(log_slope.unwrap())[0])
    };
    for x in [-3.0, -0.5, 0.0, 2.9] {
        let (z, log_slope) = at(x);
        for turns in [-3.0, 1.0, 2.0] {
            let (again, slope) = at(x + turns * 2.0 * pi);
            assert!((z - again).abs() < 1e-12 && (log_slope - slope).abs() < 1e-12, "{x}");
        }
    }
    assert!((at(-pi).1 - at(pi).1).abs() < 1e-12);
}

/// A density on the torus integrates to one.
#[test]
fn a_density_on_the_torus_integrates_to_one() {
    let device = host_devices().remove(0).1;
    device.seed(3);
    let pi = std::f64::consts::PI;
    let coupling = |parity| {
        let config = RationalQuadraticConfig::new(6, pi).with_tails(SplineTails::Circular);
        let spline = config.init().unwrap();
        let net = MlpConfig::new(1, vec![8], spline.params_per_channel()).init(&device).unwrap();
        Coupling::from_transform(net, spline, Mask::ChannelHalves(parity))
    };
    let flows = vec![coupling(Parity::Even), coupling(Parity::Odd)];
    let stack: FlowStack<2, _, _> = FlowStack::single(flows, Uniform::circle(), &[2]).unwrap();
    let stack = move_parameters(stack, 4, 0.2);
    let sides = 600;
    let at = |i: usize| -pi + (i as f64 + 0.5) / sides as f64 * 2.0 * pi;
    let points: Vec<f32> =
        (0..sides * sides).flat_map(|i| [at(i % sides) as f32, at(i / sides) as f32]).collect();
    let x = Tensor::<2>::from_data(TensorData::new(points, [sides * sides, 2]), &device);
    let cell = (2.0 * pi / sides as f64).powi(2);
    let total: f64 =
        values(stack.log_prob(x)).into_iter().map(|log_prob| log_prob.exp() * cell).sum();
    assert!((total - 1.0).abs() < 2e-3, "{total}");
    let x = stack.sample_with(1000, 1.0, &mut StdRng::seed_from_u64(5));
    assert!(values(x).into_iter().all(|angle| angle.abs() <= pi + 1e-5));
}

/// Far from zero knots are few numbers of f32 apart.
#[test]
fn a_spline_far_from_zero_gives_numbers() {
    for (name, device) in host_devices() {
        let config = RationalQuadraticConfig::new(8, 1.0).with_interval(1000.0, 1001.0);
        let flow = Elementwise::new(config.init().unwrap(), 1, &device).unwrap();
        let flow = move_parameters(flow, 1, 1.0);
        let points: Vec<f32> = (0..41).map(|i| 1000.0 + i as f32 / 40.0).collect();
        let x: Tensor<2> = Tensor::from_data(TensorData::new(points, [41, 1]), &device);
        let (z, log_det) = flow.forward(x);
        let numbers = [values(z), values(log_det)].concat();
        assert!(numbers.iter().all(|number| number.is_finite()), "{name}: {numbers:?}");
    }
}

#[test]
fn wrong_configurations_are_refused() {
    let config = RationalQuadraticConfig::new(8, 3.0);
    assert_eq!(
        RationalQuadraticConfig::new(0, 3.0).init().unwrap_err().to_string(),
        "RationalQuadratic: num_bins is 0, but must be at least 1; 8 is the usual choice"
    );
    assert!(config.with_interval(1.0, 1.0).init().is_err());
    assert!(config.with_interval(0.0, f64::INFINITY).init().is_err());
    let floored =
        |min_width, min_slope| SplineForm::Floored { min_width, min_height: 1e-3, min_slope };
    assert!(config.with_form(floored(0.125, 1e-3)).init().is_err());
    assert!(config.with_form(floored(1e-3, 1.0)).init().is_err());
    assert!(config.with_form(SplineForm::Bent { slope: 1.0 }).init().is_err());
    assert!(config.with_form(floored(0.12, 0.5)).init().is_ok());
    // One bin may take all but the least sizes of the others: without those they have no width.
    let text = config.with_form(floored(0.0, 1e-3)).init().unwrap_err().to_string();
    assert!(text.contains("min_width is 0, but must be above 0 and below 1 / 8"), "{text}");
    let flat = SplineForm::Floored { min_width: 1e-3, min_height: 0.0, min_slope: 1e-3 };
    assert!(config.with_form(flat).init().is_err());
    for lower in [1e6, -1e6, 1e8] {
        let text = config.with_interval(lower, lower + 1.0).init().unwrap_err().to_string();
        assert!(text.contains("so wide that f32 tells all knots apart"), "{text}");
    }
}
