//! The folder of a run and what is written into it.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use burn_flows::record::write_atomically;
use burn_flows::training::remove_checkpoint;
use burn_flows::{FlowError, Result};
use serde::{Deserialize, Serialize};

use super::arguments::invalid;
use super::model::Model;

/// `config.json`: all that the run depends on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Configuration {
    pub version: String,
    pub model: Model,
    /// `[channels, height, width]`.
    pub image_shape: [usize; 3],
    pub batch: usize,
    pub num_steps: usize,
    pub learning_rate: f64,
    pub bits: u32,
    pub seed: u64,
    /// What the images are and what divides them into two parts.
    pub data: String,
    pub train_images: usize,
    pub test_images: usize,
    /// Whether training images are mirrored at random.
    pub flips: bool,
    /// What a step keeps of its forward pass, where the options say; see `memory` in `Metrics`.
    pub memory: Option<String>,
    /// Images whose gradients are computed at once, where not all of a batch.
    pub micro_batch: Option<usize>,
    /// Of a class-conditional model, the weight of the classifier in the loss.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub classifier_weight: Option<f64>,
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Metrics {
    /// Optimizer steps taken.
    pub step: usize,
    /// Passes over the training images.
    pub epoch: f64,
    /// Seconds of training, measuring included.
    pub seconds: f64,
    /// Of these, spent in waiting for batches.
    pub seconds_waited: f64,
    /// Mean over the batches since the line before; of a class-conditional model given the classes, and
    /// with the classifier's part of the loss.
    pub train_bits_per_dim: f64,
    /// Mean over `test_images` test images, where measured; of a class-conditional model given their
    /// classes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub test_bits_per_dim: Option<f64>,
    /// How many test images were measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub test_images: Option<usize>,
    /// What the test images' bits/dim are made of: the two numbers of each level, finest first, are
    /// what its log-determinant takes off and what the prior of its part of the latent adds. Together
    /// with the bits of a pixel they add up to `test_bits_per_dim`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub level_bits_per_dim: Option<Vec<[f64; 2]>>,
    /// Largest |x - inverse(forward(x))| over a batch, where measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub inversion_error: Option<f64>,
    /// Of a class-conditional model, the share of the test images whose class Bayes' rule finds, a class
    /// being as likely as it is frequent in training.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub test_accuracy: Option<f64>,
    /// Bits/dim of the same images without their classes: of the sum of p(x | class) p(class).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub test_marginal_bits_per_dim: Option<f64>,
    /// Norm of all gradients before clipping, at the last step.
    pub gradient_norm: f64,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// What the last step kept of its forward pass.
    pub memory: String,
    /// Largest drift of the activations that were computed again, where measured since the line
    /// before: the error over the root mean square.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub drift: Option<f64>,
}

/// The folder of the samples of each measurement, in the folder of the run.
pub const PROGRESS: &str = "progress";

/// The file of the samples after `step`, in that folder.
pub fn progress_name(step: usize) -> String {
    format!("{step:06}.png")
}

/// The file of the model.
pub const MODEL: &str = "model.safetensors";

/// What a training starts with in its folder.
const BEGINNINGS: [&str; 2] = ["config.json", "metrics.jsonl"];

/// What it comes to, beside the samples of its measurements.
const RESULTS: [&str; 6] = [
    "checkpoint/checkpoint.txt",
    MODEL,
    "samples.png",
    "reconstructions.png",
    "curve.png",
    "report.html",
];

/// What a training without a checkpoint to go on from does with a run that is in its folder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// Refuse to start.
    Keep,
    /// Refuse to start if it came to any result.
    KeepResults,
    Replace,
}

/// The folder of a run.
pub struct RunDirectory {
    path: PathBuf,
    metrics: File,
    /// Keeps other processes from training into the folder.
    _lock: File,
}

impl RunDirectory {
    /// Makes the folder, with `config.json` and an empty `metrics.jsonl` in it.
    pub fn create(path: &Path, config: &impl Serialize, earlier: Earlier) -> Result<Self> {
        if earlier == Earlier::Keep {
            let advice = "--resume goes on with a run, --overwrite replaces it";
            refuse_to_replace(path, &[&BEGINNINGS[..], &RESULTS].concat(), advice)?;
        } else if earlier == Earlier::KeepResults
            && let Some(name) = first_of(&RESULTS, path)
        {
            let got = format!("{}, which has a {name} and no checkpoint", path.display());
            let advice = "--overwrite instead starts from the beginning";
            return Err(invalid("--resume", &got, "a checkpoint to go on from", advice));
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
            .map_err(|source| io("write", &metrics_path, source, WRITABLE))?;
        Ok(Self { path: path.into(), metrics, _lock: lock })
    }

    /// Opens the folder of an interrupted run of the same configuration: the lines of its
    /// `metrics.jsonl` up to `step` are kept and given back, later ones (of steps that will be taken
    /// again) are cut off.
    pub fn reopen(
        path: &Path,
        config: &impl Serialize,
        step: usize,
    ) -> Result<(Self, Vec<Metrics>)> {
        let config_path = path.join("config.json");
        let advice = "give --out the folder of the interrupted run";
        let before = fs::read_to_string(&config_path)
            .map_err(|source| io("read", &config_path, source, advice))?;
        if before != config_text(config) {
            return Err(FlowError::Record {
                path: config_path,
                reason: "the interrupted run had another configuration".into(),
                advice: "resume with the options that it was started with".into(),
            });
        }
        let lock = lock(path)?;
        let metrics_path = path.join("metrics.jsonl");
        let text = fs::read_to_string(&metrics_path)
            .map_err(|source| io("read", &metrics_path, source, advice))?;
        let mut kept = String::new();
        let mut lines: Vec<Metrics> = Vec::new();
        for line in text.lines() {
            match serde_json::from_str::<Metrics>(line) {
                Ok(metrics) if metrics.step <= step => lines.push(metrics),
                // Of a later step; or cut off by the interruption, and so of a later step.
                _ => break,
            }
            kept.push_str(line);
            kept.push('\n');
        }
        write_atomically(&metrics_path, kept.as_bytes())?;
        let metrics = File::options()
            .append(true)
            .open(&metrics_path)
            .map_err(|source| io("write", &metrics_path, source, advice))?;
        Ok((Self { path: path.into(), metrics, _lock: lock }, lines))
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Appends a line to `metrics.jsonl`.
    pub fn append(&mut self, metrics: &Metrics) -> Result<()> {
        let line = serde_json::to_string(metrics).expect("metrics are plain data");
        writeln!(self.metrics, "{line}").map_err(|source| {
            io("write", &self.file("metrics.jsonl"), source, "free some space on the disk")
        })
    }
}

const WRITABLE: &str = "give --out a folder that can be written";

/// The folder of a run's checkpoint.
pub fn checkpoint(run: &Path) -> PathBuf {
    run.join("checkpoint")
}

/// An error if one of `outputs` is in the folder of a run that is about to start.
pub fn refuse_to_replace(path: &Path, outputs: &[&str], advice: &str) -> Result<()> {
    match first_of(outputs, path) {
        None => Ok(()),
        Some(name) => {
            let got = format!("{}, which has a {name} already", path.display());
            Err(invalid("--out", &got, "a folder without a run", advice))
        }
    }
}

/// Whether a folder is that of a run, whose pictures are not to be replaced by others.
pub fn is_run(path: &Path) -> bool {
    first_of(&BEGINNINGS, path).is_some()
}

fn first_of<'a>(outputs: &[&'a str], path: &Path) -> Option<&'a str> {
    outputs.iter().copied().find(|name| path.join(name).exists())
}

/// Removes those of `outputs` that are in the folder of a run.
pub fn remove(path: &Path, outputs: &[&str]) -> Result<()> {
    outputs.iter().try_for_each(|name| {
        let path = path.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(io("remove", &path, source, WRITABLE))
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
        .map_err(|source| io("write", &lock, source, WRITABLE))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let got = format!("{}, which another process trains into", path.display());
            Err(invalid("--out", &got, "a folder of its own", "wait for it, or give another"))
        }
        // Where the file system has no locks, the user sees to it.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Makes a folder, if it is not there.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| io("create the folder", path, source, WRITABLE))
}

/// Writes `config.json` into the folder of a run.
pub fn write_config(path: &Path, config: &impl Serialize) -> Result<()> {
    write_atomically(path.join("config.json"), config_text(config).as_bytes())
}

fn config_text(config: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(config).expect("a configuration is plain data");
    format!("{text}\n")
}

fn io(
    action: &'static str,
    path: &Path,
    source: std::io::Error,
    advice: &'static str,
) -> FlowError {
    FlowError::Io { action, path: path.into(), source, advice }
}
