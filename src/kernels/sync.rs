//! The threads, locks and atomics of `team`: the standard library's. `proofs/loom` compiles `team` with
//! loom's in their place.

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};
pub(super) use std::sync::{Arc, Mutex, TryLockError};
pub(super) use std::thread::{Builder, JoinHandle, park, yield_now};

/// Turns of a waiting loop, about 30 µs, before a helper goes to sleep or a giver lets others run.
pub(super) const SPINS: usize = 1500;
