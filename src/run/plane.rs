//! Pictures of the plane: densities, points and curves, panel beside panel.
//!
//! ```
//! use burn_flows::models::RealNvpVectorConfig;
//! use burn_flows::run::plane::{Ink, Layer, Window, to_points, write_density, write_panels};
//! use rand::{SeedableRng, rngs::StdRng};
//!
//! let device = burn_flows::backend::device();
//! let model = RealNvpVectorConfig::new(2, 2, vec![8]).init(&device)?;
//! let samples = to_points(model.sample_with(50, 1.0, &mut StdRng::seed_from_u64(0)));
//! let window = Window { x: -3.0..3.0, y: -2.0..2.0 };
//! let folder = tempfile::tempdir()?;
//! write_density(folder.path().join("density.png"), &model, &samples, &window)?;
//! let dots = Layer::Points(&samples, Ink([38, 110, 180], 0.6), 2);
//! write_panels(folder.path().join("points.png"), &[window.panel("samples", vec![dots])])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::ops::Range;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use image::RgbImage;
use image::imageops::{self, FilterType};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::curves::register_font;
use super::pictures::write_png;
use crate::error::{FlowError, Result};
use crate::host;
use crate::stack::device_and_dtype;
use crate::{Density, Latents};

/// Everything is drawn this many times larger and then shrunk, which smooths thin curves.
const SCALE: u32 = 2;

/// Height of the plotted part of a panel; its width follows from the window, so that a circle is round.
const HEIGHT: u32 = 420 * SCALE;

const TITLE_SIZE: u32 = 22 * SCALE;
const LABEL_SIZE: u32 = 16 * SCALE;

/// Around a panel, for its title, its numbers, and the gap to the next one.
const TOP: u32 = 48 * SCALE;
const BOTTOM: u32 = 40 * SCALE;
const LEFT: u32 = 52 * SCALE;
const RIGHT: u32 = 18 * SCALE;

/// Width of a bar of colours, and of the numbers beside it.
const BAR: u32 = 18 * SCALE;
const BAR_LABELS: u32 = 48 * SCALE;

/// Least length of a stroke of a curve.
const STRIDE: f64 = 3.0 * SCALE as f64;

/// A point of the plane.
pub type Point = [f64; 2];

/// A colour, red, green and blue, and how much of what is below it covers, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ink(pub [u8; 3], pub f64);

impl Ink {
    fn color(self) -> RGBAColor {
        let Self([red, green, blue], opacity) = self;
        RGBColor(red, green, blue).mix(opacity)
    }
}

/// What is drawn into a panel, the first layer at the bottom.
pub enum Layer<'a> {
    /// A density, given by its values at many points; with a bar of colours.
    Density(&'a dyn Fn(&[Point]) -> Vec<f64>),
    /// Dots of a radius in pixels of the final picture.
    Points(&'a [Point], Ink, u32),
    /// Connected points.
    Curves(&'a [Vec<Point>], Ink),
}

/// A window of the plane.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// From left to right.
    pub x: Range<f64>,
    /// From bottom to top.
    pub y: Range<f64>,
}

/// The most that a window may be wider than high, or higher than wide.
const MOST_RATIO: f64 = 20.0;

impl Window {
    /// Width over height.
    fn ratio(&self) -> f64 {
        (self.x.end - self.x.start) / (self.y.end - self.y.start)
    }

    fn validate(&self) -> Result<()> {
        let can_be_drawn = |range: &Range<f64>| {
            let largest = range.start.abs().max(range.end.abs());
            range.end - range.start > 1e-9 * largest && largest < 1e15
        };
        let is_wide = (1.0 / MOST_RATIO..=MOST_RATIO).contains(&self.ratio());
        if can_be_drawn(&self.x) && can_be_drawn(&self.y) && is_wide {
            return Ok(());
        }
        Err(FlowError::invalid(
            "Window: x and y",
            format!("{:?} and {:?}", self.x, self.y),
            format!(
                "ranges that go up, within 1e15, wider than a billionth of their largest number, neither more \
                 than {MOST_RATIO} times the other"
            ),
            "choose the window by the data, and scale these first if they are far off",
        ))
    }

    /// A panel that shows it.
    pub fn panel<'a>(&self, title: &str, layers: Vec<Layer<'a>>) -> Panel<'a> {
        Panel { title: title.into(), window: self.clone(), layers }
    }
}

/// A titled window of the plane.
pub struct Panel<'a> {
    /// Above the window.
    pub title: String,
    /// What of the plane is seen.
    pub window: Window,
    /// What is drawn.
    pub layers: Vec<Layer<'a>>,
}

/// The points as a batch, `[points, 2]`, in f32.
pub fn to_tensor(points: &[Point], device: &Device) -> Tensor<2> {
    let values = points.as_flattened().to_vec();
    Tensor::from_data(TensorData::new(values, [points.len(), 2]), (device, DType::F32))
}

/// The rows of a `[points, 2]` batch.
pub fn to_points(rows: Tensor<2>) -> Vec<Point> {
    host::to_f64(rows).as_chunks().0.to_vec()
}

const GREY: [u8; 3] = [110; 3];

/// Writes the density of a model as a heat map, and samples of it, as PNG.
///
/// # Errors
/// As [`write_panels`].
pub fn write_density(
    path: impl AsRef<Path>,
    model: &impl Density<2>,
    samples: &[Point],
    window: &Window,
) -> Result<()> {
    let (device, _) = device_and_dtype(model);
    let density = |points: &[Point]| host::to_f64(model.log_prob(to_tensor(points, &device)).exp());
    let samples = Layer::Points(samples, Ink(GREY, 0.7), 2);
    let panels = [
        window.panel("learned density p(x)", vec![Layer::Density(&density)]),
        window.panel("samples of the model", vec![samples]),
    ];
    write_panels(path, &panels)
}

/// Half the side of the window of the latent space: beyond lie 5 of 10,000 points.
const LATENT_SIDE: f64 = 3.9;

/// The latent grid: a line each half standard deviation, out to three.
const GRID_LINES: i32 = 6;
const GRID_SPACING: f64 = 0.5;

/// Points on a line, so that it bends smoothly.
const POINTS_A_LINE: usize = 1200;

/// Writes groups of points in latent space, each in a colour of its own, and the grid of the latent space mapped
/// back to data, as PNG.
///
/// # Errors
/// As [`write_panels`].
///
/// # Panics
/// If the latent of the model is in several parts.
pub fn write_latent(
    path: impl AsRef<Path>,
    model: &impl Density<2>,
    groups: &[(&[Point], [u8; 3])],
    window: &Window,
) -> Result<()> {
    let (device, _) = device_and_dtype(model);
    let latents: Vec<Vec<Point>> = groups
        .iter()
        .map(|(points, _)| to_points(model.encode(to_tensor(points, &device)).0.flatten()))
        .collect();
    let lines = [true, false].map(latent_lines).concat();
    let to_data =
        |line: &Vec<Point>| to_points(model.decode(Latents::new(vec![to_tensor(line, &device)])));
    let bent: Vec<_> = lines.iter().map(to_data).collect();
    let grid = Ink(GREY, 0.6);
    let side = -LATENT_SIDE..LATENT_SIDE;
    let mut of_latents = vec![Layer::Curves(&lines, grid)];
    let mut of_data = Vec::new();
    for (latents, &(points, color)) in latents.iter().zip(groups) {
        of_latents.push(Layer::Points(latents, Ink(color, 0.6), 2));
        of_data.push(Layer::Points(points, Ink(color, 0.35), 2));
    }
    of_data.push(Layer::Curves(&bent, grid));
    let latent = Window { x: side.clone(), y: side };
    let panels = [
        latent.panel("the data in latent space", of_latents),
        window.panel("the latent grid mapped to data", of_data),
    ];
    write_panels(path, &panels)
}

/// The lines of the latent grid in one direction.
fn latent_lines(upright: bool) -> Vec<Vec<Point>> {
    let end = f64::from(GRID_LINES) * GRID_SPACING;
    let line = |number: i32| {
        let across = f64::from(number) * GRID_SPACING;
        let point = |i: usize| {
            let along = end * (2.0 * i as f64 / (POINTS_A_LINE - 1) as f64 - 1.0);
            if upright { [across, along] } else { [along, across] }
        };
        (0..POINTS_A_LINE).map(point).collect()
    };
    (-GRID_LINES..=GRID_LINES).map(line).collect()
}

impl Panel<'_> {
    fn has_bar(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer, Layer::Density(_)))
    }

    fn plot_width(&self) -> u32 {
        // A multiple of the scale, so that shrinking mixes no two panels.
        (f64::from(HEIGHT / SCALE) * self.window.ratio()).round() as u32 * SCALE
    }

    fn bar_width(&self) -> u32 {
        if self.has_bar() { RIGHT + BAR + BAR_LABELS } else { 0 }
    }

    fn width(&self) -> u32 {
        LEFT + self.plot_width() + self.bar_width() + RIGHT
    }

    fn contains(&self, [x, y]: Point) -> bool {
        self.window.x.contains(&x) && self.window.y.contains(&y)
    }
}

/// Writes the panels beside each other as PNG.
///
/// # Errors
/// [`FlowError::Io`] if it cannot be written; [`FlowError::Invalid`] for a window without width or height, or of
/// numbers that cannot be told apart on its axes.
pub fn write_panels(path: impl AsRef<Path>, panels: &[Panel]) -> Result<()> {
    panels.iter().try_for_each(|panel| panel.window.validate())?;
    register_font();
    let width = panels.iter().map(Panel::width).sum::<u32>();
    let height = TOP + HEIGHT + BOTTOM;
    let mut pixels = vec![255; (width * height * 3) as usize];
    draw_panels(&mut pixels, (width, height), panels).expect("drawing into memory does not fail");
    let picture = RgbImage::from_raw(width, height, pixels).expect("the buffer has that size");
    let (width, height) = (width / SCALE, height / SCALE);
    write_png(path.as_ref(), &imageops::resize(&picture, width, height, FilterType::Triangle))
}

type Drawn<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;
type Chart<'a, 'b> =
    ChartContext<'a, BitMapBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn draw_panels(pixels: &mut [u8], size: (u32, u32), panels: &[Panel]) -> Drawn {
    let root = BitMapBackend::with_buffer(pixels, size).into_drawing_area();
    root.fill(&WHITE)?;
    let mut rest = root.clone();
    for panel in panels {
        let (area, right) = rest.split_horizontally(panel.width());
        draw_panel(&area, panel)?;
        rest = right;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(area: &Area, panel: &Panel) -> Drawn {
    let title = ("sans-serif", TITLE_SIZE).into_font();
    area.draw(&Text::new(panel.title.as_str(), (LEFT as i32, (14 * SCALE) as i32), title))?;
    let mut chart = ChartBuilder::on(area)
        .margin_top(TOP)
        .margin_right(RIGHT + panel.bar_width())
        .x_label_area_size(BOTTOM)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(panel.window.x.clone(), panel.window.y.clone())?;
    let mut bar = None;
    for layer in &panel.layers {
        match *layer {
            Layer::Density(density) => bar = Some(draw_density(&chart, panel, density)?),
            Layer::Points(points, ink, radius) => {
                let color = ink.color();
                let inside = points.iter().filter(|point| panel.contains(**point));
                let dots =
                    inside.map(|&[x, y]| Circle::new((x, y), radius * SCALE, color.filled()));
                chart.draw_series(dots)?;
            }
            Layer::Curves(curves, ink) => {
                for curve in curves {
                    draw_curve(&mut chart, panel, curve, ink.color())?;
                }
            }
        }
    }
    // The axes come last, over what was drawn up to the border.
    chart
        .configure_mesh()
        .disable_mesh()
        .x_labels(7)
        .y_labels(7)
        .label_style(("sans-serif", LABEL_SIZE))
        .axis_style(BLACK.mix(0.6))
        .set_all_tick_mark_size(5 * SCALE)
        .draw()?;
    if let Some(largest) = bar {
        draw_bar(area, panel, largest)?;
    }
    Ok(())
}

/// Colours every pixel of the final picture by the density at its middle; gives back the largest one.
fn draw_density(
    chart: &Chart<'_, '_>,
    panel: &Panel,
    density: &dyn Fn(&[Point]) -> Vec<f64>,
) -> Drawn<f64> {
    let area = chart.plotting_area().strip_coord_spec();
    let (width, height) = area.dim_in_pixel();
    let (width, height) = (width / SCALE, height / SCALE);
    let at = |range: &Range<f64>, share: f64| range.start + (range.end - range.start) * share;
    let rows: Vec<Vec<f64>> = (0..height)
        .map(|row| {
            let y = at(&panel.window.y, 1.0 - (f64::from(row) + 0.5) / f64::from(height));
            let point = |column: u32| {
                [at(&panel.window.x, (f64::from(column) + 0.5) / f64::from(width)), y]
            };
            density(&(0..width).map(point).collect::<Vec<_>>())
        })
        .collect();
    let largest = rows.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    for (row, values) in rows.iter().enumerate() {
        for (column, value) in values.iter().enumerate() {
            let corner = |more| [column, row].map(|place| ((place + more) as u32 * SCALE) as i32);
            let [[left, top], [right, bottom]] = [corner(0), corner(1)];
            let color = heat(value / largest).filled();
            area.draw(&Rectangle::new([(left, top), (right, bottom)], color))?;
        }
    }
    Ok(largest)
}

/// A curve where it is inside of the window, broken where it leaves it.
///
/// Points less than [`STRIDE`] after the last one are left out: strokes shorter than a pixel
/// would make a row of dots.
fn draw_curve(
    chart: &mut Chart<'_, '_>,
    panel: &Panel,
    curve: &[Point],
    color: RGBAColor,
) -> Drawn {
    let pixel = (panel.window.y.end - panel.window.y.start) / f64::from(HEIGHT);
    for inside in curve.split(|&point| !panel.contains(point)) {
        let mut points: Vec<(f64, f64)> = Vec::new();
        for (index, &[x, y]) in inside.iter().enumerate() {
            let near = |&(u, v): &(f64, f64)| (x - u).hypot(y - v) < STRIDE * pixel;
            if index + 1 == inside.len() || !points.last().is_some_and(near) {
                points.push((x, y));
            }
        }
        chart.draw_series(LineSeries::new(points, color.stroke_width(SCALE)))?;
    }
    Ok(())
}

fn draw_bar(area: &Area, panel: &Panel, largest: f64) -> Drawn {
    let left = (LEFT + panel.plot_width() + RIGHT) as i32;
    let (top, height) = (TOP as i32, HEIGHT as i32);
    for row in 0..height {
        let color = heat(1.0 - f64::from(row) / f64::from(height - 1));
        let line = [(left, top + row), (left + BAR as i32, top + row + 1)];
        area.draw(&Rectangle::new(line, color.filled()))?;
    }
    let font = ("sans-serif", LABEL_SIZE).into_font();
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        let y = top + ((1.0 - share) * f64::from(height - LABEL_SIZE as i32)) as i32;
        let label = format!("{:.2}", share * largest);
        area.draw(&Text::new(label, (left + (BAR + 8 * SCALE) as i32, y), font.clone()))?;
    }
    Ok(())
}

/// Matplotlib's colour map *magma* at nine equal steps.
const MAGMA: [[f64; 3]; 9] = [
    [0.0, 0.0, 4.0],
    [28.0, 16.0, 68.0],
    [79.0, 18.0, 123.0],
    [129.0, 37.0, 129.0],
    [181.0, 54.0, 122.0],
    [229.0, 80.0, 100.0],
    [251.0, 135.0, 97.0],
    [254.0, 194.0, 135.0],
    [252.0, 253.0, 191.0],
];

/// The colour of a share of the largest value.
fn heat(share: f64) -> RGBColor {
    let place = share.clamp(0.0, 1.0) * (MAGMA.len() - 1) as f64;
    let below = (place as usize).min(MAGMA.len() - 2);
    let rest = place - below as f64;
    let [r, g, b] = std::array::from_fn(|i| {
        (MAGMA[below][i] * (1.0 - rest) + MAGMA[below + 1][i] * rest).round() as u8
    });
    RGBColor(r, g, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_cannot_be_drawn_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let write = |x: Range<f64>, y: Range<f64>| {
            let points: [Point; 2] = [[0.0, 0.0], [1.0, 1.0]];
            let layer = Layer::Points(&points, Ink(GREY, 1.0), 2);
            let panel = Window { x, y }.panel("points", vec![layer]);
            write_panels(folder.path().join("plane.png"), &[panel])
        };
        write(-1.0..1.0, -1.0..1.0).unwrap();
        write(-1e12..1e12, -1e12..1e12).unwrap();
        write(-1e-12..1e-12, -1e-12..1e-12).unwrap();
        write(0.0..10.0, 0.0..1.0).unwrap();
        for (x, y) in [
            (-1e300..1e300, -1e300..1e300),
            (0.0..f64::INFINITY, 0.0..1.0),
            (f64::NAN..1.0, 0.0..1.0),
            (1.0..1.0, 0.0..1.0),
            (1.0..0.0, 0.0..1.0),
            (1e9..1e9 + 1e-3, 0.0..1e-3),
            (0.0..1000.0, 0.0..1.0),
        ] {
            assert!(matches!(write(x, y), Err(FlowError::Invalid { .. })));
        }
    }
}
