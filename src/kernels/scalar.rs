//! The number types, and `exp`, `tanh`, `ln(1 + x)` written so that a loop over them becomes vector
//! code.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use super::dispatch::{self, Ops};

/// Keeps other types out: buffers are reused as numbers of either type.
pub trait Sealed {}

impl Sealed for f32 {}
impl Sealed for f64 {}

/// `f32` or `f64`.
///
/// The elementary functions pass NaN on, and `exp` of `f32` saturates at about `1e38` and `1e-38`
/// instead of reaching infinity and zero; relative error below `2e-7`. Those of `f64` are the
/// standard library's.
pub trait Scalar:
    Sealed
    + Copy
    + Default
    + Debug
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Rounds to this type.
    fn from_f64(value: f64) -> Self;
    /// Widens, exactly.
    fn to_f64(self) -> f64;
    /// Absolute value.
    fn abs(self) -> Self;
    /// `e^self`.
    fn exp(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// `ln(1 + self)` for `self` in `[0, 1]`.
    fn ln_1p_unit(self) -> Self;
    /// `ln self` for normal numbers above 0; NaN for NaN and infinity.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The largest integer that is not larger.
    fn floor(self) -> Self;
    /// `self * factor + addend`, rounded once where the processor's base instruction set can.
    fn times_plus(self, factor: Self, addend: Self) -> Self;
    /// The vector code for this processor.
    fn ops() -> &'static Ops<Self>;

    /// The larger one; NaN if `self` is NaN.
    #[inline(always)]
    fn at_least(self, low: Self) -> Self {
        if self < low { low } else { self }
    }

    /// The smaller one; NaN if `self` is NaN.
    #[inline(always)]
    fn at_most(self, high: Self) -> Self {
        if self > high { high } else { self }
    }
}

/// Horner's rule, highest coefficient first.
#[inline(always)]
fn polynomial(x: f32, coefficients: &[f32]) -> f32 {
    let mut sum = 0.0;
    for &c in coefficients {
        sum = sum * x + c;
    }
    sum
}

impl Scalar for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self.into()
    }

    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    /// `2^n · e^r` with `n` the nearest integer to `x / ln 2`; `e^r` by the polynomial of Cephes'
    /// `expf`.
    #[inline(always)]
    fn exp(self) -> Self {
        // Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits of the sum.
        const ROUND: f32 = 12_582_912.0;
        const LN_2_HIGH: f32 = 0.693_359_4;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        let x = self.at_least(-87.0).at_most(88.0);
        let rounded = x * std::f32::consts::LOG2_E + ROUND;
        let n = rounded - ROUND;
        let r = x - n * LN_2_HIGH - n * LN_2_LOW;
        let tail = polynomial(
            r,
            &[1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5],
        );
        let fraction = 1.0 + (r + r * r * tail);
        let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
        fraction * power
    }

    /// Cephes' `tanhf`: a polynomial near zero, where `1 - 2 / (e^2x + 1)` cancels, that formula
    /// elsewhere.
    #[inline(always)]
    fn tanh(self) -> Self {
        let magnitude = f32::abs(self).at_most(10.0);
        let far = 1.0 - 2.0 / (1.0 + Scalar::exp(magnitude + magnitude));
        let square = self * self;
        let tail = polynomial(
            square,
            &[-5.704_988_7e-3, 2.063_908_8e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_8],
        );
        let near = self + self * square * tail;
        if magnitude < 0.625 { near } else { far.copysign(self) }
    }

    /// `2 artanh(x / (x + 2))`, whose series converges fast because `x / (x + 2) <= 1/3`.
    #[inline(always)]
    fn ln_1p_unit(self) -> Self {
        let s = self / (self + 2.0);
        let square = s * s;
        let twice = s + s;
        let tail = polynomial(
            square,
            &[1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 0.2, 1.0 / 3.0],
        );
        twice + twice * square * tail
    }

    /// Cephes' `logf`: `n ln 2` and a polynomial of `m - 1`, with `self = m 2^n` and `m` between
    /// `sqrt(1/2)` and `sqrt(2)`.
    #[inline(always)]
    #[allow(clippy::eq_op)] // The difference is 0 or, for what is not finite, NaN.
    fn ln(self) -> Self {
        const SQRT_HALF: u32 = 0x3f35_04f3;
        let offset = self.to_bits().wrapping_sub(SQRT_HALF);
        let n = ((offset as i32) >> 23) as f32;
        let m = f32::from_bits((offset & 0x007f_ffff).wrapping_add(SQRT_HALF)) - 1.0;
        let square = m * m;
        let tail = polynomial(
            m,
            &[
                7.037_683_6e-2,
                -0.115_146_1,
                0.116_769_984,
                -0.124_201_41,
                0.142_493_23,
                -0.166_680_58,
                0.200_007_15,
                -0.249_999_94,
                0.333_333_3,
            ],
        );
        let low = m * square * tail + n * -2.121_944_4e-4 - 0.5 * square;
        m + low + n * 0.693_359_4 + (self - self)
    }

    #[inline(always)]
    fn floor(self) -> Self {
        f32::floor(self)
    }

    // Without the instruction `mul_add` is a library call.
    #[inline(always)]
    fn times_plus(self, factor: Self, addend: Self) -> Self {
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            self.mul_add(factor, addend)
        } else {
            self * factor + addend
        }
    }

    fn ops() -> &'static Ops<f32> {
        dispatch::ops_f32()
    }
}

impl Scalar for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn abs(self) -> Self {
        f64::abs(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    fn exp(self) -> Self {
        f64::exp(self)
    }

    fn tanh(self) -> Self {
        f64::tanh(self)
    }

    fn ln_1p_unit(self) -> Self {
        f64::ln_1p(self)
    }

    #[allow(clippy::eq_op)] // As in f32.
    fn ln(self) -> Self {
        f64::ln(self) + (self - self)
    }

    fn floor(self) -> Self {
        f64::floor(self)
    }

    // Without the instruction `mul_add` is a library call.
    #[inline(always)]
    fn times_plus(self, factor: Self, addend: Self) -> Self {
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            self.mul_add(factor, addend)
        } else {
            self * factor + addend
        }
    }

    fn ops() -> &'static Ops<f64> {
        dispatch::ops_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::Scalar;

    /// Largest relative error of `f` against `exact` over a fine grid of `[low, high]`.
    fn worst(low: f32, high: f32, f: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        (0..=200_000)
            .map(|i| low + (high - low) * i as f32 / 200_000.0)
            .map(|x| (f(x) as f64 - exact(x as f64)).abs() / exact(x as f64).abs().max(1e-30))
            .fold(0.0, f64::max)
    }

    #[test]
    fn elementary_functions_are_accurate() {
        assert!(worst(-86.0, 87.9, Scalar::exp, f64::exp) < 2e-7);
        assert!(worst(-9.0, 9.0, Scalar::tanh, f64::tanh) < 2e-7);
        assert!(worst(-1e-3, 1e-3, Scalar::tanh, f64::tanh) < 2e-7);
        assert!(worst(0.0, 1.0, Scalar::ln_1p_unit, f64::ln_1p) < 2e-7);
        assert!(worst(1e-3, 0.9, Scalar::ln, f64::ln) < 2e-7);
        assert!(worst(1.1, 1e6, Scalar::ln, f64::ln) < 2e-7);
        for power in [-126, -30, 0, 30, 127] {
            let x = 2f32.powi(power) * 1.25;
            assert!((Scalar::ln(x) - x.ln()).abs() <= 1e-7 * (1.0 + x.ln().abs()), "ln {x:e}");
        }
        assert_eq!(Scalar::ln(1f32), 0.0);
    }

    #[test]
    fn extremes_saturate_and_nan_passes() {
        assert!(Scalar::exp(1e30_f32).is_finite() && Scalar::exp(-1e30_f32) > 0.0);
        assert_eq!(Scalar::tanh(-1e30_f32), -1.0);
        assert!(Scalar::exp(f32::NAN).is_nan() && Scalar::tanh(f32::NAN).is_nan());
        assert!(Scalar::ln_1p_unit(f32::NAN).is_nan());
        assert!(Scalar::ln(f32::NAN).is_nan() && Scalar::ln(f32::INFINITY).is_nan());
    }
}
