//! A learned shift of each channel.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use crate::chain::{assert_size, zero_log_det};
use crate::coupling::per_channel;
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;

/// A learned shift of each channel (or feature): `z = x + shift`, `log_det = 0`.
///
/// Behind an [`InvertibleConv1x1`](super::InvertibleConv1x1) it is the bias of a linear layer.
///
/// ```
/// use burn::module::Param;
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, linear::Shift};
///
/// let device = burn_flows::backend::device();
/// let mut shift = Shift::new(2, &device)?;
/// shift.shift = Param::from_data([1.0, -2.0], &device);
/// let (z, _) = shift.forward(Tensor::<2>::from_data([[5.0, 5.0]], &device));
/// assert_eq!(z.try_into_vec_as::<f32>().unwrap(), [6.0, 3.0]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Shift {
    /// What is added, `[channels]`.
    pub shift: Param<Tensor<1>>,
}

impl Shift {
    /// No shift of `num_channels` channels.
    ///
    /// # Errors
    /// If `num_channels` is zero.
    pub fn new(num_channels: usize, device: &Device) -> Result<Self> {
        if num_channels == 0 {
            let advice = "give the number of channels of the input";
            return Err(FlowError::config("Shift", "num_channels", 0, "at least 1", advice));
        }
        Ok(Self { shift: Param::from_tensor(Tensor::zeros([num_channels], device)) })
    }

    fn assert_channels<const D: usize>(&self, x: &Tensor<D>) {
        assert_size("Shift", x, self.shift.dims()[0], "channels");
    }
}

impl<const D: usize> Flow<D> for Shift {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        self.assert_channels(&x);
        let log_det = zero_log_det(&x);
        if host::has_no_samples(&x) {
            return (x, log_det);
        }
        (x + per_channel(self.shift.val()), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.assert_channels(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        z - per_channel(self.shift.val())
    }

    fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
        zero_log_det(&x)
    }
}
