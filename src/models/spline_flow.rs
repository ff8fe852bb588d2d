//! Neural spline flows.

use burn::module::Module;
use burn::tensor::Device;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::Flow;
use crate::autoregressive::{Autoregressive, MadeConfig};
use crate::conditioner::{Mlp, MlpConfig};
use crate::context::WithContext;
use crate::coupling::{
    Coupling, Mask, Parity, RationalQuadratic, RationalQuadraticConfig, Transform,
};
use crate::error::{FlowError, Result};
use crate::linear::InvertibleConv1x1;
use crate::models::{in_turn, loads, size, validate_steps};
use crate::norm::ActNorm;
use crate::prior::StandardNormal;
use crate::record::{self, Configuration};
use crate::stack::FlowStack;

/// The layers that compute the parameters of a [`SplineFlow`]'s splines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SplineFlowKind {
    /// Couplings with a learned LU matrix before each, RQ-NSF (C) of the paper: densities and draws in one
    /// pass.
    Coupling,
    /// Autoregressive layers whose orders are reversed from one to the next, RQ-NSF (AR): densities in
    /// one pass, draws in a step a feature. Works for a single feature as well.
    Autoregressive,
}

/// Configuration of [`SplineFlow`].
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::context::Given;
/// use burn_flows::models::SplineFlowConfig;
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let (device, mut rng) = (burn_flows::backend::device(), StdRng::seed_from_u64(0));
/// let model = SplineFlowConfig::new(3, 4, vec![32, 32]).with_context(2).init(&mut rng, &device)?;
/// let posterior = model.given(&Tensor::<2>::from_data([[0.5, -1.0]], &device))?;
/// assert_eq!(posterior.sample(100, 1.0).dims(), [100, 3]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplineFlowConfig {
    /// Values of a sample.
    pub num_features: usize,
    /// Layers of splines.
    pub num_steps: usize,
    /// Widths of the hidden layers of every net.
    pub hidden: Vec<usize>,
    /// Features of the [context](crate::context); default: 0, none.
    pub context_width: usize,
    /// Couplings or autoregressive layers; default: couplings.
    pub kind: SplineFlowKind,
    /// Pieces of a spline; default: 8.
    pub num_bins: usize,
    /// The splines reach from minus this to this, beyond it they are the identity; default: 3.
    pub tail_bound: f64,
}

impl SplineFlowConfig {
    /// Couplings of 8 bins from -3 to 3, without context.
    pub fn new(num_features: usize, num_steps: usize, hidden: Vec<usize>) -> Self {
        Self {
            num_features,
            num_steps,
            hidden,
            context_width: 0,
            kind: SplineFlowKind::Coupling,
            num_bins: 8,
            tail_bound: 3.0,
        }
    }

    /// With the numbers of steps, bins and hidden units of sbi's posterior estimator `nsf`, 5, 10 and 50;
    /// the nets are plain perceptrons here. Couplings, or autoregressive layers for a single feature.
    ///
    /// Source: sbi, `neural_nets/net_builders/flow.py`, `build_nsf`.
    pub fn sbi(num_features: usize, context_width: usize) -> Self {
        let kind = match num_features {
            1 => SplineFlowKind::Autoregressive,
            _ => SplineFlowKind::Coupling,
        };
        let config = Self::new(num_features, 5, vec![50, 50]).with_context(context_width);
        config.with_kind(kind).with_bins(10, 3.0)
    }

    /// A density that is conditional on so many features of a context.
    pub fn with_context(mut self, width: usize) -> Self {
        self.context_width = width;
        self
    }

    /// Couplings or autoregressive layers.
    pub fn with_kind(mut self, kind: SplineFlowKind) -> Self {
        self.kind = kind;
        self
    }

    /// Pieces of a spline, and how far it reaches from 0.
    pub fn with_bins(mut self, num_bins: usize, tail_bound: f64) -> Self {
        (self.num_bins, self.tail_bound) = (num_bins, tail_bound);
        self
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// Names the first field that cannot be built.
    pub fn validate(&self) -> Result<()> {
        let steps = ("num_steps", self.num_steps);
        validate_steps(Self::NAME, self.num_features, steps, &self.hidden)?;
        if self.kind == SplineFlowKind::Coupling && self.num_features < 2 {
            return Err(FlowError::config(
                Self::NAME,
                "num_features",
                self.num_features,
                "at least 2 for couplings",
                "take SplineFlowKind::Autoregressive for a single feature",
            ));
        }
        self.spline()?;
        record::check_buildable(self)
    }

    /// Builds the model; `rng` draws the matrices between couplings, the nets' weights come from the
    /// device's own generator (`Device::seed`).
    ///
    /// # Errors
    /// As [`validate`](SplineFlowConfig::validate).
    pub fn init(&self, rng: &mut impl Rng, device: &Device) -> Result<SplineFlow> {
        self.validate()?;
        let flow = (ActNorm::new(self.num_features, device)?, self.steps(rng, device)?);
        let stack = FlowStack::single(flow, StandardNormal::new(), &[self.num_features])?;
        Ok(stack.with_configuration(self))
    }

    fn spline(&self) -> Result<RationalQuadratic> {
        RationalQuadraticConfig::new(self.num_bins, self.tail_bound).init()
    }

    /// The layers behind the ActNorm.
    pub(super) fn steps(&self, rng: &mut impl Rng, device: &Device) -> Result<Vec<SplineStep>> {
        (0..self.num_steps).map(|index| self.step(index, rng, device)).collect()
    }

    fn step(&self, index: usize, rng: &mut impl Rng, device: &Device) -> Result<SplineStep> {
        let (features, spline) = (self.num_features, self.spline()?);
        let params = spline.params_per_channel();
        Ok(match self.kind {
            SplineFlowKind::Coupling => {
                let mask = Mask::Alternating(Parity::of(index));
                let (seen, changed) = (mask.num_identity(features), mask.num_transformed(features));
                let inputs = seen + self.context_width;
                let net = MlpConfig::new(inputs, self.hidden.clone(), changed * params);
                let net = net.with_zero_init(true).init(device)?;
                let net = WithContext::new(net, self.context_width, device);
                let coupling = Coupling::from_transform(net, spline, mask);
                let mixing = InvertibleConv1x1::plu(features, rng, device)?;
                SplineStep { mixing: Some(mixing), layer: SplineLayer::Coupling(coupling) }
            }
            SplineFlowKind::Autoregressive => {
                let made = MadeConfig::new(features, self.hidden.clone(), params)
                    .with_order(in_turn(features, index))
                    .with_context(self.context_width)
                    .with_zero_init(true)
                    .init(device)?;
                let layer = SplineLayer::Autoregressive(Autoregressive::new(made, spline)?);
                SplineStep { mixing: None, layer }
            }
        })
    }
}

impl Configuration for SplineFlowConfig {
    type Model = SplineFlow;
    const NAME: &'static str = "SplineFlow";

    fn build(&self, device: &Device) -> Result<SplineFlow> {
        // What is drawn is replaced by the record.
        self.init(&mut StdRng::seed_from_u64(0), device)
    }

    fn num_values(&self) -> f64 {
        // Widths and heights of the bins, slopes of the knots between them.
        let (features, params) = (self.num_features, 3.0 * self.num_bins as f64 - 1.0);
        let steps = match self.kind {
            SplineFlowKind::Coupling => {
                let step = |parity| {
                    let mask = Mask::Alternating(parity);
                    let changed = mask.num_transformed(features) as f64;
                    let seen = mask.num_identity(features).saturating_add(self.context_width);
                    size::mlp(seen, &self.hidden, changed * params) + size::plu(features as f64)
                };
                let odd = (self.num_steps / 2) as f64;
                let even = odd + (self.num_steps % 2) as f64;
                even * step(Parity::Even) + odd * step(Parity::Odd)
            }
            SplineFlowKind::Autoregressive => {
                self.num_steps as f64
                    * size::made(features, &self.hidden, params, self.context_width)
            }
        };
        size::act_norm(features as f64) + steps
    }
}

loads!(SplineFlow, SplineFlowConfig);

/// A neural spline flow: rational-quadratic splines behind an ActNorm, standard normal prior; with a
/// [context](crate::context), `p(x | context)`.
///
/// Source: Durkan et al., *Neural Spline Flows*, [arXiv:1906.04032](https://arxiv.org/abs/1906.04032),
/// sections 3 and 4; the matrices between couplings as in its appendix A.
pub type SplineFlow = FlowStack<2, (ActNorm, Vec<SplineStep>)>;

/// A layer of splines, with a matrix before it where it is a coupling.
#[derive(Module, Debug, Flow)]
pub struct SplineStep {
    /// The learned matrix.
    pub mixing: Option<InvertibleConv1x1>,
    /// The splines.
    pub layer: SplineLayer,
}

/// Splines and the layer that computes their parameters.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // a model has few of them
pub enum SplineLayer {
    /// A coupling; the net sees the context as well.
    Coupling(Coupling<WithContext<Mlp>, RationalQuadratic>),
    /// An autoregressive layer.
    Autoregressive(Autoregressive<RationalQuadratic>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_configurations_are_refused() {
        let error = |config: SplineFlowConfig| {
            let mut rng = StdRng::seed_from_u64(0);
            config.init(&mut rng, &crate::backend::device()).unwrap_err().to_string()
        };
        assert_eq!(
            error(SplineFlowConfig::new(1, 2, vec![8])),
            "SplineFlow: num_features is 1, but must be at least 2 for couplings; take \
             SplineFlowKind::Autoregressive for a single feature"
        );
        assert!(error(SplineFlowConfig::new(2, 0, vec![8])).contains("num_steps is 0"));
        assert!(error(SplineFlowConfig::new(2, 2, vec![0])).contains("hidden is [0]"));
        let bins =
            |num_bins, bound| SplineFlowConfig::new(2, 2, vec![8]).with_bins(num_bins, bound);
        assert!(error(bins(0, 3.0)).contains("num_bins"));
        assert!(error(bins(8, -1.0)).contains("RationalQuadratic"));
        let endless = error(SplineFlowConfig::new(2, 2, vec![100_000_000, 100_000_000]));
        assert!(endless.contains("use smaller sizes"), "{endless}");
    }
}
