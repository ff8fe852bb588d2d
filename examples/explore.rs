//! What to do with a trained model: draw from it, walk between pictures, change an attribute, fill in
//! what is missing, find what does not belong.
//!
//! `cargo run --release --example explore -- --model DIR COMMAND`
//!
//! `DIR` is the folder of a run of `mnist` or `celeba` (its `--out`), of any of the three models and
//! any shape of images, or the model's record alone; with `--from` a state dict of another library. A picture is
//! a PNG or JPEG file, cut and resized as those that the model was trained on, or `test:7`, the eighth test
//! image of MNIST (or of the IDX files in `--idx`). What a command makes goes into `--out`, by default
//! `DIR/explore`. Each command is a call of `burn_flows::run::Explore`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn_flows::run::{
    AttributeFaces, CropName, Explored, Explorer, Library, end_program, say_skipped,
};
use burn_flows::{Result, backend};
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Explore a trained model of images.
#[derive(Parser)]
struct Arguments {
    /// Folder of the run that trained the model (its --out), or the record of a model; with --from a
    /// file of that library
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The library whose state dict --model is, a file then, .pt, .pth or .safetensors: rosinality, y0ast,
    /// normflows or chrischute
    #[arg(long)]
    from: Option<Library>,
    /// Height and width of the images of such a model, where its file does not hold them: 64 or 48x64
    #[arg(long, requires = "from", value_name = "SIZE")]
    image_size: Option<String>,
    /// Bits of the pixels that such a model was trained on [default: the library's]
    #[arg(long, requires = "from")]
    bits: Option<u32>,
    /// Folder of what is written [default: explore in the folder of the run]
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<PathBuf>,
    #[arg(long, global = true, default_value_t = 0, help = "Seed of all draws")]
    seed: u64,
    /// The class whose density a class-conditional model is asked for, counted from 0
    #[arg(long, global = true)]
    class: Option<usize>,
    /// What is kept of a picture, if its shape is not the model's, before it is resized: auto, celeba, square
    /// or whole [default: what was kept in training, of any picture; of models that do not say, auto]
    #[arg(long, global = true)]
    crop: Option<CropName>,
    /// Folder of the IDX files that test:N and train:N look into [default: the bundled MNIST]
    #[arg(long, global = true, value_name = "DIR")]
    idx: Option<PathBuf>,
    #[arg(long, help = "Which of the compiled-in backends computes [default: the preferred one]")]
    device: Option<String>,
    #[command(subcommand)]
    command: Command,
}

/// Pictures are files, or test:N or train:N; temperatures multiply the spread of the latents.
#[derive(Subcommand)]
enum Command {
    /// Draw new pictures: samples.png
    Sample {
        #[arg(long, allow_negative_numbers = true, default_value_t = 0.7)]
        temperature: f64,
        #[arg(long, default_value_t = 8, help = "Rows of the grid")]
        rows: usize,
        #[arg(long, default_value_t = 8, help = "Pictures in a row")]
        columns: usize,
    },
    /// Walk from one picture to another, straight in latent space: interpolation.png
    Interpolate {
        a: String,
        b: String,
        #[arg(long, default_value_t = 9, help = "Pictures on the walk, both ends included")]
        steps: usize,
    },
    /// Change an attribute of pictures, by the mean latents of faces with and without it:
    /// attribute-NAME.png
    Attribute {
        /// The attribute, as list_attr_celeba.txt spells it: Smiling, Male, Young, ...
        name: String,
        #[arg(long, value_name = "PICTURE", required = true, num_args = 1..)]
        from: Vec<String>,
        /// How far to go: 1 is as far as the two means are apart, a negative number the other way
        #[arg(long, value_delimiter = ',', allow_hyphen_values = true,
              default_values_t = [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0])]
        alphas: Vec<f64>,
        #[arg(long, value_name = "DIR", help = "Folder of CelebA, with list_attr_celeba.txt")]
        data: PathBuf,
        #[arg(long, default_value = "img_align_celeba", help = "Folder of its pictures in it")]
        pictures: PathBuf,
        #[arg(long, value_name = "DIR", help = "Folder where decoded pictures are kept")]
        cache: Option<PathBuf>,
        #[arg(long, default_value_t = 1000, help = "At most so many faces with it, and without")]
        limit: usize,
    },
    /// Encode and decode pictures: reconstructions.png, pictures above, what comes back below
    Reconstruct {
        #[arg(required = true)]
        pictures: Vec<String>,
    },
    /// Say how likely pictures are, the strangest first: scores.csv and scores.png
    Score {
        /// Folder of pictures, at any depth, or of the four IDX files of a data set (its test images)
        folder: PathBuf,
        /// Draws of dequantization noise a picture: with more than 1, the importance-weighted bound too
        #[arg(long, default_value_t = 1)]
        draws: usize,
        #[arg(long, help = "At most so many pictures, spread evenly over all [default: all]")]
        limit: Option<usize>,
    },
    /// Fill in a part of a picture by gradient ascent on its likelihood: inpainting.png
    Inpaint {
        picture: String,
        /// A picture that is white where the other is to be filled in; or top, bottom, left, right, middle
        mask: String,
        #[arg(long, default_value_t = 8, help = "Fillings, each from a sample of its own")]
        draws: usize,
        #[arg(long, default_value_t = 300, help = "Steps of the ascent")]
        steps: usize,
        #[arg(long, allow_negative_numbers = true, default_value_t = 0.7)]
        temperature: f64,
    },
    /// Keep the coarse latents of a picture (or of a sample) and draw the finer ones anew: levels.png
    Levels {
        picture: Option<String>,
        #[arg(long, allow_negative_numbers = true, default_value_t = 1.0)]
        temperature: f64,
        #[arg(long, default_value_t = 8, help = "Draws for each number of levels kept")]
        draws: usize,
    },
}

/// The names of the library by which its errors are told, as options.
const WORDS: [(&str, &str); 5] = [
    (
        "Explorer::open the folder of a run",
        "--model the folder that a training example wrote (its --out)",
    ),
    ("Explorer::open", "--model"),
    ("Explorer::", "--"),
    ("ImageRun", "mnist or celeba"),
    ("backend::named", "--device"),
];

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => end_program(run(arguments), &WORDS),
        Err(error) if error.use_stderr() => end_program(Err::<String, _>(error), &[]),
        Err(help) => end_program(Ok::<_, clap::Error>(help), &[]),
    }
}

fn run(arguments: Arguments) -> Result<Explored> {
    let Arguments { model, from, image_size, bits, out, seed, class, crop, idx, .. } = arguments;
    let (_, device) = backend::named(arguments.device.as_deref())?;
    let bundled = || Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mnist");
    let idx = Some(idx.unwrap_or_else(bundled));
    let explorer = Explorer { out, seed, class, crop, idx, from, image_size, bits };
    let model = explorer.open(model, &device())?;
    let explored = match arguments.command {
        Command::Sample { temperature, rows, columns } => model.sample(rows, columns, temperature),
        Command::Interpolate { a, b, steps } => model.interpolate(&a, &b, steps),
        Command::Attribute { name, from, alphas, data, pictures, cache, limit } => {
            let faces = AttributeFaces { data, pictures, cache, limit };
            model.attribute(&name, &from, &alphas, &faces)
        }
        Command::Reconstruct { pictures } => model.reconstruct(&pictures),
        Command::Score { folder, draws, limit } => model.score(&folder, draws, limit),
        Command::Inpaint { picture, mask, draws, steps, temperature } => {
            model.inpaint(&picture, &mask, draws, steps, temperature)
        }
        Command::Levels { picture, temperature, draws } => {
            model.levels(picture.as_deref(), draws, temperature)
        }
    }?;
    say_skipped(&explored.skipped);
    Ok(explored)
}
