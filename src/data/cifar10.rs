//! CIFAR-10 in its binary layout.

use std::fs;
use std::path::Path;

use super::Images;
use crate::{FlowError, Result};

/// The files to train on, and the one to test on.
const TRAIN: [&str; 5] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
];
const TEST: [&str; 1] = ["test_batch.bin"];

/// Channels, height and width of an image.
const IMAGE_SHAPE: [usize; 3] = [3, 32, 32];

/// A record is a label and the image's planes of red, green and blue.
const RECORD: usize = 1 + IMAGE_SHAPE[0] * IMAGE_SHAPE[1] * IMAGE_SHAPE[2];

const NUM_CLASSES: u8 = 10;

const ADVICE: &str = "unpack cifar-10-binary.tar.gz and pass the folder cifar-10-batches-bin";

/// CIFAR-10 in its binary layout: `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, as they
/// come out of `cifar-10-binary.tar.gz`.
///
/// Source: <https://www.cs.toronto.edu/~kriz/cifar.html>, "binary version".
///
/// ```no_run
/// use burn_flows::data::Cifar10;
///
/// # fn main() -> Result<(), burn_flows::FlowError> {
/// let Cifar10 { train, test } = Cifar10::load("cifar-10-batches-bin")?;
/// assert_eq!(train.shape(), [50_000, 3, 32, 32]);
/// assert_eq!(test.shape(), [10_000, 3, 32, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cifar10 {
    /// The images to train on, `[num_images, 3, 32, 32]`, with their labels.
    pub train: Images,
    /// The images to test on, with their labels.
    pub test: Images,
}

impl Cifar10 {
    /// Whether `folder` holds the first of the six files.
    pub fn is_in(folder: impl AsRef<Path>) -> bool {
        folder.as_ref().join(TRAIN[0]).is_file()
    }

    /// Loads the six files of `folder`.
    ///
    /// # Errors
    /// - [`FlowError::Io`] if a file cannot be read;
    /// - [`FlowError::Format`] if a file is empty or not a whole number of records, or has a label
    ///   above 9.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        Ok(Self { train: read(folder, &TRAIN)?, test: read(folder, &TEST)? })
    }
}

fn read(folder: &Path, names: &[&str]) -> Result<Images> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for name in names {
        let path = folder.join(name);
        let bytes =
            fs::read(&path).map_err(|source| FlowError::io("read", &path, source, ADVICE))?;
        if bytes.is_empty() || bytes.len() % RECORD != 0 {
            let got = format!("{} bytes", bytes.len());
            let needed = format!("records of {RECORD} bytes, at least one");
            return Err(FlowError::format(&path, got, needed, ADVICE));
        }
        for (place, record) in bytes.chunks_exact(RECORD).enumerate() {
            if record[0] >= NUM_CLASSES {
                let got = format!("the label {} in record {place}", record[0]);
                return Err(FlowError::format(&path, got, "0 to 9", ADVICE));
            }
            labels.push(record[0]);
            pixels.extend_from_slice(&record[1..]);
        }
    }
    let [channels, height, width] = IMAGE_SHAPE;
    Images::new(pixels, [labels.len(), channels, height, width], Some(labels))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// Two records a file: image `i` of all has the label `i % 10` and planes of `i`, `i + 1`, `i + 2`.
    fn folder() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, name) in TRAIN.iter().chain(&TEST).enumerate() {
            let mut bytes = Vec::new();
            for image in [2 * file as u8, 2 * file as u8 + 1] {
                bytes.push(image % 10);
                for plane in 0..3 {
                    bytes.extend([image + plane; 1024]);
                }
            }
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    #[test]
    fn images_and_labels_are_those_of_the_files() {
        let folder = folder();
        assert!(Cifar10::is_in(folder.path()));
        assert!(!Cifar10::is_in(folder.path().join("missing")));
        let Cifar10 { train, test } = Cifar10::load(folder.path()).unwrap();
        assert_eq!((train.shape(), test.shape()), ([10, 3, 32, 32], [2, 3, 32, 32]));
        assert_eq!(train.labels(), Some(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9][..]));
        assert_eq!(test.labels(), Some(&[0, 1][..]));
        let image = train.image(7);
        assert_eq!([image[0], image[1023], image[1024], image[3071]], [7, 7, 8, 9]);
        assert_eq!(test.image(1)[2048], 13);
    }

    #[test]
    fn damaged_files_are_named() {
        let folder = folder();
        let path = folder.path().join("data_batch_3.bin");
        let error = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let text = Cifar10::load(folder.path()).unwrap_err().to_string();
            text.strip_prefix(&format!("{}: ", path.display())).unwrap().to_string()
        };
        let records = "expected records of 3073 bytes, at least one";
        assert_eq!(error(&[0; 3072]), format!("3072 bytes, {records}; {ADVICE}"));
        assert_eq!(error(&[]), format!("0 bytes, {records}; {ADVICE}"));
        let mut bytes = vec![0; 2 * RECORD];
        bytes[RECORD] = 10;
        assert_eq!(error(&bytes), format!("the label 10 in record 1, expected 0 to 9; {ADVICE}"));
        fs::remove_file(&path).unwrap();
        let text = Cifar10::load(folder.path()).unwrap_err().to_string();
        assert!(text.starts_with(&format!("cannot read {}: ", path.display())), "{text}");
    }
}
