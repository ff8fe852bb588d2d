//! The example `explore`, on models that are saved here without training.

use burn::module::Module;
use burn_flows::models::{NiceConfig, RealNvpConfig};
use burn_flows::testing::move_parameters;
use image::{GrayImage, Rgb};
use serde::Serialize;
use serde_json::json;

use super::*;

/// A run's folder with a model whose parameters are off their start, so that it draws something.
fn saved<M: Module>(kind: &str, config: &impl Serialize, shape: [usize; 3], model: M) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({ "model": { kind: config }, "image_shape": shape, "bits": 8, "seed": 3 });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let model = move_parameters(model, 1, 0.02);
    record::save(&model, folder.path().join("model.safetensors")).unwrap();
    folder
}

fn saved_glow(shape: [usize; 3]) -> TempDir {
    let config = GlowConfig::new(shape, 2, 1, 4).with_logit(0.05);
    let model = config.init(&mut StdRng::seed_from_u64(0), &device().1()).unwrap();
    saved("glow", &config, shape, model)
}

#[test]
fn a_class_is_asked_for_of_models_with_classes_alone() {
    let config = GlowConfig::new(GREY, 2, 1, 4).with_logit(0.05).with_num_classes(3);
    let model = config.init(&mut StdRng::seed_from_u64(0), &device().1()).unwrap();
    let of_classes = saved("glow", &config, GREY, model);
    let of_classes = of_classes.path();
    assert_eq!(
        complaint(&mut explore(of_classes, &["sample"])),
        "--class: got none, needs one below 3; the model is class-conditional: say of which class to \
         draw or to judge"
    );
    let text = complaint(&mut explore(of_classes, &["sample", "--class", "3"]));
    assert!(text.starts_with("the class of sample 0: got 3, needs below 3"), "{text}");
    for class in ["0", "2"] {
        said(of_classes, &["sample", "--class", class]);
    }
    let text = complaint(&mut explore(saved_glow(GREY).path(), &["sample", "--class", "0"]));
    assert!(text.starts_with("the classes: got a model without a layer"), "{text}");
}

/// Grey digits of 8x8 pixels.
const GREY: [usize; 3] = [1, 8, 8];

fn explore(model: &Path, command: &[&str]) -> Command {
    let mut explore = example("explore");
    explore.arg("--model").arg(model).args(command);
    explore
}

/// What a command says when it succeeds.
fn said(model: &Path, command: &[&str]) -> String {
    let answer = answer(&mut explore(model, command));
    assert!(answer.succeeded, "{command:?}: {}", answer.stderr);
    answer.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// The picture in a cell of a grid of pictures with `side` pixels a side.
fn cell(grid: &RgbImage, side: u32, column: u32, row: u32) -> Vec<[u8; 3]> {
    let zoom = 56u32.div_ceil(side);
    let at = |cell: u32, pixel: u32| 2 + cell * (side * zoom + 2) + pixel * zoom;
    (0..side * side)
        .map(|place| grid.get_pixel(at(column, place % side), at(row, place / side)).0)
        .collect()
}

/// The size of a grid of enlarged pictures.
fn grid_size(columns: u32, rows: u32) -> (u32, u32) {
    (columns * 58 + 2, rows * 58 + 2)
}

/// A picture file of 8x8 pixels, every one different from its neighbours.
fn write_picture(path: &Path) -> Vec<[u8; 3]> {
    let picture = GrayImage::from_fn(8, 8, |x, y| image::Luma([(x * 29 + y * 53) as u8]));
    picture.save(path).unwrap();
    picture.pixels().map(|pixel| [pixel.0[0]; 3]).collect()
}

#[test]
fn samples_depend_on_the_seed_alone() {
    let model = saved_glow(GREY);
    let sample = |name: &str, options: &[&str]| {
        let out = model.path().join(name);
        let command = [&["sample", "--rows", "2", "--columns", "3"], options].concat();
        said(model.path(), &[&["--out", text(&out)], command.as_slice()].concat());
        picture(out.join("samples.png"))
    };
    let first = sample("a", &[]);
    assert_eq!(first.dimensions(), grid_size(3, 2));
    assert_ne!(cell(&first, 8, 0, 0), cell(&first, 8, 1, 0));
    assert!(first == sample("b", &[]));
    assert!(first != sample("c", &["--seed", "1"]));
    assert!(first != sample("d", &["--temperature", "0.2"]));
    // At temperature 0 all are the centre of the density.
    let centre = sample("e", &["--temperature", "0"]);
    assert_eq!(cell(&centre, 8, 0, 0), cell(&centre, 8, 2, 1));
    // Where nothing else is said.
    said(model.path(), &["sample"]);
    assert_eq!(picture(model.path().join("explore/samples.png")).dimensions(), grid_size(8, 8));
}

#[test]
fn pictures_come_back_and_ends_of_walks_are_kept() {
    let model = saved_glow(GREY);
    let data = small_mnist(8);
    let file = model.path().join("a picture.png");
    let pixels = write_picture(&file);
    let out = model.path().join("explore");

    let idx = ["--idx", text(data.path())];
    let line =
        said(model.path(), &[&["reconstruct", text(&file), "test:3"], idx.as_slice()].concat());
    assert!(number(&line, "largest difference ", " of the range") < 1e-3, "{line}");
    let grid = picture(out.join("reconstructions.png"));
    assert_eq!(grid.dimensions(), grid_size(2, 2));
    assert_eq!(cell(&grid, 8, 0, 0), pixels);
    assert_eq!(cell(&grid, 8, 0, 1), pixels);
    let digit = cell(&grid, 8, 1, 0);

    said(
        model.path(),
        &[&["interpolate", "test:3", text(&file), "--steps", "5"], idx.as_slice()].concat(),
    );
    let grid = picture(out.join("interpolation.png"));
    assert_eq!(grid.dimensions(), grid_size(5, 1));
    assert_eq!(cell(&grid, 8, 0, 0), digit);
    assert_eq!(cell(&grid, 8, 4, 0), pixels);
    for column in [0, 4] {
        assert_ne!(cell(&grid, 8, 2, 0), cell(&grid, 8, column, 0));
    }

    said(model.path(), &["levels", text(&file), "--draws", "3"]);
    let grid = picture(out.join("levels.png"));
    assert_eq!(grid.dimensions(), grid_size(4, 2));
    for row in 0..2 {
        assert_eq!(cell(&grid, 8, 0, row), pixels);
        assert_ne!(cell(&grid, 8, 1, row), cell(&grid, 8, 2, row));
    }
    said(model.path(), &["levels", "--draws", "1"]);
    assert_eq!(picture(out.join("levels.png")).dimensions(), grid_size(2, 2));
}

#[test]
fn inpainting_keeps_what_the_mask_leaves() {
    let model = saved_glow(GREY);
    let file = model.path().join("picture.png");
    let pixels = write_picture(&file);
    let mask = model.path().join("mask.png");
    // The left three columns are to be filled in.
    let white = |x, _| image::Luma([if x < 3 { 255 } else { 0 }]);
    GrayImage::from_fn(8, 8, white).save(&mask).unwrap();
    let options = ["--steps", "4", "--draws", "2"];
    for (mask, columns) in [(text(&mask), 3), ("left", 4)] {
        let line =
            said(model.path(), &[&["inpaint", text(&file), mask], options.as_slice()].concat());
        let before = number(&line, "ln p went from ", " to ");
        assert!(number(&line, " to ", " nats") >= before, "{line}");
        let grid = picture(model.path().join("explore/inpainting.png"));
        assert_eq!(grid.dimensions(), grid_size(3, 2));
        assert_eq!(cell(&grid, 8, 0, 0), pixels);
        let hidden = cell(&grid, 8, 0, 1);
        for (place, &pixel) in pixels.iter().enumerate() {
            let known = place % 8 >= columns;
            for column in 1..3 {
                let same = cell(&grid, 8, column, 0)[place] == pixel;
                assert!(same || !known, "pixel {place} changed");
            }
            assert_eq!(hidden[place], if known { pixel } else { [128; 3] });
        }
        assert_ne!(cell(&grid, 8, 1, 0), cell(&grid, 8, 2, 0));
    }
}

#[test]
fn scores_are_sorted_and_the_odd_one_is_found() {
    let model = saved_glow(GREY);
    let folder = model.path().join("pictures");
    fs::create_dir_all(folder.join("deeper")).unwrap();
    for value in 0..5u8 {
        let flat = GrayImage::from_pixel(8, 8, image::Luma([100 + value]));
        flat.save(folder.join(format!("deeper/{value}, grey.png"))).unwrap();
    }
    write_picture(&folder.join("odd.png"));
    let lines = |options: &[&str]| {
        let said = said(model.path(), &[&["score", text(&folder)], options].concat());
        let csv = fs::read_to_string(model.path().join("explore/scores.csv")).unwrap();
        (said, csv.lines().map(String::from).collect::<Vec<_>>())
    };
    let (line, csv) = lines(&[]);
    assert!(line.ends_with(" bits/dim over 6 pictures\n"), "{line}");
    assert_eq!(csv[0], "picture,log_prob,bits_per_dim");
    assert_eq!(csv.len(), 7);
    assert!(csv[1].starts_with("odd.png,"), "{csv:?}");
    assert!(csv[2].starts_with("\"deeper/") && csv[2].contains(", grey.png\","), "{csv:?}");
    let bits: Vec<f64> =
        csv[1..].iter().map(|line| line.rsplit(',').next().unwrap().parse().unwrap()).collect();
    assert!(bits.is_sorted_by(|a, b| a >= b), "{bits:?}");
    let mean = bits.iter().sum::<f64>() / 6.0;
    let stated = number(line.lines().last().unwrap(), "", " bits/dim");
    assert!((mean - stated).abs() < 1e-3, "{mean} {line}");
    let grid = picture(model.path().join("explore/scores.png"));
    assert_eq!(grid.dimensions(), grid_size(6, 2));
    assert_eq!(cell(&grid, 8, 0, 0), cell(&grid, 8, 5, 1));

    let (line, csv) = lines(&["--draws", "3", "--limit", "4"]);
    assert!(line.ends_with("by the importance-weighted bound of 3 draws\n"), "{line}");
    assert_eq!(csv.len(), 5);
    assert!(csv[0].ends_with(",importance_log_prob,importance_bits_per_dim"));
    for line in &csv[1..] {
        let fields: Vec<f64> = line.rsplit(',').take(4).map(|x| x.parse().unwrap()).collect();
        let [importance_bits, importance, bits, log_prob] = fields.try_into().unwrap();
        assert!(importance >= log_prob && importance_bits <= bits, "{line}");
    }
    // A folder of IDX files is its test images.
    let data = small_mnist(8);
    let line = said(model.path(), &["score", text(data.path()), "--limit", "7"]);
    assert!(line.ends_with(" over 7 pictures\n"), "{line}");
}

/// CelebA's layout: bright pictures are `Bright`, dark ones are not.
fn bright_and_dark() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("faces")).unwrap();
    let mut list = String::from("12\nBright Odd_Number\n");
    for index in 0..12u8 {
        let bright = index % 3 == 0;
        let value = if bright { 180 + index } else { 60 + index };
        let face = RgbImage::from_pixel(89, 109, Rgb([value, value / 2, 40]));
        face.save(folder.path().join(format!("faces/{index}.png"))).unwrap();
        let sign = |yes| if yes { 1 } else { -1 };
        list += &format!("{index}.png {} {}\n", sign(bright), sign(index % 2 == 1));
    }
    fs::write(folder.path().join("list_attr_celeba.txt"), list).unwrap();
    folder
}

#[test]
fn an_attribute_is_added_and_taken_away() {
    let data = bright_and_dark();
    let celeba = ["--data", text(data.path()), "--pictures", "faces"];
    for shape in [GREY, [3, 8, 8]] {
        let model = saved_glow(shape);
        let from = data.path().join("faces/5.png");
        let command = ["attribute", "Bright", "--alphas", "-0.5,0,0.5", "--from", text(&from)];
        let line = said(model.path(), &[command.as_slice(), &celeba].concat());
        assert!(line.contains("from 4 faces with it and 8 without"), "{line}");
        let crop = "89x109 pixels: the centre by the crop of CelebA, resized to 8x8";
        assert!(line.contains(crop), "{line}");
        let grid = picture(model.path().join("explore/attribute-Bright.png"));
        assert_eq!(grid.dimensions(), grid_size(3, 1));
        let brightness = |column| {
            let cell = cell(&grid, 8, column, 0);
            cell.iter().map(|pixel| f64::from(pixel[0])).sum::<f64>() / 64.0
        };
        // Half the difference of the means on either side, which the logit bends a little.
        assert!(brightness(0) < brightness(1) - 20.0, "{} {}", brightness(0), brightness(1));
        assert!(brightness(2) > brightness(1) + 20.0, "{} {}", brightness(2), brightness(1));
        let value = if shape == GREY { (65 * 299 + 32 * 587 + 40 * 114) / 1000 } else { 65 };
        assert!((brightness(1) - f64::from(value)).abs() <= 1.0, "{}", brightness(1));
    }
    let model = saved_glow(GREY);
    let from = data.path().join("faces/5.png");
    let complaint = |name: &str, celeba: &[&str]| {
        let command = ["attribute", name, "--from", text(&from)];
        let text = complaint(&mut explore(model.path(), &[command.as_slice(), celeba].concat()));
        text.replace(data.path().to_str().unwrap(), "DIR")
    };
    assert_eq!(
        complaint("brite", &celeba),
        "the attribute: got \"brite\", needs one of Bright, Odd_Number; capitals and underscores count"
    );
    assert_eq!(
        complaint("bright", &celeba),
        "the attribute: got \"bright\", needs a name of the list, like Bright; \
         capitals and underscores count"
    );
    assert_eq!(
        complaint("Bright", &celeba[..2]),
        "DIR: no folder img_align_celeba, expected the folder of the pictures; \
         unpack the pictures there, or name their folder"
    );
    fs::remove_file(data.path().join("list_attr_celeba.txt")).unwrap();
    assert_eq!(
        complaint("Bright", &celeba),
        "cannot read DIR/list_attr_celeba.txt: entity not found; \
         the list of attributes says which faces have which"
    );
}

/// Faces of CelebA's proportions: blue where its crop looks, red around it.
fn write_framed(folder: &Path, count: u8) {
    fs::create_dir_all(folder).unwrap();
    for index in 0..count {
        let face = RgbImage::from_fn(89, 109, |x, y| {
            let inside = (8..81).contains(&x) && (18..91).contains(&y);
            if inside { Rgb([0, 0, 150 + index]) } else { Rgb([255, 0, 0]) }
        });
        face.save(folder.join(format!("{:06}.png", index + 1))).unwrap();
    }
}

/// Whether there is red in the upper row of a grid of pictures with 32 pixels a side.
fn shows_border(grid: &RgbImage) -> bool {
    grid.enumerate_pixels().any(|(_, y, pixel)| y < 66 && pixel[0] > 150 && pixel[2] < 100)
}

#[test]
fn a_picture_is_cut_as_in_training() {
    let data = tempfile::tempdir().unwrap();
    let plain = data.path().join("plain");
    write_framed(&plain, 20);
    let layout = data.path().join("layout");
    write_framed(&layout.join("img_align_celeba"), 20);
    let list: String =
        (1..=20).map(|i| format!("{i:06}.png {}\n", 2 * usize::from(i > 15))).collect();
    fs::write(layout.join("list_eval_partition.txt"), list).unwrap();

    for (folder, has_border, words) in
        [(&plain, true, "the centre square"), (&layout, false, "the centre by the crop of CelebA")]
    {
        let out = data.path().join("out").join(folder.file_name().unwrap());
        let mut training = example("celeba");
        training.arg("--data").arg(folder).arg("--out").arg(&out).args(SMALLEST);
        training.args(["--steps", "1"]).arg("--cache").arg(data.path().join("cache"));
        let answer = answer(&mut training);
        assert!(answer.succeeded, "{}", answer.stderr);
        assert_eq!(shows_border(&picture(out.join("reconstructions.png"))), has_border);

        let file = plain.join("000003.png");
        let shown = |model: &Path, command: &[&str], name: &str| {
            let line = said(model, command);
            (shows_border(&picture(out.join("explore").join(name))), line)
        };
        // The run, and its record alone.
        for model in [out.clone(), out.join("model.safetensors")] {
            let (border, line) =
                shown(&model, &["reconstruct", text(&file)], "reconstructions.png");
            assert_eq!(border, has_border, "{line}");
            assert!(line.contains(&format!("89x109 pixels: {words}, resized to 32x32")), "{line}");
            let (border, line) =
                shown(&model, &["score", text(&plain), "--limit", "2"], "scores.png");
            assert_eq!(border, has_border, "{line}");
            let walk = ["interpolate", text(&file), text(&file), "--steps", "2"];
            assert_eq!(shown(&model, &walk, "interpolation.png").0, has_border);
            let mask = ["inpaint", text(&file), "middle", "--steps", "1", "--draws", "1"];
            assert_eq!(shown(&model, &mask, "inpainting.png").0, has_border);
        }
        // A picture that has the shape of the model's images already is one like any other.
        let small = data.path().join("small.png");
        RgbImage::from_fn(32, 32, |x, y| {
            let inside = (4..28).contains(&x) && (4..28).contains(&y);
            if inside { Rgb([0, 0, 150]) } else { Rgb([255, 0, 0]) }
        })
        .save(&small)
        .unwrap();
        let (border, line) = shown(&out, &["reconstruct", text(&small)], "reconstructions.png");
        assert_eq!(border, has_border, "{line}");
        // What is said is done.
        let options = ["reconstruct", text(&file), "--crop"];
        for (crop, has_border) in
            [("celeba", false), ("square", true), ("whole", true), ("auto", false)]
        {
            let command = [options.as_slice(), &[crop]].concat();
            assert_eq!(shown(&out, &command, "reconstructions.png").0, has_border, "{crop}");
        }
    }
}

#[test]
fn a_configuration_that_is_too_large_is_refused_in_a_line() {
    let model = saved_glow(GREY);
    let path = model.path().join("config.json");
    let good = fs::read_to_string(&path).unwrap();
    for (field, size) in [("hidden_width", "100000"), ("num_steps", "99999999999")] {
        let mut config: Value = serde_json::from_str(&good).unwrap();
        config["model"]["glow"][field] = serde_json::from_str(size).unwrap();
        fs::write(&path, config.to_string()).unwrap();
        let text = complaint(&mut explore(model.path(), &["sample"]));
        assert!(text.contains(&format!("{field} {size} asks for a Glow of ")), "{text}");
    }
    // A shape of images that is not the model's.
    let mut config: Value = serde_json::from_str(&good).unwrap();
    config["image_shape"] = json!([3, 8, 8]);
    fs::write(&path, config.to_string()).unwrap();
    let text = complaint(&mut explore(model.path(), &["sample"]));
    assert!(text.starts_with("the shape of the images: got [3, 8, 8], needs 64 values"), "{text}");
}

#[test]
fn the_other_models_are_explored_too() {
    let real_nvp = RealNvpConfig::new(GREY, 2, 2, 1);
    let nice = NiceConfig::new(64, vec![8]);
    let device = device().1();
    let folders = [
        saved("realnvp", &real_nvp, GREY, real_nvp.init(&device).unwrap()),
        saved("nice", &nice, GREY, nice.init(&device).unwrap()),
    ];
    for model in &folders {
        let file = model.path().join("picture.png");
        let pixels = write_picture(&file);
        for command in [
            vec!["sample", "--rows", "1"],
            vec!["reconstruct", text(&file)],
            vec!["interpolate", text(&file), text(&file), "--steps", "2"],
            vec!["inpaint", text(&file), "middle", "--steps", "2", "--draws", "1"],
        ] {
            said(model.path(), &command);
        }
        let grid = picture(model.path().join("explore/reconstructions.png"));
        assert_eq!(cell(&grid, 8, 0, 1), pixels);
    }
    said(folders[0].path(), &["levels", "--draws", "1"]);
    assert_eq!(
        complaint(&mut explore(folders[1].path(), &["levels"])),
        "levels: got a model of one level, needs at least two; \
         one level has no finer latents to draw anew; use a glow or realnvp"
    );
}

#[test]
fn what_explore_cannot_do_it_says_in_a_line() {
    let model = saved_glow(GREY);
    let path = model.path();
    let data = small_mnist(28);
    let complaint = |model: &Path, command: &[&str]| {
        let text = complaint(&mut explore(model, command));
        text.replace(path.to_str().unwrap(), "DIR")
    };
    let advice = "give --model the folder that a training example wrote (its --out)";
    assert_eq!(
        complaint(&path.join("none"), &["sample"]),
        format!(
            "cannot read DIR/none/config.json: No such file or directory (os error 2); {advice}"
        )
    );
    assert_eq!(
        complaint(path, &["reconstruct", "none.png"]),
        "cannot read none.png: No such file or directory (os error 2); \
         pass a JPEG or PNG picture that can be read"
    );
    assert_eq!(
        complaint(path, &["reconstruct", "test:0", "--idx", text(data.path())]),
        "test:0: got [1, 28, 28], needs [1, 8, 8], channels, height and width of the model's images; \
         give --idx the data set of the model"
    );
    let data = small_mnist(8);
    assert_eq!(
        complaint(path, &["reconstruct", "test:100", "--idx", text(data.path())]),
        "the picture: got test:100, needs test:0 to test:99; they count from 0"
    );
    let black = path.join("black.png");
    GrayImage::new(8, 8).save(&black).unwrap();
    assert!(complaint(path, &["inpaint", text(&black), text(&black)]).ends_with(
        ", which is white at 0 of 64 pixels, needs both white and black; \
                        paint white what is to be filled in and black what is known"
    ));
    assert_eq!(
        complaint(path, &["interpolate", "a", "b", "--steps", "1"]),
        "--steps: got 1, needs at least 2; both ends count"
    );
    for temperature in ["-1", "NaN"] {
        assert_eq!(
            complaint(path, &["sample", "--temperature", temperature]),
            format!(
                "--temperature: got {temperature}, needs a number of at least 0; \
                 0.7 is usual, 1 draws from the model"
            )
        );
    }
    assert!(complaint(path, &["paint"]).starts_with("unrecognized subcommand 'paint'; "));
    assert!(
        complaint(path, &[])
            .starts_with("'explore' requires a subcommand but one was not provided")
    );

    // Not the model of the configuration; none; not a configuration.
    let other = saved_glow([3, 8, 8]);
    let record = path.join("model.safetensors");
    fs::copy(other.path().join("model.safetensors"), &record).unwrap();
    let text = complaint(path, &["sample"]);
    assert!(text.starts_with("DIR/model.safetensors: this record is of another model: "), "{text}");
    fs::remove_file(record).unwrap();
    assert_eq!(
        complaint(path, &["sample"]),
        "cannot read DIR/model.safetensors: entity not found; \
         a run writes its model at its first measurement; wait for it, or train anew"
    );
    fs::write(path.join("config.json"), "{}").unwrap();
    assert_eq!(
        complaint(path, &["sample"]),
        "DIR/config.json: not the configuration of an image model (missing field `model` at line 1 \
         column 2), expected what mnist or celeba writes; \
         give --model the folder of such a run, of this version"
    );
}

/// A model that PyTorch trained, from its state dict in one command.
#[test]
fn models_of_other_libraries_are_explored() {
    use burn_flows::weights::Weights;

    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden-libraries/rosinality_affine_lu.safetensors"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.pt");
    Weights::read(golden, &device().1()).unwrap().under("param").write(&file).unwrap();
    let from = ["--from", "rosinality", "--image-size", "16"];
    let with = |command: &[&str]| said(&file, &[&from, command].concat());
    with(&["sample", "--rows", "1", "--columns", "2"]);
    assert!(folder.path().join("model.explore/samples.png").exists());
    // A picture comes back from a round trip; 5 bits are what is left of it.
    let pictures = folder.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    let path = pictures.join("picture.png");
    RgbImage::from_fn(16, 16, |x, y| Rgb([(x * 9) as u8, (y * 13) as u8, 128]))
        .save(&path)
        .unwrap();
    let answer = with(&["reconstruct", text(&path)]);
    let difference =
        answer.split("largest difference ").nth(1).and_then(|rest| rest.split(' ').next());
    let difference: f64 = difference.expect(&answer).parse().unwrap();
    assert!(difference < 1e-2, "{answer}");
    with(&["interpolate", text(&path), text(&path)]);
    with(&["score", text(&pictures)]);
    assert!(folder.path().join("model.explore/scores.csv").exists());

    let wrong = answer_of(&mut explore(&file, &["--from", "y0ast", "sample"]));
    assert!(
        wrong.contains("this is not the state dict of model.Glow of y0ast/Glow-PyTorch"),
        "{wrong}"
    );
    let wrong =
        answer_of(&mut explore(&file, &["--from", "rosinality", "--image-size", "0", "sample"]));
    assert!(wrong.contains("--image-size"), "{wrong}");
}

/// What a command says when it fails.
fn answer_of(command: &mut Command) -> String {
    let answer = answer(command);
    assert!(!answer.succeeded);
    answer.stderr
}
