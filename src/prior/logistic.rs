//! The standard logistic prior.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use rand::{Rng, RngExt};

use super::Prior;
use crate::chain::zero_log_det;
use crate::coupling::sum_per_sample;
use crate::host;
use crate::record::Setting;

/// Independent standard logistics: `ln p(z) = -sum_i (softplus(z_i) + softplus(-z_i))`.
///
/// Source: Dinh et al., *NICE*, [arXiv:1410.8516](https://arxiv.org/abs/1410.8516), section 3.4.
#[derive(Module, Debug)]
pub struct StandardLogistic {
    kind: Setting<&'static str>,
}

impl Default for StandardLogistic {
    fn default() -> Self {
        Self { kind: Setting::new("standard logistic") }
    }
}

impl StandardLogistic {
    /// The standard logistic.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<const D: usize> Prior<D> for StandardLogistic {
    fn log_prob(&self, z: Tensor<D>) -> Tensor<1> {
        if host::has_no_samples(&z) {
            return zero_log_det(&z);
        }
        // softplus(z) + softplus(-z) = |z| + 2 ln(1 + exp(-|z|)), which does not overflow.
        let size = z.abs();
        sum_per_sample(size.clone() + size.neg().exp().log1p() * 2.0).neg()
    }

    fn sample(
        &self,
        shape: [usize; D],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<D> {
        let count = shape.iter().product();
        let values = (0..count)
            .map(|_| {
                // Open at both ends: neither logarithm sees a zero.
                let u: f64 = rng.random::<f64>().clamp(f64::EPSILON, 1.0 - f64::EPSILON);
                temperature * (u.ln() - (-u).ln_1p())
            })
            .collect();
        host::from_f64(values, shape, device, dtype)
    }
}
