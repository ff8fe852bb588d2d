//! RealNVP for images.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::conditioner::{ResidualNet, ResidualNetConfig};
use crate::coupling::{AffineCoupling, Mask, Parity, ScaleMap};
use crate::data::Preparation;
use crate::error::{FlowError, Result};
use crate::models::{loads, size};
use crate::norm::BatchNorm;
use crate::preprocess::{LOGIT_ALPHA, Logit, LogitForm};
use crate::prior::StandardNormal;
use crate::record::{self, Configuration};
use crate::reshape::Squeeze;
use crate::stack::FlowStack;

/// Couplings of each kind in a scale that is followed by another one.
const COUPLINGS: usize = 3;

/// Couplings of the last scale, all with checkerboard masks.
const LAST_COUPLINGS: usize = 4;

/// A checkerboard mask zeroes half of what the net sees: its input is doubled.
const CHECKERBOARD_GAIN: f64 = 2.0;

/// Configuration of [`RealNvp`].
///
/// ```
/// use burn_flows::models::RealNvpConfig;
///
/// let device = burn_flows::backend::device();
/// let model = RealNvpConfig::new([1, 8, 8], 2, 8, 1).init(&device)?;
/// assert_eq!(model.sample(3, 1.0).dims(), [3, 1, 8, 8]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RealNvpConfig {
    /// Channels, height and width of an image.
    pub image_shape: [usize; 3],
    /// Scales; the sides halve between them.
    pub num_scales: usize,
    /// Features of the residual nets in the first scale; they double in each further one.
    pub hidden_width: usize,
    /// Blocks of each residual net.
    pub num_blocks: usize,
    /// Alpha of the logit preprocessing; default 0.05, `None` leaves it out.
    pub logit_alpha: Option<f64>,
    /// Where the logit is taken; default: as in the code.
    pub logit_form: LogitForm,
    /// Whether the couplings' outputs are batch normalized; default: yes.
    pub batch_norm: bool,
    /// How pictures became the images that the model is trained on; default: not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preparation: Option<Preparation>,
}

impl RealNvpConfig {
    /// RealNVP with the logit of its code and batch normalization.
    pub fn new(
        image_shape: [usize; 3],
        num_scales: usize,
        hidden_width: usize,
        num_blocks: usize,
    ) -> Self {
        Self {
            image_shape,
            num_scales,
            hidden_width,
            num_blocks,
            logit_alpha: Some(LOGIT_ALPHA),
            logit_form: LogitForm::Code,
            batch_norm: true,
            preparation: None,
        }
    }

    /// CIFAR-10: one halving, 64 features, 8 blocks (section 4.1).
    pub fn cifar10() -> Self {
        Self::new([3, 32, 32], 2, 64, 8)
    }

    /// ImageNet 32x32: down to 4x4, 32 features, 4 blocks (section 4.1).
    pub fn imagenet32() -> Self {
        Self::new([3, 32, 32], 4, 32, 4)
    }

    /// ImageNet 64x64: down to 4x4, 32 features, 2 blocks (section 4.1).
    pub fn imagenet64() -> Self {
        Self::new([3, 64, 64], 5, 32, 2)
    }

    /// CelebA 64x64 (centre 148x148 resized): down to 4x4, 32 features, 4 blocks, which is what the
    /// code says; the paper has 2 blocks for all images of 64x64.
    pub fn celeba64() -> Self {
        Self::new([3, 64, 64], 5, 32, 4)
    }

    /// Replaces the logit preprocessing; `None` leaves it out.
    pub fn with_logit(mut self, alpha: Option<f64>, form: LogitForm) -> Self {
        (self.logit_alpha, self.logit_form) = (alpha, form);
        self
    }

    /// Whether the couplings' outputs are batch normalized.
    pub fn with_batch_norm(mut self, batch_norm: bool) -> Self {
        self.batch_norm = batch_norm;
        self
    }

    /// Says how pictures become the images that the model is trained on, for whoever uses it later.
    pub fn with_preparation(mut self, preparation: Preparation) -> Self {
        self.preparation = Some(preparation);
        self
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// Names the first field that cannot be built.
    pub fn validate(&self) -> Result<()> {
        for (parameter, value) in [
            ("image_shape", self.image_shape.into_iter().min().unwrap_or(0)),
            ("num_scales", self.num_scales),
            ("hidden_width", self.hidden_width),
        ] {
            if value == 0 {
                return Err(FlowError::config("RealNvp", parameter, 0, "at least 1", "raise it"));
            }
        }
        size::check_sides("RealNvp", self.image_shape)?;
        let [_, height, width] = self.image_shape;
        let halvings = height.trailing_zeros().min(width.trailing_zeros()) as usize;
        if halvings + 1 < self.num_scales {
            return Err(FlowError::config(
                "RealNvp",
                "num_scales",
                self.num_scales,
                format!(
                    "at most {}, for both sides of {height}x{width} halve between",
                    halvings + 1
                ),
                "use fewer scales, or pad or crop the images to a multiple of a power of two",
            ));
        }
        if height * width == 1 {
            return Err(FlowError::config(
                "RealNvp",
                "image_shape",
                format!("{:?}", self.image_shape),
                "more than one pixel",
                "use RealNvpVectorConfig for vectors",
            ));
        }
        self.logit()?;
        size::check_preparation("RealNvp", self.preparation, &self.image_shape)?;
        record::check_buildable(self)
    }

    fn logit(&self) -> Result<Option<Logit>> {
        self.logit_alpha.map(|alpha| Logit::new(alpha, self.logit_form)).transpose()
    }

    /// Builds the model; the nets' weights come from the device's own generator (`Device::seed`).
    ///
    /// # Errors
    /// As [`validate`](RealNvpConfig::validate).
    pub fn init(&self, device: &Device) -> Result<RealNvp> {
        self.validate()?;
        let ([mut channels, _, _], mut features) = (self.image_shape, self.hidden_width);
        let mut logit = self.logit()?;
        let mut levels = Vec::with_capacity(self.num_scales);
        for scale in 0..self.num_scales {
            let last = scale + 1 == self.num_scales;
            let count = if last { LAST_COUPLINGS } else { COUPLINGS };
            let checkerboard = self.steps(count, Mask::Checkerboard, channels, features, device)?;
            let (squeeze, channel) = if last {
                (None, Vec::new())
            } else {
                let (channels, features) = (4 * channels, 2 * features);
                let steps =
                    self.steps(COUPLINGS, Mask::ChannelHalves, channels, features, device)?;
                (Some(Squeeze::new()), steps)
            };
            levels.push((logit.take(), checkerboard, squeeze, channel));
            (channels, features) = (2 * channels, 2 * features);
        }
        let priors = vec![StandardNormal::new(); self.num_scales - 1];
        let stack = FlowStack::new(levels, priors, StandardNormal::new(), &self.image_shape)?;
        Ok(stack.with_configuration(self))
    }

    fn steps(
        &self,
        count: usize,
        mask: fn(Parity) -> Mask,
        channels: usize,
        features: usize,
        device: &Device,
    ) -> Result<Vec<RealNvpStep>> {
        let step = |index| {
            let mask = mask(Parity::of(index));
            let (seen, changed) = (mask.num_identity(channels), mask.num_transformed(channels));
            let gain = match mask {
                Mask::Checkerboard(_) => CHECKERBOARD_GAIN,
                _ => 1.0,
            };
            let net = ResidualNetConfig::new(seen, features, 2 * changed, self.num_blocks)
                .with_input_gain(gain)
                .init(device)?;
            let coupling = AffineCoupling::affine(net, mask, ScaleMap::Tanh, channels, device)?;
            let norm = self.batch_norm.then(|| BatchNorm::new(channels, device)).transpose()?;
            Ok((coupling, norm))
        };
        (0..count).map(step).collect()
    }
}

impl Configuration for RealNvpConfig {
    type Model = RealNvp;
    const NAME: &'static str = "RealNvp";

    fn build(&self, device: &Device) -> Result<RealNvp> {
        self.init(device)
    }

    fn num_values(&self) -> f64 {
        let step = |seen: f64, changed: f64, channels: f64, features: f64| {
            let norm = if self.batch_norm { size::moments(channels) } else { 0.0 };
            let net = size::residual_net(seen, features, 2.0 * changed, self.num_blocks as f64);
            net + changed + norm
        };
        let (mut channels, mut features) = (self.image_shape[0] as f64, self.hidden_width as f64);
        let mut sum = 0.0;
        for scale in 0..size::loops(self.num_scales) {
            let board = step(channels, channels, channels, features);
            if scale + 1 == self.num_scales {
                sum += LAST_COUPLINGS as f64 * board;
            } else {
                let (half, squeezed) = (2.0 * channels, 4.0 * channels);
                sum += COUPLINGS as f64 * (board + step(half, half, squeezed, 2.0 * features));
            }
            (channels, features) = (2.0 * channels, 2.0 * features);
        }
        sum
    }
}

loads!(RealNvp, RealNvpConfig);

/// RealNVP for images: logit, then scales of three checkerboard couplings, squeeze, three couplings
/// of channel halves and a split; four checkerboard couplings in the last scale.
///
/// Couplings are affine, `z = x exp(s) + t` with `s = gain tanh(h)`, their nets residual, their
/// outputs batch normalized; the priors are standard normal. The running moments take in a batch by
/// [`Pass::Observe`](crate::Pass), before the training step on it: see
/// [`BatchNorm`](crate::norm::BatchNorm).
///
/// The features double from scale to scale, already for the couplings after the squeeze. Where the
/// published code differs from the paper this is the paper's: the code undoes the squeeze before the
/// split and squeezes again in another order of the channels, so that other pixels are factored out
/// (here figure 4); it shifts before it scales; its batch normalization takes the changed part of an
/// output alone (here section 3.7). Of its details these are left out: the mask as one more channel of
/// the checkerboard nets' input, one gain of the tanh for a whole coupling (here each channel has one,
/// starting at 1), random output weights (here zero, so that a fresh coupling is the identity), and
/// the L2 term on the gains of weight normalization.
///
/// Source: Dinh et al., *Density estimation using Real NVP*,
/// [arXiv:1605.08803](https://arxiv.org/abs/1605.08803), sections 3.4 to 4.1.
pub type RealNvp<C = ResidualNet> = FlowStack<4, RealNvpLevel<C>>;

/// One scale: logit (in the first one), checkerboard couplings, squeeze, couplings of channel
/// halves; the last scale has but the couplings with checkerboard masks.
pub type RealNvpLevel<C = ResidualNet> =
    (Option<Logit>, Vec<RealNvpStep<C>>, Option<Squeeze>, Vec<RealNvpStep<C>>);

/// A coupling and the batch normalization of its output.
pub type RealNvpStep<C = ResidualNet> = (AffineCoupling<C>, Option<BatchNorm>);

#[cfg(test)]
mod tests {
    use burn::module::Module;

    use super::*;

    #[test]
    fn presets_go_through_all_scales() {
        for (config, deepest) in [
            (RealNvpConfig::cifar10(), [1, 6, 16, 16]),
            (RealNvpConfig::imagenet32(), [1, 24, 4, 4]),
            (RealNvpConfig::imagenet64(), [1, 48, 4, 4]),
            (RealNvpConfig::celeba64(), [1, 48, 4, 4]),
        ] {
            // The shapes do not depend on the features; few of them are quick to build.
            let config = RealNvpConfig { hidden_width: 1, num_blocks: 1, ..config };
            let model = config.init(&crate::backend::device()).unwrap();
            assert_eq!(*model.latent_shapes().last().unwrap(), deepest);
        }
    }

    #[test]
    fn batch_norm_can_be_left_out() {
        let device = crate::backend::device();
        let with = RealNvpConfig::new([1, 4, 4], 1, 2, 1);
        let without = with.clone().with_batch_norm(false).with_logit(None, LogitForm::Code);
        // Mean, variance and mark of four layers.
        let count = |config: RealNvpConfig| config.init(&device).unwrap().num_params();
        assert_eq!(count(with) - count(without), 4 * 3);
    }

    #[test]
    fn wrong_configurations_are_refused() {
        let error = |config: RealNvpConfig| config.validate().unwrap_err().to_string();
        assert!(error(RealNvpConfig::new([0, 8, 8], 2, 8, 1)).starts_with("RealNvp: image_shape"));
        assert!(error(RealNvpConfig::new([3, 8, 8], 0, 8, 1)).starts_with("RealNvp: num_scales"));
        assert!(error(RealNvpConfig::new([3, 8, 8], 2, 0, 1)).starts_with("RealNvp: hidden_width"));
        assert!(error(RealNvpConfig::new([3, 1, 1], 1, 8, 1)).starts_with("RealNvp: image_shape"));
        let logit = RealNvpConfig::new([3, 8, 8], 2, 8, 1).with_logit(Some(0.5), LogitForm::Code);
        assert!(error(logit).starts_with("Logit: alpha is 0.5"));
        assert_eq!(
            error(RealNvpConfig::new([3, 12, 8], 4, 8, 1)),
            "RealNvp: num_scales is 4, but must be at most 3, for both sides of 12x8 halve between; \
             use fewer scales, or pad or crop the images to a multiple of a power of two"
        );
    }
}
