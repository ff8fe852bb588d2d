//! Glow.

use burn::module::Module;
use burn::tensor::Device;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::Flow;
use crate::conditioner::conv::ZeroConv;
use crate::conditioner::{GlowNet, GlowNetConfig, Mlp, MlpConfig, NetNorm};
use crate::context::WithContext;
use crate::coupling::{AdditiveCoupling, AffineCoupling, AffineOrder, Coupling, Mask, ScaleMap};
use crate::data::Preparation;
use crate::error::{FlowError, Result};
use crate::linear::{InvertibleConv1x1, Permutation};
use crate::models::{loads, size};
use crate::norm::ActNorm;
use crate::preprocess::{Logit, LogitForm};
use crate::prior::{
    BlankNormal, ConditionalNormal, ContextNormal, DiagonalNormal, Prior, SplitPrior,
    StandardNormal,
};
use crate::record::{self, Configuration};
use crate::reshape::Squeeze;
use crate::stack::FlowStack;

/// The coupling of a Glow step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum GlowCouplingKind {
    /// `z_b = b + shift(a)`.
    Additive,
    /// `z_b = (b + shift(a)) * scale(a)`.
    Affine(ScaleMap),
}

/// What mixes the channels in a Glow step (the code's `flow_permutation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GlowMixingKind {
    /// Reverse the channels.
    Reverse,
    /// A fixed random shuffle.
    Shuffle,
    /// An invertible 1x1 convolution, plain.
    Conv1x1,
    /// An invertible 1x1 convolution, PLU.
    Conv1x1Plu,
}

/// Configuration of [`Glow`].
///
/// ```
/// use burn_flows::models::GlowConfig;
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let device = burn_flows::backend::device();
/// let config = GlowConfig::new([1, 8, 8], 2, 2, 16);
/// let glow = config.init(&mut StdRng::seed_from_u64(0), &device)?;
/// assert_eq!(glow.sample(3, 0.7).dims(), [3, 1, 8, 8]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GlowConfig {
    /// Channels, height and width of an image.
    pub image_shape: [usize; 3],
    /// L: levels, each a squeeze and `num_steps` steps.
    pub num_levels: usize,
    /// K: steps a level.
    pub num_steps: usize,
    /// Hidden channels of the couplings' nets.
    pub hidden_width: usize,
    /// Coupling of each step; default: affine with the code's sigmoid.
    pub coupling: GlowCouplingKind,
    /// What mixes the channels; default: a plain 1x1 convolution.
    pub mixing: GlowMixingKind,
    /// What follows the hidden convolutions; default: ActNorm, as in the code.
    pub net_norm: NetNorm,
    /// Whether the top prior's means and deviations are learned; default: yes.
    pub learned_top: bool,
    /// Whether the split priors are conditioned on the kept half; default: yes.
    pub conditional_split: bool,
    /// Maps `[0, 1)` to the whole line first, [`Logit`] with this `alpha`; default: no.
    pub logit_alpha: Option<f64>,
    /// How many classes the top prior depends on; default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Whether the split priors depend on the class too; default: no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub class_splits: bool,
    /// How pictures became the images that the model is trained on; default: not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preparation: Option<Preparation>,
}

impl GlowConfig {
    /// Glow with the defaults of its code: affine couplings, 1x1 convolutions, ActNorm in the nets,
    /// learned top, conditional splits.
    pub fn new(
        image_shape: [usize; 3],
        num_levels: usize,
        num_steps: usize,
        hidden_width: usize,
    ) -> Self {
        Self {
            image_shape,
            num_levels,
            num_steps,
            hidden_width,
            coupling: GlowCouplingKind::Affine(ScaleMap::Sigmoid),
            mixing: GlowMixingKind::Conv1x1,
            net_norm: NetNorm::ActNorm,
            learned_top: true,
            conditional_split: true,
            logit_alpha: None,
            num_classes: None,
            class_splits: false,
            preparation: None,
        }
    }

    /// CIFAR-10, 8 bits: L = 3, K = 32, width 512, affine (paper, table 4).
    pub fn cifar10() -> Self {
        Self::new([3, 32, 32], 3, 32, 512)
    }

    /// ImageNet 32x32, 8 bits: L = 3, K = 48, width 512, affine (paper, table 4).
    pub fn imagenet32() -> Self {
        Self::new([3, 32, 32], 3, 48, 512)
    }

    /// ImageNet 64x64, 8 bits: L = 4, K = 48, width 512, affine (paper, table 4).
    pub fn imagenet64() -> Self {
        Self::new([3, 64, 64], 4, 48, 512)
    }

    /// CelebA-HQ 256x256, 5 bits: L = 6, K = 32, width 512, additive (paper, table 4).
    pub fn celeba_hq256() -> Self {
        Self { coupling: GlowCouplingKind::Additive, ..Self::new([3, 256, 256], 6, 32, 512) }
    }

    /// Replaces the coupling.
    pub fn with_coupling(mut self, coupling: GlowCouplingKind) -> Self {
        self.coupling = coupling;
        self
    }

    /// Replaces what mixes the channels.
    pub fn with_mixing(mut self, mixing: GlowMixingKind) -> Self {
        self.mixing = mixing;
        self
    }

    /// Replaces what follows the hidden convolutions.
    pub fn with_net_norm(mut self, net_norm: NetNorm) -> Self {
        self.net_norm = net_norm;
        self
    }

    /// Whether the top prior is learned.
    pub fn with_learned_top(mut self, learned_top: bool) -> Self {
        self.learned_top = learned_top;
        self
    }

    /// Whether the split priors are conditioned on the kept half.
    pub fn with_conditional_split(mut self, conditional_split: bool) -> Self {
        self.conditional_split = conditional_split;
        self
    }

    /// Puts a [`Logit`] with this `alpha` before the first level: for pixels in `[0, 1)`. Not part of
    /// Glow as published; on MNIST it is worth more than any other choice, since the black background
    /// is spread out instead of squeezed into one level.
    pub fn with_logit(mut self, alpha: f64) -> Self {
        self.logit_alpha = Some(alpha);
        self
    }

    /// Makes the model class-conditional: the means and log standard deviations of the top prior are
    /// those of the class, `mean = bias + W y` for the one-hot class `y`, whatever
    /// [`learned_top`](GlowConfig::learned_top) says. The class is the model's context:
    ///
    /// ```
    /// use burn_flows::context::Given;
    /// use burn_flows::models::GlowConfig;
    /// use rand::{SeedableRng, rngs::StdRng};
    ///
    /// let device = burn_flows::backend::device();
    /// let config = GlowConfig::new([1, 8, 8], 2, 1, 4).with_num_classes(10);
    /// let glow = config.init(&mut StdRng::seed_from_u64(0), &device)?;
    /// let threes = glow.given_classes(&[3_u8])?.sample(5, 0.7);
    /// // Nothing is learned yet: all classes are as likely.
    /// let found = glow.classify(threes, &[1.0; 10])?;
    /// assert_eq!(found.log_posterior.dims(), [5, 10]);
    /// assert!((found.log_posterior.min().into_scalar::<f32>() + 10_f32.ln()).abs() < 1e-3);
    /// # Ok::<(), burn_flows::FlowError>(())
    /// ```
    ///
    /// Published models train a classifier with it:
    /// [`WithClassifier`](crate::training::WithClassifier).
    ///
    /// Source: openai/glow, `model.py`, `prior` (its `ycond`), without the factor `exp(3 logs)` on
    /// `W y`, as normflows' `GlowBase` has it.
    pub fn with_num_classes(mut self, num_classes: usize) -> Self {
        self.num_classes = Some(num_classes);
        self
    }

    /// Whether the split priors depend on the class too, as all priors of normflows do: where they are
    /// conditioned on the kept half, its convolution sees the class at every pixel.
    pub fn with_class_splits(mut self, class_splits: bool) -> Self {
        self.class_splits = class_splits;
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
        let error = |parameter, got: String, needed: String, advice: &str| {
            Err(FlowError::config("Glow", parameter, got, needed, advice))
        };
        for (parameter, value) in [
            ("image_shape", self.image_shape.into_iter().min().unwrap_or(0)),
            ("num_levels", self.num_levels),
            ("num_steps", self.num_steps),
            ("hidden_width", self.hidden_width),
        ] {
            if value == 0 {
                return error(parameter, "0".into(), "at least 1".into(), "raise it");
            }
        }
        size::check_sides("Glow", self.image_shape)?;
        let [_, height, width] = self.image_shape;
        let halvings = height.trailing_zeros().min(width.trailing_zeros()) as usize;
        if halvings < self.num_levels {
            return error(
                "num_levels",
                self.num_levels.to_string(),
                format!("at most {halvings}, as often as both sides of {height}x{width} halve"),
                "use fewer levels, or pad or crop the images to a multiple of a power of two",
            );
        }
        if let GlowCouplingKind::Affine(scale_map) = self.coupling {
            scale_map.validate("Glow")?;
        }
        if self.num_classes == Some(0) {
            let advice = "leave it out for a model without classes";
            return error("num_classes", "0".into(), "at least 1".into(), advice);
        }
        if self.class_splits && self.num_classes.is_none() {
            return error(
                "class_splits",
                "true".into(),
                "false without num_classes".into(),
                "give the number of classes",
            );
        }
        size::check_preparation("Glow", self.preparation, &self.image_shape)?;
        record::check_buildable(self)
    }

    /// Builds the model. `rng` draws the rotations and shuffles; the nets' weights come from the
    /// device's own generator (`Device::seed`).
    ///
    /// # Errors
    /// As [`validate`](GlowConfig::validate).
    pub fn init(&self, rng: &mut impl Rng, device: &Device) -> Result<Glow> {
        self.validate()?;
        let mut channels = self.image_shape[0];
        let (mut levels, mut split_priors) = (Vec::new(), Vec::new());
        for level in 0..self.num_levels {
            channels *= 4;
            let steps = (0..self.num_steps)
                .map(|_| self.step(channels, rng, device))
                .collect::<Result<Vec<_>>>()?;
            let logit = match self.logit_alpha {
                Some(alpha) if level == 0 => Some(Logit::new(alpha, LogitForm::Code)?),
                _ => None,
            };
            levels.push((logit, Squeeze::new(), steps));
            if level + 1 < self.num_levels {
                let kept = channels / 2;
                split_priors.push(self.split_prior(kept, channels - kept, device)?);
                channels = kept;
            }
        }
        let prior = if let Some(num_classes) = self.num_classes {
            GlowPrior::Class(class_normal(num_classes, channels, device)?)
        } else if self.learned_top {
            GlowPrior::Learned(DiagonalNormal::per_channel(channels, device))
        } else {
            GlowPrior::Standard(StandardNormal::new())
        };
        let stack = FlowStack::new(levels, split_priors, prior, &self.image_shape)?;
        Ok(stack.with_configuration(self))
    }

    fn split_prior(&self, kept: usize, out: usize, device: &Device) -> Result<GlowSplitPrior> {
        let num_classes = self.num_classes.filter(|_| self.class_splits);
        Ok(match (self.conditional_split, num_classes) {
            (true, None) => GlowSplitPrior::Conditional(ConditionalNormal::glow(kept, out, device)),
            (true, Some(num_classes)) => {
                let conv = ZeroConv::new([kept + num_classes, 2 * out], device);
                let conv = WithContext::new(conv, num_classes, device);
                GlowSplitPrior::ConditionalClass(ConditionalNormal::new(conv))
            }
            (false, None) => GlowSplitPrior::Standard(StandardNormal::new()),
            (false, Some(num_classes)) => {
                GlowSplitPrior::Class(class_normal(num_classes, out, device)?)
            }
        })
    }

    fn step(&self, channels: usize, rng: &mut impl Rng, device: &Device) -> Result<GlowStep> {
        let mask = Mask::first_half();
        let (seen, changed) = (mask.num_identity(channels), mask.num_transformed(channels));
        let net = |outputs| {
            GlowNetConfig::new(seen, self.hidden_width, outputs)
                .with_norm(self.net_norm)
                .init(device)
        };
        let coupling = match self.coupling {
            GlowCouplingKind::Additive => {
                GlowCoupling::Additive(Coupling::additive(net(changed)?, mask))
            }
            GlowCouplingKind::Affine(scale_map) => GlowCoupling::Affine(Coupling::affine_ordered(
                net(2 * changed)?,
                mask,
                scale_map,
                AffineOrder::ShiftThenScale,
                channels,
                device,
            )?),
        };
        let mixing = match self.mixing {
            GlowMixingKind::Reverse => {
                GlowMixing::Permutation(Permutation::reverse(channels, device)?)
            }
            GlowMixingKind::Shuffle => {
                GlowMixing::Permutation(Permutation::shuffle(channels, rng, device)?)
            }
            GlowMixingKind::Conv1x1 => {
                GlowMixing::Conv1x1(InvertibleConv1x1::plain(channels, rng, device)?)
            }
            GlowMixingKind::Conv1x1Plu => {
                GlowMixing::Conv1x1(InvertibleConv1x1::plu(channels, rng, device)?)
            }
        };
        Ok((ActNorm::new(channels, device)?, mixing, coupling))
    }
}

impl Configuration for GlowConfig {
    type Model = Glow;
    const NAME: &'static str = "Glow";

    fn build(&self, device: &Device) -> Result<Glow> {
        self.init(&mut StdRng::seed_from_u64(0), device)
    }

    fn num_values(&self) -> f64 {
        let mut channels = self.image_shape[0] as f64;
        let mut sum = 0.0;
        for level in 0..size::loops(self.num_levels) {
            channels *= 4.0;
            sum += self.num_steps as f64 * self.values_of_step(channels);
            if level + 1 < self.num_levels {
                // The squeeze left an even number.
                channels /= 2.0;
                let classes = self.num_classes.filter(|_| self.class_splits);
                sum += match (self.conditional_split, classes) {
                    (true, classes) => {
                        size::zero_conv(channels + classes.unwrap_or(0) as f64, 2.0 * channels)
                    }
                    (false, Some(classes)) => size::mlp(classes, &[], 2.0 * channels),
                    (false, None) => 0.0,
                };
            }
        }
        sum + match self.num_classes {
            Some(classes) => size::mlp(classes, &[], 2.0 * channels),
            None if self.learned_top => 2.0 * channels,
            None => 0.0,
        }
    }
}

impl GlowConfig {
    fn values_of_step(&self, channels: f64) -> f64 {
        let half = channels / 2.0;
        let (outputs, gains) = match self.coupling {
            GlowCouplingKind::Additive => (half, 0.0),
            GlowCouplingKind::Affine(ScaleMap::Tanh) => (channels, half),
            GlowCouplingKind::Affine(_) => (channels, 0.0),
        };
        let mixing = match self.mixing {
            GlowMixingKind::Reverse | GlowMixingKind::Shuffle => channels,
            GlowMixingKind::Conv1x1 => channels * channels,
            GlowMixingKind::Conv1x1Plu => 3.0 * channels * channels + 2.0 * channels,
        };
        let net = size::glow_net(half, self.hidden_width as f64, outputs, self.net_norm);
        size::act_norm(channels) + mixing + net + gains
    }
}

/// A normal for each class, all standard to start with.
fn class_normal(
    num_classes: usize,
    channels: usize,
    device: &Device,
) -> Result<ContextNormal<Mlp>> {
    let net = MlpConfig::new(num_classes, Vec::new(), 2 * channels).with_zero_init(true);
    Ok(ContextNormal::new(net.init(device)?, num_classes, device))
}

loads!(Glow, GlowConfig);

/// Glow: levels of squeeze and steps of ActNorm, 1x1 convolution and coupling, with a conditional
/// prior at each split.
///
/// Source: Kingma and Dhariwal, *Glow*, [arXiv:1807.03039](https://arxiv.org/abs/1807.03039);
/// where paper and code (openai/glow) differ, the code is followed.
pub type Glow = FlowStack<4, GlowLevel, GlowPrior, GlowSplitPrior>;

/// One level: logit (the first level's, if wanted), squeeze, then K steps.
pub type GlowLevel = (Option<Logit>, Squeeze, Vec<GlowStep>);

/// One step: ActNorm, channel mixing, coupling.
pub type GlowStep = (ActNorm, GlowMixing, GlowCoupling);

/// The coupling of a Glow step.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // all steps of a model are of one kind
pub enum GlowCoupling {
    /// Volume preserving.
    Additive(AdditiveCoupling<GlowNet>),
    /// With a scale.
    Affine(AffineCoupling<GlowNet>),
}

/// What mixes the channels in a Glow step.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // all steps of a model are of one kind
pub enum GlowMixing {
    /// A fixed permutation.
    Permutation(Permutation),
    /// An invertible 1x1 convolution.
    Conv1x1(InvertibleConv1x1),
}

/// The prior of the deepest latent.
#[derive(Module, Debug, Prior)]
pub enum GlowPrior {
    /// Standard normal.
    Standard(StandardNormal),
    /// Learned mean and deviation for each channel.
    Learned(DiagonalNormal<4>),
    /// Learned mean and deviation for each channel and class.
    Class(ContextNormal<Mlp>),
    /// Means and deviations that a convolution makes of a blank picture, as in models of PyTorch.
    Blank(BlankNormal),
}

/// The prior of what a split factors out.
#[derive(Module, Debug, SplitPrior)]
#[allow(clippy::large_enum_variant)] // all splits of a model are of one kind
pub enum GlowSplitPrior {
    /// Standard normal.
    Standard(StandardNormal),
    /// Conditioned on the kept half.
    Conditional(ConditionalNormal<ZeroConv>),
    /// Learned mean and deviation for each channel and class.
    Class(ContextNormal<Mlp>),
    /// Conditioned on the kept half and the class.
    ConditionalClass(ConditionalNormal<WithContext<ZeroConv>>),
}
