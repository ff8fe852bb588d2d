//! The trait [`Flow`]: direction, sign and laws, written here once.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor};

use crate::error::Result;
use crate::tape::Tape;

/// An invertible, differentiable map from data `x` to latent `z`.
///
/// # Direction and sign
///
/// [`forward`](Flow::forward) is always **data → latent**, the normalizing direction of the papers;
/// [`inverse`](Flow::inverse) is latent → data. `log_det` is always `ln|det dz/dx|` of the forward
/// map, one value a sample, shape `[batch]`, in **nats**. With a prior `p_z`,
///
/// `ln p(x) = ln p_z(forward(x)) + log_det(x)`.
///
/// `D` is the rank of the tensors: `D = 2` is `[batch, features]`, `D = 4` is
/// `[batch, channels, height, width]`. Axis 1 is the channel (or feature) axis everywhere.
///
/// # Laws
///
/// Every flow of this crate is passed through these by one test, which is public as
/// `burn_flows::testing::check_laws` so that a flow of your own is proven by one call:
///
/// 1. `inverse(forward(x)) = x` and `forward(inverse(z)) = z`;
/// 2. `log_det` equals the log-determinant of the autograd Jacobian;
/// 3. `log_det(x)` and `forward(x).1` agree, and a sample's result does not depend on its batch;
/// 4. saving and loading gives bit-equal outputs, and gradients reach every trainable parameter;
/// 5. outputs and gradients are finite for inputs of 1e-6 to 1e4 times the training scale;
/// 6. [`pull_back`](Flow::pull_back) gives the gradients that autodiff gives, with any tape, and autodiff
///    gives the parameters the same whether the batch is plain or on the autodiff device;
/// 7. after [`initialize`](Flow::initialize) nothing inside waits for its first batch.
///
/// # Implementing it
///
/// Two short methods make a flow; the others have defaults that are correct for every flow that is not
/// made of flows.
///
/// Compositions are plain values: tuples, arrays, `Vec` and `Option` of flows are flows, and so is a
/// struct or an enum of flows with [`#[derive(Flow)]`](macro@crate::Flow). Do not write `forward` and
/// `inverse` of a composition by hand: its parts would not be initialized, and a training step would
/// see one large layer in the place of its parts.
///
/// ```
/// use burn::module::{Module, Param};
/// use burn::tensor::Tensor;
/// use burn_flows::Flow;
///
/// /// `z = x * exp(log_scale)`, one scale for all.
/// #[derive(Module, Debug)]
/// struct Zoom {
///     log_scale: Param<Tensor<1>>,
/// }
///
/// impl Flow<2> for Zoom {
///     fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
///         let [batch, features] = x.dims();
///         let log_det = self.log_scale.val().expand([batch]) * features as f64;
///         (x * self.log_scale.val().exp().unsqueeze(), log_det)
///     }
///     fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
///         z * self.log_scale.val().neg().exp().unsqueeze()
///     }
/// }
///
/// let device = burn_flows::backend::device();
/// let zoom = Zoom { log_scale: Param::from_data([2f32.ln()], &device) };
/// let x = Tensor::<2>::from_data([[1.0, 2.0, 3.0]], &device);
/// let (z, log_det) = zoom.forward(x);
/// assert!((z.sum().into_scalar::<f32>() - 12.0).abs() < 1e-5);
/// assert!((log_det.into_scalar::<f32>() - 3.0 * 2f32.ln()).abs() < 1e-5);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a flow of rank {D}",
    label = "not a `Flow<{D}>`",
    note = "implement `forward` and `inverse` of `Flow`, or write `#[derive(Flow)]` on a struct or enum of flows",
    note = "a field that is no flow is marked `#[flow(skip)]`"
)]
pub trait Flow<const D: usize>: Module {
    /// Maps data to latent: `x -> (z, ln|det dz/dx|)`.
    ///
    /// # Shapes
    /// - `x`: `[batch, ...]`; `z`: as [`latent_shape`](Flow::latent_shape) says (that of `x` unless
    ///   the flow reshapes); log-determinant: `[batch]`, in nats
    ///
    /// # Panics
    /// If the shape of `x` is not one the flow was built for; the message names the flow.
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>);

    /// Maps latent to data: `z -> x`, the inverse of [`forward`](Flow::forward).
    ///
    /// # Panics
    /// As [`forward`](Flow::forward); and where a parameter admits no inverse (see
    /// [`check`](Flow::check), which says so without a panic).
    fn inverse(&self, z: Tensor<D>) -> Tensor<D>;

    /// [`inverse`](Flow::inverse) with the log-determinant of [`forward`](Flow::forward) at its result:
    /// `z -> (x, ln|det dz/dx|)`, by which a draw comes with its density.
    ///
    /// In a model in training both carry gradients with respect to `z` and the parameters. The default
    /// asks [`log_det`](Flow::log_det) after the inverse; overridden where one computation gives both.
    ///
    /// # Panics
    /// As [`inverse`](Flow::inverse).
    fn inverse_and_log_det(&self, z: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        let x = self.inverse(z);
        let log_det = self.log_det(x.clone());
        (x, log_det)
    }

    /// `ln|det dz/dx|` alone, shape `[batch]`, in nats; overridden where it is cheaper than a
    /// forward pass.
    fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
        self.forward(x).1
    }

    /// Sends a batch through, by which the flow may change: returns the flow as it then is and the
    /// batch mapped through it. What changes is told by the [`Pass`]; a flow that needs nothing of the
    /// kind is unchanged, which is the default. Compositions send the batch from part to part.
    ///
    /// Call it on a model that is not in training. `forward` itself changes nothing, in training as
    /// well. Running statistics belong into a [`RunningMoments`](crate::norm::RunningMoments): by that
    /// [`Trainer`](crate::training::Trainer) knows that a model has any. A layer that starts from data keeps
    /// a frozen parameter named `initialized`, 0 until then, as ActNorm does: by that it is known which layers
    /// still wait.
    fn data_pass(self, x: Tensor<D>, _pass: Pass) -> (Self, Tensor<D>) {
        let z = self.forward(x).0;
        (self, z)
    }

    /// [`data_pass`](Flow::data_pass) of [`Pass::Initialize`]: the call to make before training.
    ///
    /// [`Trainer`](crate::training::Trainer) calls it with its first batch, where a layer is marked as
    /// not initialized. In a training loop of your own, call it before, on a model that is not on an
    /// autodiff device. Not to be overridden: compositions call `data_pass`.
    fn initialize(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        self.data_pass(x, Pass::Initialize)
    }

    /// The shape of `z` for an `x` of shape `shape`; only flows that reshape override it.
    ///
    /// # Errors
    /// If no `x` of that shape can go through the flow.
    fn latent_shape(&self, shape: [usize; D]) -> Result<[usize; D]> {
        Ok(shape)
    }

    /// Whether the present parameters admit an inverse: a matrix that is not singular, scales that are
    /// numbers and whose inverses are. Every training step asks it first, so it is cheap.
    ///
    /// # Errors
    /// [`FlowError::Singular`](crate::FlowError::Singular) or
    /// [`FlowError::Scale`](crate::FlowError::Scale) where one does not.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// [`forward`](Flow::forward) of a training step: the tape may keep the flow's input for
    /// [`pull_back`](Flow::pull_back). `self` is a plain model, `x` a plain tensor.
    ///
    /// The default pushes the flow as one layer, which is right for every flow that is no composition;
    /// compositions call it on their parts, so that the tape sees the smallest flows.
    fn forward_on(&self, x: Tensor<D>, tape: &mut Tape) -> (Tensor<D>, Tensor<1>) {
        tape.push(&x);
        self.forward(x)
    }

    /// Reversible backpropagation: from one side of the flow and the loss's gradients with respect to
    /// its outputs, gives back the input and the gradient with respect to that, `(x, dx)`, and adds the
    /// parameters' gradients to `grads`. No activation of the forward pass is needed.
    ///
    /// `dz` (gradient of the loss with respect to `z`), `dlog_det` (with respect to the
    /// log-determinant, `[batch]`), what `at` holds and what is returned are plain tensors; `self` is a
    /// model in training (`Module::train`).
    ///
    /// `tape` is the one that [`forward_on`](Flow::forward_on) was given, and the flow pops from it what
    /// it pushed there; where the tape has an input, that is used and nothing is inverted. The empty
    /// tape, `Tape::default()`, has none and serves any backward pass.
    ///
    /// The default serves every flow that is no composition: the input by [`Tape::input`], then `forward`
    /// once more under autodiff, on that one flow. Compositions call it from the last part to the first;
    /// layers with a hand-written backward override it. Who overrides one of `forward_on` and
    /// `pull_back` sees to it that the one pops what the other pushes.
    fn pull_back(
        &self,
        at: At<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let x = tape.input(at, |z| self.valid().inverse(z));
        let dx = backward_by_autodiff(self, x.clone(), dz, dlog_det, grads);
        (x, dx)
    }

    /// Reversible backpropagation through [`inverse_and_log_det`](Flow::inverse_and_log_det): from its
    /// result `x` and the loss's gradients with respect to `x` and to the log-determinant, gives back the
    /// latent and the gradient with respect to that, `(z, dz)`, and adds the parameters' gradients to
    /// `grads`. No activation of the inverse is needed.
    ///
    /// The tensors are plain; `self` is a model in training. The default computes `z` by `forward`, then
    /// runs `inverse_and_log_det` once more under autodiff, on that one flow. Compositions call it from the
    /// first part to the last.
    fn pull_back_inverse(
        &self,
        x: Tensor<D>,
        dx: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let z = self.valid().forward(x).0;
        let loss = |z| {
            let (x, log_det) = self.inverse_and_log_det(z);
            (x * Tensor::from_inner(dx)).sum() + (log_det * Tensor::from_inner(dlog_det)).sum()
        };
        let dz = pull_back_through(self, z.clone(), loss, grads);
        (z, dz)
    }
}

/// What a [`data_pass`](Flow::data_pass) is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Data-dependent initialization from one batch (ActNorm, first running statistics), before
    /// training. What is initialized already stays as it is.
    Initialize,
    /// Running statistics (batch normalization) take in a batch, before the training step on it.
    Observe,
}

/// The side of a flow from which [`pull_back`](Flow::pull_back) starts.
#[derive(Debug, Clone)]
pub enum At<const D: usize> {
    /// The input `x`: nothing is to be inverted.
    Input(Tensor<D>),
    /// The output `z`: the input is computed from it.
    Output(Tensor<D>),
}

/// The gradient with respect to `x`, by `forward` under autodiff: what is left of the default
/// [`Flow::pull_back`] once the input is known.
pub(crate) fn backward_by_autodiff<const D: usize, F: Flow<D>>(
    flow: &F,
    x: Tensor<D>,
    dz: Tensor<D>,
    dlog_det: Tensor<1>,
    grads: &mut GradientsParams,
) -> Tensor<D> {
    let loss = |x| {
        let (z, log_det) = flow.forward(x);
        (z * Tensor::from_inner(dz)).sum() + (log_det * Tensor::from_inner(dlog_det)).sum()
    };
    pull_back_through(flow, x, loss, grads)
}

/// Runs `loss` on `x` under autodiff, adds the gradients of the parameters of `module` to `grads`
/// and returns the gradient with respect to `x`.
pub(crate) fn pull_back_through<const D: usize, M: Module>(
    module: &M,
    x: Tensor<D>,
    loss: impl FnOnce(Tensor<D>) -> Tensor<1>,
    grads: &mut GradientsParams,
) -> Tensor<D> {
    pull_back_with(module, x, loss, |_| (), grads)
}

/// [`pull_back_through`] where `loss` depends on more: `more` takes further gradients.
pub(crate) fn pull_back_with<const D: usize, M: Module>(
    module: &M,
    x: Tensor<D>,
    loss: impl FnOnce(Tensor<D>) -> Tensor<1>,
    more: impl FnOnce(&mut Gradients),
    grads: &mut GradientsParams,
) -> Tensor<D> {
    let x = Tensor::from_inner(x).require_grad();
    let loss = loss(x.clone());
    if !loss.is_tracked() {
        // All of it is frozen, and it does not depend on `x`.
        return x.inner().zeros_like();
    }
    let mut graph = loss.backward();
    more(&mut graph);
    let dx = x.grad_remove(&mut graph).unwrap_or_else(|| x.inner().zeros_like());
    collect(&mut graph, module, grads);
    dx
}

/// `sum(values * gradient)`, or nothing for values that are not trained: a term of the surrogate whose
/// gradient by the parameters is what the chain rule makes of the gradient by `values`.
pub(crate) fn weighted<const N: usize>(
    values: Tensor<N>,
    gradient: Tensor<N>,
) -> Option<Tensor<1>> {
    values.is_tracked().then(|| (values * Tensor::from_inner(gradient)).sum())
}

/// Adds to `grads` the gradients of the sum of [`weighted`] terms by the parameters of `module`.
pub(crate) fn pull_back_surrogate<M: Module>(
    module: &M,
    terms: impl Iterator<Item = Tensor<1>>,
    grads: &mut GradientsParams,
) {
    if let Some(surrogate) = terms.reduce(|sum, more| sum + more) {
        collect(&mut surrogate.backward(), module, grads);
    }
}

/// Adds the gradients in `graph` of the parameters of `module` to `grads`. Burn's
/// `GradientsParams::from_module` keeps one gradient a parameter: of clones, which share it, the last.
pub(crate) fn collect<M: Module>(graph: &mut Gradients, module: &M, grads: &mut GradientsParams) {
    struct Collect<'a> {
        graph: &'a mut Gradients,
        grads: &'a mut GradientsParams,
    }
    impl ModuleVisitor for Collect<'_> {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if param.is_require_grad()
                && let Some(grad) = param.val().grad_remove(self.graph)
            {
                add_grad(self.grads, param, grad);
            }
        }
    }
    module.visit(&mut Collect { graph, grads });
}

/// Adds the gradients `new` of the parameters of `module` to `grads`.
pub(crate) fn accumulate<M: Module>(
    module: &M,
    mut new: GradientsParams,
    grads: &mut GradientsParams,
) {
    struct Add<'a> {
        new: &'a mut GradientsParams,
        grads: &'a mut GradientsParams,
    }
    impl ModuleVisitor for Add<'_> {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if let Some(grad) = self.new.remove::<N>(param.id) {
                add_grad(self.grads, param, grad);
            }
        }
    }
    module.visit(&mut Add { new: &mut new, grads });
}

/// Adds `grad` to what `grads` holds for `param`: a parameter used twice collects both parts, one that
/// is not trained none.
pub(crate) fn add_grad<const N: usize>(
    grads: &mut GradientsParams,
    param: &Param<Tensor<N>>,
    grad: Tensor<N>,
) {
    if !param.is_require_grad() {
        return;
    }
    let sum = match grads.remove::<N>(param.id) {
        Some(before) => before + grad,
        None => grad,
    };
    grads.register(param.id, sum);
}
