//! What a run on images measures and shows.

use std::marker::PhantomData;
use std::path::Path;

use burn::tensor::{Device, Tensor};

use super::super::folder::{PROGRESS, create_folder, progress_name};
use super::super::{Evaluation, Measured, Metrics, Section, Shown, Unit, write_grid};
use super::feed::to_tensor;
use super::task::{Task, labels};
use super::{PROGRESS_TEMPERATURE, Plan};
use crate::Density;
use crate::data::{Images, random_for, streams};
use crate::error::Result;
use crate::host;
use crate::metrics;
use crate::preprocess::Quantization;

/// Test images of a measurement during the run; the last one takes all.
const IMAGES_A_MEASUREMENT: usize = 1000;

/// Images of one batch in measurements.
const MEASURING_BATCH: usize = 100;

/// Pictures in a row.
const COLUMNS: usize = 10;

/// What a measurement says of classes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OfClasses {
    /// The share of images whose class Bayes' rule finds.
    pub accuracy: f64,
    /// Of the images without their classes, `p(x)`.
    pub marginal_bits_per_dim: f64,
}

impl OfClasses {
    pub(super) fn of(line: &Metrics) -> Option<Self> {
        let (accuracy, marginal) = line.test_accuracy.zip(line.test_marginal_bits_per_dim)?;
        Some(Self { accuracy, marginal_bits_per_dim: marginal })
    }
}

/// Bits per dimension of test images, samples and reconstructions.
pub(super) struct ImageEvaluation<const D: usize, M, T> {
    task: T,
    test: Images,
    plan: Plan,
    quantization: Quantization,
    device: Device,
    model: PhantomData<M>,
}

impl<const D: usize, M: Density<D>, T: Task<D, M>> ImageEvaluation<D, M, T> {
    pub fn new(task: T, test: Images, plan: Plan, device: &Device) -> Result<Self> {
        let quantization = plan.preparation.quantization()?;
        let device = device.clone();
        Ok(Self { task, test, plan, quantization, device, model: PhantomData })
    }

    /// Test images as the model takes them, dequantized by the draws of the `number`th batch.
    fn batch(&self, indices: &[usize], number: u64) -> Tensor<D> {
        let mut rng = random_for(self.plan.seed, streams::EVALUATE, number);
        let values = self.quantization.dequantize(&self.test.gather(indices), &mut rng);
        to_tensor(values, self.test.image_shape(), &self.device)
    }

    /// The classes; none where there are none.
    fn classes(&self) -> Vec<u8> {
        // Labels are bytes: there are 256 classes at most.
        (0..self.num_classes().unwrap_or(0)).map(|class| class as u8).collect()
    }

    fn num_classes(&self) -> Option<usize> {
        self.task.class_weights().map(<[f64]>::len)
    }

    /// A row of samples, from the same draws at every step and temperature: a column is one picture that
    /// takes shape, or that grows bolder.
    fn samples(&self, model: &M, count: usize, temperature: f64) -> Tensor<4> {
        let mut rng = random_for(self.plan.seed, streams::SAMPLE, 0);
        self.pictures(model.sample_with(count, temperature, &mut rng))
    }

    /// What a model takes and gives, as pictures.
    fn pictures(&self, x: Tensor<D>) -> Tensor<4> {
        let [channels, height, width] = self.test.image_shape();
        let count = x.dims()[0];
        x.reshape([count, channels, height, width])
    }
}

impl<const D: usize, M: Density<D>, T: Task<D, M>> Evaluation<T::Model>
    for ImageEvaluation<D, M, T>
{
    type Saved = M;

    fn saved(&self, model: T::Model) -> M {
        T::density(model)
    }

    fn unit(&self) -> Unit {
        let levels = self.quantization.num_levels();
        Unit::BitsPerDim { num_dims: self.test.image_len(), levels }
    }

    fn start(&mut self, folder: &Path) -> Result<()> {
        create_folder(&folder.join(PROGRESS))
    }

    /// Of images that are spread evenly over all of them: the first thousand test images of MNIST are
    /// cleaner than the rest.
    fn measure(&mut self, model: &M, _step: usize, is_final: bool) -> Result<Option<Measured>> {
        let images = &self.test;
        let count = if is_final { images.len() } else { images.len().min(IMAGES_A_MEASUREMENT) };
        let mut sums = vec![0.0; 2 * model.latent_shapes().len()];
        let mut inversion_error: f64 = 0.0;
        let (mut num_right, mut marginal) = (0, 0.0);
        let chosen: Vec<usize> = (0..count).map(|i| i * images.len() / count).collect();
        for (number, batch) in chosen.chunks(MEASURING_BATCH).enumerate() {
            let x = self.batch(batch, number as u64);
            if number == 0 {
                inversion_error = metrics::inversion_error(model, x.clone());
            }
            let labels = labels(images, batch);
            if let Some(class_weights) = self.task.class_weights() {
                let found = model.classify(x.clone(), class_weights)?;
                let is_right =
                    |&(class, &label): &(Option<usize>, &u8)| class == Some(label.into());
                num_right += found.classes().into_iter().zip(&labels).filter(is_right).count();
                marginal += host::scalar(found.log_prob.sum());
            }
            for (sum, term) in
                sums.iter_mut().zip(self.task.given(model, &labels)?.log_prob_terms(x))
            {
                *sum += host::scalar(term.sum());
            }
        }
        let bits_per_dim = |log_prob: f64, levels: u32| {
            metrics::bits_per_dim(log_prob / count as f64, images.image_len(), levels)
        };
        let levels = sums.chunks_exact(2);
        let levels = levels.map(|level| [bits_per_dim(level[0], 1), bits_per_dim(level[1], 1)]);
        let has_classes = self.task.class_weights().is_some();
        let marginal = bits_per_dim(marginal, self.quantization.num_levels());
        Ok(Some(Measured {
            loss: -(sums.iter().sum::<f64>() / count as f64),
            num_samples: count,
            level_bits_per_dim: Some(levels.collect()),
            inversion_error: Some(inversion_error),
            accuracy: has_classes.then_some(num_right as f64 / count as f64),
            marginal_bits_per_dim: has_classes.then_some(marginal),
            ..Measured::default()
        }))
    }

    /// With classes a sample of each, else some.
    fn progress(&mut self, model: &M, step: usize, folder: &Path) -> Result<()> {
        let classes = self.classes();
        let count = if classes.is_empty() { COLUMNS } else { classes.len() };
        let row = self.samples(&self.task.given(model, &classes)?, count, PROGRESS_TEMPERATURE);
        write_grid(folder.join(PROGRESS).join(progress_name(step)), &[row], self.quantization)
    }

    fn finish(&mut self, model: &M, folder: &Path) -> Result<()> {
        let classes = self.classes();
        let mut rows = Vec::new();
        for &temperature in &self.plan.temperatures {
            if classes.is_empty() {
                rows.push(self.samples(model, COLUMNS, temperature));
            }
            for &class in &classes {
                let of_class = self.task.given(model, &[class])?;
                rows.push(self.samples(&of_class, COLUMNS, temperature));
            }
        }
        if !rows.is_empty() {
            write_grid(folder.join("samples.png"), &rows, self.quantization)?;
        }
        let indices: Vec<usize> = (0..self.test.len().min(COLUMNS)).collect();
        let x = self.batch(&indices, 0);
        let back = model.decode(model.encode(x.clone()).0);
        let rows = [self.pictures(x), self.pictures(back)];
        write_grid(folder.join("reconstructions.png"), &rows, self.quantization)
    }

    fn sections(&self, metrics: &[Metrics], finished: bool) -> Vec<Section> {
        let column = match self.num_classes() {
            None => "drawn from the same latent",
            Some(_) => "a class, drawn from the same noise",
        };
        let of_step = |line: &Metrics| Shown {
            label: Some(format!("step {}", line.step)),
            file: format!("{PROGRESS}/{}", progress_name(line.step)),
        };
        let measured = metrics.iter().filter(|line| line.is_measured());
        let mut sections = vec![Section {
            heading: "Samples over time".into(),
            note: format!("Temperature {PROGRESS_TEMPERATURE}; a column is {column}."),
            pictures: measured.map(of_step).collect(),
        }];
        if finished {
            let temperatures: Vec<_> = self.plan.temperatures.iter().map(f64::to_string).collect();
            let temperatures = temperatures.join(", ");
            let note = match self.num_classes() {
                None => format!("Temperatures {temperatures}."),
                Some(num_classes) => format!(
                    "A row is a class, from 0 to {}; a column is drawn from the same noise. \
                     Temperature {temperatures}.",
                    num_classes - 1
                ),
            };
            let round_trip = "Test images, and what comes back from their latents.".to_string();
            let last = [
                ("Samples", "samples.png", note),
                ("Reconstructions", "reconstructions.png", round_trip),
            ];
            sections.extend(last.map(|(heading, file, note)| Section {
                heading: heading.into(),
                note,
                pictures: vec![Shown { label: None, file: file.into() }],
            }));
        }
        sections
    }
}
