//! What the benchmarks share.

use std::fs;

/// Peak resident memory of this process in MiB, where the system tells it as Linux does.
pub fn peak_mib() -> Option<f64> {
    status_mib("VmHWM:")
}

/// A line of `/proc/self/status`, in MiB.
pub fn status_mib(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(kib(&status, name)? / 1024.0)
}

/// The number of kibibytes in the line of a text that begins with `name`.
pub fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
