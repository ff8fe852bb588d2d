//! Updates of parameters, in one pass over memory.

use super::Scalar;
use super::batch::run;

/// The numbers of one step, as in Burn's `Adam` and `AdamW`:
///
/// `m <- beta_1 m + rest_1 g`, `v <- beta_2 v + rest_2 g^2`,
/// `p <- kept p - rate (correction m / (sqrt(v) + epsilon))`.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep<T> {
    /// Decay of the first moment.
    pub beta_1: T,
    /// `1 - beta_1`.
    pub rest_1: T,
    /// Decay of the second moment.
    pub beta_2: T,
    /// `1 - beta_2`.
    pub rest_2: T,
    /// Bias correction of both moments.
    pub correction: T,
    /// Added to the root of the second moment.
    pub epsilon: T,
    /// What weight decay leaves of a parameter, 1 without.
    pub kept: T,
    /// Learning rate.
    pub rate: T,
}

/// Numbers that one thread takes at a time.
const BLOCK: usize = 1 << 16;

impl<T: Scalar> AdamStep<T> {
    /// Changes `parameter` and both moments by its `gradient`.
    ///
    /// # Panics
    /// If the four are not of one length.
    pub fn apply(&self, gradient: &[T], parameter: &mut [T], moments: [&mut [T]; 2]) {
        let [first, second] = moments;
        for other in [parameter.len(), first.len(), second.len()] {
            assert_eq!(other, gradient.len(), "AdamStep: a number for each of the gradient");
        }
        let blocks = (gradient.chunks(BLOCK).zip(parameter.chunks_mut(BLOCK)))
            .zip(first.chunks_mut(BLOCK).zip(second.chunks_mut(BLOCK)));
        run(blocks.collect(), |((gradient, parameter), (first, second))| {
            // SAFETY: `ops` hands out this processor's table.
            unsafe { (T::ops().adam)(self, gradient, [parameter, first, second]) }
        });
    }
}

/// A block of [`AdamStep::apply`]; each number by the operations that Burn's `Adam` has, in its order.
#[inline(always)]
pub(super) fn adam<T: Scalar>(step: &AdamStep<T>, gradient: &[T], to: [&mut [T]; 3]) {
    let step = *step;
    let [parameter, first, second] = to;
    let moments = first.iter_mut().zip(second);
    for ((g, p), (m, v)) in gradient.iter().zip(parameter).zip(moments) {
        *m = *m * step.beta_1 + *g * step.rest_1;
        *v = *v * step.beta_2 + *g * *g * step.rest_2;
        *p = *p * step.kept - *m * step.correction / (v.sqrt() + step.epsilon) * step.rate;
    }
}

/// Moves each number of `to` by `share` of the way to that of `from`.
///
/// # Panics
/// If they are not of one length.
pub fn move_towards<T: Scalar>(to: &mut [T], from: &[T], share: T) {
    assert_eq!(to.len(), from.len(), "move_towards: a number for each");
    run(to.chunks_mut(BLOCK).zip(from.chunks(BLOCK)).collect(), |(to, from)| {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += (*from - *to) * share);
    });
}

/// The sum of the squares, in f64.
pub fn sum_of_squares<T: Scalar>(numbers: &[T]) -> f64 {
    let ops = T::ops();
    // SAFETY: `ops` hands out this processor's table.
    let sum = |block: &[T]| unsafe { (ops.row_sums)(block, block)[1] };
    run(numbers.chunks(BLOCK).collect(), sum).into_iter().sum()
}
