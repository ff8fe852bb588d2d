//! Rational-quadratic splines: monotone, with as many bends as they have bins.

use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor, activation};
use serde::{Deserialize, Serialize};

use super::{FusedMap, Transform};
use crate::error::{FlowError, Result};
use crate::kernels::MOST_BINS;
use crate::record::Setting;

/// Configuration of a [`RationalQuadratic`] spline.
///
/// ```
/// use burn_flows::coupling::{RationalQuadraticConfig, SplineTails, Transform};
///
/// // 8 widths, 8 heights and the slopes of the 7 knots between them.
/// let config = RationalQuadraticConfig::new(8, 3.0);
/// assert_eq!(config.init()?.params_per_channel(), 23);
/// // On a circle the slopes at both ends are one, which is learned too.
/// let circle = config.with_tails(SplineTails::Circular);
/// assert_eq!(circle.init()?.params_per_channel(), 24);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RationalQuadraticConfig {
    /// Bins `K` of each spline.
    pub num_bins: usize,
    /// Where the first and the last knot are, on both axes.
    pub interval: [f64; 2],
    /// What happens beyond them.
    pub tails: SplineTails,
    /// How the conditioner's numbers become bins and slopes.
    pub form: SplineForm,
}

/// What a spline does beyond its first and its last knot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SplineTails {
    /// The identity; the slope at both ends is 1. `K - 1` slopes are learned.
    Identity,
    /// A straight line with the slope of the end. `K + 1` slopes are learned.
    Linear,
    /// The values are angles, or positions on a circle as long as the interval: one beyond it is taken
    /// back into it, and the slopes at both ends are one. `K` slopes are learned.
    Circular,
}

/// How the conditioner's numbers `w` (widths), `h` (heights) and `d` (slopes) become a spline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum SplineForm {
    /// `min + (1 - K min) softmax(w)` of the interval, heights alike;
    /// `min_slope + softplus(d + ln(e^(1 - min_slope) - 1))`, which is 1 at `d = 0`, and at most 10⁶.
    ///
    /// nflows and normflows add the constant to their end slopes alone, and divide `w` and `h` in couplings
    /// by the root of the net's width: [`Rescaled`](super::Rescaled) does so.
    Floored {
        /// Least width of a bin, as a fraction of the interval; above 0.
        min_width: f64,
        /// Least height of a bin, as a fraction of the interval; above 0.
        min_height: f64,
        /// Least slope at a knot.
        min_slope: f64,
    },
    /// `softmax(w / (1 + |2 w / c|))`, heights alike; `exp(d / (1 + |d / c|))`, with
    /// `c = ln(slope)`: widths differ by at most `1 / slope`, slopes are between `slope` and its inverse
    /// (zuko).
    Bent {
        /// The least slope, below 1.
        slope: f64,
    },
}

impl Default for SplineForm {
    fn default() -> Self {
        Self::Floored { min_width: 1e-3, min_height: 1e-3, min_slope: 1e-3 }
    }
}

impl RationalQuadraticConfig {
    /// A spline of `num_bins` bins on `[-bound, bound]`, the identity outside.
    pub fn new(num_bins: usize, bound: f64) -> Self {
        let (tails, form) = (SplineTails::Identity, SplineForm::default());
        Self { num_bins, interval: [-bound, bound], tails, form }
    }

    /// The first and the last knot, on both axes.
    pub fn with_interval(mut self, lower: f64, upper: f64) -> Self {
        self.interval = [lower, upper];
        self
    }

    /// What happens beyond the first and the last knot; default: the identity.
    pub fn with_tails(mut self, tails: SplineTails) -> Self {
        self.tails = tails;
        self
    }

    /// How numbers become bins and slopes; default: [`SplineForm::Floored`] with 0.001 for all three.
    pub fn with_form(mut self, form: SplineForm) -> Self {
        self.form = form;
        self
    }

    /// Builds the map.
    ///
    /// # Errors
    /// If there is no bin, the interval is empty or not finite, the least sizes leave no room or are 0, or
    /// the interval is so narrow beside its place that f32 does not tell the ends of a least bin apart.
    pub fn init(&self) -> Result<RationalQuadratic> {
        let config = |parameter, got: String, needed: &str, advice: &str| {
            Err(FlowError::config(LAYER, parameter, got, needed, advice))
        };
        let Self { num_bins, interval: [lower, upper], form, .. } = *self;
        if num_bins == 0 {
            return config("num_bins", "0".into(), "at least 1", "8 is the usual choice");
        }
        if !(lower < upper && (upper - lower).is_finite()) {
            let got = format!("[{lower}, {upper}]");
            return config(
                "interval",
                got,
                "finite, the first end below the second",
                "give both ends",
            );
        }
        let of_one = |value: f64| value > 0.0 && value < 1.0;
        match form {
            SplineForm::Floored { min_width, min_height, min_slope } => {
                for (parameter, value) in [("min_width", min_width), ("min_height", min_height)] {
                    if !(value > 0.0 && value * (num_bins as f64) < 1.0) {
                        let needed = format!("above 0 and below 1 / {num_bins}");
                        let advice = "all bins together have the width of the interval";
                        return config(parameter, value.to_string(), &needed, advice);
                    }
                }
                if !of_one(min_slope) {
                    let advice = "0.001 is the usual choice";
                    return config("min_slope", min_slope.to_string(), "between 0 and 1", advice);
                }
            }
            SplineForm::Bent { slope } if !of_one(slope) => {
                let advice = "0.001 is the usual choice";
                return config("slope", slope.to_string(), "between 0 and 1", advice);
            }
            SplineForm::Bent { .. } => {}
        }
        // Knots of f32 that fall together leave a bin without width, in which nothing has a place.
        let least = match form {
            SplineForm::Floored { min_width, min_height, .. } => min_width.min(min_height),
            SplineForm::Bent { slope } => slope / num_bins as f64,
        };
        let (width, farthest) = (upper - lower, lower.abs().max(upper.abs()));
        if num_bins > 1 && least * width <= f64::from(f32::EPSILON) * (farthest + width) {
            let got = format!("[{lower}, {upper}] with least bins of {least:e} of it");
            let advice = "shift and scale the values before, or raise the least sizes";
            return config("interval", got, "so wide that f32 tells all knots apart", advice);
        }
        Ok(RationalQuadratic { config: (*self).into() })
    }
}

const LAYER: &str = "RationalQuadratic";

/// Squares of steeper slopes leave f32.
pub(super) const STEEPEST: f64 = 1e6;

/// What makes the slope 1 at a number of 0.
pub(crate) fn slope_offset(min_slope: f64) -> f64 {
    (1.0 - min_slope).exp_m1().ln()
}

/// A monotone rational-quadratic spline for each value, as the elementwise map of a coupling.
///
/// `K` bins between the knots `(x_0, y_0), ..., (x_K, y_K)`, with slopes `d_k` at the knots. In the bin
/// of `x`, with `s = (y_{k+1} - y_k) / (x_{k+1} - x_k)` and `t = (x - x_k) / (x_{k+1} - x_k)`:
///
/// - forward: `z = y_k + (y_{k+1} - y_k) (s t^2 + d_k t (1 - t)) / q`,
///   `q = s + (d_k + d_{k+1} - 2 s) t (1 - t)`
/// - `dz/dx = s^2 (d_{k+1} t^2 + 2 s t (1 - t) + d_k (1 - t)^2) / q^2`
/// - inverse: `t = 2 c / (b + sqrt(b^2 + 4 a c))` with `r = (z - y_k) / (y_{k+1} - y_k)`,
///   `e = d_k + d_{k+1} - 2 s`, `a = s - d_k + e r`, `b = d_k - e r`, `c = s r`: the root in the form
///   that subtracts nothing nearly equal
///
/// The parameters are, for each channel, `K` widths, `K` heights and the slopes that the
/// [`SplineTails`] leave to learn: the conditioner gives first the widths of the first bin of all
/// channels, then those of the second, and so on. Numbers of 0 give the identity.
///
/// The gain of either direction is at most the steepest slope that the form admits: a bin of least
/// width and of all the height left rises by `(1 - (K - 1) min_height) / min_width`.
///
/// Source: Durkan et al., *Neural Spline Flows*, [arXiv:1906.04032](https://arxiv.org/abs/1906.04032),
/// section 3.1 and appendix A; the tails on a circle: Rezende et al., *Normalizing Flows on Tori and
/// Spheres*, [arXiv:2002.02428](https://arxiv.org/abs/2002.02428), section 2.1.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::coupling::{RationalQuadraticConfig, Transform};
///
/// let device = burn_flows::backend::device();
/// let spline = RationalQuadraticConfig::new(2, 1.0).init()?;
/// // One value, five numbers: two widths, two heights and the slope of the knot between, 1 at 0.
/// let params = Tensor::<2>::from_data([[0.0, 0.0, 0.0, 0.0, 0.0]], &device);
/// let (z, log_slope) = spline.forward(Tensor::from_data([[0.3]], &device), params);
/// assert!((z.into_scalar::<f32>() - 0.3).abs() < 1e-6);
/// assert!(log_slope.unwrap().into_scalar::<f32>().abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct RationalQuadratic {
    config: Setting<RationalQuadraticConfig>,
}

/// The knots of the splines of a batch, `[batch, K + 1, values of a sample]` each.
#[derive(Debug, Clone)]
pub struct Knots {
    /// Where they are in `x`, in ascending order.
    pub x: Tensor<3>,
    /// Where they are in `z`, in ascending order.
    pub y: Tensor<3>,
    /// `dz/dx` there.
    pub slope: Tensor<3>,
}

/// The bin of each value, `[batch, 1, values of a sample]` each.
struct Bin {
    x: Tensor<3>,
    width: Tensor<3>,
    y: Tensor<3>,
    height: Tensor<3>,
    /// Slopes at both ends.
    slopes: [Tensor<3>; 2],
}

impl RationalQuadratic {
    /// What the map was built from.
    pub fn config(&self) -> RationalQuadraticConfig {
        *self.config
    }

    /// Slopes that are learned for each spline.
    fn num_slopes(&self) -> usize {
        match self.config.tails {
            SplineTails::Identity => self.config.num_bins - 1,
            SplineTails::Linear => self.config.num_bins + 1,
            SplineTails::Circular => self.config.num_bins,
        }
    }

    /// The splines that follow from the conditioner's numbers,
    /// `[batch, params_per_channel, values of a sample]`.
    pub fn knots(&self, params: Tensor<3>) -> Knots {
        let RationalQuadraticConfig { num_bins: bins, form, tails, .. } = *self.config;
        let widths = params.clone().narrow(1, 0, bins);
        let heights = params.clone().narrow(1, bins, bins);
        let (min_width, min_height) = match form {
            SplineForm::Floored { min_width, min_height, .. } => (min_width, min_height),
            SplineForm::Bent { .. } => (0.0, 0.0),
        };
        let x = self.positions(widths, min_width);
        let y = self.positions(heights, min_height);
        let [batch, _, values] = x.dims();
        let ones = || Tensor::<3>::ones([batch, 1, values], (&x.device(), x.dtype()));
        let learned = (self.num_slopes() > 0)
            .then(|| self.slopes(params.narrow(1, 2 * bins, self.num_slopes())));
        let slopes = match tails {
            SplineTails::Linear => learned.into_iter().collect(),
            SplineTails::Identity => [ones()].into_iter().chain(learned).chain([ones()]).collect(),
            SplineTails::Circular => {
                let learned = learned.expect("a circular spline has a slope for each bin");
                vec![learned.clone(), learned.narrow(1, 0, 1)]
            }
        };
        Knots { x, y, slope: Tensor::cat(slopes, 1) }
    }

    /// Knots of one axis. Both ends are those of the interval, not a rounded sum.
    fn positions(&self, numbers: Tensor<3>, least: f64) -> Tensor<3> {
        let RationalQuadraticConfig { num_bins: bins, interval: [lower, upper], form, .. } =
            *self.config;
        let numbers = match form {
            SplineForm::Floored { .. } => numbers,
            SplineForm::Bent { slope } => bent(numbers, slope.ln() / 2.0),
        };
        let sizes = activation::softmax(numbers, 1) * (1.0 - bins as f64 * least) + least;
        let [batch, _, values] = sizes.dims();
        let end =
            |at: f64| Tensor::<3>::full([batch, 1, values], at, (&sizes.device(), sizes.dtype()));
        let mut knots = vec![end(lower)];
        if bins > 1 {
            knots.push(sizes.clone().narrow(1, 0, bins - 1).cumsum(1) * (upper - lower) + lower);
        }
        knots.push(end(upper));
        Tensor::cat(knots, 1)
    }

    fn slopes(&self, numbers: Tensor<3>) -> Tensor<3> {
        match self.config.form {
            SplineForm::Floored { min_slope, .. } => {
                let numbers = numbers.clamp_max(STEEPEST);
                softplus(numbers + slope_offset(min_slope)) + min_slope
            }
            SplineForm::Bent { slope } => bent(numbers, slope.ln()).exp(),
        }
    }

    fn assert_params<const D: usize>(&self, x: &Tensor<D>, params: &Tensor<D>) {
        let mut needed = x.dims();
        needed[1] *= self.params_per_channel();
        assert!(
            params.dims() == needed,
            "{LAYER}: got parameters of shape {:?} for values of shape {:?}, but needs {needed:?}, {} a \
             channel",
            params.dims(),
            x.dims(),
            self.params_per_channel()
        );
    }

    /// Values and parameters with one axis for the values of a sample.
    fn flatten<const D: usize>(&self, x: Tensor<D>, params: Tensor<D>) -> (Tensor<3>, Knots) {
        self.assert_params(&x, &params);
        let batch = x.dims()[0];
        let values = x.dims()[1..].iter().product();
        let params = params.reshape([batch, self.params_per_channel(), values]);
        (x.reshape([batch, 1, values]), self.knots(params))
    }

    /// The value within the interval that is used for `x`, and where that is not `x` itself.
    fn held_in_interval(&self, x: Tensor<3>) -> (Tensor<3>, Tensor<3, Bool>) {
        let [lower, upper] = self.config.interval;
        let outside = x.clone().lower_elem(lower).bool_or(x.clone().greater_elem(upper));
        let x = match self.config.tails {
            SplineTails::Circular => {
                let period = upper - lower;
                let turns = ((x.clone() - lower) * period.recip()).floor();
                // Taken off only where there are any: the others stay as they are to the last bit.
                let back = (x.clone() - turns * period).clamp(lower, upper);
                x.mask_where(outside.clone(), back)
            }
            SplineTails::Identity | SplineTails::Linear => x.clamp(lower, upper),
        };
        (x, outside)
    }
}

/// `u / (1 + |u / limit|)`: within `limit` on both sides.
fn bent(u: Tensor<3>, limit: f64) -> Tensor<3> {
    // Farther out it is the limit, and the quotient would leave f32.
    let u = u.clamp(-1e12, 1e12);
    let size = (u.clone() * limit.recip()).abs() + 1.0;
    u / size
}

/// `ln(1 + e^u)`, which neither overflows nor cancels.
fn softplus(u: Tensor<3>) -> Tensor<3> {
    u.clone().clamp_min(0.0) + u.abs().neg().exp().log1p()
}

impl Knots {
    /// The bins in which `values` lie between the knots of one axis.
    fn bins(self, values: &Tensor<3>, axis: impl FnOnce(&Self) -> &Tensor<3>) -> Bin {
        let [_, knots, _] = self.x.dims();
        let inner = knots - 2;
        let [batch, _, count] = values.dims();
        let index: Tensor<3, Int> = if inner == 0 {
            Tensor::zeros([batch, 1, count], &values.device())
        } else {
            // A knot belongs to the bin on its right, the last one to the last bin.
            let knots = axis(&self).clone().narrow(1, 1, inner);
            values.clone().expand([batch, inner, count]).greater_equal(knots).int().sum_dim(1)
        };
        let next = index.clone() + 1;
        let at = |of: &Tensor<3>, index: &Tensor<3, Int>| of.clone().gather(1, index.clone());
        let (x, y) = (at(&self.x, &index), at(&self.y, &index));
        Bin {
            width: at(&self.x, &next) - x.clone(),
            height: at(&self.y, &next) - y.clone(),
            slopes: [at(&self.slope, &index), at(&self.slope, &next)],
            x,
            y,
        }
    }
}

impl Bin {
    /// `z` and `ln dz/dx` at `t`, the place within the bin from 0 to 1.
    fn at(&self, t: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let [left, right] = self.slopes.clone();
        let s = self.height.clone() / self.width.clone();
        let rest = t.clone().neg() + 1.0;
        let both = t.clone() * rest.clone();
        let bend = left.clone() + right.clone() - s.clone() * 2.0;
        let q = s.clone() + bend * both.clone();
        let rise = (s.clone() * t.clone().square() + left.clone() * both.clone()) / q.clone();
        let z = self.y.clone() + self.height.clone() * rise;
        let slope = right * t.square() + s.clone() * both * 2.0 + left * rest.square();
        (z, s.log() * 2.0 + slope.log() - q.log() * 2.0)
    }

    /// The place `t` within the bin at which the spline has the value `z`.
    fn place_of(&self, z: Tensor<3>) -> Tensor<3> {
        let [left, right] = self.slopes.clone();
        let s = self.height.clone() / self.width.clone();
        let r = ((z - self.y.clone()) / self.height.clone()).clamp(0.0, 1.0);
        let bend = (left.clone() + right - s.clone() * 2.0) * r.clone();
        let a = s.clone() - left.clone() + bend.clone();
        let b = left - bend;
        let c = s * r;
        let root = (b.clone().square() + a * c.clone() * 4.0).clamp_min(0.0).sqrt();
        (c * 2.0 / (b + root)).clamp(0.0, 1.0)
    }
}

impl Transform for RationalQuadratic {
    fn params_per_channel(&self) -> usize {
        2 * self.config.num_bins + self.num_slopes()
    }

    fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        params: Tensor<D>,
    ) -> (Tensor<D>, Option<Tensor<D>>) {
        let shape = x.dims();
        let (x, knots) = self.flatten(x, params);
        let (inner, outside) = self.held_in_interval(x.clone());
        let bin = knots.bins(&inner, |knots| &knots.x);
        let t = ((inner.clone() - bin.x.clone()) / bin.width.clone()).clamp(0.0, 1.0);
        let (z, log_slope) = bin.at(t);
        let (z, log_slope) = match self.config.tails {
            SplineTails::Circular => (z, log_slope),
            SplineTails::Identity => {
                (z.mask_where(outside.clone(), x), log_slope.mask_fill(outside, 0.0))
            }
            // `inner` is the end that is nearest, at which `z` and its slope are.
            SplineTails::Linear => {
                let line = z.clone() + (x - inner) * log_slope.clone().exp();
                (z.mask_where(outside, line), log_slope)
            }
        };
        (z.reshape(shape), Some(log_slope.reshape(shape)))
    }

    fn inverse<const D: usize>(&self, z: Tensor<D>, params: Tensor<D>) -> Tensor<D> {
        let shape = z.dims();
        let (z, knots) = self.flatten(z, params);
        let (inner, outside) = self.held_in_interval(z.clone());
        let bin = knots.bins(&inner, |knots| &knots.y);
        let t = bin.place_of(inner.clone());
        let x = bin.x.clone() + bin.width.clone() * t.clone();
        let x = match self.config.tails {
            SplineTails::Circular => x,
            SplineTails::Identity => x.mask_where(outside, z),
            SplineTails::Linear => {
                let (_, log_slope) = bin.at(t);
                let line = x.clone() + (z - inner) * log_slope.neg().exp();
                x.mask_where(outside, line)
            }
        };
        x.reshape(shape)
    }

    fn fused(&self) -> Option<FusedMap> {
        (self.config.num_bins <= MOST_BINS).then(|| FusedMap::Spline(self.config()))
    }
}
