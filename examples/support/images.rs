//! An example that trains a flow on images, from its options to its last line.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use burn_flows::Result;
use burn_flows::data::{Preparation, random_for, streams};

use super::arguments::{TrainingArguments, invalid};
use super::classes::{Alone, ByClass};
use super::data::Parts;
use super::model::{Model, ModelArguments, Subject};
use super::run::Configuration;
use super::say;
use super::train::{Loading, Outcome, PROGRESS_TEMPERATURE, Plan, train};

/// Images that ActNorm is initialized from.
const INITIALIZATION_BATCH: usize = 256;

/// Steps over which the learning rate rises to its peak.
const WARM_UP: usize = 200;

impl Subject {
    /// Bits a pixel where the options do not say; for faces as in Glow's paper.
    fn bits(self) -> u32 {
        match self {
            Self::Digits => 8,
            Self::Photographs => 5,
        }
    }

    /// Temperatures of the samples where the options do not say; for photographs those of Glow's
    /// paper, figure 8.
    fn temperatures(self) -> Vec<f64> {
        match self {
            Self::Digits => vec![0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
            Self::Photographs => vec![0.0, 0.25, 0.6, 0.7, 0.8, 0.9, 1.0],
        }
    }

    /// Steps of warm-up. Wide nets of photographs need all of it, however short the run: the first steps
    /// of Adam move every weight by the learning rate, and all in the same direction.
    fn warm_up(self, num_steps: usize) -> usize {
        match self {
            Self::Digits => WARM_UP.min(num_steps / 20),
            Self::Photographs => WARM_UP,
        }
    }

    /// Whether an image and its mirror image are equally likely.
    fn flips(self) -> bool {
        self == Self::Photographs
    }
}

/// That a model is to be class-conditional.
#[derive(Debug, Clone, Copy)]
pub struct Conditional {
    /// The weight of the classifier in the loss.
    pub classifier_weight: f64,
}

/// Trains the model that the options ask for, into the folder `out`.
pub fn run(
    out: &Path,
    subject: Subject,
    parts: Parts,
    training: &TrainingArguments,
    model_arguments: &ModelArguments,
    conditional: Option<Conditional>,
    (device_name, device): (&str, &Device),
) -> Result<()> {
    let Parts { train: train_images, test: test_images, crop, about } = parts;
    let image_shape = train_images.image_shape();
    let defaults = model_arguments.defaults(subject, image_shape[1])?;
    let num_bits = training.bits.unwrap_or(subject.bits());
    let preparation = Preparation { image_shape, crop, num_bits };
    let mut model = Model::choose(model_arguments, &defaults, subject, preparation);
    let by_class = conditional
        .map(|Conditional { classifier_weight }| {
            ByClass::of(&train_images, &test_images, classifier_weight, device)
        })
        .transpose()?;
    if let Some(by_class) = &by_class {
        model = match model {
            Model::Glow(glow) => Model::Glow(glow.with_num_classes(by_class.num_classes())),
            _ => {
                let advice = "the other models have no classes";
                return Err(invalid("--conditional", &model_arguments.name, "glow", advice));
            }
        };
    }

    let batch_size = training.batch.unwrap_or(defaults.batch);
    let steps_an_epoch = train_images.len() / batch_size;
    let wanted = match training.epochs {
        Some(epochs) => epochs.saturating_mul(steps_an_epoch),
        None => defaults.steps,
    };
    let num_steps = wanted.min(training.steps.unwrap_or(usize::MAX)).max(1);
    let plan = Plan {
        num_steps,
        batch_size,
        learning_rate: training.learning_rate.unwrap_or(defaults.learning_rate),
        warm_up: subject.warm_up(num_steps),
        max_gradient_norm: f64::INFINITY,
        initialization_batch: INITIALIZATION_BATCH.min(train_images.len()),
        seed: training.seed,
        flips: subject.flips(),
        quantization: preparation.quantization()?,
        temperatures: training.temperatures.clone().unwrap_or(match conditional {
            None => subject.temperatures(),
            Some(_) => vec![PROGRESS_TEMPERATURE],
        }),
        title: format!(
            "{}{} on {} images",
            if conditional.is_some() { "class-conditional " } else { "" },
            model_arguments.name,
            train_images.len()
        ),
        device_name: device_name.into(),
        checkpoint_every: training.checkpoint_every,
        resume: training.resume,
        overwrite: training.overwrite,
        memory: training.memory,
        micro_batch: training.micro_batch,
    };
    let config = Configuration {
        version: env!("CARGO_PKG_VERSION").into(),
        image_shape,
        model: model.clone(),
        batch: batch_size,
        num_steps,
        learning_rate: plan.learning_rate,
        bits: num_bits,
        seed: training.seed,
        data: about,
        train_images: train_images.len(),
        test_images: test_images.len(),
        flips: plan.flips,
        memory: plan.memory.map(|memory| memory.to_string()),
        micro_batch: plan.micro_batch,
        classifier_weight: conditional.map(|conditional| conditional.classifier_weight),
    };
    say!(
        "{}: {} to train on, {} to test on; {num_steps} steps of {batch_size}",
        config.data,
        config.train_images,
        config.test_images
    );
    device.seed(training.seed);
    let data = (Arc::new(train_images), &test_images);
    let outcome = match &model {
        Model::Glow(glow) => {
            let mut rng = random_for(training.seed, streams::PARAMETERS, 0);
            let glow = glow.init(&mut rng, device)?;
            match &by_class {
                None => train(&Alone, glow, data, &plan, out, &config, device)?,
                Some(by_class) => train(by_class, glow, data, &plan, out, &config, device)?,
            }
        }
        Model::RealNvp(real_nvp) => {
            train(&Alone, real_nvp.init(device)?, data, &plan, out, &config, device)?
        }
        Model::Nice(nice) => train(&Alone, nice.init(device)?, data, &plan, out, &config, device)?,
    };
    if let Some(outcome) = outcome {
        announce(&outcome, out);
    }
    Ok(())
}

/// The last lines of a whole run.
fn announce(outcome: &Outcome, out: &Path) {
    let Loading { seconds_waited, seconds, images_made, images_taken } = outcome.loading;
    if images_taken > 0.0 {
        say!(
            "waited {seconds_waited:.3} s of {seconds:.1} s for images: {images_made:.0} a second can be \
             made ready, {images_taken:.1} a second were trained on"
        );
    }
    let mut given = "";
    if let Some(classes) = outcome.classes {
        say!(
            "{:.2} % of the test images classified right by Bayes' rule; {:.3} bits/dim without the class",
            100.0 * classes.accuracy,
            classes.marginal_bits_per_dim
        );
        given = " given the class";
    }
    say!(
        "{:.3} bits/dim{given} over {} test images, largest inversion error {:.1e}, in {}",
        outcome.test_bits_per_dim,
        outcome.test_images,
        outcome.inversion_error,
        out.display()
    );
}
