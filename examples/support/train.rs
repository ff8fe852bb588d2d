//! Training a flow on images: the loop that the examples share.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flows::data::{Batches, Images, Prefetch, StepBatch, random_for, streams};
use burn_flows::metrics;
use burn_flows::preprocess::Quantization;
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::record;
use burn_flows::training::{Memory, Schedule, Trainer};
use burn_flows::{Flow, FlowError, FlowStack, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::classes::{Task, labels};
use super::report::Report;
use super::run::{
    Earlier, MODEL, Metrics, PROGRESS, RunDirectory, checkpoint, create_folder, progress_name,
};
use super::{interrupt, memory, pictures, plot, say};

/// How a run trains.
pub struct Plan {
    pub num_steps: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    pub warm_up: usize,
    pub max_gradient_norm: f64,
    /// Images that ActNorm is initialized from.
    pub initialization_batch: usize,
    pub seed: u64,
    /// Whether training images are mirrored at random.
    pub flips: bool,
    pub quantization: Quantization,
    /// Rows of `samples.png`; with classes, as many rows each.
    pub temperatures: Vec<f64>,
    pub title: String,
    /// The name of the backend that computes.
    pub device_name: String,
    pub checkpoint_every: usize,
    /// Go on from the last checkpoint, if there is one.
    pub resume: bool,
    /// Replace the run that is there.
    pub overwrite: bool,
    /// What a step keeps of its forward pass; chosen where not given.
    pub memory: Option<Memory>,
    /// Images whose gradients are computed at once, where not all.
    pub micro_batch: Option<usize>,
}

/// Optimizer steps between two lines of the metrics.
const STEPS_A_LINE: usize = 50;

/// Measurements on test images during a run.
const MEASUREMENTS: usize = 10;

/// Test images of a measurement during the run; the last one takes all.
const IMAGES_A_MEASUREMENT: usize = 1000;

/// Images of one batch in measurements.
const MEASURING_BATCH: usize = 100;

/// Pictures in a row.
const COLUMNS: usize = 10;

/// Batches that are made ahead of the step that takes them.
const BATCHES_AHEAD: usize = 4;

/// Temperature of the samples of each measurement: the one that Glow's paper shows faces at.
pub const PROGRESS_TEMPERATURE: f64 = 0.7;

/// What a whole run ends with.
pub struct Outcome {
    pub test_bits_per_dim: f64,
    pub test_images: usize,
    pub inversion_error: f64,
    /// Where there are classes.
    pub classes: Option<OfClasses>,
    pub loading: Loading,
}

/// What a measurement says of classes.
#[derive(Clone, Copy)]
pub struct OfClasses {
    /// The share of images whose class Bayes' rule finds.
    pub accuracy: f64,
    /// Of the images without their classes, `p(x)`.
    pub marginal_bits_per_dim: f64,
}

/// How the making of batches kept up with the steps of a run, since it was started or resumed.
pub struct Loading {
    /// Seconds in which the model waited for a batch.
    pub seconds_waited: f64,
    /// Seconds from the first step to the last, measuring included.
    pub seconds: f64,
    /// Images a second that one thread makes ready.
    pub images_made: f64,
    /// Images a second that the steps took.
    pub images_taken: f64,
}

/// Trains `stack`, writing metrics, pictures, checkpoints and the model into `out`; `None` if it was
/// interrupted by a signal, with a checkpoint written.
pub fn train<const D: usize, F, P, S, T>(
    task: &T,
    stack: FlowStack<D, F, P, S>,
    (train, test): (Arc<Images>, &Images),
    plan: &Plan,
    out: &Path,
    config: &impl Serialize,
    device: &Device,
) -> Result<Option<Outcome>>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
    T: Task<D, F, P, S>,
{
    let start = Instant::now();
    let interrupted = interrupt::watch();
    let batches = Batches::training(train.len(), plan.batch_size, plan.seed)?;
    let Started { mut trainer, mut run, mut lines, mut since } =
        start_or_resume(task, stack, &train, &batches, plan, out, config, device)?;
    let (seconds_before, waited_before) = (since.seconds, since.waited);
    let seconds = || seconds_before + start.elapsed().as_secs_f64();

    create_folder(&run.file(PROGRESS))?;
    let first = trainer.num_steps();
    let bar = ProgressBar::new(plan.num_steps as u64).with_position(first as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}  {eta} left");
    bar.set_style(style.expect("the template is valid"));
    bar.reset_eta();
    let levels = plan.quantization.num_levels();
    let checkpoints = checkpoint(out);
    let steps = batches.from_step(first as u64).take(plan.num_steps - first);
    let mut ready = Prefetch::new(BATCHES_AHEAD, steps.map(maker_of_batches(train.clone(), plan)));
    let mut seconds_of_steps = 0.0;
    while let Some((values, labels)) = ready.next() {
        let step_start = Instant::now();
        let x = to_tensor(values, train.image_shape(), device);
        let step = match trainer.step(task.batch(x, &labels)?) {
            Ok(step) => step,
            Err(error) => {
                bar.abandon();
                record::save(&T::stack(trainer.model()), run.file(MODEL))?;
                // In place of one that was written between the last good model and the error.
                trainer.save(&checkpoints, &since.to_note())?;
                return Err(error);
            }
        };
        seconds_of_steps += step_start.elapsed().as_secs_f64();
        since.add(metrics::bits_per_dim(-step.loss, train.image_len(), levels));
        since.drift = step.drift.or(since.drift);
        let images_a_second =
            ((step.number - first) * plan.batch_size) as f64 / start.elapsed().as_secs_f64();
        bar.set_message(format!("{:.3} bits/dim  {images_a_second:.0} images/s", since.last));
        bar.inc(1);
        let last = step.number == plan.num_steps;
        let measure = last || step.number % (plan.num_steps / MEASUREMENTS).max(1) == 0;
        if measure || step.number % STEPS_A_LINE == 0 {
            let mut line = Metrics {
                step: step.number,
                epoch: step.number as f64 / batches.batches_per_epoch() as f64,
                seconds: 0.0,
                seconds_waited: 0.0,
                train_bits_per_dim: since.take_mean(),
                test_bits_per_dim: None,
                test_images: None,
                level_bits_per_dim: None,
                inversion_error: None,
                test_accuracy: None,
                test_marginal_bits_per_dim: None,
                gradient_norm: step.gradient_norm,
                learning_rate: step.learning_rate,
                memory: trainer.memory().to_string(),
                drift: since.drift.take(),
            };
            if measure {
                let model = T::stack(trainer.model());
                let images = if last { test.len() } else { test.len().min(IMAGES_A_MEASUREMENT) };
                let measured = measure_on(task, &model, test, images, plan, device)?;
                line.test_bits_per_dim = Some(measured.bits_per_dim);
                line.level_bits_per_dim = Some(measured.level_bits_per_dim);
                line.test_images = Some(images);
                line.inversion_error = Some(measured.inversion_error);
                line.test_accuracy = measured.classes.map(|classes| classes.accuracy);
                line.test_marginal_bits_per_dim =
                    measured.classes.map(|classes| classes.marginal_bits_per_dim);
                record::save(&model, run.file(MODEL))?;
                let row = progress(task, &model, test, plan)?;
                let path = run.file(PROGRESS).join(progress_name(step.number));
                pictures::write_grid(&path, &[row], plan.quantization)?;
            }
            line.seconds = seconds();
            line.seconds_waited = waited_before + ready.waited().as_secs_f64();
            run.append(&line)?;
            lines.push(line);
            if measure {
                plot::write_curve(&run.file("curve.png"), &plan.title, &lines)?;
                report(task, plan, out, &lines, false).write(config)?;
            }
        }
        let interrupt = interrupted.load(Ordering::Relaxed) && !last;
        if interrupt || last || step.number % plan.checkpoint_every == 0 {
            since.seconds = seconds();
            since.waited = waited_before + ready.waited().as_secs_f64();
            trainer.save(&checkpoints, &since.to_note())?;
        }
        if interrupt {
            bar.abandon();
            say!(
                "interrupted after step {}; go on with the same command and --resume",
                step.number
            );
            return Ok(None);
        }
    }
    bar.finish();
    let seconds_of_run = start.elapsed().as_secs_f64();
    let model = T::stack(trainer.model());
    write_pictures(task, &model, test, plan, &run, device)?;
    report(task, plan, out, &lines, true).write(config)?;
    let last = lines.last().expect("the last step writes a line");
    Ok(Some(Outcome {
        test_bits_per_dim: last.test_bits_per_dim.expect("the last step is measured"),
        test_images: test.len(),
        inversion_error: last.inversion_error.expect("the last step is measured"),
        classes: last
            .test_accuracy
            .zip(last.test_marginal_bits_per_dim)
            .map(|(accuracy, marginal_bits_per_dim)| OfClasses { accuracy, marginal_bits_per_dim }),
        loading: Loading {
            seconds_waited: ready.waited().as_secs_f64(),
            seconds: seconds_of_run,
            images_made: (ready.taken() * plan.batch_size) as f64 / ready.working().as_secs_f64(),
            images_taken: (ready.taken() * plan.batch_size) as f64 / seconds_of_steps,
        },
    }))
}

fn report<'a, const D: usize, F: Module, P: Module, S: Module, T: Task<D, F, P, S>>(
    task: &T,
    plan: &'a Plan,
    folder: &'a Path,
    metrics: &'a [Metrics],
    finished: bool,
) -> Report<'a>
where
    FlowStack<D, F, P, S>: Module,
{
    Report {
        title: &plan.title,
        folder,
        metrics,
        device: &plan.device_name,
        temperatures: &plan.temperatures,
        num_classes: task.class_weights().map(<[f64]>::len),
        progress_temperature: PROGRESS_TEMPERATURE,
        finished,
    }
}

/// What a checkpoint keeps beside model and optimizer: the steps since the last line of the metrics.
#[derive(Default)]
struct Since {
    sum: f64,
    count: usize,
    last: f64,
    /// Of training, in all runs so far.
    seconds: f64,
    /// Of these, spent in waiting for batches.
    waited: f64,
    drift: Option<f64>,
}

impl Since {
    fn add(&mut self, bits: f64) {
        (self.sum, self.count, self.last) = (self.sum + bits, self.count + 1, bits);
    }

    fn take_mean(&mut self) -> f64 {
        let mean = self.sum / self.count as f64;
        (self.sum, self.count) = (0.0, 0);
        mean
    }

    /// Rust reads every float back as it wrote it, which serde_json does not promise.
    fn to_note(&self) -> String {
        let Self { sum, count, last, seconds, waited, drift } = self;
        let drift = drift.unwrap_or(f64::NAN);
        format!("{sum} {count} {last} {seconds} {waited} {drift}")
    }

    fn from_note(note: &str) -> Option<Self> {
        let [sum, count, last, seconds, waited, drift] =
            note.split(' ').collect::<Vec<_>>().try_into().ok()?;
        Some(Self {
            sum: sum.parse().ok()?,
            count: count.parse().ok()?,
            last: last.parse().ok()?,
            seconds: seconds.parse().ok()?,
            waited: waited.parse().ok()?,
            drift: Some(drift.parse().ok()?).filter(|drift: &f64| !drift.is_nan()),
        })
    }
}

struct Started<M> {
    trainer: Trainer<M>,
    run: RunDirectory,
    lines: Vec<Metrics>,
    since: Since,
}

#[allow(clippy::too_many_arguments)] // all that a run is made of
fn start_or_resume<const D: usize, F, P, S, T>(
    task: &T,
    stack: FlowStack<D, F, P, S>,
    train: &Images,
    batches: &Batches,
    plan: &Plan,
    out: &Path,
    config: &impl Serialize,
    device: &Device,
) -> Result<Started<T::Model>>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
    T: Task<D, F, P, S>,
{
    let checkpoints = checkpoint(out);
    let schedule = Schedule::new(plan.learning_rate, plan.num_steps).with_warm_up(plan.warm_up);
    let at_once = plan.micro_batch.unwrap_or(plan.batch_size).min(plan.batch_size);
    let trainer = |model| {
        Trainer::new(model, schedule)
            .with_max_gradient_norm(plan.max_gradient_norm)
            .with_micro_batch(at_once)
    };
    if plan.resume {
        let (trainer, note) = trainer(task.model(stack.clone())?).resume(&checkpoints)?;
        if let Some(note) = note {
            let (run, lines) = RunDirectory::reopen(out, config, trainer.num_steps())?;
            let since = Since::from_note(&note).ok_or_else(|| FlowError::Record {
                path: checkpoints,
                reason: "the checkpoint's note is not one of this example".into(),
                advice: "give --overwrite instead of --resume to start from the beginning".into(),
            })?;
            // Not chosen again: the run must be the one that was interrupted.
            say!("memory: {} (of the checkpoint)", trainer.memory());
            return Ok(Started { trainer, run, lines, since });
        }
        say!("no checkpoint in {}: starting from the beginning", out.display());
    }
    let earlier = match (plan.resume, plan.overwrite) {
        (true, _) => Earlier::KeepResults,
        (_, true) => Earlier::Replace,
        _ => Earlier::Keep,
    };
    let run = RunDirectory::create(out, config, earlier)?;
    let indices: Vec<usize> =
        batches.epoch(0).concat().into_iter().take(plan.initialization_batch).collect();
    let mut rng = random_for(plan.seed, streams::PARAMETERS, 1);
    let first = plan.quantization.dequantize(&train.gather(&indices), &mut rng);
    let first: Tensor<D> = to_tensor(first, train.image_shape(), device);
    let batch = task.batch(first.clone(), &labels(train, &indices))?;
    let trainer = trainer(task.model(stack)?).with_initialization(batch)?;
    let memory = plan.memory.unwrap_or_else(|| {
        let count = at_once.min(first.dims()[0]);
        let choice = memory::choose(&T::stack(trainer.model()), first.narrow(0, 0, count));
        say!("memory: {} ({})", choice.memory, choice.reason);
        choice.memory
    });
    let trainer = trainer.with_memory(memory);
    Ok(Started { trainer, run, lines: Vec::new(), since: Since::default() })
}

/// Makes the batch of a step, as one row of values after another, and its labels.
fn maker_of_batches(
    images: Arc<Images>,
    plan: &Plan,
) -> impl Fn(StepBatch) -> (Vec<f32>, Vec<u8>) + Send + 'static {
    let &Plan { seed, flips, quantization, .. } = plan;
    move |StepBatch { step, indices, .. }| {
        let pixels = if flips {
            images.gather_with_flips(&indices, &mut random_for(seed, streams::FLIP, step))
        } else {
            images.gather(&indices)
        };
        let mut rng = random_for(seed, streams::DEQUANTIZE, step);
        (quantization.dequantize(&pixels, &mut rng), labels(&images, &indices))
    }
}

/// The values of images as the model takes them: `[n, channels, height, width]`, or one row each for a
/// model of vectors.
pub fn to_tensor<const D: usize>(
    values: Vec<f32>,
    image_shape: [usize; 3],
    device: &Device,
) -> Tensor<D> {
    let image_len = image_shape.iter().product::<usize>();
    let mut shape = [values.len() / image_len; D];
    match D {
        4 => shape[1..].copy_from_slice(&image_shape),
        _ => shape[1] = image_len,
    }
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Test images as the model takes them, dequantized by the draws of the `number`th batch.
fn test_batch<const D: usize>(
    images: &Images,
    indices: &[usize],
    number: u64,
    plan: &Plan,
    device: &Device,
) -> Tensor<D> {
    let mut rng = random_for(plan.seed, streams::EVALUATE, number);
    let values = plan.quantization.dequantize(&images.gather(indices), &mut rng);
    to_tensor(values, images.image_shape(), device)
}

/// What a measurement on test images gives.
struct Measured {
    bits_per_dim: f64,
    level_bits_per_dim: Vec<[f64; 2]>,
    inversion_error: f64,
    classes: Option<OfClasses>,
}

/// Measures on `count` images, spread evenly over all of them: the first thousand test images of MNIST
/// are cleaner than the rest.
fn measure_on<const D: usize, F, P, S, T>(
    task: &T,
    model: &FlowStack<D, F, P, S>,
    images: &Images,
    count: usize,
    plan: &Plan,
    device: &Device,
) -> Result<Measured>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
    T: Task<D, F, P, S>,
{
    let mut sums = vec![0.0; 2 * model.latent_shapes().len()];
    let mut inversion_error: f64 = 0.0;
    let (mut num_right, mut marginal) = (0, 0.0);
    let chosen: Vec<usize> = (0..count).map(|i| i * images.len() / count).collect();
    for (number, batch) in chosen.chunks(MEASURING_BATCH).enumerate() {
        let x = test_batch(images, batch, number as u64, plan, device);
        if number == 0 {
            inversion_error = metrics::inversion_error(model, x.clone());
        }
        let labels = labels(images, batch);
        if let Some(class_weights) = task.class_weights() {
            let found = model.classify(x.clone(), class_weights)?;
            let is_right = |&(class, &label): &(Option<usize>, &u8)| class == Some(label.into());
            num_right += found.classes().into_iter().zip(&labels).filter(is_right).count();
            marginal += found.log_prob.sum().into_scalar::<f64>();
        }
        for (sum, term) in sums.iter_mut().zip(task.given(model, &labels)?.log_prob_terms(x)) {
            *sum += term.sum().into_scalar::<f64>();
        }
    }
    let bits_per_dim = |log_prob: f64, levels: u32| {
        metrics::bits_per_dim(log_prob / count as f64, images.image_len(), levels)
    };
    Ok(Measured {
        bits_per_dim: bits_per_dim(sums.iter().sum(), plan.quantization.num_levels()),
        level_bits_per_dim: sums
            .chunks_exact(2)
            .map(|level| [bits_per_dim(level[0], 1), bits_per_dim(level[1], 1)])
            .collect(),
        inversion_error,
        classes: task.class_weights().map(|_| OfClasses {
            accuracy: num_right as f64 / count as f64,
            marginal_bits_per_dim: bits_per_dim(marginal, plan.quantization.num_levels()),
        }),
    })
}

/// The samples of a measurement: with classes one of each, else some.
fn progress<const D: usize, F, P, S, T>(
    task: &T,
    model: &FlowStack<D, F, P, S>,
    images: &Images,
    plan: &Plan,
) -> Result<Tensor<4>>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
    T: Task<D, F, P, S>,
{
    let classes = classes_of(task);
    let count = if classes.is_empty() { COLUMNS } else { classes.len() };
    let model = task.given(model, &classes)?;
    Ok(samples(&model, images, count, PROGRESS_TEMPERATURE, plan))
}

/// The classes; none where there are none.
fn classes_of<const D: usize, F: Module, P: Module, S: Module, T: Task<D, F, P, S>>(
    task: &T,
) -> Vec<u8>
where
    FlowStack<D, F, P, S>: Module,
{
    // Labels are bytes: there are 256 classes at most.
    (0..task.class_weights().map_or(0, <[f64]>::len)).map(|class| class as u8).collect()
}

/// A row of samples, from the same draws at every step and temperature: a column is one picture that
/// takes shape, or that grows bolder.
fn samples<const D: usize, F, P, S>(
    model: &FlowStack<D, F, P, S>,
    images: &Images,
    count: usize,
    temperature: f64,
    plan: &Plan,
) -> Tensor<4>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    let mut rng = random_for(plan.seed, streams::SAMPLE, 0);
    to_pictures(model.sample_with(count, temperature, &mut rng), images)
}

/// What a model takes and gives, as pictures of the shape of `images`.
fn to_pictures<const D: usize>(x: Tensor<D>, images: &Images) -> Tensor<4> {
    let [channels, height, width] = images.image_shape();
    let count = x.dims()[0];
    x.reshape([count, channels, height, width])
}

fn write_pictures<const D: usize, F, P, S, T>(
    task: &T,
    model: &FlowStack<D, F, P, S>,
    test: &Images,
    plan: &Plan,
    run: &RunDirectory,
    device: &Device,
) -> Result<()>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
    T: Task<D, F, P, S>,
{
    let classes = classes_of(task);
    let mut rows = Vec::new();
    for &temperature in &plan.temperatures {
        if classes.is_empty() {
            rows.push(samples(model, test, COLUMNS, temperature, plan));
        }
        for &class in &classes {
            let of_class = task.given(model, &[class])?;
            rows.push(samples(&of_class, test, COLUMNS, temperature, plan));
        }
    }
    pictures::write_grid(&run.file("samples.png"), &rows, plan.quantization)?;
    let indices: Vec<usize> = (0..test.len().min(COLUMNS)).collect();
    let x: Tensor<D> = test_batch(test, &indices, 0, plan, device);
    let back = model.decode(model.encode(x.clone()).0);
    let rows = [to_pictures(x, test), to_pictures(back, test)];
    pictures::write_grid(&run.file("reconstructions.png"), &rows, plan.quantization)
}
