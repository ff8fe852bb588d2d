//! Figures by which flows are compared.
//!
//! In the guide: [Bits per dimension](crate::guide::bits_per_dim).

mod score;
mod two_sample;

pub use score::{Score, log_mean_exp};
pub use two_sample::c2st;

use burn::tensor::Tensor;

use crate::flow::Flow;
use crate::host;

/// Bits per dimension of quantized data, from log-densities in nats: the one definition used
/// everywhere in this crate.
///
/// `bits_per_dim = -(log_prob - D ln levels) / (D ln 2) = log2(levels) - log_prob / (D ln 2)`
///
/// for `D = num_dims` values of `levels` levels each, scaled so that one level has width
/// `1 / levels`. From one dequantization draw it is, in expectation, an upper bound of the model's code
/// length; [`FlowStack::score`](crate::FlowStack::score) gives a tighter one from several.
/// With `levels = 1` it is the plain `-log2 p(x) / D` of continuous data.
///
/// ```
/// use burn_flows::metrics::bits_per_dim;
///
/// // A uniform density over [0, 1) has log-density 0 and needs all 8 bits of a pixel.
/// assert_eq!(bits_per_dim(0.0, 784, 256), 8.0);
/// ```
pub fn bits_per_dim(log_prob: f64, num_dims: usize, levels: u32) -> f64 {
    f64::from(levels).log2() - log_prob / (num_dims as f64 * std::f64::consts::LN_2)
}

/// The largest `|x - inverse(forward(x))|` over a batch: what rounding costs in a round trip; 0 of no samples.
pub fn inversion_error<const D: usize>(flow: &impl Flow<D>, x: Tensor<D>) -> f64 {
    if host::has_no_samples(&x) {
        return 0.0;
    }
    let back = flow.inverse(flow.forward(x.clone()).0);
    host::scalar((back - x).abs().max())
}
