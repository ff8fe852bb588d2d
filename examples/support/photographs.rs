//! Pictures to train on and to test on, from whatever layout a folder has.

use std::fs;
use std::path::{Path, PathBuf};

use burn_flows::Result;
use burn_flows::data::{
    CelebA, CelebAPartition, Cifar10, Crop, ImageFolder, Images, SkippedPicture,
};
use clap::Args;

use super::arguments::invalid;
use super::data::Parts;
use super::run::create_folder;
use super::say_err;

/// Options that say which pictures are read and how.
#[derive(Args, Debug, Clone)]
pub struct PictureArguments {
    /// Folder of CelebA, or of any pictures (JPEG, PNG)
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Name of the folder of CelebA's pictures in it
    #[arg(long, default_value = "img_align_celeba")]
    pub pictures: PathBuf,
    /// Side that the pictures are reduced to, in pixels: 32, 64 or 128
    #[arg(long, default_value_t = 32)]
    pub size: usize,
    /// Folder where decoded pictures are kept for the next run [default: runs/cache, or cache in --out
    /// where that cannot be written]
    #[arg(long)]
    pub cache: Option<PathBuf>,
}

/// Sides that halve down to the 4 x 4 pixels of Glow's last level.
const SIZES: [usize; 3] = [32, 64, 128];

impl PictureArguments {
    /// Checks what does not depend on the data.
    pub fn validate(&self) -> Result<()> {
        if SIZES.contains(&self.size) {
            return Ok(());
        }
        let advice = "32 is the quickest";
        Err(invalid("--size", &self.size.to_string(), "32, 64 or 128", advice))
    }

    /// The folder of the decoded pictures of a run into `out`.
    fn cache(&self, out: &Path) -> Result<PathBuf> {
        if let Some(folder) = &self.cache {
            return Ok(folder.clone());
        }
        let shared = Path::new("runs/cache");
        if fs::create_dir_all(shared).is_ok() && tempfile::tempfile_in(shared).is_ok() {
            return Ok(shared.into());
        }
        let own = out.join("cache");
        create_folder(&own)?;
        Ok(own)
    }
}

/// One picture of so many is held out where the data has no test part of its own.
const HELD_OUT: usize = 10;

impl Parts {
    /// The pictures in `folder`:
    ///
    /// - CelebA, where its picture folder or one of its lists is there, in the official partition if
    ///   that leaves some to train on and some to test on;
    /// - CIFAR-10, where its binary files are there;
    /// - those below `train` and those below `test`, where both are there;
    /// - all below `folder`.
    ///
    /// Where nothing else divides them, every tenth is held out to test on. `out` is the folder of the
    /// run.
    pub fn of_pictures(folder: &Path, arguments: &PictureArguments, out: &Path) -> Result<Self> {
        let &PictureArguments { ref pictures, size, .. } = arguments;
        let load = |folder: &Path| -> Result<Images> {
            let cache = arguments.cache(out)?;
            let loader = ImageFolder::new(folder, size).with_crop(Crop::Square);
            let pictures = loader.with_cache(cache).load()?;
            tell_skipped(&pictures.skipped);
            Ok(pictures.images)
        };
        let (train, test) = (folder.join("train"), folder.join("test"));
        if folder.join(pictures).exists() || CelebA::has_lists(folder) {
            let celeba = CelebA::new(folder, size).with_picture_folder(pictures);
            let faces = celeba.with_cache(arguments.cache(out)?).load()?;
            tell_skipped(&faces.skipped);
            Self::of_faces(faces.images, faces.partitions.unwrap_or_default())
        } else if Cifar10::is_in(folder) {
            let Cifar10 { train, test } = Cifar10::load(folder)?;
            let [_, side, _] = train.image_shape();
            if size != side {
                let advice = "leave it out";
                return Err(invalid("--size", &size.to_string(), "32 for CIFAR-10", advice));
            }
            let crop = Self::whole(&train);
            Ok(Self { train, test, crop, about: "CIFAR-10".into() })
        } else if train.is_dir() && test.is_dir() {
            let (train, test) = (load(&train)?, load(&test)?);
            let about = "pictures in the folders train and test".into();
            Ok(Self { train, test, crop: Crop::Square, about })
        } else {
            Self::hold_out(load(folder)?, Crop::Square, "pictures")
        }
    }

    fn of_faces(images: Images, partitions: Vec<CelebAPartition>) -> Result<Self> {
        use CelebAPartition::{Test, Train, Validation};
        if !partitions.contains(&Train) || !partitions.contains(&Test) {
            return Self::hold_out(images, Crop::CELEBA, "CelebA");
        }
        let (mut train, test) = images.divide(|index| partitions[index] == Test)?;
        if partitions.contains(&Validation) {
            let rest: Vec<_> = partitions.iter().filter(|&&part| part != Test).collect();
            train = train.divide(|index| *rest[index] == Validation)?.0;
        }
        let about = "CelebA in its official partition".into();
        Ok(Self { train, test, crop: Crop::CELEBA, about })
    }

    fn hold_out(images: Images, crop: Crop, what: &str) -> Result<Self> {
        let (train, test) = images.divide(|index| index % HELD_OUT == HELD_OUT - 1)?;
        let about = format!("{what}, every {HELD_OUT}th by name held out");
        Ok(Self { train, test, crop, about })
    }
}

/// Names the pictures that were left out, and counts them.
fn tell_skipped(skipped: &[SkippedPicture]) {
    for picture in skipped {
        say_err!("left out {}: {}", picture.name, picture.reason);
    }
    if !skipped.is_empty() {
        say_err!("pictures left out: {}", skipped.len());
    }
}
