//! The trainer: it starts from data, learns by any optimizer and schedule, clips, goes on exactly
//! after an interruption, and goes back to a good model where an update did harm.

#[path = "training/average.rs"]
mod average;
mod common;
#[path = "training/fit.rs"]
mod fit;
#[path = "training/initialization.rs"]
mod initialization;
#[path = "training/last_good.rs"]
mod last_good;
#[path = "training/optimizers.rs"]
mod optimizers;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use burn_flows::conditioner::{Mlp, MlpConfig};
use burn_flows::coupling::{AffineCoupling, Coupling, Mask, Parity, ScaleMap};
use burn_flows::linear::DiagonalScaling;
use burn_flows::norm::ActNorm;
use burn_flows::prior::StandardNormal;
use burn_flows::testing::inputs;
use burn_flows::training::{Schedule, StepGradients, Trainer, scale_gradients};
use burn_flows::{FlowError, FlowStack, record};
use common::{flat, host};

type Stack = FlowStack<2, (ActNorm, DiagonalScaling)>;

fn stack() -> Stack {
    affine(3, &host())
}

/// A model of points that every device is quick at.
fn small(device: &Device) -> Stack {
    affine(2, device)
}

fn affine(size: usize, device: &Device) -> Stack {
    let flow = (ActNorm::new(size, device).unwrap(), DiagonalScaling::new(size, device).unwrap());
    FlowStack::single(flow, StandardNormal::new(), &[size]).unwrap()
}

fn batch() -> Tensor<2> {
    inputs([32, 3], 1, &host(), DType::F32) * 5.0 + 2.0
}

/// The model of the README.
type Readme = FlowStack<2, Vec<(ActNorm, AffineCoupling<Mlp>)>>;

fn readme(device: &Device) -> Readme {
    device.seed(1);
    let step = |i| {
        let net = MlpConfig::new(1, vec![32, 32], 2).init(device).unwrap();
        let mask = Mask::ChannelHalves(Parity::of(i));
        let coupling = Coupling::affine(net, mask, ScaleMap::default(), 2, device).unwrap();
        (ActNorm::new(2, device).unwrap(), coupling)
    };
    FlowStack::single((0..4).map(step).collect(), StandardNormal::new(), &[2]).unwrap()
}

fn points(count: usize, seed: u64, device: &Device) -> Tensor<2> {
    inputs([count, 2], seed, device, DType::F32)
}

/// Everything that a record holds.
fn bytes<M: Module>(model: &M) -> Vec<u8> {
    record::to_bytes(model).unwrap()
}

#[test]
fn the_loss_falls_and_steps_are_counted() {
    let mut trainer = Trainer::new(stack(), Schedule::constant(0.05)).without_initialization();
    let first = trainer.step(batch()).unwrap();
    assert_eq!((first.number, first.learning_rate), (1, 0.05));
    let last = (0..50).map(|_| trainer.step(batch()).unwrap()).last().unwrap();
    assert_eq!((last.number, trainer.num_steps()), (51, 51));
    assert!(last.loss < first.loss - 1.0, "{} is not below {}", last.loss, first.loss);
}

#[test]
fn a_batch_that_is_not_finite_changes_nothing() {
    let mut trainer = Trainer::new(stack(), Schedule::constant(0.05));
    trainer.step(batch()).unwrap();
    let before = flat(trainer.model().log_prob(batch()));
    let error = trainer.step(batch() * f64::NAN).unwrap_err();
    assert_eq!(
        error.to_string(),
        "training stopped at step 2: the loss is not finite, first in the input batch; the last good \
         model is kept; look at how the data are prepared"
    );
    assert_eq!(flat(trainer.model().log_prob(batch())), before);
    assert_eq!(trainer.num_steps(), 1);
}

#[test]
fn a_layer_that_overflows_is_named() {
    let mut stack = stack();
    let (norm, scaling) = &mut stack.levels[0];
    // Each can be inverted, but not both in f32: exp(80 + 80). ActNorm's is stored as a third.
    norm.log_scale = Param::from_data([0.0f32, 80.0 / 3.0, 0.0], &host());
    scaling.log_scale = Param::from_data([0.0f32, 80.0, 0.0], &host());
    let mut trainer = Trainer::new(stack, Schedule::constant(0.05)).without_initialization();
    let error = trainer.step(batch()).unwrap_err();
    let FlowError::NotFinite { step, layer, .. } = &error else { panic!("{error}") };
    assert_eq!(*step, 1);
    assert!(layer.starts_with("level 0"), "{layer}");
    assert!(layer.contains("levels.0"), "{layer}");
}

#[test]
fn a_model_that_is_not_finite_from_the_start_is_named() {
    for value in [f32::NAN, f32::INFINITY] {
        let mut stack = stack();
        stack.levels[0].1.log_scale = Param::from_data([0.0, value, 0.0], &host());
        let mut trainer = Trainer::new(stack, Schedule::constant(0.05));
        assert_eq!(
            trainer.step(batch()).unwrap_err().to_string(),
            "Trainer: the parameter levels.0.1.log_scale before step 1: got values that are not \
             finite, needs finite values; the model was like this when it was given; start from \
             another one"
        );
        assert_eq!(trainer.num_steps(), 0);
    }
}

/// A step is its two halves, and what is done in between is what the update sees.
#[test]
fn the_halves_of_a_step_make_a_step() {
    let device = host();
    let trainer = || Trainer::new(readme(&device), Schedule::constant(1e-2));
    let (mut whole, mut halves) = (trainer(), trainer());
    // Two machines, each with a half of the batch.
    let mut machines = [trainer(), trainer()];
    for seed in 0..5 {
        let x = points(64, seed, &device);
        let step = whole.step(x.clone()).unwrap();
        let gradients = halves.gradients(x.clone()).unwrap();
        assert_eq!(step.loss, gradients.loss);
        assert_eq!(halves.apply(gradients).unwrap(), step);

        if seed == 0 {
            // The same start on both: that of the whole batch.
            machines = machines.map(|machine| machine.with_initialization(x.clone()).unwrap());
        }
        let parts: Vec<StepGradients> = machines
            .iter_mut()
            .zip([0, 32])
            .map(|(machine, start)| machine.gradients(x.clone().narrow(0, start, 32)).unwrap())
            .collect();
        let model = machines[0].model();
        let sum = || {
            let mut sum = burn_sum(&model, &parts);
            scale_gradients(&model, &mut sum.grads, 0.5);
            sum
        };
        for machine in &mut machines {
            machine.apply(sum()).unwrap();
        }
    }
    assert_eq!(bytes(&whole.model()), bytes(&halves.model()));
    let x = points(64, 9, &device);
    assert_eq!(bytes(&machines[0].model()), bytes(&machines[1].model()));
    let distance = machines[0].model().log_prob(x.clone()) - whole.model().log_prob(x);
    assert!(distance.abs().max().into_scalar::<f64>() < 1e-3);
}

/// The sums of loss and gradients of several machines.
fn burn_sum<M: Module>(model: &M, parts: &[StepGradients]) -> StepGradients {
    use burn::module::ModuleVisitor;
    use burn::optim::GradientsParams;
    struct Sum<'a> {
        parts: &'a [StepGradients],
        grads: GradientsParams,
    }
    impl ModuleVisitor for Sum<'_> {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            let parts = self.parts.iter().filter_map(|part| part.grads.get::<N>(param.id));
            if let Some(sum) = parts.reduce(|sum, more| sum + more) {
                self.grads.register(param.id, sum);
            }
        }
    }
    let mut sum = Sum { parts, grads: GradientsParams::new() };
    model.visit(&mut sum);
    let loss = parts.iter().map(|part| part.loss).sum::<f64>() / parts.len() as f64;
    StepGradients { loss, grads: sum.grads, drift: None }
}

#[test]
fn gradients_above_the_bound_are_scaled_and_gradients_of_zero_are_left_alone() {
    let mut trainer = Trainer::new(stack(), Schedule::constant(0.05)).with_max_gradient_norm(1e-3);
    trainer.step(batch()).unwrap();
    let before = bytes(&trainer.model());
    let mut gradients = trainer.gradients(batch()).unwrap();
    scale_gradients(&trainer.model(), &mut gradients.grads, 0.0);
    assert_eq!(trainer.apply(gradients).unwrap().gradient_norm, 0.0);
    assert!(flat(trainer.model().log_prob(batch())).iter().all(|value| value.is_finite()));
    assert_ne!(bytes(&trainer.model()), before, "Adam goes on by its average");
}

#[test]
fn a_learning_rate_that_is_none_changes_nothing() {
    for bad in [0.0, -0.1, f64::NAN, f64::INFINITY] {
        let rates = move |step: usize| if step == 3 { bad } else { 0.05 };
        let mut trainer = Trainer::new(stack(), rates);
        for _ in 0..3 {
            trainer.step(batch()).unwrap();
        }
        let before = bytes(&trainer.model());
        assert_eq!(
            trainer.step(batch()).unwrap_err().to_string(),
            format!(
                "Trainer: the learning rate of step 4: got {bad}, needs a finite number above 0; \
                 nothing was changed; look at the schedule, which may have come to its end"
            )
        );
        assert_eq!((trainer.num_steps(), bytes(&trainer.model())), (3, before));
    }
}

/// After the last step of a cosine its rate is zero: more steps would change nothing, without a word.
#[test]
fn a_schedule_that_has_come_to_its_end_says_so() {
    let mut trainer = Trainer::new(stack(), Schedule::new(0.05, 4));
    for _ in 0..4 {
        trainer.step(batch()).unwrap();
    }
    let error = trainer.step(batch()).unwrap_err().to_string();
    assert!(error.contains("the learning rate of step 5: got 0"), "{error}");
}
