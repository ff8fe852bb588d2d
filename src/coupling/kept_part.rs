//! A flow of what a coupling passes unchanged.

use burn::module::Module;
use burn::tensor::Tensor;

use super::Mask;
use crate::chain::zero_log_det;
use crate::error::Result;
use crate::flow::{Flow, Pass};
use crate::host;
use crate::record::Setting;

/// A flow of the identity part of a [`Mask`]; the rest passes unchanged.
///
/// With `(a, b) = split(x)`: `z = merge(flow(a), b)`, and the log-determinant is that of the flow. Behind
/// a coupling of the same mask it changes what that one keeps, after the net has seen it: one layer of
/// the two changes all channels.
///
/// Source: Durkan et al., *Neural Spline Flows*, [arXiv:1906.04032](https://arxiv.org/abs/1906.04032),
/// section 3.1 (`phi` of the first half).
///
/// ```
/// use burn::module::Param;
/// use burn::tensor::Tensor;
/// use burn_flows::Flow;
/// use burn_flows::coupling::{KeptPart, Mask};
/// use burn_flows::linear::Shift;
///
/// let device = burn_flows::backend::device();
/// let mut shift = Shift::new(1, &device)?;
/// shift.shift = Param::from_data([10.0], &device);
/// let (z, _) = KeptPart::new(shift, Mask::first_half())
///     .forward(Tensor::<2>::from_data([[1.0, 2.0]], &device));
/// assert_eq!(z.try_into_vec_as::<f32>().unwrap(), [11.0, 2.0]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct KeptPart<F> {
    /// The flow of the identity part.
    pub flow: F,
    mask: Setting<Mask>,
}

impl<F: Module> KeptPart<F> {
    /// `flow` of what `mask` keeps.
    ///
    /// # Panics
    /// If the mask is a checkerboard, whose parts are whole pictures of which only some squares count.
    pub fn new(flow: F, mask: Mask) -> Self {
        assert!(
            !matches!(mask, Mask::Checkerboard(_)),
            "KeptPart: a checkerboard leaves no part of its own; use a mask of channels"
        );
        Self { flow, mask: mask.into() }
    }

    /// How the input is divided.
    pub fn mask(&self) -> Mask {
        *self.mask
    }
}

impl<const D: usize, F: Flow<D>> Flow<D> for KeptPart<F>
where
    Self: Module,
{
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        let (kept, rest) = self.mask.split(x);
        let (kept, log_det) = self.flow.forward(kept);
        (self.mask.merge(kept, rest), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        if host::has_no_samples(&z) {
            return z;
        }
        let (kept, rest) = self.mask.split(z);
        self.mask.merge(self.flow.inverse(kept), rest)
    }

    fn data_pass(mut self, x: Tensor<D>, pass: Pass) -> (Self, Tensor<D>) {
        if host::has_no_samples(&x) {
            return (self, x);
        }
        let (kept, rest) = self.mask.split(x);
        let (flow, kept) = self.flow.data_pass(kept, pass);
        self.flow = flow;
        let z = self.mask.merge(kept, rest);
        (self, z)
    }

    fn check(&self) -> Result<()> {
        self.flow.check()
    }
}
