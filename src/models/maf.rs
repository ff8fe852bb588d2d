//! MAF, the masked autoregressive flow.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::autoregressive::{Autoregressive, MadeConfig};
use crate::coupling::{Affine, AffineOrder, ScaleMap};
use crate::error::Result;
use crate::models::{in_turn, loads, size, validate_steps};
use crate::norm::{ActNorm, BatchNorm};
use crate::prior::StandardNormal;
use crate::record::{self, Configuration};
use crate::stack::FlowStack;

/// Configuration of [`Maf`].
///
/// ```
/// use burn_flows::models::MafConfig;
///
/// let device = burn_flows::backend::device();
/// let model = MafConfig::new(6, 5, vec![64, 64]).init(&device)?;
/// assert_eq!(model.sample(3, 1.0).dims(), [3, 6]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MafConfig {
    /// Values of a sample.
    pub num_features: usize,
    /// Autoregressive layers; the paper has 5 and 10.
    pub num_layers: usize,
    /// Widths of the hidden layers of every net; the paper has one or two of 100 to 1024.
    pub hidden: Vec<usize>,
    /// Features of the [context](crate::context); default: 0, none.
    pub context_width: usize,
    /// Scale map of the layers; default: bounded.
    pub scale_map: ScaleMap,
    /// Whether the layers' outputs are batch normalized, as in the paper; default: no.
    pub batch_norm: bool,
}

impl MafConfig {
    /// Layers whose orders are reversed from one to the next, without context.
    pub fn new(num_features: usize, num_layers: usize, hidden: Vec<usize>) -> Self {
        Self {
            num_features,
            num_layers,
            hidden,
            context_width: 0,
            scale_map: ScaleMap::default(),
            batch_norm: false,
        }
    }

    /// A density that is conditional on so many features of a context.
    pub fn with_context(mut self, width: usize) -> Self {
        self.context_width = width;
        self
    }

    /// Replaces the scale map.
    pub fn with_scale_map(mut self, scale_map: ScaleMap) -> Self {
        self.scale_map = scale_map;
        self
    }

    /// Whether the layers' outputs are batch normalized.
    pub fn with_batch_norm(mut self, batch_norm: bool) -> Self {
        self.batch_norm = batch_norm;
        self
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// Names the first field that cannot be built.
    pub fn validate(&self) -> Result<()> {
        validate_steps("Maf", self.num_features, ("num_layers", self.num_layers), &self.hidden)?;
        self.scale_map.validate("Maf")?;
        record::check_buildable(self)
    }

    /// Builds the model, the identity until trained (but for constant scales of
    /// [`ScaleMap::Sigmoid`]); the nets' weights come from the device's own generator
    /// (`Device::seed`).
    ///
    /// # Errors
    /// As [`validate`](MafConfig::validate).
    pub fn init(&self, device: &Device) -> Result<Maf> {
        self.validate()?;
        let steps = (0..self.num_layers).map(|index| self.step(index, device));
        let steps = steps.collect::<Result<Vec<_>>>()?;
        let flow = (ActNorm::new(self.num_features, device)?, steps);
        let stack = FlowStack::single(flow, StandardNormal::new(), &[self.num_features])?;
        Ok(stack.with_configuration(self))
    }

    fn step(&self, index: usize, device: &Device) -> Result<MafStep> {
        let features = self.num_features;
        let made = MadeConfig::new(features, self.hidden.clone(), 2)
            .with_order(in_turn(features, index))
            .with_context(self.context_width)
            .with_zero_init(true)
            .init(device)?;
        let affine = Affine::new(self.scale_map, AffineOrder::ScaleThenShift, features, device);
        let norm = self.batch_norm.then(|| BatchNorm::new(features, device)).transpose()?;
        Ok((Autoregressive::new(made, affine)?, norm))
    }
}

impl Configuration for MafConfig {
    type Model = Maf;
    const NAME: &'static str = "Maf";

    fn build(&self, device: &Device) -> Result<Maf> {
        self.init(device)
    }

    fn num_values(&self) -> f64 {
        let features = self.num_features as f64;
        let norm = if self.batch_norm { size::moments(features) } else { 0.0 };
        let gain = if self.scale_map == ScaleMap::Tanh { features } else { 0.0 };
        let made = size::made(self.num_features, &self.hidden, 2.0, self.context_width);
        size::act_norm(features) + self.num_layers as f64 * (made + gain + norm)
    }
}

loads!(Maf, MafConfig);

/// MAF: masked autoregressive layers with affine maps behind an ActNorm, standard normal prior. One pass
/// gives a density; a draw takes a step a feature.
///
/// Source: Papamakarios et al., *Masked Autoregressive Flow for Density Estimation*,
/// [arXiv:1705.07057](https://arxiv.org/abs/1705.07057), section 4.
pub type Maf = FlowStack<2, (ActNorm, Vec<MafStep>)>;

/// A layer and, if wanted, the batch normalization of its output.
pub type MafStep = (Autoregressive<Affine>, Option<BatchNorm>);
