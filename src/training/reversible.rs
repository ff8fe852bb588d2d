//! Gradients without stored activations.
//!
//! A flow inverts exactly, so the backward pass can compute every activation again from the output:
//! memory does not grow with depth. See [`Flow::pull_back`].

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::flow::Flow;
use crate::prior::{Prior, SplitPrior};
use crate::stack::FlowStack;

/// Loss and gradients of maximum likelihood for one batch.
///
/// The loss is the mean of `-ln p(x)` in nats, `[1]`. `stack` is a model in training
/// (`Module::train`), `x` a plain tensor. The gradients are those of ordinary autodiff up to
/// rounding, for any composition of flows, without keeping an activation of the forward pass.
pub fn gradients<const D: usize, F, P, S>(
    stack: &FlowStack<D, F, P, S>,
    x: Tensor<D>,
) -> (Tensor<1>, GradientsParams)
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    let mut grads = GradientsParams::new();
    let (loss, _, _) = stack.pull_back_log_prob(x, &mut grads);
    (loss, grads)
}
