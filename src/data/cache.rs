//! The decoded pictures of a folder, kept on disk.
//!
//! | bytes | content |
//! |---|---|
//! | 8 | [`MAGIC`], with the version of the layout |
//! | 8 | key: a hash of everything that the pixels depend on |
//! | 8 | number of pictures that were skipped |
//! | 8 + 8 + length, for each | its place in the list, length of the reason, the reason |
//! | the rest less 4 | the pixels of the pictures that were not skipped |
//! | 4 | CRC-32 of all before |
//!
//! Numbers are little-endian. A file that differs in anything is not used: it is written anew.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::{CrcReader, CrcWriter};

use crate::files::replace;
use crate::{FlowError, Result};

const MAGIC: [u8; 8] = *b"BFPIX\0\0\x01";

/// Decoded pictures: those that were skipped, by their place in the list and with the reason, and
/// the pixels of the others.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) skipped: Vec<(usize, String)>,
    pub(super) pixels: Vec<u8>,
}

/// The place of one cache file.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    name: String,
}

impl Cache {
    /// The file `name` in `folder`, which is made if it is not there.
    pub(super) fn new(folder: &Path, name: String) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|source| {
            FlowError::io("make", folder, source, "pass a folder that can be written as the cache")
        })?;
        Ok(Self { folder: folder.into(), name })
    }

    /// What is stored under `key`, if it is whole and holds `num_pictures` of `picture_len` values.
    pub(super) fn read(
        &self,
        key: u64,
        num_pictures: usize,
        picture_len: usize,
    ) -> Option<Decoded> {
        // Why it cannot be used makes no difference: the pictures are decoded again.
        let file = File::open(self.folder.join(&self.name)).ok()?;
        let file_len = file.metadata().ok()?.len();
        let mut reader = CrcReader::new(BufReader::new(file));

        let mut magic = [0; 8];
        reader.read_exact(&mut magic).ok()?;
        if magic != MAGIC || read_u64(&mut reader)? != key {
            return None;
        }
        let num_skipped = usize::try_from(read_u64(&mut reader)?).ok()?;
        let num_kept = num_pictures.checked_sub(num_skipped)?;
        let mut header_len = 24;
        let mut skipped = Vec::new();
        for _ in 0..num_skipped {
            let place = usize::try_from(read_u64(&mut reader)?).ok()?;
            let in_order = skipped.last().is_none_or(|(last, _)| *last < place);
            let reason_len = read_u64(&mut reader)?;
            let mut reason = String::new();
            (&mut reader).take(reason_len).read_to_string(&mut reason).ok()?;
            if !in_order || place >= num_pictures {
                return None;
            }
            header_len += 16 + reason.len() as u64;
            skipped.push((place, reason));
        }

        // Checked against the file before the memory is asked for.
        let len = num_kept.checked_mul(picture_len)?;
        if file_len != header_len + len as u64 + 4 {
            return None;
        }
        let mut pixels = vec![0; len];
        reader.read_exact(&mut pixels).ok()?;
        let sum = reader.crc().sum();
        let mut stored = [0; 4];
        reader.read_exact(&mut stored).ok()?;
        (u32::from_le_bytes(stored) == sum).then_some(Decoded { skipped, pixels })
    }

    /// Stores `decoded` under `key`; an interruption at any moment leaves the old file or the new one.
    pub(super) fn write(&self, key: u64, decoded: &Decoded) -> Result<()> {
        let path = self.folder.join(&self.name);
        replace(&path, |file| write_file(file, key, decoded)).map_err(|source| {
            FlowError::io(
                "write",
                &path,
                source,
                "make room, pass another folder as the cache, or none",
            )
        })
    }
}

fn read_u64(reader: &mut impl Read) -> Option<u64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn write_file(file: &mut File, key: u64, decoded: &Decoded) -> io::Result<()> {
    let mut writer = CrcWriter::new(BufWriter::new(file));
    writer.write_all(&MAGIC)?;
    writer.write_all(&key.to_le_bytes())?;
    writer.write_all(&(decoded.skipped.len() as u64).to_le_bytes())?;
    for (place, reason) in &decoded.skipped {
        writer.write_all(&(*place as u64).to_le_bytes())?;
        writer.write_all(&(reason.len() as u64).to_le_bytes())?;
        writer.write_all(reason.as_bytes())?;
    }
    writer.write_all(&decoded.pixels)?;
    let sum = writer.crc().sum();
    writer.write_all(&sum.to_le_bytes())?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded() -> Decoded {
        Decoded {
            skipped: vec![(1, "damaged".into()), (3, String::new())],
            pixels: (0..12).collect(),
        }
    }

    fn cache(folder: &Path) -> Cache {
        Cache::new(folder, "faces".into()).unwrap()
    }

    #[test]
    fn reads_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(&folder.path().join("made/on/demand"));
        assert_eq!(cache.read(7, 5, 4), None);
        cache.write(7, &decoded()).unwrap();
        assert_eq!(cache.read(7, 5, 4), Some(decoded()));
        // Another key, number of pictures or size.
        assert_eq!(cache.read(8, 5, 4), None);
        assert_eq!(cache.read(7, 6, 4), None);
        assert_eq!(cache.read(7, 1, 4), None);
        assert_eq!(cache.read(7, 5, 3), None);
        assert_eq!(cache.read(7, 5, usize::MAX), None);

        let other = Decoded { skipped: vec![], pixels: vec![9; 8] };
        cache.write(8, &other).unwrap();
        assert_eq!(cache.read(8, 2, 4), Some(other));
        assert_eq!(cache.read(7, 5, 4), None);
        // Nothing temporary is left.
        assert_eq!(fs::read_dir(&cache.folder).unwrap().count(), 1);
    }

    #[test]
    fn a_file_with_any_byte_changed_or_missing_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        cache.write(7, &decoded()).unwrap();
        let path = folder.path().join("faces");
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x80;
            fs::write(&path, &changed).unwrap();
            assert_eq!(cache.read(7, 5, 4), None, "byte {at} changed");
            fs::write(&path, &bytes[..at]).unwrap();
            assert_eq!(cache.read(7, 5, 4), None, "{at} bytes");
        }
        fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
        assert_eq!(cache.read(7, 5, 4), None, "one byte more");
        fs::write(&path, &bytes).unwrap();
        assert_eq!(cache.read(7, 5, 4), Some(decoded()));
    }

    #[test]
    fn writers_at_the_same_time_do_not_mix() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let contents = |fill: u8| Decoded { skipped: vec![], pixels: vec![fill; 100_000] };
        std::thread::scope(|scope| {
            for fill in 0..4 {
                let cache = &cache;
                scope.spawn(move || {
                    for _ in 0..5 {
                        cache.write(7, &contents(fill)).unwrap();
                        let read = cache.read(7, 1, 100_000).expect("a whole file");
                        assert_eq!(read, contents(read.pixels[0]));
                    }
                });
            }
        });
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(
            Cache::new(&file, "faces".into()).unwrap_err().to_string(),
            format!(
                "cannot make {}: File exists (os error 17); \
                 pass a folder that can be written as the cache",
                file.display()
            )
        );
        // The name is taken by a folder, so the file cannot be put in its place.
        let cache = cache(folder.path());
        fs::create_dir(folder.path().join("faces")).unwrap();
        let text = cache.write(7, &decoded()).unwrap_err().to_string();
        assert!(
            text.starts_with(&format!("cannot write {}: ", folder.path().join("faces").display()))
                && text.ends_with("; make room, pass another folder as the cache, or none"),
            "{text}"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "the temporary file is gone");
    }
}
