//! The matrix products, on activations that stay in the layout the next product reads.
//!
//! Pixels (or samples) lie along the vector lanes, in *panels* of `V::PANEL`: a panel of `k`
//! channels is a row-major `[k, PANEL]` matrix, and a tile of activations is a sequence of panels.
//! Weights are packed in blocks of up to `3 * V::GRANULE` rows, `[inputs, rows]` each, so that a
//! register tile reads both operands in order and writes its result as a panel again: nothing
//! between two layers is copied, transposed or packed.

// Register tiles are indexed by row and column throughout; iterators would hide the correspondence.
#![allow(clippy::needless_range_loop)]

use super::Scalar;
use super::vector::Vector;

/// What happens to a register tile when it is stored.
#[derive(Clone, Copy)]
pub(super) enum Finish<T> {
    /// Stored as it is.
    Linear,
    /// Leaky ReLU with this negative slope, at most 1.
    Relu(T),
    /// Multiplied by the slope of the leaky ReLU whose outputs, in the layout of the result, are
    /// these.
    ReluSlope(*const T, T),
    /// Added to what is there.
    Accumulate,
}

/// `c[panel] = finish(bias + a · b[panel])` for each panel.
pub(super) struct Product<T> {
    /// Packed weights.
    pub a: *const T,
    /// Rows of the result, a multiple of the granule.
    pub rows: usize,
    /// Columns of the weights.
    pub depth: usize,
    /// For each block of rows the columns that are not all zero; null where none is looked for.
    pub steps: *const [usize; 2],
    /// First panel of the input, and the distance to the next.
    pub b: *const T,
    pub b_stride: usize,
    /// First panel of the result, and the distance to the next.
    pub c: *mut T,
    pub c_stride: usize,
    pub panels: usize,
    /// A number for each row, or null.
    pub bias: *const T,
    pub finish: Finish<T>,
}

/// `out[o, i] += sum over pixels of d[o, pixel] · input[i, pixel]`, or `=`.
pub(super) struct WeightGradient<T> {
    /// Panels of the gradient of the layer's output, and the distance between two.
    pub d: *const T,
    pub d_stride: usize,
    /// Rows of the result, a multiple of the granule.
    pub rows: usize,
    /// The transposed input: for each group of `PANEL` inputs a matrix `[pixels, PANEL]`.
    pub input: *const T,
    /// Columns of the result, a multiple of `LANES`; also the distance between its rows.
    pub columns: usize,
    pub panels: usize,
    /// For each block of rows the columns that are asked for, the others keeping what they hold; null
    /// where all are.
    pub steps: *const [usize; 2],
    pub out: *mut T,
    /// Whether the result replaces what is in `out` instead of being added.
    pub replace: bool,
}

/// Operands of one register tile: `segments` runs of `depth` steps each.
struct Tile<T> {
    a: *const T,
    a_stride: usize,
    b: *const T,
    b_stride: usize,
    segments: usize,
    depth: usize,
    bias: *const T,
    c: *mut T,
    c_row: usize,
    finish: Finish<T>,
}

/// Computes a tile of `ROWS` rows and `WIDE` vectors.
///
/// Row `i`, step `k` of `a` is at `k * ROWS + i` if `PACKED`, at `i * PANEL + k` (a panel) if not.
#[inline(always)]
unsafe fn tile<V: Vector, const ROWS: usize, const WIDE: usize, const PACKED: bool>(
    t: Tile<V::Scalar>,
) {
    // SAFETY: all offsets are inside the operands as `Product` and `WeightGradient` describe them.
    unsafe {
        let mut sum = [[V::splat(V::Scalar::ZERO); WIDE]; ROWS];
        if !t.bias.is_null() {
            for i in 0..ROWS {
                sum[i] = [V::splat(*t.bias.add(i)); WIDE];
            }
        }
        for segment in 0..t.segments {
            let mut a = t.a.add(segment * t.a_stride);
            let mut b = t.b.add(segment * t.b_stride);
            for _ in 0..t.depth {
                let mut right = [V::splat(V::Scalar::ZERO); WIDE];
                for j in 0..WIDE {
                    right[j] = V::load(b.add(j * V::LANES));
                }
                for i in 0..ROWS {
                    let left = V::splat(*a.add(if PACKED { i } else { i * V::PANEL }));
                    for j in 0..WIDE {
                        sum[i][j] = left.mul_add(right[j], sum[i][j]);
                    }
                }
                a = a.add(if PACKED { ROWS } else { 1 });
                b = b.add(V::PANEL);
            }
        }
        match t.finish {
            Finish::Linear => {
                for i in 0..ROWS {
                    for j in 0..WIDE {
                        sum[i][j].store(t.c.add(i * t.c_row + j * V::LANES));
                    }
                }
            }
            Finish::Relu(slope) => {
                let slope = V::splat(slope);
                for i in 0..ROWS {
                    for j in 0..WIDE {
                        let value = sum[i][j];
                        value.max(value.mul(slope)).store(t.c.add(i * t.c_row + j * V::LANES));
                    }
                }
            }
            Finish::ReluSlope(outputs, slope) => {
                let slope = V::splat(slope);
                for i in 0..ROWS {
                    for j in 0..WIDE {
                        let at = i * t.c_row + j * V::LANES;
                        let value = sum[i][j];
                        value
                            .where_positive(V::load(outputs.add(at)), value.mul(slope))
                            .store(t.c.add(at));
                    }
                }
            }
            Finish::Accumulate => {
                for i in 0..ROWS {
                    for j in 0..WIDE {
                        let to = t.c.add(i * t.c_row + j * V::LANES);
                        sum[i][j].add(V::load(to)).store(to);
                    }
                }
            }
        }
    }
}

/// [`tile`] with a number of rows known at run time only: 1, 2 or 3 granules.
#[inline(always)]
unsafe fn tile_of<V: Vector, const WIDE: usize, const PACKED: bool>(
    rows: usize,
    t: Tile<V::Scalar>,
) {
    // SAFETY: passed on.
    unsafe {
        match (V::GRANULE, rows) {
            (4, 12) => tile::<V, 12, WIDE, PACKED>(t),
            (4, 8) => tile::<V, 8, WIDE, PACKED>(t),
            (4, 4) => tile::<V, 4, WIDE, PACKED>(t),
            (2, 6) => tile::<V, 6, WIDE, PACKED>(t),
            (2, 4) => tile::<V, 4, WIDE, PACKED>(t),
            (2, 2) => tile::<V, 2, WIDE, PACKED>(t),
            _ => unreachable!("{rows} rows in a tile with granule {}", V::GRANULE),
        }
    }
}

/// Runs a [`Product`].
#[inline(always)]
pub(super) unsafe fn product<V: Vector>(p: &Product<V::Scalar>) {
    for panel in 0..p.panels {
        let mut row = 0;
        while row < p.rows {
            let rows = (p.rows - row).min(3 * V::GRANULE);
            let [first, end] = match p.steps.is_null() {
                true => [0, p.depth],
                // SAFETY: there is one for each block.
                false => unsafe { *p.steps.add(row / (3 * V::GRANULE)) },
            };
            // SAFETY: row < rows and panel < panels, so the offsets are inside the operands.
            unsafe {
                let to = panel * p.c_stride + row * V::PANEL;
                let t = Tile {
                    a: p.a.add(row * p.depth + first * rows),
                    a_stride: 0,
                    b: p.b.add(panel * p.b_stride + first * V::PANEL),
                    b_stride: 0,
                    segments: 1,
                    depth: end - first,
                    bias: if p.bias.is_null() { p.bias } else { p.bias.add(row) },
                    c: p.c.add(to),
                    c_row: V::PANEL,
                    finish: match p.finish {
                        Finish::ReluSlope(outputs, slope) => {
                            Finish::ReluSlope(outputs.add(to), slope)
                        }
                        other => other,
                    },
                };
                tile_of::<V, 2, true>(rows, t);
            }
            row += rows;
        }
    }
}

/// Runs a [`WeightGradient`].
#[inline(always)]
pub(super) unsafe fn weight_gradient<V: Vector>(p: &WeightGradient<V::Scalar>) {
    let mut column = 0;
    while column < p.columns {
        let mut row = 0;
        while row < p.rows {
            let rows = (p.rows - row).min(3 * V::GRANULE);
            let [first, end] = match p.steps.is_null() {
                true => [0, p.columns],
                // SAFETY: there is one for each block.
                false => unsafe { *p.steps.add(row / (3 * V::GRANULE)) },
            };
            if column >= end || column + V::PANEL <= first {
                row += rows;
                continue;
            }
            // SAFETY: row < rows and column < columns, so the offsets are inside the operands; a
            // group of inputs is PANEL wide and `panels * PANEL` long.
            unsafe {
                let t = Tile {
                    a: p.d.add(row * V::PANEL),
                    a_stride: p.d_stride,
                    b: p.input.add(column * p.panels * V::PANEL),
                    b_stride: V::PANEL * V::PANEL,
                    segments: p.panels,
                    depth: V::PANEL,
                    bias: std::ptr::null(),
                    c: p.out.add(row * p.columns + column),
                    c_row: p.columns,
                    finish: if p.replace { Finish::Linear } else { Finish::Accumulate },
                };
                if p.columns - column >= V::PANEL {
                    tile_of::<V, 2, false>(rows, t);
                } else {
                    tile_of::<V, 1, false>(rows, t);
                }
            }
            row += rows;
        }
        column += V::PANEL;
    }
}

/// Transposes panels of `channels` (a multiple of `LANES`) into the layout that [`WeightGradient`]
/// reads.
#[inline(always)]
pub(super) unsafe fn transpose<V: Vector>(
    from: *const V::Scalar,
    from_stride: usize,
    channels: usize,
    panels: usize,
    to: *mut V::Scalar,
) {
    for panel in 0..panels {
        for channel in (0..channels).step_by(V::LANES) {
            let (group, place) = (channel / V::PANEL, channel % V::PANEL);
            for half in 0..2 {
                let pixel = half * V::LANES;
                // SAFETY: the source block starts at (channel, pixel) of a panel, the target at
                // (pixel, place) of a group; both are LANES x LANES.
                unsafe {
                    let source = from.add(panel * from_stride + channel * V::PANEL + pixel);
                    let row = group * panels * V::PANEL + panel * V::PANEL + pixel;
                    V::transpose(source, V::PANEL, to.add(row * V::PANEL + place), V::PANEL);
                }
            }
        }
    }
}

/// Adds each channel's numbers in all panels to `sums[channel, LANES]`, lane by lane.
#[inline(always)]
pub(super) unsafe fn sum_rows<V: Vector>(
    from: *const V::Scalar,
    stride: usize,
    channels: usize,
    panels: usize,
    sums: *mut V::Scalar,
) {
    for channel in 0..channels {
        // SAFETY: `from` holds `panels` panels of `channels` rows, `sums` a vector for each
        // channel.
        unsafe {
            let to = sums.add(channel * V::LANES);
            let mut sum = V::load(to);
            for panel in 0..panels {
                let row = from.add(panel * stride + channel * V::PANEL);
                sum = sum.add(V::load(row).add(V::load(row.add(V::LANES))));
            }
            sum.store(to);
        }
    }
}

/// Sum of a row in f64, in an order that depends on its length only.
#[inline(always)]
pub(super) fn total<T: Scalar>(row: &[T]) -> T {
    let mut sums = [0.0; 32];
    let (chunks, rest) = row.as_chunks::<32>();
    for chunk in chunks {
        for i in 0..32 {
            sums[i] += chunk[i].to_f64();
        }
    }
    T::from_f64(sums.iter().sum::<f64>() + rest.iter().map(|value| value.to_f64()).sum::<f64>())
}
