//! Images in memory.

use rand::{Rng, RngExt};

use crate::{FlowError, Result};

/// Equally sized 8-bit images in memory, with a label for each if the data set has them.
///
/// The pixels lie in one buffer, row-major in the order
/// `[num_images, num_channels, height, width]`.
///
/// ```
/// use burn_flows::data::Images;
///
/// # fn main() -> Result<(), burn_flows::FlowError> {
/// let images = Images::new(vec![1, 2, 3, 4, 5, 6], [2, 1, 1, 3], Some(vec![7, 9]))?;
/// assert_eq!(images.len(), 2);
/// assert_eq!(images.image(1), &[4, 5, 6]);
/// assert_eq!(images.label(1), Some(9));
/// assert_eq!(images.gather(&[1, 0]), [4, 5, 6, 1, 2, 3]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Images {
    pixels: Vec<u8>,
    num_images: usize,
    num_channels: usize,
    height: usize,
    width: usize,
    labels: Option<Vec<u8>>,
}

impl Images {
    /// Images from their pixels, row-major in the order of `shape`:
    /// `[num_images, num_channels, height, width]`.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if a size is zero, if `pixels` does not have exactly the length that
    /// `shape` asks for, or if there is not one label an image.
    pub fn new(pixels: Vec<u8>, shape: [usize; 4], labels: Option<Vec<u8>>) -> Result<Self> {
        let [num_images, num_channels, height, width] = shape;
        if shape.contains(&0) {
            return Err(FlowError::invalid(
                "Images: the shape [num_images, num_channels, height, width]",
                format!("{shape:?}"),
                "at least 1 in every place",
                "give at least one image of at least one pixel",
            ));
        }
        let needed = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        if needed != Some(pixels.len()) {
            return Err(FlowError::invalid(
                "Images: the number of pixels",
                pixels.len(),
                match needed {
                    Some(needed) => format!("{needed} for the shape {shape:?}"),
                    None => format!("more than memory can hold for the shape {shape:?}"),
                },
                "check the order [num_images, num_channels, height, width]",
            ));
        }
        if let Some(labels) = &labels
            && labels.len() != num_images
        {
            return Err(FlowError::invalid(
                "Images: the number of labels",
                labels.len(),
                format!("{num_images}, one an image"),
                "give all labels, or None",
            ));
        }
        Ok(Self { pixels, num_images, num_channels, height, width, labels })
    }

    /// The number of images, at least 1.
    pub fn len(&self) -> usize {
        self.num_images
    }

    /// Always `false`: there is at least one image.
    pub fn is_empty(&self) -> bool {
        self.num_images == 0
    }

    /// `[num_images, num_channels, height, width]`.
    pub fn shape(&self) -> [usize; 4] {
        [self.num_images, self.num_channels, self.height, self.width]
    }

    /// `[num_channels, height, width]`.
    pub fn image_shape(&self) -> [usize; 3] {
        [self.num_channels, self.height, self.width]
    }

    /// Values an image: `num_channels * height * width`.
    pub fn image_len(&self) -> usize {
        self.num_channels * self.height * self.width
    }

    /// All pixels, row-major in the order of [`shape`](Self::shape).
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// One label an image, if the data set has labels.
    pub fn labels(&self) -> Option<&[u8]> {
        self.labels.as_deref()
    }

    /// The label of one image, if the data set has labels.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn label(&self, index: usize) -> Option<u8> {
        self.check(index);
        self.labels.as_ref().map(|labels| labels[index])
    }

    /// The pixels of one image, row-major in the order `[num_channels, height, width]`.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn image(&self, index: usize) -> &[u8] {
        self.check(index);
        let len = self.image_len();
        &self.pixels[index * len..(index + 1) * len]
    }

    /// The pixels of several images, one after another: a batch of shape
    /// `[indices.len(), num_channels, height, width]`.
    ///
    /// # Panics
    /// If an index is not below [`len`](Self::len).
    pub fn gather(&self, indices: &[usize]) -> Vec<u8> {
        let mut batch = Vec::with_capacity(indices.len() * self.image_len());
        for &index in indices {
            batch.extend_from_slice(self.image(index));
        }
        batch
    }

    /// As [`gather`](Self::gather), each image mirrored left to right with probability one half.
    ///
    /// One draw an image is taken from `rng`, so the same generator gives the same batch
    /// (see [`random_for`](super::random_for)).
    ///
    /// # Panics
    /// If an index is not below [`len`](Self::len).
    pub fn gather_with_flips(&self, indices: &[usize], rng: &mut impl Rng) -> Vec<u8> {
        let mut batch = self.gather(indices);
        for image in batch.chunks_exact_mut(self.image_len()) {
            if rng.random::<bool>() {
                image.chunks_exact_mut(self.width).for_each(<[u8]>::reverse);
            }
        }
        batch
    }

    /// The images (and labels) at these indices, in this order.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if there is no index, or one that is not below [`len`](Self::len).
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        if let Some(&index) = indices.iter().find(|&&index| index >= self.num_images) {
            return Err(FlowError::invalid(
                "Images::select: an index",
                index,
                format!("below {}, the number of images", self.num_images),
                "indices count from 0",
            ));
        }
        let labels =
            self.labels.as_ref().map(|labels| indices.iter().map(|&index| labels[index]).collect());
        let [_, num_channels, height, width] = self.shape();
        Self::new(self.gather(indices), [indices.len(), num_channels, height, width], labels)
    }

    /// Divides the images (and labels) into those for which `taken` is false and those for which it is
    /// true, both in their order; `taken` is called with each index once, from 0.
    ///
    /// The first part keeps the memory: what is asked for is only that of the second.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if a part would be empty.
    ///
    /// ```
    /// use burn_flows::data::Images;
    ///
    /// # fn main() -> Result<(), burn_flows::FlowError> {
    /// let images = Images::new(vec![10, 11, 12, 13, 14], [5, 1, 1, 1], None)?;
    /// let (train, test) = images.divide(|index| index % 3 == 2)?;
    /// assert_eq!((train.pixels(), test.pixels()), (&[10, 11, 13, 14][..], &[12][..]));
    /// # Ok(())
    /// # }
    /// ```
    pub fn divide(mut self, taken: impl FnMut(usize) -> bool) -> Result<(Self, Self)> {
        let taken: Vec<bool> = (0..self.num_images).map(taken).collect();
        let indices: Vec<usize> = (0..self.num_images).filter(|&index| taken[index]).collect();
        if indices.is_empty() || indices.len() == self.num_images {
            return Err(FlowError::invalid(
                "Images::divide: a part",
                format!("{} and {}", self.num_images - indices.len(), indices.len()),
                "at least one image in both parts",
                "take some and leave some",
            ));
        }
        let second = self.select(&indices)?;
        let len = self.image_len();
        remove_chunks(&mut self.pixels, len, indices.iter().copied());
        if let Some(labels) = &mut self.labels {
            remove_chunks(labels, 1, indices.iter().copied());
        }
        self.num_images -= indices.len();
        Ok((self, second))
    }

    fn check(&self, index: usize) {
        assert!(
            index < self.num_images,
            "Images: index {index} is out of range for {} images",
            self.num_images
        );
    }
}

/// Removes the chunks of `len` values at these places, which are in ascending order.
pub(super) fn remove_chunks(values: &mut Vec<u8>, len: usize, places: impl Iterator<Item = usize>) {
    let mut places = places.peekable();
    let num_chunks = values.len() / len;
    let mut kept = 0;
    for place in 0..num_chunks {
        if places.next_if_eq(&place).is_none() {
            if kept < place {
                values.copy_within(place * len..(place + 1) * len, kept * len);
            }
            kept += 1;
        }
    }
    values.truncate(kept * len);
}

impl std::fmt::Debug for Images {
    /// Shape and whether there are labels: the pixels of a data set would fill the terminal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images")
            .field("shape", &self.shape())
            .field("labels", &self.labels.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random_for;

    /// Three images of two channels, 2x3 pixels, every value different.
    fn images() -> Images {
        Images::new((0..36).collect(), [3, 2, 2, 3], Some(vec![5, 6, 7])).unwrap()
    }

    fn message(result: Result<Images>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn accessors() {
        let images = images();
        assert_eq!(images.len(), 3);
        assert!(!images.is_empty());
        assert_eq!(images.shape(), [3, 2, 2, 3]);
        assert_eq!(images.image_shape(), [2, 2, 3]);
        assert_eq!(images.image_len(), 12);
        assert_eq!(images.pixels(), (0..36).collect::<Vec<u8>>());
        assert_eq!(images.image(2), (24..36).collect::<Vec<u8>>());
        assert_eq!(images.labels(), Some(&[5, 6, 7][..]));
        assert_eq!(images.label(0), Some(5));
        assert_eq!(format!("{images:?}"), "Images { shape: [3, 2, 2, 3], labels: true, .. }");
        let unlabelled = Images::new(vec![0; 4], [1, 1, 2, 2], None).unwrap();
        assert_eq!(unlabelled.labels(), None);
        assert_eq!(unlabelled.label(0), None);
    }

    #[test]
    fn gather_and_select_keep_the_order_asked_for() {
        let images = images();
        let expected: Vec<u8> = (24..36).chain(0..12).chain(24..36).collect();
        assert_eq!(images.gather(&[2, 0, 2]), expected);
        assert_eq!(images.gather(&[]), Vec::<u8>::new());
        let selected = images.select(&[2, 0, 2]).unwrap();
        assert_eq!(selected.pixels(), expected);
        assert_eq!(selected.labels(), Some(&[7, 5, 7][..]));
    }

    #[test]
    fn flips_mirror_rows_of_every_channel_of_about_half_the_images() {
        let images = images();
        let mirrored: Vec<u8> = vec![2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9];
        let indices = vec![0; 1000];
        let batch = images.gather_with_flips(&indices, &mut random_for(1, 2, 3));
        let flips = batch.chunks_exact(12).filter(|image| *image == mirrored).count();
        let plain = batch.chunks_exact(12).filter(|image| *image == images.image(0)).count();
        assert_eq!(flips + plain, 1000);
        // Five standard deviations of 1000 fair coins.
        assert!((421..=579).contains(&flips), "{flips} of 1000 flipped");
        assert_eq!(batch, images.gather_with_flips(&indices, &mut random_for(1, 2, 3)));
        assert_ne!(batch, images.gather_with_flips(&indices, &mut random_for(1, 2, 4)));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        assert_eq!(
            message(Images::new(vec![], [0, 1, 28, 28], None)),
            "Images: the shape [num_images, num_channels, height, width]: got [0, 1, 28, 28], \
             needs at least 1 in every place; give at least one image of at least one pixel"
        );
        assert_eq!(
            message(Images::new(vec![0; 5], [2, 1, 1, 3], None)),
            "Images: the number of pixels: got 5, needs 6 for the shape [2, 1, 1, 3]; \
             check the order [num_images, num_channels, height, width]"
        );
        let half = usize::MAX / 2 + 1;
        assert_eq!(
            message(Images::new(vec![], [half, 1, 2, 1], None)),
            format!(
                "Images: the number of pixels: got 0, needs more than memory can hold for the \
                 shape [{half}, 1, 2, 1]; check the order [num_images, num_channels, height, width]"
            )
        );
        assert_eq!(
            message(Images::new(vec![0; 6], [2, 1, 1, 3], Some(vec![1; 3]))),
            "Images: the number of labels: got 3, needs 2, one an image; give all labels, or None"
        );
        assert_eq!(
            message(images().select(&[0, 3])),
            "Images::select: an index: got 3, needs below 3, the number of images; \
             indices count from 0"
        );
        assert!(message(images().select(&[])).contains("got [0, 2, 2, 3]"));
    }

    #[test]
    #[should_panic(expected = "Images: index 3 is out of range for 3 images")]
    fn image_out_of_range() {
        images().image(3);
    }

    #[test]
    fn chunks_are_removed() {
        let removed = |places: &[usize]| {
            let mut values: Vec<u8> = (0..8).collect();
            remove_chunks(&mut values, 2, places.iter().copied());
            values
        };
        assert_eq!(removed(&[]), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(removed(&[0]), [2, 3, 4, 5, 6, 7]);
        assert_eq!(removed(&[1, 3]), [0, 1, 4, 5]);
        assert_eq!(removed(&[0, 1, 2, 3]), [0; 0]);
    }

    #[test]
    fn dividing_keeps_order_and_labels() {
        let images = |labels| Images::new((0..24).collect(), [6, 1, 2, 2], labels).unwrap();
        let (kept, taken) = images(Some(vec![0, 1, 2, 3, 4, 5]))
            .divide(|index| matches!(index, 0 | 3 | 4))
            .unwrap();
        assert_eq!((kept.shape(), taken.shape()), ([3, 1, 2, 2], [3, 1, 2, 2]));
        assert_eq!(kept.pixels(), [4, 5, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23]);
        assert_eq!(taken.pixels(), [0, 1, 2, 3, 12, 13, 14, 15, 16, 17, 18, 19]);
        assert_eq!(kept.labels(), Some(&[1, 2, 5][..]));
        assert_eq!(taken.labels(), Some(&[0, 3, 4][..]));
        assert_eq!(kept.image(2), [20, 21, 22, 23]);
        for all in [true, false] {
            let text = images(None).divide(|_| all).unwrap_err().to_string();
            let (first, second) = if all { (0, 6) } else { (6, 0) };
            assert_eq!(
                text,
                format!(
                    "Images::divide: a part: got {first} and {second}, needs at least one image in \
                     both parts; take some and leave some"
                )
            );
        }
    }
}
