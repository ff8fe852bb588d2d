//! Models of other libraries: from their files and back, through training, and files that are not right.
//!
//! What the models compute is compared in `tests/golden.rs`. With `BURN_FLOWS_EXPORT_DIR` the models of
//! [`exports`] are left there for `tests/golden-libraries/check_export.py`, which loads them in PyTorch.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use burn_flows::models::{Glow, GlowConfig};
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::testing::inputs;
use burn_flows::training::{Batch, Schedule, Trainable, Trainer};
use burn_flows::weights::normflows::{self, GlowBlockOptions, MaskedScale, RealNvpOptions};
use burn_flows::weights::{Weights, chrischute, rosinality, torch, y0ast};
use burn_flows::{Flow, FlowError, FlowStack, backend, record};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn saved(name: &str) -> PathBuf {
    folder("golden-libraries/saved").join(name)
}

/// A device that has f64.
fn device() -> burn::tensor::Device {
    let devices = backend::devices().into_iter().map(|(_, device)| device());
    devices.into_iter().find(backend::is_host).unwrap_or_else(backend::device)
}

fn golden_file(file: &str, dtype: DType) -> Weights {
    let path = folder(&format!("{file}.safetensors"));
    Weights::read(path, &device()).unwrap().with_dtype(dtype)
}

/// A golden file's parameters and its `x`.
fn golden<const D: usize>(file: &str, dtype: DType) -> (Weights, Tensor<D>) {
    let all = golden_file(file, dtype);
    let x = all.array("x").unwrap();
    let data = TensorData::new(x.values().to_vec(), x.shape().to_vec());
    (all.under("param"), Tensor::from_data(data, (&device(), dtype)))
}

/// Imports the model of a golden file, trains it for ten steps, exports and imports it: the two are the
/// same to the last bit, from either kind of file. What is left for PyTorch to agree with is `ln p` and what
/// `more` says.
fn round_trip<B: Batch, M: Module + Trainable<B>>(
    file: &str,
    batch: &B,
    dtype: DType,
    read: impl Fn(&Weights) -> Result<M, FlowError>,
    write: impl Fn(&M) -> Weights,
    more: impl FnOnce(&M) -> Vec<(String, TensorData)>,
) {
    let params = golden_file(file, dtype).under("param");
    let name = file.rsplit('/').next().unwrap();
    let start = read(&params).unwrap();
    let before = record::to_bytes(&start).unwrap();
    let mut trainer = Trainer::new(start, Schedule::constant(1e-3));
    for _ in 0..10 {
        trainer.step(batch.clone()).unwrap();
    }
    let trained = trainer.model();
    let after = record::to_bytes(&trained).unwrap();
    assert!(before != after, "{name} was not trained");

    let scratch = tempfile::tempdir().unwrap();
    let out = std::env::var_os("BURN_FLOWS_EXPORT_DIR").filter(|_| dtype == DType::F64);
    let out = out.map_or(scratch.path().to_path_buf(), PathBuf::from);
    fs::create_dir_all(&out).unwrap();
    for ending in ["safetensors", "pt"] {
        let path = out.join(format!("{name}.{ending}"));
        write(&trained).write(&path).unwrap();
        let weights = Weights::read(&path, &device()).unwrap().with_dtype(dtype);
        let again = read(&weights).unwrap_or_else(|error| panic!("{name}.{ending}: {error}"));
        assert!(record::to_bytes(&again).unwrap() == after, "{name}.{ending} is another model");
    }
    let log_prob = ("log_prob".to_string(), trained.log_prob(batch.clone()).into_data());
    let expected = Weights::new([vec![log_prob], more(&trained)].concat(), &device());
    expected.write(out.join(format!("{name}.expected.safetensors"))).unwrap();
}

/// [`round_trip`] of a stack, whose log-determinant is compared as well.
fn stack_round_trip<const D: usize, F, P, S>(
    file: &str,
    dtype: DType,
    read: impl Fn(&Weights) -> Result<FlowStack<D, F, P, S>, FlowError>,
    write: impl Fn(&FlowStack<D, F, P, S>) -> Weights,
) where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    let (_, x) = golden::<D>(file, dtype);
    round_trip(file, &x, dtype, read, write, |trained| {
        let (_, log_det) = trained.encode(x.clone());
        vec![("log_det".to_string(), log_det.into_data()), ("x".to_string(), x.clone().into_data())]
    });
}

/// In f64, which PyTorch then agrees with to 1e-10, and in f32.
macro_rules! exports {
    ($($name:ident: $file:literal, $read:expr, $write:expr;)+) => {
        mod exports {
            use super::*;
            $(
                #[test]
                fn $name() {
                    for dtype in [DType::F64, DType::F32] {
                        stack_round_trip($file, dtype, $read, $write);
                    }
                }
            )+
        }
    };
}

const CONV: y0ast::Mixing = y0ast::Mixing::Conv1x1;

fn masked(masked: MaskedScale) -> RealNvpOptions {
    RealNvpOptions { masked, ..RealNvpOptions::default() }
}

exports! {
    rosinality_affine: "golden-libraries/rosinality_affine_lu", |w| rosinality::model(w, [16, 24]), |m| rosinality::weights(m).unwrap();
    rosinality_additive: "golden-libraries/rosinality_additive", |w| rosinality::model(w, [8, 12]), |m| rosinality::weights(m).unwrap();
    rosinality_plain: "golden-libraries/rosinality_plain_conv", |w| rosinality::model(w, [8, 12]), |m| rosinality::weights(m).unwrap();
    y0ast_affine: "golden-libraries/y0ast_affine_lu", |w| y0ast::model(w, &CONV), |m| y0ast::weights(m).unwrap();
    y0ast_no_learned_top: "golden-libraries/y0ast_no_learned_top", |w| y0ast::model(w, &CONV), |m| y0ast::weights(m).unwrap();
    y0ast_reverse: "golden-libraries/y0ast_reverse", |w| y0ast::model(w, &y0ast::Mixing::Reverse), |m| y0ast::weights(m).unwrap();
    chrischute_1_scale: "golden-libraries/chrischute_realnvp_s1", |w| chrischute::model(w, [6, 10]), |m| chrischute::weights(m).unwrap();
    chrischute_2_scales: "golden-libraries/chrischute_realnvp_s2", |w| chrischute::model(w, [8, 12]), |m| chrischute::weights(m).unwrap();
    normflows_glow: "golden/nf_multiscale_glow_l2k2", |w| normflows::multiscale(w, GlowBlockOptions::default(), None, [3, 8, 8]), |m| normflows::multiscale_weights(m).unwrap();
    normflows_masked: "golden/nf_masked_affine_2d", |w| normflows::real_nvp(w, &masked(MaskedScale::Linear)), |m| normflows::real_nvp_weights(m).unwrap();
    normflows_masked_tanh: "golden/nf_masked_affine_2d_tanh", |w| normflows::real_nvp(w, &masked(MaskedScale::Tanh)), |m| normflows::real_nvp_weights(m).unwrap();
    nice: "golden/nice_logistic_d8", torch::nice, |m| torch::nice_weights(m).unwrap();
    normflows_coupling: "golden/nf_coupling_vec_exp", |w| normflows::real_nvp(w, &RealNvpOptions::default()), |m| normflows::real_nvp_weights(m).unwrap();
}

/// A Glow trained here goes to y0ast's class, ActNorms with their factor 3 and the top's parameters
/// being rewritten; there and back it computes the same.
#[test]
fn a_glow_of_this_crate_can_be_exported() {
    let device = device();
    let config = GlowConfig::new([2, 8, 8], 2, 2, 6);
    let glow = config.init(&mut StdRng::seed_from_u64(3), &device).unwrap();
    let x: Tensor<4> = inputs([4, 2, 8, 8], 5, &device, DType::F32);
    let (glow, _) = glow.initialize(x.clone());
    let mut trainer = Trainer::new(glow, Schedule::constant(1e-2));
    trainer.step(x.clone()).unwrap();
    let glow = trainer.model();
    let weights = y0ast::weights(&glow).unwrap();
    let again = y0ast::model(&weights, &CONV).unwrap();
    let error = (again.log_prob(x.clone()) - glow.log_prob(x)).abs().max().into_scalar::<f32>();
    assert!(error < 1e-2, "{error}");

    let with_logit = config.with_logit(0.05).init(&mut StdRng::seed_from_u64(3), &device).unwrap();
    assert_eq!(
        y0ast::weights(&with_logit).unwrap_err().to_string(),
        "weights for model.Glow of y0ast/Glow-PyTorch: got a logit before the first level, needs none; \
         train a model that there is a counterpart of, or save it as a record"
    );
}

/// The sizes come from the tensors; a checkpoint's dictionaries and what `nn.DataParallel` adds are seen
/// through.
#[test]
fn files_of_torch_save_are_read() {
    let reference =
        Weights::read(saved("state_dict.safetensors"), &device()).unwrap().with_dtype(DType::F32);
    let expected = rosinality::model(&reference, [8, 12]).unwrap();
    let expected = record::to_bytes(&expected).unwrap();
    for name in ["state_dict.pt", "legacy.pth", "best.pth.tar"] {
        let weights = Weights::read(saved(name), &device()).unwrap();
        let model = rosinality::model(&weights, [8, 12]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(record::to_bytes(&model).unwrap() == expected, "{name} is another model");
    }
    let whole = rosinality::load(saved("state_dict.pt")).unwrap();
    assert_eq!(whole.sample_shape(), [2, 64, 64]);
    let x = rosinality::for_pixels(whole).sample(2, 0.7);
    assert_eq!(x.dims(), [2, 2, 64, 64]);
}

#[test]
fn pixels_are_centred() {
    let (params, x) = golden::<4>("golden-libraries/y0ast_affine_lu", DType::F64);
    let model = y0ast::model(&params, &CONV).unwrap();
    let expected = model.log_prob(x.clone());
    let of_pixels = y0ast::for_pixels(model).log_prob(x + 0.5);
    assert!((of_pixels - expected).abs().max().into_scalar::<f64>() < 1e-9);
}

/// Tensors of a golden file's model, to be changed.
fn tensors(file: &str) -> Vec<(String, TensorData)> {
    let path = folder(&format!("{file}.safetensors"));
    let params = Weights::read(path, &device()).unwrap().under("param");
    let data = |name: &str| {
        let array = params.array(name).unwrap();
        TensorData::new(array.values().to_vec(), array.shape().to_vec())
    };
    params.names().map(|name| (name.to_string(), data(name))).collect()
}

fn error_of(tensors: Vec<(String, TensorData)>) -> String {
    rosinality::model(&Weights::new(tensors, &device()), [8, 12]).unwrap_err().to_string()
}

#[test]
fn everything_that_is_wrong_is_listed_at_once() {
    let mut all = tensors("golden-libraries/rosinality_one_block");
    all.retain(|(name, _)| !name.ends_with("invconv.w_s") && !name.ends_with("net.2.bias"));
    for (name, data) in &mut all {
        if name == "blocks.0.prior.conv.bias" {
            *data = TensorData::new(vec![0.0; 7], [7]);
        }
        if name.ends_with("actnorm.scale") {
            let mut values: Vec<f64> = data.iter().collect();
            values[1] = f64::NAN;
            *data = TensorData::new(values, data.shape().clone());
        }
    }
    all.push(("blocks.0.extra".into(), TensorData::from([1.0f64])));
    assert_eq!(
        error_of(all),
        "weights: these are not the tensors of model.Glow of rosinality/glow-pytorch: 2 missing: \
         blocks.0.flows.0.invconv.w_s, blocks.0.flows.0.coupling.net.2.bias; 1 of another shape: \
         blocks.0.prior.conv.bias is [7], not [16]; 1 not finite: blocks.0.flows.0.actnorm.scale (1 of 8 \
         values); 1 not of the model: blocks.0.extra; give the state dict of such a model, whole and as \
         the library saved it"
    );
}

#[test]
fn a_mask_of_other_values_is_refused() {
    let mut all = tensors("golden-libraries/rosinality_one_block");
    let mask = all.iter_mut().find(|(name, _)| name.ends_with("u_mask")).unwrap();
    mask.1 = TensorData::new(vec![1.0; 64], [8, 8]);
    assert!(
        error_of(all).contains("1 not usable: blocks.0.flows.0.invconv.u_mask has other values")
    );
}

#[test]
fn another_architecture_is_refused_by_name() {
    for file in ["golden-libraries/y0ast_additive", "golden/nf_masked_affine_2d"] {
        assert!(error_of(tensors(file)).contains(
            "this is not the state dict of model.Glow of rosinality/glow-pytorch: no \
             blocks.0.flows.0.actnorm.loc in it"
        ));
    }
    let of = |file: &str| Weights::new(tensors(file), &device());
    let rosinality = of("golden-libraries/rosinality_additive");
    assert!(y0ast::model(&rosinality, &CONV).is_err());
    assert!(chrischute::model(&rosinality, [8, 12]).is_err());
    assert!(normflows::real_nvp(&rosinality, &RealNvpOptions::default()).is_err());
    let options = GlowBlockOptions::default();
    assert!(normflows::multiscale(&rosinality, options, None, [2, 8, 12]).is_err());
    // Whose order of channels is not in the file: asked for.
    let shuffled = of("golden-libraries/y0ast_shuffle");
    let message = y0ast::model(&shuffled, &CONV).unwrap_err().to_string();
    assert!(message.contains("the order of its channels is not in it"), "{message}");
    let short = y0ast::Mixing::Shuffle(vec![vec![0, 1]]);
    let message = y0ast::model(&shuffled, &short).unwrap_err().to_string();
    assert!(message.contains("orders of [2] channels for steps of [8, 8, 16, 16]"), "{message}");
}

/// Sizes that no file of this length can hold make nothing large: a table is checked before any layer
/// is made.
#[test]
fn sizes_that_do_not_fit_are_refused_without_building() {
    let mut all = tensors("golden-libraries/rosinality_one_block");
    for (name, data) in &mut all {
        if name.ends_with("coupling.net.0.weight") {
            *data = TensorData::new(Vec::<f64>::new(), [1 << 23, 0, 3, 3]);
        }
        if name.ends_with("actnorm.loc") {
            *data = TensorData::new(Vec::<f64>::new(), [0, 1 << 22, 1, 1]);
        }
    }
    assert!(error_of(all).contains("of another shape"));
}

fn error_of_file(name: &str, bytes: &[u8]) -> FlowError {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    match Weights::read(&path, &device()) {
        Err(error) => error,
        Ok(_) => panic!("{name} was read"),
    }
}

#[test]
fn truncated_files_are_refused() {
    let whole = fs::read(saved("state_dict.safetensors")).unwrap();
    for length in [0, 1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        let error = error_of_file("cut.safetensors", &whole[..length]);
        assert!(matches!(error, FlowError::Format { .. }), "{length}: {error}");
    }
    assert!(matches!(Weights::read(saved("not-there.pt"), &device()), Err(FlowError::Io { .. })));
}

#[test]
fn a_header_that_announces_10_gb_is_refused() {
    let announce = |header: &str, length: u64| {
        [&length.to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat()
    };
    let header = r#"{"a":{"dtype":"F32","shape":[2500000000],"data_offsets":[0,10000000000]}}"#;
    for length in [header.len() as u64, 10_000_000_000, u64::MAX] {
        let error = error_of_file("large.safetensors", &announce(header, length));
        assert!(matches!(error, FlowError::Format { .. }), "{length}: {error}");
    }
}

#[path = "weights/flows.rs"]
mod flows;

mod pickles {
    use super::*;

    #[test]
    fn truncated_files_are_refused() {
        for name in ["state_dict.pt", "legacy.pth"] {
            let whole = fs::read(saved(name)).unwrap();
            for length in [0, 1, 2, 30, 200, whole.len() / 2, whole.len() - 1] {
                let error = error_of_file("cut.pt", &whole[..length]);
                assert!(matches!(error, FlowError::Format { .. }), "{name}, {length}: {error}");
            }
        }
    }

    #[test]
    fn what_would_run_code_is_refused() {
        for (name, named) in [
            ("runs_code.pt", "builtins.print"),
            ("runs_code_legacy.pt", "builtins.print"),
            ("whole_model.pt", "torch_models.Rosinality"),
        ] {
            let error = Weights::read(saved(name), &device()).unwrap_err();
            let message = error.to_string();
            assert!(matches!(error, FlowError::Format { .. }), "{name}: {message}");
            let module = named.split('.').next().unwrap();
            let is_named = message.contains(named)
                || message.contains(&format!("__builtin__{}", &named[module.len()..]));
            assert!(is_named && message.contains("is not run"), "{name}: {message}");
        }
    }

    /// A number in the place of a tensor is no part of any model.
    #[test]
    fn a_number_among_the_tensors_is_refused() {
        let weights = Weights::read(saved("with_a_number.pt"), &device()).unwrap();
        let message = rosinality::model(&weights, [8, 12]).unwrap_err().to_string();
        assert!(message.contains("1 not of the model: epoch"), "{message}");
    }

    /// An archive with the given pickle and one storage of eight bytes, as in the APPNOTE of ZIP.
    fn archive(pickle: &[u8]) -> Vec<u8> {
        let (mut out, mut directory) = (Vec::new(), Vec::new());
        for (name, content) in [("a/data.pkl", pickle), ("a/data/0", &[0; 8]), ("a/version", b"3")]
        {
            let at = out.len() as u32;
            let mut record = [20u16, 0, 0, 0, 0].map(u16::to_le_bytes).concat();
            // Without a checksum.
            let sizes = [0, content.len() as u32, content.len() as u32];
            record.extend(sizes.map(u32::to_le_bytes).concat());
            record.extend([name.len() as u16, 0].map(u16::to_le_bytes).concat());
            out.extend([b"PK\x03\x04", &record[..], name.as_bytes(), content].concat());
            directory
                .extend([b"PK\x01\x02\x14\0", &record[..], &[0; 10], &at.to_le_bytes()].concat());
            directory.extend(name.as_bytes());
        }
        let sizes = [directory.len() as u32, out.len() as u32].map(u32::to_le_bytes).concat();
        let end = [&b"PK\x05\x06\0\0\0\0\x03\0\x03\0"[..], &sizes, &[0; 2]].concat();
        [out, directory, end].concat()
    }

    /// `{"a": tensor}` of so many f32 of a storage of `stored`, all with the given stride.
    fn tensor(count: u64, stride: u8, stored: u64) -> Vec<u8> {
        let number = |value: u64| [&[0x8a, 9][..], &value.to_le_bytes(), &[0]].concat();
        [
            &b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"[..],
            b"ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu",
            &number(stored),
            b"tQK\0(",
            &number(count),
            b"t(K",
            &[stride],
            b"t\x89NtRs.",
        ]
        .concat()
    }

    #[test]
    fn a_tensor_larger_than_the_file_is_refused() {
        let good = archive(&tensor(2, 1, 2));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("good.pt");
        fs::write(&path, good).unwrap();
        let weights = Weights::read(&path, &device()).unwrap();
        assert_eq!(weights.array("a").unwrap().values(), [0.0, 0.0]);
        // 10 GB of storage announced; and one value seen 2.5 thousand million times.
        for (count, stride, stored) in
            [(2_500_000_000, 1, 2_500_000_000), (2_500_000_000, 0, 1), (u64::MAX / 8, 0, 1)]
        {
            let error = error_of_file("large.pt", &archive(&tensor(count, stride, stored)));
            assert!(matches!(error, FlowError::Format { .. }), "{error}");
        }
    }

    /// Functions are found wherever a pickle hides them.
    #[test]
    fn hidden_calls_are_refused() {
        let calls: [&[u8]; 5] = [
            b"\x80\x02cposix\nsystem\nX\x02\0\0\0ls\x85R0}.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R0}.",
            b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94000h\0h\x01\x93\x8c\x02ls\x85R0}.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x8c\x0ctorch._utils\x8c\x0f_rebuild_tensor00\x93)R0}.",
            b"\x80\x02(S'ls'\nios\nsystem\n0}.",
        ];
        for pickle in calls {
            for (name, bytes) in [("hidden.pt", archive(pickle)), ("bare.pt", pickle.to_vec())] {
                let error = error_of_file(name, &bytes);
                assert!(matches!(error, FlowError::Format { .. }), "{error}");
            }
        }
    }
}

/// The top prior of a Glow exported from here is one bias a channel.
#[test]
fn unused_parts_do_not_matter() {
    let (params, x) = golden::<4>("golden-libraries/y0ast_affine_lu", DType::F64);
    let before: Glow = y0ast::model(&params, &CONV).unwrap();
    let mut all = tensors("golden-libraries/y0ast_affine_lu");
    let weight = all.iter_mut().find(|(name, _)| name == "learn_top_fn.conv.weight").unwrap();
    weight.1 = TensorData::zeros::<f64, _>(weight.1.shape().clone());
    let weights = Weights::new(all, &device()).with_dtype(DType::F64);
    let after = y0ast::model(&weights, &CONV).unwrap();
    let error = (before.log_prob(x.clone()) - after.log_prob(x)).abs().max().into_scalar::<f64>();
    assert_eq!(error, 0.0);
}
