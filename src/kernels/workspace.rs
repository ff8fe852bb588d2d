//! Buffers that outlive a call: at steady state no pass allocates.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use super::Scalar;

/// A cache line, so that every buffer starts on one and vector loads do not straddle two.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

static POOL: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// Number of returned buffers kept for reuse; more than a training step that keeps its activations
/// holds. In tests none, so that a sanitizer sees where each of them ends.
const fn pool_limit() -> usize {
    if cfg!(test) { 0 } else { 2048 }
}

/// What a new buffer holds: in tests NaN, which shows in the results of who reads what nobody wrote.
const FRESH: Line = Line([if cfg!(test) { 0xff } else { 0 }; 64]);

/// A buffer borrowed from the pool and given back when dropped.
///
/// Its contents are those its last user left: numbers, but arbitrary ones.
pub(super) struct Lease<T> {
    lines: Vec<Line>,
    len: usize,
    scalar: PhantomData<T>,
}

/// Borrows a buffer of `len` numbers with arbitrary contents.
pub(super) fn lease<T: Scalar>(len: usize) -> Lease<T> {
    let needed = (len * size_of::<T>()).div_ceil(size_of::<Line>());
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    // The smallest that is large enough; a much larger one is left for a larger request.
    let best = (0..pool.len())
        .filter(|&i| pool[i].len() >= needed && pool[i].len() <= 2 * needed + 64)
        .min_by_key(|&i| pool[i].len());
    let lines = match best {
        Some(index) => pool.swap_remove(index),
        None => {
            drop(pool);
            vec![FRESH; needed]
        }
    };
    Lease { lines, len, scalar: PhantomData }
}

/// Borrows a buffer of `len` zeros.
pub(super) fn lease_zeros<T: Scalar>(len: usize) -> Lease<T> {
    let mut buffer = lease(len);
    buffer.fill(T::ZERO);
    buffer
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() < pool_limit() && !self.lines.is_empty() {
            pool.push(std::mem::take(&mut self.lines));
        }
    }
}

impl<T: Scalar> Deref for Lease<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `lines` holds at least `len` numbers, is initialized, is aligned to 64 bytes, and
        // every bit pattern is a valid f32 or f64; `Scalar` is sealed, so `T` is one of the two.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Scalar> DerefMut for Lease<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
