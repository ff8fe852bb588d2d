//! Export of `ln p(x)` and of sampling as ONNX, for onnxruntime and whatever else runs it (feature `onnx`).
//!
//! [`log_prob`] and [`sample`] take a [`FlowStack`] of the layers that [`Glow`](crate::models::Glow),
//! [`RealNvp`](crate::models::RealNvp) and [`Nice`](crate::models::Nice) are made of, those read from other libraries
//! among them, and give a model of opset 17 in f32 for any batch size:
//!
//! | model | input | output |
//! |---|---|---|
//! | [`log_prob`] | `x`: `[batch, ...]` in the shape of a sample | `log_prob`: `[batch]`, in nats |
//! | [`sample`] | `noise`: `[batch, dims]` | `x`: `[batch, ...]` |
//!
//! The noise is one row a sample, all parts of the latent behind each other, finest first: draws of the standard
//! normal, of NICE's prior draws of the standard logistic. A temperature is a factor on it.
//!
//! ```no_run
//! use burn_flows::models::Glow;
//! use burn_flows::onnx;
//!
//! let model = Glow::load("glow.safetensors", &burn_flows::backend::device())?;
//! onnx::save_log_prob(&model, "log_prob.onnx")?;
//! onnx::save_sample(&model, "sample.onnx")?;
//! # Ok::<(), burn_flows::FlowError>(())
//! ```
//!
//! ```python
//! session = onnxruntime.InferenceSession("sample.onnx")
//! noise = 0.7 * numpy.random.standard_normal((8, 3 * 32 * 32)).astype(numpy.float32)
//! (x,) = session.run(None, {"noise": noise})
//! ```
//!
//! What depends on a class or another context is refused.

mod graph;
mod layers;
mod nets;
mod priors;

use std::path::Path;

use graph::{Graph, Value};
pub use layers::Layer;
pub use nets::Net;
pub use priors::{Density, SplitDensity};

use crate::error::{FlowError, Result};
use crate::record::write_atomically;
use crate::reshape::num_kept;
use crate::stack::FlowStack;

/// The model `x -> log_prob`, as the bytes of a file.
///
/// # Errors
/// [`FlowError::Invalid`] if a layer has no counterpart; [`FlowError::Singular`] if a matrix has no inverse.
pub fn log_prob<const D: usize, F, P, S>(model: &FlowStack<D, F, P, S>) -> Result<Vec<u8>>
where
    F: Layer,
    P: Density,
    S: SplitDensity,
{
    let mut graph = Graph::default();
    let mut h = graph.input("x", model.sample_shape());
    let mut terms = Vec::new();
    let last = model.levels.len() - 1;
    for (index, level) in model.levels.iter().enumerate() {
        h = level.forward(&mut graph, h)?;
        if index < last {
            let channels = h.channels();
            let kept = graph.narrow(&h, 0, num_kept(channels));
            let out = graph.narrow(&h, num_kept(channels), channels - num_kept(channels));
            let prior = &model.split_priors[index];
            terms.push(SplitDensity::log_prob(prior, &mut graph, &out, &kept)?);
            h = kept;
        }
    }
    terms.push(Density::log_prob(&model.prior, &mut graph, &h)?);
    let log_prob = graph.log_prob(terms);
    graph.into_bytes("log_prob", &log_prob, &[])
}

/// The model `noise -> x`, as the bytes of a file.
///
/// # Errors
/// As [`log_prob`].
pub fn sample<const D: usize, F, P, S>(model: &FlowStack<D, F, P, S>) -> Result<Vec<u8>>
where
    F: Layer,
    P: Density,
    S: SplitDensity,
{
    let mut graph = Graph::default();
    let noise = graph.input("noise", &[model.num_dims()]);
    let mut start = 0;
    let parts: Vec<Value> = model
        .latent_shapes()
        .iter()
        .map(|shape| {
            let size = shape[1..].iter().product();
            let part = graph.narrow(&noise, start, size);
            start += size;
            graph.reshape(&part, &shape[1..])
        })
        .collect();
    let last = model.levels.len() - 1;
    let mut h = Density::sample(&model.prior, &mut graph, &parts[last])?;
    for (index, level) in model.levels.iter().enumerate().rev() {
        if index < last {
            let prior = &model.split_priors[index];
            let out = SplitDensity::sample(prior, &mut graph, &parts[index], &h)?;
            h = graph.join(&[h, out]);
        }
        h = level.inverse(&mut graph, h)?;
    }
    let shape = model.sample_shape().to_vec();
    graph.into_bytes("x", &h, &shape)
}

/// Writes [`log_prob`] to a file, which is either as it was or whole.
///
/// # Errors
/// As [`log_prob`], and [`FlowError::Io`] if the file cannot be written.
pub fn save_log_prob<const D: usize, F, P, S>(
    model: &FlowStack<D, F, P, S>,
    path: impl AsRef<Path>,
) -> Result<()>
where
    F: Layer,
    P: Density,
    S: SplitDensity,
{
    write_atomically(path, &log_prob(model)?)
}

/// Writes [`sample`] to a file, which is either as it was or whole.
///
/// # Errors
/// As [`sample`], and [`FlowError::Io`] if the file cannot be written.
pub fn save_sample<const D: usize, F, P, S>(
    model: &FlowStack<D, F, P, S>,
    path: impl AsRef<Path>,
) -> Result<()>
where
    F: Layer,
    P: Density,
    S: SplitDensity,
{
    write_atomically(path, &sample(model)?)
}

fn unknown(what: &str) -> FlowError {
    FlowError::invalid(
        "an export as ONNX",
        what,
        "the layers of Glow, RealNVP and NICE, without contexts",
        "export a model without it",
    )
}

/// The values of a parameter or of what follows from parameters, in f64.
fn values<const D: usize>(tensor: burn::tensor::Tensor<D>) -> Vec<f64> {
    crate::host::to_f64(crate::host::plain(tensor))
}
