//! The conditioner of a coupling: layers, their gradients, and the checks of their sizes.

use super::batch::for_blocks;
use super::masked::PackedMasked;
use super::workspace::{Lease, lease};
use super::{Ops, Scalar, Window};

/// One affine layer, `weight · input + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a, T> {
    /// Columns of the weight: input channels times the taps of the window in front of the layer.
    pub inputs: usize,
    /// Rows of the weight: output channels times the taps of the window behind it.
    pub outputs: usize,
    /// `[outputs, inputs]`, row-major; in front of a window `[outputs / taps, inputs, taps]`.
    pub weight: &'a [T],
    /// Whether `weight` is `[inputs, outputs]` instead; not in front of a window.
    pub transposed: bool,
    /// A factor for each of the first weights in memory, 0 for those that are left out; those behind it are
    /// used as they are. Products do not run over zeros at the ends of the weight's rows.
    pub mask: Option<&'a [T]>,
    /// A number for each output channel.
    pub bias: &'a [T],
}

/// A conditioner: affine layers with (leaky) ReLU between them, applied at each pixel.
///
/// With [`Window::Square3`] as `first`, input `channel * 9 + k` of the first layer is the neighbour
/// `k = 3 (dy + 1) + dx + 1` of the pixel: the order of a convolution's weight `[outputs, channels,
/// 3, 3]`, flattened. With `Square3` as `last`, output `channel * 9 + k` of the last layer is what tap
/// `k` of a 3x3 convolution adds to that channel; its weight is a convolution's as well. Its product
/// is then on the narrow side of the window, a ninth of the size of the hidden activations.
#[derive(Clone, Debug)]
pub struct Net<'a, T> {
    /// At least one layer; each as wide as the next one reads.
    pub layers: Vec<Layer<'a, T>>,
    /// What the first layer sees.
    pub first: Window,
    /// What the last layer's outputs are spread over.
    pub last: Window,
    /// Slope of the activation left of zero, in `[0, 1]`; 0 is ReLU.
    pub negative_slope: T,
}

/// Gradient of one layer, in the layouts of [`Layer`].
#[derive(Clone, Debug, PartialEq)]
pub struct LayerGradients<T> {
    /// As the layer's weight.
    pub weight: Vec<T>,
    /// A number for each output channel.
    pub bias: Vec<T>,
}

/// Gradients of a coupling's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients<T> {
    /// One entry a layer.
    pub layers: Vec<LayerGradients<T>>,
    /// Gradient of the gain of [`LogScale::Tanh`](super::LogScale::Tanh); empty for other maps.
    pub gain: Vec<T>,
}

impl<T: Scalar> Net<'_, T> {
    /// Channels the net reads.
    pub fn inputs(&self) -> usize {
        self.layers[0].inputs / self.first.taps()
    }

    /// Channels the net writes.
    pub fn outputs(&self) -> usize {
        self.layers[self.layers.len() - 1].outputs / self.last.taps()
    }

    /// Number of weights, which is the multiplications for one pixel.
    pub(super) fn weights(&self) -> usize {
        self.layers.iter().map(|layer| layer.weight.len()).sum()
    }

    /// Taps of the window behind a layer.
    pub(super) fn taps_behind(&self, index: usize) -> usize {
        if index + 1 == self.layers.len() { self.last.taps() } else { 1 }
    }

    /// # Panics
    /// If a size does not fit its neighbour.
    pub(super) fn validate(&self) {
        assert!(!self.layers.is_empty(), "Net: at least one layer is needed");
        let slope = self.negative_slope;
        assert!(
            slope >= T::ZERO && slope <= T::ONE,
            "Net: negative_slope must be in [0, 1], got {slope:?}"
        );
        for (index, layer) in self.layers.iter().enumerate() {
            let &Layer { inputs, outputs, weight, bias, .. } = layer;
            assert!(
                inputs > 0 && outputs > 0,
                "Net: layer {index} is empty, [{outputs}, {inputs}]"
            );
            assert_eq!(
                weight.len(),
                inputs * outputs,
                "Net: weight of layer {index} must be [{outputs}, {inputs}]"
            );
            assert!(
                layer.mask.is_none_or(|mask| layer.transposed && mask.len() <= weight.len()),
                "Net: the mask of layer {index} must be [up to {inputs}, {outputs}]"
            );
            let taps = self.taps_behind(index);
            assert!(
                taps == 1 || !layer.transposed,
                "Net: a convolution's weight has its own order"
            );
            assert_eq!(
                outputs % taps,
                0,
                "Net: the last layer's outputs must be 9 for each channel"
            );
            assert_eq!(
                bias.len(),
                outputs / taps,
                "Net: bias of layer {index} must have one number a channel"
            );
            if index == 0 {
                let taps = self.first.taps();
                assert_eq!(
                    inputs % taps,
                    0,
                    "Net: the first layer's inputs must be 9 for each channel"
                );
            } else {
                let before = self.layers[index - 1].outputs;
                assert_eq!(
                    inputs, before,
                    "Net: layer {index} reads {inputs} channels, but gets {before}"
                );
            }
        }
    }
}

impl<T: Scalar> Layer<'_, T> {
    /// The weight times the mask, if there is one.
    pub(super) fn masked_weight(&self) -> Option<Lease<T>> {
        let mask = self.mask?;
        let mut masked = lease(self.weight.len());
        masked.copy_from_slice(self.weight);
        masked.iter_mut().zip(mask).for_each(|(weight, factor)| *weight = *weight * *factor);
        Some(masked)
    }
}

/// A layer with its weights in the order the products read them.
pub(super) struct PackedLayer<T> {
    pub inputs: usize,
    /// Outputs, rounded up to whole granules.
    pub rows: usize,
    /// Inputs, rounded up to whole granules.
    pub back_rows: usize,
    /// Inputs, rounded up to whole vectors.
    pub columns: usize,
    pub weight: Lease<T>,
    /// The transposed weight, for the gradient by the input.
    pub back: Option<Lease<T>>,
    /// Of masked weights, the inputs that each block of `weight` sees, and the outputs that see each block of
    /// `back`; what is outside of them is not packed.
    pub steps: [Option<Vec<[usize; 2]>>; 2],
    pub bias: Lease<T>,
}

impl<T: Scalar> PackedLayer<T> {
    /// `taps`: those of the window behind the layer; `order`: the output that stands in each row.
    pub fn new(
        layer: &Layer<T>,
        order: Option<&[usize]>,
        taps: usize,
        ops: &Ops<T>,
        with_gradient: bool,
    ) -> Self {
        let &Layer { inputs, outputs, weight, transposed, bias, .. } = layer;
        let block = 3 * ops.granule;
        let [rows, back_rows] = [outputs, inputs].map(|size| size.next_multiple_of(ops.granule));
        let mut packed_bias = lease(rows);
        packed_bias.fill(T::ZERO);
        packed_bias[..bias.len()].copy_from_slice(bias);
        let columns = inputs.next_multiple_of(ops.lanes);
        if let Some(packed) = PackedMasked::new(layer, order, ops, with_gradient) {
            let PackedMasked { weight, back, inputs: seen, outputs: seen_by } = packed;
            let steps = [Some(seen), Some(seen_by)];
            return Self {
                inputs,
                rows,
                back_rows,
                columns,
                weight,
                back,
                steps,
                bias: packed_bias,
            };
        }
        let rows_of_taps = (taps > 1).then(|| rows_of_taps(weight, inputs, taps));
        let weight = rows_of_taps.as_deref().unwrap_or(weight);
        // The rows of what is in memory run over the other side if it is transposed.
        let (forward, back): (Pack<T>, Pack<T>) =
            if transposed { (pack_transposed, pack) } else { (pack, pack_transposed) };
        let wide = if transposed { outputs } else { inputs };
        Self {
            inputs,
            rows,
            back_rows,
            columns,
            weight: forward(weight, wide, rows, block),
            back: with_gradient.then(|| back(weight, wide, back_rows, block)),
            steps: [None, None],
            bias: packed_bias,
        }
    }

    /// Numbers in it.
    pub fn len(&self) -> usize {
        let Self { weight, back, bias, .. } = self;
        weight.len() + back.as_ref().map_or(0, |back| back.len()) + bias.len()
    }
}

/// `[channels, inputs, taps]` as `[channels, taps, inputs]`.
fn rows_of_taps<T: Scalar>(weight: &[T], inputs: usize, taps: usize) -> Lease<T> {
    let mut rows = lease(weight.len());
    for_blocks(&mut rows, inputs * taps, |channel, rows| {
        let from = &weight[channel * inputs * taps..];
        for (tap, row) in rows.chunks_exact_mut(inputs).enumerate() {
            row.iter_mut().zip(from[tap..].iter().step_by(taps)).for_each(|(to, from)| *to = *from);
        }
    });
    rows
}

/// [`pack`] or [`pack_transposed`].
type Pack<T> = fn(&[T], usize, usize, usize) -> Lease<T>;

/// Blocks of up to `block` rows of a `[_, columns]` matrix, each block `[columns, rows of the
/// block]`.
///
/// `rows` may be more than there are; the rest is zero.
fn pack<T: Scalar>(matrix: &[T], columns: usize, rows: usize, block: usize) -> Lease<T> {
    let mut packed = lease(rows * columns);
    for_blocks(&mut packed, columns * block, |index, part| {
        let there = &matrix[(index * block * columns).min(matrix.len())..];
        match part.len() / columns {
            2 => interleave::<T, 2>(there, columns, part),
            4 => interleave::<T, 4>(there, columns, part),
            6 => interleave::<T, 6>(there, columns, part),
            8 => interleave::<T, 8>(there, columns, part),
            12 => interleave::<T, 12>(there, columns, part),
            height => unreachable!("{height} rows in a block"),
        }
    });
    packed
}

/// Writes the first `N` rows of a matrix column by column; rows that are missing are zero.
fn interleave<T: Scalar, const N: usize>(matrix: &[T], columns: usize, to: &mut [T]) {
    let steps = to.as_chunks_mut::<N>().0;
    if matrix.len() < N * columns {
        steps.fill([T::ZERO; N]);
        for (i, row) in matrix.chunks_exact(columns).enumerate() {
            steps.iter_mut().zip(row).for_each(|(step, value)| step[i] = *value);
        }
        return;
    }
    let steps = &mut steps[..columns];
    let rows: [&[T]; N] = std::array::from_fn(|i| &matrix[i * columns..][..columns]);
    for column in 0..columns {
        steps[column] = std::array::from_fn(|i| rows[i][column]);
    }
}

/// [`pack`] of the transposed matrix, `rows` of which are at least the matrix's columns.
fn pack_transposed<T: Scalar>(matrix: &[T], columns: usize, rows: usize, block: usize) -> Lease<T> {
    let depth = matrix.len() / columns;
    let mut packed = lease(rows * depth);
    for_blocks(&mut packed, depth * block, |index, part| {
        Rows { matrix, columns, order: None, first: index * block }.pack(part.len() / depth, part);
    });
    packed
}

/// Columns of a matrix, in an order if there is one, from number `first` on: rows of the transposed matrix.
pub(super) struct Rows<'a, T> {
    pub matrix: &'a [T],
    pub columns: usize,
    pub order: Option<&'a [usize]>,
    pub first: usize,
}

impl<T: Scalar> Rows<'_, T> {
    /// Writes `height` of them side by side; those that are missing are zero.
    pub fn pack(&self, height: usize, to: &mut [T]) {
        match height {
            2 => self.pack_exactly::<2>(to),
            4 => self.pack_exactly::<4>(to),
            6 => self.pack_exactly::<6>(to),
            8 => self.pack_exactly::<8>(to),
            12 => self.pack_exactly::<12>(to),
            height => unreachable!("{height} rows in a block"),
        }
    }

    fn pack_exactly<const N: usize>(&self, to: &mut [T]) {
        let Self { matrix, columns, order, first } = *self;
        let there = first..(first + N).min(columns);
        let steps = to.as_chunks_mut::<N>().0;
        for (step, row) in steps.iter_mut().zip(matrix.chunks_exact(columns)) {
            match (order, row[first..].first_chunk()) {
                (None, Some(all)) => *step = *all,
                (None, None) => {
                    *step = [T::ZERO; N];
                    step.iter_mut().zip(&row[first..]).for_each(|(to, from)| *to = *from);
                }
                (Some(order), _) => {
                    *step = [T::ZERO; N];
                    let outputs = &order[there.clone()];
                    step.iter_mut().zip(outputs).for_each(|(to, output)| *to = row[*output]);
                }
            }
        }
    }
}
