//! Images to train on and to test on, from whatever layout a folder has.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use super::super::folder::create_folder;
use crate::data::{CelebA, CelebAPartition, Cifar10, ImageFolder, SkippedPicture};
use crate::data::{Crop, Images, Mnist};
use crate::error::{FlowError, Result};

/// Images to train on and images to test on, and how pictures became both.
#[derive(Debug)]
pub struct ImageParts {
    /// To train on.
    pub train: Images,
    /// To test on.
    pub test: Images,
    /// What was kept of each picture; of another picture the same is kept.
    pub crop: Crop,
    /// What the images are and what divides them, in a few words.
    pub about: String,
    /// Pictures that were left out.
    pub skipped: Vec<SkippedPicture>,
}

impl ImageParts {
    /// Images in two parts, as they come.
    pub fn new(train: Images, test: Images, about: impl Into<String>) -> Self {
        // All of a picture that has their proportions.
        let [_, height, width] = train.image_shape();
        let crop = if height == width { Crop::Square } else { Crop::Whole };
        Self { train, test, crop, about: about.into(), skipped: Vec::new() }
    }

    /// A data set in the layout of MNIST.
    ///
    /// # Errors
    /// As [`Mnist::load`].
    pub fn of_idx_files(folder: impl AsRef<Path>) -> Result<Self> {
        let Mnist { train, test } = Mnist::load(folder)?;
        Ok(Self::new(train, test, "four IDX files"))
    }
}

/// A folder of pictures, of whatever layout.
#[derive(Debug, Clone)]
pub struct PictureFolder {
    /// The folder.
    pub folder: PathBuf,
    /// The name of the folder of CelebA's pictures in it.
    pub pictures: PathBuf,
    /// The side that the pictures are reduced to, in pixels: 32, 64 or 128.
    pub size: usize,
    /// The folder where decoded pictures are kept for the next time; `runs/cache` where it is `None`, or
    /// `cache` in the folder of the run where that cannot be written.
    pub cache: Option<PathBuf>,
}

/// Sides that halve down to the 4 x 4 pixels of Glow's last level.
const SIZES: [usize; 3] = [32, 64, 128];

/// One picture of so many is held out where the data has no test part of its own.
const HELD_OUT: usize = 10;

impl PictureFolder {
    /// Pictures of 32 pixels a side.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            pictures: "img_align_celeba".into(),
            size: SIZES[0],
            cache: None,
        }
    }

    /// Checks what does not depend on the data.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] for another size.
    pub fn validate(&self) -> Result<()> {
        if SIZES.contains(&self.size) {
            return Ok(());
        }
        let advice = "32 is the quickest";
        Err(FlowError::invalid("PictureFolder::size", self.size, "32, 64 or 128", advice))
    }

    /// The folder of the decoded pictures of a run into `run`.
    fn cache(&self, run: &Path) -> Result<PathBuf> {
        if let Some(folder) = &self.cache {
            return Ok(folder.clone());
        }
        let shared = Path::new("runs/cache");
        if fs::create_dir_all(shared).is_ok() && tempfile::tempfile_in(shared).is_ok() {
            return Ok(shared.into());
        }
        let own = run.join("cache");
        create_folder(&own)?;
        Ok(own)
    }

    /// The pictures in the folder:
    ///
    /// - CelebA, where its picture folder or one of its lists is there, in the official partition if
    ///   that leaves some to train on and some to test on;
    /// - CIFAR-10, where its binary files are there;
    /// - those below `train` and those below `test`, where both are there;
    /// - all below `folder`.
    ///
    /// Where nothing else divides them, every tenth is held out to test on. `run` is the folder of the
    /// run.
    ///
    /// # Errors
    /// Those of [`validate`](PictureFolder::validate), of what reads the layout, and
    /// [`FlowError::Io`] where there is no folder for a cache.
    pub fn parts(&self, run: &Path) -> Result<ImageParts> {
        self.validate()?;
        let Self { folder, pictures, size, .. } = self;
        let size = *size;
        let mut skipped = Vec::new();
        let mut load = |folder: &Path| -> Result<Images> {
            let cache = self.cache(run)?;
            let loader = ImageFolder::new(folder, size).with_crop(Crop::Square);
            let pictures = loader.with_cache(cache).load()?;
            skipped.extend(pictures.skipped);
            Ok(pictures.images)
        };
        let (train, test) = (folder.join("train"), folder.join("test"));
        if folder.join(pictures).exists() || CelebA::has_lists(folder) {
            let celeba = CelebA::new(folder, size).with_picture_folder(pictures);
            let faces = celeba.with_cache(self.cache(run)?).load()?;
            let parts = of_faces(faces.images, faces.partitions.unwrap_or_default())?;
            Ok(ImageParts { skipped: faces.skipped, ..parts })
        } else if Cifar10::is_in(folder) {
            let Cifar10 { train, test } = Cifar10::load(folder)?;
            let [_, side, _] = train.image_shape();
            if size != side {
                let advice = "leave it out";
                return Err(FlowError::invalid(
                    "PictureFolder::size",
                    size,
                    "32 for CIFAR-10",
                    advice,
                ));
            }
            Ok(ImageParts::new(train, test, "CIFAR-10"))
        } else if train.is_dir() && test.is_dir() {
            let (train, test) = (load(&train)?, load(&test)?);
            let parts = ImageParts::new(train, test, "pictures in the folders train and test");
            Ok(ImageParts { crop: Crop::Square, skipped, ..parts })
        } else {
            let images = load(folder)?;
            let parts = hold_out(images, Crop::Square, "pictures")?;
            Ok(ImageParts { skipped, ..parts })
        }
    }
}

fn of_faces(images: Images, partitions: Vec<CelebAPartition>) -> Result<ImageParts> {
    use CelebAPartition::{Test, Train, Validation};
    if !partitions.contains(&Train) || !partitions.contains(&Test) {
        return hold_out(images, Crop::CELEBA, "CelebA");
    }
    let (mut train, test) = images.divide(|index| partitions[index] == Test)?;
    if partitions.contains(&Validation) {
        let rest: Vec<_> = partitions.iter().filter(|&&part| part != Test).collect();
        train = train.divide(|index| *rest[index] == Validation)?.0;
    }
    let parts = ImageParts::new(train, test, "CelebA in its official partition");
    Ok(ImageParts { crop: Crop::CELEBA, ..parts })
}

fn hold_out(images: Images, crop: Crop, what: &str) -> Result<ImageParts> {
    let (train, test) = images.divide(|index| index % HELD_OUT == HELD_OUT - 1)?;
    let about = format!("{what}, every {HELD_OUT}th by name held out");
    Ok(ImageParts { crop, ..ImageParts::new(train, test, about) })
}
