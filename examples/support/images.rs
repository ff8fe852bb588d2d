//! An example that trains a flow on images, from its options to its last line.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use burn_flows::Result;
use burn_flows::data::{Preparation, random_for, streams};

use super::arguments::TrainingArguments;
use super::data::Parts;
use super::model::{Model, ModelArguments, Subject};
use super::run::Configuration;
use super::say;
use super::train::{Loading, Outcome, Plan, train};

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

/// Trains the model that the options ask for, into the folder `out`.
pub fn run(
    out: &Path,
    subject: Subject,
    parts: Parts,
    training: &TrainingArguments,
    model_arguments: &ModelArguments,
    (device_name, device): (&str, &Device),
) -> Result<()> {
    let Parts { train: train_images, test: test_images, crop, about } = parts;
    let image_shape = train_images.image_shape();
    let defaults = model_arguments.defaults(subject, image_shape[1])?;
    let num_bits = training.bits.unwrap_or(subject.bits());
    let preparation = Preparation { image_shape, crop, num_bits };
    let model = Model::choose(model_arguments, &defaults, subject, preparation);

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
        temperatures: training.temperatures.clone().unwrap_or(subject.temperatures()),
        title: format!("{} on {} images", model_arguments.name, train_images.len()),
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
            train(glow.init(&mut rng, device)?, data, &plan, out, &config, device)?
        }
        Model::RealNvp(real_nvp) => {
            train(real_nvp.init(device)?, data, &plan, out, &config, device)?
        }
        Model::Nice(nice) => train(nice.init(device)?, data, &plan, out, &config, device)?,
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
    say!(
        "{:.3} bits/dim over {} test images, largest inversion error {:.1e}, in {}",
        outcome.test_bits_per_dim,
        outcome.test_images,
        outcome.inversion_error,
        out.display()
    );
}
