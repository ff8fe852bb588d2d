//! A golden file, and the comparison with what it holds.

pub mod cases;
pub mod class_conditional;
pub mod general;
pub mod traced;
pub mod variational;
pub mod vectors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flows::weights::{Array, Weights};
use serde_json::Value;

/// A golden file: its metadata, and its tensors in one float type.
#[derive(Clone)]
pub struct Golden {
    metadata: BTreeMap<String, String>,
    pub weights: Weights,
}

impl Golden {
    pub fn read(path: &Path, device: &Device) -> Result<Self, String> {
        let weights = Weights::read_safetensors(path, device).map_err(|error| error.to_string())?;
        Ok(Self { metadata: metadata(path)?, weights })
    }

    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { weights: self.weights.clone().with_dtype(dtype), ..self.clone() }
    }

    pub fn meta(&self, key: &str) -> &str {
        self.metadata.get(key).map_or("", String::as_str)
    }

    /// A value of the JSON in `hyperparameters`.
    pub fn hyper(&self, key: &str) -> Result<Value, String> {
        let all: Value = serde_json::from_str(self.meta("hyperparameters"))
            .map_err(|error| format!("hyperparameters: {error}"))?;
        all.get(key).cloned().ok_or_else(|| format!("hyperparameters have no {key}"))
    }

    pub fn number(&self, key: &str) -> Result<f64, String> {
        self.hyper(key)?.as_f64().ok_or_else(|| format!("{key} is not a number"))
    }

    pub fn flag(&self, key: &str) -> Result<bool, String> {
        self.hyper(key)?.as_bool().ok_or_else(|| format!("{key} is neither true nor false"))
    }

    pub fn text(&self, key: &str) -> Result<String, String> {
        Ok(self.hyper(key)?.as_str().ok_or_else(|| format!("{key} is not a text"))?.to_string())
    }

    pub fn sizes<const N: usize>(&self, key: &str) -> Result<[usize; N], String> {
        serde_json::from_value::<Vec<usize>>(self.hyper(key)?)
            .ok()
            .and_then(|sizes| sizes.try_into().ok())
            .ok_or_else(|| format!("{key} is not a list of {N} sizes"))
    }

    pub fn array(&self, key: &str) -> Result<Array, String> {
        self.weights.array(key).map_err(|error| error.to_string())
    }

    /// The parameters, under their names in PyTorch.
    pub fn params(&self) -> Weights {
        self.weights.under("param")
    }

    /// Rank of `x`.
    pub fn rank(&self) -> Result<usize, String> {
        Ok(self.array("x")?.shape().len())
    }

    /// A tensor in the float type of the weights.
    pub fn tensor<const D: usize>(&self, key: &str) -> Result<Tensor<D>, String> {
        let array = self.array(key)?;
        if array.shape().len() != D {
            return Err(format!("{key} has shape {:?}, but rank {D} is needed", array.shape()));
        }
        Ok(self.tensor_of(&array))
    }

    /// An array as a tensor of its rank, in the float type of the weights.
    pub fn tensor_of<const D: usize>(&self, array: &Array) -> Tensor<D> {
        let data = TensorData::new(array.values().to_vec(), array.shape().to_vec());
        Tensor::from_data(data, (self.weights.device(), self.weights.dtype()))
    }

    /// Names of what a model must reproduce: everything but inputs and parameters.
    fn outputs(&self) -> impl Iterator<Item = &str> {
        let inputs = ["x", "y", "context", "init_batch", "pixels", "noise", "fit_x", "fit_context"];
        self.weights
            .names()
            .filter(move |name| !name.starts_with("param.") && !inputs.contains(name))
    }
}

/// The file's name without extension.
pub fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The header of a safetensors file: its length in eight bytes, then JSON.
fn metadata(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let length = bytes.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes) as usize);
    let header = length.and_then(|length| bytes.get(8..8usize.checked_add(length)?));
    let header: Value = serde_json::from_slice(header.ok_or("the file is too short")?)
        .map_err(|error| error.to_string())?;
    serde_json::from_value(header["__metadata__"].clone()).map_err(|error| error.to_string())
}

/// All golden files of a folder, by name.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    files
}

/// What a model computed, under the names of the file, and what it must be where the file does not
/// hold it under that name.
#[derive(Default)]
pub struct Computed {
    pub values: BTreeMap<String, Vec<f64>>,
    pub expected: BTreeMap<String, Vec<f64>>,
}

impl Computed {
    pub fn set<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) {
        self.values.insert(name.into(), values(tensor));
    }

    /// A value and what it must be.
    pub fn compare(&mut self, name: &str, value: Vec<f64>, expected: Vec<f64>) {
        self.values.insert(name.into(), value);
        self.expected.insert(name.into(), expected);
    }
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.try_into_vec_as::<f64>().expect("a float tensor")
}

/// The name under which the data that the inverse gives back are compared with `x`.
pub const INVERSE: &str = "inverse";

/// Largest error of each output.
pub type Errors = BTreeMap<String, f64>;

/// `|a - b| / (1 + |b|)`, worst entry, of everything that the file holds or `computed` adds; an
/// output that was not computed is an error.
pub fn compare(golden: &Golden, computed: &Computed) -> Result<Errors, String> {
    let mut errors = Errors::new();
    let outputs: Vec<_> = golden.outputs().collect();
    // A density alone has no map.
    let has_map = outputs.iter().any(|name| *name == "z" || *name == "z.0" || *name == "log_det");
    let is_whole =
        outputs.contains(&"log_det") && (outputs.contains(&"z") || outputs.contains(&"z.0"));
    if !is_whole && (has_map || !outputs.contains(&"log_prob")) {
        return Err("the file holds no z or no log_det to compare with".into());
    }
    for name in outputs {
        let value = computed.values.get(name).ok_or(format!("{name} was not computed"))?;
        errors.insert(name.into(), worst(name, value, golden.array(name)?.values())?);
    }
    for (name, expected) in &computed.expected {
        errors.insert(name.clone(), worst(name, &computed.values[name], expected)?);
    }
    Ok(errors)
}

fn worst(name: &str, value: &[f64], expected: &[f64]) -> Result<f64, String> {
    if value.len() != expected.len() {
        return Err(format!("{name} has {} values, not {}", value.len(), expected.len()));
    }
    let errors = value.iter().zip(expected).map(|(a, b)| (a - b).abs() / (1.0 + b.abs()));
    // A NaN must not slip through a comparison.
    Ok(errors.fold(0.0, |worst, error| if error > worst || error.is_nan() { error } else { worst }))
}

/// Every parameter of a module in another float type.
pub fn cast<M: Module>(module: M, dtype: DType) -> M {
    struct Cast(DType);
    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.cast(self.0))
        }
    }
    module.map(&mut Cast(dtype))
}
