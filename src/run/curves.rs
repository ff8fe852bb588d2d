//! Curves on axes, panel beside panel; those of a run are drawn into its report too.
//!
//! ```
//! use burn_flows::run::curves::{Curve, Panel, Upright, write_panels};
//!
//! let points = (1..50).map(|i| (f64::from(i), 1.0 / f64::from(i))).collect();
//! let curve = Curve { name: "1 / x".into(), points, dots: false };
//! let panel = Panel {
//!     title: "a curve".into(),
//!     x: "x",
//!     upright: Upright::Logarithmic,
//!     curves: vec![curve],
//! };
//! let folder = tempfile::tempdir()?;
//! write_panels(folder.path().join("curve.png"), "curves", &[panel])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::Range;
use std::path::Path;

use image::RgbImage;
use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::Metrics;
use super::pictures::write_png;
use crate::error::{FlowError, Result};

/// Size of a panel, in pixels.
const PANEL: (u32, u32) = (620, 380);
const MOST_COLUMNS: u32 = 2;

const COLORS: [RGBColor; 6] = [
    RGBColor(200, 60, 40),
    RGBColor(70, 110, 190),
    RGBColor(60, 150, 90),
    RGBColor(190, 140, 30),
    RGBColor(140, 90, 170),
    RGBColor(90, 90, 90),
];

/// One curve of a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Its name, where there are several.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
    /// Few points, so each is shown.
    pub dots: bool,
}

/// One pair of axes with its curves, which share the level axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Above the axes.
    pub title: String,
    /// The level axis.
    pub x: &'static str,
    /// The upright axis.
    pub upright: Upright,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// The upright axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upright {
    /// What is worth showing of a quantity that falls from far above.
    Settled,
    /// From zero to the largest value.
    FromZero,
    /// Decades.
    Logarithmic,
}

type Drawn = std::result::Result<(), Box<dyn Error>>;

/// Writes the curves of a run as one picture.
pub(super) fn write(path: &Path, title: &str, metrics: &[Metrics]) -> Result<()> {
    write_panels(path, title, &panels(metrics))
}

/// Writes panels as one picture, PNG.
///
/// # Errors
/// [`FlowError::Io`] if it cannot be written; [`FlowError::Invalid`] without a panel.
pub fn write_panels(path: impl AsRef<Path>, title: &str, panels: &[Panel]) -> Result<()> {
    if panels.is_empty() {
        return Err(FlowError::invalid(
            "write_panels: the panels",
            "none",
            "at least one",
            "give some",
        ));
    }
    register_font();
    let (width, height) = size(panels);
    let height = height + TITLE_HEIGHT;
    let mut pixels = vec![255; (width * height * 3) as usize];
    let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
    draw_titled(&root, title, panels).expect("drawing into memory does not fail");
    drop(root);
    let picture = RgbImage::from_raw(width, height, pixels).expect("the buffer has that size");
    write_png(path.as_ref(), &picture)
}

/// The curves as an SVG element.
pub(super) fn svg(metrics: &[Metrics]) -> String {
    register_font();
    let panels = panels(metrics);
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, size(&panels)).into_drawing_area();
    draw(&root, &panels).expect("drawing into memory does not fail");
    drop(root);
    text
}

const TITLE_HEIGHT: u32 = 52;

/// Columns and rows of the panels.
fn grid(panels: &[Panel]) -> (u32, u32) {
    let columns = MOST_COLUMNS.min(panels.len() as u32);
    (columns, (panels.len() as u32).div_ceil(columns))
}

/// The size of all panels together.
fn size(panels: &[Panel]) -> (u32, u32) {
    let (columns, rows) = grid(panels);
    (PANEL.0 * columns, PANEL.1 * rows)
}

/// What is drawn of a run.
fn panels(metrics: &[Metrics]) -> Vec<Panel> {
    let steps = |line: &Metrics| line.step as f64;
    let minutes = |line: &Metrics| line.seconds / 60.0;
    let is_of_images = metrics.iter().any(|line| line.train_bits_per_dim.is_some());
    let of = |name: &str, x: &dyn Fn(&Metrics) -> f64, y: &dyn Fn(&Metrics) -> Option<f64>| {
        let points: Vec<_> = metrics.iter().filter_map(|line| Some((x(line), y(line)?))).collect();
        let dots = points.len() <= MOST_DOTS;
        Curve { name: name.into(), points, dots }
    };
    let losses = |x: &dyn Fn(&Metrics) -> f64| match is_of_images {
        true => vec![
            of("test images", x, &|line| line.test_bits_per_dim),
            of("training batches", x, &|line| line.train_bits_per_dim),
        ],
        false => vec![
            of("held-out samples", x, &|line| line.held_out_loss),
            of("training batches", x, &|line| line.train_loss),
        ],
    };
    let loss = if is_of_images { "bits/dim" } else { "-ln p of a sample, nats" };
    let panel = |title: &str, x, curves| Panel {
        title: title.into(),
        x,
        upright: Upright::Settled,
        curves,
    };
    let logarithmic = |title: &str, curve: Curve| Panel {
        upright: Upright::Logarithmic,
        ..panel(title, STEPS, vec![curve])
    };
    let mut panels =
        vec![panel(loss, STEPS, losses(&steps)), panel(loss, "minutes", losses(&minutes))];
    let num_levels = metrics
        .iter()
        .find_map(|line| Some(line.level_bits_per_dim.as_ref()?.len()))
        .unwrap_or_default();
    let levels = |part: usize| {
        (0..num_levels)
            .map(|level| {
                let term = |line: &Metrics| Some(line.level_bits_per_dim.as_ref()?[level][part]);
                of(&format!("level {}", level + 1), &steps, &term)
            })
            .collect()
    };
    if num_levels > 0 {
        let title = "-log-determinant of each level, bits/dim";
        panels.push(panel(title, STEPS, levels(0)));
        let title = "-log-density of each level's latent, bits/dim";
        panels.push(panel(title, STEPS, levels(1)));
    }
    let error = of("largest of a batch", &steps, &|line| line.inversion_error);
    if !error.points.is_empty() {
        panels.push(logarithmic("inversion error |x - inverse(forward(x))|", error));
    }
    let norm = of("before clipping", &steps, &|line| Some(line.gradient_norm));
    panels.push(logarithmic("norm of the gradient", norm));
    let accuracy = of("share of the test images", &steps, &|line| line.test_accuracy);
    if !accuracy.points.is_empty() {
        let upright = Upright::FromZero;
        panels.push(Panel { upright, ..panel("right by Bayes' rule", STEPS, vec![accuracy]) });
    }
    let names: BTreeSet<&String> = metrics.iter().flat_map(|line| line.more.keys()).collect();
    for name in names {
        let curve = of(name, &steps, &|line| line.more.get(name).copied());
        panels.push(panel(name, STEPS, vec![curve]));
    }
    panels
}

const STEPS: &str = "optimizer steps";

/// Height of the names of several curves, as a share of a panel's.
const LEGEND: f64 = 0.3;

/// More points than this are a line without dots.
const MOST_DOTS: usize = 20;

fn draw_titled<B: DrawingBackend>(
    root: &DrawingArea<B, Shift>,
    title: &str,
    panels: &[Panel],
) -> Drawn
where
    B::ErrorType: 'static,
{
    root.fill(&WHITE)?;
    draw(&root.margin(8, 0, 0, 0).titled(title, ("sans-serif", 26))?, panels)
}

fn draw<B: DrawingBackend>(area: &DrawingArea<B, Shift>, panels: &[Panel]) -> Drawn
where
    B::ErrorType: 'static,
{
    let (columns, rows) = grid(panels);
    for (area, panel) in area.split_evenly((rows as usize, columns as usize)).iter().zip(panels) {
        draw_panel(area, panel)?;
    }
    area.present()?;
    Ok(())
}

fn draw_panel<B: DrawingBackend>(area: &DrawingArea<B, Shift>, panel: &Panel) -> Drawn
where
    B::ErrorType: 'static,
{
    let points = || panel.curves.iter().flat_map(|curve| &curve.points);
    let last = points().map(|point| point.0).fold(0.0, f64::max);
    let x = 0.0..if last > 0.0 { last } else { 1.0 };
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(&panel.title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64);
    // Zero, as the error of an exact inverse, has no place on a logarithmic axis.
    let shown = |point: &&(f64, f64)| {
        point.1.is_finite() && (panel.upright != Upright::Logarithmic || point.1 > 0.0)
    };
    let values = points().filter(shown).map(|point| point.1);
    if panel.upright == Upright::Logarithmic {
        let (low, high) = values
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        // Whole decades, so that both ends have their number.
        let decade = |value: f64| 10_f64.powf(value);
        let y = if high > 0.0 {
            let (low, high) = (low.log10().floor(), high.log10().ceil());
            decade(low)..decade(high.max(low + 1.0))
        } else {
            1e-8..1.0
        };
        let chart = builder.build_cartesian_2d(x, y.log_scale())?;
        draw_curves(chart, panel, shown, |value| format!("{value:.0e}"))
    } else {
        let Range { start, end } = match panel.upright {
            Upright::FromZero => 0.0..values.fold(0.0, f64::max) * 1.05,
            _ => range(values),
        };
        // Room for the names of the curves.
        let end = end + if panel.curves.len() > 2 { (end - start) * LEGEND } else { 0.0 };
        let chart = builder.build_cartesian_2d(x, start..end)?;
        draw_curves(chart, panel, shown, |value| {
            if *value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
        })
    }
}

fn draw_curves<'a, B, Y>(
    mut chart: ChartContext<'a, B, Cartesian2d<RangedCoordf64, Y>>,
    panel: &Panel,
    shown: impl Fn(&&(f64, f64)) -> bool,
    label: impl Fn(&f64) -> String,
) -> Drawn
where
    B: DrawingBackend + 'a,
    B::ErrorType: 'static,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(panel.x)
        .x_labels(7)
        .y_labels(7)
        .x_label_formatter(&|value| format!("{}", (value * 1e6).round() / 1e6))
        .y_label_formatter(&label)
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 16))
        .light_line_style(WHITE)
        .draw()?;
    for (curve, &color) in panel.curves.iter().zip(COLORS.iter().cycle()) {
        let points: Vec<_> = curve.points.iter().filter(&shown).copied().collect();
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
        chart
            .draw_series(line)?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], color.stroke_width(2)));
        if curve.dots {
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, color.filled())))?;
        }
    }
    if panel.curves.len() > 1 {
        // Where the curves are not: what starts at zero grows, what settles falls.
        let position = match panel.upright {
            Upright::FromZero => SeriesLabelPosition::UpperLeft,
            _ => SeriesLabelPosition::UpperRight,
        };
        chart
            .configure_series_labels()
            .position(position)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 15))
            .draw()?;
    }
    Ok(())
}

/// The range worth showing: the first steps are far above the rest, so the top is where nine tenths
/// of the points lie below, with some air.
fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let Some((&low, &high)) = values.first().zip(values.get(values.len() * 9 / 10)) else {
        return 0.0..8.0;
    };
    let air = ((high - low) * 0.15).max(0.05);
    low - air..high + air
}

/// Makes "sans-serif" a font that is compiled in, whatever the system has.
pub(super) fn register_font() {
    // A second registration under the same name is refused and changes nothing.
    let _ = plotters::style::register_font(
        "sans-serif",
        FontStyle::Normal,
        epaint_default_fonts::UBUNTU_LIGHT,
    );
}
