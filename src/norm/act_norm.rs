//! ActNorm: per-channel affine normalization with data-dependent initialization.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use crate::backend::{HostScalar, HostValues};
use crate::chain::{assert_size, same_log_det};
use crate::coupling::per_channel;
use crate::error::{FlowError, Result};
use crate::flow::{At, Flow, Pass, add_grad, backward_by_autodiff};
use crate::host::{self, by_dtype};
use crate::kernels::{ChannelAffine, Scalar, channel_sums};
use crate::param::{check_log_scale, frozen, replace, replace_trained};
use crate::record::Setting;
use crate::tape::Tape;

/// Factor on the stored log-scales, which makes the optimizer move them faster (openai/glow,
/// `tfops.py`, `logscale_factor`).
pub const LOG_SCALE_FACTOR: f64 = 3.0;

/// Largest distance from the mean, in rounding units of the channel's largest value, up to which a
/// channel counts as constant and keeps the scale one: dividing by it would only amplify rounding.
const CONSTANT_CHANNEL: f64 = 4.0;

/// Added to the standard deviation at initialization (openai/glow, `tfops.py`).
const INIT_EPSILON: f64 = 1e-6;

/// Largest share that [`INIT_EPSILON`] may have of a standard deviation, which can be far below it.
const INIT_EPSILON_SHARE: f64 = 1e-3;

/// Learned per-channel shift and scale, initialized so that the first batch comes out with mean 0
/// and variance 1.
///
/// - forward: `z = (x + bias) * exp(3 log_scale)`
/// - inverse: `x = z * exp(-3 log_scale) - bias`
/// - `log_det = pixels * sum_c 3 log_scale_c`, the same for every sample
///
/// Before [`initialize`](Flow::initialize), which a [`Trainer`](crate::training::Trainer) calls with its
/// first batch, it is the identity. That it is initialized is kept in the record as [`initialized`](ActNorm::initialized), so a loaded model is not initialized again. A frozen parameter keeps its value.
///
/// The scale of a channel is that of its data, be it 1e-30 or 1e30. A channel that is constant over the
/// batch, but for rounding in the last places of its values, keeps the scale 1; so do all channels where
/// there is one value of each (a single vector). An empty batch initializes nothing. The bias is in the
/// units of the data, and an optimizer moves it by about its learning rate: data of a scale far below
/// the learning rate is better multiplied up before it comes here.
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
    /// A third of the log-scale, `[channels]`; see
    /// [`with_log_scale_factor`](ActNorm::with_log_scale_factor).
    pub log_scale: Param<Tensor<1>>,
    /// 1 once initialized, else 0; `[1]`, not trained.
    pub initialized: Param<Tensor<1>>,
    /// Where it is not [`LOG_SCALE_FACTOR`].
    log_scale_factor: Setting<Option<f64>>,
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
            log_scale_factor: None.into(),
        })
    }

    /// Initialized already, with the given parameters and factor on the log-scale.
    pub(crate) fn from_parts(
        bias: Param<Tensor<1>>,
        log_scale: Param<Tensor<1>>,
        factor: f64,
    ) -> Self {
        let initialized = Tensor::ones([1], (&bias.val().device(), bias.val().dtype()));
        let log_scale_factor = None.into();
        Self { bias, log_scale, initialized: frozen(initialized), log_scale_factor }
            .with_log_scale_factor(factor)
    }

    /// Replaces the factor on the stored log-scale, 3 by default: `z = (x + bias) * exp(factor
    /// log_scale)`. The PyTorch libraries have 1.
    pub fn with_log_scale_factor(mut self, factor: f64) -> Self {
        self.log_scale_factor = Some(factor).filter(|&factor| factor != LOG_SCALE_FACTOR).into();
        self
    }

    /// The factor on the stored log-scale.
    pub fn log_scale_factor(&self) -> f64 {
        self.log_scale_factor.unwrap_or(LOG_SCALE_FACTOR)
    }

    /// Whether the data-dependent initialization has taken place (also before saving and loading).
    pub fn is_initialized(&self) -> bool {
        host::scalar(host::plain(self.initialized.val())) > 0.5
    }

    /// The log-scale that is applied, `3 log_scale`, `[channels]`.
    pub fn effective_log_scale(&self) -> Tensor<1> {
        self.log_scale.val() * self.log_scale_factor()
    }

    /// Bias and effective log-scale.
    fn values(&self) -> (Vec<f64>, Vec<f64>) {
        let bias = host::to_f64(host::plain(self.bias.val()));
        let log_scale = host::to_f64(host::plain(self.log_scale.val()));
        let factor = self.log_scale_factor();
        (bias, log_scale.into_iter().map(|log_scale| factor * log_scale).collect())
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
            self.log_scale_factor() * (scale[channel] * sum + log_det_part)
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
        assert_size("ActNorm", x, channels, "channels");
    }
}

impl<const D: usize> Flow<D> for ActNorm {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        self.assert_channels(&x);
        let log_det = self.log_det(x.clone());
        if host::has_no_samples(&x) {
            return (x, log_det);
        }
        if host::runs_by_kernels(self, &x) {
            return (by_dtype!(x, T => self.forward_on_host::<T, D>(x)), log_det);
        }
        let scale = per_channel(self.effective_log_scale().exp());
        ((x + per_channel(self.bias.val())) * scale, log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.assert_channels(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        if host::runs_by_kernels(self, &z) {
            return by_dtype!(z, T => self.inverse_on_host::<T, D>(z));
        }
        let inverse_scale = per_channel(self.effective_log_scale().neg().exp());
        z * inverse_scale - per_channel(self.bias.val())
    }

    fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
        let pixels: usize = x.dims()[2..].iter().product();
        same_log_det(self.effective_log_scale().sum() * pixels as f64, &x)
    }

    fn check(&self) -> Result<()> {
        check_log_scale("ActNorm", self.effective_log_scale())
    }

    fn data_pass(mut self, x: Tensor<D>, pass: Pass) -> (Self, Tensor<D>) {
        self.assert_channels(&x);
        if pass == Pass::Initialize && !self.is_initialized() && !x.dims().contains(&0) {
            let (bias, log_scale) = standardization(&x, self.log_scale_factor());
            let (device, channels) = (x.device(), [bias.len()]);
            let tensor = |values| host::from_f64(values, channels, &device, x.dtype());
            self.bias = replace_trained(self.bias, tensor(bias));
            self.log_scale = replace_trained(self.log_scale, tensor(log_scale));
            let mark = self.initialized.val().ones_like();
            self.initialized = replace(self.initialized, mark);
        }
        let z = self.forward(x).0;
        (self, z)
    }

    fn pull_back(
        &self,
        at: At<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let x = tape.input(at, |z| self.valid().inverse(z));
        self.assert_channels(&x);
        let dx = if host::pulls_back_by_kernels(self, &x) {
            by_dtype!(x, T => self.backward_on_host::<T, D>(x.clone(), dz, dlog_det, grads))
        } else {
            backward_by_autodiff(self, x.clone(), dz, dlog_det, grads)
        };
        (x, dx)
    }
}

/// The bias and the log-scale divided by `factor` by which every channel of `x`, which is not empty, has mean 0 and
/// deviation 1; in f64, and of values divided by the largest one, so that no square leaves the numbers.
pub(super) fn standardization<const D: usize>(x: &Tensor<D>, factor: f64) -> (Vec<f64>, Vec<f64>) {
    let (shape, dtype) = (host::kernel_shape(x.dims()), x.dtype());
    let pixels = shape.pixels();
    let values = host::to_f64(host::plain(x.clone()));
    let limit = host::largest_log_scale(dtype);
    let count = (shape.batch * pixels) as f64;
    let of_channel = |channel: usize| {
        let of = || {
            let rows = values.chunks_exact(pixels).skip(channel).step_by(shape.channels);
            rows.flatten().copied()
        };
        let largest = of().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        if largest == 0.0 {
            return (0.0, 0.0);
        }
        let mean = of().map(|value| value / largest).sum::<f64>() / count;
        let spread =
            of().fold(0.0, |spread: f64, value| spread.max((value / largest - mean).abs()));
        let is_constant = spread <= CONSTANT_CHANNEL * host::epsilon(dtype);
        let log_deviation = match is_constant {
            true => 0.0,
            false => {
                let square = |value: f64| ((value / largest - mean) / spread).powi(2);
                let relative = (of().map(square).sum::<f64>() / count).sqrt() * spread;
                let epsilon = (INIT_EPSILON / largest).min(INIT_EPSILON_SHARE * relative);
                // Two logarithms, the product of whose arguments need not be a number.
                (relative + epsilon).ln() + largest.ln()
            }
        };
        (-mean * largest, log_deviation.clamp(-limit, limit) / -factor)
    };
    (0..shape.channels).map(of_channel).unzip()
}

pub(super) fn apply<T: HostScalar, const D: usize>(
    map: ChannelAffine<'_, T>,
    x: Tensor<D>,
) -> Tensor<D> {
    let (device, dims) = (x.device(), x.dims());
    let values = map.apply(HostValues::of(x).as_slice(), host::kernel_shape(dims));
    host::tensor(values, dims, &device)
}

pub(super) fn rounded<T: Scalar>(values: impl IntoIterator<Item = f64>) -> Vec<T> {
    values.into_iter().map(T::from_f64).collect()
}
