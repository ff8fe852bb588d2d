//! Layers that start from data are initialized by the trainer, once.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor};
use burn_flows::linear::DiagonalScaling;
use burn_flows::models::{Glow, GlowConfig};
use burn_flows::norm::{ActNorm, BatchNorm};
use burn_flows::prior::{Prior, SplitPrior, StandardNormal};
use burn_flows::testing::{inputs, to_f64};
use burn_flows::training::{Schedule, Trainer};
use burn_flows::{Flow, FlowError, FlowStack, Pass, backend, record};
use rand::{SeedableRng, rngs::StdRng};

use super::common::{flat, host, hosts};
use super::{bytes, points, readme, small};

/// Numbers of everyday size: N(5000, 1000^2) x N(-300, 50^2).
fn salaries(count: usize, seed: u64, device: &Device) -> Tensor<2> {
    let scale = Tensor::<2>::from_data([[1000.0f32, 50.0]], device);
    let shift = Tensor::<2>::from_data([[5000.0f32, -300.0]], device);
    points(count, seed, device) * scale + shift
}

/// The program of the README on data that nobody standardized reaches their entropy,
/// ln(1000) + ln(50) + ln(2 pi e) = 13.66 nats, 13.64 on these points.
#[test]
fn the_program_of_the_readme_reaches_the_entropy() {
    let device = host();
    let mut trainer = Trainer::new(readme(&device), Schedule::constant(1e-2));
    for step in 0..300 {
        trainer.step(salaries(256, step, &device)).unwrap();
    }
    let held_out = salaries(256, 1_000_000, &device);
    let loss = -trainer.model().log_prob(held_out).mean().into_scalar::<f64>();
    assert!((loss - 13.64).abs() < 0.05, "{loss} nats");
}

/// How many layers of a model are marked as initialized, and how many are not.
fn marks<M: Module>(model: &M) -> (usize, usize) {
    struct Count {
        path: Vec<String>,
        marked: usize,
        unmarked: usize,
    }
    impl ModuleVisitor for Count {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if self.path.last().is_some_and(|name| name == "initialized") {
                match flat(param.val()) == [1.0] {
                    true => self.marked += 1,
                    false => self.unmarked += 1,
                }
            }
        }
    }
    let mut count = Count { path: Vec::new(), marked: 0, unmarked: 0 };
    model.visit(&mut count);
    (count.marked, count.unmarked)
}

/// Asserts that a trainer's first step is that of a model initialized by hand from the same batch.
fn starts_as_by_hand<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>>(
    name: &str,
    stack: FlowStack<D, F, P, S>,
    x: Tensor<D>,
    micro_batch: usize,
) where
    FlowStack<D, F, P, S>: Module,
{
    let train = |stack: FlowStack<D, F, P, S>| {
        let mut trainer =
            Trainer::new(stack, Schedule::constant(1e-3)).with_micro_batch(micro_batch);
        let step = trainer.step(x.clone()).unwrap();
        (step, trainer.model())
    };
    let (by_hand, expected) = train(stack.clone().initialize(x.clone()).0);
    assert!(marks(&stack).1 > 0, "{name}: there is nothing to initialize");
    let (step, model) = train(stack);
    assert_eq!(marks(&model).1, 0, "{name}: layers that are not initialized");
    assert_eq!(step, by_hand, "{name}");
    assert_eq!(bytes(&model), bytes(&expected), "{name}");
}

fn glow(device: &Device) -> Glow {
    let config = GlowConfig::new([2, 4, 4], 2, 2, 8);
    config.init(&mut StdRng::seed_from_u64(0), device).unwrap()
}

#[test]
fn the_first_batch_initializes_on_every_device() {
    for (name, device) in backend::devices() {
        let device = device();
        starts_as_by_hand(name, small(&device), salaries(50, 1, &device), usize::MAX);
        device.sync().unwrap();
    }
}

#[test]
fn the_first_batch_initializes_every_layer_in_f32_and_f64_and_whole_where_gradients_come_in_parts()
{
    for device in hosts() {
        let x = inputs([7, 2, 4, 4], 1, &device, DType::F64) * 3.0 + 1.0;
        starts_as_by_hand("f32", readme(&device), salaries(50, 1, &device), usize::MAX);
        let images = inputs([5, 2, 4, 4], 1, &device, DType::F32) * 3.0 + 1.0;
        starts_as_by_hand("f32", glow(&device), images, usize::MAX);
        starts_as_by_hand("f64", to_f64(glow(&device)), x.clone(), usize::MAX);
        starts_as_by_hand("in parts", to_f64(glow(&device)), x, 3);
        starts_as_by_hand("in parts", readme(&device), salaries(50, 1, &device), 8);
    }
}

#[test]
fn a_batch_for_the_initialization_takes_the_place_of_the_first_one() {
    let device = host();
    let trainer = Trainer::new(readme(&device), Schedule::constant(1e-2));
    let large = salaries(1000, 2, &device);
    let mut trainer = trainer.with_initialization(large.clone()).unwrap();
    let (expected, _) = readme(&device).initialize(large);
    assert_eq!(bytes(&trainer.model()), bytes(&expected));
    trainer.gradients(salaries(16, 3, &device)).unwrap();
    assert_eq!(bytes(&trainer.model()), bytes(&expected), "initialized again");

    let bad = salaries(16, 3, &device) * f32::NAN;
    let error = Trainer::new(readme(&device), Schedule::constant(1e-2)).with_initialization(bad);
    assert!(matches!(error.err(), Some(FlowError::Invalid { .. })));
}

#[test]
fn a_model_that_was_trained_is_not_initialized_again() {
    let device = host();
    let folder = tempfile::tempdir().unwrap();
    let other = || points(64, 5, &device) * 1e-3;
    let mut whole = Trainer::new(readme(&device), Schedule::constant(1e-2));
    whole.step(salaries(64, 4, &device)).unwrap();
    let path = folder.path().join("model.safetensors");
    record::save(&whole.model(), &path).unwrap();
    whole.save(folder.path().join("checkpoint"), "").unwrap();
    let saved = bytes(&whole.model());

    let loaded = record::load(readme(&device), &path).unwrap();
    let mut trainer = Trainer::new(loaded, Schedule::constant(1e-2));
    trainer.gradients(other()).unwrap();
    assert_eq!(bytes(&trainer.model()), saved, "loaded");

    let fresh = Trainer::new(readme(&device), Schedule::constant(1e-2));
    let (mut resumed, _) = fresh.resume(folder.path().join("checkpoint")).unwrap();
    resumed.gradients(other()).unwrap();
    assert_eq!(bytes(&resumed.model()), saved, "resumed");

    // A training that was begun without is not cut in two by an initialization.
    let trainer = || Trainer::new(readme(&device), Schedule::constant(1e-2));
    let mut without = trainer().without_initialization();
    without.step(points(64, 5, &device)).unwrap();
    without.save(folder.path().join("without"), "").unwrap();
    let (mut resumed, _) = trainer().resume(folder.path().join("without")).unwrap();
    resumed.gradients(points(64, 5, &device)).unwrap();
    assert_eq!(bytes(&resumed.model()), bytes(&without.model()), "resumed");
}

#[test]
fn only_what_is_missing_is_initialized() {
    let device = host();
    let norm = || ActNorm::new(2, &device).unwrap();
    let (first, _) = Flow::<2>::initialize(norm(), points(32, 1, &device) * 3.0);
    let flow = (first, DiagonalScaling::new(2, &device).unwrap(), norm());
    type Stack = FlowStack<2, (ActNorm, DiagonalScaling, ActNorm)>;
    let stack: Stack = FlowStack::single(flow, StandardNormal::new(), &[2]).unwrap();
    let mut trainer = Trainer::new(stack.clone(), Schedule::constant(1e-2));
    trainer.gradients(salaries(64, 2, &device)).unwrap();
    let model = trainer.model();
    assert_eq!(bytes(&model.levels[0].0), bytes(&stack.levels[0].0));
    assert_eq!(marks(&model), (2, 0));
}

/// Batch normalization's moments take in the batch after the initialization, which they are part of.
#[test]
fn running_statistics_observe_what_was_initialized() {
    let device = host();
    let norm = || ActNorm::new(2, &device).unwrap();
    let flow = (norm(), BatchNorm::new(2, &device).unwrap(), norm());
    type Stack = FlowStack<2, (ActNorm, BatchNorm, ActNorm)>;
    let stack: Stack = FlowStack::single(flow, StandardNormal::new(), &[2]).unwrap();
    let x = salaries(64, 2, &device);
    let mut trainer = Trainer::new(stack.clone(), Schedule::constant(1e-2));
    trainer.gradients(x.clone()).unwrap();
    let (expected, _) = stack.initialize(x.clone()).0.data_pass(x.clone(), Pass::Observe);
    assert_eq!(bytes(&trainer.model()), bytes(&expected));
    // The moments behind an initialized ActNorm, not those of the data.
    let mean = trainer.model().levels[0].1.moments.mean.val();
    assert!(mean.abs().max().into_scalar::<f64>() < 1e-3);

    let error = trainer.step(x * f32::NAN).unwrap_err();
    assert!(matches!(error, FlowError::NotFinite { step: 1, .. }), "{error}");
}

#[test]
fn a_first_batch_that_is_not_finite_initializes_nothing() {
    let device = host();
    let fresh = readme(&device);
    let mut trainer = Trainer::new(fresh.clone(), Schedule::constant(1e-2));
    let error = trainer.step(salaries(16, 1, &device) * f32::NAN).unwrap_err().to_string();
    assert!(error.contains("first in the input batch"), "{error}");
    assert_eq!(bytes(&trainer.model()), bytes(&fresh));
    trainer.step(salaries(16, 1, &device)).unwrap();
    assert_eq!(marks(&trainer.model()), (4, 0));
}

/// A flow around others that forgets to hand the call on.
#[derive(Module, Debug)]
struct Forgetful {
    norm: ActNorm,
}

impl Flow<2> for Forgetful {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        self.norm.forward(x)
    }
    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.norm.inverse(z)
    }
}

#[test]
fn a_layer_that_the_initialization_does_not_reach_is_named() {
    let device = host();
    let flow = vec![Forgetful { norm: ActNorm::new(2, &device).unwrap() }];
    let stack: FlowStack<2, Vec<Forgetful>> =
        FlowStack::single(flow, StandardNormal::new(), &[2]).unwrap();
    let trainer = || Trainer::new(stack.clone(), Schedule::constant(1e-2));
    let error = trainer().step(points(16, 1, &device)).unwrap_err();
    let FlowError::Invalid { what, .. } = &error else { panic!("{error}") };
    assert_eq!(what, "Trainer: the initialization of levels.0.0.norm");
    trainer().without_initialization().step(points(16, 1, &device)).unwrap();
}

/// A layer of a user's own that starts from data, with a mark as ActNorm's.
#[derive(Module, Debug)]
struct Centered {
    shift: Param<Tensor<1>>,
    initialized: Param<Tensor<1>>,
}

impl Flow<2> for Centered {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let log_det = x.clone().narrow(1, 0, 1).squeeze_dim::<1>(1).zeros_like();
        (x - self.shift.val().unsqueeze(), log_det)
    }
    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        z + self.shift.val().unsqueeze()
    }
    fn data_pass(mut self, x: Tensor<2>, pass: Pass) -> (Self, Tensor<2>) {
        if pass == Pass::Initialize && flat(self.initialized.val()) == [0.0] {
            let mean = x.clone().mean_dim(0).squeeze_dim::<1>(0);
            self.shift = self.shift.map(|_| mean);
            self.initialized = self.initialized.map(|mark| mark.ones_like());
        }
        let z = self.forward(x).0;
        (self, z)
    }
}

#[test]
fn a_layer_of_ones_own_takes_part() {
    let device = host();
    let zeros = |size| Param::from_tensor(Tensor::<1>::zeros([size], &device));
    let flow = Centered { shift: zeros(2), initialized: zeros(1).set_require_grad(false) };
    let stack: FlowStack<2, Centered> =
        FlowStack::single(flow, StandardNormal::new(), &[2]).unwrap();
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-2));
    trainer.gradients(salaries(64, 1, &device)).unwrap();
    let shift = flat(trainer.model().levels[0].shift.val());
    assert!((shift[0] - 5000.0).abs() < 500.0, "{shift:?}");
}
