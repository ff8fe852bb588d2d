//! The halves of a training step, on data and on draws.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use rand::Rng;

use super::{Encoded, FlowStack, device_and_dtype};
use crate::flow::{At, Flow, pull_back_surrogate, pull_back_through};
use crate::latent::Latents;
use crate::prior::{Prior, SplitPrior};
use crate::reshape::{merge_channels, split_channels};
use crate::tape::Tape;
use crate::variational::replay::{Recorder, Replay};

/// What the forward half of a training step leaves for the backward half.
#[derive(Clone)]
pub(crate) struct LogProbPass<const D: usize> {
    /// `[1]`.
    pub(crate) weighted_log_prob: Tensor<1>,
    weight: f64,
    latents: Latents<D>,
    kept: Vec<Tensor<D>>,
    /// Gradient with respect to the log-determinant, `[batch]`.
    dlog_det: Tensor<1>,
}

impl<const D: usize> LogProbPass<D> {
    /// What comes out of the last level.
    pub(crate) fn top(&self) -> Tensor<D> {
        self.latents.parts.last().expect("a part for each level").clone()
    }
}

/// Draws of a step without stored activations.
pub(crate) struct SamplePass<const D: usize> {
    pub(crate) x: Tensor<D>,
    /// `ln p` of each draw, `[n]`.
    pub(crate) log_prob: Tensor<1>,
    /// What was drawn for the part of each level.
    noise: Vec<Vec<u64>>,
}

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// The forward half of a training step: the sum of `weight ln p(x)` over the batch, and what the
    /// backward half needs. See [`training::reversible`](crate::training::reversible).
    pub(crate) fn forward_log_prob(
        &self,
        x: Tensor<D>,
        weight: f64,
        tape: &mut Tape,
    ) -> LogProbPass<D> {
        // Gone before the gradients come: its parameters are shared, but not all of it is.
        let frozen = self.valid();
        let Encoded { latents, kept, log_dets } = frozen.encode_levels(x, tape);
        let priors = frozen.prior_log_probs(latents.parts.clone(), kept.clone());
        let dlog_det = log_dets[0].ones_like() * weight;
        let terms = log_dets.into_iter().chain(priors);
        let log_prob = terms.reduce(|sum, more| sum + more).expect("two terms a level");
        let weighted_log_prob = log_prob.sum() * weight;
        LogProbPass { latents, kept, dlog_det, weight, weighted_log_prob }
    }

    /// The backward half: adds the gradients of the forward half's sum to `grads`; gives back `x` as
    /// the backward pass found it and the gradient with respect to it.
    pub(crate) fn backward_log_prob(
        &self,
        pass: LogProbPass<D>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        self.backward_log_prob_and(pass, |_, _| None, tape, grads)
    }

    /// [`backward_log_prob`](Self::backward_log_prob) of a sum to which `more` adds a term of the top
    /// latent: it is told the latent and gives the gradient with respect to it.
    pub(crate) fn backward_log_prob_and(
        &self,
        pass: LogProbPass<D>,
        more: impl FnOnce(Tensor<D>, &mut GradientsParams) -> Option<Tensor<D>>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let LogProbPass { latents, kept, dlog_det, weight, .. } = pass;
        let mut parts = latents.parts.into_iter().rev();
        let mut z = parts.next().expect("a part for each level");
        let mut dz = self.prior.backward(z.clone(), weight, grads);
        if let Some(more) = more(z.clone(), grads) {
            dz = dz + more;
        }
        let mut kept = kept.into_iter().rev();
        for (index, level) in self.levels.iter().enumerate().rev() {
            let (x, dx) = level.pull_back(At::Output(z), dz, dlog_det.clone(), tape, grads);
            if index == 0 {
                tape.assert_done();
                return (x, dx);
            }
            let out = parts.next().expect("a part for each level");
            let kept = kept.next().expect("a kept half for each split");
            let prior = &self.split_priors[index - 1];
            let (dout, dkept) = prior.backward(out.clone(), kept, weight, grads);
            z = merge_channels(x, out);
            dz = merge_channels(dx + dkept, dout);
        }
        unreachable!("a stack has at least one level")
    }

    /// The forward half of a step on draws: [`sample_and_log_prob_with`](FlowStack::sample_and_log_prob_with)
    /// without gradients, and what the backward half needs. `self` is in training.
    pub(crate) fn forward_sample(&self, n: usize, rng: &mut impl Rng) -> SamplePass<D> {
        let frozen = self.valid();
        let place = device_and_dtype(&frozen);
        let mut noise = vec![Vec::new(); self.levels.len()];
        let (x, log_prob) = frozen.descend_with_log_prob(n, |level, kept| {
            let mut recorder = Recorder::new(&mut *rng);
            let part = frozen.sample_part(level, n, kept, 1.0, &mut recorder, &place);
            noise[level] = recorder.into_words();
            part
        });
        SamplePass { x, log_prob, noise }
    }

    /// The backward half: adds to `grads` the gradients of a loss on the draws, given those with respect to
    /// the draws `x` and to `ln p`, the latter `weight` for each draw.
    pub(crate) fn backward_sample(
        &self,
        pass: SamplePass<D>,
        dx: Tensor<D>,
        weight: f64,
        grads: &mut GradientsParams,
    ) {
        let SamplePass { x, log_prob, mut noise } = pass;
        let n = x.dims()[0];
        let dlog_det = log_prob.ones_like() * weight;
        let place = device_and_dtype(self);
        let last = self.levels.len() - 1;
        let (mut x, mut dx) = (x, dx);
        for (index, level) in self.levels.iter().enumerate() {
            let (z, dz) = level.pull_back_inverse(x, dx, dlog_det.clone(), grads);
            let mut replay = Replay::new(std::mem::take(&mut noise[index]));
            if index == last {
                let z = self.sample_part(last, n, None, 1.0, &mut replay, &place);
                let loss = (z.clone() * Tensor::from_inner(dz)).sum()
                    + self.prior.log_prob(z).sum() * weight;
                let loss = Some(loss).filter(|loss| loss.is_tracked());
                pull_back_surrogate(&self.prior, loss.into_iter(), grads);
                return;
            }
            let (kept, _) = split_channels(z);
            let (dkept, dout) = split_channels(dz);
            let prior = &self.split_priors[index];
            let loss = |kept: Tensor<D>| {
                let out = self.sample_part(index, n, Some(kept.clone()), 1.0, &mut replay, &place);
                (out.clone() * Tensor::from_inner(dout)).sum()
                    + prior.log_prob(out, kept).sum() * weight
            };
            dx = dkept + pull_back_through(prior, kept.clone(), loss, grads);
            x = kept;
        }
    }
}
