//! The trainer: it learns, clips, and stops before a value that is not finite does harm.

mod common;

use burn::module::Param;
use burn::tensor::{DType, Tensor};
use burn_flows::linear::DiagonalScaling;
use burn_flows::norm::ActNorm;
use burn_flows::prior::StandardNormal;
use burn_flows::testing::inputs;
use burn_flows::training::{Schedule, Trainer};
use burn_flows::{FlowError, FlowStack};
use common::{flat, host};

type Stack = FlowStack<2, (ActNorm, DiagonalScaling)>;

fn stack() -> Stack {
    let device = host();
    let flow = (ActNorm::new(3, &device).unwrap(), DiagonalScaling::new(3, &device).unwrap());
    FlowStack::single(flow, StandardNormal::new(), &[3]).unwrap()
}

fn batch() -> Tensor<2> {
    inputs([32, 3], 1, &host(), DType::F32) * 5.0 + 2.0
}

#[test]
fn the_loss_falls_and_steps_are_counted() {
    let mut trainer = Trainer::new(stack(), Schedule::constant(0.05));
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
         model is kept; lower the learning rate or use a bounded scale map"
    );
    assert_eq!(flat(trainer.model().log_prob(batch())), before);
    assert_eq!(trainer.num_steps(), 1);
}

#[test]
fn a_layer_that_overflows_is_named() {
    let mut stack = stack();
    stack.levels[0].1.log_scale = Param::from_data([0.0f32, 200.0, 0.0], &host());
    let mut trainer = Trainer::new(stack, Schedule::constant(0.05));
    let error = trainer.step(batch()).unwrap_err();
    let FlowError::NotFinite { step, layer, .. } = &error else { panic!("{error}") };
    assert_eq!(*step, 1);
    assert!(layer.starts_with("level 0"), "{layer}");
    assert!(layer.contains("levels.0"), "{layer}");
}
