//! Parameters of a file that remember which of its numbers they are made of, so that the gradients of a
//! model can be compared with the file's, whatever order and scale the model keeps its numbers in.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::nn::Linear;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn_flows::weights::Array;

use super::{Golden, values};

/// The number of the file that an entry is made of, if it is made of one, and the derivative by it.
type Origin = (Option<usize>, f64);

/// An array, each entry with its [`Origin`].
#[derive(Clone)]
pub struct Traced {
    shape: Vec<usize>,
    entries: Vec<(f64, Origin)>,
}

impl Traced {
    /// Numbers that do not depend on the file's.
    pub fn constant(shape: impl Into<Vec<usize>>, values: Vec<f64>) -> Self {
        let entries = values.into_iter().map(|value| (value, (None, 0.0))).collect();
        Self { shape: shape.into(), entries }
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn values(&self) -> Vec<f64> {
        self.entries.iter().map(|(value, _)| *value).collect()
    }

    pub fn reshaped(mut self, shape: impl Into<Vec<usize>>) -> Self {
        self.shape = shape.into();
        assert_eq!(self.shape.iter().product::<usize>(), self.entries.len());
        self
    }

    /// The rows (slices along the first axis) of the given numbers.
    pub fn rows(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let width: usize = self.shape[1..].iter().product();
        let (mut shape, mut entries) = (self.shape.clone(), Vec::new());
        shape[0] = 0;
        for index in indices {
            shape[0] += 1;
            entries.extend_from_slice(&self.entries[index * width..(index + 1) * width]);
        }
        Self { shape, entries }
    }

    /// The transpose of a matrix.
    pub fn transposed(&self) -> Self {
        let [rows, columns] = [self.shape[0], self.shape[1]];
        let at = |at: usize| self.entries[at % rows * columns + at / rows];
        Self { shape: vec![columns, rows], entries: (0..rows * columns).map(at).collect() }
    }

    /// The rows of `self`, then those of `below`.
    pub fn stacked(mut self, below: &Self) -> Self {
        assert_eq!(self.shape[1..], below.shape[1..]);
        self.shape[0] += below.shape[0];
        self.entries.extend_from_slice(&below.entries);
        self
    }

    /// `f` of every entry, with the derivative `slope`.
    pub fn map(mut self, f: impl Fn(f64) -> f64, slope: impl Fn(f64) -> f64) -> Self {
        for (value, (_, factor)) in &mut self.entries {
            *factor *= slope(*value);
            *value = f(*value);
        }
        self
    }

    /// Row `i` times `factor(i)` plus `offset(i)`.
    pub fn rows_mapped(
        mut self,
        factor: impl Fn(usize) -> f64,
        offset: impl Fn(usize) -> f64,
    ) -> Self {
        let width: usize = self.shape[1..].iter().product();
        for (at, (value, (_, derivative))) in self.entries.iter_mut().enumerate() {
            *value = *value * factor(at / width) + offset(at / width);
            *derivative *= factor(at / width);
        }
        self
    }

    /// Times the entries of a mask.
    pub fn masked(mut self, mask: &Array) -> Self {
        for ((value, (_, derivative)), mask) in self.entries.iter_mut().zip(mask.values()) {
            *value *= mask;
            *derivative *= mask;
        }
        self
    }
}

/// Reads a file's parameters and remembers what became of them.
pub struct Reader<'a> {
    pub golden: &'a Golden,
    /// Where the numbers of each parameter start in the count of all.
    starts: BTreeMap<String, usize>,
    origins: RefCell<HashMap<ParamId, Vec<Origin>>>,
}

impl<'a> Reader<'a> {
    pub fn new(golden: &'a Golden) -> Result<Self, String> {
        let (mut starts, mut next) = (BTreeMap::new(), 0);
        let params = golden.params();
        for name in params.names() {
            starts.insert(name.to_string(), next);
            next += params.shape(name).map_or(0, |shape| shape.iter().product::<usize>());
        }
        Ok(Self { golden, starts, origins: RefCell::default() })
    }

    pub fn params(&self) -> Params<'_> {
        Params { reader: self, prefix: String::new() }
    }

    /// A trained parameter.
    pub fn param<const D: usize>(&self, traced: Traced) -> Param<Tensor<D>> {
        let array = Array::new(traced.shape.clone(), traced.values());
        let param = Param::from_tensor(self.golden.tensor_of(&array));
        let origins = traced.entries.into_iter().map(|(_, origin)| origin).collect();
        self.origins.borrow_mut().insert(param.id, origins);
        param
    }

    /// A linear layer of a weight `[outputs, inputs]`.
    pub fn linear(&self, weight: Traced, bias: Option<Traced>) -> Linear {
        Linear { weight: self.param(weight.transposed()), bias: bias.map(|bias| self.param(bias)) }
    }

    /// The gradients by the file's numbers, by name, of those by the parameters of a module; added to
    /// `sums`, which starts with [`no_gradients`](Self::no_gradients).
    pub fn add_gradients<M: Module>(&self, module: &M, grads: &GradientsParams, sums: &mut [f64]) {
        struct Add<'a, 'b> {
            reader: &'a Reader<'b>,
            grads: &'a GradientsParams,
            sums: &'a mut [f64],
        }
        impl ModuleVisitor for Add<'_, '_> {
            fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
                let origins = self.reader.origins.borrow();
                let Some(origins) = origins.get(&param.id) else { return };
                let Some(gradient) = self.grads.get::<N>(param.id) else { return };
                for (gradient, (origin, factor)) in values(gradient).into_iter().zip(origins) {
                    if let Some(origin) = origin {
                        self.sums[*origin] += gradient * factor;
                    }
                }
            }
        }
        module.visit(&mut Add { reader: self, grads, sums });
    }

    pub fn no_gradients(&self) -> Vec<f64> {
        let count = self.golden.params().names().map(|name| self.size(name)).sum();
        vec![0.0; count]
    }

    fn size(&self, name: &str) -> usize {
        self.golden.params().shape(name).map_or(0, |shape| shape.iter().product())
    }

    /// The part of `sums` that belongs to a parameter.
    pub fn of_param(&self, name: &str, sums: &[f64]) -> Option<Vec<f64>> {
        let start = *self.starts.get(name)?;
        Some(sums[start..start + self.size(name)].to_vec())
    }
}

/// The parameters below a name.
#[derive(Clone)]
pub struct Params<'a> {
    pub reader: &'a Reader<'a>,
    prefix: String,
}

impl<'a> Params<'a> {
    pub fn under(&self, name: impl AsRef<str>) -> Self {
        Self { prefix: format!("{}{}.", self.prefix, name.as_ref()), ..self.clone() }
    }

    pub fn has(&self, name: &str) -> bool {
        self.reader.golden.params().has(&format!("{}{name}", self.prefix))
    }

    /// The numbers by which the parts are named, ascending.
    pub fn indices(&self) -> Vec<usize> {
        match self.prefix.strip_suffix('.') {
            Some(prefix) => self.reader.golden.params().under(prefix).indices(),
            None => self.reader.golden.params().indices(),
        }
    }

    pub fn array(&self, name: &str) -> Result<Array, String> {
        let full = format!("{}{name}", self.prefix);
        self.reader.golden.params().array(&full).map_err(|error| error.to_string())
    }

    /// Whole numbers.
    pub fn sizes(&self, name: &str) -> Result<Vec<usize>, String> {
        Ok(self.array(name)?.values().iter().map(|&value| value as usize).collect())
    }

    pub fn traced(&self, name: &str) -> Result<Traced, String> {
        let array = self.array(name)?;
        let start = self.reader.starts[&format!("{}{name}", self.prefix)];
        let entries = array.values().iter().enumerate();
        let entries = entries.map(|(at, &value)| (value, (Some(start + at), 1.0))).collect();
        Ok(Traced { shape: array.shape().to_vec(), entries })
    }

    /// The linear layer of `weight` and `bias`.
    pub fn linear(&self) -> Result<Linear, String> {
        let bias = if self.has("bias") { Some(self.traced("bias")?) } else { None };
        Ok(self.reader.linear(self.traced("weight")?, bias))
    }
}
