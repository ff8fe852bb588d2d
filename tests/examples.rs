//! The examples, run as a user runs them: what they write, what they say to bad input, and that an
//! interrupted training goes on to the numbers of an uninterrupted one.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use burn::tensor::Tensor;
use burn_flows::backend::{self, NamedDevice};
use burn_flows::context::Given;
use burn_flows::data::{Images, Mnist};
use burn_flows::models::{ConditionalSplineFlow, Glow, GlowConfig};
use burn_flows::record;
use image::RgbImage;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use tempfile::TempDir;

#[path = "examples/celeba.rs"]
mod celeba;
#[cfg(feature = "images")]
#[path = "examples/explore.rs"]
mod explore;
#[path = "examples/files.rs"]
mod files;

/// Images of the small data set: what the bundled one has first.
const NUM_TRAIN: usize = 200;
const NUM_TEST: usize = 100;

/// The smallest model that has all the parts of the default one.
const SMALLEST: [&str; 6] = ["--batch", "8", "--hidden", "8", "--steps-per-level", "1"];

/// The program of an example, compiled with this test and beside it.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    // target/PROFILE/deps/examples-HASH and target/PROFILE/examples/NAME
    let profile = test.ancestors().nth(2).expect("the test is in a target folder");
    let path = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let build = "build the examples with the profile and the features of this test: \
                 cargo build --examples";
    assert!(path.exists(), "{} is missing; {build}", path.display());
    // `cargo test --test examples` alone builds no example, and would run what an earlier build left.
    if let Some(source) = newer_source(&path) {
        panic!("{} is older than {source}; {build}", path.display());
    }
    path
}

/// A source file that a program was built from and that has changed since, by the list of them that
/// cargo leaves beside the program.
fn newer_source(program: &Path) -> Option<String> {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let list = fs::read_to_string(program.with_extension("d")).ok()?;
    let built = modified(program)?;
    let sources = list.split_whitespace().skip(1);
    sources.map(String::from).find(|source| modified(Path::new(source)) > Some(built))
}

/// The last of the compiled-in devices: a CPU if there is one, because these tests are about files and
/// processes.
fn device() -> NamedDevice {
    backend::devices().pop().expect("a backend is compiled in")
}

/// An example, ready for its options.
fn example(name: &str) -> Command {
    let mut command = Command::new(program(name));
    // Where it is not set, the libraries of a GPU that is looked for say so on standard error.
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command.args(["--device", device().0]);
    command
}

/// What an example said, and how it ended.
struct Answer {
    succeeded: bool,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn of(output: Output) -> Self {
        Self {
            succeeded: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn last_line(&self) -> &str {
        assert!(self.succeeded, "{}", self.stderr);
        self.stdout.lines().last().expect("the example says how it went")
    }
}

fn answer(command: &mut Command) -> Answer {
    Answer::of(command.output().unwrap())
}

fn mnist(data: &Path, out: &Path, options: &[&str]) -> Command {
    let mut command = example("mnist");
    command.arg("--data").arg(data).arg("--out").arg(out).args(SMALLEST).args(options);
    command
}

/// The number between two texts.
fn number(text: &str, before: &str, after: &str) -> f64 {
    let rest = &text[text.find(before).unwrap_or_else(|| panic!("no {before:?}: {text}"))..];
    let rest = &rest[before.len()..];
    let end = rest.find(after).unwrap_or_else(|| panic!("no {after:?}: {text}"));
    rest[..end].trim().parse().unwrap_or_else(|_| panic!("no number: {text}"))
}

/// The first images of the bundled data, as plain IDX files under the standard names; of each the middle
/// with `side` pixels a side.
fn small_mnist(side: usize) -> TempDir {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let Mnist { train, test } = Mnist::load(bundled).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (part, images, count) in [("train", &train, NUM_TRAIN), ("t10k", &test, NUM_TEST)] {
        let write = |kind: &str, bytes: Vec<u8>| {
            fs::write(folder.path().join(format!("{part}-{kind}-ubyte")), bytes).unwrap();
        };
        write("images-idx3", idx(&[count, side, side], &middles(images, count, side)));
        write("labels-idx1", idx(&[count], &images.labels().unwrap()[..count]));
    }
    folder
}

fn middles(images: &Images, count: usize, side: usize) -> Vec<u8> {
    let [_, height, width] = images.image_shape();
    let (top, left) = ((height - side) / 2, (width - side) / 2);
    let rows = images.pixels()[..count * height * width].chunks(width).enumerate();
    rows.filter(|(row, _)| (top..top + side).contains(&(row % height)))
        .flat_map(|(_, row)| &row[left..left + side])
        .copied()
        .collect()
}

fn idx(dims: &[usize], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    bytes.extend(dims.iter().flat_map(|&dim| (dim as u32).to_be_bytes()));
    bytes.extend_from_slice(values);
    bytes
}

fn picture(path: PathBuf) -> RgbImage {
    image::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into_rgb8()
}

fn num_colors(picture: &RgbImage) -> usize {
    picture.pixels().collect::<HashSet<_>>().len()
}

/// The lines of `metrics.jsonl`.
fn metrics(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect()
}

#[test]
fn mnist_writes_all_it_promises() {
    let data = small_mnist(28);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a/new/folder");
    let answer = answer(&mut mnist(data.path(), &out, &["--steps", "2", "--seed", "7"]));

    let line = answer.last_line();
    let bits = number(line, "", " bits/dim over 100 test images");
    assert!((0.5..20.0).contains(&bits), "{line}");
    let error = number(line, "largest inversion error ", ", in ");
    assert!((0.0..1e-3).contains(&error), "{line}");
    assert!(line.ends_with(&format!("in {}", out.display())), "{line}");

    let lines = metrics(&out);
    assert_eq!(lines.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    for line in &lines {
        for key in
            ["epoch", "seconds", "train_bits_per_dim", "test_bits_per_dim", "inversion_error"]
        {
            assert!(line[key].as_f64().is_some_and(f64::is_finite), "{key}: {line}");
        }
    }
    // The first step measures the drift; what a step keeps was chosen, and said why.
    assert!((0.0..1e-3).contains(&lines[0]["drift"].as_f64().unwrap()), "{}", lines[0]);
    let memory = lines[0]["memory"].as_str().unwrap();
    assert!(["reversible", "stored"].contains(&memory), "{memory}");
    let choice = answer.stdout.lines().find(|line| line.starts_with("memory: ")).unwrap();
    assert!(choice.starts_with(&format!("memory: {memory} (")), "{choice}");
    assert_eq!(lines[1]["epoch"].as_f64().unwrap(), 2.0 / 25.0, "200 images are 25 batches of 8");
    assert!((lines[1]["test_bits_per_dim"].as_f64().unwrap() - bits).abs() < 5.1e-4);

    // Six temperatures of ten digits; ten digits and their reconstructions; 56 pixels and a gap of 2.
    let (samples, pairs) =
        (picture(out.join("samples.png")), picture(out.join("reconstructions.png")));
    assert_eq!(samples.dimensions(), (10 * 58 + 2, 6 * 58 + 2));
    assert_eq!(pairs.dimensions(), (10 * 58 + 2, 2 * 58 + 2));
    assert!(num_colors(&samples) > 20, "samples of one shade");
    assert!(num_colors(&pairs) > 20, "reconstructions of one shade");
    for (x, y, original) in pairs.enumerate_pixels().filter(|(_, y, _)| *y < 58) {
        assert_eq!(original, pairs.get_pixel(x, y + 58), "a reconstruction differs at {x}, {y}");
    }
    assert!(out.join("report.html").exists());
    let curve = picture(out.join("curve.png"));
    assert!(curve.width() >= 600 && curve.height() >= 400);
    assert!(num_colors(&curve) > 20, "an empty curve");

    // The model can be built from the configuration and loaded.
    let config: Value =
        serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["seed"], 7);
    assert_eq!(config["bits"], 8);
    let glow = &config["model"]["glow"];
    let glow: GlowConfig = serde_json::from_value(glow.clone()).unwrap();
    let model = glow.init(&mut StdRng::seed_from_u64(0), &device().1()).unwrap();
    let model = record::load(model, out.join("model.safetensors")).unwrap();
    assert_eq!(model.sample(1, 1.0).dims(), [1, 1, 28, 28]);
}

#[test]
fn a_conditional_run_writes_a_row_for_each_digit() {
    let data = small_mnist(12);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let run = |options: &[&str]| {
        let mut command = mnist(data.path(), &out, &["--conditional"]);
        command.args(options);
        command
    };
    let answer = self::answer(&mut run(&["--steps", "2"]));
    let line = answer.last_line();
    let bits = number(line, "", " bits/dim given the class over 100 test images");
    let rule = answer.stdout.lines().find(|line| line.contains("Bayes' rule")).unwrap();
    let percent = number(rule, "", " % of the test images classified right by Bayes' rule");
    let marginal = number(rule, "rule; ", " bits/dim without the class");
    // ln p(x) is at least ln p(x | y) + ln p(y) of the true class, and these are ten classes.
    let most = 20.0 / (144.0 * std::f64::consts::LN_2);
    assert!(marginal < bits + most, "{marginal} {bits}");

    let last = metrics(&out).pop().unwrap();
    assert!((last["test_bits_per_dim"].as_f64().unwrap() - bits).abs() < 5.1e-4, "{last}");
    assert!((last["test_accuracy"].as_f64().unwrap() - percent / 100.0).abs() < 1e-9, "{last}");
    assert!((last["test_marginal_bits_per_dim"].as_f64().unwrap() - marginal).abs() < 5.1e-4);
    // Ten draws of ten digits; in progress one of each.
    assert_eq!(picture(out.join("samples.png")).dimensions(), (10 * 62 + 2, 10 * 62 + 2));
    assert_eq!(picture(out.join("progress/000001.png")).dimensions(), (10 * 62 + 2, 62 + 2));
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    for text in ["right by Bayes", "test bits/dim given the class", "A row is a class, from 0 to 9"]
    {
        assert!(report.contains(text), "{text} is missing");
    }
    // The model is loaded by its path alone, without the classifier.
    let model = Glow::load(out.join("model.safetensors"), &device().1()).unwrap();
    assert_eq!(model.given_classes(&[7_u8]).unwrap().sample(1, 1.0).dims(), [1, 1, 12, 12]);

    assert_eq!(
        complaint(&mut run(&["--steps", "2", "--overwrite", "--model", "nice"])),
        "--conditional: got nice, needs glow; the other models have no classes"
    );
    assert_eq!(
        complaint(&mut run(&["--steps", "2", "--overwrite", "--classifier-weight", "-1"])),
        "--classifier-weight: got -1, needs 0 or more; 0.01 is Glow's"
    );
    let text = complaint(&mut mnist(data.path(), &out, &["--classifier-weight", "1"]));
    assert!(text.contains("--conditional"), "{text}");
}

#[test]
fn two_moons_writes_its_pictures() {
    let out = tempfile::tempdir().unwrap();
    let options = ["--steps", "3", "--batch", "16", "--out"];
    let answer = answer(example("two_moons").args(options).arg(out.path()));
    let line = answer.last_line();
    let log_prob = number(line, "", " nats a point over 10000 held-out points");
    let best = number(line, "density has ", ";");
    assert!(log_prob < best, "{line}");
    assert!((-1.1..-0.9).contains(&best), "{line}");
    assert!(number(line, "largest inversion error ", ", in ") < 1e-4, "{line}");
    for name in ["density.png", "samples.png", "latent.png"] {
        let picture = picture(out.path().join(name));
        assert!(picture.width() >= 1000 && picture.height() >= 400, "{name}");
        assert!(num_colors(&picture) > 50, "{name} is empty");
    }
}

#[test]
fn tabular_writes_scores_and_samples() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("table.csv"), folder.path().join("out"));
    let row = |i: usize| format!("{},{},{}\n", i % 7, (i * i % 11) as f64 / 3.0, i % 2);
    let rows: String = (0..100).map(row).collect();
    fs::write(&data, format!("count, size, class\n{rows}")).unwrap();
    let run = |options: &[&str]| {
        let mut command = example("tabular");
        command.arg("--data").arg(&data).arg("--out").arg(&out).args(options);
        command
    };
    let options = ["--drop", "class", "--whole", "count", "--layers", "2", "--width", "8"];
    for flow in ["real-nvp", "maf", "spline", "spline-ar"] {
        let _ = fs::remove_dir_all(&out);
        let last = ["--epochs", "2", "--batch", "32", "--samples", "5", "--flow", flow];
        let answer = answer(run(&options).args(last));
        let line = answer.last_line();
        assert!(number(line, "", " nats a row over the test rows").is_finite(), "{line}");
        let scores = fs::read_to_string(out.join("scores.csv")).unwrap();
        assert_eq!(scores.lines().count(), 101);
        assert_eq!(scores.lines().filter(|line| line.starts_with("test,")).count(), 20);
        let samples = fs::read_to_string(out.join("samples.csv")).unwrap();
        assert_eq!(samples.lines().next(), Some("count,size"));
        assert_eq!(samples.lines().count(), 6);
        assert!(out.join("model.safetensors").exists());
    }
    assert!(complaint(&mut run(&options)).contains("--overwrite replaces it"));
    let unknown = complaint(run(&["--overwrite", "--drop", "4"]).arg("--epochs").arg("1"));
    assert_eq!(
        unknown,
        "--drop: got 4, needs a name of count, size, class or a number up to 3; look at the first line of \
         the file"
    );
    for entry in ["size", "size=-1", "size=much", "weight=1"] {
        let wrong = complaint(&mut run(&["--overwrite", "--noise", entry]));
        assert!(wrong.starts_with("--noise: got "), "{wrong}");
    }
    // The run that is there stays until the new one can start.
    let bad = [["--learning-rate", "0"], ["--average", "1"], ["--layers", "0"], ["--drop", "7"]];
    for [option, value] in bad {
        let text = complaint(&mut run(&["--overwrite", option, value]));
        assert!(text.starts_with(&format!("{option}: got {value}, needs ")), "{text}");
        assert!(out.join("model.safetensors").exists(), "{option}");
    }
    let decay = complaint(&mut run(&["--overwrite", "--weight-decay=-1"]));
    assert!(decay.starts_with("--weight-decay: got -1, needs 0 or more; "), "{decay}");
    // Numbers beyond f32 are refused where the model starts from them.
    let large = folder.path().join("large.csv");
    fs::write(&large, "1e300,2\n".repeat(60)).unwrap();
    let fresh = folder.path().join("fresh");
    let mut command = example("tabular");
    command.arg("--whiten").arg("--data").arg(&large).arg("--out").arg(&fresh);
    complaint(&mut command);
    assert!(!fresh.exists(), "a run that did not start left a folder");
    // What was rounded to the same values spreads over the width.
    let noisy =
        ["--overwrite", "--drop", "class", "--noise", "count=0.5,size=0.1", "--epochs", "1"];
    let line = answer(&mut run(&noisy)).last_line().to_string();
    assert!(number(&line, "", " nats a row over the test rows").is_finite(), "{line}");
    fs::write(&data, "1,2\n3,four\n").unwrap();
    let wrong = complaint(&mut run(&["--overwrite"]));
    assert!(wrong.contains("\"four\" in line 2, column 2, expected a finite number"), "{wrong}");
    fs::write(&data, "1,2\n3\n").unwrap();
    let uneven = complaint(&mut run(&["--overwrite"]));
    assert!(uneven.contains("as many fields in every line as in the first"), "{uneven}");
    fs::write(&data, "").unwrap();
    assert!(complaint(&mut run(&["--overwrite"])).contains("no numbers"));
}

#[test]
fn table_ends_with_a_line_that_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("table.csv");
    let mut command = Command::new(program("table"));
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir()).current_dir(&folder).arg(&data);
    let missing = complaint(&mut command);
    assert!(missing.starts_with(&format!("cannot read {}: ", data.display())), "{missing}");
    // One column is nothing that a coupling could divide.
    fs::write(&data, "1\n2\n3\n".repeat(10)).unwrap();
    let narrow = complaint(&mut command);
    assert!(!narrow.contains("Config {"), "{narrow}");
    assert!(!folder.path().join("runs").exists(), "a run that did not start left a folder");
}

#[test]
fn posterior_writes_samples_and_corner_plots() {
    let folder = tempfile::tempdir().unwrap();
    let (data, reference) = (folder.path().join("x.csv"), folder.path().join("reference.csv"));
    fs::write(&data, "data_1,data_2\n0.1,-0.2\n").unwrap();
    let row = |i: usize| format!("{},{}\n", (i as f64 * 0.7).sin(), (i as f64 * 1.3).cos());
    fs::write(&reference, (0..60).map(row).collect::<String>()).unwrap();
    let run = |options: &[&str]| {
        let mut command = example("posterior");
        command.args(["--simulations", "100", "--batch", "32", "--epochs", "2"]);
        command.args(["--samples", "100"]).args(options);
        command
    };
    for task in ["two-moons", "slcp", "gaussian-linear", "gaussian-mixture"] {
        let out = folder.path().join(task);
        let answer = answer(run(&["--task", task, "--out"]).arg(&out));
        assert!(answer.last_line().contains("observation 1: 100 samples"), "{}", answer.stdout);
        let samples = fs::read_to_string(out.join("posterior-1.csv")).unwrap();
        assert!(samples.starts_with("theta_1,theta_2") && samples.lines().count() == 101);
        let picture = picture(out.join("corner-1.png"));
        assert!(picture.width() > 500 && num_colors(&picture) > 50, "{task}");
    }
    let out = folder.path().join("given");
    let mut command = run(&["--out"]);
    command.arg(&out).arg("--observation").arg(&data).arg("--observation").arg(&data);
    command.arg("--reference").arg(&reference).arg("--reference").arg(&reference);
    let answer = answer(&mut command);
    let accuracy = number(answer.last_line(), "C2ST ", " in the mean over 2 observations");
    assert!((0.3..=1.0).contains(&accuracy), "{}", answer.stdout);
    assert!(out.join("corner-2.png").exists());

    let refused = |options: &[&str]| {
        let out = folder.path().join("refused");
        let text = complaint(run(options).arg("--out").arg(&out).arg("--observation").arg(&data));
        assert!(!out.exists());
        text
    };
    let device = (device().1)();
    let model = ConditionalSplineFlow::load(out.join("model.safetensors"), &device).unwrap();
    let posterior = model.given(&Tensor::<2>::zeros([1, 2], &device)).unwrap();
    assert_eq!(posterior.sample(3, 1.0).dims(), [3, 2]);
    let average = refused(&["--average", "1"]);
    assert_eq!(average, "--average: got 1, needs at least 0 and below 1; 0.99 is usual");
    assert!(refused(&["--learning-rate", "0"]).starts_with("--learning-rate: got 0, needs "));
    for decay in ["-1", "NaN", "inf"] {
        let text = refused(&[&format!("--weight-decay={decay}")]);
        assert!(
            text.starts_with(&format!("--weight-decay: got {decay}, needs 0 or more")),
            "{text}"
        );
    }
    assert!(refused(&["--task", "slcp"]).contains("with 2 columns, needs 8 for this --task"));
    let reference = reference.to_str().unwrap();
    let both = refused(&["--reference", reference, "--reference", reference]);
    assert!(both.contains("2 for 1 observations, needs one for each"), "{both}");
}

#[test]
fn variational_estimates_two_evidences() {
    let out = tempfile::tempdir().unwrap();
    let options = ["--steps", "3", "--batch", "16", "--out"];
    let answer = answer(example("variational").args(options).arg(out.path()));
    let line = answer.last_line();
    let exact = number(line, "nats, where ", " is exact");
    // Computed apart from it: the density of the observations under their 6x6 covariance.
    assert!((exact - -5.0932).abs() < 6e-5, "{line}");
    assert!(number(line, "log-evidence ", " ±").is_finite(), "{line}");
    assert!((0.0..=100.0).contains(&number(line, "exact; ", " %")), "{line}");
    assert!(answer.stdout.contains("banana, step 1: -ELBO "), "{}", answer.stdout);
    assert!(answer.stdout.contains("where 1.7325 is exact"), "{}", answer.stdout);
    for name in ["banana", "regression"] {
        let drawn = picture(out.path().join(format!("{name}.png")));
        assert!(drawn.width() >= 900 && drawn.height() >= 400, "{name}");
        assert!(num_colors(&drawn) > 50, "{name} is empty");
        let csv = fs::read_to_string(out.path().join(format!("{name}.csv"))).unwrap();
        let mut lines = csv.lines();
        assert_eq!(lines.next(), Some("x0,x1,log_w"));
        let rows = lines.map(|line| line.split(',').filter_map(|value| value.parse::<f64>().ok()));
        assert!(rows.map(Iterator::count).eq(std::iter::repeat_n(3, 10_000)));
    }
}

#[test]
fn custom_flow_proves_its_layer() {
    let answer = answer(example("custom_flow").args(["--steps", "100", "--batch", "64"]));
    let line = answer.last_line();
    assert!(number(line, "Tails is worth ", " nats a point") > 0.0, "{line}");
    assert!(number(&format!("{line};"), "largest inversion error ", ";") < 1e-3, "{line}");
    assert!(
        answer.stdout.contains("Tails keeps the laws of a flow: round trip"),
        "{}",
        answer.stdout
    );
    assert!(
        answer.stdout.contains("So does the flow of 3 layers: round trip"),
        "{}",
        answer.stdout
    );
}

#[cfg(feature = "train")]
#[test]
fn learner_trains_and_goes_on_from_an_epoch() {
    let (data, folder) = (small_mnist(28), tempfile::tempdir().unwrap());
    let out = folder.path().join("out");
    let run = |options: &[&str]| {
        let mut command = example("learner");
        command.arg("--data").arg(data.path()).arg("--out").arg(&out).args(SMALLEST).args(options);
        command
    };
    assert_eq!(
        complaint(&mut run(&["--epochs", "0"])),
        "--epochs: got 0, needs at least 1; leave it out for the default"
    );
    let refused = complaint(&mut run(&["--resume", "1"]));
    assert_eq!(refused, format!("--resume: {} has no checkpoint of epoch 1", out.display()));
    assert!(!out.exists(), "a training that did not start left a folder");

    let answer = answer(&mut run(&["--epochs", "1"]));
    let expected = format!("the model and samples are in {}", out.display());
    assert_eq!(answer.last_line(), expected);
    assert!(answer.stdout.contains("| Valid | Bits per dimension |"), "{}", answer.stdout);
    let refused = complaint(&mut run(&["--epochs", "2"]));
    assert_eq!(refused, format!("--out: {} exists; go on with --resume", out.display()));

    let model = || fs::read(out.join("model.safetensors")).unwrap();
    let before = model();
    let resumed = self::answer(&mut run(&["--epochs", "2", "--resume", "1"]));
    assert_eq!(resumed.last_line(), expected);
    assert!(model() != before, "nothing was learned");
    for epoch in [1, 2] {
        assert!(out.join(format!("valid/epoch-{epoch}/Bits_per_dimension.log")).exists());
    }
    assert!(num_colors(&picture(out.join("samples.png"))) > 50, "samples.png is empty");
}

/// The one line that an example ends with when it cannot go on, without `error: `.
fn complaint(command: &mut Command) -> String {
    let answer = answer(command);
    assert!(!answer.succeeded, "{command:?} succeeded");
    let line = answer.stderr.strip_suffix('\n').expect("a line");
    assert!(!line.contains('\n'), "{command:?} says more than one line: {line}");
    assert!(!line.contains("panicked"), "{line}");
    line.strip_prefix("error: ").unwrap_or_else(|| panic!("{command:?}: {line}")).to_string()
}

#[test]
fn options_that_cannot_be_used() {
    let data = small_mnist(28);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let complaint = |options: &[&str]| {
        let mut command = example("mnist");
        complaint(command.arg("--data").arg(data.path()).arg("--out").arg(&out).args(options))
    };
    for option in ["--epochs", "--steps", "--batch", "--micro-batch", "--checkpoint-every"] {
        let expected = format!("{option}: got 0, needs at least 1; leave it out for the default");
        assert_eq!(complaint(&[option, "0"]), expected);
    }
    let text = complaint(&["--memory", "all"]);
    assert!(text.contains("reversible, checkpoint, checkpoint:N or stored"), "{text}");
    for bits in ["0", "99"] {
        assert_eq!(
            complaint(&["--bits", bits]),
            format!(
                "--bits: got {bits}, needs 1 to 8; 8 keeps the pixels as they are, 5 is what Glow uses \
                 for faces"
            )
        );
    }
    let rate = |value| {
        format!("--learning-rate: got {value}, needs a positive number; 1e-3 is a good start")
    };
    for value in ["0", "inf", "NaN"] {
        assert_eq!(complaint(&["--learning-rate", value]), rate(value));
    }
    assert_eq!(
        complaint(&["--model", "flux"]),
        "--model: got flux, needs glow, realnvp or nice; pass one of the three"
    );
    let text = self::complaint(Command::new(program("mnist")).args(["--device", "abacus"]));
    assert!(text.starts_with("--device: got abacus, needs "), "{text}");
    assert_eq!(
        complaint(&["--levels", "3"]),
        "Glow: num_levels is 3, but must be at most 2, as often as both sides of 28x28 halve; \
         use fewer levels, or pad or crop the images to a multiple of a power of two"
    );
    for option in ["--levels", "--steps-per-level"] {
        assert_eq!(
            complaint(&["--model", "nice", option, "9"]),
            format!(
                "{option}: got 9 with nice, which has no levels, needs glow or realnvp; \
                 leave it out for nice"
            )
        );
    }
    for option in ["--levels", "--steps-per-level", "--hidden"] {
        assert!(complaint(&[option, "0"]).contains("is 0, but must be at least 1"));
    }
    assert_eq!(
        complaint(&["--batch", "201"]),
        "Batches: batch_size is 201, but must be at most 200, the number of images to train on; \
         use smaller batches or more images"
    );
    // What is not even a number, and what is not an option.
    assert_eq!(
        complaint(&["--batch", "many"]),
        "invalid value 'many' for '--batch <BATCH>': invalid digit found in string; \
         For more information, try '--help'."
    );
    assert!(complaint(&["--bach", "8"]).starts_with("unexpected argument '--bach' found; "));
    assert!(!out.exists(), "a run that did not start left a folder");

    for name in ["two_moons", "custom_flow", "variational"] {
        for option in ["--steps", "--batch"] {
            let text = self::complaint(example(name).args([option, "0"]));
            assert_eq!(
                text,
                format!("{option}: got 0, needs at least 1; leave it out for the default")
            );
        }
    }
}

#[test]
fn data_that_cannot_be_read() {
    let data = small_mnist(28);
    let data = data.path();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let complaint = |data: &Path| {
        let text = complaint(&mut mnist(data, &out, &["--steps", "1"]));
        assert!(!out.exists(), "a run that did not start left a folder");
        text
    };

    let missing = folder.path().join("missing");
    assert_eq!(
        complaint(&missing),
        format!(
            "cannot read {}: No such file or directory (os error 2); \
             pass the folder that holds the four IDX files of MNIST",
            missing.display()
        )
    );
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(
        complaint(empty.path()),
        format!(
            "{}: no file with the training images, expected one of train-images-idx3-ubyte, \
             train-images-idx3-ubyte.gz, train-images.idx3-ubyte, train-images.idx3-ubyte.gz; \
             put it there, or pass the folder that holds all four files",
            empty.path().display()
        )
    );

    // One file at a time is spoiled, then put back.
    let spoiled = |name: &str, spoil: &dyn Fn(&mut Vec<u8>)| {
        let path = data.join(name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        spoil(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let text = complaint(data);
        fs::write(&path, whole).unwrap();
        text.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&text).to_string()
    };
    assert_eq!(
        spoiled("train-images-idx3-ubyte", &|bytes| bytes.truncate(1000)),
        "984 bytes of values, expected 156800 (200 x 28 x 28); \
         the file is truncated: delete it and download it again"
    );
    assert_eq!(
        spoiled("t10k-images-idx3-ubyte", &|bytes| bytes[..2].copy_from_slice(b"PK")),
        "the magic number 0x504b0803, expected 0x0000 and then a type and a number of dimensions, as \
         every IDX file has; pass an IDX file, plain or compressed with gzip"
    );
    assert_eq!(
        spoiled("t10k-labels-idx1-ubyte", &|bytes| *bytes = idx(&[99], &[0; 99])),
        format!(
            "99 labels, expected 100, one for each image in {}; take both files from the same data set",
            data.join("t10k-images-idx3-ubyte").display()
        )
    );
}

#[test]
fn folders_that_cannot_be_written() {
    let data = small_mnist(28);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "mine").unwrap();
    let below = file.join("below");
    for (out, reason) in
        [(&file, "File exists (os error 17)"), (&below, "Not a directory (os error 20)")]
    {
        let expected = format!(
            "cannot create the folder {}: {reason}; give --out a folder that can be written",
            out.display()
        );
        assert_eq!(complaint(&mut mnist(data.path(), out, &["--steps", "1"])), expected);
        assert_eq!(complaint(example("two_moons").arg("--out").arg(out)), expected);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");

    let locked = folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    let mut permissions = fs::metadata(&locked).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&locked, permissions).unwrap();
    // Root may write everywhere.
    if fs::write(locked.join("probe"), "").is_err() {
        let text = complaint(&mut mnist(data.path(), &locked, &["--steps", "1"]));
        assert!(text.starts_with("cannot write "), "{text}");
        assert!(text.ends_with("; give --out a folder that can be written"), "{text}");
    }
}

#[cfg(unix)]
mod interruption {
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use rand::RngExt;

    use super::*;

    /// A short run with many lines of metrics, checkpoints that fall between them, and an end that is
    /// no checkpoint by itself.
    const RUN: [&str; 6] = ["--checkpoint-every", "3", "--seed", "3", "--memory", "reversible"];
    const GLOW: [&str; 4] = ["--model", "glow", "--steps", "40"];

    /// Side of the pictures, which halves twice: a run takes a second.
    const SIDE: usize = 12;

    /// Moments at which the run is killed.
    const KILLS: usize = 10;

    /// bits/dim of a resumed run against those of an uninterrupted one. They are the same operations on
    /// the same numbers; a device may add up in another order.
    const TOLERANCE: f64 = 1e-6;

    /// An example on data, into a folder, with options.
    type Example = fn(&Path, &Path, &[&str]) -> Command;

    /// An uninterrupted run.
    struct Reference {
        example: Example,
        options: &'static [&'static str],
        data: TempDir,
        folder: TempDir,
        lines: Vec<Value>,
        duration: Duration,
    }

    impl Reference {
        fn run(options: &'static [&'static str]) -> Self {
            Self::run_of(small_mnist(SIDE), mnist, options)
        }

        fn run_of(data: TempDir, example: Example, options: &'static [&'static str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("whole");
            let start = Instant::now();
            answer(example(data.path(), &out, &RUN).args(options)).last_line();
            let duration = start.elapsed();
            Self { example, options, data, lines: metrics(&out), folder, duration }
        }

        fn command(&self, out: &Path) -> Command {
            let mut command = (self.example)(self.data.path(), out, &RUN);
            command.args(self.options);
            command
        }

        fn start(&self, out: &Path) -> std::process::Child {
            let mut command = self.command(out);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        }

        /// Resumes the run in `out` to its end and compares it; what it said.
        fn resume(&self, out: &Path) -> String {
            let answer = answer(self.command(out).arg("--resume"));
            let bits = number(answer.last_line(), "", " bits/dim");
            let lines = metrics(out);
            let steps = |lines: &[Value]| -> Vec<u64> {
                lines.iter().map(|line| line["step"].as_u64().unwrap()).collect()
            };
            assert_eq!(steps(&lines), steps(&self.lines), "steps are missing or there twice");
            for (resumed, whole) in lines.iter().zip(&self.lines) {
                same_but_for_seconds(resumed, whole);
            }
            let whole = self.lines.last().unwrap()["test_bits_per_dim"].as_f64().unwrap();
            let resumed = lines.last().unwrap()["test_bits_per_dim"].as_f64().unwrap();
            assert!((resumed - whole).abs() < TOLERANCE, "{resumed} and {whole} bits/dim");
            assert!((bits - whole).abs() < 5.1e-4, "{bits} and {whole} bits/dim");
            let seconds: Vec<f64> =
                lines.iter().map(|line| line["seconds"].as_f64().unwrap()).collect();
            assert!(seconds.is_sorted(), "time runs backwards: {seconds:?}");
            for name in ["samples.png", "reconstructions.png", "curve.png", "model.safetensors"] {
                assert!(out.join(name).exists(), "{name} is missing");
            }
            let samples = |out: &Path| fs::read(out.join("samples.png")).unwrap();
            assert!(samples(out) == samples(&self.out("whole")), "the models differ");
            answer.stdout
        }

        fn out(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }
    }

    fn same_but_for_seconds(a: &Value, b: &Value) {
        let without = |line: &Value| {
            let mut line = line.as_object().unwrap().clone();
            line.remove("seconds").unwrap();
            line.remove("seconds_waited").unwrap();
            line
        };
        assert_eq!(without(a), without(b));
    }

    fn no_checkpoint(out: &Path) -> String {
        format!("no checkpoint in {}: starting from the beginning\n", out.display())
    }

    #[test]
    fn ctrl_c_writes_a_checkpoint_and_resume_goes_on() {
        interrupt_and_resume(small_mnist(SIDE), mnist, &GLOW);
    }

    #[test]
    fn a_model_with_batch_norm_goes_on_with_its_running_moments() {
        let options = &["--model", "realnvp", "--levels", "1", "--steps", "12"];
        interrupt_and_resume(small_mnist(SIDE), mnist, options);
    }

    #[test]
    fn a_conditional_run_goes_on_with_its_classifier() {
        interrupt_and_resume(small_mnist(SIDE), mnist, &["--conditional", "--steps", "40"]);
    }

    #[test]
    fn a_model_of_vectors_goes_on() {
        let nice = |data: &Path, out: &Path, options: &[&str]| {
            let mut command = example("mnist");
            command.arg("--data").arg(data).arg("--out").arg(out);
            command.args(["--batch", "8", "--hidden", "8"]).args(options);
            command
        };
        interrupt_and_resume(small_mnist(SIDE), nice, &["--model", "nice", "--steps", "40"]);
    }

    pub(super) fn interrupt_and_resume(
        data: TempDir,
        example: Example,
        options: &'static [&'static str],
    ) {
        let reference = Reference::run_of(data, example, options);
        let out = reference.out("interrupted");
        let child = reference.start(&out);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !out.join("checkpoint/checkpoint.txt").exists() {
            assert!(Instant::now() < deadline, "no checkpoint after a minute");
            sleep(Duration::from_millis(1));
        }
        let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let answer = Answer::of(child.wait_with_output().unwrap());
        let line = answer.last_line();
        let step = number(line, "interrupted after step ", ";");
        assert!(line.ends_with("; go on with the same command and --resume"), "{line}");
        let lines = metrics(&out);
        assert!(lines.len() < reference.lines.len());
        assert!(lines.last().is_none_or(|line| line["step"].as_f64().unwrap() <= step));

        // Not with other options.
        let mut other = reference.command(&out);
        assert_eq!(
            complaint(other.args(["--learning-rate", "1e-4", "--resume"])),
            format!(
                "{}: the interrupted run had another configuration; \
                 resume with the options that it was started with",
                out.join("config.json").display()
            )
        );
        let stdout = reference.resume(&out);
        assert!(!stdout.contains("no checkpoint"), "{stdout}");
        // A run that is over has nothing left to do.
        reference.resume(&out);
    }

    #[test]
    fn without_a_checkpoint_resume_says_so_and_starts_from_the_beginning() {
        let reference = Reference::run(&GLOW);
        let out = reference.out("nothing");
        assert!(reference.resume(&out).contains(&no_checkpoint(&out)));
        // With --overwrite an old run is not gone on with, and leaves nothing behind.
        let out = reference.out("again");
        let other = ["--steps", "2", "--seed", "9"];
        answer(&mut mnist(reference.data.path(), &out, &other)).last_line();
        answer(reference.command(&out).arg("--overwrite")).last_line();
        for (again, whole) in metrics(&out).iter().zip(&reference.lines) {
            same_but_for_seconds(again, whole);
        }
    }

    #[test]
    fn kill_9_at_any_moment_loses_no_more_than_the_last_checkpoint() {
        let reference = Reference::run(&GLOW);
        let mut rng = StdRng::seed_from_u64(4);
        let mut from_the_beginning = 0;
        for kill in 0..KILLS {
            let out = reference.out(&format!("killed-{kill}"));
            let moment = reference.duration.mul_f64(rng.random());
            let mut child = reference.start(&out);
            sleep(moment);
            child.kill().unwrap();
            child.wait().unwrap();
            let checkpoint = out.join("checkpoint/checkpoint.txt").exists();
            let stdout = reference.resume(&out);
            assert_eq!(!checkpoint, stdout.contains(&no_checkpoint(&out)), "{stdout}");
            from_the_beginning += usize::from(!checkpoint);
        }
        assert!(from_the_beginning < KILLS, "no run came as far as its first checkpoint");
    }
}
