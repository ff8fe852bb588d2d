//! [`Inverse`]: any flow turned around.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::error::{FlowError, Result};
use crate::flow::{At, Flow};
use crate::record::Setting;
use crate::tape::Tape;

/// The flow `F` turned around: `forward` is its inverse, `inverse` its forward map.
///
/// Data that initialize layers or are observed go forwards through flows, so they do not reach the layers of
/// `F`: those that start from data are initialized before they are turned around, and
/// [`Trainer`](crate::training::Trainer) refuses what still waits.
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
    /// By this a record knows it from a flow that is not.
    turned: Setting<bool>,
}

impl<F: Module> Inverse<F> {
    /// `flow`, turned around.
    pub fn new(flow: F) -> Self {
        Self { flow, turned: true.into() }
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

    /// The shape that the flow maps to this one: the same, or one that squeezes lead to.
    fn latent_shape(&self, shape: [usize; D]) -> Result<[usize; D]> {
        let maps_here =
            |from: &[usize; D]| self.flow.latent_shape(*from).is_ok_and(|to| to == shape);
        let sides = 1..=shape[2..].iter().chain([&shape[1]]).copied().max().unwrap_or(1);
        sides.flat_map(|factor| squeezed(shape, factor)).find(maps_here).ok_or_else(|| {
            FlowError::config(
                "Inverse",
                "the shape of a sample",
                format!("{:?}", &shape[1..]),
                "one that comes out of the flow that is turned around",
                "turn around a flow that keeps the shape, or squeezes by whole factors",
            )
        })
    }
}

/// What a shape becomes where every side is divided by a factor or multiplied by it, the number of values
/// being kept by the channels.
fn squeezed<const D: usize>(shape: [usize; D], factor: usize) -> impl Iterator<Item = [usize; D]> {
    let of_channels = factor.pow(D.saturating_sub(2) as u32);
    let (mut smaller, mut larger) = (shape, shape);
    smaller[1] *= of_channels;
    larger[1] /= of_channels;
    smaller[2..].iter_mut().for_each(|side| *side /= factor);
    larger[2..].iter_mut().for_each(|side| *side *= factor);
    [larger, smaller]
        .into_iter()
        .filter(move |other| other.iter().product::<usize>() == shape.iter().product::<usize>())
}
