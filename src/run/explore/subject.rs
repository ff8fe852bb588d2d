//! The pictures that a saved model is asked about.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::data::{Channels, Crop, ImageFolder, Images, Mnist, SkippedPicture, read_picture};
use crate::error::{FlowError, Result};

/// What is kept of a picture whose shape is not the model's, before it is resized: `auto`, `celeba`, `square`
/// or `whole`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CropName {
    /// The crop of CelebA for pictures of its proportions, else the centre square.
    Auto,
    /// The centre 148x148 of 178x218, or the same share of another size.
    Celeba,
    /// The centre square.
    Square,
    /// All of it.
    Whole,
}

impl FromStr for CropName {
    type Err = FlowError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "celeba" => Ok(Self::Celeba),
            "square" => Ok(Self::Square),
            "whole" => Ok(Self::Whole),
            _ => {
                let needed = "auto, celeba, square or whole";
                Err(FlowError::invalid("Explorer::crop", name, needed, "pass one of the four"))
            }
        }
    }
}

/// How pictures are read.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    pub crop: Option<CropName>,
    pub idx: Option<PathBuf>,
}

/// The images that a model takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// `[channels, height, width]`.
    pub image_shape: [usize; 3],
    /// What was kept of each picture in training, if that is known.
    pub crop: Option<Crop>,
}

/// Images and what to call each.
pub(super) struct Subjects {
    pub images: Images,
    pub names: Vec<String>,
    /// What was done to those of another shape, a line each.
    pub treated: Vec<String>,
    pub skipped: Vec<SkippedPicture>,
}

/// Width and height of the aligned pictures of CelebA.
const CELEBA: [u32; 2] = [178, 218];

impl Reader {
    /// One picture for each of `names`, a file or `test:N` or `train:N`, as the model takes them;
    /// what is done to a picture of another shape is said.
    pub fn read(&self, names: &[String], wanted: Wanted) -> Result<Subjects> {
        let image_shape = wanted.image_shape;
        let mut sets = None;
        let (mut pixels, mut treated) = (Vec::new(), Vec::new());
        for name in names {
            let image = match index_in_set(name) {
                Some((part, index)) => {
                    if sets.is_none() {
                        sets = Some(Mnist::load(self.idx_folder(name)?)?);
                    }
                    let sets = sets.as_ref().expect("just loaded");
                    let images = if part == "test" { &sets.test } else { &sets.train };
                    check_shape(name, images, image_shape)?;
                    if index >= images.len() {
                        let needed = format!("{part}:0 to {part}:{}", images.len() - 1);
                        return Err(FlowError::invalid(
                            "the picture",
                            name,
                            needed,
                            "they count from 0",
                        ));
                    }
                    images.select(&[index])?
                }
                None => self.read_file(Path::new(name), wanted, &mut treated)?,
            };
            pixels.extend_from_slice(image.pixels());
        }
        let [channels, height, width] = image_shape;
        let images = Images::new(pixels, [names.len(), channels, height, width], None)?;
        Ok(Subjects { images, names: names.to_vec(), treated, skipped: Vec::new() })
    }

    /// All pictures below `folder`, or the test images of a folder with the four IDX files.
    pub fn read_folder(&self, folder: &Path, wanted: Wanted) -> Result<Subjects> {
        let image_shape = wanted.image_shape;
        let [channels, height, width] = image_shape;
        if holds_idx_files(folder) {
            let images = Mnist::load(folder)?.test;
            check_shape("the test images", &images, image_shape)?;
            let names = (0..images.len()).map(|index| format!("test:{index}")).collect();
            return Ok(Subjects { images, names, treated: Vec::new(), skipped: Vec::new() });
        }
        if height != width {
            let advice = "give the pictures to the model one by one, from code";
            let needed = "a model of square images";
            return Err(FlowError::invalid(
                "the pictures of a folder",
                "non-square",
                needed,
                advice,
            ));
        }
        let channels = if channels == 1 { Channels::Grey } else { Channels::Rgb };
        let size = first_picture(folder).and_then(|path| dimensions(&path));
        let crop = self.crop_of(size.unwrap_or([width as u32, height as u32]), wanted);
        let loader = ImageFolder::new(folder, height).with_crop(crop).with_channels(channels);
        let pictures = loader.load()?;
        let treatment = |size| treatment(size, crop, image_shape);
        let treated = size.map(|size| format!("pictures like the first of {}", treatment(size)));
        Ok(Subjects {
            images: pictures.images,
            names: pictures.names,
            treated: treated.into_iter().collect(),
            skipped: pictures.skipped,
        })
    }

    fn idx_folder(&self, name: &str) -> Result<&Path> {
        self.idx.as_deref().ok_or_else(|| {
            let needed = "Explorer::idx, the folder of the IDX files that it is in";
            FlowError::invalid("the picture", name, needed, "give it, or the picture as a file")
        })
    }

    fn read_file(&self, path: &Path, wanted: Wanted, treated: &mut Vec<String>) -> Result<Images> {
        let image_shape = wanted.image_shape;
        let [_, height, width] = image_shape;
        // Of a picture that has no dimensions, reading it says what is wrong.
        let size = dimensions(path).unwrap_or([width as u32, height as u32]);
        let crop = self.crop_of(size, wanted);
        let image = read_picture(path, image_shape, crop)?;
        if size != [width as u32, height as u32] || crop == Crop::CELEBA {
            treated.push(format!("{} of {}", path.display(), treatment(size, crop, image_shape)));
        }
        Ok(image)
    }

    fn crop_of(&self, size: [u32; 2], wanted: Wanted) -> Crop {
        let [own_width, own_height] = size;
        let [_, height, width] = wanted.image_shape;
        match (self.crop, wanted.crop) {
            (None, Some(crop)) => crop,
            _ if size == [width as u32, height as u32] => Crop::Whole,
            (Some(CropName::Celeba), _) => Crop::CELEBA,
            (Some(CropName::Square), _) => Crop::Square,
            (Some(CropName::Whole), _) => Crop::Whole,
            (Some(CropName::Auto) | None, _) if width != height => Crop::Whole,
            (Some(CropName::Auto) | None, _) => {
                // The height that a picture of this width has in CelebA, within a pixel of rounding.
                let expected = f64::from(own_width) * f64::from(CELEBA[1]) / f64::from(CELEBA[0]);
                let is_celeba = (f64::from(own_height) - expected).abs() <= 1.0;
                if is_celeba { Crop::CELEBA } else { Crop::Square }
            }
        }
    }
}

/// Whether a picture has the sides of the model's images.
pub(super) fn is_of_shape(path: &str, wanted: Wanted) -> bool {
    let [_, height, width] = wanted.image_shape;
    dimensions(Path::new(path)) == Some([width as u32, height as u32])
}

/// What is done to a picture, in words.
fn treatment([own_width, own_height]: [u32; 2], crop: Crop, shape: [usize; 3]) -> String {
    let [channels, height, width] = shape;
    let crop = match crop {
        Crop::Whole => "whole",
        Crop::CELEBA => "the centre by the crop of CelebA",
        _ => "the centre square",
    };
    let color = if channels == 1 { " in grey" } else { "" };
    format!("{own_width}x{own_height} pixels: {crop}, resized to {width}x{height}{color}")
}

/// `test:7` and `train:7`.
fn index_in_set(name: &str) -> Option<(&str, usize)> {
    let (part, index) = name.split_once(':')?;
    let index = index.parse().ok()?;
    matches!(part, "test" | "train").then_some((part, index))
}

fn check_shape(name: &str, images: &Images, image_shape: [usize; 3]) -> Result<()> {
    let shape = images.image_shape();
    if shape == image_shape {
        return Ok(());
    }
    let needed = format!("{image_shape:?}, channels, height and width of the model's images");
    Err(FlowError::invalid(
        name,
        format!("{shape:?}"),
        needed,
        "give Explorer::idx the data set of the model",
    ))
}

fn holds_idx_files(folder: &Path) -> bool {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    names.map(|entry| entry.file_name()).any(|name| {
        let name = name.to_string_lossy();
        name.starts_with("t10k-images") && name.contains("ubyte")
    })
}

/// The first picture by its name, of the folder or the first of those in it.
fn first_picture(folder: &Path) -> Option<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().find(|path| dimensions(path).is_some()).cloned().or_else(|| {
        // Not into links: they may lead round.
        let folders = paths.iter().filter(|path| path.is_dir() && !path.is_symlink());
        folders.into_iter().find_map(|folder| first_picture(folder))
    })
}

fn dimensions(path: &Path) -> Option<[u32; 2]> {
    let reader = image::ImageReader::open(path).ok()?.with_guessed_format().ok()?;
    let (width, height) = reader.into_dimensions().ok()?;
    Some([width, height])
}
