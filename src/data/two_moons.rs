//! Two moons: the toy data of two-dimensional density estimation, whose density is known.

use std::f64::consts::{PI, TAU};

use rand::{Rng, RngExt};

/// Standard deviation of the noise around the arcs.
const NOISE: f64 = 0.1;

/// Points on an arc over which the density is averaged: neighbours are 0.01 apart, a tenth of the
/// noise, so the sum cannot be told from the integral.
const ARC_POINTS: usize = 300;

/// Which of the two moons, and the point on its arc at the angle `angle` in 0 to pi.
fn arc(upper: bool, angle: f64) -> [f64; 2] {
    let (sine, cosine) = angle.sin_cos();
    if upper { [cosine, sine] } else { [1.0 - cosine, 0.5 - sine] }
}

/// `count` points, the upper and the lower moon in turn: a half circle with normal noise of deviation 0.1.
pub fn two_moons(count: usize, rng: &mut impl Rng) -> Vec<[f64; 2]> {
    let point = |index: usize| {
        let [x, y] = arc(index.is_multiple_of(2), PI * rng.random::<f64>());
        // Box and Muller: two normals from two uniforms; 1 - u is never zero.
        let radius = NOISE * (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sine, cosine) = (TAU * rng.random::<f64>()).sin_cos();
        [x + radius * cosine, y + radius * sine]
    };
    (0..count).map(point).collect()
}

/// Mean of `ln p` in nats of the density that [`two_moons`] draws from: what no model can beat.
pub fn two_moons_log_prob(points: &[[f64; 2]]) -> f64 {
    let arcs: Vec<[f64; 2]> = (0..2 * ARC_POINTS)
        .map(|i| arc(i % 2 == 0, PI * ((i / 2) as f64 + 0.5) / ARC_POINTS as f64))
        .collect();
    let log_prob = |point: &[f64; 2]| {
        let densities = arcs.iter().map(|center| {
            let (dx, dy) = (point[0] - center[0], point[1] - center[1]);
            (-(dx * dx + dy * dy) / (2.0 * NOISE * NOISE)).exp()
        });
        (densities.sum::<f64>() / (arcs.len() as f64 * TAU * NOISE * NOISE)).ln()
    };
    points.iter().map(log_prob).sum::<f64>() / points.len() as f64
}
