//! Masked layers: what each output sees, and weights packed without the zeros around it.

use super::net::Rows;
use super::workspace::{Lease, lease, lease_zeros};
use super::{Layer, Ops, Scalar};

/// Where the numbers of each channel stand among a net's outputs when those that see the same inputs stand
/// together, so that products skip most of what a mask leaves out.
pub(super) struct Places {
    /// The output that stands in each row.
    pub order: Vec<usize>,
    /// For each channel the row of its first number, and the distance to the next one.
    pub rows: Vec<[usize; 2]>,
}

impl Places {
    /// Of the outputs of a masked layer, one kind of number after the other for so many channels: channels
    /// in the order of the last input that they see. `None` where they are in that order, or their numbers
    /// see different inputs.
    pub fn new<T: Scalar>(layer: &Layer<T>, channels: usize) -> Option<Self> {
        let Seen { ends, .. } = Seen::new(layer, T::ops())?;
        let kinds = ends.len() / channels;
        let of_channels = &ends[..channels];
        if kinds < 2 && of_channels.is_sorted()
            || !ends.chunks(channels).all(|ends| ends == of_channels)
        {
            return None;
        }
        let mut sorted: Vec<usize> = (0..channels).collect();
        sorted.sort_by_key(|&channel| of_channels[channel]);
        let (mut order, mut rows) = (Vec::with_capacity(ends.len()), vec![[0; 2]; channels]);
        for alike in sorted.chunk_by(|&a, &b| of_channels[a] == of_channels[b]) {
            for (place, &channel) in alike.iter().enumerate() {
                rows[channel] = [order.len() + place, alike.len()];
            }
            let of_kind = |kind| alike.iter().map(move |&channel| kind * channels + channel);
            order.extend((0..kinds).flat_map(of_kind));
        }
        Some(Self { order, rows })
    }
}

/// The first input that the mask lets each output see, and the one behind the last.
struct Seen {
    starts: Vec<usize>,
    ends: Vec<usize>,
}

impl Seen {
    fn new<T: Scalar>(layer: &Layer<T>, ops: &Ops<T>) -> Option<Self> {
        let mask = layer.mask?;
        let count = layer.outputs;
        let (mut starts, mut ends) = (lease(count), lease_zeros(count));
        starts.fill(T::from_f64(layer.inputs as f64));
        // SAFETY: `ops` is this processor's table.
        unsafe { (ops.seen)(mask, &mut starts, &mut ends) };
        let whole = |numbers: &[T]| numbers.iter().map(|number| number.to_f64() as usize).collect();
        let (mut starts, mut ends): (Vec<usize>, Vec<usize>) = (whole(&starts), whole(&ends));
        let masked = mask.len() / count;
        if masked < layer.inputs {
            starts.iter_mut().for_each(|start| *start = (*start).min(masked));
            ends.fill(layer.inputs);
        }
        Some(Self { starts, ends })
    }
}

/// Of a mask `[inputs, outputs]`, the number of the first input that each output sees, where it is less than
/// what is in `starts`, and of the one behind the last, where there is one.
///
/// In the type of the mask: numbers of one width are compared and chosen by vectors.
#[inline(always)]
pub(super) fn seen<T: Scalar>(mask: &[T], starts: &mut [T], ends: &mut [T]) {
    let mut input = T::ZERO;
    for row in mask.chunks_exact(ends.len()) {
        let next = input + T::ONE;
        for ((start, end), &factor) in starts.iter_mut().zip(ends.iter_mut()).zip(row) {
            let is_seen = factor != T::ZERO;
            *start = if is_seen & (input < *start) { input } else { *start };
            *end = if is_seen { next } else { *end };
        }
        input = next;
    }
}

/// The weights of a masked layer in the order the products read them.
pub(super) struct PackedMasked<T> {
    pub weight: Lease<T>,
    /// The transposed weight.
    pub back: Option<Lease<T>>,
    /// For each block of outputs, from the first to behind the last input that any of them sees.
    pub inputs: Vec<[usize; 2]>,
    /// For each block of inputs, from the first to behind the last output that sees any of them.
    pub outputs: Vec<[usize; 2]>,
}

impl<T: Scalar> PackedMasked<T> {
    /// Of a masked layer, whose outputs stand in `order`, in blocks of so many rows; `None` of one without a
    /// mask. What is outside of `inputs` and `outputs` is not written.
    pub fn new(
        layer: &Layer<T>,
        order: Option<&[usize]>,
        ops: &Ops<T>,
        with_gradient: bool,
    ) -> Option<Self> {
        let Seen { starts, ends } = Seen::new(layer, ops)?;
        let block = 3 * ops.granule;
        let [rows, back_rows] =
            [layer.outputs, layer.inputs].map(|size| size.next_multiple_of(ops.granule));
        let weights = layer.masked_weight()?;
        let count = layer.outputs;
        let at = |row: usize| order.map_or(row, |order| order[row]);
        let inputs: Vec<_> = (0..count)
            .step_by(block)
            .map(|first| {
                let rows = || (first..(first + block).min(count)).map(at);
                let start = rows().map(|row| starts[row]).min().unwrap_or(0);
                let end = rows().map(|row| ends[row]).max().unwrap_or(0);
                [start.min(end), end]
            })
            .collect();
        let mut weight = lease(rows * layer.inputs);
        let blocks = weight.chunks_mut(block * layer.inputs).zip(&inputs).enumerate();
        for (index, (to, &[start, end])) in blocks {
            let (first, height) = (index * block, to.len() / layer.inputs);
            let matrix = &weights[start * count..end * count];
            let rows = Rows { matrix, columns: count, order, first };
            rows.pack(height, &mut to[start * height..end * height]);
        }
        if !with_gradient {
            return Some(Self { weight, back: None, inputs, outputs: Vec::new() });
        }
        // The first output to see each input, and the one behind the last.
        let mut seen_by = vec![[count, 0]; layer.inputs];
        for row in 0..count {
            let output = at(row);
            let span = starts[output].min(ends[output])..ends[output];
            for [start, end] in &mut seen_by[span] {
                (*start, *end) = ((*start).min(row), row + 1);
            }
        }
        let outputs: Vec<_> = seen_by
            .chunks(block)
            .map(|inputs| {
                let start = inputs.iter().map(|[start, _]| *start).min().unwrap_or(0);
                let end = inputs.iter().map(|[_, end]| *end).max().unwrap_or(0);
                [start.min(end), end]
            })
            .collect();
        let mut back = lease(back_rows * count);
        let blocks = back.chunks_mut(block * count).zip(&outputs).enumerate();
        for (index, (to, &[start, end])) in blocks {
            let (first, height) = (index * block, to.len() / count);
            let there = &weights[first * count..];
            let steps = to.chunks_exact_mut(height).enumerate().take(end).skip(start);
            for (row, to) in steps {
                let column = there[at(row)..].iter().step_by(count);
                to.fill(T::ZERO);
                to.iter_mut().zip(column).for_each(|(to, from)| *to = *from);
            }
        }
        Some(Self { weight, back: Some(back), inputs, outputs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four inputs, of which three channels see 3, 1 and 3, with two numbers each.
    const SEEN: [usize; 3] = [3, 1, 3];

    fn mask() -> Vec<f64> {
        let row = |input| SEEN.repeat(2).into_iter().map(move |seen| f64::from(input < seen));
        (0..4).flat_map(row).collect()
    }

    fn layer<'a>(weight: &'a [f64], mask: &'a [f64]) -> Layer<'a, f64> {
        let bias = &weight[..6];
        Layer { inputs: 4, outputs: 6, weight, transposed: true, mask: Some(mask), bias }
    }

    #[test]
    fn channels_that_see_the_same_inputs_stand_together() {
        let (mask, weight) = (mask(), [1.0; 24]);
        let places = Places::new(&layer(&weight, &mask), 3).expect("they are not in order");
        assert_eq!(places.order, [1, 4, 0, 2, 3, 5]);
        assert_eq!(places.rows, [[2, 2], [0, 1], [3, 2]]);
        let mut uneven = mask.clone();
        uneven[2 * 6 + 3] = 0.0;
        assert!(
            Places::new(&layer(&weight, &uneven), 3).is_none(),
            "of a channel that sees two things"
        );
        let none = Layer { mask: None, ..layer(&weight, &mask) };
        assert!(Places::new(&none, 3).is_none(), "without a mask");
    }

    #[test]
    fn what_nobody_sees_is_not_packed() {
        let (mask, weight) = (mask(), std::array::from_fn::<f64, 24, _>(|at| at as f64 + 1.0));
        let layer = layer(&weight, &mask);
        let places = Places::new(&layer, 3).expect("they are not in order");
        for ops in super::super::dispatch::all_f64() {
            let order = Some(&places.order[..]);
            let packed = PackedMasked::new(&layer, order, ops, true).expect("there is a mask");
            let block = 3 * ops.granule;
            // Rows 0 and 1 see an input, those behind them three.
            let ends: Vec<usize> =
                (0..6).step_by(block).map(|first| if first + block <= 2 { 1 } else { 3 }).collect();
            let inputs: Vec<[usize; 2]> = ends.iter().map(|&end| [0, end]).collect();
            assert_eq!(packed.inputs, inputs);
            let rows = 6usize.next_multiple_of(ops.granule);
            for (row, &output) in places.order.iter().enumerate() {
                let (index, height) = (row / block, block.min(rows - row / block * block));
                for input in 0..packed.inputs[index][1] {
                    let at = index * block * 4 + input * height + row % block;
                    let expected = weight[input * 6 + output] * mask[input * 6 + output];
                    assert_eq!(packed.weight[at], expected, "row {row}, input {input}");
                }
            }
            let back = packed.back.expect("it was asked for");
            // The fourth input is seen by no output.
            assert_eq!(packed.outputs[0][1], 6);
            let back_rows = 4usize.next_multiple_of(ops.granule);
            for input in 0..3 {
                let (index, height) = (input / block, block.min(back_rows - input / block * block));
                let [start, end] = packed.outputs[index];
                for row in start..end {
                    let at = index * block * 6 + row * height + input % block;
                    let output = places.order[row];
                    let expected = weight[input * 6 + output] * mask[input * 6 + output];
                    assert_eq!(back[at], expected, "input {input}, row {row}");
                }
            }
        }
    }
}
