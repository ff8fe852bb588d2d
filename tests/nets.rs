//! Nets with chance or with a state of their own, and layers that share parameters.

mod common;
mod fixtures;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::{ModuleDisplay, Param, ParamGroup};
use burn::nn::{
    BatchNorm as NnBatchNorm, BatchNormConfig, Dropout, DropoutConfig, GaussianNoise,
    GaussianNoiseConfig, Linear, LinearConfig,
};
use burn::optim::GradientsParams;
use burn::tensor::{Distribution, activation};
use burn_flows::FlowError;
use burn_flows::conditioner::Conditioner;
use burn_flows::testing::to_f64;
use burn_flows::training::{Schedule, Trainer, reversible};
use common::{flat, gradients, host};
use fixtures::*;

/// What a net has between its layers.
trait Middle: Module + ModuleDisplay {
    fn apply(&self, h: Tensor<2>) -> Tensor<2>;
}

#[derive(Module, Debug)]
struct Net<M> {
    first: Linear,
    middle: M,
    last: Linear,
}

impl<M: Middle> Conditioner<2> for Net<M>
where
    Net<M>: Module,
{
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let h = self.middle.apply(activation::relu(self.first.forward(x)));
        self.last.forward(h)
    }
}

impl Middle for Dropout {
    fn apply(&self, h: Tensor<2>) -> Tensor<2> {
        self.forward(h)
    }
}

impl Middle for GaussianNoise {
    fn apply(&self, h: Tensor<2>) -> Tensor<2> {
        self.forward(h)
    }
}

impl Middle for NnBatchNorm {
    fn apply(&self, h: Tensor<2>) -> Tensor<2> {
        self.forward(h)
    }
}

/// A user's own: other noise at every call, or in training alone.
#[derive(Module, Debug)]
struct OwnNoise {
    #[module(skip)]
    in_training_alone: bool,
}

impl Middle for OwnNoise {
    fn apply(&self, h: Tensor<2>) -> Tensor<2> {
        if self.in_training_alone && !h.device().is_autodiff() {
            return h;
        }
        let noise = h.random_like(Distribution::Normal(0.0, 0.1));
        h + noise
    }
}

/// Counts its calls, and computes by the count.
#[derive(Module, Debug)]
struct Counter {
    #[module(skip)]
    calls: Arc<AtomicUsize>,
}

impl Middle for Counter {
    fn apply(&self, h: Tensor<2>) -> Tensor<2> {
        h * (1.0 + 0.1 * self.calls.fetch_add(1, Ordering::Relaxed) as f64)
    }
}

/// Another function in training than at inference, with no chance in it.
#[derive(Module, Debug)]
struct Doubled {}

impl Middle for Doubled {
    fn apply(&self, h: Tensor<2>) -> Tensor<2> {
        if h.device().is_autodiff() { h * 2.0 } else { h }
    }
}

type Stack<M> = FlowStack<2, Vec<(ActNorm, AffineCoupling<Net<M>>)>>;

/// Three couplings, of which the second alone has a middle that does anything.
fn stack<M: Middle>(middle: M, zero: bool, device: &Device) -> Stack<M>
where
    Net<M>: Module,
    Stack<M>: Module,
{
    build(1, device, |_, device| {
        let step = |index| {
            let mut last = LinearConfig::new(16, 4).init(device);
            if zero {
                last.weight = Param::from_tensor(Tensor::zeros([16, 4], device));
            }
            let first = LinearConfig::new(2, 16).init(device);
            let net = Net { first, middle: middle.clone(), last };
            let mask = Mask::ChannelHalves(Parity::of(index));
            let coupling = Coupling::affine(net, mask, ScaleMap::default(), 4, device)?;
            Ok((ActNorm::new(4, device)?, coupling))
        };
        let steps = (0..2).map(step).collect::<Result<Vec<_>>>()?;
        FlowStack::single(steps, StandardNormal::new(), &[4])
    })
}

fn batch(device: &Device) -> Tensor<2> {
    inputs([8, 4], 2, device, DType::F32)
}

/// The message that the first step is refused with.
fn refusal<M: Middle>(middle: M, zero: bool) -> String
where
    Net<M>: Module,
    Stack<M>: Module,
{
    let device = host();
    let mut trainer = Trainer::new(stack(middle, zero, &device), Schedule::constant(1e-3));
    let error = trainer.step(batch(&device)).expect_err("the net is not to be trained");
    assert!(matches!(error, FlowError::NotRepeatable { .. }), "{error}");
    assert_eq!(trainer.num_steps(), 0);
    error.to_string()
}

#[test]
fn layers_of_burn_that_act_otherwise_in_training_are_refused_by_path_and_type() {
    for zero in [false, true] {
        let first = "levels.0.0.1.conditioner.middle";
        let message = refusal(DropoutConfig::new(0.5).init(), zero);
        assert!(message.starts_with(&format!("{first} (Dropout) ")), "{message}");
        assert!(message.contains("freeze"), "{message}");
        let message = refusal(GaussianNoiseConfig::new(0.1).init(), zero);
        assert!(message.starts_with(&format!("{first} (GaussianNoise) ")), "{message}");
        let message = refusal(BatchNormConfig::new(16).init(&host()), zero);
        assert!(message.starts_with(&format!("{first} (BatchNorm) ")), "{message}");
    }
}

#[test]
fn nets_of_ones_own_with_chance_or_state_are_refused_by_path_and_type() {
    for zero in [false, true] {
        for message in [
            refusal(OwnNoise { in_training_alone: false }, zero),
            refusal(OwnNoise { in_training_alone: true }, zero),
            refusal(Counter { calls: Arc::default() }, zero),
        ] {
            // Both couplings have one; the last one is met first on the way back.
            assert!(message.starts_with("levels.0.1.1.conditioner (Net) "), "{message}");
        }
    }
    let message = refusal(Doubled {}, false);
    assert!(message.starts_with("levels.0 or the prior behind it gives other values"), "{message}");
}

#[test]
fn the_net_of_a_split_prior_is_refused() {
    let device = host();
    let stack = build(1, &device, |rng, device| {
        let first = LinearConfig::new(3, 8).init(device);
        let last = LinearConfig::new(8, 4).init(device);
        let net = Net { first, middle: OwnNoise { in_training_alone: true }, last };
        FlowStack::new(
            vec![fixtures::vector_step(5, rng, device)?, fixtures::vector_step(3, rng, device)?],
            vec![ConditionalNormal::new(net)],
            StandardNormal::new(),
            &[5],
        )
    });
    let mut trainer: Trainer<FlowStack<2, VectorStep, StandardNormal, _>> =
        Trainer::new(stack, Schedule::constant(1e-3));
    let message = trainer.step(inputs([4, 5], 1, &device, DType::F32)).unwrap_err().to_string();
    assert!(message.starts_with("split_priors.0.conditioner (Net) "), "{message}");
}

#[test]
fn the_net_of_an_embedding_is_refused_by_its_path() {
    let device = host();
    let (first, last) = (LinearConfig::new(5, 8), LinearConfig::new(8, 3));
    let (first, last) = (first.init(&device), last.init(&device));
    let net = Net { first, middle: DropoutConfig::new(0.5).init(), last };
    let stack = build(1, &device, |_, device| conditional_stack(device));
    let mut trainer = Trainer::new(Embedded::new(net, stack), Schedule::constant(1e-3));
    let raw = inputs([8, 5], 3, &device, DType::F32);
    let message = trainer.step((batch(&device), raw)).unwrap_err().to_string();
    assert!(message.starts_with("embedding.middle (Dropout) "), "{message}");
}

#[test]
fn gradients_without_a_trainer_refuse_them_too() {
    let device = host();
    let model = stack(DropoutConfig::new(0.5).init(), false, &device).train();
    let message = panic_message(|| reversible::gradients(&model, batch(&device)));
    assert!(message.starts_with("levels.0.0.1.conditioner.middle (Dropout) "), "{message}");
    let model = stack(Counter { calls: Arc::default() }, false, &device).train();
    let message = reversible::check(&model, batch(&device)).unwrap_err().to_string();
    assert!(message.starts_with("levels.0.1.1.conditioner (Net) "), "{message}");
}

/// Frozen, a layer of Burn is the same in training as at inference.
#[test]
fn frozen_they_train() {
    fn trains<M: Middle>(middle: M)
    where
        Net<M>: Module,
        Stack<M>: Module,
    {
        let device = host();
        let stack = stack(middle, false, &device);
        let stack = stack.freeze_group(ParamGroup::from_any_predicates(vec!["middle"]));
        let model = stack.clone().train();
        let (_, grads) = reversible::gradients(&model, batch(&device));
        let own = model.log_prob(batch(&device)).mean().neg().backward();
        let own = gradients(&model, &GradientsParams::from_grads(own, &model));
        for ((name, got), (_, expected)) in gradients(&model, &grads).iter().zip(&own) {
            for (got, expected) in got.iter().zip(expected) {
                assert!((got - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{name}");
            }
        }
        Trainer::new(stack, Schedule::constant(1e-3)).step(batch(&device)).unwrap();
    }
    trains(DropoutConfig::new(0.5).init());
    trains(GaussianNoiseConfig::new(0.1).init());
    trains(BatchNormConfig::new(16).init(&host()));
}

/// With one forward pass, which autodiff goes back through, dropout is what it is elsewhere.
#[test]
fn a_loop_of_ones_own_may_have_dropout() {
    let device = host();
    let stack = to_f64(stack(DropoutConfig::new(0.5).init(), false, &device));
    let x = inputs([8, 4], 2, &device, DType::F64);
    let loss = |model: &Stack<Dropout>| {
        device.seed(3);
        model.log_prob(x.clone()).mean().neg()
    };
    let model = stack.clone().train();
    let grads = GradientsParams::from_grads(loss(&model).backward(), &model);
    let bias = model.levels[0][0].1.conditioner.last.bias.as_ref().unwrap();
    let gradient = flat(grads.get::<1>(bias.id).unwrap());
    for (at, gradient) in gradient.iter().enumerate() {
        let value = |by: f64| {
            let mut model = stack.clone();
            let bias = &mut model.levels[0][0].1.conditioner.last.bias;
            let mut values = flat(bias.as_ref().unwrap().val());
            values[at] += by;
            let values = Tensor::from_data(values.as_slice(), (&device, DType::F64));
            *bias = bias.take().map(|bias| bias.map(|_| values));
            loss(&model.train()).inner().into_scalar::<f64>()
        };
        let difference = (value(1e-5) - value(-1e-5)) / 2e-5;
        assert!((gradient - difference).abs() < 1e-7, "{gradient} is not {difference}");
    }
}

/// `z = x exp(2 s)` by one scaling in two places: with the mean `m` of `z^2`, the gradient of the loss by
/// `s` is `2 m - 2`.
#[test]
fn gradients_of_a_shared_layer_add_up() {
    let device = host();
    let mut scaling = DiagonalScaling::new(1, &device).unwrap();
    scaling.log_scale = Param::from_data([0.3], &device);
    let pair = (scaling.clone(), scaling);
    let stack: FlowStack<2, (DiagonalScaling, DiagonalScaling)> =
        FlowStack::single(pair, StandardNormal::new(), &[1]).unwrap();
    let x = Tensor::<2>::from_data([[1.0], [2.0], [-0.5]], &device);
    let mean_square = (1.0 + 4.0 + 0.25) / 3.0 * (4.0 * 0.3f64).exp();
    let expected = 2.0 * mean_square - 2.0;

    let model = stack.clone().train();
    let (_, grads) = reversible::gradients(&model, x.clone());
    let id = model.levels[0].0.log_scale.id;
    let got = grads.get::<1>(id).unwrap().into_scalar::<f64>();
    assert!((got / expected - 1.0).abs() < 1e-5, "{got} is not {expected}");

    let mut trainer = Trainer::new(stack.clone(), Schedule::constant(1e-2));
    let step = trainer.step(x.clone()).unwrap();
    assert!((step.gradient_norm / expected - 1.0).abs() < 1e-5, "{}", step.gradient_norm);
    // The first step of Adam is the learning rate against the sign.
    let values = |trainer: &Trainer<FlowStack<2, (DiagonalScaling, DiagonalScaling)>>| {
        let (first, second) = trainer.model().levels.swap_remove(0);
        [first, second].map(|scaling| flat(scaling.log_scale.val())[0])
    };
    let [first, second] = values(&trainer);
    assert_eq!(first.to_bits(), second.to_bits());
    assert!((first - 0.29).abs() < 1e-5, "{first}");

    // Clipped once, not once a place.
    let mut clipped = Trainer::new(stack, Schedule::constant(1e-2)).with_max_gradient_norm(1e-3);
    clipped.step(x).unwrap();
    assert!((values(&clipped)[0] - 0.29).abs() < 1e-4);
}

type Shared = FlowStack<2, Vec<(ActNorm, BatchNorm, AffineCoupling<Mlp>)>>;

fn shared(device: &Device) -> Shared {
    build(1, device, |_, device| {
        let coupling = affine_mlp(4, Mask::first_half(), ScaleMap::Tanh, device)?;
        let step = (ActNorm::new(4, device)?, BatchNorm::new(4, device)?.affine(), coupling);
        FlowStack::single(vec![step.clone(), step.clone(), step], StandardNormal::new(), &[4])
    })
}

fn bits<M: Module>(module: &M) -> Vec<u8> {
    burn_flows::record::to_bytes(module).unwrap()
}

#[test]
fn shared_layers_are_one_after_any_number_of_steps_and_after_resuming() {
    let device = host();
    let x = |seed| inputs::<2>([16, 4], seed, &device, DType::F32);
    let trainer = || Trainer::new(shared(&device), Schedule::constant(1e-2));
    let assert_shared = |trainer: &Trainer<Shared>| {
        let levels = &trainer.model().levels[0];
        assert_eq!(bits(&levels[0]), bits(&levels[1]));
        assert_eq!(bits(&levels[0]), bits(&levels[2]));
    };
    let mut whole = trainer();
    let start = bits(&whole.model());
    for seed in 0..10 {
        whole.step(x(seed)).unwrap();
        assert_shared(&whole);
    }
    assert_ne!(bits(&whole.model()), start);

    let folder = tempfile::tempdir().unwrap();
    let mut first = trainer();
    for seed in 0..6 {
        first.step(x(seed)).unwrap();
    }
    first.save(folder.path(), "").unwrap();
    let (mut second, _) = trainer().resume(folder.path()).unwrap();
    for seed in 6..10 {
        second.step(x(seed)).unwrap();
        assert_shared(&second);
    }
    assert_eq!(bits(&second.model()), bits(&whole.model()));
}

/// Clones that were changed, or of which one is frozen, are parameters of their own.
#[test]
fn clones_that_differ_are_not_shared() {
    let device = host();
    let x: Tensor<2> = inputs([16, 4], 1, &device, DType::F32);
    let mut changed = shared(&device);
    let scale = Tensor::from_data([0.1, 0.2, 0.3, 0.4], &device);
    let norm = &mut changed.levels[0][1].0;
    norm.log_scale = norm.log_scale.clone().map(|_| scale);
    let group = ParamGroup::from_predicate("levels.0.2.2.conditioner");
    let frozen = changed.freeze_group(group);
    let before = bits(&frozen.levels[0][2].2.conditioner);
    let mut trainer = Trainer::new(frozen, Schedule::constant(1e-2));
    trainer.step(x).unwrap();
    let [first, second, third] = &trainer.model().levels[0][..] else { panic!("three steps") };
    let scale = |step: &(ActNorm, BatchNorm, AffineCoupling<Mlp>)| flat(step.0.log_scale.val());
    assert_ne!(scale(first), scale(second));
    assert_eq!(scale(first), scale(third));
    assert_eq!(bits(&third.2.conditioner), before);
    assert_ne!(bits(&first.2.conditioner), before);
    assert_eq!(bits(&first.2.conditioner), bits(&second.2.conditioner));
}
