//! Fitting a density that is known up to a constant, and estimates from its draws: variational inference.
//!
//! A posterior `p(x) = exp(ln p~(x)) / Z` is given by a function for `ln p~`, a log-likelihood and a
//! log-prior, say; its constant `Z`, the evidence, is not known, nor are draws from it. A flow `q` is fitted
//! by the reverse Kullback-Leibler divergence, for which its own draws are enough:
//!
//! `KL(q || p) - ln Z = E_q[ln q(x) - ln p~(x)] = -ELBO`
//!
//! [`ReverseKl`] gives this loss and its gradients, [`LogWeights`] what the draws are worth: the effective
//! sample size, estimates of `ln Z` and of means under `p`. Everything is in nats.
//!
//! | to | call |
//! |---|---|
//! | draw with `ln q` | [`FlowStack::sample_and_log_prob`](crate::FlowStack::sample_and_log_prob) |
//! | train | [`ReverseKl::gradients`], then [`Trainer::apply`](crate::training::Trainer::apply); or [`ReverseKl::loss`] in a loop of your own |
//! | judge the fit | [`weighted_draws`], [`LogWeights`] |
//! | fit one flow to many posteriors | [`Given::given`](crate::context::Given::given) with [`repeat_contexts`] |
//!
//! Which flows draw in one pass: couplings, [`Inverse`](crate::Inverse) of an autoregressive layer (IAF),
//! [`residual::Planar`](crate::residual::Planar) and [`residual::Radial`](crate::residual::Radial). Where
//! `ln p~` is on a bounded domain, a flow that ends in
//! [`Unconstrain`](crate::preprocess::Unconstrain) draws only there.
//!
//! There are no data here: batch normalization has nothing to take moments of, and ActNorm stays the
//! learned scaling that it is before its first batch.
//!
//! Source: Rezende and Mohamed, *Variational Inference with Normalizing Flows*,
//! [arXiv:1505.05770](https://arxiv.org/abs/1505.05770).
//!
//! ```
//! use burn::module::Module;
//! use burn::tensor::Tensor;
//! use burn_flows::training::{Schedule, Trainer};
//! use burn_flows::variational::{ReverseKl, weighted_draws};
//! use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
//! use rand::{SeedableRng, rngs::StdRng};
//!
//! let device = burn_flows::backend::device();
//! let flow = DiagonalScaling::new(1, &device)?;
//! let model = FlowStack::<2, _>::single(flow, StandardNormal::new(), &[1])?;
//! // exp(-x^2 / 8): a normal of deviation 2, without its constant, which is the evidence.
//! let log_p = |x: Tensor<2>| x.square().sum_dim(1).squeeze_dim::<1>(1) / -8.0;
//!
//! let mut rng = StdRng::seed_from_u64(0);
//! let objective = ReverseKl::new(64).with_path_gradient(true);
//! let mut trainer = Trainer::new(model, Schedule::constant(0.05));
//! for _ in 0..150 {
//!     let gradients = objective.gradients(&trainer.model().train(), log_p, &mut rng)?;
//!     trainer.apply(gradients)?;
//! }
//! let (_, weights) = weighted_draws(&trainer.model(), 1000, log_p, &mut rng)?;
//! let log_evidence = (8.0 * std::f64::consts::PI).ln() / 2.0;
//! assert!((weights.log_evidence() - log_evidence).abs() < 1e-2);
//! assert!(weights.effective_sample_size() > 990.0);
//! # Ok::<(), burn_flows::FlowError>(())
//! ```

mod log_weights;
pub(crate) mod replay;
mod reverse_kl;

pub use log_weights::LogWeights;
pub use reverse_kl::{ReverseKl, repeat_contexts, weighted_draws};
