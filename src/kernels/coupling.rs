//! Couplings on whole batches: the split into channels, the map, and their gradients.

use std::ops::Range;

use super::backward::PartialGradients;
use super::batch::{Chunks, Shape};
use super::conditioner::{Buffers, Conditioner, FIRST_KEPT, Pass};
use super::log_scale::{LogScale, MapRow, Task};
use super::masked::Places;
use super::net::PackedLayer;
use super::spline::{MOST_BINS, SplineRow};
use super::window::{Channels, Planes};
use super::workspace::{Lease, lease, lease_zeros};
use super::{Gradients, Map, Net, Scalar};

/// A coupling layer.
///
/// `z = x` on the identity channels, `z = map(x, net(identity channels, context))` on the transformed
/// ones. The net's outputs are the shifts of all transformed channels, then (affine maps) their raw
/// log-scales; for splines, the widths of the first bin of all channels, then those of the second, and
/// so on.
///
/// Where all channels are identity and transformed channels at once, the layer is autoregressive: the
/// net has to be one whose outputs for a channel see those before it alone. Its inverse takes
/// [`Autoregressive`](super::Autoregressive).
#[derive(Clone, Debug)]
pub struct Coupling<'a, T> {
    /// Channels the conditioner reads.
    pub identity: Range<usize>,
    /// Channels that change; together with the identity channels all there are.
    pub transformed: Range<usize>,
    /// Distance from one channel to the next in both: 1, or 2 for even and odd ones in turn.
    pub step: usize,
    /// What the net reads after the identity channels, `context_width` numbers a sample; of vectors.
    pub context: &'a [T],
    /// Numbers of a sample in `context`.
    pub context_width: usize,
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
    /// Gradient by the context.
    pub dcontext: Vec<T>,
    /// Gradients of the parameters.
    pub gradients: Gradients<T>,
}

/// Result of [`Coupling::backward`].
#[derive(Clone, Debug)]
pub struct Gradient<T> {
    /// Gradient by the input.
    pub dx: Vec<T>,
    /// Gradient by the context.
    pub dcontext: Vec<T>,
    /// Gradients of the parameters.
    pub gradients: Gradients<T>,
}

/// What [`Coupling::forward_keeping`] keeps for [`Coupling::backward_from`].
pub struct Activations<T> {
    /// One list a thread, one entry a block.
    parts: Vec<Vec<Kept<T>>>,
    pub(super) packed: Option<Packed<T>>,
}

/// A net's weights as the products read them, and where its outputs stand.
pub(super) struct Packed<T> {
    layers: Vec<PackedLayer<T>>,
    places: Option<Places>,
}

impl<T: Scalar> Activations<T> {
    /// Bytes of all that is kept.
    pub fn num_bytes(&self) -> usize {
        let block = |kept: &Kept<T>| {
            kept.params.len() + kept.inputs.iter().map(|input| input.len()).sum::<usize>()
        };
        let layers = self.packed.iter().flat_map(|packed| &packed.layers);
        let numbers = self.parts.iter().flatten().map(block).chain(layers.map(PackedLayer::len));
        numbers.sum::<usize>() * size_of::<T>()
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
    places: Option<&'a Places>,
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
        places: Option<&'a Places>,
        shape: Shape,
        pass: Pass,
    ) -> Self {
        let gradient = pass == Pass::Gradients;
        let (geometry, pictures) = (&conditioner.geometry, conditioner.pictures);
        Self {
            coupling,
            conditioner,
            places,
            shape,
            identity: Planes::new(geometry, coupling.net.inputs(), pictures),
            transformed: Planes::new(geometry, coupling.num_transformed(), pictures),
            params: Planes::new(geometry, coupling.net.outputs(), pictures),
            buffers: conditioner.buffers(gradient),
        }
    }

    /// Reads a block and runs the net on it.
    fn start(&mut self, block: &[T], context: &[T]) -> usize {
        let pictures = self.load(block, context);
        self.conditioner.forward(&mut self.buffers, &self.identity, &mut self.params, pictures);
        pictures
    }

    /// Reads a block and puts back what a forward pass kept of it.
    fn start_from(&mut self, block: &[T], context: &[T], kept: Kept<T>) -> usize {
        let pictures = self.load(block, context);
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

    fn load(&mut self, block: &[T], context: &[T]) -> usize {
        let (coupling, pixels) = (self.coupling, self.shape.pixels());
        let (seen, width) = (coupling.num_identity(), coupling.context_width);
        let channels = |range: &Range<usize>| coupling.channels(self.shape, range);
        self.identity.load(block, channels(&coupling.identity), 0..seen, pixels);
        self.identity.load(context, Channels::all(width), seen..seen + width, 1);
        let pictures = block.len() / self.shape.sample();
        if coupling.is_autoregressive() {
            self.transformed.copy(&self.identity, seen, pictures * pixels);
        } else {
            let transformed = 0..coupling.num_transformed();
            self.transformed.load(block, channels(&coupling.transformed), transformed, pixels);
        }
        pictures
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
        let (coupling, pixels) = (self.coupling, self.shape.pixels());
        let channels = |range: &Range<usize>| coupling.channels(self.shape, range);
        let seen = 0..coupling.num_identity();
        if !coupling.is_autoregressive() {
            self.identity.store(block, channels(&coupling.identity), seen, pixels);
        }
        let transformed = 0..coupling.num_transformed();
        self.transformed.store(block, channels(&coupling.transformed), transformed, pixels);
    }

    /// Runs the map on a transformed channel of the block.
    fn map_channel(&mut self, channel: usize, count: usize, task: Task<T>) {
        let apart = [channel, self.coupling.num_transformed()];
        let [first, step] = self.places.map_or(apart, |places| places.rows[channel]);
        let value = self.transformed.row_mut(channel, count);
        if let Map::Spline(spline) = self.coupling.map {
            let (params, stride) = self.params.rows_mut(first);
            let stride = step * stride;
            let mut row = SplineRow { spline, value, params, stride, task };
            // SAFETY: `ops` is this processor's table.
            return unsafe { (self.conditioner.ops.spline_row)(&mut row) };
        }
        let second = match self.coupling.map {
            Map::Additive => None,
            _ => Some(first + step),
        };
        let (shift, raw) = self.params.pair_mut(first, second, count);
        let mut row = MapRow { map: self.coupling.map, channel, value, shift, raw, task };
        // SAFETY: `ops` is this processor's table.
        unsafe { (self.conditioner.ops.map_row)(&mut row) };
    }

    /// Forward (with a log-det) or inverse of this thread's samples; `kept` takes what the forward
    /// pass is to keep.
    fn map(
        &mut self,
        input: &[T],
        context: &[T],
        output: &mut [T],
        mut log_det: Option<&mut [T]>,
        mut kept: Option<&mut Vec<Kept<T>>>,
    ) {
        let (pictures, pixels, sample) =
            (self.conditioner.pictures, self.shape.pixels(), self.shape.sample());
        let mut pixel_log_det = lease(pictures * pixels);
        let blocks = input.chunks(pictures * sample).zip(output.chunks_mut(pictures * sample));
        let width = self.coupling.context_width;
        for (index, (from, to)) in blocks.enumerate() {
            let rows = index * pictures * width..;
            let count = self.start(from, &context[rows][..from.len() / sample * width]) * pixels;
            pixel_log_det.fill(T::ZERO);
            for channel in 0..self.coupling.num_transformed() {
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
    #[allow(clippy::too_many_arguments)] // what comes in and what goes out
    fn gradient(
        &mut self,
        kept: Option<Vec<Kept<T>>>,
        input: &[T],
        context: &[T],
        mut x: Option<&mut [T]>,
        dz: &[T],
        dlog_det: &[T],
        dx: &mut [T],
        dcontext: &mut [T],
    ) -> Part<T> {
        let (pixels, sample) = (self.shape.pixels(), self.shape.sample());
        let (geometry, pictures) = (&self.conditioner.geometry, self.conditioner.pictures);
        let coupling = self.coupling;
        let (seen, changed) = (coupling.num_identity(), coupling.num_transformed());
        let identity = coupling.channels(self.shape, &coupling.identity);
        let transformed = coupling.channels(self.shape, &coupling.transformed);
        let width = coupling.context_width;
        let mut dtransformed = Planes::new(geometry, changed, pictures);
        let mut didentity = Planes::new(geometry, seen + width, pictures);
        let mut pixel_dlog_det = lease(pictures * pixels);
        let mut sums = self.conditioner.partial_gradients();
        let mut dgain = lease_zeros(changed);
        let size = pictures * sample;
        let mut kept = kept.into_iter().flatten();
        for (index, from) in input.chunks(size).enumerate() {
            let rows = index * pictures * width..;
            let rows = rows.start..rows.start + from.len() / sample * width;
            let pictures = match kept.next() {
                Some(kept) => self.start_from(from, &context[rows.clone()], kept),
                None => self.start(from, &context[rows.clone()]),
            };
            let count = pictures * pixels;
            let dz = &dz[index * size..][..from.len()];
            dtransformed.load(dz, transformed, 0..changed, pixels);
            if width > 0 || coupling.is_autoregressive() {
                didentity.clear();
            }
            if !coupling.is_autoregressive() {
                didentity.load(dz, identity, 0..seen, pixels);
            }
            for (pixels, value) in
                pixel_dlog_det.chunks_exact_mut(pixels).zip(&dlog_det[index * size / sample..])
            {
                pixels.fill(*value);
            }
            for channel in 0..changed {
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
            if coupling.is_autoregressive() {
                for channel in 0..changed {
                    let more = didentity.row(channel, count);
                    let to = dtransformed.row_mut(channel, count);
                    to.iter_mut().zip(more).for_each(|(to, more)| *to += *more);
                }
            }
            let to = &mut dx[index * size..][..from.len()];
            if !coupling.is_autoregressive() {
                didentity.store(to, identity, 0..seen, pixels);
            }
            dtransformed.store(to, transformed, 0..changed, pixels);
            let to = &mut dcontext[rows];
            didentity.store(to, Channels::all(width), seen..seen + width, 1);
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
    pub(super) fn is_autoregressive(&self) -> bool {
        self.identity == self.transformed
    }

    /// Channels that the net sees.
    fn num_identity(&self) -> usize {
        self.identity.len().div_ceil(self.step)
    }

    /// Channels that change.
    pub(super) fn num_transformed(&self) -> usize {
        self.transformed.len().div_ceil(self.step)
    }

    fn channels(&self, shape: Shape, range: &Range<usize>) -> Channels {
        Channels { total: shape.channels, first: range.start, step: self.step }
    }

    /// Where the net's outputs stand while a pass works on them, if not in their own order.
    fn places(&self) -> Option<Places> {
        let last = self.net.layers.last().expect("the net was validated");
        Places::new(last, self.num_transformed())
    }

    fn conditioner<'a>(
        &'a self,
        packed: Option<Vec<PackedLayer<T>>>,
        places: Option<&'a Places>,
        shape: Shape,
        chunks: &Chunks,
        pass: Pass,
    ) -> Conditioner<'a, T> {
        let order = places.map(|places| &places.order[..]);
        let size = [shape.height, shape.width];
        Conditioner::new(&self.net, packed, order, size, chunks.largest(), pass)
    }

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
        let places = self.places();
        let conditioner = self.conditioner(None, places.as_ref(), shape, &chunks, pass);
        let tasks = (chunks.split(x, shape.sample()).into_iter())
            .zip(chunks.split(self.context, self.context_width))
            .zip(chunks.split_mut(&mut z, shape.sample()))
            .zip(chunks.split_mut(&mut log_det, 1));
        let parts = chunks.run(tasks.collect(), |(((x, context), z), log_det)| {
            let mut kept = Vec::new();
            let keeps = conditioner.keep.then_some(&mut kept);
            let mut worker = Worker::new(self, &conditioner, places.as_ref(), shape, pass);
            worker.map(x, context, z, Some(log_det), keeps);
            kept
        });
        let Conditioner { layers, keep, keep_packed, .. } = conditioner;
        let packed = keep_packed.then_some(Packed { layers, places });
        (z, log_det, keep.then_some(Activations { parts, packed }))
    }

    /// Latent to data.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn inverse(&self, z: &[T], shape: Shape) -> Vec<T> {
        self.validate(shape);
        assert!(
            !self.is_autoregressive(),
            "Coupling: Autoregressive inverts what sees all channels"
        );
        shape.check("Coupling: z", z.len());
        let mut x = vec![T::ZERO; z.len()];
        let chunks = Chunks::new(shape, self.net.weights());
        let conditioner = self.conditioner(None, None, shape, &chunks, Pass::Outputs);
        let tasks = chunks
            .split(z, shape.sample())
            .into_iter()
            .zip(chunks.split(self.context, self.context_width))
            .zip(chunks.split_mut(&mut x, shape.sample()));
        chunks.run(tasks.collect(), |((z, context), x)| {
            let mut worker = Worker::new(self, &conditioner, None, shape, Pass::Outputs);
            worker.map(z, context, x, None, None)
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
        assert!(
            !self.is_autoregressive(),
            "Coupling: Autoregressive inverts what sees all channels"
        );
        let mut x = vec![T::ZERO; z.len()];
        let Gradient { dx, dcontext, gradients } =
            self.gradient(None, z, Some(&mut x), dz, dlog_det, shape);
        PullBack { x, dx, dcontext, gradients }
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
        let mut dcontext = vec![T::ZERO; self.context.len()];
        let chunks = Chunks::new(shape, self.net.weights());
        let (kept, packed): (Vec<_>, _) = match kept {
            Some(kept) => (kept.parts.into_iter().map(Some).collect(), kept.packed),
            None => (chunks.ranges.iter().map(|_| None).collect(), None),
        };
        let (packed, places) = match packed {
            Some(Packed { layers, places }) => (Some(layers), places),
            None => (None, self.places()),
        };
        let conditioner =
            self.conditioner(packed, places.as_ref(), shape, &chunks, Pass::Gradients);
        assert_eq!(kept.len(), chunks.ranges.len(), "Coupling: kept of another batch");
        let xs: Vec<_> = match x {
            Some(x) => chunks.split_mut(x, sample).into_iter().map(Some).collect(),
            None => chunks.ranges.iter().map(|_| None).collect(),
        };
        let tasks = (chunks.split(input, sample).into_iter())
            .zip(chunks.split(self.context, self.context_width))
            .zip(xs)
            .zip(chunks.split(dz, sample))
            .zip(chunks.split(dlog_det, 1))
            .zip(chunks.split_mut(&mut dx, sample))
            .zip(chunks.split_mut(&mut dcontext, self.context_width))
            .zip(kept);
        let parts = chunks.run(
            tasks.collect(),
            |(((((((input, context), x), dz), dlog_det), dx), dcontext), kept)| {
                let mut worker =
                    Worker::new(self, &conditioner, places.as_ref(), shape, Pass::Gradients);
                worker.gradient(kept, input, context, x, dz, dlog_det, dx, dcontext)
            },
        );
        let (sums, dgains): (Vec<_>, Vec<_>) =
            parts.into_iter().map(|part| (part.sums, part.dgain)).unzip();
        let mut gradients = conditioner.finish(&sums);
        if let Map::Affine { log_scale: LogScale::Tanh { .. }, .. } = self.map {
            gradients.gain = vec![T::ZERO; self.num_transformed()];
            for dgain in &dgains {
                gradients.gain.iter_mut().zip(dgain.iter()).for_each(|(to, from)| *to += *from);
            }
        }
        Gradient { dx, dcontext, gradients }
    }

    pub(super) fn validate(&self, shape: Shape) {
        self.net.validate();
        let Self { identity, transformed, step, context_width: width, .. } = self;
        let adjacent = (identity.start == 0 && identity.end == transformed.start)
            || (transformed.start == 0 && transformed.end == identity.start);
        let in_turn = identity.start + transformed.start == 1
            && identity.end.max(transformed.end) == identity.end.min(transformed.end);
        let divides = match step {
            1 => adjacent || (self.is_autoregressive() && identity.start == 0),
            _ => *step == 2 && in_turn,
        };
        assert!(
            divides
                && !identity.is_empty()
                && !transformed.is_empty()
                && identity.end.max(transformed.end) == shape.channels,
            "Coupling: identity {identity:?} and transformed {transformed:?} must divide \
             the {} channels in two",
            shape.channels
        );
        assert!(
            *width == 0 || shape.pixels() == 1,
            "Coupling: the net sees a context beside vectors only"
        );
        assert_eq!(
            self.context.len(),
            shape.batch * width,
            "Coupling: the context must have {width} numbers for each sample"
        );
        assert!(shape.pixels() > 0, "Coupling: the shape is empty: {shape:?}");
        assert_eq!(
            self.net.inputs(),
            self.num_identity() + width,
            "Coupling: the net must read the identity channels and the context"
        );
        let params = self.map.params_per_channel() * self.num_transformed();
        assert_eq!(self.net.outputs(), params, "Coupling: the net must write {params} channels");
        if let Map::Spline(spline) = self.map {
            let bins = spline.bins;
            assert!(
                bins > 0 && bins <= MOST_BINS,
                "Coupling: {bins} bins are not 1 to {MOST_BINS}"
            );
        }
        if let Map::Affine { log_scale: LogScale::Tanh { gain }, .. } = self.map {
            assert_eq!(
                gain.len(),
                self.num_transformed(),
                "Coupling: one gain is needed for each transformed channel"
            );
        }
    }
}
