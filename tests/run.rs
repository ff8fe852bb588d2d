//! The public run, as a program that uses the library has it: files, early stopping, and a run that goes on to
//! the numbers of one that was not interrupted.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flows::backend::hosts;
use burn_flows::conditioner::{Mlp, MlpConfig};
use burn_flows::context::{Given, WithContext};
use burn_flows::coupling::{AffineCoupling, Mask, Parity, ScaleMap};
use burn_flows::data::{Images, Table, random_for, streams};
use burn_flows::linear::DiagonalScaling;
use burn_flows::models::{GlowConfig, Maf, MafConfig};
use burn_flows::norm::ActNorm;
use burn_flows::prior::StandardNormal;
use burn_flows::run::{
    End, Evaluation, HeldOut, ImageParts, ImageRun, Measured, Metrics, Outcome, Run, Source,
};
use burn_flows::training::{Memory, Schedule, Trainable, Trainer};
use burn_flows::{Density, FlowError, FlowStack, Result, record};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Points on a bent line.
fn points(count: usize, stream: u64, device: &Device) -> Tensor<2> {
    let mut rng = random_for(3, streams::USER, stream);
    let mut values = Vec::new();
    for _ in 0..count {
        let (a, b) = (rng.random::<f64>() * 4.0 - 2.0, rng.random::<f64>());
        values.extend([a, a * a + 0.3 * b]);
    }
    Tensor::from_data(TensorData::new(values, [count, 2]), (device, DType::F32))
}

fn device() -> Device {
    (hosts().pop().expect("a device on the host").1)()
}

fn maf(device: &Device) -> Maf {
    device.seed(5);
    MafConfig::new(2, 2, vec![12]).init(device).unwrap()
}

fn train(run: &Run, rate: f64, device: &Device) -> Result<Outcome<Maf>> {
    let trainer = Trainer::new(maf(device), Schedule::constant(rate)).with_average(0.9);
    let source = Source::rows(points(90, 0, device), 30, 1)?;
    run.train(trainer, source, HeldOut::rows(points(40, 1, device)))
}

fn lines(folder: &Path) -> Vec<Metrics> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn log_prob(model: &Maf, device: &Device) -> Vec<f32> {
    Density::log_prob(model, points(10, 2, device)).try_into_vec_as().unwrap()
}

#[test]
fn a_run_leaves_all_that_it_promises() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let path = folder.path().join("a/run");
    let run = Run::new(&path).with_epochs(4).with_title("A <run>").quiet();
    let outcome = train(&run, 2e-3, &device).unwrap();
    assert_eq!((outcome.end, outcome.best_step), (End::Finished, 12));
    let metrics = lines(&path);
    // A tenth of the run is one step.
    assert_eq!(metrics.iter().map(|line| line.step).collect::<Vec<_>>(), Vec::from_iter(1..=12));
    assert_eq!(metrics[5].epoch, Some(2.0));
    let last = metrics.last().unwrap();
    assert!((last.held_out_loss.unwrap() - outcome.held_out_loss.unwrap()).abs() < 1e-12);
    assert_eq!(last.held_out_samples, Some(40));
    assert!(last.inversion_error.unwrap() < 1e-3 && last.train_loss.unwrap().is_finite());
    assert!(last.train_bits_per_dim.is_none());

    // What was saved is what is given back, the averages.
    let saved = Maf::load(path.join("model.safetensors"), &device).unwrap();
    assert_eq!(log_prob(&saved, &device), log_prob(&outcome.model, &device));
    let table = Table::read(path.join("samples.csv")).unwrap();
    assert_eq!((table.rows.len(), &table.names[0][..]), (40, "column_1"));
    for name in ["curve.png", "samples.png"] {
        assert!(image::open(path.join(name)).unwrap().width() > 400, "{name}");
    }
    let report = fs::read_to_string(path.join("report.html")).unwrap();
    for text in
        ["A &lt;run&gt;", "-ln p held out", "held-out samples", "num_parameters", "data:image"]
    {
        assert!(report.contains(text), "{text} is missing");
    }
}

#[test]
fn a_run_that_goes_on_ends_as_one_that_did_not_stop() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let run = |name: &str, rate| {
        let run = Run::new(folder.path().join(name)).with_steps(20).with_checkpoint_every(4);
        let run = run.with_memory(Memory::Reversible).with_resume(true).quiet();
        train(&run, rate, &device)
    };
    let whole = run("whole", 2e-3).unwrap();
    // A rate that is none after 10 steps ends the run as a fault would, after the checkpoint of step 10.
    let trainer = Trainer::new(maf(&device), |step: usize| if step < 10 { 2e-3 } else { 0.0 });
    let source = Source::rows(points(90, 0, &device), 30, 1).unwrap();
    let part = Run::new(folder.path().join("part")).with_steps(20).with_checkpoint_every(4);
    let part = part.with_memory(Memory::Reversible).quiet();
    let held_out = HeldOut::rows(points(40, 1, &device));
    let error = part.train(trainer.with_average(0.9), source, held_out).unwrap_err().to_string();
    assert!(error.contains("learning rate"), "{error}");

    let resumed = run("part", 2e-3).unwrap();
    assert_eq!(log_prob(&resumed.model, &device), log_prob(&whole.model, &device));
    let (part, whole) = (lines(&folder.path().join("part")), lines(&folder.path().join("whole")));
    assert_eq!(part.len(), whole.len());
    for (part, whole) in part.iter().zip(&whole) {
        assert_eq!((part.step, part.train_loss), (whole.step, whole.train_loss));
        assert_eq!(part.held_out_loss, whole.held_out_loss);
    }
    // A run that is over has nothing left to do; another model is not gone on with.
    assert_eq!(run("part", 2e-3).unwrap().best_step, 20);
    let other = Run::new(folder.path().join("part")).with_steps(21).with_resume(true).quiet();
    let error = train(&other, 2e-3, &device).unwrap_err().to_string();
    assert!(error.contains("the interrupted run had another configuration"), "{error}");
}

#[test]
fn patience_ends_a_run_with_the_best_model() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let path = folder.path().join("run");
    // So fast that the held-out samples become less likely again.
    let run = Run::new(&path).with_patience(3).with_epochs(200).quiet();
    let outcome = train(&run, 0.03, &device).unwrap();
    assert_eq!(outcome.end, End::Early);
    let measured: Vec<(usize, f64)> =
        lines(&path).iter().filter_map(|line| Some((line.step, line.held_out_loss?))).collect();
    let best = measured.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!((outcome.best_step, outcome.held_out_loss.unwrap()), (best.0, best.1));
    assert_eq!(measured.last().unwrap().0, best.0 + 3 * 3, "three passes of three steps");
    let again = HeldOut::rows(points(40, 1, &device)).measure(&outcome.model, 0, true).unwrap();
    assert!((again.unwrap().loss - best.1).abs() < 1e-9);
    let saved = Maf::load(path.join("model.safetensors"), &device).unwrap();
    assert_eq!(log_prob(&saved, &device), log_prob(&outcome.model, &device));
    // Asked again, it says the same.
    let again = train(&run.clone().with_resume(true), 0.03, &device).unwrap();
    assert_eq!((again.end, again.best_step), (End::Early, outcome.best_step));
    assert_eq!(log_prob(&again.model, &device), log_prob(&outcome.model, &device));
}

#[test]
fn what_cannot_be_used_is_said_by_the_name_of_its_method() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let path = folder.path().join("run");
    let complaint = |run: Run| train(&run.quiet(), 1e-3, &device).unwrap_err().to_string();
    let run = || Run::new(&path);
    assert_eq!(
        complaint(run().with_steps(0)),
        "Run::with_steps: got 0, needs at least 1; leave it out for the default"
    );
    assert!(complaint(run()).starts_with("Run::with_steps: got nothing, needs the length"));
    assert!(!path.exists(), "a run that did not start left a folder");
    train(&run().with_steps(1).quiet(), 1e-3, &device).unwrap();
    assert_eq!(
        complaint(run().with_steps(1)),
        format!(
            "Run::new: got {}, which has a config.json already, needs a folder without a run; \
             Run::with_resume goes on with a run, Run::with_overwrite replaces it",
            path.display()
        )
    );
    train(&run().with_steps(1).with_overwrite(true).quiet(), 1e-3, &device).unwrap();
    // Passes, of batches that have none; and too few batches.
    let trainer = || Trainer::new(maf(&device), Schedule::constant(1e-3));
    let batch = points(8, 4, &device);
    let again = batch.clone();
    let source = Source::by_step(move |_| Ok(again.clone()));
    let error = Run::new(folder.path().join("b")).with_epochs(2).quiet();
    let error = error.train(trainer(), source, ()).unwrap_err().to_string();
    assert!(error.starts_with("Run::with_epochs: got 2, needs batches that make up"), "{error}");
    let few = Run::new(folder.path().join("c")).with_steps(5).quiet();
    let error = few.train(trainer(), Source::iter(vec![batch; 3]), ()).unwrap_err().to_string();
    assert!(error.starts_with("Source: the batches of a run: got 3, needs more"), "{error}");
}

/// A run that came to nothing is in nobody's way; what is not a run's is.
#[test]
fn a_run_that_came_to_nothing_is_not_in_the_way() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let path = folder.path().join("run");
    let run = || Run::new(&path).with_steps(1).quiet();
    let nothing = Tensor::<2>::full([30, 2], f32::NAN, &device);
    let trainer = || Trainer::new(waiting(&device), Schedule::constant(1e-3));
    let source = Source::rows(nothing, 30, 1).unwrap();
    run().train(trainer(), source, HeldOut::rows(points(40, 1, &device))).unwrap_err();
    assert!(path.join("config.json").exists() && !path.join("model.safetensors").exists());
    // Beside another's results it is that one's.
    fs::write(path.join("density.png"), "mine").unwrap();
    let error = train(&run(), 1e-3, &device).unwrap_err().to_string();
    assert!(error.contains("which has a config.json already"), "{error}");
    fs::remove_file(path.join("density.png")).unwrap();
    for resume in [true, false] {
        train(&run().with_resume(resume), 1e-3, &device).unwrap();
        fs::remove_file(path.join("checkpoint/checkpoint.txt")).unwrap();
        let error = train(&run().with_resume(resume), 1e-3, &device).unwrap_err().to_string();
        assert!(error.contains("which has a"), "{error}");
        fs::remove_dir_all(&path).unwrap();
    }
    // A configuration that no run wrote.
    fs::create_dir(&path).unwrap();
    fs::write(path.join("config.json"), "mine").unwrap();
    for resume in [true, false] {
        let error = train(&run().with_resume(resume), 1e-3, &device).unwrap_err().to_string();
        assert!(error.contains("which has a config.json"), "{error}");
    }
    let error = run().make_folder(&["density.png"]).unwrap_err().to_string();
    assert!(error.contains("which has a config.json already"), "{error}");
    assert_eq!(fs::read_to_string(path.join("config.json")).unwrap(), "mine");

    // Of a program that writes its files itself: while it runs no other may, later it is as good as empty.
    fs::remove_dir_all(&path).unwrap();
    let claim = run().make_folder(&["density.png"]).unwrap();
    let error = run().make_folder(&["density.png"]).unwrap_err().to_string();
    assert!(error.contains("which another process trains into"), "{error}");
    drop(claim);
    let _claim = run().make_folder(&["density.png"]).unwrap();
}

/// A model that starts from its first batch.
fn waiting(device: &Device) -> FlowStack<2, ActNorm> {
    FlowStack::single(ActNorm::new(2, device).unwrap(), StandardNormal::new(), &[2]).unwrap()
}

/// A flow whose couplings see the context.
type Conditional = FlowStack<2, Vec<(ActNorm, AffineCoupling<WithContext<Mlp>>)>>;

#[test]
fn samples_and_contexts_are_trained_on_too() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let step = |i| {
        let net = MlpConfig::new(2, vec![8], 2).init(&device).unwrap();
        let net = WithContext::new(net, 1, &device);
        let mask = Mask::ChannelHalves(Parity::of(i));
        let coupling = AffineCoupling::affine(net, mask, ScaleMap::default(), 2, &device).unwrap();
        (ActNorm::new(2, &device).unwrap(), coupling)
    };
    let flow = (0..2).map(step).collect();
    let model: Conditional = FlowStack::single(flow, StandardNormal::new(), &[2]).unwrap();
    let trainer = Trainer::new(model, Schedule::constant(1e-3));
    let rows = |stream| {
        let x = points(60, stream, &device);
        (x.clone(), x.narrow(1, 0, 1) * 0.5)
    };
    let (train, held_out) = (rows(0), rows(1));
    let contexts = held_out.1.clone();
    let evaluation = HeldOut::new(held_out.clone())
        .with_draws(move |model: &Conditional, rng| {
            Ok(model.given(&contexts)?.sample_with(60, 1.0, rng))
        })
        .with_reference(held_out.0);
    let path = folder.path().join("run");
    let source = Source::rows(train, 20, 0).unwrap();
    let outcome =
        Run::new(&path).with_epochs(2).quiet().train(trainer, source, evaluation).unwrap();
    assert!(outcome.held_out_loss.unwrap().is_finite());
    assert_eq!(Table::read(path.join("samples.csv")).unwrap().rows.len(), 60);
    assert!(
        outcome.to_string().starts_with(&format!("{:.3} nats", outcome.held_out_loss.unwrap()))
    );
}

#[test]
fn contexts_of_another_number_than_samples_are_no_source() {
    let device = device();
    for contexts in [40, 5] {
        let pairs = (points(32, 1, &device), points(contexts, 2, &device));
        let error = Source::rows(pairs, 8, 0).err().expect("these are no pairs").to_string();
        let got = format!("Source::rows: the contexts: got {contexts} for 32 samples");
        assert!(error.starts_with(&got), "{error}");
    }
    assert!(Source::rows((points(32, 1, &device), points(1, 2, &device)), 8, 0).is_ok());
}

#[test]
fn what_cannot_be_held_out_is_refused_before_the_first_step() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let path = folder.path().join("run");
    let trainer = || Trainer::new(maf(&device), Schedule::constant(1e-3));
    let source = || Source::rows(points(8, 0, &device), 4, 0).unwrap();
    let run = Run::new(&path).with_steps(3).quiet();
    let none = HeldOut::rows(points(1, 1, &device).slice([0..0, 0..2]));
    let error = run.train(trainer(), source(), none).unwrap_err().to_string();
    assert!(error.starts_with("HeldOut: the held-out samples: got none"), "{error}");
    assert!(!path.exists(), "a run that did not start left a folder");
    for names in [&["a"][..], &["a", "b", "c"]] {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let held_out = HeldOut::rows(points(20, 1, &device)).with_names(&names);
        let error = run.train(trainer(), source(), held_out).unwrap_err().to_string();
        let got = format!("HeldOut::with_names: got {} names, needs 2", names.len());
        assert!(error.starts_with(&got), "{error}");
        assert!(!path.exists(), "a run that did not start left a folder");
    }
    // One is enough.
    run.train(trainer(), source(), HeldOut::rows(points(1, 1, &device))).unwrap();
}

/// An evaluation of one's own: a figure, and a model that is not all that is trained.
struct Spread;

impl<M: Density<2> + Trainable<Tensor<2>>> Evaluation<M> for Spread {
    type Saved = M;

    fn saved(&self, model: M) -> M {
        model
    }

    fn measure(&mut self, model: &M, _step: usize, _is_final: bool) -> Result<Option<Measured>> {
        let draws = model.sample_with(50, 1.0, &mut StdRng::seed_from_u64(0));
        let spread = draws.abs().max().into_scalar::<f64>();
        let more = BTreeMap::from([("spread".to_string(), spread)]);
        Ok(Some(Measured { loss: 1.0 / spread, num_samples: 50, more, ..Measured::default() }))
    }
}

#[test]
fn figures_of_ones_own_are_lines_and_curves() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let flow = DiagonalScaling::new(2, &device).unwrap();
    let model: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2]).unwrap();
    let trainer = Trainer::new(model, Schedule::constant(0.05));
    let of_step = device.clone();
    let source = Source::by_step(move |step| Ok(points(16, 100 + step as u64, &of_step)));
    let path = folder.path().join("run");
    let run = Run::new(&path).with_steps(30).with_measure_every(10).quiet();
    let outcome = run.train(trainer, source, Spread).unwrap();
    let spread: Vec<f64> =
        lines(&path).iter().filter_map(|line| line.more.get("spread").copied()).collect();
    assert_eq!(spread.len(), 3);
    assert!(spread[2] > spread[0], "the points are wider than a standard normal: {spread:?}");
    assert!(fs::read_to_string(path.join("report.html")).unwrap().contains("spread"));
    let saved = record::load(outcome.model.clone(), path.join("model.safetensors")).unwrap();
    assert_eq!(saved.num_params(), 2);
}

/// Figures by the step.
struct Figures(&'static str, fn(usize) -> f64);

impl Evaluation<Maf> for Figures {
    type Saved = Maf;

    fn saved(&self, model: Maf) -> Maf {
        model
    }

    fn measure(&mut self, _: &Maf, step: usize, _is_final: bool) -> Result<Option<Measured>> {
        let more = BTreeMap::from([(self.0.to_string(), self.1(step))]);
        Ok(Some(Measured { loss: 1.0, num_samples: 1, more, ..Measured::default() }))
    }
}

#[test]
fn a_figure_that_is_no_number_once_costs_no_line_of_a_run_that_goes_on() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let path = folder.path().join("run");
    let run = || {
        let run = Run::new(&path).with_steps(30).with_measure_every(5).with_checkpoint_every(5);
        run.with_resume(true).quiet()
    };
    let source = || Source::rows(points(64, 0, &device), 16, 0).unwrap();
    let figures = || Figures("spread", |step| if step == 10 { f64::NAN } else { 1.0 });
    let rate = |step: usize| if step < 20 { 1e-3 } else { 0.0 };
    run().train(Trainer::new(maf(&device), rate), source(), figures()).unwrap_err();
    assert_eq!(lines(&path).len(), 4);
    // The last line as an interruption leaves it.
    let metrics = path.join("metrics.jsonl");
    fs::write(&metrics, fs::read_to_string(&metrics).unwrap() + "{\"step\":2").unwrap();
    let trainer = Trainer::new(maf(&device), Schedule::constant(1e-3));
    let outcome = run().train(trainer, source(), figures()).unwrap();
    let after = lines(&path);
    assert_eq!(after.iter().map(|line| line.step).collect::<Vec<_>>(), [5, 10, 15, 20, 25, 30]);
    assert!(after[1].more["spread"].is_nan() && after[2].more["spread"] == 1.0);
    assert_eq!(outcome.metrics.len(), 6);
}

/// What cannot be had after some steps: the figures, or the pictures.
struct Failing {
    measure_at: usize,
    progress_at: usize,
}

impl Failing {
    fn or_fail(step: usize, at: usize) -> Result<()> {
        match step >= at {
            true => Err(FlowError::invalid("the figure", "nothing", "something", "look")),
            false => Ok(()),
        }
    }
}

impl Evaluation<Maf> for Failing {
    type Saved = Maf;

    fn saved(&self, model: Maf) -> Maf {
        model
    }

    fn measure(&mut self, _: &Maf, step: usize, _is_final: bool) -> Result<Option<Measured>> {
        Self::or_fail(step, self.measure_at)?;
        Ok(Some(Measured { loss: 1.0, num_samples: 1, ..Measured::default() }))
    }

    fn progress(&mut self, _: &Maf, step: usize, _folder: &Path) -> Result<()> {
        Self::or_fail(step, self.progress_at)
    }
}

/// Model and checkpoint are in the folder, and the run goes on from `step`.
fn assert_goes_on_from(path: &Path, step: usize, device: &Device) {
    Maf::load(path.join("model.safetensors"), device).unwrap();
    let trainer = Trainer::new(maf(device), Schedule::constant(1e-3));
    let (trainer, note) = trainer.resume(path.join("checkpoint")).unwrap();
    assert!(note.is_some() && trainer.num_steps() == step, "{}", trainer.num_steps());
}

#[test]
fn a_measurement_that_fails_leaves_what_was_trained() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    for (name, measure_at, progress_at, patience) in [
        ("first", 20, 99, None),
        ("later", 40, 99, None),
        ("pictures", 99, 20, None),
        ("patience", 20, 99, Some(9)),
    ] {
        let path = folder.path().join(name);
        let trainer = Trainer::new(maf(&device), Schedule::constant(1e-3));
        let source = Source::rows(points(64, 0, &device), 16, 0).unwrap();
        let run = Run::new(&path).with_steps(60).with_measure_every(20).with_patience(patience);
        let failing = Failing { measure_at, progress_at };
        let error = run.quiet().train(trainer, source, failing).unwrap_err().to_string();
        assert!(error.starts_with("the figure: got nothing"), "{error}");
        assert_goes_on_from(&path, measure_at.min(progress_at), &device);
    }
}

#[test]
fn batches_that_end_early_leave_what_was_trained() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let path = folder.path().join("run");
    let trainer = Trainer::new(maf(&device), Schedule::constant(1e-3));
    let batches: Vec<Tensor<2>> = (0..30).map(|stream| points(16, stream, &device)).collect();
    let run = Run::new(&path).with_steps(100).quiet();
    run.train(trainer, Source::iter(batches), ()).unwrap_err();
    assert_goes_on_from(&path, 30, &device);
}

#[test]
fn a_figure_of_a_taken_name_is_refused() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    for name in ["drift", "seconds"] {
        let trainer = Trainer::new(maf(&device), Schedule::constant(1e-3));
        let source = Source::rows(points(64, 0, &device), 16, 0).unwrap();
        let run = Run::new(folder.path().join(name)).with_steps(4).quiet();
        let error = run.train(trainer, source, Figures(name, |_| 1.0)).unwrap_err().to_string();
        assert!(error.contains("the name of a figure") && error.contains(name), "{error}");
    }
}

#[test]
fn a_stack_of_ones_own_is_trained_on_images() {
    let (device, folder) = (device(), tempfile::tempdir().unwrap());
    let pixels = |count: usize| (0..count * 64).map(|i| (i * 37 % 251) as u8).collect();
    let images = |count| Images::new(pixels(count), [count, 1, 8, 8], None).unwrap();
    let parts = ImageParts::new(images(40), images(20), "made-up pictures");
    let config = GlowConfig::new([1, 8, 8], 2, 1, 4);
    let model = config.init(&mut StdRng::seed_from_u64(0), &device).unwrap();
    let path = folder.path().join("run");
    let images = ImageRun { batch: Some(8), bits: Some(5), ..ImageRun::default() };
    let run = Run::new(&path).with_steps(2).quiet();
    let outcome = images.train_model(model, run.clone(), parts, &device).unwrap();
    assert_eq!((outcome.end, outcome.test_images), (End::Finished, Some(20)));
    assert!(path.join("progress/000002.png").exists() && path.join("reconstructions.png").exists());
    assert!(outcome.to_string().contains(" bits/dim over 20 test images, largest inversion error"));

    let parts = ImageParts::new(self::images(&[4, 4]), self::images(&[4, 4]), "others");
    let model = config.init(&mut StdRng::seed_from_u64(0), &device).unwrap();
    let error = images.train_model(model, run, parts, &device).unwrap_err().to_string();
    assert!(error.starts_with("ImageRun: values of an image: got 16, needs 64"), "{error}");
}

fn images(side: &[usize; 2]) -> Images {
    let [height, width] = *side;
    Images::new(vec![7; 10 * height * width], [10, 1, height, width], None).unwrap()
}
