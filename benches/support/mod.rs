//! What the benchmarks share.

use std::fs;

/// Peak resident memory of this process in MiB, where the system tells it as Linux does.
pub fn peak_mib() -> Option<f64> {
    status_mib("VmHWM:")
}

/// A line of `/proc/self/status`, in MiB.
pub fn status_mib(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}
