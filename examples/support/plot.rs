//! Curves of a training run as PNG.

use std::path::Path;

use burn_flows::Result;
use image::RgbImage;
use plotters::prelude::*;

use super::pictures::write_png;
use super::run::Metrics;

const SIZE: (u32, u32) = (900, 560);
const TRAIN: RGBColor = RGBColor(120, 150, 200);
const TEST: RGBColor = RGBColor(200, 60, 40);

/// Draws bits/dim against steps, training and test.
pub fn write_curve(path: &Path, title: &str, metrics: &[Metrics]) -> Result<()> {
    register_font();
    let mut pixels = vec![255; (SIZE.0 * SIZE.1 * 3) as usize];
    draw(&mut pixels, title, metrics).expect("drawing into memory does not fail");
    let picture = RgbImage::from_raw(SIZE.0, SIZE.1, pixels).expect("the buffer has that size");
    write_png(path, &picture)
}

fn draw(
    pixels: &mut [u8],
    title: &str,
    metrics: &[Metrics],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = BitMapBackend::with_buffer(pixels, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let train: Vec<_> = metrics.iter().map(|m| (m.step as f64, m.train_bits_per_dim)).collect();
    let test: Vec<_> =
        metrics.iter().filter_map(|m| Some((m.step as f64, m.test_bits_per_dim?))).collect();
    let (low, high) = range(train.iter().chain(&test).map(|point| point.1));
    let last = train.last().map_or(1.0, |point| point.0.max(1.0));
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 24))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last, low..high)?;
    chart
        .configure_mesh()
        .x_desc("optimizer steps")
        .y_desc("bits per dimension")
        .label_style(("sans-serif", 16))
        .axis_desc_style(("sans-serif", 18))
        .light_line_style(WHITE)
        .draw()?;
    chart
        .draw_series(LineSeries::new(train, TRAIN.stroke_width(1)))?
        .label("training batches")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 24, y)], TRAIN.stroke_width(2)));
    chart
        .draw_series(LineSeries::new(test.clone(), TEST.stroke_width(2)))?
        .label("test images")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 24, y)], TEST.stroke_width(2)));
    chart.draw_series(test.iter().map(|&point| Circle::new(point, 3, TEST.filled())))?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 16))
        .draw()?;
    root.present()?;
    Ok(())
}

/// The range worth showing: the first steps are far above the rest, so the top is where nine tenths
/// of the points lie below, with some air.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let Some((&low, &high)) = values.first().zip(values.get(values.len() * 9 / 10)) else {
        return (0.0, 8.0);
    };
    let air = ((high - low) * 0.15).max(0.05);
    (low - air, high + air)
}

/// Makes "sans-serif" a font that is compiled in, whatever the system has.
pub fn register_font() {
    // A second registration under the same name is refused and changes nothing.
    let _ = plotters::style::register_font(
        "sans-serif",
        FontStyle::Normal,
        epaint_default_fonts::UBUNTU_LIGHT,
    );
}
