//! Images in Burn's loaders.

use burn::data::dataloader::batcher::Batcher;
use burn::tensor::{Device, Tensor, TensorData};

use crate::data::{Images, random_for, streams};
use crate::preprocess::Quantization;

/// Makes batches of images for Burn's loaders, which are told the indices of images: pixels with uniform noise,
/// `[batch, channels, height, width]`, in `[0, 1)`; see [`Quantization`].
///
/// The noise follows from the seed and the first index of a batch, so that a training can be repeated. A loader
/// that shuffles draws another one in each epoch.
///
/// ```
/// use burn::data::dataloader::DataLoaderBuilder;
/// use burn::data::dataset::InMemDataset;
/// use burn_flows::data::Images;
/// use burn_flows::preprocess::Quantization;
/// use burn_flows::training::learner::ImageBatcher;
///
/// // Five grey images of 2x2 pixels.
/// let images = Images::new((0..20).collect(), [5, 1, 2, 2], None)?;
/// let indices = InMemDataset::new((0..images.len()).collect());
/// let batcher = ImageBatcher::new(images, Quantization::new(8)?, 0);
/// let loader = DataLoaderBuilder::new(batcher)
///     .batch_size(2)
///     .set_device(burn_flows::backend::device())
///     .build(indices);
/// let batch = loader.iter().next().expect("there are images")?;
/// assert_eq!(batch.dims(), [2, 1, 2, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ImageBatcher {
    images: Images,
    quantization: Quantization,
    seed: u64,
}

impl ImageBatcher {
    /// Of these images; `seed` is that of the noise.
    pub fn new(images: Images, quantization: Quantization, seed: u64) -> Self {
        Self { images, quantization, seed }
    }
}

impl Batcher<usize, Tensor<4>> for ImageBatcher {
    /// # Panics
    /// If there is no index, or one past the images.
    fn batch(&self, indices: Vec<usize>, device: &Device) -> Tensor<4> {
        let [channels, height, width] = self.images.image_shape();
        let first = *indices.first().expect("ImageBatcher: a batch has at least one image");
        let mut rng = random_for(self.seed, streams::DEQUANTIZE, first as u64);
        let x = self.quantization.dequantize(&self.images.gather(&indices), &mut rng);
        Tensor::from_data(TensorData::new(x, [indices.len(), channels, height, width]), device)
    }
}
