//! The order and the signs in which two libraries keep the rows of a tensor.

use super::Array;

/// Our rows (slices along the first axis) made of theirs: for each of ours the number of theirs, and a
/// sign.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rows(Option<Vec<(usize, f64)>>);

impl Rows {
    /// As they are.
    pub(super) fn same() -> Self {
        Self(None)
    }

    /// In the given order.
    pub(super) fn in_order(order: impl IntoIterator<Item = usize>) -> Self {
        Self(Some(order.into_iter().map(|row| (row, 1.0)).collect()))
    }

    /// Theirs are `first half, second half`, ours `second half, first half`.
    pub(super) fn halves_swapped(count: usize) -> Self {
        Self::in_order((count / 2..count).chain(0..count / 2))
    }

    /// Theirs are interleaved, ours the even ones, then the odd ones.
    pub(super) fn deinterleaved(count: usize) -> Self {
        Self::in_order((0..count).step_by(2).chain((1..count).step_by(2)))
    }

    /// All signs turned.
    pub(super) fn all_negated(count: usize) -> Self {
        Self::signed((0..count).map(|row| (row, -1.0)))
    }

    /// For each of ours the number of theirs, and a sign.
    pub(super) fn signed(rows: impl IntoIterator<Item = (usize, f64)>) -> Self {
        Self(Some(rows.into_iter().collect()))
    }

    pub(super) fn to_ours(&self, theirs: Array) -> Array {
        let Some(rows) = &self.0 else { return theirs };
        let width = theirs.shape()[1..].iter().product::<usize>();
        let ours = theirs.rows(rows.iter().map(|(row, _)| *row));
        let shape = ours.shape().to_vec();
        let values = ours.into_values().into_iter().enumerate();
        Array::new(shape, values.map(|(at, value)| value * rows[at / width].1).collect())
    }

    pub(super) fn to_theirs(&self, ours: Array) -> Array {
        let Some(rows) = &self.0 else { return ours };
        let mut back = vec![(0, 1.0); rows.len()];
        for (to, &(from, sign)) in rows.iter().enumerate() {
            back[from] = (to, sign);
        }
        Self(Some(back)).to_ours(ours)
    }
}
