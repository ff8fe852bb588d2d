//! Being asked to end: Ctrl-C, `kill`, a cluster that ends a job, a terminal that is closed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A second signal that comes sooner is the first one again: `timeout`, clusters and terminals send theirs
/// to a program and to its group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// How often the first signal is looked for, to wait from there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Signals while a run is at work: the first one asks it to end, the second one ends the program at once.
/// Where no run is at work, signals do what they always do.
pub struct Watch {
    signals: &'static Signals,
}

struct Signals {
    asked: Arc<AtomicBool>,
    /// Whether no run is at work.
    idle: Arc<AtomicBool>,
    num_at_work: Mutex<usize>,
}

static SIGNALS: OnceLock<Signals> = OnceLock::new();

/// Watches while the answer lives.
pub fn watch() -> Watch {
    let signals = SIGNALS.get_or_init(Signals::register);
    let mut num_at_work = signals.num_at_work.lock().unwrap_or_else(PoisonError::into_inner);
    *num_at_work += 1;
    signals.idle.store(false, Ordering::Relaxed);
    drop(num_at_work);
    Watch { signals }
}

impl Watch {
    /// Whether a signal to end has come.
    pub fn is_asked(&self) -> bool {
        self.signals.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut num_at_work =
            self.signals.num_at_work.lock().unwrap_or_else(PoisonError::into_inner);
        *num_at_work -= 1;
        self.signals.idle.store(*num_at_work == 0, Ordering::Relaxed);
    }
}

impl Signals {
    fn register() -> Self {
        let asked = Arc::new(AtomicBool::new(false));
        let insists = Arc::new(AtomicBool::new(false));
        let idle = Arc::new(AtomicBool::new(false));
        for signal in signals() {
            // Where handlers cannot be set, the signal ends the program as it always does and the last
            // checkpoint stays.
            let status = 128 + signal;
            let _ = flag::register_conditional_default(signal, idle.clone());
            let _ = flag::register_conditional_shutdown(signal, status, insists.clone());
            let _ = flag::register(signal, asked.clone());
        }
        let first = asked.clone();
        thread::spawn(move || {
            while !first.load(Ordering::Relaxed) {
                thread::sleep(LOOK_EVERY);
            }
            thread::sleep(SAME_SIGNAL);
            insists.store(true, Ordering::Relaxed);
        });
        Self { asked, idle, num_at_work: Mutex::new(0) }
    }
}

fn signals() -> Vec<i32> {
    #[allow(unused_mut)] // one more on Unix
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(unix)]
    if hangup_ends() {
        signals.push(signal_hook::consts::SIGHUP);
    }
    signals
}

/// Whether a closed terminal ends the program, as it does unless `nohup` or the like forbids it. Where
/// the system does not say, it stays with what it has been.
#[cfg(unix)]
fn hangup_ends() -> bool {
    let ignored = || {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    ignored().is_some_and(|mask| mask >> (signal_hook::consts::SIGHUP - 1) & 1 == 0)
}
