//! Scale maps: from the conditioner's raw output to the log-scale of an affine coupling.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{FlowError, Result};

/// Highest log-scale of any map, in nats: `e^20` is as far as an f32 product of scale and activation
/// stays useful, and inverse and log-determinant stay finite and consistent however extreme the
/// conditioner's output is.
pub const LOG_SCALE_LIMIT: f64 = 20.0;

/// Lowest log-scale of any map, in nats. In `z = x exp(log_scale) + shift` with `x` and `shift` of one
/// size, `exp(log_scale)` is the share of `z` in which `x` is to be found again, and of the 24 bits of an
/// f32 (`e^16.6`) it takes as many. At `e^-8` about half of them are left: the inverse gives `x` back to
/// three digits. At `e^-17` there would be nothing left of it.
pub const LOG_SCALE_FLOOR: f64 = -8.0;

/// Offset inside the sigmoid, which makes the scale start near one: `sigmoid(2) = 0.88` (Glow's
/// code, `model.py`).
pub const SIGMOID_OFFSET: f64 = 2.0;

/// How the raw output `h` of the conditioner becomes the log-scale of an affine coupling.
///
/// All maps are computed as log-scales, so that the log-determinant is their sum and the inverse
/// multiplies by `exp(-log_scale)`: the two agree to the last bit, at any `h`.
///
/// | map | `log_scale(h)` | forward gain | worst-case gain of the inverse |
/// |---|---|---|---|
/// | `Sigmoid` | `ln sigmoid(h + 2)` | below 1 | `e^8 = 3.0e3` |
/// | `InverseSigmoid` | `-ln sigmoid(h + 2)` | up to `e^20` | 1 |
/// | `Exp` | `h` | up to `e^20` | `e^8` |
/// | `BoundedExp { bound }` | `bound tanh(h / bound)` | up to `e^min(bound, 20)` | `e^min(bound, 8)` |
/// | `SoftClip { bound }` | `h / (1 + abs(h / bound))` | up to `e^min(bound, 20)` | `e^min(bound, 8)` |
/// | `FlooredSigmoid { floor }` | `ln(sigmoid(h + 2) + floor)` | below `1 + floor` | `1 / floor`, at most `e^8` |
/// | `FlooredSoftplus { floor }` | `ln(ln(1 + e^h) + floor)` | up to `e^20` | `1 / floor`, at most `e^8` |
/// | `Tanh` | `gain tanh(h)`, `gain` learned per channel | up to `e^min(gain, 20)` | `e^min(gain, 8)` |
///
/// All are held within [`LOG_SCALE_FLOOR`] and [`LOG_SCALE_LIMIT`], -8 and 20, whatever the gain or the
/// bound: what lies outside becomes the nearer of the two, and the gradient by `h` and by the gain is
/// zero there. Data far larger than 1 is brought to its scale by an
/// [`ActNorm`](crate::norm::ActNorm) in front rather than by couplings.
///
/// The gain of a stack is at most the product of its layers'. `BoundedExp { bound: 2.0 }`, the
/// default, lets one layer amplify by `e^2 = 7.4` at most and has slope one at the origin.
///
/// Sources: `Sigmoid`: openai/glow, `model.py`; `InverseSigmoid`, `Exp`: normflows
/// `AffineCoupling`; `SoftClip`: zuko, `MonotonicAffineTransform`, with the bound `ln 1000`;
/// `FlooredSigmoid` and `FlooredSoftplus`: nflows, `AffineCouplingTransform` and
/// `MaskedAffineAutoregressiveTransform`, with the floor 0.001; `Tanh`: Dinh et al., *Density estimation
/// using Real NVP*, [arXiv:1605.08803](https://arxiv.org/abs/1605.08803), section 4.1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum ScaleMap {
    /// `scale = sigmoid(h + 2)`: Glow as published. It only contracts.
    Sigmoid,
    /// `scale = 1 / sigmoid(h + 2)`: it only expands.
    InverseSigmoid,
    /// `scale = exp(h)`.
    Exp,
    /// `scale = exp(bound tanh(h / bound))`.
    BoundedExp {
        /// Largest magnitude of the log-scale.
        bound: f64,
    },
    /// `scale = exp(h / (1 + |h / bound|))`: slope one at the origin, and a tail that flattens slowly.
    SoftClip {
        /// Largest magnitude of the log-scale.
        bound: f64,
    },
    /// `scale = sigmoid(h + 2) + floor`.
    FlooredSigmoid {
        /// The smallest scale.
        floor: f64,
    },
    /// `scale = ln(1 + e^h) + floor`: linear in `h` where it is large. At `h = 0` it is `ln 2`, not 1.
    FlooredSoftplus {
        /// The smallest scale.
        floor: f64,
    },
    /// `scale = exp(gain tanh(h))` with one learned gain for each transformed channel: RealNVP.
    Tanh,
}

impl Default for ScaleMap {
    fn default() -> Self {
        Self::BoundedExp { bound: 2.0 }
    }
}

impl ScaleMap {
    /// Refuses a bound or a floor that is not positive and finite.
    pub(crate) fn validate(self, layer: &'static str) -> Result<()> {
        let (parameter, value, advice) = match self {
            Self::BoundedExp { bound } => ("bound", bound, "2.0 is the usual choice"),
            Self::SoftClip { bound } => ("bound", bound, "6.9 is the usual choice"),
            Self::FlooredSigmoid { floor } | Self::FlooredSoftplus { floor } => {
                ("floor", floor, "0.001 is the usual choice")
            }
            Self::Sigmoid | Self::InverseSigmoid | Self::Exp | Self::Tanh => return Ok(()),
        };
        if value > 0.0 && value.is_finite() {
            return Ok(());
        }
        Err(FlowError::config(layer, parameter, value, "positive and finite", advice))
    }

    /// Whether the fused kernels of the CPU know it.
    pub(crate) fn has_kernel(self) -> bool {
        match self {
            Self::Sigmoid | Self::InverseSigmoid | Self::Exp | Self::Tanh => true,
            Self::BoundedExp { .. } => true,
            Self::SoftClip { .. } | Self::FlooredSigmoid { .. } | Self::FlooredSoftplus { .. } => {
                false
            }
        }
    }

    /// `log_scale(h)`, elementwise; `gain`, broadcast to `h`, is used by [`ScaleMap::Tanh`] alone.
    pub(crate) fn log_scale<const D: usize>(
        self,
        h: Tensor<D>,
        gain: Option<Tensor<D>>,
    ) -> Tensor<D> {
        let log_scale = match self {
            Self::Sigmoid => ln_sigmoid(h + SIGMOID_OFFSET),
            Self::InverseSigmoid => ln_sigmoid(h + SIGMOID_OFFSET).neg(),
            Self::Exp => h,
            // Not `h / bound`: Burn 0.22 rounds the gradient of a division by a scalar to f32.
            Self::BoundedExp { bound } => (h * bound.recip()).tanh() * bound,
            Self::SoftClip { bound } => soft_clip(h, bound),
            Self::FlooredSigmoid { floor } => (ln_sigmoid(h + SIGMOID_OFFSET).exp() + floor).log(),
            Self::FlooredSoftplus { floor } => (softplus(h) + floor).log(),
            Self::Tanh => {
                let gain = gain.expect("ScaleMap::Tanh has a learned gain");
                h.tanh() * gain
            }
        };
        log_scale.clamp(LOG_SCALE_FLOOR, LOG_SCALE_LIMIT)
    }
}

/// `ln sigmoid(u) = min(u, 0) - ln(1 + exp(-|u|))`, which neither overflows nor cancels.
fn ln_sigmoid<const D: usize>(u: Tensor<D>) -> Tensor<D> {
    let tail = u.clone().abs().neg().exp().log1p();
    u.clamp_max(0.0) - tail
}

/// `u / (1 + |u / bound|)`: within `bound` on both sides.
pub(crate) fn soft_clip<const D: usize>(u: Tensor<D>, bound: f64) -> Tensor<D> {
    // Farther out it is the bound, and the quotient would leave f32.
    let u = u.clamp(-1e12, 1e12);
    let size = (u.clone() * bound.recip()).abs() + 1.0;
    u / size
}

/// `ln(1 + e^u)`, which neither overflows nor cancels.
pub(crate) fn softplus<const D: usize>(u: Tensor<D>) -> Tensor<D> {
    // Not by `abs`, whose gradient at 0 is 0: there the slope is 1/2, and fresh nets start there.
    let below = u.clone().clamp_max(0.0).exp().log1p();
    let above = u.clone().clamp_min(0.0);
    let above = above.clone() + above.neg().exp().log1p();
    below.mask_where(u.greater_elem(0.0), above)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_can_be_worked_out() {
        let device = crate::backend::device();
        for (map, h, scale) in [
            (ScaleMap::SoftClip { bound: 2.0 }, 2.0, 1f64.exp()),
            (ScaleMap::SoftClip { bound: 2.0 }, -6.0, (-1.5f64).exp()),
            (ScaleMap::FlooredSigmoid { floor: 0.25 }, -2.0, 0.75),
            (ScaleMap::FlooredSoftplus { floor: 0.5 }, 0.0, 2f64.ln() + 0.5),
        ] {
            let log_scale = map.log_scale(Tensor::<1>::from_data([h], &device), None);
            let got = log_scale.into_scalar::<f64>().exp();
            assert!((got - scale).abs() < 1e-6, "{map:?}: {got} is not {scale}");
        }
    }

    /// Where fresh nets start.
    #[test]
    fn gradients_at_zero() {
        let device = crate::backend::device();
        for (map, slope) in [
            (ScaleMap::SoftClip { bound: 2.0 }, 1.0),
            (ScaleMap::FlooredSoftplus { floor: 0.5 }, 0.5 / (2f64.ln() + 0.5)),
        ] {
            let h = Tensor::<1>::from_data([0.0], &device);
            let h = Tensor::from_inner(h).require_grad();
            let graph = map.log_scale(h.clone(), None).sum().backward();
            let got = h.grad(&graph).unwrap().into_scalar::<f64>();
            assert!((got - slope).abs() < 1e-6, "{map:?}: {got} is not {slope}");
        }
    }
}
