//! Learned per-feature scaling.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use crate::chain::{assert_size, same_log_det};
use crate::coupling::per_channel;
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::param::check_log_scale;

/// Learned per-feature scaling, the last layer of NICE.
///
/// - forward: `z = x * exp(log_scale)`
/// - inverse: `x = z * exp(-log_scale)`
/// - `log_det = pixels * sum_i log_scale_i`, the same for every sample
///
/// Source: Dinh et al., *NICE*, [arXiv:1410.8516](https://arxiv.org/abs/1410.8516), section 3.3.
///
/// ```
/// use burn::module::Param;
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, linear::DiagonalScaling};
///
/// let device = burn_flows::backend::device();
/// let mut scaling = DiagonalScaling::new(2, &device)?;
/// scaling.log_scale = Param::from_data([2f32.ln(), 3f32.ln()], &device);
/// let (_, log_det) = scaling.forward(Tensor::<2>::from_data([[1.0, 1.0]], &device));
/// assert!((log_det.into_scalar::<f32>() - 6f32.ln()).abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct DiagonalScaling {
    /// Log-scale, `[features]`.
    pub log_scale: Param<Tensor<1>>,
}

impl DiagonalScaling {
    /// The identity on `num_features` features.
    ///
    /// # Errors
    /// If `num_features` is zero.
    pub fn new(num_features: usize, device: &Device) -> Result<Self> {
        if num_features == 0 {
            return Err(FlowError::config(
                "DiagonalScaling",
                "num_features",
                0,
                "at least 1",
                "give the number of features of the input",
            ));
        }
        Ok(Self { log_scale: Param::from_tensor(Tensor::zeros([num_features], device)) })
    }

    fn assert_features<const D: usize>(&self, x: &Tensor<D>) {
        let features = self.log_scale.dims()[0];
        assert_size("DiagonalScaling", x, features, "features");
    }
}

impl<const D: usize> Flow<D> for DiagonalScaling {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        self.assert_features(&x);
        let log_det = self.log_det(x.clone());
        if host::has_no_samples(&x) {
            return (x, log_det);
        }
        (x * per_channel(self.log_scale.val().exp()), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.assert_features(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        z * per_channel(self.log_scale.val().neg().exp())
    }

    fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
        let pixels: usize = x.dims()[2..].iter().product();
        same_log_det(self.log_scale.val().sum() * pixels as f64, &x)
    }

    fn check(&self) -> Result<()> {
        check_log_scale("DiagonalScaling", self.log_scale.val())
    }
}
