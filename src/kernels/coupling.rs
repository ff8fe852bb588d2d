//! Couplings on whole batches: the split into channels, the map, and their gradients.

use std::ops::Range;

use super::backward::PartialGradients;
use super::batch::{Chunks, Shape};
use super::conditioner::{Buffers, Conditioner};
use super::log_scale::{LogScale, MapRow, Task};
use super::window::Planes;
use super::workspace::{Lease, lease, lease_zeros};
use super::{Gradients, Map, Net, Scalar};

/// A coupling layer.
///
/// `z = x` on the identity channels, `z = map(x, net(identity channels))` on the transformed ones.
/// The net's outputs are the shifts of all transformed channels, then (affine maps) their raw
/// log-scales.
#[derive(Clone, Debug)]
pub struct Coupling<'a, T> {
    /// Channels the conditioner reads.
    pub identity: Range<usize>,
    /// Channels that change; together with the identity channels all there are.
    pub transformed: Range<usize>,
    /// Elementwise map.
    pub map: Map<'a, T>,
    /// Conditioner.
    pub net: Net<'a, T>,
}

/// Result of [`Coupling::pull_back`].
#[derive(Clone, Debug)]
pub struct PullBack<T> {
    /// The data, recovered from the latent.
    pub x: Vec<T>,
    /// Gradient by the data.
    pub dx: Vec<T>,
    /// Gradients of the parameters.
    pub gradients: Gradients<T>,
}

/// Result of [`Coupling::backward`].
#[derive(Clone, Debug)]
pub struct Gradient<T> {
    /// Gradient by the input.
    pub dx: Vec<T>,
    /// Gradients of the parameters.
    pub gradients: Gradients<T>,
}

/// What one thread needs for its part of a batch.
struct Worker<'a, T: Scalar> {
    coupling: &'a Coupling<'a, T>,
    conditioner: &'a Conditioner<'a, T>,
    shape: Shape,
    identity: Planes<T>,
    transformed: Planes<T>,
    params: Planes<T>,
    buffers: Buffers<T>,
}

impl<'a, T: Scalar> Worker<'a, T> {
    fn new(
        coupling: &'a Coupling<'a, T>,
        conditioner: &'a Conditioner<'a, T>,
        shape: Shape,
        gradient: bool,
    ) -> Self {
        let (geometry, pictures) = (&conditioner.geometry, conditioner.pictures);
        Self {
            coupling,
            conditioner,
            shape,
            identity: Planes::new(geometry, coupling.identity.len(), pictures),
            transformed: Planes::new(geometry, coupling.transformed.len(), pictures),
            params: Planes::new(geometry, coupling.net.outputs(), pictures),
            buffers: conditioner.buffers(gradient),
        }
    }

    /// Reads a block and runs the net on it.
    fn start(&mut self, block: &[T]) -> usize {
        let (channels, pixels) = (self.shape.channels, self.shape.pixels());
        let pictures = block.len() / self.shape.sample();
        self.identity.load(block, channels, self.coupling.identity.start, pixels);
        self.transformed.load(block, channels, self.coupling.transformed.start, pixels);
        self.conditioner.forward(&mut self.buffers, &self.identity, &mut self.params, pictures);
        pictures
    }

    fn finish(&self, block: &mut [T]) {
        let (channels, pixels) = (self.shape.channels, self.shape.pixels());
        self.identity.store(block, channels, self.coupling.identity.start, pixels);
        self.transformed.store(block, channels, self.coupling.transformed.start, pixels);
    }

    /// Runs the map on a transformed channel of the block.
    fn map_channel(&mut self, channel: usize, count: usize, task: Task<T>) {
        let (shift, raw) =
            self.params.pair_mut(channel, self.coupling.transformed.len() + channel, count);
        let value = self.transformed.row_mut(channel, count);
        let mut row = MapRow { map: self.coupling.map, channel, value, shift, raw, task };
        // SAFETY: `ops` is this processor's table.
        unsafe { (self.conditioner.ops.map_row)(&mut row) };
    }

    /// Forward (with a log-det) or inverse of this thread's samples.
    fn map(&mut self, input: &[T], output: &mut [T], mut log_det: Option<&mut [T]>) {
        let (pictures, pixels, sample) =
            (self.conditioner.pictures, self.shape.pixels(), self.shape.sample());
        let mut pixel_log_det = lease(pictures * pixels);
        let blocks = input.chunks(pictures * sample).zip(output.chunks_mut(pictures * sample));
        for (index, (from, to)) in blocks.enumerate() {
            let count = self.start(from) * pixels;
            pixel_log_det.fill(T::ZERO);
            for channel in 0..self.coupling.transformed.len() {
                let task = match log_det {
                    Some(_) => Task::Forward { log_det: &mut pixel_log_det },
                    None => Task::Inverse,
                };
                self.map_channel(channel, count, task);
            }
            self.finish(to);
            let ops = self.conditioner.ops;
            if let Some(log_det) = &mut log_det {
                let sums = pixel_log_det[..count].chunks_exact(pixels).map(|row| ops.total(row));
                log_det[index * pictures..].iter_mut().zip(sums).for_each(|(to, sum)| *to = sum);
            }
        }
    }

    /// Gradients of this thread's samples; with `x`, `input` is the latent and `x` is recovered
    /// from it.
    fn gradient(
        &mut self,
        input: &[T],
        mut x: Option<&mut [T]>,
        dz: &[T],
        dlog_det: &[T],
        dx: &mut [T],
    ) -> Part<T> {
        let (channels, pixels, sample) =
            (self.shape.channels, self.shape.pixels(), self.shape.sample());
        let (geometry, pictures) = (&self.conditioner.geometry, self.conditioner.pictures);
        let Coupling { identity, transformed, .. } = self.coupling;
        let mut dtransformed = Planes::new(geometry, transformed.len(), pictures);
        let mut didentity = Planes::new(geometry, identity.len(), pictures);
        let mut pixel_dlog_det = lease(pictures * pixels);
        let mut sums = self.conditioner.partial_gradients();
        let mut dgain = lease_zeros(transformed.len());
        let size = pictures * sample;
        for (index, from) in input.chunks(size).enumerate() {
            let count = self.start(from) * pixels;
            let dz = &dz[index * size..][..from.len()];
            dtransformed.load(dz, channels, transformed.start, pixels);
            didentity.load(dz, channels, identity.start, pixels);
            for (pixels, value) in
                pixel_dlog_det.chunks_exact_mut(pixels).zip(&dlog_det[index * pictures..])
            {
                pixels.fill(*value);
            }
            for channel in 0..transformed.len() {
                let dvalue = dtransformed.row_mut(channel, count);
                let (dlog_det, dgain) = (&pixel_dlog_det[..count], &mut dgain[channel]);
                let task = Task::Gradient { invert: x.is_some(), dvalue, dlog_det, dgain };
                self.map_channel(channel, count, task);
            }
            for channel in 0..self.coupling.net.outputs() {
                self.params.clear_tail(channel, count);
            }
            if let Some(x) = &mut x {
                self.finish(&mut x[index * size..][..from.len()]);
            }
            let pictures = count / pixels;
            let Self { conditioner, buffers, identity: input, params, .. } = self;
            conditioner.backward(buffers, input, params, &mut didentity, &mut sums, pictures);
            let to = &mut dx[index * size..][..from.len()];
            didentity.store(to, channels, identity.start, pixels);
            dtransformed.store(to, channels, transformed.start, pixels);
        }
        Part { sums, dgain }
    }
}

/// One thread's sums of gradients.
struct Part<T> {
    sums: PartialGradients<T>,
    dgain: Lease<T>,
}

impl<T: Scalar> Coupling<'_, T> {
    /// Data to latent: `z` and, for each sample, `ln |det dz/dx|`.
    ///
    /// # Panics
    /// If the sizes of the net, the channel ranges and the shape do not fit together.
    pub fn forward(&self, x: &[T], shape: Shape) -> (Vec<T>, Vec<T>) {
        self.validate(shape);
        shape.check("Coupling: x", x.len());
        let (mut z, mut log_det) = (vec![T::ZERO; x.len()], vec![T::ZERO; shape.batch]);
        let chunks = Chunks::new(shape, self.net.weights());
        let conditioner =
            Conditioner::new(&self.net, shape.height, shape.width, chunks.largest(), false);
        let tasks = (chunks.split(x, shape.sample()).into_iter())
            .zip(chunks.split_mut(&mut z, shape.sample()))
            .zip(chunks.split_mut(&mut log_det, 1));
        chunks.run(tasks.collect(), |((x, z), log_det)| {
            Worker::new(self, &conditioner, shape, false).map(x, z, Some(log_det));
        });
        (z, log_det)
    }

    /// Latent to data.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn inverse(&self, z: &[T], shape: Shape) -> Vec<T> {
        self.validate(shape);
        shape.check("Coupling: z", z.len());
        let mut x = vec![T::ZERO; z.len()];
        let chunks = Chunks::new(shape, self.net.weights());
        let conditioner =
            Conditioner::new(&self.net, shape.height, shape.width, chunks.largest(), false);
        let tasks = chunks
            .split(z, shape.sample())
            .into_iter()
            .zip(chunks.split_mut(&mut x, shape.sample()));
        chunks.run(tasks.collect(), |(z, x)| {
            Worker::new(self, &conditioner, shape, false).map(z, x, None)
        });
        x
    }

    /// Latent and gradients to data and gradients.
    ///
    /// `dz` is the gradient of the loss by `z`, `dlog_det` that by each sample's log-det. The net
    /// runs once: its input is the same in `x` and `z`, so one forward pass serves the inverse and
    /// the gradients.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn pull_back(&self, z: &[T], dz: &[T], dlog_det: &[T], shape: Shape) -> PullBack<T> {
        let mut x = vec![T::ZERO; z.len()];
        let Gradient { dx, gradients } = self.gradient(z, Some(&mut x), dz, dlog_det, shape);
        PullBack { x, dx, gradients }
    }

    /// [`pull_back`](Self::pull_back) where the data is known.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn backward(&self, x: &[T], dz: &[T], dlog_det: &[T], shape: Shape) -> Gradient<T> {
        self.gradient(x, None, dz, dlog_det, shape)
    }

    fn gradient(
        &self,
        input: &[T],
        x: Option<&mut [T]>,
        dz: &[T],
        dlog_det: &[T],
        shape: Shape,
    ) -> Gradient<T> {
        self.validate(shape);
        shape.check("Coupling: the input", input.len());
        shape.check("Coupling: dz", dz.len());
        assert_eq!(
            dlog_det.len(),
            shape.batch,
            "Coupling: dlog_det must have a number for each sample"
        );
        let sample = shape.sample();
        let mut dx = vec![T::ZERO; input.len()];
        let chunks = Chunks::new(shape, self.net.weights());
        let conditioner =
            Conditioner::new(&self.net, shape.height, shape.width, chunks.largest(), true);
        let xs: Vec<_> = match x {
            Some(x) => chunks.split_mut(x, sample).into_iter().map(Some).collect(),
            None => chunks.ranges.iter().map(|_| None).collect(),
        };
        let tasks = (chunks.split(input, sample).into_iter())
            .zip(xs)
            .zip(chunks.split(dz, sample))
            .zip(chunks.split(dlog_det, 1))
            .zip(chunks.split_mut(&mut dx, sample));
        let parts = chunks.run(tasks.collect(), |((((input, x), dz), dlog_det), dx)| {
            Worker::new(self, &conditioner, shape, true).gradient(input, x, dz, dlog_det, dx)
        });
        let (sums, dgains): (Vec<_>, Vec<_>) =
            parts.into_iter().map(|part| (part.sums, part.dgain)).unzip();
        let mut gradients = conditioner.finish(&sums);
        if let Map::Affine { log_scale: LogScale::Tanh { .. }, .. } = self.map {
            gradients.gain = vec![T::ZERO; self.transformed.len()];
            for dgain in &dgains {
                gradients.gain.iter_mut().zip(dgain.iter()).for_each(|(to, from)| *to += *from);
            }
        }
        Gradient { dx, gradients }
    }

    fn validate(&self, shape: Shape) {
        self.net.validate();
        let (identity, transformed) = (&self.identity, &self.transformed);
        let adjacent = (identity.start == 0 && identity.end == transformed.start)
            || (transformed.start == 0 && transformed.end == identity.start);
        assert!(
            adjacent
                && !identity.is_empty()
                && !transformed.is_empty()
                && identity.end.max(transformed.end) == shape.channels,
            "Coupling: identity {identity:?} and transformed {transformed:?} must divide \
             the {} channels in two",
            shape.channels
        );
        assert!(shape.pixels() > 0, "Coupling: the shape is empty: {shape:?}");
        assert_eq!(
            self.net.inputs(),
            identity.len(),
            "Coupling: the net must read the identity channels"
        );
        let params = self.map.params_per_channel() * transformed.len();
        assert_eq!(self.net.outputs(), params, "Coupling: the net must write {params} channels");
        if let Map::Affine { log_scale: LogScale::Tanh { gain }, .. } = self.map {
            assert_eq!(
                gain.len(),
                transformed.len(),
                "Coupling: one gain is needed for each transformed channel"
            );
        }
    }
}
