//! Work shared by a few threads for microseconds at a time.
//!
//! A coupling on vectors is 20 µs of work, and a training step forks hundreds of times. Waking a
//! thread takes longer than that, so the helpers of this team stay awake for a moment after each
//! piece of work, and who gave it does not sleep while waiting: with rayon's pool, which sleeps, the
//! vector flows of the benchmark `peers` took 1.2 times as long.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};
use std::thread::{self, Thread};

/// Turns of a waiting loop, about 30 µs, before a helper goes to sleep or a giver lets others run.
const SPINS: usize = 1500;

/// Runs `work` here and, at the same time, on up to `helpers` other threads; returns when all that
/// began it are through.
///
/// `work` divides itself: it must be complete when it has run once, by whomever. Where the team is at
/// work already, for another thread or further up on this one, it runs here alone.
///
/// # Panics
/// If `work` does, on any thread.
pub(super) fn share(helpers: usize, work: &(dyn Fn() + Sync)) {
    static TEAM: OnceLock<Team> = OnceLock::new();
    if helpers == 0 {
        return work();
    }
    let team = TEAM.get_or_init(Team::new);
    let _guard = match team.at_work.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return work(),
    };
    team.share(helpers, work);
}

struct Team {
    helpers: Vec<&'static Helper>,
    at_work: Mutex<()>,
}

#[derive(Default)]
struct Helper {
    /// What to run, null if nothing.
    task: AtomicPtr<Task>,
    is_asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// Work on the stack of who shares it.
struct Task {
    work: *const (dyn Fn() + Sync),
    /// Helpers that have the task and are not through.
    pending: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Team {
    fn new() -> Self {
        let others = thread::available_parallelism().map_or(0, |threads| threads.get() - 1);
        // A machine that has no more threads to give is served by fewer.
        let helpers = (0..others).map_while(|_| Helper::start()).collect();
        Self { helpers, at_work: Mutex::new(()) }
    }

    fn share(&self, helpers: usize, work: &(dyn Fn() + Sync)) {
        let helpers = &self.helpers[..helpers.min(self.helpers.len())];
        // SAFETY: only the lifetime changes. `task` does not leave this function, which ends when no
        // helper has it: from each it was taken back, or that one decreased `pending` after its last use.
        let work_forever = unsafe {
            std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync + 'static)>(
                work,
            )
        };
        let mut task = Task {
            work: work_forever,
            pending: AtomicUsize::new(helpers.len()),
            panic: Mutex::new(None),
        };
        let pointer: *mut Task = &mut task;
        for helper in helpers {
            helper.give(pointer);
        }
        let result = catch_unwind(AssertUnwindSafe(work));
        // SAFETY: `task` lives until the end of this function, and is only used by shared reference.
        let task = unsafe { &*pointer };
        for helper in helpers {
            if helper.take_back(pointer) {
                task.pending.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let mut spins = 0;
        while task.pending.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        let panic = task.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(panic) = result.err().or(panic) {
            resume_unwind(panic);
        }
    }
}

impl Helper {
    fn start() -> Option<&'static Self> {
        let helper: &'static Self = Box::leak(Box::default());
        let thread = thread::Builder::new().name("burn-flows".into()).spawn(|| helper.run());
        helper.thread.set(thread.ok()?.thread().clone()).ok()?;
        Some(helper)
    }

    fn give(&self, task: *mut Task) {
        // In sequence with what `sleep` does: either the helper sees the task or this sees it asleep.
        self.task.store(task, Ordering::SeqCst);
        if self.is_asleep.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Whether the helper had not begun the task and now never will.
    fn take_back(&self, task: *mut Task) -> bool {
        self.task.compare_exchange(task, null_mut(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn run(&self) -> ! {
        let mut spins = 0;
        loop {
            if self.task.load(Ordering::Relaxed).is_null() {
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop()
                } else {
                    self.sleep()
                }
                continue;
            }
            spins = 0;
            let task = self.task.swap(null_mut(), Ordering::Acquire);
            if !task.is_null() {
                // SAFETY: who gave the task waits for `pending`, the last that is done with it here.
                unsafe { Task::run(task) };
            }
        }
    }

    fn sleep(&self) {
        self.is_asleep.store(true, Ordering::SeqCst);
        if self.task.load(Ordering::SeqCst).is_null() {
            thread::park();
        }
        self.is_asleep.store(false, Ordering::SeqCst);
    }
}

impl Task {
    /// # Safety
    /// `task` is alive until `pending` decreases.
    unsafe fn run(task: *const Self) {
        // SAFETY: as the caller promises; `work` lives as long as the task.
        let (task, work) = unsafe { (&*task, &*(*task).work) };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            *task.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(panic);
        }
        task.pending.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds up `0..count` by pieces that whoever is free takes.
    fn sum(count: usize) -> usize {
        let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
        share(3, &|| {
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= count {
                    return;
                }
                sum.fetch_add(piece, Ordering::Relaxed);
            }
        });
        sum.into_inner()
    }

    #[test]
    fn all_of_the_work_is_done_once() {
        for count in (0..2000).chain([100_000]) {
            assert_eq!(sum(count), count * count.saturating_sub(1) / 2);
        }
    }

    #[test]
    fn helpers_wake_up_again() {
        for _ in 0..50 {
            thread::sleep(std::time::Duration::from_millis(1));
            assert_eq!(sum(10), 45);
        }
    }

    #[test]
    fn many_threads_and_work_within_work() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|count| assert_eq!(sum(count), sum(count))));
            }
        });
        let inner = Mutex::new(Vec::new());
        share(1, &|| inner.lock().unwrap().push(sum(100)));
        assert!(inner.into_inner().unwrap().iter().all(|&sum| sum == 4950));
    }

    #[test]
    fn a_panic_reaches_the_giver_and_the_team_goes_on() {
        for _ in 0..20 {
            let begun = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                share(1, &|| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    panic!("on purpose");
                });
            }));
            assert_eq!(*result.unwrap_err().downcast::<&str>().unwrap(), "on purpose");
            assert_eq!(sum(1000), 499_500);
        }
    }
}
