//! The compiled-in device: the only file that names a backend.
//!
//! The backend is chosen at compile time with a cargo feature: `ndarray` (the default), `flex` or
//! `wgpu`. Where several are compiled in, [`device`] takes wgpu before flex before ndarray.

use burn::tensor::{Device, Tensor, TensorData};

#[cfg(not(any(feature = "ndarray", feature = "flex", feature = "wgpu")))]
compile_error!(
    "burn-flows needs a backend: enable one of its features `ndarray` (CPU, the default), \
     `flex` (CPU) or `wgpu` (GPU)"
);

/// The compiled-in device: wgpu, else flex, else ndarray.
///
/// A model created on it is plain; `Module::train` makes it a model in training.
pub fn device() -> Device {
    let (_, device) = devices().swap_remove(0);
    device()
}

/// A device by name; made when called, so that a GPU is only looked for when it is used.
pub type NamedDevice = (&'static str, fn() -> Device);

/// Every compiled-in device, the preferred one first.
pub fn devices() -> Vec<NamedDevice> {
    vec![
        #[cfg(feature = "wgpu")]
        ("wgpu", wgpu),
        #[cfg(feature = "flex")]
        ("flex", Device::flex),
        #[cfg(feature = "ndarray")]
        ("ndarray", ndarray),
    ]
}

/// Whether the device computes in main memory, where the fused kernels of this crate work; f64 is
/// to be had there too.
pub fn is_host(device: &Device) -> bool {
    let hosts: Vec<Device> = vec![
        #[cfg(feature = "flex")]
        Device::flex(),
        #[cfg(feature = "ndarray")]
        ndarray(),
    ];
    hosts.contains(device)
}

/// The values of a tensor on a host device, row-major.
pub(crate) fn read<const D: usize>(tensor: Tensor<D>) -> TensorData {
    // ndarray's own `into_data` copies a shared array an element at a time, ten times slower than
    // memory is.
    #[cfg(feature = "ndarray")]
    if tensor.device() == ndarray()
        && !tensor.device().is_autodiff()
        && let Some(data) = read_ndarray(&tensor)
    {
        return data;
    }
    tensor.into_data()
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // as for `ndarray`
fn read_ndarray<const D: usize>(tensor: &Tensor<D>) -> Option<TensorData> {
    use burn_ndarray::{NdArray, NdArrayTensor};
    let shape = tensor.dims();
    match tensor.clone().try_into_primitive::<NdArray>().ok()? {
        NdArrayTensor::F32(storage) => {
            storage.view().as_slice().map(|values| TensorData::new(values.to_vec(), shape))
        }
        NdArrayTensor::F64(storage) => {
            storage.view().as_slice().map(|values| TensorData::new(values.to_vec(), shape))
        }
        _ => None,
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // Burn removes the ndarray backend in 0.23; `flex` is ready to take its place
fn ndarray() -> Device {
    Device::ndarray()
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Device {
    Device::wgpu(Default::default())
}
