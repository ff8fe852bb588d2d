//! How likely images are: the one-draw bound and the importance-weighted bound.

use burn::module::Module;
use rand::Rng;

use super::bits_per_dim;
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::preprocess::Quantization;
use crate::prior::{Prior, SplitPrior};
use crate::stack::FlowStack;

/// `ln (1/k sum_j exp(values_j))` in nats, without overflow whatever the size of the values; minus
/// infinity if all of them are or there are none, NaN if one is.
///
/// With `k` log-densities of independent dequantization draws of one image it is the
/// importance-weighted bound of [`Score::importance_log_prob`].
///
/// ```
/// use burn_flows::metrics::log_mean_exp;
///
/// assert_eq!(log_mean_exp(&[-2000.0]), -2000.0);
/// let mean = log_mean_exp(&[-2000.0, -2000.0 + 3f64.ln()]);
/// assert!((mean - (-2000.0 + 2f64.ln())).abs() < 1e-12);
/// ```
pub fn log_mean_exp(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // `f64::max` passes over NaN.
    if values.iter().any(|value| value.is_nan()) {
        return f64::NAN;
    }
    if largest.is_infinite() {
        return largest;
    }
    let sum: f64 = values.iter().map(|value| (value - largest).exp()).sum();
    largest + (sum / values.len() as f64).ln()
}

/// How likely one image is, from `k` draws `u_j` of the dequantization noise: two lower bounds of the
/// log-probability that the model gives to the pixels.
///
/// A model of densities gives the pixels `l`, whole numbers, the probability
/// `P(l) = integral of p((l + u) / levels) du / levels^D`, over the cube of all `u`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// `1/k sum_j ln p(x_j)` in nats, `x_j = (l + u_j) / levels`: the one-draw bound. Its expectation
    /// is the same for every `k`, at most `ln P(l) + D ln levels`; more draws only steady it.
    pub log_prob: f64,
    /// [`bits_per_dim`] of it.
    pub bits_per_dim: f64,
    /// `ln (1/k sum_j p(x_j))` in nats: the importance-weighted bound. At `k = 1` it is the one-draw
    /// bound; its expectation rises with `k`, to `ln P(l) + D ln levels`. It is never below
    /// [`log_prob`](Score::log_prob) of the same draws.
    pub importance_log_prob: f64,
    /// [`bits_per_dim`] of it, never above [`bits_per_dim`](Score::bits_per_dim).
    pub importance_bits_per_dim: f64,
}

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// How likely each of these images is, from `num_draws` draws of the dequantization noise each.
    ///
    /// `pixels` are whole images of 8 bits one after another, as
    /// [`Images::gather`](crate::data::Images::gather) gives them; all of them go through the model
    /// at once, once for each draw, so pass a large set in parts. A value that is not finite stays
    /// what it is: an image that the model cannot take is to be seen in its score.
    ///
    /// Source: Theis et al., *A note on the evaluation of generative models*,
    /// [arXiv:1511.01844](https://arxiv.org/abs/1511.01844), section 3.1 (the one-draw bound); Burda
    /// et al., *Importance Weighted Autoencoders*,
    /// [arXiv:1509.00519](https://arxiv.org/abs/1509.00519), theorem 1 (the other and its
    /// monotony); Ho et al., *Flow++*, [arXiv:1902.00275](https://arxiv.org/abs/1902.00275),
    /// section 3.1 (of dequantization).
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if `num_draws` is 0, or the pixels are not a whole number of images.
    ///
    /// ```
    /// use burn_flows::preprocess::Quantization;
    /// use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
    /// use rand::{SeedableRng, rngs::StdRng};
    ///
    /// let device = burn_flows::backend::device();
    /// let flow = DiagonalScaling::new(2, &device)?;
    /// let stack: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2])?;
    /// let eight_bits = Quantization::new(8)?;
    /// let scores = stack.score(&[0, 0, 255, 255], eight_bits, 4, &mut StdRng::seed_from_u64(0))?;
    /// assert!(scores[0].bits_per_dim < scores[1].bits_per_dim, "black is nearer to the mean");
    /// assert!(scores[0].importance_bits_per_dim <= scores[0].bits_per_dim);
    /// # Ok::<(), burn_flows::FlowError>(())
    /// ```
    pub fn score(
        &self,
        pixels: &[u8],
        quantization: Quantization,
        num_draws: usize,
        rng: &mut impl Rng,
    ) -> Result<Vec<Score>> {
        if num_draws == 0 {
            return Err(FlowError::invalid(
                "FlowStack: the draws of a score",
                "0",
                "at least 1",
                "1 gives the usual bound, more a tighter one",
            ));
        }
        let num_dims = self.num_dims();
        if !pixels.len().is_multiple_of(num_dims) {
            self.check_image_len(pixels.len())?;
        }
        let num_images = pixels.len() / num_dims;
        let mut draws = vec![Vec::with_capacity(num_draws); num_images];
        for _ in 0..num_draws {
            let x = self.batch(quantization.dequantize(pixels, rng));
            for (draws, log_prob) in draws.iter_mut().zip(host::to_f64(self.log_prob(x))) {
                draws.push(log_prob);
            }
        }
        let levels = quantization.num_levels();
        let score = |draws: Vec<f64>| {
            let log_prob = draws.iter().sum::<f64>() / draws.len() as f64;
            let importance_log_prob = log_mean_exp(&draws);
            Score {
                log_prob,
                bits_per_dim: bits_per_dim(log_prob, num_dims, levels),
                importance_log_prob,
                importance_bits_per_dim: bits_per_dim(importance_log_prob, num_dims, levels),
            }
        };
        Ok(draws.into_iter().map(score).collect())
    }
}
