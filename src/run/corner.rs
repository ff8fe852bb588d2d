//! A picture of samples in several dimensions: each by itself, and each pair.

use std::path::Path;

use image::RgbImage;
use image::imageops::{self, FilterType};
use plotters::prelude::*;

use super::curves::register_font;
use super::pictures::write_png;
use crate::error::{FlowError, Result};

/// Everything is drawn this many times larger and then shrunk, which smooths it.
const SCALE: u32 = 2;

/// Side of the whole picture, and the least and largest of a cell.
const SIDE: u32 = 900;
const CELL: (u32, u32) = (110, 300);

/// Left of the first column and below the last row, for names and numbers.
const MARGIN: u32 = 56 * SCALE;

const GAP: i32 = 3 * SCALE as i32;
const LABEL_SIZE: u32 = 14 * SCALE;
const NUM_BINS: usize = 40;

/// Points drawn into a cell.
const NUM_DRAWN: usize = 2000;

const SAMPLES: RGBColor = RGBColor(38, 110, 180);
const REFERENCE: RGBColor = RGBColor(214, 96, 50);

/// A picture of samples in several dimensions, a corner plot: histograms of each on the diagonal, pairs beside
/// it.
///
/// ```
/// use burn_flows::run::Corner;
///
/// let folder = tempfile::tempdir()?;
/// let rows: Vec<Vec<f64>> = (0..100).map(|i| vec![f64::from(i).sin(), f64::from(i).cos()]).collect();
/// let names = ["sine".to_string(), "cosine".to_string()];
/// let corner = Corner { names: &names, samples: &rows, reference: None, truth: Some(&[0.0, 1.0]) };
/// corner.write(folder.path().join("corner.png"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Corner<'a> {
    /// Of the columns.
    pub names: &'a [String],
    /// Rows of the model: histograms on the diagonal, pairs below it, in blue.
    pub samples: &'a [Vec<f64>],
    /// Rows to compare with: lines on the diagonal, pairs above it, in orange.
    pub reference: Option<&'a [Vec<f64>]>,
    /// Marked by crosses and lines, in black.
    pub truth: Option<&'a [f64]>,
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

impl Corner<'_> {
    /// Writes the picture as PNG.
    ///
    /// # Errors
    /// [`FlowError::Io`] if it cannot be written; [`FlowError::Invalid`] without names or samples.
    ///
    /// # Panics
    /// If a row has fewer values than there are names.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let empty = [("names", self.names.len()), ("samples", self.samples.len())];
        if let Some((what, _)) = empty.into_iter().find(|(_, count)| *count == 0) {
            return Err(FlowError::invalid(
                format!("Corner: the {what}"),
                "none",
                "at least one",
                "give some",
            ));
        }
        register_font();
        let count = self.names.len() as u32;
        let cell = (SIDE / count).clamp(CELL.0, CELL.1) * SCALE;
        let side = MARGIN + count * cell;
        let mut pixels = vec![255; (side * side * 3) as usize];
        self.draw(&mut pixels, side, cell).expect("drawing into memory does not fail");
        let picture = RgbImage::from_raw(side, side, pixels).expect("the buffer has that size");
        let side = side / SCALE;
        write_png(path.as_ref(), &imageops::resize(&picture, side, side, FilterType::Triangle))
    }

    fn draw(&self, pixels: &mut [u8], side: u32, cell: u32) -> Drawn {
        let root = BitMapBackend::with_buffer(pixels, (side, side)).into_drawing_area();
        root.fill(&WHITE)?;
        let windows: Vec<(f64, f64)> =
            (0..self.names.len()).map(|column| self.window(column)).collect();
        for row in 0..self.names.len() {
            for column in 0..self.names.len() {
                if column > row && self.reference.is_none() {
                    continue;
                }
                let [left, top] = [column, row].map(|place| (place as u32 * cell) as i32);
                let left = left + MARGIN as i32;
                let end = |start: i32| start + cell as i32 - GAP;
                let area = root.clone().shrink((left, top), (cell - GAP as u32, cell - GAP as u32));
                if row == column {
                    self.draw_one(&area, row, windows[row])?;
                } else {
                    self.draw_pair(&area, (column, row), (windows[column], windows[row]))?;
                }
                let ink = BLACK.mix(0.35).stroke_width(SCALE);
                root.draw(&Rectangle::new([(left, top), (end(left), end(top))], ink))?;
            }
        }
        self.draw_names(&root, cell, &windows)?;
        root.present()?;
        Ok(())
    }

    /// The middle 99.5 % of a column, with some room.
    fn window(&self, column: usize) -> (f64, f64) {
        let sorted = |rows: &[Vec<f64>]| {
            let mut values: Vec<f64> = rows.iter().map(|row| row[column]).collect();
            values.sort_by(f64::total_cmp);
            let cut = values.len() / 400;
            (values[cut], values[values.len() - 1 - cut])
        };
        let (mut low, mut high) = sorted(self.samples);
        if let Some(reference) = self.reference {
            let (lowest, highest) = sorted(reference);
            (low, high) = (low.min(lowest), high.max(highest));
        }
        if let Some(truth) = self.truth {
            (low, high) = (low.min(truth[column]), high.max(truth[column]));
        }
        let room = 0.06 * (high - low).max(f64::MIN_POSITIVE);
        (low - room, high + room)
    }

    /// A column by itself.
    fn draw_one(&self, area: &Area, column: usize, (low, high): (f64, f64)) -> Drawn {
        let samples = histogram(self.samples, column, (low, high));
        let reference = self.reference.map(|rows| histogram(rows, column, (low, high)));
        let highest = samples.iter().chain(reference.iter().flatten()).copied().fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .build_cartesian_2d(low..high, 0.0..1.1 * highest.max(f64::MIN_POSITIVE))?;
        let edge = |bin: usize| low + (high - low) * bin as f64 / NUM_BINS as f64;
        let bars = samples.iter().enumerate().map(|(bin, &share)| {
            Rectangle::new([(edge(bin), 0.0), (edge(bin + 1), share)], SAMPLES.mix(0.6).filled())
        });
        chart.draw_series(bars)?;
        if let Some(reference) = reference {
            let steps = reference
                .iter()
                .enumerate()
                .flat_map(|(bin, &share)| [(edge(bin), share), (edge(bin + 1), share)]);
            chart.draw_series(LineSeries::new(steps, REFERENCE.stroke_width(2 * SCALE)))?;
        }
        if let Some(truth) = self.truth {
            let x = truth[column];
            let line = [(x, 0.0), (x, 1.1 * highest)];
            chart.draw_series(LineSeries::new(line, BLACK.stroke_width(SCALE)))?;
        }
        Ok(())
    }

    /// Two columns against each other.
    fn draw_pair(
        &self,
        area: &Area,
        (x, y): (usize, usize),
        ((left, right), (low, high)): ((f64, f64), (f64, f64)),
    ) -> Drawn {
        let (rows, color) = match x < y {
            true => (Some(self.samples), SAMPLES),
            false => (self.reference, REFERENCE),
        };
        let mut chart = ChartBuilder::on(area).build_cartesian_2d(left..right, low..high)?;
        let inside =
            |row: &&Vec<f64>| (left..right).contains(&row[x]) && (low..high).contains(&row[y]);
        let dots = rows.unwrap_or_default().iter().take(NUM_DRAWN).filter(inside);
        chart.draw_series(
            dots.map(|row| Circle::new((row[x], row[y]), SCALE, color.mix(0.35).filled())),
        )?;
        if let Some(truth) = self.truth {
            let cross = Cross::new((truth[x], truth[y]), 5 * SCALE, BLACK.stroke_width(2 * SCALE));
            chart.draw_series([cross])?;
        }
        Ok(())
    }

    /// Names and ends of the windows, below the last row and left of the first column.
    fn draw_names(&self, root: &Area, cell: u32, windows: &[(f64, f64)]) -> Drawn {
        let font = ("sans-serif", LABEL_SIZE).into_font();
        let side = (self.names.len() as u32 * cell) as i32;
        let half = cell as i32 / 2;
        let height = LABEL_SIZE as i32;
        for (place, (name, (low, high))) in self.names.iter().zip(windows).enumerate() {
            let start = (place as u32 * cell) as i32;
            let left = MARGIN as i32 + start;
            let middle = left + half - (name.len() as i32 * height) / 4;
            root.draw(&Text::new(name.clone(), (middle, side + 2 * height), font.clone()))?;
            root.draw(&Text::new(number(*low), (left, side + height / 3), font.clone()))?;
            let high = number(*high);
            let right = left + cell as i32 - (high.len() as i32 * height) / 2;
            root.draw(&Text::new(high.clone(), (right, side + height / 3), font.clone()))?;
            if place > 0 {
                let at = |text: &str, y| {
                    let width = (text.len() as i32 * height) / 2;
                    Text::new(text.to_string(), (MARGIN as i32 - width - GAP, y), font.clone())
                };
                root.draw(&at(&high, start + GAP))?;
                root.draw(&at(&number(*low), start + cell as i32 - height - 2 * GAP))?;
                let upright = font.clone().transform(FontTransform::Rotate270);
                let place = (height / 2, start + half + (name.len() as i32 * height) / 4);
                root.draw(&Text::new(name.clone(), place, upright))?;
            }
        }
        Ok(())
    }
}

/// A number in three digits.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The share of rows in each bin.
fn histogram(rows: &[Vec<f64>], column: usize, (low, high): (f64, f64)) -> Vec<f64> {
    let mut counts = vec![0.0; NUM_BINS];
    for row in rows {
        let place = (row[column] - low) / (high - low) * NUM_BINS as f64;
        if (0.0..NUM_BINS as f64).contains(&place) {
            counts[place as usize] += 1.0 / rows.len() as f64;
        }
    }
    counts
}
