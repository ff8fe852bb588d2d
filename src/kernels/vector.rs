//! A vector register as a type, so that each matrix kernel is written once for all instruction
//! sets.

use super::Scalar;

/// One vector register of numbers.
///
/// # Safety
/// Every method may be called only where the instruction set behind the type is available. Loads
/// and stores touch `LANES` numbers at the pointer, without alignment.
pub(super) unsafe trait Vector: Copy {
    /// The number in a lane.
    type Scalar: Scalar;
    /// Numbers in a register.
    const LANES: usize;
    /// Rows of a register tile come in one, two or three times this many; the accumulators of three
    /// times, two vectors wide, fill the register file.
    const GRANULE: usize;
    /// Columns of a register tile.
    const PANEL: usize = 2 * Self::LANES;

    unsafe fn splat(value: Self::Scalar) -> Self;
    unsafe fn load(from: *const Self::Scalar) -> Self;
    unsafe fn store(self, to: *mut Self::Scalar);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger; NaN where `self` is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// `self` where `key > 0`, else `other`.
    unsafe fn where_positive(self, key: Self, other: Self) -> Self;

    /// Transposes a `LANES` x `LANES` block; the strides are those of its rows.
    #[inline(always)]
    unsafe fn transpose(
        from: *const Self::Scalar,
        from_stride: usize,
        to: *mut Self::Scalar,
        to_stride: usize,
    ) {
        for i in 0..Self::LANES {
            for j in 0..Self::LANES {
                // SAFETY: inside the two blocks, which the caller vouches for.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }
}

/// Four numbers without a particular instruction set: the compiler finds SSE2 or NEON for them.
#[derive(Clone, Copy)]
pub(super) struct Portable<T>([T; 4]);

impl<T: Scalar> Portable<T> {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(T, T) -> T) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

// SAFETY: no instruction set is assumed.
unsafe impl<T: Scalar> Vector for Portable<T> {
    type Scalar = T;
    const LANES: usize = 4;
    const GRANULE: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: T) -> Self {
        Self([value; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: the caller vouches for four numbers.
        Self(unsafe { from.cast::<[T; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut T) {
        // SAFETY: the caller vouches for four numbers.
        unsafe { to.cast::<[T; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].times_plus(factor.0[i], addend.0[i])))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, T::at_least)
    }

    #[inline(always)]
    unsafe fn where_positive(self, key: Self, other: Self) -> Self {
        Self(std::array::from_fn(|i| if key.0[i] > T::ZERO { self.0[i] } else { other.0[i] }))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2F32, Avx2F64, Avx512F32, Avx512F64};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Vector;

    macro_rules! vector {
        ($name:ident, $scalar:ty, $register:ty, $lanes:literal, $granule:literal,
         $splat:ident, $load:ident, $store:ident, $add:ident, $mul:ident, $mul_add:ident,
         $max:ident, $select:expr, $transpose:item) => {
            #[derive(Clone, Copy)]
            pub(in super::super) struct $name($register);

            // SAFETY: each method is one or two instructions of the set, and asks of its caller
            // what the trait does.
            unsafe impl Vector for $name {
                type Scalar = $scalar;
                const LANES: usize = $lanes;
                const GRANULE: usize = $granule;

                #[inline(always)]
                unsafe fn splat(value: $scalar) -> Self {
                    // SAFETY: the caller's promise, passed on.
                    unsafe { Self($splat(value)) }
                }
                #[inline(always)]
                unsafe fn load(from: *const $scalar) -> Self {
                    // SAFETY: the caller's promise, passed on.
                    unsafe { Self($load(from)) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut $scalar) {
                    // SAFETY: the caller's promise, passed on.
                    unsafe { $store(to, self.0) }
                }
                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: the caller's promise, passed on.
                    unsafe { Self($add(self.0, other.0)) }
                }
                #[inline(always)]
                unsafe fn mul(self, other: Self) -> Self {
                    // SAFETY: the caller's promise, passed on.
                    unsafe { Self($mul(self.0, other.0)) }
                }
                #[inline(always)]
                unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
                    // SAFETY: the caller's promise, passed on.
                    unsafe { Self($mul_add(self.0, factor.0, addend.0)) }
                }
                #[inline(always)]
                unsafe fn max(self, other: Self) -> Self {
                    // The instruction returns its second operand if either is NaN.
                    // SAFETY: the caller's promise, passed on.
                    unsafe { Self($max(other.0, self.0)) }
                }
                #[inline(always)]
                unsafe fn where_positive(self, key: Self, other: Self) -> Self {
                    // SAFETY: the caller's promise, passed on.
                    unsafe { Self($select(self.0, key.0, other.0)) }
                }
                $transpose
            }
        };
    }

    vector!(
        Avx512F32,
        f32,
        __m512,
        16,
        4,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_mul_ps,
        _mm512_fmadd_ps,
        _mm512_max_ps,
        |value, key, other| {
            let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(key, _mm512_setzero_ps());
            _mm512_mask_blend_ps(positive, other, value)
        },
        /// Four rounds of shuffles instead of 256 scalar moves.
        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: the caller vouches for the two 16 x 16 blocks and for AVX-512.
            unsafe {
                let mut r = [_mm512_setzero_ps(); 16];
                for (i, row) in r.iter_mut().enumerate() {
                    *row = _mm512_loadu_ps(from.add(i * from_stride));
                }
                // Within each 128-bit part: 4 x 4 transposes of rows 4g .. 4g + 4.
                let mut q = [_mm512_setzero_ps(); 16];
                for g in 0..4 {
                    let ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(r[4 * g], r[4 * g + 1]));
                    let ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(r[4 * g], r[4 * g + 1]));
                    let cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(r[4 * g + 2], r[4 * g + 3]));
                    let cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(r[4 * g + 2], r[4 * g + 3]));
                    q[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
                    q[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
                    q[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
                    q[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
                }
                // `q[4g + j]` holds, in part p, column 4p + j of rows 4g .. 4g + 4: a 4 x 4
                // transpose of parts.
                for j in 0..4 {
                    let first_low = _mm512_shuffle_f32x4::<0x44>(q[j], q[4 + j]);
                    let first_high = _mm512_shuffle_f32x4::<0xee>(q[j], q[4 + j]);
                    let last_low = _mm512_shuffle_f32x4::<0x44>(q[8 + j], q[12 + j]);
                    let last_high = _mm512_shuffle_f32x4::<0xee>(q[8 + j], q[12 + j]);
                    let columns = [
                        _mm512_shuffle_f32x4::<0x88>(first_low, last_low),
                        _mm512_shuffle_f32x4::<0xdd>(first_low, last_low),
                        _mm512_shuffle_f32x4::<0x88>(first_high, last_high),
                        _mm512_shuffle_f32x4::<0xdd>(first_high, last_high),
                    ];
                    for (p, column) in columns.into_iter().enumerate() {
                        _mm512_storeu_ps(to.add((4 * p + j) * to_stride), column);
                    }
                }
            }
        }
    );

    vector!(
        Avx512F64,
        f64,
        __m512d,
        8,
        4,
        _mm512_set1_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_add_pd,
        _mm512_mul_pd,
        _mm512_fmadd_pd,
        _mm512_max_pd,
        |value, key, other| {
            let positive = _mm512_cmp_pd_mask::<_CMP_GT_OQ>(key, _mm512_setzero_pd());
            _mm512_mask_blend_pd(positive, other, value)
        },
        const PANEL: usize = 16;
    );

    vector!(
        Avx2F32,
        f32,
        __m256,
        8,
        2,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps,
        _mm256_max_ps,
        |value, key, other| {
            let positive = _mm256_cmp_ps::<_CMP_GT_OQ>(key, _mm256_setzero_ps());
            _mm256_blendv_ps(other, value, positive)
        },
        /// Three rounds of shuffles instead of 64 scalar moves.
        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: the caller vouches for the two 8 x 8 blocks and for AVX2.
            unsafe {
                let row = |i: usize| _mm256_loadu_ps(from.add(i * from_stride));
                let mut q = [_mm256_setzero_ps(); 8];
                for g in 0..2 {
                    let (a, b, c, d) = (row(4 * g), row(4 * g + 1), row(4 * g + 2), row(4 * g + 3));
                    let ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
                    let ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
                    let cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
                    let cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
                    q[4 * g] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low));
                    q[4 * g + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low));
                    q[4 * g + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high));
                    q[4 * g + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high));
                }
                for j in 0..4 {
                    let (low, high) = (q[j], q[4 + j]);
                    let column = _mm256_permute2f128_ps::<0x20>(low, high);
                    _mm256_storeu_ps(to.add(j * to_stride), column);
                    let column = _mm256_permute2f128_ps::<0x31>(low, high);
                    _mm256_storeu_ps(to.add((4 + j) * to_stride), column);
                }
            }
        }
    );

    vector!(
        Avx2F64,
        f64,
        __m256d,
        4,
        2,
        _mm256_set1_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_add_pd,
        _mm256_mul_pd,
        _mm256_fmadd_pd,
        _mm256_max_pd,
        |value, key, other| {
            let positive = _mm256_cmp_pd::<_CMP_GT_OQ>(key, _mm256_setzero_pd());
            _mm256_blendv_pd(other, value, positive)
        },
        const PANEL: usize = 8;
    );
}
