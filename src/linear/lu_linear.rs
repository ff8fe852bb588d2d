//! A learned matrix in triangles, and a shift.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor};

use super::conv1x1::identity;
use super::{InvertibleConv1x1, PluWeight};
use crate::coupling::{per_channel, softplus};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::param::frozen;
use crate::record::Setting;

/// A learned matrix across the features (or channels) and a shift: `z = L U x + shift`.
///
/// - forward: `z = L U x + shift`; `L` has ones on its diagonal, `U` has `ln(1 + e^u) + floor`
/// - inverse: `x = U^-1 L^-1 (z - shift)`
/// - `log_det = pixels * sum ln(ln(1 + e^u) + floor)`
///
/// The diagonal is above `floor`, so that the matrix cannot become singular, and the gain of the inverse
/// is bounded by it as long as the triangles are small. An [`InvertibleConv1x1`] of the same kind learns the
/// logarithm of its diagonal, and has a permutation.
///
/// Source: Durkan et al., *Neural Spline Flows*, [arXiv:1906.04032](https://arxiv.org/abs/1906.04032),
/// section 4.1, and its code, nflows, `transforms/lu.py`, whose floor is 0.001.
///
/// ```
/// use burn::module::Param;
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, linear::LuLinear};
///
/// let device = burn_flows::backend::device();
/// let mut linear = LuLinear::new(2, 0.5, &device)?;
/// linear.lower = Param::from_data([[0.0, 0.0], [3.0, 0.0]], &device);
/// let (z, log_det) = linear.forward(Tensor::<2>::from_data([[1.0, 2.0]], &device));
/// // The diagonal starts at 1: z = (1, 3 * 1 + 2).
/// let z = z.try_into_vec_as::<f32>().unwrap();
/// assert!((z[0] - 1.0).abs() < 1e-6 && (z[1] - 5.0).abs() < 1e-6);
/// assert!(log_det.into_scalar::<f32>().abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct LuLinear {
    /// `L`: the entries below the diagonal are used, `[channels, channels]`.
    pub lower: Param<Tensor<2>>,
    /// `U`: the entries above the diagonal are used, `[channels, channels]`.
    pub upper: Param<Tensor<2>>,
    /// `u`, of which the diagonal of `U` is made, `[channels]`.
    pub raw_diagonal: Param<Tensor<1>>,
    /// What is added, `[channels]`.
    pub shift: Param<Tensor<1>>,
    floor: Setting<f64>,
}

const LAYER: &str = "LuLinear";

impl LuLinear {
    /// The identity on `num_channels` channels.
    ///
    /// # Errors
    /// If `num_channels` is zero, or `floor` is not above 0 and below 1.
    pub fn new(num_channels: usize, floor: f64, device: &Device) -> Result<Self> {
        if num_channels == 0 {
            let advice = "give the number of channels of the input";
            return Err(FlowError::config(LAYER, "num_channels", 0, "at least 1", advice));
        }
        check_floor(floor)?;
        let square = || Param::from_tensor(Tensor::zeros([num_channels; 2], device));
        let raw = (1.0 - floor).exp_m1().ln();
        Ok(Self {
            lower: square(),
            upper: square(),
            raw_diagonal: Param::from_tensor(Tensor::full([num_channels], raw, device)),
            shift: Param::from_tensor(Tensor::zeros([num_channels], device)),
            floor: floor.into(),
        })
    }

    /// A matrix and a shift of given parts.
    ///
    /// # Errors
    /// If `floor` is not above 0 and below 1.
    pub fn from_parts(
        [lower, upper]: [Param<Tensor<2>>; 2],
        raw_diagonal: Param<Tensor<1>>,
        shift: Param<Tensor<1>>,
        floor: f64,
    ) -> Result<Self> {
        check_floor(floor)?;
        Ok(Self { lower, upper, raw_diagonal, shift, floor: floor.into() })
    }

    /// The least entry of the diagonal.
    pub fn floor(&self) -> f64 {
        *self.floor
    }

    /// The matrix alone, in the parametrization that has its kernels.
    fn linear(&self) -> InvertibleConv1x1 {
        let log_s = (softplus(self.raw_diagonal.val()) + *self.floor).log();
        let size = log_s.dims()[0];
        let plain = host::plain(self.lower.val());
        let ones = Tensor::ones([size], (&plain.device(), plain.dtype()));
        let constant = |tensor| frozen(lifted(tensor, &self.lower));
        InvertibleConv1x1::from_parts(PluWeight {
            permutation: constant(identity(size, &plain)),
            lower: self.lower.clone(),
            upper: self.upper.clone(),
            // It may be followed by autodiff already.
            log_s: Param::initialized(ParamId::new(), log_s),
            sign_s: frozen(lifted(ones, &self.raw_diagonal)),
        })
    }
}

/// A plain tensor, on the side of autodiff that a parameter is on.
fn lifted<const D: usize, const N: usize>(tensor: Tensor<D>, like: &Param<Tensor<N>>) -> Tensor<D> {
    if like.device().is_autodiff() { Tensor::from_inner(tensor) } else { tensor }
}

fn check_floor(floor: f64) -> Result<()> {
    if floor > 0.0 && floor < 1.0 {
        return Ok(());
    }
    Err(FlowError::config(LAYER, "floor", floor, "between 0 and 1", "0.001 is the usual choice"))
}

impl<const D: usize> Flow<D> for LuLinear {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        let (z, log_det) = self.linear().forward(x);
        if host::has_no_samples(&z) {
            return (z, log_det);
        }
        (z + per_channel(self.shift.val()), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        let linear = self.linear();
        if host::has_no_samples(&z) {
            return linear.inverse(z);
        }
        linear.inverse(z - per_channel(self.shift.val()))
    }

    fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
        self.linear().log_det(x)
    }

    fn check(&self) -> Result<()> {
        Flow::<2>::check(&self.linear())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_that_leaves_no_identity_is_refused() {
        let device = crate::backend::device();
        assert_eq!(
            LuLinear::new(2, 1.0, &device).unwrap_err().to_string(),
            "LuLinear: floor is 1, but must be between 0 and 1; 0.001 is the usual choice"
        );
    }
}
