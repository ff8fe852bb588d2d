//! The densities that latents are scored under and drawn from.

mod blank_normal;
mod conditional_normal;
mod context_mixture;
mod context_normal;
mod diagonal_normal;
mod diagonal_student_t;
mod full_mixture;
mod logistic;
mod mixture;
mod normal;
mod per_feature;
mod student_t;
mod uniform;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use rand::{Rng, RngExt};

pub use blank_normal::BlankNormal;
/// Makes an enum of priors, one of several, a [`Prior`](trait@Prior) of every rank that all of them have;
/// every variant holds one.
///
/// ```
/// use burn::module::Module;
/// use burn::tensor::Tensor;
/// use burn_flows::prior::{Prior, StandardLogistic, StandardNormal};
///
/// #[derive(Module, Debug, Prior)]
/// enum Base {
///     Logistic(StandardLogistic),
///     Normal(StandardNormal),
/// }
///
/// let base = Base::Logistic(StandardLogistic::new());
/// let device = burn_flows::backend::device();
/// let log_prob = base.log_prob(Tensor::<2>::from_data([[0.0, 0.0]], &device));
/// assert!((log_prob.into_scalar::<f32>() - 2.0 * 0.25f32.ln()).abs() < 1e-6);
/// ```
pub use burn_flows_derive::Prior;
/// Makes an enum of split priors, one of several, a [`SplitPrior`](trait@SplitPrior) of every rank that
/// all of them have; every variant holds one.
pub use burn_flows_derive::SplitPrior;
pub use conditional_normal::ConditionalNormal;
pub use context_mixture::ContextMixture;
pub use context_normal::ContextNormal;
pub use diagonal_normal::DiagonalNormal;
pub use diagonal_student_t::DiagonalStudentT;
pub(crate) use diagonal_student_t::first_trained_degrees;
pub use full_mixture::FullMixture;
pub use logistic::StandardLogistic;
pub use mixture::GaussianMixture;
pub(crate) use mixture::log_sum_exp;
pub use normal::StandardNormal;
pub use per_feature::{FeatureDensity, PerFeature};
pub use student_t::StudentT;
pub use uniform::Uniform;

use crate::conditioner::Conditioner;
use crate::context::Context;
use crate::flow::{Pass, pull_back_through, pull_back_with};
use crate::host;

/// A density over latents `z` of rank `D`.
///
/// A temperature `T` multiplies the spread of the draws: standard deviation (normal) or scale
/// (logistic). `T = 1` draws from the density, `T = 0` gives its centre. For flows with constant
/// log-determinant it draws from `p(x)^(1/T^2)` renormalized (Glow, section 6).
pub trait Prior<const D: usize>: Module {
    /// `ln p(z)` in nats: `[batch, ...] -> [batch]`.
    fn log_prob(&self, z: Tensor<D>) -> Tensor<1>;

    /// Draws of the given shape, batch first.
    fn sample(
        &self,
        shape: [usize; D],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<D>;

    /// Sends a batch of latents through, by which what is inside may change: ActNorm in a net is initialized,
    /// running statistics take the batch in. Default: unchanged.
    fn data_pass(self, _z: Tensor<D>, _pass: Pass) -> Self {
        self
    }

    /// The gradient of `weight * sum ln p(z)` with respect to `z`; those of the parameters are added
    /// to `grads`. `self` is a model in training, `z` and the result are plain tensors.
    ///
    /// The default serves every prior, by autodiff.
    fn backward(&self, z: Tensor<D>, weight: f64, grads: &mut GradientsParams) -> Tensor<D> {
        pull_back_through(self, z, |z| self.log_prob(z).sum() * weight, grads)
    }
}

/// A density over the latents that a split factors out, which may depend on the kept half.
///
/// Every [`Prior`](trait@Prior) is one that does not.
pub trait SplitPrior<const D: usize>: Module {
    /// `ln p(z | kept)` in nats: `[batch, ...] -> [batch]`.
    fn log_prob(&self, z: Tensor<D>, kept: Tensor<D>) -> Tensor<1>;

    /// Draws of the given shape, given the kept half.
    fn sample(
        &self,
        shape: [usize; D],
        kept: Tensor<D>,
        temperature: f64,
        rng: &mut impl Rng,
    ) -> Tensor<D>;

    /// `z` in coordinates in which the density does not depend on the kept half:
    /// `(z - mean) / std` for a normal. The default, `z` itself, is for priors that do not depend on
    /// it in the first place.
    fn standardize(&self, z: Tensor<D>, _kept: Tensor<D>) -> Tensor<D> {
        z
    }

    /// The inverse of [`standardize`](SplitPrior::standardize).
    fn unstandardize(&self, noise: Tensor<D>, _kept: Tensor<D>) -> Tensor<D> {
        noise
    }

    /// Sends a batch through, by which what is inside may change: ActNorm in a net is initialized, running
    /// statistics take the batch in. Default: unchanged.
    fn data_pass(self, _z: Tensor<D>, _kept: Tensor<D>, _pass: Pass) -> Self {
        self
    }

    /// The gradients of `weight * sum ln p(z | kept)` with respect to `z` and to `kept`; those of the
    /// parameters are added to `grads`. `self` is a model in training, the tensors are plain.
    ///
    /// The default serves every prior, by autodiff.
    fn backward(
        &self,
        z: Tensor<D>,
        kept: Tensor<D>,
        weight: f64,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        backward_by_autodiff(self, z, kept, weight, grads)
    }
}

/// All methods of [`Prior`] and of [`SplitPrior`] for one of several: what the derive macros write. Here
/// beside the traits, so that none is forgotten.
#[doc(hidden)]
#[macro_export]
macro_rules! __one_of_priors {
    (Prior $D:ident $($variant:ident $field:tt)+) => {
        fn log_prob(
            &self,
            z: $crate::__private::Tensor<$D>,
        ) -> $crate::__private::Tensor<1> {
            match self {
                $(Self::$variant { $field: prior } => $crate::prior::Prior::log_prob(prior, z),)+
            }
        }

        fn sample(
            &self,
            shape: [usize; $D],
            temperature: f64,
            rng: &mut impl $crate::__private::Rng,
            device: &$crate::__private::Device,
            dtype: $crate::__private::DType,
        ) -> $crate::__private::Tensor<$D> {
            match self {
                $(Self::$variant { $field: prior } => {
                    $crate::prior::Prior::sample(prior, shape, temperature, rng, device, dtype)
                })+
            }
        }

        fn data_pass(self, z: $crate::__private::Tensor<$D>, pass: $crate::Pass) -> Self {
            match self {
                $(Self::$variant { $field: prior } => Self::$variant {
                    $field: $crate::prior::Prior::data_pass(prior, z, pass),
                },)+
            }
        }

        fn backward(
            &self,
            z: $crate::__private::Tensor<$D>,
            weight: f64,
            grads: &mut $crate::__private::GradientsParams,
        ) -> $crate::__private::Tensor<$D> {
            match self {
                $(Self::$variant { $field: prior } => {
                    $crate::prior::Prior::backward(prior, z, weight, grads)
                })+
            }
        }
    };
    (SplitPrior $D:ident $($variant:ident $field:tt)+) => {
        fn log_prob(
            &self,
            z: $crate::__private::Tensor<$D>,
            kept: $crate::__private::Tensor<$D>,
        ) -> $crate::__private::Tensor<1> {
            match self {
                $(Self::$variant { $field: prior } => {
                    $crate::prior::SplitPrior::log_prob(prior, z, kept)
                })+
            }
        }

        fn sample(
            &self,
            shape: [usize; $D],
            kept: $crate::__private::Tensor<$D>,
            temperature: f64,
            rng: &mut impl $crate::__private::Rng,
        ) -> $crate::__private::Tensor<$D> {
            match self {
                $(Self::$variant { $field: prior } => {
                    $crate::prior::SplitPrior::sample(prior, shape, kept, temperature, rng)
                })+
            }
        }

        fn standardize(
            &self,
            z: $crate::__private::Tensor<$D>,
            kept: $crate::__private::Tensor<$D>,
        ) -> $crate::__private::Tensor<$D> {
            match self {
                $(Self::$variant { $field: prior } => {
                    $crate::prior::SplitPrior::standardize(prior, z, kept)
                })+
            }
        }

        fn unstandardize(
            &self,
            noise: $crate::__private::Tensor<$D>,
            kept: $crate::__private::Tensor<$D>,
        ) -> $crate::__private::Tensor<$D> {
            match self {
                $(Self::$variant { $field: prior } => {
                    $crate::prior::SplitPrior::unstandardize(prior, noise, kept)
                })+
            }
        }

        fn data_pass(
            self,
            z: $crate::__private::Tensor<$D>,
            kept: $crate::__private::Tensor<$D>,
            pass: $crate::Pass,
        ) -> Self {
            match self {
                $(Self::$variant { $field: prior } => Self::$variant {
                    $field: $crate::prior::SplitPrior::data_pass(prior, z, kept, pass),
                },)+
            }
        }

        fn backward(
            &self,
            z: $crate::__private::Tensor<$D>,
            kept: $crate::__private::Tensor<$D>,
            weight: f64,
            grads: &mut $crate::__private::GradientsParams,
        ) -> ($crate::__private::Tensor<$D>, $crate::__private::Tensor<$D>) {
            match self {
                $(Self::$variant { $field: prior } => {
                    $crate::prior::SplitPrior::backward(prior, z, kept, weight, grads)
                })+
            }
        }
    };
}

impl<const D: usize, P: Prior<D>> SplitPrior<D> for P {
    fn log_prob(&self, z: Tensor<D>, _kept: Tensor<D>) -> Tensor<1> {
        Prior::log_prob(self, z)
    }

    fn sample(
        &self,
        shape: [usize; D],
        kept: Tensor<D>,
        temperature: f64,
        rng: &mut impl Rng,
    ) -> Tensor<D> {
        Prior::sample(self, shape, temperature, rng, &kept.device(), kept.dtype())
    }

    fn data_pass(self, z: Tensor<D>, _kept: Tensor<D>, pass: Pass) -> Self {
        Prior::data_pass(self, z, pass)
    }

    fn backward(
        &self,
        z: Tensor<D>,
        kept: Tensor<D>,
        weight: f64,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        (Prior::backward(self, z, weight, grads), kept.zeros_like())
    }
}

/// The default [`SplitPrior::backward`].
fn backward_by_autodiff<const D: usize, S: SplitPrior<D>>(
    prior: &S,
    z: Tensor<D>,
    kept: Tensor<D>,
    weight: f64,
    grads: &mut GradientsParams,
) -> (Tensor<D>, Tensor<D>) {
    let kept = Tensor::from_inner(kept).require_grad();
    let mut dkept = None;
    let dz = pull_back_with(
        prior,
        z,
        |z| prior.log_prob(z, kept.clone()).sum() * weight,
        |graph| dkept = kept.grad_remove(graph),
        grads,
    );
    (dz, dkept.unwrap_or_else(|| kept.inner().zeros_like()))
}

/// The net of a prior after a data pass of the contexts of `batch` samples; one that waits for its context
/// waits for its data as well.
fn context_pass<N: Conditioner<2>>(net: N, context: &Context, batch: usize, pass: Pass) -> N {
    if context.is_given() { net.data_pass(context.rows(batch), pass).0 } else { net }
}

/// `ln(2 pi) / 2`, the constant of a normal log-density.
pub(crate) const HALF_LN_TAU: f64 = 0.918_938_533_204_672_8;

/// Independent standard normals, two from each pair of uniforms (Box and Muller, 1958).
pub(crate) fn standard_normal_values(count: usize, rng: &mut impl Rng) -> Vec<f64> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // In (0, 1]: the logarithm is finite.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
        values.extend([radius * cosine, radius * sine]);
    }
    values.truncate(count);
    values
}

/// [`standard_normal`] times a temperature; empty where the shape is.
fn scaled_normal<const D: usize>(
    shape: [usize; D],
    temperature: f64,
    rng: &mut impl Rng,
    device: &Device,
    dtype: DType,
) -> Tensor<D> {
    let noise = standard_normal(shape, rng, device, dtype);
    if host::has_no_samples(&noise) { noise } else { noise * temperature }
}

/// A tensor of independent standard normals from the given random stream.
pub(crate) fn standard_normal<const D: usize>(
    shape: [usize; D],
    rng: &mut impl Rng,
    device: &Device,
    dtype: DType,
) -> Tensor<D> {
    let values = standard_normal_values(shape.iter().product(), rng);
    host::from_f64(values, shape, device, dtype)
}
