//! Checkpoints in a folder that holds other people's files too, that is written by several at a time, and
//! whose writers are killed.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use burn::module::Param;
use burn::tensor::{DType, Tensor};
use burn_flows::linear::DiagonalScaling;
use burn_flows::prior::StandardNormal;
use burn_flows::testing::inputs;
use burn_flows::training::{Memory, Schedule, Trainer, remove_checkpoint};
use burn_flows::{FlowError, FlowStack, record};
use common::{flat, host};

type Model = FlowStack<2, DiagonalScaling>;

const POINTER: &str = "checkpoint.txt";

/// A record of the user's own in the same folder.
const RECORD: &str = "model-best.safetensors";

/// A trainer whose model and optimizer can be told from those of another `scale`.
fn trainer(scale: f32) -> Trainer<Model> {
    let device = host();
    let mut flow = DiagonalScaling::new(3, &device).unwrap();
    flow.log_scale = Param::from_data([scale; 3], &device);
    let stack = FlowStack::single(flow, StandardNormal::new(), &[3]).unwrap();
    Trainer::new(stack, Schedule::constant(1e-3))
}

/// After `steps` steps on data of that scale.
fn trained(scale: f32, steps: usize) -> Trainer<Model> {
    let mut trainer = trainer(scale);
    for _ in 0..steps {
        trainer.step(batch() * f64::from(scale).exp()).unwrap();
    }
    trainer
}

fn batch() -> Tensor<2> {
    inputs([8, 3], 1, &host(), DType::F32)
}

fn values(trainer: &Trainer<Model>) -> Vec<f64> {
    flat(trainer.model().levels[0].log_scale.val())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What is resumed goes on as the trainer that was saved.
fn goes_on_as(mut resumed: Trainer<Model>, mut saved: Trainer<Model>) {
    assert_eq!(resumed.num_steps(), saved.num_steps());
    for _ in 0..3 {
        assert_eq!(values(&resumed), values(&saved));
        assert_eq!(resumed.step(batch()).unwrap(), saved.step(batch()).unwrap());
    }
}

#[test]
fn files_of_others_survive() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    record::save(&trainer(0.5).model(), path(RECORD)).unwrap();
    for name in [
        "model-1.safetensors",
        "model-card.md",
        "optimizer-1.bpk",
        "optimizer-notes.txt",
        "checkpoint.txt.bak",
        "checkpoint-best.safetensors",
        ".model-1.safetensors.tmp",
    ] {
        fs::write(path(name), name).unwrap();
    }
    for name in ["model-of-mine", "optimizer-runs"] {
        fs::create_dir(path(name)).unwrap();
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink("model-card.md", path("model-link")).unwrap();
    let before = names(folder.path());
    let is_kept = || {
        let now = names(folder.path());
        let gone: Vec<_> = before.iter().filter(|name| !now.contains(name)).collect();
        assert!(gone.is_empty(), "{gone:?} are gone");
        assert_eq!(fs::read(path("model-1.safetensors")).unwrap(), b"model-1.safetensors");
        now.len() - before.len()
    };
    for steps in 0..4 {
        trained(0.5, steps).save(folder.path(), "").unwrap();
        assert_eq!(is_kept(), 4, "one checkpoint and its lock: {:?}", names(folder.path()));
    }
    remove_checkpoint(folder.path()).unwrap();
    assert_eq!(is_kept(), 1, "the lock: {:?}", names(folder.path()));
    assert!(trainer(0.0).resume(folder.path()).unwrap().1.is_none());
    // Where there is none, nothing is done.
    remove_checkpoint(folder.path()).unwrap();
    remove_checkpoint(path("missing")).unwrap();
    remove_checkpoint(path("model-card.md")).unwrap();
    assert_eq!(is_kept(), 1);
}

#[test]
fn a_checkpoint_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    for steps in [1, 2, 5] {
        let saved = trained(0.5, steps).with_memory(Memory::Stored);
        let note = format!("after {steps}\nsteps\n");
        saved.save(folder.path(), &note).unwrap();
        let (resumed, found) = trainer(0.0).resume(folder.path()).unwrap();
        assert_eq!(found, Some(note));
        assert_eq!(resumed.memory(), Memory::Stored);
        goes_on_as(resumed, saved);
    }
}

/// `tests/checkpoint-2` is as the version wrote it whose files were named by their step: data of five
/// steps under those names, with the pointer in that format.
#[test]
fn a_checkpoint_of_format_2_goes_on_and_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let old = ["checkpoint.txt", "model-5.safetensors", "optimizer-5.bpk"];
    for name in old {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoint-2").join(name);
        fs::copy(kept, folder.path().join(name)).unwrap();
    }
    let (resumed, note) = trainer(0.0).resume(folder.path()).unwrap();
    assert_eq!(note.as_deref(), Some("a note"));
    assert_eq!(names(folder.path()), old, "reading changes nothing");
    resumed.save(folder.path(), "").unwrap();
    let now = names(folder.path());
    assert!(old[1..].iter().all(|name| !now.contains(&name.to_string())), "{now:?}");
    goes_on_as(resumed, trained(0.5, 5));
    let (again, _) = trainer(0.0).resume(folder.path()).unwrap();
    goes_on_as(again, trained(0.5, 5));
}

#[test]
fn what_is_no_checkpoint_is_neither_read_nor_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let pointer = folder.path().join(POINTER);
    for text in [
        "my own notes",
        "",
        "burn-flows checkpoint 9\nfiles a\nstep 1\nmemory stored\noptimizer -\n",
        "burn-flows checkpoint 3\nfiles ../a\nstep 1\nmemory stored\noptimizer -\n",
        "burn-flows checkpoint 3\nfiles c\nstep 1\nmemory stored\noptimizer -\n",
        "burn-flows checkpoint 3\nfiles a\nstep -1\nmemory stored\noptimizer -\n",
    ] {
        fs::write(&pointer, text).unwrap();
        let expected = format!(
            "{}: this is not a checkpoint of this version; give another folder, or remove \
             checkpoint.txt to start from the beginning",
            pointer.display()
        );
        let is_refused = |error: FlowError| assert_eq!(error.to_string(), expected);
        is_refused(trainer(0.0).save(folder.path(), "").unwrap_err());
        is_refused(trainer(0.0).resume(folder.path()).map(|_| ()).unwrap_err());
        is_refused(remove_checkpoint(folder.path()).unwrap_err());
        assert_eq!(fs::read_to_string(&pointer).unwrap(), text);
    }
}

/// Of many that save at a time, into one folder and at the same step or another, none fails, and what is
/// read at any moment is whole: model and optimizer of the same one.
#[test]
fn many_threads_save_into_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    trained(0.25, 1).save(folder, "0.25 1").unwrap();
    thread::scope(|scope| {
        let writers: Vec<_> = [0.5, 1.0, 1.5]
            .into_iter()
            .map(|scale| {
                scope.spawn(move || {
                    for steps in 1..=10 {
                        trained(scale, steps).save(folder, &format!("{scale} {steps}")).unwrap();
                    }
                })
            })
            .collect();
        while !writers.iter().all(thread::ScopedJoinHandle::is_finished) {
            is_whole(folder);
        }
    });
    is_whole(folder);
    assert_eq!(names(folder).len(), 4, "{:?}", names(folder));
}

/// The checkpoint is that of the trainer that its note names.
fn is_whole(folder: &Path) {
    let (resumed, note) = trainer(0.0).resume(folder).unwrap();
    let note = note.expect("a checkpoint");
    let (scale, steps) = note.split_once(' ').unwrap();
    goes_on_as(resumed, trained(scale.parse().unwrap(), steps.parse().unwrap()));
}

/// The folder that [`a_process_that_saves`] saves into.
const SAVE_INTO: &str = "BURN_FLOWS_TEST_SAVE_INTO";

/// Not a test of its own, but the program of those that need several processes.
#[test]
fn a_process_that_saves() {
    let Some(folder) = std::env::var_os(SAVE_INTO).map(PathBuf::from) else { return };
    loop {
        for steps in 1..=3 {
            trained(0.5, steps).save(&folder, &format!("0.5 {steps}")).unwrap();
            record::save(&trainer(0.5).model(), folder.join(RECORD)).unwrap();
        }
    }
}

fn start_saving(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["a_process_that_saves", "--exact", "--nocapture"])
        .env(SAVE_INTO, folder)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Wherever its writers are killed, the folder holds a whole checkpoint and no more of what they left than
/// the next ones can overwrite.
#[test]
fn killed_processes_leave_a_whole_checkpoint_and_no_growing_heap() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    trained(0.5, 1).save(folder, "0.5 1").unwrap();
    let mut largest = 0;
    for kill in 0..20 {
        let _ = fs::remove_file(folder.join(RECORD));
        let mut writers = [start_saving(folder), start_saving(folder)];
        let start = Instant::now();
        while !folder.join(RECORD).exists() {
            assert!(start.elapsed() < Duration::from_secs(120), "nothing is saved");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(3 * kill));
        for writer in &mut writers {
            assert!(writer.try_wait().unwrap().is_none(), "a process that saves ended by itself");
            writer.kill().unwrap();
            writer.wait().unwrap();
        }
        is_whole(folder);
        largest = largest.max(names(folder).len());
    }
    // Two checkpoints' files, pointer, lock, the record, and an unfinished file of each writer.
    assert!(largest <= 4 + 3 + 2, "{largest} files: {:?}", names(folder));
    trained(0.5, 1).save(folder, "0.5 1").unwrap();
    trained(0.5, 2).save(folder, "0.5 2").unwrap();
    record::load(trainer(0.0).model(), folder.join(RECORD)).unwrap();
    assert_eq!(names(folder).len(), 5, "{:?}", names(folder));
}

/// A folder that cannot be written is an error that names it, and the checkpoint in it can be read.
#[cfg(unix)]
#[test]
fn a_read_only_folder() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let saved = trained(0.5, 2);
    saved.save(folder.path(), "").unwrap();
    let mode = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o500);
    let (resumed, note) = trainer(0.0).resume(folder.path()).unwrap();
    assert!(note.is_some());
    goes_on_as(resumed, trained(0.5, 2));
    // Root may write everywhere.
    if fs::write(folder.path().join("probe"), "").is_err() {
        let text = saved.save(folder.path(), "").unwrap_err().to_string();
        assert!(text.starts_with("cannot write "), "{text}");
        assert!(text.contains("Permission denied"), "{text}");
    }
    mode(0o700);
}
