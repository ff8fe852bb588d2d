//! Tensors as host values and back.

use std::cell::Cell;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Element, Int, Tensor, TensorData};

use crate::backend::{HostValues, is_host};
use crate::kernels::{self, Shape};

/// The values of a tensor in f64, row-major, whatever its dtype.
///
/// From a GPU they come when all that it was told before is done: every layer that asks is a stop. What
/// the layers read goes through here, where it is [counted](count_reads).
pub(crate) fn to_f64<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    if !is_host(&tensor.device()) {
        READS.set(READS.get() + 1);
    }
    tensor.try_into_vec_as::<f64>().expect("a float tensor converts to f64")
}

/// The one value of a tensor.
pub(crate) fn scalar<const D: usize>(tensor: Tensor<D>) -> f64 {
    to_f64(tensor)[0]
}

thread_local! {
    static READS: Cell<usize> = const { Cell::new(0) };
}

/// What `call` gives, and how often the layers, priors and trainers of this crate read values from a device that
/// is not in main memory, on the calling thread.
///
/// Every such read waits for all that the device was told before. `forward`, `inverse`, densities and draws
/// of the models of this crate make none, save autoregressive layers, which look up their order; a step of [`Trainer`](crate::training::Trainer) makes one, for
/// loss and norm together, once the first step has initialized the model; those that measure the drift make
/// more. What an operation of Burn's reads by itself is not counted.
pub fn count_reads<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = READS.get();
    let result = call();
    (result, READS.get() - before)
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

/// Whether a batch has no samples. Not every device computes on empty tensors (wgpu's does not in a debug
/// build), so layers, stacks and priors give back what they know of the result.
pub(crate) fn has_no_samples<const D: usize>(x: &Tensor<D>) -> bool {
    x.dims()[0] == 0
}

/// An empty tensor on the device and of the dtype of another one.
pub(crate) fn empty_like<const N: usize, const D: usize>(
    x: &Tensor<N>,
    shape: [usize; D],
) -> Tensor<D> {
    from_f64(Vec::new(), shape, &x.device(), x.dtype())
}

/// Places along an axis that are not asked for again, for `Tensor::select`; others are
/// [constants](crate::constants::places).
pub(crate) fn places(places: impl IntoIterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let places: Vec<i64> = places.into_iter().map(|place| place as i64).collect();
    Tensor::from_data(places.as_slice(), &device.clone().without_autodiff())
}

/// The distance from 1 to the next number of a dtype.
pub(crate) fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        _ => f64::from(f32::EPSILON),
    }
}

/// The least normal number above zero of a dtype.
pub(crate) fn least(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::MIN_POSITIVE,
        _ => f64::from(f32::MIN_POSITIVE),
    }
}

/// The next number of a dtype above a value, normal where the value is 0: its distance from the value is
/// above zero.
pub(crate) fn next_above(value: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F64 => value.next_up().max(value + f64::MIN_POSITIVE),
        _ => {
            let value = value as f32;
            f64::from(value.next_up().max(value + f32::MIN_POSITIVE))
        }
    }
}

/// The next number below; see [`next_above`].
pub(crate) fn next_below(value: f64, dtype: DType) -> f64 {
    -next_above(-value, dtype)
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
    tensor.dims().contains(&0) || scalar(tensor.is_finite().all().float()) > 0.5
}

/// The gate of every fast road to values (`forward`, `inverse`, densities, samples, data passes):
/// whether the kernels can take `x` through `module`.
///
/// They know nothing of autodiff, so `x` and every parameter have to be plain: a module in training
/// has gradients to give, whatever its input is. All of them have to be on one host device and of one
/// dtype; where they are not, the formulation in tensors runs into Burn's own error.
pub(crate) fn runs_by_kernels<const D: usize, M: Module>(module: &M, x: &Tensor<D>) -> bool {
    suits_kernels(x) && Operands::of(module, x).is_some_and(|operands| operands.are_plain)
}

/// The gate of every fast road back, on which kernels compute gradients by hand: whether they can take
/// a plain `x` through `module`, which is in training.
///
/// As [`runs_by_kernels`], save that the parameters are taken without their autodiff graph.
pub(crate) fn pulls_back_by_kernels<const D: usize, M: Module>(module: &M, x: &Tensor<D>) -> bool {
    suits_kernels(x) && Operands::of(module, x).is_some()
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

/// What a gate asks of the parameters that kernels are to compute with.
struct Operands {
    device: Device,
    dtype: DType,
    /// Whether all of them are on the device and of the dtype of the input, and stored as they are
    /// used: of a reparametrized one the kernels' gradients would go to the wrong tensor.
    agree: bool,
    are_plain: bool,
}

impl Operands {
    fn of<const D: usize, M: Module>(module: &M, x: &Tensor<D>) -> Option<Self> {
        let (device, dtype) = (x.device(), x.dtype());
        let mut operands = Self { device, dtype, agree: true, are_plain: true };
        module.visit(&mut operands);
        operands.agree.then_some(operands)
    }
}

impl ModuleVisitor for Operands {
    fn enter_module(&mut self, _name: &str, container_type: &str) {
        self.agree &= container_type != "Reparameterization";
    }

    fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
        // Equal devices may differ in autodiff.
        let device = param.device();
        self.agree &= device == self.device && param.dtype() == self.dtype;
        self.are_plain &= !device.is_autodiff();
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::devices;
    use crate::norm::ActNorm;

    #[test]
    fn the_gate_asks_for_plain_operands_of_one_device_and_type() {
        let devices: Vec<Device> = devices().into_iter().map(|(_, device)| device()).collect();
        for device in &devices {
            let norm = ActNorm::new(2, device).unwrap();
            let training = norm.clone().train();
            let x = Tensor::<2>::ones([3, 2], device);
            let roads = |norm: &ActNorm, x: &Tensor<2>| {
                (runs_by_kernels(norm, x), pulls_back_by_kernels(norm, x))
            };
            let is_host = is_host(device);
            assert_eq!(roads(&norm, &x), (is_host, is_host));
            assert_eq!(roads(&training, &x), (false, is_host));
            assert_eq!(roads(&norm.clone().freeze().train(), &x), (false, is_host));
            assert_eq!(roads(&norm, &x.clone().autodiff()), (false, false));
            let others = devices.iter().filter(|other| *other != device);
            for other in others {
                let mut mixed = norm.clone();
                mixed.log_scale = Module::to_device(mixed.log_scale, other);
                for norm in [norm.clone().to_device(other), mixed.clone(), mixed.train()] {
                    assert_eq!(roads(&norm, &x), (false, false));
                }
            }
            if is_host {
                assert_eq!(roads(&norm, &x.cast(DType::F64)), (false, false));
            }
        }
    }
}
