//! The elementwise maps of a coupling: what the conditioner's numbers do to the transformed
//! channels.

use super::{Scalar, Spline};

/// From a conditioner's raw number `r` to the log-scale `l` of an affine coupling, before it is
/// clamped to the limits of the [`Map`].
#[derive(Clone, Copy, Debug)]
pub enum LogScale<'a, T> {
    /// `l = ln sigmoid(r + 2)`, at most 0: Glow's scale.
    Sigmoid,
    /// `l = -ln sigmoid(r + 2)`, at least 0: the same for a coupling that is run the other way.
    InverseSigmoid,
    /// `l = r`.
    Exp,
    /// `l = bound · tanh(r / bound)`.
    Bounded {
        /// Least upper bound of `|l|`.
        bound: T,
    },
    /// `l = gain · tanh(r)`, with a learned gain for each transformed channel (RealNVP).
    Tanh {
        /// One number a transformed channel.
        gain: &'a [T],
    },
}

/// Which comes first on the way from data to latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `z = x · exp(l) + t`.
    ScaleThenShift,
    /// `z = (x + t) · exp(l)`, as in Glow.
    ShiftThenScale,
}

/// The elementwise map of a coupling.
#[derive(Clone, Copy, Debug)]
pub enum Map<'a, T> {
    /// `z = x + t`.
    Additive,
    /// Scale and shift.
    Affine {
        /// Which comes first.
        order: Order,
        /// How the scale follows from the conditioner.
        log_scale: LogScale<'a, T>,
        /// Lowest and highest log-scale.
        limits: [T; 2],
    },
    /// Rational-quadratic splines.
    Spline(Spline<T>),
}

impl<T> Map<'_, T> {
    /// Conditioner outputs for each transformed channel.
    pub fn params_per_channel(&self) -> usize {
        match self {
            Map::Additive => 1,
            Map::Affine { .. } => 2,
            Map::Spline(spline) => spline.params_per_channel(),
        }
    }
}

/// Log-scale, its derivative by `r`, and its derivative by the gain (zero if there is none).
type Scaled<T> = (T, T, T);

#[inline(always)]
fn sigmoid<T: Scalar>(r: T) -> Scaled<T> {
    let u = r + T::ONE + T::ONE;
    let small = (-u.abs()).exp();
    // ln(1 + e^-u), from e^-|u| so that nothing overflows.
    let softplus = (-u).at_least(T::ZERO) + small.ln_1p_unit();
    // 1 - sigmoid(u) without its cancellation.
    let complement = (if u > T::ZERO { small } else { T::ONE }) / (T::ONE + small);
    (-softplus, complement, T::ZERO)
}

#[inline(always)]
fn bounded<T: Scalar>(r: T, bound: T) -> Scaled<T> {
    let tanh = (r / bound).tanh();
    (bound * tanh, T::ONE - tanh * tanh, T::ZERO)
}

#[inline(always)]
fn gained<T: Scalar>(r: T, gain: T) -> Scaled<T> {
    let tanh = r.tanh();
    (gain * tanh, gain * (T::ONE - tanh * tanh), tanh)
}

/// Held within the limits, outside of which nothing has an effect on the log-scale.
#[inline(always)]
fn clamped<T: Scalar>((l, slope, by_gain): Scaled<T>, [lowest, highest]: [T; 2]) -> Scaled<T> {
    // A NaN is not outside, and stays.
    let outside = (l < lowest) | (l > highest);
    let (slope, by_gain) = if outside { (T::ZERO, T::ZERO) } else { (slope, by_gain) };
    (l.at_least(lowest).at_most(highest), slope, by_gain)
}

/// One transformed channel of a block, and what is to be done with it. All slices have a number a
/// pixel.
pub(super) struct MapRow<'a, T> {
    pub map: Map<'a, T>,
    pub channel: usize,
    /// Input of the task and, after it, its output.
    pub value: &'a mut [T],
    /// Shift; after a gradient task the gradient by the shift.
    pub shift: &'a mut [T],
    /// Raw log-scale (empty for an additive map); after a gradient task the gradient by it.
    pub raw: &'a mut [T],
    pub task: Task<'a, T>,
}

/// What a [`MapRow`] computes.
pub(super) enum Task<'a, T> {
    /// `value`: x to z; adds the log-scale to `log_det`.
    Forward { log_det: &'a mut [T] },
    /// `value`: z to x.
    Inverse,
    /// Gradients, from `dvalue` = dz to dx. With `invert`, `value` goes from z to x, otherwise it
    /// is x and stays.
    Gradient { invert: bool, dvalue: &'a mut [T], dlog_det: &'a [T], dgain: &'a mut T },
}

/// Runs a [`MapRow`].
#[inline(always)]
pub(super) fn map_row<T: Scalar>(row: &mut MapRow<T>) {
    match row.map {
        Map::Additive => additive(row),
        Map::Spline(_) => unreachable!("splines have rows of their own"),
        Map::Affine { order, log_scale, limits } => {
            let channel = row.channel;
            // One loop for each log-scale, so that the choice is not made for each pixel.
            match log_scale {
                LogScale::Sigmoid => affine(row, order, |r| clamped(sigmoid(r), limits)),
                LogScale::InverseSigmoid => affine(row, order, |r| {
                    let (l, slope, gain) = sigmoid(r);
                    clamped((-l, -slope, gain), limits)
                }),
                LogScale::Exp => {
                    affine(row, order, |r| clamped((r, T::ONE, T::ZERO), limits));
                }
                LogScale::Bounded { bound } => {
                    affine(row, order, |r| clamped(bounded(r, bound), limits));
                }
                LogScale::Tanh { gain } => {
                    let gain = gain[channel];
                    affine(row, order, |r| clamped(gained(r, gain), limits));
                }
            }
        }
    }
}

#[inline(always)]
fn additive<T: Scalar>(row: &mut MapRow<T>) {
    let values = row.value.iter_mut().zip(row.shift.iter_mut());
    match &mut row.task {
        Task::Forward { .. } => values.for_each(|(value, shift)| *value += *shift),
        Task::Inverse => values.for_each(|(value, shift)| *value = *value - *shift),
        Task::Gradient { invert, dvalue, .. } => {
            if *invert {
                values.for_each(|(value, shift)| *value = *value - *shift);
            }
            row.shift.copy_from_slice(dvalue);
        }
    }
}

/// Lanes of partial sums, enough for the widest vectors and the latency of an addition.
const SUMS: usize = 64;

#[inline(always)]
fn affine<T: Scalar>(row: &mut MapRow<T>, order: Order, f: impl Fn(T) -> Scaled<T>) {
    let count = row.value.len();
    let (value, shift, raw) =
        (&mut row.value[..count], &mut row.shift[..count], &mut row.raw[..count]);
    let shift_first = order == Order::ShiftThenScale;
    match &mut row.task {
        Task::Forward { log_det } => {
            let log_det = &mut log_det[..count];
            for i in 0..count {
                let (l, _, _) = f(raw[i]);
                let (scale, t) = (l.exp(), shift[i]);
                value[i] = if shift_first { (value[i] + t) * scale } else { value[i] * scale + t };
                log_det[i] += l;
            }
        }
        Task::Inverse => {
            for i in 0..count {
                let (l, _, _) = f(raw[i]);
                let (scale, t) = ((-l).exp(), shift[i]);
                value[i] = if shift_first { value[i] * scale - t } else { (value[i] - t) * scale };
            }
        }
        Task::Gradient { invert, dvalue, dlog_det, dgain } => {
            let (dvalue, dlog_det) = (&mut dvalue[..count], &dlog_det[..count]);
            let mut sums = [T::ZERO; SUMS];
            // Between the loops. One loop over five rows, of which the compiler would have to ask ten times
            // whether two overlap, it leaves without vector code.
            let mut ls = [T::ZERO; SUMS];
            let mut scales = [T::ZERO; SUMS];
            let mut slopes = [T::ZERO; SUMS];
            let mut by_gains = [T::ZERO; SUMS];
            let mut scaled = [T::ZERO; SUMS];
            for start in (0..count).step_by(SUMS) {
                let end = (start + SUMS).min(count);
                let width = end - start;
                let (ls, scales, scaled) =
                    (&mut ls[..width], &mut scales[..width], &mut scaled[..width]);
                let (slopes, by_gains) = (&mut slopes[..width], &mut by_gains[..width]);
                let (value, shift, raw) =
                    (&mut value[start..end], &mut shift[start..end], &mut raw[start..end]);
                let (dvalue, dlog_det) = (&mut dvalue[start..end], &dlog_det[start..end]);
                for i in 0..width {
                    let (l, slope, by_gain) = f(raw[i]);
                    (ls[i], scales[i], slopes[i], by_gains[i]) = (l, l.exp(), slope, by_gain);
                }
                // What the scale multiplies times the scale: z itself, or z without the shift.
                if *invert {
                    for i in 0..width {
                        let (back, t) = ((-ls[i]).exp(), shift[i]);
                        scaled[i] = if shift_first { value[i] } else { value[i] - t };
                        let x = scaled[i] * back;
                        value[i] = if shift_first { x - t } else { x };
                    }
                } else {
                    for i in 0..width {
                        let x = if shift_first { value[i] + shift[i] } else { value[i] };
                        scaled[i] = x * scales[i];
                    }
                }
                for i in 0..width {
                    let dl = dvalue[i] * scaled[i] + dlog_det[i];
                    raw[i] = dl * slopes[i];
                    sums[i] += dl * by_gains[i];
                }
                for i in 0..width {
                    let dz = dvalue[i];
                    dvalue[i] = dz * scales[i];
                    shift[i] = if shift_first { dz * scales[i] } else { dz };
                }
            }
            let mut sum = T::ZERO;
            for lane in sums {
                sum += lane;
            }
            **dgain += sum;
        }
    }
}
