//! A mixture of normals.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, activation};
use rand::{Rng, RngExt};

use super::{HALF_LN_TAU, Prior, standard_normal};
use crate::chain::zero_log_det;
use crate::error::{FlowError, Result};
use crate::host;

/// A learned mixture of normals with diagonal covariance, for vectors.
///
/// `ln p(z) = ln sum_k w_k N(z; mean_k, exp(log_std_k)^2)`, `w = softmax(logits)`; computed by the
/// sum's largest term, so that far points do not underflow.
///
/// A temperature multiplies the deviations of the components; their weights and means stay.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::prior::{GaussianMixture, Prior};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let device = burn_flows::backend::device();
/// let mixture = GaussianMixture::new(3, 2, &mut StdRng::seed_from_u64(0), &device)?;
/// assert_eq!(mixture.log_prob(Tensor::<2>::zeros([5, 2], &device)).dims(), [5]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct GaussianMixture {
    /// Logarithms of the weights, up to a constant, `[components]`.
    pub logits: Param<Tensor<1>>,
    /// Means, `[components, features]`.
    pub mean: Param<Tensor<2>>,
    /// Log standard deviations, `[components, features]`.
    pub log_std: Param<Tensor<2>>,
}

impl GaussianMixture {
    /// `num_components` equal weights and standard deviations 1, means drawn from the standard normal.
    ///
    /// # Errors
    /// If one of the two numbers is zero.
    pub fn new(
        num_components: usize,
        num_features: usize,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Result<Self> {
        for (parameter, value) in
            [("num_components", num_components), ("num_features", num_features)]
        {
            if value == 0 {
                let advice = "one component is a normal";
                return Err(FlowError::config(
                    "GaussianMixture",
                    parameter,
                    0,
                    "at least 1",
                    advice,
                ));
            }
        }
        let zeros = Tensor::<2>::zeros([num_components, num_features], device);
        let mean = standard_normal(zeros.dims(), rng, device, zeros.dtype());
        Ok(Self {
            logits: Param::from_tensor(Tensor::zeros([num_components], device)),
            mean: Param::from_tensor(mean),
            log_std: Param::from_tensor(zeros),
        })
    }

    /// `ln w_k + ln N(z; mean_k, ...)`: `[batch, features] -> [batch, components]`.
    pub fn component_log_probs(&self, z: Tensor<2>) -> Tensor<2> {
        let (mean, log_std) = (self.mean.val(), self.log_std.val());
        let [components, features] = mean.dims();
        let [batch, got] = z.dims();
        assert!(
            got == features,
            "GaussianMixture: got shape {:?}, but was built for {features} features",
            z.dims()
        );
        let z = z.reshape([batch, 1, features]);
        let log_std = log_std.reshape([1, components, features]);
        let standardized =
            (z - mean.reshape([1, components, features])) * log_std.clone().neg().exp();
        let log_probs = (standardized.square() * 0.5 + log_std + HALF_LN_TAU).sum_dim(2).neg();
        let weights = activation::log_softmax(self.logits.val(), 0);
        log_probs.reshape([batch, components]) + weights.reshape([1, components])
    }
}

/// `ln sum_k exp(values[:, k])`; minus infinity where all of them are.
pub(crate) fn log_sum_exp(values: Tensor<2>) -> Tensor<1> {
    let batch = values.dims()[0];
    // Finite: the difference of two infinities would be no number.
    let largest = values.clone().detach().max_dim(1).clamp_min(f64::from(f32::MIN));
    let sum = (values - largest.clone()).exp().sum_dim(1).log();
    (sum + largest).reshape([batch])
}

/// A component for each of `count` draws, as rows of 0 and 1: means and deviations stay differentiable.
pub(super) fn draw_components(
    logits: &[f64],
    count: usize,
    rng: &mut impl Rng,
    device: &Device,
    dtype: DType,
) -> Tensor<2> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let components = weights.len();
    let mut choices = vec![0.0; count * components];
    for row in choices.chunks_mut(components) {
        let mut rest = rng.random::<f64>() * total;
        let chosen = weights.iter().position(|weight| {
            rest -= weight;
            rest < 0.0
        });
        row[chosen.unwrap_or(components - 1)] = 1.0;
    }
    host::from_f64(choices, [count, components], device, dtype)
}

impl Prior<2> for GaussianMixture {
    fn log_prob(&self, z: Tensor<2>) -> Tensor<1> {
        if host::has_no_samples(&z) {
            return zero_log_det(&z);
        }
        log_sum_exp(self.component_log_probs(z))
    }

    fn sample(
        &self,
        shape: [usize; 2],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<2> {
        let [count, features] = shape;
        if count == 0 {
            return standard_normal(shape, rng, device, dtype);
        }
        let logits = host::to_f64(host::plain(self.logits.val()));
        let choices = draw_components(&logits, count, rng, device, dtype);
        let noise = standard_normal([count, features], rng, device, dtype) * temperature;
        let std = choices.clone().matmul(self.log_std.val().exp());
        choices.matmul(self.mean.val()) + noise * std
    }
}
