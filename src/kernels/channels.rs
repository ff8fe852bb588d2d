//! Maps across the channels, the same at every pixel: one scale and shift a channel, or a matrix.

use super::Scalar;
use super::batch::{Chunks, Shape};
use super::workspace::lease;

/// `(x + before) * scale + after` with a number of each a channel.
///
/// Both summands, because a channel whose mean is far larger than its deviation loses digits where
/// the shift comes after the scale.
#[derive(Clone, Copy, Debug)]
pub struct ChannelAffine<'a, T> {
    /// Added first.
    pub before: &'a [T],
    /// Factors.
    pub scale: &'a [T],
    /// Added last.
    pub after: &'a [T],
}

/// What [`channel_sums`] gives, for each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelSums {
    /// Sums of the first tensor.
    pub first: Vec<f64>,
    /// Sums of the products of both.
    pub product: Vec<f64>,
}

impl<T: Scalar> ChannelAffine<'_, T> {
    /// The map of a batch.
    ///
    /// # Panics
    /// If the sizes do not fit together.
    pub fn apply(&self, x: &[T], shape: Shape) -> Vec<T> {
        shape.check("ChannelAffine: x", x.len());
        for row in [self.before, self.scale, self.after] {
            assert_eq!(row.len(), shape.channels, "ChannelAffine: one number a channel");
        }
        let mut z = vec![T::ZERO; x.len()];
        let (chunks, sample, pixels) = (Chunks::new(shape, 1), shape.sample(), shape.pixels());
        let parts = chunks.split(x, sample).into_iter().zip(chunks.split_mut(&mut z, sample));
        chunks.run(parts.collect(), |(x, z)| {
            for (x, z) in x.chunks_exact(sample).zip(z.chunks_exact_mut(sample)) {
                let rows = x.chunks_exact(pixels).zip(z.chunks_exact_mut(pixels));
                for (channel, (x, z)) in rows.enumerate() {
                    let (before, scale, after) =
                        (self.before[channel], self.scale[channel], self.after[channel]);
                    for (x, z) in x.iter().zip(z) {
                        *z = (*x + before) * scale + after;
                    }
                }
            }
        });
        z
    }
}

/// For each channel the sum of `a` and the sum of `a * b` over batch and pixels.
///
/// # Panics
/// If the sizes do not fit together.
pub fn channel_sums<T: Scalar>(a: &[T], b: &[T], shape: Shape) -> ChannelSums {
    shape.check("channel_sums: a", a.len());
    shape.check("channel_sums: b", b.len());
    let (chunks, sample, pixels) = (Chunks::new(shape, 2), shape.sample(), shape.pixels());
    let parts = chunks.split(a, sample).into_iter().zip(chunks.split(b, sample));
    let ops = T::ops();
    let parts = chunks.run(parts.collect(), |(a, b)| {
        let mut sums = vec![[0.0; 2]; shape.channels];
        for (a, b) in a.chunks_exact(sample).zip(b.chunks_exact(sample)) {
            let rows = a.chunks_exact(pixels).zip(b.chunks_exact(pixels));
            for (sums, (a, b)) in sums.iter_mut().zip(rows) {
                // SAFETY: `ops` is this processor's table.
                let [first, product] = unsafe { (ops.row_sums)(a, b) };
                sums[0] += first;
                sums[1] += product;
            }
        }
        sums
    });
    let total = |index: usize| {
        let of = |channel: usize| parts.iter().map(|sums| sums[channel][index]).sum();
        (0..shape.channels).map(of).collect()
    };
    ChannelSums { first: total(0), product: total(1) }
}

/// A matrix across the channels, row-major: `z[i] = sum_j matrix[i, j] x[j]` at every pixel.
#[derive(Clone, Copy, Debug)]
pub struct ChannelMatrix<'a, T> {
    /// `[channels, channels]`.
    pub matrix: &'a [T],
}

impl<T: Scalar> ChannelMatrix<'_, T> {
    /// The map of a batch.
    ///
    /// # Panics
    /// If the sizes do not fit together.
    pub fn apply(&self, x: &[T], shape: Shape) -> Vec<T> {
        shape.check("ChannelMatrix: x", x.len());
        assert_eq!(self.matrix.len(), shape.channels * shape.channels, "ChannelMatrix: the matrix");
        let mut z = vec![T::ZERO; x.len()];
        let (chunks, sample) = (Chunks::new(shape, shape.channels), shape.sample());
        let parts = chunks.split(x, sample).into_iter().zip(chunks.split_mut(&mut z, sample));
        let ops = T::ops();
        chunks.run(parts.collect(), |(x, z)| {
            for (x, z) in x.chunks_exact(sample).zip(z.chunks_exact_mut(sample)) {
                // SAFETY: `ops` is this processor's table.
                unsafe { (ops.mix)(self.matrix, x, z, shape.pixels()) };
            }
        });
        z
    }
}

/// The channels in another order: `z[i] = x[order[i]]` at every pixel.
///
/// # Panics
/// If the sizes do not fit together.
pub fn reorder_channels<T: Scalar>(x: &[T], order: &[usize], shape: Shape) -> Vec<T> {
    shape.check("reorder_channels: x", x.len());
    assert!(
        order.len() == shape.channels && order.iter().all(|&from| from < shape.channels),
        "reorder_channels: a channel for each place"
    );
    let mut z = vec![T::ZERO; x.len()];
    // To place one number takes as long as some twenty multiplications.
    let chunks = Chunks::new(shape, 20 * shape.channels);
    let (sample, pixels) = (shape.sample(), shape.pixels());
    let parts = chunks.split(x, sample).into_iter().zip(chunks.split_mut(&mut z, sample));
    chunks.run(parts.collect(), |(x, z)| {
        for (x, z) in x.chunks_exact(sample).zip(z.chunks_exact_mut(sample)) {
            if pixels == 1 {
                for (z, &from) in z.iter_mut().zip(order) {
                    // SAFETY: a sample is as long as there are channels, of which `from` is one.
                    *z = unsafe { *x.get_unchecked(from) };
                }
                continue;
            }
            for (z, &from) in z.chunks_exact_mut(pixels).zip(order) {
                z.copy_from_slice(&x[from * pixels..][..pixels]);
            }
        }
    });
    z
}

/// `sum over batch and pixels of a[i] b[j]`, `[channels, channels]`.
///
/// # Panics
/// If the sizes do not fit together.
pub fn channel_products<T: Scalar>(a: &[T], b: &[T], shape: Shape) -> Vec<f64> {
    shape.check("channel_products: a", a.len());
    shape.check("channel_products: b", b.len());
    let (chunks, sample, channels) =
        (Chunks::new(shape, shape.channels), shape.sample(), shape.channels);
    let parts = chunks.split(a, sample).into_iter().zip(chunks.split(b, sample));
    let ops = T::ops();
    let parts = chunks.run(parts.collect(), |(a, b)| {
        let mut sums = vec![0.0; channels * channels];
        let mut products = lease(channels * channels);
        for (a, b) in a.chunks_exact(sample).zip(b.chunks_exact(sample)) {
            // SAFETY: `ops` is this processor's table.
            unsafe { (ops.outer)(a, b, shape.pixels(), &mut products) };
            sums.iter_mut().zip(products.iter()).for_each(|(sum, p)| *sum += p.to_f64());
        }
        sums
    });
    let mut parts = parts.into_iter();
    let mut sums = parts.next().unwrap_or_else(|| vec![0.0; channels * channels]);
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, more)| *sum += more);
    }
    sums
}

/// Pixels whose sums are kept in registers.
const STRIP: usize = 32;

/// `z[i] = sum_j matrix[i, j] x[j]` on the planes of one sample.
#[inline(always)]
pub(super) fn mix<T: Scalar>(matrix: &[T], x: &[T], z: &mut [T], pixels: usize) {
    let channels = x.len() / pixels;
    for (row, z) in matrix.chunks_exact(channels).zip(z.chunks_exact_mut(pixels)) {
        let (strips, rest) = z.as_chunks_mut::<STRIP>();
        for (index, z) in strips.iter_mut().enumerate() {
            let mut sums = [T::ZERO; STRIP];
            for (&factor, x) in row.iter().zip(x.chunks_exact(pixels)) {
                let x: &[T; STRIP] = x[index * STRIP..][..STRIP].try_into().expect("a strip");
                for i in 0..STRIP {
                    sums[i] = x[i] * factor + sums[i];
                }
            }
            *z = sums;
        }
        let start = pixels - rest.len();
        rest.fill(T::ZERO);
        for (&factor, x) in row.iter().zip(x.chunks_exact(pixels)) {
            for (z, x) in rest.iter_mut().zip(&x[start..]) {
                *z = *x * factor + *z;
            }
        }
    }
}

/// `products[i, j] = sum over pixels of a[i] b[j]` of one sample.
#[inline(always)]
pub(super) fn outer<T: Scalar>(a: &[T], b: &[T], pixels: usize, products: &mut [T]) {
    let channels = a.len() / pixels;
    for (a, products) in a.chunks_exact(pixels).zip(products.chunks_exact_mut(channels)) {
        for (b, product) in b.chunks_exact(pixels).zip(products) {
            let mut sums = [T::ZERO; STRIP];
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<STRIP>(), b.as_chunks::<STRIP>());
            for (a, b) in a.iter().zip(b) {
                for i in 0..STRIP {
                    sums[i] = a[i] * b[i] + sums[i];
                }
            }
            for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
                *sum = *a * *b + *sum;
            }
            *product = T::from_f64(sums.iter().map(|sum| sum.to_f64()).sum());
        }
    }
}

/// The sum of `a` and the sum of `a * b`.
#[inline(always)]
pub(super) fn row_sums<T: Scalar>(a: &[T], b: &[T]) -> [f64; 2] {
    const LANES: usize = 16;
    let (mut first, mut product) = ([0.0; LANES], [0.0; LANES]);
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            let (a, b) = (a[i].to_f64(), b[i].to_f64());
            first[i] += a;
            product[i] += a * b;
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        let (a, b) = (a.to_f64(), b.to_f64());
        first[i] += a;
        product[i] += a * b;
    }
    [first.iter().sum(), product.iter().sum()]
}

#[cfg(test)]
mod tests {
    use super::super::reference::{close, numbers};
    use super::*;

    /// Fewer and more pixels than a strip, with and without a rest; one pixel is a vector.
    fn shapes() -> impl Iterator<Item = Shape> {
        [(3, 2, 1, 1), (2, 3, 5, 7), (40, 4, 8, 8), (5, 6, 33, 3), (1, 1, 16, 2)]
            .into_iter()
            .map(|(batch, channels, height, width)| Shape { batch, channels, height, width })
    }

    /// Value of sample, channel and pixel.
    fn at(values: &[f64], shape: Shape, [n, c, p]: [usize; 3]) -> f64 {
        values[(n * shape.channels + c) * shape.pixels() + p]
    }

    fn positions(shape: Shape) -> impl Iterator<Item = [usize; 3]> {
        let (channels, pixels) = (shape.channels, shape.pixels());
        (0..shape.numbers())
            .map(move |i| [i / pixels / channels, i / pixels % channels, i % pixels])
    }

    #[test]
    fn affine_and_sums_agree_with_direct_loops() {
        for shape in shapes() {
            let (x, y) = (numbers(shape.numbers(), 1), numbers(shape.numbers(), 2));
            let [before, scale, after] = [3, 4, 5].map(|seed| numbers(shape.channels, seed));
            let map = ChannelAffine { before: &before, scale: &scale, after: &after };
            let expected: Vec<f64> = positions(shape)
                .map(|i| (at(&x, shape, i) + before[i[1]]) * scale[i[1]] + after[i[1]])
                .collect();
            close(&map.apply(&x, shape), &expected, 1e-15);
            let mut sums = ChannelSums {
                first: vec![0.0; shape.channels],
                product: vec![0.0; shape.channels],
            };
            for i in positions(shape) {
                sums.first[i[1]] += at(&x, shape, i);
                sums.product[i[1]] += at(&x, shape, i) * at(&y, shape, i);
            }
            let got = channel_sums(&x, &y, shape);
            close(&got.first, &sums.first, 1e-12);
            close(&got.product, &sums.product, 1e-12);
        }
    }

    #[test]
    fn reordered_channels_are_those_that_the_order_names() {
        for shape in shapes() {
            let x = numbers(shape.numbers(), 1);
            let order: Vec<_> = (0..shape.channels).map(|c| (c + 1) % shape.channels).collect();
            let expected: Vec<f64> =
                positions(shape).map(|[n, c, p]| at(&x, shape, [n, order[c], p])).collect();
            assert_eq!(reorder_channels(&x, &order, shape), expected);
        }
    }

    #[test]
    fn matrix_and_products_agree_with_direct_loops() {
        for shape in shapes() {
            let (x, y) = (numbers(shape.numbers(), 1), numbers(shape.numbers(), 2));
            let channels = shape.channels;
            let matrix = numbers(channels * channels, 3);
            let row = |[n, c, p]: [usize; 3]| -> f64 {
                (0..channels).map(|j| matrix[c * channels + j] * at(&x, shape, [n, j, p])).sum()
            };
            let expected: Vec<f64> = positions(shape).map(row).collect();
            close(&ChannelMatrix { matrix: &matrix }.apply(&x, shape), &expected, 1e-14);
            let mut products = vec![0.0; channels * channels];
            for [n, c, p] in positions(shape) {
                for j in 0..channels {
                    products[c * channels + j] +=
                        at(&x, shape, [n, c, p]) * at(&y, shape, [n, j, p]);
                }
            }
            close(&channel_products(&x, &y, shape), &products, 1e-12);
        }
    }
}
