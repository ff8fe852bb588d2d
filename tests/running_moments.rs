//! Training of models with batch normalization, whose running moments move before every step.

mod common;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};
use burn_flows::models::{RealNvpConfig, RealNvpVectorConfig};
use burn_flows::preprocess::LogitForm;
use burn_flows::testing::{inputs, move_parameters, seeded, to_f64};
use burn_flows::training::{Schedule, Trainer, reversible};
use burn_flows::{Flow, Pass, record};
use common::host;

/// Points on a parabola with noise, far from standard normal.
fn points(count: usize, seed: u64) -> Tensor<2> {
    let noise = inputs([count, 2], seed, &host(), DType::F32);
    let (a, b) = (noise.clone().narrow(1, 0, 1), noise.narrow(1, 1, 1));
    Tensor::cat(vec![a.clone() * 3.0 + 5.0, a.square() * 4.0 + b * 0.2], 1)
}

#[test]
fn a_vector_model_learns_and_its_inverse_stays_exact() {
    let config = RealNvpVectorConfig::new(2, 6, vec![32, 32]).with_batch_norm(true);
    let model = seeded(1, &host(), || config.init(&host())).unwrap();
    let mut trainer = Trainer::new(model, Schedule::constant(2e-3));
    let first = trainer.step(points(256, 0)).unwrap().loss;
    for step in 1..300 {
        trainer.step(points(256, step)).unwrap();
    }
    let model = trainer.model();
    let x = points(512, 1000);
    let loss = -model.log_prob(x.clone()).mean().into_scalar::<f64>();
    let normal_entropy = 0.5 * (9.0f64 * 32.2).ln() + 2.838;
    assert!(loss < normal_entropy && loss < first, "{loss} from {first}, normal {normal_entropy}");
    let (z, _) = model.forward(x.clone());
    let error = (model.inverse(z) - x).abs().max().into_scalar::<f64>();
    assert!(error < 1e-3, "{error}");
}

#[test]
fn an_image_model_learns() {
    let config = RealNvpConfig::new([1, 4, 4], 2, 8, 1).with_logit(None, LogitForm::Code);
    let model = seeded(1, &host(), || config.init(&host())).unwrap();
    let mut trainer = Trainer::new(model, Schedule::constant(2e-3));
    let images = |seed| {
        let noise = inputs([64, 1, 4, 4], seed, &host(), DType::F32);
        noise.clone().mean_dim(3) * 3.0 + noise * 0.3 + 2.0
    };
    let losses: Vec<f64> = (0..60).map(|step| trainer.step(images(step)).unwrap().loss).collect();
    let model = trainer.model();
    let loss = -model.log_prob(images(1000)).mean().into_scalar::<f64>();
    assert!(loss < losses[0] - 1.0, "{loss} from {}", losses[0]);
}

/// For a whole model in f64, after several batches: what reversible backpropagation gives for every
/// parameter is what autodiff gives.
#[test]
fn reversible_gradients_of_a_whole_model_are_those_of_autodiff() {
    let device = host();
    let config = RealNvpConfig::new([1, 4, 4], 2, 4, 1).with_logit(None, LogitForm::Code);
    let model = seeded(1, &device, || config.init(&device)).unwrap();
    let mut model = to_f64(move_parameters(model, 1, 0.1));
    let batch = |seed| inputs([3, 1, 4, 4], seed, &device, DType::F64);
    for seed in 0..3 {
        model = model.data_pass(batch(seed) * 2.0, Pass::Observe).0;
    }
    let training = model.train();
    let x = batch(9);
    let (loss, grads) = reversible::gradients(&training, x.clone());
    let expected_loss = training.log_prob(Tensor::from_inner(x)).mean().neg();
    let mut tape = expected_loss.backward();
    let expected = GradientsParams::from_module(&mut tape, &training);
    let difference = loss - expected_loss.inner();
    assert!(difference.abs().into_scalar::<f64>() < 1e-12);

    struct Compare {
        grads: GradientsParams,
        expected: GradientsParams,
        count: usize,
    }
    impl burn::module::ModuleVisitor for Compare {
        fn visit_float<const N: usize>(&mut self, param: &burn::module::Param<Tensor<N>>) {
            let pair = (self.grads.remove::<N>(param.id), self.expected.remove::<N>(param.id));
            if let (Some(got), Some(expected)) = pair {
                let scale = 1.0 + expected.clone().abs().max().into_scalar::<f64>();
                let error = (got - expected).abs().max().into_scalar::<f64>() / scale;
                assert!(error < 1e-9, "{error}");
                self.count += 1;
            } else {
                assert!(!param.val().is_require_grad(), "a trained parameter without gradient");
            }
        }
    }
    let mut compare = Compare { grads, expected, count: 0 };
    training.visit(&mut compare);
    assert!(compare.count > 100, "{}", compare.count);
}

/// The moments are in the record, and a batch that is refused leaves them as they were.
#[test]
fn moments_are_saved_and_survive_a_refused_batch() {
    let device = host();
    let config = RealNvpVectorConfig::new(2, 4, vec![8]).with_batch_norm(true);
    let model = || seeded(1, &device, || config.init(&device)).unwrap();
    let mut trainer = Trainer::new(model(), Schedule::constant(1e-3));
    trainer.step(points(64, 1)).unwrap();
    let before = trainer.model().log_prob(points(8, 2));
    assert!(trainer.step(points(64, 3) * f32::NAN).is_err());
    let after = trainer.model().log_prob(points(8, 2));
    assert_eq!((after - before.clone()).abs().max().into_scalar::<f32>(), 0.0);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    record::save(&trainer.model(), &path).unwrap();
    let loaded = record::load(model(), &path).unwrap();
    let after = loaded.log_prob(points(8, 2));
    assert_eq!((after - before).abs().max().into_scalar::<f32>(), 0.0);
}
