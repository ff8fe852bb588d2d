//! The example `celeba`, on pictures that are made here.

use image::Rgb;
use rand::RngExt;

use super::*;

/// Pictures of a folder, and pixels of each.
const NUM_PICTURES: usize = 60;
const SIZE: [u32; 2] = [89, 109];

/// A made-up face: skin and hair of some colour before a background that brightens to one side, so that
/// its mirror image is another picture.
fn face(rng: &mut StdRng) -> RgbImage {
    let [skin, hair, back]: [[u8; 3]; 3] = rng.random();
    let (x0, y0) = (44 + rng.random_range(-4..4), 60 + rng.random_range(-4..4));
    RgbImage::from_fn(SIZE[0], SIZE[1], |x, y| {
        let (dx, dy) = ((x as i32 - x0) * 3, (y as i32 - y0) * 2);
        let inside = dx * dx + dy * dy < 70 * 70;
        let color = match (inside, dy < -40) {
            (true, false) => skin,
            (true, true) => hair,
            _ => back.map(|value| (u32::from(value) * x / SIZE[0]) as u8),
        };
        Rgb(color)
    })
}

fn name(index: usize) -> String {
    format!("{:06}.png", index + 1)
}

fn write_faces(folder: &Path, count: usize) {
    fs::create_dir_all(folder).unwrap();
    let mut rng = StdRng::seed_from_u64(5);
    for index in 0..count {
        face(&mut rng).save(folder.join(name(index))).unwrap();
    }
}

/// CelebA's layout; `part` gives the partition of each picture.
fn small_celeba(part: impl Fn(usize) -> usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_faces(&folder.path().join("img_align_celeba"), NUM_PICTURES);
    let list: String =
        (0..NUM_PICTURES).map(|index| format!("{} {}\n", name(index), part(index))).collect();
    fs::write(folder.path().join("list_eval_partition.txt"), list).unwrap();
    folder
}

/// 40 to train on, 10 to validate, 10 to test on.
fn official(index: usize) -> usize {
    index.saturating_sub(30) / 10
}

fn celeba(data: &Path, out: &Path, options: &[&str]) -> Command {
    let mut command = example("celeba");
    command.arg("--data").arg(data).arg("--out").arg(out).args(SMALLEST).args(options);
    command.arg("--cache").arg(out.with_extension("cache"));
    command
}

/// The first line of what a short run says, and all that it says about its pictures.
fn said(data: &Path, options: &[&str]) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let answer = answer(celeba(data, &folder.path().join("out"), &["--steps", "1"]).args(options));
    assert!(answer.succeeded, "{}", answer.stderr);
    (answer.stdout.lines().next().unwrap().into(), answer.stderr)
}

#[test]
fn without_data_three_lines_say_where_to_get_it() {
    // Without --device too: no option is needed.
    let output = Command::new(program("celeba")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    let [place, terms, command] = text.lines().collect::<Vec<_>>().try_into().unwrap();
    assert!(place.contains("https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"), "{place}");
    assert!(terms.contains("non-commercial research only"), "{terms}");
    assert!(command.contains("cargo run --release --example celeba -- --data "), "{command}");
}

#[test]
fn every_option_may_be_left_out() {
    for name in ["mnist", "celeba"] {
        let text = complaint(Command::new(program(name)).args(["--bits", "0"]));
        assert!(text.starts_with("--bits: got 0"), "{name}: {text}");
    }
}

#[test]
fn celeba_writes_all_it_promises() {
    let data = small_celeba(official);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let answer = answer(&mut celeba(data.path(), &out, &["--steps", "2"]));
    let line = answer.last_line();
    let bits = number(line, "", " bits/dim over 10 test images");
    assert!((0.5..20.0).contains(&bits), "{line}");
    let [first, memory, loading, _] = answer.stdout.lines().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(
        first,
        "CelebA in its official partition: 40 to train on, 10 to test on; 2 steps of 8"
    );
    assert!(memory.starts_with("memory: "), "{memory}");
    let waited = number(loading, "waited ", " s of ");
    assert!(waited <= number(loading, " s of ", " s for images"), "{loading}");
    let made = number(loading, "for images: ", " a second can be made ready");
    assert!(made > 0.0, "{loading}");
    assert!(number(loading, "ready, ", " a second were trained on") > 0.0, "{loading}");

    let lines = metrics(&out);
    assert_eq!(lines.len(), 2);
    for line in &lines {
        let levels: Vec<[f64; 2]> =
            serde_json::from_value(line["level_bits_per_dim"].clone()).unwrap();
        assert_eq!(levels.len(), 3, "one for each level");
        let sum = 5.0 + levels.iter().flatten().sum::<f64>();
        let bits = line["test_bits_per_dim"].as_f64().unwrap();
        assert!((sum - bits).abs() < 1e-9, "{sum} and {bits} bits/dim");
        assert!(line["seconds_waited"].as_f64().unwrap() >= 0.0);
    }

    // Seven temperatures of ten faces, ten faces and their reconstructions; 64 pixels and a gap of 2.
    let (samples, pairs) =
        (picture(out.join("samples.png")), picture(out.join("reconstructions.png")));
    assert_eq!(samples.dimensions(), (10 * 66 + 2, 7 * 66 + 2));
    assert_eq!(pairs.dimensions(), (10 * 66 + 2, 2 * 66 + 2));
    assert!(num_colors(&samples) > 100 && num_colors(&pairs) > 20, "pictures of one shade");
    for (x, y, original) in pairs.enumerate_pixels().filter(|(_, y, _)| *y < 66) {
        assert_eq!(original, pairs.get_pixel(x, y + 66), "a reconstruction differs at {x}, {y}");
    }
    // At temperature 0 all are the same; at 1 they are not.
    let cell = |column: u32, row: u32| {
        image::imageops::crop_imm(&samples, 66 * column + 2, 66 * row + 2, 64, 64).to_image()
    };
    assert_eq!(cell(0, 0), cell(9, 0));
    assert_ne!(cell(0, 6), cell(9, 6));
    for step in ["000001.png", "000002.png"] {
        let row = picture(out.join("progress").join(step));
        assert_eq!(row.dimensions(), (10 * 66 + 2, 66 + 2));
    }

    let config: Value =
        serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["bits"], &config["flips"]), (&5.into(), &true.into()));
    assert_eq!((&config["train_images"], &config["test_images"]), (&40.into(), &10.into()));
    let glow: GlowConfig = serde_json::from_value(config["model"]["glow"].clone()).unwrap();
    assert_eq!((glow.image_shape, glow.num_levels), ([3, 32, 32], 3));
    let model = glow.init(&mut StdRng::seed_from_u64(0), &device().1()).unwrap();
    let model = record::load(model, out.join("model.safetensors")).unwrap();
    assert_eq!(model.sample(1, 1.0).dims(), [1, 3, 32, 32]);
}

#[test]
fn what_has_no_test_part_is_divided_and_says_so() {
    let data = small_celeba(|_| 0);
    let (line, _) = said(data.path(), &[]);
    let held_out = "every 10th by name held out: 54 to train on, 6 to test on; 1 steps of 8";
    assert_eq!(line, format!("CelebA, {held_out}"));

    // Without the list, and under another name.
    fs::remove_file(data.path().join("list_eval_partition.txt")).unwrap();
    fs::rename(data.path().join("img_align_celeba"), data.path().join("half")).unwrap();
    assert_eq!(said(data.path(), &["--pictures", "half"]).0, format!("CelebA, {held_out}"));
    assert_eq!(said(data.path(), &[]).0, format!("pictures, {held_out}"));
}

#[test]
fn kaggles_celeba_is_celeba() {
    let data = tempfile::tempdir().unwrap();
    write_faces(&data.path().join("img_align_celeba/img_align_celeba"), NUM_PICTURES);
    let rows = (0..NUM_PICTURES).map(|index| format!("{},{}\n", name(index), official(index)));
    let list = format!("image_id,partition\n{}", rows.collect::<String>());
    fs::write(data.path().join("list_eval_partition.csv"), list).unwrap();
    let official = "CelebA in its official partition: 40 to train on, 10 to test on; 1 steps of 8";
    assert_eq!(said(data.path(), &[]).0, official);
}

#[test]
fn folders_train_and_test_are_the_parts() {
    let data = tempfile::tempdir().unwrap();
    for (index, class) in ["airplane", "ship"].into_iter().enumerate() {
        write_faces(&data.path().join("train").join(class), 10 + index);
        write_faces(&data.path().join("test").join(class), 4);
    }
    assert_eq!(
        said(data.path(), &["--bits", "8"]).0,
        "pictures in the folders train and test: 21 to train on, 8 to test on; 1 steps of 8"
    );
}

#[test]
fn cifar_10_is_read_as_it_is() {
    let data = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(6);
    let names = (1..=5).map(|number| format!("data_batch_{number}.bin"));
    for name in names.chain(["test_batch.bin".into()]) {
        let mut bytes = Vec::new();
        for label in 0..4 {
            bytes.push(label);
            bytes.extend((0..3072).map(|_| rng.random::<u8>()));
        }
        fs::write(data.path().join(name), bytes).unwrap();
    }
    let (line, _) = said(data.path(), &["--bits", "8"]);
    assert_eq!(line, "CIFAR-10: 20 to train on, 4 to test on; 1 steps of 8");
    let out = data.path().join("out");
    assert_eq!(
        complaint(&mut celeba(data.path(), &out, &["--size", "64"])),
        "--size: got 64, needs 32 for CIFAR-10; leave it out"
    );
}

#[test]
fn a_damaged_picture_is_named_and_many_are_an_error() {
    let data = tempfile::tempdir().unwrap();
    write_faces(data.path(), 120);
    let spoil = |index: usize| {
        let path = data.path().join(name(index));
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    };
    spoil(7);
    let (line, stderr) = said(data.path(), &[]);
    assert!(line.contains(": 108 to train on, 11 to test on;"), "{line}");
    assert!(stderr.starts_with("left out 000008.png: "), "{stderr}");
    assert!(stderr.contains("\npictures left out: 1\n"), "{stderr}");
    spoil(8);
    let text = complaint(&mut celeba(data.path(), &data.path().join("out"), &["--steps", "1"]));
    assert!(text.contains("2 of 120 pictures cannot be used (000008.png: "), "{text}");
}

#[test]
fn options_that_celeba_cannot_use() {
    let data = small_celeba(official);
    let out = data.path().join("out");
    let complaint = |options: &[&str]| complaint(&mut celeba(data.path(), &out, options));
    for size in ["0", "48", "256"] {
        let expected = format!("--size: got {size}, needs 32, 64 or 128; 32 is the quickest");
        assert_eq!(complaint(&["--size", size]), expected);
    }
    for temperature in ["-1", "inf", "NaN"] {
        assert_eq!(
            complaint(&[&format!("--temperature=0.5,{temperature}")]),
            format!(
                "--temperature: got {temperature}, needs 0 or more; 0.7 is what Glow uses for faces"
            )
        );
    }
    let text = complaint(&["--pictures", "missing"]);
    assert!(text.contains(": no folder missing, expected the folder of the pictures; "), "{text}");
    let text = self::complaint(&mut celeba(&data.path().join("missing"), &out, &[]));
    assert!(text.starts_with("cannot read "), "{text}");
    assert!(!out.exists(), "a run that did not start left a folder");
}

#[cfg(unix)]
#[test]
fn mirrored_batches_made_ahead_go_on_exactly() {
    let data = small_celeba(official);
    interruption::interrupt_and_resume(data, celeba, &["--steps", "30"]);
}

mod report {
    use super::*;

    /// What the page says of itself once it is loaded.
    const PROBE: &str = r#"<script>
addEventListener("load", () => {
  const curve = line => line.getAttribute("stroke-width") === "2";
  const box = line => [line.points.numberOfItems, line.getBoundingClientRect().width];
  const probe = document.createElement("pre");
  probe.id = "probe";
  probe.textContent = JSON.stringify({
    curves: [...document.querySelectorAll('#curves svg polyline')].filter(curve).map(box),
    words: [...document.querySelectorAll('#curves svg text')].map(text => text.textContent.trim()),
    images: [...document.images].map(image => [image.naturalWidth, image.naturalHeight]),
    shown: [...document.images].every(image => image.getBoundingClientRect().width > 100),
    fetched: performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 60)),
    tables: Object.fromEntries(
      [...document.querySelectorAll("table")].map(table => [table.id, table.innerText])),
  });
  document.body.append(probe);
});
</script>"#;

    const INSTALL_ONE: &str = "install chromium, or name a browser that understands --headless and \
                               --dump-dom in BURN_FLOWS_BROWSER";

    /// The browser: what `BURN_FLOWS_BROWSER` names, else Chromium or Chrome.
    fn browser() -> PathBuf {
        if let Some(path) = std::env::var_os("BURN_FLOWS_BROWSER") {
            return path.into();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
        std::env::split_paths(&path)
            .flat_map(|folder| names.map(|name| folder.join(name)))
            .find(|program| program.is_file())
            .unwrap_or_else(|| panic!("no browser to open the report in: {INSTALL_ONE}"))
    }

    /// The page after its scripts ran, and the messages on its console.
    fn opened(page: &Path) -> (String, Vec<String>) {
        let profile = tempfile::tempdir().unwrap();
        // Chromium refuses its sandbox to root, and the page is our own.
        let mut command = Command::new(browser());
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,3000"]);
        command.args(["--enable-logging=stderr", "--dump-dom"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg(format!("file://{}", page.display()));
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}; {INSTALL_ONE}", browser().display()));
        let answer = Answer::of(output);
        assert!(answer.succeeded, "{}", answer.stderr);
        let console = answer.stderr.lines().filter(|line| line.contains(":CONSOLE"));
        (answer.stdout, console.map(String::from).collect())
    }

    /// What the page at `path`, with a probe in it, says of itself.
    fn probed(path: &Path) -> (Value, Vec<String>) {
        let html = fs::read_to_string(path).unwrap();
        assert!(html.contains("</body>"));
        let page = path.with_file_name("probed.html");
        fs::write(&page, html.replace("</body>", &format!("{PROBE}</body>"))).unwrap();
        let (dom, console) = opened(&page);
        let rest = dom.split_once("<pre id=\"probe\">").expect("the scripts of the page ran").1;
        let json = rest.split_once("</pre>").unwrap().0;
        let json = json.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        (serde_json::from_str(&json).unwrap(), console)
    }

    #[test]
    fn opens_in_a_browser_with_curves_and_pictures() {
        let data = small_celeba(official);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        answer(&mut celeba(data.path(), &out, &["--steps", "4"])).last_line();
        let (page, console) = probed(&out.join("report.html"));
        assert!(console.is_empty(), "{console:?}");

        // bits/dim of test and training against steps and minutes, two terms of three levels, the
        // inversion error, the norm; each of four measurements.
        let curves: Vec<(usize, f64)> = serde_json::from_value(page["curves"].clone()).unwrap();
        let whole: Vec<_> = curves.iter().filter(|curve| curve.0 == 4).collect();
        assert_eq!(whole.len(), 2 + 2 + 3 + 3 + 1 + 1, "{curves:?}");
        assert!(whole.iter().all(|curve| curve.1 > 50.0), "{curves:?}");
        let words: Vec<String> = serde_json::from_value(page["words"].clone()).unwrap();
        for word in ["bits/dim", "minutes", "level 3", "norm of the gradient", "training batches"] {
            assert!(words.iter().any(|text| text == word), "{word} is missing: {words:?}");
        }

        // Four measurements, the samples, the reconstructions.
        let images: Vec<[u32; 2]> = serde_json::from_value(page["images"].clone()).unwrap();
        let mut expected = vec![[662, 68]; 4];
        expected.extend([[662, 464], [662, 134]]);
        assert_eq!(images, expected);
        assert_eq!(page["shown"], true);
        let fetched: Vec<String> = serde_json::from_value(page["fetched"].clone()).unwrap();
        assert!(fetched.iter().all(|name| name.starts_with("data:")), "{fetched:?}");

        let tables: std::collections::HashMap<String, String> =
            serde_json::from_value(page["tables"].clone()).unwrap();
        let last = metrics(&out).pop().unwrap()["test_bits_per_dim"].as_f64().unwrap();
        assert!(tables["summary"].contains(&format!("{last:.4} over 10 images")), "{tables:?}");
        assert!(tables["configuration"].contains("model.glow.hidden_width\t8"), "{tables:?}");
        assert!(
            tables["versions"].contains(&format!("burn-flows\t{}", env!("CARGO_PKG_VERSION"))),
            "{tables:?}"
        );
        assert!(tables["versions"].contains("Burn\t0."), "{tables:?}");
    }

    #[test]
    fn a_page_with_a_fault_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("page.html");
        let body = "<img src=\"data:image/png;base64,AAAA\"><script>missing()</script>";
        fs::write(&page, format!("<html><body>{body}</body></html>")).unwrap();
        let (page, console) = probed(&page);
        assert!(console.iter().any(|line| line.contains("missing is not defined")), "{console:?}");
        assert_eq!(page["images"], serde_json::json!([[0, 0]]));
        assert_eq!(page["shown"], false);
    }
}
