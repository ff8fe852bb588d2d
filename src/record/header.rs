//! What stands before the values of a record: names, shapes and settings.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use super::configuration::{CONFIGURATION, Configuration};
use crate::error::{FlowError, Result};

/// Bytes before the header, which say how long it is.
const LENGTH: u64 = 8;

/// The largest header, in bytes; the format's own bound.
const MAX_HEADER: u64 = 100_000_000;

/// The entry of the header that is no tensor.
const METADATA: &str = "__metadata__";

/// The entry of the metadata that this crate writes.
pub(super) const ENTRY: &str = "burn-flows";

/// What the metadata say of who wrote the record.
pub(super) const PRODUCER: &str = concat!("burn-flows ", env!("CARGO_PKG_VERSION"));

/// What a record says of itself, read without its values.
///
/// ```
/// use burn_flows::models::{GlowConfig, Glow};
/// use burn_flows::record::Header;
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let device = burn_flows::backend::device();
/// let config = GlowConfig::new([1, 4, 4], 1, 1, 2);
/// let glow = config.init(&mut StdRng::seed_from_u64(0), &device)?;
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("glow.safetensors");
/// glow.save(&path)?;
///
/// let header = Header::read(&path)?;
/// assert_eq!(header.model(), Some("Glow"));
/// assert_eq!(header.configuration::<GlowConfig>()?, config);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Header {
    path: PathBuf,
    producer: Option<String>,
    settings: Option<BTreeMap<String, Value>>,
    num_values: u64,
}

impl Header {
    /// Reads the header of the record at `path`; its values stay on the disk.
    ///
    /// # Errors
    /// [`FlowError::Io`] if the file cannot be read; [`FlowError::Record`] if it is not a whole
    /// safetensors file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (mut file, len) = open(path)?;
        let mut start = [0; LENGTH as usize];
        let count = start.len().min(len as usize);
        let read = |file: &mut File, bytes: &mut [u8]| {
            file.read_exact(bytes).map_err(|source| unreadable(path, source))
        };
        read(&mut file, &mut start[..count])?;
        let whole = |error| not_whole(path, error);
        let header_len = header_len(&start[..count], len).map_err(whole)?;
        let mut header = vec![0; header_len as usize];
        read(&mut file, &mut header)?;
        Self::parse(&header, len - LENGTH - header_len, path)
    }

    /// The header of a whole record in memory; `origin` is what messages call it.
    pub(super) fn of(bytes: &[u8], origin: &Path) -> Result<Self> {
        let len = bytes.len() as u64;
        let start = &bytes[..bytes.len().min(LENGTH as usize)];
        let header_len = header_len(start, len).map_err(|error| not_whole(origin, error))?;
        let (header, values) = bytes[LENGTH as usize..].split_at(header_len as usize);
        Self::parse(header, values.len() as u64, origin)
    }

    fn parse(header: &[u8], values_len: u64, path: &Path) -> Result<Self> {
        let damaged = |what, error: serde_json::Error| {
            not_whole(path, format!("its {what} is damaged: {error}"))
        };
        let Entries { metadata, tensors } =
            serde_json::from_slice(header).map_err(|error| damaged("header", error))?;
        let num_values =
            check_tensors(tensors, values_len).map_err(|error| not_whole(path, error))?;
        let About { producer, settings } =
            about(metadata.unwrap_or_default()).map_err(|error| damaged("metadata", error))?;
        Ok(Self { path: path.into(), producer, settings, num_values })
    }

    /// Which version of this crate wrote the record, if it was this crate.
    pub fn producer(&self) -> Option<&str> {
        self.producer.as_deref()
    }

    /// The [`Setting`](super::Setting)s by their paths; `None` in a record of version 0.1.0 or of
    /// another program, which says nothing of them.
    pub fn settings(&self) -> Option<&BTreeMap<String, Value>> {
        self.settings.as_ref()
    }

    /// How many values all tensors have.
    pub fn num_values(&self) -> u64 {
        self.num_values
    }

    /// The [`NAME`](Configuration::NAME) of the model's configuration, if the record has one.
    pub fn model(&self) -> Option<&str> {
        Some(self.configured()?.keys().next()?)
    }

    fn configured(&self) -> Option<&serde_json::Map<String, Value>> {
        self.settings.as_ref()?.get(CONFIGURATION)?.as_object()
    }

    /// The configuration that the model was built from.
    ///
    /// # Errors
    /// [`FlowError::Record`] if the record has none, or one of another model.
    pub fn configuration<C: Configuration>(&self) -> Result<C> {
        let refuse = |reason: String, advice: &str| FlowError::Record {
            path: self.path.clone(),
            reason,
            advice: advice.into(),
        };
        let Some((name, value)) = self.configured().and_then(|entry| entry.iter().next()) else {
            return Err(refuse(
                "it does not say how its model is configured".into(),
                "build the model with the configuration that it was trained with and use record::load",
            ));
        };
        if name != C::NAME {
            return Err(refuse(
                format!("this record is of a {name}, not of a {}", C::NAME),
                "load it as what it is",
            ));
        }
        C::deserialize(value).map_err(|error| {
            refuse(
                format!("its configuration is not one of a {name} ({error})"),
                "it may be of a newer version, or damaged; load another copy or an earlier record",
            )
        })
    }
}

/// Opens a record; a pipe, which would be waited for, is none.
fn open(path: &Path) -> Result<(File, u64)> {
    let open = || {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a file"));
        }
        Ok((File::open(path)?, metadata.len()))
    };
    open().map_err(|source| unreadable(path, source))
}

/// All bytes of a record.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let (mut file, _) = open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|source| unreadable(path, source))?;
    Ok(bytes)
}

fn unreadable(path: &Path, source: io::Error) -> FlowError {
    FlowError::io("read", path, source, "give the path of a record written by this crate")
}

pub(super) fn not_whole(path: &Path, error: impl fmt::Display) -> FlowError {
    FlowError::Record {
        path: path.into(),
        reason: format!("this is not a whole safetensors file ({error})"),
        advice: "it may be cut off or of another kind; load another copy or an earlier record"
            .into(),
    }
}

/// How long the header is, by the first bytes of a file of `len` bytes.
fn header_len(start: &[u8], len: u64) -> Result<u64, String> {
    let Ok(start) = <[u8; LENGTH as usize]>::try_from(start) else {
        return Err(format!("{len} bytes are too few"));
    };
    let header_len = u64::from_le_bytes(start);
    let most = (len - LENGTH).min(MAX_HEADER);
    if header_len > most {
        return Err(format!("a header of {header_len} bytes, where at most {most} can be"));
    }
    Ok(header_len)
}

/// What the header says of a tensor.
#[derive(Deserialize)]
struct Described {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Whether the tensors fill the values without gap or overlap; how many values they have.
fn check_tensors(tensors: BTreeMap<String, Described>, values_len: u64) -> Result<u64, String> {
    let mut places = Vec::with_capacity(tensors.len());
    let mut num_values = 0u64;
    for (name, Described { dtype, shape, data_offsets: [start, end] }) in tensors {
        let size = dtype_size(&dtype).ok_or_else(|| format!("tensor {name} of dtype {dtype}"))?;
        let count = shape.iter().try_fold(1u64, |count, &size| count.checked_mul(size));
        let bytes = count.and_then(|count| count.checked_mul(size));
        if bytes.is_none() || bytes != end.checked_sub(start) {
            return Err(format!(
                "tensor {name} of shape {shape:?} and dtype {dtype} does not fit into bytes {start} \
                 to {end}"
            ));
        }
        num_values = num_values.saturating_add(count.unwrap_or_default());
        places.push((start, end, name));
    }
    places.sort_unstable();
    let mut at = 0;
    for (start, end, name) in places {
        if start != at {
            return Err(format!("tensor {name} starts at byte {start} instead of {at}"));
        }
        at = end;
    }
    if at != values_len {
        return Err(format!("{values_len} bytes of values, where the tensors have {at}"));
    }
    Ok(num_values)
}

/// Bytes a value.
fn dtype_size(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" => 1,
        "U16" | "I16" | "F16" | "BF16" => 2,
        "U32" | "I32" | "F32" => 4,
        "U64" | "I64" | "F64" => 8,
        _ => return None,
    })
}

/// What this crate writes into the metadata.
#[derive(Default, Deserialize)]
struct About {
    producer: Option<String>,
    settings: Option<BTreeMap<String, Value>>,
}

fn about(mut metadata: BTreeMap<String, String>) -> Result<About, serde_json::Error> {
    match metadata.get(ENTRY) {
        Some(json) => serde_json::from_str(json),
        // Version 0.1.0 wrote its name alone.
        None => Ok(About { producer: metadata.remove("producer"), settings: None }),
    }
}

/// The entry of the metadata for a model of these settings, whose values are JSON.
///
/// One entry, because Burn writes several in another order every time, and equal models would give
/// unequal files.
pub(super) fn entry(settings: &BTreeMap<String, String>) -> String {
    let text = |text: &str| serde_json::to_string(text).expect("a text has JSON");
    let settings: Vec<String> =
        settings.iter().map(|(path, json)| format!("{}:{json}", text(path))).collect();
    format!("{{\"producer\":{},\"settings\":{{{}}}}}", text(PRODUCER), settings.join(","))
}

/// The header as it stands in the file.
#[derive(Default)]
struct Entries {
    metadata: Option<BTreeMap<String, String>>,
    tensors: BTreeMap<String, Described>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Entries;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries::default();
                while let Some(name) = map.next_key::<String>()? {
                    let is_new = match name.as_str() {
                        METADATA => entries.metadata.replace(map.next_value()?).is_none(),
                        _ => entries.tensors.insert(name.clone(), map.next_value()?).is_none(),
                    };
                    // Of two, a reader would take one without a word.
                    if !is_new {
                        return Err(A::Error::custom(format!("{name} is there twice")));
                    }
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Read)
    }
}
