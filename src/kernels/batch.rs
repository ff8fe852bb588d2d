//! Batches: their shape, and their division among the threads.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Scalar;
use super::team::share;

/// Multiplications below which a second thread costs more than it saves.
const SERIAL: usize = 200_000;

/// Sizes of a batch in NCHW order; vectors have height and width 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Samples.
    pub batch: usize,
    /// Channels, or features.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Shape {
    /// Pixels of a plane.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Numbers in a sample.
    pub(super) fn sample(&self) -> usize {
        self.channels * self.pixels()
    }

    /// Numbers in the batch.
    pub(super) fn numbers(&self) -> usize {
        self.batch * self.sample()
    }

    pub(super) fn check(&self, name: &str, len: usize) {
        assert_eq!(len, self.numbers(), "{name} has {len} numbers, its shape is {self:?}");
    }
}

/// Runs `f` on each part, on as many threads as rayon's pool has, or on this one alone where the team is
/// at work already; the results are in the order of the parts.
pub(super) fn run<I: Send, R: Send>(parts: Vec<I>, f: impl Fn(I) -> R + Sync) -> Vec<R> {
    let helpers = parts.len().min(rayon::current_num_threads()).saturating_sub(1);
    if helpers == 0 {
        return parts.into_iter().map(f).collect();
    }
    let slots: Vec<_> = parts.into_iter().map(|part| Mutex::new((Some(part), None))).collect();
    let slot = |index: usize| {
        slots.get(index).map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner))
    };
    let next = AtomicUsize::new(0);
    share(helpers, &|| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = slot(index).map(|mut slot| slot.0.take()) else { return };
            let result = f(part.expect("each number comes once"));
            slot(index).expect("it was there").1 = Some(result);
        }
    });
    let results =
        slots.into_iter().map(|slot| slot.into_inner().map_or(None, |(_, result)| result));
    results.map(|result| result.expect("the work is over")).collect()
}

/// Numbers below which one thread is faster at copying or adding them.
const FEW: usize = 1 << 15;

/// Calls `f` with the index and the numbers of each block of `size` numbers, on all threads if
/// there are many.
pub(super) fn for_blocks<T: Scalar>(
    numbers: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let threads = if numbers.len() < FEW { 1 } else { rayon::current_num_threads() };
    let blocks = numbers.len().div_ceil(size).div_ceil(threads).max(1);
    let parts: Vec<_> = numbers.chunks_mut(blocks * size).enumerate().collect();
    run(parts, |(part, numbers)| {
        for (index, block) in numbers.chunks_mut(size).enumerate() {
            f(part * blocks + index, block);
        }
    });
}

/// The batch cut into one contiguous part a thread.
///
/// The cut, and with it the order of every sum, follows from the shape and the number of threads
/// alone.
pub(super) struct Chunks {
    pub ranges: Vec<Range<usize>>,
}

impl Chunks {
    /// `work`: multiplications a pixel.
    pub fn new(shape: Shape, work: usize) -> Self {
        let is_small = shape.batch * shape.pixels() * work < SERIAL;
        let threads = if is_small { 1 } else { rayon::current_num_threads() };
        let count = threads.min(shape.batch).max(1);
        let bound = |i| shape.batch * i / count;
        Self { ranges: (0..count).map(|i| bound(i)..bound(i + 1)).collect() }
    }

    pub fn largest(&self) -> usize {
        self.ranges.iter().map(Range::len).max().unwrap_or(0)
    }

    pub fn split<'a, T>(&self, numbers: &'a [T], sample: usize) -> Vec<&'a [T]> {
        self.ranges.iter().map(|range| &numbers[range.start * sample..range.end * sample]).collect()
    }

    pub fn split_mut<'a, T>(&self, mut numbers: &'a mut [T], sample: usize) -> Vec<&'a mut [T]> {
        let mut parts = Vec::with_capacity(self.ranges.len());
        for range in &self.ranges {
            let (part, rest) = numbers.split_at_mut(range.len() * sample);
            parts.push(part);
            numbers = rest;
        }
        parts
    }

    /// Runs `f` on each part; the results are in the order of the parts.
    pub fn run<I: Send, R: Send>(&self, parts: Vec<I>, f: impl Fn(I) -> R + Sync) -> Vec<R> {
        run(parts, f)
    }
}
