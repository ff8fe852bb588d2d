//! The net of Glow's couplings.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, activation};
use serde::{Deserialize, Serialize};

use super::conv::{Conv, Padding, ZeroConv};
use super::{Conditioner, Fold, FoldedNet, check_widths};
use crate::error::Result;
use crate::flow::{Flow, Pass, add_grad};
use crate::host;
use crate::norm::{ActNorm, LOG_SCALE_FACTOR};
use crate::record::Setting;

/// Standard deviation of the initial weights of the hidden convolutions (openai/glow, `tfops.py`).
pub const INIT_DEVIATION: f64 = 0.05;

/// What follows each hidden convolution of a [`GlowNet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetNorm {
    /// ActNorm, initialized from data, as in Glow's code.
    ActNorm,
    /// A learned bias alone, as the paper's text describes it.
    Bias,
}

/// Configuration of a [`GlowNet`].
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::conditioner::{Conditioner, GlowNetConfig};
///
/// let device = burn_flows::backend::device();
/// let net = GlowNetConfig::new(2, 8, 6).init(&device)?;
/// let y = net.forward(Tensor::ones([1, 2, 4, 4], &device));
/// assert_eq!(y.dims(), [1, 6, 4, 4]);
/// // It ends in a convolution that starts at zero.
/// assert_eq!(y.abs().max().into_scalar::<f32>(), 0.0);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GlowNetConfig {
    channels_in: usize,
    hidden_width: usize,
    channels_out: usize,
    norm: NetNorm,
    negative_slope: f64,
    padding: Padding,
}

impl GlowNetConfig {
    /// A net `channels_in -> hidden_width -> hidden_width -> channels_out`, ActNorm and ReLU inside.
    pub fn new(channels_in: usize, hidden_width: usize, channels_out: usize) -> Self {
        Self {
            channels_in,
            hidden_width,
            channels_out,
            norm: NetNorm::ActNorm,
            negative_slope: 0.0,
            padding: Padding::Zeros,
        }
    }

    /// What the last convolution sees beyond the border; zeros by default.
    pub fn with_padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// What follows each hidden convolution.
    pub fn with_norm(mut self, norm: NetNorm) -> Self {
        self.norm = norm;
        self
    }

    /// Slope of the activation for negative values: 0 (the default) is ReLU, else leaky ReLU.
    pub fn with_negative_slope(mut self, negative_slope: f64) -> Self {
        self.negative_slope = negative_slope;
        self
    }

    /// Builds the net; until trained it maps everything to zero.
    ///
    /// # Errors
    /// If a width is zero.
    pub fn init(&self, device: &Device) -> Result<GlowNet> {
        check_widths("GlowNet", self.channels_in, self.hidden_width, self.channels_out)?;
        let hidden = self.hidden_width;
        let bias = self.norm == NetNorm::Bias;
        let norm = || match self.norm {
            NetNorm::ActNorm => ActNorm::new(hidden, device).map(Some),
            NetNorm::Bias => Ok(None),
        };
        Ok(GlowNet {
            conv1: Conv::new([self.channels_in, hidden], 3, INIT_DEVIATION, bias, device),
            norm1: norm()?,
            conv2: Conv::new([hidden, hidden], 1, INIT_DEVIATION, bias, device),
            norm2: norm()?,
            conv3: ZeroConv::new([hidden, self.channels_out], device).with_padding(self.padding),
            negative_slope: self.negative_slope.into(),
        })
    }
}

/// The net of Glow's couplings: 3x3, 1x1 and 3x3 convolutions, ActNorm and ReLU after the first two,
/// the last starting at zero so that a fresh coupling is the identity up to a constant scale.
///
/// Glow's code pads the borders with an indicator channel ("edge bias"); this net pads with zeros,
/// as the PyTorch implementations do.
///
/// Source: Kingma and Dhariwal, *Glow*, [arXiv:1807.03039](https://arxiv.org/abs/1807.03039),
/// section 3.3; openai/glow, `model.py`, `f`.
#[derive(Module, Debug)]
pub struct GlowNet {
    /// 3x3, channels in -> hidden.
    pub conv1: Conv,
    /// After `conv1`, with [`NetNorm::ActNorm`].
    pub norm1: Option<ActNorm>,
    /// 1x1, hidden -> hidden.
    pub conv2: Conv,
    /// After `conv2`, with [`NetNorm::ActNorm`].
    pub norm2: Option<ActNorm>,
    /// 3x3, hidden -> channels out.
    pub conv3: ZeroConv,
    pub(crate) negative_slope: Setting<f64>,
}

impl GlowNet {
    fn activate(&self, h: Tensor<4>) -> Tensor<4> {
        if *self.negative_slope == 0.0 {
            activation::relu(h)
        } else {
            activation::leaky_relu(h, *self.negative_slope)
        }
    }
}

impl Conditioner<4> for GlowNet {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let normalize = |norm: &Option<ActNorm>, h| match norm {
            Some(norm) => norm.forward(h).0,
            None => h,
        };
        let h = self.activate(normalize(&self.norm1, self.conv1.forward(x)));
        let h = self.activate(normalize(&self.norm2, self.conv2.forward(h)));
        self.conv3.forward(h)
    }

    fn data_pass(mut self, x: Tensor<4>, pass: Pass) -> (Self, Tensor<4>) {
        let (norm1, h) = self.norm1.data_pass(self.conv1.forward(x), pass);
        self.norm1 = norm1;
        let h = self.activate(h);
        let (norm2, h) = self.norm2.data_pass(self.conv2.forward(h), pass);
        self.norm2 = norm2;
        let h = self.activate(h);
        let y = self.conv3.forward(h);
        (self, y)
    }

    fn folded(&self) -> Option<&dyn Fold> {
        Some(self)
    }
}

impl Fold for GlowNet {
    fn fold(&self) -> Option<FoldedNet> {
        let [hidden, channels_in, _, _] = self.conv1.weight.dims();
        let [channels_out, _, _, _] = self.conv3.conv.weight.dims();
        let first = self.conv1.weight.val().reshape([hidden, 9 * channels_in]);
        let second = self.conv2.weight.val().reshape([hidden, hidden]);
        let scale = self.conv3.scale();
        let bias = self.conv3.conv.bias.as_ref().expect("a ZeroConv has a bias").val();
        let last = self.conv3.conv.weight.val().reshape([channels_out, 9 * hidden]);
        let last = last * scale.clone().reshape([channels_out, 1]);
        let mut layers = vec![
            fold_norm(first, &self.conv1, &self.norm1),
            fold_norm(second, &self.conv2, &self.norm2),
            (last, bias * scale),
        ];
        if self.conv3.padding() == Padding::Ones {
            layers = pad_with_ones(layers);
        }
        Some(FoldedNet {
            masks: Vec::new(),
            transposed: false,
            layers,
            first_3x3: true,
            last_3x3: true,
            negative_slope: *self.negative_slope,
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
        if self.conv3.padding() == Padding::Ones {
            self.fold().unwrap_or(net).pull_back(self, gradients, grads);
            return;
        }
        let mut layers = net.layers.into_iter().zip(gradients);
        let mut next = || layers.next().expect("three layers");
        for (conv, norm) in [(&self.conv1, &self.norm1), (&self.conv2, &self.norm2)] {
            let (folded, gradient) = next();
            pull_back_norm(conv, norm, folded, gradient, grads);
        }
        let (folded, gradient) = next();
        let ZeroConv { conv, log_scale, .. } = &self.conv3;
        let (dweight, dbias) =
            pull_back_scale(log_scale, LOG_SCALE_FACTOR, folded, gradient, grads);
        if let Some(bias) = &conv.bias {
            add_grad(grads, bias, dbias);
        }
        add_grad(grads, &conv.weight, dweight.reshape(conv.weight.dims()));
    }
}

/// The three layers with the last one's padding of ones made one of zeros: one more hidden channel, which
/// is always 1, tells it where the border is.
///
/// A tap `w` outside of the picture sees 1 instead of 0: `sum of all taps - sum of the taps inside` is
/// what is added, the taps inside being those that see the channel of ones.
fn pad_with_ones(layers: Vec<(Tensor<2>, Tensor<1>)>) -> Vec<(Tensor<2>, Tensor<1>)> {
    let [(first, bias1), (second, bias2), (last, bias3)]: [_; 3] =
        layers.try_into().expect("three layers");
    let ([hidden, inputs], [out, taps]) = (first.dims(), last.dims());
    let place = (&first.device(), first.dtype());
    let (one, row) = (Tensor::ones([1], place), |width| Tensor::zeros([1, width], place));
    let of_ones = last.clone().reshape([out, taps / 9, 9]).sum_dim(1).reshape([out, 9]);
    let second = Tensor::cat(vec![second, Tensor::zeros([hidden, 1], place)], 1);
    vec![
        (Tensor::cat(vec![first, row(inputs)], 0), Tensor::cat(vec![bias1, one.clone()], 0)),
        (Tensor::cat(vec![second, row(hidden + 1)], 0), Tensor::cat(vec![bias2, one], 0)),
        (
            Tensor::cat(vec![last, of_ones.clone().neg()], 1),
            bias3 + of_ones.sum_dim(1).reshape([out]),
        ),
    ]
}

/// ActNorm after an affine layer is an affine layer: `(W x + b) * s = (s W) x + s b`.
fn fold_norm(weight: Tensor<2>, conv: &Conv, norm: &Option<ActNorm>) -> (Tensor<2>, Tensor<1>) {
    let outputs = weight.dims()[0];
    match (norm, &conv.bias) {
        (Some(norm), None) => {
            let scale = norm.effective_log_scale().exp();
            (weight * scale.clone().reshape([outputs, 1]), norm.bias.val() * scale)
        }
        (None, Some(bias)) => (weight, bias.val()),
        (None, None) => {
            let zeros = Tensor::zeros([outputs], (&weight.device(), weight.dtype()));
            (weight, zeros)
        }
        (Some(norm), Some(bias)) => {
            let scale = norm.effective_log_scale().exp();
            let shift = (bias.val() + norm.bias.val()) * scale.clone();
            (weight * scale.reshape([outputs, 1]), shift)
        }
    }
}

/// The way back of [`fold_norm`]: from a folded layer and its gradients to those of convolution and
/// norm.
fn pull_back_norm(
    conv: &Conv,
    norm: &Option<ActNorm>,
    folded: (Tensor<2>, Tensor<1>),
    mut gradient: (Tensor<2>, Tensor<1>),
    grads: &mut GradientsParams,
) {
    if let Some(norm) = norm {
        let factor = norm.log_scale_factor();
        gradient = pull_back_scale(&norm.log_scale, factor, folded, gradient, grads);
        add_grad(grads, &norm.bias, gradient.1.clone());
    }
    let (dweight, dbias) = gradient;
    if let Some(bias) = &conv.bias {
        add_grad(grads, bias, dbias);
    }
    add_grad(grads, &conv.weight, dweight.reshape(conv.weight.dims()));
}

/// From the layer `weight scale` and `bias scale`, with `scale = exp(factor log_scale)`, and its gradients to
/// those by weight and bias; that by the log-scale is added to `grads`.
fn pull_back_scale(
    log_scale: &Param<Tensor<1>>,
    factor: f64,
    (weight, bias): (Tensor<2>, Tensor<1>),
    (dweight, dbias): (Tensor<2>, Tensor<1>),
    grads: &mut GradientsParams,
) -> (Tensor<2>, Tensor<1>) {
    let [outputs, _] = dweight.dims();
    let of_weight = (weight * dweight.clone()).sum_dim(1).reshape([outputs]);
    let dlog_scale = of_weight + bias * dbias.clone();
    add_grad(grads, log_scale, dlog_scale * factor);
    let scale = (host::plain(log_scale.val()) * factor).exp();
    (dweight * scale.clone().reshape([outputs, 1]), dbias * scale)
}
