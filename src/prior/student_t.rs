//! A prior with heavy tails.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use rand::Rng;
use rand_distr::{ChiSquared, Distribution};

use super::{Prior, standard_normal_values};
use crate::chain::zero_log_det;
use crate::coupling::sum_per_sample;
use crate::error::{FlowError, Result};
use crate::host;
use crate::record::Setting;

/// Independent Student t distributions with `n` degrees of freedom.
///
/// `ln p(z) = sum_i (ln G((n+1)/2) - ln G(n/2) - ln(n pi)/2 - (n+1)/2 ln(1 + z_i^2 / n))`, `G` the gamma
/// function. A flow with bounded slopes keeps the tails of its prior, so data with heavy tails ask for one
/// that has them. A temperature multiplies the draws.
///
/// Source: Jaini et al., *Tails of Lipschitz Triangular Flows*,
/// [arXiv:1907.04481](https://arxiv.org/abs/1907.04481), section 4.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::prior::{Prior, StudentT};
///
/// let device = burn_flows::backend::device();
/// // One degree of freedom is the Cauchy distribution, whose density at 0 is 1 / pi.
/// let log_prob = StudentT::new(1.0)?.log_prob(Tensor::<2>::zeros([1, 1], &device));
/// assert!((log_prob.into_scalar::<f32>() + std::f32::consts::PI.ln()).abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct StudentT {
    degrees: Setting<f64>,
}

impl StudentT {
    /// With the given degrees of freedom.
    ///
    /// # Errors
    /// If they are not positive and finite.
    pub fn new(degrees: f64) -> Result<Self> {
        if !(degrees > 0.0 && degrees.is_finite()) {
            return Err(FlowError::config(
                "StudentT",
                "degrees",
                degrees,
                "positive and finite",
                "1 is the Cauchy distribution; from 30 on it is nearly normal",
            ));
        }
        Ok(Self { degrees: degrees.into() })
    }

    /// The degrees of freedom.
    pub fn degrees(&self) -> f64 {
        *self.degrees
    }
}

/// From so many degrees on the series of [`log_gamma_step`] is exact in f64.
pub(super) const MANY_DEGREES: f64 = 1e3;

/// `ln G((n+1)/2) - ln G(n/2)`: of many degrees by its asymptotic series, since both are large there and
/// their difference is not.
pub(super) fn log_gamma_step(n: f64) -> f64 {
    if n < MANY_DEGREES {
        return libm::lgamma((n + 1.0) / 2.0) - libm::lgamma(n / 2.0);
    }
    (n / 2.0).ln() / 2.0 - 0.25 / n + n.powi(3).recip() / 24.0
}

impl<const D: usize> Prior<D> for StudentT {
    fn log_prob(&self, z: Tensor<D>) -> Tensor<1> {
        if host::has_no_samples(&z) {
            return zero_log_det(&z);
        }
        let n = *self.degrees;
        let constant = log_gamma_step(n) - (n.ln() + std::f64::consts::PI.ln()) / 2.0;
        // ln(1 + z^2 / n) without squaring what is large.
        let size = z.abs() * n.sqrt().recip();
        let large = size.clone().greater_elem(1.0);
        let small = size.clone().clamp_max(1.0).square().log1p();
        let far = size.clamp_min(1.0);
        let far = far.clone().log() * 2.0 + far.recip().square().log1p();
        sum_per_sample(small.mask_where(large, far) * (-(n + 1.0) / 2.0) + constant)
    }

    fn sample(
        &self,
        shape: [usize; D],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<D> {
        let chi_squared = ChiSquared::new(*self.degrees).expect("the degrees are positive");
        let normals = standard_normal_values(shape.iter().product(), rng);
        let values = normals
            .into_iter()
            .map(|normal| {
                let spread = chi_squared.sample(rng) / *self.degrees;
                temperature * normal / spread.max(f64::MIN_POSITIVE).sqrt()
            })
            .collect();
        host::from_f64(values, shape, device, dtype)
    }
}
