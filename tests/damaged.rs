//! Files from elsewhere, damaged in every way: what `fuzz/` found is read again, and records and
//! configurations, whose readers need Burn, are changed here.

#![cfg(feature = "images")]

mod damaged {
    pub mod change;
    mod readers;

    pub use readers::*;
}

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use burn_flows::coupling::ScaleMap;
use burn_flows::models::{
    ConditionalSplineFlowConfig, GlowConfig, GlowCouplingKind, GlowMixingKind, MafConfig,
    NiceConfig, RealNvpConfig, RealNvpVectorConfig, SplineFlowConfig, SplineFlowKind,
};
use burn_flows::record::{self, Configuration, Header};
use burn_flows::testing::seeded;
use damaged::{Limited, READERS, change, within};
use rand::SeedableRng;
use rand::rngs::StdRng;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

/// Changes that are tried in an ordinary run of the tests.
const FEW: u64 = 300;

/// Calls `attempt` with 0, 1, 2, …: a few times, or for `FUZZ_SECONDS`.
fn repeatedly(mut attempt: impl FnMut(u64)) {
    let time = std::env::var("FUZZ_SECONDS").ok();
    let time = time.map(|time| Duration::from_secs(time.parse().expect("FUZZ_SECONDS: a number")));
    let start = Instant::now();
    let count = (0..).take_while(|&number| match time {
        Some(time) => start.elapsed() < time,
        None => number < FEW,
    });
    println!("{} changes", count.inspect(|&number| attempt(number)).count());
}

#[test]
fn the_corpus_is_read_without_a_panic() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/damaged/corpus");
    for (name, reader) in READERS {
        let files: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().collect();
        assert!(files.len() >= 5, "{name}: {} files", files.len());
        for file in files {
            let path = file.unwrap().path();
            println!("{}", path.display());
            reader(&fs::read(path).unwrap());
        }
    }
}

/// A device in main memory, where one is compiled in: what a GPU holds is not counted here.
fn device() -> Device {
    burn_flows::backend::devices().pop().expect("a device is compiled in").1()
}

/// Of a byte of a record: a parameter of four in f32 is an entry of names, tables and modules.
const OF_A_RECORD: usize = 1000;

/// Small models of every kind, as their configurations.
fn glows() -> [GlowConfig; 2] {
    let glow = GlowConfig::new([1, 4, 4], 1, 1, 2);
    [
        glow.clone().with_coupling(GlowCouplingKind::Affine(ScaleMap::Tanh)),
        glow.with_coupling(GlowCouplingKind::Affine(ScaleMap::default()))
            .with_mixing(GlowMixingKind::Conv1x1Plu)
            .with_logit(0.05),
    ]
}

fn real_nvp() -> RealNvpConfig {
    RealNvpConfig::new([1, 4, 4], 2, 2, 1)
}

fn vectors() -> RealNvpVectorConfig {
    RealNvpVectorConfig::new(3, 2, vec![4]).with_batch_norm(true)
}

fn nice() -> NiceConfig {
    NiceConfig::new(4, vec![3, 3]).with_num_couplings(3)
}

fn maf() -> MafConfig {
    MafConfig::new(3, 2, vec![4]).with_batch_norm(true).with_scale_map(ScaleMap::Tanh)
}

fn splines() -> SplineFlowConfig {
    SplineFlowConfig::new(2, 2, vec![4]).with_kind(SplineFlowKind::Autoregressive).with_bins(3, 2.0)
}

fn posterior() -> ConditionalSplineFlowConfig {
    ConditionalSplineFlowConfig::new(SplineFlowConfig::new(2, 1, vec![3]).with_context(2))
}

fn record_of<C: Configuration>(configuration: &C) -> Vec<u8> {
    let device = device();
    let model = seeded(1, &device, || configuration.build(&device)).unwrap();
    record::to_bytes(&model).unwrap()
}

/// Reads a changed record in every way: by its own configuration, and by the one it had.
fn read_record<C: Configuration>(configuration: &C, bytes: &[u8], path: &Path) -> bool {
    fs::write(path, bytes).unwrap();
    let device = device();
    within(bytes.len(), OF_A_RECORD, || {
        let _ = Header::read(path);
        let by_it = record::restore_with(configuration, path, &device).is_ok();
        record::restore::<C>(path, &device).is_ok() || by_it
    })
}

fn change_records<C: Configuration>(configuration: &C) {
    let whole = record_of(configuration);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.safetensors");
    assert!(read_record(configuration, &whole, &path), "as it was written");
    let mut loaded = 0u64;
    repeatedly(|number| {
        let bytes = change::of_record(&whole, &mut StdRng::seed_from_u64(number));
        loaded += u64::from(read_record(configuration, &bytes, &path));
    });
    println!("{}: {loaded} of them load", C::NAME);
}

/// A configuration from elsewhere with a whole record: `config.json` beside `model.safetensors`.
fn change_configurations<C: Configuration>(configuration: &C) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.safetensors");
    let record = record_of(configuration);
    fs::write(&path, &record).unwrap();
    let (text, device) = (serde_json::to_string(configuration).unwrap(), device());
    let mut read = 0u64;
    repeatedly(|number| {
        let mut text = text.clone();
        change::of_text(&mut text, &mut StdRng::seed_from_u64(number));
        within(text.len() + record.len(), OF_A_RECORD, || {
            let Ok(changed) = serde_json::from_str::<C>(&text) else { return };
            read += 1;
            let _ = record::restore_with(&changed, &path, &device);
        });
    });
    assert!(read > 0, "none was a configuration");
}

macro_rules! changed {
    ($($records:ident, $configurations:ident, $configuration:expr;)*) => {$(
        #[test]
        fn $records() {
            change_records(&$configuration);
        }

        #[test]
        fn $configurations() {
            change_configurations(&$configuration);
        }
    )*};
}

changed! {
    records_of_glow, configurations_of_glow, glows()[0];
    records_of_glow_with_plu, configurations_of_glow_with_plu, glows()[1];
    records_of_real_nvp, configurations_of_real_nvp, real_nvp();
    records_of_vectors, configurations_of_vectors, vectors();
    records_of_nice, configurations_of_nice, nice();
    records_of_maf, configurations_of_maf, maf();
    records_of_splines, configurations_of_splines, splines();
    records_of_posterior, configurations_of_posterior, posterior();
}
