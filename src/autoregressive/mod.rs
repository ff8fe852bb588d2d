//! Autoregressive flows: each feature is mapped by what the features before it say.
//!
//! As a coupling is a conditioner and an elementwise [`Transform`], an autoregressive layer is a masked
//! net, a [`Made`] or a [`MaskedNet`], and a transform; affine maps and splines serve both.

mod made;
mod masked_net;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

pub use made::{Made, MadeConfig, MadeContext};
pub use masked_net::{MaskedNet, MaskedNetConfig};

use crate::chain::{assert_size, zero_log_det};
use crate::conditioner::{Fold, FoldedNet};
use crate::constants;
use crate::coupling::{Fused, Layout, Transform, map_and_log_det};
use crate::error::{FlowError, Result};
use crate::flow::{At, Flow, backward_by_autodiff};
use crate::host;
use crate::tape::{Memory, Tape};

/// A net whose numbers for one feature see only the features of earlier steps.
pub trait AutoregressiveNet: Module {
    /// The step at which each feature is known, from 0 on without a gap: the numbers of feature `i` depend
    /// on the features `j` with `steps[j] < steps[i]`.
    fn steps(&self) -> Vec<usize>;

    /// Numbers that the net gives for all features together.
    fn num_outputs(&self) -> usize;

    /// Numbers of all features, one kind after the other, given `x`.
    ///
    /// # Panics
    /// If `x` has another number of features.
    fn params(&self, x: Tensor<2>) -> Tensor<2>;

    /// The net, if it is one that the kernels know.
    #[doc(hidden)]
    fn as_made(&self) -> Option<&Made> {
        None
    }

    /// The numbers of each step in turn, computed from what the steps before made known. `next` is given the
    /// features of the step and their numbers, and answers with their values; all tensors are
    /// `[batch, ...]`, on the device and of the dtype of `like`.
    ///
    /// The default runs the whole net once for each step.
    fn in_steps(&self, like: &Tensor<2>, mut next: impl FnMut(&[usize], Tensor<2>) -> Tensor<2>) {
        let steps = self.steps();
        let (count, kinds) = (steps.len(), self.num_outputs() / steps.len());
        let mut x = Tensor::zeros([like.dims()[0], count], (&like.device(), like.dtype()));
        let mut columns: Vec<Option<Tensor<2>>> = vec![None; count];
        for step in 0..=steps.iter().copied().max().unwrap_or(0) {
            let features: Vec<_> = (0..count).filter(|&index| steps[index] == step).collect();
            let all = self.params(x);
            let numbers = (0..kinds)
                .flat_map(|kind| features.iter().map(move |&feature| kind * count + feature));
            let params = all.clone().select(1, constants::places(numbers, &all.device()));
            let values = next(&features, params);
            for (index, &feature) in features.iter().enumerate() {
                columns[feature] = Some(values.clone().narrow(1, index, 1));
            }
            // What is not known yet has no effect; it stands where the known values are.
            let blank = values.narrow(1, 0, 1).zeros_like();
            let known = columns.iter().map(|column| column.clone().unwrap_or(blank.clone()));
            x = Tensor::cat(known.collect(), 1);
        }
    }
}

impl AutoregressiveNet for Made {
    fn steps(&self) -> Vec<usize> {
        Made::steps(self)
    }

    fn num_outputs(&self) -> usize {
        self.layers.last().expect("a Made has a layer").weight.dims()[1]
    }

    fn params(&self, x: Tensor<2>) -> Tensor<2> {
        self.forward(x)
    }

    fn as_made(&self) -> Option<&Made> {
        Some(self)
    }

    fn in_steps(&self, like: &Tensor<2>, next: impl FnMut(&[usize], Tensor<2>) -> Tensor<2>) {
        // Each hidden unit is computed once, when the last feature that it sees is known.
        Made::in_steps(self, like.dims()[0], next);
    }
}

/// The number of steps of an order, or an error where it does not name a step for each feature.
fn check_order(layer: &'static str, order: &[usize], features: usize) -> Result<usize> {
    let steps = order.iter().max().map_or(0, |last| last + 1);
    if order.len() != features || (0..steps).any(|step| !order.contains(&step)) {
        return Err(FlowError::config(
            layer,
            "order",
            format!("{order:?}"),
            format!("a step for each of {features} features, from 0 on without a gap"),
            "a permutation of 0..features is an order of single features",
        ));
    }
    Ok(steps)
}

/// A masked autoregressive layer with transform `T` and net `N`: MAF for
/// [`Affine`](crate::coupling::Affine) maps, the autoregressive neural spline flow for
/// [`RationalQuadratic`](crate::coupling::RationalQuadratic) ones.
///
/// With `params = made(x)`, those of feature `i` depending only on the features before it:
///
/// - forward: `z_i = transform(x_i; params_i)`, `log_det = sum_i ln|dz_i / dx_i|`: one pass
/// - inverse: `x_i = transform^-1(z_i; params_i)`, step by step, each hidden unit of a [`Made`] computed
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
pub struct Autoregressive<T, N = Made> {
    /// The net that maps the features to the transform's parameters.
    pub made: N,
    /// The elementwise map.
    pub transform: T,
}

impl<T: Transform, N: AutoregressiveNet> Autoregressive<T, N> {
    /// A layer of a net and a transform of all its features.
    ///
    /// # Errors
    /// If the net does not give as many numbers a feature as the transform needs.
    pub fn new(made: N, transform: T) -> Result<Self> {
        let (features, outputs) = (made.steps().len(), made.num_outputs());
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

    fn assert_features(&self, x: &Tensor<2>) {
        assert_size("Autoregressive", x, self.made.steps().len(), "features");
    }
}

impl<T: Transform, N: AutoregressiveNet> Autoregressive<T, N>
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
        let made = self.made.as_made()?;
        Fused::of_parts(fold, made, &self.transform, Layout::Autoregressive, x)
    }
}

impl<T: Transform, N: AutoregressiveNet> Flow<2> for Autoregressive<T, N>
where
    Self: Module,
{
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        self.assert_features(&x);
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        if let Some(fused) = self.fused(&x) {
            return fused.forward(x);
        }
        let params = self.made.params(x.clone());
        map_and_log_det(&self.transform, x, params, |all| all)
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.assert_features(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        if let (Some(fused), Some(made)) = (self.fused(&z), self.made.as_made()) {
            return fused.inverse_in_steps(z, &made.steps(), &made.unit_degrees());
        }
        let [_, features] = z.dims();
        let mut columns: Vec<Option<Tensor<2>>> = vec![None; features];
        self.made.in_steps(&z, |known, params| {
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
