//! Autoregressive flows: each feature is mapped by what the features before it say.
//!
//! As a coupling is a conditioner and an elementwise [`Transform`], an autoregressive layer is a
//! [`Made`] and a transform; affine maps and splines serve both.

mod made;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

pub use made::{Made, MadeConfig, MadeContext};

use crate::chain::zero_log_det;
use crate::conditioner::{Fold, FoldedNet};
use crate::coupling::{Fused, Layout, Transform, map_and_log_det};
use crate::error::{FlowError, Result};
use crate::flow::{At, Flow, backward_by_autodiff};
use crate::host;
use crate::tape::{Memory, Tape};

/// A masked autoregressive layer with transform `T`: MAF for [`Affine`](crate::coupling::Affine) maps,
/// the autoregressive neural spline flow for
/// [`RationalQuadratic`](crate::coupling::RationalQuadratic) ones.
///
/// With `params = made(x)`, those of feature `i` depending only on the features before it:
///
/// - forward: `z_i = transform(x_i; params_i)`, `log_det = sum_i ln|dz_i / dx_i|`: one pass
/// - inverse: `x_i = transform^-1(z_i; params_i)`, step by step, each hidden unit of the net computed
///   once
///
/// The layer whose one pass is the inverse (IAF) is [`Inverse`](crate::Inverse) of it.
///
/// Source: Papamakarios et al., *Masked Autoregressive Flow for Density Estimation*,
/// [arXiv:1705.07057](https://arxiv.org/abs/1705.07057), section 3.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::Flow;
/// use burn_flows::autoregressive::{Autoregressive, MadeConfig};
/// use burn_flows::coupling::{RationalQuadraticConfig, Transform};
///
/// let device = burn_flows::backend::device();
/// let spline = RationalQuadraticConfig::new(8, 3.0).init()?;
/// let made = MadeConfig::new(3, vec![16, 16], spline.params_per_channel()).init(&device)?;
/// let layer = Autoregressive::new(made, spline)?;
/// let x = Tensor::<2>::from_data([[0.5, -1.0, 2.0], [2.0, 3.0, -0.5]], &device);
/// let (z, log_det) = layer.forward(x.clone());
/// assert_eq!(log_det.dims(), [2]);
/// assert!((layer.inverse(z) - x).abs().max().into_scalar::<f32>() < 1e-4);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Autoregressive<T> {
    /// The net that maps the features to the transform's parameters.
    pub made: Made,
    /// The elementwise map.
    pub transform: T,
}

impl<T: Transform> Autoregressive<T> {
    /// A layer of a net and a transform of all its features.
    ///
    /// # Errors
    /// If the net does not give as many numbers a feature as the transform needs.
    pub fn new(made: Made, transform: T) -> Result<Self> {
        let features = made.num_features();
        let outputs = made.layers.last().expect("a Made has a layer").weight.dims()[1];
        if outputs != features * transform.params_per_channel() {
            return Err(FlowError::config(
                "Autoregressive",
                "params_per_feature",
                outputs / features,
                transform.params_per_channel(),
                "build the Made with the transform's params_per_channel()",
            ));
        }
        Ok(Self { made, transform })
    }
}

impl<T: Transform> Autoregressive<T>
where
    Self: Module,
{
    /// The fused form for inputs like `x`, if there is one; of a plain model.
    fn fused(&self, x: &Tensor<2>) -> Option<Fused<'_, 2, Made>> {
        let open = host::runs_by_kernels(self, x);
        if open { self.fused_by(|net| net.fold(), x) } else { None }
    }

    fn fused_by(
        &self,
        fold: impl FnOnce(&dyn Fold) -> Option<FoldedNet>,
        x: &Tensor<2>,
    ) -> Option<Fused<'_, 2, Made>> {
        Fused::of_parts(fold, &self.made, &self.transform, Layout::Autoregressive, x)
    }
}

impl<T: Transform> Flow<2> for Autoregressive<T>
where
    Self: Module,
{
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        self.made.assert_features(&x);
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        if let Some(fused) = self.fused(&x) {
            return fused.forward(x);
        }
        let params = self.made.forward(x.clone());
        map_and_log_det(&self.transform, x, params, |all| all)
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.made.assert_features(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        if let Some(fused) = self.fused(&z) {
            return fused.inverse_in_steps(z, &self.made.steps(), &self.made.unit_degrees());
        }
        let [batch, features] = z.dims();
        let mut columns: Vec<Option<Tensor<2>>> = vec![None; features];
        self.made.in_steps(batch, |known, params| {
            let z = known.iter().map(|&feature| z.clone().narrow(1, feature, 1)).collect();
            let x = self.transform.inverse_of(known, Tensor::cat(z, 1), params);
            for (index, &feature) in known.iter().enumerate() {
                columns[feature] = Some(x.clone().narrow(1, index, 1));
            }
            x
        });
        Tensor::cat(columns.into_iter().map(|x| x.expect("each feature has a step")).collect(), 1)
    }

    fn forward_on(&self, x: Tensor<2>, tape: &mut Tape) -> (Tensor<2>, Tensor<1>) {
        tape.push(&x);
        if tape.memory() == Memory::Stored
            && let Some(fused) = self.fused(&x)
        {
            return fused.forward_keeping(x, tape);
        }
        self.forward(x)
    }

    fn pull_back(
        &self,
        at: At<2>,
        dz: Tensor<2>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<2>, Tensor<2>) {
        let x = tape.input(at, |z| self.valid().inverse(z));
        let open = host::pulls_back_by_kernels(self, &x);
        let fused = if open { self.fused_by(|net| net.fold_plain(), &x) } else { None };
        let dx = match fused {
            Some(fused) => fused.backward(x.clone(), dz, dlog_det, tape, grads),
            None => backward_by_autodiff(self, x.clone(), dz, dlog_det, grads),
        };
        (x, dx)
    }
}
