//! Training with all that belongs to it: one call for progress bar, metrics, report, checkpoints and resume.
//!
//! A [`Run`] takes a [`Trainer`](crate::training::Trainer), a [`Source`] of batches and an [`Evaluation`], and
//! trains into a folder. Any model that can be trained will do ([`Trainable`](crate::training::Trainable)):
//! a flow over vectors, images or contexts, a stack of your own.
//!
//! | To | Use |
//! |---|---|
//! | train on samples in memory | [`Run::train`] with [`Source::rows`] and [`HeldOut`] |
//! | train on batches that are made for each step | [`Source::by_step`], [`Source::iter`] |
//! | train on images | [`ImageRun`] |
//! | measure and draw something else | an [`Evaluation`] of your own |
//! | show what a trained model of images can do | [`Explorer`] |
//! | draw densities and points of the plane | [`plane`] |
//! | draw curves | [`curves`] |
//! | draw samples of several dimensions | [`Corner`] |
//! | draw a grid of pictures | [`write_grid`] |
//!
//! From a table to a density, with report and resume; `examples/table.rs` is this program with a flow of its
//! own:
//!
//! ```no_run
//! use burn_flows::data::Table;
//! use burn_flows::models::{SplineFlowConfig, SplineFlowKind};
//! use burn_flows::run::{HeldOut, Run, Source};
//! use burn_flows::training::{Schedule, Trainer};
//! use rand::{SeedableRng, rngs::StdRng};
//!
//! fn main() -> Result<(), burn_flows::FlowError> {
//!     let device = burn_flows::backend::device();
//!     let table = Table::read("table.csv")?;
//!     let (train, held_out) = table.divide(|row| row % 10 == 9);
//!     let config = SplineFlowConfig::new(table.columns(), 8, vec![64, 64]);
//!     let model = config.init(&mut StdRng::seed_from_u64(0), &device)?;
//!     let trainer = Trainer::new(model, Schedule::constant(1e-3)).with_average(0.99);
//!     let run = Run::new("runs/table").with_patience(20).with_resume(true);
//!     let held_out = HeldOut::rows(held_out.to_tensor(&device)).with_names(&table.names);
//!     let outcome = run.train(trainer, Source::rows(train.to_tensor(&device), 256, 0)?, held_out)?;
//!     println!("{outcome}");
//!     Ok(())
//! }
//! ```
//!
//! The module is there with the feature `run`, which brings its dependencies.

mod corner;
pub mod curves;
mod evaluation;
mod explore;
mod folder;
mod images;
mod interrupt;
mod metrics;
mod pictures;
pub mod plane;
mod program;
mod report;
mod settings;
mod source;
mod training;

use std::fmt::Display;

pub use corner::Corner;
pub use evaluation::{Evaluation, HeldOut, Section, Shown};
pub use explore::{AttributeFaces, CropName, Explore, Explored, Explorer, Library};
pub use folder::Claim;
pub use images::{
    ImageModelName, ImageOutcome, ImageParts, ImageRun, OfClasses, PictureFolder, Subject,
};
pub use metrics::{Measured, Metrics, Unit};
pub use pictures::write_grid;
pub use program::{end_program, say, say_skipped};
pub use settings::Run;
pub use source::Source;
pub use training::{End, Loading, Outcome};

use crate::error::{FlowError, Result};

/// Checks a setting that is a number above 0, by the name that its user knows it by.
///
/// # Errors
/// [`FlowError::Invalid`] for another number.
pub fn positive(setting: &str, value: impl Into<f64> + Copy + Display, advice: &str) -> Result<()> {
    check_number(setting, value, value.into() > 0.0, "a positive number", advice)
}

/// Checks a setting that is a number from 0 on, by the name that its user knows it by.
///
/// # Errors
/// [`FlowError::Invalid`] for another number.
pub fn zero_or_more(
    setting: &str,
    value: impl Into<f64> + Copy + Display,
    advice: &str,
) -> Result<()> {
    check_number(setting, value, value.into() >= 0.0, "0 or more", advice)
}

/// An error for a setting that is no finite number, or not in its range.
fn check_number(
    setting: &str,
    value: impl Into<f64> + Copy + Display,
    is_in_range: bool,
    needed: &str,
    advice: &str,
) -> Result<()> {
    match is_in_range && value.into().is_finite() {
        true => Ok(()),
        false => Err(FlowError::invalid(setting, value, needed, advice)),
    }
}

/// Checks a setting that counts something, by the name that its user knows it by.
///
/// # Errors
/// [`FlowError::Invalid`] for 0.
pub fn at_least_one(setting: &str, value: impl Into<Option<usize>>) -> Result<()> {
    match value.into() {
        Some(0) => {
            Err(FlowError::invalid(setting, "0", "at least 1", "leave it out for the default"))
        }
        _ => Ok(()),
    }
}
