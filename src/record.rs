//! Records: a model's parameters in a safetensors file.
//!
//! [`save`] writes beside the file and renames, so that whatever happens the file is either the old
//! record or the new one. [`load`] looks for every problem before it touches the model.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::store::{ModuleSnapshot, ModuleStore, SafetensorsStore, bridge};

use crate::error::{FlowError, Result};

/// How many differences an error message names.
const NAMED_DIFFERENCES: usize = 3;

/// What the metadata of a record says about its origin.
const PRODUCER: &str = concat!("burn-flows ", env!("CARGO_PKG_VERSION"));

/// Writes every parameter of `module`, trained or not, to a safetensors file.
///
/// The record is written to a temporary file beside `path`, brought to the disk and renamed: an
/// interrupted call leaves what was at `path` as it was.
///
/// # Errors
/// [`FlowError::Io`] if the file cannot be written; [`FlowError::Record`] if a parameter holds a
/// value that is not finite (nothing is written then: the record could not be loaded).
///
/// ```
/// use burn_flows::{norm::ActNorm, record};
///
/// let device = burn_flows::backend::device();
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.safetensors");
/// record::save(&ActNorm::new(2, &device)?, &path)?;
/// let norm = record::load(ActNorm::new(2, &device)?, &path)?;
/// assert!(!norm.is_initialized());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save<M: Module>(module: &M, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let mut store = collect(module, path)?;
    check_finite(&mut store, path, "nothing was written; go back to the last good record")?;
    write_atomically(path, &bytes(&store, path)?)
}

/// Reads a record written by [`save`] into `module`, which must have the same configuration.
///
/// # Errors
/// [`FlowError::Io`] if the file cannot be read; [`FlowError::Record`] if it is not a whole
/// safetensors file, its tensors are not those of the model by name, shape and dtype, or a value is
/// not finite.
pub fn load<M: Module>(module: M, path: impl AsRef<Path>) -> Result<M> {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(|source| {
        FlowError::io("read", path, source, "give the path of a record written by this crate")
    })?;
    from_bytes(module, bytes, path)
}

/// The record of `module` as [`save`] writes it, in memory: equal models give equal bytes. Values are
/// not checked.
///
/// # Errors
/// [`FlowError::Record`] if a parameter cannot be read from its device.
pub fn to_bytes<M: Module>(module: &M) -> Result<Vec<u8>> {
    let origin = Path::new("the record in memory");
    bytes(&collect(module, origin)?, origin)
}

/// [`load`] from memory; `origin` is what error messages call the record.
///
/// # Errors
/// As [`load`], without the reading.
pub fn from_bytes<M: Module>(mut module: M, bytes: Vec<u8>, origin: &Path) -> Result<M> {
    let mut store = SafetensorsStore::from_bytes(Some(bytes));
    let found = described(store.get_all_tensors().map_err(|error| {
        record(
            origin,
            format!("this is not a whole safetensors file ({error})"),
            "it may be cut off or of another kind; load another copy or an earlier record",
        )
    })?);
    let needed: BTreeMap<String, String> =
        module.collect(None, None, false).iter().map(describe).collect();
    check_same(&found, &needed, origin)?;
    check_finite(&mut store, origin, "load an earlier record")?;
    module.load_from(&mut store).map_err(|error| {
        record(origin, error.to_string(), "build the model with the record's configuration")
    })?;
    Ok(module)
}

fn collect<M: Module>(module: &M, path: &Path) -> Result<SafetensorsStore> {
    // One entry of metadata: Burn's own three come in another order every time, and equal models
    // would give unequal files.
    let mut store =
        SafetensorsStore::from_bytes(None).clear_metadata().metadata("producer", PRODUCER);
    module.save_into(&mut store).map_err(|error| {
        record(path, format!("a parameter cannot be read ({error})"), "look at the device")
    })?;
    Ok(store)
}

fn bytes(store: &SafetensorsStore, path: &Path) -> Result<Vec<u8>> {
    store.get_bytes().map_err(|error| record(path, error.to_string(), "look at the device"))
}

type Tensors = BTreeMap<String, burn::store::burn_pack::Tensor>;

fn described(tensors: &Tensors) -> BTreeMap<String, String> {
    tensors.values().map(describe).collect()
}

fn describe(tensor: &burn::store::burn_pack::Tensor) -> (String, String) {
    let shape: &[usize] = &tensor.shape;
    (tensor.name.clone(), format!("{:?} {shape:?}", tensor.dtype))
}

/// Names, shapes and dtypes are those of the model, or an error that says where they are not.
fn check_same(
    found: &BTreeMap<String, String>,
    needed: &BTreeMap<String, String>,
    origin: &Path,
) -> Result<()> {
    let mut differences = Vec::new();
    for (name, needed) in needed {
        match found.get(name) {
            None => differences.push(format!("{name} is missing")),
            Some(found) if found != needed => {
                differences.push(format!("{name} is {found}, the model's is {needed}"));
            }
            Some(_) => {}
        }
    }
    for name in found.keys().filter(|name| !needed.contains_key(*name)) {
        differences.push(format!("{name} is not in the model"));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let more = differences.len().saturating_sub(NAMED_DIFFERENCES);
    differences.truncate(NAMED_DIFFERENCES);
    let mut reason = format!("this record is of another model: {}", differences.join(", "));
    if more > 0 {
        reason += &format!(", and {more} more");
    }
    Err(record(origin, reason, "build the model with the record's configuration"))
}

fn check_finite(store: &mut SafetensorsStore, path: &Path, advice: &str) -> Result<()> {
    let unreadable = |error: &dyn std::fmt::Display| record(path, error.to_string(), advice);
    for (name, tensor) in store.get_all_tensors().map_err(|error| unreadable(&error))? {
        let data = bridge::to_data(tensor).map_err(|error| unreadable(&error))?;
        let bad = data.iter::<f64>().filter(|value| !value.is_finite()).count();
        if bad > 0 {
            let reason =
                format!("{bad} of {} values of {name} are not finite", data.num_elements());
            return Err(record(path, reason, advice));
        }
    }
    Ok(())
}

fn record(path: &Path, reason: String, advice: &str) -> FlowError {
    FlowError::Record { path: path.into(), reason, advice: advice.into() }
}

/// Replaces the file at `path` by `bytes`, or leaves it as it was.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let scratch = scratch_path(path);
    write_and_rename(path, &scratch, bytes).map_err(|source| {
        // What is left of a failed attempt is of no use; the first error is the one to report.
        let _ = fs::remove_file(&scratch);
        FlowError::io("write", path, source, "check that its folder exists and has room")
    })
}

fn scratch_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

fn write_and_rename(path: &Path, scratch: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(scratch)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(scratch, path)?;
    // The rename itself lives in the folder. Not every system can open one; it is then a matter of
    // seconds until it is on the disk.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) {
        let _ = folder.sync_all();
    }
    Ok(())
}
