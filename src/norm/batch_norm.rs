//! Batch normalization as a flow.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::running_moments::{Moments, RunningMoments};
use crate::chain::{same_log_det, zero_log_det};
use crate::coupling::per_channel;
use crate::error::Result;
use crate::flow::{Flow, Pass};
use crate::host;
use crate::param::check_log_scale;

/// Added to the variance (RealNVP's code, `real_nvp_multiscale_dataset.py`).
pub const BATCH_NORM_EPSILON: f64 = 1e-4;

/// Weight of a new batch in the running moments.
pub const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// Normalizes every channel by running moments of the batches seen: the bijection on the outputs of
/// RealNVP's couplings.
///
/// - forward: `z = (x - mean) / sqrt(variance + epsilon)`; affine: then `z exp(log_scale) + shift`
/// - inverse: `x = z sqrt(variance + epsilon) + mean`, exact up to rounding
/// - `log_det = pixels * sum_c (log_scale_c - ln(variance_c + epsilon) / 2)`, the same for every
///   sample
///
/// # Training
///
/// `forward` and `inverse` use the running moments in training as well, as constants: that keeps the
/// layer a bijection of each sample alone, whatever its batch, so that every law of [`Flow`] holds in
/// training too and reversible backpropagation inverts exactly what `forward` did. The moments are
/// brought up to date by a pass over the batch *before* the step, [`data_pass`](Flow::data_pass), which
/// couplings, stacks and whole models hand on and [`Trainer`](crate::training::Trainer) calls: the
/// first call takes the batch's moments, later ones the moving average
/// `running = (1 - momentum) running + momentum batch`. The paper as well normalizes by a running
/// average over recent minibatches (appendix E); there the newest batch's share also carries a
/// gradient, here it does not.
///
/// A batch with one value a channel (one vector, or one picture of one pixel) has no variance, and a pass
/// over it panics; [`Trainer`](crate::training::Trainer) refuses it before that. An empty one changes
/// nothing. Epsilon bounds the gain to `1 / sqrt(epsilon)`, 100 by default: channels with a deviation
/// far below 0.01 come out as small as they are, times that; an [`ActNorm`](super::ActNorm) in front
/// brings data of any scale to 1.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, Pass, norm::BatchNorm};
///
/// let device = burn_flows::backend::device();
/// let mut norm = BatchNorm::new(1, &device)?;
/// for batch in [[[1.0], [3.0]], [[2.0], [4.0]]] {
///     let x = Tensor::<2>::from_data(batch, &device);
///     norm = norm.data_pass(x, Pass::Observe).0; // before the step on this batch
/// }
/// let mean = norm.moments.mean.val().into_scalar::<f32>();
/// assert!((mean - (0.9 * 2.0 + 0.1 * 3.0)).abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
///
/// [`normalize_with`](BatchNorm::normalize_with) normalizes by the moments of the batch itself, as
/// ordinary batch normalization does in training; with `momentum` 1 the pass before the step gives
/// the same.
///
/// Source: Dinh et al., *Density estimation using Real NVP*,
/// [arXiv:1605.08803](https://arxiv.org/abs/1605.08803), section 3.7 and appendix E.
#[derive(Module, Debug)]
pub struct BatchNorm {
    /// Running moments.
    pub moments: RunningMoments,
    /// Learned log-scale, `[channels]`, of the affine form.
    pub log_scale: Option<Param<Tensor<1>>>,
    /// Learned shift, `[channels]`, of the affine form.
    pub shift: Option<Param<Tensor<1>>>,
}

impl BatchNorm {
    /// RealNVP's: epsilon 1e-4, momentum 0.1, not affine. The identity (but for epsilon) until the
    /// first batch.
    ///
    /// # Errors
    /// If `num_channels` is zero.
    pub fn new(num_channels: usize, device: &Device) -> Result<Self> {
        let (momentum, epsilon) = (BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON);
        Ok(Self::from_moments(RunningMoments::new(num_channels, momentum, epsilon, device)?))
    }

    /// From given running moments, not affine.
    pub fn from_moments(moments: RunningMoments) -> Self {
        Self { moments, log_scale: None, shift: None }
    }

    /// With a learned scale and shift after the normalization, starting at 1 and 0.
    pub fn affine(mut self) -> Self {
        let zeros = || Some(Param::from_tensor(self.moments.mean.val().zeros_like()));
        (self.log_scale, self.shift) = (zeros(), zeros());
        self
    }

    /// Whether a batch was seen (also before saving and loading).
    pub fn is_initialized(&self) -> bool {
        self.moments.is_initialized()
    }

    /// `forward` with the given moments in place of the running ones; they count as constants in the
    /// log-determinant.
    ///
    /// With `Moments::of(x)` it is batch normalization as a net has it in training: a sample's result
    /// then depends on its batch, and only who keeps the moments can invert it
    /// ([`denormalize_with`](BatchNorm::denormalize_with)).
    ///
    /// # Panics
    /// If axis 1 of `x` has another size than the layer was built for.
    pub fn normalize_with<const D: usize>(
        &self,
        x: Tensor<D>,
        moments: Moments,
    ) -> (Tensor<D>, Tensor<1>) {
        self.moments.assert_channels(&x);
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        let pixels: usize = x.dims()[2..].iter().product();
        let (mut z, mut log_scale) = self.moments.normalize(x, moments);
        if let (Some(learned), Some(shift)) = (&self.log_scale, &self.shift) {
            z = z * per_channel(learned.val().exp()) + per_channel(shift.val());
            log_scale = log_scale + learned.val();
        }
        let log_det = same_log_det(log_scale.sum() * pixels as f64, &z);
        (z, log_det)
    }

    /// The inverse of [`normalize_with`](BatchNorm::normalize_with).
    ///
    /// # Panics
    /// If axis 1 of `z` has another size than the layer was built for.
    pub fn denormalize_with<const D: usize>(
        &self,
        mut z: Tensor<D>,
        moments: Moments,
    ) -> Tensor<D> {
        self.moments.assert_channels(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        if let (Some(learned), Some(shift)) = (&self.log_scale, &self.shift) {
            z = (z - per_channel(shift.val())) * per_channel(learned.val().neg().exp());
        }
        self.moments.denormalize(z, moments)
    }
}

impl<const D: usize> Flow<D> for BatchNorm {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        self.normalize_with(x, self.moments.current())
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.denormalize_with(z, self.moments.current())
    }

    /// [`Pass::Initialize`] takes the moments of the first batch, [`Pass::Observe`] each batch into the
    /// running moments; then the batch is mapped by them. See *Training* above.
    fn data_pass(mut self, x: Tensor<D>, pass: Pass) -> (Self, Tensor<D>) {
        self.moments.assert_channels(&x);
        self.moments = self.moments.take_in(&x, pass);
        let z = self.forward(x).0;
        (self, z)
    }

    fn check(&self) -> Result<()> {
        let mut log_scale = self.moments.log_scale(self.moments.variance.val());
        if let Some(learned) = &self.log_scale {
            log_scale = log_scale + learned.val();
        }
        check_log_scale("BatchNorm", log_scale)
    }
}

#[cfg(test)]
mod tests {
    use burn::optim::GradientsParams;

    use super::*;
    use crate::flow::At;
    use crate::tape::Tape;

    /// A device with f64, if one is compiled in.
    fn device() -> Device {
        let devices = crate::backend::devices().into_iter().map(|(_, device)| device());
        devices.rev().find(crate::backend::is_host).unwrap_or_else(crate::backend::device)
    }

    /// Rounding in f64, or in f32 where there is no f64.
    fn tolerance() -> f64 {
        if crate::backend::is_host(&device()) { 1e-8 } else { 1e-3 }
    }

    fn batch() -> Tensor<2> {
        let values = (0..12).map(|i| ((i * 7919 + 31) % 101) as f64 / 20.0 - 1.0).collect();
        host::from_f64(values, [6, 2], &device(), burn::tensor::DType::F64)
    }

    fn norm(momentum: f64) -> BatchNorm {
        let device = device();
        let moments = RunningMoments::new(2, momentum, BATCH_NORM_EPSILON, &device).unwrap();
        crate::testing::to_f64(BatchNorm::from_moments(moments).affine())
    }

    fn largest(x: Tensor<2>) -> f64 {
        x.abs().max().into_scalar()
    }

    #[test]
    fn momentum_one_is_ordinary_batch_normalization() {
        let norm = norm(1.0).data_pass(batch() * 5.0, Pass::Observe).0;
        let (norm, z) = norm.data_pass(batch(), Pass::Observe);
        let again = norm.normalize_with(batch(), Moments::of(batch())).0;
        assert!(largest(z - again) < 1e-12);
    }

    #[test]
    fn training_uses_the_running_moments_and_changes_nothing() {
        let norm = norm(0.1).initialize(batch()).0;
        let expected = norm.forward(batch() * 3.0);
        let training = norm.clone().train();
        let x = Tensor::from_inner(batch() * 3.0).require_grad();
        for _ in 0..2 {
            let (z, log_det) = training.forward(x.clone());
            assert_eq!(largest(z.inner() - expected.0.clone()), 0.0);
            let difference = log_det.inner() - expected.1.clone();
            assert_eq!(difference.abs().max().into_scalar::<f64>(), 0.0);
        }
    }

    /// Reversible backpropagation gives the gradients of ordinary autodiff, in a training whose
    /// moments move before every step.
    #[test]
    fn pull_back_agrees_with_autodiff() {
        let mut norm = norm(0.3);
        for step in 1..4 {
            let x = batch() * f64::from(step);
            norm = norm.data_pass(x.clone(), Pass::Observe).0;
            let training = norm.clone().train();
            let loss = |z: Tensor<2>, log_det: Tensor<1>| z.powi_scalar(3).sum() - log_det.sum();

            let leaf = Tensor::from_inner(x.clone()).require_grad();
            let (z, log_det) = training.forward(leaf.clone());
            let mut tape = loss(z.clone(), log_det).backward();
            let expected_dx = leaf.grad_remove(&mut tape).unwrap();
            let mut expected = GradientsParams::from_module(&mut tape, &training);

            let z = z.inner();
            let dz = z.clone().square() * 3.0;
            let dlog_det = Tensor::ones([6], (&z.device(), z.dtype())).neg();
            let mut grads = GradientsParams::new();
            let (back, dx) =
                training.pull_back(At::Output(z), dz, dlog_det, &mut Tape::default(), &mut grads);
            assert!(largest(back - x) < tolerance());
            assert!(largest(dx - expected_dx) < tolerance());
            let id = training.log_scale.as_ref().unwrap().id;
            let (got, expected) =
                (grads.remove::<1>(id).unwrap(), expected.remove::<1>(id).unwrap());
            assert!((got - expected).abs().max().into_scalar::<f64>() < tolerance());
        }
    }

    #[test]
    fn wrong_configurations_are_refused() {
        let device = crate::backend::device();
        assert!(BatchNorm::new(0, &device).is_err());
        let message = RunningMoments::new(2, 0.0, 1e-4, &device).unwrap_err().to_string();
        assert_eq!(
            message,
            "BatchNorm: momentum is 0, but must be above 0, at most 1; 0.1 averages over about ten \
             batches, 1 takes the last batch alone"
        );
        assert!(RunningMoments::new(2, 0.1, f64::NAN, &device).is_err());
    }
}
