//! Numbers off the usual scale: tiny and huge data, scales at their limits, matrices that have no
//! inverse, and data outside of a density's support.

mod fixtures;

use burn_flows::linear::PluWeight;
use burn_flows::preprocess::Quantization;
use burn_flows::prior::{Prior, Uniform};
use burn_flows::testing::to_f64;
use burn_flows::training::{Memory, Schedule, Tape, Trainer};
use burn_flows::{At, FlowError, record};
use fixtures::*;

fn tensor<const D: usize>(
    values: &[f64],
    shape: [usize; D],
    (device, dtype): (&Device, DType),
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, dtype))
}

fn in_dtype<M: Module>(module: M, dtype: DType) -> M {
    if dtype == DType::F64 { to_f64(module) } else { module }
}

/// The devices that keep to the rules for NaN and for numbers near 0.
fn hosts() -> impl Iterator<Item = (String, Device, DType)> {
    devices().into_iter().filter(|(_, device, _)| burn_flows::backend::is_host(device))
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, (square / values.len() as f64).sqrt())
}

mod act_norm {
    use super::*;

    /// Of the deviation of an initialized batch: a thousandth is what the epsilon of Glow's code may
    /// have of it.
    const DEVIATION: f64 = 2e-3;

    fn standardizes<const D: usize>(x: Tensor<D>) {
        let (device, dtype, channels) = (x.device(), x.dtype(), x.dims()[1]);
        let norm = in_dtype(ActNorm::new(channels, &device).unwrap(), dtype);
        let (norm, z) = norm.initialize(x.clone());
        for channel in 0..channels {
            let (mean, deviation) = mean_and_deviation(&values(z.clone().narrow(1, channel, 1)));
            assert!(mean.abs() < 1e-3, "mean {mean}");
            assert!((deviation - 1.0).abs() < DEVIATION, "deviation {deviation}");
        }
        let back = values(Flow::inverse(&norm, z));
        let x = values(x);
        let size = x.iter().fold(0.0, |size: f64, x| size.max(x.abs()));
        let worst = x.iter().zip(&back).fold(0.0, |worst: f64, (x, y)| worst.max((x - y).abs()));
        assert!(worst <= 1e-5 * size, "inverse off by {worst} of {size}");
        Flow::<D>::check(&norm).unwrap();
    }

    #[test]
    fn takes_the_scale_of_its_data() {
        for (_, device, dtype) in devices() {
            let sizes = [1e30, 1e18, 1e3, 1e-3, 1e-4, 2e-5, 5e-6, 1e-6, 1e-9, 1e-20, 1e-30];
            let more = if dtype == DType::F64 { &[1e200, 1e-200][..] } else { &[] };
            for size in sizes.iter().chain(more) {
                standardizes(inputs([1024, 1], 3, &device, dtype) * *size);
                standardizes(inputs([7, 3, 5, 4], 3, &device, dtype) * *size);
                let shifted: Tensor<2> = (inputs([256, 2], 4, &device, dtype) + 30.0) * *size;
                standardizes(shifted);
            }
        }
    }

    /// Each channel by itself: metres beside volts.
    #[test]
    fn takes_the_scale_of_every_channel() {
        for (_, device, dtype) in devices() {
            let sizes = tensor(&[1e-12, 1.0, 1e12], [1, 3], (&device, dtype));
            let x = inputs([512, 3], 5, &device, dtype) * sizes.clone();
            let norm = in_dtype(ActNorm::new(3, &device).unwrap(), dtype);
            let (_, z) = norm.initialize(x);
            for channel in 0..3 {
                let (_, deviation) = mean_and_deviation(&values(z.clone().narrow(1, channel, 1)));
                assert!((deviation - 1.0).abs() < DEVIATION, "{deviation}");
            }
        }
    }

    #[test]
    fn a_constant_channel_keeps_its_scale() {
        for (name, device, dtype) in devices() {
            let unit = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
            for constant in [0.0, 1e-30, -1e-9, 0.1, 1.0, 12345.678, -1e30] {
                // As it is, and as three roads of computing it would round it.
                for rounding in [0.0, unit] {
                    let values: Vec<f64> = (0..12)
                        .map(|i| constant * (1.0 + rounding * f64::from(i % 3 - 1)))
                        .collect();
                    let x: Tensor<2> = tensor(&values, [12, 1], (&device, dtype));
                    let norm = in_dtype(ActNorm::new(1, &device).unwrap(), dtype);
                    let (norm, z) = norm.initialize(x);
                    let log_scale = norm.effective_log_scale().into_scalar::<f64>();
                    assert_eq!(log_scale, 0.0, "{name}: {constant}, {rounding}");
                    let z = super::values(z);
                    let largest = z.iter().fold(0.0, |largest: f64, z| largest.max(z.abs()));
                    assert!(largest <= 4.0 * unit * constant.abs(), "{largest} of {constant}");
                }
            }
        }
    }

    /// One value of each channel: its mean is known, its deviation is not.
    #[test]
    fn one_vector_gives_the_mean_alone() {
        for (_, device, dtype) in devices() {
            let x: Tensor<2> = tensor(&[3.0, -1e-20], [1, 2], (&device, dtype));
            let norm = in_dtype(ActNorm::new(2, &device).unwrap(), dtype);
            let (norm, z) = norm.initialize(x);
            assert!(norm.is_initialized());
            assert_eq!(values(z), [0.0, 0.0]);
            assert_eq!(values(norm.log_scale.val()), [0.0, 0.0]);
        }
    }

    #[test]
    fn a_scale_beyond_the_numbers_is_refused_by_name() {
        for (_, device, dtype) in devices() {
            let mut norm = in_dtype(ActNorm::new(2, &device).unwrap(), dtype);
            norm.log_scale = norm.log_scale.map(|value| value * 0.0 + 240.0);
            let (limit, text) = if dtype == DType::F64 { (708, "720") } else { (87, "720") };
            assert_eq!(
                Flow::<2>::check(&norm).unwrap_err().to_string(),
                format!(
                    "ActNorm: the log-scale of channel 0 is {text}, but must be within ±{limit} for the \
                     scale and its inverse to be finite; load an earlier checkpoint and train with a \
                     lower learning rate"
                )
            );
        }
    }
}

mod scale_maps {
    use super::*;

    /// What half of an f32's digits, and of an f64's a little less, leave of `x` in the worst case.
    fn tolerance(dtype: DType) -> f64 {
        let unit = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
        4.0 * unit * 8f64.exp()
    }

    /// A coupling of two features whose net gives `shift` and `raw` whatever it sees.
    fn coupling(
        scale_map: ScaleMap,
        order: AffineOrder,
        [shift, raw]: [f64; 2],
        gain: f64,
        (device, dtype): (&Device, DType),
    ) -> AffineCoupling<Mlp> {
        let mut net = MlpConfig::new(1, vec![], 2).with_zero_init(true).init(device).unwrap();
        let bias = Tensor::from_data([shift as f32, raw as f32], device);
        net.layers[0].bias = Some(Param::from_tensor(bias));
        let mask = Mask::first_half();
        let mut coupling =
            Coupling::affine_ordered(net, mask, scale_map, order, 2, device).unwrap();
        coupling.transform.gain = coupling.transform.gain.map(|param| param.map(|one| one * gain));
        in_dtype(coupling, dtype)
    }

    fn maps() -> [(ScaleMap, f64); 12] {
        [
            (ScaleMap::Sigmoid, 1.0),
            (ScaleMap::InverseSigmoid, 1.0),
            (ScaleMap::Exp, 1.0),
            (ScaleMap::BoundedExp { bound: 2.0 }, 1.0),
            (ScaleMap::BoundedExp { bound: 1000.0 }, 1.0),
            (ScaleMap::Tanh, 1.0),
            (ScaleMap::Tanh, 100.0),
            (ScaleMap::Tanh, -100.0),
            (ScaleMap::Tanh, 1e30),
            (ScaleMap::SoftClip { bound: 6.9 }, 1.0),
            (ScaleMap::FlooredSigmoid { floor: 1e-3 }, 1.0),
            (ScaleMap::FlooredSoftplus { floor: 1e-3 }, 1.0),
        ]
    }

    const RAW: [f64; 11] = [-1e4, -100.0, -30.0, -17.0, -8.0, -0.1, 0.0, 0.5, 8.0, 30.0, 1e4];

    /// The formulas of the documentation.
    fn log_scale(map: ScaleMap, gain: f64, raw: f64) -> f64 {
        let ln_sigmoid = |u: f64| u.min(0.0) - (-u.abs()).exp().ln_1p();
        let log_scale = match map {
            ScaleMap::Sigmoid => ln_sigmoid(raw + 2.0),
            ScaleMap::InverseSigmoid => -ln_sigmoid(raw + 2.0),
            ScaleMap::Exp => raw,
            ScaleMap::BoundedExp { bound } => bound * (raw / bound).tanh(),
            ScaleMap::SoftClip { bound } => raw / (1.0 + (raw / bound).abs()),
            ScaleMap::FlooredSigmoid { floor } => (ln_sigmoid(raw + 2.0).exp() + floor).ln(),
            ScaleMap::FlooredSoftplus { floor } => (-ln_sigmoid(-raw) + floor).ln(),
            ScaleMap::Tanh => gain * raw.tanh(),
        };
        log_scale.clamp(-8.0, 20.0)
    }

    /// Of two computations of a log-scale: roundings of it, and of a tanh that is multiplied by a bound.
    fn agreement(map: ScaleMap, log_scale: f64) -> f64 {
        let bound = if let ScaleMap::BoundedExp { bound } = map { bound } else { 1.0 };
        1e-5 * (1.0 + log_scale.abs()) + 4.0 * f64::from(f32::EPSILON) * bound
    }

    /// By the kernels and by the formulation in tensors.
    #[test]
    fn give_back_what_they_took() {
        for (name, device, dtype) in devices() {
            for ((map, gain), raw) in maps().into_iter().flat_map(|map| RAW.map(|raw| (map, raw))) {
                for order in [AffineOrder::ScaleThenShift, AffineOrder::ShiftThenScale] {
                    let case = format!("{name}: {map:?}, gain {gain}, raw {raw}, {order:?}");
                    let flow = coupling(map, order, [0.7, raw], gain, (&device, dtype));
                    let x = inputs([9, 2], 1, &device, dtype);
                    let (z, log_det) = flow.forward(x.clone());
                    let expected = log_scale(map, gain, raw);
                    for log_det in values(log_det.clone()) {
                        let error = (log_det - expected).abs();
                        assert!(error <= agreement(map, expected), "{case}: {log_det}");
                    }
                    let error = values(flow.inverse(z.clone()) - x.clone());
                    let worst = error.iter().fold(0.0, |worst: f64, e| worst.max(e.abs()));
                    assert!(worst <= tolerance(dtype), "{case}: off by {worst}");

                    let tracked = flow.clone().train();
                    let (plain_z, plain_log_det) = tracked.forward(Tensor::from_inner(x));
                    let agreement = agreement(map, expected);
                    for (a, b) in values(z).iter().zip(values(plain_z.inner())) {
                        assert!((a - b).abs() <= agreement * (1.0 + b.abs()), "{case}: {a}, {b}");
                    }
                    let errors = values(log_det - plain_log_det.inner());
                    assert!(errors.iter().all(|error| error.abs() <= agreement), "{case}");
                }
            }
        }
    }

    /// Within the bounds, and where they hold the log-scale: gradients by the kernels are those of
    /// autodiff, finite, and zero by what no longer counts.
    #[test]
    fn have_the_gradients_of_autodiff_at_their_bounds() {
        for (name, device, dtype) in devices() {
            for ((map, gain), raw) in maps().into_iter().flat_map(|map| RAW.map(|raw| (map, raw))) {
                // Beyond it, exp(20) of an f32 and a loss of order one leave nothing to compare.
                if gain.abs() > 100.0 {
                    continue;
                }
                let case = format!("{name}: {map:?}, gain {gain}, raw {raw}");
                let order = AffineOrder::ShiftThenScale;
                let flow = coupling(map, order, [0.7, raw], gain, (&device, dtype)).train();
                let x = inputs([5, 2], 2, &device, dtype);
                let z = flow.valid().forward(x.clone()).0;
                let (dz, dlog_det) =
                    (inputs([5, 2], 3, &device, dtype), inputs([5, 1], 4, &device, dtype));
                let dlog_det = dlog_det.reshape([5]);
                let mut grads = burn::optim::GradientsParams::new();
                let tape = &mut Tape::default();
                flow.pull_back(At::Output(z), dz.clone(), dlog_det.clone(), tape, &mut grads);
                let (z, log_det) = flow.forward(Tensor::from_inner(x));
                let loss = (z * Tensor::from_inner(dz)).sum()
                    + (log_det * Tensor::from_inner(dlog_det)).sum();
                let plain = burn::optim::GradientsParams::from_grads(loss.backward(), &flow);
                let bias = flow.conditioner.layers[0].bias.as_ref().unwrap();
                let expected = values(plain.get::<1>(bias.id).unwrap());
                let got = values(grads.get::<1>(bias.id).unwrap());
                for (a, b) in got.iter().zip(&expected) {
                    let size = 1.0 + expected[0].abs().max(expected[1].abs());
                    assert!((a - b).abs() <= 1e-3 * size, "{case}: {got:?}, {expected:?}");
                }
                let free = log_scale(map, gain, raw);
                if free == -8.0 && raw < -8.0 || free == 20.0 {
                    assert_eq!(got[1], 0.0, "{case}");
                }
                if let Some(param) = &flow.transform.gain {
                    let got = values(grads.get::<1>(param.id).unwrap())[0];
                    let expected = values(plain.get::<1>(param.id).unwrap())[0];
                    assert!(
                        (got - expected).abs() <= 1e-3 * (1.0 + expected.abs()),
                        "{case}: {got}, {expected}"
                    );
                }
            }
        }
    }
}

mod plu {
    use super::*;

    /// `L` and `U` zero but for one entry each, and the given diagonal.
    fn plu(log_s: [f64; 2], corner: f64, (device, dtype): (&Device, DType)) -> InvertibleConv1x1 {
        let param = |values: &[f64]| Param::from_tensor(tensor(values, [2, 2], (device, dtype)));
        let row = |values: &[f64]| Param::from_tensor(tensor(values, [2], (device, dtype)));
        InvertibleConv1x1::from_parts(PluWeight {
            permutation: param(&[0.0, 1.0, 1.0, 0.0]).set_require_grad(false),
            lower: param(&[0.0, 0.0, corner, 0.0]),
            upper: param(&[0.0, corner, 0.0, 0.0]),
            log_s: row(&log_s),
            sign_s: row(&[1.0, -1.0]).set_require_grad(false),
        })
    }

    fn there_and_back<const D: usize>(flow: &InvertibleConv1x1, x: Tensor<D>, tolerance: f64) {
        let z = flow.forward(x.clone()).0;
        let size = values(x.clone()).iter().fold(1.0, |size: f64, x| size.max(x.abs()));
        for error in values(flow.inverse(z) - x) {
            assert!(error.abs() <= tolerance * size, "off by {error}");
        }
    }

    /// Diagonals that an LU decomposition of the product would take for singular, and as far as an f32
    /// goes.
    #[test]
    fn has_an_inverse_whatever_its_diagonal() {
        for (_, device, dtype) in devices() {
            for log_s in [[0.0, -40.0], [-40.0, 0.0], [-80.0, 80.0], [80.0, 80.0], [-80.0, -80.0]] {
                let flow = plu(log_s, 0.0, (&device, dtype));
                Flow::<4>::check(&flow).unwrap();
                there_and_back(&flow, inputs([3, 2, 2, 3], 1, &device, dtype), 1e-5);
                there_and_back(&flow, inputs([3, 2], 1, &device, dtype), 1e-5);
                let log_det = values(flow.log_det(inputs::<4>([1, 2, 2, 3], 1, &device, dtype)))[0];
                let expected = 6.0 * (log_s[0] + log_s[1]);
                assert!((log_det - expected).abs() <= 1e-4 * (1.0 + expected.abs()), "{log_det}");
                let ratio = (log_s[0] - log_s[1]).abs();
                assert!((flow.pivot_ratio().ln() - ratio).abs() < 1e-4 * (1.0 + ratio));
            }
        }
    }

    /// With both triangles filled `x` is what substitution finds, to the digits that the numbers have.
    #[test]
    fn triangles_are_solved() {
        for (_, device, dtype) in devices() {
            if dtype != DType::F64 {
                continue;
            }
            for small in [-10.0, -20.0] {
                let flow = plu([0.3, small], 0.6, (&device, dtype));
                let x = inputs([3, 2, 2, 3], 1, &device, dtype);
                there_and_back(&flow, x, f64::EPSILON * 10.0 * (-small).exp());
            }
            // Far beyond the digits the inverse is still that of the factors, and finite.
            let flow = plu([0.3, -60.0], 0.6, (&device, dtype));
            let x = values(flow.inverse(inputs::<2>([3, 2], 2, &device, dtype)));
            assert!(x.iter().all(|x| x.is_finite()) && x.iter().any(|x| x.abs() > 1e20), "{x:?}");
        }
    }

    /// In f32 `e^100` is no number: refused by name, by `check`, a training step and a record.
    #[test]
    fn a_diagonal_beyond_the_numbers_is_refused() {
        for (_, device, dtype) in devices() {
            for (log_s, channel) in [([100.0, 0.0], 0), ([0.0, -100.0], 1)] {
                let flow = plu(log_s, 0.0, (&device, dtype));
                if dtype == DType::F64 {
                    Flow::<4>::check(&flow).unwrap();
                    there_and_back(&flow, inputs([2, 2, 2, 1], 1, &device, dtype), 1e-12);
                    continue;
                }
                let text = format!(
                    "InvertibleConv1x1: the log-scale of channel {channel} is {}, but must be within ±87 \
                     for the scale and its inverse to be finite; load an earlier checkpoint and train \
                     with a lower learning rate",
                    log_s[channel]
                );
                assert_eq!(Flow::<4>::check(&flow).unwrap_err().to_string(), text);
                let stack: FlowStack<4, _> =
                    FlowStack::single(flow, StandardNormal::new(), &[2, 1, 2]).unwrap();
                let mut trainer = Trainer::new(stack, Schedule::constant(1e-3));
                let error = trainer.step(inputs([2, 2, 1, 2], 1, &device, dtype)).unwrap_err();
                assert!(matches!(error, FlowError::Scale { .. }), "{error}");
            }
        }
    }
}

mod training {
    use super::*;

    /// A step that must fail with an error that `is` says, and leave the model as it was, to the bit.
    fn refuses<const D: usize, F: Flow<D>>(
        flow: F,
        x: Tensor<D>,
        memory: Memory,
        is: impl Fn(&FlowError) -> bool,
    ) -> String
    where
        FlowStack<D, F, StandardNormal>: Module,
    {
        let stack: FlowStack<D, F> =
            FlowStack::single(flow, StandardNormal::new(), &x.dims()[1..]).unwrap();
        let mut trainer = Trainer::new(stack, Schedule::constant(1e-3)).with_memory(memory);
        let before = record::to_bytes(&trainer.model()).unwrap();
        let error = trainer.step(x).expect_err("this step must fail");
        assert!(is(&error), "{error:?}");
        assert_eq!(record::to_bytes(&trainer.model()).unwrap(), before, "the model changed");
        assert_eq!(trainer.num_steps(), 0);
        error.to_string()
    }

    const MEMORIES: [Memory; 2] = [Memory::Reversible, Memory::Stored];

    fn conv1x1(weight: [[f32; 2]; 2], device: &Device) -> InvertibleConv1x1 {
        InvertibleConv1x1::from_weight(Tensor::from_data(weight, device))
    }

    #[test]
    fn on_a_singular_weight_is_an_error() {
        for (_, device, dtype) in devices().into_iter().filter(|(_, _, dtype)| *dtype == DType::F32)
        {
            let singular = |error: &FlowError| matches!(error, FlowError::Singular { .. });
            let x = || inputs::<4>([3, 2, 4, 4], 1, &device, dtype);
            for memory in MEMORIES {
                // Exactly, but for rounding, and deep inside of a composition.
                let weight = conv1x1([[1.0, 2.0], [2.0, 4.0]], &device);
                let text = refuses(weight, x(), memory, singular);
                assert_eq!(
                    text,
                    "InvertibleConv1x1: the 2x2 weight is singular (smallest pivot 0e0, largest 2e0); \
                     load an earlier checkpoint and train with a lower learning rate or with the PLU \
                     parametrization"
                );
                refuses(conv1x1([[1.0, 0.0], [0.0, 1e-20]], &device), x(), memory, singular);
                let deep = vec![(
                    ActNorm::new(2, &device).unwrap(),
                    Some(conv1x1([[1.0, 1.0], [1.0, 1.0]], &device)),
                )];
                refuses(deep, x(), memory, singular);
                let vectors = conv1x1([[0.0, 0.0], [0.0, 0.0]], &device);
                refuses::<2, _>(vectors, inputs([3, 2], 1, &device, dtype), memory, singular);

                // What is not even finite is said to be that.
                let weight = conv1x1([[1.0, f32::NAN], [0.0, 1.0]], &device);
                let text = refuses(weight, x(), memory, |error| {
                    matches!(error, FlowError::Invalid { .. })
                });
                assert!(
                    text.contains("the parameter levels.0.weight.Plain before step 1"),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn on_scales_beyond_the_numbers_is_an_error() {
        for (_, device, dtype) in devices().into_iter().filter(|(_, _, dtype)| *dtype == DType::F32)
        {
            let scale = |error: &FlowError| matches!(error, FlowError::Scale { .. });
            let x = || inputs::<2>([6, 2], 1, &device, dtype);
            for memory in MEMORIES {
                let mut scaling = DiagonalScaling::new(2, &device).unwrap();
                scaling.log_scale = Param::from_data([0.0, -100.0], &device);
                let text = refuses(scaling, x(), memory, scale);
                assert!(text.starts_with("DiagonalScaling: the log-scale of channel 1 is -100"));
                let mut norm = ActNorm::new(2, &device).unwrap();
                norm.log_scale = Param::from_data([30.0, 0.0], &device);
                norm.initialized = norm.initialized.map(|mark| mark + 1.0);
                let text = refuses(norm, x(), memory, scale);
                assert!(text.starts_with("ActNorm: the log-scale of channel 0 is 90"), "{text}");
                // The square of such data is no f32: the moments that a step would take are refused.
                let norm = BatchNorm::new(2, &device).unwrap();
                let text = refuses(norm, x() * 1e25, memory, scale);
                assert!(
                    text.starts_with("BatchNorm: the log-scale of channel 0 is -inf"),
                    "{text}"
                );
            }
        }
    }
}

mod residual {
    use super::*;

    /// A sample's inverse does not depend on the others of its batch.
    #[test]
    fn inverses_do_not_depend_on_the_batch() {
        for (_, device, dtype) in hosts() {
            let flow = build(1, &device, |_, device| ResidualConfig::new(2, vec![16]).init(device));
            let flow = in_dtype(move_parameters(flow, 3, 0.5), dtype);
            let x: Tensor<2> = tensor(&[0.5, -0.3], [1, 2], (&device, dtype));
            let z = flow.forward(x).0;
            let expected = values(flow.inverse(z.clone()));
            for far in [1e3, 1e5, 1e7, f64::NAN] {
                let other: Tensor<2> = tensor(&[far, -far], [1, 2], (&device, dtype));
                let both = Tensor::cat(vec![z.clone(), other], 0);
                let got = values(flow.inverse(both).narrow(0, 0, 1));
                for (got, expected) in got.iter().zip(&expected) {
                    let off = (got - expected).abs();
                    assert!(off < 1e-4, "beside {far:e} {got}, alone {expected}");
                }
            }
        }
    }
}

mod standardize {
    use super::*;

    /// A deviation is judged by the numbers of the data: f64 sees one that f32 would not.
    #[test]
    fn sees_in_f64_what_f32_would_not() {
        for (_, device, dtype) in devices().into_iter().filter(|(_, _, dtype)| *dtype == DType::F64)
        {
            let x = inputs([1000, 1], 1, &device, dtype) * 10.0 + 1e9;
            let z = values(Standardize::fit(x.clone()).unwrap().forward(x).0);
            let (_, deviation) = mean_and_deviation(&z);
            assert!((deviation - 1.0).abs() < 0.05, "{deviation}");
        }
    }
}

mod orthogonal {
    use super::*;

    /// "of any length but zero".
    #[test]
    fn normals_of_mirrors_have_any_length() {
        for (_, device, dtype) in devices() {
            for length in [1e-30, 1e-22, 1e-5, 1e5, 1e22, 1e30] {
                let normal: Tensor<2> = tensor(&[length, 0.0], [1, 2], (&device, dtype));
                let mirror = Householder::from_vectors(normal);
                let x: Tensor<2> = tensor(&[2.0, 3.0], [1, 2], (&device, dtype));
                let z = values(mirror.forward(x).0);
                let off = (z[0] + 2.0).abs().max((z[1] - 3.0).abs());
                assert!(off < 1e-5, "a normal {length:e} long gives {z:?}");
            }
        }
    }

    /// "The exponential of an antisymmetric matrix is a rotation", of any angle.
    #[test]
    fn rotations_of_many_turns_are_rotations() {
        for (_, device, dtype) in devices() {
            // What rounding of the angle alone is off, and the rounding of a rotation.
            let (of_angle, of_length) =
                if dtype == DType::F64 { (1e-14, 1e-12) } else { (5e-7, 5e-5) };
            for angle in [1.0f64, 50.0, 200.0, 1000.0, 5000.0] {
                let generator = tensor(&[0.0, -angle, 0.0, 0.0], [2, 2], (&device, dtype));
                let rotation = Rotation::from_generator(generator);
                let x: Tensor<2> = tensor(&[1.0, 0.0], [1, 2], (&device, dtype));
                let z = rotation.forward(x).0;
                let back = values(rotation.inverse(z.clone()));
                let z = values(z);
                let off = (z[0] - angle.cos()).abs().max((z[1] - angle.sin()).abs());
                assert!(off < of_length + of_angle * angle, "{angle} radians give {z:?}");
                let off = (z[0].hypot(z[1]) - 1.0).abs().max((back[0] - 1.0).abs());
                assert!(off < of_length, "{angle} radians: {z:?}, and back {back:?}");
            }
        }
    }
}

mod residual_limits {
    use super::*;

    /// "the map is invertible whatever the parameters".
    #[test]
    fn a_planar_flow_that_all_but_folds_is_finite() {
        for (_, device, dtype) in devices() {
            let mut flow = Planar::new(2, PlanarActivation::Tanh, &mut rng(1), &device).unwrap();
            flow.normal = Param::from_data([1.0, 0.0], &device);
            flow.direction = Param::from_data([-200.0, 0.0], &device);
            let flow = in_dtype(flow, dtype);
            let x: Tensor<2> = tensor(&[0.0, 0.2, 1e-3, 0.2], [2, 2], (&device, dtype));
            let (z, log_det) = flow.forward(x);
            let numbers = [values(z), values(log_det)].concat();
            assert!(numbers.iter().all(|number| number.is_finite()), "{numbers:?}");
        }
    }

    #[test]
    fn a_radial_flow_whose_parameters_left_the_numbers_is_refused() {
        for (_, device, dtype) in devices() {
            for log_alpha in [1000.0, -1000.0] {
                let mut flow = in_dtype(Radial::new(2, &mut rng(1), &device).unwrap(), dtype);
                assert!(flow.check().is_ok());
                flow.log_alpha = flow.log_alpha.map(|old| old.full_like(log_alpha));
                let text = flow.check().unwrap_err().to_string();
                assert!(text.contains(&format!("log_alpha: got {log_alpha}")), "{text}");
            }
        }
    }
}

mod student_t {
    use super::*;

    fn is_normal<P: Prior<2>>(prior: &P, (device, dtype): (&Device, DType), what: &str) {
        let z: Tensor<2> = tensor(&[0.0, 1.5], [2, 1], (device, dtype));
        let normal = values(StandardNormal::new().log_prob(z.clone()));
        for (t, normal) in values(prior.log_prob(z)).iter().zip(&normal) {
            assert!((t - normal).abs() < 1e-2, "{what}: {t} is not {normal}");
        }
    }

    /// "from 30 on it is nearly normal".
    #[test]
    fn of_many_degrees_is_normal() {
        for (_, device, dtype) in hosts() {
            for degrees in [1e3, 1e4, 1e8, 1e12, 1e15, 1e18] {
                let prior = StudentT::new(degrees).unwrap();
                is_normal(&prior, (&device, dtype), &format!("{degrees:e} degrees"));
            }
        }
    }

    #[test]
    fn whose_learned_degrees_run_away_is_normal() {
        for (_, device, dtype) in hosts() {
            for raw in [1e3, 1e8, 1e13] {
                let mut prior = in_dtype(DiagonalStudentT::new(1, &device).unwrap(), dtype);
                prior.raw_degrees = prior.raw_degrees.map(|old| old.full_like(raw));
                is_normal(&prior, (&device, dtype), &format!("{raw:e}"));
            }
        }
    }
}

mod whiten {
    use super::*;

    /// Independent columns in units of their own: none follows from the other.
    #[test]
    fn takes_columns_of_different_units() {
        for (_, device, dtype) in devices() {
            let wide = inputs([200, 1], 1, &device, dtype) * 5e6;
            let narrow = inputs([200, 1], 2, &device, dtype) * 0.5;
            let x = Tensor::cat(vec![wide, narrow], 1);
            let whiten = Whiten::fit(x.clone()).unwrap_or_else(|error| panic!("{error}"));
            let z = values(whiten.forward(x).0);
            for column in 0..2 {
                let column: Vec<f64> = z.iter().skip(column).step_by(2).copied().collect();
                let (_, deviation) = mean_and_deviation(&column);
                assert!((deviation - 1.0).abs() < 1e-2, "{deviation}");
            }
        }
    }

    /// What is constant but for rounding stays refused, whatever rounding leaves of it.
    #[test]
    fn refuses_a_constant_column() {
        for (_, device, dtype) in devices() {
            let constant = Tensor::<2>::zeros([200, 1], (&device, dtype)) + 0.1;
            let x = Tensor::cat(vec![inputs([200, 1], 1, &device, dtype), constant], 1);
            let text = Whiten::fit(x).unwrap_err().to_string();
            assert!(text.contains("none follows from the others"), "{text}");
        }
    }
}

mod support {
    use super::*;

    type Pixels = FlowStack<2, (Logit, ActNorm)>;

    const D: usize = 16;

    fn pixels(device: &Device, dtype: DType) -> Pixels {
        let logit = Logit::new(1e-6, LogitForm::Code).unwrap();
        let flow = (logit, ActNorm::new(D, device).unwrap());
        in_dtype(FlowStack::single(flow, StandardNormal::new(), &[D]).unwrap(), dtype)
    }

    /// Uniform in 0 to `scale`.
    fn noise(seed: u64, scale: f64, device: &Device, dtype: DType) -> Tensor<2> {
        use rand::RngExt;
        let mut rng = rng(seed);
        let values: Vec<f64> =
            (0..256 * D).map(|_| f64::from(rng.random::<f32>()) * scale).collect();
        tensor(&values, [256, D], (device, dtype))
    }

    /// Noise of 8 bits has no shorter code than 8 bits, as 0 to 1; as 0 to 256 it has none at all.
    #[test]
    fn pixels_up_to_255_are_no_good_score() {
        for (_, device, dtype) in devices() {
            let bits = |scale| {
                let stack = pixels(&device, dtype).initialize(noise(0, scale, &device, dtype)).0;
                values(stack.bits_per_dim(noise(1, scale, &device, dtype), 256))
            };
            let (mean, _) = mean_and_deviation(&bits(1.0));
            assert!((7.99..9.0).contains(&mean), "{mean}");
            assert!(bits(256.0).iter().all(|&bits| bits == f64::INFINITY));
        }
    }

    /// The model's own samples have a density, whatever the temperature.
    #[test]
    fn holds_the_models_samples() {
        for (_, device, dtype) in devices() {
            let stack = pixels(&device, dtype).initialize(noise(0, 1.0, &device, dtype)).0;
            for temperature in [0.0, 1.0, 5.0] {
                let x = stack.sample_with(64, temperature, &mut rng(1));
                let log_prob = values(stack.log_prob(x));
                assert!(log_prob.iter().all(|value| value.is_finite()), "{log_prob:?}");
            }
        }
    }

    /// Dequantized pixels are inside of it to the last draw.
    #[test]
    fn holds_every_dequantized_pixel() {
        for (_, device, dtype) in devices() {
            let eight_bits = Quantization::new(8).unwrap();
            let stack = pixels(&device, dtype);
            let last = 1.0 - f32::EPSILON / 2.0;
            let x: Vec<f32> = (0..=255).map(|p| eight_bits.dequantize_with(p, last)).collect();
            let x = stack.batch(x);
            assert!(values(x.clone()).iter().all(|&x| x < 1.0));
            assert!(values(stack.log_prob(x)).iter().all(|value| value.is_finite()));
        }
    }

    fn refused<const N: usize, F: Flow<N>>(flow: F, x: Tensor<N>) -> FlowError
    where
        FlowStack<N, F, StandardNormal>: Module,
    {
        let stack: FlowStack<N, F> =
            FlowStack::single(flow, StandardNormal::new(), &x.dims()[1..]).unwrap();
        let mut trainer = Trainer::new(stack, Schedule::constant(1e-3));
        let before = record::to_bytes(&trainer.model()).unwrap();
        let error = trainer.step(x).expect_err("there is no density");
        assert_eq!(record::to_bytes(&trainer.model()).unwrap(), before, "the model changed");
        error
    }

    #[test]
    fn training_outside_of_it_says_which_values_were_expected() {
        for (_, device, dtype) in devices().into_iter().filter(|(_, _, dtype)| *dtype == DType::F32)
        {
            let x: Tensor<2> = tensor(&[0.0, 17.0, 255.0, 3.5], [2, 2], (&device, dtype));
            assert_eq!(
                refused(Logit::real_nvp(), x.clone()).to_string(),
                "Logit: got values from 0 to 255, but its support is 0 to 1; scale pixels to 0 to 1 \
                 and dequantize them (Quantization::dequantize)"
            );
            // Wherever it stands: behind another flow, in a list, in a stack of a stack.
            let scaling = || DiagonalScaling::new(2, &device).unwrap();
            let listed = (scaling(), vec![Some(Logit::real_nvp())]);
            assert!(matches!(refused(listed, x.clone()), FlowError::OutsideSupport { .. }));
            let nested: FlowStack<2, _> =
                FlowStack::single((scaling(), Logit::real_nvp()), StandardNormal::new(), &[2])
                    .unwrap();
            assert!(matches!(refused(nested, x.clone()), FlowError::OutsideSupport { .. }));
            let negative = refused(Logit::real_nvp(), x - 1.0);
            assert!(negative.to_string().contains("got values from -1 to 254,"), "{negative}");
        }
    }

    /// What a model draws has a density under it, also where bounds are far from zero.
    #[test]
    fn holds_own_draws_beside_bounds() {
        for (_, device, dtype) in devices() {
            let domains = [
                Domain::Above(1e6),
                Domain::Below(-1e6),
                Domain::Above(0.0),
                Domain::Between(1000.0, 1001.0),
                Domain::Between(0.0, 1.0),
            ];
            for domain in domains {
                // The shift brings the device and the dtype of the draws.
                let flow =
                    (Unconstrain::new(vec![domain]).unwrap(), Shift::new(1, &device).unwrap());
                let stack: FlowStack<2, _> =
                    FlowStack::single(flow, StandardNormal::new(), &[1]).unwrap();
                let stack = in_dtype(stack, dtype);
                for temperature in [1.0, 3.0] {
                    let draws = stack.sample_with(2000, temperature, &mut rng(1));
                    let log_prob = values(stack.log_prob(draws));
                    let bad = log_prob.iter().filter(|value| !value.is_finite()).count();
                    assert_eq!(bad, 0, "{domain:?}: own draws at {temperature} without a density");
                }
            }
        }
    }

    /// What is no number has no density, and infinity is outside.
    #[test]
    fn of_a_uniform_prior_holds_no_nan() {
        for (_, device, dtype) in hosts() {
            let densities = vec![FeatureDensity::Uniform(-1.0, 1.0), FeatureDensity::Normal(1.0)];
            let mixed = PerFeature::new(densities).unwrap();
            let uniform = Uniform::new(-1.0, 1.0).unwrap();
            let numbers = [f64::NAN, 0.0, f64::INFINITY, 0.0, 0.5, 0.0];
            let z: Tensor<2> = tensor(&numbers, [3, 2], (&device, dtype));
            for got in [values(uniform.log_prob(z.clone())), values(mixed.log_prob(z))] {
                assert!(got[0].is_nan() && got[2].is_finite(), "{got:?}");
                assert_eq!(got[1], f64::NEG_INFINITY, "{got:?}");
            }
        }
    }

    /// Training data with a NaN, under a uniform prior: an error, not a loss.
    #[test]
    fn training_on_nan_under_a_uniform_prior_is_an_error() {
        for (_, device, dtype) in devices().into_iter().filter(|(_, _, dtype)| *dtype == DType::F32)
        {
            let flow = Permutation::reverse(2, &device).unwrap();
            let prior = Uniform::new(-1.0, 1.0).unwrap();
            let stack: FlowStack<2, _, _> = FlowStack::single(flow, prior, &[2]).unwrap();
            let x: Tensor<2> = tensor(&[0.1, 0.2, f64::NAN, 0.3], [2, 2], (&device, dtype));
            let loss = Trainer::new(stack, Schedule::constant(1e-3)).step(x).map(|step| step.loss);
            assert!(loss.is_err(), "a batch with NaN has the loss {loss:?}");
        }
    }

    /// What is not outside of a support is called what it is.
    #[test]
    fn other_causes_keep_their_names() {
        for (_, device, dtype) in devices().into_iter().filter(|(_, _, dtype)| *dtype == DType::F32)
        {
            let x: Tensor<2> = tensor(&[0.5, f64::NAN], [1, 2], (&device, dtype));
            let error = refused(Logit::real_nvp(), x);
            assert!(error.to_string().contains("first in the input batch"), "{error}");
        }
    }
}
