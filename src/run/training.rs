//! The loop of a run.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::folder::{Earlier, MODEL, RunFolder, checkpoint, config_text};
use super::report::Report;
use super::source::Started as Batches;
use super::{Evaluation, Metrics, Run, Source, Unit, curves, interrupt};
use crate::error::{FlowError, Result};
use crate::record;
use crate::training::early::EarlyStopping;
use crate::training::{Batch, Trainable, Trainer};

/// Optimizer steps between two lines of the metrics.
const STEPS_A_LINE: usize = 50;

/// Curves and report of a run that measures often are written this often, and at its end.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// What a run came to.
#[derive(Debug)]
pub struct Outcome<M> {
    /// The model that was saved: the best one with [patience](Run::with_patience), else the last one.
    pub model: M,
    /// Why it ended.
    pub end: End,
    /// The lines of `metrics.jsonl`, of the steps before the run was resumed too.
    pub metrics: Vec<Metrics>,
    /// The step after which the model was the one that was saved.
    pub best_step: usize,
    /// Mean of `-ln p` over the held-out samples by that model, in nats, where something is held out.
    pub held_out_loss: Option<f64>,
    /// How the making of batches kept up.
    pub loading: Loading,
    /// The folder of the run.
    pub folder: PathBuf,
    unit: Unit,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All steps were taken.
    Finished,
    /// The held-out samples have not become likelier for as many measurements as the patience says.
    Early,
    /// A signal came; a checkpoint was written after `step`.
    Interrupted {
        /// Steps taken.
        step: usize,
    },
}

/// How the making of batches kept up with the steps of a run, since it was started or resumed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loading {
    /// Seconds in which the model waited for a batch.
    pub seconds_waited: f64,
    /// Seconds from the first step to the last, measuring included.
    pub seconds: f64,
    /// Samples a second that can be made ready.
    pub samples_made: f64,
    /// Samples a second that the steps took.
    pub samples_taken: f64,
}

/// The last line of a program.
impl<M> fmt::Display for Outcome<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let End::Interrupted { step } = self.end {
            return write!(f, "interrupted after step {step}; Run::with_resume goes on");
        }
        if let Some(loss) = self.held_out_loss {
            let (loss, unit) = (self.unit.of(loss), self.unit.name());
            write!(
                f,
                "{loss:.3} {unit} (-ln p) over the held-out samples after step {}, ",
                self.best_step
            )?;
        }
        write!(f, "in {}", self.folder.display())
    }
}

impl Run {
    /// Trains until the steps are taken, the patience is over or a signal comes; the folder has all that it
    /// comes to.
    ///
    /// `trainer` is a new one, with the model as it was built: its layers are initialized from the source's
    /// [batch for it](Source::with_initialization) or the first one. With
    /// [averages](Trainer::with_average), the model that has them is measured and saved.
    ///
    /// # Errors
    /// - [`FlowError::Invalid`] where a setting or the evaluation cannot be used, the folder has another run, or another
    ///   process trains into it; [`FlowError::Record`] where a run of another configuration is to go on;
    ///   [`FlowError::Io`] where the folder cannot be written.
    /// - Those of [`Trainer::step`]. Where the training diverges, the last good model is in
    ///   `model.safetensors` (with [patience](Run::with_patience) the best one) and in the checkpoint.
    /// - Those of the source and of [`Evaluation::measure`] and [`Evaluation::progress`]; the model is then kept
    ///   as where a step fails.
    pub fn train<M, B, E>(
        &self,
        trainer: Trainer<M>,
        source: Source<B>,
        mut evaluation: E,
    ) -> Result<Outcome<E::Saved>>
    where
        M: Trainable<B>,
        B: Batch + 'static,
        E: Evaluation<M>,
    {
        self.validate()?;
        evaluation.validate()?;
        let start = Instant::now();
        let signals = interrupt::watch();
        let steps_a_pass = source.steps_a_pass();
        let num_steps = self.num_steps(steps_a_pass)?;
        let measure_every = self.measure_every(num_steps, steps_a_pass);
        let title = self.title.clone().unwrap_or_else(|| {
            self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
        });
        let config = self.config.clone().unwrap_or_else(|| {
            config_text(&serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "title": title,
                "num_steps": num_steps,
                "num_parameters": trainer.training_model().num_params(),
                "patience": self.patience,
            }))
        });
        let started = self.start_or_resume(trainer, source, num_steps, &config)?;
        let Started { mut trainer, mut folder, mut batches, mut lines, mut since } = started;
        let (seconds_before, waited_before) = (since.seconds, since.waited);
        let seconds = || seconds_before + start.elapsed().as_secs_f64();
        since.stopping.patience = self.patience.unwrap_or(usize::MAX);

        evaluation.start(&self.folder)?;
        let unit = evaluation.unit();
        let first = trainer.num_steps();
        let bar = self.bar(num_steps, first);
        let checkpoints = checkpoint(&self.folder);
        let report = Report {
            title: &title,
            folder: &self.folder,
            device: self.device.as_deref(),
            config: &config,
        };
        let mut reported: Option<Instant> = None;
        let mut seconds_of_steps = 0.0;
        let mut end = match self.patience.is_some() && since.stopping.is_over() {
            true => End::Early,
            false => End::Finished,
        };
        let mut take_steps = || -> Result<()> {
            while trainer.num_steps() < num_steps && end == End::Finished {
                let batch = batches.next(trainer.num_steps())?;
                let step_start = Instant::now();
                let step = trainer.step(batch)?;
                seconds_of_steps += step_start.elapsed().as_secs_f64();
                since.add(unit.of(step.loss));
                since.drift = step.drift.or(since.drift);
                let a_second = batches.taken() as f64 / start.elapsed().as_secs_f64();
                let (name, samples) = (unit.name(), unit.samples());
                bar.set_message(format!("{:.3} {name}  {a_second:.0} {samples}/s", since.last));
                bar.inc(1);
                let last = step.number == num_steps;
                let measure = last || step.number % measure_every == 0;
                if measure || step.number % STEPS_A_LINE == 0 {
                    let mut line = Metrics {
                        step: step.number,
                        epoch: steps_a_pass.map(|steps| step.number as f64 / steps as f64),
                        gradient_norm: step.gradient_norm,
                        learning_rate: step.learning_rate,
                        memory: trainer.memory().to_string(),
                        drift: since.drift.take(),
                        ..Metrics::default()
                    };
                    let mean = Some(since.take_mean());
                    match unit {
                        Unit::Nats => line.train_loss = mean,
                        Unit::BitsPerDim { .. } => line.train_bits_per_dim = mean,
                    }
                    let mut shown = Ok(());
                    if measure {
                        let model = evaluation.saved(trainer.averaged());
                        let is_final = last || self.patience.is_some();
                        if let Some(measured) = evaluation.measure(&model, step.number, is_final)? {
                            let loss = measured.loss;
                            line.take(measured, unit)?;
                            if since.stopping.take(loss) || self.patience.is_none() {
                                (since.best_step, since.held_out_loss) = (step.number, Some(loss));
                            }
                        } else {
                            since.best_step = step.number;
                        }
                        if since.best_step == step.number {
                            record::save(&model, folder.file(MODEL))?;
                        }
                        shown = evaluation.progress(&model, step.number, &self.folder);
                    }
                    line.seconds = seconds();
                    line.seconds_waited = waited_before + batches.waited();
                    folder.append(&line)?;
                    lines.push(line);
                    shown?;
                    if measure && reported.is_none_or(|then| then.elapsed() > REPORT_EVERY) {
                        reported = Some(Instant::now());
                        curves::write(&folder.file("curve.png"), &title, &lines)?;
                        report.write(&lines, &evaluation.sections(&lines, false), unit)?;
                    }
                }
                if self.patience.is_some() && since.stopping.is_over() {
                    end = End::Early;
                } else if signals.is_asked() && !last {
                    end = End::Interrupted { step: step.number };
                }
                if end != End::Finished || last || step.number % self.checkpoint_every == 0 {
                    since.seconds = seconds();
                    since.waited = waited_before + batches.waited();
                    trainer.save(&checkpoints, &since.to_note())?;
                }
            }
            Ok(())
        };
        if let Err(error) = take_steps() {
            bar.abandon();
            if self.patience.is_none() || since.best_step == 0 {
                record::save(&evaluation.saved(trainer.averaged()), folder.file(MODEL))?;
                if since.best_step != trainer.num_steps() {
                    (since.best_step, since.held_out_loss) = (trainer.num_steps(), None);
                }
            }
            since.seconds = seconds();
            since.waited = waited_before + batches.waited();
            // In place of one that was written between the last good model and the error.
            trainer.save(&checkpoints, &since.to_note())?;
            return Err(error);
        }
        let model = evaluation.saved(trainer.averaged());
        let mut outcome = Outcome {
            model,
            end,
            metrics: lines,
            best_step: since.best_step,
            held_out_loss: since.held_out_loss,
            loading: Loading {
                seconds_waited: batches.waited(),
                seconds: start.elapsed().as_secs_f64(),
                samples_made: batches.taken() as f64 / batches.working(),
                samples_taken: batches.taken() as f64 / seconds_of_steps,
            },
            folder: self.folder.clone(),
            unit,
        };
        if let End::Interrupted { .. } = end {
            bar.abandon();
            return Ok(outcome);
        }
        bar.finish();
        if outcome.best_step != trainer.num_steps() {
            outcome.model = record::load(outcome.model, folder.file(MODEL))?;
        }
        evaluation.finish(&outcome.model, &self.folder)?;
        curves::write(&folder.file("curve.png"), &title, &outcome.metrics)?;
        let sections = evaluation.sections(&outcome.metrics, true);
        report.write(&outcome.metrics, &sections, unit)?;
        Ok(outcome)
    }

    fn bar(&self, num_steps: usize, first: usize) -> ProgressBar {
        if self.is_quiet {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(num_steps as u64).with_position(first as u64);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}  {eta} left");
        bar.set_style(style.expect("the template is valid"));
        bar.reset_eta();
        bar
    }

    fn start_or_resume<M: Trainable<B>, B: Batch + 'static>(
        &self,
        trainer: Trainer<M>,
        source: Source<B>,
        num_steps: usize,
        config: &str,
    ) -> Result<Started<M, B>> {
        let mut trainer = trainer;
        if self.resume {
            let checkpoints = checkpoint(&self.folder);
            let note;
            (trainer, note) = trainer.resume(&checkpoints)?;
            if let Some(note) = note {
                let (folder, lines) = RunFolder::reopen(&self.folder, config, trainer.num_steps())?;
                let since = Since::from_note(&note).ok_or_else(|| FlowError::Record {
                    path: checkpoints,
                    reason: "the checkpoint's note is not one of a run".into(),
                    advice: "say Run::with_overwrite to start from the beginning".into(),
                })?;
                // Not chosen again: the run must be the one that was interrupted.
                self.say(format_args!("memory: {} (of the checkpoint)", trainer.memory()));
                let batches = source.start(trainer.num_steps().min(num_steps), num_steps);
                return Ok(Started { trainer, folder, batches, lines, since });
            }
            let folder = self.folder.display();
            self.say(format_args!("no checkpoint in {folder}: starting from the beginning"));
        }
        let earlier = match (self.resume, self.overwrite) {
            (true, _) => Earlier::KeepResults,
            (_, true) => Earlier::Replace,
            _ => Earlier::Keep,
        };
        let folder = RunFolder::create(&self.folder, config, earlier)?;
        let mut batches = source.start(0, num_steps);
        if let Some(batch) = batches.initialization.take() {
            trainer = trainer.with_initialization(batch()?)?;
        } else if trainer.is_to_be_initialized() {
            trainer = trainer.with_initialization(batches.peek(0)?.clone())?;
        }
        if let Some(memory) = self.memory {
            trainer = trainer.with_memory(memory);
        } else if let Some(reason) = trainer.choose_memory(batches.peek(0)?) {
            self.say(format_args!("memory: {} ({reason})", trainer.memory()));
        }
        Ok(Started { trainer, folder, batches, lines: Vec::new(), since: Since::default() })
    }
}

struct Started<M, B> {
    trainer: Trainer<M>,
    folder: RunFolder,
    batches: Batches<B>,
    lines: Vec<Metrics>,
    since: Since,
}

/// What a checkpoint keeps beside model and optimizer.
struct Since {
    /// Of the losses since the last line of the metrics.
    sum: f64,
    count: usize,
    last: f64,
    /// Of training, in all runs so far.
    seconds: f64,
    /// Of these, spent in waiting for batches.
    waited: f64,
    drift: Option<f64>,
    stopping: EarlyStopping,
    /// The step of the model that was saved.
    best_step: usize,
    held_out_loss: Option<f64>,
}

impl Default for Since {
    fn default() -> Self {
        Self {
            sum: 0.0,
            count: 0,
            last: 0.0,
            seconds: 0.0,
            waited: 0.0,
            drift: None,
            stopping: EarlyStopping::new(usize::MAX),
            best_step: 0,
            held_out_loss: None,
        }
    }
}

impl Since {
    fn add(&mut self, loss: f64) {
        (self.sum, self.count, self.last) = (self.sum + loss, self.count + 1, loss);
    }

    fn take_mean(&mut self) -> f64 {
        let mean = self.sum / self.count as f64;
        (self.sum, self.count) = (0.0, 0);
        mean
    }

    /// Rust reads every float back as it wrote it, which serde_json does not promise.
    fn to_note(&self) -> String {
        let Self { sum, count, last, seconds, waited, drift, stopping, best_step, held_out_loss } =
            self;
        let [drift, loss] = [drift, held_out_loss].map(|value| value.unwrap_or(f64::NAN));
        let EarlyStopping { best, without_gain, .. } = stopping;
        format!(
            "{sum} {count} {last} {seconds} {waited} {drift} {best} {without_gain} {best_step} {loss}"
        )
    }

    fn from_note(note: &str) -> Option<Self> {
        let fields: Vec<&str> = note.split(' ').collect();
        let (of_steps, of_measurements) = fields.split_at_checked(6)?;
        let [sum, count, last, seconds, waited, drift] = of_steps.try_into().ok()?;
        let number = |text: &str| text.parse::<f64>().ok().filter(|number| !number.is_nan());
        let mut since = Self {
            sum: sum.parse().ok()?,
            count: count.parse().ok()?,
            last: last.parse().ok()?,
            seconds: seconds.parse().ok()?,
            waited: waited.parse().ok()?,
            drift: number(drift),
            ..Self::default()
        };
        // Runs of before this had no more.
        if let [best, without_gain, best_step, loss] = of_measurements {
            since.stopping.best = best.parse().ok()?;
            since.stopping.without_gain = without_gain.parse().ok()?;
            since.best_step = best_step.parse().ok()?;
            since.held_out_loss = number(loss);
        }
        Some(since)
    }
}
