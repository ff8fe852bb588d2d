//! Learned rotations and reflections across the channels.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use rand::Rng;

use super::conv1x1::{apply, identity};
use crate::chain::{assert_size, zero_log_det};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::prior::standard_normal;

/// A product of reflections, the same at every pixel: `z = H_n ... H_1 x`, `log_det = 0`.
///
/// `H_i = 1 - 2 q_i q_i^T / |q_i|^2` for the rows `q_i` of [`vectors`](Householder::vectors), of which the
/// first is applied first; as many as there are channels give every orthogonal matrix. The inverse is
/// the transposed matrix.
///
/// Source: Tomczak and Welling, *Improving Variational Auto-Encoders using Householder Flow*,
/// [arXiv:1611.09630](https://arxiv.org/abs/1611.09630), section 3.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, linear::Householder};
///
/// let device = burn_flows::backend::device();
/// let mirror = Householder::from_vectors(Tensor::from_data([[1.0, 0.0]], &device));
/// let (z, _) = mirror.forward(Tensor::<2>::from_data([[2.0, 3.0]], &device));
/// assert_eq!(z.try_into_vec_as::<f32>().unwrap(), [-2.0, 3.0]);
/// ```
#[derive(Module, Debug)]
pub struct Householder {
    /// The normals of the mirrors, `[reflections, channels]`, of any length but zero.
    pub vectors: Param<Tensor<2>>,
}

impl Householder {
    /// `num_reflections` random reflections of `num_channels` channels.
    ///
    /// # Errors
    /// If one of the two is zero.
    pub fn new(
        num_channels: usize,
        num_reflections: usize,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Result<Self> {
        for (parameter, value) in
            [("num_channels", num_channels), ("num_reflections", num_reflections)]
        {
            if value == 0 {
                let advice = "as many reflections as channels reach every orthogonal matrix";
                return Err(FlowError::config("Householder", parameter, 0, "at least 1", advice));
            }
        }
        let vectors = Tensor::<2>::zeros([num_reflections, num_channels], device);
        let shape = vectors.dims();
        Ok(Self::from_vectors(standard_normal(shape, rng, device, vectors.dtype())))
    }

    /// Reflections with the given normals, `[reflections, channels]`.
    pub fn from_vectors(vectors: Tensor<2>) -> Self {
        Self { vectors: Param::from_tensor(vectors) }
    }

    /// The orthogonal matrix, `[channels, channels]`.
    pub fn matrix(&self) -> Tensor<2> {
        let vectors = self.vectors.val();
        let [count, channels] = vectors.dims();
        // A mirror is that of its normal at any length: at one whose square is a number.
        let vectors = vectors.clone() / host::plain(vectors).abs().max_dim(1);
        (0..count).fold(identity(channels, &vectors), |matrix, index| {
            let row = vectors.clone().narrow(0, index, 1);
            let factor = row.clone().square().sum().recip() * 2.0;
            let along = row.clone().matmul(matrix.clone());
            matrix - row.transpose().matmul(along) * factor.reshape([1, 1])
        })
    }
}

/// A learned rotation, the same at every pixel: `z = exp(A - A^T) x`, `log_det = 0`.
///
/// The exponential of an antisymmetric matrix is a rotation; it is computed by its series at a sixty-fourth
/// of the angle, squared six times; of more than 64 radians at a smaller part, squared more often, with what
/// rounding adds taken off each time. The inverse is the transposed matrix. How large the angle is is read
/// from the device at every call.
///
/// Source: Lezcano-Casado and Martínez-Rubio, *Cheap Orthogonal Constraints in Neural Networks*,
/// [arXiv:1901.08428](https://arxiv.org/abs/1901.08428), section 3.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, linear::Rotation};
///
/// let device = burn_flows::backend::device();
/// let quarter = std::f32::consts::FRAC_PI_2;
/// let turn = Rotation::from_generator(Tensor::from_data([[0.0, -quarter], [0.0, 0.0]], &device));
/// let (z, _) = turn.forward(Tensor::<2>::from_data([[1.0, 0.0]], &device));
/// let z = z.try_into_vec_as::<f32>().unwrap();
/// assert!(z[0].abs() < 1e-5 && (z[1] - 1.0).abs() < 1e-5);
/// ```
#[derive(Module, Debug)]
pub struct Rotation {
    /// `A`, `[channels, channels]`, in radians.
    pub generator: Param<Tensor<2>>,
}

/// Squarings of the exponential at least: the series is taken at `2^-6` of the angle or less.
const SQUARINGS: usize = 6;

/// Terms of the series: at angles up to 1 the next one is below `1e-17`.
const TERMS: usize = 18;

impl Rotation {
    /// No rotation, of `num_channels` channels.
    ///
    /// # Errors
    /// If `num_channels` is zero.
    pub fn new(num_channels: usize, device: &Device) -> Result<Self> {
        if num_channels == 0 {
            let advice = "give the number of channels of the input";
            return Err(FlowError::config("Rotation", "num_channels", 0, "at least 1", advice));
        }
        Ok(Self::from_generator(Tensor::zeros([num_channels, num_channels], device)))
    }

    /// The rotation `exp(A - A^T)`.
    pub fn from_generator(generator: Tensor<2>) -> Self {
        Self { generator: Param::from_tensor(generator) }
    }

    /// The rotation matrix, `[channels, channels]`.
    pub fn matrix(&self) -> Tensor<2> {
        let generator = self.generator.val();
        let [channels, _] = generator.dims();
        let one = identity(channels, &generator);
        let angle = generator.clone() - generator.transpose();
        let squarings = squarings(&angle);
        let angle = angle * 0.5f64.powi(squarings as i32);
        let series = (1..=TERMS).rev().fold(one.clone(), |sum, term| {
            one.clone() + angle.clone().matmul(sum) * (term as f64).recip()
        });
        (0..squarings).fold(series, |matrix, squaring| {
            let square = matrix.clone().matmul(matrix);
            // A square is off the orthogonal matrices by twice of what its root is. A step of Newton's
            // takes that off again.
            if squaring < SQUARINGS {
                return square;
            }
            let product = square.clone().transpose().matmul(square.clone());
            square.clone() * 1.5 - square.matmul(product) * 0.5
        })
    }
}

/// As many as leave an angle of 1 at most, and no fewer than [`SQUARINGS`].
fn squarings(angle: &Tensor<2>) -> usize {
    // The largest sum of magnitudes in a row is no less than any angle.
    let bound = host::scalar(host::plain(angle.clone()).abs().sum_dim(1).max());
    let needed = bound.log2().ceil();
    if needed.is_finite() { (needed.max(0.0) as usize).max(SQUARINGS) } else { SQUARINGS }
}

macro_rules! orthogonal {
    ($name:ident, $param:ident) => {
        impl $name {
            fn assert_channels<const D: usize>(&self, x: &Tensor<D>) {
                let [_, channels] = self.$param.dims();
                assert_size(stringify!($name), x, channels, "channels");
            }
        }

        impl<const D: usize> Flow<D> for $name {
            fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
                self.assert_channels(&x);
                let log_det = zero_log_det(&x);
                if host::has_no_samples(&x) {
                    return (x, log_det);
                }
                (apply(self.matrix(), x), log_det)
            }

            fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
                self.assert_channels(&z);
                if host::has_no_samples(&z) {
                    return z;
                }
                apply(self.matrix().transpose(), z)
            }

            fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
                zero_log_det(&x)
            }
        }
    };
}

orthogonal!(Householder, vectors);
orthogonal!(Rotation, generator);
