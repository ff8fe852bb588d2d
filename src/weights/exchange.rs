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

pub(super) use super::rows::Rows;
use super::{Array, Weights};
use crate::error::{FlowError, Result};
use crate::host;
use crate::param::frozen;
use crate::record;
use crate::stack::device_and_dtype;

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

    /// Whether a tensor that is read is a single number without an axis.
    pub(super) fn is_scalar(&self, name: &str) -> bool {
        self.weights.shape(&format!("{}{name}", self.prefix)).is_some_and(|shape| shape.is_empty())
    }

    /// Names of what is read, below the present one.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.weights.names().filter_map(|name| name.strip_prefix(self.prefix.as_str()))
    }

    /// The numbers of the submodules of what is read, below `name`.
    pub(super) fn indices(&self, name: &str) -> Vec<usize> {
        let full = format!("{}{name}", self.prefix);
        // Names are below a name, or where there is none below the prefix itself.
        match full.strip_suffix('.').unwrap_or(&full) {
            "" => self.weights.indices(),
            place => self.weights.under(place).indices(),
        }
    }

    /// How many numbered submodules what is read has below `name`.
    pub(super) fn count(&self, name: &str) -> usize {
        self.indices(name).len()
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

    /// The weight of a linear layer that sees two vectors beside each other, which they keep as one matrix
    /// `[out, first + second]`; ours are two of `[in, out]`. There is no second one of width zero.
    pub(super) fn transposed_parts(
        &mut self,
        name: &str,
        outputs: usize,
        [first, second]: [usize; 2],
        rows: Rows,
        ours: Option<(&Param<Tensor<2>>, Option<&Param<Tensor<2>>>)>,
    ) -> (Param<Tensor<2>>, Option<Param<Tensor<2>>>) {
        let whole = ours.map(|(first, second)| {
            let parts = [Some(first), second].into_iter().flatten();
            let parts = parts.map(|part| host::plain(part.val())).collect();
            Param::from_tensor(Tensor::cat(parts, 0))
        });
        let whole = self.transposed(name, [outputs, first + second], rows, whole.as_ref()).val();
        // A width of zero is an error that is told elsewhere; no part of it can be cut.
        if whole.dims() != [first + second, outputs] || first == 0 || outputs == 0 {
            return (Param::from_tensor(whole), None);
        }
        let part = |start, width| Param::from_tensor(whole.clone().narrow(0, start, width));
        (part(0, first), (second > 0).then(|| part(first, second)))
    }

    /// The mask of a linear layer, of 0 and 1, which they keep as `[out, in]` in type `dtype`.
    ///
    /// Theirs may have columns behind ours, which have to be 1: a context, of which nothing is left out.
    pub(super) fn mask(
        &mut self,
        name: &str,
        [outputs, inputs, beside]: [usize; 3],
        dtype: DType,
        rows: Rows,
        ours: Option<&Param<Tensor<2>>>,
    ) -> Tensor<2> {
        let shape = [outputs, inputs + beside];
        if let Some(ours) = ours {
            let turned = host::plain(ours.val()).transpose();
            let ones = Tensor::ones([outputs, beside], (&turned.device(), turned.dtype()));
            let whole = if beside > 0 { Tensor::cat(vec![turned, ones], 1) } else { turned };
            let array = rows.to_theirs(Array::new(shape, host::to_f64(whole)));
            self.write(name, &shape, dtype, array.into_values());
            return ours.val();
        }
        let Some(array) = self.read(name, &shape) else { return self.placeholder() };
        let array = rows.to_ours(array);
        if array.values().iter().any(|&value| value != 0.0 && value != 1.0) {
            self.refuse_value(name, "is a mask of other values than 0 and 1");
        }
        let (mut values, width) = (vec![0.0; inputs * outputs], inputs + beside);
        for (at, &value) in array.values().iter().enumerate() {
            let (row, column) = (at / width, at % width);
            match values.get_mut(column * outputs + row) {
                Some(place) if column < inputs => *place = value,
                _ if value == 1.0 => {}
                _ => {
                    self.refuse_value(name, "leaves out a part of the context");
                    break;
                }
            }
        }
        host::from_f64(values, [inputs, outputs], self.device(), self.dtype())
    }

    /// Whole numbers that the layer keeps as a setting; none where they are not as they should be.
    pub(super) fn numbers(
        &mut self,
        name: &str,
        count: usize,
        ours: Option<&[usize]>,
    ) -> Vec<usize> {
        if let Some(ours) = ours {
            self.write(name, &[count], DType::I64, ours.iter().map(|&n| n as f64).collect());
            return ours.to_vec();
        }
        let values = self.values(name, &[count]);
        if values.iter().any(|&value| value < 0.0 || value.fract() != 0.0) {
            self.refuse_value(name, "has other values than whole numbers");
            return Vec::new();
        }
        values.into_iter().map(|value| value as usize).collect()
    }

    /// A matrix of which they keep the entries at some `places` in a vector, `count` of them; `ours` are the
    /// values of all.
    pub(super) fn scattered(
        &mut self,
        name: &str,
        shape: [usize; 2],
        count: usize,
        places: impl Iterator<Item = usize>,
        ours: Option<Vec<f64>>,
    ) -> Param<Tensor<2>> {
        if let Some(ours) = ours {
            self.write(name, &[count], self.dtype(), places.map(|place| ours[place]).collect());
            return Param::from_tensor(self.placeholder());
        }
        let Some(theirs) = self.read(name, &[count]) else {
            return Param::from_tensor(self.placeholder());
        };
        let mut values = vec![0.0; shape[0] * shape[1]];
        places.zip(theirs.values()).for_each(|(place, value)| values[place] = *value);
        Param::from_tensor(host::from_f64(values, shape, self.device(), self.dtype()))
    }

    /// A vector of several kinds of numbers for each feature, kind by kind, of which they keep some kinds
    /// each in a matrix `[features, kinds]` of its own.
    pub(super) fn by_kind(
        &mut self,
        parts: &[(&str, usize)],
        features: usize,
        ours: Option<&Param<Tensor<1>>>,
    ) -> Param<Tensor<1>> {
        if let Some(ours) = ours {
            let values = host::to_f64(host::plain(ours.val()));
            let mut start = 0;
            for &(name, kinds) in parts {
                let own =
                    Array::new([kinds, features], values[start..start + kinds * features].to_vec());
                self.write(name, &[features, kinds], self.dtype(), own.transposed().into_values());
                start += kinds * features;
            }
            return ours.clone();
        }
        let read: Vec<Option<Array>> =
            parts.iter().map(|&(name, kinds)| self.read(name, &[features, kinds])).collect();
        let read: Option<Vec<Array>> = read.into_iter().collect();
        let Some(read) = read else { return Param::from_tensor(self.placeholder()) };
        self.vector(read.into_iter().flat_map(|part| part.transposed().into_values()).collect())
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

    /// The value of all entries of a vector, which is the same in every such model up to the rounding of its
    /// type.
    pub(super) fn nearly(
        &mut self,
        name: &str,
        count: usize,
        expected: f64,
        ours: Option<f64>,
    ) -> f64 {
        if let Some(ours) = ours {
            self.write(name, &[count], self.dtype(), vec![ours; count]);
            return ours;
        }
        let theirs = self.values(name, &[count]);
        let first = theirs.first().copied().unwrap_or(expected);
        if (first - expected).abs() > 1e-6 || theirs.iter().any(|&value| value != first) {
            self.refuse_value(name, "has other values than every such model");
        }
        rounded(first, self.dtype())
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

    /// Whether all that was read is there, in its shape and usable: else layers cannot be made of it.
    pub(super) fn is_sound(&self) -> bool {
        self.missing.is_empty() && self.misshaped.is_empty() && self.unusable.is_empty()
    }

    /// An error about what is read, for a layer that its tensors do not make.
    pub(super) fn unfit(&self, reason: &str) -> FlowError {
        let advice =
            "give the state dict of a model of layers that are listed in the documentation";
        self.weights.error(format!("{}: {reason}", self.prefix.trim_end_matches('.')), advice)
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

/// Their shape with our number of axes: all in one, or without axes of size one at the start or the end.
fn own_shape<const D: usize>(theirs: &[usize]) -> [usize; D] {
    let mut own = [1; D];
    if D == 1 {
        own[0] = theirs.iter().product();
    } else {
        let excess = theirs.len().saturating_sub(D);
        let is_leading = theirs[..excess].iter().all(|&size| size == 1);
        let kept = &theirs[if is_leading { excess } else { 0 }..];
        let count = D.min(kept.len());
        own[..count].copy_from_slice(&kept[..count]);
    }
    own
}

/// A number that a layer keeps beside its parameters, in their precision, so that it comes back as it was.
pub(super) fn rounded(value: f64, dtype: DType) -> f64 {
    if dtype == DType::F32 { f64::from(value as f32) } else { value }
}

/// The weights of a model, if it is what they read back as: with settings that `library` does not have they would
/// be another one's there.
pub(super) fn that_read_back<M: Module>(
    library: &str,
    model: &M,
    weights: Weights,
    read: impl FnOnce(&Weights) -> Result<M>,
) -> Result<Weights> {
    let expected = record::to_bytes(model)?;
    let again = read(&weights.clone().with_dtype(device_and_dtype(model).1));
    if again.and_then(|again| record::to_bytes(&again)).is_ok_and(|again| again == expected) {
        return Ok(weights);
    }
    Err(FlowError::invalid(
        format!("weights for {library}"),
        "a model with a layer, a setting or a shape that its file cannot tell",
        "one that reads back as it is, with the same options",
        "export a model that was read from there, or save it as a record",
    ))
}
