//! A run: where it goes, how long it is, what is kept.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::folder::{Claim, config_text};
use super::{at_least_one, say};
use crate::error::{FlowError, Result};
use crate::training::Memory;

/// A training with all that belongs to it: a progress bar, metrics, curves, a report, samples, checkpoints
/// from which it goes on exactly, an end by Ctrl-C or `kill` that loses nothing, and early stopping.
///
/// Into its folder go
///
/// - `config.json`: what the run depends on;
/// - `metrics.jsonl`: a line every 50 steps and for each measurement, see [`Metrics`](super::Metrics);
/// - `curve.png` and `report.html`, a page that needs nothing else;
/// - `model.safetensors`: the model as it was measured last, or, with [patience](Run::with_patience), the best
///   one; its averages where [`Trainer::with_average`](crate::training::Trainer::with_average) is on;
/// - `checkpoint/`, and what the [`Evaluation`](super::Evaluation) draws.
///
/// A folder that has a run already is left alone, unless [`with_resume`](Run::with_resume) or
/// [`with_overwrite`](Run::with_overwrite) is said; one in which a run came to no model and no checkpoint is as
/// good as empty. Ctrl-C, SIGTERM and SIGHUP end the run after the step at
/// work, with a checkpoint; a second signal ends the program at once.
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use burn_flows::models::MafConfig;
/// use burn_flows::run::{End, HeldOut, Run, Source};
/// use burn_flows::training::{Schedule, Trainer};
///
/// let device = burn_flows::backend::device();
/// let x = Tensor::<2>::random([300, 2], Distribution::Normal(0.0, 1.0), &device);
/// let (train, held_out) = (x.clone().narrow(0, 0, 200), x.narrow(0, 200, 100));
/// let folder = tempfile::tempdir()?;
///
/// let model = MafConfig::new(2, 2, vec![16]).init(&device)?;
/// let trainer = Trainer::new(model, Schedule::constant(5e-3));
/// let run = Run::new(folder.path().join("maf")).with_epochs(3).quiet();
/// let outcome = run.train(trainer, Source::rows(train, 50, 0)?, HeldOut::rows(held_out))?;
///
/// assert_eq!(outcome.end, End::Finished);
/// assert_eq!(outcome.metrics.last().unwrap().step, 12);
/// assert!(folder.path().join("maf/report.html").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Run {
    pub(super) folder: PathBuf,
    pub(super) title: Option<String>,
    pub(super) config: Option<String>,
    pub(super) device: Option<String>,
    pub(super) steps: Option<usize>,
    pub(super) epochs: Option<usize>,
    pub(super) resume: bool,
    pub(super) overwrite: bool,
    pub(super) memory: Option<Memory>,
    pub(super) checkpoint_every: usize,
    pub(super) measure_every: Option<usize>,
    pub(super) patience: Option<usize>,
    pub(super) is_quiet: bool,
}

/// Passes where nothing but early stopping ends a run.
const MOST_EPOCHS: usize = 1000;

/// Measurements during a run that does not stop early.
const MEASUREMENTS: usize = 10;

const CHECKPOINT_EVERY: usize = 500;

impl Run {
    /// A run into a folder, which is made if it is not there.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            title: None,
            config: None,
            device: None,
            steps: None,
            epochs: None,
            resume: false,
            overwrite: false,
            memory: None,
            checkpoint_every: CHECKPOINT_EVERY,
            measure_every: None,
            patience: None,
            is_quiet: false,
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Optimizer steps, or the most of them with [`with_epochs`](Run::with_epochs) too.
    pub fn with_steps(mut self, steps: impl Into<Option<usize>>) -> Self {
        self.steps = steps.into();
        self
    }

    /// Passes over the data.
    pub fn with_epochs(mut self, epochs: impl Into<Option<usize>>) -> Self {
        self.epochs = epochs.into();
        self
    }

    /// Goes on from the checkpoint in the folder, if there is one: with the same model, data and settings the
    /// end is that of a run that was not interrupted.
    pub fn with_resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Replaces the run that is in the folder.
    pub fn with_overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// What a step keeps of its forward pass; default: what the trainer
    /// [decides](crate::training::Trainer::with_memory). A run that goes on keeps what it had.
    pub fn with_memory(mut self, memory: impl Into<Option<Memory>>) -> Self {
        self.memory = memory.into();
        self
    }

    /// Steps between two checkpoints; default: 500.
    pub fn with_checkpoint_every(mut self, steps: usize) -> Self {
        self.checkpoint_every = steps;
        self
    }

    /// Steps between two measurements; default: a pass with [patience](Run::with_patience), else a tenth of
    /// the run.
    pub fn with_measure_every(mut self, steps: usize) -> Self {
        self.measure_every = Some(steps);
        self
    }

    /// Ends after as many measurements in which the held-out samples did not become likelier;
    /// `model.safetensors` is then the model for which they were likeliest.
    pub fn with_patience(mut self, measurements: impl Into<Option<usize>>) -> Self {
        self.patience = measurements.into();
        self
    }

    /// The title of curves and report; default: the name of the folder.
    pub fn with_title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// What `config.json` says, and the report: all that the run depends on, the configuration of the model
    /// for one. A run does not go on where it is another one.
    ///
    /// # Panics
    /// If it has no JSON.
    pub fn with_configuration(mut self, configuration: &impl Serialize) -> Self {
        self.config = Some(config_text(configuration));
        self
    }

    /// The name of the device, for the report.
    pub fn with_device_name(mut self, name: impl Into<String>) -> Self {
        self.device = Some(name.into());
        self
    }

    /// Without a progress bar and without a word on standard output.
    pub fn quiet(mut self) -> Self {
        self.is_quiet = true;
        self
    }

    /// Makes the folder for a program that writes `outputs` into it by itself, with `config.json`; one that
    /// has some of them already, or a `config.json` that is no run's, is an error, unless
    /// [`with_overwrite`](Run::with_overwrite) is said.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if it has, or another process runs into it; [`FlowError::Io`] if it cannot be made
    /// or written.
    pub fn make_folder(&self, outputs: &[&str]) -> Result<Claim> {
        let config = self.config.as_deref().unwrap_or("{}\n");
        Claim::of(&self.folder, outputs, self.overwrite, config)
    }

    /// The steps of the whole run, where a pass has so many.
    pub(super) fn num_steps(&self, steps_a_pass: Option<usize>) -> Result<usize> {
        let epochs = match (self.steps, self.epochs, self.patience) {
            (Some(steps), None, _) => return Ok(steps),
            (_, Some(epochs), _) => epochs,
            (None, None, Some(_)) => MOST_EPOCHS,
            (None, None, None) => {
                return Err(FlowError::invalid(
                    "Run::with_steps",
                    "nothing",
                    "the length of the run",
                    "say Run::with_steps or Run::with_epochs, or Run::with_patience",
                ));
            }
        };
        let steps = steps_a_pass.ok_or_else(|| {
            FlowError::invalid(
                "Run::with_epochs",
                epochs,
                "batches that make up passes",
                "say Run::with_steps, or Source::with_steps_a_pass",
            )
        })?;
        Ok(epochs.saturating_mul(steps).min(self.steps.unwrap_or(usize::MAX)))
    }

    /// Steps between two measurements of a run of so many.
    pub(super) fn measure_every(&self, num_steps: usize, steps_a_pass: Option<usize>) -> usize {
        let of_pass = self.patience.and(steps_a_pass);
        self.measure_every.or(of_pass).unwrap_or(num_steps / MEASUREMENTS).max(1)
    }

    /// Checks what does not depend on model or data.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] for a number that is 0, by the name of its method.
    pub fn validate(&self) -> Result<()> {
        at_least_one("Run::with_steps", self.steps)?;
        at_least_one("Run::with_epochs", self.epochs)?;
        at_least_one("Run::with_checkpoint_every", Some(self.checkpoint_every))?;
        at_least_one("Run::with_measure_every", self.measure_every)?;
        at_least_one("Run::with_patience", self.patience)
    }

    pub(super) fn say(&self, text: std::fmt::Arguments) {
        if !self.is_quiet {
            say(text);
        }
    }
}
