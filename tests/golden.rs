//! Every layer and model against numbers of published PyTorch code and of the papers' formulas.
//!
//! `tests/golden/README.md` says what the files hold. Each is built from its own metadata, in f64 and
//! in f32 on every compiled-in device, and everything that it holds is compared, as is the inverse with `x`. Further files are
//! checked where `BURN_FLOWS_GOLDEN_DIR` names a folder of them.
//!
//! One line a file: `NAME  max_error_z  max_error_log_det  ok`, the errors being those in f64.

mod golden_support;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use burn_flows::backend;
use golden_support::{Computed, Errors, Golden, INVERSE, cases, compare, files, name};

/// `|a - b| / (1 + |b|)`: the files were computed in f64, whose rounding the deepest of them
/// accumulates to some 1e-13.
const TOLERANCE_F64: f64 = 1e-10;

/// The way back multiplies rounding by the inverse's gain.
const INVERSE_TOLERANCE_F64: f64 = 1e-9;

/// PyTorch in f32 stays below 3e-6 on the same files.
const TOLERANCE_F32: f64 = 1e-4;

/// Files whose way back PyTorch itself misses by more than that in f32, and by how much: ours may not be
/// worse.
const INVERSE_OF_PYTORCH_F32: [(&str, f64); 1] = [("rosinality_affine_lu", 2.1e-4)];

/// Largest errors in f64 over all compiled-in devices that have it, or what went wrong.
fn check(path: &Path) -> Result<Errors, String> {
    let mut worst = Errors::new();
    for (name, device) in backend::devices() {
        let golden = Golden::read(path, &device())?;
        let in_f32 = errors(&golden.with_dtype(DType::F32))?;
        let way_back = INVERSE_OF_PYTORCH_F32.iter().find(|(file, _)| *file == self::name(path));
        assert_within(name, "f32", &in_f32, |name| match way_back {
            Some((_, tolerance)) if name.starts_with(INVERSE) => *tolerance,
            _ => TOLERANCE_F32,
        })?;
        // A GPU has no f64.
        if !backend::is_host(&device()) {
            continue;
        }
        let in_f64 = errors(&golden.with_dtype(DType::F64))?;
        assert_within(name, "f64", &in_f64, |name| match name.starts_with(INVERSE) {
            true => INVERSE_TOLERANCE_F64,
            false => TOLERANCE_F64,
        })?;
        for (name, error) in in_f64 {
            let worst = worst.entry(name).or_insert(error);
            *worst = worst.max(error);
        }
    }
    Ok(worst)
}

fn errors(golden: &Golden) -> Result<Errors, String> {
    compare(golden, &cases::compute(golden)?)
}

fn assert_within(
    device: &str,
    dtype: &str,
    errors: &Errors,
    tolerance: impl Fn(&str) -> f64,
) -> Result<(), String> {
    for (name, &error) in errors {
        let tolerance = tolerance(name);
        // Written so that a NaN fails.
        if error.is_nan() || error > tolerance {
            return Err(format!(
                "{name} on {device} in {dtype} is off by {error:.1e}, not {tolerance:.0e}"
            ));
        }
    }
    Ok(())
}

/// As [`check`], a panic being an error like any other.
fn checked(path: &Path) -> Result<Errors, String> {
    catch_unwind(AssertUnwindSafe(|| check(path))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Err(text.unwrap_or("panicked".into()))
    })
}

fn largest(errors: &Errors, is: impl Fn(&str) -> bool) -> f64 {
    errors.iter().filter(|(name, _)| is(name)).map(|(_, &error)| error).fold(0.0, f64::max)
}

/// The line of a file, and whether it agrees.
fn report(path: &Path) -> (String, bool) {
    let name = name(path);
    match checked(path) {
        Ok(errors) => {
            let z = largest(&errors, |name| name == "z" || name.starts_with("z."));
            let log_det = largest(&errors, |name| name == "log_det");
            (format!("{name}  {z:.1e}  {log_det:.1e}  ok"), true)
        }
        Err(reason) => (format!("{name}  {reason}  FAIL"), false),
    }
}

fn folders() -> Vec<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut folders =
        ["golden", "golden-libraries", "golden-general"].map(|name| tests.join(name)).to_vec();
    folders.extend(std::env::var_os("BURN_FLOWS_GOLDEN_DIR").map(PathBuf::from));
    folders
}

#[test]
fn every_golden_file_agrees() {
    let mut failures = Vec::new();
    // The test runner may have left its own line open.
    writeln!(std::io::stdout()).unwrap();
    for path in folders().iter().flat_map(|folder| files(folder)) {
        let (line, agrees) = report(&path);
        // Not `println!`, whose output a passing test keeps to itself.
        writeln!(std::io::stdout(), "{line}").unwrap();
        if !agrees {
            failures.push(line);
        }
    }
    assert!(
        failures.is_empty(),
        "{} golden files differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// A file that cannot be read, or whose class is not known, fails by name.
#[test]
fn what_is_not_known_fails() {
    let (line, agrees) = report(Path::new("no/such/file.safetensors"));
    assert!(line.starts_with("file  ") && line.ends_with("  FAIL") && !agrees, "{line}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("novel.safetensors");
    let header = r#"{"__metadata__":{"class":"flows.Novel"},"x":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(&path, [&length[..], header.as_bytes(), &[0; 8]].concat()).unwrap();
    assert_eq!(report(&path), (r#"novel  unknown class "flows.Novel"  FAIL"#.into(), false));
}

/// A wrong value and a NaN are found.
#[test]
fn differences_are_found() {
    let path = &files(&folders()[0])[0];
    let device = backend::device();
    // A GPU has no f64.
    let (dtype, tolerance) = match backend::is_host(&device) {
        true => (DType::F64, TOLERANCE_F64),
        false => (DType::F32, TOLERANCE_F32),
    };
    let golden = Golden::read(path, &device).unwrap().with_dtype(dtype);
    for wrong in [f64::NAN, 1.0] {
        let mut computed: Computed = cases::compute(&golden).unwrap();
        computed.values.get_mut("log_det").unwrap()[0] += wrong;
        let error = compare(&golden, &computed).unwrap()["log_det"];
        assert!(error.is_nan() || error > tolerance, "{error}");
    }
}
