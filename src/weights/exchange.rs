//! One description of a model's names for both ways: from another library's tensors to layers and back.
//!
//! A table is a function that goes through a model layer by layer and says for each parameter under
//! which name and in which shape the other library keeps it. Reading makes the parameter of the tensor,
//! writing the tensor of the parameter; whatever a table does to one it undoes in the other, so that a
//! round trip changes no bit. Where a model is written its layers are given to the table (`ours`), where
//! it is read there are none. What is missing or misshaped is collected and reported at the end, all at
//! once.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{Array, Weights};
use crate::error::Result;
use crate::host;
use crate::param::frozen;
use crate::stack::device_and_dtype;

/// Our rows (slices along the first axis) made of theirs: for each of ours the number of theirs, and a
/// sign.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rows(Option<Vec<(usize, f64)>>);

impl Rows {
    /// As they are.
    pub(super) fn same() -> Self {
        Self(None)
    }

    /// In the given order.
    pub(super) fn in_order(order: impl IntoIterator<Item = usize>) -> Self {
        Self(Some(order.into_iter().map(|row| (row, 1.0)).collect()))
    }

    /// Theirs are `first half, second half`, ours `second half, first half`.
    pub(super) fn halves_swapped(count: usize) -> Self {
        Self::in_order((count / 2..count).chain(0..count / 2))
    }

    /// Theirs are interleaved, ours the even ones, then the odd ones.
    pub(super) fn deinterleaved(count: usize) -> Self {
        Self::in_order((0..count).step_by(2).chain((1..count).step_by(2)))
    }

    /// All signs turned.
    pub(super) fn all_negated(count: usize) -> Self {
        Self::signed((0..count).map(|row| (row, -1.0)))
    }

    /// For each of ours the number of theirs, and a sign.
    pub(super) fn signed(rows: impl IntoIterator<Item = (usize, f64)>) -> Self {
        Self(Some(rows.into_iter().collect()))
    }

    fn to_ours(&self, theirs: Array) -> Array {
        let Some(rows) = &self.0 else { return theirs };
        let width = theirs.shape()[1..].iter().product::<usize>();
        let ours = theirs.rows(rows.iter().map(|(row, _)| *row));
        let shape = ours.shape().to_vec();
        let values = ours.into_values().into_iter().enumerate();
        Array::new(shape, values.map(|(at, value)| value * rows[at / width].1).collect())
    }

    fn to_theirs(&self, ours: Array) -> Array {
        let Some(rows) = &self.0 else { return ours };
        let mut back = vec![(0, 1.0); rows.len()];
        for (to, &(from, sign)) in rows.iter().enumerate() {
            back[from] = (to, sign);
        }
        Self(Some(back)).to_ours(ours)
    }
}

/// The other library's tensors in the making, or in the reading.
#[derive(Debug)]
pub(super) struct Exchange {
    /// What is read; nothing of it where a model is written.
    weights: Weights,
    is_reading: bool,
    prefix: String,
    /// Names that the model has.
    known: BTreeSet<String>,
    missing: Vec<String>,
    misshaped: Vec<String>,
    not_finite: Vec<String>,
    unusable: Vec<String>,
    written: BTreeMap<String, TensorData>,
}

impl Exchange {
    /// To make layers of tensors.
    pub(super) fn reading(weights: &Weights) -> Self {
        Self::new(weights.clone(), true)
    }

    /// To make tensors of the layers of a model.
    pub(super) fn writing<M: Module>(model: &M) -> Self {
        let (device, dtype) = device_and_dtype(model);
        Self::new(Weights::new([], &device).with_dtype(dtype), false)
    }

    fn new(weights: Weights, is_reading: bool) -> Self {
        Self {
            weights,
            is_reading,
            prefix: String::new(),
            known: BTreeSet::new(),
            missing: Vec::new(),
            misshaped: Vec::new(),
            not_finite: Vec::new(),
            unusable: Vec::new(),
            written: BTreeMap::new(),
        }
    }

    /// Where the parameters of layers that are read live.
    pub(super) fn device(&self) -> &Device {
        self.weights.device()
    }

    /// The float type of the parameters.
    pub(super) fn dtype(&self) -> DType {
        self.weights.dtype()
    }

    /// Whether what is read has a tensor or a submodule of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.weights.has(&format!("{}{name}", self.prefix))
    }

    /// Size along an axis of a tensor that is read, or zero.
    pub(super) fn size(&self, name: &str, axis: usize) -> usize {
        self.weights.size(&format!("{}{name}", self.prefix), axis)
    }

    /// How many numbered submodules what is read has below `name`.
    pub(super) fn count(&self, name: &str) -> usize {
        self.weights.under(format!("{}{name}", self.prefix)).indices().len()
    }

    /// What `table` says, its names being below `name`.
    pub(super) fn under<R>(
        &mut self,
        name: impl AsRef<str>,
        table: impl FnOnce(&mut Self) -> R,
    ) -> R {
        let length = self.prefix.len();
        self.prefix = format!("{}{}.", self.prefix, name.as_ref());
        let result = table(self);
        self.prefix.truncate(length);
        result
    }

    /// A trained parameter that they keep under `name` in `shape`, with the same values but for axes of
    /// size one and the order of the rows.
    pub(super) fn param<const D: usize>(
        &mut self,
        name: &str,
        shape: &[usize],
        rows: Rows,
        ours: Option<&Param<Tensor<D>>>,
    ) -> Param<Tensor<D>> {
        Param::from_tensor(self.tensor(name, shape, &rows, ours))
    }

    /// As [`param`](Self::param), of one that is not trained.
    pub(super) fn frozen<const D: usize>(
        &mut self,
        name: &str,
        shape: &[usize],
        rows: Rows,
        ours: Option<&Param<Tensor<D>>>,
    ) -> Param<Tensor<D>> {
        frozen(self.tensor(name, shape, &rows, ours))
    }

    /// A mark that they keep in a scalar of type `dtype`, 0 or 1.
    pub(super) fn mark(
        &mut self,
        name: &str,
        dtype: DType,
        ours: Option<&Param<Tensor<1>>>,
    ) -> Param<Tensor<1>> {
        match ours {
            Some(ours) => {
                self.write(name, &[], dtype, host::to_f64(host::plain(ours.val())));
                ours.clone()
            }
            None => self.frozen(name, &[], Rows::same(), None),
        }
    }

    /// The weight `[in, out]` of a linear layer, which they keep as `[out, in]`.
    pub(super) fn transposed(
        &mut self,
        name: &str,
        shape: [usize; 2],
        rows: Rows,
        ours: Option<&Param<Tensor<2>>>,
    ) -> Param<Tensor<2>> {
        let turned = ours.map(|ours| Param::from_tensor(host::plain(ours.val()).transpose()));
        Param::from_tensor(self.tensor(name, &shape, &rows, turned.as_ref()).transpose())
    }

    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: &[usize],
        rows: &Rows,
        ours: Option<&Param<Tensor<D>>>,
    ) -> Tensor<D> {
        if let Some(ours) = ours {
            let tensor = host::plain(ours.val());
            let (own, dtype) = (tensor.dims(), tensor.dtype());
            let array = rows.to_theirs(Array::new(own, host::to_f64(tensor.clone())));
            self.write(name, shape, dtype, array.into_values());
            return tensor;
        }
        let Some(array) = self.read(name, shape) else { return self.placeholder() };
        let own = own_shape::<D>(shape);
        let array = rows.to_ours(Array::new(own, array.into_values()));
        host::from_f64(array.into_values(), own, self.weights.device(), self.weights.dtype())
    }

    /// What stands for a tensor that is not there: the model is not given to anyone.
    fn placeholder<const D: usize>(&self) -> Tensor<D> {
        Tensor::zeros([1; D], (self.weights.device(), self.weights.dtype()))
    }

    /// A tensor whose values the model gives and does not take: they are written, and where they are
    /// read only their shape counts.
    pub(super) fn given(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        values: impl FnOnce() -> Vec<f64>,
    ) {
        if self.is_reading {
            self.read(name, shape);
        } else {
            self.write(name, shape, dtype, values());
        }
    }

    /// As [`given`](Self::given), of a tensor that a file need not hold.
    pub(super) fn given_if_there(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        values: impl FnOnce() -> Vec<f64>,
    ) {
        if !self.is_reading || self.has(name) {
            self.given(name, shape, dtype, values);
        }
    }

    /// As [`given`](Self::given), of values on which what the model computes depends: others are not
    /// those of any model of this crate.
    pub(super) fn constant(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        values: impl FnOnce() -> Vec<f64>,
    ) {
        if !self.is_reading {
            self.write(name, shape, dtype, values());
        } else if self.read(name, shape).is_some_and(|theirs| theirs.values() != values()) {
            self.refuse_value(name, "has other values than every such model");
        }
    }

    /// The one value of a tensor, which is written or read.
    pub(super) fn number(&mut self, name: &str, shape: &[usize], ours: Option<f64>) -> f64 {
        if let Some(ours) = ours {
            self.write(name, shape, self.dtype(), vec![ours]);
            return ours;
        }
        self.values(name, shape).first().copied().unwrap_or(f64::NAN)
    }

    /// The values of a tensor that is read; none where it is not as it should be.
    pub(super) fn values(&mut self, name: &str, shape: &[usize]) -> Vec<f64> {
        self.read(name, shape).map_or(Vec::new(), Array::into_values)
    }

    /// A trained parameter made of such values.
    pub(super) fn vector(&self, values: Vec<f64>) -> Param<Tensor<1>> {
        let shape = [values.len()];
        Param::from_tensor(host::from_f64(values, shape, self.device(), self.dtype()))
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Option<Array> {
        let full = format!("{}{name}", self.prefix);
        self.known.insert(full.clone());
        let Some(theirs) = self.weights.shape(&full) else {
            self.missing.push(full);
            return None;
        };
        if theirs != shape {
            self.misshaped.push(format!("{full} is {theirs:?}, not {shape:?}"));
            return None;
        }
        let array = self.weights.array(&full).ok()?;
        let bad = array.values().iter().filter(|value| !value.is_finite()).count();
        if bad > 0 {
            self.not_finite.push(format!("{full} ({bad} of {} values)", array.values().len()));
        }
        Some(array)
    }

    fn write(&mut self, name: &str, shape: &[usize], dtype: DType, values: Vec<f64>) {
        let data = TensorData::new(values, shape.to_vec()).convert_dtype(dtype);
        self.written.insert(format!("{}{name}", self.prefix), data);
    }

    /// Notes that what is read cannot be a model of this crate.
    pub(super) fn refuse_value(&mut self, name: &str, reason: &str) {
        self.unusable.push(format!("{}{name} {reason}", self.prefix));
    }

    /// An error that lists everything in which the tensors are not those of the model.
    pub(super) fn check(&self, model: &str) -> Result<()> {
        let extra = self.weights.names().chain(self.weights.others());
        let extra = extra.filter(|name| !self.known.contains(*name)).map(str::to_string);
        self.refuse(model, extra.collect())
    }

    /// As [`check`](Self::check) of a single layer, which may have others beside it.
    pub(super) fn check_layer(&self, layer: &str) -> Result<()> {
        self.refuse(layer, Vec::new())
    }

    fn refuse(&self, model: &str, extra: Vec<String>) -> Result<()> {
        let kinds = [
            ("missing", &self.missing),
            ("of another shape", &self.misshaped),
            ("not finite", &self.not_finite),
            ("not usable", &self.unusable),
            ("not of the model", &extra),
        ];
        let lists: Vec<String> = kinds
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(kind, names)| format!("{} {kind}: {}", names.len(), names.join(", ")))
            .collect();
        if lists.is_empty() {
            return Ok(());
        }
        let reason = format!("these are not the tensors of {model}: {}", lists.join("; "));
        let advice = "give the state dict of such a model, whole and as the library saved it";
        Err(self.weights.error(reason, advice))
    }

    /// The tensors of a model that was written.
    pub(super) fn into_weights(self) -> Weights {
        let device = self.weights.device().clone();
        Weights::new(self.written, &device)
    }
}

/// Their shape with our number of axes: all in one, or without axes of size one at the end.
fn own_shape<const D: usize>(theirs: &[usize]) -> [usize; D] {
    let mut own = [1; D];
    if D == 1 {
        own[0] = theirs.iter().product();
    } else {
        let count = D.min(theirs.len());
        own[..count].copy_from_slice(&theirs[..count]);
    }
    own
}
