//! Work shared by a few threads for microseconds at a time.
//!
//! A coupling on vectors is 20 µs of work, and a training step forks hundreds of times. Waking a
//! thread takes longer than that, so the helpers of this team stay awake for a moment after each
//! piece of work, and who gave it does not sleep while waiting: with rayon's pool, which sleeps, the
//! vector flows of the benchmark `peers` took 1.2 times as long.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::OnceLock;

use super::sync::{
    Arc, AtomicBool, AtomicPtr, AtomicUsize, Builder, JoinHandle, Mutex, Ordering, SPINS,
    TryLockError, fence, park, spin_loop, yield_now,
};

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
    let others = || std::thread::available_parallelism().map_or(0, |threads| threads.get() - 1);
    TEAM.get_or_init(|| Team::new(others())).share(helpers, work);
}

/// Threads that wait for work until the team is dropped.
pub(super) struct Team {
    helpers: Vec<Helper>,
    at_work: Mutex<()>,
}

struct Helper {
    post: Arc<Post>,
    thread: Option<JoinHandle<()>>,
}

/// Where a helper finds its work.
struct Post {
    /// What to run, null if nothing, [`END`] if nothing more.
    task: AtomicPtr<Task>,
    is_asleep: AtomicBool,
}

/// The address, of no task, that ends a helper.
const END: *mut Task = without_provenance_mut(1);

/// Work on the stack of who shares it.
struct Task {
    work: *const (dyn Fn() + Sync),
    /// Helpers that have the task and are not through.
    pending: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Team {
    /// A machine that has no more threads to give is served by fewer than `helpers`.
    pub(super) fn new(helpers: usize) -> Self {
        let helpers = (0..helpers).map_while(|_| Helper::start()).collect();
        Self { helpers, at_work: Mutex::new(()) }
    }

    /// As [`share`].
    pub(super) fn share(&self, helpers: usize, work: &(dyn Fn() + Sync)) {
        let at_work = match self.at_work.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return work(),
        };
        let panic = self.work_together(helpers, work);
        drop(at_work);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Runs `work` here and on the helpers; gives back what it panicked with.
    fn work_together(
        &self,
        helpers: usize,
        work: &(dyn Fn() + Sync),
    ) -> Option<Box<dyn Any + Send>> {
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
            if helper.post.take_back(pointer) {
                task.pending.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let mut spins = 0;
        while task.pending.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { spin_loop() } else { yield_now() }
        }
        let panic = task.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        result.err().or(panic)
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        for helper in &mut self.helpers {
            helper.give(END);
            // A helper catches every panic: its thread ends well.
            helper.thread.take().map(JoinHandle::join);
        }
    }
}

impl Helper {
    fn start() -> Option<Self> {
        let task = AtomicPtr::new(null_mut());
        let post = Arc::new(Post { task, is_asleep: AtomicBool::new(false) });
        let own = post.clone();
        let thread = Builder::new().name("burn-flows".into()).spawn(move || own.serve()).ok()?;
        Some(Self { post, thread: Some(thread) })
    }

    fn give(&self, task: *mut Task) {
        // An exchange as every change of `task`: loom does not order one and another thread's store.
        self.post.task.swap(task, Ordering::Release);
        // With the fence in `sleep`: either the helper sees the task or this sees it asleep.
        fence(Ordering::SeqCst);
        if self.post.is_asleep.load(Ordering::Relaxed)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
    }
}

impl Post {
    /// Whether the helper had not begun the task and now never will.
    fn take_back(&self, task: *mut Task) -> bool {
        self.task.compare_exchange(task, null_mut(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn serve(&self) {
        let mut spins = 0;
        loop {
            if self.task.load(Ordering::Relaxed).is_null() {
                spins += 1;
                if spins < SPINS {
                    spin_loop()
                } else {
                    self.sleep()
                }
                continue;
            }
            spins = 0;
            let task = self.task.swap(null_mut(), Ordering::Acquire);
            if task == END {
                return;
            }
            if !task.is_null() {
                // SAFETY: who gave the task waits for `pending`, the last that is done with it here.
                unsafe { Task::run(task) };
            }
        }
    }

    fn sleep(&self) {
        self.is_asleep.store(true, Ordering::Relaxed);
        // With the fence in `give`.
        fence(Ordering::SeqCst);
        if self.task.load(Ordering::Relaxed).is_null() {
            park();
        }
        self.is_asleep.store(false, Ordering::Relaxed);
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
    use std::sync::Mutex;
    use std::thread;

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
    #[test]
    fn a_dropped_team_ends_its_threads() {
        for helpers in 0..4 {
            let (team, runs) = (Team::new(helpers), AtomicUsize::new(0));
            team.share(helpers, &|| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            let posts: Vec<_> = team.helpers.iter().map(|helper| helper.post.clone()).collect();
            drop(team);
            assert!((1..=helpers + 1).contains(&runs.into_inner()));
            assert!(posts.iter().all(|post| Arc::strong_count(post) == 1));
        }
    }
}
