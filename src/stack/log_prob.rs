//! The density of data.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{Encoded, FlowStack};
use crate::conditioner::first_following_norm;
use crate::error::INPUT_BATCH;
use crate::flow::Flow;
use crate::host::{self, is_finite};
use crate::metrics;
use crate::prior::{Prior, SplitPrior};
use crate::reshape::split_channels;
use crate::tape::Tape;

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// `ln p(x)` in nats, `[batch]`; for images with respect to the values the model sees (see
    /// [`bits_per_dim`](FlowStack::bits_per_dim)).
    ///
    /// # The score
    ///
    /// The gradient of `ln p(x)` by `x` is asked of a model at inference, which is exact:
    ///
    /// ```
    /// use burn::module::Module;
    /// use burn::tensor::Tensor;
    /// use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
    ///
    /// let device = burn_flows::backend::device();
    /// let flow = DiagonalScaling::new(2, &device)?;
    /// let model = FlowStack::<2, _>::single(flow, StandardNormal::new(), &[2])?.train();
    ///
    /// let x = Tensor::<2>::from_data([[3.0, -2.0]], &device).autodiff().require_grad();
    /// let log_prob = model.valid().log_prob(x.clone());
    /// let score = x.grad(&log_prob.sum().backward()).unwrap();
    /// assert_eq!(score.try_into_vec_as::<f32>().unwrap(), [-3.0, 2.0]);
    /// # Ok::<(), burn_flows::FlowError>(())
    /// ```
    ///
    /// In training a [`NetBatchNorm`](crate::conditioner::NetBatchNorm) counts its moments as the
    /// batch's, so that the gradient by `x` is that of another function: it is refused.
    ///
    /// # Panics
    /// If the samples do not have the shape the stack was built for; if `x` requires a gradient and
    /// the stack has a [`NetBatchNorm`](crate::conditioner::NetBatchNorm) in training.
    pub fn log_prob(&self, x: Tensor<D>) -> Tensor<1> {
        self.log_prob_terms(x)
            .into_iter()
            .reduce(|sum, more| sum + more)
            .expect("two terms a level")
    }

    /// The terms that add up to [`log_prob`](FlowStack::log_prob): for each level its
    /// log-determinant, then the log-density of its part of the latent; each `[batch]`, in nats.
    ///
    /// # Panics
    /// As [`log_prob`](FlowStack::log_prob).
    pub fn log_prob_terms(&self, x: Tensor<D>) -> Vec<Tensor<1>> {
        self.assert_exact_score(&x);
        let Encoded { latents, kept, log_dets } = self.encode_levels(x, &mut Tape::default());
        let priors = self.prior_log_probs(latents.parts, kept);
        log_dets.into_iter().zip(priors).flat_map(|(log_det, prior)| [log_det, prior]).collect()
    }

    /// Bits per dimension of each sample, `[batch]`, by the definition of
    /// [`metrics::bits_per_dim`]: `x` holds values of `levels` levels (256 for 8 bits), scaled so
    /// that a level has width `1 / levels`, dequantized.
    pub fn bits_per_dim(&self, x: Tensor<D>, levels: u32) -> Tensor<1> {
        let at_zero = metrics::bits_per_dim(0.0, self.num_dims(), levels);
        let per_nat = at_zero - metrics::bits_per_dim(1.0, self.num_dims(), levels);
        self.log_prob(x) * -per_nat + at_zero
    }

    /// Whether the gradient of `ln p(x)` by `x`, if one is asked for, is that of `ln p`.
    pub(crate) fn assert_exact_score(&self, x: &Tensor<D>) {
        if x.is_require_grad()
            && !host::has_no_samples(x)
            && let Some(norm) = first_following_norm(self)
        {
            panic!(
                "FlowStack: ln p(x) was asked for with a gradient by x, but {norm} (NetBatchNorm) is \
                 in training, where its gradients by x are not those of ln p; ask model.valid()"
            );
        }
    }

    pub(crate) fn prior_log_probs(
        &self,
        parts: Vec<Tensor<D>>,
        kept: Vec<Tensor<D>>,
    ) -> Vec<Tensor<1>> {
        let mut parts = parts.into_iter();
        let mut terms: Vec<_> = self
            .split_priors
            .iter()
            .zip(kept)
            .map(|(prior, kept)| prior.log_prob(parts.next().expect("a part for each level"), kept))
            .collect();
        terms.push(self.prior.log_prob(parts.next().expect("a part for each level")));
        terms
    }

    /// The first place where the given batch, sent through the stack, stops being finite: a level
    /// and, where a level is a sequence, what comes out of the stack is finite for `None`.
    pub fn first_not_finite(&self, x: Tensor<D>) -> Option<String> {
        if host::has_no_samples(&x) {
            return None;
        }
        if !is_finite(x.clone()) {
            return Some(INPUT_BATCH.into());
        }
        let mut h = x;
        for (index, level) in self.levels.iter().enumerate() {
            let (z, log_det) = level.forward(h);
            if !is_finite(z.clone()) || !is_finite(log_det) {
                return Some(format!("level {index}"));
            }
            if index + 1 == self.levels.len() {
                return None;
            }
            h = split_channels(z).0;
        }
        None
    }
}
