//! Files that are replaced as a whole: whatever happens, what is at a path is the old file or the new
//! one.
//!
//! A file is written beside its place under a name that no other writer has, brought to the disk and
//! renamed. Its writer holds a lock on it meanwhile, so one that nobody has locked was left by a
//! process that was killed: the next writer into the folder removes it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::{Builder, NamedTempFile};

use crate::error::{FlowError, Result};

/// What the names of unfinished files begin and end with. The dot keeps them out of folders of
/// pictures; they do not grow with the name of the file, which may be as long as the system allows.
const PREFIX: &str = ".burn-flows-";
const SUFFIX: &str = ".tmp";

/// Windows refuses to replace a file for the moment in which another writer replaces it.
const ATTEMPTS: u32 = if cfg!(windows) { 100 } else { 1 };
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(10);

/// Replaces the file at `path` by `bytes`, or leaves it as it was: an interrupted call does no harm,
/// and of several at the same time, in one process or in many, one wins.
///
/// The new file has the permissions of any file that the process creates. A symbolic link stays one:
/// what it leads to is replaced.
///
/// # Errors
/// [`FlowError::Io`] if the file cannot be written, or if what is there is no file, is read-only, or is
/// a link that leads nowhere.
///
/// ```
/// use burn_flows::record::write_atomically;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("scores.csv");
/// write_atomically(&path, b"picture,log_prob\n")?;
/// assert_eq!(std::fs::read(&path)?, b"picture,log_prob\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_atomically(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    replace(path, |file| file.write_all(bytes)).map_err(|source| {
        FlowError::io(
            "write",
            path,
            source,
            "check that its folder exists, can be written and has room",
        )
    })
}

/// [`write_atomically`] of what `write` writes.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let target = target(path)?;
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    remove_abandoned(folder);
    let mut file = create_beside(folder)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    rename(file, &target)?;
    // The rename itself lives in the folder. Not every system can open one; it is then a matter of
    // seconds until it is on the disk.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// The place that a file at `path` has: where a link leads.
fn target(path: &Path) -> io::Result<PathBuf> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if path.is_symlink() {
                return Err(io::Error::new(ErrorKind::NotFound, "it is a link that leads nowhere"));
            }
            return Ok(path.into());
        }
        Err(error) => return Err(error),
    };
    if found.is_dir() {
        return Err(io::Error::new(ErrorKind::IsADirectory, "it is a folder"));
    }
    // Renamed over, a device would be gone.
    if !found.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is a device and not a file"));
    }
    // Renaming does not ask for the right to write into the file that it replaces.
    if found.permissions().readonly() {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "the file is read-only"));
    }
    if path.is_symlink() { fs::canonicalize(path) } else { Ok(path.into()) }
}

/// A file of a new name, locked.
fn create_beside(folder: &Path) -> io::Result<NamedTempFile> {
    loop {
        let file = Builder::new().prefix(PREFIX).suffix(SUFFIX).make_in(folder, |path| {
            let file = File::options().write(true).create_new(true).open(path)?;
            // Where the file system has no locks, nothing is taken for abandoned either.
            let _ = file.lock();
            Ok(file)
        })?;
        // Before it was locked, another writer may have taken it for abandoned.
        if file.path().exists() {
            return Ok(file);
        }
    }
}

fn rename(mut file: NamedTempFile, target: &Path) -> io::Result<()> {
    for attempt in 1.. {
        match file.persist(target) {
            Ok(_) => break,
            Err(failed)
                if attempt < ATTEMPTS && failed.error.kind() == ErrorKind::PermissionDenied =>
            {
                file = failed.file;
                std::thread::sleep(BETWEEN_ATTEMPTS);
            }
            Err(failed) => return Err(failed.error),
        }
    }
    Ok(())
}

/// Removes the unfinished files of processes that are gone; whether that works does not matter to
/// what is written now.
fn remove_abandoned(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = name.starts_with(PREFIX) && name.ends_with(SUFFIX);
        if ours
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn error(path: &Path) -> String {
        let text = write_atomically(path, b"new").unwrap_err().to_string();
        text.replace(&path.display().to_string(), "PATH")
    }

    #[test]
    fn writers_at_the_same_time_do_not_mix_and_none_fails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::thread::scope(|scope| {
            for fill in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        write_atomically(path, &[fill; 100_000]).unwrap();
                        let read = fs::read(path).unwrap();
                        assert_eq!(read, vec![read[0]; 100_000]);
                    }
                });
            }
        });
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let at_work = create_beside(folder.path()).unwrap();
        for name in [".burn-flows-abc123.tmp", ".file.tmp", "burn-flows-1.tmp", ".burn-flows-notes"]
        {
            fs::write(path(name), "part").unwrap();
        }
        fs::create_dir(path(".burn-flows-folder.tmp")).unwrap();
        write_atomically(path("file"), b"new").unwrap();
        let mut expected =
            [".burn-flows-folder.tmp", ".burn-flows-notes", ".file.tmp"].map(String::from).to_vec();
        expected.push(at_work.path().file_name().unwrap().to_str().unwrap().into());
        expected.extend(["burn-flows-1.tmp", "file"].map(String::from));
        expected.sort();
        assert_eq!(names(folder.path()), expected);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomically(&path, b"old").unwrap();
        let failed = replace(&path, |file| {
            file.write_all(b"new")?;
            Err(ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn what_is_not_a_file_that_may_be_written_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let advice = "check that its folder exists, can be written and has room";
        fs::write(&path, "old").unwrap();
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
        assert_eq!(error(&path), format!("cannot write PATH: the file is read-only; {advice}"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(error(folder.path()), format!("cannot write PATH: it is a folder; {advice}"));
        let below = error(&path.join("below"));
        assert!(below.starts_with("cannot write PATH: Not a directory"), "{below}");
        assert_eq!(names(folder.path()), ["file"]);
    }

    /// As long as the system allows; a longer one is an error that says so.
    #[cfg(target_os = "linux")]
    #[test]
    fn long_names() {
        let folder = tempfile::tempdir().unwrap();
        write_atomically(folder.path().join("n".repeat(255)), b"new").unwrap();
        let text = error(&folder.path().join("n".repeat(256)));
        assert!(text.starts_with("cannot write PATH: File name too long"), "{text}");
    }

    #[cfg(unix)]
    mod unix {
        use std::os::unix::fs::{PermissionsExt, symlink};

        use super::*;

        #[test]
        fn permissions_are_those_of_any_new_file() {
            let folder = tempfile::tempdir().unwrap();
            let mode =
                |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            fs::write(folder.path().join("plain"), "").unwrap();
            write_atomically(folder.path().join("atomic"), b"").unwrap();
            assert_eq!(mode("atomic"), mode("plain"));
        }

        #[test]
        fn links_stay_and_lead_to_the_new_file() {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            fs::create_dir(path("elsewhere")).unwrap();
            fs::write(path("elsewhere/file"), "old").unwrap();
            symlink("elsewhere/file", path("link")).unwrap();
            symlink("nothing", path("broken")).unwrap();
            write_atomically(path("link"), b"new").unwrap();
            assert!(path("link").is_symlink());
            assert_eq!(fs::read(path("elsewhere/file")).unwrap(), b"new");
            let text = error(&path("broken"));
            assert!(
                text.starts_with("cannot write PATH: it is a link that leads nowhere;"),
                "{text}"
            );
            let text = error(Path::new("/dev/null"));
            assert!(
                text.starts_with("cannot write PATH: it is a device and not a file;"),
                "{text}"
            );
            assert_eq!(names(folder.path()), ["broken", "elsewhere", "link"]);
        }
    }
}
