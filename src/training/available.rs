//! Memory that this program can still take.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that are free, or that the system would free, of the machine's memory and of what the limits
/// of its container leave; `None` where the system does not tell as Linux does.
pub fn bytes() -> Option<usize> {
    below(Path::new("/"))
}

/// [`bytes`] of a system whose files lie below `root`.
fn below(root: &Path) -> Option<usize> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    /// A system with 1000 MiB available and these files, by path and content.
    fn available_in(files: &[(&str, String)]) -> Option<usize> {
        let root = tempfile::tempdir().unwrap();
        let meminfo =
            ("proc/meminfo", format!("MemTotal: 9 kB\nMemAvailable: {} kB\n", 1000 * 1024));
        for (path, text) in files.iter().chain([&meminfo]) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        below(root.path())
    }

    fn mib(count: usize) -> String {
        format!("{}\n", count * MIB)
    }

    #[test]
    fn without_a_limit_it_is_the_machine_s() {
        assert_eq!(available_in(&[]), Some(1000 * MIB));
        assert_eq!(below(tempfile::tempdir().unwrap().path()), None);
        let max = [
            ("proc/self/cgroup", "0::/job\n".into()),
            ("sys/fs/cgroup/job/memory.max", "max\n".into()),
            ("sys/fs/cgroup/job/memory.current", mib(700)),
        ];
        assert_eq!(available_in(&max), Some(1000 * MIB));
        // As version 1 says that there is none.
        let largest = [
            ("proc/self/cgroup", "4:memory:/job\n".into()),
            ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n".into()),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", mib(700)),
        ];
        assert_eq!(available_in(&largest), Some(1000 * MIB));
    }

    #[test]
    fn the_limit_of_a_container_counts_less_what_is_used() {
        let version_2 = [
            ("proc/self/cgroup", "0::/\n".into()),
            ("sys/fs/cgroup/memory.max", mib(512)),
            ("sys/fs/cgroup/memory.current", mib(200)),
            ("sys/fs/cgroup/memory.stat", format!("anon 1\ninactive_file {}", mib(50))),
        ];
        assert_eq!(available_in(&version_2), Some(362 * MIB));
        // Seen from inside, the path is that of the host.
        let version_1 = [
            ("proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/docker/abc\n0::/\n".into()),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", mib(512)),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", mib(200)),
            ("sys/fs/cgroup/memory/memory.stat", format!("total_inactive_file {}", mib(50))),
        ];
        assert_eq!(available_in(&version_1), Some(362 * MIB));
    }

    #[test]
    fn of_groups_in_groups_the_tightest_counts() {
        let limit = |outer: usize, inner: usize| {
            available_in(&[
                ("proc/self/cgroup", "0::/user/job\n".into()),
                ("sys/fs/cgroup/user/memory.max", mib(outer)),
                ("sys/fs/cgroup/user/memory.current", mib(100)),
                ("sys/fs/cgroup/user/job/memory.max", mib(inner)),
                ("sys/fs/cgroup/user/job/memory.current", mib(30)),
            ])
        };
        assert_eq!(limit(400, 200), Some(170 * MIB));
        assert_eq!(limit(150, 200), Some(50 * MIB));
        // Used up.
        assert_eq!(limit(90, 200), Some(0));
    }

    /// Of this machine: whatever its limits are, it says a number that is possible.
    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_some() {
        let bytes = bytes().expect("Linux tells");
        assert!((MIB..1 << 50).contains(&bytes), "{bytes}");
    }
}
