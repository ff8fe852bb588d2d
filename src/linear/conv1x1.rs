//! The invertible 1x1 convolution of Glow.

use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, OnceLock};

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use rand::Rng;

use crate::backend::{HostScalar, HostValues, invert, invert_triangles, is_host};
use crate::chain::{assert_size, same_log_det};
use crate::error::{FlowError, Result};
use crate::flow::{At, Flow, add_grad, backward_by_autodiff, pull_back_surrogate, weighted};
use crate::host::{self, by_dtype};
use crate::kernels::{ChannelMatrix, channel_products};
use crate::linalg::{Lu, orthogonal};
use crate::param::{check_log_scale, frozen};
use crate::prior::standard_normal_values;
use crate::tape::Tape;

const LAYER: &str = "InvertibleConv1x1";

/// A learned matrix across the channels, the same at every pixel: `z = W x`.
///
/// - forward: `z[:, y, x] = W x[:, y, x]`
/// - inverse: `x = W^-1 z`
/// - `log_det = pixels * ln|det W|`
///
/// `W` starts as a random rotation. Two parametrizations: [`plain`](InvertibleConv1x1::plain), where
/// `W` itself is learned, and [`plu`](InvertibleConv1x1::plu), where `W = P L (U + diag(s))` with
/// the permutation `P` and the signs of `s` fixed, which cannot become singular and whose
/// log-determinant is a sum.
///
/// In main memory the plain log-determinant and both inverses are computed in f64, once for each value
/// of `W`: they are kept until `W` changes. On a GPU they are computed there, in f32 and without a read from
/// the device, up to 192 channels and without Burn's `fusion`, else as in main memory. The inverse of the PLU parametrization is found by
/// substitution in its triangles, however small an `s` is: only where `s` or `1 / s` is beyond the number
/// type (`|ln s|` above 87 in f32) does [`check`](Flow::check) refuse it. Vectors (`D = 2`) are one
/// pixel.
///
/// Source: Kingma and Dhariwal, *Glow*, [arXiv:1807.03039](https://arxiv.org/abs/1807.03039),
/// section 3.2.
#[derive(Module, Debug)]
pub struct InvertibleConv1x1 {
    /// The parametrization of `W`.
    pub weight: Conv1x1Weight,
    #[module(skip)]
    cache: Cache,
}

/// How the matrix of an [`InvertibleConv1x1`] is parametrized.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // a handful of them exist in a model
pub enum Conv1x1Weight {
    /// `W` itself, `[channels, channels]`.
    Plain(Param<Tensor<2>>),
    /// `W = P L (U + diag(sign exp(log_s)))`.
    Plu(PluWeight),
}

/// The parts of `W = P L (U + diag(sign exp(log_s)))`.
#[derive(Module, Debug)]
pub struct PluWeight {
    /// Permutation matrix `P`, `[channels, channels]`, not trained.
    pub permutation: Param<Tensor<2>>,
    /// `L`: the entries below the diagonal are used, `[channels, channels]`.
    pub lower: Param<Tensor<2>>,
    /// `U`: the entries above the diagonal are used, `[channels, channels]`.
    pub upper: Param<Tensor<2>>,
    /// Logarithms of the diagonal's magnitudes, `[channels]`.
    pub log_s: Param<Tensor<1>>,
    /// Signs of the diagonal, `[channels]`, not trained.
    pub sign_s: Param<Tensor<1>>,
}

impl PluWeight {
    /// All that the inverse follows from, in f64.
    fn values(&self) -> Vec<f64> {
        let matrices = [&self.permutation, &self.lower, &self.upper];
        let matrices = matrices.map(|part| host::to_f64(host::plain(part.val())));
        let vectors = [&self.sign_s, &self.log_s];
        let vectors = vectors.map(|part| host::to_f64(host::plain(part.val())));
        matrices.concat().into_iter().chain(vectors.concat()).collect()
    }

    /// The factors, from [`values`](PluWeight::values).
    fn factors(values: &[f64], n: usize) -> Lu {
        let (permutation, rest) = values.split_at(n * n);
        let (lower, rest) = rest.split_at(n * n);
        let (upper, rest) = rest.split_at(n * n);
        let (sign_s, log_s) = rest.split_at(n);
        let mut upper = upper.to_vec();
        for i in 0..n {
            upper[i * n + i] = sign_s[i] * log_s[i].exp();
        }
        Lu::from_parts(permutation, lower, &upper, n)
    }

    /// The inverse of the matrix, plain and on its device, where that can be had there.
    fn inverse_on_device(&self) -> Option<Tensor<2>> {
        let parts = [&self.permutation, &self.lower, &self.upper];
        let parts = parts.map(|part| host::plain(part.val()));
        let [sign_s, log_s] = [&self.sign_s, &self.log_s].map(|part| host::plain(part.val()));
        invert_triangles(parts, sign_s * log_s.exp())
    }

    fn matrix(&self) -> Tensor<2> {
        let lower = self.lower.val().tril(-1);
        let identity = identity(lower.dims()[0], &lower);
        // Fixed, whatever `Module::unfreeze` asks of all parameters.
        let (sign_s, permutation) = (self.sign_s.val().detach(), self.permutation.val().detach());
        let diagonal = identity.clone() * (sign_s * self.log_s.val().exp()).unsqueeze();
        let upper = self.upper.val().triu(1) + diagonal;
        permutation.matmul((lower + identity).matmul(upper))
    }
}

/// What is derived from one value of `W` or of its parts.
#[derive(Debug)]
struct Derived {
    size: usize,
    values: Vec<f64>,
    factors: fn(&[f64], usize) -> Lu,
    log_abs_det: f64,
    pivots: (f64, f64),
    is_singular: bool,
    /// Computed when it is first asked for: a forward pass does without.
    inverse: OnceLock<Vec<f64>>,
}

impl Derived {
    fn new(values: Vec<f64>, size: usize, factors: fn(&[f64], usize) -> Lu) -> Self {
        let lu = factors(&values, size);
        let (log_abs_det, pivots, is_singular) =
            (lu.slogdet().1, lu.pivot_range(), lu.is_singular());
        let inverse = OnceLock::new();
        Self { size, values, factors, log_abs_det, pivots, is_singular, inverse }
    }

    fn inverse(&self) -> &[f64] {
        self.inverse.get_or_init(|| (self.factors)(&self.values, self.size).solve())
    }
}

/// The last [`Derived`], recognized by the values that it follows from, so that no update of a
/// parameter, by whatever road, can leave it stale. Clones of the layer share it.
#[derive(Clone, Default)]
struct Cache(Arc<Mutex<Option<Arc<Derived>>>>);

/// Without the matrices, which would fill a screen where a model is printed.
impl Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache")
    }
}

impl Cache {
    fn clear(&self) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    }

    fn get(&self, values: Vec<f64>, size: usize, factors: fn(&[f64], usize) -> Lu) -> Arc<Derived> {
        let mut slot = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(derived) = slot.as_ref()
            && derived.values == values
        {
            return derived.clone();
        }
        let derived = Arc::new(Derived::new(values, size, factors));
        *slot = Some(derived.clone());
        derived
    }
}

impl InvertibleConv1x1 {
    /// `W` learned as it is, starting from a random rotation.
    ///
    /// # Errors
    /// If `num_channels` is zero.
    pub fn plain(num_channels: usize, rng: &mut impl Rng, device: &Device) -> Result<Self> {
        let rotation = rotation(num_channels, rng)?;
        Ok(Self::from_weight(matrix(rotation, num_channels, device)))
    }

    /// `W = P L (U + diag(s))`, starting from a random rotation.
    ///
    /// # Errors
    /// If `num_channels` is zero.
    pub fn plu(num_channels: usize, rng: &mut impl Rng, device: &Device) -> Result<Self> {
        let n = num_channels;
        let (permutation, lower, upper) = Lu::new(&rotation(n, rng)?, n).into_parts();
        let diagonal: Vec<f64> = (0..n).map(|i| upper[i * n + i]).collect();
        let log_s = diagonal.iter().map(|s| s.abs().ln()).collect::<Vec<_>>();
        let sign_s = diagonal.iter().map(|s| s.signum()).collect::<Vec<_>>();
        let vector = |values| Tensor::<1>::from_data(TensorData::new(values, [n]), device);
        Ok(Self::from_parts(PluWeight {
            permutation: frozen(matrix(permutation, n, device)),
            lower: Param::from_tensor(matrix(lower, n, device).tril(-1)),
            upper: Param::from_tensor(matrix(upper, n, device).triu(1)),
            log_s: Param::from_tensor(vector(log_s)),
            sign_s: frozen(vector(sign_s)),
        }))
    }

    /// The plain parametrization from a given `W`, `[channels, channels]`.
    pub fn from_weight(weight: Tensor<2>) -> Self {
        Self { weight: Conv1x1Weight::Plain(Param::from_tensor(weight)), cache: Cache::default() }
    }

    /// The PLU parametrization from given parts.
    pub fn from_parts(parts: PluWeight) -> Self {
        Self { weight: Conv1x1Weight::Plu(parts), cache: Cache::default() }
    }

    /// The matrix `W`, `[channels, channels]`.
    pub fn matrix(&self) -> Tensor<2> {
        match &self.weight {
            Conv1x1Weight::Plain(weight) => weight.val(),
            Conv1x1Weight::Plu(parts) => parts.matrix(),
        }
    }

    /// Condition of `W` as the ratio of its largest to its smallest pivot: the digits that an
    /// inversion can lose.
    pub fn pivot_ratio(&self) -> f64 {
        let (smallest, largest) = self.derived().pivots;
        largest / smallest
    }

    fn size(&self) -> usize {
        match &self.weight {
            Conv1x1Weight::Plain(weight) => weight.dims()[0],
            Conv1x1Weight::Plu(parts) => parts.log_s.dims()[0],
        }
    }

    fn derived(&self) -> Arc<Derived> {
        match &self.weight {
            Conv1x1Weight::Plain(weight) => {
                let weight = host::plain(weight.val());
                let size = weight.dims()[0];
                self.cache.get(host::to_f64(weight), size, Lu::new)
            }
            Conv1x1Weight::Plu(parts) => {
                self.cache.get(parts.values(), parts.log_s.dims()[0], PluWeight::factors)
            }
        }
    }

    /// [`derived`](Self::derived) of a weight that has an inverse.
    fn invertible(&self) -> Result<Arc<Derived>> {
        let derived = self.derived();
        match &self.weight {
            Conv1x1Weight::Plain(_) if derived.is_singular => Err(FlowError::Singular {
                layer: LAYER,
                size: derived.size,
                pivot: derived.pivots.0,
                largest: derived.pivots.1,
            }),
            _ => Ok(derived),
        }
    }

    fn backward_on_host<const D: usize>(
        &self,
        x: Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> Tensor<D> {
        let matrix = self.matrix();
        let (device, dtype) = (x.device(), x.dtype());
        let size = matrix.dims()[0];
        self.assert_channels(&x, size);
        let values = host::to_f64(host::plain(matrix.clone()));
        let pixels: usize = x.dims()[2..].iter().product();
        let dlog_abs_det = pixels as f64 * host::to_f64(dlog_det).iter().sum::<f64>();
        let dx = apply_on_host(&transposed(&values, size), dz.clone());
        let mut dweight = products_on_host(dz, x);
        match &self.weight {
            Conv1x1Weight::Plain(weight) if weight.is_require_grad() => {
                // d ln|det W| / dW = W^-T; where W is singular the loss is not finite in any case.
                if let Ok(derived) = self.invertible() {
                    for (to, from) in dweight.iter_mut().zip(transposed(derived.inverse(), size)) {
                        *to += dlog_abs_det * from;
                    }
                }
                add_grad(grads, weight, host::from_f64(dweight, [size, size], &device, dtype));
            }
            Conv1x1Weight::Plain(_) => {}
            Conv1x1Weight::Plu(parts) => {
                // The matrix is small: autodiff takes its gradient on to the parts.
                let dweight = host::from_f64(dweight, [size, size], &device, dtype);
                let of_log_det = parts.log_s.val();
                let of_log_det = of_log_det.is_tracked().then(|| of_log_det.sum() * dlog_abs_det);
                let terms = [weighted(matrix, dweight), of_log_det];
                pull_back_surrogate(parts, terms.into_iter().flatten(), grads);
            }
        }
        // The weight is about to change. Kept until then, the matrices derived from it would be memory
        // that grows with depth.
        self.cache.clear();
        dx
    }

    fn inverse_matrix(&self) -> Result<Tensor<2>> {
        let matrix = self.matrix();
        let inverse = match &self.weight {
            Conv1x1Weight::Plain(weight) => self.on_device(weight).map(|(inverse, _)| inverse),
            Conv1x1Weight::Plu(parts) if !is_host(&matrix.device()) => parts.inverse_on_device(),
            Conv1x1Weight::Plu(_) => None,
        };
        let inverse = match inverse {
            Some(inverse) => inverse,
            None => {
                let derived = self.invertible()?;
                let (inverse, shape) = (derived.inverse().to_vec(), [derived.size; 2]);
                host::from_f64(inverse, shape, &matrix.device(), matrix.dtype())
            }
        };
        if !matrix.device().is_autodiff() {
            return Ok(inverse);
        }
        let inverse = lifted(inverse);
        // d W^-1 = -W^-1 dW W^-1. The surrogate has that derivative; its own value (W^-1 up to
        // rounding) is taken off again.
        let surrogate = inverse.clone().matmul(matrix).matmul(inverse.clone());
        Ok(inverse + surrogate.clone().detach() - surrogate)
    }

    /// `W^-1` and `ln|det W|` of a plain weight, plain and on its device, where they can be had there.
    fn on_device(&self, weight: &Param<Tensor<2>>) -> Option<(Tensor<2>, Tensor<1>)> {
        if is_host(&weight.device()) { None } else { invert(host::plain(weight.val())) }
    }

    /// `ln|det W|`, `[1]`.
    fn log_abs_det(&self) -> Tensor<1> {
        let weight = match &self.weight {
            Conv1x1Weight::Plu(parts) => return parts.log_s.val().sum(),
            Conv1x1Weight::Plain(weight) => weight,
        };
        let (device, dtype, size) = (weight.device(), weight.dtype(), weight.dims()[0]);
        let (inverse, value) = match self.on_device(weight) {
            Some((inverse, value)) => (inverse, value),
            None => {
                let derived = self.derived();
                let value = host::from_f64(vec![derived.log_abs_det], [1], &device, dtype);
                if !device.is_autodiff() || derived.is_singular {
                    return value;
                }
                let inverse = derived.inverse().to_vec();
                (host::from_f64(inverse, [size, size], &device, dtype), value)
            }
        };
        if !device.is_autodiff() {
            return value;
        }
        // d ln|det W| / dW = W^-T. The surrogate sum(W * W^-T) has that gradient; its own value (the
        // number of channels) is taken off again.
        let surrogate = (weight.val() * lifted(inverse).transpose()).sum();
        lifted(value) + surrogate.clone() - surrogate.detach()
    }

    fn assert_channels<const D: usize>(&self, x: &Tensor<D>, size: usize) {
        assert_size(LAYER, x, size, "channels");
    }
}

impl<const D: usize> Flow<D> for InvertibleConv1x1 {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        let log_det = self.log_det(x.clone());
        let matrix = self.matrix();
        self.assert_channels(&x, matrix.dims()[0]);
        if host::has_no_samples(&x) {
            return (x, log_det);
        }
        if has_pixels(&x) && host::runs_by_kernels(self, &x) {
            return (apply_on_host(&host::to_f64(host::plain(matrix)), x), log_det);
        }
        (apply(matrix, x), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        if host::has_no_samples(&z) {
            self.assert_channels(&z, self.size());
            return z;
        }
        if has_pixels(&z) && host::runs_by_kernels(self, &z) {
            let derived = self.invertible().unwrap_or_else(|error| panic!("{error}"));
            self.assert_channels(&z, derived.size);
            return apply_on_host(derived.inverse(), z);
        }
        let inverse = self.inverse_matrix().unwrap_or_else(|error| panic!("{error}"));
        self.assert_channels(&z, inverse.dims()[0]);
        apply(inverse, z)
    }

    fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
        let pixels: usize = x.dims()[2..].iter().product();
        same_log_det(self.log_abs_det() * pixels as f64, &x)
    }

    fn check(&self) -> Result<()> {
        match &self.weight {
            Conv1x1Weight::Plain(_) => self.invertible().map(|_| ()),
            Conv1x1Weight::Plu(parts) => check_log_scale(LAYER, parts.log_s.val()),
        }
    }

    fn pull_back(
        &self,
        at: At<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let x = tape.input(at, |z| self.valid().inverse(z));
        let dx = if has_pixels(&x) && host::pulls_back_by_kernels(self, &x) {
            self.backward_on_host(x.clone(), dz, dlog_det, grads)
        } else {
            backward_by_autodiff(self, x.clone(), dz, dlog_det, grads)
        };
        (x, dx)
    }
}

/// A constant among tensors with gradients.
fn lifted<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.device().is_autodiff() { tensor } else { Tensor::from_inner(tensor) }
}

/// Whether a sample has more than one pixel: one is left to the matrix product.
fn has_pixels<const D: usize>(x: &Tensor<D>) -> bool {
    x.dims()[2..].iter().product::<usize>() > 1
}

fn apply_on_host<const D: usize>(matrix: &[f64], x: Tensor<D>) -> Tensor<D> {
    fn apply<T: HostScalar, const D: usize>(matrix: &[f64], x: Tensor<D>) -> Tensor<D> {
        let (device, dims) = (x.device(), x.dims());
        let matrix: Vec<T> = matrix.iter().map(|&entry| T::from_f64(entry)).collect();
        let map = ChannelMatrix { matrix: &matrix };
        let values = map.apply(HostValues::of(x).as_slice(), host::kernel_shape(dims));
        host::tensor(values, dims, &device)
    }
    by_dtype!(x, T => apply::<T, D>(matrix, x))
}

/// `sum over batch and pixels of a[i] b[j]`, `[channels, channels]`.
fn products_on_host<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Vec<f64> {
    let shape = host::kernel_shape(a.dims());
    by_dtype!(a, T => {
        let (a, b) = (HostValues::of(a), HostValues::of(b));
        channel_products::<T>(a.as_slice(), b.as_slice(), shape)
    })
}

fn transposed(matrix: &[f64], size: usize) -> Vec<f64> {
    (0..size * size).map(|at| matrix[at % size * size + at / size]).collect()
}

/// The identity matrix, on the device and in the dtype of `like`.
pub(super) fn identity(size: usize, like: &Tensor<2>) -> Tensor<2> {
    Tensor::<2>::eye(size, &like.device()).cast(like.dtype())
}

/// Multiplies axis 1 of `x` by `matrix` from the left.
pub(super) fn apply<const D: usize>(matrix: Tensor<2>, x: Tensor<D>) -> Tensor<D> {
    let shape = x.dims();
    let [batch, channels] = [shape[0], shape[1]];
    let pixels = shape[2..].iter().product::<usize>();
    if pixels == 1 {
        return x.reshape([batch, channels]).matmul(matrix.transpose()).reshape(shape);
    }
    // One tall product instead of one small product a sample.
    x.reshape([batch, channels, pixels])
        .swap_dims(1, 2)
        .reshape([batch * pixels, channels])
        .matmul(matrix.transpose())
        .reshape([batch, pixels, channels])
        .swap_dims(1, 2)
        .reshape(shape)
}

fn rotation(size: usize, rng: &mut impl Rng) -> Result<Vec<f64>> {
    if size == 0 {
        return Err(FlowError::config(
            LAYER,
            "num_channels",
            0,
            "at least 1",
            "give the number of channels of the input",
        ));
    }
    Ok(orthogonal(&standard_normal_values(size * size, rng), size))
}

fn matrix(values: Vec<f64>, size: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, [size, size]), device)
}
