//! A net that sees a context.

use std::any::Any;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use super::Context;
use crate::conditioner::{Conditioner, Fold};
use crate::flow::Pass;

/// A net that sees the context behind its input, on axis 1: it makes every coupling, and the prior of
/// a split, conditional.
///
/// `y = net([x, context])`: the net is built for as many channels more as the context has. `C` is the
/// rank of the context, 2 for vectors, 4 for feature maps, see [`Context::beside`].
///
/// Source: Ardizzone et al., *Guided Image Generation with Conditional Invertible Neural Networks*,
/// [arXiv:1907.02392](https://arxiv.org/abs/1907.02392), section 3.1.
#[derive(Module, Debug)]
pub struct WithContext<N, const C: usize = 2> {
    /// The net.
    pub net: N,
    /// The place of the context.
    pub context: Context<C>,
}

impl<N: Module> WithContext<N> {
    /// A net that sees vectors of that width.
    pub fn new(net: N, context_width: usize, device: &Device) -> Self {
        Self { net, context: Context::new(context_width, device) }
    }
}

impl<N: Module> WithContext<N, 4> {
    /// A net that sees feature maps of as many channels.
    pub fn of_maps(net: N, context_channels: usize, device: &Device) -> Self {
        Self { net, context: Context::new(context_channels, device) }
    }
}

impl<const D: usize, const C: usize, N: Conditioner<D>> Conditioner<D> for WithContext<N, C>
where
    Self: Module,
{
    fn forward(&self, x: Tensor<D>) -> Tensor<D> {
        self.net.forward(self.context.beside(x))
    }

    fn data_pass(mut self, x: Tensor<D>, pass: Pass) -> (Self, Tensor<D>) {
        let (net, y) = self.net.data_pass(self.context.beside(x), pass);
        self.net = net;
        (self, y)
    }

    fn pull_back(
        &self,
        x: Tensor<D>,
        dparams: impl FnOnce(Tensor<D>) -> Tensor<D>,
        grads: &mut GradientsParams,
    ) -> Tensor<D> {
        if self.context.width() == 0 {
            return self.net.pull_back(x, dparams, grads);
        }
        let channels = x.dims()[1];
        let joined = self.context.valid().beside(x);
        let width = joined.dims()[1] - channels;
        let gradient = self.net.pull_back(joined, dparams, grads);
        self.context.add_gradient(gradient.clone().narrow(1, channels, width), grads);
        gradient.narrow(1, 0, channels)
    }

    fn folded(&self) -> Option<&dyn Fold> {
        // The kernels know contexts that are vectors.
        (self.context.width() == 0 || C == 2).then(|| self.net.folded()).flatten()
    }

    fn folded_context(&self) -> Option<&Context> {
        (&self.context as &dyn Any).downcast_ref()
    }
}
