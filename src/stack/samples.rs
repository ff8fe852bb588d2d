//! Draws from the model.

use std::hash::{BuildHasher, Hasher, RandomState};

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::shapes::with_batch;
use super::{FlowStack, device_and_dtype};
use crate::conditioner::first_following_norm;
use crate::flow::Flow;
use crate::host;
use crate::prior::{Prior, SplitPrior};
use crate::reshape::merge_channels;

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// `n` samples at the given temperature (1 draws from the model), different at every call; see
    /// [`sample_with`](FlowStack::sample_with) for repeatable ones.
    pub fn sample(&self, n: usize, temperature: f64) -> Tensor<D> {
        // The standard library's hasher is keyed by the operating system's entropy.
        let seed = RandomState::new().build_hasher().finish();
        self.sample_with(n, temperature, &mut StdRng::seed_from_u64(seed))
    }

    /// `n` samples at the given temperature from the given random generator.
    pub fn sample_with(&self, n: usize, temperature: f64, rng: &mut impl Rng) -> Tensor<D> {
        self.decode_with(n, rng, |_| temperature)
    }

    /// Samples whose part of each level is drawn at its own temperature (finest level first).
    ///
    /// # Panics
    /// If there is not one temperature a level.
    pub fn sample_levels(&self, n: usize, temperatures: &[f64], rng: &mut impl Rng) -> Tensor<D> {
        assert!(
            temperatures.len() == self.levels.len(),
            "FlowStack: got {} temperatures for {} levels",
            temperatures.len(),
            self.levels.len()
        );
        self.decode_with(n, rng, |level| temperatures[level])
    }

    /// `n` draws from the model and `ln p` of each, `[n]` in nats, in one pass from the latent to the data;
    /// different at every call, see [`sample_and_log_prob_with`](FlowStack::sample_and_log_prob_with) for
    /// repeatable ones.
    pub fn sample_and_log_prob(&self, n: usize) -> (Tensor<D>, Tensor<1>) {
        let seed = RandomState::new().build_hasher().finish();
        self.sample_and_log_prob_with(n, &mut StdRng::seed_from_u64(seed))
    }

    /// `n` draws from the model and `ln p` of each, `[n]` in nats, from the given random generator: the draws
    /// of [`sample_with`](FlowStack::sample_with) at temperature 1.
    ///
    /// Of a model in training both carry gradients with respect to the parameters: those through the draws
    /// themselves, which are a function of parameters and noise (reparameterization), and those of the
    /// density. A [`GaussianMixture`](crate::prior::GaussianMixture) chooses a component for each draw, a
    /// choice without a gradient: freeze its `logits` there. So with the `raw_degrees` of a
    /// [`DiagonalStudentT`](crate::prior::DiagonalStudentT), on which the noise of its draws depends. After
    /// [`given`](crate::context::Given::given) the draws are those given the context.
    ///
    /// There is no temperature here: how much a flow stretches differs from place to place, so that draws at
    /// another one than 1 have no density in closed form. Losses on draws, and importance weights, are in
    /// [`variational`](crate::variational).
    ///
    /// Source: Rezende and Mohamed, *Variational Inference with Normalizing Flows*,
    /// [arXiv:1505.05770](https://arxiv.org/abs/1505.05770), section 3.
    ///
    /// ```
    /// use burn::module::Param;
    /// use burn::tensor::Tensor;
    /// use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
    /// use rand::{SeedableRng, rngs::StdRng};
    ///
    /// let device = burn_flows::backend::device();
    /// let mut flow = DiagonalScaling::new(1, &device)?;
    /// flow.log_scale = Param::from_data([2f32.ln()], &device);
    /// let model = FlowStack::<2, _>::single(flow, StandardNormal::new(), &[1])?;
    /// let (x, log_prob) = model.sample_and_log_prob_with(5, &mut StdRng::seed_from_u64(0));
    /// // A normal of standard deviation 1/2.
    /// let expected = (x * 2.0).square().reshape([5]) * -0.5 - 0.9189385 + 2f32.ln();
    /// assert!((log_prob - expected).abs().max().into_scalar::<f32>() < 1e-5);
    /// # Ok::<(), burn_flows::FlowError>(())
    /// ```
    ///
    /// # Panics
    /// If the model is in training with a [`NetBatchNorm`](crate::conditioner::NetBatchNorm) in it, whose
    /// gradients by its input are not those of the density; if there are contexts for another number of
    /// samples.
    pub fn sample_and_log_prob_with(&self, n: usize, rng: &mut impl Rng) -> (Tensor<D>, Tensor<1>) {
        if device_and_dtype(self).0.is_autodiff()
            && let Some(norm) = first_following_norm(self)
        {
            panic!(
                "FlowStack: draws were asked for with gradients, but {norm} (NetBatchNorm) is in training, \
                 where its gradients are not those of ln p; draw from model.valid(), or build the nets \
                 without batch normalization"
            );
        }
        let place = device_and_dtype(self);
        self.descend_with_log_prob(n, |level, kept| {
            self.sample_part(level, n, kept, 1.0, rng, &place)
        })
    }

    /// [`descend`](FlowStack::descend) with `ln p` of what comes out.
    pub(super) fn descend_with_log_prob(
        &self,
        n: usize,
        mut part: impl FnMut(usize, Option<Tensor<D>>) -> Tensor<D>,
    ) -> (Tensor<D>, Tensor<1>) {
        let mut h = part(self.levels.len() - 1, None);
        if n == 0 {
            let log_prob = host::empty_like(&h, [0]);
            return (host::empty_like(&h, with_batch(self.shapes.inputs[0], 0)), log_prob);
        }
        let mut log_prob = self.prior.log_prob(h.clone());
        for (index, level) in self.levels.iter().enumerate().rev() {
            let (x, log_det) = level.inverse_and_log_det(h);
            log_prob = log_prob + log_det;
            h = x;
            if index > 0 {
                let out = part(index - 1, Some(h.clone()));
                let prior = &self.split_priors[index - 1];
                log_prob = log_prob + prior.log_prob(out.clone(), h.clone());
                h = merge_channels(h, out);
            }
        }
        (h, log_prob)
    }

    fn decode_with(
        &self,
        n: usize,
        rng: &mut impl Rng,
        temperature: impl Fn(usize) -> f64,
    ) -> Tensor<D> {
        let place = device_and_dtype(self);
        self.descend(|level, kept| {
            self.sample_part(level, n, kept, temperature(level), rng, &place)
        })
    }

    /// `n` draws of the latent of one level from its prior.
    pub(crate) fn sample_part(
        &self,
        level: usize,
        n: usize,
        kept: Option<Tensor<D>>,
        temperature: f64,
        rng: &mut impl Rng,
        (device, dtype): &(Device, DType),
    ) -> Tensor<D> {
        let shape = with_batch(self.shapes.parts[level], n);
        match kept {
            Some(kept) => self.split_priors[level].sample(shape, kept, temperature, rng),
            None => self.prior.sample(shape, temperature, rng, device, *dtype),
        }
    }
}
