//! Directions of attributes.

use burn::module::Module;
use burn::tensor::Tensor;
use rand::Rng;

use super::Noise;
use crate::data::Images;
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::preprocess::Quantization;
use crate::prior::{Prior, SplitPrior};
use crate::stack::FlowStack;

/// Images that are encoded at once.
const BATCH: usize = 32;

/// The mean latent of samples that come batch by batch.
///
/// ```
/// use burn::tensor::{Tensor, TensorData};
/// use burn_flows::latent::LatentMean;
/// use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
///
/// let device = burn_flows::backend::device();
/// let flow = DiagonalScaling::new(1, &device)?;
/// let stack: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[1])?;
/// let mut mean = LatentMean::new();
/// for batch in [[[1.0], [2.0]], [[3.0], [6.0]]] {
///     mean.add(stack.encode_noise(Tensor::from_data(batch, &device)));
/// }
/// assert_eq!(mean.count(), 4);
/// let mean = stack.decode_noise(mean.mean().expect("four samples"));
/// mean.to_data().assert_eq(&TensorData::from([[3f32]]), false);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct LatentMean<const D: usize> {
    /// Of each part, with batch size 1.
    sums: Vec<Tensor<D>>,
    count: usize,
}

impl<const D: usize> LatentMean<D> {
    /// Of no samples yet.
    pub fn new() -> Self {
        Self { sums: Vec::new(), count: 0 }
    }

    /// Takes in a batch.
    ///
    /// # Panics
    /// If its parts do not have the shapes of the batches before.
    pub fn add(&mut self, noise: Noise<D>) {
        self.count += noise.batch_size();
        let sums = noise.into_parts().into_iter().map(|part| part.sum_dim(0));
        self.sums = if self.sums.is_empty() {
            sums.collect()
        } else {
            let before = std::mem::take(&mut self.sums);
            before.into_iter().zip(sums).map(|(before, sum)| before + sum).collect()
        };
    }

    /// Samples so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Their mean, as one sample; `None` if there are none.
    pub fn mean(&self) -> Option<Noise<D>> {
        let scale = 1.0 / self.count as f64;
        let parts = self.sums.iter().map(|sum| sum.clone() * scale);
        (self.count > 0).then(|| Noise::of(parts.collect()))
    }
}

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// The direction in latent space, all levels of it, from images without an attribute to images
    /// with it, as one sample:
    ///
    /// `direction = mean of encode_noise(x) over "with" - the same over "without"`
    ///
    /// `with` and `without` are indices of `images`, for CelebA from `Attributes::divide`. The images
    /// are dequantized with noise from `rng`, 32 at a time.
    ///
    /// Source: Kingma and Dhariwal, *Glow*, [arXiv:1807.03039](https://arxiv.org/abs/1807.03039),
    /// section 6 (qualitative experiments).
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if one of the two is empty, or the images do not have as many values as
    /// a sample.
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn attribute_direction(
        &self,
        images: &Images,
        with: &[usize],
        without: &[usize],
        quantization: Quantization,
        rng: &mut impl Rng,
    ) -> Result<Noise<D>> {
        self.check_image_len(images.image_len())?;
        let mut mean = |indices: &[usize]| {
            let mut mean = LatentMean::new();
            for indices in indices.chunks(BATCH) {
                let values = quantization.dequantize(&images.gather(indices), rng);
                mean.add(self.encode_noise(self.batch(values)));
            }
            mean.mean().ok_or_else(|| {
                FlowError::invalid(
                    "the direction of an attribute",
                    format!("{} images with it and {} without", with.len(), without.len()),
                    "at least one of each",
                    "choose an attribute that some of the images have, or take more images",
                )
            })
        };
        Ok(mean(with)?.add_scaled(&mean(without)?, -1.0))
    }

    /// The samples `x` moved along a direction of
    /// [`attribute_direction`](FlowStack::attribute_direction):
    ///
    /// `decode_noise(encode_noise(x) + alpha * direction)`
    ///
    /// `alpha` 0 gives `x` back (up to [`inversion_error`](crate::metrics::inversion_error)), 1 goes
    /// as far as the means of the two groups are apart, a negative one takes the attribute away.
    ///
    /// # Panics
    /// If the samples do not have the shape the stack was built for, or the direction is of a model
    /// with other latents.
    pub fn manipulate(&self, x: Tensor<D>, direction: &Noise<D>, alpha: f64) -> Tensor<D> {
        self.decode_noise(self.encode_noise(x).add_scaled(direction, alpha))
    }
}
