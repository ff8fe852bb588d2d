//! Walks between samples.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::flow::Flow;
use crate::prior::{Prior, SplitPrior};
use crate::stack::FlowStack;

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// The points of the walk from the samples `a` to the samples `b` that is straight in latent
    /// space, one batch for each weight: 0 gives `a`, 1 gives `b`.
    ///
    /// `x(w) = decode_noise((1 - w) encode_noise(a) + w encode_noise(b))`
    ///
    /// At both ends the latents are exactly those of `a` and `b`, so what comes back differs from them
    /// only by the rounding of one round trip
    /// ([`inversion_error`](crate::metrics::inversion_error)). To walk in other coordinates, use
    /// [`Latents::interpolate`](crate::Latents::interpolate).
    ///
    /// Source: Kingma and Dhariwal, *Glow*, [arXiv:1807.03039](https://arxiv.org/abs/1807.03039),
    /// section 6 (qualitative experiments).
    ///
    /// # Panics
    /// If the samples do not have the shape the stack was built for, or their numbers differ (one `b`
    /// for all `a` is allowed).
    pub fn interpolate(&self, a: Tensor<D>, b: Tensor<D>, weights: &[f64]) -> Vec<Tensor<D>> {
        let (a, b) = (self.encode_noise(a), self.encode_noise(b));
        weights.iter().map(|&weight| self.decode_noise(a.interpolate(&b, weight))).collect()
    }
}
