//! Convolutions between [`Framed`](super::Framed) pictures as matrix products: every neighbour is a
//! fixed distance away, so that nothing is gathered.

// Register tiles are indexed by row and column throughout; iterators would hide the correspondence.
#![allow(clippy::needless_range_loop)]

use super::Scalar;
use super::vector::Vector;

/// What happens to a register tile of a [`Convolution`] when it is stored.
#[derive(Clone, Copy)]
pub(super) enum Ending<T> {
    /// Stored as it is.
    Linear,
    /// Added to these numbers, in the layout of the result.
    Plus(*const T),
    /// Zero where these numbers, in the layout of the result, are not positive: the gradient of a
    /// ReLU with these outputs.
    WherePositive(*const T),
}

/// `c[o, q] = ending(bias[o] + sum over taps and channels of a[o, tap, channel] · b[channel, q +
/// shift(tap)])`.
pub(super) struct Convolution<'a, T> {
    /// Weights, packed in blocks of up to three granules of rows, `[taps, channels, rows]` each.
    pub a: *const T,
    /// Rows of the result, a multiple of the granule.
    pub rows: usize,
    /// Channels of the input.
    pub channels: usize,
    /// First pixel of the input's first channel, and the distance to the next channel.
    pub b: *const T,
    /// First pixel of the result's first channel.
    pub c: *mut T,
    /// The distance between two channels, the same in input, result and ending.
    pub stride: usize,
    /// The distance of each tap's neighbour.
    pub shifts: &'a [isize],
    /// Pixels, a multiple of `PANEL`.
    pub len: usize,
    /// A number for each row, or null.
    pub bias: *const T,
    pub ending: Ending<T>,
}

/// Computes a tile of `ROWS` rows and `PANEL` pixels.
#[inline(always)]
unsafe fn tile<V: Vector, const ROWS: usize>(p: &Convolution<V::Scalar>, row: usize, pixel: usize) {
    // SAFETY: all offsets are inside the operands as `Convolution` describes them; the input is
    // readable as far before and after its pixels as the shifts reach.
    unsafe {
        let mut sum = [[V::splat(V::Scalar::ZERO); 2]; ROWS];
        if !p.bias.is_null() {
            for i in 0..ROWS {
                sum[i] = [V::splat(*p.bias.add(row + i)); 2];
            }
        }
        let mut a = p.a.add(row * p.channels * p.shifts.len());
        for &shift in p.shifts {
            let b = p.b.offset(pixel as isize + shift);
            for channel in 0..p.channels {
                let b = b.add(channel * p.stride);
                let right = [V::load(b), V::load(b.add(V::LANES))];
                for i in 0..ROWS {
                    let left = V::splat(*a.add(i));
                    for j in 0..2 {
                        sum[i][j] = left.mul_add(right[j], sum[i][j]);
                    }
                }
                a = a.add(ROWS);
            }
        }
        // One loop for each ending: with the choice inside, the tile is not held in registers.
        let at = row * p.stride + pixel;
        match p.ending {
            Ending::Linear => {
                for i in 0..ROWS {
                    for j in 0..2 {
                        sum[i][j].store(p.c.add(at + i * p.stride + j * V::LANES));
                    }
                }
            }
            Ending::Plus(more) => {
                for i in 0..ROWS {
                    for j in 0..2 {
                        let at = at + i * p.stride + j * V::LANES;
                        sum[i][j].add(V::load(more.add(at))).store(p.c.add(at));
                    }
                }
            }
            Ending::WherePositive(outputs) => {
                let zero = V::splat(V::Scalar::ZERO);
                for i in 0..ROWS {
                    for j in 0..2 {
                        let at = at + i * p.stride + j * V::LANES;
                        let key = V::load(outputs.add(at));
                        sum[i][j].where_positive(key, zero).store(p.c.add(at));
                    }
                }
            }
        }
    }
}

/// Runs a [`Convolution`].
#[inline(always)]
pub(super) unsafe fn convolution<V: Vector>(p: &Convolution<V::Scalar>) {
    for pixel in (0..p.len).step_by(V::PANEL) {
        let mut row = 0;
        while row < p.rows {
            let rows = (p.rows - row).min(3 * V::GRANULE);
            // SAFETY: row < rows and pixel < len, so the offsets are inside the operands.
            unsafe {
                match (V::GRANULE, rows) {
                    (4, 12) => tile::<V, 12>(p, row, pixel),
                    (4, 8) => tile::<V, 8>(p, row, pixel),
                    (4, 4) => tile::<V, 4>(p, row, pixel),
                    (2, 6) => tile::<V, 6>(p, row, pixel),
                    (2, 4) => tile::<V, 4>(p, row, pixel),
                    (2, 2) => tile::<V, 2>(p, row, pixel),
                    _ => unreachable!("{rows} rows in a tile with granule {}", V::GRANULE),
                }
            }
            row += rows;
        }
    }
}

/// Channels of the input in a register tile of a [`TapGradient`].
pub(super) const COLUMNS: usize = 4;

/// Pixels after which a [`TapGradient`] goes on to the next tile: those of eight channels stay in
/// the L1 cache over all taps.
const SEGMENT: usize = 1024;

/// `out[o, tap, channel] += sum over pixels of d[o, q] · x[channel, q + shift(tap)]`.
pub(super) struct TapGradient<'a, T> {
    /// Gradient of the convolution's output; zero outside of the pictures.
    pub d: *const T,
    /// Rows of `d`, a multiple of the granule.
    pub rows: usize,
    /// Input of the convolution, `columns` channels of it, a multiple of [`COLUMNS`].
    pub x: *const T,
    pub columns: usize,
    /// The distance between two channels of `d` and of `x`.
    pub stride: usize,
    /// The distance of each tap's neighbour.
    pub shifts: &'a [isize],
    /// Pixels, a multiple of `PANEL`.
    pub len: usize,
    /// `[rows, taps, columns]`.
    pub out: *mut T,
}

/// Adds the products of `ROWS` rows and [`COLUMNS`] channels of one tap over a segment.
#[inline(always)]
unsafe fn dots<V: Vector, const ROWS: usize>(
    p: &TapGradient<V::Scalar>,
    [row, column, tap]: [usize; 3],
    pixels: std::ops::Range<usize>,
) {
    // SAFETY: all offsets are inside the operands as `TapGradient` describes them; the input is
    // readable as far before and after its pixels as the shifts reach.
    unsafe {
        let d = p.d.add(row * p.stride);
        let x = p.x.add(column * p.stride).offset(p.shifts[tap]);
        let mut sum = [[V::splat(V::Scalar::ZERO); COLUMNS]; ROWS];
        for pixel in pixels.step_by(V::LANES) {
            let mut right = [V::splat(V::Scalar::ZERO); COLUMNS];
            for j in 0..COLUMNS {
                right[j] = V::load(x.add(j * p.stride + pixel));
            }
            for i in 0..ROWS {
                let left = V::load(d.add(i * p.stride + pixel));
                for j in 0..COLUMNS {
                    sum[i][j] = left.mul_add(right[j], sum[i][j]);
                }
            }
        }
        for i in 0..ROWS {
            let out = p.out.add(((row + i) * p.shifts.len() + tap) * p.columns + column);
            for j in 0..COLUMNS {
                *out.add(j) += total(sum[i][j]);
            }
        }
    }
}

/// Numbers in the widest register.
const MOST_LANES: usize = 16;

/// The sum of a register's numbers, by halves.
#[inline(always)]
unsafe fn total<V: Vector>(sum: V) -> V::Scalar {
    let mut lanes = [V::Scalar::ZERO; MOST_LANES];
    // SAFETY: no register holds more numbers.
    unsafe { sum.store(lanes.as_mut_ptr()) };
    let mut half = V::LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Runs a [`TapGradient`].
#[inline(always)]
pub(super) unsafe fn tap_gradient<V: Vector>(p: &TapGradient<V::Scalar>) {
    for start in (0..p.len).step_by(SEGMENT) {
        let end = (start + SEGMENT).min(p.len);
        for row in (0..p.rows).step_by(V::GRANULE) {
            for column in (0..p.columns).step_by(COLUMNS) {
                for tap in 0..p.shifts.len() {
                    // SAFETY: row, column, tap and pixels are inside the operands.
                    unsafe {
                        match V::GRANULE {
                            4 => dots::<V, 4>(p, [row, column, tap], start..end),
                            2 => dots::<V, 2>(p, [row, column, tap], start..end),
                            granule => unreachable!("granule {granule}"),
                        }
                    }
                }
            }
        }
    }
}

/// `to = max(scale · from + shift, 0)` inside of the pictures, 0 outside.
#[inline(always)]
pub(super) fn affine_relu<T: Scalar>(
    from: &[T],
    [scale, shift]: [T; 2],
    inside: &[T],
    to: &mut [T],
) {
    for ((to, from), inside) in to.iter_mut().zip(from).zip(inside) {
        *to = (*from * scale + shift).at_least(T::ZERO) * *inside;
    }
}

/// Lanes in which sums over a row are kept, in f64 each.
pub(super) const SUMS: usize = 16;

/// `dx += scale · d`, and `+ offset + slope · x` inside of the pictures.
#[inline(always)]
pub(super) fn norm_gradient<T: Scalar>(
    [d, x, inside]: [&[T]; 3],
    [scale, offset, slope]: [T; 3],
    dx: &mut [T],
) {
    for (((dx, d), x), inside) in dx.iter_mut().zip(d).zip(x).zip(inside) {
        *dx += *d * scale + (*x * slope + offset) * *inside;
    }
}

/// The sum of `(x - mean)^power` over the pixels inside of the pictures, for power 1 and 2.
#[inline(always)]
pub(super) fn deviations<T: Scalar>(x: &[T], mean: T, inside: &[T]) -> [f64; 2] {
    let mut sums = [[0.0; SUMS]; 2];
    for (x, inside) in x.as_chunks::<SUMS>().0.iter().zip(inside.as_chunks::<SUMS>().0) {
        for i in 0..SUMS {
            let deviation = ((x[i] - mean) * inside[i]).to_f64();
            sums[0][i] += deviation;
            sums[1][i] += deviation * deviation;
        }
    }
    sums.map(|sums| sums.iter().sum())
}
