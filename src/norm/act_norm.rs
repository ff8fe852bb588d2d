//! ActNorm: per-channel affine normalization with data-dependent initialization.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use super::running_moments::Moments;
use crate::backend::{HostScalar, HostValues};
use crate::coupling::per_channel;
use crate::error::{FlowError, Result};
use crate::flow::{Flow, add_grad, backward_by_autodiff};
use crate::host::{self, by_dtype};
use crate::kernels::{ChannelAffine, Scalar, channel_sums};
use crate::param::{frozen, replace};

/// Factor on the stored log-scales, which makes the optimizer move them faster (openai/glow,
/// `tfops.py`, `logscale_factor`).
pub const LOG_SCALE_FACTOR: f64 = 3.0;

/// Standard deviation below which a channel counts as constant and keeps the scale one: dividing by
/// it would only amplify rounding.
const CONSTANT_CHANNEL: f64 = 1e-5;

/// Added to the standard deviation at initialization (openai/glow, `tfops.py`).
const INIT_EPSILON: f64 = 1e-6;

/// Learned per-channel shift and scale, initialized so that the first batch comes out with mean 0
/// and variance 1.
///
/// - forward: `z = (x + bias) * exp(3 log_scale)`
/// - inverse: `x = z * exp(-3 log_scale) - bias`
/// - `log_det = pixels * sum_c 3 log_scale_c`, the same for every sample
///
/// Before [`initialize`](Flow::initialize) it is the identity. That it is initialized is kept in the
/// record as [`initialized`](ActNorm::initialized), so a loaded model is not initialized again. A
/// channel that is constant over the batch keeps the scale 1.
///
/// The paper writes `s x + b`; this is the form of its code. Source: Kingma and Dhariwal, *Glow*,
/// [arXiv:1807.03039](https://arxiv.org/abs/1807.03039), section 3.1; openai/glow, `tfops.py`.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, norm::ActNorm};
///
/// let device = burn_flows::backend::device();
/// let x = Tensor::<2>::from_data([[1.0, 10.0], [3.0, 30.0]], &device);
/// let (norm, z) = ActNorm::new(2, &device)?.initialize(x);
/// assert!(norm.is_initialized());
/// let values: Vec<f32> = z.try_into_vec_as().unwrap();
/// for (value, expected) in values.iter().zip([-1.0, -1.0, 1.0, 1.0]) {
///     assert!((value - expected).abs() < 1e-5);
/// }
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct ActNorm {
    /// Shift, `[channels]`.
    pub bias: Param<Tensor<1>>,
    /// A third of the log-scale, `[channels]`.
    pub log_scale: Param<Tensor<1>>,
    /// 1 once initialized, else 0; `[1]`, not trained.
    pub initialized: Param<Tensor<1>>,
}

impl ActNorm {
    /// The identity on `num_channels` channels, waiting for its first batch.
    ///
    /// # Errors
    /// If `num_channels` is zero.
    pub fn new(num_channels: usize, device: &Device) -> Result<Self> {
        if num_channels == 0 {
            return Err(FlowError::config(
                "ActNorm",
                "num_channels",
                0,
                "at least 1",
                "give the number of channels of the input",
            ));
        }
        Ok(Self {
            bias: Param::from_tensor(Tensor::zeros([num_channels], device)),
            log_scale: Param::from_tensor(Tensor::zeros([num_channels], device)),
            initialized: frozen(Tensor::zeros([1], device)),
        })
    }

    /// Whether the data-dependent initialization has taken place (also before saving and loading).
    pub fn is_initialized(&self) -> bool {
        self.initialized.val().into_scalar::<f32>() > 0.5
    }

    /// The log-scale that is applied, `3 log_scale`, `[channels]`.
    pub fn effective_log_scale(&self) -> Tensor<1> {
        self.log_scale.val() * LOG_SCALE_FACTOR
    }

    /// Bias and effective log-scale.
    fn values(&self) -> (Vec<f64>, Vec<f64>) {
        let bias = host::to_f64(host::plain(self.bias.val()));
        let log_scale = host::to_f64(host::plain(self.log_scale.val()));
        (bias, log_scale.into_iter().map(|log_scale| LOG_SCALE_FACTOR * log_scale).collect())
    }

    fn forward_on_host<T: HostScalar, const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (bias, log_scale) = self.values();
        let (bias, scale) = (rounded::<T>(bias), rounded(log_scale.iter().map(|l| l.exp())));
        let after = vec![T::ZERO; bias.len()];
        let map = ChannelAffine { before: &bias, scale: &scale, after: &after };
        apply(map, x)
    }

    fn inverse_on_host<T: HostScalar, const D: usize>(&self, z: Tensor<D>) -> Tensor<D> {
        let (bias, log_scale) = self.values();
        let scale = rounded::<T>(log_scale.iter().map(|l| (-l).exp()));
        let before = vec![T::ZERO; bias.len()];
        let after = rounded::<T>(bias.iter().map(|bias| -bias));
        let map = ChannelAffine { before: &before, scale: &scale, after: &after };
        apply(map, z)
    }

    fn backward_on_host<T: HostScalar, const D: usize>(
        &self,
        x: Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> Tensor<D> {
        let (device, shape) = (x.device(), host::kernel_shape(x.dims()));
        let (bias, log_scale) = self.values();
        let sums = {
            let (x, dz) = (HostValues::of(x), HostValues::of(dz.clone()));
            channel_sums::<T>(dz.as_slice(), x.as_slice(), shape)
        };
        // z = (x + bias) scale: dz/dlog_scale = (x + bias) scale and dz/dbias = scale.
        let dlog_det: f64 = host::to_f64(dlog_det).iter().sum();
        let log_det_part = shape.pixels() as f64 * dlog_det;
        let scale: Vec<f64> = log_scale.iter().map(|l| l.exp()).collect();
        let dbias = scale.iter().zip(&sums.first).map(|(scale, sum)| scale * sum);
        let dlog_scale = (0..shape.channels).map(|channel| {
            let sum = sums.product[channel] + bias[channel] * sums.first[channel];
            LOG_SCALE_FACTOR * (scale[channel] * sum + log_det_part)
        });
        for (param, gradient) in
            [(&self.bias, rounded::<T>(dbias)), (&self.log_scale, rounded::<T>(dlog_scale))]
        {
            add_grad(grads, param, host::tensor(gradient, [shape.channels], &device));
        }
        let zeros = vec![T::ZERO; shape.channels];
        let scale = rounded::<T>(scale);
        apply(ChannelAffine { before: &zeros, scale: &scale, after: &zeros }, dz)
    }

    fn assert_channels<const D: usize>(&self, x: &Tensor<D>) {
        let channels = self.bias.dims()[0];
        assert!(
            x.dims()[1] == channels,
            "ActNorm: got shape {:?}, but was built for {channels} channels on axis 1",
            x.dims()
        );
    }
}

impl<const D: usize> Flow<D> for ActNorm {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        self.assert_channels(&x);
        let log_det = self.log_det(x.clone());
        if host::suits_kernels(&x) {
            return (by_dtype!(x, T => self.forward_on_host::<T, D>(x)), log_det);
        }
        let scale = per_channel(self.effective_log_scale().exp());
        ((x + per_channel(self.bias.val())) * scale, log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.assert_channels(&z);
        if host::suits_kernels(&z) {
            return by_dtype!(z, T => self.inverse_on_host::<T, D>(z));
        }
        let inverse_scale = per_channel(self.effective_log_scale().neg().exp());
        z * inverse_scale - per_channel(self.bias.val())
    }

    fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
        let pixels: usize = x.dims()[2..].iter().product();
        (self.effective_log_scale().sum() * pixels as f64).expand([x.dims()[0]])
    }

    fn initialize(mut self, x: Tensor<D>) -> (Self, Tensor<D>) {
        self.assert_channels(&x);
        if !self.is_initialized() {
            let Moments { mean, variance } = Moments::of(x.clone());
            let deviation = variance.sqrt();
            let constant = deviation.clone().lower_elem(CONSTANT_CHANNEL);
            let deviation = (deviation + INIT_EPSILON).mask_fill(constant, 1.0);
            self.bias = replace(self.bias, mean.neg());
            self.log_scale = replace(self.log_scale, deviation.log() / -LOG_SCALE_FACTOR);
            let mark = self.initialized.val().ones_like();
            self.initialized = replace(self.initialized, mark);
        }
        let z = self.forward(x).0;
        (self, z)
    }

    fn backward(
        &self,
        x: Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> Tensor<D> {
        self.assert_channels(&x);
        if !host::suits_kernels(&x) {
            return backward_by_autodiff(self, x, dz, dlog_det, grads);
        }
        by_dtype!(x, T => self.backward_on_host::<T, D>(x, dz, dlog_det, grads))
    }
}

fn apply<T: HostScalar, const D: usize>(map: ChannelAffine<'_, T>, x: Tensor<D>) -> Tensor<D> {
    let (device, dims) = (x.device(), x.dims());
    let values = map.apply(HostValues::of(x).as_slice(), host::kernel_shape(dims));
    host::tensor(values, dims, &device)
}

fn rounded<T: Scalar>(values: impl IntoIterator<Item = f64>) -> Vec<T> {
    values.into_iter().map(T::from_f64).collect()
}
