//! The reverse Kullback-Leibler divergence and its gradients.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use rand::Rng;

use super::LogWeights;
use crate::error::{FlowError, Result};
use crate::flow::{Flow, collect};
use crate::host;
use crate::prior::{Prior, SplitPrior, first_trained_degrees};
use crate::stack::{FlowStack, device_and_dtype};
use crate::tape::Tape;
use crate::training::StepGradients;
use crate::training::reversible;

/// The loss `E_q[ln q(x) - ln p~(x)]`, in nats, as a mean over draws from the model `q`; its negative is the
/// evidence lower bound, ELBO.
///
/// `ln p~` is a function of a batch of draws, `[draws, ...] -> [draws]`, known up to a constant; it is computed
/// under autodiff. Draws are functions of parameters and noise, so the gradients are those of the loss itself
/// (reparameterization).
///
/// With `x = g(noise; theta)`, the gradient of a draw's term by the parameters `theta` is
///
/// `(d(ln q - ln p~)/dx) dx/dtheta + (d ln q/dtheta at x)`
///
/// whose second part, the score, has expectation 0.
/// [`with_path_gradient`](ReverseKl::with_path_gradient) leaves it out: also unbiased, and without any noise
/// where `q` is `p`.
///
/// Sources: Rezende and Mohamed, [arXiv:1505.05770](https://arxiv.org/abs/1505.05770), equation 15; Roeder,
/// Wu and Duvenaud, *Sticking the Landing*, [arXiv:1703.09194](https://arxiv.org/abs/1703.09194), section 3.
///
/// ```
/// use burn::module::Module;
/// use burn::tensor::Tensor;
/// use burn_flows::variational::ReverseKl;
/// use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let device = burn_flows::backend::device();
/// let flow = DiagonalScaling::new(1, &device)?;
/// let model = FlowStack::<2, _>::single(flow, StandardNormal::new(), &[1])?.train();
/// // The model itself, without its constant: ln q - ln p~ is -ln(2 pi) / 2 at every draw.
/// let log_p = |x: Tensor<2>| x.square().sum_dim(1).squeeze_dim::<1>(1) / -2.0;
/// let objective = ReverseKl::new(10).with_path_gradient(true);
/// let gradients = objective.gradients(&model, log_p, &mut StdRng::seed_from_u64(0))?;
/// assert!((gradients.loss + std::f64::consts::TAU.ln() / 2.0).abs() < 1e-5);
/// // The path gradient is 0 where the model is the target.
/// let gradient = gradients.grads.get::<1>(model.levels[0].log_scale.id).unwrap();
/// assert!(gradient.abs().into_scalar::<f32>() < 1e-5);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReverseKl {
    num_draws: usize,
    path_gradient: bool,
    reversible: bool,
}

impl ReverseKl {
    /// The mean over as many draws, by the full gradient, with activations stored.
    pub fn new(num_draws: usize) -> Self {
        Self { num_draws, path_gradient: false, reversible: false }
    }

    /// Leaves the score out of the gradient ("sticking the landing"); default: false. It costs a pass through
    /// the flow and back from data to latent, so take it for flows whose both directions are fast.
    ///
    /// Where the flow cannot become the target it needs more draws than the full gradient does.
    pub fn with_path_gradient(mut self, path_gradient: bool) -> Self {
        self.path_gradient = path_gradient;
        self
    }

    /// Computes [`gradients`](ReverseKl::gradients) without stored activations; default: false. Every layer's
    /// latent is computed again by its `forward`, see
    /// [`Flow::pull_back_inverse`](crate::Flow::pull_back_inverse), so memory does not grow with depth. For
    /// layers whose `forward` takes steps (IAF, planar flows) those steps are the price.
    pub fn with_reversible(mut self, reversible: bool) -> Self {
        self.reversible = reversible;
        self
    }

    /// The loss, `[1]`, with a graph for autodiff where `model` is in training: for a loop of your own.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if no draw is asked for, `ln q` or `ln p~` of one is not finite, or `model` is in
    /// training with `raw_degrees` of a [`DiagonalStudentT`](crate::prior::DiagonalStudentT) that are trained.
    ///
    /// # Panics
    /// As [`FlowStack::sample_and_log_prob_with`]; if `log_p` does not give one number for each draw.
    pub fn loss<const D: usize, F, P, S>(
        &self,
        model: &FlowStack<D, F, P, S>,
        log_p: impl Fn(Tensor<D>) -> Tensor<1>,
        rng: &mut impl Rng,
    ) -> Result<Tensor<1>>
    where
        F: Flow<D>,
        P: Prior<D>,
        S: SplitPrior<D>,
        FlowStack<D, F, P, S>: Module,
    {
        self.check(model)?;
        let (x, mut log_q) = model.sample_and_log_prob_with(self.num_draws, rng);
        check_finite("ln q", &log_q, OF_Q)?;
        if self.path_gradient && log_q.is_tracked() {
            // The parameters of a plain model are constants; its draws are not.
            log_q = model.valid().log_prob(x.clone());
        }
        let log_p = target(&log_p, x, self.num_draws);
        check_finite("ln p", &log_p, OF_P)?;
        Ok((log_q - log_p).mean())
    }

    /// Loss and gradients, for [`Trainer::apply`](crate::training::Trainer::apply) or an optimizer. `model` is
    /// in training: `trainer.model().train()`.
    ///
    /// The gradients of an embedding in front of the model are found by [`loss`](ReverseKl::loss) alone.
    ///
    /// # Errors
    /// As [`loss`](ReverseKl::loss).
    ///
    /// # Panics
    /// As [`loss`](ReverseKl::loss); if `model` is not in training; if without stored activations as
    /// [`reversible::gradients`].
    pub fn gradients<const D: usize, F, P, S>(
        &self,
        model: &FlowStack<D, F, P, S>,
        log_p: impl Fn(Tensor<D>) -> Tensor<1>,
        rng: &mut impl Rng,
    ) -> Result<StepGradients>
    where
        F: Flow<D>,
        P: Prior<D>,
        S: SplitPrior<D>,
        FlowStack<D, F, P, S>: Module,
    {
        if self.reversible {
            return self.reversible_gradients(model, log_p, rng);
        }
        let loss = self.loss(model, log_p, rng)?;
        assert_in_training(loss.is_tracked());
        let mut grads = GradientsParams::new();
        collect(&mut loss.backward(), model, &mut grads);
        Ok(StepGradients { loss: loss.inner().into_scalar(), grads, drift: None })
    }

    fn reversible_gradients<const D: usize, F, P, S>(
        &self,
        model: &FlowStack<D, F, P, S>,
        log_p: impl Fn(Tensor<D>) -> Tensor<1>,
        rng: &mut impl Rng,
    ) -> Result<StepGradients>
    where
        F: Flow<D>,
        P: Prior<D>,
        S: SplitPrior<D>,
        FlowStack<D, F, P, S>: Module,
    {
        self.check(model)?;
        assert_in_training(device_and_dtype(model).0.is_autodiff());
        reversible::assert_one_function(model);
        let mut grads = GradientsParams::new();
        let pass = model.forward_sample(self.num_draws, rng);
        check_finite("ln q", &pass.log_prob, OF_Q)?;
        let weight = 1.0 / self.num_draws as f64;

        let x = Tensor::from_inner(pass.x.clone()).require_grad();
        let log_p = target(&log_p, x.clone(), self.num_draws);
        check_finite("ln p", &log_p, OF_P)?;
        let loss = (pass.log_prob.clone() - log_p.clone().inner()).mean();
        let dx = if log_p.is_tracked() {
            let mut graph = (log_p.sum() * -weight).backward();
            x.grad_remove(&mut graph)
        } else {
            None
        };
        let mut dx = dx.unwrap_or_else(|| pass.x.zeros_like());

        let mut of_log_q = weight;
        if self.path_gradient {
            let mut tape = Tape::default();
            let back = model.forward_log_prob(pass.x.clone(), weight, &mut tape);
            // The score, which is left out.
            let mut by_parameters = GradientsParams::new();
            dx = dx + model.backward_log_prob(back, &mut tape, &mut by_parameters).1;
            of_log_q = 0.0;
        }
        model.backward_sample(pass, dx, of_log_q, &mut grads);
        Ok(StepGradients { loss: loss.into_scalar(), grads, drift: None })
    }

    fn check<M: Module>(&self, model: &M) -> Result<()> {
        if self.num_draws == 0 {
            return Err(FlowError::invalid(
                "ReverseKl: the number of draws",
                "0",
                "at least 1",
                "the loss is the mean over the draws; 64 to 1024 are usual",
            ));
        }
        if let Some(path) = first_trained_degrees(model) {
            return Err(FlowError::invalid(
                "ReverseKl: the degrees of freedom of DiagonalStudentT",
                format!("trained ones, {path}"),
                "frozen ones, since draws have no gradient by them",
                "freeze that parameter, or take another prior",
            ));
        }
        Ok(())
    }
}

/// `num_draws` draws from `model` and their importance weights `ln w = ln p~(x) - ln q(x)`.
///
/// After [`Given::given`](crate::context::Given::given) with
/// [`repeat_contexts`] they are taken apart by [`LogWeights::by_context`].
///
/// # Errors
/// As [`LogWeights::new`], also where `ln q` of a draw is not finite.
///
/// # Panics
/// If `log_p` does not give one number for each draw, or there are contexts for another number of samples.
pub fn weighted_draws<const D: usize, F, P, S>(
    model: &FlowStack<D, F, P, S>,
    num_draws: usize,
    log_p: impl Fn(Tensor<D>) -> Tensor<1>,
    rng: &mut impl Rng,
) -> Result<(Tensor<D>, LogWeights)>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    let (x, log_q) = model.valid().sample_and_log_prob_with(num_draws, rng);
    if num_draws == 0 {
        return Ok((x, LogWeights::new(Vec::new())?));
    }
    check_finite("ln q", &log_q, OF_Q)?;
    let log_p = host::to_f64(host::plain(target(&log_p, x.clone(), num_draws)));
    let log_q = host::to_f64(log_q);
    let log_w = log_p.into_iter().zip(log_q).map(|(log_p, log_q)| log_p - log_q);
    Ok((x, LogWeights::new(log_w.collect())?))
}

/// Each context as many times in turn, for `draws_each` draws given each of them:
/// `[contexts, ...] -> [contexts * draws_each, ...]`.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::variational::repeat_contexts;
///
/// let device = burn_flows::backend::device();
/// let contexts = repeat_contexts(Tensor::<2>::from_data([[1.0], [2.0]], &device), 2);
/// assert_eq!(contexts.try_into_vec_as::<f32>().unwrap(), [1.0, 1.0, 2.0, 2.0]);
/// ```
///
/// # Panics
/// If there are no contexts, or no draws for each.
pub fn repeat_contexts<const C: usize>(contexts: Tensor<C>, draws_each: usize) -> Tensor<C> {
    let rows = contexts.dims()[0];
    assert!(
        rows > 0 && draws_each > 0,
        "repeat_contexts: got {rows} contexts and {draws_each} draws for each, but needs at least 1"
    );
    let places = (0..rows).flat_map(|row| std::iter::repeat_n(row, draws_each));
    let places = host::places(places, &contexts.device());
    contexts.select(0, places)
}

/// `ln p~` of the draws.
fn target<const D: usize>(
    log_p: &impl Fn(Tensor<D>) -> Tensor<1>,
    x: Tensor<D>,
    num_draws: usize,
) -> Tensor<1> {
    let log_p = log_p(x);
    assert!(
        log_p.dims() == [num_draws],
        "variational: log_p gave shape {:?} for {num_draws} draws, but must give one number for each",
        log_p.dims()
    );
    log_p
}

const OF_Q: &str = "the flow has left the numbers it computes in; train with a lower learning rate, or clip \
                    the gradients (Trainer::with_max_gradient_norm)";
const OF_P: &str = "the target must be finite wherever the flow draws: keep the draws in its domain \
                    (preprocess::Unconstrain), and its logarithms off 0";

/// Refuses values of the draws that are not finite.
fn check_finite(name: &str, values: &Tensor<1>, advice: &str) -> Result<()> {
    if host::is_finite(values.clone()) {
        return Ok(());
    }
    let values = host::to_f64(host::plain(values.clone()));
    let bad = |value: &&f64| !value.is_finite();
    let first = values.iter().find(bad).copied().unwrap_or(f64::NAN);
    Err(FlowError::invalid(
        format!("variational: {name} of the draws"),
        format!("{first} (at {} of {} draws)", values.iter().filter(bad).count(), values.len()),
        "finite numbers",
        advice,
    ))
}

fn assert_in_training(is_in_training: bool) {
    assert!(
        is_in_training,
        "ReverseKl: no gradient was asked for; call gradients on a model in training (Module::train)"
    );
}
