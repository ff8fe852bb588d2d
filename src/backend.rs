//! The compiled-in device: the only file that names a backend.
//!
//! The backend is chosen at compile time with a cargo feature: `ndarray` (the default), `flex` or
//! `wgpu`. Where several are compiled in, [`device`] takes wgpu before flex before ndarray, unless the
//! environment variable `BURN_DEVICE` names another, as everywhere in Burn.
//!
//! None of these features is needed where your own crate brings a backend, as `burn/cuda` or `burn/tch`:
//! everything here takes a device or works on the one of its tensors. The fused kernels of this crate are
//! for `ndarray` and `flex`, its GPU kernels for `wgpu`; on other backends all is computed by Burn's operations.

// Burn removes the ndarray backend in 0.23; `flex` is ready to take its place.
#![cfg_attr(feature = "ndarray", allow(deprecated))]

#[cfg(feature = "wgpu")]
mod gpu;

use burn::tensor::{Device, Element, Tensor, TensorData};

use crate::error::{FlowError, Result};
use crate::kernels::Scalar;

/// The compiled-in device: the one that `BURN_DEVICE` names, else wgpu, else flex, else ndarray; without
/// any of these features, the default of the Burn that your own crate brings.
///
/// A model created on it is plain; `Module::train` makes it a model in training.
///
/// # Panics
/// If no backend is compiled in, or not the one that `BURN_DEVICE` names.
pub fn device() -> Device {
    preferred().map_or_else(Device::default, |(_, device)| device())
}

fn preferred() -> Option<NamedDevice> {
    let mut devices = devices().into_iter();
    match std::env::var("BURN_DEVICE") {
        Ok(wanted) => devices.find(|(name, _)| wanted.eq_ignore_ascii_case(name)),
        Err(_) => devices.next(),
    }
}

/// A device by name; made when called, so that a GPU is only looked for when it is used.
pub type NamedDevice = (&'static str, fn() -> Device);

/// The device of each of this crate's features, the preferred one first.
pub fn devices() -> Vec<NamedDevice> {
    let gpus: &[NamedDevice] = &[
        #[cfg(feature = "wgpu")]
        ("wgpu", wgpu),
    ];
    [gpus, &hosts()].concat()
}

/// The device of this name; where no name is given, the one that [`device`] takes.
///
/// ```
/// use burn_flows::backend;
///
/// let (name, device) = backend::named(None)?;
/// assert_eq!(name, backend::devices()[0].0);
/// # let _ = device;
/// assert!(backend::named(Some("abacus")).is_err());
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
///
/// # Errors
/// [`FlowError::Invalid`] if none has it.
pub fn named(name: Option<&str>) -> Result<NamedDevice> {
    let devices = devices();
    let found = match name {
        None => preferred(),
        Some(wanted) => devices.iter().copied().find(|(name, _)| *name == wanted),
    };
    found.ok_or_else(|| {
        let names: Vec<_> = devices.iter().map(|(name, _)| *name).collect();
        FlowError::invalid(
            "backend::named",
            name.unwrap_or("none, or another in BURN_DEVICE"),
            names.join(" or "),
            "others are compiled in with --features NAME",
        )
    })
}

/// Those of [`devices`] that compute in main memory, as [`is_host`] says of them.
pub fn hosts() -> Vec<NamedDevice> {
    vec![
        #[cfg(feature = "flex")]
        ("flex", Device::flex),
        #[cfg(feature = "ndarray")]
        ("ndarray", ndarray),
    ]
}

/// Whether the device computes in main memory, where the fused kernels of this crate work; f64 is
/// to be had there too.
pub fn is_host(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    if *device == Device::flex() {
        return true;
    }
    #[cfg(feature = "ndarray")]
    if *device == ndarray() {
        return true;
    }
    #[cfg(not(any(feature = "flex", feature = "ndarray")))]
    let _ = device;
    false
}

/// `A^-1` and `ln|det A|`, `[1]`, of a plain matrix, without a read from its device; `None` where there is
/// no kernel for that.
pub(crate) fn invert(matrix: Tensor<2>) -> Option<(Tensor<2>, Tensor<1>)> {
    #[cfg(feature = "wgpu")]
    return gpu::invert(matrix);
    #[cfg(not(feature = "wgpu"))]
    {
        let _ = matrix;
        None
    }
}

/// The inverse of `P L (U + diag(s))`, as [`invert`].
pub(crate) fn invert_triangles(parts: [Tensor<2>; 3], diagonal: Tensor<1>) -> Option<Tensor<2>> {
    #[cfg(feature = "wgpu")]
    return gpu::invert_triangles(parts, diagonal);
    #[cfg(not(feature = "wgpu"))]
    {
        let _ = (parts, diagonal);
        None
    }
}

/// The values of a tensor on a host device, row-major: the tensor's own memory wherever its layout
/// allows, a copy otherwise.
pub(crate) struct HostValues(Held);

enum Held {
    #[cfg(feature = "ndarray")]
    NdArray(burn_ndarray::NdArrayTensor),
    #[cfg(feature = "flex")]
    Flex(burn_flex::FlexTensor),
    Copy(TensorData),
}

/// The number types that tensors on a host device can have.
pub(crate) trait HostScalar: Scalar + Element {
    #[cfg(feature = "ndarray")]
    fn of_ndarray(tensor: &burn_ndarray::NdArrayTensor) -> Option<&[Self]>;
    #[cfg(feature = "ndarray")]
    fn take_ndarray(tensor: burn_ndarray::NdArrayTensor) -> Option<Vec<Self>>;
    #[cfg(feature = "ndarray")]
    fn in_order(tensor: burn_ndarray::NdArrayTensor) -> Option<burn_ndarray::NdArrayTensor>;
    #[cfg(feature = "flex")]
    fn of_flex(tensor: &burn_flex::FlexTensor) -> Option<&[Self]>;
}

macro_rules! host_scalar {
    ($scalar:ty, $variant:ident) => {
        impl HostScalar for $scalar {
            #[cfg(feature = "ndarray")]
            fn of_ndarray(tensor: &burn_ndarray::NdArrayTensor) -> Option<&[Self]> {
                match tensor {
                    burn_ndarray::NdArrayTensor::$variant(storage) => storage.view().to_slice(),
                    _ => None,
                }
            }

            #[cfg(feature = "ndarray")]
            fn take_ndarray(tensor: burn_ndarray::NdArrayTensor) -> Option<Vec<Self>> {
                let burn_ndarray::NdArrayTensor::$variant(storage) = tensor else { return None };
                let (len, array) = (storage.len(), storage.into_owned());
                Some(match array.try_into_owned_nocopy().map(|own| own.into_raw_vec_and_offset()) {
                    Ok((values, None | Some(0))) if values.len() == len => values,
                    Ok((values, offset)) => values[offset.unwrap_or(0)..][..len].to_vec(),
                    Err(shared) => shared.as_slice()?.to_vec(),
                })
            }

            #[cfg(feature = "ndarray")]
            fn in_order(
                tensor: burn_ndarray::NdArrayTensor,
            ) -> Option<burn_ndarray::NdArrayTensor> {
                let burn_ndarray::NdArrayTensor::$variant(storage) = tensor else { return None };
                let mut ordered = burn_ndarray::SharedArray::<$scalar>::zeros(storage.shape());
                ordered.assign(&storage.view());
                Some(ordered.into())
            }

            #[cfg(feature = "flex")]
            fn of_flex(tensor: &burn_flex::FlexTensor) -> Option<&[Self]> {
                tensor.as_slice()
            }
        }
    };
}

host_scalar!(f32, F32);
host_scalar!(f64, F64);

impl HostValues {
    /// Of a plain tensor.
    pub(crate) fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        #[cfg(feature = "ndarray")]
        if tensor.device() == ndarray() {
            let primitive = tensor.clone().try_into_primitive::<burn_ndarray::NdArray>();
            if let Ok(primitive) = primitive {
                if f32::of_ndarray(&primitive).is_some() || f64::of_ndarray(&primitive).is_some() {
                    return Self(Held::NdArray(primitive));
                }
                // Burn copies a tensor of another layout number by number, at ten times the cost.
                let ordered = f32::in_order(primitive.clone()).or_else(|| f64::in_order(primitive));
                if let Some(ordered) = ordered {
                    return Self(Held::NdArray(ordered));
                }
            }
        }
        #[cfg(feature = "flex")]
        if tensor.device() == Device::flex() {
            let primitive = tensor.clone().try_into_primitive::<burn_flex::Flex>();
            if let Ok(primitive) = primitive
                && primitive.is_contiguous()
            {
                return Self(Held::Flex(primitive));
            }
        }
        Self(Held::Copy(tensor.into_data()))
    }

    /// The values.
    ///
    /// # Panics
    /// If they are of another type: model and batch have one dtype.
    pub(crate) fn as_slice<T: HostScalar>(&self) -> &[T] {
        let values = match &self.0 {
            #[cfg(feature = "ndarray")]
            Held::NdArray(tensor) => T::of_ndarray(tensor),
            #[cfg(feature = "flex")]
            Held::Flex(tensor) => T::of_flex(tensor),
            Held::Copy(data) => data.as_slice().ok(),
        };
        values.expect("model and batch have one dtype; cast one of them")
    }

    /// The values by themselves: the tensor's own memory where nobody else holds it.
    ///
    /// # Panics
    /// As [`as_slice`](Self::as_slice).
    pub(crate) fn into_vec<T: HostScalar>(self) -> Vec<T> {
        let values = match self.0 {
            #[cfg(feature = "ndarray")]
            Held::NdArray(tensor) => T::take_ndarray(tensor),
            #[cfg(feature = "flex")]
            Held::Flex(tensor) => tensor.into_data().try_into_vec().ok(),
            Held::Copy(data) => data.try_into_vec().ok(),
        };
        values.expect("model and batch have one dtype; cast one of them")
    }
}

#[cfg(feature = "ndarray")]
fn ndarray() -> Device {
    Device::ndarray()
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Device {
    let device = Device::wgpu(Default::default());
    LEFT.with(|left| {
        left.get_or_init(|| Left(device.clone()));
    });
    device
}

/// Waits, where a thread ends, for what it left to the GPU: the process can end then, and a driver that
/// is still compiling a shader would crash, as Mesa's for the CPU does.
#[cfg(feature = "wgpu")]
struct Left(Device);

#[cfg(feature = "wgpu")]
thread_local! {
    static LEFT: std::cell::OnceCell<Left> = const { std::cell::OnceCell::new() };
}

#[cfg(feature = "wgpu")]
impl Drop for Left {
    fn drop(&mut self) {
        let device = self.0.clone();
        // On another thread: of this one, the thread-local values that waiting needs may be gone.
        if let Ok(waiting) = std::thread::Builder::new().spawn(move || device.sync()) {
            // Nobody reads a result any more: that one failed is of no interest.
            let _ = waiting.join();
        }
    }
}
