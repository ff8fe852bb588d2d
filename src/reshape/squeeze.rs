//! Space to channels.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::chain::zero_log_det;
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::record::Setting;

/// Trades space for channels: `[n, c, h, w] -> [n, 4c, h/2, w/2]`.
///
/// Pixel `(2y + dy, 2x + dx)` of channel `c` goes to pixel `(y, x)` of channel `4c + 2dy + dx`;
/// `log_det = 0`.
///
/// Source: Dinh et al., *Density estimation using Real NVP*,
/// [arXiv:1605.08803](https://arxiv.org/abs/1605.08803), section 3.6; channel order of openai/glow
/// and of PyTorch's `pixel_unshuffle`.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, reshape::Squeeze};
///
/// let device = burn_flows::backend::device();
/// let x = Tensor::<4>::from_data([[[[0.0, 1.0], [2.0, 3.0]]]], &device);
/// let (z, _) = Squeeze::new().forward(x);
/// assert_eq!(z.dims(), [1, 4, 1, 1]);
/// assert_eq!(z.into_data().try_to_vec_f32(), [0.0, 1.0, 2.0, 3.0]);
/// # trait ToVec { fn try_to_vec_f32(self) -> Vec<f32>; }
/// # impl ToVec for burn::tensor::TensorData {
/// #     fn try_to_vec_f32(self) -> Vec<f32> { self.as_slice::<f32>().unwrap().to_vec() }
/// # }
/// ```
#[derive(Module, Debug)]
pub struct Squeeze {
    kind: Setting<&'static str>,
}

impl Default for Squeeze {
    fn default() -> Self {
        Self { kind: Setting::new("[4c + 2dy + dx, y, x]") }
    }
}

impl Squeeze {
    /// A squeeze by two.
    pub fn new() -> Self {
        Self::default()
    }

    /// `[n, 4c, h, w] -> [n, c, 2h, 2w]`, without the trait's bookkeeping.
    pub(crate) fn unsqueeze(z: Tensor<4>) -> Tensor<4> {
        let [n, c, h, w] = z.dims();
        assert!(
            c.is_multiple_of(4),
            "Squeeze: inverse of shape {:?}: the {c} channels must be a multiple of 4",
            z.dims()
        );
        if host::has_no_samples(&z) {
            return host::empty_like(&z, [n, c / 4, 2 * h, 2 * w]);
        }
        z.reshape([n, c / 4, 2, 2, h, w]).permute([0, 1, 4, 2, 5, 3]).reshape([
            n,
            c / 4,
            2 * h,
            2 * w,
        ])
    }
}

impl Flow<4> for Squeeze {
    fn forward(&self, x: Tensor<4>) -> (Tensor<4>, Tensor<1>) {
        let [n, c, h, w] = x.dims();
        if let Err(error) = self.latent_shape([n, c, h, w]) {
            panic!("{error}");
        }
        let log_det = zero_log_det(&x);
        if host::has_no_samples(&x) {
            return (host::empty_like(&x, [n, 4 * c, h / 2, w / 2]), log_det);
        }
        let z = x.reshape([n, c, h / 2, 2, w / 2, 2]).permute([0, 1, 3, 5, 2, 4]).reshape([
            n,
            4 * c,
            h / 2,
            w / 2,
        ]);
        (z, log_det)
    }

    fn inverse(&self, z: Tensor<4>) -> Tensor<4> {
        Self::unsqueeze(z)
    }

    fn latent_shape(&self, [n, c, h, w]: [usize; 4]) -> Result<[usize; 4]> {
        if h == 0 || w == 0 || !h.is_multiple_of(2) || !w.is_multiple_of(2) {
            return Err(FlowError::config(
                "Squeeze",
                "height x width",
                format!("{h}x{w}"),
                "even and not zero on both sides",
                "pad or crop the images, or use fewer levels (each halves height and width)",
            ));
        }
        Ok([n, 4 * c, h / 2, w / 2])
    }
}
