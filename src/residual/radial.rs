//! The radial flow.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use rand::Rng;

use super::{SOFTPLUS_IS_ONE, softplus};
use crate::chain::{assert_size, zero_log_det};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::prior::standard_normal;

/// A radial flow: pushes away from a centre `c`, or towards it.
///
/// - inverse (latent to data): `x = z + beta' / (alpha + r) (z - c)`, `r = |z - c|`
/// - forward: with `R = |x - c|` and `p = R - alpha - beta'`, `r = (p + sqrt(p^2 + 4 alpha R)) / 2` and
///   `z = c + (x - c) (alpha + r) / (alpha + r + beta')`
/// - `log_det = -(D - 1) ln(1 + beta' / (alpha + r)) - ln(1 + alpha beta' / (alpha + r)^2)`
///
/// `alpha = exp(log_alpha)` and `beta' = softplus(beta) - alpha > -alpha`, so that the map is invertible
/// whatever the parameters; both directions are in closed form. `D` is the number of features.
///
/// The paper's flow goes from latent to data, as here `inverse` does. Its text has `h(r) = 1 / (alpha + r)` and
/// `beta > -alpha`, which is this.
///
/// Source: Rezende and Mohamed, *Variational Inference with Normalizing Flows*,
/// [arXiv:1505.05770](https://arxiv.org/abs/1505.05770), section 4.1 and appendix A.2.
///
/// ```
/// use burn::module::Param;
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, residual::Radial};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let device = burn_flows::backend::device();
/// let mut radial = Radial::new(2, &mut StdRng::seed_from_u64(0), &device)?;
/// radial.center = Param::from_data([1.0, 0.0], &device);
/// // alpha = 1, softplus(beta) = 3, so beta' = 2.
/// radial.beta = Param::from_data([(3f32.exp() - 1.0).ln()], &device);
/// let (x, log_det) = radial.inverse_and_log_det(Tensor::from_data([[1.0, 1.0]], &device));
/// // At distance 1 it is pushed by 2 / (1 + 1) of it; slopes 2 across and 3/2 along.
/// let x = x.try_into_vec_as::<f32>().unwrap();
/// assert!((x[0] - 1.0).abs() < 1e-5 && (x[1] - 2.0).abs() < 1e-5);
/// assert!((log_det.into_scalar::<f32>() + 3f32.ln()).abs() < 1e-5);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Radial {
    /// `c`, `[features]`.
    pub center: Param<Tensor<1>>,
    /// `ln alpha`, `[1]`.
    pub log_alpha: Param<Tensor<1>>,
    /// `beta`, `[1]`.
    pub beta: Param<Tensor<1>>,
}

impl Radial {
    /// The identity, around a random centre.
    ///
    /// # Errors
    /// If there is no feature.
    pub fn new(num_features: usize, rng: &mut impl Rng, device: &Device) -> Result<Self> {
        if num_features == 0 {
            let advice = "give the number of features of the input";
            return Err(FlowError::config("Radial", "num_features", 0, "at least 1", advice));
        }
        let zeros = Tensor::<1>::zeros([1], device);
        let dtype = zeros.dtype();
        Ok(Self {
            center: Param::from_tensor(standard_normal([num_features], rng, device, dtype)),
            log_alpha: Param::from_tensor(zeros.clone()),
            beta: Param::from_tensor(zeros + SOFTPLUS_IS_ONE),
        })
    }

    /// What is beyond the centre, and how far it is, `[batch, 1]`.
    fn offset(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let center = self.center.val();
        let features = center.dims()[0];
        assert_size("Radial", &x, features, "features");
        let offset = x - center.reshape([1, features]);
        // At the centre itself the root has no slope; nothing depends on it there.
        let distance = offset.clone().square().sum_dim(1).clamp_min(f64::from(f32::MIN_POSITIVE));
        (offset, distance.sqrt())
    }

    /// `alpha` and `alpha + beta'`, `[1, 1]` each.
    fn constrained(&self) -> (Tensor<2>, Tensor<2>) {
        let alpha = self.log_alpha.val().exp();
        (alpha.reshape([1, 1]), softplus(self.beta.val()).reshape([1, 1]))
    }

    /// The factor `1 + beta' / (alpha + r)`, `[batch, 1]`, and the log-determinant of the forward map.
    fn stretch(&self, r: Tensor<2>, alpha: Tensor<2>, sum: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let batch = r.dims()[0];
        let features = self.center.dims()[0] as f64;
        // Sums of what is not negative, in which nothing cancels.
        let far = r.clone() + alpha.clone();
        let factor = (r.clone() + sum.clone()) / far.clone();
        let along = (r.clone() / far.clone()) * (r + alpha.clone() * 2.0) / far.clone()
            + alpha / far.clone() * sum / far;
        let log_slopes = factor.clone().log() * (features - 1.0) + along.log();
        (factor, log_slopes.reshape([batch]).neg())
    }
}

impl Flow<2> for Radial {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        let (offset, distance) = self.offset(x.clone());
        let (alpha, sum) = self.constrained();
        // The positive solution of r^2 - p r - alpha R = 0, without a difference of what is nearly equal.
        let p = distance.clone() - sum.clone();
        let product = distance * alpha.clone();
        let larger = (p.clone().square() + product.clone() * 4.0).sqrt() + p.clone().abs();
        let r = (larger.clone() * 0.5).mask_where(p.lower_elem(0.0), product * 2.0 / larger);
        let (factor, log_det) = self.stretch(r, alpha, sum);
        (x - offset.clone() + offset / factor, log_det)
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.inverse_and_log_det(z).0
    }

    fn inverse_and_log_det(&self, z: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        if host::has_no_samples(&z) {
            return (z.clone(), zero_log_det(&z));
        }
        let (offset, r) = self.offset(z.clone());
        let (alpha, sum) = self.constrained();
        let (factor, log_det) = self.stretch(r, alpha, sum);
        (z - offset.clone() + offset * factor, log_det)
    }

    fn check(&self) -> Result<()> {
        let dtype = self.log_alpha.val().dtype();
        let log_alpha = host::to_f64(host::plain(self.log_alpha.val()))[0];
        // Products of two such factors are numbers.
        if log_alpha.abs() <= host::largest_log_scale(dtype) / 2.0 {
            return Ok(());
        }
        Err(FlowError::invalid(
            "Radial: log_alpha",
            format!("{log_alpha}, at which products with alpha are not finite or 0"),
            "a number whose exponential has a square",
            "load an earlier checkpoint and train with a lower learning rate",
        ))
    }
}
