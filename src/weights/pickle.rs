//! Just enough of Python's pickles to read tensors.
//!
//! A pickle is a program that builds objects and may call any function of Python. Here nothing is called:
//! the functions that build tensors are recognized by name, and a pickle that names any other is refused,
//! even where it would throw the result away.
//!
//! Not burn-store, whose reader (pytorch-reader 0.22) passes over calls that it does not know: a file that would
//! run a command when PyTorch loads it is read without a word there.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::DType;

use super::archive::Checked;

/// How deep collections may be nested, and how many values a walk through them may meet: a pickle can
/// hold the same collection twice, so that few bytes describe many values.
const MOST_DEPTH: usize = 32;
const MOST_VALUES: usize = 1 << 20;

/// A place in the values of a pickle; collections hold places, so that what is there twice is one.
pub(super) type At = usize;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// What no tensor is made of: None, a float, bytes.
    Other,
    Bool(bool),
    Int(i64),
    Text(String),
    Name(Known),
    Tuple(Vec<At>),
    List(Vec<At>),
    Dict(Vec<(At, At)>),
    Storage(Storage),
    Tensor(View),
}

/// A function or class that a state dict is built with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Known {
    OrderedDict,
    /// `_rebuild_tensor` or `_rebuild_tensor_v2`.
    Tensor,
    /// `_rebuild_parameter`.
    Parameter,
    Storage(DType),
}

/// Values that tensors look at, as the pickle declares them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) dtype: DType,
    pub(super) length: usize,
}

/// A tensor: where in a storage its values are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    pub(super) storage: Storage,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// A pickle's values.
#[derive(Debug, Default)]
pub(super) struct Pickle {
    values: Vec<Value>,
    root: At,
}

impl Pickle {
    /// Reads one pickle, and gives back what comes behind it.
    pub(super) fn read(bytes: &[u8]) -> Checked<(Self, &[u8])> {
        Machine::default().run(bytes)
    }

    pub(super) fn root(&self) -> &Value {
        &self.values[self.root]
    }

    pub(super) fn value(&self, at: At) -> &Value {
        &self.values[at]
    }

    /// The entry of a dictionary.
    pub(super) fn entry(&self, dict: &Value, name: &str) -> Option<&Value> {
        let Value::Dict(entries) = dict else { return None };
        let is_named = |key: At| matches!(self.value(key), Value::Text(text) if text == name);
        entries.iter().find(|(key, _)| is_named(*key)).map(|(_, value)| self.value(*value))
    }

    /// All tensors by the path of keys and numbers to them, joined with dots; and the paths of what is
    /// neither a tensor nor a collection.
    pub(super) fn tensors(&self) -> Checked<(BTreeMap<String, View>, Vec<String>)> {
        let (mut tensors, mut others) = (BTreeMap::new(), Vec::new());
        if !matches!(self.root(), Value::Dict(_)) {
            return Err("a pickle that is no dictionary".into());
        }
        self.walk(self.root, &mut Vec::new(), &mut 0, &mut tensors, &mut others)?;
        others.sort();
        Ok((tensors, others))
    }

    fn walk(
        &self,
        at: At,
        path: &mut Vec<String>,
        met: &mut usize,
        tensors: &mut BTreeMap<String, View>,
        others: &mut Vec<String>,
    ) -> Checked<()> {
        *met += 1;
        if *met > MOST_VALUES || path.len() > MOST_DEPTH {
            return Err("a pickle of more values than any state dict has".into());
        }
        let mut enter = |key: String, at: At| {
            path.push(key);
            self.walk(at, path, met, tensors, others)?;
            path.pop();
            Ok(())
        };
        match self.value(at) {
            Value::Dict(entries) => entries.iter().try_for_each(|&(key, value)| {
                let key = match self.value(key) {
                    Value::Text(text) => text.clone(),
                    Value::Int(number) => number.to_string(),
                    _ => return Err("a dictionary with a key that is no text".to_string()),
                };
                enter(key, value)
            }),
            Value::List(values) | Value::Tuple(values) => values
                .iter()
                .enumerate()
                .try_for_each(|(index, &value)| enter(index.to_string(), value)),
            Value::Tensor(view) => {
                let name = path.join(".");
                match tensors.insert(name.clone(), view.clone()) {
                    None => Ok(()),
                    Some(_) => Err(format!("two tensors named {name}")),
                }
            }
            _ => {
                others.push(path.join("."));
                Ok(())
            }
        }
    }
}

/// The stack machine that a pickle is a program for.
#[derive(Default)]
struct Machine {
    values: Vec<Value>,
    stack: Vec<At>,
    marks: Vec<usize>,
    memo: HashMap<u64, At>,
}

const CUT_OFF: &str = "a pickle that is cut off";
const BROKEN: &str = "a broken pickle";

impl Machine {
    fn run(mut self, bytes: &[u8]) -> Checked<(Pickle, &[u8])> {
        let mut input = Input(bytes);
        loop {
            match input.take(1)?[0] {
                b'.' => {
                    let root = self.pop()?;
                    return Ok((Pickle { values: self.values, root }, input.0));
                }
                // Protocol and frame.
                0x80 => drop(input.take(1)?),
                0x95 => drop(input.take(8)?),
                // Functions and classes.
                b'c' => {
                    let (module, name) = (input.line()?, input.line()?);
                    self.push(Value::Name(known(&module, &name)?));
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    self.push(Value::Name(known(&module, &name)?));
                }
                b'R' => self.call()?,
                b'Q' => {
                    let at = self.pop()?;
                    let storage = self.storage(at)?;
                    self.push(Value::Storage(storage));
                }
                // What an OrderedDict has beside its entries (the versions of modules).
                b'b' => {
                    self.pop()?;
                    if !matches!(self.values[self.top()?], Value::Dict(_)) {
                        return Err("an object with a state, which is no tensor".into());
                    }
                }
                // Plain values.
                b'N' => self.push(Value::Other),
                0x88 => self.push(Value::Bool(true)),
                0x89 => self.push(Value::Bool(false)),
                b'K' => self.push_int(&mut input, 1)?,
                b'M' => self.push_int(&mut input, 2)?,
                b'J' => {
                    let bits = input.number(4)? as u32;
                    self.push(Value::Int(i64::from(bits as i32)));
                }
                0x8a => {
                    let length = input.number(1)?;
                    let number = signed(input.take(length)?);
                    self.push(number);
                }
                b'G' => {
                    input.take(8)?;
                    self.push(Value::Other);
                }
                b'X' => self.push_text(&mut input, 4)?,
                0x8c | b'U' => self.push_text(&mut input, 1)?,
                b'B' => self.push_bytes(&mut input, 4)?,
                b'C' => self.push_bytes(&mut input, 1)?,
                // Collections.
                b')' => self.push(Value::Tuple(Vec::new())),
                b']' => self.push(Value::List(Vec::new())),
                b'}' => self.push(Value::Dict(Vec::new())),
                b'(' => self.marks.push(self.stack.len()),
                b't' => {
                    let values = self.pop_marked()?;
                    self.push(Value::Tuple(values));
                }
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b'a' => {
                    let value = self.pop()?;
                    self.append(vec![value])?;
                }
                b'e' => {
                    let values = self.pop_marked()?;
                    self.append(values)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let values = self.pop_marked()?;
                    self.set(values)?;
                }
                // The memory of what was built.
                b'q' => self.keep(input.number(1)?)?,
                b'r' => self.keep(input.number(4)?)?,
                0x94 => self.keep(self.memo.len() as u64)?,
                b'h' => self.recall(input.number(1)?)?,
                b'j' => self.recall(input.number(4)?)?,
                b'0' => drop(self.pop()?),
                other => return Err(format!("a pickle with the instruction {other:#04x}")),
            }
        }
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn top(&self) -> Checked<At> {
        if self.marks.last() == Some(&self.stack.len()) {
            return Err(BROKEN.into());
        }
        self.stack.last().copied().ok_or(BROKEN.into())
    }

    fn pop(&mut self) -> Checked<At> {
        let at = self.top()?;
        self.stack.pop();
        Ok(at)
    }

    fn pop_text(&mut self) -> Checked<String> {
        let at = self.pop()?;
        match &self.values[at] {
            Value::Text(text) => Ok(text.clone()),
            _ => Err(BROKEN.into()),
        }
    }

    fn pop_marked(&mut self) -> Checked<Vec<At>> {
        let mark = self.marks.pop().ok_or(BROKEN)?;
        Ok(self.stack.split_off(mark))
    }

    fn push_int(&mut self, input: &mut Input<'_>, width: usize) -> Checked<()> {
        let number = input.number(width)?;
        self.push(Value::Int(number as i64));
        Ok(())
    }

    fn push_text(&mut self, input: &mut Input<'_>, width: usize) -> Checked<()> {
        let length = input.number(width)?;
        let text = String::from_utf8(input.take(length)?.to_vec()).map_err(|_| BROKEN)?;
        self.push(Value::Text(text));
        Ok(())
    }

    fn push_bytes(&mut self, input: &mut Input<'_>, width: usize) -> Checked<()> {
        let length = input.number(width)?;
        input.take(length)?;
        self.push(Value::Other);
        Ok(())
    }

    fn tuple(&mut self, count: usize) -> Checked<()> {
        let mut values = (0..count).map(|_| self.pop()).collect::<Checked<Vec<_>>>()?;
        values.reverse();
        self.push(Value::Tuple(values));
        Ok(())
    }

    fn append(&mut self, more: Vec<At>) -> Checked<()> {
        let at = self.top()?;
        let Value::List(values) = &mut self.values[at] else { return Err(BROKEN.into()) };
        values.extend(more);
        Ok(())
    }

    fn set(&mut self, pairs: Vec<At>) -> Checked<()> {
        let at = self.top()?;
        let Value::Dict(entries) = &mut self.values[at] else { return Err(BROKEN.into()) };
        let (pairs, []) = pairs.as_chunks() else { return Err(BROKEN.into()) };
        entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn keep(&mut self, index: u64) -> Checked<()> {
        let at = self.top()?;
        self.memo.insert(index, at);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Checked<()> {
        let at = self.memo.get(&index).ok_or(BROKEN)?;
        self.stack.push(*at);
        Ok(())
    }

    /// What one of the [`Known`] functions would give.
    fn call(&mut self) -> Checked<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Name(function), Value::Tuple(arguments)) =
            (&self.values[function], &self.values[arguments])
        else {
            return Err(BROKEN.into());
        };
        let value = match (*function, &arguments[..]) {
            (Known::OrderedDict, []) => Value::Dict(Vec::new()),
            (Known::OrderedDict, [items]) => Value::Dict(self.pairs(*items)?),
            (Known::Tensor, [storage, offset, shape, strides, ..]) => {
                let Value::Storage(storage) = &self.values[*storage] else {
                    return Err(BROKEN.into());
                };
                let view = View {
                    storage: storage.clone(),
                    offset: self.size(*offset)?,
                    shape: self.sizes(*shape)?,
                    strides: self.sizes(*strides)?,
                };
                if view.shape.len() != view.strides.len() {
                    return Err(BROKEN.into());
                }
                Value::Tensor(view)
            }
            (Known::Parameter, [tensor, ..]) => self.values[*tensor].clone(),
            _ => return Err(BROKEN.into()),
        };
        self.push(value);
        Ok(())
    }

    fn pairs(&self, items: At) -> Checked<Vec<(At, At)>> {
        let Value::List(items) = &self.values[items] else { return Err(BROKEN.into()) };
        let pair = |&item: &At| match &self.values[item] {
            Value::Tuple(pair) | Value::List(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err(BROKEN.into()),
        };
        items.iter().map(pair).collect()
    }

    fn size(&self, at: At) -> Checked<usize> {
        match self.values[at] {
            Value::Int(number) => usize::try_from(number).map_err(|_| BROKEN.into()),
            _ => Err(BROKEN.into()),
        }
    }

    fn sizes(&self, at: At) -> Checked<Vec<usize>> {
        match &self.values[at] {
            Value::Tuple(values) | Value::List(values) => {
                values.iter().map(|&value| self.size(value)).collect()
            }
            _ => Err(BROKEN.into()),
        }
    }

    /// `('storage', class, key, device, length)`.
    fn storage(&self, at: At) -> Checked<Storage> {
        let Value::Tuple(fields) = &self.values[at] else { return Err(BROKEN.into()) };
        let [tag, class, key, _, length, view @ ..] = &fields[..] else {
            return Err(BROKEN.into());
        };
        // Files of before PyTorch 0.4 can describe a part of another storage.
        if view.iter().any(|&view| self.values[view] != Value::Other) {
            return Err("a storage that is a part of another".into());
        }
        match (&self.values[*tag], &self.values[*class], &self.values[*key]) {
            (Value::Text(tag), Value::Name(Known::Storage(dtype)), Value::Text(key))
                if tag == "storage" =>
            {
                Ok(Storage { key: key.clone(), dtype: *dtype, length: self.size(*length)? })
            }
            _ => Err(BROKEN.into()),
        }
    }
}

fn known(module: &str, name: &str) -> Checked<Known> {
    let dtype = match name {
        "DoubleStorage" => Some(DType::F64),
        "FloatStorage" => Some(DType::F32),
        "HalfStorage" => Some(DType::F16),
        "BFloat16Storage" => Some(DType::BF16),
        "LongStorage" => Some(DType::I64),
        "IntStorage" => Some(DType::I32),
        "ShortStorage" => Some(DType::I16),
        "CharStorage" => Some(DType::I8),
        "ByteStorage" | "BoolStorage" => Some(DType::U8),
        _ => None,
    };
    match (module, name, dtype) {
        ("collections", "OrderedDict", _) => Ok(Known::OrderedDict),
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2", _) => Ok(Known::Tensor),
        ("torch._utils", "_rebuild_parameter", _) => Ok(Known::Parameter),
        ("torch", _, Some(dtype)) => Ok(Known::Storage(dtype)),
        _ => Err(format!("a pickle with {module}.{name}, which is no tensor and is not run")),
    }
}

/// A number of two's complement; one too large for any size is not looked at.
fn signed(bytes: &[u8]) -> Value {
    if bytes.len() > 9 {
        return Value::Other;
    }
    let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
    let mut all = [fill; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    i64::try_from(i128::from_le_bytes(all)).map_or(Value::Other, Value::Int)
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: u64) -> Checked<&'a [u8]> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CUT_OFF)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, width: usize) -> Checked<u64> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.take(width as u64)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn line(&mut self) -> Checked<String> {
        let end = self.0.iter().position(|&byte| byte == b'\n').ok_or(CUT_OFF)?;
        let line = String::from_utf8_lossy(self.take(end as u64)?).into_owned();
        self.take(1)?;
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"a": 1, "b": [1.5, True, None], "n": {2: -3}}` by `pickle.dumps` in protocols 2 and 4.
    #[test]
    fn plain_values_are_listed() {
        let two = b"\x80\x02}q\0(X\x01\0\0\0aq\x01K\x01X\x01\0\0\0bq\x02]q\x03(G?\xf8\0\0\0\0\0\0\x88NeX\x01\0\0\0nq\x04}q\x05K\x02J\xfd\xff\xff\xffsu.rest";
        let four = b"\x80\x04\x95\x2a\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94K\x01\x8c\x01b\x94]\x94(G?\xf8\0\0\0\0\0\0\x88Ne\x8c\x01n\x94}\x94K\x02J\xfd\xff\xff\xffsu.rest";
        for bytes in [&two[..], four] {
            let (pickle, rest) = Pickle::read(bytes).unwrap();
            assert_eq!(rest, b"rest");
            let (tensors, others) = pickle.tensors().unwrap();
            assert!(tensors.is_empty());
            assert_eq!(others, ["a", "b.0", "b.1", "b.2", "n.2"]);
            assert_eq!(pickle.entry(pickle.root(), "a"), Some(&Value::Int(1)));
        }
    }

    /// A list of the same list of the same list: few bytes, 2^40 values; and a list that holds itself.
    #[test]
    fn a_pickle_that_unfolds_is_refused() {
        let mut bytes = b"\x80\x02}X\x01\0\0\0a]q\0".to_vec();
        for index in 1..=40u8 {
            bytes.extend([b'0', b']', b'q', index, b'(', b'h', index - 1, b'h', index - 1, b'e']);
        }
        bytes.extend(b"s.");
        let (pickle, _) = Pickle::read(&bytes).unwrap();
        assert!(pickle.tensors().is_err());
        let (pickle, _) = Pickle::read(b"\x80\x02}X\x01\0\0\0a]q\0h\0as.").unwrap();
        assert!(pickle.tensors().is_err());
    }

    #[test]
    fn cut_off_pickles_are_refused() {
        let whole = b"\x80\x02}X\x01\0\0\0aK\x01s.";
        for length in 0..whole.len() {
            assert!(Pickle::read(&whole[..length]).is_err(), "{length}");
        }
    }
}
