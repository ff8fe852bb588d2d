//! Being asked to end: Ctrl-C, `kill`, a cluster that ends a job, a terminal that is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A second signal that comes sooner is the first one again: `timeout`, clusters and terminals send theirs
/// to a program and to its group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// How often the first signal is looked for, to wait from there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A flag that the first signal to end sets; the second one ends the program at once.
pub fn watch() -> Arc<AtomicBool> {
    let asked = Arc::new(AtomicBool::new(false));
    let insists = Arc::new(AtomicBool::new(false));
    for signal in signals() {
        // Where handlers cannot be set, the signal ends the program as it always does and the last
        // checkpoint stays.
        let status = 128 + signal;
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
    asked
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
