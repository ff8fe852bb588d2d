//! The residual net of RealNVP's couplings.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, activation};
use serde::{Deserialize, Serialize};

use super::weight_norm::WeightNormConv;
use super::{Conditioner, check_widths, pull_back_by_autodiff};
use crate::coupling::per_channel;
use crate::error::{FlowError, Result};
use crate::flow::Pass;
use crate::norm::{BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, Moments, RunningMoments};
use crate::param::first_trained;
use crate::record::Setting;

/// Configuration of a [`ResidualNet`].
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::conditioner::{Conditioner, ResidualNetConfig};
///
/// let device = burn_flows::backend::device();
/// let net = ResidualNetConfig::new(2, 8, 6, 1).init(&device)?;
/// assert_eq!(net.forward(Tensor::ones([1, 2, 4, 4], &device)).dims(), [1, 6, 4, 4]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResidualNetConfig {
    /// Channels of the input.
    pub channels_in: usize,
    /// Channels inside.
    pub hidden_width: usize,
    /// Channels of the output.
    pub channels_out: usize,
    /// Residual blocks.
    pub num_blocks: usize,
    /// Factor on the normalized input; default 1. RealNVP's is 2 where a checkerboard mask zeroes
    /// half of the input, and with it half of its deviation.
    pub input_gain: f64,
    /// Weight of a new batch in the running moments; default 0.1.
    pub momentum: f64,
    /// Added to the variances; default 1e-4.
    pub epsilon: f64,
}

impl ResidualNetConfig {
    /// A net `channels_in -> hidden_width -> ... -> channels_out` of `num_blocks` blocks.
    pub fn new(
        channels_in: usize,
        hidden_width: usize,
        channels_out: usize,
        num_blocks: usize,
    ) -> Self {
        Self {
            channels_in,
            hidden_width,
            channels_out,
            num_blocks,
            input_gain: 1.0,
            momentum: BATCH_NORM_MOMENTUM,
            epsilon: BATCH_NORM_EPSILON,
        }
    }

    /// Replaces the factor on the normalized input.
    pub fn with_input_gain(mut self, input_gain: f64) -> Self {
        self.input_gain = input_gain;
        self
    }

    /// Replaces what is added to the variances.
    pub fn with_epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Builds the net; until trained it maps everything to zero.
    ///
    /// # Errors
    /// If a width is zero, or momentum, epsilon or input gain is out of range.
    pub fn init(&self, device: &Device) -> Result<ResidualNet> {
        check_widths("ResidualNet", self.channels_in, self.hidden_width, self.channels_out)?;
        if !(self.input_gain > 0.0 && self.input_gain.is_finite()) {
            return Err(FlowError::config(
                "ResidualNet",
                "input_gain",
                self.input_gain,
                "positive and finite",
                "2 is RealNVP's for checkerboard masks, 1 for the others",
            ));
        }
        let width = self.hidden_width;
        let norm = |channels| NetBatchNorm::new(channels, self.momentum, self.epsilon, device);
        let conv = |channels, kernel, gain, bias| {
            WeightNormConv::new(channels, kernel, gain, bias, device)
        };
        let blocks = (0..self.num_blocks).map(|_| {
            Ok(ResidualBlock {
                norm1: norm(width)?,
                conv1: conv([width, width], 3, 1.0, false),
                norm2: norm(width)?,
                conv2: conv([width, width], 3, 1.0, true),
            })
        });
        Ok(ResidualNet {
            norm_in: norm(self.channels_in)?,
            conv_in: conv([2 * self.channels_in, width], 3, 1.0, true),
            skip_in: conv([width, width], 1, 1.0, true),
            blocks: blocks.collect::<Result<_>>()?,
            skips: (0..self.num_blocks).map(|_| conv([width, width], 1, 1.0, true)).collect(),
            norm_out: norm(width)?,
            conv_out: conv([width, self.channels_out], 1, 0.0, true),
            input_gain: self.input_gain.into(),
        })
    }
}

/// The residual net of RealNVP's couplings, with weight and batch normalization:
///
/// `h = conv_in(relu([n, -n]))` for `n = input_gain norm_in(x)`; then blocks
/// `h <- h + conv2(relu(norm2(conv1(relu(norm1(h))))))`; the output is
/// `conv_out(relu(norm_out(skip_in(h_0) + sum_k skip_k(h_k))))`.
///
/// All convolutions are weight normalized ([`WeightNormConv`]), 3x3 inside, 1x1 in the skips and at
/// the output; the output's gains start at zero. The batch normalizations use running moments in
/// training as well, brought up to date by the [`data_pass`](Conditioner::data_pass) before a step, for the
/// reason told at [`BatchNorm`](crate::norm::BatchNorm): a coupling's `inverse` must meet the very
/// net that its `forward` used. In gradients the moments count as those of the batch at hand (see
/// [`NetBatchNorm`]).
///
/// Source: Dinh et al., *Density estimation using Real NVP*,
/// [arXiv:1605.08803](https://arxiv.org/abs/1605.08803), section 4.1; the layout, with its sum of
/// skips, is that of chrischute/real-nvp, `models/resnet`, which follows the published code but for
/// the mask that is a channel of its input there.
#[derive(Module, Debug)]
pub struct ResidualNet {
    /// Of the input.
    pub norm_in: NetBatchNorm,
    /// 3x3, `2 channels_in -> hidden`.
    pub conv_in: WeightNormConv,
    /// 1x1, of what comes out of `conv_in`.
    pub skip_in: WeightNormConv,
    /// The residual blocks.
    pub blocks: Vec<ResidualBlock>,
    /// 1x1, one for each block's output.
    pub skips: Vec<WeightNormConv>,
    /// Of the sum of the skips.
    pub norm_out: NetBatchNorm,
    /// 1x1, `hidden -> channels_out`.
    pub conv_out: WeightNormConv,
    pub(crate) input_gain: Setting<f64>,
}

impl ResidualNet {
    fn enter(&self, normalized: Tensor<4>) -> Tensor<4> {
        let h = normalized * *self.input_gain;
        let both = Tensor::cat(vec![h.clone(), h.neg()], 1);
        self.conv_in.forward(activation::relu(both))
    }
}

impl Conditioner<4> for ResidualNet {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        if self.runs_on_host(&x) {
            return self.forward_on_host(x);
        }
        let mut h = self.enter(self.norm_in.forward(x));
        let mut sum = self.skip_in.forward(h.clone());
        for (block, skip) in self.blocks.iter().zip(&self.skips) {
            h = block.forward(h);
            sum = sum + skip.forward(h.clone());
        }
        self.conv_out.forward(activation::relu(self.norm_out.forward(sum)))
    }

    fn data_pass(mut self, x: Tensor<4>, pass: Pass) -> (Self, Tensor<4>) {
        if self.runs_on_host(&x) {
            let y = self.data_pass_on_host(x, pass);
            return (self, y);
        }
        let (norm_in, normalized) = self.norm_in.clone().data_pass(x, pass);
        self.norm_in = norm_in;
        let mut h = self.enter(normalized);
        let mut sum = self.skip_in.forward(h.clone());
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (block, skip) in std::mem::take(&mut self.blocks).into_iter().zip(&self.skips) {
            let (block, out) = block.data_pass(h, pass);
            h = out;
            sum = sum + skip.forward(h.clone());
            blocks.push(block);
        }
        self.blocks = blocks;
        let (norm_out, h) = self.norm_out.clone().data_pass(sum, pass);
        self.norm_out = norm_out;
        let y = self.conv_out.forward(activation::relu(h));
        (self, y)
    }

    fn pull_back(
        &self,
        x: Tensor<4>,
        dparams: impl FnOnce(Tensor<4>) -> Tensor<4>,
        grads: &mut GradientsParams,
    ) -> Tensor<4> {
        if self.pulls_back_on_host(&x) {
            return self.pull_back_on_host(x, dparams, grads);
        }
        pull_back_by_autodiff(self, x, dparams, grads)
    }
}

/// `h + conv2(relu(norm2(conv1(relu(norm1(h))))))`.
#[derive(Module, Debug)]
pub struct ResidualBlock {
    /// Of the block's input.
    pub norm1: NetBatchNorm,
    /// 3x3, without bias.
    pub conv1: WeightNormConv,
    /// Between the convolutions.
    pub norm2: NetBatchNorm,
    /// 3x3.
    pub conv2: WeightNormConv,
}

impl ResidualBlock {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = self.conv1.forward(activation::relu(self.norm1.forward(x.clone())));
        x + self.conv2.forward(activation::relu(self.norm2.forward(h)))
    }

    fn data_pass(mut self, x: Tensor<4>, pass: Pass) -> (Self, Tensor<4>) {
        let (norm1, h) = self.norm1.data_pass(x.clone(), pass);
        let h = self.conv1.forward(activation::relu(h));
        let (norm2, h) = self.norm2.data_pass(h, pass);
        (self.norm1, self.norm2) = (norm1, norm2);
        let y = x + self.conv2.forward(activation::relu(h));
        (self, y)
    }
}

/// Batch normalization inside a net: `weight (x - mean) / sqrt(variance + epsilon) + bias`, by
/// running moments.
///
/// Its values are those of the running moments, in training too; its gradients are those that the
/// moments of the batch have, `mean(x)` and, about the running mean, `mean((x - mean)^2)`. What only
/// shifts or scales `x` has no effect once the moments have followed, and so must have no gradient:
/// with the moments as constants the optimizer goes on shifting and scaling, each step in vain, until
/// the moments lag so far behind that training diverges.
///
/// The moments are constants as long as no batch was seen, in a norm that is not trained (its moments
/// are frozen or `weight` requires no gradient: a frozen net is as at inference, a sample's gradient
/// its own), and in channels where the batch is far from them:
/// `mean((x - mean)^2) > 100 (variance + epsilon)`. Where they are not, a batch in parts has other
/// gradients than the whole, each part having moments of its own, and the gradient by `x` is not that
/// of the function that the net computes:
/// [`FlowStack::log_prob`](crate::FlowStack::log_prob) tells how to get the gradient of a density by
/// its samples.
///
/// Sources: Ioffe and Szegedy, *Batch normalization*,
/// [arXiv:1502.03167](https://arxiv.org/abs/1502.03167), section 2, on gradients that leave the moments
/// out; Chiley et al., *Online normalization*, [arXiv:1905.05894](https://arxiv.org/abs/1905.05894), on
/// values by running moments with gradients that keep to the normalization.
#[derive(Module, Debug)]
pub struct NetBatchNorm {
    /// Running moments.
    pub moments: RunningMoments,
    /// `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
}

impl NetBatchNorm {
    /// Weight 1 and bias 0.
    ///
    /// # Errors
    /// As [`RunningMoments::new`].
    pub fn new(channels: usize, momentum: f64, epsilon: f64, device: &Device) -> Result<Self> {
        Ok(Self {
            moments: RunningMoments::new(channels, momentum, epsilon, device)?,
            weight: Param::from_tensor(Tensor::ones([channels], device)),
            bias: Param::from_tensor(Tensor::zeros([channels], device)),
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.moments.assert_channels(&x);
        let Moments { mean, variance } = match self.is_trained() {
            true => self.moments.with_gradients_of(&x),
            false => self.moments.current(),
        };
        let scale = self.moments.log_scale(variance).exp() * self.weight.val();
        (x - per_channel(mean)) * per_channel(scale) + per_channel(self.bias.val())
    }

    /// Whether it is in training, and not frozen there.
    fn is_trained(&self) -> bool {
        self.weight.is_require_grad() && !self.moments.is_frozen()
    }

    /// The means, and `1 / (variance + epsilon)`, that it normalizes by, `[channels]` each, where they
    /// count as the batch's in gradients.
    pub(super) fn followed_moments(&self) -> Option<[Tensor<1>; 2]> {
        let follow = self.is_trained() && self.moments.is_initialized();
        follow.then(|| [self.moments.mean.val(), self.moments.precision()])
    }

    /// Scale and shift of the map that it is, `[channels]` each.
    pub(crate) fn affine(&self) -> [Tensor<1>; 2] {
        let Moments { mean, variance } = self.moments.current();
        let scale = self.weight.val() * self.moments.log_scale(variance).exp();
        let shift = self.bias.val() - mean * scale.clone();
        [scale, shift]
    }

    fn data_pass(mut self, x: Tensor<4>, pass: Pass) -> (Self, Tensor<4>) {
        self.moments.assert_channels(&x);
        self.moments = self.moments.take_in(&x, pass);
        let y = self.forward(x);
        (self, y)
    }
}

/// The path of the first [`NetBatchNorm`] in `module` that is trained, whose gradients follow the
/// moments of the batch.
pub(crate) fn first_following_norm<M: Module>(module: &M) -> Option<String> {
    // The moments, whose flag says whether they move, come before the weight.
    first_trained(module, "Struct:NetBatchNorm", "weight", |moments_move| moments_move)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_net_maps_to_zero_and_takes_its_moments_from_data() {
        let device = crate::backend::device();
        let net = ResidualNetConfig::new(2, 4, 3, 2).with_input_gain(2.0).init(&device).unwrap();
        let x = Tensor::ones([2, 2, 4, 4], &device);
        let (net, y) = net.data_pass(x.clone(), Pass::Initialize);
        assert_eq!(y.dims(), [2, 3, 4, 4]);
        assert_eq!(y.abs().max().into_scalar::<f32>(), 0.0);
        assert!(net.blocks[1].norm2.moments.is_initialized());
        assert_eq!(net.forward(x).dims(), [2, 3, 4, 4]);
    }

    /// A data pass by the kernels leaves the moments, and gives the output, of one in tensors.
    #[test]
    fn a_data_pass_on_the_host_is_that_of_tensors() {
        for (_, device) in crate::backend::hosts() {
            let device = device();
            let values = |count: usize, step: usize| {
                let value = |i| ((i * 7919 + 31 * step) % 101) as f64 / 50.0 - 1.0;
                (0..count).map(value).collect::<Vec<f64>>()
            };
            let batch = |step| {
                let values = values(3 * 2 * 5 * 4, step);
                crate::host::from_f64(values, [3, 2, 5, 4], &device, burn::tensor::DType::F64)
            };
            let net = ResidualNetConfig::new(2, 7, 3, 2).init(&device).unwrap();
            let net = crate::testing::to_f64(crate::testing::move_parameters(net, 1, 0.3));
            let (mut on_host, mut in_tensors) = (net.clone(), net.train());
            for step in 0..3 {
                let (x, tracked) = (batch(step), Tensor::from_inner(batch(step)));
                assert!(on_host.runs_on_host(&x) && !in_tensors.runs_on_host(&tracked));
                let (y, expected);
                (on_host, y) = on_host.data_pass(x, Pass::Observe);
                (in_tensors, expected) = in_tensors.data_pass(tracked, Pass::Observe);
                close(crate::host::to_f64(y), crate::host::to_f64(expected));
                let moments = |net: &ResidualNet| {
                    let norms = [&net.norm_in, &net.blocks[1].norm1, &net.blocks[0].norm2];
                    let norms = norms.into_iter().chain([&net.norm_out]);
                    norms
                        .flat_map(|norm| {
                            let Moments { mean, variance } = norm.moments.current();
                            [mean, variance].map(crate::host::to_f64).concat()
                        })
                        .collect::<Vec<f64>>()
                };
                close(moments(&on_host), moments(&in_tensors));
            }
        }
    }

    fn close(got: Vec<f64>, expected: Vec<f64>) {
        assert_eq!(got.len(), expected.len());
        for (a, b) in got.iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-12 * (1.0 + b.abs()), "{a} is not {b}");
        }
    }

    #[test]
    fn wrong_configurations_are_refused() {
        let device = crate::backend::device();
        assert!(ResidualNetConfig::new(0, 4, 3, 2).init(&device).is_err());
        assert!(ResidualNetConfig::new(2, 0, 3, 2).init(&device).is_err());
        assert!(ResidualNetConfig::new(2, 4, 0, 2).init(&device).is_err());
        assert!(ResidualNetConfig::new(2, 4, 3, 2).with_epsilon(0.0).init(&device).is_err());
        let gain = ResidualNetConfig::new(2, 4, 3, 2).with_input_gain(0.0).init(&device);
        assert_eq!(
            gain.unwrap_err().to_string(),
            "ResidualNet: input_gain is 0, but must be positive and finite; 2 is RealNVP's for \
             checkerboard masks, 1 for the others"
        );
    }
}
