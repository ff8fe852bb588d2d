//! Densities against quadrature, samples against densities, and a Glow with all its priors against
//! a computation that shares nothing with it.

mod fixtures;

use burn::tensor::TensorData;
use burn_flows::Latents;
use burn_flows::conditioner::conv::ZeroConv;
use burn_flows::linalg::Lu;
use burn_flows::metrics;
use burn_flows::models::{GlowPrior, GlowSplitPrior};
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::testing::to_f64;
use fixtures::*;

/// Half the side of the square integrated over: beyond it the heaviest tail here (a logistic's,
/// widened by the flow at most fourfold) holds less than 1e-5.
const HALF_SIDE: f64 = 50.0;

/// Bound on the log-scale of the couplings integrated over: two of them widen a tail at most fourfold.
const BOUND: f64 = 0.7;

/// Points a side. The trapezoidal rule is exact to rounding for a smooth density that vanishes at the
/// border; the kinks of the nets' ReLUs leave an error of the order of the spacing's square.
const POINTS: usize = 1001;

/// Of an integral: what is cut off (1e-5 of a logistic) and the square of the spacing, 1e-2, times the
/// share of the cells with a kink.
const INTEGRAL: f64 = 5e-5;

/// Draws compared with the density's moments.
const DRAWS: usize = 40_000;

/// Standard errors that an average of draws may be off: one in two million is further.
const STANDARD_ERRORS: f64 = 5.0;

/// Deviation of the noise that moves the parameters of a stack before it is integrated: enough to
/// bend the density well away from a normal.
const SPREAD: f64 = 0.15;

/// The moments of a density over the plane, by the trapezoidal rule.
#[derive(Debug)]
struct Moments {
    total: f64,
    mean: [f64; 2],
    square: [f64; 3],
    log_prob: f64,
    log_prob_square: f64,
}

/// The five averages compared, of one point.
fn statistics(x: f64, y: f64) -> [f64; 5] {
    [x, y, x * x, y * y, x * y]
}

fn quadrature(log_prob: impl Fn(Tensor<2>) -> Tensor<1>, device: &Device, dtype: DType) -> Moments {
    let spacing = 2.0 * HALF_SIDE / (POINTS - 1) as f64;
    let at = |i: usize| i as f64 * spacing - HALF_SIDE;
    let (mut total, mut mean, mut square) = (0.0, [0.0; 2], [0.0; 3]);
    let (mut entropy, mut entropy_square) = (0.0, 0.0);
    for row in 0..POINTS {
        let points: Vec<f64> = (0..POINTS).flat_map(|column| [at(column), at(row)]).collect();
        let points = Tensor::from_data(TensorData::new(points, [POINTS, 2]), (device, dtype));
        for (column, log_prob) in values(log_prob(points)).into_iter().enumerate() {
            let mass = log_prob.exp() * spacing * spacing;
            let [x, y, xx, yy, xy] = statistics(at(column), at(row));
            total += mass;
            mean[0] += mass * x;
            mean[1] += mass * y;
            for (sum, value) in square.iter_mut().zip([xx, yy, xy]) {
                *sum += mass * value;
            }
            if mass > 0.0 {
                entropy += mass * log_prob;
                entropy_square += mass * log_prob * log_prob;
            }
        }
    }
    Moments { total, mean, square, log_prob: entropy, log_prob_square: entropy_square }
}

/// The density integrates to one, and the samples have its moments.
fn check_plane<F: Flow<2>, P: Prior<2>, S: SplitPrior<2>>(
    make: impl Fn(&mut StdRng, &Device) -> Result<FlowStack<2, F, P, S>>,
) where
    FlowStack<2, F, P, S>: Module,
{
    for (name, device, dtype) in devices() {
        let stack = move_parameters(build(1, &device, &make), 8, SPREAD);
        let stack = if dtype == DType::F64 { to_f64(stack) } else { stack };
        let moments = quadrature(|x| stack.log_prob(x), &device, dtype);
        println!("{name}: {moments:?}");
        assert!((moments.total - 1.0).abs() < INTEGRAL, "{name}: integral {}", moments.total);

        let samples = stack.sample_with(DRAWS, 1.0, &mut rng(9));
        let log_prob = values(stack.log_prob(samples.clone()));
        let rows = values(samples);
        let expected = [moments.mean.as_slice(), &moments.square].concat();
        for (i, expected) in expected.into_iter().enumerate() {
            let draws: Vec<f64> = rows.chunks(2).map(|row| statistics(row[0], row[1])[i]).collect();
            compare_average(&format!("{name}: statistic {i}"), &draws, expected);
        }
        compare_average(&format!("{name}: ln p"), &log_prob, moments.log_prob);
        let squares: Vec<f64> = log_prob.iter().map(|value| value * value).collect();
        compare_average(&format!("{name}: (ln p)^2"), &squares, moments.log_prob_square);
    }
}

fn compare_average(what: &str, draws: &[f64], expected: f64) {
    let n = draws.len() as f64;
    let mean = draws.iter().sum::<f64>() / n;
    let variance = draws.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    let error = (mean - expected).abs();
    let allowed = STANDARD_ERRORS * (variance / n).sqrt() + INTEGRAL * (1.0 + expected.abs());
    assert!(
        error < allowed,
        "{what}: draws give {mean}, the density {expected}, allowed {allowed}"
    );
}

fn plane_step(rng: &mut StdRng, device: &Device) -> Result<VectorStep> {
    let scale_map = ScaleMap::BoundedExp { bound: BOUND };
    Ok((
        ActNorm::new(2, device)?,
        InvertibleConv1x1::plain(2, rng, device)?,
        affine_mlp(2, Mask::first_half(), scale_map, device)?,
    ))
}

#[test]
fn a_plane_under_a_learned_normal() {
    check_plane(|rng, device| {
        let steps = vec![plane_step(rng, device)?, plane_step(rng, device)?];
        FlowStack::<2, _, _>::single(steps, DiagonalNormal::per_channel(2, device), &[2])
    });
}

#[test]
fn a_plane_under_a_standard_normal() {
    check_plane(|rng, device| {
        let steps = [plane_step(rng, device)?, plane_step(rng, device)?];
        FlowStack::<2, _>::single(steps, StandardNormal::new(), &[2])
    });
}

#[test]
fn a_plane_under_a_logistic() {
    check_plane(|rng, device| {
        let steps = (plane_step(rng, device)?, plane_step(rng, device)?);
        FlowStack::<2, _, _>::single(steps, StandardLogistic::new(), &[2])
    });
}

#[test]
fn a_plane_with_a_conditional_split() {
    check_plane(|rng, device| {
        let net = MlpConfig::new(1, vec![8], 2).init(device)?;
        FlowStack::new(
            vec![Some(plane_step(rng, device)?), None],
            vec![ConditionalNormal::new(net)],
            StandardNormal::new(),
            &[2],
        )
    });
}

/// Two vectors of figures within a relative tolerance.
fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        let error = (got - expected).abs() / (1.0 + expected.abs());
        assert!(error <= tolerance, "{what}: {got} is not {expected}");
    }
}

/// Rounding of two ways to compute one value.
fn rounding(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-11 } else { 2e-5 }
}

/// A small Glow of two levels with all its parts learned and moved.
fn moved_glow(device: &Device, dtype: DType) -> Glow {
    let make = |rng: &mut StdRng, device: &Device| glow([3, 4, 8], 2).init(rng, device);
    let glow = move_parameters(build(1, device, make), 8, 0.1);
    if dtype == DType::F64 { to_f64(glow) } else { glow }
}

/// `(conv(kept) + bias) * exp(3 log_scale)`, as nested loops over one image.
fn zero_conv(net: &ZeroConv, kept: &[f64], [channels, height, width]: [usize; 3]) -> Vec<f64> {
    let weight = values(net.conv.weight.val());
    let bias = values(net.conv.bias.as_ref().expect("a bias").val());
    let log_scale = values(net.log_scale.val());
    let mut out = Vec::new();
    for (o, (bias, log_scale)) in bias.iter().zip(&log_scale).enumerate() {
        for i in 0..height * width {
            let (row, column) = (i / width, i % width);
            let mut sum = *bias;
            for c in 0..channels {
                for (dy, dx) in (0..9).map(|tap| (tap / 3, tap % 3)) {
                    let (y, x) = (row + dy, column + dx);
                    if (1..=height).contains(&y) && (1..=width).contains(&x) {
                        sum += weight[((o * channels + c) * 3 + dy) * 3 + dx]
                            * kept[(c * height + y - 1) * width + x - 1];
                    }
                }
            }
            out.push(sum * (3.0 * log_scale).exp());
        }
    }
    out
}

fn ln_normal(z: f64, mean: f64, log_std: f64) -> f64 {
    let standardized = (z - mean) / log_std.exp();
    -0.5 * standardized * standardized - log_std - 0.5 * std::f64::consts::TAU.ln()
}

/// `ln p(x)` of a Glow of two levels from the determinant of its whole Jacobian and from its priors
/// as nested loops.
#[test]
fn a_glow_with_all_its_priors_against_a_direct_computation() {
    for (name, device, dtype) in devices() {
        let glow = moved_glow(&device, dtype);
        let x = inputs([2, 3, 4, 8], 3, &device, dtype);
        let size = glow.num_dims();
        let model = glow.clone().freeze().train();
        let mut expected = Vec::new();
        for sample in 0..2 {
            let x = x.clone().narrow(0, sample, 1);
            let copies = Tensor::from_inner(x.clone().repeat_dim(0, size)).require_grad();
            let rows = model.encode(copies.clone()).0.flatten();
            let one_each: Vec<f64> =
                (0..size * size).map(|i| f64::from(u8::from(i / size == i % size))).collect();
            let one_each =
                Tensor::<2>::from_data(TensorData::new(one_each, [size, size]), (&device, dtype));
            let tape = (rows * Tensor::from_inner(one_each)).sum().backward();
            let jacobian = values(copies.grad(&tape).expect("x is tracked"));
            let mut log_prob = Lu::new(&jacobian, size).slogdet().1;

            let kept = values(glow.levels[0].forward(x.clone()).0.narrow(1, 0, 6));
            let parts = glow.encode(x).0.into_parts();
            let GlowSplitPrior::Conditional(split) = &glow.split_priors[0] else {
                panic!("the split is conditional")
            };
            let (out, deep) = (values(parts[0].clone()), values(parts[1].clone()));
            let parameters = zero_conv(&split.conditioner, &kept, [6, 2, 4]);
            let (means, log_stds) = parameters.split_at(out.len());
            for (z, (mean, log_std)) in out.iter().zip(means.iter().zip(log_stds)) {
                log_prob += ln_normal(*z, *mean, *log_std);
            }
            let GlowPrior::Learned(top) = &glow.prior else { panic!("the top is learned") };
            let (means, log_stds) = (values(top.mean.val()), values(top.log_std.val()));
            let pixels = deep.len() / means.len();
            for (i, z) in deep.iter().enumerate() {
                log_prob += ln_normal(*z, means[i / pixels], log_stds[i / pixels]);
            }
            expected.push(log_prob);
        }
        let got = values(glow.log_prob(x));
        println!("{name}: {got:?} {expected:?}");
        assert_close(&name, &got, &expected, rounding(dtype));
    }
}

#[test]
fn terms_add_up_and_bits_per_dim_is_the_one_definition() {
    for (name, device, dtype) in devices() {
        let glow = moved_glow(&device, dtype);
        let x = inputs([4, 3, 4, 8], 3, &device, dtype) * 0.2;
        let log_prob = values(glow.log_prob(x.clone()));
        let terms = glow.log_prob_terms(x.clone());
        assert_eq!(terms.len(), 4, "a log-determinant and a prior for each level");
        let sum = values(terms.into_iter().reduce(|sum, term| sum + term).unwrap());
        assert_close(&name, &log_prob, &sum, rounding(dtype));
        for bits in [8, 5] {
            let levels = 1 << bits;
            let expected: Vec<f64> =
                log_prob.iter().map(|&nats| metrics::bits_per_dim(nats, 96, levels)).collect();
            let got = values(glow.bits_per_dim(x.clone(), levels));
            assert_close(&name, &got, &expected, rounding(dtype));
            // By hand: -(ln p - D ln levels) / (D ln 2).
            let by_hand = -(log_prob[0] - 96.0 * f64::from(bits) * 2f64.ln()) / (96.0 * 2f64.ln());
            assert_close(&name, &got[..1], &[by_hand], rounding(dtype));
        }
    }
}

#[test]
fn latents_flatten_and_unflatten_exactly() {
    for (_, device, dtype) in devices() {
        let glow = moved_glow(&device, dtype);
        let x = inputs([3, 3, 4, 8], 3, &device, dtype);
        let (latents, _) = glow.encode(x.clone());
        assert_eq!(glow.latent_shapes(), [[1, 6, 2, 4], [1, 24, 1, 2]]);
        assert_eq!(latents.batch_size(), 3);
        let rows = latents.flatten();
        assert_eq!(rows.dims(), [3, 96]);
        let again = glow.unflatten(rows.clone());
        assert_eq!(values(again.flatten()), values(rows));
        for (part, again) in latents.parts().iter().zip(again.parts()) {
            assert_eq!(part.dims(), again.dims());
            assert_eq!(values(part.clone()), values(again.clone()));
        }
        // From the parts and from the rows, the same image, and it is x.
        let back = values(glow.decode(latents));
        assert_eq!(back, values(glow.decode(again)));
        assert_close("decode(encode(x))", &back, &values(x), rounding(dtype));
    }
}

#[test]
fn temperature_zero_is_the_centre_of_the_latents() {
    for (_, device, dtype) in devices() {
        let glow = moved_glow(&device, dtype);
        let samples = glow.sample_with(3, 0.0, &mut rng(1));
        let rows = values(samples.clone());
        let (first, rest) = rows.split_at(96);
        for other in rest.chunks(96) {
            assert_close("samples at temperature 0", other, first, rounding(dtype));
        }
        let (latents, _) = glow.encode(samples);
        let GlowPrior::Learned(top) = &glow.prior else { panic!("the top is learned") };
        let deep = values(latents.parts()[1].clone().narrow(0, 0, 1));
        let means: Vec<f64> =
            values(top.mean.val()).into_iter().flat_map(|mean| [mean, mean]).collect();
        assert_close("the deepest latent", &deep, &means, rounding(dtype));
    }
}

#[test]
fn temperature_scales_the_spread_of_the_latents() {
    let (_, device, dtype) = devices().swap_remove(0);
    let glow = moved_glow(&device, dtype);
    let spread = |temperature: f64| {
        let (latents, _) = glow.encode(glow.sample_with(200, temperature, &mut rng(1)));
        let deep = latents.parts()[1].clone();
        values(deep.clone() - deep.mean_dim(0)).iter().map(|value| value * value).sum::<f64>()
    };
    // The same draws, half as far from the mean.
    let ratio = spread(1.0) / spread(0.5);
    assert!((ratio - 4.0).abs() < 1e-3, "{ratio}");
}

#[test]
fn samples_repeat_with_their_seed_and_only_with_it() {
    for (_, device, dtype) in devices() {
        let glow = moved_glow(&device, dtype);
        let draw = |seed| values(glow.sample_with(2, 0.8, &mut rng(seed)));
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(values(glow.sample(2, 0.8)), values(glow.sample(2, 0.8)));
        let levels = values(glow.sample_levels(2, &[0.8, 0.8], &mut rng(1)));
        assert_eq!(levels, draw(1));
        let (some, other) = (glow.clone(), glow.sample_levels(2, &[0.0, 0.8], &mut rng(1)));
        assert_ne!(values(other), values(some.sample_with(2, 0.8, &mut rng(1))));
    }
}

#[test]
fn one_training_seed_draws_the_same_on_every_device() {
    let draws: Vec<Vec<f64>> = burn_flows::backend::devices()
        .into_iter()
        .map(|(_, device)| {
            values(Prior::<2>::sample(
                &StandardNormal::new(),
                [3, 2],
                1.0,
                &mut rng(4),
                &device(),
                DType::F32,
            ))
        })
        .collect();
    assert!(draws.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn latents_of_other_shapes_are_refused() {
    let (_, device, dtype) = devices().swap_remove(0);
    let glow = moved_glow(&device, dtype);
    let part = |shape: [usize; 4]| inputs(shape, 1, &device, dtype);
    assert_eq!(
        panic_message(|| glow.decode(Latents::new(vec![part([2, 6, 2, 4])]))),
        "FlowStack: decode got parts of shapes [[2, 6, 2, 4]], but needs [[2, 6, 2, 4], [2, 24, 1, 2]]"
    );
    assert_eq!(
        panic_message(|| Latents::new(vec![part([2, 6, 2, 4]), part([3, 24, 1, 2])])),
        "Latents: batch sizes 2 and 3 differ; all parts must have the same"
    );
    assert_eq!(
        panic_message(|| Latents::<4>::new(Vec::new())),
        "Latents: at least one part is needed"
    );
    assert_eq!(
        panic_message(|| glow.unflatten(inputs([2, 95], 1, &device, dtype))),
        "FlowStack: unflatten got rows of 95 entries, but a sample has 96"
    );
    assert_eq!(
        panic_message(|| glow.sample_levels(1, &[1.0], &mut rng(0))),
        "FlowStack: got 1 temperatures for 2 levels"
    );
}
