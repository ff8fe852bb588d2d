//! Rational-quadratic splines: values, inverses and gradients in one pass over the conditioner's
//! numbers.
//!
//! A few samples at a time, as many as fill the widest vectors: every step is a loop over them, which
//! the compiler turns into vector code. The bin is found by comparing with one knot after the other, so
//! nothing is gathered, and only the two slopes at its ends are computed.

// The samples are indexed throughout; iterators would hide that all rows are in step.
#![allow(clippy::needless_range_loop)]

use super::Scalar;
use super::log_scale::Task;

/// Most bins for which there is a kernel.
pub const MOST_BINS: usize = 64;

/// Samples taken at a time.
const LANES: usize = 16;

/// A number a sample.
type Lane<T> = [T; LANES];

/// What a spline does outside of its interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tails {
    /// The identity; the slopes at both ends are 1.
    Identity,
    /// A line with the slope of the end.
    Linear,
    /// The values are on a circle as long as the interval.
    Circular,
}

/// From the conditioner's numbers to sizes of bins and slopes at knots.
#[derive(Clone, Copy, Debug)]
pub enum Form<T> {
    /// `least + (1 - bins least) softmax(numbers)` of the interval, and
    /// `least_slope + softplus(number + slope_offset)`, the number held below `steepest`.
    Floored {
        /// Least width of a bin, as a fraction of the interval.
        least_width: T,
        /// Least height of a bin, as a fraction of the interval.
        least_height: T,
        /// Least slope.
        least_slope: T,
        /// What makes a number of 0 the slope 1.
        slope_offset: T,
        /// Largest number for a slope.
        steepest: T,
    },
    /// `softmax(bend(numbers, size_limit))` and `exp(bend(number, slope_limit))`, with
    /// `bend(u, c) = u / (1 + |u / c|)`.
    Bent {
        /// Limit of the numbers for sizes.
        size_limit: T,
        /// Limit of the numbers for slopes.
        slope_limit: T,
    },
}

/// Splines of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Spline<T> {
    /// Bins, up to [`MOST_BINS`].
    pub bins: usize,
    /// First and last knot on both axes.
    pub interval: [T; 2],
    /// What happens outside.
    pub tails: Tails,
    /// How the conditioner's numbers are read.
    pub form: Form<T>,
}

impl<T> Spline<T> {
    /// Numbers of each spline: widths, heights and slopes.
    pub fn params_per_channel(&self) -> usize {
        2 * self.bins + self.slopes()
    }

    fn slopes(&self) -> usize {
        match self.tails {
            Tails::Identity => self.bins - 1,
            Tails::Linear => self.bins + 1,
            Tails::Circular => self.bins,
        }
    }
}

/// One transformed channel of a block, and what is to be done with it.
pub(super) struct SplineRow<'a, T> {
    pub spline: Spline<T>,
    /// Input of the task and, after it, its output.
    pub value: &'a mut [T],
    /// Row `k` of the channel's numbers starts at `k * stride`; after a gradient task their gradients.
    pub params: &'a mut [T],
    pub stride: usize,
    pub task: Task<'a, T>,
}

#[inline(always)]
fn each<T: Scalar>(f: impl Fn(usize) -> T) -> Lane<T> {
    let mut lane = [T::ZERO; LANES];
    for i in 0..LANES {
        lane[i] = f(i);
    }
    lane
}

/// The numbers from `at` on; 0 where there are fewer than a lane.
#[inline(always)]
fn load<T: Scalar>(from: &[T], at: usize, count: usize) -> Lane<T> {
    if count == LANES {
        *from[at..].first_chunk().expect("a whole lane")
    } else {
        let mut lane = [T::ZERO; LANES];
        lane[..count].copy_from_slice(&from[at..at + count]);
        lane
    }
}

#[inline(always)]
fn store<T: Scalar>(lane: Lane<T>, to: &mut [T], at: usize, count: usize) {
    if count == LANES {
        *to[at..].first_chunk_mut().expect("a whole lane") = lane;
    } else {
        to[at..at + count].copy_from_slice(&lane[..count]);
    }
}

#[inline(always)]
fn pick<T: Scalar>(condition: bool, yes: T, no: T) -> T {
    if condition { yes } else { no }
}

/// Beyond it `bend` is at its limit, and the quotient would leave f32.
const FAR: f64 = 1e12;

#[inline(always)]
fn bend<T: Scalar>(u: T, limit: T) -> T {
    let u = u.at_least(T::from_f64(-FAR)).at_most(T::from_f64(FAR));
    u / (T::ONE + (u / limit).abs())
}

#[inline(always)]
fn bend_slope<T: Scalar>(u: T, limit: T) -> T {
    let far = T::from_f64(FAR);
    let size = T::ONE + (u.at_least(-far).at_most(far) / limit).abs();
    pick(u.abs() > far, T::ZERO, T::ONE / (size * size))
}

/// The bins of one axis.
struct Axis<T> {
    /// Softmax of the numbers.
    shares: [Lane<T>; MOST_BINS],
    lower: T,
    upper: T,
    /// A bin is `least + scale share` of the interval.
    least: T,
    scale: T,
}

/// Where the bin of each sample lies on one axis.
struct Side<T> {
    left: Lane<T>,
    right: Lane<T>,
    /// Sums of the shares before and up to the bin.
    before: Lane<T>,
    upto: Lane<T>,
}

impl<T: Scalar> Spline<T> {
    /// Reads the numbers of one axis, the rows from `first` on.
    #[inline(always)]
    fn axis(
        &self,
        params: &[T],
        stride: usize,
        first: usize,
        at: usize,
        count: usize,
        axis: &mut Axis<T>,
    ) {
        let bins = self.bins;
        let (least, limit) = match self.form {
            Form::Floored { least_width, least_height, .. } => {
                (if first == 0 { least_width } else { least_height }, None)
            }
            Form::Bent { size_limit, .. } => (T::ZERO, Some(size_limit)),
        };
        axis.least = least;
        axis.scale = T::ONE - T::from_f64(bins as f64) * least;
        [axis.lower, axis.upper] = self.interval;
        let shares = &mut axis.shares[..bins];
        for (k, share) in shares.iter_mut().enumerate() {
            *share = load(params, (first + k) * stride + at, count);
            if let Some(limit) = limit {
                *share = each(|i| bend(share[i], limit));
            }
        }
        let mut most = shares[0];
        for share in shares.iter() {
            most = each(|i| most[i].at_least(share[i]));
        }
        let mut sum = [T::ZERO; LANES];
        for share in shares.iter_mut() {
            *share = each(|i| (share[i] - most[i]).exp());
            sum = each(|i| sum[i] + share[i]);
        }
        let factor = each(|i| T::ONE / sum[i]);
        for share in shares.iter_mut() {
            *share = each(|i| share[i] * factor[i]);
        }
    }

    /// The bin that holds each value on an axis, and its number; where the number is known, which bin it is
    /// (`of_number`), the one of the number `value`.
    ///
    /// It is the last one whose left knot, or number, is not above the value; the first one of NaN.
    #[inline(always)]
    fn side(&self, axis: &Axis<T>, value: &Lane<T>, of_number: bool) -> (Side<T>, Lane<T>) {
        let zero = [T::ZERO; LANES];
        let range = axis.upper - axis.lower;
        let (mut left, mut before, mut index) = ([axis.lower; LANES], zero, zero);
        let (mut right, mut upto) = ([axis.upper; LANES], zero);
        let (mut knot, mut sizes, mut shares) = ([axis.lower; LANES], zero, zero);
        for (k, share) in axis.shares[..self.bins].iter().enumerate() {
            let number = T::from_f64(k as f64);
            sizes = each(|i| sizes[i] + (share[i] * axis.scale + axis.least));
            let next = if k + 1 == self.bins {
                [axis.upper; LANES]
            } else {
                each(|i| sizes[i] * range + axis.lower)
            };
            let sum = each(|i| shares[i] + share[i]);
            if k == 0 {
                (right, upto) = (next, sum);
            } else {
                let from = if of_number { [number; LANES] } else { knot };
                left = each(|i| pick(value[i] >= from[i], knot[i], left[i]));
                right = each(|i| pick(value[i] >= from[i], next[i], right[i]));
                before = each(|i| pick(value[i] >= from[i], shares[i], before[i]));
                upto = each(|i| pick(value[i] >= from[i], sum[i], upto[i]));
                index = each(|i| pick(value[i] >= from[i], number, index[i]));
            }
            (knot, shares) = (next, sum);
        }
        (Side { left, right, before, upto }, index)
    }

    /// The numbers of the bins at whose left and right end the learned slope of a row is.
    #[inline(always)]
    fn ends_of_slope(&self, row: usize) -> [T; 2] {
        let (left, right) = match self.tails {
            Tails::Identity => (row + 1, row as f64),
            Tails::Linear => (row, row as f64 - 1.0),
            Tails::Circular if row == 0 => (row, self.bins as f64 - 1.0),
            Tails::Circular => (row, row as f64 - 1.0),
        };
        [T::from_f64(left as f64), T::from_f64(right)]
    }

    /// Slope and its derivative by the conditioner's number.
    #[inline(always)]
    fn slope(&self, number: &Lane<T>) -> (Lane<T>, Lane<T>) {
        let (mut slope, mut derivative) = ([T::ZERO; LANES], [T::ZERO; LANES]);
        match self.form {
            Form::Floored { least_slope, slope_offset, steepest, .. } => {
                for i in 0..LANES {
                    let u = number[i].at_most(steepest) + slope_offset;
                    let small = (-u.abs()).exp();
                    slope[i] = u.at_least(T::ZERO) + small.ln_1p_unit() + least_slope;
                    let sigmoid = pick(u > T::ZERO, T::ONE, small) / (T::ONE + small);
                    derivative[i] = pick(number[i] > steepest, T::ZERO, sigmoid);
                }
            }
            Form::Bent { slope_limit, .. } => {
                for i in 0..LANES {
                    slope[i] = bend(number[i], slope_limit).exp();
                    derivative[i] = slope[i] * bend_slope(number[i], slope_limit);
                }
            }
        }
        (slope, derivative)
    }

    /// The slopes at both ends of the bins, with their derivatives by the conditioner's numbers.
    #[inline(always)]
    #[allow(clippy::type_complexity)] // two of a kind
    fn slopes_at(
        &self,
        params: &[T],
        stride: usize,
        at: usize,
        count: usize,
        index: &Lane<T>,
    ) -> [(Lane<T>, Lane<T>); 2] {
        let mut numbers = [[T::ZERO; LANES]; 2];
        for row in 0..self.slopes() {
            let number = load(params, (2 * self.bins + row) * stride + at, count);
            let [left, right] = self.ends_of_slope(row);
            for i in 0..LANES {
                numbers[0][i] = pick(index[i] == left, number[i], numbers[0][i]);
                numbers[1][i] = pick(index[i] == right, number[i], numbers[1][i]);
            }
        }
        let mut slopes = [self.slope(&numbers[0]), self.slope(&numbers[1])];
        if self.tails == Tails::Identity {
            let last = T::from_f64(self.bins as f64 - 1.0);
            for ((slope, derivative), end) in slopes.iter_mut().zip([T::ZERO, last]) {
                for i in 0..LANES {
                    slope[i] = pick(index[i] == end, T::ONE, slope[i]);
                    derivative[i] = pick(index[i] == end, T::ZERO, derivative[i]);
                }
            }
        }
        slopes
    }
}

/// Runs a [`SplineRow`].
#[inline(always)]
pub(super) fn spline_row<T: Scalar>(row: &mut SplineRow<T>) {
    let mut axes = [(); 2].map(|()| Axis {
        shares: [[T::ZERO; LANES]; MOST_BINS],
        lower: T::ZERO,
        upper: T::ZERO,
        least: T::ZERO,
        scale: T::ZERO,
    });
    let whole = row.value.len() / LANES * LANES;
    // Of whole lanes the compiler knows the size.
    for at in (0..whole).step_by(LANES) {
        lane(row, at, LANES, &mut axes);
    }
    if whole < row.value.len() {
        lane(row, whole, row.value.len() - whole, &mut axes);
    }
}

/// A [`SplineRow`] on `count` samples from `at` on.
#[inline(always)]
fn lane<T: Scalar>(row: &mut SplineRow<T>, at: usize, count: usize, axes: &mut [Axis<T>; 2]) {
    let spline = row.spline;
    let (stride, bins) = (row.stride, spline.bins);
    let [lower, upper] = spline.interval;
    let two = T::from_f64(2.0);
    let given = load(row.value, at, count);
    let inverts = match row.task {
        Task::Forward { .. } => false,
        Task::Inverse => true,
        Task::Gradient { invert, .. } => invert,
    };

    // Compared again where it is asked for: masks that are kept become bytes, one by one.
    let is_outside = |i: usize| (given[i] < lower) | (given[i] > upper);
    let mut inner = given;
    if spline.tails == Tails::Circular {
        let period = upper - lower;
        for i in 0..LANES {
            let turns = ((given[i] - lower) / period).floor();
            inner[i] = pick(is_outside(i), given[i] - turns * period, given[i]);
        }
    }
    inner = each(|i| inner[i].at_least(lower).at_most(upper));

    let [widths, heights] = axes;
    spline.axis(row.params, stride, 0, at, count, widths);
    spline.axis(row.params, stride, bins, at, count, heights);
    let (x, y, index);
    if inverts {
        (y, index) = spline.side(heights, &inner, false);
        (x, _) = spline.side(widths, &index, true);
    } else {
        (x, index) = spline.side(widths, &inner, false);
        (y, _) = spline.side(heights, &index, true);
    }
    let [(dl, dl_slope), (dr, dr_slope)] = spline.slopes_at(row.params, stride, at, count, &index);
    let width = each(|i| x.right[i] - x.left[i]);
    let height = each(|i| y.right[i] - y.left[i]);
    let s = each(|i| height[i] / width[i]);

    // The place in the bin, from 0 to 1.
    let place = if inverts {
        each(|i| {
            let r = ((inner[i] - y.left[i]) / height[i]).at_least(T::ZERO).at_most(T::ONE);
            let bent = (dl[i] + dr[i] - two * s[i]) * r;
            let (a, b, c) = (s[i] - dl[i] + bent, dl[i] - bent, s[i] * r);
            let root = (b * b + two * two * a * c).at_least(T::ZERO).sqrt();
            (two * c / (b + root)).at_least(T::ZERO).at_most(T::ONE)
        })
    } else {
        each(|i| ((inner[i] - x.left[i]) / width[i]).at_least(T::ZERO).at_most(T::ONE))
    };
    // Outside, the end's slope, which is that in the place 0 or 1.
    let end_slope = each(|i| pick(given[i] < lower, dl[i], dr[i]));
    let data = if inverts {
        each(|i| {
            let x = x.left[i] + width[i] * place[i];
            match spline.tails {
                Tails::Circular => x,
                Tails::Identity => pick(is_outside(i), given[i], x),
                Tails::Linear => pick(is_outside(i), x + (given[i] - inner[i]) / end_slope[i], x),
            }
        })
    } else {
        given
    };
    if let Task::Inverse = row.task {
        return store(data, row.value, at, count);
    }

    let both = each(|i| place[i] * (T::ONE - place[i]));
    let q = each(|i| s[i] + (dl[i] + dr[i] - two * s[i]) * both[i]);
    let rise = each(|i| (s[i] * place[i] * place[i] + dl[i] * both[i]) / q[i]);
    let steep = each(|i| {
        let (t, rest) = (place[i], T::ONE - place[i]);
        dr[i] * t * t + two * s[i] * both[i] + dl[i] * rest * rest
    });
    match &mut row.task {
        Task::Inverse => unreachable!("it is done"),
        Task::Forward { log_det } => {
            let mut log_slope = each(|i| steep[i].ln() + two * (s[i] / q[i]).ln());
            let z = each(|i| {
                let z = y.left[i] + height[i] * rise[i];
                match spline.tails {
                    Tails::Circular => z,
                    Tails::Identity => pick(is_outside(i), given[i], z),
                    Tails::Linear => {
                        pick(is_outside(i), z + (given[i] - inner[i]) * end_slope[i], z)
                    }
                }
            });
            if spline.tails == Tails::Identity {
                log_slope = each(|i| pick(is_outside(i), T::ZERO, log_slope[i]));
            }
            let before = load(log_det, at, count);
            store(each(|i| before[i] + log_slope[i]), log_det, at, count);
            store(z, row.value, at, count);
        }
        Task::Gradient { dvalue, dlog_det, .. } => {
            let dz = load(dvalue, at, count);
            // What gets into the bin: nothing of a value on a tail but, on a line, the log-slope.
            let is_line = spline.tails == Tails::Linear;
            let on_tail = |i: usize| is_outside(i) & (spline.tails != Tails::Circular);
            let dlog = load(dlog_det, at, count);
            let gz = each(|i| pick(on_tail(i), T::ZERO, dz[i]));
            let gl = each(|i| pick(on_tail(i) & !is_line, T::ZERO, dlog[i]));
            let (mut dleft, mut dright) = ([T::ZERO; LANES], [T::ZERO; LANES]);
            let (mut dx, mut x_ends, mut y_ends) =
                ([T::ZERO; LANES], [[T::ZERO; LANES]; 2], [[T::ZERO; LANES]; 2]);
            for i in 0..LANES {
                let (t, rest, both) = (place[i], T::ONE - place[i], both[i]);
                let drise = gz[i] * height[i];
                let dnum = drise / q[i];
                let dq = -(drise * rise[i] + two * gl[i]) / q[i];
                let dsteep = gl[i] / steep[i];
                let bend = dl[i] + dr[i] - two * s[i];
                let ds = two * gl[i] / s[i]
                    + dnum * t * t
                    + two * dsteep * both
                    + dq * (T::ONE - two * both);
                let dboth = dnum * dl[i] + two * dsteep * s[i] + dq * bend;
                let dt = two * dnum * s[i] * t
                    + two * dsteep * (dr[i] * t - dl[i] * rest)
                    + dboth * (T::ONE - two * t);
                dleft[i] = dnum * both + dsteep * rest * rest + dq * both;
                dright[i] = dsteep * t * t + dq * both;
                dx[i] = dt / width[i];
                let dwidth = -(dt * t + ds * s[i]) / width[i];
                let dheight = gz[i] * rise[i] + ds / width[i];
                x_ends[0][i] = -dx[i] - dwidth;
                x_ends[1][i] = dwidth;
                y_ends[0][i] = gz[i] - dheight;
                y_ends[1][i] = dheight;
            }
            match spline.tails {
                Tails::Circular => {}
                Tails::Identity => dx = each(|i| pick(is_outside(i), dz[i], dx[i])),
                Tails::Linear => {
                    for i in 0..LANES {
                        let beyond = dz[i]
                            * pick(
                                inverts,
                                (given[i] - inner[i]) / end_slope[i],
                                given[i] - inner[i],
                            );
                        let beyond = pick(is_outside(i), beyond, T::ZERO);
                        dleft[i] += pick(given[i] < lower, beyond, T::ZERO);
                        dright[i] += pick(given[i] > upper, beyond, T::ZERO);
                        dx[i] = pick(is_outside(i), dz[i] * end_slope[i], dx[i]);
                    }
                }
            }
            store(dx, dvalue, at, count);
            if inverts {
                store(data, row.value, at, count);
            }
            for (first, axis, side, ends) in
                [(0, &*widths, x, x_ends), (bins, &*heights, y, y_ends)]
            {
                let size_limit = match spline.form {
                    Form::Floored { .. } => None,
                    Form::Bent { size_limit, .. } => Some(size_limit),
                };
                let by_share = (upper - lower) * axis.scale;
                let last = T::from_f64(bins as f64 - 1.0);
                // The first and the last knot do not move.
                let left = each(|i| pick(index[i] > T::ZERO, by_share * ends[0][i], T::ZERO));
                let right = each(|i| pick(index[i] < last, by_share * ends[1][i], T::ZERO));
                let mean = each(|i| left[i] * side.before[i] + right[i] * side.upto[i]);
                for k in 0..bins {
                    let number = T::from_f64(k as f64);
                    let share = &axis.shares[k];
                    let mut gradient = each(|i| {
                        let before = pick(number < index[i], left[i], T::ZERO);
                        let upto = pick(number <= index[i], right[i], T::ZERO);
                        share[i] * (before + upto - mean[i])
                    });
                    let place = (first + k) * stride + at;
                    if let Some(limit) = size_limit {
                        let number = load(row.params, place, count);
                        gradient = each(|i| gradient[i] * bend_slope(number[i], limit));
                    }
                    store(gradient, row.params, place, count);
                }
            }
            let dleft = each(|i| dleft[i] * dl_slope[i]);
            let dright = each(|i| dright[i] * dr_slope[i]);
            for slope in 0..spline.slopes() {
                let [left, right] = spline.ends_of_slope(slope);
                let gradient = each(|i| {
                    pick(index[i] == left, dleft[i], T::ZERO)
                        + pick(index[i] == right, dright[i], T::ZERO)
                });
                store(gradient, row.params, (2 * bins + slope) * stride + at, count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ops;
    use super::super::dispatch::{all_f32, all_f64};
    use super::super::reference::{close, numbers};
    use super::*;

    fn splines<T: Scalar>() -> Vec<Spline<T>> {
        let number = T::from_f64;
        let forms = [
            Form::Floored {
                least_width: number(1e-3),
                least_height: number(2e-3),
                least_slope: number(1e-3),
                slope_offset: number(0.54),
                steepest: number(1e6),
            },
            Form::Bent { size_limit: number(-2.0), slope_limit: number(-4.0) },
        ];
        let tails = [Tails::Identity, Tails::Linear, Tails::Circular];
        let mut splines = Vec::new();
        for (form, tails) in forms.iter().flat_map(|form| tails.map(|tails| (*form, tails))) {
            for bins in [1, 2, 7, MOST_BINS] {
                splines.push(Spline { bins, interval: [-1.5, 2.0].map(number), tails, form });
            }
        }
        splines
    }

    /// Values, log-slopes, inverses; of `loss = sum(dz z + dlog ln dz/dx)` gradients by value and by
    /// parameters, from the data and from the latent.
    fn run<T: Scalar>(ops: &Ops<T>, spline: Spline<T>, x: &[f64], params: &[f64]) -> [Vec<f64>; 7] {
        let count = x.len();
        let of = |from: &[f64]| from.iter().map(|&v| T::from_f64(v)).collect::<Vec<T>>();
        let wide = |from: Vec<T>| from.iter().map(|v| v.to_f64()).collect::<Vec<f64>>();
        let row = |value: &mut [T], params: &mut [T], task: Task<T>| {
            let mut row = SplineRow { spline, value, params, stride: count, task };
            // SAFETY: the tables are those of sets that this processor has.
            unsafe { (ops.spline_row)(&mut row) };
        };
        let (mut z, mut log_det) = (of(x), vec![T::ZERO; count]);
        row(&mut z, &mut of(params), Task::Forward { log_det: &mut log_det });
        let mut back = z.clone();
        row(&mut back, &mut of(params), Task::Inverse);
        let gradient = |from: Vec<T>, invert: bool| {
            let (mut value, mut params) = (from, of(params));
            let (mut dvalue, dlog_det) = (of(&numbers(count, 5)), of(&numbers(count, 6)));
            let mut dgain = T::ZERO;
            let (dgain, dlog_det) = (&mut dgain, &dlog_det[..]);
            let task = Task::Gradient { invert, dvalue: &mut dvalue, dlog_det, dgain };
            row(&mut value, &mut params, task);
            (wide(dvalue), wide(params))
        };
        let (dx, dparams) = gradient(of(x), false);
        let (dx_back, dparams_back) = gradient(z.clone(), true);
        [wide(z), wide(log_det), wide(back), dx, dparams, dx_back, dparams_back]
    }

    fn draw<T>(spline: &Spline<T>, count: usize) -> (Vec<f64>, Vec<f64>) {
        let x = numbers(count, 1).into_iter().map(|v| 3.0 * v).collect();
        let params = numbers(count * spline.params_per_channel(), 2);
        (x, params.into_iter().map(|v| 2.0 * v).collect())
    }

    #[test]
    fn every_instruction_set_computes_the_same() {
        for (spline, single) in splines::<f64>().into_iter().zip(splines::<f32>()) {
            for count in [1, 15, 16, 17, 50] {
                let (x, params) = draw(&spline, count);
                let exact = run(all_f64()[0], spline, &x, &params);
                for ops in all_f64() {
                    let got = run(ops, spline, &x, &params);
                    got.iter().zip(&exact).for_each(|(a, b)| close(a, b, 1e-11));
                }
                for ops in all_f32() {
                    let got = run(ops, single, &x, &params);
                    // Of 64 bins some are so narrow that the rounding of a knot shows in their slope.
                    let tolerances = [1e-4, 2e-3, 1e-4, 5e-3, 5e-3, 5e-3, 5e-3];
                    for ((a, b), tolerance) in got.iter().zip(&exact).zip(tolerances) {
                        close(a, b, tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn the_inverse_returns_and_gradients_are_differences() {
        const STEP: f64 = 1e-6;
        for spline in splines::<f64>() {
            let count = 20;
            let (x, params) = draw(&spline, count);
            let ops = f64::ops();
            let [_, _, back, dx, dparams, dx_back, dparams_back] = run(ops, spline, &x, &params);
            if spline.tails != Tails::Circular {
                close(&back, &x, 1e-9);
            }
            close(&dx_back, &dx, 1e-8);
            close(&dparams_back, &dparams, 1e-8);
            let (dz, dlog) = (numbers(count, 5), numbers(count, 6));
            let loss = |x: &[f64], params: &[f64]| -> f64 {
                let [z, log_det, ..] = run(ops, spline, x, params);
                (0..count).map(|i| dz[i] * z[i] + dlog[i] * log_det[i]).sum()
            };
            let difference = |values: &[f64], at: usize, loss: &dyn Fn(&[f64]) -> f64| {
                let nudged = |by: f64| {
                    let mut values = values.to_vec();
                    values[at] += by;
                    loss(&values)
                };
                (nudged(STEP) - nudged(-STEP)) / (2.0 * STEP)
            };
            let by_x: Vec<_> =
                (0..count).map(|at| difference(&x, at, &|x| loss(x, &params))).collect();
            close(&dx, &by_x, 1e-5);
            // Some of them; all, of many bins, would take minutes.
            let some: Vec<_> = (0..params.len()).step_by(1 + params.len() / 200).collect();
            let by_params: Vec<_> =
                some.iter().map(|&at| difference(&params, at, &|p| loss(&x, p))).collect();
            let got: Vec<_> = some.iter().map(|&at| dparams[at]).collect();
            close(&got, &by_params, 1e-5);
        }
    }

    #[test]
    fn a_value_that_is_no_number_stays_none() {
        for spline in splines::<f32>() {
            let (_, params) = draw(&spline, 2);
            let [z, _, back, ..] = run(f32::ops(), spline, &[f64::NAN, 0.5], &params);
            assert!(z[0].is_nan() && back[0].is_nan() && z[1].is_finite() && back[1].is_finite());
        }
    }
}
