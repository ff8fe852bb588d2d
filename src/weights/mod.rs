//! Weights of other libraries, in this crate's layers.
//!
//! Other libraries order, sign and interleave what this crate's layers hold in one way only. The
//! functions here take parameters under the names their library saved them by and build the layer
//! that computes the same map; what a library computes otherwise, and not only keeps otherwise, is an
//! option of a layer. All arithmetic is done in f64 on the host and rounded once.
//!
//! Whole models, read by `load` from the file that their library saved, and written back by `save` so
//! that the library loads them:
//!
//! - [`rosinality`]: Glow of rosinality/glow-pytorch
//! - [`y0ast`]: Glow of y0ast/Glow-PyTorch
//! - [`normflows`]: multi-scale Glow, RealNVP, spline flows and masked autoregressive flows of normflows, with
//!   classes and contexts too; also its couplings, ActNorm, 1x1 convolutions and Glow blocks one by one
//! - [`chrischute`]: RealNVP of chrischute/real-nvp
//! - [`nflows`]: masked autoregressive flows and spline flows of nflows, and sbi's density estimators of them
//! - [`zuko`]: `MAF`, `NSF` and `NCSF` of zuko, and sbi's density estimators of them
//! - [`torch`]: plain PyTorch layers, and NICE and RealNVP written with them
//!
//! In the guide: [from Python](crate::guide::from_python), with code side by side.
//!
//! Glow, RealNVP and NICE are written as ONNX as well, for what is no library of flows: room `onnx`, a feature.
//!
//! ```no_run
//! use burn_flows::weights::rosinality;
//!
//! let model = rosinality::for_pixels(rosinality::load("checkpoint/model_200001.pt")?);
//! let pictures = model.sample(8, 0.7);
//! # Ok::<(), burn_flows::FlowError>(())
//! ```
//!
//! Files are safetensors, or PyTorch's own (`.pt`, `.pth`), of a state dict or of a
//! checkpoint with one in it. Sizes are found from the tensors; what a file does not hold, such as the
//! side of the images of a net of convolutions, is asked for.
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

mod archive;
mod array;
pub mod chrischute;
mod embedding;
mod exchange;
mod file;
mod layers;
pub mod nflows;
pub mod normflows;
mod pickle;
pub mod rosinality;
mod rows;
pub mod torch;
mod torch_file;
mod vectors;
pub mod y0ast;
pub mod zuko;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device, TensorData};

use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::stack::FlowStack;

pub use array::Array;
/// The former name of [`chrischute`].
pub use chrischute as real_nvp;
pub use embedding::{Embedding, Moments};
pub use vectors::{Framed, Spline, SplineOptions, VectorLayer};

/// Dictionaries that a checkpoint may keep its state dict in.
const STATE_DICTS: [&str; 6] =
    ["net", "model", "state_dict", "model_state_dict", "net_state_dict", "ema"];

/// What `nn.DataParallel` puts before the names of the model that it wraps.
const PARALLEL: &str = "module.";

/// More channels than any layer has; what is computed with their number cannot overflow.
const MOST_CHANNELS: usize = 1 << 24;

/// Named parameters of another library, and where the layers made of them shall live.
///
/// Names are those of PyTorch's `state_dict`; [`under`](Weights::under) enters a submodule. Clones
/// share the values.
#[derive(Debug, Clone)]
pub struct Weights {
    path: PathBuf,
    prefix: String,
    tensors: Arc<BTreeMap<String, TensorData>>,
    /// Names of what a file holds beside tensors.
    others: Arc<Vec<String>>,
    device: Device,
    dtype: DType,
}

impl Weights {
    /// From tensors in memory; layers are made in f32 on `device`.
    pub fn new(tensors: impl IntoIterator<Item = (String, TensorData)>, device: &Device) -> Self {
        Self {
            path: PathBuf::from("weights"),
            prefix: String::new(),
            tensors: Arc::new(tensors.into_iter().collect()),
            others: Arc::default(),
            device: device.clone(),
            dtype: DType::F32,
        }
    }

    /// From a safetensors file or one that `torch.save` wrote of a state dict, whichever it is; layers
    /// are made in f32 on `device`.
    ///
    /// A file of PyTorch's own may keep numbers and texts beside its tensors, such as the epoch of a
    /// checkpoint. One that names any function or class but those of tensors is refused; none is run.
    ///
    /// # Errors
    /// [`FlowError::Io`] if the file cannot be read; [`FlowError::Format`] if it is of another kind, cut
    /// off, announces more than it holds, or has anything but plain values and tensors in it.
    pub fn read(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::of(file::read(path)?, path, device))
    }

    /// From a safetensors file; layers are made in f32 on `device`.
    ///
    /// # Errors
    /// As [`read`](Weights::read).
    pub fn read_safetensors(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::of(file::read_safetensors(path)?, path, device))
    }

    fn of(content: file::Content, path: &Path, device: &Device) -> Self {
        let others = Arc::new(content.others);
        Self { path: path.into(), others, ..Self::new(content.tensors, device) }
    }

    /// Writes the tensors below the present prefix: a file as `torch.save` writes it where the name ends
    /// in `.pt` or `.pth`, else a safetensors file. The file is either as it was or whole.
    ///
    /// # Errors
    /// [`FlowError::Io`] if the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let full = |name: &str| format!("{}{name}", self.prefix);
        let tensors =
            self.names().map(|name| (name.to_string(), self.tensors[&full(name)].clone()));
        file::write(path.as_ref(), &tensors.collect())
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

    /// The same tensors, their names below `name`, as those of a module that holds another one:
    /// `weights.below("net")` has `net.flows.0.s` for `flows.0.s`.
    pub fn below(&self, name: impl AsRef<str>) -> Self {
        let full = |own: &str| format!("{}{own}", self.prefix);
        let tensors = self
            .names()
            .map(|own| (format!("{}.{own}", name.as_ref()), self.tensors[&full(own)].clone()));
        Self { tensors: Arc::new(tensors.collect()), prefix: String::new(), ..self.clone() }
    }

    /// Whether a tensor or a submodule of that name exists.
    pub fn has(&self, name: &str) -> bool {
        let full = format!("{}{name}", self.prefix);
        self.tensors.contains_key(&full) || !self.under(name).is_empty()
    }

    /// Whether there is nothing below the present prefix.
    pub fn is_empty(&self) -> bool {
        self.names().next().is_none()
    }

    /// Names of all tensors below the present prefix, without it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let prefix = self.prefix.as_str();
        self.tensors
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
    ///
    /// # Panics
    /// If the tensor is neither of floats, integers nor booleans.
    pub fn array(&self, name: &str) -> Result<Array> {
        let full = format!("{}{name}", self.prefix);
        self.tensors.get(&full).cloned().map(Array::from_data).ok_or_else(|| {
            self.error(
                format!("there is no tensor {full}"),
                "give weights of the layer that is asked for",
            )
        })
    }

    /// The shape of the tensor of that name, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(&format!("{}{name}", self.prefix)).map(|data| &data.shape()[..])
    }

    /// Size of a tensor along an axis, or zero where there is none that a layer can have: a table that is
    /// told so finds what is wrong.
    pub(crate) fn size(&self, name: &str, axis: usize) -> usize {
        // A tensor without values can announce any size.
        let shape = self.shape(name).filter(|shape| !shape.contains(&0));
        let size = shape.and_then(|shape| shape.get(axis)).copied().unwrap_or(0);
        if size <= MOST_CHANNELS { size } else { 0 }
    }

    /// Names of what a file holds below the present prefix beside tensors.
    pub(crate) fn others(&self) -> impl Iterator<Item = &str> {
        self.others.iter().filter_map(|name| name.strip_prefix(self.prefix.as_str()))
    }

    /// Enters the state dict of the model that has a tensor or a submodule named `marker`: the root, or
    /// one of the dictionaries of a checkpoint, with or without what `nn.DataParallel` adds.
    pub(crate) fn state_dict(&self, model: &str, marker: &str) -> Result<Self> {
        let place_of = |name: &'_ str| {
            let at = name.match_indices(marker).map(|(at, _)| at).find(|&at| {
                let (before, behind) = (&name[..at], &name[at + marker.len()..]);
                let is_part = |text: &str, is_end: bool| text.is_empty() || is_end;
                is_part(before, before.ends_with('.')) && is_part(behind, behind.starts_with('.'))
            });
            at.map(|at| name[..at].to_string())
        };
        let mut places: BTreeSet<String> = self.names().filter_map(place_of).collect();
        places.retain(|place| {
            let place = place.strip_suffix(PARALLEL).unwrap_or(place);
            place.is_empty()
                || STATE_DICTS.iter().any(|name| place.strip_suffix(".") == Some(*name))
        });
        let places: Vec<String> = places.into_iter().collect();
        match &places[..] {
            [place] => Ok(Self { prefix: format!("{}{place}", self.prefix), ..self.clone() }),
            [] => {
                let reason = format!("this is not the state dict of {model}: no {marker} in it");
                Err(self.error(reason, "give the library and class that the file was saved from"))
            }
            _ => {
                let reason = format!("there are {} state dicts of {model}", places.len());
                let advice = "choose one: Weights::read(path)?.under(\"net\")";
                Err(self.error(format!("{reason}, below {}", places.join(" and ")), advice))
            }
        }
    }

    pub(crate) fn error(&self, reason: impl Into<String>, advice: &str) -> FlowError {
        FlowError::Record { path: self.path.clone(), reason: reason.into(), advice: advice.into() }
    }
}

/// An error if a layer of a model has no inverse.
fn check_invertible<const D: usize, F, P, S>(model: &FlowStack<D, F, P, S>) -> Result<()>
where
    F: Flow<D>,
{
    model.levels.iter().try_for_each(|level| level.check())
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
