//! What users do with a model: coordinates, walks, directions, inpainting, levels drawn anew and
//! scores, against answers that are known without it.

mod common;
mod fixtures;

use burn::module::Param;
use burn::tensor::TensorData;
use burn_flows::data::Images;
use burn_flows::latent::{Inpainting, InpaintingCoordinates, LatentMean, Noise};
use burn_flows::metrics::{self, Score, log_mean_exp};
use burn_flows::models::GlowLevel;
use burn_flows::preprocess::Quantization;
use burn_flows::prior::Prior;
use burn_flows::testing::to_f64;
use burn_flows::{Latents, backend};
use common::{flat, host};
use fixtures::*;
use rand::RngExt;

/// In f64 rounding does not hide an error, however much the small Glow magnifies it; where there is no
/// f64, what a few layers make of f32.
fn dtype_and_tolerance() -> (DType, f64) {
    if backend::is_host(&host()) { (DType::F64, 1e-8) } else { (DType::F32, 1e-2) }
}

/// Images of the small Glow.
const SHAPE: [usize; 3] = [2, 8, 8];

/// A Glow of three levels whose parameters, the conditional priors' among them, are off their start.
fn glow(rng: &mut StdRng, device: &Device) -> Glow {
    let config = GlowConfig::new(SHAPE, 3, 2, 8);
    let glow = seeded(0, device, || config.init(rng, device)).unwrap();
    // Moved farther, its samples are of 1e15.
    let glow = move_parameters(glow, 3, 0.03);
    if dtype_and_tolerance().0 == DType::F64 { to_f64(glow) } else { glow }
}

/// Images for it.
fn images(count: usize, seed: u64) -> Tensor<4> {
    let [channels, height, width] = SHAPE;
    inputs([count, channels, height, width], seed, &host(), dtype_and_tolerance().0)
}

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

fn largest_difference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f64 {
    flat((a - b).abs().max())[0]
}

/// `ln N` and others of rows of a plane through `z = exp(log_scale) x`.
fn scaling<P: Prior<2>>(log_scale: &[f32], prior: P) -> FlowStack<2, DiagonalScaling, P> {
    let device = host();
    let mut flow = DiagonalScaling::new(log_scale.len(), &device).unwrap();
    flow.log_scale = Param::from_data(log_scale, &device);
    FlowStack::single(flow, prior, &[log_scale.len()]).unwrap()
}

fn rows<const N: usize>(rows: &[[f64; N]]) -> Tensor<2> {
    let values = TensorData::new(rows.as_flattened().to_vec(), [rows.len(), N]);
    Tensor::from_data(values, (&host(), DType::F32))
}

#[test]
fn noise_is_what_a_sample_was_made_from() {
    let (_, tolerance) = dtype_and_tolerance();
    let model = glow(&mut rng(0), &host());
    // The same draws at two temperatures: the noise of every split is in the same proportion, though
    // the kept halves, and with them means and deviations, are others.
    let noise = |temperature| {
        let x = model.sample_with(4, temperature, &mut rng(5));
        model.encode_noise(x).into_parts()
    };
    let (cold, warm) = (noise(0.5), noise(1.0));
    for level in 0..2 {
        assert!(largest_difference(cold[level].clone() * 2.0, warm[level].clone()) < tolerance);
        let values = flat(warm[level].clone());
        let square = values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64;
        // The mean square of 4 x 64 or more standard normals; its deviation is at most 0.09.
        assert!((square - 1.0).abs() < 0.45, "{square}");
    }
    // In the raw coordinates they are not.
    let raw = |temperature| model.encode(model.sample_with(4, temperature, &mut rng(5))).0;
    let (cold, warm) = (raw(0.5).into_parts(), raw(1.0).into_parts());
    assert!(largest_difference(cold[0].clone() * 2.0, warm[0].clone()) > 0.01);
}

#[test]
fn noise_goes_there_and_back() {
    let (_, tolerance) = dtype_and_tolerance();
    let model = glow(&mut rng(0), &host());
    let x = images(3, 1);
    let back = model.decode_noise(model.encode_noise(x.clone()));
    assert!(largest_difference(back, x.clone()) < tolerance);
    let shapes: Vec<_> = model.encode_noise(x).parts().iter().map(|part| part.dims()).collect();
    assert_eq!(shapes, [[3, 4, 4, 4], [3, 8, 2, 2], [3, 32, 1, 1]]);
}

#[test]
fn walks_keep_their_ends() {
    let (_, tolerance) = dtype_and_tolerance();
    let model = glow(&mut rng(0), &host());
    let [a, b] = [1, 2].map(|seed| images(2, seed));
    let walk = model.interpolate(a.clone(), b.clone(), &[0.0, 0.5, 1.0]);
    assert!(largest_difference(walk[0].clone(), a.clone()) < tolerance);
    assert!(largest_difference(walk[2].clone(), b.clone()) < tolerance);
    assert!(largest_difference(walk[1].clone(), a.clone()) > 0.1);

    // The latents at the ends are those of the samples, bit by bit.
    let (a, b) = (model.encode(a).0, model.encode(b).0);
    assert_eq!(flat(a.interpolate(&b, 0.0).flatten()), flat(a.flatten()));
    assert_eq!(flat(a.interpolate(&b, 1.0).flatten()), flat(b.flatten()));
    let expected: Vec<f64> =
        flat(a.flatten()).iter().zip(flat(b.flatten())).map(|(a, b)| 1.25 * b - 0.25 * a).collect();
    for (got, expected) in flat(a.interpolate(&b, 1.25).flatten()).iter().zip(expected) {
        assert!((got - expected).abs() < tolerance * (1.0 + expected.abs()));
    }
}

#[test]
#[should_panic(expected = "Latents: got 3 samples to join with 2; give as many, or one for all")]
fn walks_of_unequal_numbers() {
    let model = scaling(&[0.0], StandardNormal::new());
    model.interpolate(rows(&[[0.0], [1.0]]), rows(&[[0.0], [1.0], [2.0]]), &[0.5]);
}

#[test]
#[should_panic(expected = "Latents: parts of shapes [[1]] and [[2]] differ")]
fn walks_between_models() {
    let a = Latents::new(vec![rows(&[[1.0]])]);
    a.interpolate(&Latents::new(vec![rows(&[[1.0, 2.0]])]), 0.5);
}

#[test]
fn a_direction_is_the_difference_of_the_means() {
    // Two pixels: the attribute brightens the first from about 40 to about 200 and leaves the other;
    // z = (2 x0, x1 / 4).
    let model = scaling(&[2f32.ln(), -(4f32.ln())], StandardNormal::new());
    let mut rng = rng(7);
    let count = 2 * 150;
    let pixels: Vec<u8> = (0..count)
        .flat_map(|index| {
            let first = if index % 2 == 0 { 200 } else { 40 };
            [first + rng.random_range(0..9_u8) - 4, rng.random_range(0..=255_u8)]
        })
        .collect();
    let images = Images::new(pixels.clone(), [count, 1, 1, 2], None).unwrap();
    let (with, without): (Vec<_>, Vec<_>) = (0..count).partition(|index| index % 2 == 0);
    let eight_bits = Quantization::new(8).unwrap();
    let direction =
        model.attribute_direction(&images, &with, &without, eight_bits, &mut rng).unwrap();
    let mean = |indices: &[usize], pixel: usize| {
        let sum: f64 = indices.iter().map(|index| f64::from(pixels[2 * index + pixel])).sum();
        sum / indices.len() as f64
    };
    let levels = [0, 1].map(|pixel| mean(&with, pixel) - mean(&without, pixel));
    let expected = [2.0 * levels[0] / 256.0, levels[1] / (4.0 * 256.0)];
    assert!(levels[0] > 155.0);
    // The noise of dequantization, averaged over 150 images: five deviations.
    let noise = 5.0 * (1.0 / 12f64 * 2.0 / 150.0).sqrt() / 256.0;
    for ((got, expected), scale) in flat(direction.flatten()).iter().zip(expected).zip([2.0, 0.25])
    {
        assert!((got - expected).abs() < noise * scale, "{got} instead of {expected}");
    }

    // Along it, the first pixel brightens by as much.
    let x = rows(&[[0.2, 0.5], [0.3, 0.1]]);
    let moved = flat(model.manipulate(x.clone(), &direction, 0.5) - x.clone());
    for row in moved.chunks(2) {
        assert!((row[0] - 0.5 * levels[0] / 256.0).abs() < noise, "{row:?}");
        assert!((row[1] - 0.5 * levels[1] / 256.0).abs() < noise, "{row:?}");
    }
    assert!(largest_difference(model.manipulate(x.clone(), &direction, 0.0), x) < 1e-6);

    let error = model
        .attribute_direction(&images, &[], &without, eight_bits, &mut rng)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the direction of an attribute: got 0 images with it and 150 without, needs at least one of \
         each; choose an attribute that some of the images have, or take more images"
    );
    let small = Images::new(vec![0; 4], [4, 1, 1, 1], None).unwrap();
    let error = model
        .attribute_direction(&small, &[0], &[1], eight_bits, &mut rng)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "FlowStack: the values of an image: got 1, needs 2 for samples of shape [2]; \
         crop and resize the images to the shape that the model was built for"
    );
}

#[test]
fn means_of_all_levels_do_not_depend_on_the_batches() {
    let (_, tolerance) = dtype_and_tolerance();
    let model = glow(&mut rng(0), &host());
    let x = images(5, 4);
    let mean_of = |sizes: &[usize]| -> Noise<4> {
        let (mut mean, mut start) = (LatentMean::new(), 0);
        for &size in sizes {
            mean.add(model.encode_noise(x.clone().narrow(0, start, size)));
            start += size;
        }
        assert_eq!(mean.count(), 5);
        mean.mean().unwrap()
    };
    let whole = mean_of(&[5]);
    let shapes: Vec<_> = whole.parts().iter().map(|part| part.dims()).collect();
    assert_eq!(shapes, [[1, 4, 4, 4], [1, 8, 2, 2], [1, 32, 1, 1]]);
    assert!(largest_difference(whole.flatten(), mean_of(&[2, 1, 2]).flatten()) < tolerance);
    let by_hand = model.encode_noise(x.clone()).flatten().mean_dim(0);
    assert!(largest_difference(whole.flatten(), by_hand) < tolerance);
    assert!(LatentMean::<4>::new().mean().is_none());
}

#[test]
fn finer_levels_are_drawn_anew_and_coarser_ones_kept() {
    let (_, tolerance) = dtype_and_tolerance();
    let model = glow(&mut rng(0), &host());
    let x = images(2, 1);
    let (latents, _) = model.encode(x.clone());
    let drawn = |kept, seed| model.resample_finer(&latents, kept, 1.0, &mut rng(seed));
    assert_eq!(flat(drawn(3, 0)), flat(model.decode(latents.clone())));
    assert_eq!(flat(drawn(0, 1)), flat(model.sample_with(2, 1.0, &mut rng(1))));
    for kept in 1..3 {
        let (again, _) = model.encode(drawn(kept, 2));
        for (level, (new, old)) in again.parts().iter().zip(latents.parts()).enumerate() {
            let difference = largest_difference(new.clone(), old.clone());
            if level >= 3 - kept {
                assert!(difference < tolerance, "level {level} of {kept} kept: {difference}");
            } else {
                assert!(difference > 0.5, "level {level} of {kept} kept: {difference}");
            }
        }
    }
}

#[test]
fn inpainting_keeps_what_is_known_and_raises_the_density() {
    let model = glow(&mut rng(0), &host());
    let x = images(3, 1).abs().clamp(0.0, 1.0);
    // The upper half is unknown, in all channels and samples.
    let known: Vec<f32> = (0..8).map(|row| f32::from(u8::from(row >= 4))).collect();
    let known =
        Tensor::from_data(TensorData::new(known, [1, 1, 8, 1]), (&host(), dtype_and_tolerance().0));
    for coordinates in [InpaintingCoordinates::Data, InpaintingCoordinates::Logit] {
        let how = Inpainting { num_steps: 20, coordinates, ..Inpainting::default() };
        let filled = model.inpaint(x.clone(), known.clone(), &how, &mut rng(2)).unwrap();
        let lower = |x: &Tensor<4>| flat(x.clone().narrow(2, 4, 4));
        assert_eq!(lower(&filled.x), lower(&x), "{coordinates:?}");
        assert!(flat(filled.x.clone()).iter().all(|value| (0.0..=1.0).contains(value)));
        for (before, after) in filled.log_prob_before.iter().zip(&filled.log_prob_after) {
            assert!(after > before, "{coordinates:?}: {before} to {after}");
        }
        if coordinates == InpaintingCoordinates::Data {
            for (x, stated) in
                [(x.clone(), filled.log_prob_before), (filled.x, filled.log_prob_after)]
            {
                for (log_prob, stated) in flat(model.log_prob(x)).iter().zip(stated) {
                    assert!(
                        (log_prob - stated).abs() < 1e-3 * log_prob.abs(),
                        "{log_prob} {stated}"
                    );
                }
            }
        }
    }
}

#[test]
fn inpainting_finds_the_peak() {
    let known = || rows(&[[0.0, 1.0]]);
    let filled = |model: &FlowStack<2, DiagonalScaling>, range, coordinates| {
        let how = Inpainting { range, coordinates, noise: 0.0, ..Inpainting::default() };
        let start = rows(&[[0.8, 0.9], [-0.2, 0.25]]);
        flat(model.inpaint(start, known(), &how, &mut rng(0)).unwrap().x)
    };
    // ln p = -(30 x)^2 / 2: the paper's first step of 0.1 would go 90 times too far.
    let narrow = scaling(&[30f32.ln(), 0.0], StandardNormal::new());
    let x = filled(&narrow, [-1.0, 1.0], InpaintingCoordinates::Data);
    assert!(x[0].abs() < 1e-3 && x[2].abs() < 1e-3, "{x:?}");
    assert_eq!([x[1] as f32, x[3] as f32], [0.9, 0.25]);
    // A peak out of range: the nearer end of the range.
    let x = filled(&narrow, [0.5, 1.0], InpaintingCoordinates::Data);
    assert_eq!([x[0], x[2]], [0.5, 0.5]);
    // In logit coordinates of 0 to 1, ln p + ln x + ln(1 - x) has its peak where
    // -x + 1 / x = 1 / (1 - x).
    let plain = scaling(&[0.0, 0.0], StandardNormal::new());
    let x = filled(&plain, [0.0, 1.0], InpaintingCoordinates::Logit);
    for x in [x[0], x[2]] {
        assert!((-x + 1.0 / x - 1.0 / (1.0 - x)).abs() < 0.01, "{x}");
    }
}

#[test]
fn inpainting_cannot_start_where_there_is_no_density() {
    let model = scaling(&[0.0, 0.0], StandardNormal::new());
    let x = rows(&[[0.5, 0.5], [0.5, f64::NAN]]);
    let error = model.inpaint(x, rows(&[[0.0, 1.0]]), &Inpainting::default(), &mut rng(0));
    assert_eq!(
        error.unwrap_err().to_string(),
        "FlowStack: the start of inpainting: got a ln p of NaN for sample 1, needs a finite one; \
         start nearer to data, for example from samples of the model"
    );
}

#[test]
fn one_draw_is_the_log_density() {
    let model = glow(&mut rng(0), &host());
    let mut draw = rng(1);
    let pixels: Vec<u8> = (0..3 * model.num_dims()).map(|_| draw.random()).collect();
    let five_bits = Quantization::new(5).unwrap();
    let scores = model.score(&pixels, five_bits, 1, &mut rng(2)).unwrap();
    let x = model.batch(five_bits.dequantize(&pixels, &mut rng(2)));
    assert_eq!(x.dims(), [3, 2, 8, 8]);
    let log_probs = flat(model.log_prob(x.clone()));
    let bits = flat(model.bits_per_dim(x, 32));
    for ((score, log_prob), bits) in scores.iter().zip(log_probs).zip(bits) {
        assert_eq!(score.log_prob, log_prob);
        assert_eq!(score.importance_log_prob, log_prob);
        assert_eq!(score.bits_per_dim, metrics::bits_per_dim(log_prob, 128, 32));
        assert_eq!(score.importance_bits_per_dim, score.bits_per_dim);
        assert!((score.bits_per_dim - bits).abs() < 1e-4);
    }
    for (draws, len, message) in [
        (0, 128, "FlowStack: the draws of a score: got 0, needs at least 1; "),
        (1, 100, "FlowStack: the values of an image: got 100, needs 128 for samples of shape "),
    ] {
        let error = model.score(&vec![0; len], five_bits, draws, &mut rng(0)).unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
    }
}

/// A density over the plane whose probability of every pair of levels is known: logistics of scale
/// `1 / SLOPE`, whose distribution function is a sigmoid.
const SLOPE: f64 = 12.0;

fn steep() -> FlowStack<2, DiagonalScaling, StandardLogistic> {
    scaling(&[SLOPE.ln() as f32; 2], StandardLogistic::new())
}

/// `ln P(l) + D ln levels` of one-bit pixels.
fn exact(levels: [u8; 2]) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let probability = |level: u8| {
        let low = f64::from(level) / 2.0;
        sigmoid(SLOPE * (low + 0.5)) - sigmoid(SLOPE * low)
    };
    levels.map(|level| (2.0 * probability(level)).ln()).iter().sum()
}

#[test]
fn the_importance_weighted_bound_rises_to_the_probability() {
    let (model, one_bit) = (steep(), Quantization::new(1).unwrap());
    // Many copies of one image: each gets draws of its own, so their mean is close to the expectation.
    const COPIES: usize = 2000;
    for (pixels, levels) in [([0, 0], [0, 0]), ([0, 255], [0, 1])] {
        let bound = exact(levels);
        let copies = pixels.repeat(COPIES);
        let mut before: Option<f64> = None;
        for draws in [1, 4, 16, 64] {
            let scores = model.score(&copies, one_bit, draws, &mut rng(draws as u64)).unwrap();
            let mean =
                |value: fn(&Score) -> f64| scores.iter().map(value).sum::<f64>() / COPIES as f64;
            for score in &scores {
                assert!(score.importance_log_prob >= score.log_prob - 1e-12);
                assert!(score.importance_bits_per_dim <= score.bits_per_dim + 1e-12);
            }
            let importance = mean(|score| score.importance_log_prob);
            let one_draw = mean(|score| score.log_prob);
            assert!(importance < bound + 0.02, "{draws} draws: {importance} above {bound}");
            if let Some(before) = before {
                // By several standard errors of the means of 2,000.
                assert!(importance > before + 0.01, "{draws} draws: {importance} after {before}");
            }
            // The mean of the one-draw bounds does not depend on the number of draws: far off.
            assert!((bound - one_draw) > 0.9, "{one_draw} near {bound}");
            before = Some(importance);
        }
        // At 64 draws what is left is the variance of the weights over twice their number.
        assert!(bound - before.unwrap() < 0.1, "{before:?} after 64 draws, of {bound}");
        let many = model.score(&pixels, one_bit, 20_000, &mut rng(9)).unwrap()[0];
        assert!((many.importance_log_prob - bound).abs() < 0.05, "{many:?}, of {bound}");
    }
}

#[test]
fn sums_of_exponentials_do_not_overflow() {
    let same = |a: f64, b: f64| assert!((a - b).abs() < 1e-12 * (1.0 + b.abs()), "{a} {b}");
    for shift in [-1e5, 0.0, 1e5] {
        let values = [1.0, 2.0, 4.0].map(|value: f64| value.ln() + shift);
        same(log_mean_exp(&values), (7.0f64 / 3.0).ln() + shift);
    }
    same(log_mean_exp(&[-3.0, f64::NEG_INFINITY]), -3.0 - 2f64.ln());
    assert_eq!(log_mean_exp(&[f64::NEG_INFINITY; 2]), f64::NEG_INFINITY);
    assert_eq!(log_mean_exp(&[0.0, f64::INFINITY]), f64::INFINITY);
    assert_eq!(log_mean_exp(&[]), f64::NEG_INFINITY);
    assert!(log_mean_exp(&[0.0, f64::NAN]).is_nan());
}

#[test]
fn batches_take_the_shape_of_the_model() {
    let glow: FlowStack<4, GlowLevel, _, _> = glow(&mut rng(0), &host());
    let values: Vec<f32> = (0..256).map(|value| value as f32).collect();
    assert_eq!(glow.batch(values.clone()).dims(), [2, 2, 8, 8]);
    assert_eq!(flat(glow.batch(values)), (0..256).map(f64::from).collect::<Vec<_>>());
    assert_eq!(steep().batch(vec![1.0; 6]).dims(), [3, 2]);
}

#[test]
#[should_panic(expected = "FlowStack: batch got 3 values, but a sample has 2")]
fn a_batch_of_one_and_a_half() {
    steep().batch(vec![0.0; 3]);
}
