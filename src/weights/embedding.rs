//! The net of linear layers that makes a context, as sbi puts it before its flows.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::exchange::{Exchange, Rows};
use crate::conditioner::{Activation, Conditioner};
use crate::coupling::per_channel;
use crate::record::Setting;

/// What sbi makes a context of: `(c - mean) / deviation`, then linear layers with an activation between.
///
/// Without either the context is what it is given.
#[derive(Module, Debug)]
pub struct Embedding {
    /// What the context is standardized by, if it is.
    pub moments: Option<Moments>,
    /// The linear layers, first to last.
    pub layers: Vec<Linear>,
    /// What they are called there.
    names: Setting<Vec<String>>,
    activation: Setting<Activation>,
    ends_activated: Setting<bool>,
}

/// Mean and standard deviation of each feature, or of all of them as one number; not trained.
#[derive(Module, Debug)]
pub struct Moments {
    /// `[features]`, or `[1]` for all.
    pub mean: Param<Tensor<1>>,
    /// `[features]`, or `[1]` for all.
    pub deviation: Param<Tensor<1>>,
    is_one_for_all: Setting<bool>,
}

impl Conditioner<2> for Embedding {
    fn forward(&self, context: Tensor<2>) -> Tensor<2> {
        let h = match &self.moments {
            Some(own) => (context - per_channel(own.mean.val())) / per_channel(own.deviation.val()),
            None => context,
        };
        self.layers.iter().enumerate().fold(h, |h, (at, layer)| {
            let h = layer.forward(h);
            let is_activated = at + 1 < self.layers.len() || *self.ends_activated;
            if is_activated { self.activation.of(h) } else { h }
        })
    }
}

/// `Sequential(Standardize, net)` or `net`, which makes `context` features; `net` is a `Sequential` of linear
/// layers, or a module that holds one.
pub(super) fn embedding(
    io: &mut Exchange,
    context: usize,
    (activation, ends_activated): (Activation, bool),
    ours: Option<&Embedding>,
) -> Embedding {
    let names = match ours {
        Some(own) => own.names.to_vec(),
        None => linear_layers(io),
    };
    let is_standardized = ours.map_or_else(|| io.has("0._mean"), |own| own.moments.is_some());
    let moments = is_standardized.then(|| {
        let own = ours.and_then(|own| own.moments.as_ref());
        io.under("0", |io| moments(io, names.is_empty().then_some(context), own))
    });
    let mut outputs = Vec::new();
    let layers = names.iter().enumerate().map(|(at, name)| {
        let own = ours.map(|own| &own.layers[at]);
        io.under(name, |io| {
            let [inputs, width] = match own {
                Some(own) => own.weight.dims(),
                None => [io.size("weight", 1), io.size("weight", 0)],
            };
            // Each layer takes what the one before gives, the flow what the last one gives.
            let inputs = if at == 0 { inputs } else { outputs[at - 1] };
            let width = if at + 1 < names.len() || ours.is_some() { width } else { context };
            outputs.push(width);
            let weight = own.map(|own| &own.weight);
            let bias = own.and_then(|own| own.bias.as_ref());
            Linear {
                weight: io.transposed("weight", [width, inputs], Rows::same(), weight),
                bias: Some(io.param("bias", &[width], Rows::same(), bias)),
            }
        })
    });
    let layers = layers.collect();
    if let Some(own) = ours {
        return own.clone();
    }
    let (activation, ends_activated) = (activation.into(), ends_activated.into());
    Embedding { moments, layers, names: names.into(), activation, ends_activated }
}

/// Names of what has a matrix, in the order of the numbers at their ends.
fn linear_layers(io: &Exchange) -> Vec<String> {
    let mut layers: Vec<String> =
        io.names().filter_map(|name| Some(name.strip_suffix(".weight")?.to_string())).collect();
    layers.sort_by_key(|name| {
        name.rsplit('.').next().and_then(|number| number.parse::<usize>().ok())
    });
    layers
}

fn moments(io: &mut Exchange, features: Option<usize>, ours: Option<&Moments>) -> Moments {
    let is_one = ours.map_or_else(|| io.is_scalar("_mean"), |own| *own.is_one_for_all);
    let count = match ours {
        Some(own) => own.mean.dims()[0],
        None => features.unwrap_or_else(|| io.size("_mean", 0)),
    };
    let shape: &[usize] = if is_one { &[] } else { &[count] };
    Moments {
        mean: io.frozen("_mean", shape, Rows::same(), ours.map(|own| &own.mean)),
        deviation: io.frozen("_std", shape, Rows::same(), ours.map(|own| &own.deviation)),
        is_one_for_all: is_one.into(),
    }
}
