//! What is particular to a GPU: what it is asked for, which is nothing but the figures that are reported, and
//! the kernels that this crate has for it.
#![cfg(feature = "wgpu")]

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use burn_flows::coupling::ScaleMap;
use burn_flows::linear::{Conv1x1Weight, InvertibleConv1x1};
use burn_flows::models::{
    GlowConfig, GlowCouplingKind, GlowMixingKind, NiceConfig, RealNvpConfig, RealNvpVectorConfig,
    SplineFlowConfig,
};
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::testing::{count_reads, inputs, seeded, to_f64};
use burn_flows::training::{Memory, Schedule, Trainer};
use burn_flows::{Flow, FlowStack};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn gpu() -> Device {
    let mut devices = burn_flows::backend::devices().into_iter();
    let (_, device) = devices.find(|(name, _)| *name == "wgpu").expect("wgpu is compiled in");
    device()
}

/// Densities, draws and steps of a model, of which the first one is behind it.
fn assert_no_reads<const D: usize, F, P, S>(model: FlowStack<D, F, P, S>, x: Tensor<D>)
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    for memory in [Memory::Reversible, Memory::Stored] {
        let mut trainer = Trainer::new(model.clone(), Schedule::constant(1e-4)).with_memory(memory);
        trainer.step(x.clone()).unwrap();
        for number in 2..4 {
            let (step, reads) = count_reads(|| trainer.step(x.clone()));
            assert!(step.unwrap().loss.is_finite());
            assert_eq!(reads, 1, "step {number}, {memory}");
        }
        let model = trainer.model();
        let (log_prob, reads) = count_reads(|| model.log_prob(x.clone()));
        assert_eq!(reads, 0, "log_prob");
        let ((z, log_det), reads) = count_reads(|| model.forward(x.clone()));
        assert_eq!(reads, 0, "forward");
        let (back, reads) = count_reads(|| model.inverse(z));
        assert_eq!(reads, 0, "inverse");
        let (draws, reads) = count_reads(|| model.sample_with(2, 1.0, &mut rng()));
        assert_eq!(reads, 0, "sample_with");
        let error = (back - x.clone()).abs().max().into_scalar::<f32>();
        assert!(error < 1e-3, "{error}");
        for values in [log_prob, log_det, draws.reshape([-1])] {
            assert!(values.is_finite().all().into_scalar::<bool>());
        }
    }
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

fn batch<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    inputs(shape, 1, &gpu(), DType::F32)
}

#[test]
fn a_glow_asks_for_nothing() {
    let device = gpu();
    let mixings = [GlowMixingKind::Conv1x1, GlowMixingKind::Conv1x1Plu, GlowMixingKind::Shuffle];
    for mixing in mixings {
        let config = GlowConfig::new([1, 8, 8], 2, 2, 6)
            .with_mixing(mixing)
            .with_coupling(GlowCouplingKind::Affine(ScaleMap::default()));
        let model = seeded(1, &device, || config.init(&mut rng(), &device)).unwrap();
        assert_no_reads(model, batch([4, 1, 8, 8]));
    }
}

#[test]
fn a_real_nvp_asks_for_nothing() {
    let device = gpu();
    let model = seeded(1, &device, || RealNvpConfig::new([1, 8, 8], 2, 3, 1).init(&device));
    let pixels = batch([4, 1, 8, 8]) * 0.05 + 0.5;
    assert_no_reads(model.unwrap(), pixels);
    let config = RealNvpVectorConfig::new(5, 3, vec![6]).with_batch_norm(true);
    let model = seeded(1, &device, || config.init(&device)).unwrap();
    assert_no_reads(model, batch([6, 5]));
}

#[test]
fn other_models_ask_for_nothing() {
    let device = gpu();
    let nice = seeded(1, &device, || NiceConfig::new(5, vec![6, 6]).init(&device)).unwrap();
    assert_no_reads(nice, batch([6, 5]));
    let splines = SplineFlowConfig::new(4, 2, vec![6]);
    let splines = seeded(1, &device, || splines.init(&mut rng(), &device)).unwrap();
    assert_no_reads(splines, batch([6, 4]));
}

/// The largest error of `inverse(forward(x))`, and of the log-determinant beside that in f64 in main memory.
fn errors(conv: &InvertibleConv1x1, size: usize) -> (f64, f64) {
    let x: Tensor<2> = batch([3, size]);
    let ((z, log_det), of_forward) = count_reads(|| conv.forward(x.clone()));
    let (back, of_inverse) = count_reads(|| conv.inverse(z));
    // Beyond what a group of threads holds, main memory helps out.
    assert_eq!((of_forward, of_inverse) == (0, 0), size <= 192, "{size}");
    let error = (back - x.clone()).abs().max().into_scalar::<f64>();
    let (_, host) = burn_flows::backend::hosts().swap_remove(0);
    let exact = to_f64(conv.clone().to_device(&host()));
    let x = x.to_device(&host()).cast(DType::F64);
    let exact = exact.log_det(x).narrow(0, 0, 1).into_scalar::<f64>();
    (error, (log_det.narrow(0, 0, 1).into_scalar::<f64>() - exact).abs())
}

#[test]
fn matrices_are_inverted_on_the_device() {
    let device = gpu();
    for size in [1, 2, 3, 12, 48, 96, 192, 200] {
        let plain = InvertibleConv1x1::plain(size, &mut rng(), &device).unwrap();
        let plu = InvertibleConv1x1::plu(size, &mut rng(), &device).unwrap();
        // Off the rotation that it starts from, and turned so that no pivot is where it would be by chance.
        let Conv1x1Weight::Plain(weight) = &plain.weight else { unreachable!() };
        let moved = weight.val().flip([0]) + batch([size, size]) * (0.3 / (size as f64).sqrt());
        let moved = InvertibleConv1x1::from_weight(moved);
        for (name, conv) in [("plain", plain), ("PLU", plu), ("moved", moved)] {
            let (round_trip, log_det) = errors(&conv, size);
            assert!(round_trip < 1e-5 * (size as f64).sqrt(), "{name} {size}: {round_trip}");
            assert!(log_det < 3e-6 * (size as f64).sqrt(), "{name} {size}: {log_det}");
        }
    }
}

/// Pivots that are zero until rows are exchanged, and triangles with a tiny diagonal.
#[test]
fn matrices_that_need_care_are_inverted_too() {
    let device = gpu();
    let exchanged =
        Tensor::from_data([[0.0, 1e-3, 0.0], [2.0, 0.0, 0.0], [1.0, 1.0, -5.0]], &device);
    let conv = InvertibleConv1x1::from_weight(exchanged);
    let z = Tensor::<2>::from_data([[1e-3, 2.0, -3.0]], &device);
    let x = conv.inverse(z).try_into_vec_as::<f64>().unwrap();
    assert!(x.iter().all(|x| (x - 1.0).abs() < 1e-6), "{x:?}");
    let mut conv = InvertibleConv1x1::plu(3, &mut rng(), &device).unwrap();
    let Conv1x1Weight::Plu(parts) = &mut conv.weight else { unreachable!() };
    parts.log_s = parts.log_s.clone().map(|log_s| log_s - 60.0);
    parts.lower = parts.lower.clone().map(|lower| lower * 0.0);
    parts.upper = parts.upper.clone().map(|upper| upper * 0.0);
    let x: Tensor<2> = batch([3, 3]);
    let back = conv.inverse(conv.forward(x.clone()).0);
    assert!((back - x).abs().max().into_scalar::<f64>() < 1e-5);
}

/// A matrix without an inverse shows in the loss, and the error says what it is.
#[test]
fn a_singular_matrix_is_an_error_of_the_step() {
    let device = gpu();
    let conv = InvertibleConv1x1::from_weight(Tensor::from_data([[1.0, 2.0], [2.0, 4.0]], &device));
    let prior = burn_flows::prior::StandardNormal::new();
    let stack: FlowStack<2, _> = FlowStack::single(conv, prior, &[2]).unwrap();
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-3));
    let error = trainer.step(batch([4, 2])).unwrap_err();
    assert!(matches!(error, burn_flows::FlowError::Singular { .. }), "{error}");
}
