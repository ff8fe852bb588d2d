//! From bounded, half-bounded and periodic variables to real numbers.

use burn::module::Module;
use burn::tensor::{Bool, Tensor};
use serde::{Deserialize, Serialize};

use crate::chain::{assert_size, zero_log_det};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::record::Setting;
use crate::support;

/// The values that a variable can have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Domain {
    /// Every real number: it stays as it is.
    Real,
    /// Above the bound: `z = ln(x - bound)`.
    Above(f64),
    /// Below the bound: `z = -ln(bound - x)`.
    Below(f64),
    /// Between two bounds: `z = ln(x - lower) - ln(upper - x)`.
    Between(f64, f64),
    /// A position on a circle, its first value and the length of a turn: `z` is the angle from `-pi` to
    /// `pi`. For splines with [circular tails](crate::coupling::SplineTails::Circular).
    Circle(f64, f64),
}

/// Takes each feature of a vector from its [`Domain`] to the real numbers.
///
/// - forward: by the formulas of [`Domain`]; `log_det = sum ln|dz/dx|`
/// - inverse: `bound + e^z`, `bound - e^-z`, `lower + (upper - lower) sigmoid(z)`; what rounding would take to
///   a bound is the next number inside of it, so that every draw has a density
///
/// A sample with a value outside of its domain has the log-determinant `-inf`: no density there.
///
/// Source: Stan Reference Manual, chapter on constraint transforms.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::Flow;
/// use burn_flows::preprocess::{Domain, Unconstrain};
///
/// let device = burn_flows::backend::device();
/// let flow = Unconstrain::new(vec![Domain::Above(1.0), Domain::Between(0.0, 10.0)])?;
/// let x = Tensor::<2>::from_data([[2.0, 5.0]], &device);
/// let (z, log_det) = flow.forward(x);
/// assert!(z.abs().max().into_scalar::<f32>() < 1e-6);
/// // dz/dx is 1 / (2 - 1) and 10 / (5 * 5).
/// assert!((log_det.into_scalar::<f32>() - 0.4f32.ln()).abs() < 1e-5);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Unconstrain {
    domains: Setting<Vec<Domain>>,
}

const LAYER: &str = "Unconstrain";

impl Unconstrain {
    /// One domain for each feature.
    ///
    /// # Errors
    /// If there is none, or one is empty or has a bound that is not finite.
    pub fn new(domains: Vec<Domain>) -> Result<Self> {
        let refuse = |got: String, needed: &str| {
            let advice = "give Domain::Real for a variable without bounds";
            Err(FlowError::config(LAYER, "domains", got, needed, advice))
        };
        if domains.is_empty() {
            return refuse("empty".into(), "one for each feature");
        }
        for domain in &domains {
            let is_right = match *domain {
                Domain::Real => true,
                Domain::Above(bound) | Domain::Below(bound) => bound.is_finite(),
                Domain::Between(lower, upper) => lower < upper && (upper - lower).is_finite(),
                Domain::Circle(first, turn) => first.is_finite() && turn > 0.0 && turn.is_finite(),
            };
            if !is_right {
                return refuse(format!("{domain:?}"), "finite and not empty");
            }
        }
        Ok(Self { domains: domains.into() })
    }

    /// The domain of each feature.
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn assert_features(&self, x: &Tensor<2>) {
        assert_size(LAYER, x, self.domains.len(), "features");
    }

    fn columns<'a>(&'a self, x: &'a Tensor<2>) -> impl Iterator<Item = (Domain, Tensor<2>)> {
        let column = |(index, &domain)| (domain, x.clone().narrow(1, index, 1));
        self.domains.iter().enumerate().map(column)
    }
}

impl Domain {
    fn support(self) -> String {
        match self {
            Self::Real | Self::Circle(..) => "every number".into(),
            Self::Above(bound) => format!("above {bound}"),
            Self::Below(bound) => format!("below {bound}"),
            Self::Between(lower, upper) => format!("between {lower} and {upper}"),
        }
    }

    /// `(z, ln|dz/dx|, whether x is outside)` of a column.
    fn forward(self, x: Tensor<2>) -> (Tensor<2>, Tensor<2>, Tensor<2, Bool>) {
        // What is logarithmized is held off 0, so that no gradient of what is outside is infinite.
        let least = host::least(x.dtype());
        match self {
            Self::Real => {
                let none = x.zeros_like();
                let inside = none.clone().greater_elem(0.0);
                (x, none, inside)
            }
            Self::Above(bound) => {
                let distance = x - bound;
                let outside = distance.clone().lower_equal_elem(0.0);
                let z = distance.clamp_min(least).log();
                (z.clone(), z.neg(), outside)
            }
            Self::Below(bound) => {
                let distance = x.neg() + bound;
                let outside = distance.clone().lower_equal_elem(0.0);
                let z = distance.clamp_min(least).log().neg();
                (z.clone(), z, outside)
            }
            Self::Between(lower, upper) => {
                let (below, above) = (x.clone() - lower, x.neg() + upper);
                let outside = below
                    .clone()
                    .lower_equal_elem(0.0)
                    .bool_or(above.clone().lower_equal_elem(0.0));
                let (below, above) = (below.clamp_min(least).log(), above.clamp_min(least).log());
                let log_slope = (below.clone() + above.clone()).neg() + (upper - lower).ln();
                (below - above, log_slope, outside)
            }
            Self::Circle(first, turn) => {
                let turns = (x.clone() - first) * turn.recip();
                let part = turns.clone() - turns.floor();
                let inside = x.zeros_like().greater_elem(0.0);
                let log_slope = x.zeros_like() + (std::f64::consts::TAU / turn).ln();
                (part * std::f64::consts::TAU - std::f64::consts::PI, log_slope, inside)
            }
        }
    }

    fn inverse(self, z: Tensor<2>) -> Tensor<2> {
        // NaN is on neither side, and stays.
        let dtype = z.dtype();
        let held_above = |x: Tensor<2>, bound: f64| {
            let least = host::next_above(bound, dtype);
            x.clone().mask_fill(x.lower_elem(least), least)
        };
        let held_below = |x: Tensor<2>, bound: f64| {
            let most = host::next_below(bound, dtype);
            x.clone().mask_fill(x.greater_elem(most), most)
        };
        match self {
            Self::Real => z,
            Self::Above(bound) => held_above(z.exp() + bound, bound),
            Self::Below(bound) => held_below(z.neg().exp().neg() + bound, bound),
            Self::Between(lower, upper) => {
                // From the nearer end, which loses no digits.
                let tail = z.clone().abs().neg().exp();
                let part = tail.clone() / (tail + 1.0) * (upper - lower);
                let from_below = part.clone() + lower;
                let from_above = part.neg() + upper;
                let x = from_below.mask_where(z.greater_elem(0.0), from_above);
                held_below(held_above(x, lower), upper)
            }
            Self::Circle(first, turn) => {
                (z + std::f64::consts::PI) * (turn / std::f64::consts::TAU) + first
            }
        }
    }
}

impl Flow<2> for Unconstrain {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        self.assert_features(&x);
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        let batch = x.dims()[0];
        let mut log_det = zero_log_det(&x);
        let columns = self.columns(&x).enumerate().map(|(index, (domain, column))| {
            let (z, log_slope, outside) = domain.forward(column.clone());
            let support = || format!("{} for feature {index}", domain.support());
            let advice = "look at the data, or give the feature another Domain";
            support::report_outside(LAYER, &column, &outside, support, advice);
            let log_slope = log_slope.mask_fill(outside, f64::NEG_INFINITY);
            log_det = log_det.clone() + log_slope.reshape([batch]);
            z
        });
        let z = Tensor::cat(columns.collect(), 1);
        (z, log_det)
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.assert_features(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        let columns = self.columns(&z).map(|(domain, column)| domain.inverse(column));
        Tensor::cat(columns.collect(), 1)
    }
}
