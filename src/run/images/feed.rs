//! Batches of images, made ahead on another thread.

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::super::source::{Feed, Source};
use super::task::{Task, labels};
use super::{INITIALIZATION_BATCH, Plan};
use crate::Density;
use crate::data::{Batches, Images, Prefetch, StepBatch, random_for, streams};
use crate::error::Result;

/// Batches that are made ahead of the step that takes them.
const BATCHES_AHEAD: usize = 4;

/// The values of images, and their labels.
type Values = (Vec<f32>, Vec<u8>);

struct Ahead<B> {
    ready: Prefetch<Values>,
    batch: Box<dyn Fn(Values) -> Result<B>>,
}

impl<B> Feed<B> for Ahead<B> {
    fn next(&mut self) -> Option<Result<B>> {
        self.ready.next().map(&self.batch)
    }

    fn loading(&self) -> Option<(Duration, Duration)> {
        Some((self.ready.waited(), self.ready.working()))
    }
}

/// The batches of a run, dequantized.
pub(super) fn source<const D: usize, M: Density<D>, T: Task<D, M>>(
    task: T,
    images: Arc<Images>,
    plan: &Plan,
    device: &Device,
) -> Result<Source<T::Batch>> {
    let &Plan { seed, flips, batch_size, .. } = plan;
    let quantization = plan.preparation.quantization()?;
    let batches = Batches::training(images.len(), batch_size, seed)?;
    let (shape, device) = (images.image_shape(), device.clone());
    let batch =
        move |(values, labels): Values| task.batch(to_tensor(values, shape, &device), &labels);
    let first = (images.clone(), batch.clone());
    let start = move |first: usize, end: usize| {
        let make = move |StepBatch { step, indices, .. }| {
            let pixels = if flips {
                images.gather_with_flips(&indices, &mut random_for(seed, streams::FLIP, step))
            } else {
                images.gather(&indices)
            };
            let mut rng = random_for(seed, streams::DEQUANTIZE, step);
            (quantization.dequantize(&pixels, &mut rng), labels(&images, &indices))
        };
        let steps = batches.from_step(first as u64).take(end - first);
        let ready = Prefetch::new(BATCHES_AHEAD, steps.map(make));
        Box::new(Ahead { ready, batch: Box::new(batch) }) as Box<dyn Feed<T::Batch>>
    };
    let initialization = move || {
        let (images, batch) = first;
        let order = batches.epoch(0).concat();
        let indices: Vec<usize> = order.into_iter().take(INITIALIZATION_BATCH).collect();
        let mut rng = random_for(seed, streams::PARAMETERS, 1);
        let values = quantization.dequantize(&images.gather(&indices), &mut rng);
        batch((values, labels(&images, &indices)))
    };
    let source = Source::of_feed(start, Some(batches.batches_per_epoch()));
    Ok(source.with_initialization(initialization))
}

/// The values of images as the model takes them: `[n, channels, height, width]`, or one row each for a
/// model of vectors.
pub(super) fn to_tensor<const D: usize>(
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
