//! Memory that this program can still take.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that are free, or that the system would free, of the machine's memory and of what the limits
/// of its container leave; `None` where the system does not tell as Linux does.
pub fn bytes() -> Option<usize> {
    below(Path::new("/"))
}

/// [`bytes`] of a system whose files lie below `root`.
pub fn below(root: &Path) -> Option<usize> {
    let machine = of_machine(&root.join("proc/meminfo"));
    machine.into_iter().chain(of_groups(root)).min()
}

fn of_machine(meminfo: &Path) -> Option<usize> {
    let text = fs::read_to_string(meminfo).ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib * 1024)
}

/// Where a kind of control group tells its limit and what is used of it.
struct Files {
    limit: &'static str,
    used: &'static str,
    /// Of what is used, file contents that are given up when memory runs short.
    cached: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: "total_inactive_file",
};

const V2: Files = Files { limit: "memory.max", used: "memory.current", cached: "inactive_file" };

/// What is left in the control group of this process and in each one above it.
fn of_groups(root: &Path) -> Vec<usize> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut left = Vec::new();
    // One line a hierarchy: its number, its controllers, the path of the group.
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, files) = if controllers.is_empty() {
            ("sys/fs/cgroup", V2)
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("sys/fs/cgroup/memory", V1)
        } else {
            continue;
        };
        // In a container the path may be that of the host, and only the mount itself be there.
        let group = PathBuf::from(path.trim_start_matches('/'));
        let groups = group.ancestors().map(|group| root.join(mount).join(group));
        left.extend(groups.filter_map(|group| files.left(&group)));
    }
    left
}

impl Files {
    /// What the limit of a group leaves; `None` without a limit.
    fn left(&self, group: &Path) -> Option<usize> {
        let number = |name: &str| -> Option<usize> {
            fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()
        };
        // "max" is no number.
        let limit = number(self.limit)?;
        let used = number(self.used).unwrap_or(0);
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let cached = stat
            .lines()
            .find_map(|line| line.strip_prefix(self.cached)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(cached)))
    }
}
