//! Convolutions with weight normalization.

use burn::module::{Module, Param};
use burn::tensor::{Device, Distribution, Tensor};

use super::conv::convolve;
use crate::coupling::per_channel;

/// A convolution whose weight is `gain_o direction_o / |direction_o|` for every output channel `o`.
///
/// Kernels of 1x1 or 3x3, stride 1, zero padding that keeps the size.
///
/// Source: Salimans and Kingma, *Weight normalization*,
/// [arXiv:1602.07868](https://arxiv.org/abs/1602.07868), section 2.
#[derive(Module, Debug)]
pub struct WeightNormConv {
    /// `[out, in, k, k]`, of which only the direction counts.
    pub direction: Param<Tensor<4>>,
    /// Lengths of the weights, `[out]`.
    pub gain: Param<Tensor<1>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl WeightNormConv {
    /// Random directions, every gain being `gain`; the bias, if wanted, starts at zero.
    ///
    /// # Panics
    /// If `kernel` is neither 1 nor 3.
    pub fn new(
        [channels_in, channels_out]: [usize; 2],
        kernel: usize,
        gain: f64,
        bias: bool,
        device: &Device,
    ) -> Self {
        assert!(
            kernel == 1 || kernel == 3,
            "WeightNormConv: the kernel is {kernel}, but must be 1 or 3"
        );
        let shape = [channels_out, channels_in, kernel, kernel];
        // The length of a direction does not count, but sets how fast the optimizer turns it.
        let deviation = 1.0 / ((channels_in * kernel * kernel) as f64).sqrt();
        let direction = Tensor::random(shape, Distribution::Normal(0.0, deviation), device);
        Self {
            direction: Param::from_tensor(direction),
            gain: Param::from_tensor(Tensor::full([channels_out], gain, device)),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([channels_out], device))),
        }
    }

    /// The weight, `[out, in, k, k]`.
    pub fn weight(&self) -> Tensor<4> {
        let direction = self.direction.val();
        let [out, channels, kernel, _] = direction.dims();
        let rows = direction.clone().reshape([out, channels * kernel * kernel]);
        let length = rows.square().sum_dim(1).sqrt().reshape([out, 1, 1, 1]);
        direction * (self.gain.val().reshape([out, 1, 1, 1]) / length)
    }

    /// `[batch, in, height, width] -> [batch, out, height, width]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = convolve(x, self.weight());
        match &self.bias {
            Some(bias) => y + per_channel(bias.val()),
            None => y,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;

    #[test]
    fn weights_have_the_length_of_the_gain() {
        let conv = WeightNormConv::new([3, 2], 3, 0.5, false, &crate::backend::device());
        let weight = host::to_f64(conv.weight());
        for row in weight.chunks(27) {
            let length = row.iter().map(|w| w * w).sum::<f64>().sqrt();
            assert!((length - 0.5).abs() < 1e-6, "{length}");
        }
    }
}
