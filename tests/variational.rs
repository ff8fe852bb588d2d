//! Draws with their density, the reverse KL divergence and its gradients, and what is estimated from draws.

mod common;
mod fixtures;

use std::collections::HashMap;

use burn::module::{ModuleMapper, ModuleVisitor, ParamId};
use burn::optim::GradientsParams;
use burn_flows::backend;
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::testing::to_f64;
use burn_flows::training::{Adam, Schedule, Trainer, reversible};
use burn_flows::variational::{LogWeights, ReverseKl, repeat_contexts, weighted_draws};
use common::{flat, gradients, host};
use fixtures::*;

/// Relative error of gradients against each other in f64, by the largest.
const GRADIENTS: f64 = 1e-8;

/// The same against central differences with [`STEP`]: their error is its square, and rounding over it.
const DIFFERENCES: f64 = 1e-6;
const STEP: f64 = 1e-5;

const DRAWS: usize = 6;

/// A target that has no symmetry: independent wide normals, one after the other bent by the one before.
fn bent(x: Tensor<2>) -> Tensor<1> {
    let [_, features] = x.dims();
    let before = x.clone().narrow(1, 0, features - 1);
    let bent = x.clone().narrow(1, 1, features - 1) - before.sin() * 0.7;
    let first = (x.narrow(1, 0, 1) - 0.3).square() * -0.4;
    (first.sum_dim(1) - bent.square().sum_dim(1) * 0.9).squeeze_dim::<1>(1)
}

/// Two tests of every model of the list.
macro_rules! models {
    ($($name:ident, |$rng:ident, $device:ident| $stack:expr;)*) => {
        mod gradients_of {
            use super::*;
            $(
                #[test]
                fn $name() {
                    let device = host();
                    let make = |$rng: &mut StdRng, $device: &Device| Ok($stack);
                    check_gradients(to_f64(moved(&device, make)));
                }
            )*
        }

        mod density_of_draws {
            use super::*;
            $(
                #[test]
                fn $name() {
                    for (_, device) in backend::devices() {
                        let device = device();
                        let make = |$rng: &mut StdRng, $device: &Device| Ok($stack);
                        let model = moved(&device, make);
                        check_density_of_draws(&model, 1e-3);
                        if backend::is_host(&device) {
                            check_density_of_draws(&to_f64(model), 1e-9);
                        }
                    }
                }
            )*
        }
    };
}

models! {
    couplings_and_a_learned_prior, |rng, device| vector_stack(4, rng, device)?;
    two_levels, |rng, device| split_vector_stack(rng, device)?;
    two_levels_given_contexts, |_rng, device| given::<2, _>(conditional_stack(device)?, device)?;
    learned_priors_of_splits, |rng, device| FlowStack::<2, _, _, _>::new(vec![vector_step(4, rng, device)?, vector_step(2, rng, device)?], vec![DiagonalNormal::per_channel(2, device)], StudentT::new(9.0)?, &[4])?;
    maf_affine, |_rng, device| FlowStack::<2, _>::single(maf(4, None, ScaleMap::default(), device)?, StandardNormal::new(), &[4])?;
    iaf_affine, |_rng, device| FlowStack::<2, _>::single(vec![Inverse::new(maf(4, None, ScaleMap::default(), device)?), Inverse::new(maf(4, Some(vec![3, 1, 0, 2]), ScaleMap::default(), device)?)], StandardNormal::new(), &[4])?;
    splines, |_rng, device| FlowStack::<2, _>::single(spline_mlp(4, Mask::first_half(), RationalQuadraticConfig::new(5, 3.0), device)?, StandardNormal::new(), &[4])?;
    inverse_of_a_composition, |rng, device| FlowStack::<2, _>::single(Inverse::new(vec![vector_step(4, rng, device)?, vector_step(4, rng, device)?]), StandardNormal::new(), &[4])?;
    a_stack_in_a_stack, |rng, device| FlowStack::<2, _>::single((split_vector_stack(rng, device)?, Permutation::reverse(5, device)?), StandardNormal::new(), &[5])?;
    planar, |rng, device| FlowStack::<2, _>::single((Planar::new(3, PlanarActivation::Tanh, rng, device)?, Planar::new(3, PlanarActivation::LeakyRelu { slope: 0.3 }, rng, device)?), StandardNormal::new(), &[3])?;
    radial, |rng, device| FlowStack::<2, _>::single(vec![Radial::new(3, rng, device)?, Radial::new(3, rng, device)?], StandardNormal::new(), &[3])?;
    residual, |_rng, device| FlowStack::<2, _>::single(ResidualConfig::new(3, vec![5]).init(device)?, StandardNormal::new(), &[3])?;
}

fn moved<M: Module>(device: &Device, make: impl FnOnce(&mut StdRng, &Device) -> Result<M>) -> M {
    let model = seeded(1, device, || make(&mut rng(1), device)).expect("the model can be built");
    move_parameters(model, 5, 0.1)
}

/// The draws are those of `sample_with`, their density that of `log_prob`.
fn check_density_of_draws<F: Flow<2>, P: Prior<2>, S: SplitPrior<2>>(
    model: &FlowStack<2, F, P, S>,
    tolerance: f64,
) where
    FlowStack<2, F, P, S>: Module,
{
    let (x, log_q) = model.sample_and_log_prob_with(DRAWS, &mut rng(3));
    let close = |a: Vec<f64>, b: Vec<f64>| {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} is not {b}");
        }
    };
    close(flat(x.clone()), flat(model.sample_with(DRAWS, 1.0, &mut rng(3))));
    close(flat(log_q.clone()), flat(model.log_prob(x.clone())));

    // In training by other roads, with the same values.
    let (x_training, log_q_training) =
        model.clone().train().sample_and_log_prob_with(DRAWS, &mut rng(3));
    close(flat(x_training.inner()), flat(x));
    close(flat(log_q_training.inner()), flat(log_q));

    let (x, log_q) = model.sample_and_log_prob(2);
    assert_eq!((x.dims(), log_q.dims()), ([2, model.num_dims()], [2]));
}

/// Gradients of the reverse KL by autodiff, by central differences and without stored activations; and the
/// full gradient is that along the path and the score.
fn check_gradients<F: Flow<2>, P: Prior<2>, S: SplitPrior<2>>(model: FlowStack<2, F, P, S>)
where
    FlowStack<2, F, P, S>: Module,
{
    let training = model.clone().train();
    let full = ReverseKl::new(DRAWS);
    let stored = full.gradients(&training, bent, &mut rng(3)).unwrap();

    let along = dot(&training, &stored.grads);
    let at = |step: f64| {
        let loss = full.loss(&shifted(model.clone(), &training, step), bent, &mut rng(3));
        loss.unwrap().into_scalar::<f64>()
    };
    assert!((at(0.0) - stored.loss).abs() < 1e-10 * (1.0 + stored.loss.abs()));
    let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
    assert!(
        (along - difference).abs() < DIFFERENCES * (1.0 + difference.abs()),
        "{along} is not {difference}"
    );

    let reversible = full.with_reversible(true);
    let reversed = reversible.gradients(&training, bent, &mut rng(3)).unwrap();
    assert!((reversed.loss - stored.loss).abs() < 1e-10 * (1.0 + stored.loss.abs()));
    same(&training, &reversed.grads, &stored.grads);

    let path = full.with_path_gradient(true).gradients(&training, bent, &mut rng(3)).unwrap();
    let path_reversed = reversible.with_path_gradient(true);
    let path_reversed = path_reversed.gradients(&training, bent, &mut rng(3)).unwrap();
    assert!((path.loss - stored.loss).abs() < 1e-9 * (1.0 + stored.loss.abs()));
    same(&training, &path_reversed.grads, &path.grads);
    let (x, _) = model.sample_and_log_prob_with(DRAWS, &mut rng(3));
    let (_, score) = reversible::gradients(&training, x);
    // Of -ln q, whose mean is the loss there.
    let sum = dot(&training, &path.grads) - dot(&training, &score);
    assert!((sum - along).abs() < GRADIENTS * (1.0 + along.abs()), "{sum} is not {along}");
}

/// The gradients of every parameter are the same; one without any has zeros.
fn same<M: Module>(model: &M, got: &GradientsParams, expected: &GradientsParams) {
    let expected = gradients(model, expected);
    let got = gradients(model, got);
    let largest = expected.iter().flat_map(|(_, grad)| grad).fold(0.0f64, |a, b| a.max(b.abs()));
    assert!(largest > 1e-3, "no gradient is worth comparing");
    let all = got.iter().chain(&expected).map(|(path, _)| path);
    for path in all {
        let find = |of: &[(String, Vec<f64>)]| {
            of.iter().find(|(other, _)| other == path).map(|(_, grad)| grad.clone())
        };
        let (a, b) = (find(&got), find(&expected));
        let zeros = vec![0.0; a.as_ref().or(b.as_ref()).unwrap().len()];
        let (a, b) = (a.unwrap_or(zeros.clone()), b.unwrap_or(zeros));
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() <= GRADIENTS * largest, "{path}: {a} is not {b}");
        }
    }
}

/// Numbers of a fixed direction in parameter space, one tensor after the other.
fn direction<const N: usize>(count: u64, like: &Tensor<N>) -> Tensor<N> {
    inputs(like.dims(), 100 + count, &like.device(), like.dtype())
}

/// The parameters that are trained, numbered. A context is one parameter in several places.
fn trained<M: Module>(training: &M) -> HashMap<ParamId, u64> {
    struct Trained(HashMap<ParamId, u64>);
    impl ModuleVisitor for Trained {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            let count = self.0.len() as u64;
            if param.is_require_grad() {
                self.0.entry(param.id).or_insert(count);
            }
        }
    }
    let mut trained = Trained(HashMap::new());
    training.visit(&mut trained);
    trained.0
}

/// The parameters that `training` trains, moved along the direction.
fn shifted<M: Module>(model: M, training: &M, step: f64) -> M {
    struct Shift {
        trained: HashMap<ParamId, u64>,
        step: f64,
    }
    impl ModuleMapper for Shift {
        fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
            match self.trained.get(&param.id) {
                Some(&count) => param.map(|value| {
                    let direction = direction(count, &value);
                    value + direction * self.step
                }),
                None => param,
            }
        }
    }
    model.map(&mut Shift { trained: trained(training), step })
}

/// The slope along the direction.
fn dot<M: Module>(model: &M, grads: &GradientsParams) -> f64 {
    struct Dot<'a> {
        grads: &'a GradientsParams,
        trained: HashMap<ParamId, u64>,
        sum: f64,
    }
    impl ModuleVisitor for Dot<'_> {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if let Some(count) = self.trained.remove(&param.id)
                && let Some(grad) = self.grads.get::<N>(param.id)
            {
                let direction = direction(count, &grad);
                self.sum += (grad * direction).sum().into_scalar::<f64>();
            }
        }
    }
    let mut dot = Dot { grads, trained: trained(model), sum: 0.0 };
    model.visit(&mut dot);
    dot.sum
}

#[test]
fn no_draws_are_empty() {
    let device = backend::device();
    let model = moved(&device, split_vector_stack);
    let (x, log_q) = model.sample_and_log_prob(0);
    assert_eq!((x.dims(), log_q.dims()), ([0, 5], [0]));
    let expected = "ReverseKl: the number of draws: got 0, needs at least 1; the loss is the mean over the draws; 64 \
         to 1024 are usual";
    let text = ReverseKl::new(0).loss(&model, bent, &mut rng(0)).unwrap_err().to_string();
    assert_eq!(text, expected);
    let text = weighted_draws(&model, 0, bent, &mut rng(0)).unwrap_err().to_string();
    assert!(text.starts_with("LogWeights: ln w of the draws: got no draws"), "{text}");
}

/// Draws have no gradient by the degrees of freedom: trained ones are refused on either road, and with frozen
/// ones the others' gradients are right.
#[test]
fn trained_degrees_of_freedom_are_refused() {
    let device = host();
    let mut model = to_f64(moved(&device, |_, device| {
        let flow = DiagonalScaling::new(4, device)?;
        FlowStack::<2, _, _>::single(flow, DiagonalStudentT::new(4, device)?, &[4])
    }));
    assert!(ReverseKl::new(4).loss(&model, bent, &mut rng(1)).is_ok(), "no gradient was asked for");
    let training = model.clone().train();
    for reversible in [false, true] {
        let objective = ReverseKl::new(4).with_reversible(reversible);
        let tried = objective.gradients(&training, bent, &mut rng(1));
        let text = tried.map(|gradients| gradients.loss).unwrap_err().to_string();
        assert!(text.contains("trained ones, prior.raw_degrees"), "{text}");
    }
    model.prior.raw_degrees = model.prior.raw_degrees.freeze();
    check_gradients(model);
}

/// What the target gives outside of its domain ends in words, on either road.
#[test]
fn targets_that_are_not_finite_are_refused() {
    let model = moved(&host(), |rng, device| vector_stack(2, rng, device)).train();
    for (bad, name) in [(f64::NAN, "NaN"), (f64::NEG_INFINITY, "-inf")] {
        let log_p = |x: Tensor<2>| {
            let outside = x.clone().narrow(1, 0, 1).squeeze_dim::<1>(1).lower_elem(0.0);
            bent(x).mask_fill(outside, bad)
        };
        for reversible in [false, true] {
            let objective = ReverseKl::new(50).with_reversible(reversible);
            let text = objective.gradients(&model, log_p, &mut rng(0)).unwrap_err().to_string();
            let start = format!("variational: ln p of the draws: got {name} (at ");
            assert!(text.starts_with(&start), "{text}");
            assert!(text.ends_with("and its logarithms off 0"), "{text}");
        }
    }
    let nowhere = |x: Tensor<2>| bent(x) * f64::NAN;
    assert!(weighted_draws(&model, 5, nowhere, &mut rng(0)).is_err());
}

/// Layers that can become any normal of two features.
type Linear = (AdditiveCoupling<Mlp>, DiagonalScaling);

fn linear(device: &Device) -> Result<FlowStack<2, Linear, DiagonalNormal<2>>> {
    let shift = MlpConfig::new(1, vec![], 1).init(device)?;
    let flow = (Coupling::additive(shift, Mask::first_half()), DiagonalScaling::new(2, device)?);
    FlowStack::single(flow, DiagonalNormal::per_channel(2, device), &[2])
}

/// By how much the rate falls from the first step to the last.
fn rate(first: f64, steps: usize) -> impl Fn(usize) -> f64 {
    move |step| first * 0.01f64.powf(step as f64 / steps as f64)
}

/// A correlated normal is found exactly: no divergence is left, and every draw counts.
#[test]
fn a_normal_is_fitted_to_the_last_draw() {
    const STEPS: usize = 1200;
    let log_p = |x: Tensor<2>| {
        let [a, b] = [0, 1].map(|at| x.clone().narrow(1, at, 1).squeeze_dim::<1>(1));
        let a = (a - 1.5) / 0.5;
        let b = (b + 0.5 - a.clone() * 1.2) / 0.3;
        (a.square() + b.square()) * -0.5 + 2.0
    };
    // Of the constants the normal lacks ln(2 pi 0.5 0.3), and it has 2.
    let log_evidence = 2.0 + (std::f64::consts::TAU * 0.5 * 0.3).ln();
    let device = host();
    // The slopes fall by a factor of thousands, which their average of 1000 steps would outlast.
    let adam = Adam::new().with_betas(0.9, 0.99);
    for reversible in [false, true] {
        let objective = ReverseKl::new(64).with_path_gradient(true).with_reversible(reversible);
        let model = seeded(1, &device, || linear(&device)).unwrap();
        let mut trainer = Trainer::new(model, rate(0.1, STEPS)).with_optimizer(adam);
        let mut rng = rng(2);
        for _ in 0..STEPS {
            let gradients = objective.gradients(&trainer.model().train(), log_p, &mut rng).unwrap();
            trainer.apply(gradients).unwrap();
        }
        let (_, weights) = weighted_draws(&trainer.model(), 2000, log_p, &mut rng).unwrap();
        let divergence = log_evidence - weights.elbo();
        assert!(divergence.abs() < 1e-4, "{divergence}");
        assert!((weights.log_evidence() - log_evidence).abs() < 1e-4, "{weights:?}");
        assert!(weights.effective_sample_size() > 1999.0);
        assert!(weights.log_evidence_error() < 1e-3);
    }
}

/// Linear regression with known noise: the evidence is a normal density of the observations.
#[test]
fn the_evidence_of_a_conjugate_model_is_found() {
    const STEPS: usize = 150;
    const NOISE: f64 = 0.5;
    let inputs = [-1.0, -0.3, 0.2, 0.9, 1.4];
    let outputs = [-0.8, 0.1, 0.4, 1.2, 1.1];
    // y ~ N(0, NOISE^2 1 + X X^T), X = [1, input], weights and offset being standard normals.
    let n = inputs.len();
    let covariance: Vec<f64> = (0..n * n)
        .map(|at| {
            let (i, j) = (at / n, at % n);
            1.0 + inputs[i] * inputs[j] + if i == j { NOISE * NOISE } else { 0.0 }
        })
        .collect();
    let lu = burn_flows::linalg::Lu::new(&covariance, n);
    let precision = lu.inverse().unwrap();
    let square: f64 = (0..n * n).map(|at| outputs[at / n] * precision[at] * outputs[at % n]).sum();
    let tau = std::f64::consts::TAU;
    let log_evidence = -0.5 * (square + lu.slogdet().1 + n as f64 * tau.ln());

    let log_p = |w: Tensor<2>| {
        let [offset, slope] = [0, 1].map(|at| w.clone().narrow(1, at, 1).squeeze_dim::<1>(1));
        let mut sum = (offset.clone().square() + slope.clone().square()) * -0.5 - tau.ln();
        for (input, output) in inputs.into_iter().zip(outputs) {
            let off = (offset.clone() + slope.clone() * input - output) / NOISE;
            sum = sum + off.square() * -0.5 - (NOISE * tau.sqrt()).ln();
        }
        sum
    };
    let device = host();
    let model = seeded(1, &device, || linear(&device)).unwrap();
    let mut trainer = Trainer::new(model, Schedule::constant(0.03));
    let mut rng = rng(3);
    // Not to the end: the weights are to have something to correct.
    for _ in 0..STEPS {
        let objective = ReverseKl::new(32);
        let gradients = objective.gradients(&trainer.model().train(), log_p, &mut rng).unwrap();
        trainer.apply(gradients).unwrap();
    }
    let (x, weights) = weighted_draws(&trainer.model(), 20_000, log_p, &mut rng).unwrap();
    let (estimate, error) = (weights.log_evidence(), weights.log_evidence_error());
    assert!(error > 1e-5 && error < 0.05, "{error}");
    assert!((estimate - log_evidence).abs() < 4.0 * error, "{estimate} {error} {log_evidence}");
    assert!(weights.elbo() < log_evidence);

    // The posterior mean of the slope, (X^T X + NOISE^2)^-1 X^T y.
    let sum = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>();
    let (s, ss) = (sum(&|i| inputs[i]), sum(&|i| inputs[i] * inputs[i]) + NOISE * NOISE);
    let (y, sy) = (sum(&|i| outputs[i]), sum(&|i| inputs[i] * outputs[i]));
    let count = n as f64 + NOISE * NOISE;
    let slope = (count * sy - s * y) / (count * ss - s * s);
    let slopes = flat(x.narrow(1, 1, 1));
    let mean = weights.mean(&slopes).unwrap();
    assert!((mean - slope).abs() < 0.02, "{mean} is not {slope}");
}

/// One flow for the posteriors of many observations: `x ~ N(0, 1)`, `y ~ N(x, NOISE)`.
#[test]
fn one_flow_fits_the_posterior_of_every_observation() {
    const STEPS: usize = 600;
    const NOISE: f64 = 0.7;
    let tau = std::f64::consts::TAU;
    let log_p = |observed: Tensor<2>| {
        move |x: Tensor<2>| {
            let off = (observed.clone() - x.clone()) / NOISE;
            let log_p = (x.square() + off.square()) * -0.5 - tau.ln() - NOISE.ln();
            log_p.squeeze_dim::<1>(1)
        }
    };
    let device = host();
    let net = seeded(1, &device, || MlpConfig::new(1, vec![], 2).init(&device)).unwrap();
    let flow = DiagonalScaling::new(1, &device).unwrap();
    let prior = ContextNormal::new(net, 1, &device);
    let model = FlowStack::<2, _, _>::single(flow, prior, &[1]).unwrap();
    let mut trainer = Trainer::new(model, rate(0.1, STEPS));
    let mut random = rng(4);
    for step in 0..STEPS {
        let observed = inputs([8, 1], step as u64, &device, DType::F32) * 1.2;
        let observed = repeat_contexts(observed, 4);
        let model = trainer.model().train().given(&observed).unwrap();
        let objective = ReverseKl::new(32).with_path_gradient(true).with_reversible(step % 2 == 0);
        let gradients = objective.gradients(&model, log_p(observed), &mut random).unwrap();
        trainer.apply(gradients).unwrap();
    }
    let observed = [-2.0, 0.5, 3.0];
    let contexts = Tensor::<2>::from_data(TensorData::new(observed.to_vec(), [3, 1]), &device);
    let contexts = repeat_contexts(contexts.cast(DType::F32), 500);
    let model = trainer.model().given(&contexts).unwrap();
    let (x, weights) = weighted_draws(&model, 1500, log_p(contexts), &mut random).unwrap();
    let x = flat(x);
    for (index, (weights, y)) in
        weights.by_context(3).unwrap().into_iter().zip(observed).enumerate()
    {
        let variance = 1.0 + NOISE * NOISE;
        let log_evidence = -0.5 * (y * y / variance + (tau * variance).ln());
        let got = weights.log_evidence();
        assert!((got - log_evidence).abs() < 1e-3, "{y}: {got} is not {log_evidence}");
        assert!(weights.effective_sample_size() > 495.0, "{y}");
        let mean = weights.mean(&x[index * 500..(index + 1) * 500]).unwrap();
        assert!((mean - y / variance).abs() < 0.1, "{y}: {mean}");
    }
}

/// Weights far outside of f32 and f64 exponents have estimates.
#[test]
fn weights_do_not_overflow() {
    for shift in [-1e6, 0.0, 3e4] {
        let device = host();
        let log_w = Tensor::<1>::from_data([0.0f32, 1.0, 2.0], &device) + shift;
        let weights = LogWeights::from_tensor(log_w).unwrap();
        let e = std::f64::consts::E;
        let expected = ((1.0 + e + e * e) / 3.0f64).ln() + shift;
        assert!((weights.log_evidence() - expected).abs() < 1e-3 * (1.0 + shift.abs() * 1e-3));
        assert!((weights.normalized().iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
}
