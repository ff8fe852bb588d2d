//! RealNVP for vectors.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::conditioner::{Mlp, MlpConfig};
use crate::coupling::{AffineCoupling, Mask, Parity, ScaleMap};
use crate::error::{FlowError, Result};
use crate::models::{loads, size};
use crate::norm::BatchNorm;
use crate::prior::StandardNormal;
use crate::record::{self, Configuration};
use crate::stack::FlowStack;

/// How the couplings of a [`RealNvpVector`] divide a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VectorMaskKind {
    /// First and second half in turn.
    Halves,
    /// Even and odd positions in turn.
    Alternating,
}

/// Configuration of [`RealNvpVector`].
///
/// ```
/// use burn_flows::models::RealNvpVectorConfig;
///
/// let device = burn_flows::backend::device();
/// let model = RealNvpVectorConfig::new(2, 8, vec![64, 64]).init(&device)?;
/// assert_eq!(model.sample(3, 1.0).dims(), [3, 2]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RealNvpVectorConfig {
    /// Values of a sample.
    pub num_features: usize,
    /// Affine couplings.
    pub num_couplings: usize,
    /// Widths of the hidden layers of every coupling's net.
    pub hidden: Vec<usize>,
    /// How the vector is divided; default: into even and odd positions.
    pub mask: VectorMaskKind,
    /// Scale map of the couplings; default: RealNVP's `gain tanh`.
    pub scale_map: ScaleMap,
    /// Whether the couplings' outputs are batch normalized; default: no.
    pub batch_norm: bool,
}

impl RealNvpVectorConfig {
    /// Couplings of even and odd positions in turn, `gain tanh` scales, no batch normalization.
    pub fn new(num_features: usize, num_couplings: usize, hidden: Vec<usize>) -> Self {
        Self {
            num_features,
            num_couplings,
            hidden,
            mask: VectorMaskKind::Alternating,
            scale_map: ScaleMap::Tanh,
            batch_norm: false,
        }
    }

    /// Replaces how the vector is divided.
    pub fn with_mask(mut self, mask: VectorMaskKind) -> Self {
        self.mask = mask;
        self
    }

    /// Replaces the scale map.
    pub fn with_scale_map(mut self, scale_map: ScaleMap) -> Self {
        self.scale_map = scale_map;
        self
    }

    /// Whether the couplings' outputs are batch normalized.
    pub fn with_batch_norm(mut self, batch_norm: bool) -> Self {
        self.batch_norm = batch_norm;
        self
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// Names the first field that cannot be built.
    pub fn validate(&self) -> Result<()> {
        let error = |parameter, got: String, needed, advice| {
            Err(FlowError::config("RealNvpVector", parameter, got, needed, advice))
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
                "one coupling leaves half of the values unchanged; 8 is usual",
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
        record::check_buildable(self)
    }

    /// Builds the model, the identity until trained (but for constant scales of
    /// [`ScaleMap::Sigmoid`]); the nets' weights come from the device's own generator
    /// (`Device::seed`).
    ///
    /// # Errors
    /// As [`validate`](RealNvpVectorConfig::validate), and if the scale map has no valid bound.
    pub fn init(&self, device: &Device) -> Result<RealNvpVector> {
        self.validate()?;
        let steps = (0..self.num_couplings).map(|index| self.step(index, device));
        let steps = steps.collect::<Result<Vec<_>>>()?;
        let stack = FlowStack::single(steps, StandardNormal::new(), &[self.num_features])?;
        Ok(stack.with_configuration(self))
    }

    fn mask(&self, parity: Parity) -> Mask {
        match self.mask {
            VectorMaskKind::Halves => Mask::ChannelHalves(parity),
            VectorMaskKind::Alternating => Mask::Alternating(parity),
        }
    }

    fn step(&self, index: usize, device: &Device) -> Result<RealNvpVectorStep> {
        let mask = self.mask(Parity::of(index));
        let features = self.num_features;
        let (seen, changed) = (mask.num_identity(features), mask.num_transformed(features));
        let net = MlpConfig::new(seen, self.hidden.clone(), 2 * changed)
            .with_zero_init(true)
            .init(device)?;
        let coupling = AffineCoupling::affine(net, mask, self.scale_map, features, device)?;
        let norm = self.batch_norm.then(|| BatchNorm::new(features, device)).transpose()?;
        Ok((coupling, norm))
    }
}

impl Configuration for RealNvpVectorConfig {
    type Model = RealNvpVector;
    const NAME: &'static str = "RealNvpVector";

    fn build(&self, device: &Device) -> Result<RealNvpVector> {
        self.init(device)
    }

    fn num_values(&self) -> f64 {
        let norm = if self.batch_norm { size::moments(self.num_features as f64) } else { 0.0 };
        let step = |parity| {
            let (mask, features) = (self.mask(parity), self.num_features);
            let (seen, changed) = (mask.num_identity(features), mask.num_transformed(features));
            let gain = if self.scale_map == ScaleMap::Tanh { changed as f64 } else { 0.0 };
            size::mlp(seen, &self.hidden, 2.0 * changed as f64) + gain + norm
        };
        let odd = (self.num_couplings / 2) as f64;
        let even = odd + (self.num_couplings % 2) as f64;
        even * step(Parity::Even) + odd * step(Parity::Odd)
    }
}

loads!(RealNvpVector, RealNvpVectorConfig);

/// RealNVP for vectors: affine couplings with multilayer perceptrons, standard normal prior.
///
/// Source: Dinh et al., *Density estimation using Real NVP*,
/// [arXiv:1605.08803](https://arxiv.org/abs/1605.08803), section 3.
pub type RealNvpVector = FlowStack<2, Vec<RealNvpVectorStep>>;

/// A coupling and, if wanted, the batch normalization of its output.
pub type RealNvpVectorStep = (AffineCoupling<Mlp>, Option<BatchNorm>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_configurations_are_refused() {
        let error = |config: RealNvpVectorConfig| {
            config.init(&crate::backend::device()).unwrap_err().to_string()
        };
        let config = |features, couplings, hidden| {
            RealNvpVectorConfig::new(features, couplings, vec![hidden])
        };
        assert!(error(config(1, 8, 4)).starts_with("RealNvpVector: num_features is 1"));
        assert!(error(config(2, 1, 4)).starts_with("RealNvpVector: num_couplings is 1"));
        assert!(error(config(2, 8, 0)).starts_with("RealNvpVector: hidden is [0]"));
        let map = ScaleMap::BoundedExp { bound: 0.0 };
        assert_eq!(
            error(config(2, 8, 4).with_scale_map(map)),
            "AffineCoupling: bound is 0, but must be positive and finite; 2.0 is the usual choice"
        );
    }
}
