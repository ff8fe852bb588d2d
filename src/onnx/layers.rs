//! Layers, in both directions.

use burn::module::Module;

use super::graph::{Graph, Value};
use super::{Net, unknown, values};
use crate::coupling::{
    Additive, Affine, AffineOrder, Coupling, LOG_SCALE_FLOOR, LOG_SCALE_LIMIT, Mask, Parity,
    SIGMOID_OFFSET, ScaleMap,
};
use crate::error::{FlowError, Result};
use crate::linalg::Lu;
use crate::linear::{DiagonalScaling, InvertibleConv1x1, Permutation, Shift};
use crate::models::{GlowCoupling, GlowMixing};
use crate::norm::{ActNorm, BatchNorm, LinearActNorm, Moments};
use crate::preprocess::{Logit, LogitForm};
use crate::reshape::Squeeze;

/// A flow that can be exported: the layers of Glow, RealNVP and NICE, and tuples, vectors and options of them.
pub trait Layer: Module {
    /// Adds the map of `x` to a graph, and its log-determinant.
    ///
    /// # Errors
    /// If a part of it has no counterpart.
    #[doc(hidden)]
    fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value>;

    /// Adds the inverse of `z` to a graph.
    ///
    /// # Errors
    /// If a part of it has no counterpart.
    #[doc(hidden)]
    fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value>;
}

impl<F: Layer> Layer for Vec<F> {
    fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
        self.iter().try_fold(x, |x, layer| layer.forward(graph, x))
    }

    fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
        self.iter().rev().try_fold(z, |z, layer| layer.inverse(graph, z))
    }
}

impl<F: Layer> Layer for Option<F> {
    fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
        self.iter().try_fold(x, |x, layer| layer.forward(graph, x))
    }

    fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
        self.iter().try_fold(z, |z, layer| layer.inverse(graph, z))
    }
}

macro_rules! tuples {
    ($(($($part:ident $place:tt),+; $($back:tt),+))+) => {
        $(
            impl<$($part: Layer),+> Layer for ($($part,)+) {
                fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
                    $(let x = self.$place.forward(graph, x)?;)+
                    Ok(x)
                }

                fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
                    $(let z = self.$back.inverse(graph, z)?;)+
                    Ok(z)
                }
            }
        )+
    };
}

tuples! {
    (A 0, B 1; 1, 0)
    (A 0, B 1, C 2; 2, 1, 0)
    (A 0, B 1, C 2, D 3; 3, 2, 1, 0)
}

/// `z = (x + shift) scale` by channels: both directions and the log-determinant.
fn affine_forward(graph: &mut Graph, x: &Value, shift: &[f64], scale: &[f64]) -> Value {
    let log_det: f64 = scale.iter().map(|scale| scale.abs().ln()).sum();
    graph.add_log_det(log_det * x.pixels() as f64);
    let shift: Vec<f64> = shift.iter().zip(scale).map(|(shift, scale)| shift * scale).collect();
    graph.affine(x, scale, &shift)
}

fn affine_inverse(graph: &mut Graph, z: &Value, shift: &[f64], scale: &[f64]) -> Value {
    let back: Vec<f64> = scale.iter().map(|scale| scale.recip()).collect();
    let shift: Vec<f64> = shift.iter().map(|shift| -shift).collect();
    graph.affine(z, &back, &shift)
}

/// Layers that are `z = (x + shift) scale` by channels, of which `numbers` gives the two.
macro_rules! by_channel {
    ($($layer:ty: $numbers:expr;)+) => {
        $(
            impl Layer for $layer {
                fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
                    let numbers: fn(&Self) -> [Vec<f64>; 2] = $numbers;
                    let [shift, scale] = numbers(self);
                    Ok(affine_forward(graph, &x, &shift, &scale))
                }

                fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
                    let numbers: fn(&Self) -> [Vec<f64>; 2] = $numbers;
                    let [shift, scale] = numbers(self);
                    Ok(affine_inverse(graph, &z, &shift, &scale))
                }
            }
        )+
    };
}

fn exp(log_scale: Vec<f64>) -> Vec<f64> {
    log_scale.into_iter().map(f64::exp).collect()
}

by_channel! {
    ActNorm: |norm| [values(norm.bias.val()), exp(values(norm.effective_log_scale()))];
    LinearActNorm: |norm| [values(norm.bias.val()), values(norm.scale.val())];
    BatchNorm: |norm| {
        let Moments { mean, variance } = norm.moments.current();
        let mut log_scale = values(norm.moments.log_scale(variance));
        let mut shift: Vec<f64> = values(mean).into_iter().map(|mean| -mean).collect();
        if let (Some(learned), Some(behind)) = (&norm.log_scale, &norm.shift) {
            for (own, learned) in log_scale.iter_mut().zip(values(learned.val())) {
                *own += learned;
            }
            for ((shift, log_scale), behind) in
                shift.iter_mut().zip(&log_scale).zip(values(behind.val()))
            {
                *shift += behind * (-log_scale).exp();
            }
        }
        [shift, exp(log_scale)]
    };
    DiagonalScaling: |scaling| {
        let scale = exp(values(scaling.log_scale.val()));
        [vec![0.0; scale.len()], scale]
    };
    Shift: |shift| {
        let shift = values(shift.shift.val());
        let scale = vec![1.0; shift.len()];
        [shift, scale]
    };
}

impl Layer for InvertibleConv1x1 {
    fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
        let (matrix, size) = (values(self.matrix()), x.channels());
        let lu = Lu::new(&matrix, size);
        graph.add_log_det(lu.slogdet().1 * x.pixels() as f64);
        Ok(across_channels(graph, &x, &matrix))
    }

    fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
        let size = z.channels();
        let lu = Lu::new(&values(self.matrix()), size);
        let (pivot, largest) = lu.pivot_range();
        let layer = "InvertibleConv1x1";
        let inverse = lu.inverse().ok_or(FlowError::Singular { layer, size, pivot, largest })?;
        Ok(across_channels(graph, &z, &inverse))
    }
}

/// `W x` at every pixel.
fn across_channels(graph: &mut Graph, x: &Value, matrix: &[f64]) -> Value {
    let size = x.channels();
    let bias = vec![0.0; size];
    if x.shape().len() > 1 {
        return graph.conv(x, matrix, &bias, 0.0);
    }
    let turned: Vec<f64> =
        (0..size * size).map(|at| matrix[at % size * size + at / size]).collect();
    graph.linear(x, &turned, &bias)
}

impl Layer for Permutation {
    fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
        let order: Vec<usize> =
            values(self.order.val()).into_iter().map(|at| at as usize).collect();
        Ok(graph.select(&x, &order))
    }

    fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
        let mut back = vec![0; z.channels()];
        for (to, from) in values(self.order.val()).into_iter().enumerate() {
            back[from as usize] = to;
        }
        Ok(graph.select(&z, &back))
    }
}

impl Layer for GlowMixing {
    fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
        match self {
            Self::Permutation(layer) => layer.forward(graph, x),
            Self::Conv1x1(layer) => layer.forward(graph, x),
        }
    }

    fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
        match self {
            Self::Permutation(layer) => layer.inverse(graph, z),
            Self::Conv1x1(layer) => layer.inverse(graph, z),
        }
    }
}

impl Layer for GlowCoupling {
    fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
        match self {
            Self::Additive(layer) => layer.forward(graph, x),
            Self::Affine(layer) => layer.forward(graph, x),
        }
    }

    fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
        match self {
            Self::Additive(layer) => layer.inverse(graph, z),
            Self::Affine(layer) => layer.inverse(graph, z),
        }
    }
}

impl Layer for Squeeze {
    fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
        let [c, h, w] = image(&x)?;
        let split = graph.reshape(&x, &[c, h / 2, 2, w / 2, 2]);
        let turned = graph.transpose(&split, &[0, 1, 3, 5, 2, 4]);
        Ok(graph.reshape(&turned, &[4 * c, h / 2, w / 2]))
    }

    fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
        let [c, h, w] = image(&z)?;
        let split = graph.reshape(&z, &[c / 4, 2, 2, h, w]);
        let turned = graph.transpose(&split, &[0, 1, 4, 2, 5, 3]);
        Ok(graph.reshape(&turned, &[c / 4, 2 * h, 2 * w]))
    }
}

fn image(x: &Value) -> Result<[usize; 3]> {
    x.shape().try_into().map_err(|_| unknown("a squeeze of what is no image"))
}

impl Layer for Logit {
    fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
        let (alpha, slope) = (self.alpha(), self.slope());
        // As in `Logit` itself, in f32.
        let rounding = f64::from(f32::EPSILON);
        let smallest = rounding / 2.0;
        let beyond = 4.0 * rounding / slope;
        let support = [-alpha / slope - beyond, (1.0 - alpha) / slope + beyond];
        let penalty = graph.penalty_outside(&x, support[0], support[1]);
        graph.add_log_slopes(&penalty);
        let held = graph.clip(&x, (smallest - alpha) / slope, (1.0 - smallest - alpha) / slope);
        let p = graph.with_number("Mul", &held, slope);
        let p = graph.with_number("Add", &p, alpha);
        let rest = match self.form() {
            LogitForm::Code => 1.0 - alpha - slope,
            LogitForm::Paper => 0.0,
        };
        // Without the cancellation in 1 - p.
        let beside = graph.unary("Neg", &held);
        let beside = graph.with_number("Add", &beside, 1.0);
        let q = graph.with_number("Mul", &beside, slope);
        let q = graph.with_number("Add", &q, rest);
        let [ln_p, ln_q] = [p, q].map(|part| {
            let part = graph.with_number("Max", &part, smallest);
            graph.unary("Log", &part)
        });
        let both = graph.binary("Add", &ln_p, &ln_q);
        let log_slopes = graph.unary("Neg", &both);
        graph.add_log_slopes(&log_slopes);
        let entries: usize = x.shape().iter().product();
        graph.add_log_det(entries as f64 * slope.ln());
        Ok(graph.binary("Sub", &ln_p, &ln_q))
    }

    fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
        let p = graph.unary("Sigmoid", &z);
        let x = graph.with_number("Sub", &p, self.alpha());
        Ok(graph.with_number("Mul", &x, self.slope().recip()))
    }
}

/// What a coupling keeps and what it changes.
struct Parts {
    kept: Value,
    changed: Value,
    mask: Mask,
    /// 1 on the squares of a checkerboard that are changed.
    board: Option<Vec<f64>>,
    channels: usize,
}

impl Parts {
    fn of(graph: &mut Graph, x: &Value, mask: Mask) -> Self {
        let channels = x.channels();
        let (first, parity) = match mask {
            Mask::ChannelHalves(parity) => (channels.div_ceil(2), parity),
            Mask::SplitAt(at, parity) => (at, parity),
            Mask::Alternating(parity) => {
                let places = |start: usize| (start..channels).step_by(2).collect::<Vec<_>>();
                let parts = [0, 1].map(|start| graph.select(x, &places(start)));
                return Self::ordered(parts, parity, mask, channels);
            }
            Mask::Checkerboard(parity) => return Self::on_board(graph, x, parity, mask),
        };
        let parts = [(0, first), (first, channels - first)];
        let parts = parts.map(|(start, length)| graph.narrow(x, start, length));
        Self::ordered(parts, parity, mask, channels)
    }

    fn ordered([first, second]: [Value; 2], parity: Parity, mask: Mask, channels: usize) -> Self {
        let (kept, changed) = match parity {
            Parity::Even => (first, second),
            Parity::Odd => (second, first),
        };
        Self { kept, changed, mask, board: None, channels }
    }

    fn on_board(graph: &mut Graph, x: &Value, parity: Parity, mask: Mask) -> Self {
        // Vectors have no rows and columns, so their features are the one side of the board.
        let sides = if x.shape().len() == 1 { x.shape() } else { &x.shape()[1..] };
        let count: usize = sides.iter().product();
        let is_kept = |at: usize| {
            let mut rest = at;
            let sum: usize = sides
                .iter()
                .rev()
                .map(|side| {
                    let place = rest % side;
                    rest /= side;
                    place
                })
                .sum();
            sum.is_multiple_of(2) == (parity == Parity::Even)
        };
        let board = |of_kept: bool| -> Vec<f64> {
            (0..count).map(|at| f64::from(u8::from(is_kept(at) == of_kept))).collect()
        };
        let (of_kept, of_changed) = (board(true), board(false));
        let dims = sides.to_vec();
        let kept = graph.with_constant("Mul", x, &of_kept, &dims);
        let changed = graph.with_constant("Mul", x, &of_changed, &dims);
        Self { kept, changed, mask, board: Some(of_changed), channels: x.channels() }
    }

    /// Sets to zero what does not belong to the changed part.
    fn keep_changed(&self, graph: &mut Graph, value: Value) -> Value {
        let Some(board) = &self.board else { return value };
        let shape = value.shape();
        let dims = if shape.len() == 1 { shape.to_vec() } else { shape[1..].to_vec() };
        graph.with_constant("Mul", &value, board, &dims)
    }

    fn merged(&self, graph: &mut Graph, changed: Value) -> Value {
        let kept = self.kept.clone();
        let ordered = |parity: Parity, kept: Value, changed: Value| match parity {
            Parity::Even => [kept, changed],
            Parity::Odd => [changed, kept],
        };
        match self.mask {
            Mask::ChannelHalves(parity) | Mask::SplitAt(_, parity) => {
                graph.join(&ordered(parity, kept, changed))
            }
            Mask::Alternating(parity) => {
                let joined = graph.join(&ordered(parity, kept, changed));
                let evens = self.channels.div_ceil(2);
                let place = |at: usize| at / 2 + if at.is_multiple_of(2) { 0 } else { evens };
                graph.select(&joined, &(0..self.channels).map(place).collect::<Vec<_>>())
            }
            Mask::Checkerboard(_) => graph.binary("Add", &kept, &changed),
        }
    }
}

impl<C: Net> Layer for Coupling<C, Additive>
where
    Self: Module,
{
    fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
        let parts = Parts::of(graph, &x, self.mask());
        let shift = self.conditioner.export(graph, &parts.kept)?;
        let changed = graph.binary("Add", &parts.changed, &shift);
        let changed = parts.keep_changed(graph, changed);
        Ok(parts.merged(graph, changed))
    }

    fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
        let parts = Parts::of(graph, &z, self.mask());
        let shift = self.conditioner.export(graph, &parts.kept)?;
        let changed = graph.binary("Sub", &parts.changed, &shift);
        let changed = parts.keep_changed(graph, changed);
        Ok(parts.merged(graph, changed))
    }
}

impl<C: Net> Layer for Coupling<C, Affine>
where
    Self: Module,
{
    fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
        let parts = Parts::of(graph, &x, self.mask());
        let (shift, log_scale) = numbers(self, graph, &parts)?;
        let scale = graph.unary("Exp", &log_scale);
        let changed = match self.transform.order() {
            AffineOrder::ScaleThenShift => {
                let scaled = graph.binary("Mul", &parts.changed, &scale);
                graph.binary("Add", &scaled, &shift)
            }
            AffineOrder::ShiftThenScale => {
                let shifted = graph.binary("Add", &parts.changed, &shift);
                graph.binary("Mul", &shifted, &scale)
            }
        };
        let log_scale = parts.keep_changed(graph, log_scale);
        graph.add_log_slopes(&log_scale);
        let changed = parts.keep_changed(graph, changed);
        Ok(parts.merged(graph, changed))
    }

    fn inverse(&self, graph: &mut Graph, z: Value) -> Result<Value> {
        let parts = Parts::of(graph, &z, self.mask());
        let (shift, log_scale) = numbers(self, graph, &parts)?;
        let negative = graph.unary("Neg", &log_scale);
        let inverse_scale = graph.unary("Exp", &negative);
        let changed = match self.transform.order() {
            AffineOrder::ScaleThenShift => {
                let shifted = graph.binary("Sub", &parts.changed, &shift);
                graph.binary("Mul", &shifted, &inverse_scale)
            }
            AffineOrder::ShiftThenScale => {
                let scaled = graph.binary("Mul", &parts.changed, &inverse_scale);
                graph.binary("Sub", &scaled, &shift)
            }
        };
        let changed = parts.keep_changed(graph, changed);
        Ok(parts.merged(graph, changed))
    }
}

/// Shift and log-scale that the net of an affine coupling gives.
fn numbers<C: Net>(
    coupling: &Coupling<C, Affine>,
    graph: &mut Graph,
    parts: &Parts,
) -> Result<(Value, Value)> {
    let numbers = coupling.conditioner.export(graph, &parts.kept)?;
    let channels = numbers.channels() / 2;
    let shift = graph.narrow(&numbers, 0, channels);
    let h = graph.narrow(&numbers, channels, channels);
    Ok((shift, log_scale(&coupling.transform, graph, h)))
}

fn log_scale(affine: &Affine, graph: &mut Graph, h: Value) -> Value {
    let log_scale = match affine.scale_map() {
        ScaleMap::Exp => h,
        ScaleMap::Sigmoid => ln_sigmoid(graph, &h),
        ScaleMap::InverseSigmoid => {
            let value = ln_sigmoid(graph, &h);
            graph.unary("Neg", &value)
        }
        ScaleMap::BoundedExp { bound } => {
            let value = graph.with_number("Mul", &h, bound.recip());
            let value = graph.unary("Tanh", &value);
            graph.with_number("Mul", &value, bound)
        }
        ScaleMap::SoftClip { bound } => {
            let size = graph.with_number("Mul", &h, bound.recip());
            let size = graph.unary("Abs", &size);
            let size = graph.with_number("Add", &size, 1.0);
            graph.binary("Div", &h, &size)
        }
        ScaleMap::FlooredSigmoid { floor } => {
            let value = graph.with_number("Add", &h, SIGMOID_OFFSET);
            let value = graph.unary("Sigmoid", &value);
            let value = graph.with_number("Add", &value, floor);
            graph.unary("Log", &value)
        }
        ScaleMap::FlooredSoftplus { floor } => {
            let value = graph.unary("Softplus", &h);
            let value = graph.with_number("Add", &value, floor);
            graph.unary("Log", &value)
        }
        ScaleMap::Tanh => {
            let gain = affine.gain.as_ref().map_or(Vec::new(), |gain| values(gain.val()));
            let value = graph.unary("Tanh", &h);
            graph.with_channels("Mul", &value, &gain)
        }
    };
    graph.clip(&log_scale, LOG_SCALE_FLOOR, LOG_SCALE_LIMIT)
}

/// `ln sigmoid(h + 2) = -ln(1 + exp(-(h + 2)))`.
fn ln_sigmoid(graph: &mut Graph, h: &Value) -> Value {
    let value = graph.with_number("Add", h, SIGMOID_OFFSET);
    let value = graph.unary("Neg", &value);
    let value = graph.unary("Softplus", &value);
    graph.unary("Neg", &value)
}
