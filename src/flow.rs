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
/// 6. [`pull_back`](Flow::pull_back) gives the gradients that autodiff gives.
///
/// # Implementing it
///
/// Two short methods make a flow; the others have defaults that are correct for every flow.
/// Compositions are plain values: tuples, arrays, `Vec` and `Option` of flows are flows.
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

    /// `ln|det dz/dx|` alone, shape `[batch]`, in nats; overridden where it is cheaper than a
    /// forward pass.
    fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
        self.forward(x).1
    }

    /// Data-dependent initialization from one batch (ActNorm): returns the initialized flow and the
    /// batch mapped through it. Flows that are initialized already, or need nothing, are unchanged.
    ///
    /// Call it before training, on a model that is not on an autodiff device.
    fn initialize(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        let z = self.forward(x).0;
        (self, z)
    }

    /// Takes a batch into running statistics (BatchNorm), before the training step on that batch:
    /// returns the flow with its new statistics and the batch mapped through it. Flows without
    /// running statistics are unchanged.
    ///
    /// `forward` uses the statistics as they are and changes none, in training as well. Call it on a
    /// model that is not in training; [`Trainer`](crate::training::Trainer) does it where
    /// [`has_running_statistics`](Flow::has_running_statistics) says so.
    fn observe(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        let z = self.forward(x).0;
        (self, z)
    }

    /// Whether [`observe`](Flow::observe) changes anything.
    fn has_running_statistics(&self) -> bool {
        false
    }

    /// The shape of `z` for an `x` of shape `shape`; only flows that reshape override it.
    ///
    /// # Errors
    /// If no `x` of that shape can go through the flow.
    fn latent_shape(&self, shape: [usize; D]) -> Result<[usize; D]> {
        Ok(shape)
    }

    /// Whether the present parameters admit an inverse: finite and, for a matrix, not singular.
    ///
    /// # Errors
    /// [`FlowError::Singular`](crate::FlowError::Singular) where one does not.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Reversible backpropagation: from the output and the loss's gradients with respect to it,
    /// gives back the input and the gradient with respect to that, and adds the parameters'
    /// gradients to `grads`. No activation of the forward pass is needed.
    ///
    /// `z`, `dz` (gradient of the loss with respect to `z`) and `dlog_det` (with respect to the
    /// log-determinant, `[batch]`) are plain tensors; `self` is a model in training
    /// (`Module::train`). Returns `(x, dx)`, plain as well.
    ///
    /// The default serves every flow: invert, then [`backward`](Flow::backward). Compositions call
    /// it from the last flow to the first; layers that can invert and go back in one override it.
    fn pull_back(
        &self,
        z: Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let x = self.valid().inverse(z);
        let dx = self.backward(x.clone(), dz, dlog_det, grads);
        (x, dx)
    }

    /// [`pull_back`](Flow::pull_back) where the input is known: gives back the gradient with respect
    /// to it.
    ///
    /// The default serves every flow: it runs `forward` again under autodiff on that one flow and
    /// pulls the gradients back. Layers with a hand-written backward override it.
    fn backward(
        &self,
        x: Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> Tensor<D> {
        backward_by_autodiff(self, x, dz, dlog_det, grads)
    }

    /// [`forward`](Flow::forward) of a training step: the tape may keep the flow's input for
    /// [`pull_back_on`](Flow::pull_back_on). `self` is a plain model, `x` a plain tensor.
    ///
    /// The default is right for every flow that is no composition; compositions call it on their
    /// parts, so that the tape sees the smallest flows.
    fn forward_on(&self, x: Tensor<D>, tape: &mut Tape) -> (Tensor<D>, Tensor<1>) {
        tape.push(&x);
        self.forward(x)
    }

    /// [`pull_back`](Flow::pull_back) of a training step whose forward pass was
    /// [`forward_on`](Flow::forward_on) the same tape: a flow whose input was kept is not inverted.
    ///
    /// The default is right for every flow that is no composition; whoever overrides one of the two
    /// must override both.
    fn pull_back_on(
        &self,
        z: Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        pull_back_layer(self, z, dz, dlog_det, tape, grads, |x, dz, dlog_det, _, grads| {
            self.backward(x, dz, dlog_det, grads)
        })
    }
}

/// [`Flow::pull_back_on`] of a flow that is no composition: `backward` where the tape has its input,
/// else [`Flow::pull_back`].
pub(crate) fn pull_back_layer<const D: usize, F: Flow<D>>(
    flow: &F,
    z: Tensor<D>,
    dz: Tensor<D>,
    dlog_det: Tensor<1>,
    tape: &mut Tape,
    grads: &mut GradientsParams,
    backward: impl FnOnce(Tensor<D>, Tensor<D>, Tensor<1>, &mut Tape, &mut GradientsParams) -> Tensor<D>,
) -> (Tensor<D>, Tensor<D>) {
    if let Some(x) = tape.pop() {
        let dx = backward(x.clone(), dz, dlog_det, tape, grads);
        return (x, dx);
    }
    let (x, dx) = flow.pull_back(z, dz, dlog_det, grads);
    tape.reconstructed(&x);
    (x, dx)
}

/// The default [`Flow::backward`].
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
    let mut graph = loss(x.clone()).backward();
    more(&mut graph);
    let dx = x.grad_remove(&mut graph).unwrap_or_else(|| x.inner().zeros_like());
    let new = GradientsParams::from_module(&mut graph, module);
    accumulate(module, new, grads);
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
        let mut graph = surrogate.backward();
        accumulate(module, GradientsParams::from_module(&mut graph, module), grads);
    }
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
