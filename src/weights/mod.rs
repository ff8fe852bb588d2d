//! Weights of other libraries, in this crate's layers.
//!
//! Other libraries order, sign and interleave what this crate's layers hold in one way only. The
//! functions here take parameters under the names their library saved them by and build the layer
//! that computes the same map; the layers themselves know of no convention but their own. All
//! arithmetic is done in f64 on the host and rounded once.
//!
//! - [`normflows`]: couplings, ActNorm, 1x1 convolutions, Glow blocks and multi-scale models
//! - [`torch`]: plain PyTorch layers, and NICE and RealNVP written with them
//! - [`real_nvp`]: the residual RealNVP of chrischute/real-nvp
//!
//! ```
//! use burn::tensor::TensorData;
//! use burn_flows::weights::{Weights, normflows};
//!
//! let device = burn_flows::backend::device();
//! let weights = Weights::new([
//!     ("s".into(), TensorData::from([[0.0f64, 3.0]])),
//!     ("t".into(), TensorData::from([[1.0f64, 2.0]])),
//! ], &device);
//! let norm = normflows::act_norm(&weights)?;
//! assert_eq!(norm.bias.val().try_into_vec_as::<f32>().unwrap(), [-1.0, -2.0]);
//! # Ok::<(), burn_flows::FlowError>(())
//! ```

mod array;
pub mod normflows;
pub mod real_nvp;
pub mod torch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::Param;
use burn::store::{ModuleStore, SafetensorsStore, bridge};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::error::{FlowError, Result};
use crate::param::frozen;

pub use array::Array;

/// Named parameters of another library, and where the layers made of them shall live.
///
/// Names are those of PyTorch's `state_dict`; [`under`](Weights::under) enters a submodule. Clones
/// share the values.
#[derive(Debug, Clone)]
pub struct Weights {
    path: PathBuf,
    prefix: String,
    arrays: Arc<BTreeMap<String, Array>>,
    device: Device,
    dtype: DType,
}

impl Weights {
    /// From tensors in memory; layers are made in f32 on `device`.
    ///
    /// # Panics
    /// If a tensor is neither of floats, integers nor booleans.
    pub fn new(tensors: impl IntoIterator<Item = (String, TensorData)>, device: &Device) -> Self {
        let arrays =
            tensors.into_iter().map(|(name, data)| (name, Array::from_data(data))).collect();
        Self {
            path: PathBuf::from("weights"),
            prefix: String::new(),
            arrays: Arc::new(arrays),
            device: device.clone(),
            dtype: DType::F32,
        }
    }

    /// From a safetensors file; layers are made in f32 on `device`.
    ///
    /// # Errors
    /// [`FlowError::Record`] if the file cannot be read or is not a safetensors file.
    pub fn read_safetensors(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let error = |reason: String| FlowError::Record {
            path: path.into(),
            reason,
            advice: "check that the file exists and is a whole safetensors file".into(),
        };
        let mut store = SafetensorsStore::from_file(path);
        let tensors = store.get_all_tensors().map_err(|source| error(source.to_string()))?;
        let mut read = Vec::with_capacity(tensors.len());
        for (name, tensor) in tensors {
            let data = bridge::to_data(tensor).map_err(|source| error(source.to_string()))?;
            read.push((name.clone(), data));
        }
        Ok(Self { path: path.into(), ..Self::new(read, device) })
    }

    /// The same weights, for layers of the given float type.
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// The float type of the layers that are made.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device of the layers that are made.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The weights below `name`: `weights.under("flows.0").array("s")` is `flows.0.s`.
    pub fn under(&self, name: impl AsRef<str>) -> Self {
        Self { prefix: format!("{}{}.", self.prefix, name.as_ref()), ..self.clone() }
    }

    /// Whether a tensor or a submodule of that name exists.
    pub fn has(&self, name: &str) -> bool {
        let full = format!("{}{name}", self.prefix);
        self.arrays.contains_key(&full) || !self.under(name).is_empty()
    }

    /// Whether there is nothing below the present prefix.
    pub fn is_empty(&self) -> bool {
        self.names().next().is_none()
    }

    /// Names of all tensors below the present prefix, without it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let prefix = self.prefix.as_str();
        self.arrays
            .range(prefix.to_string()..)
            .map_while(move |(name, _)| name.strip_prefix(prefix))
    }

    /// The numbers by which the submodules are named (`0.weight`, `2.weight`: 0 and 2), ascending.
    pub fn indices(&self) -> Vec<usize> {
        let mut indices: Vec<usize> =
            self.names().filter_map(|name| name.split('.').next()?.parse().ok()).collect();
        indices.sort_unstable();
        indices.dedup();
        indices
    }

    /// The values of the tensor of that name.
    ///
    /// # Errors
    /// [`FlowError::Record`] if there is none.
    pub fn array(&self, name: &str) -> Result<Array> {
        let full = format!("{}{name}", self.prefix);
        self.arrays.get(&full).cloned().ok_or_else(|| {
            self.error(
                format!("there is no tensor {full}"),
                "give weights of the layer that is asked for",
            )
        })
    }

    pub(crate) fn error(&self, reason: impl Into<String>, advice: &str) -> FlowError {
        FlowError::Record { path: self.path.clone(), reason: reason.into(), advice: advice.into() }
    }

    /// A tensor of the layers' type on their device.
    pub(crate) fn tensor<const D: usize>(&self, array: Array) -> Result<Tensor<D>> {
        let rank = array.shape().len();
        array.tensor(&self.device, self.dtype).ok_or_else(|| {
            self.error(
                format!("a tensor below {:?} has rank {rank}, but rank {D} is needed", self.prefix),
                "give weights of the layer that is asked for",
            )
        })
    }

    pub(crate) fn param<const D: usize>(&self, array: Array) -> Result<Param<Tensor<D>>> {
        Ok(Param::from_tensor(self.tensor(array)?))
    }

    pub(crate) fn frozen<const D: usize>(&self, array: Array) -> Result<Param<Tensor<D>>> {
        Ok(frozen(self.tensor(array)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights() -> Weights {
        let tensor = |value: f64| TensorData::from([value]);
        Weights::new(
            ["net.0.weight", "net.10.weight", "net.2.weight", "network"]
                .map(|name| (name.to_string(), tensor(1.0))),
            &crate::backend::device(),
        )
    }

    #[test]
    fn submodules_are_found_by_number() {
        assert_eq!(weights().under("net").indices(), [0, 2, 10]);
        assert!(weights().has("net") && weights().has("net.0") && !weights().has("ne"));
    }

    #[test]
    fn a_missing_tensor_is_named() {
        let message = weights().under("net.3").array("weight").unwrap_err().to_string();
        assert_eq!(
            message,
            "weights: there is no tensor net.3.weight; give weights of the layer that is asked for"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error() {
        let device = crate::backend::device();
        assert!(Weights::read_safetensors("no/such/file.safetensors", &device).is_err());
    }
}
