//! Space to channels by averages and differences.

use burn::module::Module;
use burn::tensor::Tensor;

use super::Squeeze;
use crate::error::Result;
use crate::flow::Flow;
use crate::host;

/// Squeeze by the Haar transform: `[n, c, h, w] -> [n, 4c, h/2, w/2]`, `log_det = 0`.
///
/// Each square of pixels `a b / c d` becomes half of `a + b + c + d`, `a - b + c - d`, `a + b - c - d` and
/// `a - b - c + d`, an orthogonal map. The sums of all channels come first, then the horizontal,
/// vertical and diagonal differences: what a split keeps is a picture of half the size.
///
/// Source: Ardizzone et al., *Guided Image Generation with Conditional Invertible Neural Networks*,
/// [arXiv:1907.02392](https://arxiv.org/abs/1907.02392), section 3.2.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, reshape::HaarSqueeze};
///
/// let device = burn_flows::backend::device();
/// let x = Tensor::<4>::from_data([[[[1.0, 2.0], [3.0, 4.0]]]], &device);
/// let (z, _) = HaarSqueeze::new().forward(x);
/// assert_eq!(z.try_into_vec_as::<f32>().unwrap(), [5.0, -1.0, -2.0, 0.0]);
/// ```
#[derive(Module, Debug, Default)]
pub struct HaarSqueeze {}

impl HaarSqueeze {
    /// A squeeze by two.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Sums and differences of four equal parts of axis 1, halved: its own inverse.
fn haar(parts: [Tensor<4>; 4]) -> [Tensor<4>; 4] {
    let [a, b, c, d] = parts;
    let (left, right) = (a.clone() + c.clone(), b.clone() + d.clone());
    let (down_left, down_right) = (a - c, b - d);
    [
        (left.clone() + right.clone()) * 0.5,
        (left - right) * 0.5,
        (down_left.clone() + down_right.clone()) * 0.5,
        (down_left - down_right) * 0.5,
    ]
}

impl Flow<4> for HaarSqueeze {
    fn forward(&self, x: Tensor<4>) -> (Tensor<4>, Tensor<1>) {
        let (squeezed, log_det) = Squeeze::new().forward(x);
        if host::has_no_samples(&squeezed) {
            return (squeezed, log_det);
        }
        let [n, channels, h, w] = squeezed.dims();
        let corners = squeezed.reshape([n, channels / 4, 4, h, w]);
        let corner = |at| corners.clone().narrow(2, at, 1).reshape([n, channels / 4, h, w]);
        let parts = haar([corner(0), corner(1), corner(2), corner(3)]);
        (Tensor::cat(parts.into(), 1), log_det)
    }

    fn inverse(&self, z: Tensor<4>) -> Tensor<4> {
        let [n, channels, h, w] = z.dims();
        assert!(
            channels.is_multiple_of(4),
            "HaarSqueeze: inverse of shape {:?}: the {channels} channels must be a multiple of 4",
            z.dims()
        );
        if host::has_no_samples(&z) {
            return Squeeze::new().inverse(z);
        }
        let part = |at: usize| z.clone().narrow(1, at * channels / 4, channels / 4);
        let corners = haar([part(0), part(1), part(2), part(3)]);
        let corners = corners.map(|corner| corner.reshape([n, channels / 4, 1, h, w]));
        let squeezed: Tensor<5> = Tensor::cat(corners.into(), 2);
        Squeeze::new().inverse(squeezed.reshape([n, channels, h, w]))
    }

    fn log_det(&self, x: Tensor<4>) -> Tensor<1> {
        Squeeze::new().log_det(x)
    }

    fn latent_shape(&self, shape: [usize; 4]) -> Result<[usize; 4]> {
        Squeeze::new().latent_shape(shape)
    }
}
