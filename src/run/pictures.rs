//! Grids of pictures as PNG.

use std::path::Path;

use burn::tensor::Tensor;
use image::{ImageFormat, Rgb, RgbImage};

use crate::data::note_output;
use crate::error::{FlowError, Result};
use crate::preprocess::Quantization;
use crate::record::write_atomically;

/// Pixels between pictures.
const GAP: u32 = 2;

/// Pictures are enlarged to at least this side, so that digits can be seen.
const SMALLEST_SIDE: u32 = 56;

/// Writes rows of pictures as PNG, small ones enlarged; each tensor `[n, channels, height, width]` is one row,
/// of values between 0 and 1. Beside the file it is [noted](note_output) that it is no data.
///
/// # Errors
/// [`FlowError::Io`] if it cannot be written; [`FlowError::Invalid`] without a row.
pub fn write_grid(
    path: impl AsRef<Path>,
    rows: &[Tensor<4>],
    quantization: Quantization,
) -> Result<()> {
    let path = path.as_ref();
    if rows.is_empty() {
        return Err(FlowError::invalid(
            "write_grid: the rows",
            "none",
            "at least one",
            "give some pictures",
        ));
    }
    let [_, channels, height, width] = rows[0].dims();
    let columns = rows.iter().map(|row| row.dims()[0]).max().unwrap_or(0) as u32;
    let zoom = SMALLEST_SIDE.div_ceil(height.min(width) as u32);
    let (cell_w, cell_h) = (width as u32 * zoom + GAP, height as u32 * zoom + GAP);
    let mut canvas = RgbImage::from_pixel(
        columns * cell_w + GAP,
        rows.len() as u32 * cell_h + GAP,
        Rgb([96, 96, 96]),
    );
    for (row, pictures) in rows.iter().enumerate() {
        let count = pictures.dims()[0];
        let values: Vec<f32> = pictures.clone().try_into_vec_as().expect("pictures are floats");
        for index in 0..count {
            let pixel = |c: usize, y: usize, x: usize| {
                let c = c.min(channels - 1);
                quantization.pixel(values[((index * channels + c) * height + y) * width + x])
            };
            let (left, top) = (GAP + index as u32 * cell_w, GAP + row as u32 * cell_h);
            for y in 0..height as u32 * zoom {
                for x in 0..width as u32 * zoom {
                    let (py, px) = ((y / zoom) as usize, (x / zoom) as usize);
                    let color = Rgb([pixel(0, py, px), pixel(1, py, px), pixel(2, py, px)]);
                    canvas.put_pixel(left + x, top + y, color);
                }
            }
        }
    }
    write_png(path, &canvas)
}

/// Writes a picture as PNG, all or nothing; where a run learns from the folder, it is no data.
pub(super) fn write_png(path: &Path, picture: &RgbImage) -> Result<()> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).map_err(|error| FlowError::Io {
        action: "encode",
        path: path.into(),
        source: std::io::Error::other(error),
        advice: "report this as a bug",
    })?;
    note_output(path)?;
    write_atomically(path, bytes.get_ref())
}
