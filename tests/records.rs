//! Records: what is loaded is what was saved, and what cannot be loaded says why.
//!
//! That every flow of the list survives a record is a law (`tests/laws.rs`); here are files.

mod fixtures;

use std::fs;
use std::path::Path;

use burn_flows::testing::to_f64;
use burn_flows::{FlowError, record};
use fixtures::*;
use tempfile::TempDir;

/// A Glow of two levels from the given seed, not initialized.
fn fresh(seed: u64, device: &Device, dtype: DType) -> Glow {
    let make = |rng: &mut StdRng, device: &Device| {
        glow([3, 4, 8], 2).with_mixing(GlowMixingKind::Shuffle).init(rng, device)
    };
    let glow = build(seed, device, make);
    if dtype == DType::F64 { to_f64(glow) } else { glow }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The device most tests need no second one of.
fn device() -> Device {
    devices().swap_remove(0).1
}

#[test]
fn a_loaded_model_is_bit_equal_and_not_initialized_again() {
    for (name, device, dtype) in devices() {
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        let batch = |seed, scale: f64| inputs([8, 3, 4, 8], seed, &device, dtype) * scale;

        let moved = move_parameters(fresh(1, &device, dtype), 2, 0.1);
        let (saved, _) = moved.initialize(batch(3, 2.0));
        record::save(&saved, &path).unwrap();
        let loaded = record::load(fresh(9, &device, dtype), &path).unwrap();
        let x = batch(4, 1.0);
        let log_prob = |glow: &Glow| values(glow.log_prob(x.clone()));
        assert_ne!(log_prob(&saved), log_prob(&fresh(9, &device, dtype)), "{name}");
        assert_eq!(log_prob(&saved), log_prob(&loaded), "{name}");
        let draw = |glow: &Glow| values(glow.sample_with(2, 0.7, &mut rng(5)));
        assert_eq!(draw(&saved), draw(&loaded), "{name}");

        // A batch with quite other moments: nothing may move, in the steps or in their nets.
        let (again, _) = loaded.initialize(batch(6, 50.0));
        assert_eq!(log_prob(&saved), log_prob(&again), "{name}");

        // And through training and back.
        let trained = again.train().valid();
        assert_eq!(log_prob(&saved), log_prob(&trained), "{name}");
    }
}

#[test]
fn the_initialized_mark_is_kept_either_way() {
    let device = device();
    let folder = folder();
    let path = folder.path().join("norm.safetensors");
    let norm = ActNorm::new(2, &device).unwrap();
    record::save(&norm, &path).unwrap();
    let norm = record::load(norm, &path).unwrap();
    assert!(!norm.is_initialized());

    let x = inputs([64, 2], 1, &device, DType::F32) * 3.0 + 5.0;
    let (norm, _) = norm.initialize(x);
    record::save(&norm, &path).unwrap();
    let loaded = record::load(ActNorm::new(2, &device).unwrap(), &path).unwrap();
    assert!(loaded.is_initialized());
    let bias = values(loaded.bias.val());
    let (again, _) = loaded.initialize(inputs([64, 2], 2, &device, DType::F32));
    assert_eq!(values(again.bias.val()), bias);
}

#[test]
fn what_is_not_trained_is_not_trained_after_loading() {
    let device = device();
    let norm = ActNorm::new(2, &device).unwrap();
    let bytes = record::to_bytes(&norm).unwrap();
    let loaded = record::from_bytes(norm, bytes, Path::new("memory")).unwrap().train();
    assert!(loaded.bias.val().is_require_grad());
    assert!(!loaded.initialized.val().is_require_grad());
}

#[test]
fn a_random_permutation_and_the_parts_of_plu_survive() {
    let device = device();
    let make = |seed| {
        let rng = &mut rng(seed);
        (
            Permutation::shuffle(12, rng, &device).unwrap(),
            InvertibleConv1x1::plu(12, rng, &device).unwrap(),
        )
    };
    let (saved, other) = (make(1), make(2));
    let x = inputs([2, 12], 3, &device, DType::F32);
    let z = |flow: &(Permutation, InvertibleConv1x1)| values(flow.forward(x.clone()).0);
    assert_ne!(z(&saved), z(&other));
    // An inverse of the other weights is already cached when the record arrives.
    other.inverse(x.clone());
    let bytes = record::to_bytes(&saved).unwrap();
    let loaded = record::from_bytes(other, bytes, Path::new("memory")).unwrap();
    assert_eq!(values(loaded.0.order.val()), values(saved.0.order.val()));
    assert_eq!(z(&saved), z(&loaded));
    assert_eq!(values(saved.inverse(x.clone())), values(loaded.inverse(x.clone())));
}

#[test]
fn a_record_of_one_device_loads_on_every_other() {
    let devices: Vec<_> = burn_flows::backend::devices();
    let (_, first) = devices[0];
    let bytes = record::to_bytes(&fresh(1, &first(), DType::F32)).unwrap();
    for (name, device) in devices {
        let loaded =
            record::from_bytes(fresh(2, &device(), DType::F32), bytes.clone(), Path::new("memory"));
        assert!(record::to_bytes(&loaded.unwrap()).unwrap() == bytes, "{name}: other bytes");
    }
}

/// Path and message of the error of `load`, without the folder.
fn load_error<M: Module>(model: M, path: &Path) -> String {
    let error = match record::load(model, path) {
        Ok(_) => panic!("{} was loaded", path.display()),
        Err(error @ (FlowError::Record { .. } | FlowError::Io { .. })) => error,
        Err(error) => panic!("of another kind: {error:?}"),
    };
    error.to_string().replace(&format!("{}/", path.parent().unwrap().display()), "")
}

fn vector_net(hidden: usize, device: &Device) -> Mlp {
    MlpConfig::new(2, vec![hidden], 3).init(device).unwrap()
}

#[test]
fn records_of_another_configuration_are_refused() {
    let device = device();
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    record::save(&vector_net(4, &device), &path).unwrap();
    assert_eq!(
        load_error(vector_net(5, &device), &path),
        "model.safetensors: this record is of another model: layers.0.bias is F32 [4], the model's \
         is F32 [5], layers.0.weight is F32 [2, 4], the model's is F32 [2, 5], layers.1.weight is \
         F32 [4, 3], the model's is F32 [5, 3]; build the model with the record's configuration"
    );
    let deeper = MlpConfig::new(2, vec![4, 4], 3).init(&device).unwrap();
    assert_eq!(
        load_error(deeper, &path),
        "model.safetensors: this record is of another model: layers.1.bias is F32 [3], the model's \
         is F32 [4], layers.1.weight is F32 [4, 3], the model's is F32 [4, 4], layers.2.bias is \
         missing, and 1 more; build the model with the record's configuration"
    );
    let shallow = MlpConfig::new(2, vec![], 3).init(&device).unwrap();
    let message = load_error(shallow, &path);
    assert!(message.contains("layers.1.bias is not in the model"), "{message}");
    assert_eq!(
        load_error(to_f64(DiagonalScaling::new(2, &device).unwrap()), &{
            let path = folder.path().join("scaling.safetensors");
            record::save(&DiagonalScaling::new(2, &device).unwrap(), &path).unwrap();
            path
        }),
        "scaling.safetensors: this record is of another model: log_scale is F32 [2], the model's is \
         F64 [2]; build the model with the record's configuration"
    );

    let config = glow([1, 4, 4], 1);
    let additive = config.clone().with_coupling(GlowCouplingKind::Additive);
    record::save(&config.init(&mut rng(0), &device).unwrap(), &path).unwrap();
    let additive = additive.init(&mut rng(0), &device).unwrap();
    assert_eq!(
        load_error(additive.clone(), &path),
        "model.safetensors: this record is of another model: coupling is {\"Affine\":\"Sigmoid\"}, the \
         model's is \"Additive\"; build the model with the record's configuration"
    );
    record::save(&additive.levels, &path).unwrap();
    let message = load_error(config.init(&mut rng(0), &device).unwrap().levels, &path);
    assert!(message.contains("Affine.conditioner.conv1.weight is missing"), "{message}");
}

#[test]
fn damaged_records_are_refused() {
    let device = device();
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let model = || vector_net(4, &device);
    let whole = record::to_bytes(&model()).unwrap();
    for length in [0, 4, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let message = load_error(model(), &path);
        assert!(
            message.starts_with("model.safetensors: this is not a whole safetensors file (")
                && message.ends_with(
                    "; it may be cut off or of another kind; load another copy or an earlier record"
                ),
            "{length} bytes: {message}"
        );
    }
    for content in [&b"not a record"[..], &[0xff; 64], &[0; 64], b"PK\x03\x04 an archive, say"] {
        fs::write(&path, content).unwrap();
        let message = load_error(model(), &path);
        assert!(message.contains("this is not a whole safetensors file"), "{message}");
    }
    // One byte too many is not what was saved either.
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    load_error(model(), &path);
}

#[test]
fn values_that_are_not_finite_are_refused_on_both_ways() {
    let device = device();
    let folder = folder();
    let path = folder.path().join("scaling.safetensors");
    let scaling = |value: f32| {
        let mut scaling = DiagonalScaling::new(3, &device).unwrap();
        scaling.log_scale = burn::module::Param::from_data([0.5, value, 0.5], &device);
        scaling
    };
    record::save(&scaling(0.25), &path).unwrap();
    let good = fs::read(&path).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // Saving it is refused, and leaves the good record there.
        let error = record::save(&scaling(bad), &path).unwrap_err();
        assert!(matches!(error, FlowError::Record { .. }));
        assert_eq!(
            error.to_string().replace(&format!("{}/", folder.path().display()), ""),
            "scaling.safetensors: 1 of 3 values of log_scale are not finite; nothing was written; go \
             back to the last good record"
        );
        assert_eq!(fs::read(&path).unwrap(), good);

        let other = folder.path().join("bad.safetensors");
        fs::write(&other, record::to_bytes(&scaling(bad)).unwrap()).unwrap();
        assert_eq!(
            load_error(scaling(0.0), &other),
            "bad.safetensors: 1 of 3 values of log_scale are not finite; load an earlier record"
        );
    }
}

#[test]
fn files_that_cannot_be_read_or_written_are_named() {
    let device = device();
    let folder = folder();
    let model = DiagonalScaling::new(3, &device).unwrap();
    let missing = folder.path().join("missing.safetensors");
    assert_eq!(
        load_error(model.clone(), &missing),
        "cannot read missing.safetensors: No such file or directory (os error 2); give the path of a \
         record written by this crate"
    );
    let error = record::load(model.clone(), folder.path()).unwrap_err();
    assert!(matches!(error, FlowError::Io { action: "read", .. }), "{error}");

    let nowhere = folder.path().join("no/such/folder/model.safetensors");
    let error = record::save(&model, &nowhere).unwrap_err();
    assert!(matches!(error, FlowError::Io { action: "write", .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "cannot write {}: No such file or directory (os error 2); check that its folder exists, \
             can be written and has room",
            nowhere.display()
        )
    );
    // A folder where the file should go: refused, and nothing is left beside it.
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("content"), "kept").unwrap();
    let error = record::save(&model, &taken).unwrap_err();
    assert!(matches!(error, FlowError::Io { action: "write", .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn saving_again_replaces_the_record_and_leaves_nothing_beside_it() {
    let device = device();
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let mut scaling = DiagonalScaling::new(2, &device).unwrap();
    for value in [1.0, 2.0] {
        scaling.log_scale = burn::module::Param::from_data([value, value], &device);
        record::save(&scaling, &path).unwrap();
    }
    let loaded = record::load(DiagonalScaling::new(2, &device).unwrap(), &path).unwrap();
    assert_eq!(values(loaded.log_scale.val()), [2.0, 2.0]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_singular_weight_loads_and_is_found_by_check() {
    let device = device();
    let singular =
        InvertibleConv1x1::from_weight(Tensor::from_data([[1.0, 2.0], [2.0, 4.0]], &device));
    let bytes = record::to_bytes(&singular).unwrap();
    let model = InvertibleConv1x1::plain(2, &mut rng(0), &device).unwrap();
    assert!(Flow::<2>::check(&model).is_ok());
    let loaded = record::from_bytes(model, bytes, Path::new("memory")).unwrap();
    let text = "InvertibleConv1x1: the 2x2 weight is singular (smallest pivot 0e0, largest 2e0); load an \
                earlier checkpoint and train with a lower learning rate or with the PLU parametrization";
    let error = Flow::<2>::check(&loaded).unwrap_err();
    assert!(matches!(error, FlowError::Singular { size: 2, .. }));
    assert_eq!(error.to_string(), text);
    let z = inputs([1, 2], 1, &device, DType::F32);
    // A GPU is not asked for the weight: what comes out tells.
    if burn_flows::backend::is_host(&device) {
        assert_eq!(panic_message(|| loaded.inverse(z)), text);
    } else {
        let back: Vec<f64> = loaded.inverse(z).try_into_vec_as().unwrap();
        assert!(back.iter().all(|value| !value.is_finite()), "{back:?}");
    }
}
