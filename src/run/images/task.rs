//! What a model is trained on: images alone, or images and their classes.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::context::{Context, Given};
use crate::data::Images;
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::prior::{Prior, SplitPrior};
use crate::training::{Batch, Trainable, WithClassifier};
use crate::{Density, FlowStack};

/// What is trained for the sake of a density, and the batches that it takes.
pub(super) trait Task<const D: usize, M: Density<D>>: Clone + 'static {
    type Batch: Batch + 'static;
    type Model: Trainable<Self::Batch>;

    /// What is trained.
    fn model(&self, density: M) -> Result<Self::Model>;

    /// The density in it.
    fn density(model: Self::Model) -> M;

    /// A batch of images and their labels.
    fn batch(&self, x: Tensor<D>, labels: &[u8]) -> Result<Self::Batch>;

    /// The density of images with these labels, one each or one for all.
    fn given(&self, density: &M, labels: &[u8]) -> Result<M>;

    /// How many training images each class has, where there are classes.
    fn class_weights(&self) -> Option<&[f64]>;
}

/// Images alone.
#[derive(Clone)]
pub(super) struct Alone;

impl<const D: usize, M: Density<D> + Trainable<Tensor<D>>> Task<D, M> for Alone {
    type Batch = Tensor<D>;
    type Model = M;

    fn model(&self, density: M) -> Result<M> {
        Ok(density)
    }

    fn density(model: M) -> M {
        model
    }

    fn batch(&self, x: Tensor<D>, _labels: &[u8]) -> Result<Tensor<D>> {
        Ok(x)
    }

    fn given(&self, density: &M, _labels: &[u8]) -> Result<M> {
        Ok(density.clone())
    }

    fn class_weights(&self) -> Option<&[f64]> {
        None
    }
}

/// Images and their classes, with a classifier on the top latent.
#[derive(Clone)]
pub(super) struct ByClass {
    /// As wide as there are classes.
    place: Context,
    class_weights: Vec<f64>,
    classifier_weight: f64,
}

impl ByClass {
    /// The classes of the training images, which those of the test images are among.
    pub fn of(
        train: &Images,
        test: &Images,
        classifier_weight: f64,
        device: &Device,
    ) -> Result<Self> {
        let (Some(labels), Some(of_test)) = (train.labels(), test.labels()) else {
            let advice = "leave it out for images without labels";
            return Err(FlowError::invalid(
                "ImageRun::conditional",
                "images without labels",
                "a label each",
                advice,
            ));
        };
        let num_classes = labels.iter().map(|&label| usize::from(label) + 1).max().unwrap_or(0);
        if let Some(label) = of_test.iter().find(|&&label| usize::from(label) >= num_classes) {
            let got = format!("a test image of class {label}");
            let needed = format!("classes below {num_classes}, those of the training images");
            return Err(FlowError::invalid(
                "ImageRun::conditional",
                got,
                needed,
                "take both from one data set",
            ));
        }
        let mut class_weights = vec![0.0; num_classes];
        labels.iter().for_each(|&label| class_weights[usize::from(label)] += 1.0);
        let place = Context::new(num_classes, device);
        Ok(Self { place, class_weights, classifier_weight })
    }

    pub fn num_classes(&self) -> usize {
        self.class_weights.len()
    }
}

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> Task<D, FlowStack<D, F, P, S>>
    for ByClass
where
    FlowStack<D, F, P, S>: Module,
    WithClassifier<FlowStack<D, F, P, S>>: Module,
{
    type Batch = (Tensor<D>, Tensor<2>);
    type Model = WithClassifier<FlowStack<D, F, P, S>>;

    fn model(&self, density: FlowStack<D, F, P, S>) -> Result<Self::Model> {
        WithClassifier::new(density, self.classifier_weight)
    }

    fn density(model: Self::Model) -> FlowStack<D, F, P, S> {
        model.model
    }

    fn batch(&self, x: Tensor<D>, labels: &[u8]) -> Result<Self::Batch> {
        Ok((x, self.place.one_hot(labels)?))
    }

    fn given(
        &self,
        density: &FlowStack<D, F, P, S>,
        labels: &[u8],
    ) -> Result<FlowStack<D, F, P, S>> {
        density.given_classes(labels)
    }

    fn class_weights(&self) -> Option<&[f64]> {
        Some(&self.class_weights)
    }
}

/// The labels of images, as [`Images::gather`] orders them; none where there are none.
pub(super) fn labels(images: &Images, indices: &[usize]) -> Vec<u8> {
    let Some(labels) = images.labels() else { return Vec::new() };
    indices.iter().map(|&index| labels[index]).collect()
}
