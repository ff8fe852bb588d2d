//! A fixed density of its own for each feature.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::{HALF_LN_TAU, Prior, standard_normal_values};
use crate::chain::{assert_size, zero_log_det};
use crate::coupling::sum_per_sample;
use crate::error::{FlowError, Result};
use crate::record::Setting;
use crate::{host, support};

/// The density of one feature of a [`PerFeature`] prior.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum FeatureDensity {
    /// A normal around 0 with this standard deviation.
    Normal(f64),
    /// Uniform between two ends.
    Uniform(f64, f64),
}

/// Independent features, each normal or uniform: the prior of flows of which some variables are on a circle
/// or an interval and some are not.
///
/// `ln p(z) = sum_i ln p_i(z_i)`, and `-inf` for a sample with a value outside of a uniform feature's
/// interval. A temperature multiplies the deviations, and shrinks uniform draws towards the middle.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::prior::{FeatureDensity, PerFeature, Prior};
///
/// let device = burn_flows::backend::device();
/// let prior = PerFeature::new(vec![FeatureDensity::Uniform(0.0, 4.0), FeatureDensity::Normal(1.0)])?;
/// let log_prob = prior.log_prob(Tensor::<2>::from_data([[1.0, 0.0]], &device));
/// let expected = -(4f32.ln() + (2.0 * std::f32::consts::PI).ln() / 2.0);
/// assert!((log_prob.into_scalar::<f32>() - expected).abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct PerFeature {
    densities: Setting<Vec<FeatureDensity>>,
}

const LAYER: &str = "PerFeature";

impl PerFeature {
    /// One density for each feature.
    ///
    /// # Errors
    /// If there is none, a deviation is not positive and finite, or an interval is empty or not finite.
    pub fn new(densities: Vec<FeatureDensity>) -> Result<Self> {
        let is_wrong = |density: &&FeatureDensity| match **density {
            FeatureDensity::Normal(deviation) => !(deviation > 0.0 && deviation.is_finite()),
            FeatureDensity::Uniform(lower, upper) => {
                !(lower < upper && (upper - lower).is_finite())
            }
        };
        let wrong = densities.iter().find(is_wrong).map(|density| format!("{density:?}"));
        let wrong = wrong.or_else(|| densities.is_empty().then(|| "empty".into()));
        if let Some(got) = wrong {
            let needed = "one for each feature, with a positive deviation or an interval";
            let advice = "give Uniform(-pi, pi) for angles and Normal(1.0) for the others";
            return Err(FlowError::config(LAYER, "densities", got, needed, advice));
        }
        Ok(Self { densities: densities.into() })
    }
}

impl Prior<2> for PerFeature {
    fn log_prob(&self, z: Tensor<2>) -> Tensor<1> {
        assert_size(LAYER, &z, self.densities.len(), "features");
        if host::has_no_samples(&z) {
            return zero_log_det(&z);
        }
        let mut log_prob = zero_log_det(&z);
        for (index, density) in self.densities.iter().enumerate() {
            let value = z.clone().narrow(1, index, 1);
            log_prob = log_prob
                + match *density {
                    FeatureDensity::Normal(deviation) => {
                        let standardized = value * deviation.recip();
                        sum_per_sample(standardized.square() * -0.5)
                            - (HALF_LN_TAU + deviation.ln())
                    }
                    FeatureDensity::Uniform(lower, upper) => {
                        let outside = value
                            .clone()
                            .lower_elem(lower)
                            .bool_or(value.clone().greater_elem(upper));
                        let support = || format!("{lower} to {upper} for feature {index}");
                        let advice = "bring the data there, or give the feature a normal";
                        support::report_outside(LAYER, &value, &outside, support, advice);
                        // A value that is no number is on neither side of an end: NaN stays NaN.
                        let constant = value * 0.0 - (upper - lower).ln();
                        sum_per_sample(constant.mask_fill(outside, f64::NEG_INFINITY))
                    }
                };
        }
        log_prob
    }

    fn sample(
        &self,
        shape: [usize; 2],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<2> {
        let needed = self.densities.len();
        assert!(
            shape[1] == needed,
            "{LAYER}: draws of shape {shape:?} were asked for, but there are densities of {needed} features"
        );
        let mut values = standard_normal_values(shape[0] * shape[1], rng);
        for row in values.chunks_mut(needed) {
            for (value, density) in row.iter_mut().zip(self.densities.iter()) {
                *value = match *density {
                    FeatureDensity::Normal(deviation) => *value * deviation * temperature,
                    FeatureDensity::Uniform(lower, upper) => {
                        let (middle, half) = ((lower + upper) / 2.0, (upper - lower) / 2.0);
                        let draw = middle + half * temperature * (2.0 * rng.random::<f64>() - 1.0);
                        // The ends of f32 may lie beyond those of the interval.
                        draw.clamp(lower, upper)
                    }
                };
            }
        }
        host::from_f64(values, shape, device, dtype)
    }
}
