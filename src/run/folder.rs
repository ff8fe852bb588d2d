//! The folder of a run and what is written into it.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Metrics;
use crate::error::{FlowError, Result};
use crate::record::write_atomically;
use crate::training::remove_checkpoint;

/// The folder of the samples of each measurement, in the folder of the run.
pub(super) const PROGRESS: &str = "progress";

/// The file of the samples after `step`, in that folder.
pub(super) fn progress_name(step: usize) -> String {
    format!("{step:06}.png")
}

/// The file of the model.
pub(super) const MODEL: &str = "model.safetensors";

/// What a training starts with in its folder.
const BEGINNINGS: [&str; 2] = ["config.json", "metrics.jsonl"];

/// What it comes to, beside the samples of its measurements.
const RESULTS: [&str; 7] = [
    "checkpoint/checkpoint.txt",
    MODEL,
    "samples.png",
    "samples.csv",
    "reconstructions.png",
    "curve.png",
    "report.html",
];

/// The file by which a folder is one of runs, and by which one process at a time runs into it.
const LOCK: &str = ".lock";

/// What a training without a checkpoint to go on from does with a run that is in its folder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Earlier {
    /// Refuse to start.
    Keep,
    /// Refuse to start if it came to any result.
    KeepResults,
    Replace,
}

/// The folder of a run.
pub(super) struct RunFolder {
    path: PathBuf,
    metrics: File,
    /// Keeps other processes from training into the folder.
    _lock: File,
}

impl RunFolder {
    /// Makes the folder, with `config.json` and an empty `metrics.jsonl` in it.
    pub(super) fn create(path: &Path, config: &str, earlier: Earlier) -> Result<Self> {
        if earlier == Earlier::Keep {
            let advice = "Run::with_resume goes on with a run, Run::with_overwrite replaces it";
            refuse_to_replace(path, &RESULTS, advice)?;
        } else if earlier == Earlier::KeepResults
            && let Some(name) = first_of(&RESULTS, path).or_else(|| in_the_way(path, &[]))
        {
            let got = format!("{}, which has a {name} and no checkpoint", path.display());
            let advice = "Run::with_overwrite instead starts from the beginning";
            return Err(FlowError::invalid(
                "Run::with_resume",
                got,
                "a checkpoint to go on from",
                advice,
            ));
        }
        create_folder(path)?;
        let lock = lock(path)?;
        // First of all: a checkpoint of an earlier run, beside the files of this one, could be taken for
        // its own.
        remove_checkpoint(checkpoint(path))?;
        remove(path, &RESULTS)?;
        remove_progress(path)?;
        write_config(path, config)?;
        let metrics_path = path.join("metrics.jsonl");
        let metrics = File::create(&metrics_path)
            .map_err(|source| FlowError::io("write", &metrics_path, source, WRITABLE))?;
        Ok(Self { path: path.into(), metrics, _lock: lock })
    }

    /// Opens the folder of an interrupted run of the same configuration: the lines of its
    /// `metrics.jsonl` up to `step` are kept and given back, later ones (of steps that will be taken
    /// again) are cut off.
    pub(super) fn reopen(path: &Path, config: &str, step: usize) -> Result<(Self, Vec<Metrics>)> {
        let config_path = path.join("config.json");
        let advice = "give Run::new the folder of the interrupted run";
        let before = fs::read_to_string(&config_path)
            .map_err(|source| FlowError::io("read", &config_path, source, advice))?;
        if before != config {
            return Err(FlowError::Record {
                path: config_path,
                reason: "the interrupted run had another configuration".into(),
                advice: "resume with the options that it was started with".into(),
            });
        }
        let lock = lock(path)?;
        let metrics_path = path.join("metrics.jsonl");
        let text = fs::read_to_string(&metrics_path)
            .map_err(|source| FlowError::io("read", &metrics_path, source, advice))?;
        let all: Vec<&str> = text.lines().collect();
        // A last line that the interruption cut off says no step, and goes; one that another version wrote
        // stays in the file.
        let end = all.iter().rposition(|line| step_of(line).is_some_and(|of| of <= step));
        let kept = &all[..end.map_or(0, |last| last + 1)];
        let lines = kept.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let kept: String = kept.iter().map(|line| format!("{line}\n")).collect();
        write_atomically(&metrics_path, kept.as_bytes())?;
        let metrics = File::options()
            .append(true)
            .open(&metrics_path)
            .map_err(|source| FlowError::io("write", &metrics_path, source, advice))?;
        Ok((Self { path: path.into(), metrics, _lock: lock }, lines))
    }

    /// A file in the folder.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Appends a line to `metrics.jsonl`.
    pub(super) fn append(&mut self, metrics: &Metrics) -> Result<()> {
        let line = serde_json::to_string(metrics).expect("metrics are plain data");
        writeln!(self.metrics, "{line}").map_err(|source| {
            FlowError::io(
                "write",
                &self.file("metrics.jsonl"),
                source,
                "free some space on the disk",
            )
        })
    }
}

/// The step of a line of `metrics.jsonl`, where it is a whole one.
fn step_of(line: &str) -> Option<usize> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line.get("step")?.as_u64()?.try_into().ok()
}

const WRITABLE: &str = "give Run::new a folder that can be written";

/// The folder of a run's checkpoint.
pub(super) fn checkpoint(run: &Path) -> PathBuf {
    run.join("checkpoint")
}

/// An error if something of an earlier run, or of the user's, is in the folder of a run with these `results`
/// that is about to start.
fn refuse_to_replace(path: &Path, results: &[&str], advice: &str) -> Result<()> {
    match in_the_way(path, results) {
        None => Ok(()),
        Some(name) => {
            let got = format!("{}, which has a {name} already", path.display());
            Err(FlowError::invalid("Run::new", got, "a folder without a run", advice))
        }
    }
}

/// Whether a folder is that of a run, whose pictures are not to be replaced by others.
pub(super) fn is_run(path: &Path) -> bool {
    first_of(&BEGINNINGS, path).is_some()
}

/// What would be lost by a run with these `results`.
fn in_the_way<'a>(path: &Path, results: &[&'a str]) -> Option<&'a str> {
    let beginnings = first_of(&BEGINNINGS, path).filter(|_| !is_of_nothing(path));
    beginnings.or_else(|| first_of(results, path))
}

/// Whether a run has begun in the folder and come to nothing: it diverged before its first step, or was killed.
/// Without a [`LOCK`] the files are the user's; what else there is may be the result of another program's run.
fn is_of_nothing(path: &Path) -> bool {
    let is_empty =
        |path: &Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    let is_nothing = |entry: fs::DirEntry| {
        let name = entry.file_name();
        BEGINNINGS.iter().chain([&LOCK]).any(|known| name == **known) || is_empty(&entry.path())
    };
    path.join(LOCK).exists()
        && fs::read_dir(path)
            .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(is_nothing)))
}

fn first_of<'a>(outputs: &[&'a str], path: &Path) -> Option<&'a str> {
    outputs.iter().copied().find(|name| path.join(name).exists())
}

/// Removes those of `outputs` that are in the folder of a run.
pub(super) fn remove(path: &Path, outputs: &[&str]) -> Result<()> {
    outputs.iter().try_for_each(|name| {
        let path = path.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(FlowError::io("remove", &path, source, WRITABLE))
            }
            _ => Ok(()),
        }
    })
}

/// Removes the samples of a run's measurements.
fn remove_progress(path: &Path) -> Result<()> {
    let folder = path.join(PROGRESS);
    let names: Vec<_> =
        fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
    let is_ours = |name: &&str| {
        let step = name.strip_suffix(".png").and_then(|step| step.parse().ok());
        step.is_some_and(|step| progress_name(step) == **name)
    };
    let ours: Vec<_> = names.iter().filter_map(|name| name.to_str()).filter(is_ours).collect();
    remove(&folder, &ours)
}

/// Keeps the folder of a run for this process as long as the answer lives.
fn lock(path: &Path) -> Result<File> {
    let lock = path.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock)
        .map_err(|source| FlowError::io("write", &lock, source, WRITABLE))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let got = format!("{}, which another process trains into", path.display());
            Err(FlowError::invalid(
                "Run::new",
                got,
                "a folder of its own",
                "wait for it, or give another",
            ))
        }
        // Where the file system has no locks, the user sees to it.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Makes a folder, if it is not there.
pub(super) fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .map_err(|source| FlowError::io("create the folder", path, source, WRITABLE))
}

/// Writes `config.json` into the folder of a run.
pub(super) fn write_config(path: &Path, config: &str) -> Result<()> {
    write_atomically(path.join("config.json"), config.as_bytes())
}

/// The text of a configuration.
pub(super) fn config_text(config: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(config).expect("a configuration is plain data");
    format!("{text}\n")
}

/// A folder that a program writes its own files into ([`Run::make_folder`](super::Run::make_folder)): as long
/// as this lives, no other process runs into it.
#[derive(Debug)]
#[must_use = "another process can run into the folder once this is dropped"]
pub struct Claim {
    _lock: File,
}

impl Claim {
    /// Makes the folder of a program that has these results, with its configuration.
    pub(super) fn of(path: &Path, results: &[&str], overwrite: bool, config: &str) -> Result<Self> {
        if !overwrite {
            let advice = "Run::with_overwrite replaces it, another folder keeps it";
            refuse_to_replace(path, results, advice)?;
        }
        create_folder(path)?;
        let lock = lock(path)?;
        remove(path, results)?;
        write_config(path, config)?;
        Ok(Self { _lock: lock })
    }
}
