//! The inverse of an autoregressive layer: what each newly known feature unlocks is computed once.

use super::batch::{Chunks, Shape};
use super::log_scale::{MapRow, Task};
use super::product::{Finish, Product};
use super::spline::SplineRow;
use super::workspace::{Lease, lease_zeros};
use super::{Coupling, Layer, Map, Ops, Scalar};

/// Samples in a tile, whose activations stay in the L2 cache.
const TILE: usize = 256;

/// An autoregressive layer, with the order in which its features are known.
#[derive(Clone, Copy, Debug)]
pub struct Autoregressive<'a, T> {
    /// The layer; its net's weights are `[inputs, outputs]`.
    pub layer: &'a Coupling<'a, T>,
    /// The step at which each feature is known, from 0 on.
    pub order: &'a [usize],
    /// The degree of each unit of each hidden layer, in ascending order: one of degree `k` sees the
    /// features of the steps before `k`.
    pub degrees: &'a [Vec<usize>],
}

/// Rows of a layer that are computed in one step, from the first `depth` of its inputs.
struct Part<T> {
    first: usize,
    /// Rounded up to whole granules.
    rows: usize,
    depth: usize,
    weight: Vec<T>,
    bias: Vec<T>,
}

/// What becomes known in one step.
struct Step<T> {
    hidden: Vec<Part<T>>,
    features: Vec<usize>,
    /// The numbers of the features, one kind after the other.
    outputs: Part<T>,
}

/// The layer made ready for its inverse.
struct Steps<'a, T: 'static> {
    layer: &'a Coupling<'a, T>,
    ops: &'static Ops<T>,
    steps: Vec<Step<T>>,
    /// Where each feature stands among the inputs: behind the context, in the order of the steps.
    places: Vec<usize>,
    /// Distances between the panels of the inputs of each layer and of the last one's outputs.
    strides: Vec<usize>,
}

impl<T: Scalar> Autoregressive<'_, T> {
    /// Latent to data.
    ///
    /// # Panics
    /// If sizes do not fit together.
    pub fn inverse(&self, z: &[T], shape: Shape) -> Vec<T> {
        self.layer.validate(shape);
        self.validate(shape);
        shape.check("Autoregressive: z", z.len());
        let mut x = vec![T::ZERO; z.len()];
        let steps = self.steps(T::ops());
        let chunks = Chunks::new(shape, self.layer.net.weights());
        let tasks = (chunks.split(z, shape.channels).into_iter())
            .zip(chunks.split(self.layer.context, self.layer.context_width))
            .zip(chunks.split_mut(&mut x, shape.channels));
        chunks.run(tasks.collect(), |((z, context), x)| steps.invert(z, context, x));
        x
    }

    fn validate(&self, shape: Shape) {
        let layers = &self.layer.net.layers;
        assert!(
            self.layer.is_autoregressive() && shape.pixels() == 1,
            "Autoregressive: the layer must map all features of vectors"
        );
        assert_eq!(self.order.len(), shape.channels, "Autoregressive: a step for each feature");
        assert_eq!(self.degrees.len() + 1, layers.len(), "Autoregressive: degrees of each layer");
        assert!(layers.iter().all(|layer| layer.transposed), "Autoregressive: weights transposed");
        for (layer, degrees) in layers.iter().zip(self.degrees) {
            assert_eq!(layer.outputs, degrees.len(), "Autoregressive: a degree for each unit");
        }
    }

    fn steps(&self, ops: &'static Ops<T>) -> Steps<'_, T> {
        let (features, width) = (self.order.len(), self.layer.context_width);
        let mut sorted: Vec<_> = (0..features).collect();
        sorted.sort_by_key(|&feature| self.order[feature]);
        // Rows of the first weight in the order in which the inputs come to be known.
        let inputs: Vec<_> = (features..features + width).chain(sorted.iter().copied()).collect();
        let mut places = vec![0; features];
        for (place, &feature) in sorted.iter().enumerate() {
            places[feature] = width + place;
        }
        let layers = &self.layer.net.layers;
        let last = layers.len() - 1;
        let kinds = layers[last].outputs / features;
        let masked: Vec<_> = layers.iter().map(Layer::masked_weight).collect();
        let part = |layer: usize, first: usize, outputs: &[usize], depth: usize| {
            let from = &layers[layer];
            let weights = masked[layer].as_deref().unwrap_or(from.weight);
            let rows = outputs.len().next_multiple_of(ops.granule);
            let mut weight = vec![T::ZERO; rows * depth];
            let block = 3 * ops.granule;
            for (index, outputs) in outputs.chunks(block).enumerate() {
                let there = &mut weight[index * block * depth..];
                let height = (rows - index * block).min(block);
                for (step, to) in there.chunks_exact_mut(height).take(depth).enumerate() {
                    let input = if layer == 0 { inputs[step] } else { step };
                    let row = &weights[input * from.outputs..][..from.outputs];
                    to.iter_mut().zip(outputs).for_each(|(to, &output)| *to = row[output]);
                }
            }
            let mut bias = vec![T::ZERO; rows];
            bias.iter_mut().zip(outputs).for_each(|(to, &output)| *to = from.bias[output]);
            Part { first, rows, depth, weight, bias }
        };
        let count = self.order.iter().max().map_or(0, |last| last + 1);
        let steps = (0..count).map(|step| {
            let known = width + self.order.iter().filter(|&&at| at < step).count();
            let seen = |layer: usize| match layer {
                0 => known,
                _ => self.degrees[layer - 1].partition_point(|&degree| degree <= step),
            };
            let hidden = self.degrees.iter().enumerate().map(|(layer, degrees)| {
                let first = degrees.partition_point(|&degree| degree < step);
                let units: Vec<_> =
                    (first..degrees.partition_point(|&degree| degree <= step)).collect();
                part(layer, first, &units, seen(layer))
            });
            let of_step = sorted.iter().copied().filter(|&feature| self.order[feature] == step);
            let of_step: Vec<_> = of_step.collect();
            let numbers: Vec<_> = (0..kinds)
                .flat_map(|kind| of_step.iter().map(move |&feature| kind * features + feature))
                .collect();
            let outputs = part(last, 0, &numbers, seen(last));
            Step { hidden: hidden.collect(), features: of_step, outputs }
        });
        let steps: Vec<_> = steps.collect();
        let widest = steps.iter().map(|step| step.outputs.rows).max().unwrap_or(0);
        let hidden = self.degrees.iter().map(|degrees| degrees.len() + ops.granule);
        let widths = [features + width].into_iter().chain(hidden).chain([widest]);
        let strides = widths.map(|width| (width + 1) * ops.panel).collect();
        Steps { layer: self.layer, ops, steps, places, strides }
    }
}

impl<T: Scalar> Steps<'_, T> {
    /// The samples of one thread.
    fn invert(&self, z: &[T], context: &[T], x: &mut [T]) {
        let (features, width, panel) =
            (self.places.len(), self.layer.context_width, self.ops.panel);
        let samples = z.len() / features;
        let tile = samples.min(TILE);
        let most = tile.div_ceil(panel);
        let mut buffers: Vec<Lease<T>> =
            self.strides.iter().map(|stride| lease_zeros(most * stride)).collect();
        let stride = self.strides[0];
        let at = |sample: usize, row: usize| sample / panel * stride + row * panel + sample % panel;
        for first in (0..samples).step_by(tile.max(1)) {
            let count = tile.min(samples - first);
            let input = &mut buffers[0];
            for sample in 0..count {
                let row = &context[(first + sample) * width..][..width];
                for (index, value) in row.iter().enumerate() {
                    input[at(sample, index)] = *value;
                }
                let row = &z[(first + sample) * features..][..features];
                for (value, &place) in row.iter().zip(&self.places) {
                    input[at(sample, place)] = *value;
                }
            }
            let panels = count.div_ceil(panel);
            for step in &self.steps {
                self.take(step, &mut buffers, panels);
            }
            for (sample, row) in
                x[first * features..][..count * features].chunks_exact_mut(features).enumerate()
            {
                for (value, &place) in row.iter_mut().zip(&self.places) {
                    *value = buffers[0][at(sample, place)];
                }
            }
        }
    }

    /// One step on a tile: the hidden units it unlocks, its features' numbers, and the features.
    fn take(&self, step: &Step<T>, buffers: &mut [Lease<T>], panels: usize) {
        let last = self.strides.len() - 2;
        for (layer, part) in step.hidden.iter().enumerate() {
            let finish = Finish::Relu(self.layer.net.negative_slope);
            self.multiply(part, layer, finish, buffers, panels);
        }
        self.multiply(&step.outputs, last, Finish::Linear, buffers, panels);
        let (inputs, outputs) = buffers.split_at_mut(last + 1);
        let (values, numbers) = (&mut inputs[0], &mut outputs[0]);
        let (panel, together) = (self.ops.panel, step.features.len());
        for index in 0..panels {
            for (place, &feature) in step.features.iter().enumerate() {
                let at = index * self.strides[0] + self.places[feature] * panel;
                let value = &mut values[at..at + panel];
                let end = (index + 1) * self.strides[last + 1];
                let params = &mut numbers[index * self.strides[last + 1] + place * panel..end];
                let task = Task::Inverse;
                if let Map::Spline(spline) = self.layer.map {
                    let stride = together * panel;
                    let mut row = SplineRow { spline, value, params, stride, task };
                    // SAFETY: `ops` is this processor's table.
                    unsafe { (self.ops.spline_row)(&mut row) };
                    continue;
                }
                let middle = match self.layer.map {
                    Map::Additive => panel,
                    _ => together * panel,
                };
                let (shift, rest) = params.split_at_mut(middle);
                let shift = &mut shift[..panel];
                let raw = match self.layer.map {
                    Map::Additive => &mut rest[..0],
                    _ => &mut rest[..panel],
                };
                let mut row =
                    MapRow { map: self.layer.map, channel: feature, value, shift, raw, task };
                // SAFETY: `ops` is this processor's table.
                unsafe { (self.ops.map_row)(&mut row) };
            }
        }
    }

    /// Some rows of a layer on a tile.
    fn multiply(
        &self,
        part: &Part<T>,
        layer: usize,
        finish: Finish<T>,
        buffers: &mut [Lease<T>],
        panels: usize,
    ) {
        let (before, after) = buffers.split_at_mut(layer + 1);
        let (input, output) = (&before[layer], &mut after[0]);
        let (b_stride, c_stride) = (self.strides[layer], self.strides[layer + 1]);
        let panel = self.ops.panel;
        assert!(part.weight.len() >= part.rows * part.depth && part.bias.len() >= part.rows);
        assert!(input.len() >= panels * b_stride && b_stride >= part.depth * panel);
        assert!(output.len() >= panels * c_stride && c_stride >= (part.first + part.rows) * panel);
        let product = Product {
            a: part.weight.as_ptr(),
            rows: part.rows,
            depth: part.depth,
            steps: std::ptr::null(),
            b: input.as_ptr(),
            b_stride,
            c: output[part.first * panel..].as_mut_ptr(),
            c_stride,
            panels,
            bias: part.bias.as_ptr(),
            finish,
        };
        // SAFETY: the operands have the sizes that the product touches, checked above; `ops` is this
        // processor's table.
        unsafe { (self.ops.product)(&product) };
    }
}
