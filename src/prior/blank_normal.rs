//! A normal whose parameters a convolution computes from a blank picture.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use rand::Rng;

use super::diagonal_normal::normal_log_prob;
use super::{Prior, standard_normal};
use crate::conditioner::Conditioner;
use crate::conditioner::conv::ZeroConv;
use crate::coupling::LOG_SCALE_LIMIT;

/// Independent normals whose means and log standard deviations a convolution computes from zeros: the
/// learned top of the PyTorch implementations of Glow.
///
/// `(mean, log_std) = conv(0)`, first all means, then all log standard deviations, which are held within
/// ±20. Where the convolution [pads](crate::conditioner::conv::Padding) with zeros that is one normal
/// per channel, as [`DiagonalNormal`](super::DiagonalNormal) is with fewer parameters; where it pads
/// with ones the border differs from the inside.
///
/// Source: rosinality/glow-pytorch, `model.py`, `Block.prior`; y0ast/Glow-PyTorch, `model.py`,
/// `learn_top_fn`.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::prior::{BlankNormal, Prior};
///
/// let device = burn_flows::backend::device();
/// // Until it is trained a standard normal.
/// let log_prob = BlankNormal::new([1, 1], &device).log_prob(Tensor::zeros([1, 1, 1, 2], &device));
/// let expected = -(2.0 * std::f32::consts::PI).ln();
/// assert!((log_prob.into_scalar::<f32>() - expected).abs() < 1e-6);
/// ```
#[derive(Module, Debug)]
pub struct BlankNormal {
    /// The convolution, to twice as many channels as the latent has.
    pub conv: ZeroConv,
}

impl BlankNormal {
    /// A standard normal to start with; channels of the blank picture and of the latent.
    pub fn new([channels_in, channels]: [usize; 2], device: &Device) -> Self {
        Self { conv: ZeroConv::new([channels_in, 2 * channels], device) }
    }

    /// Means and log standard deviations, `[1, channels, height, width]` each.
    pub(crate) fn parameters(&self, [height, width]: [usize; 2]) -> (Tensor<4>, Tensor<4>) {
        let weight = self.conv.conv.weight.val();
        let [outputs, channels_in, ..] = weight.dims();
        let blank =
            Tensor::zeros([1, channels_in, height, width], (&weight.device(), weight.dtype()));
        let parameters = self.conv.forward(blank);
        let mean = parameters.clone().narrow(1, 0, outputs / 2);
        let log_std = parameters.narrow(1, outputs / 2, outputs / 2);
        (mean, log_std.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT))
    }
}

impl Prior<4> for BlankNormal {
    fn log_prob(&self, z: Tensor<4>) -> Tensor<1> {
        let [_, _, height, width] = z.dims();
        let (mean, log_std) = self.parameters([height, width]);
        normal_log_prob(z, mean, log_std)
    }

    fn sample(
        &self,
        shape: [usize; 4],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<4> {
        let (mean, log_std) = self.parameters([shape[2], shape[3]]);
        let noise = standard_normal(shape, rng, device, dtype);
        if shape[0] == 0 {
            return noise;
        }
        noise * temperature * log_std.exp() + mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditioner::conv::Padding;
    use crate::host;
    use crate::testing::move_parameters;

    /// The means that the definition gives: the sum of the taps that see the padding.
    #[test]
    fn the_border_differs_where_the_padding_is_ones() {
        let device = crate::backend::device();
        let mut prior = BlankNormal::new([2, 1], &device);
        prior.conv = move_parameters(prior.conv, 1, 0.3).with_padding(Padding::Ones);
        let weight = host::to_f64(prior.conv.conv.weight.val());
        let bias = host::to_f64(prior.conv.conv.bias.as_ref().unwrap().val())[0];
        let scale = host::to_f64(prior.conv.scale())[0];
        let means = host::to_f64(prior.parameters([3, 4]).0);
        for (at, mean) in means.iter().enumerate() {
            let outside = |tap: usize| {
                let (y, x) = (at / 4 + tap / 3, at % 4 + tap % 3);
                y == 0 || x == 0 || y == 4 || x == 5
            };
            let seen = (0..18).filter(|i| outside(i % 9)).map(|i| weight[i]).sum::<f64>();
            let expected = (seen + bias) * scale;
            assert!((mean - expected).abs() < 1e-5, "{mean} is not {expected} at {at}");
        }
    }
}
