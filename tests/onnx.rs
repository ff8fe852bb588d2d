//! Models exported as ONNX, run by another implementation of it, rten.
//!
//! With `BURN_FLOWS_EXPORT_DIR` the models and what they have to give are left there for
//! `tests/onnx/check_onnx.py`, which runs them in onnxruntime and measures it.

#![cfg(feature = "onnx")]

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Distribution, Tensor, TensorData};
use burn_flows::coupling::ScaleMap;
use burn_flows::models::{
    GlowConfig, GlowCouplingKind, GlowMixingKind, NiceConfig, NicePriorKind, RealNvpConfig,
};
use burn_flows::onnx::{self, Density, Layer, SplitDensity};
use burn_flows::preprocess::LogitForm;
use burn_flows::prior::{Prior, SplitPrior, StandardLogistic, StandardNormal};
use burn_flows::testing::{move_parameters, seeded};
use burn_flows::weights::{Weights, rosinality};
use burn_flows::{Flow, FlowStack, backend};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rten::Model;
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;

/// Another order of the sums, and other exponentials, in f32.
const TOLERANCE: f64 = 1e-4;

/// A draw is encoded again: what both of them do to it is in the error, times the condition of the model.
const ROUND_TRIP: f64 = 1e-3;

/// Runs the one function of a model of `x`, `[batch, ...]` row by row.
fn run(bytes: &[u8], x: &[f32], shape: &[usize]) -> Vec<f32> {
    let model = Model::load(bytes.to_vec()).unwrap_or_else(|error| panic!("{error}"));
    let x = rten_tensor::Tensor::from_data(shape, x.to_vec());
    let y = model.run_one(x.view().into(), None).unwrap_or_else(|error| panic!("{error}"));
    let y: rten_tensor::Tensor<f32> = y.try_into().unwrap();
    y.to_vec()
}

fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = f64::from((got - expected).abs() / (1.0 + expected.abs()));
        // Written so that a NaN fails.
        assert!(error <= tolerance, "{what}: {got} is not {expected} at {at}");
    }
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap()
}

fn device() -> burn::tensor::Device {
    backend::hosts().remove(0).1()
}

/// `ln p(x)` and the draws of a model are those that its export gives.
fn agrees<const D: usize, F, P, S>(name: &str, model: FlowStack<D, F, P, S>, range: [f64; 2])
where
    F: Flow<D> + Layer,
    P: Prior<D> + Density,
    S: SplitPrior<D> + SplitDensity,
    FlowStack<D, F, P, S>: Module,
{
    agrees_as_it_is(name, move_parameters(model, 3, 0.1), range);
}

fn agrees_as_it_is<const D: usize, F, P, S>(
    name: &str,
    model: FlowStack<D, F, P, S>,
    range: [f64; 2],
) where
    F: Flow<D> + Layer,
    P: Prior<D> + Density,
    S: SplitPrior<D> + SplitDensity,
    FlowStack<D, F, P, S>: Module,
{
    let (log_prob, sample) = (onnx::log_prob(&model).unwrap(), onnx::sample(&model).unwrap());
    let sizes = model.sample_shape().to_vec();
    let dims = model.num_dims();
    let mut left = Vec::new();
    // Any number of samples goes through one file.
    for batch in [1, 5] {
        let mut shape = [batch; D];
        shape[1..].copy_from_slice(&sizes);
        let draw = |seed, distribution, shape| {
            seeded(seed, &device(), || -> burn_flows::Result<_> {
                Ok(Tensor::<D>::random(shape, distribution, &device()))
            })
        };
        let x = draw(1, Distribution::Uniform(range[0], range[1]), shape).unwrap();
        let expected = numbers(model.log_prob(x.clone()));
        let all = [&[batch][..], &sizes].concat();
        let got = run(&log_prob, &numbers(x.clone()), &all);
        close(&format!("{name}, log_prob"), &got, &expected, TOLERANCE);

        let noise = draw(2, Distribution::Normal(0.0, 0.7), shape).unwrap();
        let noise = numbers(noise);
        let drawn = run(&sample, &noise, &[batch, dims]);
        let drawn = Tensor::<D>::from_data(TensorData::new(drawn, shape), &device());
        is_draw_of(name, &model, drawn.clone(), &noise);
        left.push((x, expected, noise, drawn));
    }
    if let Some(out) = std::env::var_os("BURN_FLOWS_EXPORT_DIR").map(PathBuf::from) {
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join(format!("{name}.log_prob.onnx")), &log_prob).unwrap();
        fs::write(out.join(format!("{name}.sample.onnx")), &sample).unwrap();
        let (x, expected, noise, drawn) = left.pop().unwrap();
        let batch = expected.len();
        let tensors = [
            ("x".to_string(), x.into_data()),
            ("log_prob".to_string(), TensorData::new(expected, [batch])),
            ("noise".to_string(), TensorData::new(noise, [batch, dims])),
            ("drawn".to_string(), drawn.into_data()),
        ];
        Weights::new(tensors, &device())
            .write(out.join(format!("{name}.onnx.safetensors")))
            .unwrap();
    }
}

/// Encoded again, draws are what they were made of: the parts of the splits themselves, those of the top by
/// their densities, whose differences are those of the standard form.
fn is_draw_of<const D: usize, F, P, S>(
    name: &str,
    model: &FlowStack<D, F, P, S>,
    drawn: Tensor<D>,
    noise: &[f32],
) where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    let batch = drawn.dims()[0];
    let encoded = model.encode_noise(drawn);
    let rows = numbers(encoded.flatten());
    let width = rows.len() / batch;
    let top = encoded.parts().last().unwrap().clone();
    let split = width - top.dims()[1..].iter().product::<usize>();
    let mut standard = Vec::new();
    for sample in 0..batch {
        let (row, noise) = (&rows[sample * width..][..width], &noise[sample * width..][..width]);
        let what = format!("{name}, a split of a draw");
        close(&what, &row[..split], &noise[..split], ROUND_TRIP);
        standard.push(noise[split..].to_vec());
    }
    let form = Tensor::<2>::from_data(
        TensorData::new(standard.concat(), [batch, width - split]),
        &device(),
    );
    let densities = numbers(model.prior.log_prob(top));
    let of_form = match name.starts_with("nice_logistic") {
        true => numbers(Prior::log_prob(&StandardLogistic::new(), form)),
        false => numbers(Prior::log_prob(&StandardNormal::new(), form)),
    };
    let differences = |values: &[f32]| values.iter().map(|v| v - values[0]).collect::<Vec<_>>();
    let what = format!("{name}, the top of a draw");
    close(&what, &differences(&densities), &differences(&of_form), ROUND_TRIP);
}

#[test]
fn nice() {
    for (name, prior) in
        [("nice_logistic", NicePriorKind::Logistic), ("nice_normal", NicePriorKind::Normal)]
    {
        let config = NiceConfig::new(7, vec![8, 6]).with_prior(prior);
        agrees(name, config.init(&device()).unwrap(), [0.0, 1.0]);
    }
}

#[test]
fn real_nvp() {
    let config = RealNvpConfig::new([2, 8, 4], 2, 5, 2);
    agrees("real_nvp", config.init(&device()).unwrap(), [0.0, 1.0]);
    let config = config.with_batch_norm(false).with_logit(Some(1e-3), LogitForm::Paper);
    agrees("real_nvp_paper", config.init(&device()).unwrap(), [0.0, 1.0]);
}

fn glow(name: &str, config: GlowConfig) {
    let model = config.init(&mut StdRng::seed_from_u64(4), &device()).unwrap();
    agrees(name, model, [0.0, 1.0]);
}

#[test]
fn glows() {
    let config = || GlowConfig::new([2, 8, 4], 2, 2, 6);
    glow("glow", config().with_logit(0.05));
    glow("glow_plain", config().with_mixing(GlowMixingKind::Conv1x1).with_learned_top(false));
    let additive = config().with_coupling(GlowCouplingKind::Additive);
    glow(
        "glow_additive",
        additive.with_mixing(GlowMixingKind::Shuffle).with_conditional_split(false),
    );
}

#[test]
fn every_scale_map() {
    let maps = [
        ScaleMap::Sigmoid,
        ScaleMap::InverseSigmoid,
        ScaleMap::Exp,
        ScaleMap::BoundedExp { bound: 2.0 },
        ScaleMap::SoftClip { bound: 6.9 },
        ScaleMap::FlooredSigmoid { floor: 1e-3 },
        ScaleMap::FlooredSoftplus { floor: 1e-3 },
        ScaleMap::Tanh,
    ];
    for map in maps {
        let config =
            GlowConfig::new([3, 4, 4], 1, 2, 4).with_coupling(GlowCouplingKind::Affine(map));
        glow(&format!("glow_{}", format!("{map:?}").split([' ', '{']).next().unwrap()), config);
    }
}

struct Shrink;

impl ModuleMapper for Shrink {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value * 0.1)
    }
}

/// What was read from another library is exported as well: its scales have signs, its net pads with ones.
#[test]
fn a_glow_of_another_library() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = path.join("tests/golden-libraries/rosinality_additive.safetensors");
    let weights = Weights::read(path, &device()).unwrap().under("param").with_dtype(DType::F32);
    let mut model = rosinality::model(&weights, [8, 12]).unwrap();
    // The file's parameters are random: their priors would draw values of a thousand million.
    model.split_priors = model.split_priors.map(&mut Shrink);
    model.prior = model.prior.map(&mut Shrink);
    agrees_as_it_is("glow_rosinality", model, [-0.5, 0.5]);
}

/// Pixels outside of the support have no density.
#[test]
fn nothing_outside_of_the_support() {
    let model = RealNvpConfig::new([1, 2, 2], 1, 2, 1).init(&device()).unwrap();
    let bytes = onnx::log_prob(&model).unwrap();
    let x = [0.5, 0.5, 0.5, 0.5, 0.5, 255.0, 0.5, 0.5];
    let got = run(&bytes, &x, &[2, 1, 2, 2]);
    assert!(got[0].is_finite() && got[1] == f32::NEG_INFINITY, "{got:?}");
}

#[test]
fn classes_are_refused() {
    let config = GlowConfig::new([1, 4, 4], 1, 1, 2).with_num_classes(3);
    let model = config.init(&mut StdRng::seed_from_u64(4), &device()).unwrap();
    assert_eq!(
        onnx::log_prob(&model).unwrap_err().to_string(),
        "an export as ONNX: got a prior that depends on a class, needs the layers of Glow, RealNVP and NICE, \
         without contexts; export a model without it"
    );
}

/// A file is the same whenever it is written, and is read back as it is.
#[test]
fn files_are_written() {
    let model = NiceConfig::new(4, vec![3]).init(&device()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nice.onnx");
    onnx::save_sample(&model, &path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), onnx::sample(&model).unwrap());
    onnx::save_log_prob(&model, &path).unwrap();
    let model = Model::load(fs::read(&path).unwrap()).unwrap();
    assert_eq!((model.input_ids().len(), model.output_ids().len()), (1, 1));
    let x = NdTensor::<f32, 2>::zeros([2, 4]);
    assert_eq!(run(&fs::read(&path).unwrap(), &x.to_vec(), &[2, 4]).len(), 2);
}
