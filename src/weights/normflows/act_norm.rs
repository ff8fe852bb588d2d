//! ActNorm, between flows and inside of nets.

use burn::module::Param;

use super::super::Weights;
use super::super::exchange::{Exchange, Rows};
use crate::error::Result;
use crate::host;
use crate::norm::ActNorm;

/// Added to the standard deviation in normflows' ActNorm initialization.
const INIT_EPSILON: f64 = 1e-6;

/// `flows.ActNorm` (`s`, `t`): `z = (x - t) * exp(-s)`.
///
/// # Errors
/// If the tensors are not there, of another shape or not finite.
pub fn act_norm(weights: &Weights) -> Result<ActNorm> {
    let mut io = Exchange::reading(weights);
    let shape = weights.shape("s").unwrap_or_default().to_vec();
    let norm = act_norm_table(&mut io, &shape, None);
    io.check_layer("flows.ActNorm")?;
    Ok(norm)
}

/// `shape` is `[1, channels]` or `[1, channels, 1, 1]`.
pub(super) fn act_norm_table(
    io: &mut Exchange,
    shape: &[usize],
    ours: Option<&ActNorm>,
) -> ActNorm {
    let channels = shape.get(1).copied().unwrap_or(0);
    let rows = || Rows::all_negated(channels);
    let log_scale = ours.map(|norm| Param::from_tensor(norm.effective_log_scale()));
    let bias = io.param("t", shape, rows(), ours.map(|norm| &norm.bias));
    let log_scale = io.param("s", shape, rows(), log_scale.as_ref());
    let dtype = io.dtype();
    io.given_if_there("data_dep_init_done", &[], dtype, || vec![1.0]);
    ActNorm::from_parts(bias, log_scale, 1.0)
}

/// `ActNorm` inside a net, which runs in normflows' forward direction: `y = h * exp(s) + t`.
///
/// # Errors
/// If the tensors are not there, of another shape or not finite.
pub fn act_norm_in_net(weights: &Weights) -> Result<ActNorm> {
    let mut io = Exchange::reading(weights);
    let norm = act_norm_in_net_table(&mut io, weights.size("s", 1), None);
    io.check_layer("ActNorm")?;
    Ok(norm)
}

/// Ours is `(h + bias) * exp(s)`, so that `t` comes back from a round trip up to rounding alone.
pub(super) fn act_norm_in_net_table(
    io: &mut Exchange,
    channels: usize,
    ours: Option<&ActNorm>,
) -> ActNorm {
    let shape = [1, channels, 1, 1];
    let dtype = io.dtype();
    io.given_if_there("data_dep_init_done", &[], dtype, || vec![1.0]);
    if let Some(norm) = ours {
        let log_scale = norm.effective_log_scale();
        let t = Param::from_tensor(norm.bias.val() * log_scale.clone().exp());
        io.param("t", &shape, Rows::same(), Some(&t));
        io.param("s", &shape, Rows::same(), Some(&Param::from_tensor(log_scale)));
        return norm.clone();
    }
    let (t, s) = (io.values("t", &shape), io.values("s", &shape));
    let bias = t.iter().zip(&s).map(|(t, s)| t * (-s).exp()).collect();
    ActNorm::from_parts(io.vector(bias), io.vector(s), 1.0)
}

/// In which of normflows' directions its ActNorm saw its first batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitDirection {
    /// Data → latent: `s = ln(std + 1e-6)`, `t = mean`.
    Inverse,
    /// Latent → data: `s = -ln(std + 1e-6)`, `t = -mean * exp(s)`.
    Forward,
}

/// normflows' `(s, t)`, `[channels]` each, for the batch that initialized `norm`, of `count` values
/// a channel. normflows divides the variance by `count - 1`, this crate by `count`.
pub fn act_norm_initialization(
    norm: &ActNorm,
    count: usize,
    direction: InitDirection,
) -> (Vec<f64>, Vec<f64>) {
    let bias = host::to_f64(norm.bias.val());
    let log_scale = host::to_f64(norm.effective_log_scale());
    let unbiased = (count as f64 / (count as f64 - 1.0)).sqrt();
    let log_std = log_scale.into_iter().map(|log_scale| {
        let deviation = (-log_scale).exp() - INIT_EPSILON;
        (deviation * unbiased + INIT_EPSILON).ln()
    });
    match direction {
        InitDirection::Inverse => (log_std.collect(), bias.into_iter().map(|b| -b).collect()),
        InitDirection::Forward => {
            let s: Vec<f64> = log_std.map(|log_std| -log_std).collect();
            let t = bias.into_iter().zip(&s).map(|(bias, s)| bias * s.exp()).collect();
            (s, t)
        }
    }
}
