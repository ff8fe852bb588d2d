//! A learned normal with diagonal covariance.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use rand::Rng;

use super::{HALF_LN_TAU, Prior, scaled_normal};
use crate::chain::zero_log_det;
use crate::coupling::sum_per_sample;
use crate::host;

/// Independent normals with learned means and log standard deviations (Glow's learned top).
///
/// `ln p(z) = -sum_i ((z_i - mean_i)^2 exp(-2 log_std_i) / 2 + log_std_i + ln(2 pi) / 2)`
///
/// The parameters have batch size 1 and are broadcast: `[1, channels, 1, 1]` is one normal per
/// channel (openai/glow, `model.py`, `prior`), `[1, channels, height, width]` one per entry.
#[derive(Module, Debug)]
pub struct DiagonalNormal<const D: usize> {
    /// Means, shape `[1, ...]`.
    pub mean: Param<Tensor<D>>,
    /// Log standard deviations, shape `[1, ...]`.
    pub log_std: Param<Tensor<D>>,
}

impl<const D: usize> DiagonalNormal<D> {
    /// Standard normals to start with; `shape` is that of the parameters, with batch size 1.
    pub fn new(shape: [usize; D], device: &Device) -> Self {
        Self {
            mean: Param::from_tensor(Tensor::zeros(shape, device)),
            log_std: Param::from_tensor(Tensor::zeros(shape, device)),
        }
    }

    /// One normal per channel (or feature).
    pub fn per_channel(num_channels: usize, device: &Device) -> Self {
        let mut shape = [1; D];
        shape[1] = num_channels;
        Self::new(shape, device)
    }

    /// Broadcast to more values than there are, the parameters would give the density of those.
    fn assert_fits(&self, shape: [usize; D]) {
        let own = self.mean.dims();
        let fits = |axis: usize| own[axis] == 1 || (axis > 0 && own[axis] == shape[axis]);
        assert!(
            (0..D).all(fits),
            "DiagonalNormal: got latents of shape {shape:?}, but was built for those of shape {own:?}, where 1 \
             fits any size"
        );
    }
}

/// `ln N(z; mean, exp(log_std))` summed over all but the batch; the parameters broadcast.
pub(crate) fn normal_log_prob<const D: usize>(
    z: Tensor<D>,
    mean: Tensor<D>,
    log_std: Tensor<D>,
) -> Tensor<1> {
    if host::has_no_samples(&z) {
        return zero_log_det(&z);
    }
    let standardized = (z - mean) * log_std.clone().neg().exp();
    sum_per_sample((standardized.square() * 0.5 + log_std + HALF_LN_TAU).neg())
}

impl<const D: usize> Prior<D> for DiagonalNormal<D> {
    fn log_prob(&self, z: Tensor<D>) -> Tensor<1> {
        self.assert_fits(z.dims());
        normal_log_prob(z, self.mean.val(), self.log_std.val())
    }

    fn sample(
        &self,
        shape: [usize; D],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<D> {
        self.assert_fits(shape);
        let noise = scaled_normal(shape, temperature, rng, device, dtype);
        if host::has_no_samples(&noise) {
            return noise;
        }
        noise * self.log_std.val().exp() + self.mean.val()
    }
}
