//! CelebA in its official layout.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Images;
use super::image_folder::{Found, ImageFolder, Pictures, SkippedPicture, find_pictures};
use super::preparation::{Channels, Crop};
use crate::{FlowError, Result};

/// The folder of the aligned pictures in the official layout.
const PICTURES: &str = "img_align_celeba";

/// The official name of the list of attributes, and that of Kaggle's copy.
const ATTRIBUTES: [&str; 2] = ["list_attr_celeba.txt", "list_attr_celeba.csv"];

/// The names of the list that tells training, validation and test pictures.
const PARTITIONS: [&str; 2] = ["list_eval_partition.txt", "list_eval_partition.csv"];

/// The head of the column of pictures in Kaggle's lists.
const CSV_HEAD: &str = "image_id";

/// CelebA, the faces of celebrities, in its official layout or in Kaggle's.
///
/// ```text
/// folder/
///   img_align_celeba/         000001.jpg ... 202599.jpg, 178x218 pixels
///   list_attr_celeba.txt      40 attributes of each picture (may be missing)
///   list_eval_partition.txt   training, validation or test (may be missing)
/// ```
///
/// Kaggle's copy has the lists as `.csv`, which are read as well where the `.txt` are not there, and
/// its pictures one folder deeper. The lists of boxes and landmarks are of no use here.
///
/// The pictures are cut and reduced as the papers do it: the centre 148x148 of 178x218 pixels
/// ([`Crop::CELEBA`]; the same proportion of a picture of another size), then `size` x `size`. They
/// are decoded, cached and checked as [`ImageFolder`] does it. The lists name `000001.jpg`; a
/// picture belongs to a row if its name without the ending does, so PNG pictures work too.
///
/// CelebA is free for research that is not commercial, under its authors' terms:
/// <https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html>.
///
/// Source: Z. Liu, P. Luo, X. Wang and X. Tang, *Deep Learning Face Attributes in the Wild*,
/// [arXiv:1411.7766](https://arxiv.org/abs/1411.7766).
///
/// ```no_run
/// use burn_flows::data::{CelebA, CelebAPartition};
///
/// # fn main() -> Result<(), burn_flows::FlowError> {
/// let faces = CelebA::new("celeba", 64)
///     .with_partition(CelebAPartition::Train)
///     .with_cache("celeba/cache")
///     .load()?;
/// if let Some(attributes) = &faces.attributes {
///     let (smiling, others) = attributes.divide("Smiling")?;
///     println!("{} of {} smile", smiling.len(), smiling.len() + others.len());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CelebA {
    folder: PathBuf,
    /// Knows the folder of the pictures and how they are decoded.
    pictures: ImageFolder,
    partition: Option<CelebAPartition>,
}

/// What a picture of CelebA is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CelebAPartition {
    /// To train on; 0 in the list.
    Train,
    /// To choose settings by; 1 in the list.
    Validation,
    /// To report; 2 in the list.
    Test,
}

/// The faces that were loaded.
#[derive(Clone, Debug)]
pub struct CelebAFaces {
    /// The faces, `[num_images, channels, size, size]`, without labels.
    pub images: Images,
    /// The file name of each, with the folders in between if the pictures lie deeper.
    pub names: Vec<String>,
    /// The attributes of each, if the folder has the list of them.
    pub attributes: Option<Attributes>,
    /// What each is meant for, if the folder has the list of it.
    pub partitions: Option<Vec<CelebAPartition>>,
    /// The pictures that were left out.
    pub skipped: Vec<SkippedPicture>,
    /// Whether the pixels came from the cache instead of the pictures.
    pub from_cache: bool,
}

/// What each of a number of images has and has not: a table of yes and no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    names: Vec<String>,
    /// Row-major, `[num_images, num_attributes]`.
    values: Vec<bool>,
}

impl CelebA {
    /// The faces below `folder` as colour images of `size` x `size` pixels (32, 64 and 128 are
    /// usual).
    pub fn new(folder: impl Into<PathBuf>, size: usize) -> Self {
        let folder = folder.into();
        let pictures = ImageFolder::new(folder.join(PICTURES), size).with_crop(Crop::CELEBA);
        Self { folder, pictures, partition: None }
    }

    /// The folder of the pictures, below the folder of the data set; `img_align_celeba` by default.
    #[must_use]
    pub fn with_picture_folder(mut self, name: impl AsRef<Path>) -> Self {
        self.pictures.folder = self.folder.join(name);
        self
    }

    /// Whether one of the lists is in `folder`.
    pub fn has_lists(folder: impl AsRef<Path>) -> bool {
        let folder = folder.as_ref();
        ATTRIBUTES.iter().chain(&PARTITIONS).any(|name| folder.join(name).exists())
    }

    /// The part of each picture that is kept; [`Crop::CELEBA`] by default.
    #[must_use]
    pub fn with_crop(mut self, crop: Crop) -> Self {
        self.pictures = self.pictures.with_crop(crop);
        self
    }

    /// Only the pictures of this partition; all by default. Needs `list_eval_partition.txt`.
    #[must_use]
    pub fn with_partition(mut self, partition: CelebAPartition) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Colour or grey; [`Channels::Rgb`] by default.
    #[must_use]
    pub fn with_channels(mut self, channels: Channels) -> Self {
        self.pictures = self.pictures.with_channels(channels);
        self
    }

    /// As [`ImageFolder::with_max_skipped`].
    #[must_use]
    pub fn with_max_skipped(mut self, share: f64) -> Self {
        self.pictures = self.pictures.with_max_skipped(share);
        self
    }

    /// As [`ImageFolder::with_cache`].
    #[must_use]
    pub fn with_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.pictures = self.pictures.with_cache(folder);
        self
    }

    /// Loads the faces and, where they are there, the lists.
    ///
    /// # Errors
    /// - those of [`ImageFolder::load`];
    /// - [`FlowError::Io`] if a list cannot be read, or is missing and a partition is asked for;
    /// - [`FlowError::Format`] if the folder of the pictures is missing, if a list is damaged or does
    ///   not have every picture, or if no picture is in the partition asked for.
    pub fn load(&self) -> Result<CelebAFaces> {
        self.pictures.validate()?;
        self.check_picture_folder()?;
        // The lists before the pictures: reading them takes a moment, decoding may take minutes.
        let attributes = List::read(&self.folder, ATTRIBUTES, parse_attributes)?;
        let partitions = List::read(&self.folder, PARTITIONS, parse_partitions)?;
        let mut found = find_pictures(&self.pictures.folder)?;
        // Damaged pictures too: whether a list belongs to the pictures does not depend on them.
        if let Some(list) = &attributes {
            list.check(&found)?;
        }
        if let Some(list) = &partitions {
            list.check(&found)?;
        }
        if let Some(wanted) = self.partition {
            found = self.only(wanted, partitions.as_ref(), found)?;
        }

        let part = match self.partition {
            None => "",
            Some(CelebAPartition::Train) => "train",
            Some(CelebAPartition::Validation) => "validation",
            Some(CelebAPartition::Test) => "test",
        };
        let Pictures { images, names, skipped, from_cache } =
            self.pictures.load_found(found, part)?;
        let attributes = match attributes {
            Some(list) => {
                let mut values = Vec::with_capacity(names.len() * list.columns.len());
                for name in &names {
                    values.extend_from_slice(list.row(name)?);
                }
                Some(Attributes { names: list.columns, values })
            }
            None => None,
        };
        let partitions = match partitions {
            Some(list) => {
                Some(names.iter().map(|name| list.row(name).copied()).collect::<Result<_>>()?)
            }
            None => None,
        };
        Ok(CelebAFaces { images, names, attributes, partitions, skipped, from_cache })
    }

    fn check_picture_folder(&self) -> Result<()> {
        let metadata = fs::metadata(&self.folder).map_err(|error| {
            FlowError::io("read", &self.folder, error, "pass the folder that holds CelebA")
        })?;
        if metadata.is_dir() && self.pictures.folder.exists() {
            return Ok(());
        }
        if !metadata.is_dir() {
            return Err(FlowError::format(
                &self.folder,
                "a file",
                "the folder that holds CelebA",
                "pass the folder instead of a file",
            ));
        }
        let name = self.pictures.folder.strip_prefix(&self.folder).unwrap_or(&self.pictures.folder);
        Err(FlowError::format(
            &self.folder,
            format!("no folder {}", name.display()),
            "the folder of the pictures",
            "unpack the pictures there, or name their folder",
        ))
    }

    /// The pictures of one partition.
    fn only(
        &self,
        wanted: CelebAPartition,
        partitions: Option<&List<CelebAPartition>>,
        found: Vec<Found>,
    ) -> Result<Vec<Found>> {
        let Some(list) = partitions else {
            return Err(FlowError::io(
                "read",
                &self.folder.join(PARTITIONS[0]),
                io::ErrorKind::NotFound.into(),
                "put the list of the partitions there, or load all pictures",
            ));
        };
        let mut kept = Vec::new();
        for picture in found {
            if *list.row(&picture.name)? == wanted {
                kept.push(picture);
            }
        }
        if kept.is_empty() {
            return Err(FlowError::format(
                &self.pictures.folder,
                format!("no picture of the partition {wanted:?}"),
                "at least one",
                "ask for another partition, or load all pictures",
            ));
        }
        Ok(kept)
    }
}

impl CelebAFaces {
    /// The indices of the images of one partition, if the folder has the list of them.
    pub fn indices(&self, partition: CelebAPartition) -> Option<Vec<usize>> {
        let partitions = self.partitions.as_ref()?;
        Some((0..partitions.len()).filter(|&image| partitions[image] == partition).collect())
    }
}

impl Attributes {
    /// The names of the attributes, in the order of the columns.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What one image has, in the order of [`names`](Self::names).
    ///
    /// # Panics
    /// If there is no such image.
    pub fn of(&self, image: usize) -> &[bool] {
        &self.values[image * self.names.len()..(image + 1) * self.names.len()]
    }

    /// The images that have the attribute `name`, and those that have it not.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if there is no such attribute; the message has the names that are like
    /// it, or all of them if none is.
    pub fn divide(&self, name: &str) -> Result<(Vec<usize>, Vec<usize>)> {
        let column = self.names.iter().position(|known| known == name).ok_or_else(|| {
            let near = self.near(name);
            let needed = match near.is_empty() {
                true => format!("one of {}", self.names.join(", ")),
                false => format!("a name of the list, like {}", near.join(", ")),
            };
            FlowError::invalid(
                "the attribute",
                format!("{name:?}"),
                needed,
                "capitals and underscores count",
            )
        })?;
        let num_images = self.values.len() / self.names.len();
        Ok((0..num_images).partition(|&image| self.of(image)[column]))
    }
}

impl Attributes {
    /// The names that someone who wrote `name` may have meant: the same but for capitals and signs, a
    /// part of it, the same first four letters, or a third of its letters away.
    fn near(&self, name: &str) -> Vec<&str> {
        let letters = |name: &str| -> Vec<char> {
            name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
        };
        let wanted = letters(name);
        let within = |part: &[char], whole: &[char]| {
            part.len() >= 3 && whole.windows(part.len()).any(|window| window == part)
        };
        let is_near = |known: &&str| {
            let known = letters(known);
            within(&wanted, &known)
                || within(&known, &wanted)
                || wanted.len() >= 4 && known.get(..4) == wanted.get(..4)
                || 3 * edit_distance(&wanted, &known) <= wanted.len()
        };
        self.names.iter().map(String::as_str).filter(is_near).collect()
    }
}

/// How many letters have to be put in, taken out or replaced to make `a` into `b`: the distance of
/// Levenshtein.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A list with a row for each picture.
struct List<T> {
    path: PathBuf,
    /// The names of the columns, where the list has them.
    columns: Vec<String>,
    /// By the name of the picture without folders and ending.
    rows: HashMap<String, T>,
}

/// What is wrong with a list: what was got and what was needed.
type Mismatch = (String, String);

/// The rows of a list with the number of their line, and the names of its columns.
type Parsed<T> = Result<(Vec<String>, Vec<(usize, String, T)>), Mismatch>;

impl<T> List<T> {
    /// Reads the first of `names` that is in `folder`; `None` if none is.
    fn read(
        folder: &Path,
        names: [&str; 2],
        parse: impl FnOnce(&str) -> Parsed<T>,
    ) -> Result<Option<Self>> {
        let [official, kaggle] = names.map(|name| folder.join(name));
        let path = if official.exists() { official } else { kaggle };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(FlowError::io(
                    "read",
                    &path,
                    error,
                    "put the published list there, or remove it",
                ));
            }
        };
        let damaged = |(got, needed): Mismatch| {
            FlowError::format(&path, got, needed, "put the published list there, or remove it")
        };
        let (columns, parsed) = parse(&text).map_err(damaged)?;
        let mut rows = HashMap::with_capacity(parsed.len());
        for (line, name, row) in parsed {
            if rows.insert(stem(&name).to_string(), row).is_some() {
                return Err(damaged((
                    format!("a second row for {name} in line {line}"),
                    "one row for each picture".into(),
                )));
            }
        }
        Ok(Some(Self { path, columns, rows }))
    }

    fn row(&self, picture: &str) -> Result<&T> {
        self.rows.get(stem(picture)).ok_or_else(|| {
            FlowError::format(
                &self.path,
                format!("no row for {picture}"),
                "a row for each picture",
                "take list and pictures from the same data set, or remove the list",
            )
        })
    }

    fn check(&self, found: &[Found]) -> Result<()> {
        found.iter().try_for_each(|picture| self.row(&picture.name).map(drop))
    }
}

/// The name of a picture without folders and ending.
fn stem(name: &str) -> &str {
    let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// The lines that are not blank, with their numbers, counted from 1.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.trim_start_matches('\u{feff}')
        .lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line))
        .filter(|(_, line)| !line.trim().is_empty())
}

/// What stands between the fields of a list.
#[derive(Clone, Copy, PartialEq)]
enum Separator {
    /// In the authors' lists.
    Blanks,
    /// In Kaggle's.
    Comma,
}

impl Separator {
    /// That of the list with this first line: Kaggle's have heads of columns.
    fn of(first: &str) -> Self {
        match Self::Comma.fields(first).first() {
            Some(&CSV_HEAD) => Self::Comma,
            _ => Self::Blanks,
        }
    }

    fn fields(self, line: &str) -> Vec<&str> {
        match self {
            Self::Blanks => line.split_whitespace().collect(),
            Self::Comma => line.split(',').map(str::trim).collect(),
        }
    }
}

/// The number of rows, the names of the attributes, then a picture and its values in each row. In
/// Kaggle's list the names alone, as heads of columns.
fn parse_attributes(text: &str) -> Parsed<Vec<bool>> {
    let mut lines = lines(text);
    let first = lines.next().map_or("", |(_, line)| line.trim());
    let separator = Separator::of(first);
    let names = |fields: &[&str]| fields.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    let (num_rows, columns) = match separator {
        Separator::Comma => (None, names(&separator.fields(first)[1..])),
        Separator::Blanks => {
            let num_rows: usize = first.parse().map_err(|_| {
                (format!("the first line {:?}", cut(first)), "the number of rows".to_string())
            })?;
            let second = lines.next().map_or("", |(_, line)| line);
            (Some(num_rows), names(&separator.fields(second)))
        }
    };
    if columns.is_empty() {
        let missing = if num_rows.is_some() { "no second line" } else { "one column" };
        return Err((missing.into(), "the names of the attributes".into()));
    }

    let mut rows = Vec::new();
    for (at, line) in lines {
        let mut fields = separator.fields(line).into_iter();
        let name = fields.next().unwrap_or_default().to_string();
        let values = fields
            .map(|field| match field {
                "1" => Ok(true),
                "-1" => Ok(false),
                _ => {
                    Err((format!("the value {:?} in line {at}", cut(field)), "1 or -1".to_string()))
                }
            })
            .collect::<Result<Vec<bool>, Mismatch>>()?;
        if values.len() != columns.len() {
            return Err((
                format!("{} values in line {at}", values.len()),
                format!("{}, one for each attribute", columns.len()),
            ));
        }
        rows.push((at, name, values));
    }
    if let Some(num_rows) = num_rows
        && rows.len() != num_rows
    {
        return Err((
            format!("{} rows", rows.len()),
            format!("{num_rows}, as the first line says"),
        ));
    }
    Ok((columns, rows))
}

/// A picture and 0, 1 or 2 in each row; in Kaggle's list below the heads of these columns.
fn parse_partitions(text: &str) -> Parsed<CelebAPartition> {
    let separator = Separator::of(lines(text).next().map_or("", |(_, line)| line));
    let rows = lines(text)
        .skip(usize::from(separator == Separator::Comma))
        .map(|(at, line)| {
            let fields = separator.fields(line);
            let partition = match fields.as_slice() {
                [_, "0"] => CelebAPartition::Train,
                [_, "1"] => CelebAPartition::Validation,
                [_, "2"] => CelebAPartition::Test,
                _ => {
                    return Err((
                        format!("{:?} in line {at}", cut(line)),
                        "a picture and then 0, 1 or 2".to_string(),
                    ));
                }
            };
            Ok((at, fields[0].to_string(), partition))
        })
        .collect::<Result<_, Mismatch>>()?;
    Ok((Vec::new(), rows))
}

/// The start of a text that may be a whole file.
fn cut(text: &str) -> &str {
    const LONGEST: usize = 40;
    text.char_indices().nth(LONGEST).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};
    use tempfile::TempDir;

    use super::super::picture::tests::{jpeg, png, testdata};
    use super::*;

    const ATTRIBUTE_LIST: &str = "4\r\n\
        Bald Smiling Young \r\n\
        000001.jpg -1  1  1\r\n\
        000002.jpg  1 -1 -1\r\n\
        000003.jpg -1 -1  1\r\n\
        000004.jpg  1  1 -1\r\n";

    const PARTITION_LIST: &str = "000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n000004.jpg 0\n";

    /// Four pictures of one grey each, without the lists.
    fn pictures_only() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(PICTURES)).unwrap();
        for number in 1..=4_u8 {
            let picture = jpeg(&RgbImage::from_pixel(178, 218, Rgb([number * 50; 3])));
            fs::write(folder.path().join(PICTURES).join(format!("00000{number}.jpg")), picture)
                .unwrap();
        }
        folder
    }

    fn with_lists(attributes: &str, partitions: &str) -> TempDir {
        let folder = pictures_only();
        fs::write(folder.path().join(ATTRIBUTES[0]), attributes).unwrap();
        fs::write(folder.path().join(PARTITIONS[0]), partitions).unwrap();
        folder
    }

    fn load(folder: &TempDir) -> CelebAFaces {
        CelebA::new(folder.path(), 32).load().unwrap()
    }

    /// The error of loading, with the folder's path written as `DIR`.
    fn error_of(celeba: &CelebA) -> String {
        celeba.load().unwrap_err().to_string().replace(&celeba.folder.display().to_string(), "DIR")
    }

    fn error(folder: &TempDir) -> String {
        error_of(&CelebA::new(folder.path(), 32))
    }

    #[test]
    fn names_that_may_be_meant() {
        let names =
            ["5_o_Clock_Shadow", "Black_Hair", "Eyeglasses", "Male", "Smiling", "Wavy_Hair"];
        let attributes =
            Attributes { names: names.map(String::from).to_vec(), values: vec![true; names.len()] };
        for (wanted, near) in [
            ("smile", vec!["Smiling"]),
            ("Smilng", vec!["Smiling"]),
            ("hair", vec!["Black_Hair", "Wavy_Hair"]),
            ("black hair", vec!["Black_Hair"]),
            ("Eye_Glases", vec!["Eyeglasses"]),
            ("Female", vec!["Male"]),
            ("5 o'clock shadow", vec!["5_o_Clock_Shadow"]),
            ("Young", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(attributes.near(wanted), near, "{wanted}");
        }
        let letters = |text: &str| text.chars().collect::<Vec<_>>();
        for (a, b, distance) in [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0)] {
            assert_eq!(edit_distance(&letters(a), &letters(b)), distance, "{a} {b}");
            assert_eq!(edit_distance(&letters(b), &letters(a)), distance, "{b} {a}");
        }
    }

    #[test]
    fn loads_pictures_and_lists() {
        let folder = with_lists(ATTRIBUTE_LIST, PARTITION_LIST);
        let faces = load(&folder);
        assert_eq!(faces.images.shape(), [4, 3, 32, 32]);
        assert_eq!(faces.names, ["000001.jpg", "000002.jpg", "000003.jpg", "000004.jpg"]);
        assert_eq!(faces.images.image(2)[0], 150);
        assert_eq!(faces.skipped, []);
        assert_eq!(faces.indices(CelebAPartition::Train), Some(vec![0, 3]));
        assert_eq!(faces.indices(CelebAPartition::Validation), Some(vec![1]));
        assert_eq!(faces.indices(CelebAPartition::Test), Some(vec![2]));

        let attributes = faces.attributes.unwrap();
        assert_eq!(attributes.names(), ["Bald", "Smiling", "Young"]);
        assert_eq!(attributes.of(1), [true, false, false]);
        assert_eq!(attributes.divide("Smiling").unwrap(), (vec![0, 3], vec![1, 2]));
        assert_eq!(
            attributes.divide("smiling").unwrap_err().to_string(),
            "the attribute: got \"smiling\", needs a name of the list, like Smiling; \
             capitals and underscores count"
        );
        assert_eq!(
            attributes.divide("Hat").unwrap_err().to_string(),
            "the attribute: got \"Hat\", needs one of Bald, Smiling, Young; \
             capitals and underscores count"
        );
    }

    /// The lists as Kaggle has them, of the same content.
    fn as_kaggle(attributes: &str, partitions: &str) -> TempDir {
        let folder = pictures_only();
        fs::write(folder.path().join(ATTRIBUTES[1]), attributes).unwrap();
        fs::write(folder.path().join(PARTITIONS[1]), partitions).unwrap();
        // And its pictures one folder deeper.
        let (outer, between) = (folder.path().join(PICTURES), folder.path().join("between"));
        fs::rename(&outer, &between).unwrap();
        fs::create_dir(&outer).unwrap();
        fs::rename(between, outer.join(PICTURES)).unwrap();
        folder
    }

    /// The lines of a list with commas between the fields, under `head`.
    fn csv(head: &str, list: &str, above: usize) -> String {
        let rows = list
            .lines()
            .skip(above)
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(",") + "\r\n");
        format!("{head}\r\n{}", rows.collect::<String>())
    }

    #[test]
    fn kaggles_lists_are_those_of_the_authors() {
        let official = load(&with_lists(ATTRIBUTE_LIST, PARTITION_LIST));
        let attributes = csv("image_id,Bald,Smiling,Young", ATTRIBUTE_LIST, 2);
        let partitions = csv("image_id,partition", PARTITION_LIST, 0);
        for mark in ["", "\u{feff}"] {
            let folder = as_kaggle(&format!("{mark}{attributes}"), &format!("{mark}{partitions}"));
            assert!(CelebA::has_lists(folder.path()));
            let faces = load(&folder);
            assert_eq!(faces.names[1], "img_align_celeba/000002.jpg");
            assert_eq!(faces.attributes, official.attributes);
            assert_eq!(faces.partitions, official.partitions);
            assert_eq!(faces.images.pixels(), official.images.pixels());
            let test = CelebA::new(folder.path(), 32).with_partition(CelebAPartition::Test);
            assert_eq!(test.load().unwrap().names, ["img_align_celeba/000003.jpg"]);
        }
        assert!(!CelebA::has_lists(pictures_only().path()));
    }

    #[test]
    fn damaged_lists_of_kaggle() {
        let attributes = csv("image_id,Bald,Smiling,Young", ATTRIBUTE_LIST, 2);
        let partitions = csv("image_id,partition", PARTITION_LIST, 0);
        let message =
            |attributes: &str, partitions: &str| error(&as_kaggle(attributes, partitions));
        let text = message("image_id\n000001.jpg\n", &partitions);
        assert!(text.starts_with("DIR/list_attr_celeba.csv: one column, expected the"), "{text}");
        let text = message(&attributes.replace(",-1,1,1", ",-1,1"), &partitions);
        assert!(text.starts_with("DIR/list_attr_celeba.csv: 2 values in line 2, exp"), "{text}");
        let text = message(&attributes, &partitions.replace(",2", ",3"));
        assert!(text.contains("list_eval_partition.csv: \"000003.jpg,3\" in line 4"), "{text}");
        let text = message(&attributes, &partitions.replace("000003.jpg,2\r\n", ""));
        assert!(text.contains("list_eval_partition.csv: no row for img_align_celeba/"), "{text}");
    }

    #[test]
    fn lists_are_optional() {
        let faces = load(&pictures_only());
        assert_eq!(faces.images.len(), 4);
        assert_eq!(faces.attributes, None);
        assert_eq!(faces.partitions, None);
        assert_eq!(faces.indices(CelebAPartition::Train), None);
    }

    #[test]
    fn one_partition() {
        let folder = with_lists(ATTRIBUTE_LIST, PARTITION_LIST);
        let of = |partition| CelebA::new(folder.path(), 32).with_partition(partition);
        let faces = of(CelebAPartition::Train).load().unwrap();
        assert_eq!(faces.names, ["000001.jpg", "000004.jpg"]);
        assert_eq!(faces.attributes.unwrap().of(1), [true, true, false]);
        assert_eq!(faces.partitions.unwrap(), [CelebAPartition::Train; 2]);

        let folder =
            with_lists(ATTRIBUTE_LIST, "000001.jpg 0\n000002.jpg 0\n000003.jpg 0\n000004.jpg 0\n");
        assert_eq!(
            error_of(&CelebA::new(folder.path(), 32).with_partition(CelebAPartition::Test)),
            "DIR/img_align_celeba: no picture of the partition Test, expected at least one; \
             ask for another partition, or load all pictures"
        );
        fs::remove_file(folder.path().join(PARTITIONS[0])).unwrap();
        assert_eq!(
            error_of(&CelebA::new(folder.path(), 32).with_partition(CelebAPartition::Test)),
            "cannot read DIR/list_eval_partition.txt: entity not found; \
             put the list of the partitions there, or load all pictures"
        );
    }

    #[test]
    fn partitions_keep_their_caches() {
        let folder = with_lists(ATTRIBUTE_LIST, PARTITION_LIST);
        let cache = tempfile::tempdir().unwrap();
        let of = |partition| {
            let celeba = CelebA::new(folder.path(), 32).with_cache(cache.path());
            celeba.with_partition(partition).load().unwrap()
        };
        for expected in [false, true] {
            for partition in [CelebAPartition::Train, CelebAPartition::Test] {
                let faces = of(partition);
                assert_eq!(faces.from_cache, expected, "{partition:?}");
                assert_eq!(faces.partitions.unwrap()[0], partition);
            }
        }
    }

    #[test]
    fn the_crop_is_that_of_the_papers() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("mine")).unwrap();
        fs::copy(testdata("full.jpg"), folder.path().join("mine/1.jpg")).unwrap();
        let faces = CelebA::new(folder.path(), 32).with_picture_folder("mine").load().unwrap();
        let expected = image::open(testdata("full_32.png")).unwrap().into_rgb8();
        for (place, pixel) in expected.pixels().enumerate() {
            for (channel, value) in pixel.0.iter().enumerate() {
                let ours = faces.images.image(0)[channel * 32 * 32 + place];
                assert!(ours.abs_diff(*value) <= 4, "{ours} {value}");
            }
        }
    }

    #[test]
    fn deeper_folders_and_png_pictures_find_their_rows() {
        let folder = with_lists(ATTRIBUTE_LIST, PARTITION_LIST);
        let inner = folder.path().join(PICTURES).join(PICTURES);
        fs::create_dir(&inner).unwrap();
        let old = folder.path().join(PICTURES).join("000002.jpg");
        fs::remove_file(old).unwrap();
        fs::write(inner.join("000002.png"), png(&RgbImage::new(178, 218))).unwrap();
        let faces = load(&folder);
        assert_eq!(faces.names[3], "img_align_celeba/000002.png");
        assert_eq!(faces.attributes.unwrap().of(3), [true, false, false]);
    }

    #[test]
    fn damaged_pictures_leave_the_others_with_their_rows() {
        let folder = with_lists(ATTRIBUTE_LIST, PARTITION_LIST);
        fs::write(folder.path().join(PICTURES).join("000002.jpg"), "").unwrap();
        let celeba = CelebA::new(folder.path(), 32).with_max_skipped(0.25);
        let cache = tempfile::tempdir().unwrap();
        let celeba = celeba.with_cache(cache.path());
        for from_cache in [false, true] {
            let faces = celeba.load().unwrap();
            assert_eq!(faces.from_cache, from_cache);
            assert_eq!(faces.names, ["000001.jpg", "000003.jpg", "000004.jpg"]);
            assert_eq!(faces.skipped[0].name, "000002.jpg");
            assert_eq!(faces.attributes.unwrap().of(1), [false, false, true]);
            assert_eq!(faces.partitions.unwrap()[1], CelebAPartition::Test);
        }
        assert!(error(&folder).contains("1 of 4 pictures cannot be used (000002.jpg: an empty"));
    }

    #[test]
    fn missing_folders() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            error(&folder),
            "DIR: no folder img_align_celeba, expected the folder of the pictures; \
             unpack the pictures there, or name their folder"
        );
        assert_eq!(
            error_of(&CelebA::new(folder.path(), 32).with_picture_folder("other")),
            "DIR: no folder other, expected the folder of the pictures; \
             unpack the pictures there, or name their folder"
        );
        assert_eq!(
            error_of(&CelebA::new(folder.path().join("missing"), 32)),
            "cannot read DIR: No such file or directory (os error 2); \
             pass the folder that holds CelebA"
        );
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(
            error_of(&CelebA::new(file, 32)),
            "DIR: a file, expected the folder that holds CelebA; \
             pass the folder instead of a file"
        );
        assert!(error_of(&CelebA::new(folder.path(), 0)).starts_with("ImageFolder: size is 0"));
    }

    #[test]
    fn damaged_attribute_lists() {
        let message = |attributes: &str| {
            let text = error(&with_lists(attributes, PARTITION_LIST));
            let (file, text) = text.split_once(": ").unwrap();
            assert_eq!(file, "DIR/list_attr_celeba.txt");
            let advice = "; put the published list there, or remove it";
            text.strip_suffix(advice).unwrap_or_else(|| panic!("{text}")).to_string()
        };
        assert_eq!(message(""), "the first line \"\", expected the number of rows");
        assert_eq!(
            message("photo,5_o_Clock_Shadow,Arched_Eyebrows,Attractive,Bags_Under_Eyes\n"),
            "the first line \"photo,5_o_Clock_Shadow,Arched_Eyebrows,A\", \
             expected the number of rows"
        );
        assert_eq!(message("4\n"), "no second line, expected the names of the attributes");
        assert_eq!(
            message(&ATTRIBUTE_LIST.replace("4\r\nBald", "5\r\nBald")),
            "4 rows, expected 5, as the first line says"
        );
        assert_eq!(
            message(&ATTRIBUTE_LIST.replace("-1  1  1", "-1  1")),
            "2 values in line 3, expected 3, one for each attribute"
        );
        assert_eq!(
            message(&ATTRIBUTE_LIST.replace(" 1 -1 -1", " 1 -1 0")),
            "the value \"0\" in line 4, expected 1 or -1"
        );
        assert_eq!(
            message(&ATTRIBUTE_LIST.replace("000004", "000001")),
            "a second row for 000001.jpg in line 6, expected one row for each picture"
        );
    }

    #[test]
    fn damaged_partition_lists() {
        for row in ["000003.jpg 3", "000003.jpg", "000003.jpg 1 1", "000003.jpg,2"] {
            let folder = with_lists(ATTRIBUTE_LIST, &PARTITION_LIST.replace("000003.jpg 2", row));
            assert_eq!(
                error(&folder),
                format!(
                    "DIR/list_eval_partition.txt: {row:?} in line 3, expected a picture and then \
                     0, 1 or 2; put the published list there, or remove it"
                )
            );
        }
        // Cut in the middle of a character of several bytes.
        let folder = with_lists(ATTRIBUTE_LIST, &"é".repeat(100));
        assert!(error(&folder).contains(&format!("{:?} in line 1", "é".repeat(40))));
    }

    #[test]
    fn a_list_that_lacks_a_picture() {
        let folder = with_lists(ATTRIBUTE_LIST, "000001.jpg 0\n000003.jpg 0\n000004.jpg 0\n");
        assert_eq!(
            error(&folder),
            "DIR/list_eval_partition.txt: no row for 000002.jpg, expected a row for each picture; \
             take list and pictures from the same data set, or remove the list"
        );
    }

    #[test]
    fn a_list_that_is_no_text() {
        let folder = with_lists(ATTRIBUTE_LIST, PARTITION_LIST);
        fs::write(folder.path().join(PARTITIONS[0]), [0xff, 0xfe, 0x00]).unwrap();
        assert_eq!(
            error(&folder),
            "cannot read DIR/list_eval_partition.txt: stream did not contain valid UTF-8; \
             put the published list there, or remove it"
        );
    }
}
