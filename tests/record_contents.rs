//! What a record holds beside its values: settings and configurations. And what it cannot hold: claims
//! that its own length does not bear out.

#[path = "common/counting.rs"]
mod counting;
mod fixtures;

use std::fs;
use std::path::{Path, PathBuf};

use burn_flows::data::{Crop, Preparation};
use burn_flows::models::{Nice, RealNvp, RealNvpVector};
use burn_flows::norm::RunningMoments;
use burn_flows::record::{self, Configuration, Header, Setting};
use burn_flows::{FlowError, Result};
use counting::Counting;
use fixtures::*;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn device() -> Device {
    burn_flows::backend::devices().pop().expect("a device is compiled in").1()
}

fn memory() -> &'static Path {
    Path::new("memory")
}

/// What is wrong with loading the record of `saved` into `model`, up to the advice.
#[track_caller]
fn refused<A: Module, B: Module>(saved: &A, model: B) -> String {
    let error = record::from_bytes(model, record::to_bytes(saved).unwrap(), memory()).unwrap_err();
    let text = error.to_string();
    let text = text.strip_prefix("memory: this record is of another model: ").unwrap_or(&text);
    let advice = "; build the model with the record's configuration";
    text.strip_suffix(advice).unwrap_or_else(|| panic!("{text}")).to_string()
}

/// A record that differs in settings alone is refused, both ways, and loads where they are equal.
#[track_caller]
fn assert_told_apart<A: Module, B: Module>(a: A, b: B, text: &str) {
    assert_eq!(refused(&a, b.clone()), text);
    refused(&b, a.clone());
    let bytes = record::to_bytes(&a).unwrap();
    let loaded = record::from_bytes(a, bytes.clone(), memory()).unwrap();
    assert!(record::to_bytes(&loaded).unwrap() == bytes);
}

fn glow_of(coupling: ScaleMap) -> GlowConfig {
    glow([1, 4, 4], 1).with_coupling(GlowCouplingKind::Affine(coupling))
}

#[test]
fn a_record_of_one_scale_map_does_not_load_as_another() {
    let device = device();
    let init = |config: GlowConfig| config.init(&mut rng(0), &device).unwrap();
    let (bounded, sigmoid) = (init(glow_of(ScaleMap::default())), init(glow_of(ScaleMap::Sigmoid)));
    assert_told_apart(
        bounded.clone(),
        sigmoid.clone(),
        "coupling.Affine is {\"BoundedExp\":{\"bound\":2.0}}, the model's is \"Sigmoid\"",
    );
    // The layers alone, without what they were configured by.
    assert_eq!(
        refused(&bounded.levels, sigmoid.levels),
        "0.2.0.2.Affine.transform.scale_map is {\"BoundedExp\":{\"bound\":2.0}}, the model's is \
         \"Sigmoid\" (and 1 more like it)"
    );
}

#[test]
fn all_fields_that_differ_are_named_at_once() {
    let device = device();
    let init = |config: GlowConfig| config.init(&mut rng(0), &device).unwrap();
    let preparation =
        |num_bits| Preparation { image_shape: [1, 4, 4], crop: Crop::Square, num_bits };
    let saved = glow([1, 4, 4], 1).with_logit(0.05).with_preparation(preparation(5));
    let other = GlowConfig::new([1, 4, 4], 2, 3, 4)
        .with_mixing(GlowMixingKind::Reverse)
        .with_logit(0.1)
        .with_preparation(preparation(8));
    assert_eq!(
        refused(&init(saved.clone()), init(other)),
        "hidden_width is 6, the model's is 4, logit_alpha is 0.05, the model's is 0.1, mixing is \
         \"Conv1x1\", the model's is \"Reverse\", num_levels is 1, the model's is 2, num_steps is 2, the \
         model's is 3, preparation.num_bits is 5, the model's is 8"
    );
    let nice = NiceConfig::new(16, vec![4]).init(&device).unwrap();
    assert_eq!(refused(&init(saved.clone()), nice), "it is a Glow, the model a Nice");

    // How pictures are prepared is not a matter of the model's numbers: who does not say takes all.
    let silent = GlowConfig { preparation: None, ..saved.clone() };
    let bytes = record::to_bytes(&init(saved)).unwrap();
    record::from_bytes(init(silent), bytes, memory()).unwrap();
}

#[test]
fn every_setting_of_a_layer_is_in_its_record() {
    let device = &device();
    let coupling = |mask, map| affine_mlp(4, mask, map, device).unwrap();
    let (even, odd) = (Mask::first_half(), Mask::second_half());
    assert_told_apart(
        coupling(even, ScaleMap::Exp),
        coupling(odd, ScaleMap::Exp),
        "mask is {\"ChannelHalves\":\"Even\"}, the model's is {\"ChannelHalves\":\"Odd\"}",
    );
    assert_told_apart(
        coupling(even, ScaleMap::Exp),
        coupling(Mask::Alternating(Parity::Even), ScaleMap::Exp),
        "mask is {\"ChannelHalves\":\"Even\"}, the model's is {\"Alternating\":\"Even\"}",
    );
    let additive = |mask| additive_mlp(4, mask, device).unwrap();
    assert_told_apart(
        vec![additive(even), additive(odd)],
        vec![additive(odd), additive(even)],
        "0.mask is {\"ChannelHalves\":\"Even\"}, the model's is {\"ChannelHalves\":\"Odd\"}, 1.mask is \
         {\"ChannelHalves\":\"Odd\"}, the model's is {\"ChannelHalves\":\"Even\"}",
    );
    assert_told_apart(
        coupling(even, ScaleMap::BoundedExp { bound: 1.0 }),
        coupling(even, ScaleMap::BoundedExp { bound: 1.5 }),
        "transform.scale_map is {\"BoundedExp\":{\"bound\":1.0}}, the model's is \
         {\"BoundedExp\":{\"bound\":1.5}}",
    );
    let ordered = |order| {
        let net = MlpConfig::new(2, vec![3], 4).init(device).unwrap();
        Coupling::affine_ordered(net, even, ScaleMap::Exp, order, 4, device).unwrap()
    };
    assert_told_apart(
        ordered(AffineOrder::ScaleThenShift),
        ordered(AffineOrder::ShiftThenScale),
        "transform.order is \"ScaleThenShift\", the model's is \"ShiftThenScale\"",
    );

    let logit = |alpha, form| Logit::new(alpha, form).unwrap();
    assert_told_apart(
        logit(0.05, LogitForm::Code),
        logit(1e-6, LogitForm::Paper),
        "alpha is 0.05, the model's is 1e-6, form is \"Code\", the model's is \"Paper\"",
    );
    assert_told_apart(
        (Some(logit(0.05, LogitForm::Code)), ActNorm::new(2, device).unwrap()),
        (None::<Logit>, ActNorm::new(2, device).unwrap()),
        "0.alpha is 0.05, the model has none, 0.form is \"Code\", the model has none",
    );
    let norm = |momentum, epsilon| {
        BatchNorm::from_moments(RunningMoments::new(2, momentum, epsilon, device).unwrap())
    };
    assert_told_apart(
        norm(0.1, 1e-4),
        norm(0.2, 1e-5),
        "moments.epsilon is 0.0001, the model's is 0.00001, moments.momentum is 0.1, the model's is 0.2",
    );
    let leaky = |slope| glow_net(2, 2, NetNorm::Bias, slope, device).unwrap();
    assert_told_apart(leaky(0.0), leaky(0.1), "negative_slope is 0.0, the model's is 0.1");
    let residual =
        |gain| ResidualNetConfig::new(2, 3, 2, 1).with_input_gain(gain).init(device).unwrap();
    assert_told_apart(residual(1.0), residual(2.0), "input_gain is 1.0, the model's is 2.0");
}

#[test]
fn priors_shapes_and_squeezes_are_in_the_record() {
    let device = &device();
    let norm = || ActNorm::new(4, device).unwrap();
    let normal = FlowStack::<2, _>::single(norm(), StandardNormal::new(), &[4]).unwrap();
    let logistic = FlowStack::<2, _, _>::single(norm(), StandardLogistic::new(), &[4]).unwrap();
    assert_told_apart(
        normal,
        logistic,
        "prior.kind is \"standard normal\", the model's is \"standard logistic\"",
    );
    let images = |shape: &[usize]| FlowStack::<4, _>::single(norm(), StandardNormal::new(), shape);
    assert_told_apart(
        images(&[4, 2, 8]).unwrap(),
        images(&[4, 4, 4]).unwrap(),
        "shapes is {\"inputs\":[[4,2,8]],\"latents\":[[4,2,8]]}, the model's is \
         {\"inputs\":[[4,4,4]],\"latents\":[[4,4,4]]}",
    );
    assert_told_apart(
        (Some(Squeeze::new()), norm()),
        (None::<Squeeze>, norm()),
        "0.kind is \"[4c + 2dy + dx, y, x]\", the model has none",
    );
    assert_told_apart(
        Permutation::reverse(4, device).unwrap(),
        norm(),
        "bias is missing, initialized is missing, log_scale is missing, and 1 more",
    );
}

/// A user's own layer, whose settings are plain values and values of values.
#[derive(Module, Debug)]
enum Own {
    Turn(Turned),
}

#[derive(Module, Debug)]
struct Turned {
    by: Setting<Turn>,
    inner: Vec<ActNorm>,
}

#[derive(Serialize, Clone, Copy, Debug, PartialEq)]
struct Turn {
    degrees: f64,
    clockwise: bool,
}

#[test]
fn a_users_layer_has_its_settings_in_the_record_too() {
    let device = device();
    let own = |degrees| {
        let by = Turn { degrees, clockwise: true }.into();
        vec![Own::Turn(Turned { by, inner: vec![ActNorm::new(2, &device).unwrap()] })]
    };
    assert_told_apart(
        own(90.0),
        own(45.0),
        "0.Turn.by is {\"clockwise\":true,\"degrees\":90.0}, the model's is \
         {\"clockwise\":true,\"degrees\":45.0}",
    );
    // It is read like the value, shown, and stays through all that modules go through.
    let [Own::Turn(turned)] = &own(90.0)[..] else { panic!("one layer") };
    assert_eq!((turned.by.degrees, *turned.by), (90.0, Turn { degrees: 90.0, clockwise: true }));
    assert!(format!("{turned}").contains("{\"degrees\":90.0,\"clockwise\":true}"), "{turned}");
    assert!(format!("{turned:?}").contains("by: Turn { degrees: 90.0"), "{turned:?}");
    assert_eq!(turned.clone().train().valid().fork(&device).by.degrees, 90.0);
    assert_eq!(turned.num_params(), 2 * 2 + 1);
}

/// The model of `config` goes into a file and comes out of it, by the path alone.
fn assert_restored<const D: usize, F, P, S, C>(
    config: &C,
    load: impl Fn(&Path) -> Result<FlowStack<D, F, P, S>>,
) where
    F: Flow<D>,
    P: burn_flows::prior::Prior<D>,
    S: burn_flows::prior::SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
    C: Configuration<Model = FlowStack<D, F, P, S>> + PartialEq + std::fmt::Debug,
{
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let model = move_parameters(config.build(&device()).unwrap(), 2, 0.1);
    model.save(&path).unwrap();
    let header = Header::read(&path).unwrap();
    assert_eq!(header.model(), Some(C::NAME));
    assert_eq!(&header.configuration::<C>().unwrap(), config);
    assert_eq!(header.num_values() as f64, config.num_values());
    assert_eq!(header.producer(), Some(concat!("burn-flows ", env!("CARGO_PKG_VERSION"))));

    let loaded = load(&path).unwrap();
    assert_eq!(loaded.configuration::<C>().as_ref(), Some(config));
    let x = model.batch((0..3 * model.num_dims()).map(|i| (i % 7) as f32 / 8.0).collect());
    assert_eq!(values(model.log_prob(x.clone())), values(loaded.log_prob(x)));
    // Equal models are equal files, whichever road they came.
    assert!(record::to_bytes(&loaded).unwrap() == fs::read(&path).unwrap());
}

#[test]
fn ready_made_models_need_nothing_but_their_record() {
    let device = device();
    let config = glow_of(ScaleMap::BoundedExp { bound: 0.1 + 0.2 });
    assert_restored(&config.with_logit(1e-6), |path| Glow::load(path, &device));
    let preparation = Preparation { image_shape: [3, 4, 8], crop: Crop::CELEBA, num_bits: 5 };
    let config = glow([3, 4, 8], 2)
        .with_coupling(GlowCouplingKind::Additive)
        .with_mixing(GlowMixingKind::Shuffle)
        .with_net_norm(NetNorm::Bias)
        .with_preparation(preparation);
    assert_restored(&config, |path| Glow::load(path, &device));
    let config = RealNvpConfig::new([1, 4, 4], 2, 3, 1).with_logit(Some(0.1), LogitForm::Paper);
    assert_restored(&config, |path| RealNvp::load(path, &device));
    let config = RealNvpVectorConfig::new(5, 3, vec![4, 4]).with_mask(VectorMaskKind::Halves);
    let config = config.with_scale_map(ScaleMap::InverseSigmoid).with_batch_norm(true);
    assert_restored(&config, |path| RealNvpVector::load(path, &device));
    let config = NiceConfig::new(6, vec![4]).with_prior(NicePriorKind::Normal);
    assert_restored(&config, |path| Nice::load(path, &device));
}

/// A user's own stack and what it is built from.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct OwnConfig {
    num_features: usize,
    masks: Vec<Mask>,
}

type OwnStack = FlowStack<2, Vec<AdditiveCoupling<Mlp>>>;

impl Configuration for OwnConfig {
    type Model = OwnStack;
    const NAME: &'static str = "OwnStack";

    fn build(&self, device: &Device) -> Result<OwnStack> {
        let steps = self.masks.iter().map(|&mask| additive_mlp(self.num_features, mask, device));
        let steps = steps.collect::<Result<_>>()?;
        let stack = FlowStack::single(steps, StandardNormal::new(), &[self.num_features])?;
        Ok(stack.with_configuration(self))
    }

    fn num_values(&self) -> f64 {
        let half = self.num_features as f64 / 2.0;
        let net = half * 6.0 + 6.0 + 6.0 * 6.0 + 6.0 + 6.0 * half + half;
        self.masks.len() as f64 * net
    }
}

#[test]
fn a_users_stack_needs_nothing_but_its_record() {
    let device = device();
    let config =
        OwnConfig { num_features: 4, masks: vec![Mask::first_half(), Mask::second_half()] };
    assert_restored(&config, |path| record::restore::<OwnConfig>(path, &device));

    let folder = folder();
    let path = folder.path().join("own.safetensors");
    config.build(&device).unwrap().save(&path).unwrap();
    let text = |error: FlowError| error.to_string().replace(&*path.to_string_lossy(), "FILE");
    assert_eq!(
        text(Nice::load(&path, &device).unwrap_err()),
        "FILE: this record is of a OwnStack, not of a Nice; load it as what it is"
    );
    let other = OwnConfig { masks: vec![Mask::first_half(); 2], ..config.clone() };
    assert_eq!(
        text(record::restore_with(&other, &path, &device).unwrap_err()),
        "FILE: this record is of another model: masks is [{\"ChannelHalves\":\"Even\"},{\"ChannelHalves\
         \":\"Odd\"}], the model's is [{\"ChannelHalves\":\"Even\"},{\"ChannelHalves\":\"Even\"}]; build \
         the model with the record's configuration"
    );
    // A stack by hand has no configuration and the same layers: it loads, and is loaded.
    let by_hand = || {
        let steps = config.masks.iter().map(|&mask| additive_mlp(4, mask, &device).unwrap());
        OwnStack::single(steps.collect(), StandardNormal::new(), &[4]).unwrap()
    };
    record::load(by_hand(), &path).unwrap();
    by_hand().save(&path).unwrap();
    assert_eq!(Header::read(&path).unwrap().model(), None);
    record::restore_with(&config, &path, &device).unwrap();
    assert_eq!(
        text(record::restore::<OwnConfig>(&path, &device).unwrap_err()),
        "FILE: it does not say how its model is configured; build the model with the configuration that \
         it was trained with and use record::load"
    );
}

/// The record with another header: `change` is given it as JSON.
fn with_header(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let (header, values) = parts(bytes);
    let mut json: Value = serde_json::from_slice(header).unwrap();
    change(&mut json);
    assembled(json.to_string().as_bytes(), values)
}

fn parts(bytes: &[u8]) -> (&[u8], &[u8]) {
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8..].split_at(len)
}

fn assembled(header: &[u8], values: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, values].concat()
}

/// What this crate wrote into the metadata, changed.
fn with_about(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    with_header(bytes, |header| {
        let about = &mut header["__metadata__"]["burn-flows"];
        let mut json: Value = serde_json::from_str(about.as_str().unwrap()).unwrap();
        change(&mut json);
        *about = json.to_string().into();
    })
}

/// Bytes that may be allocated for each of a file.
const BYTES_A_BYTE: usize = 30;

/// Bytes that may be allocated whatever the file: messages, a device.
const BYTES_ANYWAY: usize = 1_000_000;

#[track_caller]
fn assert_frugal<T>(len: usize, action: impl FnOnce() -> T) -> T {
    let (result, allocated) = ALLOCATOR.during(action);
    let most = BYTES_A_BYTE * len + BYTES_ANYWAY;
    assert!(allocated <= most, "{allocated} bytes for a file of {len}");
    result
}

#[test]
fn a_configuration_that_asks_for_more_than_the_file_is_refused_by_name() {
    let device = device();
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let good = glow([1, 4, 4], 1);
    let whole = record::to_bytes(&good.init(&mut rng(0), &device).unwrap()).unwrap();
    Glow::load(&path, &device).unwrap_err();
    for (field, size, config) in [
        ("hidden_width", 100_000, GlowConfig { hidden_width: 100_000, ..good.clone() }),
        ("num_steps", 99_999_999_999, GlowConfig { num_steps: 99_999_999_999, ..good.clone() }),
        ("num_steps", usize::MAX, GlowConfig { num_steps: usize::MAX, ..good.clone() }),
    ] {
        let expected = format!("another model: {field} {size} asks for a Glow of ");
        let error = assert_frugal(whole.len(), || {
            fs::write(&path, &whole).unwrap();
            record::restore_with(&config, &path, &device).unwrap_err().to_string()
        });
        assert!(error.contains(&expected) && error.contains(", and this record holds "), "{error}");

        let bytes = with_about(&whole, |about| {
            about["settings"]["configuration"]["Glow"][field] = size.into();
        });
        let error = assert_frugal(whole.len(), || {
            fs::write(&path, &bytes).unwrap();
            Glow::load(&path, &device).unwrap_err().to_string()
        });
        assert!(error.contains(&expected), "{error}");
    }
    // Sizes within the file that are not its own are told by the tensors.
    fs::write(&path, &whole).unwrap();
    let small = GlowConfig { hidden_width: 3, ..good.clone() };
    let error = record::restore_with(&small, &path, &device).unwrap_err().to_string();
    assert!(error.contains("another model: hidden_width is 6, the model's is 3;"), "{error}");
    // What no model of that kind can be is refused in its name.
    for (field, value) in
        [("num_levels", json!(99_999_999_999u64)), ("image_shape", json!([1, 1u64 << 40, 4]))]
    {
        let bytes = with_about(&whole, |about| {
            about["settings"]["configuration"]["Glow"][field] = value;
        });
        fs::write(&path, &bytes).unwrap();
        let error = Glow::load(&path, &device).unwrap_err();
        assert!(matches!(error, FlowError::Config { .. } | FlowError::Record { .. }), "{error:?}");
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn a_header_that_claims_what_the_file_is_not_is_refused() {
    let device = device();
    let norm = || ActNorm::new(2, &device).unwrap();
    let whole = record::to_bytes(&norm()).unwrap();
    let (header, data) = parts(&whole);
    let text = String::from_utf8(header.to_vec()).unwrap();
    let tensor =
        |change: &dyn Fn(&mut Value)| with_header(&whole, |json| change(&mut json["bias"]));
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let twice = text.trim_end().trim_end_matches('}').to_string()
        + "},\"bias\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
    let about = |json: String| {
        with_header(&whole, |header| header["__metadata__"]["burn-flows"] = json.into())
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("10 GB of header", [&10_000_000_000u64.to_le_bytes(), &whole[8..]].concat()),
        ("all of memory", [&[0xff; 8], &whole[8..]].concat()),
        ("no JSON", assembled(b"{\"bias\":", data)),
        ("another JSON", assembled(b"[1, 2]", data)),
        ("deep nesting", assembled(format!("{{\"bias\":{}}}", deep(100_000)).as_bytes(), data)),
        ("a name twice", assembled(twice.as_bytes(), data)),
        ("a negative offset", tensor(&|bias| bias["data_offsets"][0] = json!(-8))),
        (
            "an offset beyond the file",
            tensor(&|bias| bias["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 8])),
        ),
        ("offsets in reverse", tensor(&|bias| bias["data_offsets"] = json!([8, 0]))),
        ("an overlap", tensor(&|bias| bias["data_offsets"] = json!([4, 12]))),
        (
            "a gap",
            tensor(&|bias| *bias = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
        ),
        ("a shape too large", tensor(&|bias| bias["shape"] = json!([1u64 << 40]))),
        ("a shape that overflows", tensor(&|bias| bias["shape"] = json!([u64::MAX, u64::MAX, 8]))),
        ("a negative shape", tensor(&|bias| bias["shape"] = json!([-2]))),
        ("no such dtype", tensor(&|bias| bias["dtype"] = "F33".into())),
        ("no shape", tensor(&|bias| drop(bias.as_object_mut().unwrap().remove("shape")))),
        (
            "metadata that are no texts",
            with_header(&whole, |header| header["__metadata__"] = json!({"a": 1})),
        ),
        ("settings that are no JSON", about("{\"settings\":".into())),
        ("settings that are a list", about("{\"settings\":[]}".into())),
        ("settings that are deep", about(format!("{{\"settings\":{{\"a\":{}}}}}", deep(100_000)))),
    ];
    let folder = folder();
    let path: PathBuf = folder.path().join("norm.safetensors");
    for (name, bytes) in cases {
        let check = |error: FlowError| {
            assert!(matches!(error, FlowError::Record { .. }), "{name}: {error:?}");
            let text = error.to_string();
            assert!(text.contains("this is not a whole safetensors file ("), "{name}: {text}");
        };
        let len = bytes.len();
        fs::write(&path, &bytes).unwrap();
        check(assert_frugal(len, || record::from_bytes(norm(), bytes, memory()).unwrap_err()));
        check(assert_frugal(len, || Header::read(&path).unwrap_err()));
        check(assert_frugal(len, || record::restore::<OwnConfig>(&path, &device).unwrap_err()));
    }
    // Settings of another shape are settings that differ.
    let bytes = about("{\"settings\":{\"configuration\":[1],\"mask\":null}}".into());
    let error = record::from_bytes(norm(), bytes.clone(), memory()).unwrap_err().to_string();
    assert!(error.contains("mask is null, the model has none"), "{error}");
    fs::write(&path, bytes).unwrap();
    let error = record::restore::<OwnConfig>(&path, &device).unwrap_err().to_string();
    assert!(error.contains("it does not say how its model is configured"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever becomes of a header, loading ends in a model or an error, with memory for the file.
    #[test]
    fn damaged_headers_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let device = device();
        let config = OwnConfig { num_features: 4, masks: vec![Mask::first_half()] };
        let model = config.build(&device).unwrap();
        let mut bytes = record::to_bytes(&model).unwrap();
        let header = 8 + parts(&bytes).0.len();
        for (place, byte) in changes {
            bytes[place.index(header)] = byte;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let folder = folder();
        let path = folder.path().join("own.safetensors");
        fs::write(&path, &bytes).unwrap();
        let len = bytes.len();
        let _ = assert_frugal(len, || record::restore::<OwnConfig>(&path, &device));
        let _ = assert_frugal(len, || record::from_bytes(model, bytes, memory()));
    }
}

mod of_version_0_1_0 {
    //! A run of the example `mnist` as version 0.1.0 wrote it: a record without settings, and the
    //! configuration beside it.

    use super::*;

    fn old(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/old_run").join(name)
    }

    fn config() -> GlowConfig {
        let json: Value = serde_json::from_slice(&fs::read(old("config.json")).unwrap()).unwrap();
        serde_json::from_value(json["model"]["glow"].clone()).unwrap()
    }

    /// `ln p` of a fixed image, as that version computed it.
    #[track_caller]
    fn assert_as_before(glow: &Glow) {
        const EXPECTED: f64 = -9.588_712;
        let x = glow.batch((0..16).map(|i| (i as f32 + 0.5) / 16.0).collect());
        let log_prob = values(glow.log_prob(x))[0];
        assert!((log_prob - EXPECTED).abs() < 1e-4, "{log_prob}");
    }

    #[test]
    fn it_loads_as_it_did() {
        let device = device();
        let model = config().init(&mut rng(5), &device).unwrap();
        assert_as_before(&record::load(model, old("model.safetensors")).unwrap());
        assert_as_before(
            &record::restore_with(&config(), old("model.safetensors"), &device).unwrap(),
        );
    }

    #[test]
    fn what_it_does_not_say_is_the_models() {
        let device = device();
        let header = Header::read(old("model.safetensors")).unwrap();
        assert_eq!(header.producer(), Some("burn-flows 0.1.0"));
        assert_eq!((header.settings(), header.model()), (None, None));
        assert_eq!(header.num_values() as f64, config().num_values());
        let other = config().with_coupling(GlowCouplingKind::Affine(ScaleMap::Sigmoid));
        record::restore_with(&other, old("model.safetensors"), &device).unwrap();
        let error = Glow::load(old("model.safetensors"), &device).unwrap_err().to_string();
        assert!(error.contains("it does not say how its model is configured"), "{error}");
    }

    #[test]
    fn saved_again_it_says_what_it_is() {
        let device = device();
        let folder = folder();
        let path = folder.path().join("new.safetensors");
        record::restore_with(&config(), old("model.safetensors"), &device)
            .unwrap()
            .save(&path)
            .unwrap();
        assert_as_before(&Glow::load(&path, &device).unwrap());
    }
}
