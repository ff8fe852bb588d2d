//! Class-conditional models: the densities of all classes, Bayes' rule, and training with a classifier.

mod common;
mod fixtures;

use std::sync::atomic::{AtomicUsize, Ordering};

use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn_flows::training::{Memory, Schedule, Tape, Trainable, Trainer, WithClassifier};
use burn_flows::{FlowError, record};
use common::{flat, gradients, host, hosts};
use fixtures::*;
use rand::RngExt;

/// Classes of the models here.
const NUM_CLASSES: usize = 3;

/// A small Glow off its start.
fn class_glow(config: impl Fn(GlowConfig) -> GlowConfig, device: &Device) -> Glow {
    let config = config(glow([1, 4, 8], 2).with_num_classes(NUM_CLASSES));
    move_parameters(build(1, device, |rng, device| config.init(rng, device)), 5, 0.1)
}

/// With priors of classes at the top, at every level beside the kept half, and at every level alone.
fn all_kinds(device: &Device) -> [Glow; 3] {
    [
        class_glow(|config| config, device),
        class_glow(|config| config.with_class_splits(true), device),
        class_glow(|config| config.with_class_splits(true).with_conditional_split(false), device),
    ]
}

fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        let error = (got - expected).abs() / (1.0 + expected.abs());
        assert!(error <= tolerance, "{what}: {got} is not {expected}");
    }
}

/// `ln sum exp`, without overflow.
fn log_sum_exp(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + values.iter().map(|value| (value - largest).exp()).sum::<f64>().ln()
}

/// Every column is the density given that class, and Bayes' rule is the sum by hand.
fn check_classes<const D: usize, F: Flow<D>, P, S>(model: &FlowStack<D, F, P, S>, x: Tensor<D>)
where
    P: burn_flows::prior::Prior<D>,
    S: burn_flows::prior::SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    let weights = [5.0, 2.0, 1.0];
    let found = model.classify(x.clone(), &weights).unwrap();
    let rows = x.dims()[0];
    assert_eq!(found.log_prob_by_class.dims(), [rows, NUM_CLASSES]);
    assert_eq!(found.log_prob.dims(), [rows]);
    let by_class = flat(found.log_prob_by_class.clone());
    let mut differ = false;
    for class in 0..NUM_CLASSES {
        let given = model.given_classes(&[class]).unwrap();
        let expected = flat(given.log_prob(x.clone()));
        let column: Vec<f64> = by_class.iter().skip(class).step_by(NUM_CLASSES).copied().collect();
        assert_close("a class", &column, &expected, 1e-5);
        differ |= (column[0] - by_class[0]).abs() > 1e-3;
    }
    assert!(differ, "the class changes nothing");
    let (mut log_prob, mut log_posterior, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    for row in by_class.chunks(NUM_CLASSES) {
        let joint: Vec<f64> =
            row.iter().zip(weights).map(|(value, weight)| value + (weight / 8.0).ln()).collect();
        let sum = log_sum_exp(&joint);
        log_prob.push(sum);
        log_posterior.extend(joint.iter().map(|value| value - sum));
        classes.push((0..NUM_CLASSES).max_by(|&a, &b| joint[a].total_cmp(&joint[b])));
    }
    assert_close("ln p(x)", &flat(found.log_prob.clone()), &log_prob, 1e-5);
    // The difference of two large numbers.
    for (got, expected) in flat(found.log_posterior.clone()).iter().zip(&log_posterior) {
        assert!((got - expected).abs() < 1e-2, "{got} is not {expected}");
    }
    assert_eq!(found.classes(), classes);
    // One class for each sample.
    let own: Vec<usize> = (0..rows).map(|row| row % NUM_CLASSES).collect();
    let expected: Vec<f64> =
        own.iter().enumerate().map(|(row, class)| by_class[row * NUM_CLASSES + class]).collect();
    let given = model.given_classes(&own).unwrap();
    assert_close("own classes", &flat(given.log_prob(x.clone())), &expected, 1e-5);
    // What was given before does not matter.
    let again = flat(given.log_prob_by_class(x.clone()).unwrap());
    assert_close("of a model that was given classes", &again, &by_class, 1e-6);
    let mut shape = x.dims();
    shape[0] = 0;
    let none = TensorData::new(Vec::<f32>::new(), shape);
    let none = Tensor::from_data(none, (&x.device(), DType::F32));
    let none = model.classify(none, &weights).unwrap();
    assert_eq!(none.log_posterior.dims(), [0, NUM_CLASSES]);
    assert!(none.classes().is_empty());
}

#[test]
fn the_densities_of_all_classes_and_bayes_rule() {
    for device in hosts() {
        let x = inputs([4, 1, 4, 8], 2, &device, DType::F32);
        for model in all_kinds(&device) {
            check_classes(&model, x.clone());
        }
        // Where couplings depend on the class too, the flow runs once a class.
        let stack = seeded(3, &device, || conditional_stack(&device).unwrap());
        let stack = move_parameters(stack, 1, 0.2);
        check_classes(&stack, inputs([4, 4], 6, &device, DType::F32));
    }
}

/// How often [`Counted`] ran.
static RUNS: AtomicUsize = AtomicUsize::new(0);

/// The identity.
#[derive(Module, Debug)]
struct Counted {
    spare: Param<Tensor<1>>,
}

impl Flow<2> for Counted {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        RUNS.fetch_add(1, Ordering::Relaxed);
        let log_det = Tensor::zeros([x.dims()[0]], &x.device());
        (x, log_det)
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        z
    }
}

#[test]
fn the_flow_runs_once_for_all_classes() {
    let device = host();
    let prior = ContextNormal::new(mlp(NUM_CLASSES, 4, &device).unwrap(), NUM_CLASSES, &device);
    let flow = Counted { spare: Param::from_data([0.0], &device) };
    let model: FlowStack<2, _, _> = FlowStack::single(flow, prior, &[2]).unwrap();
    model.classify(inputs([4, 2], 1, &device, DType::F32), &[1.0; NUM_CLASSES]).unwrap();
    assert_eq!(RUNS.load(Ordering::Relaxed), 1);
}

/// The objective is the formula, and its gradients by reversible and stored training are those of
/// autodiff.
#[test]
fn gradients_with_a_classifier_are_those_of_autodiff() {
    for device in hosts() {
        for model in all_kinds(&device) {
            let model = move_parameters(WithClassifier::new(model, 0.01).unwrap(), 9, 0.1);
            let x = inputs([4, 1, 4, 8], 2, &device, DType::F32);
            let classes = model.model.one_hot(&[0_u8, 2, 1, 2]).unwrap();
            let batch = (x.clone(), classes.clone());

            let (latents, _) = model.model.encode(x.clone());
            let top = latents.into_parts().pop().unwrap();
            let [rows, channels, height, width] = top.dims();
            let mean = top.reshape([rows, channels, height * width]).mean_dim(2);
            let log_q = log_softmax(model.classifier.forward(mean.reshape([rows, channels])), 1);
            let log_q = flat((log_q * classes.clone()).sum_dim(1));
            let log_prob = flat(model.model.given(&classes).unwrap().log_prob(x.clone()));
            let expected: Vec<f64> =
                log_prob.iter().zip(log_q).map(|(p, q)| p + 0.01 * 32.0 * q).collect();
            assert_close("objective", &flat(model.log_prob(batch.clone())), &expected, 1e-5);

            let training = model.train();
            let tracked = (Tensor::from_inner(x.clone()), Tensor::from_inner(classes.clone()));
            let loss = -training.log_prob(tracked).mean();
            let value: f64 = loss.clone().inner().into_scalar();
            let grads = GradientsParams::from_grads(loss.backward(), &training);
            let expected = gradients(&training, &grads);
            assert!(expected.iter().any(|(path, _)| path.starts_with("classifier")));
            for memory in [Memory::Reversible, Memory::Stored, Memory::Checkpoint { every: 2 }] {
                let (mut grads, mut tape) = (GradientsParams::new(), Tape::new(memory));
                let got = training.gradients(batch.clone(), -0.25, &mut tape, &mut grads, |_| true);
                let got: f64 = got.into_scalar();
                assert!((got - value).abs() < 1e-4 * value.abs().max(1.0), "{got} {value}");
                let got = gradients(&training, &grads);
                let paths = |all: &[(String, Vec<f64>)]| -> Vec<String> {
                    all.iter().map(|(path, _)| path.clone()).collect()
                };
                assert_eq!(paths(&got), paths(&expected));
                for ((path, got), (_, expected)) in got.iter().zip(&expected) {
                    let largest = expected.iter().fold(1.0, |size: f64, x| size.max(x.abs()));
                    for (got, expected) in got.iter().zip(expected) {
                        assert!(
                            (got - expected).abs() < 2e-3 * largest,
                            "{path}: {got} {expected}"
                        );
                    }
                }
            }
        }
    }
}

/// Pictures of 4 by 4 pixels whose even columns are bright in class 0 and whose odd ones in class 1, and
/// their classes.
fn pictures(count: usize, seed: u64, device: &Device) -> (Tensor<4>, Vec<usize>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut values, mut classes) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let class = usize::from(rng.random::<bool>());
        for pixel in 0..16 {
            let is_bright = (pixel % 2 == 0) == (class == 0);
            let noise: f64 = rng.random();
            values.push(if is_bright { 1.0 + noise } else { noise });
        }
        classes.push(class);
    }
    let x = Tensor::from_data(TensorData::new(values, [count, 1, 4, 4]), (device, DType::F32));
    (x, classes)
}

fn accuracy(model: &Glow, x: Tensor<4>, classes: &[usize]) -> f64 {
    let found = model.classify(x, &[1.0, 1.0]).unwrap().classes();
    let right = found.iter().zip(classes).filter(|(found, class)| **found == Some(**class)).count();
    right as f64 / classes.len() as f64
}

#[test]
fn classes_are_learned() {
    let device = host();
    let config = GlowConfig::new([1, 4, 4], 1, 2, 8)
        .with_coupling(GlowCouplingKind::Affine(ScaleMap::default()))
        .with_num_classes(2);
    let model = build(1, &device, |rng, device| config.init(rng, device));
    let (x, classes) = pictures(200, 1, &device);
    let one_hot = model.one_hot(&classes).unwrap();
    let classifier = WithClassifier::new(model, 0.01).unwrap();
    let mut trainer = Trainer::new(classifier, Schedule::constant(5e-3)).with_micro_batch(150);
    // All classes have the same density at the start. One step is enough to tell these apart.
    let before = accuracy(&trainer.model().model, x.clone(), &classes);
    assert!(before < 0.7, "{before}");
    let first = trainer.step((x.clone(), one_hot.clone())).unwrap().loss;
    let mut last = first;
    for _ in 0..150 {
        last = trainer.step((x.clone(), one_hot.clone())).unwrap().loss;
    }
    assert!(last < first - 1.0, "{last} {first}");
    let model = trainer.model().model;
    let (x, classes) = pictures(300, 2, &device);
    let after = accuracy(&model, x, &classes);
    assert!(after > 0.95, "{after} after {before}");
    // What is drawn of a class is of that class.
    for class in 0..2 {
        let drawn = model.given_classes(&[class]).unwrap();
        let drawn = drawn.sample_with(100, 0.7, &mut StdRng::seed_from_u64(3));
        assert!(accuracy(&model, drawn.clone(), &[class; 100]) > 0.95);
        let column = |at| drawn.clone().narrow(3, at, 1).mean().into_scalar::<f32>();
        assert_eq!(column(0) > column(1), class == 0, "{} {}", column(0), column(1));
    }
    // The classifier has learned them as well.
    let weight = flat(trainer.model().classifier.weight.val());
    assert!(weight.iter().any(|weight| weight.abs() > 0.05), "{weight:?}");
}

#[test]
fn what_is_no_class_is_refused() {
    let device = host();
    let x = inputs([2, 1, 4, 8], 2, &device, DType::F32);
    let model = class_glow(|config| config, &device);
    let error = |error: FlowError| {
        assert!(matches!(error, FlowError::Invalid { .. } | FlowError::Config { .. }), "{error:?}");
        error.to_string()
    };
    assert_eq!(
        error(model.given_classes(&[0_u8, 3]).unwrap_err()),
        "the class of sample 1: got 3, needs below 3, the number of classes; classes count from 0; \
         build the model for as many as there are"
    );
    assert_eq!(
        error(model.one_hot::<u8>(&[]).unwrap_err()),
        "the classes: got none, needs at least 1; give one class for each sample, or a single one for all"
    );
    let plain = build(1, &device, |rng, device| glow([1, 4, 8], 2).init(rng, device));
    for refusal in [
        plain.one_hot(&[0_u8]).map(drop),
        plain.log_prob_by_class(x.clone()).map(drop),
        plain.classify(x.clone(), &[1.0]).map(drop),
        WithClassifier::new(plain.clone(), 0.01).map(drop),
    ] {
        let text = error(refusal.unwrap_err());
        assert!(text.starts_with("the classes: got a model without a layer"), "{text}");
    }
    for weights in [
        &[1.0; 2][..],
        &[1.0; 4],
        &[0.0; 3],
        &[1.0, -1.0, 1.0],
        &[1.0, f64::NAN, 1.0],
        &[1.0, f64::INFINITY, 1.0],
    ] {
        let text = error(model.classify(x.clone(), weights).unwrap_err());
        assert!(text.contains("needs 3 finite numbers of at least 0"), "{text}");
    }
    // A class that does not occur is never found, and that is no error.
    let found = model.classify(x.clone(), &[0.0, 1.0, 0.0]).unwrap();
    assert_eq!(found.classes(), [Some(1), Some(1)]);
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        let text = error(WithClassifier::new(model.clone(), weight).unwrap_err());
        assert!(text.starts_with("WithClassifier: weight is "), "{text}");
    }
    let text = error(glow([1, 4, 8], 2).with_num_classes(0).validate().unwrap_err());
    assert!(text.starts_with("Glow: num_classes is 0"), "{text}");
    let text = error(glow([1, 4, 8], 2).with_class_splits(true).validate().unwrap_err());
    assert!(text.starts_with("Glow: class_splits is true"), "{text}");

    let classifier = WithClassifier::new(model.clone(), 0.01).unwrap();
    let mut trainer = Trainer::new(classifier, Schedule::constant(1e-3));
    let three = model.one_hot(&[0_u8, 1, 2]).unwrap();
    let text = error(trainer.step((x.clone(), three)).unwrap_err());
    assert!(text.contains("got 3, needs 2"), "{text}");
    let mut trainer = Trainer::new(model, Schedule::constant(1e-3));
    let text = error(trainer.step(x).unwrap_err());
    assert!(text.contains("pass (x, context) to the step"), "{text}");
}

#[test]
fn records_of_classes_load_by_their_path() {
    let device = host();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("glow.safetensors");
    let x = inputs([2, 1, 4, 8], 2, &device, DType::F32);
    for model in all_kinds(&device) {
        model.save(&path).unwrap();
        let loaded = Glow::load(&path, &device).unwrap();
        let of = |model: &Glow| flat(model.log_prob_by_class(x.clone()).unwrap());
        assert_eq!(of(&loaded), of(&model));
        assert_eq!(loaded.configuration::<GlowConfig>().unwrap().num_classes, Some(NUM_CLASSES));
        let plain = build(1, &device, |rng, device| glow([1, 4, 8], 2).init(rng, device));
        assert!(matches!(record::load(plain, &path).unwrap_err(), FlowError::Record { .. }));
    }
    // A model without classes has the record that it had before there were any.
    let plain = build(1, &device, |rng, device| glow([1, 4, 8], 2).init(rng, device));
    let bytes = record::to_bytes(&plain).unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("class"));
}

/// A training with a classifier goes on from its checkpoint to the same numbers.
#[test]
fn a_checkpoint_holds_the_classifier() {
    let device = host();
    let (x, classes) = pictures(16, 1, &device);
    let config = GlowConfig::new([1, 4, 4], 1, 1, 4).with_num_classes(2);
    let fresh = |seed| {
        let model = build(seed, &device, |rng, device| config.init(rng, device));
        Trainer::new(WithClassifier::new(model, 0.5).unwrap(), Schedule::constant(1e-2))
    };
    let mut trainer = fresh(1);
    let batch = (x, trainer.model().model.one_hot(&classes).unwrap());
    let steps = |trainer: &mut Trainer<WithClassifier<Glow>>, count| -> Vec<f64> {
        (0..count).map(|_| trainer.step(batch.clone()).unwrap().loss).collect()
    };
    steps(&mut trainer, 5);
    let folder = tempfile::tempdir().unwrap();
    trainer.save(folder.path(), "").unwrap();
    let whole = steps(&mut trainer, 5);
    let (mut resumed, note) = fresh(2).resume(folder.path()).unwrap();
    assert!(note.is_some());
    assert_eq!(steps(&mut resumed, 5), whole);
}
