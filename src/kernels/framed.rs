//! Whole batches of pictures, each framed by zeros, and the operations of a convolutional net on
//! them.
//!
//! A batch is held as one flat plane a channel: picture after picture, row after row, with one zero
//! after each row and a row of them after each picture. The neighbours of a pixel are then at fixed
//! distances, inside of the picture or on zeros, and a convolution reads them where they are. Where a
//! picture is not, planes hold zeros only if an operation says so.

use super::batch::{Chunks, Shape};
use super::convolution::{COLUMNS, Convolution, Ending, SUMS, TapGradient};
use super::workspace::{Lease, lease, lease_zeros};
use super::{Ops, Scalar, Window};

/// How the pictures of a batch lie in memory, and in which parts the threads take them.
pub struct Frame<T: 'static> {
    ops: &'static Ops<T>,
    shape: Shape,
    chunks: Chunks,
    /// 1 on pixels of pictures, 0 between them; for each part.
    inside: Vec<Lease<T>>,
    margin: usize,
}

/// A tensor `[batch, channels, height, width]` in a [`Frame`].
pub struct Framed<'f, T: Scalar> {
    frame: &'f Frame<T>,
    channels: usize,
    parts: Vec<Part<T>>,
}

/// The pictures of one thread: `[channels, stride]`, pixel `q` of channel `c` at `margin + c * stride
/// + q`. Channels are rounded up to [`COLUMNS`], those too many being zero; margins are zero.
struct Part<T> {
    data: Lease<T>,
    stride: usize,
    margin: usize,
    /// Pixels, those of the frame included, rounded up.
    len: usize,
}

/// The mean squared deviation of a batch from the mean that it is normalized by, over the variance that
/// it is normalized by, up to which the two count as the batch's own in gradients. In training it is
/// about 1; far from there the gradients of the moments would grow with its powers from norm to norm.
pub const MOST_DEVIATION: f64 = 100.0;

/// A batch normalization as the affine map that it is, `scale x + shift`, and what its gradient needs.
pub struct Norm<T> {
    /// Scale and shift of each channel of the result.
    pub affine: [Vec<T>; 2],
    /// Means, and `1 / (variance + epsilon)`, that the channels of the input are normalized by, where
    /// they count as the batch's own in gradients; else they are constants.
    pub moments: Option<[Vec<T>; 2]>,
}

/// A convolution with a 3x3 kernel and zero padding, or a 1x1 one, packed for products.
pub struct Kernel<'a, T> {
    window: Window,
    inputs: usize,
    outputs: usize,
    forward: Lease<T>,
    /// The transposed weight with opposite taps.
    back: Lease<T>,
    bias: Option<&'a [T]>,
}

impl<T: Scalar> Frame<T> {
    /// `work`: multiplications a pixel, from which follows whether threads are worth their while.
    pub fn new([batch, height, width]: [usize; 3], work: usize) -> Self {
        Self::with_ops(T::ops(), [batch, height, width], work)
    }

    pub(super) fn with_ops(
        ops: &'static Ops<T>,
        [batch, height, width]: [usize; 3],
        work: usize,
    ) -> Self {
        assert!(batch > 0 && height > 0 && width > 0, "Frame: a batch of nothing");
        let shape = Shape { batch, channels: 1, height, width };
        let chunks = Chunks::new(shape, work);
        let margin = (width + 2).next_multiple_of(ops.panel);
        let mut frame = Self { ops, shape, chunks, inside: Vec::new(), margin };
        let inside = frame.chunks.ranges.iter().map(|pictures| {
            let mut inside = lease_zeros(frame.len(pictures.len()));
            for picture in inside.chunks_exact_mut(frame.picture()).take(pictures.len()) {
                for row in picture.chunks_exact_mut(width + 1).take(height) {
                    row[..width].fill(T::ONE);
                }
            }
            inside
        });
        frame.inside = inside.collect();
        frame
    }

    /// Pixels of a picture with its frame.
    fn picture(&self) -> usize {
        (self.shape.height + 1) * (self.shape.width + 1)
    }

    fn len(&self, pictures: usize) -> usize {
        (pictures * self.picture()).next_multiple_of(self.ops.panel.max(SUMS))
    }

    /// The distances of a window's neighbours.
    fn shifts(&self, window: Window) -> Vec<isize> {
        let row = self.shape.width as isize + 1;
        match window {
            Window::Pixel => vec![0],
            Window::Square3 => (0..9).map(|tap| (tap / 3 - 1) * row + tap % 3 - 1).collect(),
        }
    }

    fn part(&self, channels: usize, pictures: usize) -> Part<T> {
        let (len, margin) = (self.len(pictures), self.margin);
        let mut stride = len + margin;
        // Distances of a power of two would put all channels into the same few cache sets.
        if (stride * size_of::<T>()).is_multiple_of(4096) {
            stride += self.ops.panel;
        }
        let rows = channels.next_multiple_of(COLUMNS);
        let mut data = lease(margin + rows * stride);
        data[..margin].fill(T::ZERO);
        for (channel, plane) in data[margin..].chunks_exact_mut(stride).enumerate() {
            let written = if channel < channels { len } else { 0 };
            plane[written..].fill(T::ZERO);
        }
        Part { data, stride, margin, len }
    }

    /// Makes a tensor, each part by `f`, whose pixels it must all write.
    fn make(
        &self,
        channels: usize,
        f: impl Fn(usize, std::ops::Range<usize>, &mut Part<T>) + Sync,
    ) -> Framed<'_, T> {
        let parts = self.chunks.run((0..self.chunks.ranges.len()).collect(), |index| {
            let pictures = self.chunks.ranges[index].clone();
            let mut part = self.part(channels, pictures.len());
            f(index, pictures, &mut part);
            part
        });
        Framed { frame: self, channels, parts }
    }

    /// A batch in NCHW order; zero between the pictures.
    ///
    /// # Panics
    /// If the batch is not of this frame's size.
    pub fn load(&self, batch: &[T], channels: usize) -> Framed<'_, T> {
        let Shape { batch: count, height, width, .. } = self.shape;
        assert_eq!(
            batch.len(),
            count * channels * height * width,
            "Frame: not a batch of its size"
        );
        self.make(channels, |_, pictures, part| {
            for channel in 0..channels {
                let plane = part.row_mut(channel);
                plane.fill(T::ZERO);
                for (picture, to) in pictures.clone().zip(plane.chunks_exact_mut(self.picture())) {
                    let from = &batch[(picture * channels + channel) * height * width..];
                    let rows = to.chunks_exact_mut(width + 1).zip(from.chunks_exact(width));
                    rows.take(height).for_each(|(to, from)| to[..width].copy_from_slice(from));
                }
            }
        })
    }
}

impl<T: Scalar> Part<T> {
    fn row(&self, channel: usize) -> &[T] {
        &self.data[self.margin + channel * self.stride..][..self.len]
    }

    fn row_mut(&mut self, channel: usize) -> &mut [T] {
        &mut self.data[self.margin + channel * self.stride..][..self.len]
    }

    /// The first pixel; as many numbers as the margin before and after a channel are readable.
    fn first(&self) -> *const T {
        self.data[self.margin..].as_ptr()
    }

    fn channels(&self) -> usize {
        (self.data.len() - self.margin) / self.stride
    }
}

/// What a convolution's result is joined with.
#[derive(Clone, Copy)]
pub enum Join<'a, 'f, T: Scalar> {
    /// Nothing.
    Nothing,
    /// Its sum with these numbers.
    Plus(&'a Framed<'f, T>),
    /// Zero where these are not positive.
    WherePositive(&'a Framed<'f, T>),
}

impl<'f, T: Scalar> Framed<'f, T> {
    /// How its pictures lie.
    pub fn frame(&self) -> &'f Frame<T> {
        self.frame
    }

    /// Its channels.
    pub fn num_channels(&self) -> usize {
        self.channels
    }

    /// In NCHW order.
    pub fn store(&self) -> Vec<T> {
        let Shape { height, width, .. } = self.frame.shape;
        let sample = self.channels * height * width;
        let mut batch = vec![T::ZERO; self.frame.shape.batch * sample];
        let tasks = self.parts.iter().zip(self.frame.chunks.split_mut(&mut batch, sample));
        self.frame.chunks.run(tasks.collect(), |(part, batch)| {
            for (picture, to) in batch.chunks_exact_mut(sample).enumerate() {
                for (channel, to) in to.chunks_exact_mut(height * width).enumerate() {
                    let from = &part.row(channel)[picture * self.frame.picture()..];
                    let rows = to.chunks_exact_mut(width).zip(from.chunks_exact(width + 1));
                    rows.for_each(|(to, from)| to.copy_from_slice(&from[..width]));
                }
            }
        });
        batch
    }

    /// The convolution of this, and what it is joined with.
    ///
    /// Its input must be zero between the pictures if it sees neighbours.
    pub fn convolve(&self, kernel: &Kernel<T>, join: Join<T>) -> Self {
        let shifts = self.frame.shifts(kernel.window);
        let Kernel { inputs, outputs, .. } = *kernel;
        self.product([inputs, outputs], &kernel.forward, &shifts, kernel.bias, join)
    }

    /// The gradient by a convolution's input from this one by its output, and what it is joined with.
    /// Of a 3x3 convolution it is not zero between the pictures, unless the join makes it so.
    pub fn convolve_back(&self, kernel: &Kernel<T>, join: Join<T>) -> Self {
        let shifts = self.frame.shifts(kernel.window);
        let Kernel { inputs, outputs, .. } = *kernel;
        self.product([outputs, inputs], &kernel.back, &shifts, None, join)
    }

    fn product(
        &self,
        [inputs, outputs]: [usize; 2],
        weight: &[T],
        shifts: &[isize],
        bias: Option<&[T]>,
        join: Join<T>,
    ) -> Self {
        let ops = self.frame.ops;
        let rows = outputs.next_multiple_of(ops.granule);
        assert_eq!(self.channels, inputs, "Kernel: reads another number of channels");
        assert!(weight.len() >= rows * inputs * shifts.len());
        if let Join::Plus(other) | Join::WherePositive(other) = join {
            assert_eq!(other.channels, outputs, "Kernel: joined with another number of channels");
        }
        let mut padded = lease_zeros(rows);
        if let Some(bias) = bias {
            padded[..outputs].copy_from_slice(bias);
        }
        self.frame.make(outputs, |index, _, to| {
            let from = &self.parts[index];
            let other = |other: &Framed<T>| {
                let part = &other.parts[index];
                assert!(part.stride == to.stride && part.channels() >= rows);
                part.first()
            };
            let ending = match join {
                Join::Nothing => Ending::Linear,
                Join::Plus(plus) => Ending::Plus(other(plus)),
                Join::WherePositive(outputs) => Ending::WherePositive(other(outputs)),
            };
            assert!(from.stride == to.stride && from.len == to.len && to.channels() >= rows);
            let margin = to.margin;
            let product = Convolution {
                a: weight.as_ptr(),
                rows,
                channels: inputs,
                b: from.first(),
                c: to.data[margin..].as_mut_ptr(),
                stride: to.stride,
                shifts,
                len: to.len,
                bias: if bias.is_some() { padded.as_ptr() } else { std::ptr::null() },
                ending,
            };
            // SAFETY: all operands have this frame's strides and the channels that the product
            // touches, checked above; a shift reaches at most `width + 2`, within the margin; `ops`
            // is this processor's table.
            unsafe { (ops.convolution)(&product) };
        })
    }

    /// The gradient by a convolution's weight `[outputs, inputs, taps]`, from the one by its output,
    /// which this is, and its input. This one must be zero between the pictures.
    pub fn weight_gradient(&self, input: &Self, window: Window) -> Vec<T> {
        let frame = self.frame;
        let shifts = &frame.shifts(window);
        let rows = self.channels.next_multiple_of(frame.ops.granule);
        let columns = input.channels.next_multiple_of(COLUMNS);
        let tasks = self.parts.iter().zip(&input.parts).collect();
        let sums = frame.chunks.run(tasks, |(d, x): (&Part<T>, &Part<T>)| {
            let mut out: Lease<T> = lease_zeros(rows * shifts.len() * columns);
            assert!(d.stride == x.stride && d.len == x.len && d.channels() >= rows);
            assert!(x.channels() >= columns);
            let gradient = TapGradient {
                d: d.first(),
                rows,
                x: x.first(),
                columns,
                stride: d.stride,
                shifts,
                len: d.len,
                out: out.as_mut_ptr(),
            };
            // SAFETY: as in `product`; `out` has the size that the routine writes.
            unsafe { (frame.ops.tap_gradient)(&gradient) };
            out
        });
        let (taps, inputs) = (shifts.len(), input.channels);
        let mut weight = vec![T::ZERO; self.channels * inputs * taps];
        for sum in &sums {
            for (index, to) in weight.iter_mut().enumerate() {
                let (tap, input, output) =
                    (index % taps, index / taps % inputs, index / taps / inputs);
                *to += sum[(output * taps + tap) * columns + input];
            }
        }
        weight
    }

    /// Sums of the channels, frames included.
    pub fn totals(&self) -> Vec<T> {
        let mut totals = vec![T::ZERO; self.channels];
        for part in &self.parts {
            let rows = totals.iter_mut().enumerate();
            rows.for_each(|(channel, to)| *to += self.frame.ops.total(part.row(channel)));
        }
        totals
    }

    /// `max(scale_j x_c + shift_j, 0)` for each channel `j` of the result, `c` being `j` modulo the
    /// number of channels here; zero between the pictures.
    pub fn affine_relu(&self, [scale, shift]: [&[T]; 2]) -> Self {
        let frame = self.frame;
        frame.make(scale.len(), |index, _, to| {
            for channel in 0..scale.len() {
                let from = self.parts[index].row(channel % self.channels);
                let (by, to) = ([scale[channel], shift[channel]], to.row_mut(channel));
                // SAFETY: `ops` is this processor's table.
                unsafe { (frame.ops.affine_relu)(from, by, &frame.inside[index], to) };
            }
        })
    }

    /// The gradients of the normalization `norm` of `x`, from this one by its values, zero where its
    /// ReLU is: by scale and shift, and by `x`, which is added to `onto`.
    ///
    /// The norm's moments have the gradients of the batch's: those of `mean(x)` and, about the norm's
    /// mean, `mean((x - mean)^2)` by `x`, in channels where it is no farther away than
    /// [`MOST_DEVIATION`].
    pub fn norm_gradient(&self, x: &Self, norm: &Norm<T>, onto: Self) -> (Self, [Vec<T>; 2]) {
        let frame = self.frame;
        let Shape { batch, height, width, .. } = frame.shape;
        let count = (batch * height * width) as f64;
        let tasks = self.parts.iter().zip(&x.parts).collect();
        let parts = frame.chunks.run(tasks, |(d, x_part): (&Part<T>, &Part<T>)| {
            let sums = |channel: usize| {
                let (d, x) = (d.row(channel), x_part.row(channel % x.channels));
                // SAFETY: `ops` is this processor's table.
                unsafe { (frame.ops.row_sums)(d, x) }
            };
            (0..self.channels).map(sums).collect::<Vec<[f64; 2]>>()
        });
        let sum =
            |channel: usize, index| parts.iter().map(|sums| sums[channel][index]).sum::<f64>();
        let sums: Vec<[f64; 2]> =
            (0..self.channels).map(|channel| [sum(channel, 0), sum(channel, 1)]).collect();
        let near: Vec<Option<[f64; 2]>> = match &norm.moments {
            None => vec![None; x.channels],
            Some([means, precisions]) => (means.iter().zip(precisions))
                .zip(x.power_means(means, 1))
                .map(|((mean, precision), square)| {
                    let precision = precision.to_f64();
                    let is_near = square.to_f64() * precision <= MOST_DEVIATION;
                    is_near.then(|| [mean.to_f64(), precision])
                })
                .collect(),
        };
        let maps: Vec<[T; 3]> = (sums.iter().zip(&norm.affine[0]).enumerate())
            .map(|(channel, ([d, dx], scale))| {
                let Some([mean, precision]) = near[channel % x.channels] else {
                    return [*scale, T::ZERO, T::ZERO];
                };
                let per_value = -scale.to_f64() / count;
                let slope = per_value * precision * (dx - mean * d);
                [*scale, T::from_f64(per_value * d - slope * mean), T::from_f64(slope)]
            })
            .collect();
        type Task<'a, T> = (usize, ((&'a Part<T>, &'a Part<T>), Part<T>));
        let tasks = self.parts.iter().zip(&x.parts).zip(onto.parts).enumerate().collect();
        let parts = frame.chunks.run(tasks, |(index, ((d, x_part), mut to)): Task<T>| {
            for (channel, by) in maps.iter().enumerate() {
                let from = channel % x.channels;
                let rows = [d.row(channel), x_part.row(from), &frame.inside[index]];
                // SAFETY: `ops` is this processor's table.
                unsafe { (frame.ops.norm_gradient)(rows, *by, to.row_mut(from)) };
            }
            to
        });
        let gradients =
            [1, 0].map(|index| sums.iter().map(|sums| T::from_f64(sums[index])).collect());
        (Self { frame, channels: onto.channels, parts }, gradients)
    }

    /// Zeros like this.
    pub fn zeros_like(&self) -> Self {
        self.frame.make(self.channels, |_, _, part| part.data.fill(T::ZERO))
    }

    /// Mean and variance of each channel over all pictures, in two passes.
    pub fn moments(&self) -> [Vec<T>; 2] {
        let means = self.power_means(&vec![T::ZERO; self.channels], 0);
        let variances = self.power_means(&means, 1);
        [means, variances]
    }

    /// For each channel the mean of the deviations from `about`, or (`power` 1) of their squares.
    fn power_means(&self, about: &[T], power: usize) -> Vec<T> {
        let frame = self.frame;
        let Shape { batch, height, width, .. } = frame.shape;
        let count = (batch * height * width) as f64;
        let tasks = self.parts.iter().zip(&frame.inside).collect();
        let parts = frame.chunks.run(tasks, |(part, inside): (&Part<T>, &Lease<T>)| {
            let sum = |(channel, about): (usize, &T)| {
                // SAFETY: `ops` is this processor's table.
                unsafe { (frame.ops.deviations)(part.row(channel), *about, inside)[power] }
            };
            about.iter().enumerate().map(sum).collect::<Vec<f64>>()
        });
        let mean = |channel: usize| parts.iter().map(|part| part[channel]).sum::<f64>() / count;
        (0..about.len()).map(|channel| T::from_f64(mean(channel))).collect()
    }
}

impl<'a, T: Scalar> Kernel<'a, T> {
    /// From a weight `[outputs, inputs, taps]`, taps row by row, and a bias of one number an output;
    /// `with_gradient` packs what [`Framed::convolve_back`] needs as well.
    ///
    /// # Panics
    /// If weight or bias is not of that size.
    pub fn new(
        weight: &[T],
        bias: Option<&'a [T]>,
        [inputs, outputs]: [usize; 2],
        window: Window,
        with_gradient: bool,
    ) -> Self {
        Self::with_ops(T::ops(), weight, bias, [inputs, outputs], window, with_gradient)
    }

    pub(super) fn with_ops(
        ops: &Ops<T>,
        weight: &[T],
        bias: Option<&'a [T]>,
        [inputs, outputs]: [usize; 2],
        window: Window,
        with_gradient: bool,
    ) -> Self {
        let taps = window.taps();
        assert_eq!(weight.len(), outputs * inputs * taps, "Kernel: not [outputs, inputs, taps]");
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "Kernel: one bias an output");
        let at = |output: usize, input: usize, tap: usize| {
            weight[(output * inputs + input) * taps + tap]
        };
        let forward = pack(ops, [outputs, inputs, taps], at);
        let back = match with_gradient {
            true => pack(ops, [inputs, outputs, taps], |i, o, tap| at(o, i, taps - 1 - tap)),
            false => lease(0),
        };
        Self { window, inputs, outputs, forward, back, bias }
    }

    /// What the convolution sees.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Whether it has a bias.
    pub fn has_bias(&self) -> bool {
        self.bias.is_some()
    }
}

/// Blocks of up to three granules of rows, `[taps, columns, rows of the block]` each, the last one
/// filled up with zeros.
fn pack<T: Scalar>(
    ops: &Ops<T>,
    [rows, columns, taps]: [usize; 3],
    at: impl Fn(usize, usize, usize) -> T,
) -> Lease<T> {
    let padded = rows.next_multiple_of(ops.granule);
    let mut packed = lease_zeros(padded * columns * taps);
    let block = 3 * ops.granule;
    for (index, part) in packed.chunks_mut(block * columns * taps).enumerate() {
        let height = part.len() / (columns * taps);
        for (step, to) in part.chunks_exact_mut(height).enumerate() {
            let (tap, column) = (step / columns, step % columns);
            for (row, to) in (index * block..rows).zip(to) {
                *to = at(row, column, tap);
            }
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::{all_f32, all_f64};
    use super::super::reference::{close, numbers};
    use super::*;

    /// Batch, inputs, outputs, height and width that leave remainders everywhere; the last one takes
    /// several threads and segments.
    const CASES: [[usize; 5]; 6] = [
        [1, 1, 1, 1, 1],
        [2, 3, 5, 4, 3],
        [3, 5, 2, 1, 7],
        [5, 14, 13, 6, 1],
        [2, 4, 33, 5, 8],
        [7, 6, 17, 20, 19],
    ];

    /// Calls `f` with each neighbour inside of a picture: output pixel, tap and input pixel.
    fn taps([height, width]: [usize; 2], window: Window, mut f: impl FnMut(usize, usize, usize)) {
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            for tap in 0..window.taps() {
                let (dy, dx) = if window == Window::Pixel { (1, 1) } else { (tap / 3, tap % 3) };
                let inside = (1..=height).contains(&(y + dy)) && (1..=width).contains(&(x + dx));
                if inside {
                    f(y * width + x, tap, (y + dy - 1) * width + x + dx - 1);
                }
            }
        }
    }

    fn cast<T: Scalar>(values: &[f64]) -> Vec<T> {
        values.iter().map(|&value| T::from_f64(value)).collect()
    }

    fn widen<T: Scalar>(values: &[T]) -> Vec<f64> {
        values.iter().map(|value| value.to_f64()).collect()
    }

    fn check_convolutions<T: Scalar>(ops: &'static Ops<T>, tolerance: f64) {
        for [batch, inputs, outputs, height, width] in CASES {
            for window in [Window::Pixel, Window::Square3] {
                let (pixels, count) = (height * width, window.taps());
                let x = numbers(batch * inputs * pixels, 1);
                let d = numbers(batch * outputs * pixels, 2);
                let (weight, bias) = (numbers(outputs * inputs * count, 3), numbers(outputs, 4));
                let mut y = d.clone();
                let (mut dx, mut dweight) = (x.clone(), vec![0.0; weight.len()]);
                for picture in 0..batch {
                    for (o, i) in (0..outputs).flat_map(|o| (0..inputs).map(move |i| (o, i))) {
                        taps([height, width], window, |to, tap, from| {
                            let w = (o * inputs + i) * count + tap;
                            let to = (picture * outputs + o) * pixels + to;
                            let from = (picture * inputs + i) * pixels + from;
                            y[to] += weight[w] * x[from];
                            dx[from] += weight[w] * d[to];
                            dweight[w] += d[to] * x[from];
                        });
                    }
                }
                for (index, y) in y.iter_mut().enumerate() {
                    *y += bias[index / pixels % outputs];
                }
                let masked: Vec<_> =
                    dx.iter().zip(&x).map(|(dx, x)| if *x > 0.0 { dx - x } else { 0.0 }).collect();

                let frame = Frame::with_ops(ops, [batch, height, width], 1 << 20);
                let (x, d) = (frame.load(&cast(&x), inputs), frame.load(&cast(&d), outputs));
                let (weight, bias) = (cast::<T>(&weight), cast::<T>(&bias));
                let sizes = [inputs, outputs];
                let kernel = Kernel::with_ops(ops, &weight, Some(&bias), sizes, window, true);
                let join = Join::Plus(&d);
                close(&widen(&x.convolve(&kernel, join).store()), &y, tolerance);
                let back = d.convolve_back(&kernel, Join::Plus(&x));
                close(&widen(&back.store()), &dx, tolerance);
                let back = d.convolve_back(&kernel, Join::WherePositive(&x));
                close(&widen(&back.store()), &masked, tolerance);
                close(&widen(&d.weight_gradient(&x, window)), &dweight, tolerance);
            }
        }
    }

    fn check_maps<T: Scalar>(ops: &'static Ops<T>, tolerance: f64) {
        for [batch, channels, _, height, width] in CASES {
            let pixels = height * width;
            // Far from zero, which a variance must not notice.
            let x: Vec<f64> =
                numbers(batch * channels * pixels, 1).iter().map(|x| x + 3.0).collect();
            let frame = Frame::with_ops(ops, [batch, height, width], 1);
            let framed = frame.load(&cast(&x), channels);
            let of = |values: &[f64], channel: usize| -> Vec<f64> {
                let planes = values.chunks_exact(pixels).skip(channel);
                planes.step_by(values.len() / batch / pixels).flatten().copied().collect()
            };
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            let mut means: Vec<_> = (0..channels).map(|channel| mean(&of(&x, channel))).collect();
            let variances = (0..channels).map(|channel| {
                let square = |x: &f64| (x - means[channel]).powi(2);
                mean(&of(&x, channel).iter().map(square).collect::<Vec<_>>())
            });
            let moments = framed.moments();
            close(&widen(&moments[0]), &means, tolerance);
            close(&widen(&moments[1]), &variances.collect::<Vec<_>>(), tolerance);

            // Two maps of each channel.
            let (scale, shift) = (numbers(2 * channels, 2), numbers(2 * channels, 3));
            let mut y = Vec::new();
            for picture in x.chunks_exact(channels * pixels) {
                for row in 0..2 * channels {
                    let from = &picture[row % channels * pixels..][..pixels];
                    y.extend(from.iter().map(|x| (x * scale[row] + shift[row]).max(0.0)));
                }
            }
            let rows = framed.affine_relu([&cast(&scale), &cast(&shift)]);
            close(&widen(&rows.store()), &y, tolerance);

            // Every other row without a gradient.
            let mut d = numbers(2 * batch * channels * pixels, 4);
            d.iter_mut().step_by(3).for_each(|d| *d = 0.0);
            let affine = [cast(&scale), cast(&shift)];
            // Not the batch's own, and the second channel's so that the batch is far from them.
            means.iter_mut().for_each(|mean| *mean += 0.25);
            let mut precision: Vec<f64> = numbers(channels, 5).iter().map(|x| x + 2.0).collect();
            precision.iter_mut().skip(1).take(1).for_each(|precision| *precision *= 1e6);
            let count = (batch * pixels) as f64;
            let places = |index: usize| {
                let (pixel, row) = (index % pixels, index / pixels % (2 * channels));
                let picture = index / pixels / (2 * channels);
                (row, row % channels, (picture * channels + row % channels) * pixels + pixel)
            };
            let mut expected = [vec![0.0; 2 * channels], vec![0.0; 2 * channels]];
            let mut constant = x.clone();
            // By the mean, and by the variance about it.
            let (mut dmean, mut dvariance) = (vec![0.0; channels], vec![0.0; channels]);
            for (index, d) in d.iter().enumerate() {
                let (row, channel, at) = places(index);
                constant[at] += scale[row] * d;
                expected[0][row] += d * x[at];
                expected[1][row] += d;
                dmean[channel] -= scale[row] * d;
                let deviation = x[at] - means[channel];
                dvariance[channel] -= 0.5 * precision[channel] * scale[row] * d * deviation;
            }
            let mut dx = constant.clone();
            for (at, dx) in dx.iter_mut().enumerate() {
                let channel = at / pixels % channels;
                if channel == 1 {
                    continue;
                }
                let deviation = x[at] - means[channel];
                *dx += (dmean[channel] + 2.0 * deviation * dvariance[channel]) / count;
            }
            let d = frame.load(&cast(&d), 2 * channels);
            close(&widen(&d.totals()), &expected[1], tolerance);
            let moments = Some([cast(&means), cast(&precision)]);
            for (moments, dx) in [(moments, dx), (None, constant)] {
                let norm = Norm { affine: affine.clone(), moments };
                let onto = frame.load(&cast(&x), channels);
                let (to, gradients) = d.norm_gradient(&framed, &norm, onto);
                close(&widen(&to.store()), &dx, tolerance);
                for (got, expected) in gradients.iter().zip(&expected) {
                    close(&widen(got), expected, tolerance);
                }
            }
        }
    }

    #[test]
    fn convolutions_and_their_gradients_are_those_of_direct_loops() {
        all_f64().into_iter().for_each(|ops| check_convolutions(ops, 1e-13));
        all_f32().into_iter().for_each(|ops| check_convolutions(ops, 1e-5));
    }

    #[test]
    fn maps_and_moments_are_those_of_direct_loops() {
        all_f64().into_iter().for_each(|ops| check_maps(ops, 1e-12));
        all_f32().into_iter().for_each(|ops| check_maps(ops, 1e-4));
    }
}
