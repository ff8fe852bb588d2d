//! A prior on an interval or a circle.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use rand::{Rng, RngExt};

use super::Prior;
use crate::chain::zero_log_det;
use crate::coupling::sum_per_sample;
use crate::error::{FlowError, Result};
use crate::host;
use crate::record::Setting;
use crate::support;

/// Every value uniform on `[lower, upper]`: `ln p(z) = -values ln(upper - lower)`, and `-inf` for a sample
/// with a value outside; NaN for one with a NaN.
///
/// The prior of splines with [circular tails](crate::coupling::SplineTails::Circular), for angles and other
/// positions on a circle, and of flows on a box. The temperature shrinks the draws towards the middle.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::prior::{Prior, Uniform};
///
/// let device = burn_flows::backend::device();
/// let log_prob = Uniform::new(0.0, 4.0)?.log_prob(Tensor::<2>::from_data([[1.0], [5.0]], &device));
/// let values = log_prob.try_into_vec_as::<f32>().unwrap();
/// assert!((values[0] + 4f32.ln()).abs() < 1e-6 && values[1] == f32::NEG_INFINITY);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Uniform {
    lower: Setting<f64>,
    upper: Setting<f64>,
}

impl Uniform {
    /// Uniform between the two ends.
    ///
    /// # Errors
    /// If the interval is empty or not finite.
    pub fn new(lower: f64, upper: f64) -> Result<Self> {
        if !(lower < upper && (upper - lower).is_finite()) {
            return Err(FlowError::config(
                "Uniform",
                "interval",
                format!("[{lower}, {upper}]"),
                "finite, the first end below the second",
                "give -pi and pi for angles",
            ));
        }
        Ok(Self { lower: lower.into(), upper: upper.into() })
    }

    /// The two ends.
    pub fn interval(&self) -> [f64; 2] {
        [*self.lower, *self.upper]
    }

    /// Uniform on the circle, in radians from `-pi` to `pi`.
    pub fn circle() -> Self {
        Self { lower: (-std::f64::consts::PI).into(), upper: std::f64::consts::PI.into() }
    }
}

impl<const D: usize> Prior<D> for Uniform {
    fn log_prob(&self, z: Tensor<D>) -> Tensor<1> {
        if host::has_no_samples(&z) {
            return zero_log_det(&z);
        }
        let values: usize = z.dims()[1..].iter().product();
        let log_density = -(*self.upper - *self.lower).ln() * values as f64;
        // A value that is no number is on neither side of an end, and has no density either: NaN.
        let inside = sum_per_sample(z.clone() * 0.0) + log_density;
        let outside =
            z.clone().lower_elem(*self.lower).bool_or(z.clone().greater_elem(*self.upper));
        let outside = sum_per_sample(outside.float()).greater_elem(0.0);
        let support = || format!("{} to {}", *self.lower, *self.upper);
        let advice = "bring the data there, or take a prior that reaches everywhere";
        support::report_outside("Uniform", &z, &outside, support, advice);
        inside.mask_fill(outside, f64::NEG_INFINITY)
    }

    fn sample(
        &self,
        shape: [usize; D],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<D> {
        let (middle, half) = ((*self.lower + *self.upper) / 2.0, (*self.upper - *self.lower) / 2.0);
        let draw = |_| middle + half * temperature * (2.0 * rng.random::<f64>() - 1.0);
        let values = (0..shape.iter().product::<usize>()).map(draw).collect();
        let draws = host::from_f64(values, shape, device, dtype);
        // The ends of f32 may lie beyond those of the interval.
        if host::has_no_samples(&draws) { draws } else { draws.clamp(*self.lower, *self.upper) }
    }
}
