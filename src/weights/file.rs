//! Files of named tensors: safetensors, and PyTorch's own.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::archive::Checked;
use super::torch_file;
use crate::error::{FlowError, Result};
use crate::record::write_atomically;

/// The content of a file.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) tensors: BTreeMap<String, TensorData>,
    /// Names of numbers and texts beside the tensors.
    pub(super) others: Vec<String>,
}

/// Reads a file of either kind, by what it begins with: a safetensors file with the length of a header
/// and its brace.
pub(super) fn read(path: &Path) -> Result<Content> {
    let mut beginning = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(9).read_to_end(&mut beginning));
    read.map_err(|source| unreadable(path, source))?;
    let is_named = path.extension().is_some_and(|extension| extension == "safetensors");
    if is_named || beginning.get(8) == Some(&b'{') && !beginning.starts_with(b"PK") {
        return read_safetensors(path);
    }
    torch_file::read(path)
}

pub(super) fn unreadable(path: &Path, source: std::io::Error) -> FlowError {
    FlowError::io("read", path, source, "give a .safetensors, .pt or .pth file")
}

fn is_torch_name(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    matches!(extension.as_str(), "pt" | "pth")
}

pub(super) fn read_safetensors(path: &Path) -> Result<Content> {
    let bad = |reason: String| {
        let needed = "named tensors that fill a whole safetensors file";
        FlowError::format(
            path,
            reason,
            needed,
            "it may be cut off or of another kind; get it again",
        )
    };
    let bytes = fs::read(path).map_err(|source| unreadable(path, source))?;
    // Checks the header against the bytes that are there before anything is made of it.
    let file = SafeTensors::deserialize(&bytes).map_err(|error| bad(error.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let dtype = of_safetensors(view.dtype())
            .ok_or_else(|| bad(format!("{name} of type {:?}", view.dtype())))?;
        let data =
            TensorData::try_from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype)
                .map_err(|error| bad(format!("{name}: {error}")))?;
        tensors.insert(name.to_string(), data);
    }
    Ok(Content { tensors, others: Vec::new() })
}

fn of_safetensors(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 | Dtype::BOOL => DType::U8,
        _ => return None,
    })
}

fn to_safetensors(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        _ => return None,
    })
}

/// Writes a file of the kind that its name says: PyTorch's for `.pt` and `.pth`, else safetensors.
pub(super) fn write(path: &Path, tensors: &BTreeMap<String, TensorData>) -> Result<()> {
    let bytes =
        if is_torch_name(path) { torch_file::bytes(tensors) } else { safetensors_bytes(tensors) };
    let bytes = bytes.map_err(|got| {
        FlowError::format(path, got, "tensors of numbers", "write weights that a model gave")
    })?;
    write_atomically(path, &bytes)
}

fn safetensors_bytes(tensors: &BTreeMap<String, TensorData>) -> Checked<Vec<u8>> {
    let views = tensors.iter().map(|(name, data)| {
        let dtype = to_safetensors(data.dtype())
            .ok_or_else(|| format!("{name} of type {:?}", data.dtype()))?;
        let view = TensorView::new(dtype, data.shape().to_vec(), data.as_bytes())
            .map_err(|error| format!("{name}: {error}"))?;
        Ok((name, view))
    });
    let views = views.collect::<Checked<Vec<_>>>()?;
    safetensors::serialize(views, None).map_err(|error| error.to_string())
}
