//! The examples among other people's files, signals, pipes and limits.

use std::time::{Duration, Instant};

use super::*;

/// Side of the digits: a run takes a second.
const SIDE: usize = 12;

/// Everything below a folder, by its path, with its content.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let bytes = fs::read(&path).unwrap();
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    found
}

fn write_pictures(folder: &Path, count: usize) {
    fs::create_dir_all(folder).unwrap();
    for index in 0..count {
        let picture = RgbImage::from_fn(40, 40, |x, y| {
            image::Rgb([x as u8 * 6, y as u8 * 6, index as u8 * 6])
        });
        picture.save(folder.join(format!("{index:03}.png"))).unwrap();
    }
}

fn two_moons(out: &Path, options: &[&str]) -> Command {
    let mut command = example("two_moons");
    command.args(["--steps", "3", "--batch", "16", "--out"]).arg(out).args(options);
    command
}

/// The program and the arguments of a command, run by a shell after `preparation`.
#[cfg(unix)]
fn after(preparation: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{preparation}; exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args());
    shell.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    shell
}

#[test]
fn a_run_is_replaced_only_where_that_is_asked_for() {
    let data = small_mnist(SIDE);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let run = |options: &[&str]| mnist(data.path(), &out, options);
    answer(&mut run(&["--steps", "20"])).last_line();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    fs::write(out.join("progress/best.png"), "mine").unwrap();
    fs::write(out.join("checkpoint/model-best.safetensors"), "mine").unwrap();
    let before = contents(&out);
    for options in [&["--steps", "20"][..], &["--steps", "1", "--seed", "9"]] {
        assert_eq!(
            complaint(&mut run(options)),
            format!(
                "--out: got {}, which has a config.json already, needs a folder without a run; \
                 --resume goes on with a run, --overwrite replaces it",
                out.display()
            )
        );
    }
    assert!(contents(&out) == before, "a run that was refused changed something");
    let text = complaint(&mut run(&["--resume", "--overwrite"]));
    assert!(
        text.starts_with("the argument '--resume' cannot be used with '--overwrite'"),
        "{text}"
    );

    // Of a run that is over, --resume says again how it ended.
    let line = answer(run(&["--steps", "20"]).arg("--resume")).last_line().to_string();
    assert!(line.contains(" bits/dim over 100 test images"), "{line}");
    // Without its checkpoint nothing can go on, and nothing is lost.
    fs::remove_file(out.join("checkpoint/checkpoint.txt")).unwrap();
    let model = fs::read(out.join("model.safetensors")).unwrap();
    let text = complaint(run(&["--steps", "20"]).arg("--resume"));
    assert_eq!(
        text,
        format!(
            "--resume: got {}, which has a model.safetensors and no checkpoint, needs a checkpoint to \
             go on from; --overwrite instead starts from the beginning",
            out.display()
        )
    );
    assert!(fs::read(out.join("model.safetensors")).unwrap() == model);

    answer(&mut run(&["--steps", "2", "--seed", "9", "--overwrite"])).last_line();
    assert_eq!(metrics(&out).len(), 2);
    assert!(fs::read(out.join("model.safetensors")).unwrap() != model);
    let mut progress: Vec<_> = fs::read_dir(out.join("progress"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".png"))
        .collect();
    progress.sort();
    assert_eq!(progress, ["000001.png", "000002.png", "best.png"]);
    for name in ["notes.txt", "checkpoint/model-best.safetensors"] {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), "mine", "{name}");
    }
}

#[test]
fn pictures_of_others_are_not_replaced_either() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    fs::write(out.join("samples.png"), "mine").unwrap();
    let advice = "needs a folder without a run;";
    let got = format!("--out: got {}, which has a samples.png already, {advice}", out.display());
    let moons = complaint(&mut two_moons(out, &[]));
    assert_eq!(moons, format!("{got} --overwrite replaces it, another --out keeps it"));
    let data = small_mnist(SIDE);
    let text = complaint(&mut mnist(data.path(), out, &["--steps", "1"]));
    assert!(text.starts_with(&got), "{text}");
    // Neither where there is nothing to go on from.
    let text = complaint(&mut mnist(data.path(), out, &["--steps", "1", "--resume"]));
    assert!(text.contains("which has a samples.png and no checkpoint"), "{text}");
    assert_eq!(fs::read_to_string(out.join("samples.png")).unwrap(), "mine");
    assert_eq!(contents(out).len(), 1);

    answer(&mut two_moons(out, &["--overwrite"])).last_line();
    let text = complaint(&mut two_moons(out, &[]));
    assert!(text.contains("which has a config.json already"), "{text}");
    answer(&mut two_moons(out, &["--overwrite", "--seed", "1"])).last_line();
    assert!(picture(out.join("samples.png")).width() >= 1000);
}

#[cfg(unix)]
#[test]
fn two_processes_do_not_train_into_one_folder() {
    let data = small_mnist(SIDE);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options = ["--steps", "1000000", "--checkpoint-every", "5"];
    let mut first = Training::start(&mut mnist(data.path(), &out, &options));
    first.wait_for(&out.join("checkpoint/checkpoint.txt"));
    for option in ["--resume", "--overwrite"] {
        let text = complaint(mnist(data.path(), &out, &options).arg(option));
        assert_eq!(
            text,
            format!(
                "--out: got {}, which another process trains into, needs a folder of its own; wait for \
                 it, or give another",
                out.display()
            )
        );
    }
    first.signal("TERM");
    first.end().last_line();
}

#[cfg(feature = "images")]
#[test]
fn what_a_run_writes_is_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_pictures(folder, 40);
    let run_in = |cwd: &Path, data: &str, options: &[&str]| {
        let mut command = example("celeba");
        command.current_dir(cwd).args(["--data", data, "--steps", "2"]).args(SMALLEST);
        let answer = answer(command.args(options));
        assert!(answer.succeeded, "{}", answer.stderr);
        answer.stdout.lines().next().unwrap().to_string()
    };
    let run = |data: &str, options: &[&str]| run_in(folder, data, options);
    let expected =
        "pictures, every 10th by name held out: 36 to train on, 4 to test on; 2 steps of 8";
    assert_eq!(run(".", &[]), expected);
    assert_eq!(run(".", &["--resume"]), expected);
    // Into the folder itself, and below it; with pictures of other examples beside them.
    assert_eq!(run(".", &["--out", "."]), expected);
    assert_eq!(run(".", &["--out", ".", "--overwrite"]), expected);
    answer(&mut two_moons(&folder.join("moons"), &[])).last_line();
    for out in ["runs/celeba-glow/explore", "drawn"] {
        let mut explore = example("explore");
        explore.arg("--model").arg(folder.join("runs/celeba-glow")).arg("--out");
        answer(explore.arg(folder.join(out)).arg("sample")).last_line();
    }
    assert_eq!(run(".", &["--out", "another/run"]), expected);
    // From a folder below.
    let below = folder.join("below");
    fs::create_dir(&below).unwrap();
    assert_eq!(run_in(&below, "..", &[]), expected);
    assert_eq!(run_in(&below, "..", &["--resume"]), expected);
    // A picture of one's own counts, wherever it lies and whatever it is called.
    fs::copy(folder.join("samples.png"), folder.join("runs/celeba-glow/mine.png")).unwrap();
    fs::copy(folder.join("samples.png"), folder.join("another/samples.png")).unwrap();
    let more = expected.replace("36 to train on, 4", "38 to train on, 4");
    assert_eq!(run(".", &["--out", "one/more"]), more);
}

#[cfg(feature = "images")]
#[test]
fn pictures_of_a_run_are_not_replaced_by_explore() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    answer(&mut mnist(small_mnist(SIDE).path(), &out, &["--steps", "1"])).last_line();
    let before = contents(&out);
    let mut explore = example("explore");
    explore.arg("--model").arg(&out).arg("--out").arg(&out).arg("sample");
    let text = complaint(&mut explore);
    assert!(text.starts_with("--out: got ") && text.contains("which holds a run"), "{text}");
    assert!(contents(&out) == before);
}

/// A training that goes on until it is told to end; it ends with the test at the latest.
#[cfg(unix)]
struct Training(Option<std::process::Child>);

#[cfg(unix)]
impl Training {
    fn start(command: &mut Command) -> Self {
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    fn wait_for(&mut self, file: &Path) {
        let child = self.0.as_mut().unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        while !file.exists() {
            assert!(Instant::now() < deadline, "no {} after two minutes", file.display());
            assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: &str) {
        let id = self.0.as_ref().unwrap().id().to_string();
        let kill = Command::new("kill").args([&format!("-{signal}"), &id]).status().unwrap();
        assert!(kill.success());
    }

    fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }

    fn end(self) -> Answer {
        Answer::of(self.output())
    }
}

#[cfg(unix)]
impl Drop for Training {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A run that does not end, and writes no checkpoint by itself.
#[cfg(unix)]
const ENDLESS: [&str; 4] = ["--steps", "1000000", "--checkpoint-every", "1000000"];

#[cfg(unix)]
fn at_work(out: &Path, prepare: impl Fn(Command) -> Command) -> (TempDir, Training) {
    let data = small_mnist(SIDE);
    let mut training = Training::start(&mut prepare(mnist(data.path(), out, &ENDLESS)));
    // Steps are being taken: the folder of their samples is made just before.
    training.wait_for(&out.join("progress"));
    (data, training)
}

#[cfg(unix)]
#[test]
fn every_signal_to_end_leaves_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["INT", "TERM", "HUP"] {
        let out = folder.path().join(signal);
        let (_data, training) = at_work(&out, |command| command);
        training.signal(signal);
        // A terminal, a cluster and `timeout` send theirs twice: to the process and to its group.
        training.signal(signal);
        let answer = training.end();
        assert!(answer.last_line().starts_with("interrupted after step "), "{signal}");
        assert!(out.join("checkpoint/checkpoint.txt").exists(), "{signal}");
    }
}

/// Where steps take minutes, the checkpoint is not waited for against one's will.
#[cfg(unix)]
#[test]
fn a_second_signal_ends_at_once() {
    use std::os::unix::process::ExitStatusExt;

    let data = small_mnist(28);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut command = example("mnist");
    command.arg("--data").arg(data.path()).arg("--out").arg(&out).args(ENDLESS);
    command.args(["--batch", "200", "--hidden", "512", "--steps-per-level", "32"]);
    let mut training = Training::start(&mut command);
    // The run is there; ActNorm starts from all images, which takes longer than this test.
    training.wait_for(&out.join("metrics.jsonl"));
    training.signal("TERM");
    std::thread::sleep(Duration::from_millis(1500));
    training.signal("TERM");
    let start = Instant::now();
    let status = training.output().status;
    assert_eq!((status.code(), status.signal()), (Some(128 + 15), None));
    assert!(start.elapsed() < Duration::from_secs(1), "it went on for {:?}", start.elapsed());
}

#[cfg(target_os = "linux")]
#[test]
fn what_nohup_started_outlives_its_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let (_data, mut training) = at_work(&out, |command| after("trap '' HUP", &command));
    training.signal("HUP");
    let lines = fs::read_to_string(out.join("metrics.jsonl")).unwrap().len();
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(out.join("metrics.jsonl")).unwrap().len() <= lines {
        assert!(Instant::now() < deadline, "no more steps after a minute");
        assert_eq!(training.0.as_mut().unwrap().try_wait().unwrap(), None, "it ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    training.signal("TERM");
    assert!(training.end().last_line().starts_with("interrupted after step "));
}

/// The working folder is one in which nothing can be written, not even by root.
#[cfg(all(target_os = "linux", feature = "images"))]
#[test]
fn pictures_are_kept_where_the_run_can_write() {
    let folder = tempfile::tempdir().unwrap();
    write_pictures(&folder.path().join("pictures"), 20);
    let out = folder.path().join("out");
    let run = |options: &[&str]| {
        let mut command = example("celeba");
        command.current_dir("/proc").arg("--data").arg(folder.path().join("pictures"));
        command.arg("--out").arg(&out).args(["--steps", "1"]).args(SMALLEST).args(options);
        command
    };
    answer(&mut run(&[])).last_line();
    let cached = contents(&out.join("cache"));
    assert_eq!(cached.len(), 1);
    answer(&mut run(&["--overwrite"])).last_line();
    assert!(contents(&out.join("cache")) == cached);
    // What is asked for and cannot be is an error.
    let text = complaint(&mut run(&["--overwrite", "--cache", "cache"]));
    assert!(text.starts_with("cannot make cache: "), "{text}");
    assert!(text.ends_with("; pass a folder that can be written as the cache"), "{text}");
    // Nowhere at all.
    let mut command = example("celeba");
    command.current_dir("/proc").arg("--data").arg(folder.path().join("pictures"));
    let text = complaint(command.args(["--out", "out"]).args(SMALLEST));
    assert!(text.starts_with("cannot create the folder out/cache: "), "{text}");
    assert!(text.ends_with("; give --out a folder that can be written"), "{text}");
}

/// A command whose readers are gone before it says anything.
fn unheard(command: &mut Command) -> std::process::ExitStatus {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    child.wait().unwrap()
}

#[test]
fn nobody_has_to_listen() {
    let data = small_mnist(SIDE);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // It goes on: what counts is in the files.
    assert!(unheard(&mut mnist(data.path(), &out, &["--steps", "20"])).success());
    assert_eq!(metrics(&out).len(), 10);
    for name in ["model.safetensors", "report.html", "checkpoint/checkpoint.txt"] {
        assert!(out.join(name).exists(), "{name}");
    }
    // Errors keep their status.
    let again = unheard(&mut mnist(data.path(), &out, &["--steps", "20"]));
    assert_eq!(again.code(), Some(1));
    assert_eq!(unheard(example("mnist").arg("--steps=0")).code(), Some(1));
    assert!(unheard(example("mnist").arg("--help")).success());
    assert!(unheard(&mut two_moons(&folder.path().join("moons"), &[])).success());
    assert!(unheard(example("custom_flow").args(["--steps", "5", "--batch", "8"])).success());
    if cfg!(feature = "images") {
        assert!(unheard(example("explore").arg("--model").arg(&out).arg("sample")).success());
        assert_eq!(unheard(&mut Command::new(program("celeba"))).code(), Some(2));
    }
}

/// A file may have 8 KiB, as if the disk were full then: one line, and nothing is lost.
#[cfg(unix)]
#[test]
fn a_full_disk_is_one_line_and_the_last_checkpoint_stays() {
    let data = small_mnist(SIDE);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options = ["--steps", "40", "--checkpoint-every", "1000"];
    let full = |command: &Command| complaint(&mut after("trap '' XFSZ; ulimit -f 16", command));

    // From the start.
    let text = full(&mnist(data.path(), &out, &options));
    assert!(text.starts_with("cannot write "), "{text}");
    assert!(text.contains(": File too large"), "{text}");
    assert!(
        text.ends_with("; check that its folder exists, can be written and has room"),
        "{text}"
    );
    let names = |folder: &Path| -> Vec<_> {
        contents(folder).into_iter().map(|(path, _)| path.file_name().unwrap().to_owned()).collect()
    };
    assert!(names(&out).iter().all(|name| !name.to_string_lossy().ends_with(".tmp")));

    // In the middle: the run was interrupted, and there is no room to go on.
    let (_, training) = {
        fs::remove_dir_all(&out).unwrap();
        at_work(&out, |command| command)
    };
    training.signal("TERM");
    training.end().last_line();
    let checkpoint = contents(&out.join("checkpoint"));
    let mut resume = mnist(data.path(), &out, &["--steps", "1000000"]);
    resume.args(["--checkpoint-every", "1000000", "--resume"]);
    let text = full(&resume);
    assert!(text.starts_with("cannot "), "{text}");
    assert!(contents(&out.join("checkpoint")) == checkpoint);

    // The pictures of a folder: their cache.
    if cfg!(feature = "images") {
        write_pictures(&folder.path().join("pictures"), 20);
        let mut celeba = example("celeba");
        celeba.arg("--data").arg(folder.path().join("pictures")).args(SMALLEST);
        celeba.arg("--out").arg(folder.path().join("faces"));
        let text = full(celeba.arg("--cache").arg(folder.path().join("cache")));
        assert!(text.contains(".pixels: File too large"), "{text}");
        assert!(text.ends_with("; make room, pass another folder as the cache, or none"), "{text}");
        assert_eq!(contents(&folder.path().join("cache")), []);
    }
}

#[test]
fn any_name_of_a_folder_will_do() {
    let data = small_mnist(SIDE);
    let folder = tempfile::tempdir().unwrap();
    let mut names: Vec<std::ffi::OsString> =
        vec!["a run, with spaces".into(), "Läufe ✓".into(), "n".repeat(200).into()];
    #[cfg(target_os = "linux")]
    names.push(std::os::unix::ffi::OsStringExt::from_vec(b"not \xff UTF-8".to_vec()));
    for name in names {
        let out = folder.path().join(&name).join("out");
        let renamed = folder.path().join(&name).join("data");
        fs::create_dir_all(&renamed).unwrap();
        for (path, bytes) in contents(data.path()) {
            fs::write(renamed.join(path.file_name().unwrap()), bytes).unwrap();
        }
        answer(&mut mnist(&renamed, &out, &["--steps", "1"])).last_line();
        assert_eq!(metrics(&out).len(), 1, "{name:?}");
        if cfg!(feature = "images") {
            let pictures = folder.path().join(&name).join("pictures");
            write_pictures(&pictures, 20);
            let mut celeba = example("celeba");
            celeba.arg("--data").arg(&pictures).arg("--out").arg(out.with_extension("faces"));
            celeba.arg("--cache").arg(out.with_extension("cache")).args(["--steps", "1"]);
            answer(celeba.args(SMALLEST)).last_line();
            let mut explore = example("explore");
            answer(explore.arg("--model").arg(&out).arg("sample")).last_line();
        }
        answer(&mut two_moons(&out.with_extension("moons"), &[])).last_line();
    }
    let long = folder.path().join("n".repeat(300));
    for command in [&mut mnist(data.path(), &long, &["--steps", "1"]), &mut two_moons(&long, &[])] {
        let text = complaint(command);
        assert!(text.starts_with("cannot create the folder "), "{text}");
        assert!(text.contains("; give --out a folder that can be written"), "{text}");
    }
}

#[test]
fn one_point_a_step() {
    let out = tempfile::tempdir().unwrap();
    let mut command = example("two_moons");
    command.args(["--batch", "1", "--steps", "200", "--out"]).arg(out.path());
    let answer = answer(&mut command);
    let line = answer.last_line();
    let log_prob = number(line, "", " nats a point over 10000 held-out points");
    assert!(log_prob.is_finite() && log_prob < -1.0, "{line}");
    assert!(number(line, "largest inversion error ", ", in ") < 1e-3, "{line}");
}
