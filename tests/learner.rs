//! Burn's Learner on models of this crate: its steps are those of the trainer, on one device and on several,
//! and a training ends, fails and goes on as one does.

#![cfg(feature = "train")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{DType, Device, Tensor};
use burn::train::metric::LossMetric;
use burn::train::metric::store::{Aggregate, Direction, Split};
use burn::train::{
    ExecutionStrategy, InferenceStep, Interrupter, Learner, LearningResult,
    MetricEarlyStoppingStrategy, MultiDeviceOptim, StoppingCondition, SupervisedTraining,
    TrainStep,
};
use burn_flows::conditioner::{Mlp, MlpConfig};
use burn_flows::coupling::{AffineCoupling, Coupling, Mask, Parity, ScaleMap};
use burn_flows::data::{Images, Mnist};
use burn_flows::linear::DiagonalScaling;
use burn_flows::models::GlowConfig;
use burn_flows::norm::{ActNorm, BatchNorm};
use burn_flows::preprocess::Quantization;
use burn_flows::prior::StandardNormal;
use burn_flows::testing::{inputs, seeded};
use burn_flows::training::learner::{
    BitsPerDimMetric, DriftMetric, ImageBatcher, InversionErrorMetric, Learnable,
};
use burn_flows::training::{Adam, Memory, Trainable, Trainer};
use burn_flows::{FlowStack, metrics, record};
use common::{flat, gradients, host};
use rand::SeedableRng;
use rand::rngs::StdRng;

type Step = (ActNorm, AffineCoupling<Mlp>, BatchNorm);
type Stack = FlowStack<2, Vec<Step>>;

const RATE: f64 = 1e-2;

/// Far below the norm of the gradients of this file.
const CLIPPED: f64 = 0.25;

/// Sums are taken in another order than the trainer's means: rounding, for losses and parameters about 1.
const ROUNDING: f64 = 2e-5;

/// A model with all that a step has to do with: a start from data, running moments, nets.
fn stack(device: &Device) -> Stack {
    let step = |i| {
        let net = MlpConfig::new(1, vec![8], 2).init(device).unwrap();
        let mask = Mask::ChannelHalves(Parity::of(i));
        let coupling = Coupling::affine(net, mask, ScaleMap::default(), 2, device).unwrap();
        (ActNorm::new(2, device).unwrap(), coupling, BatchNorm::new(2, device).unwrap())
    };
    let stack = seeded(3, device, || {
        FlowStack::single((0..2).map(step).collect(), StandardNormal::new(), &[2])
    });
    stack.unwrap()
}

fn points(count: usize, seed: u64, device: &Device) -> Tensor<2> {
    inputs([count, 2], seed, device, DType::F32) * 3.0 + 1.0
}

fn learnable(device: &Device) -> Learnable<Stack, Tensor<2>> {
    Learnable::new(stack(device), points(8, 0, device)).unwrap()
}

fn trainer(device: &Device) -> Trainer<Stack> {
    let trainer = Trainer::new(stack(device), |_| RATE);
    trainer.with_initialization(points(8, 0, device)).unwrap()
}

/// Unlike Adam's, its steps are as long as the gradients are.
fn descent() -> ModuleOptimizer {
    SgdConfig::new().init()
}

fn update(
    model: Learnable<Stack, Tensor<2>>,
    optimizer: &mut ModuleOptimizer,
    x: Tensor<2>,
) -> Learnable<Stack, Tensor<2>> {
    let output = TrainStep::step(&model, x);
    model.optimize(optimizer, RATE.into(), output.grads)
}

/// Everything that a record holds, as numbers.
fn values<M: Module>(model: &M) -> Vec<f64> {
    struct Collect(Vec<f64>);
    impl ModuleVisitor for Collect {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            self.0.extend(flat(param.val()));
        }
    }
    let mut collect = Collect(Vec::new());
    model.valid().visit(&mut collect);
    collect.0
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(error <= tolerance * (1.0 + expected.abs()), "{index}: {got} is not {expected}");
    }
}

#[test]
fn gradients_are_those_of_the_trainer_for_each_memory() {
    let device = host();
    for memory in [Memory::Reversible, Memory::Stored] {
        let mut trainer = trainer(&device).with_memory(memory);
        let model = learnable(&device).with_memory(memory);
        // Burn's loaders make tensors with autodiff.
        let x = points(8, 1, &device);
        let output = TrainStep::step(&model, x.clone().autodiff());
        let expected = trainer.gradients(x).unwrap();

        let loss = flat(output.item.loss)[0];
        assert!((loss - expected.loss).abs() < ROUNDING, "{loss} is not {}", expected.loss);
        assert_eq!(output.item.num_samples, 8);
        assert_eq!(output.item.drift, expected.drift);
        let expected = gradients(&trainer.model(), &expected.grads);
        let mut compared = 0;
        for (path, got) in gradients(&model.model, &output.grads) {
            // What else is there are running moments.
            let Some((_, expected)) = expected.iter().find(|(of, _)| *of == path) else { continue };
            let means: Vec<f64> = got.iter().map(|sum| sum / 8.0).collect();
            assert_close(&means, expected, ROUNDING);
            compared += 1;
        }
        assert_eq!(compared, expected.len());
    }
}

#[test]
fn steps_are_those_of_the_trainer() {
    let device = host();
    for bound in [CLIPPED, f64::INFINITY] {
        let trainer = trainer(&device).with_optimizer(descent());
        let mut trainer = trainer.with_max_gradient_norm(bound);
        let mut model = learnable(&device).with_max_gradient_norm(bound);
        let mut optimizer = descent();
        assert_eq!(values(&model.model), values(&trainer.model()), "at the start");
        for seed in 1..6 {
            let x = points(10, seed, &device);
            let step = trainer.step(x.clone()).unwrap();
            assert!(step.gradient_norm > CLIPPED, "nothing is clipped: {}", step.gradient_norm);
            model = update(model, &mut optimizer, x);
        }
        assert_eq!(model.num_steps(), 5);
        assert_close(&values(&model.model), &values(&trainer.model()), ROUNDING);
    }
}

/// Layers that are clones have one parameter.
#[test]
fn shared_parameters_stay_shared() {
    let device = host();
    let scaling = DiagonalScaling::new(2, &device).unwrap();
    let flow = vec![scaling.clone(), scaling];
    let stack: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2]).unwrap();
    let x = points(8, 1, &device);
    let mut trainer = Trainer::new(stack.clone(), |_| RATE).with_optimizer(descent());
    let mut model = Learnable::new(stack, x.clone()).unwrap();
    let mut optimizer = descent();
    for _ in 0..3 {
        trainer.step(x.clone()).unwrap();
        let output = TrainStep::step(&model, x.clone());
        model = model.optimize(&mut optimizer, RATE.into(), output.grads);
    }
    let scales = values(&model.model);
    assert_eq!(scales[..2], scales[2..]);
    assert_close(&scales, &values(&trainer.model()), ROUNDING);
}

/// The sum of what two batches of 3 and 7 samples give, as Burn adds it up over devices or batches.
fn in_parts<M: Trainable<Tensor<2>>>(
    model: &Learnable<M, Tensor<2>>,
    x: &Tensor<2>,
) -> GradientsParams
where
    Learnable<M, Tensor<2>>: Module,
{
    let mut sum = GradientsAccumulator::new();
    for (start, length) in [(0, 3), (3, 7)] {
        let part = x.clone().narrow(0, start, length);
        sum.accumulate(model, TrainStep::step(model, part).grads);
    }
    sum.grads()
}

#[test]
fn a_sum_of_uneven_batches_is_one_step() {
    let device = host();
    let x = points(10, 1, &device);
    let model = plain(&device);
    let parts = model.clone().optimize(&mut descent(), RATE.into(), in_parts(&model, &x));
    let whole = TrainStep::step(&model, x).grads;
    let whole = model.optimize(&mut descent(), RATE.into(), whole);
    assert_close(&values(&parts.model), &values(&whole.model), ROUNDING);
}

/// Moments of parts are not those of the whole, but their mean over the samples is near; of the first
/// layers, whose input is the same, means are means.
#[test]
fn running_moments_of_parts_become_their_mean() {
    let device = host();
    let x = points(10, 1, &device);
    let model = learnable(&device);
    let before = values(&model.model);
    let parts = model.clone().optimize(&mut descent(), RATE.into(), in_parts(&model, &x));
    let whole = update(model, &mut descent(), x);
    let mean = |model: &Stack| flat(model.valid().levels[0][0].2.moments.mean.val());
    assert!(mean(&whole.model).iter().all(|mean| mean.abs() > 0.01), "{:?}", mean(&whole.model));
    assert_close(&mean(&parts.model), &mean(&whole.model), ROUNDING);
    assert_ne!(values(&whole.model), before);
}

#[test]
fn validation_tells_loss_and_inversion_error() {
    let device = host();
    let model = learnable(&device).valid();
    let x = points(12, 1, &device);
    let output = InferenceStep::step(&model, x.clone());
    let expected = -flat(model.model.log_prob(x.clone()).mean())[0];
    assert!((flat(output.loss)[0] - expected).abs() < ROUNDING);
    let error = metrics::inversion_error(&model.model, x.narrow(0, 0, 8));
    assert_eq!(output.inversion_error, Some(error));
    assert_eq!((output.num_samples, output.drift), (12, None));
}

#[test]
fn drift_is_measured_in_turn_and_bounded_for_all_clones() {
    let device = host();
    let model = learnable(&device).with_memory(Memory::Reversible);
    let drift = |model: &Learnable<_, _>| TrainStep::step(model, points(8, 1, &device)).item.drift;
    assert!(drift(&model).unwrap() > 0.0, "nothing is inverted");
    let mut adam = ModuleOptimizer::from(Adam::new());
    let next = update(model, &mut adam, points(8, 1, &device));
    assert_eq!(drift(&next), None);

    let strict = learnable(&device).with_memory(Memory::Reversible).with_drift_control(1, 1e-12);
    let measured = drift(&strict.clone()).unwrap();
    assert!(measured <= 1e-12, "{measured}");
    assert!(matches!(strict.memory(), Memory::Checkpoint { .. }), "{}", strict.memory());
}

#[test]
#[should_panic(
    expected = "training stopped at step 1: the loss is not finite, first in the input batch"
)]
fn without_an_interrupter_an_error_is_a_panic() {
    let device = host();
    let x = Tensor::<2>::from_data([[f32::NAN, 0.0], [1.0, 2.0]], &device);
    TrainStep::step(&learnable(&device), x);
}

/// An update by gradients that are not finite is none.
#[test]
fn gradients_that_are_not_finite_change_nothing() {
    let device = host();
    let interrupter = Interrupter::new();
    let model = learnable(&device).with_interrupter(interrupter.clone());
    let mut grads = TrainStep::step(&model, points(8, 1, &device)).grads;
    let scale = &model.model.levels[0][0].0.log_scale;
    grads.register(scale.id, scale.val().inner() * f64::INFINITY);
    let before = values(&model.model);
    let after = model.optimize(&mut descent(), RATE.into(), grads);
    assert_eq!(values(&after.model), before);
    assert_eq!(after.num_steps(), 0);
    let error = interrupter.error().expect("an error").to_string();
    let expected = "at step 1: the gradient is not finite, first in levels.0.0.0.log_scale";
    assert!(error.contains(expected), "{error}");
}

#[test]
#[should_panic(expected = "optimize takes the gradients of its own step")]
fn gradients_of_others_are_refused() {
    let model = learnable(&host());
    let mut adam = ModuleOptimizer::from(Adam::new());
    model.optimize(&mut adam, RATE.into(), GradientsParams::new());
}

#[test]
fn models_that_cannot_be_trained_are_refused() {
    let device = host();
    let bad = Tensor::<2>::from_data([[f32::NAN, 0.0], [1.0, 2.0]], &device);
    let error = Learnable::new(stack(&device), bad).unwrap_err().to_string();
    assert!(error.contains("the batch for the initialization"), "{error}");
    let one = Learnable::new(stack(&device), points(1, 0, &device)).unwrap_err().to_string();
    assert!(one.contains("needs at least 2, which have a variance"), "{one}");
}

/// Rows of a table, in batches. Remembers how many samples each batch had.
#[derive(Clone, Default)]
struct Rows {
    sizes: Arc<Mutex<Vec<usize>>>,
}

impl Batcher<Vec<f32>, Tensor<2>> for Rows {
    fn batch(&self, rows: Vec<Vec<f32>>, device: &Device) -> Tensor<2> {
        self.sizes.lock().unwrap().push(rows.len());
        let shape = [rows.len(), rows[0].len()];
        Tensor::<1>::from_data(rows.concat().as_slice(), device).reshape(shape)
    }
}

fn rows(x: &Tensor<2>) -> Vec<Vec<f32>> {
    let width = x.dims()[1];
    flat(x.clone())
        .chunks(width)
        .map(|row| row.iter().map(|&value| value as f32).collect())
        .collect()
}

type Loader = Arc<dyn DataLoader<Tensor<2>>>;

fn loader(rows: Vec<Vec<f32>>, batch: usize, batcher: Rows, device: &Device) -> Loader {
    let builder = DataLoaderBuilder::new(batcher).batch_size(batch).set_device(device.clone());
    builder.build(InMemDataset::new(rows))
}

/// A training of this model that writes nothing but what is asked for.
fn launch(
    model: Learnable<Plain, Tensor<2>>,
    optimizer: ModuleOptimizer,
    training: SupervisedTraining<Learnable<Plain, Tensor<2>>>,
) -> LearningResult<Learnable<Plain, Tensor<2>>> {
    let model = model.with_interrupter(training.interrupter());
    let training = training.with_application_logger(None);
    let rates = CosineAnnealingLrSchedulerConfig::new(RATE, 100).init().unwrap();
    training.launch(Learner::new(model, optimizer, rates))
}

type Plain = FlowStack<2, Vec<(ActNorm, AffineCoupling<Mlp>)>>;

/// Without batch norm, whose gradients see moments of parts.
fn plain(device: &Device) -> Learnable<Plain, Tensor<2>> {
    let step = |i| {
        let net = MlpConfig::new(1, vec![8], 2).init(device).unwrap();
        let mask = Mask::ChannelHalves(Parity::of(i));
        let coupling = Coupling::affine(net, mask, ScaleMap::default(), 2, device).unwrap();
        (ActNorm::new(2, device).unwrap(), coupling)
    };
    let stack = seeded(3, device, || {
        FlowStack::single((0..3).map(step).collect(), StandardNormal::new(), &[2]).unwrap()
    });
    Learnable::new(stack, points(16, 0, device)).unwrap()
}

/// Two devices with a part each, the last one with more, make the steps of one device with all of the samples.
#[test]
fn several_devices_make_the_steps_of_one() {
    let device = host();
    let x = rows(&points(15, 1, &device));
    // The parts are 7 and 8 samples; with batches of 4 there are two steps, of 4 + 4 and 3 + 4.
    let order = [0, 1, 2, 3, 7, 8, 9, 10, 4, 5, 6, 11, 12, 13, 14];
    let ordered = order.iter().map(|&index| x[index].clone()).collect();
    let train = |x: Vec<Vec<f32>>, batch: usize, strategy: Option<ExecutionStrategy>| {
        let folder = tempfile::tempdir().unwrap();
        let sizes = Rows::default();
        let of_valid = loader(x.clone(), 8, Rows::default(), &device);
        let of_train = loader(x, batch, sizes.clone(), &device);
        let mut training = SupervisedTraining::new(folder.path(), of_train, of_valid)
            .metrics((LossMetric::new(),))
            .num_epochs(2);
        if let Some(strategy) = strategy {
            training = training.with_training_strategy(strategy.into());
        }
        let result = launch(plain(&device), descent(), training);
        assert!(result.error.is_none(), "{}", result.error.unwrap());
        let mut sizes = sizes.sizes.lock().unwrap().clone();
        sizes.sort_unstable();
        (values(&result.model.model), result.model.num_steps(), sizes)
    };
    let (one, num_steps, sizes) = train(ordered, 8, None);
    assert_eq!((num_steps, sizes), (4, vec![7, 7, 8, 8]));
    for optim in [MultiDeviceOptim::OptimMainDevice, MultiDeviceOptim::OptimSharded] {
        let strategy = ExecutionStrategy::multi(vec![device.clone(), device.clone()], optim);
        let (several, num_steps, sizes) = train(x.clone(), 4, Some(strategy));
        assert_eq!((num_steps, sizes), (4, vec![3, 3, 4, 4, 4, 4, 4, 4]));
        assert_close(&several, &one, ROUNDING);
    }
}

/// A batch that is not finite ends the training with a message, and the model is the one before it.
#[test]
fn a_divergence_ends_the_training() {
    let device = host();
    let mut x = rows(&points(16, 1, &device));
    let train = |x: Vec<Vec<f32>>, strategy: Option<ExecutionStrategy>| {
        let folder = tempfile::tempdir().unwrap();
        let valid = loader(rows(&points(8, 2, &device)), 8, Rows::default(), &device);
        let mut training =
            SupervisedTraining::new(folder.path(), loader(x, 8, Rows::default(), &device), valid)
                .metrics((LossMetric::new(),))
                .num_epochs(1);
        if let Some(strategy) = strategy {
            training = training.with_training_strategy(strategy.into());
        }
        launch(plain(&device), descent(), training)
    };
    let first = train(x[..8].to_vec(), None).model;
    x[12][0] = f32::NAN;
    let result = train(x.clone(), None);
    let error = result.error.expect("the training cannot go on").to_string();
    let expected = "training stopped at step 2: the loss is not finite, first in the input batch";
    assert!(error.contains(expected), "{error}");
    assert_eq!(values(&result.model.model), values(&first.model));
    assert_eq!(result.model.num_steps(), 1);

    // One of two devices is enough.
    let devices = vec![device.clone(), device.clone()];
    let strategy = ExecutionStrategy::multi(devices, MultiDeviceOptim::OptimMainDevice);
    let result = train(x, Some(strategy));
    let error = result.error.expect("the training cannot go on").to_string();
    assert!(error.contains("training stopped at step 1: the loss is not finite"), "{error}");
    assert_eq!(values(&result.model.model), values(&plain(&device).model));
}

/// Burn's early stopping by a metric of this crate: steps of length 0 gain nothing.
#[test]
fn a_training_without_a_gain_stops_early() {
    let device = host();
    let folder = tempfile::tempdir().unwrap();
    let x = rows(&points(8, 1, &device));
    let metric = BitsPerDimMetric::new(2, 1);
    let stopping = MetricEarlyStoppingStrategy::new(
        &metric,
        Aggregate::Mean,
        Direction::Lowest,
        Split::Valid,
        StoppingCondition::NoImprovementSince { n_epochs: 1 },
    );
    let valid = loader(x.clone(), 4, Rows::default(), &device);
    let of_train = loader(x, 4, Rows::default(), &device);
    let training = SupervisedTraining::new(folder.path(), of_train, valid)
        .metrics((metric,))
        .early_stopping(stopping)
        .with_application_logger(None)
        .num_epochs(5);
    let model = plain(&device).with_interrupter(training.interrupter());
    let result = training.launch(Learner::new(model, descent(), 0.0));
    assert!(result.error.is_none(), "{}", result.error.unwrap());
    assert_eq!(result.model.num_steps(), 4, "two epochs of two steps");
}

/// Two epochs, and one that goes on from the checkpoint of another's first: the same numbers.
#[test]
fn a_checkpoint_resumes() {
    let device = host();
    let x = rows(&points(32, 1, &device));
    let train = |folder: &Path, epochs: usize, from: Option<usize>| {
        let valid = loader(x[..8].to_vec(), 8, Rows::default(), &device);
        let of_train = loader(x.clone(), 8, Rows::default(), &device);
        let mut training = SupervisedTraining::new(folder, of_train, valid)
            .metrics((LossMetric::new(),))
            .with_default_checkpointers()
            .num_epochs(epochs);
        if let Some(epoch) = from {
            training = training.checkpoint(epoch);
        }
        let result = launch(plain(&device), Adam::new().into(), training);
        assert!(result.error.is_none(), "{}", result.error.unwrap());
        record::to_bytes(&result.model.model).unwrap()
    };
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = train(whole.path(), 2, None);
    let first = train(parts.path(), 1, None);
    let resumed = train(parts.path(), 2, Some(1));
    assert_ne!(first, expected);
    assert!(resumed == expected, "a training that was resumed has other parameters");
}

/// A small Glow on the first digits: the loss falls, on training and held-out images, and the metrics are written.
#[test]
fn glow_learns_digits_in_two_epochs() {
    let device = host();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let Mnist { train, test } = Mnist::load(bundled).unwrap();
    let quantization = Quantization::new(8).unwrap();
    let loader = |images: Images, count: usize| {
        let batcher = ImageBatcher::new(images, quantization, 1);
        let builder = DataLoaderBuilder::new(batcher).batch_size(16).set_device(device.clone());
        builder.shuffle(1).build(InMemDataset::new((0..count).collect()))
    };
    let (train, valid) = (loader(train, 192), loader(test, 32));
    let first = train.iter().next().unwrap().unwrap();
    let glow = GlowConfig::new([1, 28, 28], 2, 1, 8).with_logit(0.05);
    let glow = glow.init(&mut StdRng::seed_from_u64(1), &device).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let training = SupervisedTraining::new(folder.path(), train, valid)
        .metrics((LossMetric::new(), BitsPerDimMetric::new(784, 256)))
        .metric_train_numeric(DriftMetric::new())
        .metric_valid_numeric(InversionErrorMetric::new())
        .with_application_logger(None)
        .with_default_checkpointers()
        .num_epochs(2);
    let model = Learnable::new(glow, first)
        .unwrap()
        .with_memory(Memory::Reversible)
        .with_interrupter(training.interrupter());
    let rates = CosineAnnealingLrSchedulerConfig::new(5e-3, 24).init().unwrap();
    let result = training.launch(Learner::new(model, Adam::new().into(), rates));
    assert!(result.error.is_none(), "{}", result.error.unwrap());
    assert_eq!(result.model.num_steps(), 24);

    let log = |split: &str, epoch: usize, metric: &str| -> Vec<f64> {
        let path = folder.path().join(format!("{split}/epoch-{epoch}/{metric}.log"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let number = |line: &str| line.split(',').next().unwrap().parse().unwrap();
        text.lines().map(number).collect()
    };
    let mean = |split, epoch| {
        let bits = log(split, epoch, "Bits_per_dimension");
        *bits.last().unwrap()
    };
    for split in ["train", "valid"] {
        let (before, after) = (mean(split, 1), mean(split, 2));
        assert!(after < before, "{split}: {after} bits/dim after {before}");
        assert!((1.0..8.0).contains(&after), "{split}: {after} bits/dim");
    }
    let drift = log("train", 1, "Drift");
    assert!(drift[0] > 0.0 && drift[0] < 1e-3, "{drift:?}");
    let error = log("valid", 2, "Inversion_error");
    assert!(error.iter().all(|&error| error > 0.0 && error < 1e-2), "{error:?}");
    for name in ["model", "optim", "scheduler"] {
        assert!(folder.path().join(format!("checkpoint/{name}-2.bpk")).exists(), "{name}");
    }
}
