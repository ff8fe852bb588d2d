//! Mean 0 and deviation 1, from data.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};

use crate::chain::{same_log_det, zero_log_det};
use crate::context::Embedding;
use crate::coupling::per_channel;
use crate::error::{FlowError, Result};
use crate::flow::{At, Flow, backward_by_autodiff};
use crate::host;
use crate::param::frozen;
use crate::tape::Tape;

/// Takes each feature (or channel) to mean 0 and standard deviation 1, by moments taken once from data.
///
/// - forward: `z = (x - mean) / deviation`
/// - inverse: `x = z deviation + mean`
/// - `log_det = -pixels * sum ln deviation`
///
/// As a layer, not a preparation of the data, it makes densities and samples those of the data as they
/// came. It is saved with the model and never trained.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, preprocess::Standardize};
///
/// let device = burn_flows::backend::device();
/// let x = Tensor::<2>::from_data([[1000.0, 0.1], [3000.0, 0.3]], &device);
/// let (z, _) = Standardize::fit(x.clone())?.forward(x);
/// let z = z.try_into_vec_as::<f32>().unwrap();
/// // Two samples are each a root of one half away from their mean.
/// assert!((z[3] - 0.5f32.sqrt()).abs() < 1e-5);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Standardize {
    /// Mean of each channel, `[channels]`, not trained.
    pub mean: Param<Tensor<1>>,
    /// Standard deviation of each channel, `[channels]`, not trained.
    pub deviation: Param<Tensor<1>>,
}

const LAYER: &str = "Standardize";

impl Standardize {
    /// For channels that have mean 0 and deviation 1, or whose moments a record has.
    ///
    /// # Errors
    /// If `channels` is 0.
    pub fn identity(channels: usize, device: &Device) -> Result<Self> {
        if channels == 0 {
            let advice = "give the number of channels";
            return Err(FlowError::config(LAYER, "channels", 0, "at least 1", advice));
        }
        let param = |value| {
            let values = vec![value; channels];
            frozen(host::from_f64(values, [channels], device, DType::F32))
        };
        Ok(Self { mean: param(0.0), deviation: param(1.0) })
    }

    /// Takes the moments of a batch, all of the data if they fit: mean and unbiased standard deviation of
    /// each channel. A channel that is constant but for rounding keeps its deviation, 1 stands for it.
    ///
    /// # Errors
    /// If there are fewer than two values a channel, or one is not finite.
    pub fn fit<const D: usize>(x: Tensor<D>) -> Result<Self> {
        let (dims, device, dtype) = (x.dims(), x.device(), x.dtype());
        let (batch, channels) = (dims[0], dims[1]);
        let pixels: usize = dims[2..].iter().product();
        let refuse = |got: String, needed: &str, advice: &str| {
            FlowError::invalid(format!("{LAYER}: the data to fit"), got, needed, advice)
        };
        if batch * pixels < 2 || channels == 0 {
            let needed = "at least two values of each channel";
            return Err(refuse(format!("of shape {dims:?}"), needed, "give all of the data"));
        }
        let values = host::to_f64(host::plain(x));
        let count = (batch * pixels) as f64;
        let of_channel = |channel: usize| {
            let values = &values;
            (0..batch).flat_map(move |sample| {
                let start = (sample * channels + channel) * pixels;
                values[start..start + pixels].iter().copied()
            })
        };
        let (mut means, mut deviations) = (Vec::new(), Vec::new());
        for channel in 0..channels {
            let mean = of_channel(channel).sum::<f64>() / count;
            let squares: f64 = of_channel(channel).map(|value| (value - mean).powi(2)).sum();
            let deviation = (squares / (count - 1.0)).sqrt();
            if !deviation.is_finite() {
                let needed = "finite numbers";
                let got = format!("values of channel {channel} that are not finite");
                return Err(refuse(got, needed, "remove or repair those samples"));
            }
            // Below the rounding of the data there is nothing to be seen of a deviation.
            let is_constant = deviation <= host::epsilon(dtype) * mean.abs();
            means.push(mean);
            deviations.push(if is_constant { 1.0 } else { deviation });
        }
        let param = |values| frozen(host::from_f64(values, [channels], &device, dtype));
        Ok(Self { mean: param(means), deviation: param(deviations) })
    }

    fn assert_channels<const D: usize>(&self, x: &Tensor<D>) {
        let [channels] = self.mean.dims();
        assert!(
            x.dims()[1] == channels,
            "{LAYER}: got shape {:?}, but was fitted to {channels} channels on axis 1",
            x.dims()
        );
    }
}

impl<const D: usize> Flow<D> for Standardize {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        self.assert_channels(&x);
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        let log_det = self.log_det(x.clone());
        let z = (x - per_channel(self.mean.val())) / per_channel(self.deviation.val());
        (z, log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.assert_channels(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        z * per_channel(self.deviation.val()) + per_channel(self.mean.val())
    }

    fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
        let pixels: usize = x.dims()[2..].iter().product();
        same_log_det(self.deviation.val().log().sum() * -(pixels as f64), &x)
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
        let dx = match self.mean.is_require_grad() || self.deviation.is_require_grad() {
            true => backward_by_autodiff(self, x.clone(), dz, dlog_det, grads),
            false => dz / per_channel(self.deviation.val().inner()),
        };
        (x, dx)
    }
}

impl<const D: usize> Embedding<D, D> for Standardize {
    fn embed(&self, raw: Tensor<D>) -> Tensor<D> {
        self.forward(raw).0
    }
}
