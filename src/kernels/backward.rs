//! The backward pass of a conditioner over a block of pictures.

use super::Scalar;
use super::batch::for_blocks;
use super::conditioner::{Buffers, Conditioner};
use super::net::{Gradients, Layer, LayerGradients, PackedLayer};
use super::product::{Finish, Product, WeightGradient};
use super::window::Planes;
use super::workspace::{Lease, lease, lease_zeros};

/// Sums of one thread's parameter gradients.
pub(super) struct PartialGradients<T> {
    /// `[rows, columns]` a layer; of one whose weight is `[inputs, outputs]` in memory, `[back_rows, outputs]` in
    /// whole vectors.
    weights: Vec<Lease<T>>,
    /// Whether `weights` holds anything yet: the first tile replaces what is there, which is
    /// cheaper than zeros and a sum.
    is_started: bool,
    /// `[rows, lanes]` a layer; for the last one a number an output channel.
    biases: Vec<Lease<T>>,
}

impl<T: Scalar> Conditioner<'_, T> {
    pub fn partial_gradients(&self) -> PartialGradients<T> {
        let size = |(packed, layer): (&PackedLayer<T>, &Layer<T>)| match layer.transposed {
            true => packed.back_rows * layer.outputs.next_multiple_of(self.ops.lanes),
            false => packed.rows * packed.columns,
        };
        let hidden = &self.layers[..self.layers.len() - 1];
        let hidden = hidden.iter().map(|layer| layer.rows * self.ops.lanes);
        PartialGradients {
            weights: self.layers.iter().zip(&self.net.layers).map(size).map(lease).collect(),
            is_started: false,
            biases: hidden.chain([self.net.outputs()]).map(lease_zeros).collect(),
        }
    }

    /// Gradients of the block that [`forward`](Self::forward) or [`hidden`](Self::hidden) has just
    /// been through.
    ///
    /// `dparams` must be zero after the last picture; the gradient by `identity` is added to
    /// `didentity`.
    pub fn backward(
        &self,
        buffers: &mut Buffers<T>,
        identity: &Planes<T>,
        dparams: &Planes<T>,
        didentity: &mut Planes<T>,
        sums: &mut PartialGradients<T>,
        pictures: usize,
    ) {
        let count = pictures * self.geometry.pixels();
        let last = self.layers.len() - 1;
        for (channel, sum) in sums.biases[last].iter_mut().enumerate() {
            *sum += self.ops.total(dparams.row(channel, count));
        }
        let (out_stride, in_stride) = (self.stride(last + 1), self.stride(0));
        for (first, panels) in self.tiles(pictures) {
            if !self.keep {
                self.hidden_tile(buffers, identity, first, panels);
            }
            let output = &mut buffers.output[..panels * out_stride];
            self.last.gather(dparams, first, output, out_stride);
            self.backward_tile(buffers, sums, first, panels);
            let input = &buffers.delta[0][..panels * in_stride];
            self.first.scatter(input, in_stride, first, didentity);
        }
    }

    /// From the gradient of the tile's output in `buffers.output` to that of its input in
    /// `buffers.delta[0]`.
    fn backward_tile(
        &self,
        buffers: &mut Buffers<T>,
        sums: &mut PartialGradients<T>,
        first: usize,
        panels: usize,
    ) {
        let Buffers { inputs, output, delta: [next, current], transposed } = buffers;
        let last = self.layers.len() - 1;
        // Rows that round the outputs up to granules hold what the window left there.
        let outputs = self.net.layers[last].outputs * self.ops.panel;
        for panel in output.chunks_exact_mut(self.stride(last + 1)) {
            panel[outputs..self.layers[last].rows * self.ops.panel].fill(T::ZERO);
        }
        for index in (0..=last).rev() {
            let d = if index == last { &output[..] } else { &current[..] };
            let input = &inputs[index][self.kept_at(index, first)..];
            self.weight_gradient(index, d, input, transposed, sums, panels);
            if index < last {
                let (stride, rows) = (self.stride(index + 1), self.layers[index].rows);
                let bias = &mut sums.biases[index];
                assert!(d.len() >= panels * stride && bias.len() >= rows * self.ops.lanes);
                // SAFETY: `d` holds `panels` panels and `bias` a vector a row, checked above; `ops`
                // is this processor's table.
                unsafe { (self.ops.sum_rows)(d.as_ptr(), stride, rows, panels, bias.as_mut_ptr()) };
            }
            self.input_gradient(index, d, input, next, panels);
            if index > 0 {
                std::mem::swap(next, current);
            }
        }
        sums.is_started = true;
    }

    /// Adds the gradient of a layer's weight on one tile, from that of its output, `d`.
    fn weight_gradient(
        &self,
        index: usize,
        d: &[T],
        input: &[T],
        transposed: &mut [T],
        sums: &mut PartialGradients<T>,
        panels: usize,
    ) {
        let replace = !sums.is_started;
        let sums = &mut sums.weights[index];
        let PackedLayer { rows, back_rows, columns, ref steps, .. } = self.layers[index];
        let Layer { outputs, transposed: is_transposed, .. } = self.net.layers[index];
        let (stride, d_stride) = (self.stride(index), self.stride(index + 1));
        let panel = self.ops.panel;
        // The result is summed up in the order of the weight in memory: over input and gradient alike, one of
        // them transposed.
        let ((across, across_stride), (down, down_stride), [rows, columns], steps) =
            match is_transposed {
                true => {
                    let columns = outputs.next_multiple_of(self.ops.lanes);
                    ((d, d_stride), (input, stride), [back_rows, columns], &steps[1])
                }
                false => ((input, stride), (d, d_stride), [rows, columns], &steps[0]),
            };
        assert!(across.len() >= panels * across_stride && across_stride >= columns * panel);
        assert!(down.len() >= panels * down_stride && down_stride >= rows * panel);
        assert!(transposed.len() >= columns.next_multiple_of(panel) * panels * panel);
        assert!(sums.len() >= rows * columns);
        let product = WeightGradient {
            d: down.as_ptr(),
            d_stride: down_stride,
            rows,
            input: transposed.as_ptr(),
            columns,
            panels,
            steps: steps.as_ref().map_or(std::ptr::null(), |steps| steps.as_ptr()),
            out: sums.as_mut_ptr(),
            replace,
        };
        // SAFETY: the operands have the sizes that the routines touch, checked above; `ops` is this
        // processor's table.
        unsafe {
            let to = transposed.as_mut_ptr();
            (self.ops.transpose)(across.as_ptr(), across_stride, columns, panels, to);
            (self.ops.weight_gradient)(&product);
        }
    }

    /// Gradient of a layer's input on one tile, through the activation in front of the layer.
    fn input_gradient(&self, index: usize, d: &[T], input: &[T], to: &mut [T], panels: usize) {
        let PackedLayer { back_rows, ref back, ref steps, .. } = self.layers[index];
        let back = back.as_ref().expect("packed for a backward pass");
        let depth = self.net.layers[index].outputs;
        let (stride, d_stride) = (self.stride(index), self.stride(index + 1));
        let panel = self.ops.panel;
        assert!(back.len() >= back_rows * depth);
        assert!(d.len() >= panels * d_stride && d_stride >= depth * panel);
        assert!(input.len() >= panels * stride && to.len() >= panels * stride);
        assert!(stride >= back_rows * panel);
        let product = Product {
            a: back.as_ptr(),
            rows: back_rows,
            depth,
            steps: steps[1].as_ref().map_or(std::ptr::null(), |steps| steps.as_ptr()),
            b: d.as_ptr(),
            b_stride: d_stride,
            c: to.as_mut_ptr(),
            c_stride: stride,
            panels,
            bias: std::ptr::null(),
            finish: match index {
                0 => Finish::Linear,
                _ => Finish::ReluSlope(input.as_ptr(), self.net.negative_slope),
            },
        };
        // SAFETY: the operands have the sizes that the product touches, checked above, and `input`
        // has the layout of the result; `ops` is this processor's table.
        unsafe { (self.ops.product)(&product) };
    }

    /// Adds the threads' sums in their order and drops the padding.
    pub fn finish(&self, parts: &[PartialGradients<T>]) -> Gradients<T> {
        let last = self.layers.len() - 1;
        let layer = |(index, layer): (usize, &Layer<T>)| {
            let &Layer { inputs, outputs, transposed, mask, bias, .. } = layer;
            let output_of = |row| if index == last { self.output_of(row) } else { row };
            let (columns, taps) = (self.layers[index].columns, self.net.taps_behind(index));
            let mut weight = vec![T::ZERO; outputs * inputs];
            let mut bias = vec![T::ZERO; bias.len()];
            let started = || parts.iter().filter(|part| part.is_started);
            if transposed {
                let width = outputs.next_multiple_of(self.ops.lanes);
                let order = self.order.filter(|_| index == last);
                for_blocks(&mut weight, outputs, |input, to| {
                    for part in started() {
                        let row = &part.weights[index][input * width..][..outputs];
                        match order {
                            None => to.iter_mut().zip(row).for_each(|(to, from)| *to += *from),
                            Some(order) => {
                                order.iter().zip(row).for_each(|(&at, from)| to[at] += *from);
                            }
                        }
                    }
                });
            } else {
                let sums = || started().map(|part| &part.weights[index][..outputs * columns]);
                for_blocks(&mut weight, inputs * taps, |channel, to| {
                    for sum in sums() {
                        let rows = sum[channel * taps * columns..].chunks_exact(columns);
                        for (tap, row) in rows.take(taps).enumerate() {
                            let to = to[tap..].iter_mut().step_by(taps);
                            to.zip(&row[..inputs]).for_each(|(to, from)| *to += *from);
                        }
                    }
                });
            }
            if let Some(mask) = mask {
                for (weight, &factor) in weight.iter_mut().zip(mask) {
                    // A masked one may never have been computed.
                    *weight = if factor == T::ZERO { T::ZERO } else { *weight * factor };
                }
            }
            for part in parts {
                let lanes = if index == last { 1 } else { self.ops.lanes };
                for (row, sums) in part.biases[index].chunks_exact(lanes).enumerate() {
                    // Rows that fill the last granule up are no outputs.
                    if row < bias.len() {
                        bias[output_of(row)] += self.ops.total(sums);
                    }
                }
            }
            LayerGradients { weight, bias }
        };
        let layers = self.net.layers.iter().enumerate().map(layer).collect();
        Gradients { layers, gain: Vec::new() }
    }
}
