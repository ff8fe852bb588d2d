//! What a model is trained on: images alone, or images and their classes.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_flows::context::{Context, Given};
use burn_flows::data::Images;
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::training::{Batch, Trainable, WithClassifier};
use burn_flows::{Flow, FlowStack, Result};

use super::arguments::invalid;

/// What is trained for the sake of a stack, and the batches that it takes.
pub trait Task<const D: usize, F: Module, P: Module, S: Module>
where
    FlowStack<D, F, P, S>: Module,
{
    type Batch: Batch;
    type Model: Trainable<Self::Batch>;

    /// What is trained.
    fn model(&self, stack: FlowStack<D, F, P, S>) -> Result<Self::Model>;

    /// The stack in it.
    fn stack(model: Self::Model) -> FlowStack<D, F, P, S>;

    /// A batch of images and their labels.
    fn batch(&self, x: Tensor<D>, labels: &[u8]) -> Result<Self::Batch>;

    /// The stack as the density of images with these labels, one each or one for all.
    fn given(&self, stack: &FlowStack<D, F, P, S>, labels: &[u8]) -> Result<FlowStack<D, F, P, S>>;

    /// How many training images each class has, where there are classes.
    fn class_weights(&self) -> Option<&[f64]>;
}

/// Images alone.
pub struct Alone;

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> Task<D, F, P, S> for Alone
where
    FlowStack<D, F, P, S>: Module,
{
    type Batch = Tensor<D>;
    type Model = FlowStack<D, F, P, S>;

    fn model(&self, stack: FlowStack<D, F, P, S>) -> Result<Self::Model> {
        Ok(stack)
    }

    fn stack(model: Self::Model) -> FlowStack<D, F, P, S> {
        model
    }

    fn batch(&self, x: Tensor<D>, _labels: &[u8]) -> Result<Tensor<D>> {
        Ok(x)
    }

    fn given(
        &self,
        stack: &FlowStack<D, F, P, S>,
        _labels: &[u8],
    ) -> Result<FlowStack<D, F, P, S>> {
        Ok(stack.clone())
    }

    fn class_weights(&self) -> Option<&[f64]> {
        None
    }
}

/// Images and their classes, with a classifier on the top latent.
pub struct ByClass {
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
        if !(classifier_weight >= 0.0 && classifier_weight.is_finite()) {
            let got = classifier_weight.to_string();
            return Err(invalid("--classifier-weight", &got, "0 or more", "0.01 is Glow's"));
        }
        let (Some(labels), Some(of_test)) = (train.labels(), test.labels()) else {
            let advice = "leave --conditional out for images without labels";
            return Err(invalid("--conditional", "images without labels", "a label each", advice));
        };
        let num_classes = labels.iter().map(|&label| usize::from(label) + 1).max().unwrap_or(0);
        if let Some(label) = of_test.iter().find(|&&label| usize::from(label) >= num_classes) {
            let got = format!("a test image of class {label}");
            let needed = format!("classes below {num_classes}, those of the training images");
            return Err(invalid("--conditional", &got, &needed, "take both from one data set"));
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

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> Task<D, F, P, S> for ByClass
where
    FlowStack<D, F, P, S>: Module,
    WithClassifier<FlowStack<D, F, P, S>>: Module,
{
    type Batch = (Tensor<D>, Tensor<2>);
    type Model = WithClassifier<FlowStack<D, F, P, S>>;

    fn model(&self, stack: FlowStack<D, F, P, S>) -> Result<Self::Model> {
        WithClassifier::new(stack, self.classifier_weight)
    }

    fn stack(model: Self::Model) -> FlowStack<D, F, P, S> {
        model.model
    }

    fn batch(&self, x: Tensor<D>, labels: &[u8]) -> Result<Self::Batch> {
        Ok((x, self.place.one_hot(labels)?))
    }

    fn given(&self, stack: &FlowStack<D, F, P, S>, labels: &[u8]) -> Result<FlowStack<D, F, P, S>> {
        stack.given_classes(labels)
    }

    fn class_weights(&self) -> Option<&[f64]> {
        Some(&self.class_weights)
    }
}

/// The labels of images, as [`Images::gather`] orders them; none where there are none.
pub fn labels(images: &Images, indices: &[usize]) -> Vec<u8> {
    let Some(labels) = images.labels() else { return Vec::new() };
    indices.iter().map(|&index| labels[index]).collect()
}
