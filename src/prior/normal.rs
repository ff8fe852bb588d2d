//! The standard normal prior.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use rand::Rng;

use super::{HALF_LN_TAU, Prior, scaled_normal};
use crate::chain::zero_log_det;
use crate::coupling::sum_per_sample;
use crate::host;
use crate::record::Setting;

/// Independent standard normals: `ln p(z) = -sum_i (z_i^2 + ln 2 pi) / 2`.
#[derive(Module, Debug)]
pub struct StandardNormal {
    kind: Setting<&'static str>,
}

impl Default for StandardNormal {
    fn default() -> Self {
        Self { kind: Setting::new("standard normal") }
    }
}

impl StandardNormal {
    /// The standard normal.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<const D: usize> Prior<D> for StandardNormal {
    fn log_prob(&self, z: Tensor<D>) -> Tensor<1> {
        if host::has_no_samples(&z) {
            return zero_log_det(&z);
        }
        let features: usize = z.dims()[1..].iter().product();
        sum_per_sample(z.square()) * -0.5 - features as f64 * HALF_LN_TAU
    }

    fn sample(
        &self,
        shape: [usize; D],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<D> {
        scaled_normal(shape, temperature, rng, device, dtype)
    }

    fn backward(&self, z: Tensor<D>, weight: f64, _grads: &mut GradientsParams) -> Tensor<D> {
        z * -weight
    }
}
