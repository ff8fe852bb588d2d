//! Records: a model in a safetensors file.
//!
//! [`save`] writes beside the file and renames ([`write_atomically`]), so that whatever happens the file
//! is either the old record or the new one. [`load`] looks for every problem before it touches the model.
//!
//! A record holds the parameters and, in its metadata, every [`Setting`]: masks, scale maps, epsilons,
//! and the configuration of a model that is built from one. So a ready-made model, and any stack with
//! a [`Configuration`], is loaded by the path alone:
//!
//! ```
//! use burn_flows::models::{Nice, NiceConfig};
//!
//! let device = burn_flows::backend::device();
//! let model = NiceConfig::new(6, vec![16]).init(&device)?;
//! let folder = tempfile::tempdir()?;
//! model.save(folder.path().join("nice.safetensors"))?;
//! let model = Nice::load(folder.path().join("nice.safetensors"), &device)?;
//! assert_eq!(model.num_dims(), 6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What a file claims is checked against its own length first: no size in it, neither of a header nor
//! of a configuration, is allocated on trust.

mod configuration;
mod difference;
mod header;
mod setting;

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::store::{ModuleSnapshot, ModuleStore, SafetensorsStore, bridge};
use serde_json::Value;

pub use configuration::{Configuration, restore, restore_with};
pub(crate) use configuration::{check_buildable, from_json, to_json};
pub use header::Header;
pub use setting::Setting;

use header::{ENTRY, entry, not_whole, read_file};
use setting::settings;

use crate::context::shaped_by;
use crate::error::{FlowError, Result};
pub use crate::files::write_atomically;

/// Writes every parameter of `module`, trained or not, and every [`Setting`] to a safetensors file.
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

/// Reads a record written by [`save`] into `module`, which must have the same parameters and the same
/// settings. (A record of version 0.1.0 has no settings: those of `module` are taken.) What comes back is the
/// model as it was saved, with the context that it was [given](crate::context::Given::given), or with none.
///
/// # Errors
/// [`FlowError::Io`] if the file cannot be read; [`FlowError::Record`] if it is not a whole
/// safetensors file, its tensors are not those of the model by name, shape and dtype, a setting
/// differs, or a value is not finite.
pub fn load<M: Module>(module: M, path: impl AsRef<Path>) -> Result<M> {
    let path = path.as_ref();
    from_bytes(module, read_file(path)?, path)
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
pub fn from_bytes<M: Module>(module: M, bytes: Vec<u8>, origin: &Path) -> Result<M> {
    let header = Header::of(&bytes, origin)?;
    from_bytes_with(module, header, bytes, origin)
}

/// [`from_bytes`] where the header was read before.
fn from_bytes_with<M: Module>(
    module: M,
    header: Header,
    bytes: Vec<u8>,
    origin: &Path,
) -> Result<M> {
    let mut differences = Vec::new();
    if let Some(found) = header.settings() {
        let json = |json: &String| serde_json::from_str(json).expect("a setting is JSON");
        let needed: BTreeMap<String, Value> =
            settings(&module).iter().map(|(path, value)| (path.clone(), json(value))).collect();
        let configurations = difference::of_configurations(found, &needed);
        if !configurations.is_empty() {
            // All other differences follow from these.
            return Err(different(origin, configurations.join(", ")));
        }
        differences = difference::of_settings(found, &needed);
    }
    let mut store = SafetensorsStore::from_bytes(Some(bytes));
    let tensors = store.get_all_tensors().map_err(|error| not_whole(origin, error))?;
    let found = described(tensors);
    let shapes: BTreeMap<&str, &[usize]> =
        tensors.values().map(|tensor| (&*tensor.name, &*tensor.shape)).collect();
    let mut module = shaped_by(module, |path| shapes.get(path).map(|shape| shape.to_vec()));
    let needed: BTreeMap<String, String> =
        module.collect(None, None, false).iter().map(describe).collect();
    differences.extend(difference::of_tensors(&found, &needed));
    if !differences.is_empty() {
        return Err(different(origin, differences.join(", ")));
    }
    check_finite(&mut store, origin, "load an earlier record")?;
    module.load_from(&mut store).map_err(|error| different(origin, error.to_string()))?;
    Ok(module)
}

fn collect<M: Module>(module: &M, path: &Path) -> Result<SafetensorsStore> {
    let mut store = SafetensorsStore::from_bytes(None)
        .clear_metadata()
        .metadata(ENTRY, entry(&settings(module)));
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

/// The error of a record that is not of the model.
fn different(origin: &Path, differences: String) -> FlowError {
    let reason = format!("this record is of another model: {differences}");
    record(origin, reason, "build the model with the record's configuration")
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
