//! Two moons: the toy data of two-dimensional density estimation.

use std::f64::consts::{PI, TAU};

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{Rng, RngExt};

/// Standard deviation of the noise around the arcs.
const NOISE: f64 = 0.1;

/// Points on an arc over which the density is averaged: neighbours are 0.01 apart, a tenth of the
/// noise, so the sum cannot be told from the integral.
const ARC_POINTS: usize = 300;

/// A point of the plane.
pub type Point = [f64; 2];

/// Which of the two moons, and the point on its arc at the angle `angle` in 0 to pi.
fn arc(upper: bool, angle: f64) -> Point {
    let (sine, cosine) = angle.sin_cos();
    if upper { [cosine, sine] } else { [1.0 - cosine, 0.5 - sine] }
}

/// `count` points, the upper and the lower moon in turn: a half circle with normal noise.
pub fn draw(count: usize, rng: &mut impl Rng) -> Vec<Point> {
    let point = |index: usize| {
        let [x, y] = arc(index.is_multiple_of(2), PI * rng.random::<f64>());
        // Box and Muller: two normals from two uniforms; 1 - u is never zero.
        let radius = NOISE * (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sine, cosine) = (TAU * rng.random::<f64>()).sin_cos();
        [x + radius * cosine, y + radius * sine]
    };
    (0..count).map(point).collect()
}

/// Mean of `ln p` in nats of the density that [`draw`] draws from: what no model can beat.
pub fn mean_log_prob(points: &[Point]) -> f64 {
    let arcs: Vec<Point> = (0..2 * ARC_POINTS)
        .map(|i| arc(i % 2 == 0, PI * ((i / 2) as f64 + 0.5) / ARC_POINTS as f64))
        .collect();
    let log_prob = |point: &Point| {
        let densities = arcs.iter().map(|center| {
            let (dx, dy) = (point[0] - center[0], point[1] - center[1]);
            (-(dx * dx + dy * dy) / (2.0 * NOISE * NOISE)).exp()
        });
        (densities.sum::<f64>() / (arcs.len() as f64 * TAU * NOISE * NOISE)).ln()
    };
    points.iter().map(log_prob).sum::<f64>() / points.len() as f64
}

/// The points as a batch, `[points, 2]`.
pub fn to_tensor(points: &[Point], device: &Device) -> Tensor<2> {
    let values = points.as_flattened().to_vec();
    Tensor::from_data(TensorData::new(values, [points.len(), 2]), (device, DType::F32))
}

/// The rows of a `[points, 2]` batch.
pub fn to_points(rows: Tensor<2>) -> Vec<Point> {
    let values: Vec<f64> = rows.try_into_vec_as().expect("a batch of floats");
    values.as_chunks().0.to_vec()
}
