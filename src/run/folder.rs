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
            refuse_to_replace(path, &[&BEGINNINGS[..], &RESULTS].concat(), advice)?;
        } else if earlier == Earlier::KeepResults
            && let Some(name) = first_of(&RESULTS, path)
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

/// An error if one of `outputs` is in the folder of a run that is about to start.
pub(super) fn refuse_to_replace(path: &Path, outputs: &[&str], advice: &str) -> Result<()> {
    match first_of(outputs, path) {
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
    let lock = path.join(".lock");
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

/// Makes the folder of a program that has these outputs, with its configuration.
pub(super) fn claim(path: &Path, outputs: &[&str], overwrite: bool, config: &str) -> Result<()> {
    let outputs = [&["config.json"], outputs].concat();
    if !overwrite {
        let advice = "Run::with_overwrite replaces it, another folder keeps it";
        refuse_to_replace(path, &outputs, advice)?;
    }
    create_folder(path)?;
    remove(path, &outputs)?;
    write_config(path, config)
}
