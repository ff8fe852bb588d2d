//! An elementwise map with parameters of its own.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::transform::per_channel;
use super::{Transform, map_and_log_det};
use crate::chain::{assert_size, zero_log_det};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;

/// A [`Transform`] whose parameters are learned for each channel, not computed by a net.
///
/// - forward: `z = transform(x; params)`, `log_det = sum ln|dz/dx|`
/// - inverse: `x = transform^-1(z; params)`
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::Flow;
/// use burn_flows::coupling::{Elementwise, RationalQuadraticConfig};
///
/// let device = burn_flows::backend::device();
/// let splines = Elementwise::new(RationalQuadraticConfig::new(8, 3.0).init()?, 2, &device)?;
/// let x = Tensor::<2>::from_data([[0.5, -20.0]], &device);
/// // The identity, until it is trained.
/// assert!((splines.forward(x.clone()).0 - x).abs().max().into_scalar::<f32>() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Elementwise<T> {
    /// The parameters, `[params_per_channel * channels]`, in the order of the transform's.
    pub params: Param<Tensor<1>>,
    /// The elementwise map.
    pub transform: T,
}

impl<T: Transform> Elementwise<T> {
    /// A map of `num_channels` channels, with parameters 0.
    ///
    /// # Errors
    /// If `num_channels` is zero.
    pub fn new(transform: T, num_channels: usize, device: &Device) -> Result<Self> {
        if num_channels == 0 {
            let advice = "give the number of channels of the input";
            return Err(FlowError::config("Elementwise", "num_channels", 0, "at least 1", advice));
        }
        let params = Tensor::zeros([num_channels * transform.params_per_channel()], device);
        Ok(Self { params: Param::from_tensor(params), transform })
    }

    fn assert_channels<const D: usize>(&self, x: &Tensor<D>) {
        let [numbers] = self.params.dims();
        let channels = numbers / self.transform.params_per_channel();
        assert_size("Elementwise", x, channels, "channels");
    }

    fn params_for<const D: usize>(&self, x: &Tensor<D>) -> Tensor<D> {
        let mut shape = x.dims();
        [shape[1]] = self.params.dims();
        per_channel::<D>(self.params.val()).expand(shape)
    }
}

impl<const D: usize, T: Transform> Flow<D> for Elementwise<T>
where
    Self: Module,
{
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        self.assert_channels(&x);
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        let params = self.params_for(&x);
        map_and_log_det(&self.transform, x, params, |all| all)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.assert_channels(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        let params = self.params_for(&z);
        self.transform.inverse(z, params)
    }
}
