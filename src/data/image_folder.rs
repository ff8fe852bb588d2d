//! A folder of pictures.

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rayon::prelude::*;

use super::cache::{Cache, Decoded};
use super::images::{Images, remove_chunks};
use super::outputs::outputs;
use super::picture::{self, Treatment, Unusable};
use super::preparation::{Channels, Crop};
use crate::{FlowError, Result};

/// Names that end so are pictures; case makes no difference.
const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

/// The share of damaged pictures up to which they are only left out.
const MAX_SKIPPED: f64 = 0.01;

/// How many damaged pictures an error names.
const NAMED: usize = 5;

/// A folder of JPEG and PNG pictures, loaded as equally sized square [`Images`].
///
/// Every file that ends in `.jpg`, `.jpeg` or `.png` (in any case) counts, in the folder and in all
/// folders below it, in the order of the names; symbolic links are followed, and a folder that was
/// seen already is not entered again. Other files, names that start with a dot, and pictures noted as
/// outputs of a program ([`note_output`](super::note_output)) are passed over.
///
/// Each picture is decoded by what it holds and not by its name, turned upright by its EXIF
/// orientation, laid over white where it is transparent, converted to the [`Channels`] asked for,
/// cut by its [`Crop`] and reduced with antialiased bilinear resampling, as Pillow and torchvision
/// do it (within one grey level). The work is spread over all cores.
///
/// A picture that is damaged or cannot be read is left out and reported in [`Pictures::skipped`];
/// more than 1 % of them ([`with_max_skipped`](Self::with_max_skipped)) are an error.
///
/// ```no_run
/// use burn_flows::data::ImageFolder;
///
/// # fn main() -> Result<(), burn_flows::FlowError> {
/// let pictures = ImageFolder::new("pictures", 64).with_cache("cache").load()?;
/// println!("{:?}", pictures.images.shape());
/// for picture in &pictures.skipped {
///     eprintln!("left out {}: {}", picture.name, picture.reason);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ImageFolder {
    pub(super) folder: PathBuf,
    treatment: Treatment,
    max_skipped: f64,
    cache: Option<PathBuf>,
}

/// The pictures of a folder, decoded.
#[derive(Clone, Debug)]
pub struct Pictures {
    /// The pictures that could be used, `[num_images, channels, size, size]`, without labels.
    pub images: Images,
    /// The name of each: its path below the folder, with `/` between the parts.
    pub names: Vec<String>,
    /// The pictures that were left out.
    pub skipped: Vec<SkippedPicture>,
    /// Whether the pixels came from the cache instead of the pictures.
    pub from_cache: bool,
}

/// A picture that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedPicture {
    /// Its path below the folder, with `/` between the parts.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// A picture that was found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Its path below the folder, with `/` between the parts.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl ImageFolder {
    /// The pictures below `folder` as colour images of `size` x `size` pixels, each the largest
    /// square in the centre of its picture.
    pub fn new(folder: impl Into<PathBuf>, size: usize) -> Self {
        Self {
            folder: folder.into(),
            treatment: Treatment { crop: Crop::default(), size, channels: Channels::default() },
            max_skipped: MAX_SKIPPED,
            cache: None,
        }
    }

    /// The part of each picture that is kept; [`Crop::Square`] by default.
    #[must_use]
    pub fn with_crop(mut self, crop: Crop) -> Self {
        self.treatment.crop = crop;
        self
    }

    /// Colour or grey; [`Channels::Rgb`] by default.
    #[must_use]
    pub fn with_channels(mut self, channels: Channels) -> Self {
        self.treatment.channels = channels;
        self
    }

    /// The share of pictures, 0 to 1, that may be left out before it is an error; 0.01 by default.
    #[must_use]
    pub fn with_max_skipped(mut self, share: f64) -> Self {
        self.max_skipped = share;
        self
    }

    /// A folder to keep the decoded pictures in, so that the next load only reads one file; none by
    /// default. It is made if it is not there.
    ///
    /// The file is keyed by the folder, the options and the name, size and time of change of every
    /// picture: if any of them changes, the pictures are decoded again. It is written under another
    /// name and then renamed, and checked when it is read, so an interruption does no harm. The
    /// pixels are the only thing in it; delete it at any time.
    #[must_use]
    pub fn with_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }

    /// Loads the pictures.
    ///
    /// All of them are held in memory at a byte a value: 200,000 of 64x64 pixels in colour take
    /// 2.5 GB.
    ///
    /// # Errors
    /// - [`FlowError::Config`] if the size is 0 or above 4096, the crop is larger than the picture it
    ///   is meant for, or the share is not in 0 to 1;
    /// - [`FlowError::Io`] if the folder or one below it cannot be read, or the cache not be written;
    /// - [`FlowError::Format`] if the folder is a file, holds no picture, or if too many of them had
    ///   to be left out.
    pub fn load(&self) -> Result<Pictures> {
        self.validate()?;
        self.load_found(find_pictures(&self.folder)?, "")
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.treatment.validate()?;
        if !(0.0..=1.0).contains(&self.max_skipped) {
            return Err(FlowError::config(
                "ImageFolder",
                "max_skipped",
                self.max_skipped,
                "a share of 0 to 1",
                "0.01 allows one picture of a hundred to be damaged",
            ));
        }
        Ok(())
    }

    /// Loads these pictures of the folder: `part` names what they are of all, so that the caches of two
    /// parts do not displace each other.
    pub(super) fn load_found(&self, found: Vec<Found>, part: &str) -> Result<Pictures> {
        if found.is_empty() {
            return Err(FlowError::format(
                &self.folder,
                "a folder without pictures",
                "files that end in .jpg, .jpeg or .png",
                "pass the folder that holds the pictures, or one above it",
            ));
        }
        let cache = match &self.cache {
            Some(folder) => {
                Some((Cache::new(folder, self.cache_name(part))?, self.cache_key(&found)))
            }
            None => None,
        };
        let cached = cache
            .as_ref()
            .and_then(|(file, key)| file.read(*key, found.len(), self.treatment.len()));
        let from_cache = cached.is_some();
        let decoded = match cached {
            Some(decoded) => {
                self.check_skipped(&found, &decoded.skipped)?;
                decoded
            }
            None => {
                let (decoded, all_read) = self.decode(&found)?;
                self.check_skipped(&found, &decoded.skipped)?;
                // A picture that could not be read may be readable the next time.
                if let Some((file, key)) = cache.filter(|_| all_read) {
                    file.write(key, &decoded)?;
                }
                decoded
            }
        };

        let mut names: Vec<String> = found.into_iter().map(|picture| picture.name).collect();
        // From the last to the first, so that the places before stay what they are.
        let mut skipped: Vec<SkippedPicture> = decoded
            .skipped
            .into_iter()
            .rev()
            .map(|(place, reason)| SkippedPicture { name: names.remove(place), reason })
            .collect();
        skipped.reverse();

        let Treatment { size, channels, .. } = self.treatment;
        let images =
            Images::new(decoded.pixels, [names.len(), channels.count(), size, size], None)?;
        Ok(Pictures { images, names, skipped, from_cache })
    }

    /// Decodes all pictures; also whether every one could at least be read.
    fn decode(&self, found: &[Found]) -> Result<(Decoded, bool)> {
        let len = self.treatment.len();
        let Some(total) = found.len().checked_mul(len) else {
            return Err(FlowError::invalid(
                "ImageFolder: the pixels of all pictures",
                format!("{} pictures of {len} values", found.len()),
                "what memory can hold",
                "use a smaller size",
            ));
        };
        let mut pixels = vec![0; total];
        let unusable: Vec<(usize, Unusable)> = pixels
            .par_chunks_exact_mut(len)
            .zip(found)
            .enumerate()
            .filter_map(|(place, (pixels, picture))| {
                let result = picture::load(&picture.path, self.treatment, pixels);
                result.err().map(|unusable| (place, unusable))
            })
            .collect();
        remove_chunks(&mut pixels, len, unusable.iter().map(|(place, _)| *place));
        let all_read = !unusable.iter().any(|(_, unusable)| unusable.unread);
        let skipped =
            unusable.into_iter().map(|(place, unusable)| (place, unusable.reason)).collect();
        Ok((Decoded { skipped, pixels }, all_read))
    }

    fn check_skipped(&self, found: &[Found], skipped: &[(usize, String)]) -> Result<()> {
        let share = skipped.len() as f64 / found.len() as f64;
        if skipped.is_empty() || share <= self.max_skipped && skipped.len() < found.len() {
            return Ok(());
        }
        let mut list: Vec<String> = skipped
            .iter()
            .take(NAMED)
            .map(|(place, reason)| format!("{}: {reason}", found[*place].name))
            .collect();
        if skipped.len() > NAMED {
            list.push(format!("and {} more", skipped.len() - NAMED));
        }
        Err(FlowError::format(
            &self.folder,
            format!(
                "{} of {} pictures cannot be used ({})",
                skipped.len(),
                found.len(),
                list.join("; ")
            ),
            format!("at most {} % and not all", self.max_skipped * 100.0),
            "replace or remove them",
        ))
    }

    /// One cache file for each folder, treatment and part.
    fn cache_name(&self, part: &str) -> String {
        let folder = fs::canonicalize(&self.folder).unwrap_or_else(|_| self.folder.clone());
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        // Only what is safe in a file name everywhere; the hash tells the rest apart.
        let name: String =
            name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect();
        let mut hasher = DefaultHasher::new();
        (&folder, self.treatment, part).hash(&mut hasher);
        format!("{name}-{}-{:016x}.pixels", self.treatment.size, hasher.finish())
    }

    /// A hash of everything that the pixels depend on.
    fn cache_key(&self, found: &[Found]) -> u64 {
        let mut hasher = DefaultHasher::new();
        // Another version may decode otherwise.
        (env!("CARGO_PKG_VERSION"), self.treatment, found.len()).hash(&mut hasher);
        for picture in found {
            let metadata = fs::metadata(&picture.path).ok();
            let modified = metadata
                .as_ref()
                .and_then(|metadata| metadata.modified().ok())
                .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
            (&picture.name, metadata.map(|metadata| metadata.len()), modified).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// The pictures below `folder`, in the order of their names.
pub(super) fn find_pictures(folder: &Path) -> Result<Vec<Found>> {
    let metadata = fs::metadata(folder).map_err(|error| unreadable(folder, error))?;
    if !metadata.is_dir() {
        return Err(FlowError::format(
            folder,
            "a file",
            "a folder of pictures",
            "pass the folder instead of a file",
        ));
    }
    let mut found = Vec::new();
    let mut has_outputs = false;
    let mut entered = HashSet::new();
    // Folders still to enter, with their names below `folder`.
    let mut waiting = vec![(folder.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = waiting.pop() {
        let real = fs::canonicalize(&folder).map_err(|error| unreadable(&folder, error))?;
        if !entered.insert(real) {
            continue;
        }
        let outputs = outputs(&folder);
        for entry in fs::read_dir(&folder).map_err(|error| unreadable(&folder, error))? {
            let entry = entry.map_err(|error| unreadable(&folder, error))?;
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            if outputs.contains(&*name) {
                has_outputs = true;
                continue;
            }
            // Follows links. A link to nothing or to itself has no metadata: as a picture it is one
            // that cannot be read, and reported as that.
            let is_folder = fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            let name = format!("{prefix}{name}");
            if is_folder {
                waiting.push((path, name + "/"));
            } else if is_picture(&path) {
                found.push(Found { name, path });
            }
        }
    }
    if found.is_empty() && has_outputs {
        return Err(FlowError::format(
            folder,
            "a folder without pictures but outputs of a program, listed in .burn-flows",
            "files that end in .jpg, .jpeg or .png",
            "pass the folder that holds the pictures, or delete that list to use outputs as data",
        ));
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name).then_with(|| a.path.cmp(&b.path)));
    Ok(found)
}

fn is_picture(path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|extension| {
        EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
    })
}

fn unreadable(folder: &Path, error: io::Error) -> FlowError {
    FlowError::io("read", folder, error, "pass a folder of pictures that can be read")
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use tempfile::TempDir;

    use super::super::picture::tests::{jpeg, png, quarters, testdata};
    use super::*;

    /// A PNG picture of one grey.
    fn grey(value: u8) -> Vec<u8> {
        png(&RgbImage::from_pixel(4, 4, image::Rgb([value; 3])))
    }

    /// A folder of pictures, each of one grey: its place in the list.
    fn folder_of(num_pictures: u8) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for value in 0..num_pictures {
            fs::write(folder.path().join(format!("{value:03}.png")), grey(value)).unwrap();
        }
        folder
    }

    fn load(folder: &TempDir) -> Pictures {
        loader(folder).load().unwrap()
    }

    fn loader(folder: &TempDir) -> ImageFolder {
        ImageFolder::new(folder.path(), 2).with_channels(Channels::Grey)
    }

    /// The first value of each image: in [`folder_of`], the place of its picture.
    fn values(pictures: &Pictures) -> Vec<u8> {
        (0..pictures.images.len()).map(|index| pictures.images.image(index)[0]).collect()
    }

    /// The error of loading, with the folder's path written as `DIR`.
    fn error(loader: &ImageFolder) -> String {
        let error = loader.load().unwrap_err();
        error.to_string().replace(&loader.folder.display().to_string(), "DIR")
    }

    #[test]
    fn loads_nested_pictures_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        put("b/2.png", &grey(2));
        put("b/deep/er/1.PNG", &grey(1));
        put("a.jpeg", &jpeg(&RgbImage::from_pixel(8, 8, image::Rgb([77; 3]))));
        put("c.Jpg", &grey(3)); // a PNG picture by what it holds
        // None of these is a picture.
        for name in ["notes.txt", "jpg", "b/._2.png", ".hidden/4.png", "Thumbs.db", "x.jpg.part"] {
            put(name, b"text");
        }
        let pictures = load(&folder);
        assert_eq!(pictures.names, ["a.jpeg", "b/2.png", "b/deep/er/1.PNG", "c.Jpg"]);
        assert_eq!(values(&pictures), [77, 2, 1, 3]);
        assert_eq!(pictures.images.shape(), [4, 1, 2, 2]);
        assert_eq!(pictures.skipped, []);
        assert!(!pictures.from_cache);
    }

    #[test]
    fn outputs_are_no_data() {
        use super::super::note_output;

        let folder = folder_of(3);
        let path = |name: &str| folder.path().join(name);
        for name in ["samples.png", "run/samples.png", "run/003.png"] {
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            fs::write(path(name), grey(9)).unwrap();
        }
        // Noted twice, and after a line that was cut off.
        note_output(path("samples.png")).unwrap();
        note_output(path("samples.png")).unwrap();
        fs::write(path("run/.burn-flows"), "curve.png\nsam").unwrap();
        note_output(path("run/samples.png")).unwrap();
        assert_eq!(load(&folder).names, ["000.png", "001.png", "002.png", "run/003.png"]);
        assert_eq!(fs::read_to_string(path(".burn-flows")).unwrap(), "samples.png\n");

        // Where there is nothing else, it says why there is nothing.
        let only = ImageFolder::new(path("run"), 2);
        note_output(path("run/003.png")).unwrap();
        assert_eq!(
            error(&only),
            "DIR: a folder without pictures but outputs of a program, listed in .burn-flows, expected \
             files that end in .jpg, .jpeg or .png; pass the folder that holds the pictures, or delete \
             that list to use outputs as data"
        );
    }

    #[test]
    fn options_reach_the_pictures() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("wide.png"), png(&quarters(8, 4))).unwrap();
        let wide = |crop| {
            let loader = ImageFolder::new(folder.path(), 4).with_crop(crop);
            loader.load().unwrap().images
        };
        let square = wide(Crop::Square);
        assert_eq!(square.shape(), [1, 3, 4, 4]);
        // Red: two columns of the left half are kept of the square, two columns are green.
        assert_eq!(square.image(0)[..4], [255, 255, 0, 0]);
        let centre = Crop::Proportion { side: 2, width: 8, height: 4 };
        assert_ne!(wide(centre), square);
    }

    #[test]
    fn many_pictures_stay_in_order() {
        let pictures = load(&folder_of(250));
        assert_eq!(values(&pictures), (0..250).collect::<Vec<u8>>());
    }

    /// 250 pictures of which these are replaced by `bytes`.
    fn damaged(places: &[u8], bytes: &[u8]) -> TempDir {
        let folder = folder_of(250);
        for place in places {
            fs::write(folder.path().join(format!("{place:03}.png")), bytes).unwrap();
        }
        folder
    }

    #[test]
    fn damaged_pictures_are_left_out_and_named() {
        let folder = damaged(&[0, 100], &grey(9)[..50]);
        fs::write(folder.path().join("100.png"), "").unwrap();
        let pictures = load(&folder);
        assert_eq!(pictures.images.len(), 248);
        assert_eq!(pictures.names.len(), 248);
        let expected: Vec<u8> = (0..250).filter(|value| ![0, 100].contains(value)).collect();
        assert_eq!(values(&pictures), expected);
        assert_eq!(pictures.names[98], "099.png");
        assert_eq!(pictures.names[99], "101.png");
        let skipped: Vec<(&str, &str)> =
            pictures.skipped.iter().map(|p| (p.name.as_str(), p.reason.as_str())).collect();
        assert_eq!(skipped, [("000.png", "unexpected end of file"), ("100.png", "an empty file")]);
    }

    #[test]
    fn more_than_one_percent_damaged_is_an_error() {
        let folder = damaged(&[0, 1, 2], b"text");
        assert_eq!(
            error(&loader(&folder)),
            "DIR: 3 of 250 pictures cannot be used (000.png: neither JPEG nor PNG; \
             001.png: neither JPEG nor PNG; 002.png: neither JPEG nor PNG), \
             expected at most 1 % and not all; replace or remove them"
        );
        assert_eq!(loader(&folder).with_max_skipped(0.02).load().unwrap().images.len(), 247);
        assert!(loader(&damaged(&[7], b"")).with_max_skipped(0.0).load().is_err());

        let many: Vec<u8> = (0..20).collect();
        let text = error(&loader(&damaged(&many, b"")));
        assert!(
            text.starts_with("DIR: 20 of 250 pictures cannot be used (000.png: an empty file;")
        );
        assert!(text.contains("004.png: an empty file; and 15 more), expected"), "{text}");
    }

    #[test]
    fn all_damaged_is_an_error_at_any_share() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.jpg"), "text").unwrap();
        assert_eq!(
            error(&loader(&folder).with_max_skipped(1.0)),
            "DIR: 1 of 1 pictures cannot be used (a.jpg: neither JPEG nor PNG), \
             expected at most 100 % and not all; replace or remove them"
        );
    }

    #[test]
    fn folders_without_pictures_missing_folders_and_files() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            error(&loader(&folder)),
            "DIR: a folder without pictures, expected files that end in .jpg, .jpeg or .png; \
             pass the folder that holds the pictures, or one above it"
        );
        assert_eq!(
            error(&ImageFolder::new(folder.path().join("missing"), 2)),
            "cannot read DIR: No such file or directory (os error 2); \
             pass a folder of pictures that can be read"
        );
        let file = folder.path().join("picture.png");
        fs::write(&file, grey(1)).unwrap();
        assert_eq!(
            error(&ImageFolder::new(file, 2)),
            "DIR: a file, expected a folder of pictures; pass the folder instead of a file"
        );
    }

    #[test]
    fn bad_options_are_errors() {
        let folder = folder_of(1);
        assert_eq!(
            error(&ImageFolder::new(folder.path(), 0)),
            "ImageFolder: size is 0, but must be 1 to 4096; 32, 64 and 128 are usual"
        );
        assert!(error(&ImageFolder::new(folder.path(), 5000)).contains("size is 5000"));
        for (side, width, height) in [(0, 4, 4), (5, 4, 5), (5, 5, 4), (1, 0, 0)] {
            let crop = Crop::Proportion { side, width, height };
            assert_eq!(
                error(&loader(&folder).with_crop(crop)),
                format!(
                    "ImageFolder: crop is {side} of {width}x{height}, but must be a side of at \
                     least 1 that is not larger than the picture; Crop::CELEBA is 148 of 178x218"
                )
            );
        }
        for share in [-0.1, 1.1, f64::NAN] {
            assert_eq!(
                error(&loader(&folder).with_max_skipped(share)),
                format!(
                    "ImageFolder: max_skipped is {share}, but must be a share of 0 to 1; \
                     0.01 allows one picture of a hundred to be damaged"
                )
            );
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_loops_end() {
        use std::os::unix::fs::symlink;

        let elsewhere = folder_of(3);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("sub")).unwrap();
        fs::write(path("sub/9.png"), grey(9)).unwrap();
        symlink(folder.path(), path("sub/loop")).unwrap();
        symlink(path("sub"), path("sub/itself")).unwrap();
        symlink("round.txt", path("round.txt")).unwrap();
        symlink(elsewhere.path(), path("linked")).unwrap();
        symlink(path("sub/9.png"), path("again.png")).unwrap();
        let pictures = load(&folder);
        assert_eq!(
            pictures.names,
            ["again.png", "linked/000.png", "linked/001.png", "linked/002.png", "sub/9.png"]
        );
        assert_eq!(values(&pictures), [9, 0, 1, 2, 9]);
    }

    #[cfg(unix)]
    #[test]
    fn links_to_nothing_are_reported_and_not_cached() {
        use std::os::unix::fs::symlink;

        let folder = folder_of(2);
        let cache = tempfile::tempdir().unwrap();
        let target = cache.path().join("late.png");
        symlink(&target, folder.path().join("link.png")).unwrap();
        symlink("round.png", folder.path().join("round.png")).unwrap();
        let loader = loader(&folder).with_max_skipped(0.5).with_cache(cache.path().join("cache"));
        let reasons = |pictures: &Pictures| {
            let parts = |p: &SkippedPicture| format!("{} {}", p.name, p.reason);
            pictures.skipped.iter().map(parts).collect::<Vec<_>>()
        };
        let round = "round.png cannot be read: Too many levels of symbolic links (os error 40)";
        for _ in 0..2 {
            let pictures = loader.load().unwrap();
            assert!(!pictures.from_cache);
            assert_eq!(
                reasons(&pictures),
                ["link.png cannot be read: No such file or directory (os error 2)", round]
            );
        }
        fs::write(target, grey(5)).unwrap();
        let pictures = loader.load().unwrap();
        assert_eq!(reasons(&pictures), [round]);
        assert_eq!(values(&pictures), [0, 1, 5]);
    }

    #[cfg(unix)]
    #[test]
    fn what_may_not_be_read() {
        use std::os::unix::fs::PermissionsExt;

        let folder = folder_of(3);
        let closed = folder.path().join("001.png");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::read(&closed).is_ok() {
            return; // root may read everything
        }
        let pictures = loader(&folder).with_max_skipped(0.5).load().unwrap();
        assert_eq!(pictures.skipped[0].name, "001.png");
        assert_eq!(pictures.skipped[0].reason, "cannot be read: Permission denied (os error 13)");
        // A folder may hold any number of pictures, so it is not passed over.
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o000)).unwrap();
        assert!(error(&loader(&folder)).starts_with("cannot read DIR/inner: Permission denied"));
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn the_cache_gives_the_same_and_follows_every_input() {
        let folder = damaged(&[3], b"");
        let cache = tempfile::tempdir().unwrap();
        let cached = loader(&folder).with_cache(cache.path());
        let files = || fs::read_dir(cache.path()).unwrap().count();
        let first = cached.load().unwrap();
        assert!(!first.from_cache);
        let second = cached.load().unwrap();
        assert!(second.from_cache);
        assert_eq!(second.images, first.images);
        assert_eq!(second.names, first.names);
        assert_eq!(second.skipped, first.skipped);
        assert_eq!(files(), 1);
        // The share is checked on what comes from the cache too.
        assert!(cached.clone().with_max_skipped(0.0).load().is_err());

        // Other options have files of their own.
        for other in [
            ImageFolder { treatment: Treatment { size: 3, ..cached.treatment }, ..cached.clone() },
            cached.clone().with_channels(Channels::Rgb),
            cached.clone().with_crop(Crop::Whole),
        ] {
            assert!(!other.load().unwrap().from_cache);
            assert!(other.load().unwrap().from_cache);
        }
        assert_eq!(files(), 4);
        assert!(cached.load().unwrap().from_cache);

        // A picture that changes: its size, its time, its name, one more, one less.
        let again = |what: &str| {
            assert!(!cached.load().unwrap().from_cache, "{what}");
            assert!(cached.load().unwrap().from_cache, "{what}");
            assert_eq!(files(), 4, "{what}: the old file is replaced");
        };
        let path = |name: &str| folder.path().join(name);
        fs::write(path("007.png"), [grey(7), vec![0; 9]].concat()).unwrap();
        again("size");
        let file = fs::File::options().write(true).open(path("008.png")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1)).unwrap();
        again("time");
        fs::rename(path("009.png"), path("x.png")).unwrap();
        again("name");
        fs::write(path("y.png"), grey(1)).unwrap();
        again("one more");
        fs::remove_file(path("y.png")).unwrap();
        again("one less");
    }

    #[test]
    fn a_damaged_cache_is_made_anew() {
        let folder = folder_of(5);
        let cache = tempfile::tempdir().unwrap();
        let cached = loader(&folder).with_cache(cache.path());
        let first = cached.load().unwrap();
        let file = fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        let second = cached.load().unwrap();
        assert!(!second.from_cache);
        assert_eq!(second.images, first.images);
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }

    #[test]
    fn a_cache_that_cannot_be_made_is_an_error_before_decoding() {
        let folder = folder_of(1);
        let file = folder.path().join("000.png");
        let text = error(&loader(&folder).with_cache(file.join("cache")));
        assert_eq!(
            text,
            "cannot make DIR/000.png/cache: Not a directory (os error 20); \
             pass a folder that can be written as the cache"
        );
    }

    #[test]
    fn the_test_pictures_load() {
        let pictures = ImageFolder::new(testdata(""), 32).load().unwrap();
        assert!(pictures.skipped.is_empty());
        assert!(pictures.names.iter().any(|name| name == "cmyk.jpg"));
        assert!(pictures.names.iter().all(|name| !name.ends_with(".py")));
    }
}
