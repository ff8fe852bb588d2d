//! Tensors as host values and back.

use burn::tensor::{DType, Device, Element, Tensor, TensorData};

use crate::backend::{HostValues, is_host};
use crate::kernels::{self, Shape};

/// The values of a tensor in f64, row-major, whatever its dtype.
pub(crate) fn to_f64<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.try_into_vec_as::<f64>().expect("a float tensor converts to f64")
}

/// A tensor of the given dtype from f64 values, row-major.
pub(crate) fn from_f64<const D: usize>(
    values: Vec<f64>,
    shape: [usize; D],
    device: &Device,
    dtype: DType,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, dtype))
}

/// The tensor without its autodiff graph; a plain one as it is.
pub(crate) fn plain<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.device().is_autodiff() { tensor.inner() } else { tensor }
}

/// The distance from 1 to the next number of a dtype.
pub(crate) fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        _ => f64::from(f32::EPSILON),
    }
}

/// The largest `l` for which both `exp(l)` and `exp(-l)` are normal numbers of a dtype.
pub(crate) fn largest_log_scale(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 708.0,
        _ => 87.0,
    }
}

/// Whether every value is finite.
pub(crate) fn is_finite<const D: usize>(tensor: Tensor<D>) -> bool {
    tensor.is_finite().all().into_scalar::<bool>()
}

/// Whether the kernels can take a tensor: plain, in main memory, `[batch, channels, ...]` in f32 or
/// f64, not empty.
pub(crate) fn suits_kernels<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device();
    D >= 2
        && is_host(&device)
        && !device.is_autodiff()
        && matches!(x.dtype(), DType::F32 | DType::F64)
        && x.dims().iter().all(|&size| size > 0)
}

/// The shape as kernels take it, all axes after the channels being pixels.
pub(crate) fn kernel_shape<const D: usize>(dims: [usize; D]) -> Shape {
    let pixels = dims[2..].iter().product();
    Shape { batch: dims[0], channels: dims[1], height: pixels, width: 1 }
}

/// A tensor of given values on a given device.
pub(crate) fn tensor<T: Element, const D: usize>(
    values: Vec<T>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, T::dtype()))
}

/// An expression in the number type `$scalar` of a tensor that [`suits_kernels`].
macro_rules! by_dtype {
    ($tensor:expr, $scalar:ident => $result:expr) => {
        match $tensor.dtype() {
            burn::tensor::DType::F64 => {
                type $scalar = f64;
                $result
            }
            _ => {
                type $scalar = f32;
                $result
            }
        }
    };
}
pub(crate) use by_dtype;

/// The sum of the squares of a plain tensor, in f64, without a temporary; `None` where the kernels do
/// not reach it.
pub(crate) fn sum_of_squares<const D: usize>(x: &Tensor<D>) -> Option<f64> {
    if !is_host(&x.device()) {
        return None;
    }
    let values = HostValues::of(x.clone());
    match x.dtype() {
        DType::F32 => Some(kernels::sum_of_squares::<f32>(values.as_slice())),
        DType::F64 => Some(kernels::sum_of_squares::<f64>(values.as_slice())),
        _ => None,
    }
}
