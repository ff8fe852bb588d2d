//! How well a classifier tells two sets of samples apart.

use burn::module::Module;
use burn::nn::Initializer;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData, activation};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;

use crate::conditioner::{Conditioner, Mlp, MlpConfig};
use crate::error::{FlowError, Result};
use crate::host;
use crate::training::Adam;

/// Parts of the samples, each of which is left out once.
const FOLDS: usize = 5;

/// Units of a hidden layer for each feature; there are two layers.
const UNITS_PER_FEATURE: usize = 10;

// scikit-learn's `MLPClassifier`, as the benchmark calls it.
const LEARNING_RATE: f64 = 1e-3;
const EPSILON: f32 = 1e-8;
const BATCH: usize = 200;
const PENALTY: f64 = 1e-4;
const TOLERANCE: f64 = 1e-4;
const PATIENCE: usize = 10;
const MAX_EPOCHS: usize = 10_000;

/// The classifier two-sample test: the accuracy with which a net tells samples `y` of a model from the
/// samples `x` that they should be like, `[samples, features]` each. 0.5: it cannot; 1: it always can.
///
/// Both are standardized by the mean and deviation of `x`. A perceptron of two hidden layers of 10
/// units a feature is trained on four fifths of all rows, by Adam, until its loss gains no more, and
/// asked for the rest; the answer is the mean over the five parts. With equally many rows on both sides
/// this is the protocol of the benchmark `sbibm`: figures agree within the noise of the classifier, and
/// depend on the number of rows.
///
/// It draws from `seed` alone and computes in f32 on the device of `x`. 10,000 rows a side take some
/// seconds.
///
/// # Errors
/// [`FlowError::Invalid`] where there are fewer than 50 rows on a side, the features differ, a feature of
/// `x` is constant, or a value is not finite.
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use burn_flows::metrics::c2st;
///
/// let device = burn_flows::backend::device();
/// let x = Tensor::<2>::random([200, 1], Distribution::Normal(0.0, 1.0), &device);
/// // Nothing of one set is near the other.
/// assert!(c2st(x.clone(), x + 100.0, 1)? > 0.99);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
///
/// Source: Lopez-Paz & Oquab, *Revisiting classifier two-sample tests*,
/// [arXiv:1610.06545](https://arxiv.org/abs/1610.06545); Lueckmann et al., *Benchmarking
/// simulation-based inference*, [arXiv:2101.04653](https://arxiv.org/abs/2101.04653).
pub fn c2st(x: Tensor<2>, y: Tensor<2>, seed: u64) -> Result<f64> {
    let device = host::plain(x.clone()).device();
    let ([rows, features], [other_rows, other_features]) = (x.dims(), y.dims());
    if features != other_features || features == 0 {
        let got = format!("{features} and {other_features}");
        return Err(refuse("the features", got, "as many, at least 1", "compare the same columns"));
    }
    let fewest = rows.min(other_rows);
    if fewest < BATCH / 4 {
        let needed = format!("at least {} on each side", BATCH / 4);
        return Err(refuse("the rows", fewest, &needed, "draw more samples"));
    }
    let (x, y) = (host::to_f64(host::plain(x)), host::to_f64(host::plain(y)));
    if !x.iter().chain(&y).all(|value| value.is_finite()) {
        return Err(refuse(
            "the samples",
            "values that are not finite",
            "finite values",
            "look for where they come from",
        ));
    }
    let (mut x, mut y) = (x, y);
    for feature in 0..features {
        let column = || x.iter().skip(feature).step_by(features);
        let mean = column().sum::<f64>() / rows as f64;
        let squares: f64 = column().map(|value| (value - mean).powi(2)).sum();
        let deviation = (squares / (rows - 1) as f64).sqrt();
        if deviation <= f64::EPSILON * mean.abs() {
            let got = format!("the same value in all rows of feature {feature}");
            return Err(refuse("the samples", got, "features that vary", "leave that one out"));
        }
        for values in [&mut x, &mut y] {
            for value in values.iter_mut().skip(feature).step_by(features) {
                *value = (*value - mean) / deviation;
            }
        }
    }
    let labels = [vec![-1.0; rows], vec![1.0; other_rows]].concat();
    let values = [x, y].concat();
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    let take = |samples: &[usize]| -> Labelled {
        let row = |&sample: &usize| values[sample * features..(sample + 1) * features].iter();
        let values: Vec<f64> = samples.iter().flat_map(row).copied().collect();
        let labels: Vec<f64> = samples.iter().map(|&sample| labels[sample]).collect();
        Labelled { values, labels, features }
    };
    let accuracies = (0..FOLDS).into_par_iter().map(|fold| {
        let bound = |fold: usize| fold * order.len() / FOLDS;
        let (from, to) = (bound(fold), bound(fold + 1));
        let train = take(&[&order[..from], &order[to..]].concat());
        let net = fit(&train, &mut StdRng::seed_from_u64(seed), &device);
        accuracy(&net, &take(&order[from..to]), &device)
    });
    Ok(accuracies.collect::<Vec<f64>>().iter().sum::<f64>() / FOLDS as f64)
}

fn refuse(what: &str, got: impl ToString, needed: &str, advice: &str) -> FlowError {
    FlowError::invalid(format!("c2st: {what}"), got, needed, advice)
}

/// Rows and on which side they belong, -1 or 1.
struct Labelled {
    values: Vec<f64>,
    labels: Vec<f64>,
    features: usize,
}

impl Labelled {
    fn rows(&self) -> usize {
        self.labels.len()
    }

    /// The rows of these numbers and their labels.
    fn batch(&self, rows: &[usize], device: &Device) -> (Tensor<2>, Tensor<2>) {
        let row = |&row: &usize| &self.values[row * self.features..(row + 1) * self.features];
        let values: Vec<f32> = rows.iter().flat_map(row).map(|&value| value as f32).collect();
        let labels: Vec<f32> = rows.iter().map(|&row| self.labels[row] as f32).collect();
        let tensor = |values, columns| {
            Tensor::from_data(TensorData::new(values, [rows.len(), columns]), device)
        };
        (tensor(values, self.features), tensor(labels, 1))
    }
}

/// Trains a classifier whose output is the log-odds of the label 1.
fn fit(data: &Labelled, rng: &mut StdRng, device: &Device) -> Mlp {
    let mut net = classifier(data.features, rng, device).train();
    let mut optimizer: ModuleOptimizer = Adam::new().with_epsilon(EPSILON).into();
    let mut order: Vec<usize> = (0..data.rows()).collect();
    let (mut lowest, mut without_gain) = (f64::INFINITY, 0);
    for _ in 0..MAX_EPOCHS {
        order.shuffle(rng);
        let mut sum = 0.0;
        for rows in order.chunks(BATCH) {
            let (x, label) = data.batch(rows, device);
            let weights = net.layers.iter().map(|layer| layer.weight.val().powf_scalar(2.0).sum());
            let penalty = weights.reduce(|sum, more| sum + more).expect("there are layers");
            let log_odds = net.forward(x.autodiff());
            let likelihood = activation::log_sigmoid(log_odds * label.autodiff()).mean();
            let loss = penalty * (PENALTY / 2.0 / rows.len() as f64) - likelihood;
            let grads = loss.backward();
            sum += loss.into_scalar::<f64>() * rows.len() as f64;
            let grads = GradientsParams::from_grads(grads, &net);
            net = optimizer.step(LEARNING_RATE, net, grads);
        }
        let loss = sum / data.rows() as f64;
        without_gain = if loss > lowest - TOLERANCE { without_gain + 1 } else { 0 };
        lowest = lowest.min(loss);
        if without_gain > PATIENCE {
            break;
        }
    }
    net.valid()
}

/// A net whose weights and biases are drawn between the bounds of Glorot, as scikit-learn draws them.
fn classifier(features: usize, rng: &mut StdRng, device: &Device) -> Mlp {
    let hidden = UNITS_PER_FEATURE * features;
    let config = MlpConfig::new(features, vec![hidden, hidden], 1);
    let mut net =
        config.with_initializer(Initializer::Zeros).init(device).expect("every layer has a width");
    for layer in &mut net.layers {
        let [inputs, outputs] = layer.weight.dims();
        let bound = (6.0 / (inputs + outputs) as f32).sqrt();
        let mut draw =
            |count| -> Vec<f32> { (0..count).map(|_| rng.random_range(-bound..bound)).collect() };
        let weight = TensorData::new(draw(inputs * outputs), [inputs, outputs]);
        let bias = TensorData::new(draw(outputs), [outputs]);
        layer.weight = layer.weight.clone().map(|_| Tensor::from_data(weight, device));
        layer.bias = layer.bias.take().map(|old| old.map(|_| Tensor::from_data(bias, device)));
    }
    net
}

/// The share of rows that the classifier puts on their side.
fn accuracy(net: &Mlp, data: &Labelled, device: &Device) -> f64 {
    let (x, label) = data.batch(&(0..data.rows()).collect::<Vec<_>>(), device);
    let log_odds = host::to_f64(net.forward(x) * label);
    log_odds.iter().filter(|&&agrees| agrees > 0.0).count() as f64 / data.rows() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(rows: usize, features: usize, seed: u64) -> Tensor<2> {
        let device = crate::backend::hosts().first().expect("a backend is compiled in").1();
        crate::testing::inputs([rows, features], seed, &device, burn::tensor::DType::F32)
    }

    #[test]
    fn two_normals_are_told_apart_as_well_as_can_be() {
        let (x, y) = (draw(1000, 1, 1), draw(1000, 1, 2));
        let scale = x.clone().sub(x.clone().mean().unsqueeze()).powf_scalar(2.0).mean().sqrt();
        let deviation = scale.into_scalar::<f64>();
        // Of two normals two deviations apart, the better guess is right with probability Phi(1).
        let apart = c2st(x.clone(), y.clone() + 2.0 * deviation, 1).unwrap();
        assert!((apart - 0.841).abs() < 0.03, "{apart}");
        // A standard deviation of the accuracy over 2,000 rows is 0.011.
        let alike = c2st(x, y, 1).unwrap();
        assert!((alike - 0.5).abs() < 0.04, "{alike}");
    }

    #[test]
    fn the_seed_alone_decides() {
        let accuracy = |seed| c2st(draw(60, 2, 1), draw(80, 2, 2) * 1.5, seed).unwrap();
        assert_eq!(accuracy(1), accuracy(1));
    }

    #[test]
    fn samples_that_cannot_be_compared_are_refused() {
        let text = |x, y| c2st(x, y, 0).unwrap_err().to_string();
        assert!(text(draw(60, 2, 1), draw(60, 3, 1)).contains("the features: got 2 and 3"));
        assert!(
            text(draw(60, 2, 1), draw(49, 2, 1)).contains("the rows: got 49, needs at least 50")
        );
        assert!(text(draw(60, 2, 1), draw(60, 2, 1) / 0.0).contains("not finite"));
        let constant = text(draw(60, 2, 1) * 0.0 + 3.0, draw(60, 2, 1));
        assert!(constant.contains("the same value in all rows of feature 0"), "{constant}");
    }
}
