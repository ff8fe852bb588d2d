//! Fixed invertible maps of single numbers.

use std::f64::consts::{FRAC_PI_2, LN_2, PI};

use burn::tensor::{Bool, Tensor};
use serde::{Deserialize, Serialize};

use crate::coupling::{soft_clip, softplus};
use crate::error::{FlowError, Result};
use crate::host;

/// A monotone map of numbers without parameters to train.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum ScalarMap {
    /// `z = x`.
    Identity,
    /// `z = scale x + shift`.
    Affine {
        /// Not zero.
        scale: f64,
        /// Added behind it.
        shift: f64,
    },
    /// `z = 1 / (1 + e^(-temperature x))`, from 0 to 1.
    Sigmoid {
        /// Slope at the origin, times four.
        temperature: f64,
    },
    /// `z = tanh(x)`.
    Tanh,
    /// `z = x`, and `slope x` below 0.
    LeakyRelu {
        /// Positive.
        slope: f64,
    },
    /// `z = atan(x) / pi + 1/2`, from 0 to 1: the distribution function of Cauchy.
    CauchyCdf,
    /// `z = x / (1 + |x / bound|)`, within the bound.
    SoftClip {
        /// Positive.
        bound: f64,
    },
    /// `z = e^x`.
    Exp,
    /// `z = ln(1 + e^x)`.
    Softplus,
    /// `z = -cos(x)` for `x` from 0 to pi.
    Cos,
    /// `z = sin(x)` for `x` from -pi/2 to pi/2.
    Sin,
    /// `z = sign(x) |x|^exponent`.
    SignedPower {
        /// Positive.
        exponent: f64,
    },
    /// `z = lower + ((x - lower + shift) mod turn)`: a position on a circle, shifted along it. `x` from
    /// elsewhere than `lower` to `lower + turn` is taken back there.
    Circle {
        /// The first position.
        lower: f64,
        /// The length of a turn, positive.
        turn: f64,
        /// How far it is shifted.
        shift: f64,
    },
}

impl ScalarMap {
    /// The map turned around: `Sigmoid { temperature: 1.0 }.inverted()` is the logit.
    pub fn inverted(self) -> DirectedMap {
        DirectedMap { map: self, is_inverted: true }
    }

    pub(crate) fn validate(self, layer: &'static str) -> Result<()> {
        let is_positive = |value: f64| value > 0.0 && value.is_finite();
        let is_right = match self {
            Self::Affine { scale, shift } => is_positive(scale.abs()) && shift.is_finite(),
            Self::Sigmoid { temperature: value }
            | Self::LeakyRelu { slope: value }
            | Self::SoftClip { bound: value }
            | Self::SignedPower { exponent: value } => is_positive(value),
            Self::Circle { lower, turn, shift } => {
                is_positive(turn) && lower.is_finite() && shift.is_finite()
            }
            _ => true,
        };
        if is_right {
            return Ok(());
        }
        let needed = "finite; scales not zero, slopes, bounds, exponents and turns positive";
        let advice = "give ScalarMap::Identity for a column that stays as it is";
        Err(FlowError::config(layer, "maps", format!("{self:?}"), needed, advice))
    }

    /// Where it is defined, and where its values are.
    fn domains(self) -> [Option<[f64; 2]>; 2] {
        let everywhere = None;
        match self {
            Self::Sigmoid { .. } | Self::CauchyCdf => [everywhere, Some([0.0, 1.0])],
            Self::Tanh => [everywhere, Some([-1.0, 1.0])],
            Self::SoftClip { bound } => [everywhere, Some([-bound, bound])],
            Self::Exp | Self::Softplus => [everywhere, Some([0.0, f64::INFINITY])],
            Self::Cos => [Some([0.0, PI]), Some([-1.0, 1.0])],
            Self::Sin => [Some([-FRAC_PI_2, FRAC_PI_2]), Some([-1.0, 1.0])],
            _ => [everywhere, everywhere],
        }
    }

    pub(crate) fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Identity => x,
            Self::Affine { scale, shift } => x * scale + shift,
            Self::Sigmoid { temperature } => {
                // Both ends to their last digit.
                let u = x * temperature;
                let below = u.clone().clamp_max(0.0).exp();
                let below = below.clone() / (below + 1.0);
                let above = u.clone().clamp_min(0.0).neg().exp();
                let above = (above.clone() / (above + 1.0)).neg() + 1.0;
                below.mask_where(u.greater_elem(0.0), above)
            }
            Self::Tanh => x.tanh(),
            Self::LeakyRelu { slope } => bent(x, slope),
            Self::CauchyCdf => x.atan() * PI.recip() + 0.5,
            Self::SoftClip { bound } => soft_clip(x, bound),
            Self::Exp => x.exp(),
            Self::Softplus => softplus(x),
            Self::Cos => x.cos().neg(),
            Self::Sin => x.sin(),
            Self::SignedPower { exponent } => signed_power(x, exponent),
            Self::Circle { lower, turn, shift } => around(x, lower, turn, shift),
        }
    }

    pub(crate) fn inverse<const D: usize>(self, z: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Identity => z,
            Self::Affine { scale, shift } => (z - shift) * scale.recip(),
            Self::Sigmoid { temperature } => {
                (z.clone().log() - z.neg().log1p()) * temperature.recip()
            }
            Self::Tanh => (z.clone().log1p() - z.neg().log1p()) * 0.5,
            Self::LeakyRelu { slope } => bent(z, slope.recip()),
            Self::CauchyCdf => ((z - 0.5) * PI).tan(),
            Self::SoftClip { bound } => {
                let rest = (z.clone() * bound.recip()).abs().neg() + 1.0;
                z / rest
            }
            Self::Exp => z.log(),
            Self::Softplus => z.clone() + z.neg().exp().neg().log1p(),
            Self::Cos => arc_cosine(z.neg()),
            Self::Sin => arc_sine(z),
            Self::SignedPower { exponent } => signed_power(z, exponent.recip()),
            Self::Circle { lower, turn, shift } => around(z, lower, turn, -shift),
        }
    }

    /// `ln|dz/dx|`.
    fn log_slope<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Identity | Self::Circle { .. } => x.zeros_like(),
            Self::Affine { scale, .. } => x.zeros_like() + scale.abs().ln(),
            Self::Sigmoid { temperature } => {
                let size = (x * temperature).abs();
                (size.clone() + size.neg().exp().log1p() * 2.0).neg() + temperature.ln()
            }
            Self::Tanh => {
                let size = x.abs();
                ((size.clone() + (size * -2.0).exp().log1p()).neg() + LN_2) * 2.0
            }
            Self::LeakyRelu { slope } => {
                let below = x.clone().lower_elem(0.0);
                x.zeros_like().mask_fill(below, slope.ln())
            }
            Self::CauchyCdf => (x.square().log1p() + PI.ln()).neg(),
            Self::SoftClip { bound } => (x * bound.recip()).abs().log1p() * -2.0,
            Self::Exp => x,
            Self::Softplus => softplus(x.neg()).neg(),
            Self::Cos => x.sin().log(),
            Self::Sin => x.cos().log(),
            Self::SignedPower { exponent } => size(x).log() * (exponent - 1.0) + exponent.ln(),
        }
    }
}

/// `x`, and `slope x` below 0.
fn bent<const D: usize>(x: Tensor<D>, slope: f64) -> Tensor<D> {
    x.clone().mask_where(x.clone().lower_elem(0.0), x * slope)
}

/// `|x|`, held off 0.
fn size<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let least = host::least(x.dtype());
    x.abs().clamp_min(least)
}

fn signed_power<const D: usize>(x: Tensor<D>, exponent: f64) -> Tensor<D> {
    let power = (size(x.clone()).log() * exponent).exp();
    power * x.sign()
}

/// WGSL lets `asin` and `acos` be off by 7e-5 where `sin` and `cos` are right to the last digits: one step
/// of Newton's method makes them as exact. At the flat ends there is nothing left to improve.
const LEAST_SLOPE: f64 = 1e-3;

fn arc_sine<const D: usize>(z: Tensor<D>) -> Tensor<D> {
    let x = z.clone().asin();
    let slope = x.clone().cos().clamp_min(LEAST_SLOPE);
    x.clone() + (z - x.sin()) / slope
}

fn arc_cosine<const D: usize>(z: Tensor<D>) -> Tensor<D> {
    let x = z.clone().acos();
    let slope = x.clone().sin().clamp_min(LEAST_SLOPE);
    x.clone() + (x.cos() - z) / slope
}

/// `x + shift`, taken back to `lower` to `lower + turn`.
fn around<const D: usize>(x: Tensor<D>, lower: f64, turn: f64, shift: f64) -> Tensor<D> {
    let moved = x + (shift - lower);
    let turns = (moved.clone() * turn.recip()).floor();
    moved - turns * turn + lower
}

/// A [`ScalarMap`] in one of its two directions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DirectedMap {
    /// The map.
    pub map: ScalarMap,
    /// Whether it is turned around.
    pub is_inverted: bool,
}

impl From<ScalarMap> for DirectedMap {
    fn from(map: ScalarMap) -> Self {
        Self { map, is_inverted: false }
    }
}

impl DirectedMap {
    /// What the values must be between, if they must.
    pub(crate) fn domain(self) -> Option<[f64; 2]> {
        let [domain, range] = self.map.domains();
        if self.is_inverted { range } else { domain }
    }

    /// `(z, ln|dz/dx|)`, elementwise.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
        if self.is_inverted {
            let z = self.map.inverse(x);
            (z.clone(), self.map.log_slope(z).neg())
        } else {
            (self.map.forward(x.clone()), self.map.log_slope(x))
        }
    }

    /// The inverse of [`forward`](DirectedMap::forward).
    pub fn inverse<const D: usize>(self, z: Tensor<D>) -> Tensor<D> {
        if self.is_inverted { self.map.forward(z) } else { self.map.inverse(z) }
    }

    /// `x` within the domain, and where it was not.
    pub(crate) fn held<const D: usize>(self, x: Tensor<D>) -> (Tensor<D>, Option<Tensor<D, Bool>>) {
        let Some([lower, upper]) = self.domain() else { return (x, None) };
        let outside = x.clone().lower_equal_elem(lower);
        let outside = outside.bool_or(x.clone().greater_equal_elem(upper));
        // An inner point stands for what has no value, so that no gradient is infinite.
        let inner = if upper.is_finite() { (lower + upper) / 2.0 } else { lower + 1.0 };
        (x.mask_fill(outside.clone(), inner), Some(outside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a map says of its slope is the slope that autodiff finds, at 0 as elsewhere.
    #[test]
    fn slopes_are_those_of_autodiff() {
        let device = crate::backend::device();
        let maps = [
            ScalarMap::Affine { scale: -2.0, shift: 1.0 },
            ScalarMap::Sigmoid { temperature: 1.5 },
            ScalarMap::Tanh,
            ScalarMap::LeakyRelu { slope: 0.2 },
            ScalarMap::CauchyCdf,
            ScalarMap::SoftClip { bound: 2.0 },
            ScalarMap::Exp,
            ScalarMap::Softplus,
            ScalarMap::Sin,
            ScalarMap::Circle { lower: -2.0, turn: 4.0, shift: 0.5 },
        ];
        for map in maps {
            let x = Tensor::<1>::from_data([-1.25, 0.0, 0.75], &device);
            let x = Tensor::from_inner(x).require_grad();
            let graph = map.forward(x.clone()).sum().backward();
            let slopes = host::to_f64(x.grad(&graph).unwrap());
            let told = host::to_f64(map.log_slope(x.inner()));
            for (slope, told) in slopes.into_iter().zip(told) {
                let told = told.exp();
                assert!((slope.abs() - told).abs() < 1e-4, "{map:?}: {slope}, not {told}");
            }
        }
    }
}
