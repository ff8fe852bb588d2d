//! What to do with a trained model: draw from it, walk between pictures, change an attribute, fill in
//! what is missing, find what does not belong.
//!
//! `cargo run --release --example explore -- --model DIR COMMAND`
//!
//! `--model FILE --from rosinality` (or `y0ast`, `normflows`, `chrischute`) explores a model that another
//! library trained, from its state dict.
//!
//! `DIR` is the folder of a run of `mnist` or `celeba` (its `--out`), of any of the three models and
//! any shape of images, or the model's record alone. A picture is a PNG or JPEG file, cut and resized as
//! those that the model was trained on, or `test:7`, the eighth test image of MNIST (or of the IDX files
//! in `--idx`). Of a class-conditional model `--class` says which class. What a command makes goes into `--out`, by default `DIR/explore`.
//!
//! | command | what it shows | from code |
//! |---|---|---|
//! | `sample` | new pictures | `FlowStack::sample_with` |
//! | `interpolate A B` | the way from one picture to another | `FlowStack::interpolate` |
//! | `attribute NAME --from PICTURE --data DIR` | a picture with more and less of an attribute | `FlowStack::attribute_direction`, `manipulate` |
//! | `reconstruct PICTURE…` | what a round trip leaves of pictures | `FlowStack::encode`, `decode` |
//! | `score DIR` | how likely each picture of a folder is, the strangest first | `FlowStack::score` |
//! | `inpaint PICTURE MASK` | a picture with a part of it filled in | `FlowStack::inpaint` |
//! | `levels PICTURE` | what each level of the latent holds | `FlowStack::resample_finer` |

#[path = "support/mod.rs"]
mod support;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::module::Module;
use burn::tensor::Tensor;
use burn_flows::context::Given;
use burn_flows::data::{CelebA, Channels, Crop, Images, random_for, streams};
use burn_flows::latent::{Inpainting, InpaintingCoordinates};
use burn_flows::metrics::Score;
use burn_flows::preprocess::Quantization;
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::record::write_atomically;
use burn_flows::{Flow, FlowError, FlowStack, Result};
use clap::{Args, Parser, Subcommand};
use indicatif::ProgressBar;
use rand::rngs::StdRng;
use support::arguments::{DeviceArgument, at_least_one, invalid};
use support::foreign::{ForeignArguments, Library};
use support::pictures::write_grid;
use support::run::is_run;
use support::saved::{SavedModel, Visitor};
use support::subject::{SubjectArguments, Subjects, Wanted};
use support::{say, say_err};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Explore a trained model of images.
#[derive(Parser)]
struct Arguments {
    /// Folder of the run that trained the model (its --out), or the record of a model; with --from a
    /// file of that library
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    foreign: ForeignArguments,
    /// Folder of what is written [default: explore in the folder of the run]
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of all draws
    #[arg(long, global = true, default_value_t = 0)]
    seed: u64,
    /// The class whose density a class-conditional model is asked for, counted from 0
    #[arg(long, global = true)]
    class: Option<usize>,
    #[command(flatten)]
    device: DeviceArgument,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Draw new pictures: samples.png
    Sample(Sample),
    /// Walk from one picture to another, straight in latent space: interpolation.png
    Interpolate(Interpolate),
    /// Change an attribute of pictures, by the mean latents of faces with and without it:
    /// attribute-NAME.png
    Attribute(Attribute),
    /// Encode and decode pictures: reconstructions.png, pictures above, what comes back below
    Reconstruct(Reconstruct),
    /// Say how likely pictures are, the strangest first: scores.csv and scores.png
    Score(ScoreFolder),
    /// Fill in a part of a picture by gradient ascent on its likelihood: inpainting.png
    Inpaint(Inpaint),
    /// Keep the coarse latents of a picture and draw the finer ones anew: levels.png
    Levels(Levels),
}

#[derive(Args)]
struct Sample {
    /// Multiplies the spread of the latents: 1 draws from the model, less draws the more usual
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.7)]
    temperature: f64,
    /// Rows of the grid
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// Pictures in a row
    #[arg(long, default_value_t = 8)]
    columns: usize,
}

#[derive(Args)]
struct Interpolate {
    /// Where the walk starts: a file, or test:N or train:N
    a: String,
    /// Where it ends
    b: String,
    /// Pictures on the walk, both ends included
    #[arg(long, default_value_t = 9)]
    steps: usize,
    #[command(flatten)]
    subjects: SubjectArguments,
}

#[derive(Args)]
struct Attribute {
    /// The attribute, as list_attr_celeba.txt spells it: Smiling, Male, Young, ...
    name: String,
    /// Pictures to change, one row each: files, or test:N or train:N
    #[arg(long, value_name = "PICTURE", required = true, num_args = 1..)]
    from: Vec<String>,
    /// How far to go: 1 is as far as the two means are apart, a negative number the other way
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true,
          default_values_t = [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0])]
    alphas: Vec<f64>,
    /// Folder of CelebA, with list_attr_celeba.txt
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Name of the folder of its pictures
    #[arg(long, default_value = "img_align_celeba")]
    pictures: PathBuf,
    /// Folder where decoded pictures are kept for the next time [default: none]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// At most so many pictures are averaged with the attribute, and so many without
    #[arg(long, default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    subjects: SubjectArguments,
}

#[derive(Args)]
struct Reconstruct {
    /// Files, or test:N or train:N
    #[arg(required = true)]
    pictures: Vec<String>,
    #[command(flatten)]
    subjects: SubjectArguments,
}

#[derive(Args)]
struct ScoreFolder {
    /// Folder of pictures, at any depth, or of the four IDX files of a data set (its test images)
    folder: PathBuf,
    /// Draws of dequantization noise a picture: with more than 1, the importance-weighted bound too
    #[arg(long, default_value_t = 1)]
    draws: usize,
    /// At most so many pictures, spread evenly over all [default: all]
    #[arg(long)]
    limit: Option<usize>,
    #[command(flatten)]
    subjects: SubjectArguments,
}

#[derive(Args)]
struct Inpaint {
    /// A file, or test:N or train:N
    picture: String,
    /// A picture that is white where the other is to be filled in; or top, bottom, left, right, middle
    mask: String,
    /// Fillings, each started from a sample of its own
    #[arg(long, default_value_t = 8)]
    draws: usize,
    /// Steps of the ascent
    #[arg(long, default_value_t = 300)]
    steps: usize,
    /// Temperature of the samples that the fillings start from
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.7)]
    temperature: f64,
    #[command(flatten)]
    subjects: SubjectArguments,
}

#[derive(Args)]
struct Levels {
    /// A file, or test:N or train:N [default: a sample]
    picture: Option<String>,
    /// Multiplies the spread of the latents that are drawn
    #[arg(long, allow_negative_numbers = true, default_value_t = 1.0)]
    temperature: f64,
    /// Draws for each number of levels kept
    #[arg(long, default_value_t = 8)]
    draws: usize,
    #[command(flatten)]
    subjects: SubjectArguments,
}

/// The folder of a model: of the record, or of the run itself.
fn beside(model: &Path) -> &Path {
    if model.is_file() { model.parent().unwrap_or(model) } else { model }
}

/// Pictures that go through the model at once.
const BATCH: usize = 50;

/// Pictures in a row of a picture of pictures.
const COLUMNS: usize = 10;

fn main() -> ExitCode {
    support::run(run)
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(out) = arguments.out.as_ref().filter(|out| is_run(out)) {
        let got = format!("{}, which holds a run", out.display());
        let advice = "left out, it is explore in the folder of the run";
        return Err(invalid("--out", &got, "a folder of its own", advice));
    }
    let device = arguments.device.get()?;
    let Arguments { model, foreign, .. } = arguments;
    if let Some(library) = foreign.from {
        let explore = Explore {
            arguments,
            image_shape: None,
            crop: None,
            quantization: foreign.quantization(library)?,
            has_logit: library == Library::Chrischute,
            out: model.with_extension("explore"),
        };
        return foreign.visit(library, model, &device, explore);
    }
    let saved = SavedModel::open(model)?;
    let explore = Explore {
        arguments,
        image_shape: Some(saved.image_shape),
        crop: saved.crop(),
        quantization: saved.quantization()?,
        has_logit: saved.has_logit(),
        out: beside(model).join("explore"),
    };
    saved.visit(&device, explore)
}

struct Explore<'a> {
    arguments: &'a Arguments,
    /// That of the model's samples, where it is not given.
    image_shape: Option<[usize; 3]>,
    /// What was kept of each picture in training, if that is known.
    crop: Option<Crop>,
    quantization: Quantization,
    has_logit: bool,
    /// Where what is written goes by default.
    out: PathBuf,
}

impl Visitor for Explore<'_> {
    type Answer = ();

    fn visit<const D: usize, F, P, S>(self, model: &FlowStack<D, F, P, S>) -> Result<()>
    where
        F: Flow<D>,
        P: Prior<D>,
        S: SplitPrior<D>,
        FlowStack<D, F, P, S>: Module,
    {
        let Arguments { out, seed, class, .. } = self.arguments;
        let model = &of_class(model, *class)?;
        let of_samples = || model.sample_shape().try_into().expect("a model of images");
        let session = Session {
            model,
            wanted: Wanted {
                image_shape: self.image_shape.unwrap_or_else(of_samples),
                crop: self.crop,
            },
            quantization: self.quantization,
            has_logit: self.has_logit,
            out: out.clone().unwrap_or(self.out),
            seed: *seed,
        };
        match &self.arguments.command {
            Command::Sample(sample) => session.sample(sample),
            Command::Interpolate(interpolate) => session.interpolate(interpolate),
            Command::Attribute(attribute) => session.attribute(attribute),
            Command::Reconstruct(reconstruct) => session.reconstruct(reconstruct),
            Command::Score(score) => session.score(score),
            Command::Inpaint(inpaint) => session.inpaint(inpaint),
            Command::Levels(levels) => session.levels(levels),
        }
    }
}

/// The model itself, or the density of one class of it.
fn of_class<M: Module>(model: &M, class: Option<usize>) -> Result<M> {
    // What has no classes says so.
    let classes = model.one_hot(&[0_usize]);
    match (class, classes) {
        (Some(class), _) => model.given_classes(&[class]),
        (None, Err(_)) => Ok(model.clone()),
        (None, Ok(classes)) => {
            let needed = format!("one below {}", classes.dims()[1]);
            let advice = "the model is class-conditional: say of which class to draw or to judge";
            Err(invalid("--class", "none", &needed, advice))
        }
    }
}

/// A model and what the commands need beside it.
struct Session<'a, const D: usize, F: Module, P: Module, S: Module>
where
    FlowStack<D, F, P, S>: Module,
{
    model: &'a FlowStack<D, F, P, S>,
    wanted: Wanted,
    quantization: Quantization,
    has_logit: bool,
    out: PathBuf,
    seed: u64,
}

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> Session<'_, D, F, P, S>
where
    FlowStack<D, F, P, S>: Module,
{
    fn sample(&self, options: &Sample) -> Result<()> {
        let &Sample { temperature, rows, columns } = options;
        check_temperature(temperature)?;
        at_least_one("--rows", Some(rows))?;
        at_least_one("--columns", Some(columns))?;
        let mut rng = self.random(streams::SAMPLE);
        let rows: Vec<_> =
            (0..rows).map(|_| self.model.sample_with(columns, temperature, &mut rng)).collect();
        let count = rows.len() * columns;
        self.write("samples.png", rows, &format!("{count} samples at temperature {temperature}"))
    }

    fn interpolate(&self, options: &Interpolate) -> Result<()> {
        let Interpolate { a, b, steps, subjects } = options;
        if *steps < 2 {
            return Err(invalid("--steps", &steps.to_string(), "at least 2", "both ends count"));
        }
        let Subjects { images, .. } = subjects.read(&[a.clone(), b.clone()], self.wanted)?;
        let (a, b) = (self.encode_image(&images, 0), self.encode_image(&images, 1));
        let weights: Vec<f64> = (0..*steps).map(|i| i as f64 / (steps - 1) as f64).collect();
        let walk = self.model.interpolate(a, b, &weights);
        self.write("interpolation.png", vec![Tensor::cat(walk, 0)], &format!("{steps} steps"))
    }

    fn attribute(&self, options: &Attribute) -> Result<()> {
        let Attribute { name, from, alphas, data, pictures, cache, limit, subjects } = options;
        at_least_one("--limit", Some(*limit))?;
        if let Some(alpha) = alphas.iter().find(|alpha| !alpha.is_finite()) {
            return Err(invalid("--alphas", &alpha.to_string(), "numbers", "1 goes one mean far"));
        }
        // Before the faces: loading them may take minutes.
        let subjects = subjects.read(from, self.wanted)?;
        let faces = self.load_faces(data, pictures, cache.as_deref())?;
        let attributes = faces.attributes.ok_or_else(|| FlowError::Io {
            action: "read",
            path: data.join("list_attr_celeba.txt"),
            source: std::io::ErrorKind::NotFound.into(),
            advice: "the list of attributes says which faces have which",
        })?;
        let (mut with, mut without) = attributes.divide(name)?;
        for indices in [&mut with, &mut without] {
            *indices = spread(indices.len(), *limit).map(|place| indices[place]).collect();
        }
        let mut rng = self.random(streams::EVALUATE);
        let direction = self.model.attribute_direction(
            &faces.images,
            &with,
            &without,
            self.quantization,
            &mut rng,
        )?;
        let rows = (0..subjects.images.len())
            .map(|index| {
                let x = self.encode_image(&subjects.images, index);
                let changed =
                    alphas.iter().map(|&alpha| self.model.manipulate(x.clone(), &direction, alpha));
                Tensor::cat(changed.collect(), 0)
            })
            .collect();
        let about = format!(
            "{name}, from {} faces with it and {} without, times {alphas:?}",
            with.len(),
            without.len()
        );
        self.write(&format!("attribute-{name}.png"), rows, &about)
    }

    fn load_faces(
        &self,
        data: &Path,
        pictures: &Path,
        cache: Option<&Path>,
    ) -> Result<burn_flows::data::CelebAFaces> {
        let [channels, height, width] = self.wanted.image_shape;
        if height != width {
            let got = format!("{width}x{height}");
            return Err(invalid("attribute", &got, "a model of square images", "use one"));
        }
        let channels = if channels == 1 { Channels::Grey } else { Channels::Rgb };
        let mut loader =
            CelebA::new(data, height).with_picture_folder(pictures).with_channels(channels);
        if let Some(crop) = self.wanted.crop {
            loader = loader.with_crop(crop);
        }
        if let Some(cache) = cache {
            loader = loader.with_cache(cache);
        }
        let faces = loader.load()?;
        for picture in &faces.skipped {
            say_err!("left out {}: {}", picture.name, picture.reason);
        }
        Ok(faces)
    }

    fn reconstruct(&self, options: &Reconstruct) -> Result<()> {
        let Reconstruct { pictures, subjects } = options;
        let Subjects { images, names } = subjects.read(pictures, self.wanted)?;
        let mut rng = self.random(streams::EVALUATE);
        let (mut rows, mut largest) = (Vec::new(), 0.0);
        let indices: Vec<usize> = (0..images.len()).collect();
        for indices in indices.chunks(COLUMNS) {
            let pixels = images.gather(indices);
            let x = self.model.batch(self.quantization.dequantize(&pixels, &mut rng));
            let back = self.model.decode(self.model.encode(x.clone()).0);
            let error = (back.clone() - x.clone()).abs().max().into_scalar::<f64>();
            largest = f64::max(largest, error);
            rows.extend([x, back]);
        }
        let about = format!(
            "{} pictures, largest difference {largest:.1e} of the range of a pixel",
            names.len()
        );
        self.write("reconstructions.png", rows, &about)
    }

    fn score(&self, options: &ScoreFolder) -> Result<()> {
        let ScoreFolder { folder, draws, limit, subjects } = options;
        at_least_one("--draws", Some(*draws))?;
        at_least_one("--limit", *limit)?;
        let Subjects { images, names } = subjects.read_folder(folder, self.wanted)?;
        let chosen: Vec<usize> = spread(images.len(), limit.unwrap_or(images.len())).collect();
        let bar = ProgressBar::new(chosen.len() as u64);
        let mut scored: Vec<(usize, Score)> = Vec::new();
        for (step, indices) in chosen.chunks(BATCH).enumerate() {
            let mut rng = random_for(self.seed, streams::EVALUATE, step as u64);
            let pixels = images.gather(indices);
            let scores = self.model.score(&pixels, self.quantization, *draws, &mut rng)?;
            scored.extend(indices.iter().copied().zip(scores));
            bar.inc(indices.len() as u64);
        }
        bar.finish_and_clear();
        // A NaN is the strangest of all.
        scored.sort_by(|(_, a), (_, b)| {
            b.importance_bits_per_dim.total_cmp(&a.importance_bits_per_dim)
        });
        self.write_file("scores.csv", csv(&scored, &names, *draws).as_bytes())?;

        let extremes = |scored: Vec<&(usize, Score)>| {
            let indices: Vec<usize> = scored.into_iter().map(|(index, _)| *index).collect();
            let pixels = images.gather(&indices);
            self.model.batch(self.quantization.dequantize(&pixels, &mut self.random(0)))
        };
        let strangest = extremes(scored.iter().take(COLUMNS).collect());
        let likeliest = extremes(scored.iter().rev().take(COLUMNS).collect());
        let about = "the strangest pictures above, the likeliest below";
        self.write("scores.png", vec![strangest, likeliest], about)?;

        let mean = |value: fn(&Score) -> f64| {
            scored.iter().map(|(_, score)| value(score)).sum::<f64>() / scored.len() as f64
        };
        let tighter = match draws {
            1 => String::new(),
            _ => format!(
                ", {:.3} by the importance-weighted bound of {draws} draws",
                mean(|score| score.importance_bits_per_dim)
            ),
        };
        let bits = mean(|score| score.bits_per_dim);
        say!("{bits:.3} bits/dim over {} pictures{tighter}", scored.len());
        Ok(())
    }

    fn inpaint(&self, options: &Inpaint) -> Result<()> {
        let Inpaint { picture, mask, draws, steps, temperature, subjects } = options;
        at_least_one("--draws", Some(*draws))?;
        at_least_one("--steps", Some(*steps))?;
        check_temperature(*temperature)?;
        let picture = subjects.read(std::slice::from_ref(picture), self.wanted)?.images;
        let known = self.model.batch(self.read_mask(mask, subjects)?);
        let x = self.encode_image(&picture, 0);
        let is_known = known.clone().greater_elem(0.5);
        let hidden = x.clone().mask_fill(is_known.clone().bool_not(), 0.5);

        let mut rng = self.random(streams::SAMPLE);
        let samples = self.model.sample_with(*draws, *temperature, &mut rng);
        let start = samples
            .mask_where(is_known.repeat_dim(0, *draws), x.clone().repeat_dim(0, *draws))
            .clamp(0.0, 1.0);
        let coordinates =
            if self.has_logit { InpaintingCoordinates::Logit } else { InpaintingCoordinates::Data };
        let how = Inpainting { num_steps: *steps, coordinates, ..Inpainting::default() };
        let filled = self.model.inpaint(start.clone(), known, &how, &mut rng)?;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let about = format!(
            "the picture and what is known of it; {draws} starts below, what became of them above; \
             ln p went from {:.0} to {:.0} nats",
            mean(&filled.log_prob_before),
            mean(&filled.log_prob_after)
        );
        let rows =
            vec![Tensor::cat(vec![x.clone(), filled.x], 0), Tensor::cat(vec![hidden, start], 0)];
        self.write("inpainting.png", rows, &about)
    }

    /// 1 where the picture is known, 0 where it is to be filled in.
    fn read_mask(&self, mask: &str, subjects: &SubjectArguments) -> Result<Vec<f32>> {
        let [channels, height, width] = self.wanted.image_shape;
        let plane: Vec<bool> = match mask {
            "top" | "bottom" | "left" | "right" | "middle" => {
                let unknown = |y: usize, x: usize| match mask {
                    "top" => 2 * y < height,
                    "bottom" => 2 * y >= height,
                    "left" => 2 * x < width,
                    "right" => 2 * x >= width,
                    _ => {
                        (height / 4..height - height / 4).contains(&y)
                            && (width / 4..width - width / 4).contains(&x)
                    }
                };
                (0..height * width).map(|place| unknown(place / width, place % width)).collect()
            }
            file => {
                // Of the shape of the model's images it is meant for what the model sees.
                let crop = self.wanted.crop.filter(|_| !subjects.is_of_shape(file, self.wanted));
                let grey = Wanted { image_shape: [1, height, width], crop };
                let mask = subjects.read(&[file.to_string()], grey)?.images;
                mask.pixels().iter().map(|&pixel| pixel >= 128).collect()
            }
        };
        let unknown = plane.iter().filter(|&&unknown| unknown).count();
        if unknown == 0 || unknown == plane.len() {
            let got = format!("{mask}, which is white at {unknown} of {} pixels", plane.len());
            let advice = "paint white what is to be filled in and black what is known";
            return Err(invalid("the mask", &got, "both white and black", advice));
        }
        let values = plane.iter().map(|&unknown| f32::from(!unknown));
        Ok(values.cycle().take(channels * plane.len()).collect())
    }

    fn levels(&self, options: &Levels) -> Result<()> {
        let Levels { picture, temperature, draws, subjects } = options;
        check_temperature(*temperature)?;
        at_least_one("--draws", Some(*draws))?;
        let num_levels = self.model.latent_shapes().len();
        if num_levels == 1 {
            let advice = "one level has no finer latents to draw anew; use a glow or realnvp";
            return Err(invalid("levels", "a model of one level", "at least two", advice));
        }
        let mut rng = self.random(streams::SAMPLE);
        let x = match picture {
            Some(name) => {
                let images = subjects.read(std::slice::from_ref(name), self.wanted)?.images;
                self.encode_image(&images, 0)
            }
            None => self.model.sample_with(1, *temperature, &mut rng),
        };
        let (latents, _) = self.model.encode(x.clone().repeat_dim(0, *draws));
        let rows = (0..num_levels)
            .rev()
            .map(|kept| {
                let drawn = self.model.resample_finer(&latents, kept, *temperature, &mut rng);
                Tensor::cat(vec![x.clone(), drawn], 0)
            })
            .collect();
        let kept: Vec<String> = (0..num_levels).rev().map(|kept| kept.to_string()).collect();
        let about = format!(
            "the picture, then draws that keep the {} coarsest of {num_levels} levels, row by row",
            kept.join(" / ")
        );
        self.write("levels.png", rows, &about)
    }

    /// One image with noise of its own, as the model takes it.
    fn encode_image(&self, images: &Images, index: usize) -> Tensor<D> {
        let mut rng = random_for(self.seed, streams::EVALUATE, index as u64);
        self.model.batch(self.quantization.dequantize(images.image(index), &mut rng))
    }

    fn random(&self, stream: u64) -> StdRng {
        random_for(self.seed, stream, 0)
    }

    /// Writes rows of pictures into the folder and says what they are.
    fn write(&self, name: &str, rows: Vec<Tensor<D>>, about: &str) -> Result<()> {
        let [c, h, w] = self.wanted.image_shape;
        let rows: Vec<Tensor<4>> = rows
            .into_iter()
            .map(|row| {
                let count = row.dims()[0];
                row.reshape([count, c, h, w])
            })
            .collect();
        let bad: i64 = rows
            .iter()
            .map(|row| row.clone().is_finite().bool_not().int().sum().into_scalar::<i64>())
            .sum();
        if bad > 0 {
            return Err(invalid(
                name,
                &format!("{bad} values that are not finite"),
                "finite ones",
                "use a lower temperature or smaller steps; if the model diverged, an earlier one",
            ));
        }
        let path = self.make_out()?.join(name);
        write_grid(&path, &rows, self.quantization)?;
        say!("{}: {about}", path.display());
        Ok(())
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.make_out()?.join(name);
        write_atomically(&path, bytes)?;
        say!("{}", path.display());
        Ok(())
    }

    fn make_out(&self) -> Result<&Path> {
        fs::create_dir_all(&self.out).map_err(|source| FlowError::Io {
            action: "create the folder",
            path: self.out.clone(),
            source,
            advice: "give --out a folder that can be written",
        })?;
        Ok(&self.out)
    }
}

fn check_temperature(temperature: f64) -> Result<()> {
    if temperature >= 0.0 && temperature.is_finite() {
        return Ok(());
    }
    let advice = "0.7 is usual, 1 draws from the model";
    Err(invalid("--temperature", &temperature.to_string(), "a number of at least 0", advice))
}

/// At most `limit` of `0..len`, spread evenly.
fn spread(len: usize, limit: usize) -> impl Iterator<Item = usize> {
    let count = len.min(limit);
    (0..count).map(move |i| i * len / count)
}

/// A line for each picture.
fn csv(scored: &[(usize, Score)], names: &[String], draws: usize) -> String {
    let mut text = String::from("picture,log_prob,bits_per_dim");
    if draws > 1 {
        text += ",importance_log_prob,importance_bits_per_dim";
    }
    text.push('\n');
    for (index, score) in scored {
        let name = names[*index].replace('"', "\"\"");
        let quote = if name.contains([',', '"', '\n', '\r']) { "\"" } else { "" };
        let Score { log_prob, bits_per_dim, importance_log_prob, importance_bits_per_dim } = score;
        write!(text, "{quote}{name}{quote},{log_prob:.3},{bits_per_dim:.5}").expect("memory");
        if draws > 1 {
            write!(text, ",{importance_log_prob:.3},{importance_bits_per_dim:.5}").expect("memory");
        }
        text.push('\n');
    }
    text
}
