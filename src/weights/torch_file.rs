//! PyTorch's own files: an archive with a pickle that describes tensors and an entry for the values of
//! each; before PyTorch 1.6 a stream of pickles with the values behind them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use burn::tensor::{DType, TensorData};

use super::archive::{Checked, archive, entries};
use super::file::{Content, unreadable};
use super::pickle::{Pickle, Value, View};
use crate::error::{FlowError, Result};

/// The number that a stream begins with (`torch.serialization.MAGIC_NUMBER`), as a pickle writes it.
const MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// How many times a file's own size its tensors may take: views can share what is stored.
const MOST_SHARING: usize = 4;

/// Reads the tensors of a file.
pub(super) fn read(path: &Path) -> Result<Content> {
    let bytes = fs::read(path).map_err(|source| unreadable(path, source))?;
    content(&bytes).map_err(|got| {
        let needed = "a state dict as torch.save writes it, tensors and plain values alone";
        FlowError::format(path, got, needed, "in PyTorch: torch.save(model.state_dict(), path)")
    })
}

fn content(bytes: &[u8]) -> Checked<Content> {
    if bytes.starts_with(b"PK") {
        let entries = entries(bytes)?;
        let is_pickle = |name: &&String| *name == "data.pkl" || name.ends_with("/data.pkl");
        let pickles: Vec<&String> = entries.keys().filter(is_pickle).collect();
        let [name] = pickles[..] else {
            return Err(format!("an archive with {} files data.pkl", pickles.len()));
        };
        let root = name.strip_suffix("data.pkl").expect("its own name");
        if entries.get(&format!("{root}byteorder")).is_some_and(|order| *order != b"little") {
            return Err("numbers of the other byte order".into());
        }
        let (pickle, _) = Pickle::read(entries[name])?;
        return tensors(&pickle, bytes.len(), |view| {
            let name = format!("{root}data/{}", view.storage.key);
            entries.get(&name).copied().ok_or(format!("an archive without {name}"))
        });
    }
    if !bytes.windows(MAGIC.len()).take(16).any(|window| window == MAGIC) {
        return Err("neither an archive nor a stream of pickles".into());
    }
    // Magic number and version, then the system, the object and the names of its storages.
    let (_, rest) = Pickle::read(bytes)?;
    let (_, rest) = Pickle::read(rest)?;
    let (system, rest) = Pickle::read(rest)?;
    if system.entry(system.root(), "little_endian") != Some(&Value::Bool(true)) {
        return Err("numbers of the other byte order".into());
    }
    let (object, rest) = Pickle::read(rest)?;
    let (keys, rest) = Pickle::read(rest)?;
    let storages = storages(&object, &keys, rest)?;
    tensors(&object, bytes.len(), |view| {
        let key = &view.storage.key;
        storages.get(key).copied().ok_or(format!("a file without the storage {key}"))
    })
}

/// The values of each storage of a stream: a count of eight bytes before each.
fn storages<'a>(
    object: &Pickle,
    keys: &Pickle,
    mut rest: &'a [u8],
) -> Checked<HashMap<String, &'a [u8]>> {
    let (views, _) = object.tensors()?;
    let sizes: HashMap<&str, usize> =
        views.values().map(|view| (view.storage.key.as_str(), view.storage.dtype.size())).collect();
    let Value::List(keys_at) = keys.root() else { return Err("a file without storages".into()) };
    let mut storages = HashMap::new();
    for &key in keys_at {
        let Value::Text(key) = keys.value(key) else {
            return Err("a file without storages".into());
        };
        let size = sizes.get(key.as_str()).ok_or(format!("a storage {key} of no tensor"))?;
        let cut_off = || format!("a storage {key} that is cut off");
        let (count, behind) = rest.split_first_chunk().ok_or_else(cut_off)?;
        let length = usize::try_from(u64::from_le_bytes(*count)).ok();
        let length = length.and_then(|count| count.checked_mul(*size)).ok_or_else(cut_off)?;
        let (values, behind) = behind.split_at_checked(length).ok_or_else(cut_off)?;
        storages.insert(key.clone(), values);
        rest = behind;
    }
    Ok(storages)
}

fn tensors<'a>(
    pickle: &Pickle,
    file_length: usize,
    values: impl Fn(&View) -> Checked<&'a [u8]>,
) -> Checked<Content> {
    let (views, others) = pickle.tensors()?;
    let mut lengths = views.values().map(|view| {
        let count =
            view.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
        count.checked_mul(view.storage.dtype.size())
    });
    let all = lengths.try_fold(0usize, |sum, length| sum.checked_add(length?));
    if all.is_none_or(|all| all > file_length.saturating_mul(MOST_SHARING)) {
        return Err(format!("more tensors than a file of {file_length} bytes holds"));
    }
    let mut tensors = BTreeMap::new();
    for (name, view) in views {
        let bytes = gather(&view, values(&view)?).map_err(|got| format!("{name}, {got}"))?;
        let data = TensorData::try_from_bytes_vec(bytes, view.shape, view.storage.dtype)
            .map_err(|error| format!("{name}: {error}"))?;
        tensors.insert(name, data);
    }
    Ok(Content { tensors, others })
}

/// A tensor's values, row-major.
fn gather(view: &View, storage: &[u8]) -> Checked<Vec<u8>> {
    let outside = || "a tensor that reaches beyond its storage".to_string();
    let size = view.storage.dtype.size();
    if view.storage.length.checked_mul(size).is_none_or(|length| length > storage.len()) {
        return Err("a storage that is shorter than it says".into());
    }
    let count = view.shape.iter().product::<usize>();
    if count == 0 {
        return Ok(Vec::new());
    }
    let last =
        view.shape.iter().zip(&view.strides).try_fold(view.offset, |at, (&size, &stride)| {
            at.checked_add((size - 1).checked_mul(stride)?)
        });
    if last.is_none_or(|last| last >= view.storage.length) {
        return Err(outside());
    }
    let mut bytes = Vec::with_capacity(count * size);
    for index in 0..count {
        let (mut rest, mut at) = (index, view.offset);
        for (&size, &stride) in view.shape.iter().zip(&view.strides).rev() {
            at += rest % size * stride;
            rest /= size;
        }
        bytes.extend_from_slice(&storage[at * size..(at + 1) * size]);
    }
    Ok(bytes)
}

/// The file that `torch.save` would write of a state dict.
pub(super) fn bytes(tensors: &BTreeMap<String, TensorData>) -> Checked<Vec<u8>> {
    let pickle = state_dict(tensors)?;
    let named = |name: &str| format!("archive/{name}");
    let values = tensors.values().enumerate();
    let values = values.map(|(index, data)| (named(&format!("data/{index}")), data.as_bytes()));
    let first = [(named("data.pkl"), &pickle[..]), (named("byteorder"), b"little")];
    archive(first.into_iter().chain(values).chain([(named("version"), &b"3\n"[..])]))
}

/// `OrderedDict([(name, tensor), ...])` as a pickle of protocol 2, the tensors' values being named
/// `0`, `1`, ...
fn state_dict(tensors: &BTreeMap<String, TensorData>) -> Checked<Vec<u8>> {
    let mut out = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (index, (name, data)) in tensors.iter().enumerate() {
        let class = match data.dtype() {
            DType::F64 => "DoubleStorage",
            DType::F32 => "FloatStorage",
            DType::F16 => "HalfStorage",
            DType::BF16 => "BFloat16Storage",
            DType::I64 => "LongStorage",
            DType::I32 => "IntStorage",
            DType::I16 => "ShortStorage",
            DType::I8 => "CharStorage",
            DType::U8 => "ByteStorage",
            other => return Err(format!("{name} of type {other:?}")),
        };
        push_text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        push_text(&mut out, "storage");
        out.extend(format!("ctorch\n{class}\n").bytes());
        push_text(&mut out, &index.to_string());
        push_text(&mut out, "cpu");
        push_number(&mut out, data.num_elements());
        out.extend(b"tQ");
        push_number(&mut out, 0);
        let shape = data.shape().to_vec();
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        for sizes in [shape, strides] {
            out.push(b'(');
            sizes.into_iter().for_each(|size| push_number(&mut out, size));
            out.push(b't');
        }
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    Ok(out)
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn push_number(out: &mut Vec<u8>, number: usize) {
    out.extend([0x8a, 9]);
    out.extend((number as u64).to_le_bytes());
    out.push(0);
}
