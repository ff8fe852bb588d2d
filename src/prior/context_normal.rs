//! A normal whose parameters depend on a context.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use rand::Rng;

use super::diagonal_normal::normal_log_prob;
use super::{Prior, context_pass, scaled_normal};
use crate::chain::zero_log_det;
use crate::conditioner::Conditioner;
use crate::context::Context;
use crate::coupling::LOG_SCALE_LIMIT;
use crate::flow::Pass;
use crate::host;

/// Independent normals whose means and log standard deviations a net computes from the
/// [context](crate::context).
///
/// `(mean, log_std) = net(context)`: two numbers for each channel (or feature), first all means, then all
/// log standard deviations, which are held within ±20; all pixels of a channel have the same. With
/// classes as contexts, one of `k` a row, and one linear layer as the net, it is the class-conditional
/// prior of Glow.
///
/// Source: openai/glow, `model.py`, `prior` (its `y_emb`).
#[derive(Module, Debug)]
pub struct ContextNormal<N> {
    /// The net: `[batch, width] -> [batch, 2 * channels]`.
    pub net: N,
    /// The place of the context.
    pub context: Context,
}

impl<N: Conditioner<2>> ContextNormal<N> {
    /// A net and the width of the contexts that it sees.
    ///
    /// `log_prob` and `sample` panic where the net does not give two numbers a channel, or no context is
    /// given.
    pub fn new(net: N, context_width: usize, device: &Device) -> Self {
        Self { net, context: Context::new(context_width, device) }
    }

    fn parameters<const D: usize>(&self, shape: [usize; D]) -> (Tensor<D>, Tensor<D>) {
        let (batch, channels) = (shape[0], shape[1]);
        let parameters = self.net.forward(self.context.rows(batch));
        assert!(
            parameters.dims() == [batch, 2 * channels],
            "ContextNormal: the net gave numbers of shape {:?}, but {channels} channels need \
             {:?}; give it {} outputs",
            parameters.dims(),
            [batch, 2 * channels],
            2 * channels,
        );
        let part = |start: usize| {
            let mut narrow = [1; D];
            (narrow[0], narrow[1]) = (batch, channels);
            parameters.clone().narrow(1, start, channels).reshape(narrow).expand(shape)
        };
        (part(0), part(channels).clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT))
    }
}

impl<const D: usize, N: Conditioner<2>> Prior<D> for ContextNormal<N>
where
    Self: Module,
{
    fn log_prob(&self, z: Tensor<D>) -> Tensor<1> {
        if host::has_no_samples(&z) {
            return zero_log_det(&z);
        }
        let (mean, log_std) = self.parameters(z.dims());
        normal_log_prob(z, mean, log_std)
    }

    fn sample(
        &self,
        shape: [usize; D],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<D> {
        let noise = scaled_normal(shape, temperature, rng, device, dtype);
        if host::has_no_samples(&noise) {
            return noise;
        }
        let (mean, log_std) = self.parameters(shape);
        noise * log_std.exp() + mean
    }

    fn data_pass(mut self, z: Tensor<D>, pass: Pass) -> Self {
        self.net = context_pass(self.net, &self.context, z.dims()[0], pass);
        self
    }
}
