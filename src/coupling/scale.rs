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
/// `AffineCoupling`; `Tanh`: Dinh et al., *Density estimation using Real NVP*,
/// [arXiv:1605.08803](https://arxiv.org/abs/1605.08803), section 4.1.
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
    /// `scale = exp(gain tanh(h))` with one learned gain for each transformed channel: RealNVP.
    Tanh,
}

impl Default for ScaleMap {
    fn default() -> Self {
        Self::BoundedExp { bound: 2.0 }
    }
}

impl ScaleMap {
    /// Refuses a bound that is not positive and finite.
    pub(crate) fn validate(self, layer: &'static str) -> Result<()> {
        let Self::BoundedExp { bound } = self else { return Ok(()) };
        if bound > 0.0 && bound.is_finite() {
            return Ok(());
        }
        let advice = "2.0 is the usual choice";
        Err(FlowError::config(layer, "bound", bound, "positive and finite", advice))
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
