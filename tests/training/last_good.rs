//! After an error, what the trainer holds is a model that a batch has found good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use burn_flows::models::{GlowConfig, GlowMixingKind, RealNvpConfig, RealNvpVectorConfig};
use burn_flows::preprocess::LogitForm;
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::testing::inputs;
use burn_flows::training::{GOOD_EVERY, Memory, Schedule, Trainer};
use burn_flows::{Flow, FlowError, FlowStack};
use rand::{SeedableRng, rngs::StdRng};

use super::common::{flat, host};
use super::optimizers::OPTIMIZERS;
use super::{Readme, batch, bytes, points, readme, stack};

fn are_finite(values: &[f64]) -> bool {
    values.iter().all(|value| value.is_finite())
}

/// Trains at a rate that may be too high. Wherever it stops, the model is finite on other data, goes
/// into a checkpoint and out of it, and is the one to go on from; whether it stopped.
fn stops_at_a_good_model<const D: usize, F, P, S>(
    name: &str,
    trainer: impl Fn() -> Trainer<FlowStack<D, F, P, S>>,
    batch: impl Fn(u64) -> Tensor<D>,
    num_steps: u64,
) -> bool
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    let held_out = batch(1_000_000);
    let mut training = trainer();
    for seed in 0..num_steps {
        let before = training.num_steps();
        let Err(error) = training.step(batch(seed)) else { continue };
        let by_the_model = matches!(
            error,
            FlowError::NotFinite { .. } | FlowError::Singular { .. } | FlowError::Scale { .. }
        );
        assert!(by_the_model, "{name}: {error}");
        let model = training.model();
        let log_prob = flat(model.log_prob(held_out.clone()));
        assert!(are_finite(&log_prob), "{name}, step {before}: {error}; {log_prob:?}");
        assert!(training.num_steps() + GOOD_EVERY >= before, "{name}: far back");

        let folder = tempfile::tempdir().unwrap();
        training.save(folder.path(), "").unwrap();
        let (mut resumed, _) = trainer().resume(folder.path()).unwrap();
        assert_eq!(resumed.num_steps(), training.num_steps(), "{name}");
        assert_eq!(bytes(&resumed.model()), bytes(&model), "{name}");
        let message = |error: FlowError| error.to_string();
        for seed in 0..3 {
            let x = batch(2_000_000 + seed);
            let (here, there) = (training.step(x.clone()), resumed.step(x));
            if here.is_err() {
                // The one that was resumed has nothing yet to go back to.
                break;
            }
            assert_eq!(here.map_err(message), there.map_err(message), "{name}");
        }
        return true;
    }
    false
}

const RATES: [f64; 7] = [0.1, 1.0, 10.0, 100.0, 1e4, 1e10, 1e30];

const MEMORIES: [Memory; 3] = [Memory::Reversible, Memory::Checkpoint { every: 2 }, Memory::Stored];

#[test]
fn by_every_optimizer_at_every_rate() {
    let device = host();
    let mut stopped = 0;
    for (optimizer, _, with) in OPTIMIZERS {
        for (index, rate) in RATES.into_iter().enumerate() {
            let memory = MEMORIES[index % 3];
            let trainer = || {
                with(Trainer::new(readme(&device), Schedule::constant(rate))).with_memory(memory)
            };
            let name = format!("{optimizer} at {rate}");
            let points = |seed| points(64, seed, &device);
            stopped += usize::from(stops_at_a_good_model(&name, trainer, points, 60));
        }
    }
    assert!(stopped > 40, "of {} trainings only {stopped} diverged", 7 * OPTIMIZERS.len());
}

/// Every kind of model, by every memory: its layers' ways back panic on no matrix that overflowed, and
/// running moments go back with the rest.
#[test]
fn of_every_model_by_every_memory() {
    let device = host();
    let mut stopped = 0;
    for rate in [1.0, 1e4, 1e10] {
        for memory in MEMORIES {
            let schedule = || Schedule::constant(rate);
            let images = |seed| inputs([6, 2, 4, 4], seed, &device, DType::F32);
            let mut tried = |name: &str, has_stopped: bool| {
                println!("{name} at {rate}, {memory}: {has_stopped}");
                stopped += usize::from(has_stopped);
            };
            for mixing in
                [GlowMixingKind::Conv1x1, GlowMixingKind::Conv1x1Plu, GlowMixingKind::Shuffle]
            {
                let trainer = || {
                    let config = GlowConfig::new([2, 4, 4], 2, 2, 8).with_mixing(mixing);
                    device.seed(1);
                    let model = config.init(&mut StdRng::seed_from_u64(1), &device).unwrap();
                    Trainer::new(model, schedule()).with_memory(memory)
                };
                let name = format!("Glow, {mixing:?}");
                tried(&name, stops_at_a_good_model(&name, trainer, images, 30));
            }
            let real_nvp = || {
                let config =
                    RealNvpConfig::new([2, 4, 4], 2, 8, 1).with_logit(None, LogitForm::Code);
                device.seed(1);
                Trainer::new(config.init(&device).unwrap(), schedule()).with_memory(memory)
            };
            tried("RealNVP", stops_at_a_good_model("RealNVP", real_nvp, images, 30));
            let vectors = || {
                let config = RealNvpVectorConfig::new(2, 4, vec![16]).with_batch_norm(true);
                device.seed(1);
                Trainer::new(config.init(&device).unwrap(), schedule()).with_memory(memory)
            };
            let points = |seed| points(64, seed, &device);
            tried("vectors", stops_at_a_good_model("vectors", vectors, points, 60));
        }
    }
    assert!(stopped > 12, "only {stopped} trainings diverged");
}

/// The rates that the trainer is given, until it is told to go on at a low one.
fn with_one_wild_step(is_tamed: &Arc<AtomicBool>) -> impl Fn(usize) -> f64 + Send + Sync + 'static {
    let is_tamed = is_tamed.clone();
    move |step| match step {
        13 if !is_tamed.load(Ordering::Relaxed) => 1e4,
        _ => 1e-2,
    }
}

/// Model, running statistics, optimizer, schedule and steps go back to the same moment, and from there
/// the training is the one that it was.
#[test]
fn everything_goes_back_together() {
    let x = |seed: usize| batch() + seed as f64 * 0.01;
    for (name, _, with) in OPTIMIZERS {
        let is_tamed = Arc::new(AtomicBool::new(false));
        let device = host();
        let trainer = || with(Trainer::new(readme(&device), with_one_wild_step(&is_tamed)));
        let x = |seed: usize| x(seed).narrow(1, 0, 2);
        let mut training = trainer();
        let mut at_ten = None;
        let error = (0..30).find_map(|seed| {
            if training.num_steps() == GOOD_EVERY {
                // As it is when the batch of step 11 finds it good.
                at_ten = Some(bytes(&training.model()));
            }
            training.step(x(seed)).err()
        });
        // A step by gradients that are scaled to a norm, of 1e4, may be survived.
        let Some(error) = error else { continue };
        println!("{name}: {error}");
        assert_eq!(training.num_steps() % GOOD_EVERY, 0, "{name}");
        if training.num_steps() > GOOD_EVERY {
            continue;
        }
        assert_eq!(Some(bytes(&training.model())), at_ten, "{name}");
        is_tamed.store(true, Ordering::Relaxed);
        let mut tame = trainer();
        for seed in 0..16 {
            let expected = tame.step(x(seed)).unwrap();
            if seed >= GOOD_EVERY {
                assert_eq!(training.step(x(seed)).unwrap(), expected, "{name}");
            }
        }
        assert_eq!(bytes(&training.model()), bytes(&tame.model()), "{name}");
    }
}

/// A finite batch that no model could stand costs some steps, but where every fifth is of that kind the
/// training gets on.
#[test]
fn a_training_that_is_sent_back_often_gets_on() {
    let mut trainer = Trainer::new(stack(), Schedule::constant(0.05));
    let mut errors = 0;
    for step in 0..200 {
        let x = if step % 5 == 4 { batch() * 1e30 } else { batch() };
        errors += usize::from(trainer.step(x).is_err());
    }
    assert_eq!(errors, 40);
    assert!(trainer.num_steps() > 10, "{}", trainer.num_steps());
}

/// A loss that is finite and gradients that are not, in a user's hands.
#[test]
fn gradients_that_are_not_finite_go_back_too() {
    let mut trainer = Trainer::new(stack(), Schedule::constant(0.05));
    for _ in 0..3 {
        trainer.step(batch()).unwrap();
    }
    let mut gradients = trainer.gradients(batch()).unwrap();
    burn_flows::training::scale_gradients(&trainer.model(), &mut gradients.grads, f64::NAN);
    let error = trainer.apply(gradients).unwrap_err().to_string();
    assert!(error.contains("step 4: the gradient is not finite, first in levels.0"), "{error}");
    assert_eq!(trainer.num_steps(), 0);
    let (initialized, _) = stack().initialize(batch());
    assert_eq!(bytes(&trainer.model()), bytes(&initialized));
}

/// The model shares nothing with what is kept: neither changes the other.
#[test]
fn what_is_kept_is_not_what_is_trained() {
    let device = host();
    let mut trainer: Trainer<Readme> = Trainer::new(readme(&device), Schedule::constant(1e-2));
    let mut seen = Vec::new();
    for seed in 0..25 {
        trainer.step(points(64, seed, &device)).unwrap();
        seen.push(bytes(&trainer.model()));
    }
    trainer.step(points(64, 1, &device) * 1e30).unwrap_err();
    assert_eq!(trainer.num_steps(), 20);
    assert_eq!(bytes(&trainer.model()), seen[19]);
}
