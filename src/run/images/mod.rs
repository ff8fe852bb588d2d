//! Training a ready-made model of images, or one of your own.

mod evaluation;
mod feed;
mod parts;
mod recipe;
mod task;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use serde::Serialize;

use self::evaluation::ImageEvaluation;
pub use self::evaluation::OfClasses;
pub use self::parts::ImageParts;
pub use self::parts::PictureFolder;
pub use self::recipe::{ImageModelName, Subject};
use self::task::{Alone, ByClass, Task};
use super::{End, Loading, Outcome, Run, at_least_one, positive, say_skipped, zero_or_more};
use crate::Density;
use crate::data::{Preparation, random_for, streams};
use crate::error::{FlowError, Result};
use crate::models::ImageModelConfig;
use crate::training::{Schedule, Trainable, Trainer};

/// Images that ActNorm is initialized from.
const INITIALIZATION_BATCH: usize = 256;

/// Temperature of the samples of each measurement: the one that Glow's paper shows faces at.
const PROGRESS_TEMPERATURE: f64 = 0.7;

/// `weight_y` of openai/glow, `train.py`.
const CLASSIFIER_WEIGHT: f64 = 0.01;

/// A [`Run`] on images: bits per dimension of test images, samples, reconstructions. What is `None` is chosen
/// to suit the model and what the images show.
///
/// ```no_run
/// use burn_flows::run::{ImageParts, ImageRun, Run};
///
/// let device = burn_flows::backend::device();
/// let parts = ImageParts::of_idx_files("data/mnist")?;
/// let run = Run::new("runs/mnist").with_epochs(5);
/// let outcome = ImageRun::default().train(run, parts, &device)?;
/// println!("{outcome}");
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct ImageRun {
    /// What the images show.
    pub subject: Subject,
    /// The model.
    pub model: ImageModelName,
    /// Levels of Glow, scales of RealNVP; NICE has none.
    pub levels: Option<usize>,
    /// Steps a level of Glow, blocks of RealNVP's nets; NICE has none.
    pub steps_per_level: Option<usize>,
    /// Hidden width of the couplings' nets.
    pub hidden: Option<usize>,
    /// Images a step.
    pub batch: Option<usize>,
    /// Images whose gradients are computed at once, the step's being their sum; all where it is `None`.
    pub micro_batch: Option<usize>,
    /// Bits a pixel, 1 to 8.
    pub bits: Option<u32>,
    /// Peak learning rate.
    pub learning_rate: Option<f64>,
    /// Temperatures of the samples, a row each; with classes, as many rows each.
    pub temperature: Option<Vec<f64>>,
    /// Trains a density for each class: the top prior of Glow depends on the label; samples by class, and
    /// classification of the test images by Bayes' rule.
    pub conditional: bool,
    /// With classes, the weight of a linear classifier on the top latent in the loss.
    pub classifier_weight: Option<f64>,
    /// Seed of parameters, data order, noise and samples.
    pub seed: u64,
}

/// What a run on images came to, and the last lines of a program.
#[derive(Debug, Clone)]
pub struct ImageOutcome {
    /// Why it ended.
    pub end: End,
    /// Over the test images, of a class-conditional model given their classes; `None` before the first
    /// measurement, as the following.
    pub test_bits_per_dim: Option<f64>,
    /// How many they were.
    pub test_images: Option<usize>,
    /// Largest |x - inverse(forward(x))| over a batch of them.
    pub inversion_error: Option<f64>,
    /// Where there are classes.
    pub classes: Option<OfClasses>,
    /// How the making of batches kept up.
    pub loading: Loading,
    /// The folder of the run.
    pub folder: PathBuf,
}

/// `config.json`: all that the run depends on.
#[derive(Debug, Serialize)]
struct Configuration<'a> {
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a ImageModelConfig>,
    image_shape: [usize; 3],
    batch: usize,
    num_steps: usize,
    learning_rate: f64,
    bits: u32,
    seed: u64,
    data: &'a str,
    train_images: usize,
    test_images: usize,
    flips: bool,
    memory: Option<String>,
    micro_batch: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    classifier_weight: Option<f64>,
}

/// What of a run is the same for every model.
struct Plan {
    num_steps: usize,
    batch_size: usize,
    learning_rate: f64,
    warm_up: usize,
    at_once: usize,
    flips: bool,
    seed: u64,
    preparation: Preparation,
    temperatures: Vec<f64>,
}

impl ImageRun {
    /// Checks what does not depend on the images.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] for a value that cannot be used, by the name of its field.
    pub fn validate(&self) -> Result<()> {
        at_least_one("ImageRun::batch", self.batch)?;
        at_least_one("ImageRun::micro_batch", self.micro_batch)?;
        if let Some(rate) = self.learning_rate {
            positive("ImageRun::learning_rate", rate, "1e-3 is a good start")?;
        }
        if let Some(bits) = self.bits
            && !(1..=8).contains(&bits)
        {
            let advice = "8 keeps the pixels as they are, 5 is what Glow uses for faces";
            return Err(FlowError::invalid("ImageRun::bits", bits, "1 to 8", advice));
        }
        for &temperature in self.temperature.iter().flatten() {
            zero_or_more("ImageRun::temperature", temperature, "0.7 is what Glow uses for faces")?;
        }
        if let Some(weight) = self.classifier_weight {
            zero_or_more("ImageRun::classifier_weight", weight, "0.01 is Glow's")?;
        }
        if self.conditional && self.model != ImageModelName::Glow {
            let advice = "the other models have no classes";
            return Err(FlowError::invalid("ImageRun::conditional", self.model, "glow", advice));
        }
        let of_levels = [
            ("ImageRun::levels", self.levels),
            ("ImageRun::steps_per_level", self.steps_per_level),
        ];
        for (what, count) in of_levels {
            if let (ImageModelName::Nice, Some(count)) = (self.model, count) {
                let got = format!("{count} with nice, which has no levels");
                let advice = "leave it out for nice";
                return Err(FlowError::invalid(what, got, "glow or realnvp", advice));
            }
        }
        Ok(())
    }

    /// Trains the model that is asked for, as [`Run::train`] does; the folder has samples, reconstructions and
    /// samples of each measurement too. Without steps and passes the run is as long as suits the model;
    /// steps alone are a bound on that.
    ///
    /// # Errors
    /// Those of [`validate`](ImageRun::validate) and [`Run::train`], and what the model's configuration
    /// refuses.
    pub fn train(&self, run: Run, parts: ImageParts, device: &Device) -> Result<ImageOutcome> {
        let by_class = self.classes(&parts, device)?;
        let plan = self.plan(&run, &parts)?;
        let mut model = recipe::configuration(self, parts.train.image_shape(), plan.preparation);
        if let (Some(by_class), ImageModelConfig::Glow(glow)) = (&by_class, &model) {
            let num_classes = by_class.num_classes();
            model = ImageModelConfig::Glow(glow.clone().with_num_classes(num_classes));
        }
        let run = self.prepare(run, &plan, &parts, Some(&model));
        device.seed(self.seed);
        match &model {
            ImageModelConfig::Glow(glow) => {
                let mut rng = random_for(self.seed, streams::PARAMETERS, 0);
                let glow = glow.init(&mut rng, device)?;
                match by_class {
                    None => train(Alone, glow, parts, plan, &run, device),
                    Some(by_class) => train(by_class, glow, parts, plan, &run, device),
                }
            }
            ImageModelConfig::RealNvp(real_nvp) => {
                train(Alone, real_nvp.init(device)?, parts, plan, &run, device)
            }
            ImageModelConfig::Nice(nice) => {
                train(Alone, nice.init(device)?, parts, plan, &run, device)
            }
        }
    }

    /// [`train`](ImageRun::train) of a model of your own, a stack for images or for as many values as an image
    /// has; batch, learning rate and length are what suits [`model`](ImageRun::model) where they are not
    /// given.
    ///
    /// # Errors
    /// As [`train`](ImageRun::train).
    pub fn train_model<const D: usize, M>(
        &self,
        model: M,
        run: Run,
        parts: ImageParts,
        device: &Device,
    ) -> Result<ImageOutcome>
    where
        M: Density<D> + Trainable<Tensor<D>> + 'static,
    {
        let plan = self.plan(&run, &parts)?;
        let len = parts.train.image_len();
        if len != model.num_dims() {
            let needed = format!("{}, as many as a sample of the model has", model.num_dims());
            let advice = "build the model for the shape of the images";
            return Err(FlowError::invalid("ImageRun: values of an image", len, needed, advice));
        }
        let run = self.prepare(run, &plan, &parts, None);
        train(Alone, model, parts, plan, &run, device)
    }

    fn classes(&self, parts: &ImageParts, device: &Device) -> Result<Option<ByClass>> {
        self.validate()?;
        if !self.conditional {
            return Ok(None);
        }
        let weight = self.classifier_weight.unwrap_or(CLASSIFIER_WEIGHT);
        ByClass::of(&parts.train, &parts.test, weight, device).map(Some)
    }

    fn plan(&self, run: &Run, parts: &ImageParts) -> Result<Plan> {
        self.validate()?;
        run.validate()?;
        let image_shape = parts.train.image_shape();
        let recipe = recipe::of(self.model, self.subject, image_shape[1]);
        let batch_size = self.batch.unwrap_or(recipe.batch);
        let num_bits = self.bits.unwrap_or(self.subject.bits());
        let wanted = match run.epochs {
            Some(epochs) => epochs.saturating_mul(parts.train.len() / batch_size),
            None => recipe.steps,
        };
        let num_steps = wanted.min(run.steps.unwrap_or(usize::MAX)).max(1);
        let temperatures = || match self.conditional {
            false => self.subject.temperatures(),
            true => vec![PROGRESS_TEMPERATURE],
        };
        Ok(Plan {
            num_steps,
            batch_size,
            learning_rate: self.learning_rate.unwrap_or(recipe.learning_rate),
            warm_up: self.subject.warm_up(num_steps),
            at_once: self.micro_batch.unwrap_or(batch_size).min(batch_size),
            flips: self.subject.flips(),
            seed: self.seed,
            preparation: Preparation { image_shape, crop: parts.crop, num_bits },
            temperatures: self.temperature.clone().unwrap_or_else(temperatures),
        })
    }

    /// The run with its configuration, said in a line.
    fn prepare(
        &self,
        run: Run,
        plan: &Plan,
        parts: &ImageParts,
        model: Option<&ImageModelConfig>,
    ) -> Run {
        let (train_images, test_images) = (parts.train.len(), parts.test.len());
        let weight = self.classifier_weight.unwrap_or(CLASSIFIER_WEIGHT);
        let config = Configuration {
            version: env!("CARGO_PKG_VERSION"),
            model,
            image_shape: plan.preparation.image_shape,
            batch: plan.batch_size,
            num_steps: plan.num_steps,
            learning_rate: plan.learning_rate,
            bits: plan.preparation.num_bits,
            seed: plan.seed,
            data: &parts.about,
            train_images,
            test_images,
            flips: plan.flips,
            memory: run.memory.map(|memory| memory.to_string()),
            micro_batch: self.micro_batch,
            classifier_weight: self.conditional.then_some(weight),
        };
        let conditional = if self.conditional { "class-conditional " } else { "" };
        let name = model.map_or_else(|| "a model".into(), |_| self.model.to_string());
        let title = format!("{conditional}{name} on {train_images} images");
        let mut run = run.with_epochs(None).with_steps(plan.num_steps);
        run.title.get_or_insert(title);
        if model.is_some() || run.config.is_none() {
            run = run.with_configuration(&config);
        }
        if !run.is_quiet {
            say_skipped(&parts.skipped);
        }
        run.say(format_args!(
            "{}: {train_images} to train on, {test_images} to test on; {} steps of {}",
            parts.about, plan.num_steps, plan.batch_size
        ));
        run
    }
}

fn train<const D: usize, M: Density<D>, T: Task<D, M>>(
    task: T,
    density: M,
    parts: ImageParts,
    plan: Plan,
    run: &Run,
    device: &Device,
) -> Result<ImageOutcome> {
    let ImageParts { train, test, .. } = parts;
    let source = feed::source::<D, M, T>(task.clone(), Arc::new(train), &plan, device)?;
    let schedule = Schedule::new(plan.learning_rate, plan.num_steps).with_warm_up(plan.warm_up);
    let trainer = Trainer::new(task.model(density)?, schedule).with_micro_batch(plan.at_once);
    let evaluation = ImageEvaluation::<D, M, T>::new(task, test, plan, device)?;
    let outcome = run.train(trainer, source, evaluation)?;
    Ok(ImageOutcome::of(outcome))
}

impl ImageOutcome {
    fn of<M>(outcome: Outcome<M>) -> Self {
        let measured = outcome
            .metrics
            .iter()
            .rfind(|line| line.step == outcome.best_step && line.is_measured());
        let last = outcome.metrics.iter().rfind(|line| line.is_measured());
        let line = measured.or(last).cloned().unwrap_or_default();
        Self {
            end: outcome.end,
            test_bits_per_dim: line.test_bits_per_dim,
            test_images: line.test_images,
            inversion_error: line.inversion_error,
            classes: OfClasses::of(&line),
            loading: outcome.loading,
            folder: outcome.folder,
        }
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}

impl fmt::Display for ImageOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let End::Interrupted { step } = self.end {
            return write!(f, "interrupted after step {step}; Run::with_resume goes on");
        }
        let Loading { seconds_waited, seconds, samples_made, samples_taken } = self.loading;
        if samples_taken > 0.0 {
            writeln!(
                f,
                "waited {seconds_waited:.3} s of {seconds:.1} s for images: {samples_made:.0} a second \
                 can be made ready, {samples_taken:.1} a second were trained on"
            )?;
        }
        let mut given = "";
        if let Some(OfClasses { accuracy, marginal_bits_per_dim }) = self.classes {
            writeln!(
                f,
                "{:.2} % of the test images classified right by Bayes' rule; {marginal_bits_per_dim:.3} \
                 bits/dim without the class",
                100.0 * accuracy
            )?;
            given = " given the class";
        }
        write!(
            f,
            "{:.3} bits/dim{given} over {} test images, largest inversion error {:.1e}, in {}",
            self.test_bits_per_dim.unwrap_or(f64::NAN),
            self.test_images.unwrap_or(0),
            self.inversion_error.unwrap_or(f64::NAN),
            self.folder().display()
        )
    }
}
