//! Batches at the edge: empty, of one sample, in views; one feature, one pixel, a thousand channels.

mod fixtures;

use burn::optim::GradientsParams;
use burn_flows::linear::PluWeight;
use burn_flows::norm::Moments;
use burn_flows::preprocess::Quantization;
use burn_flows::prior::Prior;
use burn_flows::testing::to_f64;
use burn_flows::training::{Schedule, Tape, Trainer, reversible};
use burn_flows::{At, FlowError, Pass, record};
use fixtures::*;

fn in_dtype<M: Module>(module: M, dtype: DType) -> M {
    if dtype == DType::F64 { to_f64(module) } else { module }
}

fn no_samples<const D: usize>(mut shape: [usize; D], device: &Device, dtype: DType) -> Tensor<D> {
    shape[0] = 0;
    Tensor::from_data(TensorData::new(Vec::<f64>::new(), shape), (device, dtype))
}

/// No samples go in and none come out, whichever way.
fn takes_no_samples<const D: usize, F: Flow<D>>(
    shape: [usize; D],
    make: impl Fn(&mut StdRng, &Device) -> Result<F>,
) {
    for (name, device, dtype) in devices() {
        let flow = in_dtype(build(1, &device, &make), dtype);
        let x = || no_samples(shape, &device, dtype);
        let latent = flow.latent_shape(x().dims()).unwrap();
        let check = |flow: &F, x: Tensor<D>, what: &str| {
            let (z, log_det) = flow.forward(x.clone());
            assert_eq!(z.dims(), latent, "{name}, {what}: z");
            assert_eq!(log_det.dims(), [0], "{name}, {what}: log_det");
            assert_eq!(flow.log_det(x.clone()).dims(), [0], "{name}, {what}: log_det alone");
            assert_eq!(flow.inverse(z).dims(), x.dims(), "{name}, {what}: inverse");
        };
        check(&flow, x(), "plain");
        let training = flow.clone().train();
        check(&training, Tensor::from_inner(x()).require_grad(), "tracked");

        let before = record::to_bytes(&flow).unwrap();
        let (flow, z) = flow.initialize(x());
        assert_eq!(z.dims(), latent, "{name}: initialize");
        let (flow, z) = flow.data_pass(x(), Pass::Observe);
        assert_eq!(z.dims(), latent, "{name}: observe");
        assert!(
            record::to_bytes(&flow).unwrap() == before,
            "{name}: a pass over nothing changed it"
        );
    }
}

/// A batch in another layout than its own, expanded from one sample or cut out of a larger one, is that
/// batch.
fn takes_views<const D: usize, F: Flow<D>>(
    shape: [usize; D],
    make: impl Fn(&mut StdRng, &Device) -> Result<F>,
) {
    for (name, device, dtype) in devices() {
        let flow = in_dtype(build(1, &device, &make), dtype);
        let flow = move_parameters(flow, 2, 0.02);
        let x = inputs(shape, 3, &device, dtype);
        let outputs = |x: Tensor<D>| {
            let (z, log_det) = flow.forward(x);
            let back = flow.inverse(z.clone());
            [values(z), values(log_det), values(back)].concat()
        };
        let same = |view: Tensor<D>, what: &str| {
            let whole = Tensor::from_data(view.clone().into_data(), (&device, dtype));
            let tolerance = if dtype == DType::F64 { 1e-10 } else { 1e-4 };
            for (got, expected) in outputs(view).iter().zip(outputs(whole)) {
                let error = (got - expected).abs() / (1.0 + expected.abs());
                assert!(error <= tolerance, "{name}, {what}: {got} is not {expected}");
            }
        };
        let last = D - 1;
        let turned = x.clone().swap_dims(0, last);
        let turned = Tensor::from_data(turned.into_data(), (&device, dtype)).swap_dims(0, last);
        same(turned, "transposed");
        let mut expanded = shape;
        expanded[0] = 3;
        same(x.clone().narrow(0, 0, 1).expand(expanded), "expanded");
        let wide = Tensor::cat(vec![x.clone(), x.clone(), x], last);
        same(wide.narrow(0, 1, shape[0] - 1).narrow(last, 1, shape[last]), "cut out");
    }
}

macro_rules! edges_each {
    ($($name:ident, $shape:expr, $laws:expr, |$rng:ident, $device:ident| $flow:expr;)*) => {
        mod empty {
            use super::*;
            $(
                #[test]
                fn $name() {
                    takes_no_samples($shape, |$rng: &mut StdRng, $device: &Device| Ok($flow));
                }
            )*
        }
        mod views {
            use super::*;
            $(
                #[test]
                fn $name() {
                    takes_views($shape, |$rng: &mut StdRng, $device: &Device| Ok($flow));
                }
            )*
        }
    };
}

flows!(edges_each);

/// Everything that a stack does with no samples.
macro_rules! stacks_each {
    ($($name:ident, |$rng:ident, $device:ident| $stack:expr;)*) => {$(
        #[test]
        fn $name() {
            for (name, device, dtype) in devices() {
                let make = |$rng: &mut StdRng, $device: &Device| Ok($stack);
                let stack = in_dtype(move_parameters(build(1, &device, make), 5, 0.1), dtype);
                let mut shape = stack.latent_shapes()[0];
                shape[0] = 0;
                shape[1..].copy_from_slice(stack.sample_shape());
                let x = || no_samples(shape, &device, dtype);
                let draws = &mut rng(0);
                assert_eq!(stack.sample(0, 1.0).dims(), shape, "{name}: sample");
                assert_eq!(stack.sample_with(0, 0.7, draws).dims(), shape, "{name}");
                let temperatures = vec![0.5; stack.levels.len()];
                assert_eq!(stack.sample_levels(0, &temperatures, draws).dims(), shape, "{name}");
                assert_eq!(stack.batch(Vec::new()).dims(), shape, "{name}: batch");
                assert_eq!(stack.log_prob(x()).dims(), [0], "{name}: log_prob");
                assert_eq!(stack.bits_per_dim(x(), 256).dims(), [0], "{name}: bits");
                for term in stack.log_prob_terms(x()) {
                    assert_eq!(term.dims(), [0], "{name}: terms");
                }
                let (latents, log_det) = stack.encode(x());
                assert_eq!(log_det.dims(), [0], "{name}: encode");
                let rows = latents.flatten();
                assert_eq!(rows.dims(), [0, stack.num_dims()], "{name}: flatten");
                assert_eq!(stack.decode(stack.unflatten(rows)).dims(), shape, "{name}: decode");
                let noise = stack.encode_noise(x());
                assert_eq!(stack.decode_noise(noise).dims(), shape, "{name}: decode_noise");
                assert_eq!(stack.first_not_finite(x()), None, "{name}");

                let eight_bits = Quantization::new(8).unwrap();
                assert!(stack.score(&[], eight_bits, 2, draws).unwrap().is_empty(), "{name}: score");
                assert!(eight_bits.dequantize(&[], draws).is_empty());

                let training = stack.clone().train();
                let tracked = training.log_prob(Tensor::from_inner(x()).require_grad());
                assert_eq!(tracked.dims(), [0], "{name}: tracked");

                let mut trainer = Trainer::new(stack.clone(), Schedule::constant(1e-2));
                let before = record::to_bytes(&trainer.model()).unwrap();
                let error = trainer.step(x()).unwrap_err();
                assert_eq!(
                    error.to_string(),
                    "Trainer: the samples of a batch: got 0, needs at least 1; pass over the batch, or \
                     join it to another one"
                );
                assert!(matches!(error, FlowError::Invalid { .. }));
                assert!(record::to_bytes(&trainer.model()).unwrap() == before, "{name}: it changed");
                assert_eq!(trainer.num_steps(), 0);
                assert_eq!(
                    panic_message(|| reversible::gradients(&training, x())),
                    "reversible::gradients: got no samples, but the loss is the mean over them"
                );
            }
        }
    )*};
}

mod no_samples {
    use super::*;

    stacks_each! {
        through_a_mixture, |rng, device| FlowStack::<2, _, _>::single(maf(4, None, ScaleMap::default(), device)?, GaussianMixture::new(3, 4, rng, device)?, &[4])?;
        through_student_t, |_rng, device| FlowStack::<2, _, _>::single(spline_maf(4, device)?, StudentT::new(4.0)?, &[4])?;
        through_vectors, |rng, device| vector_stack(4, rng, device)?;
        through_two_vector_levels, |rng, device| split_vector_stack(rng, device)?;
        through_nice, |_rng, device| NiceConfig::new(6, vec![HIDDEN]).init(device)?;
        through_real_nvp_of_vectors, |_rng, device| RealNvpVectorConfig::new(2, 4, vec![16]).init(device)?;
        through_real_nvp, |_rng, device| RealNvpConfig::new([1, 4, 4], 2, 4, 1).init(device)?;
        through_glow, |rng, device| glow([3, 8, 8], 3).init(rng, device)?;
        through_glow_with_plain_priors, |rng, device| glow([1, 4, 4], 2).with_learned_top(false).with_conditional_split(false).init(rng, device)?;
    }
}

mod one_sample {
    use super::*;

    fn needs_two(shape: &str) -> String {
        format!(
            "BatchNorm: the values of a channel: got 1 in a batch of shape {shape}, needs at least 2, which \
             have a variance; give it a larger batch (one context for all samples is a batch of one), or \
             freeze it"
        )
    }

    /// Batch normalization of vectors, and of pictures of one pixel: refused, and the model as it was.
    #[test]
    fn has_no_variance_and_is_refused_in_training() {
        for (_, device, dtype) in devices() {
            let vectors = RealNvpVectorConfig::new(4, 3, vec![HIDDEN]).with_batch_norm(true);
            let vectors = in_dtype(vectors.init(&device).unwrap(), dtype);
            let mut trainer = Trainer::new(vectors, Schedule::constant(1e-3));
            let before = record::to_bytes(&trainer.model()).unwrap();
            let error = trainer.step(inputs([1, 4], 1, &device, dtype)).unwrap_err();
            assert_eq!(error.to_string(), needs_two("[1, 4]"));
            assert!(record::to_bytes(&trainer.model()).unwrap() == before);
            trainer.step(inputs([2, 4], 1, &device, dtype)).unwrap();

            let pixel = (Squeeze::new(), BatchNorm::new(4, &device).unwrap());
            let pixel: FlowStack<4, _> =
                FlowStack::single(in_dtype(pixel, dtype), StandardNormal::new(), &[1, 2, 2])
                    .unwrap();
            let mut trainer = Trainer::new(pixel, Schedule::constant(1e-3));
            let error = trainer.step(inputs([1, 1, 2, 2], 1, &device, dtype)).unwrap_err();
            assert_eq!(error.to_string(), needs_two("[1, 4, 1, 1]"));
        }
    }

    /// What is frozen takes nothing in, and can be trained around sample by sample.
    #[test]
    fn needs_no_variance_where_it_is_frozen() {
        for (_, device, dtype) in devices() {
            let norm = BatchNorm::new(4, &device).unwrap().freeze();
            let flow = (norm, DiagonalScaling::new(4, &device).unwrap());
            let stack: FlowStack<2, _> =
                FlowStack::single(in_dtype(flow, dtype), StandardNormal::new(), &[4]).unwrap();
            let mut trainer = Trainer::new(stack, Schedule::constant(1e-3));
            trainer.step(inputs([1, 4], 1, &device, dtype)).unwrap();
        }
    }

    /// One picture has as many values a channel as it has pixels.
    #[test]
    fn of_an_image_has_a_variance() {
        for (_, device, dtype) in devices() {
            let config = RealNvpConfig::new([1, 4, 4], 2, 4, 1).with_logit(None, LogitForm::Code);
            let model = in_dtype(config.init(&device).unwrap(), dtype);
            let mut trainer = Trainer::new(model, Schedule::constant(1e-3));
            trainer.step(inputs([1, 1, 4, 4], 1, &device, dtype)).unwrap();
        }
    }

    #[test]
    fn has_no_variance_and_panics_by_name_elsewhere() {
        for (_, device, dtype) in devices() {
            let norm = in_dtype(BatchNorm::new(3, &device).unwrap(), dtype);
            let x = || inputs::<2>([1, 3], 1, &device, dtype);
            let texts = [
                panic_message(|| norm.clone().data_pass(x(), Pass::Observe)),
                panic_message(|| norm.clone().initialize(x())),
                panic_message(|| norm.normalize_with(x(), Moments::of(x()))),
            ];
            assert_eq!(texts, [needs_two("[1, 3]"), needs_two("[1, 3]"), needs_two("[1, 3]")]);
            // Inference takes one sample as it takes any.
            assert_eq!(norm.forward(x()).0.dims(), [1, 3]);
            let net = ResidualNetConfig::new(3, 4, 6, 1).init(&device).unwrap();
            let net = in_dtype(net, dtype);
            let text = panic_message(|| {
                net.data_pass(inputs([1, 3, 1, 1], 1, &device, dtype), Pass::Observe)
            });
            assert_eq!(text, needs_two("[1, 3, 1, 1]"));
        }
    }

    /// All that takes its start from data takes it from one vector: the means alone.
    #[test]
    fn initializes_and_trains_what_has_no_batch_norm() {
        for (_, device, dtype) in devices() {
            let stack =
                in_dtype(build(1, &device, |rng, device| vector_stack(4, rng, device)), dtype);
            let x = || inputs::<2>([1, 4], 1, &device, dtype);
            let stack = stack.initialize(x()).0;
            assert!(values(stack.log_prob(x())).iter().all(|value| value.is_finite()));
            let mut trainer = Trainer::new(stack, Schedule::constant(1e-3));
            trainer.step(x()).unwrap();
        }
    }
}

mod one_feature {
    use super::*;

    /// Nothing to see or nothing to change.
    #[test]
    fn cannot_be_divided() {
        let (_, device, _) = devices().swap_remove(0);
        let x = || inputs::<2>([2, 1], 1, &device, DType::F32);
        let net = || MlpConfig::new(1, vec![4], 1).init(&device).unwrap();
        for parity in [Parity::Even, Parity::Odd] {
            // A checkerboard of one square is no split: one parity changes nothing, which the laws cover.
            for mask in [Mask::ChannelHalves(parity), Mask::Alternating(parity)] {
                let coupling = Coupling::additive(net(), mask);
                let expected = "Coupling: got shape [2, 1], but a split along axis 1 needs at least 2 \
                                there; squeeze the image first, or use a checkerboard mask";
                assert_eq!(panic_message(|| coupling.forward(x())), expected);
                assert_eq!(panic_message(|| coupling.inverse(x())), expected);
                assert_eq!(panic_message(|| coupling.clone().initialize(x())), expected);
            }
        }
        assert!(NiceConfig::new(1, vec![4]).init(&device).is_err());
        assert!(RealNvpVectorConfig::new(1, 4, vec![4]).init(&device).is_err());
    }
}

mod thousand_channels {
    use super::*;

    const CHANNELS: usize = 1000;

    fn there_and_back<const D: usize, F: Flow<D>>(
        shape: [usize; D],
        make: impl Fn(&mut StdRng, &Device) -> Result<F>,
    ) {
        for (name, device, dtype) in devices() {
            let flow = in_dtype(build(1, &device, &make), dtype);
            let x = inputs(shape, 2, &device, dtype) * 3.0 + 1.0;
            let flow = flow.initialize(x.clone()).0;
            let (z, log_det) = flow.forward(x.clone());
            assert!(values(log_det.clone()).iter().all(|value| value.is_finite()), "{name}");
            let tolerance = if dtype == DType::F64 { 1e-9 } else { 1e-3 };
            let close = |a: Tensor<D>, b: &Tensor<D>| {
                let worst = values(a - b.clone()).iter().fold(0.0, |w: f64, e| w.max(e.abs()));
                assert!(worst <= tolerance, "{name}: off by {worst}");
            };
            close(flow.inverse(z.clone()), &x);
            let mut grads = GradientsParams::new();
            let training = flow.train();
            let (back, dx) = training.pull_back(
                At::Output(z.clone()),
                z,
                log_det,
                &mut Tape::default(),
                &mut grads,
            );
            close(back, &x);
            assert!(values(dx).iter().all(|value| value.is_finite()), "{name}");
        }
    }

    #[test]
    fn in_layers() {
        there_and_back([4, CHANNELS], |_, device| ActNorm::new(CHANNELS, device));
        there_and_back([4, CHANNELS], |_, device| BatchNorm::new(CHANNELS, device));
        there_and_back([2, CHANNELS, 2, 1], |_, device| DiagonalScaling::new(CHANNELS, device));
        there_and_back([2, CHANNELS, 1, 2], |rng, device| {
            Permutation::shuffle(CHANNELS, rng, device)
        });
    }

    #[test]
    fn in_couplings() {
        for mask in
            [Mask::first_half(), Mask::Alternating(Parity::Odd), Mask::Checkerboard(Parity::Even)]
        {
            there_and_back([3, CHANNELS], |_, device| {
                affine_mlp(CHANNELS, mask, ScaleMap::default(), device)
            });
        }
        there_and_back([2, CHANNELS, 2, 2], |_, device| {
            let mask = Mask::second_half();
            affine_net(CHANNELS, mask, ScaleMap::Sigmoid, NetNorm::ActNorm, 0.0, device)
        });
    }

    /// From triangles with a narrow band: to draw a rotation of this size takes a debug build minutes.
    #[test]
    fn in_mixing() {
        let host = |(_, device, dtype): &(String, Device, DType)| {
            *dtype == DType::F32 && burn_flows::backend::is_host(device)
        };
        let Some((_, device, dtype)) = devices().into_iter().find(host) else { return };
        let matrix = |entry: fn(usize, usize) -> f32| {
            let values = (0..CHANNELS * CHANNELS).map(|at| entry(at / CHANNELS, at % CHANNELS));
            let values = TensorData::new(values.collect(), [CHANNELS, CHANNELS]);
            Param::from_tensor(Tensor::from_data(values, &device))
        };
        let reverse = |i, j| f32::from(u8::from(i + j == CHANNELS - 1));
        let flow = InvertibleConv1x1::from_parts(PluWeight {
            permutation: matrix(reverse).set_require_grad(false),
            lower: matrix(|i, j| if i == j + 1 { 0.3 } else { 0.0 }),
            upper: matrix(|i, j| if j == i + 2 { -0.2 } else { 0.0 }),
            log_s: Param::from_tensor(Tensor::full([CHANNELS], 0.1, &device)),
            sign_s: Param::from_tensor(Tensor::ones([CHANNELS], &device)).set_require_grad(false),
        });
        let x = inputs::<4>([2, CHANNELS, 1, 2], 2, &device, dtype);
        let (z, log_det) = flow.forward(x.clone());
        for log_det in values(log_det) {
            assert!((log_det - 0.1 * 2.0 * CHANNELS as f64).abs() < 1e-2, "{log_det}");
        }
        let worst = values(flow.inverse(z) - x).iter().fold(0.0, |w: f64, e| w.max(e.abs()));
        assert!(worst <= 1e-4, "off by {worst}");
    }
}

/// A prior with a density for each feature draws no others.
#[test]
fn draws_of_a_per_feature_prior_of_another_width_are_refused() {
    let prior = PerFeature::new(vec![FeatureDensity::Uniform(0.0, 1.0); 2]).unwrap();
    let (_, device, dtype) = devices().swap_remove(0);
    let text = panic_message(|| prior.sample([4, 3], 1.0, &mut rng(1), &device, dtype));
    let expected =
        "PerFeature: draws of shape [4, 3] were asked for, but there are densities of 2 features";
    assert_eq!(text, expected);
}

mod masks {
    use super::*;

    /// Which entries of a sample a coupling changes.
    fn changed<const D: usize>(mask: Mask, shape: [usize; D], device: &Device) -> Vec<bool> {
        let (seen, changed) = (mask.num_identity(shape[1]), mask.num_transformed(shape[1]));
        let coupling = Coupling::additive(Places::new(seen, changed, 1.0, device), mask);
        let x = Tensor::<D>::zeros(shape, device);
        values(coupling.forward(x).0).iter().map(|&z| z != 0.0).collect()
    }

    /// Squares whose coordinates have an odd sum, worked out by hand, in 1, 2 and 3 dimensions and for
    /// vectors.
    #[test]
    fn a_checkerboard_is_one_in_every_rank() {
        let (_, device, _) = devices().swap_remove(0);
        let (o, x) = (false, true);
        let cases = [
            (changed(Mask::Checkerboard(Parity::Even), [1, 5], &device), vec![o, x, o, x, o]),
            (changed(Mask::Checkerboard(Parity::Even), [1, 2, 3], &device), vec![o, x, o, o, x, o]),
            (
                changed(Mask::Checkerboard(Parity::Even), [1, 1, 2, 3], &device),
                vec![o, x, o, x, o, x],
            ),
            (
                changed(Mask::Checkerboard(Parity::Even), [1, 1, 2, 2, 3], &device),
                vec![o, x, o, x, o, x, x, o, x, o, x, o],
            ),
        ];
        for (got, expected) in cases {
            assert_eq!(got, expected);
        }
        let odd = changed(Mask::Checkerboard(Parity::Odd), [1, 1, 2, 3], &device);
        assert_eq!(odd, [x, o, x, o, x, o]);
    }
}
