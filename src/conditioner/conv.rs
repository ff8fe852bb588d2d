//! 1x1 and 3x3 convolutions as matrix products.
//!
//! Burn's own convolution is many times slower than a matrix product on the CPU backends, backward
//! above all. A 3x3 convolution gathers the nine shifted neighbours of its *narrow* side, so that
//! what is copied stays small: before the product where the input has fewer channels than the
//! output, after it otherwise.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::ops::PadMode;
use burn::tensor::{Device, Distribution, Tensor};
use serde::{Deserialize, Serialize};

use super::{Conditioner, Fold, FoldedNet};
use crate::coupling::per_channel;
use crate::norm::LOG_SCALE_FACTOR;
use crate::record::Setting;

/// A convolution with a 1x1 or 3x3 kernel, stride 1, zero padding that keeps the size.
///
/// `y[o] = bias[o] + sum_{c, dy, dx} weight[o, c, dy, dx] x[c, y + dy, x + dx]`; weights are laid out
/// as in PyTorch.
#[derive(Module, Debug)]
pub struct Conv {
    /// `[out, in, k, k]`, `k` being 1 or 3.
    pub weight: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Conv {
    /// Weights drawn from a normal distribution of the given standard deviation; the bias, if
    /// wanted, starts at zero.
    ///
    /// # Panics
    /// If `kernel` is neither 1 nor 3.
    pub fn new(
        [channels_in, channels_out]: [usize; 2],
        kernel: usize,
        deviation: f64,
        bias: bool,
        device: &Device,
    ) -> Self {
        assert!(kernel == 1 || kernel == 3, "Conv: the kernel is {kernel}, but must be 1 or 3");
        let shape = [channels_out, channels_in, kernel, kernel];
        let weight = if deviation == 0.0 {
            Tensor::zeros(shape, device)
        } else {
            Tensor::random(shape, Distribution::Normal(0.0, deviation), device)
        };
        Self {
            weight: Param::from_tensor(weight),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([channels_out], device))),
        }
    }

    /// `[batch, in, height, width] -> [batch, out, height, width]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = convolve(x, self.weight.val());
        match &self.bias {
            Some(bias) => y + per_channel(bias.val()),
            None => y,
        }
    }
}

/// What a convolution sees beyond the border.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Padding {
    /// Zeros.
    #[default]
    Zeros,
    /// Ones, as rosinality/glow-pytorch pads: its net sees where the border is, which Glow's code has
    /// an indicator channel for.
    Ones,
}

/// The last convolution of Glow's nets: 3x3, starting at zero, with a learned log-scale.
///
/// `y = (conv(x) + bias) * exp(3 log_scale)`
///
/// Source: openai/glow, `tfops.py`, `conv2d_zeros`.
#[derive(Module, Debug)]
pub struct ZeroConv {
    /// The convolution; weight and bias start at zero.
    pub conv: Conv,
    /// A third of the log-scale, `[out]`.
    pub log_scale: Param<Tensor<1>>,
    /// Where it is not zeros.
    padding: Setting<Option<Padding>>,
}

impl ZeroConv {
    /// A map to zero, `[in, out]` channels.
    pub fn new(channels: [usize; 2], device: &Device) -> Self {
        Self {
            conv: Conv::new(channels, 3, 0.0, true, device),
            log_scale: Param::from_tensor(Tensor::zeros([channels[1]], device)),
            padding: None.into(),
        }
    }

    /// From its parts; `conv` is 3x3 and has a bias.
    pub fn from_parts(conv: Conv, log_scale: Param<Tensor<1>>) -> Self {
        Self { conv, log_scale, padding: None.into() }
    }

    /// Replaces what the convolution sees beyond the border.
    pub fn with_padding(mut self, padding: Padding) -> Self {
        self.padding = Some(padding).filter(|&padding| padding != Padding::Zeros).into();
        self
    }

    /// What the convolution sees beyond the border.
    pub fn padding(&self) -> Padding {
        self.padding.unwrap_or_default()
    }

    /// The sum of a kernel's taps over all inputs, `[out]`: what a picture of ones gives.
    fn of_ones(&self) -> Tensor<1> {
        let weight = self.conv.weight.val();
        let [out, channels_in, ..] = weight.dims();
        weight.reshape([out, 9 * channels_in]).sum_dim(1).reshape([out])
    }

    pub(crate) fn scale(&self) -> Tensor<1> {
        (self.log_scale.val() * LOG_SCALE_FACTOR).exp()
    }
}

impl Conditioner<4> for ZeroConv {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = match self.padding() {
            Padding::Zeros => self.conv.forward(x),
            // Ones beyond the border are zeros of x - 1.
            Padding::Ones => self.conv.forward(x - 1.0) + per_channel(self.of_ones()),
        };
        y * per_channel(self.scale())
    }

    fn folded(&self) -> Option<&dyn Fold> {
        Some(self)
    }
}

impl Fold for ZeroConv {
    fn fold(&self) -> Option<FoldedNet> {
        if self.padding() != Padding::Zeros {
            return None;
        }
        let [out, channels_in, _, _] = self.conv.weight.dims();
        let scale = self.scale();
        let weight = self.conv.weight.val().reshape([out, 9 * channels_in]);
        let bias = self.conv.bias.as_ref().expect("a ZeroConv has a bias").val();
        Some(FoldedNet {
            layers: vec![(weight * scale.clone().reshape([out, 1]), bias * scale)],
            masks: Vec::new(),
            transposed: false,
            first_3x3: true,
            last_3x3: false,
            negative_slope: 0.0,
        })
    }

    fn fold_plain(&self) -> Option<FoldedNet> {
        self.valid().fold()
    }

    fn pull_back_folded(
        &self,
        net: FoldedNet,
        gradients: Vec<(Tensor<2>, Tensor<1>)>,
        grads: &mut GradientsParams,
    ) {
        self.fold().unwrap_or(net).pull_back(self, gradients, grads);
    }
}

/// Convolution of `x` `[batch, in, height, width]` with `weight` `[out, in, k, k]`.
pub(crate) fn convolve(x: Tensor<4>, weight: Tensor<4>) -> Tensor<4> {
    let [out, channels, kernel, _] = weight.dims();
    let [n, c, h, w] = x.dims();
    assert!(
        c == channels,
        "Conv: got shape {:?}, but was built for {channels} channels on axis 1",
        x.dims()
    );
    // Channels last: every copy below then moves whole rows of channels.
    let x = x.permute([0, 2, 3, 1]);
    let y = match kernel {
        1 => product(x, weight.reshape([out, channels])),
        _ if channels <= out => {
            let taps = weight.permute([0, 2, 3, 1]).reshape([out, 9 * channels]);
            product(neighbours(x), taps)
        }
        _ => {
            // Every pixel's contribution to its nine neighbours, then shift and add.
            let taps = weight.permute([2, 3, 0, 1]).reshape([9 * out, channels]);
            shift_and_add(product(x, taps), out)
        }
    };
    y.reshape([n, h, w, out]).permute([0, 3, 1, 2])
}

/// `y[.., o] = sum_c weight[o, c] x[.., c]` as one tall matrix product.
fn product(x: Tensor<4>, weight: Tensor<2>) -> Tensor<4> {
    let [n, h, w, channels] = x.dims();
    let out = weight.dims()[0];
    x.reshape([n * h * w, channels]).matmul(weight.transpose()).reshape([n, h, w, out])
}

/// `[n, h, w, c] -> [n, h, w, 9c]`: channels `c (3(dy + 1) + dx + 1) ..` are those of the neighbour at
/// `(dy, dx)`, zero outside.
fn neighbours(x: Tensor<4>) -> Tensor<4> {
    let [_, h, w, _] = x.dims();
    let padded = pad(x);
    Tensor::cat((0..9).map(|tap| window(padded.clone(), tap, h, w)).collect(), 3)
}

/// `[n, h, w, 9 out] -> [n, h, w, out]`: adds group `3(dy + 1) + dx + 1` shifted by `(dy, dx)`.
fn shift_and_add(products: Tensor<4>, out: usize) -> Tensor<4> {
    let [_, h, w, _] = products.dims();
    let padded = pad(products);
    (0..9)
        .map(|tap| window(padded.clone().narrow(3, tap * out, out), tap, h, w))
        .reduce(|sum, shifted| sum + shifted)
        .expect("there are nine taps")
}

fn pad(x: Tensor<4>) -> Tensor<4> {
    x.pad([(1, 1), (1, 1), (0, 0)], PadMode::Constant(0.0))
}

fn window(padded: Tensor<4>, tap: usize, h: usize, w: usize) -> Tensor<4> {
    padded.narrow(1, tap / 3, h).narrow(2, tap % 3, w)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;

    fn values(count: usize) -> Vec<f64> {
        (0..count).map(|i| ((i * 7919 + 31) % 101) as f64 / 50.0 - 1.0).collect()
    }

    /// The definition, as nested loops.
    fn direct(
        x: &[f64],
        [n, c, h, w]: [usize; 4],
        weight: &[f64],
        out: usize,
        k: usize,
    ) -> Vec<f64> {
        let mut y = vec![0.0; n * out * h * w];
        let pad = (k / 2) as isize;
        for (i, y) in y.iter_mut().enumerate() {
            let (px, py, o, b) = (i % w, i / w % h, i / (w * h) % out, i / (w * h * out));
            for j in 0..c * k * k {
                let (dx, dy, ci) = (j % k, j / k % k, j / (k * k));
                let (yy, xx) = (py as isize + dy as isize - pad, px as isize + dx as isize - pad);
                if yy >= 0 && xx >= 0 && yy < h as isize && xx < w as isize {
                    *y += weight[o * c * k * k + j]
                        * x[((b * c + ci) * h + yy as usize) * w + xx as usize];
                }
            }
        }
        y
    }

    #[test]
    fn equals_the_definition_on_either_side() {
        let device = crate::backend::device();
        for (c, out, k) in [(2, 5, 3), (5, 2, 3), (3, 4, 1), (1, 1, 3)] {
            let shape = [2, c, 3, 4];
            let (x, weight) = (values(2 * c * 12), values(out * c * k * k));
            let y = convolve(
                Tensor::from_data(burn::tensor::TensorData::new(x.clone(), shape), &device),
                Tensor::from_data(
                    burn::tensor::TensorData::new(weight.clone(), [out, c, k, k]),
                    &device,
                ),
            );
            let expected = direct(&x, shape, &weight, out, k);
            for (got, expected) in host::to_f64(y).iter().zip(&expected) {
                assert!((got - expected).abs() < 1e-5, "{got} is not {expected} at {c}x{out}x{k}");
            }
        }
    }
}
