//! Averages of the parameters.

use std::fs;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};
use burn_flows::FlowStack;
use burn_flows::linear::DiagonalScaling;
use burn_flows::models::{RealNvpVector, RealNvpVectorConfig};
use burn_flows::prior::StandardNormal;
use burn_flows::testing::{inputs, seeded};
use burn_flows::training::{Schedule, Trainer};

use super::common::{flat, host};

const DECAY: f64 = 0.9;

fn model() -> RealNvpVector {
    let device = host();
    seeded(1, &device, || {
        RealNvpVectorConfig::new(3, 2, vec![8]).with_batch_norm(true).init(&device).unwrap()
    })
}

fn trainer() -> Trainer<RealNvpVector> {
    Trainer::new(model(), Schedule::constant(1e-2)).with_average(DECAY)
}

fn batch(seed: u64) -> Tensor<2> {
    inputs([16, 3], seed, &host(), DType::F32)
}

/// All parameters, each with whether it is trained.
fn parameters<M: Module>(model: &M) -> Vec<(bool, Vec<f64>)> {
    struct Collect(Vec<(bool, Vec<f64>)>);
    impl ModuleVisitor for Collect {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            let is_trained = param.clone().train().is_require_grad();
            self.0.push((is_trained, flat(param.val())));
        }
    }
    let mut all = Collect(Vec::new());
    model.visit(&mut all);
    all.0
}

#[test]
fn an_average_is_what_its_formula_says() {
    let mut trainer = trainer();
    assert_eq!(parameters(&trainer.averaged()), parameters(&trainer.model()));
    let mut expected: Option<Vec<(bool, Vec<f64>)>> = None;
    for step in 0..40 {
        trainer.step(batch(step)).unwrap();
        let now = parameters(&trainer.model());
        let decay = DECAY.min((1.0 + step as f64) / (10.0 + step as f64));
        let average = match expected.take() {
            None => now,
            Some(average) => average
                .into_iter()
                .zip(now)
                .map(|((is_trained, average), (_, now))| {
                    let moved = |(a, p): (&f64, &f64)| decay * a + (1.0 - decay) * p;
                    let averaged = || average.iter().zip(&now).map(moved).collect();
                    (is_trained, if is_trained { averaged() } else { now.clone() })
                })
                .collect(),
        };
        for ((_, got), (_, expected)) in parameters(&trainer.averaged()).iter().zip(&average) {
            for (got, expected) in got.iter().zip(expected) {
                assert!((got - expected).abs() < 1e-5, "step {step}: {got}, not {expected}");
            }
        }
        expected = Some(average);
    }
    let differs = parameters(&trainer.averaged()) != parameters(&trainer.model());
    assert!(differs, "the parameters moved, and their averages with them");
}

#[test]
fn a_training_with_averages_goes_on_exactly() {
    let folder = tempfile::tempdir().unwrap();
    for steps in [0, 1, 7] {
        let mut saved = trainer();
        for seed in 0..steps {
            saved.step(batch(seed)).unwrap();
        }
        saved.save(folder.path(), "a note").unwrap();
        let (mut resumed, note) = trainer().resume(folder.path()).unwrap();
        assert_eq!(note.as_deref(), Some("a note"));
        for seed in steps..steps + 5 {
            assert_eq!(parameters(&resumed.averaged()), parameters(&saved.averaged()));
            assert_eq!(resumed.step(batch(seed)).unwrap(), saved.step(batch(seed)).unwrap());
        }
        assert_eq!(parameters(&resumed.averaged()), parameters(&saved.averaged()));
    }
    let without = || Trainer::new(model(), Schedule::constant(1e-2));
    let error = without().resume(folder.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("resume with Trainer::with_average"), "{error}");
    // One that kept none starts them where it is.
    let mut saved = without();
    saved.step(batch(0)).unwrap();
    saved.save(folder.path(), "").unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert!(names().iter().all(|name| !name.contains("average")), "{:?}", names());
    let (resumed, _) = trainer().resume(folder.path()).unwrap();
    assert_eq!(parameters(&resumed.averaged()), parameters(&saved.model()));
}

#[test]
fn averages_go_back_with_the_last_good_model() {
    let mut trainer = trainer().with_good_every(1);
    for seed in 0..5 {
        trainer.step(batch(seed)).unwrap();
    }
    let before = parameters(&trainer.averaged());
    trainer.step(batch(5)).unwrap();
    let mut gradients = trainer.gradients(batch(6)).unwrap();
    gradients.loss = f64::NAN;
    trainer.apply(gradients).unwrap_err();
    assert_eq!(trainer.num_steps(), 5);
    assert_eq!(parameters(&trainer.averaged()), before);
}

/// With a rate at which the parameters wander, their averages are nearer to the best ones.
#[test]
fn averaged_parameters_wander_less() {
    let device = host();
    let flow = DiagonalScaling::new(3, &device).unwrap();
    let model: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[3]).unwrap();
    let mut trainer = Trainer::new(model, Schedule::constant(0.05)).with_average(0.99);
    let (mut trained, mut averaged) = (0.0, 0.0);
    let held_out = inputs([4000, 3], 99, &device, DType::F32);
    for step in 0..600 {
        trainer.step(inputs([4, 3], step, &device, DType::F32)).unwrap();
        if step >= 500 {
            let loss = |model: FlowStack<2, DiagonalScaling>| {
                -flat(model.log_prob(held_out.clone()).mean())[0] / 100.0
            };
            trained += loss(trainer.model());
            averaged += loss(trainer.averaged());
        }
    }
    assert!(averaged < trained - 0.01, "{averaged} nats by averages, {trained} without");
}
