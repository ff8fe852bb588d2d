//! Gradients without stored activations.
//!
//! A flow inverts exactly, so the backward pass can compute every activation again from the output:
//! memory does not grow with depth. It works for any composition of flows, your own included, and
//! the unit that is computed again is the smallest flow; see [`Flow::pull_back`]. What rounding in
//! the inverses does to the activations is measured by a [`Tape`], and bounded by what it keeps.
//!
//! Source of the idea: Gomez et al., *The Reversible Residual Network: Backpropagation Without
//! Storing Activations*, [arXiv:1707.04585](https://arxiv.org/abs/1707.04585), section 3.2.
//!
//! ```
//! use burn::module::Module;
//! use burn::tensor::Tensor;
//! use burn_flows::training::{Memory, Tape, reversible};
//! use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
//!
//! let device = burn_flows::backend::device();
//! let flow = DiagonalScaling::new(2, &device)?;
//! let stack: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2])?;
//! let model = stack.train();
//! let x = Tensor::<2>::from_data([[3.0, -2.0]], &device);
//!
//! let (loss, grads) = reversible::gradients(&model, x.clone());
//! // -ln p(x) = ln(2 pi) + (9 + 4) / 2, whose derivative by the first log-scale is 9 - 1.
//! assert!((loss.into_scalar::<f32>() - (std::f32::consts::TAU.ln() + 6.5)).abs() < 1e-5);
//! let grad = grads.get::<1>(model.levels[0].log_scale.id).unwrap();
//! assert!((grad.narrow(0, 0, 1).into_scalar::<f32>() - 8.0).abs() < 1e-5);
//!
//! // The same with every layer's input kept.
//! let mut tape = Tape::new(Memory::Stored);
//! let (_, stored) = reversible::gradients_on(&model, x, &mut tape);
//! assert_eq!(stored.len(), grads.len());
//! # Ok::<(), burn_flows::FlowError>(())
//! ```

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::repeats::{self, refuse_flags, refuse_followed};
use crate::error::Result;
use crate::flow::{At, Flow};
use crate::prior::{Prior, SplitPrior};
use crate::stack::FlowStack;
use crate::tape::Tape;

/// Loss and gradients of maximum likelihood for one batch.
///
/// The loss is the mean of `-ln p(x)` in nats, `[1]`. Layers that start from data are taken as they are:
/// in a loop of your own, call [`Flow::initialize`] before the first step and
/// [`Flow::data_pass`] before each, as [`Trainer`](super::Trainer) does. `stack` is a model in training
/// (`Module::train`), `x` a plain tensor. The gradients are those of ordinary autodiff up to
/// rounding, for any composition of flows, without keeping an activation of the forward pass.
///
/// # Panics
/// If `x` has no samples, or a flow has no inverse (see [`Flow::check`]); if a layer of Burn in `stack`
/// acts otherwise in training than at inference, such as `nn::Dropout` or `nn::BatchNorm`, and is not
/// frozen (see [`check`]); if a context in it is the output of a net that autodiff follows, to which no
/// gradient would get (see [`Embedded`](crate::context::Embedded)).
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
    gradients_on(stack, x, &mut Tape::default())
}

/// [`gradients`] with what an empty [`Tape`] keeps and measures.
///
/// # Panics
/// As [`gradients`].
pub fn gradients_on<const D: usize, F, P, S>(
    stack: &FlowStack<D, F, P, S>,
    x: Tensor<D>,
    tape: &mut Tape,
) -> (Tensor<1>, GradientsParams)
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    assert_one_function(stack);
    let batch = x.dims()[0];
    assert!(batch > 0, "reversible::gradients: got no samples, but the loss is the mean over them");
    let weight = -1.0 / batch as f64;
    let mut grads = GradientsParams::new();
    let pass = stack.forward_log_prob(x, weight, tape);
    let loss = pass.weighted_log_prob.clone();
    stack.backward_log_prob(pass, tape, &mut grads);
    (loss, grads)
}

/// # Panics
/// If gradients without stored activations would be those of no function; see [`gradients`].
pub(crate) fn assert_one_function<M: Module>(model: &M) {
    let checked = refuse_flags(model, &[]).and_then(|()| refuse_followed(model));
    checked.unwrap_or_else(|error| panic!("{error}"));
}

/// Whether `stack`, in training, is one function: the same at every call, in training as at inference.
/// Gradients without stored activations are those of no function otherwise, because the backward pass
/// runs every net again.
///
/// Refused are layers of Burn that act otherwise in training (`nn::Dropout`, `nn::BatchNorm`,
/// `nn::GaussianNoise`), unless frozen, and whatever else gives other gradients at a second call or other
/// values in training than at inference; judged by two samples of `x`, a plain tensor.
/// [`Trainer`](super::Trainer) calls it, for a loop of one's own one call before the first step is
/// enough. (Autodiff through [`FlowStack::log_prob`], which goes back through the one forward pass that
/// there was, needs none of this.)
///
/// # Errors
/// [`FlowError::NotRepeatable`](crate::FlowError::NotRepeatable), with path and type of the module.
pub fn check<const D: usize, F, P, S>(stack: &FlowStack<D, F, P, S>, x: Tensor<D>) -> Result<()>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    repeats::check(stack, x)
}

/// Loss and gradients of any function of a flow's outputs, for one batch: `loss(z, log_det)`, `[1]`.
///
/// `flow` is a model in training, `x` a plain tensor; `loss` is computed under autodiff. Parameters
/// that `loss` uses itself get no gradient. Gives the loss, the gradient with respect to `x` and the
/// gradients of the flow's parameters.
///
/// # Panics
/// As [`gradients`].
pub fn gradients_of<const D: usize, F: Flow<D>>(
    flow: &F,
    x: Tensor<D>,
    tape: &mut Tape,
    loss: impl FnOnce(Tensor<D>, Tensor<1>) -> Tensor<1>,
) -> (Tensor<1>, Tensor<D>, GradientsParams) {
    assert_one_function(flow);
    let (z, log_det) = flow.valid().forward_on(x, tape);
    let (tracked, tracked_log_det) =
        (Tensor::from_inner(z.clone()).require_grad(), Tensor::from_inner(log_det).require_grad());
    let loss = loss(tracked.clone(), tracked_log_det.clone());
    let mut graph = loss.backward();
    let dz = tracked.grad_remove(&mut graph).unwrap_or_else(|| z.zeros_like());
    let dlog_det = tracked_log_det
        .grad_remove(&mut graph)
        .unwrap_or_else(|| tracked_log_det.inner().zeros_like());
    let mut grads = GradientsParams::new();
    let (_, dx) = flow.pull_back(At::Output(z), dz, dlog_det, tape, &mut grads);
    tape.assert_done();
    (loss.inner(), dx, grads)
}
