//! Batches: their shape, and their division among the threads.

use std::ops::Range;

use rayon::prelude::*;

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
    pub(super) fn pixels(&self) -> usize {
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

fn is_small(shape: Shape, work: usize) -> bool {
    shape.batch * shape.pixels() * work < SERIAL
}

/// Runs `f` on a thread of the pool, so that the parallel parts in it start at once instead of each
/// waking the pool; on this thread if there is too little to do, `work` multiplications a pixel.
pub(super) fn on_pool<R: Send>(shape: Shape, work: usize, f: impl FnOnce() -> R + Send) -> R {
    let alone = is_small(shape, work) || rayon::current_num_threads() == 1;
    if alone { f() } else { rayon::scope(|_| f()) }
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
        let threads = if is_small(shape, work) { 1 } else { rayon::current_num_threads() };
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

    /// Runs the parts on the threads; the results are in the order of the parts.
    pub fn run<I: Send, R: Send>(&self, parts: Vec<I>, f: impl Fn(I) -> R + Send + Sync) -> Vec<R> {
        if parts.len() == 1 {
            return parts.into_iter().map(f).collect();
        }
        parts.into_par_iter().with_max_len(1).map(f).collect()
    }
}
