//! The one place that asks the processor what it can do.
//!
//! Each vector routine is compiled once for each instruction set, inside a function that enables
//! the set; [`Ops`] is the table of those for this processor.

use super::adam::{AdamStep, adam};
use super::channels::{mix, outer, row_sums};
use super::convolution::{
    Convolution, TapGradient, affine_relu, convolution, deviations, norm_gradient, tap_gradient,
};
use super::log_scale::{MapRow, map_row};
use super::masked::seen;
use super::product::{
    Product, WeightGradient, product, sum_rows, total, transpose, weight_gradient,
};
use super::spline::{SplineRow, spline_row};
use super::vector::{Portable, Vector};
use super::window::{Taps, gather, scatter};

/// The vector routines for one number type and one instruction set.
///
/// Calling one asks that the set is available, which holds for the table a
/// [`Scalar`](super::Scalar) hands out, and what the routine itself asks.
#[allow(clippy::type_complexity)] // plain signatures, each used once
pub struct Ops<T: 'static> {
    /// Numbers in a vector.
    pub(super) lanes: usize,
    /// Pixels in a panel.
    pub(super) panel: usize,
    /// Rows of a product are rounded up to a multiple of this.
    pub(super) granule: usize,
    pub(super) product: unsafe fn(&Product<T>),
    pub(super) weight_gradient: unsafe fn(&WeightGradient<T>),
    pub(super) transpose: unsafe fn(*const T, usize, usize, usize, *mut T),
    pub(super) sum_rows: unsafe fn(*const T, usize, usize, usize, *mut T),
    pub(super) gather: unsafe fn(&Taps<T>, &[T], &mut [T]),
    pub(super) scatter: unsafe fn(&Taps<T>, &[T], &mut [T]),
    pub(super) map_row: unsafe fn(&mut MapRow<T>),
    pub(super) spline_row: unsafe fn(&mut SplineRow<T>),
    pub(super) seen: unsafe fn(&[T], &mut [T], &mut [T]),
    pub(super) total: unsafe fn(&[T]) -> T,
    pub(super) mix: unsafe fn(&[T], &[T], &mut [T], usize),
    pub(super) outer: unsafe fn(&[T], &[T], usize, &mut [T]),
    pub(super) row_sums: unsafe fn(&[T], &[T]) -> [f64; 2],
    pub(super) convolution: unsafe fn(&Convolution<T>),
    pub(super) tap_gradient: unsafe fn(&TapGradient<T>),
    pub(super) affine_relu: unsafe fn(&[T], [T; 2], &[T], &mut [T]),
    pub(super) norm_gradient: unsafe fn([&[T]; 3], [T; 3], &mut [T]),
    pub(super) deviations: unsafe fn(&[T], T, &[T]) -> [f64; 2],
    pub(super) adam: unsafe fn(&AdamStep<T>, &[T], [&mut [T]; 3]),
}

impl<T> Ops<T> {
    /// Sum of a row in f64, in an order that depends on its length only.
    pub(super) fn total(&self, row: &[T]) -> T {
        // SAFETY: this is the processor's table.
        unsafe { (self.total)(row) }
    }
}

macro_rules! instruction_set {
    ($module:ident, $scalar:ty, $vector:ty $(, $feature:meta)?) => {
        mod $module {
            use super::*;

            type S = $scalar;

            $(#[$feature])?
            unsafe fn product_here(p: &Product<S>) {
                // SAFETY: passed on.
                unsafe { product::<$vector>(p) }
            }
            $(#[$feature])?
            unsafe fn weight_gradient_here(p: &WeightGradient<S>) {
                // SAFETY: passed on.
                unsafe { weight_gradient::<$vector>(p) }
            }
            $(#[$feature])?
            unsafe fn transpose_here(
                from: *const S,
                stride: usize,
                channels: usize,
                panels: usize,
                to: *mut S,
            ) {
                // SAFETY: passed on.
                unsafe { transpose::<$vector>(from, stride, channels, panels, to) }
            }
            $(#[$feature])?
            unsafe fn sum_rows_here(
                from: *const S,
                stride: usize,
                channels: usize,
                panels: usize,
                to: *mut S,
            ) {
                // SAFETY: passed on.
                unsafe { sum_rows::<$vector>(from, stride, channels, panels, to) }
            }
            $(#[$feature])?
            unsafe fn gather_here(taps: &Taps<S>, plane: &[S], panel: &mut [S]) {
                gather::<S, { <$vector as Vector>::PANEL }>(taps, plane, panel)
            }
            $(#[$feature])?
            unsafe fn scatter_here(taps: &Taps<S>, panel: &[S], plane: &mut [S]) {
                scatter::<S, { <$vector as Vector>::PANEL }>(taps, panel, plane)
            }
            $(#[$feature])?
            unsafe fn map_row_here(row: &mut MapRow<S>) {
                map_row(row)
            }
            $(#[$feature])?
            unsafe fn spline_row_here(row: &mut SplineRow<S>) {
                spline_row(row)
            }
            $(#[$feature])?
            unsafe fn seen_here(mask: &[S], starts: &mut [S], ends: &mut [S]) {
                seen(mask, starts, ends)
            }

            $(#[$feature])?
            unsafe fn total_here(row: &[S]) -> S {
                total(row)
            }
            $(#[$feature])?
            unsafe fn convolution_here(p: &Convolution<S>) {
                // SAFETY: passed on.
                unsafe { convolution::<$vector>(p) }
            }
            $(#[$feature])?
            unsafe fn tap_gradient_here(p: &TapGradient<S>) {
                // SAFETY: passed on.
                unsafe { tap_gradient::<$vector>(p) }
            }
            $(#[$feature])?
            unsafe fn affine_relu_here(from: &[S], by: [S; 2], inside: &[S], to: &mut [S]) {
                affine_relu(from, by, inside, to)
            }
            $(#[$feature])?
            unsafe fn norm_gradient_here(from: [&[S]; 3], by: [S; 3], dx: &mut [S]) {
                norm_gradient(from, by, dx)
            }
            $(#[$feature])?
            unsafe fn adam_here(step: &AdamStep<S>, gradient: &[S], to: [&mut [S]; 3]) {
                adam(step, gradient, to)
            }
            $(#[$feature])?
            unsafe fn deviations_here(x: &[S], mean: S, inside: &[S]) -> [f64; 2] {
                deviations(x, mean, inside)
            }

            $(#[$feature])?
            unsafe fn mix_here(matrix: &[S], x: &[S], z: &mut [S], pixels: usize) {
                mix(matrix, x, z, pixels)
            }

            $(#[$feature])?
            unsafe fn outer_here(a: &[S], b: &[S], pixels: usize, products: &mut [S]) {
                outer(a, b, pixels, products)
            }

            $(#[$feature])?
            unsafe fn row_sums_here(a: &[S], b: &[S]) -> [f64; 2] {
                row_sums(a, b)
            }

            pub(super) static OPS: Ops<S> = Ops {
                lanes: <$vector as Vector>::LANES,
                panel: <$vector as Vector>::PANEL,
                granule: <$vector as Vector>::GRANULE,
                product: product_here,
                weight_gradient: weight_gradient_here,
                transpose: transpose_here,
                sum_rows: sum_rows_here,
                gather: gather_here,
                scatter: scatter_here,
                map_row: map_row_here,
                spline_row: spline_row_here,
                seen: seen_here,
                total: total_here,
                mix: mix_here,
                outer: outer_here,
                row_sums: row_sums_here,
                convolution: convolution_here,
                tap_gradient: tap_gradient_here,
                affine_relu: affine_relu_here,
                norm_gradient: norm_gradient_here,
                deviations: deviations_here,
                adam: adam_here,
            };
        }
    };
}

instruction_set!(portable_f32, f32, Portable<f32>);
instruction_set!(portable_f64, f64, Portable<f64>);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::vector::{Avx2F32, Avx2F64, Avx512F32, Avx512F64};
    use super::*;

    instruction_set!(avx2_f32, f32, Avx2F32, target_feature(enable = "avx2,fma"));
    instruction_set!(avx2_f64, f64, Avx2F64, target_feature(enable = "avx2,fma"));
    instruction_set!(avx512_f32, f32, Avx512F32, target_feature(enable = "avx512f,avx2,fma"));
    instruction_set!(avx512_f64, f64, Avx512F64, target_feature(enable = "avx512f,avx2,fma"));

    macro_rules! best {
        ($avx512:ident, $avx2:ident, $portable:ident) => {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && may("avx2") {
                if is_x86_feature_detected!("avx512f") && may("avx512") {
                    &$avx512::OPS
                } else {
                    &$avx2::OPS
                }
            } else {
                &$portable::OPS
            }
        };
    }

    #[cfg(not(test))]
    fn may(_set: &str) -> bool {
        true
    }

    /// Whether tests may use the set: all up to the one that `KERNELS` names, so that every test of the
    /// kernels can be run on every set that the processor has.
    #[cfg(test)]
    fn may(set: &str) -> bool {
        const SETS: [&str; 3] = ["portable", "avx2", "avx512"];
        let place = |set: &str| SETS.iter().position(|known| *known == set);
        let Ok(most) = std::env::var("KERNELS") else { return true };
        let most = place(&most).unwrap_or_else(|| panic!("KERNELS is {most}, not one of {SETS:?}"));
        place(set).is_some_and(|set| set <= most)
    }

    pub(in super::super) fn ops_f32() -> &'static Ops<f32> {
        best!(avx512_f32, avx2_f32, portable_f32)
    }

    pub(in super::super) fn ops_f64() -> &'static Ops<f64> {
        best!(avx512_f64, avx2_f64, portable_f64)
    }

    #[cfg(test)]
    macro_rules! all {
        ($avx512:ident, $avx2:ident, $portable:ident) => {{
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2 && is_x86_feature_detected!("avx512f");
            let best = [(avx2, &$avx2::OPS), (avx512, &$avx512::OPS)];
            let best = best.into_iter().filter(|(is_here, _)| *is_here).map(|(_, ops)| ops);
            std::iter::once(&$portable::OPS).chain(best).collect()
        }};
    }

    /// Every table this processor can run.
    #[cfg(test)]
    pub(in super::super) fn all_f32() -> Vec<&'static Ops<f32>> {
        all!(avx512_f32, avx2_f32, portable_f32)
    }

    /// Every table this processor can run.
    #[cfg(test)]
    pub(in super::super) fn all_f64() -> Vec<&'static Ops<f64>> {
        all!(avx512_f64, avx2_f64, portable_f64)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{ops_f32, ops_f64};

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn ops_f32() -> &'static Ops<f32> {
    &portable_f32::OPS
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn ops_f64() -> &'static Ops<f64> {
    &portable_f64::OPS
}

#[cfg(all(test, target_arch = "x86_64"))]
pub(super) use x86::{all_f32, all_f64};

#[cfg(all(test, not(target_arch = "x86_64")))]
pub(super) fn all_f32() -> Vec<&'static Ops<f32>> {
    vec![&portable_f32::OPS]
}

#[cfg(all(test, not(target_arch = "x86_64")))]
pub(super) fn all_f64() -> Vec<&'static Ops<f64>> {
    vec![&portable_f64::OPS]
}
