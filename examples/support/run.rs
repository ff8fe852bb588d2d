//! The folder of a run and what is written into it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn_flows::{FlowError, Result};
use serde::{Deserialize, Serialize};

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
    /// Mean over the batches since the line before.
    pub train_bits_per_dim: f64,
    /// Mean over `test_images` test images, where measured.
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

/// The folder of a run.
pub struct RunDirectory {
    path: PathBuf,
    metrics: File,
}

impl RunDirectory {
    /// Makes the folder, with `config.json` and an empty `metrics.jsonl` in it.
    pub fn create(path: &Path, config: &impl Serialize) -> Result<Self> {
        create_run_folder(path, config)?;
        let metrics_path = path.join("metrics.jsonl");
        let metrics = File::create(&metrics_path)
            .map_err(|source| io("write", &metrics_path, source, WRITABLE))?;
        Ok(Self { path: path.into(), metrics })
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
        Ok((Self { path: path.into(), metrics }, lines))
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

/// Makes a folder, if it is not there.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|source| io("create the folder", path, source, WRITABLE))
}

/// Makes a folder with `config.json` in it.
pub fn create_run_folder(path: &Path, config: &impl Serialize) -> Result<()> {
    create_folder(path)?;
    write_atomically(&path.join("config.json"), config_text(config).as_bytes())
}

fn config_text(config: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(config).expect("a configuration is plain data");
    format!("{text}\n")
}

/// Writes a file beside and renames it, so that a reader never sees half of it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("tmp");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|source| io("write", path, source, WRITABLE))
}

fn io(
    action: &'static str,
    path: &Path,
    source: std::io::Error,
    advice: &'static str,
) -> FlowError {
    FlowError::Io { action, path: path.into(), source, advice }
}
