//! Models from their records alone: the configuration that a record holds.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::header::{Header, read_file};
use super::{different, from_bytes_with};
use crate::error::{FlowError, Result};

/// The path of the setting that holds a model's configuration.
pub(super) const CONFIGURATION: &str = "configuration";

/// How many values a model can be asked to have, 2^38: a terabyte in f32.
const MOST_VALUES: f64 = 274_877_906_944.0;

/// How many sizes of a configuration, the largest, are asked which is to blame.
const SUSPECTS: usize = 16;

/// What a model is built from: enough to build it again from its record alone.
///
/// A model says what it was built from by a field `configuration`, a [`Setting`](super::Setting); a
/// [`FlowStack`](crate::FlowStack) has one, which
/// [`with_configuration`](crate::FlowStack::with_configuration) sets. Then [`restore`] needs nothing
/// but the record:
///
/// ```
/// use burn::tensor::Device;
/// use burn_flows::record::{self, Configuration};
/// use burn_flows::{FlowStack, Result, linear::DiagonalScaling, prior::StandardNormal};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct ScalingConfig {
///     num_features: usize,
///     num_layers: usize,
/// }
///
/// type Scaling = FlowStack<2, Vec<DiagonalScaling>>;
///
/// impl Configuration for ScalingConfig {
///     type Model = Scaling;
///     const NAME: &'static str = "Scaling";
///
///     fn build(&self, device: &Device) -> Result<Scaling> {
///         let layers = (0..self.num_layers).map(|_| DiagonalScaling::new(self.num_features, device));
///         let layers = layers.collect::<Result<_>>()?;
///         let stack = FlowStack::single(layers, StandardNormal::new(), &[self.num_features])?;
///         Ok(stack.with_configuration(self))
///     }
///
///     fn num_values(&self) -> f64 {
///         self.num_features as f64 * self.num_layers as f64
///     }
/// }
///
/// let device = burn_flows::backend::device();
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("scaling.safetensors");
/// ScalingConfig { num_features: 3, num_layers: 2 }.build(&device)?.save(&path)?;
/// let model = record::restore::<ScalingConfig>(&path, &device)?;
/// assert_eq!(model.levels[0].len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Configuration: Serialize + DeserializeOwned {
    /// What is built from it.
    type Model: Module;

    /// What records and messages call the model.
    const NAME: &'static str;

    /// Builds the model. Its parameters do not matter: those of a record take their place.
    ///
    /// # Errors
    /// If a value of the configuration cannot be used.
    fn build(&self, device: &Device) -> Result<Self::Model>;

    /// How many values the parameters of the model have together, trained or not, counted without
    /// building it. A float, which does not overflow however large a size is.
    ///
    /// A configuration that asks for more than its record holds is refused before anything is
    /// allocated. The default, 0, refuses nothing.
    fn num_values(&self) -> f64 {
        0.0
    }
}

/// Builds the model of a record by the configuration in it, and loads its parameters.
///
/// # Errors
/// [`FlowError::Io`] if the file cannot be read; [`FlowError::Record`] if it is not a whole record,
/// has no configuration or that of another model, or its tensors are not those of its configuration;
/// what [`build`](Configuration::build) refuses.
pub fn restore<C: Configuration>(path: impl AsRef<Path>, device: &Device) -> Result<C::Model> {
    let path = path.as_ref();
    let bytes = read_file(path)?;
    let header = Header::of(&bytes, path)?;
    build_and_load(&header.configuration::<C>()?, header, bytes, path, device)
}

/// [`restore`] by a configuration that is known: for records that hold none. Where the record holds
/// one, it must be the same.
///
/// # Errors
/// As [`restore`].
pub fn restore_with<C: Configuration>(
    configuration: &C,
    path: impl AsRef<Path>,
    device: &Device,
) -> Result<C::Model> {
    let path = path.as_ref();
    let bytes = read_file(path)?;
    let header = Header::of(&bytes, path)?;
    build_and_load(configuration, header, bytes, path, device)
}

fn build_and_load<C: Configuration>(
    configuration: &C,
    header: Header,
    bytes: Vec<u8>,
    path: &Path,
    device: &Device,
) -> Result<C::Model> {
    let held = header.num_values();
    if let Some(excess) = excess(configuration, held as f64) {
        return Err(different(path, format!("{excess}, and this record holds {held}")));
    }
    let model = configuration.build(device)?;
    from_bytes_with(model, header, bytes, path)
}

/// The JSON of a configuration under the name of its model.
pub(crate) fn to_json<C: Configuration>(configuration: &C) -> String {
    let json = serde_json::to_string(configuration).expect("Configuration: it has no JSON");
    let name = serde_json::to_string(C::NAME).expect("a text has JSON");
    format!("{{{name}:{json}}}")
}

/// The inverse of [`to_json`].
pub(crate) fn from_json<C: Configuration>(json: &str) -> Option<C> {
    let mut named: BTreeMap<String, Value> = serde_json::from_str(json).ok()?;
    serde_json::from_value(named.remove(C::NAME)?).ok()
}

/// Refuses what no memory holds: a size with some digits too many ends in a message, not in an abort.
///
/// # Errors
/// [`FlowError::Invalid`] that names the field.
pub(crate) fn check_buildable<C: Configuration>(configuration: &C) -> Result<()> {
    match excess(configuration, MOST_VALUES) {
        None => Ok(()),
        Some(excess) => Err(FlowError::invalid(
            C::NAME,
            excess,
            format!("at most {MOST_VALUES:e} values"),
            "use smaller sizes",
        )),
    }
}

/// Which size of a configuration asks for more values than `most`, in words.
fn excess<C: Configuration>(configuration: &C, most: f64) -> Option<String> {
    let asked = configuration.num_values();
    if asked <= most {
        return None;
    }
    let what = format!("a {} of {asked:.3e} values", C::NAME);
    let value = serde_json::to_value(configuration).expect("Configuration: it has no JSON");
    let mut sizes = Vec::new();
    collect_sizes(String::new(), &value, &mut sizes);
    sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    sizes.truncate(SUSPECTS);
    // The size to blame is the one without which the least would be left.
    let without = |pointer: &str| {
        let mut smaller = value.clone();
        *smaller.pointer_mut(pointer)? = Value::from(1);
        Some(serde_json::from_value::<C>(smaller).ok()?.num_values())
    };
    let blamed = sizes
        .into_iter()
        .filter_map(|(pointer, size)| Some((without(&pointer)?, pointer, size)))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    Some(match blamed {
        Some((_, pointer, size)) => {
            format!("{} {size} asks for {what}", pointer[1..].replace('/', "."))
        }
        None => format!("the configuration asks for {what}"),
    })
}

/// The whole numbers above 1 in `value`, with their JSON pointers.
fn collect_sizes(pointer: String, value: &Value, sizes: &mut Vec<(String, u64)>) {
    match value {
        Value::Number(number) => {
            sizes.extend(number.as_u64().filter(|&size| size > 1).map(|size| (pointer, size)));
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                collect_sizes(format!("{pointer}/{index}"), value, sizes);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                collect_sizes(format!("{pointer}/{name}"), value, sizes);
            }
        }
        _ => {}
    }
}
