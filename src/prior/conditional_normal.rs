//! A normal conditioned on the kept half: the split prior of Glow.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use rand::Rng;

use super::diagonal_normal::normal_log_prob;
use super::{SplitPrior, standard_normal};
use crate::conditioner::Conditioner;
use crate::conditioner::conv::ZeroConv;
use crate::coupling::LOG_SCALE_LIMIT;

/// Independent normals whose means and log standard deviations a net computes from the kept half.
///
/// `(mean, log_std) = net(kept)`: the net gives two channels for each one factored out, first all
/// means, then all log standard deviations, which are held within ±20.
///
/// Source: openai/glow, `model.py`, `split2d_prior`, where the net is one [`ZeroConv`].
#[derive(Module, Debug)]
pub struct ConditionalNormal<C> {
    /// The net.
    pub conditioner: C,
}

impl ConditionalNormal<ZeroConv> {
    /// Glow's: a 3x3 convolution that starts at zero, so a standard normal to start with.
    pub fn glow(channels_kept: usize, channels_out: usize, device: &Device) -> Self {
        Self { conditioner: ZeroConv::new([channels_kept, 2 * channels_out], device) }
    }
}

impl<C: Module> ConditionalNormal<C> {
    /// From any net.
    pub fn new(conditioner: C) -> Self {
        Self { conditioner }
    }

    fn parameters<const D: usize>(&self, kept: Tensor<D>) -> (Tensor<D>, Tensor<D>)
    where
        C: Conditioner<D>,
    {
        let parameters = self.conditioner.forward(kept);
        let channels = parameters.dims()[1] / 2;
        let mean = parameters.clone().narrow(1, 0, channels);
        let log_std = parameters.narrow(1, channels, channels);
        (mean, log_std.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT))
    }
}

impl<const D: usize, C: Conditioner<D>> SplitPrior<D> for ConditionalNormal<C>
where
    Self: Module,
{
    fn log_prob(&self, z: Tensor<D>, kept: Tensor<D>) -> Tensor<1> {
        let (mean, log_std) = self.parameters(kept);
        normal_log_prob(z, mean, log_std)
    }

    fn sample(
        &self,
        shape: [usize; D],
        kept: Tensor<D>,
        temperature: f64,
        rng: &mut impl Rng,
    ) -> Tensor<D> {
        let noise = standard_normal(shape, rng, &kept.device(), kept.dtype()) * temperature;
        self.unstandardize(noise, kept)
    }

    fn standardize(&self, z: Tensor<D>, kept: Tensor<D>) -> Tensor<D> {
        let (mean, log_std) = self.parameters(kept);
        (z - mean) * log_std.neg().exp()
    }

    fn unstandardize(&self, noise: Tensor<D>, kept: Tensor<D>) -> Tensor<D> {
        let (mean, log_std) = self.parameters(kept);
        noise * log_std.exp() + mean
    }
}
