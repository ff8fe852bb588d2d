//! ActNorm with the scale itself as its parameter.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::act_norm::{ActNorm, apply, rounded, standardization};
use crate::backend::HostScalar;
use crate::chain::{assert_size, same_log_det};
use crate::coupling::per_channel;
use crate::error::{FlowError, Result};
use crate::flow::{Flow, Pass};
use crate::host::{self, by_dtype};
use crate::kernels::ChannelAffine;
use crate::param::{replace, replace_trained};

const LAYER: &str = "LinearActNorm";

/// [`ActNorm`] whose parameter is the scale and not its logarithm, so that it can be negative.
///
/// - forward: `z = scale (x + bias)`
/// - inverse: `x = z / scale - bias`
/// - `log_det = pixels * sum_c ln|scale_c|`, the same for every sample
///
/// A scale of zero has no inverse: [`check`](Flow::check) refuses it. Prefer [`ActNorm`], whose scale
/// cannot become zero; this one is for models that were trained with it. The variance of the batch that
/// initializes it is divided by one less than the number of values, as there.
///
/// Source: rosinality/glow-pytorch, `model.py`, `ActNorm`.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, norm::LinearActNorm};
///
/// let device = burn_flows::backend::device();
/// let mut norm = LinearActNorm::new(1, &device)?;
/// norm.scale = norm.scale.map(|scale| scale * -2.0);
/// let (z, log_det) = norm.forward(Tensor::<2>::from_data([[3.0]], &device));
/// assert_eq!(z.into_scalar::<f32>(), -6.0);
/// assert!((log_det.into_scalar::<f32>() - 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct LinearActNorm {
    /// Shift, `[channels]`.
    pub bias: Param<Tensor<1>>,
    /// Scale, `[channels]`.
    pub scale: Param<Tensor<1>>,
    /// 1 once initialized, else 0; `[1]`, not trained.
    pub initialized: Param<Tensor<1>>,
}

impl LinearActNorm {
    /// The identity on `num_channels` channels, waiting for its first batch.
    ///
    /// # Errors
    /// If `num_channels` is zero.
    pub fn new(num_channels: usize, device: &Device) -> Result<Self> {
        let ActNorm { bias, initialized, .. } = ActNorm::new(num_channels, device)?;
        let scale = Param::from_tensor(Tensor::ones([num_channels], device));
        Ok(Self { bias, scale, initialized })
    }

    /// Whether the data-dependent initialization has taken place (also before saving and loading).
    pub fn is_initialized(&self) -> bool {
        host::scalar(host::plain(self.initialized.val())) > 0.5
    }

    fn values(&self) -> (Vec<f64>, Vec<f64>) {
        let values = |param: &Param<Tensor<1>>| host::to_f64(host::plain(param.val()));
        (values(&self.bias), values(&self.scale))
    }

    fn forward_on_host<T: HostScalar, const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (bias, scale) = self.values();
        let (before, scale) = (rounded::<T>(bias), rounded(scale));
        let after = vec![T::ZERO; before.len()];
        apply(ChannelAffine { before: &before, scale: &scale, after: &after }, x)
    }

    fn inverse_on_host<T: HostScalar, const D: usize>(&self, z: Tensor<D>) -> Tensor<D> {
        let (bias, scale) = self.values();
        let scale = rounded::<T>(scale.iter().map(|scale| scale.recip()));
        let after = rounded::<T>(bias.iter().map(|bias| -bias));
        let before = vec![T::ZERO; after.len()];
        apply(ChannelAffine { before: &before, scale: &scale, after: &after }, z)
    }

    fn assert_channels<const D: usize>(&self, x: &Tensor<D>) {
        let channels = self.bias.dims()[0];
        assert_size(LAYER, x, channels, "channels");
    }
}

impl<const D: usize> Flow<D> for LinearActNorm {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        self.assert_channels(&x);
        let log_det = self.log_det(x.clone());
        if host::has_no_samples(&x) {
            return (x, log_det);
        }
        if host::runs_by_kernels(self, &x) {
            return (by_dtype!(x, T => self.forward_on_host::<T, D>(x)), log_det);
        }
        ((x + per_channel(self.bias.val())) * per_channel(self.scale.val()), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.assert_channels(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        if host::runs_by_kernels(self, &z) {
            return by_dtype!(z, T => self.inverse_on_host::<T, D>(z));
        }
        z * per_channel(self.scale.val().recip()) - per_channel(self.bias.val())
    }

    fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
        let pixels: usize = x.dims()[2..].iter().product();
        same_log_det(self.scale.val().abs().log().sum() * pixels as f64, &x)
    }

    fn data_pass(mut self, x: Tensor<D>, pass: Pass) -> (Self, Tensor<D>) {
        self.assert_channels(&x);
        if pass == Pass::Initialize && !self.is_initialized() && !x.dims().contains(&0) {
            let (bias, log_scale) = standardization(&x, 1.0);
            let count = (x.dims().iter().product::<usize>() / x.dims()[1]) as f64;
            let unbiased = ((count - 1.0) / count).sqrt();
            // A constant channel keeps the scale 1.
            let scale = |log_scale: f64| match log_scale {
                0.0 => 1.0,
                _ => log_scale.exp() * unbiased,
            };
            let (device, channels) = (x.device(), [bias.len()]);
            let tensor = |values| host::from_f64(values, channels, &device, x.dtype());
            self.bias = replace_trained(self.bias, tensor(bias));
            self.scale =
                replace_trained(self.scale, tensor(log_scale.into_iter().map(scale).collect()));
            let mark = self.initialized.val().ones_like();
            self.initialized = replace(self.initialized, mark);
        }
        let z = self.forward(x).0;
        (self, z)
    }

    fn check(&self) -> Result<()> {
        match self.values().1.into_iter().position(|scale| scale == 0.0 || !scale.is_finite()) {
            None => Ok(()),
            Some(channel) => Err(FlowError::invalid(
                format!("{LAYER}: the scale of channel {channel}"),
                self.values().1[channel],
                "a finite number other than zero",
                "load an earlier checkpoint and train with a lower learning rate",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_batch_comes_out_with_the_unbiased_variance_one() {
        let device = crate::backend::device();
        let x = Tensor::<2>::from_data([[1.0, 5.0], [3.0, 5.0]], &device);
        let (norm, z) = LinearActNorm::new(2, &device).unwrap().initialize(x);
        assert!(norm.is_initialized());
        // The deviation of 1 and 3 is the root of 2; a constant channel keeps its scale.
        let expected = [-0.5f64.sqrt(), 0.0, 0.5f64.sqrt(), 0.0];
        for (z, expected) in host::to_f64(z).into_iter().zip(expected) {
            assert!((z - expected).abs() < 1e-5, "{z} is not {expected}");
        }
        assert_eq!(norm.values().1[1], 1.0);
    }

    #[test]
    fn a_scale_of_zero_is_refused() {
        let device = crate::backend::device();
        let mut norm = LinearActNorm::new(2, &device).unwrap();
        assert!(Flow::<2>::check(&norm).is_ok());
        norm.scale = replace(norm.scale, Tensor::from_data([1.0, 0.0], &device));
        let message = Flow::<2>::check(&norm).unwrap_err().to_string();
        assert!(message.starts_with("LinearActNorm: the scale of channel 1: got 0"), "{message}");
    }
}
