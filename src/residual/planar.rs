//! The planar flow.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use rand::Rng;
use serde::Serialize;

use super::{SOFTPLUS_IS_ONE, softplus};
use crate::chain::{assert_size, zero_log_det};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::prior::standard_normal;
use crate::record::Setting;

/// A planar flow: pushes along one direction, as far as the place along another says.
///
/// - inverse (latent to data, in closed form): `x = z + u' h(w.z + b)`
/// - forward: with `t` the solution of `t + k h(t) = w.x + b`, `k = w.u'`, it is `z = x - u' h(t)`
/// - `log_det = -ln(1 + k h'(t))`, `t = w.z + b`
///
/// `u' = u + (softplus(w.u) - 1 - w.u) w / |w|^2`, so that `k = softplus(w.u) - 1 > -1` and the map is
/// invertible whatever the parameters; `1 + k` is no less than the rounding of 1. For `h = tanh` the solution has no closed form: it is found in f64 by
/// Newton steps within bounds that are halved where a step leaves them, and then takes one step in the
/// numbers of the tensors, by which gradients go on. For the leaky ReLU it is `(w.x + b) / (1 + k h')`.
///
/// The paper's flow goes from latent to data, as here `inverse` does: draws, and so the fit of a
/// [posterior](crate::variational), take one pass.
///
/// Source: Rezende and Mohamed, *Variational Inference with Normalizing Flows*,
/// [arXiv:1505.05770](https://arxiv.org/abs/1505.05770), section 4.1 and appendix A.1. The leaky ReLU is that of
/// normflows.
///
/// ```
/// use burn::module::Param;
/// use burn::tensor::Tensor;
/// use burn_flows::Flow;
/// use burn_flows::residual::{Planar, PlanarActivation};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let device = burn_flows::backend::device();
/// let activation = PlanarActivation::LeakyRelu { slope: 0.5 };
/// let mut planar = Planar::new(2, activation, &mut StdRng::seed_from_u64(0), &device)?;
/// // softplus(w.u) = 3, so w.u' = 2, and u' is along w.
/// let u = (3f32.exp() - 1.0).ln();
/// planar.direction = Param::from_data([u, 0.0], &device);
/// planar.normal = Param::from_data([1.0, 0.0], &device);
/// let (x, log_det) = planar.inverse_and_log_det(Tensor::from_data([[1.0, 5.0], [-1.0, 5.0]], &device));
/// // 1 + 2 and -1 - 2/2; slopes 3 and 2.
/// for (x, expected) in x.try_into_vec_as::<f32>().unwrap().iter().zip([3.0, 5.0, -2.0, 5.0]) {
///     assert!((x - expected).abs() < 1e-5);
/// }
/// assert!((log_det.sum().into_scalar::<f32>() + 6f32.ln()).abs() < 1e-5);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Planar {
    /// `u`, `[features]`.
    pub direction: Param<Tensor<1>>,
    /// `w`, `[features]`; not zero.
    pub normal: Param<Tensor<1>>,
    /// `b`, `[1]`.
    pub bias: Param<Tensor<1>>,
    activation: Setting<PlanarActivation>,
}

/// The function `h` of a [`Planar`] flow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanarActivation {
    /// `tanh(t)`, as in the paper.
    Tanh,
    /// `t` above 0, `slope * t` below.
    LeakyRelu {
        /// Above 0, at most 1.
        slope: f64,
    },
}

/// Spread of the start around the identity.
const START: f64 = 0.1;

/// Steps after which a solution is what it can be: halving alone brings any bounds within the numbers of f64
/// to neighbours in fewer.
const MAX_STEPS: usize = 1100;

impl Planar {
    /// A flow near the identity, at a random place.
    ///
    /// # Errors
    /// If there is no feature, or the slope is not above 0 and at most 1.
    pub fn new(
        num_features: usize,
        activation: PlanarActivation,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Result<Self> {
        if num_features == 0 {
            let advice = "give the number of features of the input";
            return Err(FlowError::config("Planar", "num_features", 0, "at least 1", advice));
        }
        if let PlanarActivation::LeakyRelu { slope } = activation
            && !(slope > 0.0 && slope <= 1.0)
        {
            let advice = "normflows has 0.2";
            return Err(FlowError::config(
                "Planar",
                "slope",
                slope,
                "above 0 and at most 1",
                advice,
            ));
        }
        let zeros = Tensor::<1>::zeros([num_features], device);
        let dtype = zeros.dtype();
        let deviation = (num_features as f64).sqrt().recip();
        let normal = standard_normal([num_features], rng, device, dtype) * deviation;
        let square = normal.clone().square().sum();
        let noise = standard_normal([num_features], rng, device, dtype) * START;
        Ok(Self {
            direction: Param::from_tensor(normal.clone() / square * SOFTPLUS_IS_ONE + noise),
            normal: Param::from_tensor(normal),
            bias: Param::from_tensor(Tensor::zeros([1], device)),
            activation: activation.into(),
        })
    }

    /// `u'` and `1 + w.u'`, `[1]`.
    fn constrained(&self) -> (Tensor<1>, Tensor<1>) {
        let (u, w) = (self.direction.val(), self.normal.val());
        let along = (w.clone() * u.clone()).sum();
        // Below the rounding of `1 + k` nothing is to be told from a fold, which has no inverse.
        let stretch = softplus(along.clone()).clamp_min(host::epsilon(w.dtype()));
        let square = w.clone().square().sum();
        (u + w * ((stretch.clone() - 1.0 - along) / square), stretch)
    }

    /// `w.x + b`, `[batch]`.
    fn place(&self, x: Tensor<2>) -> Tensor<1> {
        let w = self.normal.val();
        let features = w.dims()[0];
        assert_size("Planar", &x, features, "features");
        let batch = x.dims()[0];
        x.matmul(w.reshape([features, 1])).reshape([batch]) + self.bias.val()
    }

    /// `h(t)` and `ln(1 + k h'(t))`, given `1 + k`.
    fn push(&self, t: Tensor<1>, stretch: Tensor<1>) -> (Tensor<1>, Tensor<1>) {
        match *self.activation {
            PlanarActivation::Tanh => {
                let h = t.tanh();
                // As a sum of what is not negative: 1 + k h' with h' = 1 - h^2.
                let square = h.clone().square();
                let slope = square.clone() + (square.neg() + 1.0) * stretch;
                (h, slope.log())
            }
            PlanarActivation::LeakyRelu { slope } => {
                let below = t.clone().lower_elem(0.0);
                let h = t.clone().mask_where(below.clone(), t.clone() * slope);
                let above = t.zeros_like() + stretch.clone();
                let log_slope =
                    above.mask_where(below, h.zeros_like() + (stretch - 1.0) * slope + 1.0);
                (h, log_slope.log())
            }
        }
    }

    /// The solution of `t + k h(t) = place`, given `1 + k`.
    fn solve(&self, place: Tensor<1>, stretch: Tensor<1>) -> Tensor<1> {
        let slope = match *self.activation {
            PlanarActivation::LeakyRelu { slope } => slope,
            PlanarActivation::Tanh => return solve_tanh(place, stretch),
        };
        let below = place.clone().lower_elem(0.0);
        let above = place.clone() / stretch.clone();
        above.mask_where(below, place / ((stretch - 1.0) * slope + 1.0))
    }

    /// `x + sign u' h`.
    fn pushed(x: Tensor<2>, u: Tensor<1>, h: Tensor<1>) -> Tensor<2> {
        let [batch, features] = x.dims();
        x + h.reshape([batch, 1]) * u.reshape([1, features])
    }
}

fn solve_tanh(place: Tensor<1>, stretch: Tensor<1>) -> Tensor<1> {
    let plain = |tensor: &Tensor<1>| host::plain(tensor.clone());
    let k = host::to_f64(plain(&stretch))[0] - 1.0;
    let values = host::to_f64(plain(&place));
    let (shape, dtype) = (place.dims(), place.dtype());
    let roots = values.into_iter().map(|place| root(place, k)).collect();
    let t: Tensor<1> = host::from_f64(roots, shape, &plain(&place).device(), dtype);
    // One step from the solution changes its value by rounding alone, and knows the gradients: the slope
    // is a constant there.
    let square = t.clone().tanh().square();
    let slope = square.clone() + (square.neg() + 1.0) * plain(&stretch);
    let off = t.clone() + t.clone().tanh() * (stretch - 1.0) - place;
    t - off / slope.clamp_min(host::epsilon(dtype))
}

/// The solution of `t + k tanh(t) = place`, `k >= -1`.
fn root(place: f64, k: f64) -> f64 {
    let (mut low, mut high) = (place - k.abs(), place + k.abs());
    let mut t = place;
    for _ in 0..MAX_STEPS {
        let h = t.tanh();
        let off = t + k * h - place;
        if off == 0.0 || low >= high {
            break;
        }
        if off > 0.0 {
            high = t
        } else {
            low = t
        }
        let step = t - off / (1.0 + k * (1.0 - h * h));
        let next = if step > low && step < high { step } else { low + (high - low) / 2.0 };
        if next == t || next == low || next == high {
            break;
        }
        t = next;
    }
    t
}

impl Flow<2> for Planar {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        let (u, stretch) = self.constrained();
        let t = self.solve(self.place(x.clone()), stretch.clone());
        let (h, log_slope) = self.push(t, stretch);
        (Self::pushed(x, u, h.neg()), log_slope.neg())
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.inverse_and_log_det(z).0
    }

    fn inverse_and_log_det(&self, z: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        if host::has_no_samples(&z) {
            return (z.clone(), zero_log_det(&z));
        }
        let (u, stretch) = self.constrained();
        let (h, log_slope) = self.push(self.place(z.clone()), stretch);
        (Self::pushed(z, u, h), log_slope.neg())
    }

    fn check(&self) -> Result<()> {
        let square = host::to_f64(host::plain(self.normal.val()).square().sum())[0];
        if square > 0.0 && square.is_finite() {
            return Ok(());
        }
        Err(FlowError::invalid(
            "Planar: the normal w",
            format!("a square of {square}"),
            "a vector that is finite and not 0",
            "load an earlier checkpoint and train with a lower learning rate",
        ))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn the_solution_is_exact_up_to_the_steepest_allowed() {
        for k in [-1.0, -1.0 + 1e-12, -0.5, 0.0, 0.3, 5.0, 1e6] {
            for place in [-1e5, -3.0, -1e-6, 0.0, 1e-12, 0.2, 1.0, 40.0, 1e300] {
                let t = root(place, k);
                let off = t + k * t.tanh() - place;
                assert!(off.abs() <= 1e-15 * (1.0 + k.abs() + place.abs()), "{k} {place}: {off:e}");
            }
        }
    }

    #[test]
    fn bad_sizes_and_slopes_are_refused() {
        let device = crate::backend::device();
        let mut rng = StdRng::seed_from_u64(0);
        let mut text = |features, activation| {
            Planar::new(features, activation, &mut rng, &device).unwrap_err().to_string()
        };
        assert_eq!(
            text(0, PlanarActivation::Tanh),
            "Planar: num_features is 0, but must be at least 1; give the number of features of the input"
        );
        for slope in [0.0, -0.1, 1.5, f64::NAN] {
            assert_eq!(
                text(2, PlanarActivation::LeakyRelu { slope }),
                format!(
                    "Planar: slope is {slope}, but must be above 0 and at most 1; normflows has 0.2"
                )
            );
        }
    }
}
