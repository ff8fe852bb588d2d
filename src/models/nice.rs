//! NICE.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::conditioner::{Mlp, MlpConfig};
use crate::coupling::{AdditiveCoupling, Mask, Parity};
use crate::data::Preparation;
use crate::error::{FlowError, Result};
use crate::linear::DiagonalScaling;
use crate::models::{loads, size};
use crate::prior::{Prior, StandardLogistic, StandardNormal};
use crate::record::{self, Configuration};
use crate::stack::FlowStack;

/// Largest magnitude of the nets' initial weights (laurent-dinh/nice, `exp/nice_mnist.yaml`,
/// `irange`).
pub const NICE_INIT_RANGE: f64 = 0.01;

/// The prior of a NICE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NicePriorKind {
    /// Standard logistic.
    Logistic,
    /// Standard normal.
    Normal,
}

/// Configuration of [`Nice`].
///
/// ```
/// use burn_flows::models::NiceConfig;
///
/// let device = burn_flows::backend::device();
/// let nice = NiceConfig::new(6, vec![16, 16]).init(&device)?;
/// assert_eq!(nice.sample(3, 1.0).dims(), [3, 6]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NiceConfig {
    /// Values of a sample.
    pub num_features: usize,
    /// Additive couplings; default 4.
    pub num_couplings: usize,
    /// Widths of the hidden layers of every coupling's net.
    pub hidden: Vec<usize>,
    /// Prior; default: standard logistic.
    pub prior: NicePriorKind,
    /// Initial weights are uniform within ± this; default 0.01. Biases start at zero.
    pub init_range: f64,
    /// How pictures became the images that the model is trained on; default: not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preparation: Option<Preparation>,
}

impl NiceConfig {
    /// NICE with four couplings and the standard logistic prior.
    pub fn new(num_features: usize, hidden: Vec<usize>) -> Self {
        Self {
            num_features,
            num_couplings: 4,
            hidden,
            prior: NicePriorKind::Logistic,
            init_range: NICE_INIT_RANGE,
            preparation: None,
        }
    }

    /// MNIST: 784 values in `[0, 1)`, five hidden layers of 1000, logistic (section 5.1).
    pub fn mnist() -> Self {
        Self::new(28 * 28, vec![1000; 5])
    }

    /// Toronto Face Database: 48x48, whitened; four hidden layers of 5000, normal (section 5.1).
    pub fn tfd() -> Self {
        Self::new(48 * 48, vec![5000; 4]).with_prior(NicePriorKind::Normal)
    }

    /// SVHN: 3x32x32, whitened (ZCA); four hidden layers of 2000, logistic (section 5.1).
    pub fn svhn() -> Self {
        Self::new(3 * 32 * 32, vec![2000; 4])
    }

    /// CIFAR-10: 3x32x32 in `[-1, 1]`, whitened (ZCA); four hidden layers of 2000, logistic
    /// (section 5.1).
    pub fn cifar10() -> Self {
        Self::new(3 * 32 * 32, vec![2000; 4])
    }

    /// Replaces the number of couplings.
    pub fn with_num_couplings(mut self, num_couplings: usize) -> Self {
        self.num_couplings = num_couplings;
        self
    }

    /// Replaces the prior.
    pub fn with_prior(mut self, prior: NicePriorKind) -> Self {
        self.prior = prior;
        self
    }

    /// Replaces the range of the initial weights.
    pub fn with_init_range(mut self, init_range: f64) -> Self {
        self.init_range = init_range;
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
        let error = |parameter, got: String, needed, advice| {
            Err(FlowError::config("Nice", parameter, got, needed, advice))
        };
        if self.num_features < 2 {
            return error(
                "num_features",
                self.num_features.to_string(),
                "at least 2",
                "a coupling needs something to condition on and something to change",
            );
        }
        if self.num_couplings < 2 {
            return error(
                "num_couplings",
                self.num_couplings.to_string(),
                "at least 2",
                "one coupling leaves half of the values unchanged; the paper uses 4",
            );
        }
        if self.hidden.contains(&0) {
            return error(
                "hidden",
                format!("{:?}", self.hidden),
                "at least 1 each",
                "give every layer a width",
            );
        }
        // The weights are drawn in f32, which must tell the ends apart and hold their difference.
        let ranges = f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX / 2.0);
        if !ranges.contains(&self.init_range) {
            return error(
                "init_range",
                format!("{:e}", self.init_range),
                "positive and between 1.2e-38 and 1.7e38",
                "0.01 is the paper's",
            );
        }
        size::check_preparation("Nice", self.preparation, &[self.num_features])?;
        record::check_buildable(self)
    }

    /// Builds the model; the nets' weights come from the device's own generator (`Device::seed`).
    ///
    /// # Errors
    /// As [`validate`](NiceConfig::validate).
    pub fn init(&self, device: &Device) -> Result<Nice> {
        self.validate()?;
        let couplings = (0..self.num_couplings)
            .map(|k| {
                let mask = Mask::Alternating(Parity::of(k));
                let (seen, changed) =
                    (mask.num_identity(self.num_features), mask.num_transformed(self.num_features));
                Ok(AdditiveCoupling::additive(self.net(seen, changed, device)?, mask))
            })
            .collect::<Result<Vec<_>>>()?;
        let scaling = DiagonalScaling::new(self.num_features, device)?;
        let prior = match self.prior {
            NicePriorKind::Logistic => NicePrior::Logistic(StandardLogistic::new()),
            NicePriorKind::Normal => NicePrior::Normal(StandardNormal::new()),
        };
        let stack = FlowStack::single((couplings, scaling), prior, &[self.num_features])?;
        Ok(stack.with_configuration(self))
    }

    fn net(&self, seen: usize, changed: usize, device: &Device) -> Result<Mlp> {
        let range = self.init_range;
        let mut net = MlpConfig::new(seen, self.hidden.clone(), changed)
            .with_initializer(Initializer::Uniform { min: -range, max: range })
            .init(device)?;
        for layer in &mut net.layers {
            let bias = layer.bias.as_ref().map(|bias| Tensor::zeros(bias.dims(), device));
            layer.bias = bias.map(Param::from_tensor);
        }
        Ok(net)
    }
}

impl Configuration for NiceConfig {
    type Model = Nice;
    const NAME: &'static str = "Nice";

    fn build(&self, device: &Device) -> Result<Nice> {
        self.init(device)
    }

    fn num_values(&self) -> f64 {
        let mask = Mask::Alternating(Parity::Even);
        let (seen, changed) =
            (mask.num_identity(self.num_features), mask.num_transformed(self.num_features));
        let net = |seen, changed| size::mlp(seen, &self.hidden, changed);
        let pairs = (self.num_couplings / 2) as f64;
        let last = (self.num_couplings % 2) as f64;
        self.num_features as f64
            + (pairs + last) * net(seen, changed as f64)
            + pairs * net(changed, seen as f64)
    }
}

loads!(Nice, NiceConfig);

/// NICE: additive couplings of odd and even positions in turn, then a diagonal scaling; logistic
/// prior.
///
/// `log_det` is the sum of the log-scales, the same for every sample.
///
/// Source: Dinh et al., *NICE: Non-linear Independent Components Estimation*,
/// [arXiv:1410.8516](https://arxiv.org/abs/1410.8516); laurent-dinh/nice.
pub type Nice = FlowStack<2, NiceFlow, NicePrior>;

/// The map of a [`Nice`]: couplings, then the scaling.
pub type NiceFlow = (Vec<AdditiveCoupling<Mlp>>, DiagonalScaling);

/// The prior of a [`Nice`].
#[derive(Module, Debug, Prior)]
pub enum NicePrior {
    /// Standard logistic.
    Logistic(StandardLogistic),
    /// Standard normal.
    Normal(StandardNormal),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mnist_preset_has_the_published_size() {
        // Four nets 392-1000-1000-1000-1000-1000-392 and 784 scales.
        let net = 392 * 1000 + 1000 + 4 * (1000 * 1000 + 1000) + 1000 * 392 + 392;
        let nice = NiceConfig::mnist().init(&crate::backend::device()).unwrap();
        assert_eq!(nice.num_params(), 4 * net + 784);
    }

    #[test]
    fn wrong_configurations_are_refused() {
        let error = |config: NiceConfig| config.validate().unwrap_err().to_string();
        let config = || NiceConfig::new(4, vec![8]);
        assert!(error(NiceConfig::new(1, vec![8])).starts_with("Nice: num_features is 1"));
        assert!(error(NiceConfig::new(4, vec![0])).starts_with("Nice: hidden is [0]"));
        for range in ["-1e0", "0e0", "1e-40", "2e38", "1e308", "inf", "NaN"] {
            let text = error(config().with_init_range(range.parse().unwrap()));
            assert!(text.starts_with(&format!("Nice: init_range is {range}, ")), "{text}");
        }
        assert_eq!(
            error(config().with_num_couplings(1)),
            "Nice: num_couplings is 1, but must be at least 2; one coupling leaves half of the \
             values unchanged; the paper uses 4"
        );
    }
}
