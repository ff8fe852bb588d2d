//! `src/kernels/team.rs` on loom's threads, locks and atomics, for the models in `tests/`.

mod sync {
    pub(super) use loom::hint::spin_loop;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};
    pub(super) use loom::sync::{Arc, Mutex};
    pub(super) use loom::thread::{Builder, JoinHandle, park, yield_now};
    pub(super) use std::sync::TryLockError;

    /// The fewest that still have a helper look once more before it sleeps.
    pub(super) const SPINS: usize = 2;
}

#[allow(dead_code)] // The one team of a process has no place in a model.
#[path = "../../../src/kernels/team.rs"]
mod team;

/// A team of a model's own.
pub struct Team(team::Team);

impl Team {
    /// Starts the helpers.
    pub fn new(helpers: usize) -> Self {
        Self(team::Team::new(helpers))
    }

    /// Runs `work` here and on up to `helpers` others.
    pub fn share(&self, helpers: usize, work: &(dyn Fn() + Sync)) {
        self.0.share(helpers, work);
    }
}
