//! MNIST and every data set in its layout (Fashion-MNIST, Kuzushiji-MNIST, …).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Images;
use super::idx::{self, IdxArray};
use crate::{FlowError, Result};

/// A data set in the layout of MNIST: four IDX files in a folder.
///
/// Fashion-MNIST and others that use the same four names load unchanged.
///
/// ```no_run
/// use burn_flows::data::Mnist;
///
/// # fn main() -> Result<(), burn_flows::FlowError> {
/// let Mnist { train, test } = Mnist::load("data/mnist")?;
/// assert_eq!(train.shape(), [60_000, 1, 28, 28]);
/// assert_eq!(test.shape(), [10_000, 1, 28, 28]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mnist {
    /// The images to train on, `[num_images, 1, height, width]`, with their labels.
    pub train: Images,
    /// The images to test on, of the same size, with their labels.
    pub test: Images,
}

/// One of the four files: what it holds, and the two parts of its name around the `-` or `.`.
#[derive(Clone, Copy)]
struct FileName {
    holds: &'static str,
    stem: &'static str,
    idx: &'static str,
}

const TRAIN_IMAGES: FileName =
    FileName { holds: "the training images", stem: "train-images", idx: "idx3-ubyte" };
const TRAIN_LABELS: FileName =
    FileName { holds: "the training labels", stem: "train-labels", idx: "idx1-ubyte" };
const TEST_IMAGES: FileName =
    FileName { holds: "the test images", stem: "t10k-images", idx: "idx3-ubyte" };
const TEST_LABELS: FileName =
    FileName { holds: "the test labels", stem: "t10k-labels", idx: "idx1-ubyte" };

const FOUR_FILES: &str = "a folder with the four files train-images-idx3-ubyte, \
                          train-labels-idx1-ubyte, t10k-images-idx3-ubyte and \
                          t10k-labels-idx1-ubyte, each plain or with .gz";

impl Mnist {
    /// Loads `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    /// `t10k-labels-idx1-ubyte` from `folder`.
    ///
    /// Each may have `.gz` at its end, or a `.` before `idx` as some unpackers write it
    /// (`train-images.idx3-ubyte`). If several are there, the first of
    /// `-idx`, `-idx….gz`, `.idx`, `.idx….gz` is read.
    ///
    /// # Errors
    /// - [`FlowError::Io`] if `folder` or a file in it cannot be read;
    /// - [`FlowError::Format`] if `folder` is a file, if one of the four is missing or not such a
    ///   file (see [`idx::read`]), if there are no images, if there is not one label an image, or
    ///   if training and test images differ in size.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let metadata = fs::metadata(folder).map_err(|source| {
            FlowError::io(
                "read",
                folder,
                source,
                "pass the folder that holds the four IDX files of MNIST",
            )
        })?;
        if !metadata.is_dir() {
            return Err(FlowError::format(
                folder,
                "a file",
                FOUR_FILES,
                "pass the folder instead of a file",
            ));
        }

        // All four are found before the first is read, which takes a second.
        let train_images = TRAIN_IMAGES.find(folder)?;
        let train_labels = TRAIN_LABELS.find(folder)?;
        let test_images = TEST_IMAGES.find(folder)?;
        let test_labels = TEST_LABELS.find(folder)?;

        let train = images(&train_images, &train_labels)?;
        let test = images(&test_images, &test_labels)?;
        if train.image_shape() != test.image_shape() {
            let [_, height, width] = train.image_shape();
            let [_, test_height, test_width] = test.image_shape();
            return Err(FlowError::format(
                &test_images,
                format!("images of {test_height}x{test_width} pixels"),
                format!(
                    "{height}x{width} pixels, as the training images in {}",
                    train_images.display()
                ),
                "take all four files from the same data set",
            ));
        }
        Ok(Self { train, test })
    }
}

impl FileName {
    /// The names that the file goes by, the standard one first.
    fn spellings(self) -> [String; 4] {
        let Self { stem, idx, .. } = self;
        [
            format!("{stem}-{idx}"),
            format!("{stem}-{idx}.gz"),
            format!("{stem}.{idx}"),
            format!("{stem}.{idx}.gz"),
        ]
    }

    fn find(self, folder: &Path) -> Result<PathBuf> {
        let spellings = self.spellings();
        for spelling in &spellings {
            let path = folder.join(spelling);
            match fs::metadata(&path) {
                // Some unpackers make a folder of this name.
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => return Ok(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(FlowError::io("read", &path, error, "check the permissions"));
                }
            }
        }
        let [standard, packed, dotted, dotted_packed] = spellings;
        Err(FlowError::format(
            folder,
            format!("no file with {}", self.holds),
            format!("one of {standard}, {packed}, {dotted}, {dotted_packed}"),
            "put it there, or pass the folder that holds all four files",
        ))
    }
}

/// The images of one file with the labels of another.
fn images(images_path: &Path, labels_path: &Path) -> Result<Images> {
    const SWAPPED: &str = "check that no two files are swapped";

    let pixels = idx::read(images_path)?;
    let &[num_images, height, width] = pixels.dims.as_slice() else {
        return Err(wrong_dims(
            images_path,
            &pixels,
            "an array of images x rows x columns",
            SWAPPED,
        ));
    };
    if pixels.data.is_empty() {
        return Err(FlowError::format(
            images_path,
            format!("{num_images} images of {height}x{width} pixels"),
            "at least one image of at least one pixel",
            "download the file again",
        ));
    }
    let labels = idx::read(labels_path)?;
    let &[num_labels] = labels.dims.as_slice() else {
        return Err(wrong_dims(labels_path, &labels, "an array of labels", SWAPPED));
    };
    if num_labels != num_images {
        return Err(FlowError::format(
            labels_path,
            format!("{num_labels} labels"),
            format!("{num_images}, one for each image in {}", images_path.display()),
            "take both files from the same data set",
        ));
    }
    Images::new(pixels.data, [num_images, 1, height, width], Some(labels.data))
}

fn wrong_dims(path: &Path, array: &IdxArray, needed: &str, advice: &str) -> FlowError {
    let sizes: Vec<String> = array.dims.iter().map(usize::to_string).collect();
    FlowError::format(path, format!("an array of {}", sizes.join(" x ")), needed, advice)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::idx::tests::{gzip, idx_bytes};
    use super::*;

    const NAMES: [&str; 4] = [
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ];

    /// The four files: 3 training and 2 test images of 2x2 pixels.
    fn contents() -> [Vec<u8>; 4] {
        [
            idx_bytes(&[3, 2, 2], &(0..12).collect::<Vec<u8>>()),
            idx_bytes(&[3], &[7, 8, 9]),
            idx_bytes(&[2, 2, 2], &(100..108).collect::<Vec<u8>>()),
            idx_bytes(&[2], &[1, 2]),
        ]
    }

    fn folder_with<'a>(files: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    /// The four good files, after a change.
    fn changed(change: impl FnOnce(&mut [Vec<u8>; 4])) -> TempDir {
        let mut files = contents();
        change(&mut files);
        folder_with(NAMES.into_iter().zip(files))
    }

    /// The error of loading, with the folder's path written as `DIR`.
    fn error(folder: &Path) -> String {
        let error = Mnist::load(folder).unwrap_err();
        error.to_string().replace(&folder.display().to_string(), "DIR")
    }

    fn assert_loads(folder: &TempDir) {
        let Mnist { train, test } = Mnist::load(folder.path()).unwrap();
        assert_eq!(train.shape(), [3, 1, 2, 2]);
        assert_eq!(train.image(1), [4, 5, 6, 7]);
        assert_eq!(train.labels(), Some(&[7, 8, 9][..]));
        assert_eq!(test.shape(), [2, 1, 2, 2]);
        assert_eq!(test.image(0), [100, 101, 102, 103]);
        assert_eq!(test.labels(), Some(&[1, 2][..]));
    }

    #[test]
    fn loads_plain_gzip_and_mixed() {
        assert_loads(&changed(|_| {}));
        let packed = NAMES.map(|name| format!("{name}.gz"));
        assert_loads(&folder_with(
            packed.iter().map(String::as_str).zip(contents().map(|file| gzip(&file))),
        ));
        // Compressed without the .gz in the name.
        assert_loads(&changed(|files| files[0] = gzip(&files[0])));
        let [a, b, c, d] = contents();
        assert_loads(&folder_with([
            ("train-images.idx3-ubyte", a),
            ("train-labels.idx1-ubyte.gz", gzip(&b)),
            ("t10k-images-idx3-ubyte.gz", gzip(&c)),
            ("t10k-labels-idx1-ubyte", d),
        ]));
    }

    #[test]
    fn the_standard_spelling_comes_first_and_folders_of_the_name_are_passed_over() {
        let folder = changed(|_| {});
        fs::write(folder.path().join("train-images-idx3-ubyte.gz"), b"damaged").unwrap();
        assert_loads(&folder);

        let [a, b, c, d] = contents();
        let folder = folder_with([
            ("train-images.idx3-ubyte", a),
            ("train-labels-idx1-ubyte", b),
            ("t10k-images-idx3-ubyte", c),
            ("t10k-labels-idx1-ubyte", d),
        ]);
        fs::create_dir(folder.path().join("train-images-idx3-ubyte")).unwrap();
        assert_loads(&folder);
    }

    #[test]
    fn missing_folder_and_file_instead_of_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            error(&folder.path().join("missing")),
            "cannot read DIR: No such file or directory (os error 2); \
             pass the folder that holds the four IDX files of MNIST"
        );
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(
            error(&file),
            "DIR: a file, expected a folder with the four files train-images-idx3-ubyte, \
             train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, \
             each plain or with .gz; pass the folder instead of a file"
        );
    }

    #[test]
    fn each_missing_file_is_named_with_all_its_spellings() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(
            error(empty.path()),
            "DIR: no file with the training images, expected one of train-images-idx3-ubyte, \
             train-images-idx3-ubyte.gz, train-images.idx3-ubyte, train-images.idx3-ubyte.gz; \
             put it there, or pass the folder that holds all four files"
        );
        let holds = ["training images", "training labels", "test images", "test labels"];
        for (name, holds) in NAMES.into_iter().zip(holds) {
            let folder = changed(|_| {});
            fs::remove_file(folder.path().join(name)).unwrap();
            let text = error(folder.path());
            assert!(
                text.starts_with(&format!("DIR: no file with the {holds}, expected one of {name}")),
                "{text}"
            );
        }
    }

    #[test]
    fn damaged_files_are_named() {
        let folder = changed(|files| files[2].truncate(16 + 7));
        assert_eq!(
            error(folder.path()),
            "DIR/t10k-images-idx3-ubyte: 7 bytes of values, expected 8 (2 x 2 x 2); \
             the file is truncated: delete it and download it again"
        );
        let folder = changed(|files| files[1] = b"not IDX at all".to_vec());
        assert!(error(folder.path()).starts_with(
            "DIR/train-labels-idx1-ubyte: the magic number 0x6e6f7420, expected 0x0000"
        ));
        // An empty file, as an interrupted download leaves it.
        let folder = changed(|files| files[3].clear());
        assert!(error(folder.path()).starts_with("DIR/t10k-labels-idx1-ubyte: 0 bytes in all"));
    }

    #[test]
    fn swapped_files() {
        let folder = changed(|files| files.swap(0, 1));
        assert_eq!(
            error(folder.path()),
            "DIR/train-images-idx3-ubyte: an array of 3, expected an array of images x rows x columns; \
             check that no two files are swapped"
        );
        let folder = changed(|files| files[1] = files[0].clone());
        assert_eq!(
            error(folder.path()),
            "DIR/train-labels-idx1-ubyte: an array of 3 x 2 x 2, expected an array of labels; \
             check that no two files are swapped"
        );
    }

    #[test]
    fn counts_and_sizes_must_agree() {
        let folder = changed(|files| files[3] = idx_bytes(&[3], &[1, 2, 3]));
        assert_eq!(
            error(folder.path()),
            "DIR/t10k-labels-idx1-ubyte: 3 labels, expected 2, one for each image in \
             DIR/t10k-images-idx3-ubyte; take both files from the same data set"
        );
        let folder = changed(|files| files[2] = idx_bytes(&[2, 1, 2], &[0; 4]));
        assert_eq!(
            error(folder.path()),
            "DIR/t10k-images-idx3-ubyte: images of 1x2 pixels, expected 2x2 pixels, as the \
             training images in DIR/train-images-idx3-ubyte; \
             take all four files from the same data set"
        );
    }

    #[test]
    fn zero_images_or_pixels() {
        for dims in [[0, 2, 2], [3, 0, 2], [3, 2, 0]] {
            let folder = changed(|files| files[0] = idx_bytes(&dims, &[]));
            let [num_images, height, width] = dims;
            assert_eq!(
                error(folder.path()),
                format!(
                    "DIR/train-images-idx3-ubyte: {num_images} images of {height}x{width} pixels, \
                     expected at least one image of at least one pixel; download the file again"
                )
            );
        }
    }

    #[test]
    fn the_bundled_files_are_mnist() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
        if !folder.exists() {
            // The published package leaves the data out; the repository has it.
            return;
        }
        let Mnist { train, test } = Mnist::load(folder).unwrap();
        assert_eq!(train.shape(), [60_000, 1, 28, 28]);
        assert_eq!(test.shape(), [10_000, 1, 28, 28]);
        assert_eq!(train.labels().unwrap()[..5], [5, 0, 4, 1, 9]);
        assert_eq!(test.labels().unwrap()[..5], [7, 2, 1, 0, 4]);
        // The mean of the training pixels over 255 is 0.1307, as published everywhere.
        let sum: u64 = train.pixels().iter().map(|&pixel| u64::from(pixel)).sum();
        let mean = sum as f64 / train.pixels().len() as f64 / 255.0;
        assert!((mean - 0.1307).abs() < 5e-5, "{mean}");
    }
}
