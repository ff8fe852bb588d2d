//! [`Inverse`]: any flow turned around.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::error::Result;
use crate::flow::{At, Flow};
use crate::tape::Tape;

/// The flow `F` turned around: `forward` is its inverse, `inverse` its forward map.
///
/// `log_det(x) = -log_det_F(inverse_F(x))`. Turning around a masked autoregressive layer gives the
/// inverse autoregressive one (IAF), which samples in one pass.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, Inverse, linear::DiagonalScaling};
///
/// let device = burn_flows::backend::device();
/// let mut scaling = DiagonalScaling::new(1, &device)?;
/// scaling.log_scale = burn::module::Param::from_data([2f32.ln()], &device);
/// let (z, log_det) = Inverse::new(scaling).forward(Tensor::<2>::from_data([[6.0]], &device));
/// assert!((z.into_scalar::<f32>() - 3.0).abs() < 1e-6);
/// assert!((log_det.into_scalar::<f32>() + 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Inverse<F> {
    /// The flow that is turned around.
    pub flow: F,
}

impl<F: Module> Inverse<F> {
    /// `flow`, turned around.
    pub fn new(flow: F) -> Self {
        Self { flow }
    }
}

impl<const D: usize, F: Flow<D>> Flow<D> for Inverse<F>
where
    Self: Module,
{
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        let (z, log_det) = self.flow.inverse_and_log_det(x);
        (z, log_det.neg())
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.flow.forward(z).0
    }

    fn inverse_and_log_det(&self, z: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        let (x, log_det) = self.flow.forward(z);
        (x, log_det.neg())
    }

    fn pull_back_inverse(
        &self,
        x: Tensor<D>,
        dx: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        self.flow.pull_back(At::Output(x), dx, dlog_det.neg(), &mut Tape::default(), grads)
    }

    fn check(&self) -> Result<()> {
        self.flow.check()
    }
}
