//! What a trained model of images can do: draw from it, walk between pictures, change an attribute, fill in
//! what is missing, find what does not belong.

mod foreign;
mod saved;
mod subject;

use std::fmt::{self, Write};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use indicatif::ProgressBar;
use rand::rngs::StdRng;

pub use self::foreign::Library;
use self::saved::SavedModel;
pub use self::subject::CropName;
use self::subject::{Reader, Subjects, Wanted, is_of_shape};
use super::folder::is_run;
use super::{at_least_one, check_number, write_grid};
use crate::Density;
use crate::context::Given;
use crate::data::{
    CelebA, CelebAFaces, Channels, Crop, Images, SkippedPicture, random_for, streams,
};
use crate::error::{FlowError, Result};
use crate::host;
use crate::latent::{Inpainting, InpaintingCoordinates};
use crate::metrics::Score;
use crate::preprocess::Quantization;
use crate::record::write_atomically;

/// Opens a trained model of images, to [`Explore`] it; pictures go into a folder.
///
/// A picture is a PNG or JPEG file, cut and resized as those that the model was trained on, or `test:7`, the
/// eighth test image of the data set in [`idx`](Explorer::idx).
///
/// ```no_run
/// use burn_flows::run::Explorer;
///
/// let device = burn_flows::backend::device();
/// let model = Explorer::default().open("runs/mnist-glow", &device)?;
/// println!("{}", model.sample(8, 8, 0.7)?);
/// println!("{}", model.interpolate("three.png", "seven.png", 9)?);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Explorer {
    /// The folder of what is written; by default `explore` in the folder of the model's run or beside its
    /// record, and of a model of another library a folder named after the file.
    pub out: Option<PathBuf>,
    /// Seed of all draws.
    pub seed: u64,
    /// The class whose density a class-conditional model is asked for, counted from 0.
    pub class: Option<usize>,
    /// What is kept of a picture, if its shape is not the model's; by default what was kept in training, of any
    /// picture, and of models that do not say, [`CropName::Auto`].
    pub crop: Option<CropName>,
    /// The folder of the IDX files that `test:N` and `train:N` look into.
    pub idx: Option<PathBuf>,
    /// The library that trained the model, where it was another one: the file is its state dict.
    pub from: Option<Library>,
    /// Of such a model the height and width of the images, where its file does not hold them: `64` or `48x64`.
    pub image_size: Option<String>,
    /// The bits of the pixels that such a model was trained on.
    pub bits: Option<u32>,
}

/// The faces that the direction of an attribute is found from.
#[derive(Debug, Clone)]
pub struct AttributeFaces {
    /// The folder of CelebA, with `list_attr_celeba.txt`.
    pub data: PathBuf,
    /// The name of the folder of its pictures.
    pub pictures: PathBuf,
    /// The folder where decoded pictures are kept for the next time.
    pub cache: Option<PathBuf>,
    /// At most so many pictures are averaged with the attribute, and so many without.
    pub limit: usize,
}

/// What was found and written.
#[derive(Debug, Default)]
pub struct Explored {
    /// What to say of it, line by line.
    pub lines: Vec<String>,
    /// Pictures that were left out.
    pub skipped: Vec<SkippedPicture>,
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

/// What can be asked of a model of images that an [`Explorer`] opened; each answer is a picture of pictures.
///
/// All of it is [`FlowStack`](crate::FlowStack)'s too, for models and samples in memory.
///
/// # Errors
/// [`FlowError::Invalid`] for a number that cannot be used or pictures that do not suit the model;
/// [`FlowError::Io`] where a picture cannot be read or written.
pub trait Explore {
    /// New pictures: `samples.png`.
    ///
    /// # Errors
    /// See [`Explore`].
    fn sample(&self, rows: usize, columns: usize, temperature: f64) -> Result<Explored>;

    /// The way from one picture to another, straight in latent space: `interpolation.png`.
    ///
    /// # Errors
    /// See [`Explore`].
    fn interpolate(&self, a: &str, b: &str, steps: usize) -> Result<Explored>;

    /// Pictures with more and less of an attribute, a row each, by the mean latents of faces with and without it:
    /// `attribute-NAME.png`. An `alpha` of 1 goes as far as the two means are apart.
    ///
    /// # Errors
    /// See [`Explore`].
    fn attribute(
        &self,
        name: &str,
        from: &[String],
        alphas: &[f64],
        faces: &AttributeFaces,
    ) -> Result<Explored>;

    /// What a round trip leaves of pictures: `reconstructions.png`.
    ///
    /// # Errors
    /// See [`Explore`].
    fn reconstruct(&self, pictures: &[String]) -> Result<Explored>;

    /// How likely each picture of a folder is, the strangest first: `scores.csv` and `scores.png`. At most
    /// `limit` pictures, spread evenly, with so many draws of the dequantization noise each.
    ///
    /// # Errors
    /// See [`Explore`].
    fn score(&self, folder: &Path, draws: usize, limit: Option<usize>) -> Result<Explored>;

    /// A picture with a part of it filled in by gradient ascent on the likelihood, from so many samples:
    /// `inpainting.png`. The mask is white where it is to be filled in, or `top`, `bottom`, `left`, `right`,
    /// `middle`.
    ///
    /// # Errors
    /// See [`Explore`].
    fn inpaint(
        &self,
        picture: &str,
        mask: &str,
        draws: usize,
        steps: usize,
        temperature: f64,
    ) -> Result<Explored>;

    /// What each level of the latent holds: the coarse latents of a picture kept and the finer ones drawn
    /// anew, `levels.png`; of a sample where no picture is given.
    ///
    /// # Errors
    /// See [`Explore`].
    fn levels(&self, picture: Option<&str>, draws: usize, temperature: f64) -> Result<Explored>;
}

/// Pictures that go through the model at once.
const BATCH: usize = 50;

/// Pictures in a row of a picture of pictures.
const COLUMNS: usize = 10;

impl Explorer {
    /// The model of the folder of a [`Run`](super::Run) on images, of a record that says how its pictures
    /// were prepared, or of a file of another library.
    ///
    /// # Errors
    /// If it cannot be read, is not what it should be, or is class-conditional and no class is given;
    /// [`FlowError::Invalid`] if [`out`](Explorer::out) is the folder of a run.
    pub fn open(self, model: impl AsRef<Path>, device: &Device) -> Result<Box<dyn Explore>> {
        let model = model.as_ref();
        if let Some(out) = self.out.as_ref().filter(|out| is_run(out)) {
            let got = format!("{}, which holds a run", out.display());
            let advice = "left out, it is explore in the folder of the run";
            return Err(FlowError::invalid("Explorer::out", got, "a folder of its own", advice));
        }
        let Self { out, seed, class, crop, idx, from, image_size, bits } = self;
        let opened = Opened {
            out: PathBuf::new(),
            seed,
            class,
            reader: Reader { crop, idx },
            image_shape: None,
            crop: None,
            quantization: Quantization::new(8)?,
            has_logit: from == Some(Library::Chrischute),
        };
        if let Some(library) = from {
            let quantization = library.quantization(bits)?;
            let out = out.unwrap_or_else(|| model.with_extension("explore"));
            let opened = Opened { quantization, out, ..opened };
            return library.load(image_size.as_deref(), model, device, opened);
        }
        let saved = SavedModel::open(model)?;
        // Beside a record, in the folder of a run.
        let folder = if model.is_file() { model.parent().unwrap_or(model) } else { model };
        let opened = Opened {
            out: out.unwrap_or_else(|| folder.join("explore")),
            image_shape: Some(saved.image_shape),
            crop: saved.crop(),
            quantization: saved.quantization()?,
            has_logit: saved.has_logit(),
            ..opened
        };
        saved.load(device, opened)
    }
}

/// What is known before the model is.
struct Opened {
    out: PathBuf,
    seed: u64,
    class: Option<usize>,
    reader: Reader,
    /// That of the model's samples, where it is not given.
    image_shape: Option<[usize; 3]>,
    /// What was kept of each picture in training, if that is known.
    crop: Option<Crop>,
    quantization: Quantization,
    has_logit: bool,
}

fn open<const D: usize, M: Density<D> + 'static>(
    model: M,
    opened: Opened,
) -> Result<Box<dyn Explore>> {
    let Opened { out, seed, class, reader, image_shape, crop, quantization, has_logit } = opened;
    let model = of_class(model, class)?;
    let of_samples = || model.sample_shape().try_into().expect("a model of images");
    let image_shape = image_shape.unwrap_or_else(of_samples);
    let wanted = Wanted { image_shape, crop };
    Ok(Box::new(Session { model, wanted, reader, quantization, has_logit, out, seed }))
}

/// The model itself, or the density of one class of it.
fn of_class<M: Given>(model: M, class: Option<usize>) -> Result<M> {
    // What has no classes says so.
    let classes = model.one_hot(&[0_usize]);
    match (class, classes) {
        (Some(class), _) => model.given_classes(&[class]),
        (None, Err(_)) => Ok(model),
        (None, Ok(classes)) => {
            let needed = format!("one below {}", classes.dims()[1]);
            let advice = "the model is class-conditional: say of which class to draw or to judge";
            Err(FlowError::invalid("Explorer::class", "none", needed, advice))
        }
    }
}

/// A model and what is needed beside it.
struct Session<const D: usize, M> {
    model: M,
    wanted: Wanted,
    reader: Reader,
    quantization: Quantization,
    has_logit: bool,
    out: PathBuf,
    seed: u64,
}

impl<const D: usize, M: Density<D>> Explore for Session<D, M> {
    fn sample(&self, rows: usize, columns: usize, temperature: f64) -> Result<Explored> {
        check_temperature(temperature)?;
        at_least_one("Explorer::rows", Some(rows))?;
        at_least_one("Explorer::columns", Some(columns))?;
        let mut rng = self.random(streams::SAMPLE);
        let rows: Vec<_> =
            (0..rows).map(|_| self.model.sample_with(columns, temperature, &mut rng)).collect();
        let count = rows.len() * columns;
        let about = format!("{count} samples at temperature {temperature}");
        self.write("samples.png", rows, &about, Explored::default())
    }

    fn interpolate(&self, a: &str, b: &str, steps: usize) -> Result<Explored> {
        if steps < 2 {
            return Err(FlowError::invalid(
                "Explorer::steps",
                steps,
                "at least 2",
                "both ends count",
            ));
        }
        let (images, done) = self.read(&[a.into(), b.into()])?;
        let (a, b) = (self.encode_image(&images, 0), self.encode_image(&images, 1));
        let weights: Vec<f64> = (0..steps).map(|i| i as f64 / (steps - 1) as f64).collect();
        let walk = self.model.interpolate(a, b, &weights);
        let rows = vec![Tensor::cat(walk, 0)];
        self.write("interpolation.png", rows, &format!("{steps} steps"), done)
    }

    fn attribute(
        &self,
        name: &str,
        from: &[String],
        alphas: &[f64],
        faces: &AttributeFaces,
    ) -> Result<Explored> {
        let AttributeFaces { data, limit, .. } = faces;
        at_least_one("Explorer::limit", Some(*limit))?;
        if let Some(alpha) = alphas.iter().find(|alpha| !alpha.is_finite()) {
            return Err(FlowError::invalid(
                "Explorer::alphas",
                alpha,
                "numbers",
                "1 goes one mean far",
            ));
        }
        // Before the faces: loading them may take minutes.
        let (images, mut done) = self.read(from)?;
        let faces = self.load_faces(faces)?;
        done.skipped.extend(faces.skipped);
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
        let rows = (0..images.len())
            .map(|index| {
                let x = self.encode_image(&images, index);
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
        self.write(&format!("attribute-{name}.png"), rows, &about, done)
    }

    fn reconstruct(&self, pictures: &[String]) -> Result<Explored> {
        let (images, done) = self.read(pictures)?;
        let mut rng = self.random(streams::EVALUATE);
        let (mut rows, mut largest) = (Vec::new(), 0.0);
        let indices: Vec<usize> = (0..images.len()).collect();
        for indices in indices.chunks(COLUMNS) {
            let pixels = images.gather(indices);
            let x = self.model.batch(self.quantization.dequantize(&pixels, &mut rng));
            let back = self.model.decode(self.model.encode(x.clone()).0);
            let error = host::scalar((back.clone() - x.clone()).abs().max());
            largest = f64::max(largest, error);
            rows.extend([x, back]);
        }
        let about = format!(
            "{} pictures, largest difference {largest:.1e} of the range of a pixel",
            images.len()
        );
        self.write("reconstructions.png", rows, &about, done)
    }

    fn score(&self, folder: &Path, draws: usize, limit: Option<usize>) -> Result<Explored> {
        at_least_one("Explorer::draws", Some(draws))?;
        at_least_one("Explorer::limit", limit)?;
        let subjects = self.reader.read_folder(folder, self.wanted)?;
        let Subjects { images, names, treated, skipped } = subjects;
        let mut done = Explored { lines: treated, skipped };
        let chosen: Vec<usize> = spread(images.len(), limit.unwrap_or(images.len())).collect();
        let bar = ProgressBar::new(chosen.len() as u64);
        let mut scored: Vec<(usize, Score)> = Vec::new();
        for (step, indices) in chosen.chunks(BATCH).enumerate() {
            let mut rng = random_for(self.seed, streams::EVALUATE, step as u64);
            let pixels = images.gather(indices);
            let scores = self.model.score(&pixels, self.quantization, draws, &mut rng)?;
            scored.extend(indices.iter().copied().zip(scores));
            bar.inc(indices.len() as u64);
        }
        bar.finish_and_clear();
        // A NaN is the strangest of all.
        scored.sort_by(|(_, a), (_, b)| {
            b.importance_bits_per_dim.total_cmp(&a.importance_bits_per_dim)
        });
        let path = self.make_out()?.join("scores.csv");
        write_atomically(&path, csv(&scored, &names, draws).as_bytes())?;
        done.lines.push(path.display().to_string());

        let extremes = |scored: Vec<&(usize, Score)>| {
            let indices: Vec<usize> = scored.into_iter().map(|(index, _)| *index).collect();
            let pixels = images.gather(&indices);
            self.model.batch(self.quantization.dequantize(&pixels, &mut self.random(0)))
        };
        let strangest = extremes(scored.iter().take(COLUMNS).collect());
        let likeliest = extremes(scored.iter().rev().take(COLUMNS).collect());
        let about = "the strangest pictures above, the likeliest below";
        let mut done = self.write("scores.png", vec![strangest, likeliest], about, done)?;

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
        done.lines.push(format!("{bits:.3} bits/dim over {} pictures{tighter}", scored.len()));
        Ok(done)
    }

    fn inpaint(
        &self,
        picture: &str,
        mask: &str,
        draws: usize,
        steps: usize,
        temperature: f64,
    ) -> Result<Explored> {
        at_least_one("Explorer::draws", Some(draws))?;
        at_least_one("Explorer::steps", Some(steps))?;
        check_temperature(temperature)?;
        let (picture, done) = self.read(&[picture.into()])?;
        let known = self.model.batch(self.read_mask(mask)?);
        let x = self.encode_image(&picture, 0);
        let is_known = known.clone().greater_elem(0.5);
        let hidden = x.clone().mask_fill(is_known.clone().bool_not(), 0.5);

        let mut rng = self.random(streams::SAMPLE);
        let samples = self.model.sample_with(draws, temperature, &mut rng);
        let start = samples
            .mask_where(is_known.repeat_dim(0, draws), x.clone().repeat_dim(0, draws))
            .clamp(0.0, 1.0);
        let coordinates =
            if self.has_logit { InpaintingCoordinates::Logit } else { InpaintingCoordinates::Data };
        let how = Inpainting { num_steps: steps, coordinates, ..Inpainting::default() };
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
        self.write("inpainting.png", rows, &about, done)
    }

    fn levels(&self, picture: Option<&str>, draws: usize, temperature: f64) -> Result<Explored> {
        check_temperature(temperature)?;
        at_least_one("Explorer::draws", Some(draws))?;
        let num_levels = self.model.latent_shapes().len();
        if num_levels == 1 {
            let advice = "one level has no finer latents to draw anew; use a glow or realnvp";
            return Err(FlowError::invalid(
                "levels",
                "a model of one level",
                "at least two",
                advice,
            ));
        }
        let mut rng = self.random(streams::SAMPLE);
        let (x, done) = match picture {
            Some(name) => {
                let (images, done) = self.read(&[name.into()])?;
                (self.encode_image(&images, 0), done)
            }
            None => (self.model.sample_with(1, temperature, &mut rng), Explored::default()),
        };
        let (latents, _) = self.model.encode(x.clone().repeat_dim(0, draws));
        let rows = (0..num_levels)
            .rev()
            .map(|kept| {
                let drawn = self.model.resample_finer(&latents, kept, temperature, &mut rng);
                Tensor::cat(vec![x.clone(), drawn], 0)
            })
            .collect();
        let kept: Vec<String> = (0..num_levels).rev().map(|kept| kept.to_string()).collect();
        let about = format!(
            "the picture, then draws that keep the {} coarsest of {num_levels} levels, row by row",
            kept.join(" / ")
        );
        self.write("levels.png", rows, &about, done)
    }
}

impl<const D: usize, M: Density<D>> Session<D, M> {
    fn load_faces(&self, faces: &AttributeFaces) -> Result<CelebAFaces> {
        let AttributeFaces { data, pictures, cache, .. } = faces;
        let [channels, height, width] = self.wanted.image_shape;
        if height != width {
            let got = format!("{width}x{height}");
            return Err(FlowError::invalid(
                "attribute",
                got,
                "a model of square images",
                "use one",
            ));
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
        loader.load()
    }

    /// 1 where the picture is known, 0 where it is to be filled in.
    fn read_mask(&self, mask: &str) -> Result<Vec<f32>> {
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
                let crop = self.wanted.crop.filter(|_| !is_of_shape(file, self.wanted));
                let grey = Wanted { image_shape: [1, height, width], crop };
                let mask = self.reader.read(&[file.to_string()], grey)?.images;
                mask.pixels().iter().map(|&pixel| pixel >= 128).collect()
            }
        };
        let unknown = plane.iter().filter(|&&unknown| unknown).count();
        if unknown == 0 || unknown == plane.len() {
            let got = format!("{mask}, which is white at {unknown} of {} pixels", plane.len());
            let advice = "paint white what is to be filled in and black what is known";
            return Err(FlowError::invalid("the mask", got, "both white and black", advice));
        }
        let values = plane.iter().map(|&unknown| f32::from(!unknown));
        Ok(values.cycle().take(channels * plane.len()).collect())
    }

    /// One image with noise of its own, as the model takes it.
    fn encode_image(&self, images: &Images, index: usize) -> Tensor<D> {
        let mut rng = random_for(self.seed, streams::EVALUATE, index as u64);
        self.model.batch(self.quantization.dequantize(images.image(index), &mut rng))
    }

    fn random(&self, stream: u64) -> StdRng {
        random_for(self.seed, stream, 0)
    }

    /// The pictures of these names, and what was done to them.
    fn read(&self, names: &[String]) -> Result<(Images, Explored)> {
        let Subjects { images, treated, skipped, .. } = self.reader.read(names, self.wanted)?;
        Ok((images, Explored { lines: treated, skipped }))
    }

    /// Writes rows of pictures into the folder and says what they are.
    fn write(
        &self,
        name: &str,
        rows: Vec<Tensor<D>>,
        about: &str,
        mut done: Explored,
    ) -> Result<Explored> {
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
            return Err(FlowError::invalid(
                name,
                format!("{bad} values that are not finite"),
                "finite ones",
                "use a lower temperature or smaller steps; if the model diverged, an earlier one",
            ));
        }
        let path = self.make_out()?.join(name);
        write_grid(&path, &rows, self.quantization)?;
        done.lines.push(format!("{}: {about}", path.display()));
        Ok(done)
    }

    fn make_out(&self) -> Result<&Path> {
        fs::create_dir_all(&self.out).map_err(|source| FlowError::Io {
            action: "create the folder",
            path: self.out.clone(),
            source,
            advice: "give Explorer::out a folder that can be written",
        })?;
        Ok(&self.out)
    }
}

fn check_temperature(temperature: f64) -> Result<()> {
    let (needed, advice) = ("a number of at least 0", "0.7 is usual, 1 draws from the model");
    check_number("Explorer::temperature", temperature, temperature >= 0.0, needed, advice)
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
