//! Nets inside of couplings and priors.

use burn::module::Module;
use burn::nn::Linear;

use super::graph::{Attribute, Graph, Value};
use super::values;
use crate::conditioner::conv::{Conv, Padding, ZeroConv};
use crate::conditioner::{ConvNet, GlowNet, Mlp, NetBatchNorm, ResidualNet, WeightNormConv};
use crate::error::Result;
use crate::norm::ActNorm;

/// A net that can be exported.
pub trait Net: Module {
    /// Adds the net of `x` to a graph.
    ///
    /// # Errors
    /// If a part of it has no counterpart.
    #[doc(hidden)]
    fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value>;
}

impl Net for Mlp {
    fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let mut h = x.clone();
        for (at, layer) in self.layers.iter().enumerate() {
            if at > 0 {
                h = graph.unary("Relu", &h);
            }
            h = linear(graph, &h, layer);
        }
        Ok(h)
    }
}

fn linear(graph: &mut Graph, x: &Value, layer: &Linear) -> Value {
    let outputs = layer.weight.dims()[1];
    let bias = layer.bias.as_ref().map_or(vec![0.0; outputs], |bias| values(bias.val()));
    graph.linear(x, &values(layer.weight.val()), &bias)
}

/// Weight and bias of a convolution.
fn parts(conv: &Conv) -> (Vec<f64>, Vec<f64>) {
    let outputs = conv.weight.dims()[0];
    let bias = conv.bias.as_ref().map_or(vec![0.0; outputs], |bias| values(bias.val()));
    (values(conv.weight.val()), bias)
}

/// A convolution and a scale of its outputs, in one.
fn scaled((mut weight, mut bias): (Vec<f64>, Vec<f64>), scale: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let width = weight.len() / scale.len();
    for (row, scale) in weight.chunks_mut(width).zip(scale) {
        row.iter_mut().for_each(|weight| *weight *= scale);
    }
    bias.iter_mut().zip(scale).for_each(|(bias, scale)| *bias *= scale);
    (weight, bias)
}

/// A convolution and the ActNorm behind it.
fn normalized(conv: &Conv, norm: Option<&ActNorm>) -> (Vec<f64>, Vec<f64>) {
    let (weight, mut bias) = parts(conv);
    let Some(norm) = norm else { return (weight, bias) };
    bias.iter_mut().zip(values(norm.bias.val())).for_each(|(bias, shift)| *bias += shift);
    scaled((weight, bias), &values(norm.effective_log_scale().exp()))
}

impl Net for ZeroConv {
    fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let (weight, bias) = scaled(parts(&self.conv), &values(self.scale()));
        let padding = match self.padding() {
            Padding::Zeros => 0.0,
            Padding::Ones => 1.0,
        };
        Ok(graph.conv(x, &weight, &bias, padding))
    }
}

impl Net for GlowNet {
    fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let mut h = x.clone();
        for (conv, norm) in [(&self.conv1, &self.norm1), (&self.conv2, &self.norm2)] {
            let (weight, bias) = normalized(conv, norm.as_ref());
            h = graph.conv(&h, &weight, &bias, 0.0);
            h = if *self.negative_slope == 0.0 {
                graph.unary("Relu", &h)
            } else {
                let slope = Attribute::Float(*self.negative_slope);
                graph.unary_with("LeakyRelu", &h, &[("alpha", slope)])
            };
        }
        self.conv3.export(graph, &h)
    }
}

impl Net for ConvNet {
    fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let mut h = x.clone();
        for (at, layer) in self.layers.iter().enumerate() {
            if at > 0 {
                h = graph.unary("Relu", &h);
            }
            let (weight, bias) = parts(layer);
            h = graph.conv(&h, &weight, &bias, 0.0);
        }
        Ok(h)
    }
}

fn weight_normed(graph: &mut Graph, x: &Value, conv: &WeightNormConv) -> Value {
    let outputs = conv.direction.dims()[0];
    let bias = conv.bias.as_ref().map_or(vec![0.0; outputs], |bias| values(bias.val()));
    graph.conv(x, &values(conv.weight()), &bias, 0.0)
}

/// A batch normalization by its running moments.
fn batch_norm(graph: &mut Graph, x: &Value, norm: &NetBatchNorm) -> Value {
    let [scale, shift] = norm.affine().map(values);
    graph.affine(x, &scale, &shift)
}

impl Net for ResidualNet {
    fn export(&self, graph: &mut Graph, x: &Value) -> Result<Value> {
        let h = batch_norm(graph, x, &self.norm_in);
        let h = graph.with_number("Mul", &h, *self.input_gain);
        let negative = graph.unary("Neg", &h);
        let both = graph.join(&[h, negative]);
        let both = graph.unary("Relu", &both);
        let mut h = weight_normed(graph, &both, &self.conv_in);
        let mut sum = weight_normed(graph, &h, &self.skip_in);
        for (block, skip) in self.blocks.iter().zip(&self.skips) {
            let mut inner = h.clone();
            for (norm, conv) in [(&block.norm1, &block.conv1), (&block.norm2, &block.conv2)] {
                inner = batch_norm(graph, &inner, norm);
                inner = graph.unary("Relu", &inner);
                inner = weight_normed(graph, &inner, conv);
            }
            h = graph.binary("Add", &h, &inner);
            let skipped = weight_normed(graph, &h, skip);
            sum = graph.binary("Add", &sum, &skipped);
        }
        let h = batch_norm(graph, &sum, &self.norm_out);
        let h = graph.unary("Relu", &h);
        Ok(weight_normed(graph, &h, &self.conv_out))
    }
}
