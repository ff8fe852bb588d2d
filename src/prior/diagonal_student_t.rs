//! Heavy tails that are learned feature by feature.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use rand::Rng;
use rand_distr::{ChiSquared, Distribution};

use super::student_t::{MANY_DEGREES, log_gamma_step};
use super::{Prior, standard_normal_values};
use crate::chain::{assert_size, zero_log_det};
use crate::coupling::{softplus, sum_per_sample};
use crate::error::{FlowError, Result};
use crate::host;
use crate::param::first_trained;

const LAYER: &str = "DiagonalStudentT";

/// Independent Student t distributions, whose degrees of freedom, means and scales are learned for each
/// feature.
///
/// `ln p(z) = sum_i (ln G((n+1)/2) - ln G(n/2) - ln(n pi)/2 - log_scale - (n+1)/2 ln(1 + u^2 / n))` with
/// `u = (z_i - mean) / exp(log_scale)`, `G` the gamma function and `n = 2 + ln(1 + e^raw_degrees)`: more than
/// two, so that there is a variance. A temperature multiplies the draws' distance from the mean.
///
/// Draws have gradients by means and scales, not by the degrees of freedom, on which their noise depends:
/// freeze `raw_degrees` where a loss is on draws, as the
/// [reverse KL divergence](crate::variational::ReverseKl) is, which refuses trained ones. Likelihoods of
/// data train them.
///
/// Source: Laszkiewicz et al., *Marginal Tail-Adaptive Normalizing Flows*,
/// [arXiv:2206.10311](https://arxiv.org/abs/2206.10311), section 4.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::prior::{DiagonalStudentT, Prior};
///
/// let device = burn_flows::backend::device();
/// let mut prior = DiagonalStudentT::new(1, &device)?;
/// // ln(1 + e^raw) = 1: three degrees, whose density at the mean is 2 / (pi sqrt(3)).
/// prior.raw_degrees = burn::module::Param::from_data([1f32.exp_m1().ln()], &device);
/// let log_prob = prior.log_prob(Tensor::<2>::zeros([1, 1], &device)).into_scalar::<f32>();
/// assert!((log_prob - (2.0 / (std::f32::consts::PI * 3f32.sqrt())).ln()).abs() < 1e-5);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct DiagonalStudentT {
    /// What the degrees of freedom follow from, `[features]`.
    pub raw_degrees: Param<Tensor<1>>,
    /// Means, `[features]`.
    pub mean: Param<Tensor<1>>,
    /// Logarithms of the scales, `[features]`.
    pub log_scale: Param<Tensor<1>>,
}

impl DiagonalStudentT {
    /// Means 0, scales 1 and `2 + ln 2` degrees of freedom.
    ///
    /// # Errors
    /// If there is no feature.
    pub fn new(num_features: usize, device: &Device) -> Result<Self> {
        if num_features == 0 {
            let advice = "give the number of features of the latent";
            return Err(FlowError::config(LAYER, "num_features", 0, "at least 1", advice));
        }
        let zeros = || Param::from_tensor(Tensor::zeros([num_features], device));
        Ok(Self { raw_degrees: zeros(), mean: zeros(), log_scale: zeros() })
    }

    /// Degrees of freedom of each feature.
    pub fn degrees(&self) -> Tensor<1> {
        softplus(self.raw_degrees.val()) + 2.0
    }
}

/// `ln G((n+1)/2) - ln G(n/2)` of each entry: values and derivative in f64 on the host.
fn log_gamma_ratio(degrees: Tensor<1>) -> Tensor<1> {
    let (device, dtype) = (degrees.device(), degrees.dtype());
    let plain = host::plain(degrees.clone());
    let shape = plain.dims();
    let numbers = host::to_f64(plain);
    let of = |f: fn(f64) -> f64| {
        let values = numbers.iter().map(|&n| f(n)).collect();
        host::from_f64(values, shape, &device, dtype)
    };
    let value = of(log_gamma_step);
    if !device.is_autodiff() {
        return value;
    }
    // The surrogate has that derivative; its own value is taken off again.
    let slope = of(log_gamma_step_slope);
    let surrogate = degrees * slope;
    value + surrogate.clone() - surrogate.detach()
}

/// The derivative of [`log_gamma_step`].
fn log_gamma_step_slope(n: f64) -> f64 {
    if n < MANY_DEGREES {
        return (digamma((n + 1.0) / 2.0) - digamma(n / 2.0)) / 2.0;
    }
    0.5 / n + 0.25 / n.powi(2) - 0.125 / n.powi(4)
}

/// The derivative of `ln G` at `x > 0`: the asymptotic series, whose next term is below 1e-16 from 10 on,
/// after the recurrence that leads there.
fn digamma(mut x: f64) -> f64 {
    let mut sum = 0.0;
    while x < 10.0 {
        sum -= 1.0 / x;
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    // Bernoulli numbers over twice their index.
    let terms = [
        1.0 / 12.0,
        -1.0 / 120.0,
        1.0 / 252.0,
        -1.0 / 240.0,
        1.0 / 132.0,
        -691.0 / 32760.0,
        1.0 / 12.0,
    ];
    let series = terms.iter().rev().fold(0.0, |series, term| (series + term) * square);
    sum + x.ln() - 0.5 / x - series
}

impl Prior<2> for DiagonalStudentT {
    fn log_prob(&self, z: Tensor<2>) -> Tensor<1> {
        assert_size(LAYER, &z, self.mean.dims()[0], "features");
        if host::has_no_samples(&z) {
            return zero_log_det(&z);
        }
        let (degrees, log_scale) = (self.degrees(), self.log_scale.val());
        let constant = log_gamma_ratio(degrees.clone())
            - (degrees.clone().log() + std::f64::consts::PI.ln()) * 0.5
            - log_scale.clone();
        let row = |values: Tensor<1>| values.unsqueeze::<2>();
        let standardized = (z - row(self.mean.val())) * row(log_scale.neg().exp());
        // ln(1 + u^2 / n) without squaring what is large.
        let size = standardized.abs() * row(degrees.clone().sqrt().recip());
        let large = size.clone().greater_elem(1.0);
        let small = size.clone().clamp_max(1.0).square().log1p();
        let far = size.clamp_min(1.0);
        let far = far.clone().log() * 2.0 + far.recip().square().log1p();
        let tail = small.mask_where(large, far);
        sum_per_sample(row(constant) - tail * row((degrees + 1.0) * 0.5))
    }

    fn sample(
        &self,
        shape: [usize; 2],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<2> {
        let degrees = host::to_f64(host::plain(self.degrees()));
        let normals = standard_normal_values(shape[0] * shape[1], rng);
        let values = normals.into_iter().enumerate().map(|(at, normal)| {
            let degrees = degrees[at % degrees.len()];
            let chi_squared = ChiSquared::new(degrees).expect("the degrees are above 2");
            let spread = chi_squared.sample(rng) / degrees;
            temperature * normal / spread.max(f64::MIN_POSITIVE).sqrt()
        });
        let draws = host::from_f64(values.collect(), shape, device, dtype);
        if host::has_no_samples(&draws) {
            return draws;
        }
        let row = |values: Tensor<1>| values.unsqueeze::<2>();
        draws * row(self.log_scale.val().exp()) + row(self.mean.val())
    }
}

/// The path of the first degrees of freedom in a model in training that are trained.
pub(crate) fn first_trained_degrees<M: Module>(module: &M) -> Option<String> {
    let place = first_trained(module, "Struct:DiagonalStudentT", "raw_degrees", |_| true)?;
    Some(format!("{place}.raw_degrees"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digamma_at_known_places() {
        let euler = 0.577_215_664_901_532_9;
        assert!((digamma(1.0) + euler).abs() < 1e-14);
        assert!((digamma(0.5) + euler + 2.0 * 2f64.ln()).abs() < 1e-14);
        assert!((digamma(4.0) + euler - 11.0 / 6.0).abs() < 1e-14);
    }

    #[test]
    fn the_series_of_many_degrees_goes_on_from_the_functions() {
        let below = MANY_DEGREES * (1.0 - f64::EPSILON);
        assert!((log_gamma_step(below) - log_gamma_step(MANY_DEGREES)).abs() < 1e-11);
        let slopes = [below, MANY_DEGREES].map(log_gamma_step_slope);
        assert!((slopes[0] - slopes[1]).abs() < 1e-14);
    }
}
