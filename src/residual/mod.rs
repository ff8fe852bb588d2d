//! Flows `x + g(x)`: planar, radial and residual ones, for vectors.
//!
//! Each has one direction in closed form, the one of its paper, and is written so that the paper's use is the
//! plain one: [`Planar`] and [`Radial`] were made for variational inference and draw in one pass (their
//! `inverse`); [`Residual`] was made for density estimation and maps data in one pass (its `forward`).
//! [`Inverse`](crate::Inverse) turns each around.

mod planar;
mod radial;
mod residual_flow;

pub use planar::{Planar, PlanarActivation};
pub use radial::Radial;
pub use residual_flow::{Residual, ResidualConfig};

use burn::tensor::Tensor;

/// `ln(1 + exp(x))` of a single number, `[1]`.
fn softplus(x: Tensor<1>) -> Tensor<1> {
    // Of a large x it is x itself, whose exponential would overflow.
    let small = x.clone().clamp_max(LARGE).exp().log1p();
    let large = x.clone().greater_elem(LARGE);
    small.mask_where(large, x)
}

/// From here on `ln(1 + exp(x))` is `x` in f64.
const LARGE: f64 = 40.0;

/// Where [`softplus`] is 1.
const SOFTPLUS_IS_ONE: f64 = 0.541_324_854_612_918_3;
