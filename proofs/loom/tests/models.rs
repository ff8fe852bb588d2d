//! What the kernels ask of their team, in every order in which its threads can run.
//!
//! Loom finds deadlocks (a wake-up that is lost) by itself, and by its cells every access that is not
//! ordered after another: a helper that still runs when `share` has returned, a result that its giver
//! cannot see. Each model also counts the courses it knows, so that none is vacuous.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use team_under_loom::Team;

/// Runs the model in every order with at most this many switches away from a thread that could go on;
/// returns what the runs returned.
fn courses<T: Ord + Send + 'static>(
    preemptions: usize,
    model: impl Fn() -> T + Send + Sync + 'static,
) -> BTreeSet<T> {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    let seen = std::sync::Arc::new(Mutex::new(BTreeSet::new()));
    let of_runs = seen.clone();
    builder.check(move || {
        let course = model();
        of_runs.lock().unwrap().insert(course);
    });
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    seen
}

/// Pieces that are claimed without any order and written without any: only `share` orders them.
struct Pieces {
    next: AtomicUsize,
    runs: AtomicUsize,
    results: Vec<UnsafeCell<usize>>,
}

// SAFETY: loom tells of every access to a cell that is not ordered.
unsafe impl Sync for Pieces {}

impl Pieces {
    fn new(count: usize) -> Self {
        Self {
            next: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
            results: (0..count).map(|_| UnsafeCell::new(0)).collect(),
        }
    }

    fn work(&self) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        while let Some(result) = self.results.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            // SAFETY: claimed once.
            result.with_mut(|result| unsafe { *result += 1 });
        }
    }

    /// That each piece was done once; how many threads took part.
    fn check(&mut self) -> usize {
        for result in &mut self.results {
            // SAFETY: nobody else has it any more.
            result.with_mut(|result| assert_eq!(unsafe { *result }, 1));
        }
        self.runs.load(Ordering::Relaxed)
    }
}

fn shared(team: &Team, helpers: usize, count: usize) -> usize {
    let mut pieces = Pieces::new(count);
    team.share(helpers, &|| pieces.work());
    pieces.check()
}

/// Publish, help, finish; and the helper that wakes too late, which is taken its work back.
#[test]
fn work_is_done_once_with_help_or_without() {
    let seen = courses(3, || shared(&Team::new(1), 1, 2));
    assert_eq!(seen, [1, 2].into());
}

#[test]
fn two_helpers() {
    let seen = courses(2, || shared(&Team::new(2), 2, 2));
    assert_eq!(seen, [1, 2, 3].into());
}

/// Between two pieces of work a helper stays awake, falls asleep or is about to.
#[test]
fn a_helper_sleeps_and_wakes() {
    let seen = courses(3, || {
        let team = Team::new(1);
        [shared(&team, 1, 1), shared(&team, 1, 1), shared(&team, 1, 1)]
    });
    assert_eq!(seen.len(), 8, "{seen:?}");
}

/// What a thread panics with in the models below.
struct OnPurpose;

fn silently<T>(action: impl FnOnce() -> T) -> Result<T, Box<dyn std::any::Any + Send>> {
    catch_unwind(AssertUnwindSafe(action))
}

#[test]
fn a_panic_reaches_the_giver_and_the_team_goes_on() {
    let seen = courses(3, || {
        let team = Team::new(1);
        let runs = AtomicUsize::new(0);
        let result = silently(|| {
            team.share(1, &|| {
                runs.fetch_add(1, Ordering::Relaxed);
                std::panic::resume_unwind(Box::new(OnPurpose));
            })
        });
        assert!(result.unwrap_err().is::<OnPurpose>());
        (runs.load(Ordering::Relaxed), shared(&team, 1, 1))
    });
    assert_eq!(seen.len(), 4, "{seen:?}");
}

/// The giver is through, the helper panics: or the giver is never told.
#[test]
fn a_panic_of_one_thread_is_the_giver_s() {
    let seen = courses(3, || {
        let team = Team::new(1);
        let (mut results, runs) = (Pieces::new(1), AtomicUsize::new(0));
        let result = silently(|| {
            team.share(1, &|| {
                // The second to come.
                if runs.fetch_add(1, Ordering::Relaxed) == 1 {
                    std::panic::resume_unwind(Box::new(OnPurpose));
                }
                results.work();
            })
        });
        assert_eq!(results.check(), 1);
        assert_eq!(result.is_err(), runs.load(Ordering::Relaxed) == 2);
        result.is_err()
    });
    assert_eq!(seen, [false, true].into());
}

#[test]
fn work_within_work_is_done_alone() {
    let seen = courses(3, || {
        let team = Team::new(1);
        let inner = AtomicUsize::new(0);
        team.share(1, &|| {
            inner.fetch_add(shared(&team, 1, 1), Ordering::Relaxed);
        });
        inner.load(Ordering::Relaxed)
    });
    assert_eq!(seen, [1, 2].into());
}

/// Whoever comes second works alone, or after the first.
#[test]
fn two_givers_at_once() {
    let seen = courses(2, || {
        let team = loom::sync::Arc::new(Team::new(1));
        let same = team.clone();
        let other = thread::spawn(move || shared(&same, 1, 1));
        [shared(&team, 1, 1), other.join().unwrap()]
    });
    assert_eq!(seen, [[1, 1], [1, 2], [2, 1], [2, 2]].into());
}
