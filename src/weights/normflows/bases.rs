//! Base distributions.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::super::Weights;
use super::super::exchange::{Exchange, Rows};
use crate::conditioner::Mlp;
use crate::context::Context;
use crate::error::Result;
use crate::host;
use crate::norm::LOG_SCALE_FACTOR;
use crate::prior::{ContextNormal, DiagonalNormal, GaussianMixture};

/// `DiagGaussian` (`loc`, `log_scale`, `[1, ...]`).
///
/// # Errors
/// If the tensors are not there, of another shape or not finite.
pub fn diag_gaussian<const D: usize>(weights: &Weights) -> Result<DiagonalNormal<D>> {
    let mut io = Exchange::reading(weights);
    let prior = diag_gaussian_table(&mut io, weights.shape("loc").unwrap_or_default(), None);
    io.check_layer("DiagGaussian")?;
    Ok(prior)
}

pub(super) fn diag_gaussian_table<const D: usize>(
    io: &mut Exchange,
    shape: &[usize],
    ours: Option<&DiagonalNormal<D>>,
) -> DiagonalNormal<D> {
    DiagonalNormal {
        mean: io.param("loc", shape, Rows::same(), ours.map(|prior| &prior.mean)),
        log_std: io.param("log_scale", shape, Rows::same(), ours.map(|prior| &prior.log_std)),
    }
}

/// `GlowBase`: `mean = loc exp(3 loc_logs)`, `ln std = log_scale exp(3 log_scale_logs)`; or a
/// `DiagGaussian`, whichever is there.
///
/// # Errors
/// If the tensors are not there, of another shape or not finite.
pub fn glow_base(weights: &Weights) -> Result<DiagonalNormal<4>> {
    let mut io = Exchange::reading(weights);
    let shape = weights.shape("loc").unwrap_or_default().to_vec();
    let prior = glow_base_table(&mut io, &shape, None);
    io.check_layer("GlowBase")?;
    Ok(prior)
}

/// One normal a channel is a `GlowBase`, written with logs of zero; one a pixel a `DiagGaussian`.
pub(super) fn glow_base_table(
    io: &mut Exchange,
    shape: &[usize],
    ours: Option<&DiagonalNormal<4>>,
) -> DiagonalNormal<4> {
    let is_glow = match ours {
        Some(prior) => prior.mean.dims()[2..] == [1, 1],
        None => io.has("loc_logs"),
    };
    if !is_glow {
        return diag_gaussian_table(io, shape, ours);
    }
    let names = [("loc", "loc_logs"), ("log_scale", "log_scale_logs")];
    if let Some(prior) = ours {
        let dtype = io.dtype();
        for ((name, logs), own) in names.into_iter().zip([&prior.mean, &prior.log_std]) {
            io.param(name, shape, Rows::same(), Some(own));
            io.given(logs, shape, dtype, || vec![0.0; shape.iter().product()]);
        }
        return prior.clone();
    }
    let [mean, log_std] = names.map(|(name, logs)| {
        let (values, logs) = (io.values(name, shape), io.values(logs, shape));
        let scaled = values.iter().zip(logs).map(|(v, log)| v * (LOG_SCALE_FACTOR * log).exp());
        let mut scaled: Vec<f64> = scaled.collect();
        if scaled.is_empty() {
            // One of the two did not fit, which is an error by now; a tensor of nothing has no channels.
            scaled.push(0.0);
        }
        let scaled = io.vector(scaled).val();
        let channels = scaled.dims()[0];
        Param::from_tensor(scaled.reshape([1, channels, 1, 1]))
    });
    DiagonalNormal { mean, log_std }
}

/// The normal of each class `y`, a context of 0 and 1: means, then log standard deviations, are
/// `bias + classes[y]`.
fn class_normal(io: &Exchange, bias: Vec<f64>, classes: &[Vec<f64>]) -> ContextNormal<Mlp> {
    let (width, outputs) = (classes.len(), bias.len());
    let (device, dtype) = (io.device(), io.dtype());
    let weight = host::from_f64(classes.concat(), [width, outputs], device, dtype);
    let bias = Some(io.vector(bias));
    let layers = vec![Linear { weight: Param::from_tensor(weight), bias }];
    ContextNormal { net: Mlp { layers }, context: Context::in_dtype(width, device, dtype) }
}

/// `ClassCondDiagGaussian` (`loc`, `log_scale`, `[features, classes]`), the class being the context.
///
/// # Errors
/// If the tensors are not there, of another shape or not finite.
pub fn class_cond_diag_gaussian(weights: &Weights) -> Result<ContextNormal<Mlp>> {
    let mut io = Exchange::reading(weights);
    let prior = class_gaussian_table(&mut io, weights.size("loc", 0), None);
    io.check_layer("ClassCondDiagGaussian")?;
    if prior.context.width() == 0 {
        return Err(weights.error("a base without classes", "give one with classes"));
    }
    Ok(prior)
}

pub(super) fn class_gaussian_table(
    io: &mut Exchange,
    features: usize,
    ours: Option<&ContextNormal<Mlp>>,
) -> ContextNormal<Mlp> {
    let names = ["loc", "log_scale"];
    let num_classes = match ours {
        Some(own) => own.context.width(),
        None => io.size("loc", 1),
    };
    let shape = [features, num_classes];
    // Ours has a row for each class: all means, then all log standard deviations.
    let place = |part: usize, at: usize| {
        (at % num_classes) * 2 * features + part * features + at / num_classes
    };
    if let Some(own) = ours {
        let (values, dtype) =
            (host::to_f64(host::plain(own.net.layers[0].weight.val())), io.dtype());
        for (part, name) in names.into_iter().enumerate() {
            let theirs = (0..features * num_classes).map(|at| values[place(part, at)]).collect();
            io.given(name, &shape, dtype, || theirs);
        }
        return own.clone();
    }
    let mut values = Vec::new();
    for (part, name) in names.into_iter().enumerate() {
        for (at, value) in io.values(name, &shape).into_iter().enumerate() {
            values.resize(2 * features * num_classes, 0.0);
            values[place(part, at)] = value;
        }
    }
    // What is missing is reported at the end; the model is not given to anyone.
    let is_whole = !values.is_empty();
    let shape = if is_whole { [num_classes, 2 * features] } else { [0, 0] };
    let (device, dtype) = (io.device().clone(), io.dtype());
    let context = Context::in_dtype(shape[0], &device, dtype);
    let weight = Param::from_tensor(match is_whole {
        true => host::from_f64(values, shape, &device, dtype),
        false => Tensor::zeros([1, 1], (&device, dtype)),
    });
    ContextNormal { net: Mlp { layers: vec![Linear { weight, bias: None }] }, context }
}

/// `ConditionalDiagGaussian` whose encoder is one linear layer.
pub(super) fn conditional_table(
    io: &mut Exchange,
    [features, context]: [usize; 2],
    ours: Option<&ContextNormal<Mlp>>,
) -> ContextNormal<Mlp> {
    let own = ours.map(|own| &own.net.layers[0]);
    let shape = [2 * features, context];
    let layer = io.under("context_encoder", |io| Linear {
        weight: io.transposed("weight", shape, Rows::same(), own.map(|own| &own.weight)),
        bias: Some(io.param(
            "bias",
            &shape[..1],
            Rows::same(),
            own.and_then(|own| own.bias.as_ref()),
        )),
    });
    let context = Context::in_dtype(context, io.device(), io.dtype());
    ContextNormal { net: Mlp { layers: vec![layer] }, context }
}

/// `GaussianMixture`: `loc` and `log_scale` `[1, modes, features]`, `weight_scores` `[1, modes]`.
pub(super) fn mixture_table(
    io: &mut Exchange,
    features: usize,
    ours: Option<&GaussianMixture>,
) -> GaussianMixture {
    let modes = match ours {
        Some(own) => own.logits.dims()[0],
        None => io.size("weight_scores", 1),
    };
    let (shape, same) = ([1, modes, features], Rows::same);
    GaussianMixture {
        logits: io.param("weight_scores", &shape[..2], same(), ours.map(|own| &own.logits)),
        mean: io.param("loc", &shape, same(), ours.map(|own| &own.mean)),
        log_std: io.param("log_scale", &shape, same(), ours.map(|own| &own.log_std)),
    }
}

/// `GlowBase` with classes: `mean = loc exp(3 loc_logs) + loc_cc[y]`, and so the log standard deviation.
pub(super) fn class_base_table(
    io: &mut Exchange,
    channels: usize,
    ours: Option<&ContextNormal<Mlp>>,
) -> ContextNormal<Mlp> {
    let shape = [1, channels, 1, 1];
    let names = [("loc", "loc_logs", "loc_cc"), ("log_scale", "log_scale_logs", "log_scale_cc")];
    if let Some(ours) = ours {
        let layer = &ours.net.layers[0];
        let (dtype, width) = (io.dtype(), ours.context.width());
        let weight = host::to_f64(host::plain(layer.weight.val()));
        let bias = layer.bias.as_ref();
        let bias = bias.map_or(vec![0.0; 2 * channels], |b| host::to_f64(host::plain(b.val())));
        for (part, (name, logs, classes)) in names.into_iter().enumerate() {
            let own = part * channels..(part + 1) * channels;
            io.given(name, &shape, dtype, || bias[own.clone()].to_vec());
            io.given(logs, &shape, dtype, || vec![0.0; channels]);
            io.given(classes, &[width, channels], dtype, || {
                weight.chunks(2 * channels).flat_map(|row| row[own.clone()].to_vec()).collect()
            });
        }
        return ours.clone();
    }
    let num_classes = io.size("loc_cc", 0);
    let mut bias = Vec::new();
    let mut rows = vec![Vec::new(); num_classes];
    for (name, logs, classes) in names {
        let (values, logs) = (io.values(name, &shape), io.values(logs, &shape));
        bias.extend(values.iter().zip(logs).map(|(v, log)| v * (LOG_SCALE_FACTOR * log).exp()));
        let values = io.values(classes, &[num_classes, channels]);
        for (row, values) in rows.iter_mut().zip(values.chunks(channels.max(1))) {
            row.extend_from_slice(values);
        }
    }
    if num_classes == 0
        || bias.len() != 2 * channels
        || rows.iter().any(|row| row.len() != 2 * channels)
    {
        // What is missing is reported at the end; the model is not given to anyone.
        return class_normal(io, vec![0.0], &[vec![0.0]]);
    }
    class_normal(io, bias, &rows)
}
