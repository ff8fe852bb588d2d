//! Neural spline flows of a density given a context, both standardized.

use burn::tensor::{Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::context::Embedded;
use crate::error::{FlowError, Result};
use crate::models::{SplineFlowConfig, SplineStep, loads};
use crate::norm::ActNorm;
use crate::preprocess::Standardize;
use crate::prior::StandardNormal;
use crate::record::{self, Configuration};
use crate::stack::FlowStack;

/// Configuration of [`ConditionalSplineFlow`].
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use burn_flows::models::ConditionalSplineFlowConfig;
/// use burn_flows::training::{Schedule, Trainer};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let (device, mut rng) = (burn_flows::backend::device(), StdRng::seed_from_u64(0));
/// // A simulator: 200 pairs of parameters from the prior and data of them.
/// let theta = Tensor::<2>::random([200, 2], Distribution::Uniform(-10.0, 10.0), &device);
/// let data = theta.clone() + Tensor::random([200, 2], Distribution::Normal(0.0, 1.0), &device);
///
/// let config = ConditionalSplineFlowConfig::sbi(2, 2);
/// let model = config.fit(theta.clone(), data.clone(), &mut rng)?;
/// let mut trainer = Trainer::new(model, Schedule::constant(5e-4));
/// trainer.step((theta, data))?;
///
/// // One density for everything that may be observed.
/// let observed = Tensor::<2>::from_data([[3.0, -4.0]], &device);
/// let posterior = trainer.model().given(&observed)?;
/// assert_eq!(posterior.sample(100, 1.0).dims(), [100, 2]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConditionalSplineFlowConfig {
    /// The flow between the standardizations, with a context of at least one feature.
    pub flow: SplineFlowConfig,
}

impl ConditionalSplineFlowConfig {
    /// A flow of any size.
    pub fn new(flow: SplineFlowConfig) -> Self {
        Self { flow }
    }

    /// The size of sbi's posterior estimator: [`SplineFlowConfig::sbi`].
    pub fn sbi(num_features: usize, context_width: usize) -> Self {
        Self::new(SplineFlowConfig::sbi(num_features, context_width))
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// Names the first field that cannot be built.
    pub fn validate(&self) -> Result<()> {
        self.flow.validate()?;
        if self.flow.context_width == 0 {
            let advice =
                "set SplineFlowConfig::with_context, or take a SplineFlow, which needs none";
            return Err(FlowError::config(Self::NAME, "context_width", 0, "at least 1", advice));
        }
        record::check_buildable(self)
    }

    /// Builds the model with the moments of samples and their contexts, all of the data if they fit; on
    /// the device of `x`. `rng` draws the matrices between couplings, the nets' weights come from the
    /// device's own generator (`Device::seed`).
    ///
    /// # Errors
    /// As [`validate`](Self::validate) and [`Standardize::fit`]; if samples or contexts do not have the
    /// configuration's width.
    pub fn fit(
        &self,
        x: Tensor<2>,
        context: Tensor<2>,
        rng: &mut impl Rng,
    ) -> Result<ConditionalSplineFlow> {
        self.validate()?;
        let widths = [x.dims()[1], context.dims()[1]];
        let needed = [self.flow.num_features, self.flow.context_width];
        for (what, (got, needed)) in
            ["samples", "contexts"].iter().zip(widths.into_iter().zip(needed))
        {
            if got != needed {
                return Err(FlowError::invalid(
                    format!("{}: the width of the {what}", Self::NAME),
                    got,
                    needed,
                    "build the configuration for the data at hand",
                ));
            }
        }
        let device = x.device();
        self.with([Standardize::fit(x)?, Standardize::fit(context)?], rng, &device)
    }

    /// Builds the model for samples and contexts that have mean 0 and deviation 1 already.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn init(&self, rng: &mut impl Rng, device: &Device) -> Result<ConditionalSplineFlow> {
        self.validate()?;
        let features = Standardize::identity(self.flow.num_features, device)?;
        let context = Standardize::identity(self.flow.context_width, device)?;
        self.with([features, context], rng, device)
    }

    fn with(
        &self,
        [features, context]: [Standardize; 2],
        rng: &mut impl Rng,
        device: &Device,
    ) -> Result<ConditionalSplineFlow> {
        let count = self.flow.num_features;
        let flow = (features, ActNorm::new(count, device)?, self.flow.steps(rng, device)?);
        let stack = FlowStack::single(flow, StandardNormal::new(), &[count])?;
        Ok(Embedded::new(context, stack).with_configuration(self))
    }
}

impl Configuration for ConditionalSplineFlowConfig {
    type Model = ConditionalSplineFlow;
    const NAME: &'static str = "ConditionalSplineFlow";

    fn build(&self, device: &Device) -> Result<ConditionalSplineFlow> {
        // What is drawn is replaced by the record.
        self.init(&mut StdRng::seed_from_u64(0), device)
    }

    fn num_values(&self) -> f64 {
        let standardized = self.flow.num_features as f64 + self.flow.context_width as f64;
        2.0 * standardized + self.flow.num_values()
    }
}

loads!(ConditionalSplineFlow, ConditionalSplineFlowConfig);

/// `p(x | context)` by a neural spline flow, samples and contexts standardized inside, so that densities
/// and draws are those of the data as they came: neural posterior estimation, with `x` the parameters of a
/// simulator and the context its data.
///
/// A [`Trainer`](crate::training::Trainer) takes `(x, context)`;
/// [`given`](Embedded::given) with what was observed is the posterior.
///
/// Source: Greenberg et al., *Automatic Posterior Transformation for Likelihood-Free Inference*,
/// [arXiv:1905.07488](https://arxiv.org/abs/1905.07488), whose first round it is; the flow as
/// [`SplineFlow`](super::SplineFlow)'s.
pub type ConditionalSplineFlow =
    Embedded<Standardize, FlowStack<2, (Standardize, ActNorm, Vec<SplineStep>)>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_enough_to_load_it() {
        let (device, mut rng) = (crate::backend::device(), StdRng::seed_from_u64(0));
        let data = |seed| crate::testing::inputs([20, 2], seed, &device, burn::tensor::DType::F32);
        let (x, context) = (data(1) * 3.0 + 1.0, data(2) * 0.1 - 5.0);
        let flow = SplineFlowConfig::new(2, 2, vec![8]).with_context(2);
        let config = ConditionalSplineFlowConfig::new(flow);
        let model = config.fit(x.clone(), context.clone(), &mut rng).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        model.save(&path).unwrap();
        let loaded = ConditionalSplineFlow::load(&path, &device).unwrap();
        assert_eq!(loaded.configuration(), Some(config));
        let log_prob = |model: ConditionalSplineFlow| {
            model.given(&context).unwrap().log_prob(x.clone()).into_data()
        };
        assert_eq!(log_prob(loaded), log_prob(model));
    }

    #[test]
    fn wrong_configurations_and_data_are_refused() {
        let (device, mut rng) = (crate::backend::device(), StdRng::seed_from_u64(0));
        let without = ConditionalSplineFlowConfig::new(SplineFlowConfig::new(2, 2, vec![8]));
        let error = without.init(&mut rng, &device).unwrap_err().to_string();
        assert_eq!(
            error,
            "ConditionalSplineFlow: context_width is 0, but must be at least 1; set \
             SplineFlowConfig::with_context, or take a SplineFlow, which needs none"
        );
        let config = ConditionalSplineFlowConfig::sbi(2, 3);
        let of =
            |width| Tensor::<2>::random([4, width], burn::tensor::Distribution::Default, &device);
        let error = config.fit(of(2), of(2), &mut rng).unwrap_err().to_string();
        assert!(error.contains("the width of the contexts: got 2, needs 3"), "{error}");
        let error = config.fit(of(3), of(3), &mut rng).unwrap_err().to_string();
        assert!(error.contains("the width of the samples: got 3, needs 2"), "{error}");
        let error = config.fit(of(2).narrow(0, 0, 1), of(3), &mut rng).unwrap_err().to_string();
        assert!(error.contains("Standardize"), "{error}");
    }
}
