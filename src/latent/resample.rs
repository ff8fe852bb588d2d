//! Drawing the details anew.

use burn::module::Module;
use burn::tensor::Tensor;
use rand::Rng;

use super::Latents;
use crate::flow::Flow;
use crate::prior::{Prior, SplitPrior};
use crate::stack::{FlowStack, device_and_dtype};

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// Samples that share the `num_kept` deepest (coarsest) parts of the given latents, with the finer
    /// ones drawn from their priors, given what was kept, at the given temperature.
    ///
    /// With every part kept it is [`decode`](FlowStack::decode), with none
    /// [`sample_with`](FlowStack::sample_with).
    ///
    /// Source: Dinh et al., *Density estimation using Real NVP*,
    /// [arXiv:1605.08803](https://arxiv.org/abs/1605.08803), appendix D (semantic of the latent
    /// variables).
    ///
    /// # Panics
    /// If the parts do not have the shapes of [`latent_shapes`](FlowStack::latent_shapes), or there
    /// are fewer than `num_kept`.
    pub fn resample_finer(
        &self,
        latents: &Latents<D>,
        num_kept: usize,
        temperature: f64,
        rng: &mut impl Rng,
    ) -> Tensor<D> {
        self.assert_latent_shapes("resample_finer", latents.parts());
        let num_levels = latents.parts().len();
        assert!(
            num_kept <= num_levels,
            "FlowStack: resample_finer is to keep {num_kept} parts, but there are {num_levels}"
        );
        let place = device_and_dtype(self);
        self.descend(|level, kept| {
            if level >= num_levels - num_kept {
                latents.parts()[level].clone()
            } else {
                self.sample_part(level, latents.batch_size(), kept, temperature, rng, &place)
            }
        })
    }
}
