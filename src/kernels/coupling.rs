//! Couplings on whole batches: the split into channels, the map, and their gradients.

use std::ops::Range;

use super::backward::PartialGradients;
use super::batch::{Chunks, Shape};
use super::conditioner::{Buffers, Conditioner, FIRST_KEPT, Pass};
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

/// What [`Coupling::forward_keeping`] keeps for [`Coupling::backward_from`].
pub struct Activations<T> {
    /// One list a thread, one entry a block.
    parts: Vec<Vec<Kept<T>>>,
}

impl<T: Scalar> Activations<T> {
    /// Bytes of all that is kept.
    pub fn num_bytes(&self) -> usize {
        let block = |kept: &Kept<T>| {
            kept.params.len() + kept.inputs.iter().map(|input| input.len()).sum::<usize>()
        };
        self.parts.iter().flatten().map(block).sum::<usize>() * size_of::<T>()
    }
}

/// What is kept of a block: the inputs of the layers from [`FIRST_KEPT`] on, and the outputs.
struct Kept<T> {
    inputs: Vec<Lease<T>>,
    params: Planes<T>,
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
        pass: Pass,
    ) -> Self {
        let gradient = pass == Pass::Gradients;
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
        let pictures = self.load(block);
        self.conditioner.forward(&mut self.buffers, &self.identity, &mut self.params, pictures);
        pictures
    }

    /// Reads a block and puts back what a forward pass kept of it.
    fn start_from(&mut self, block: &[T], kept: Kept<T>) -> usize {
        let pictures = self.load(block);
        self.params = kept.params;
        for (input, kept) in self.buffers.inputs[FIRST_KEPT.min(self.conditioner.layers.len())..]
            .iter_mut()
            .zip(kept.inputs)
        {
            *input = kept;
        }
        self.conditioner.first_inputs(&mut self.buffers, &self.identity, pictures);
        pictures
    }

    fn load(&mut self, block: &[T]) -> usize {
        let (channels, pixels) = (self.shape.channels, self.shape.pixels());
        self.identity.load(block, channels, self.coupling.identity.start, pixels);
        self.transformed.load(block, channels, self.coupling.transformed.start, pixels);
        block.len() / self.shape.sample()
    }

    /// Takes out what the net left behind on the block that it was run on, with new buffers in its
    /// place.
    fn take_kept(&mut self) -> Kept<T> {
        let Self { conditioner, coupling, buffers, params, .. } = self;
        let inputs = buffers.inputs.iter_mut().skip(FIRST_KEPT);
        let inputs = inputs.map(|input| std::mem::replace(input, lease(input.len()))).collect();
        let outputs = coupling.net.outputs();
        let empty = Planes::new(&conditioner.geometry, outputs, conditioner.pictures);
        Kept { inputs, params: std::mem::replace(params, empty) }
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

    /// Forward (with a log-det) or inverse of this thread's samples; `kept` takes what the forward
    /// pass is to keep.
    fn map(
        &mut self,
        input: &[T],
        output: &mut [T],
        mut log_det: Option<&mut [T]>,
        mut kept: Option<&mut Vec<Kept<T>>>,
    ) {
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
            if let Some(kept) = &mut kept {
                kept.push(self.take_kept());
            }
            let ops = self.conditioner.ops;
            if let Some(log_det) = &mut log_det {
                let sums = pixel_log_det[..count].chunks_exact(pixels).map(|row| ops.total(row));
                log_det[index * pictures..].iter_mut().zip(sums).for_each(|(to, sum)| *to = sum);
            }
        }
    }

    /// Gradients of this thread's samples; with `x`, `input` is the latent and `x` is recovered
    /// from it. `kept` is what the forward pass kept.
    fn gradient(
        &mut self,
        kept: Option<Vec<Kept<T>>>,
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
        let mut kept = kept.into_iter().flatten();
        for (index, from) in input.chunks(size).enumerate() {
            let pictures = match kept.next() {
                Some(kept) => self.start_from(from, kept),
                None => self.start(from),
            };
            let count = pictures * pixels;
            let dz = &dz[index * size..][..from.len()];
            dtransformed.load(dz, channels, transformed.start, pixels);
            didentity.load(dz, channels, identity.start, pixels);
            for (pixels, value) in
                pixel_dlog_det.chunks_exact_mut(pixels).zip(&dlog_det[index * size / sample..])
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
        let (z, log_det, _) = self.forward_of(Pass::Outputs, x, shape);
        (z, log_det)
    }

    /// [`forward`](Self::forward), and what [`backward_from`](Self::backward_from) can start from:
    /// the widest activations, so that the net's products need not be computed again. `None` where
    /// they are too large for that.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_keeping(
        &self,
        x: &[T],
        shape: Shape,
    ) -> (Vec<T>, Vec<T>, Option<Activations<T>>) {
        self.forward_of(Pass::Keeping, x, shape)
    }

    fn forward_of(
        &self,
        pass: Pass,
        x: &[T],
        shape: Shape,
    ) -> (Vec<T>, Vec<T>, Option<Activations<T>>) {
        self.validate(shape);
        shape.check("Coupling: x", x.len());
        let (mut z, mut log_det) = (vec![T::ZERO; x.len()], vec![T::ZERO; shape.batch]);
        let chunks = Chunks::new(shape, self.net.weights());
        let conditioner =
            Conditioner::new(&self.net, shape.height, shape.width, chunks.largest(), pass);
        let tasks = (chunks.split(x, shape.sample()).into_iter())
            .zip(chunks.split_mut(&mut z, shape.sample()))
            .zip(chunks.split_mut(&mut log_det, 1));
        let parts = chunks.run(tasks.collect(), |((x, z), log_det)| {
            let mut kept = Vec::new();
            let keeps = conditioner.keep.then_some(&mut kept);
            Worker::new(self, &conditioner, shape, pass).map(x, z, Some(log_det), keeps);
            kept
        });
        (z, log_det, conditioner.keep.then_some(Activations { parts }))
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
            Conditioner::new(&self.net, shape.height, shape.width, chunks.largest(), Pass::Outputs);
        let tasks = chunks
            .split(z, shape.sample())
            .into_iter()
            .zip(chunks.split_mut(&mut x, shape.sample()));
        chunks.run(tasks.collect(), |(z, x)| {
            Worker::new(self, &conditioner, shape, Pass::Outputs).map(z, x, None, None)
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
        let Gradient { dx, gradients } = self.gradient(None, z, Some(&mut x), dz, dlog_det, shape);
        PullBack { x, dx, gradients }
    }

    /// [`pull_back`](Self::pull_back) where the data is known.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn backward(&self, x: &[T], dz: &[T], dlog_det: &[T], shape: Shape) -> Gradient<T> {
        self.gradient(None, x, None, dz, dlog_det, shape)
    }

    /// [`backward`](Self::backward) from what [`forward_keeping`](Self::forward_keeping) kept of the
    /// same `x` with the same parameters.
    ///
    /// # Panics
    /// As [`forward`](Self::forward); and if what was kept is of another batch.
    pub fn backward_from(
        &self,
        kept: Activations<T>,
        x: &[T],
        dz: &[T],
        dlog_det: &[T],
        shape: Shape,
    ) -> Gradient<T> {
        self.gradient(Some(kept), x, None, dz, dlog_det, shape)
    }

    fn gradient(
        &self,
        kept: Option<Activations<T>>,
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
        let conditioner = Conditioner::new(
            &self.net,
            shape.height,
            shape.width,
            chunks.largest(),
            Pass::Gradients,
        );
        let kept: Vec<_> = match kept {
            Some(kept) => kept.parts.into_iter().map(Some).collect(),
            None => chunks.ranges.iter().map(|_| None).collect(),
        };
        assert_eq!(kept.len(), chunks.ranges.len(), "Coupling: kept of another batch");
        let xs: Vec<_> = match x {
            Some(x) => chunks.split_mut(x, sample).into_iter().map(Some).collect(),
            None => chunks.ranges.iter().map(|_| None).collect(),
        };
        let tasks = (chunks.split(input, sample).into_iter())
            .zip(xs)
            .zip(chunks.split(dz, sample))
            .zip(chunks.split(dlog_det, 1))
            .zip(chunks.split_mut(&mut dx, sample))
            .zip(kept);
        let parts = chunks.run(tasks.collect(), |(((((input, x), dz), dlog_det), dx), kept)| {
            let mut worker = Worker::new(self, &conditioner, shape, Pass::Gradients);
            worker.gradient(kept, input, x, dz, dlog_det, dx)
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
