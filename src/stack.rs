//! [`FlowStack`]: levels of flows with splits between them and a prior, and its typed [`Latents`].

use std::hash::{BuildHasher, Hasher, RandomState};

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::chain::on_an_empty_tape;
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host::is_finite;
use crate::metrics;
use crate::prior::{Prior, SplitPrior, StandardNormal};
use crate::reshape::{Squeeze, merge_channels, num_kept, split_channels};
use crate::tape::Tape;

/// A multi-scale model: levels of flows, half of the channels factored out after each level but the
/// last, and a prior on every part.
///
/// `x -> level 0 -> split -> level 1 -> split -> ... -> last level`
///
/// - `ln p(x) = sum over levels of (log_det + ln split_prior(out | kept)) + ln prior(last)`
/// - a level `F` is any flow: `(Squeeze, Vec<GlowStep>)` for Glow, `Vec<_>` of couplings for vectors;
///   one level is a plain stack
/// - the first `ceil(c / 2)` channels go on, the rest is factored out
/// - `S` is the split's prior: a [`Prior`], or a
///   [`ConditionalNormal`](crate::prior::ConditionalNormal) of the kept half
///
/// A stack is itself a [`Flow`] (its latent put back together in the shape of `x`, the priors left
/// out), so stacks nest.
///
/// Source: Dinh et al., *Density estimation using Real NVP*,
/// [arXiv:1605.08803](https://arxiv.org/abs/1605.08803), section 3.6.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
///
/// let device = burn_flows::backend::device();
/// let stack: FlowStack<2, _> =
///     FlowStack::single(DiagonalScaling::new(2, &device)?, StandardNormal::new(), &[2])?;
/// let log_prob = stack.log_prob(Tensor::from_data([[0.0, 0.0]], &device));
/// let expected = -(2.0 * std::f32::consts::PI).ln();
/// assert!((log_prob.into_scalar::<f32>() - expected).abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct FlowStack<const D: usize, F, P = StandardNormal, S = StandardNormal> {
    /// The flow of each level, data side first.
    pub levels: Vec<F>,
    /// The prior of what is factored out after each level but the last.
    pub split_priors: Vec<S>,
    /// The prior of what comes out of the last level.
    pub prior: P,
    #[module(skip)]
    shapes: Shapes<D>,
}

/// Shapes of one sample (batch size 1) through the levels.
#[derive(Debug, Clone)]
struct Shapes<const D: usize> {
    /// Into each level.
    inputs: Vec<[usize; D]>,
    /// Of each part of the latent.
    parts: Vec<[usize; D]>,
}

/// The latent of a [`FlowStack`]: one part for each level, in the order in which they leave the
/// stack (the part factored out first is the finest, the last one the deepest).
#[derive(Debug, Clone)]
pub struct Latents<const D: usize> {
    parts: Vec<Tensor<D>>,
}

impl<const D: usize> Latents<D> {
    /// From parts as [`FlowStack::encode`] orders them.
    ///
    /// # Panics
    /// If there is no part, or the parts' batch sizes differ.
    pub fn new(parts: Vec<Tensor<D>>) -> Self {
        let batch = parts.first().expect("Latents: at least one part is needed").dims()[0];
        for part in &parts {
            assert!(
                part.dims()[0] == batch,
                "Latents: batch sizes {batch} and {} differ; all parts must have the same",
                part.dims()[0]
            );
        }
        Self { parts }
    }

    /// The parts, finest first.
    pub fn parts(&self) -> &[Tensor<D>] {
        &self.parts
    }

    /// The parts, finest first.
    pub fn into_parts(self) -> Vec<Tensor<D>> {
        self.parts
    }

    /// Number of samples.
    pub fn batch_size(&self) -> usize {
        self.parts[0].dims()[0]
    }

    /// All parts in one row a sample, finest first: `[batch, dims]`. Exact; undone by
    /// [`FlowStack::unflatten`].
    pub fn flatten(&self) -> Tensor<2> {
        let batch = self.batch_size();
        let rows = self.parts.iter().map(|part| {
            let width = part.dims()[1..].iter().product::<usize>();
            part.clone().reshape([batch, width])
        });
        Tensor::cat(rows.collect(), 1)
    }
}

impl<const D: usize, F: Module, P: Module, S: Module> FlowStack<D, F, P, S> {
    /// A stack for samples of shape `sample_shape` (without the batch): `[features]` or
    /// `[channels, height, width]`. One split prior is needed between every two levels.
    ///
    /// # Errors
    /// If there is no level, the number of split priors is not one less than that of levels, or the
    /// shape cannot go through the levels (an odd side before a squeeze, too many levels, fewer than
    /// two channels at a split).
    pub fn new(
        levels: Vec<F>,
        split_priors: Vec<S>,
        prior: P,
        sample_shape: &[usize],
    ) -> Result<Self>
    where
        F: Flow<D>,
    {
        if levels.is_empty() {
            return Err(config("levels", 0, "at least 1", "give the stack at least one level"));
        }
        if split_priors.len() + 1 != levels.len() {
            return Err(config(
                "split_priors",
                split_priors.len(),
                format!("{}, one between every two of {} levels", levels.len() - 1, levels.len()),
                "add or remove split priors",
            ));
        }
        if sample_shape.len() + 1 != D || sample_shape.contains(&0) {
            return Err(config(
                "sample_shape",
                format!("{sample_shape:?}"),
                format!("{} sizes of at least 1", D - 1),
                "give the shape of one sample, without the batch: [features] or \
                 [channels, height, width]",
            ));
        }
        let mut shape = [1; D];
        shape[1..].copy_from_slice(sample_shape);
        let shapes = Shapes::through(&levels, shape)?;
        Ok(Self { levels, split_priors, prior, shapes })
    }

    /// Shape of one sample, without the batch.
    pub fn sample_shape(&self) -> &[usize] {
        &self.shapes.inputs[0][1..]
    }

    /// Number of values of one sample, `D` of bits per dimension.
    pub fn num_dims(&self) -> usize {
        self.sample_shape().iter().product()
    }

    /// Shapes of the latent's parts, finest first, with batch size 1.
    pub fn latent_shapes(&self) -> &[[usize; D]] {
        &self.shapes.parts
    }

    /// The inverse of [`Latents::flatten`].
    ///
    /// # Panics
    /// If the rows do not have [`num_dims`](FlowStack::num_dims) entries.
    pub fn unflatten(&self, rows: Tensor<2>) -> Latents<D> {
        let [batch, width] = rows.dims();
        assert!(
            width == self.num_dims(),
            "FlowStack: unflatten got rows of {width} entries, but a sample has {}",
            self.num_dims()
        );
        let mut start = 0;
        let parts = self.shapes.parts.iter().map(|&shape| {
            let size = shape.iter().product::<usize>();
            let part = rows.clone().narrow(1, start, size).reshape(with_batch(shape, batch));
            start += size;
            part
        });
        Latents { parts: parts.collect() }
    }

    fn assert_sample_shape(&self, x: &Tensor<D>) {
        assert!(
            x.dims()[1..] == *self.sample_shape(),
            "FlowStack: got shape {:?}, but was built for samples of shape {:?}",
            x.dims(),
            self.sample_shape()
        );
    }
}

impl<const D: usize, F: Module, P: Module> FlowStack<D, F, P, StandardNormal> {
    /// One level and its prior, no split: a plain flow with a density.
    ///
    /// # Errors
    /// As [`FlowStack::new`].
    pub fn single(flow: F, prior: P, sample_shape: &[usize]) -> Result<Self>
    where
        F: Flow<D>,
    {
        Self::new(vec![flow], Vec::new(), prior, sample_shape)
    }
}

impl<const D: usize> Shapes<D> {
    fn through<F: Flow<D>>(levels: &[F], mut shape: [usize; D]) -> Result<Self> {
        let mut shapes = Self { inputs: Vec::new(), parts: Vec::new() };
        for (index, level) in levels.iter().enumerate() {
            shapes.inputs.push(shape);
            shape = level.latent_shape(shape)?;
            if index + 1 == levels.len() {
                shapes.parts.push(shape);
                continue;
            }
            let channels = shape[1];
            if channels < 2 {
                return Err(config(
                    "channels at the split",
                    channels,
                    "at least 2",
                    "squeeze before the split, or use fewer levels",
                ));
            }
            let kept = num_kept(channels);
            let mut out = shape;
            out[1] = channels - kept;
            shapes.parts.push(out);
            shape[1] = kept;
        }
        Ok(shapes)
    }
}

fn config(
    parameter: &'static str,
    got: impl ToString,
    needed: impl ToString,
    advice: impl ToString,
) -> FlowError {
    FlowError::config("FlowStack", parameter, got, needed, advice)
}

fn with_batch<const D: usize>(mut shape: [usize; D], batch: usize) -> [usize; D] {
    shape[0] = batch;
    shape
}

/// What a forward pass through the levels gives.
pub(crate) struct Encoded<const D: usize> {
    pub(crate) latents: Latents<D>,
    /// The kept half at every split, on which the split prior is conditioned.
    pub(crate) kept: Vec<Tensor<D>>,
    /// Log-determinant of each level, `[batch]`.
    pub(crate) log_dets: Vec<Tensor<1>>,
}

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// Maps data to latents: `x -> (latents, ln|det|)`.
    ///
    /// # Panics
    /// If the samples do not have the shape the stack was built for.
    pub fn encode(&self, x: Tensor<D>) -> (Latents<D>, Tensor<1>) {
        self.encode_on(x, &mut Tape::default())
    }

    fn encode_on(&self, x: Tensor<D>, tape: &mut Tape) -> (Latents<D>, Tensor<1>) {
        let encoded = self.encode_levels(x, tape);
        let log_det = encoded.log_dets.into_iter().reduce(|sum, more| sum + more);
        (encoded.latents, log_det.expect("a stack has at least one level"))
    }

    fn encode_levels(&self, x: Tensor<D>, tape: &mut Tape) -> Encoded<D> {
        self.assert_sample_shape(&x);
        let last = self.levels.len() - 1;
        let (mut parts, mut kept, mut log_dets) = (Vec::new(), Vec::new(), Vec::new());
        let mut h = x;
        for (index, level) in self.levels.iter().enumerate() {
            let (z, log_det) = level.forward_on(h, tape);
            log_dets.push(log_det);
            if index == last {
                parts.push(z);
                break;
            }
            let (stays, out) = split_channels(z);
            parts.push(out);
            kept.push(stays.clone());
            h = stays;
        }
        Encoded { latents: Latents { parts }, kept, log_dets }
    }

    /// Maps latents back to data: the inverse of [`encode`](FlowStack::encode), so `decode` of an
    /// image's latents is that image, not a new sample.
    ///
    /// # Panics
    /// If the parts do not have the shapes of [`latent_shapes`](FlowStack::latent_shapes).
    pub fn decode(&self, latents: Latents<D>) -> Tensor<D> {
        let batch = latents.batch_size();
        let shapes: Vec<_> = latents.parts.iter().map(|part| part.dims()).collect();
        let needed: Vec<_> =
            self.shapes.parts.iter().map(|&shape| with_batch(shape, batch)).collect();
        assert!(
            shapes == needed,
            "FlowStack: decode got parts of shapes {shapes:?}, but needs {needed:?}"
        );
        let mut parts = latents.parts.into_iter().rev();
        let mut h = parts.next().expect("Latents have at least one part");
        for (index, level) in self.levels.iter().enumerate().rev() {
            h = level.inverse(h);
            if index > 0 {
                h = merge_channels(h, parts.next().expect("as many parts as levels"));
            }
        }
        h
    }

    /// `ln p(x)` in nats, `[batch]`; for images with respect to the values the model sees (see
    /// [`bits_per_dim`](FlowStack::bits_per_dim)).
    ///
    /// # Panics
    /// If the samples do not have the shape the stack was built for.
    pub fn log_prob(&self, x: Tensor<D>) -> Tensor<1> {
        self.log_prob_terms(x)
            .into_iter()
            .reduce(|sum, more| sum + more)
            .expect("two terms a level")
    }

    /// The terms that add up to [`log_prob`](FlowStack::log_prob): for each level its
    /// log-determinant, then the log-density of its part of the latent; each `[batch]`, in nats.
    pub fn log_prob_terms(&self, x: Tensor<D>) -> Vec<Tensor<1>> {
        let Encoded { latents, kept, log_dets } = self.encode_levels(x, &mut Tape::default());
        let priors = self.prior_log_probs(latents.parts, kept);
        log_dets.into_iter().zip(priors).flat_map(|(log_det, prior)| [log_det, prior]).collect()
    }

    fn prior_log_probs(&self, parts: Vec<Tensor<D>>, kept: Vec<Tensor<D>>) -> Vec<Tensor<1>> {
        let mut parts = parts.into_iter();
        let mut terms: Vec<_> = self
            .split_priors
            .iter()
            .zip(kept)
            .map(|(prior, kept)| prior.log_prob(parts.next().expect("a part for each level"), kept))
            .collect();
        terms.push(self.prior.log_prob(parts.next().expect("a part for each level")));
        terms
    }

    /// Bits per dimension of each sample, `[batch]`, by the definition of
    /// [`metrics::bits_per_dim`]: `x` holds values of `levels` levels (256 for 8 bits), scaled so
    /// that a level has width `1 / levels`, dequantized.
    pub fn bits_per_dim(&self, x: Tensor<D>, levels: u32) -> Tensor<1> {
        let at_zero = metrics::bits_per_dim(0.0, self.num_dims(), levels);
        let per_nat = at_zero - metrics::bits_per_dim(1.0, self.num_dims(), levels);
        self.log_prob(x) * -per_nat + at_zero
    }

    /// `n` samples at the given temperature (1 draws from the model), different at every call; see
    /// [`sample_with`](FlowStack::sample_with) for repeatable ones.
    pub fn sample(&self, n: usize, temperature: f64) -> Tensor<D> {
        // The standard library's hasher is keyed by the operating system's entropy.
        let seed = RandomState::new().build_hasher().finish();
        self.sample_with(n, temperature, &mut StdRng::seed_from_u64(seed))
    }

    /// `n` samples at the given temperature from the given random generator.
    pub fn sample_with(&self, n: usize, temperature: f64, rng: &mut impl Rng) -> Tensor<D> {
        self.decode_with(n, rng, |_| temperature)
    }

    /// Samples whose part of each level is drawn at its own temperature (finest level first).
    ///
    /// # Panics
    /// If there is not one temperature a level.
    pub fn sample_levels(&self, n: usize, temperatures: &[f64], rng: &mut impl Rng) -> Tensor<D> {
        assert!(
            temperatures.len() == self.levels.len(),
            "FlowStack: got {} temperatures for {} levels",
            temperatures.len(),
            self.levels.len()
        );
        self.decode_with(n, rng, |level| temperatures[level])
    }

    fn decode_with(
        &self,
        n: usize,
        rng: &mut impl Rng,
        temperature: impl Fn(usize) -> f64,
    ) -> Tensor<D> {
        let (device, dtype) = device_and_dtype(self);
        let last = self.levels.len() - 1;
        let shape = |level: usize| with_batch(self.shapes.parts[level], n);
        let mut h = self.prior.sample(shape(last), temperature(last), rng, &device, dtype);
        for (index, level) in self.levels.iter().enumerate().rev() {
            h = level.inverse(h);
            if index > 0 {
                let split = index - 1;
                let out = self.split_priors[split].sample(
                    shape(split),
                    h.clone(),
                    temperature(split),
                    rng,
                );
                h = merge_channels(h, out);
            }
        }
        h
    }

    /// The sum of `weight ln p(x)` over the batch, `[1]`, and its gradients, added to `grads`; gives
    /// back `x` as the backward pass found it and the gradient with respect to it. See
    /// [`training::reversible`](crate::training::reversible).
    pub(crate) fn pull_back_log_prob(
        &self,
        x: Tensor<D>,
        weight: f64,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<1>, Tensor<D>, Tensor<D>) {
        let (latents, kept, log_dets, loss) = {
            // Gone before the gradients come: its parameters are shared, but not all of it is.
            let frozen = self.valid();
            let Encoded { latents, kept, log_dets } = frozen.encode_levels(x, tape);
            let priors = frozen.prior_log_probs(latents.parts.clone(), kept.clone());
            let terms = log_dets.iter().cloned().chain(priors);
            let log_prob = terms.reduce(|sum, more| sum + more).expect("two terms a level");
            (latents, kept, log_dets, log_prob.sum() * weight)
        };
        let dlog_det = log_dets[0].ones_like() * weight;

        let mut parts = latents.parts.into_iter().rev();
        let mut z = parts.next().expect("a part for each level");
        let mut dz = self.prior.backward(z.clone(), weight, grads);
        let mut kept = kept.into_iter().rev();
        for (index, level) in self.levels.iter().enumerate().rev() {
            let (x, dx) = level.pull_back_on(z, dz, dlog_det.clone(), tape, grads);
            if index == 0 {
                return (loss, x, dx);
            }
            let out = parts.next().expect("a part for each level");
            let kept = kept.next().expect("a kept half for each split");
            let prior = &self.split_priors[index - 1];
            let (dout, dkept) = prior.backward(out.clone(), kept, weight, grads);
            z = merge_channels(x, out);
            dz = merge_channels(dx + dkept, dout);
        }
        unreachable!("a stack has at least one level")
    }

    /// The first place where the given batch, sent through the stack, stops being finite: a level
    /// and, where a level is a sequence, what comes out of the stack is finite for `None`.
    pub fn first_not_finite(&self, x: Tensor<D>) -> Option<String> {
        if !is_finite(x.clone()) {
            return Some("the input batch".into());
        }
        let mut h = x;
        for (index, level) in self.levels.iter().enumerate() {
            let (z, log_det) = level.forward(h);
            if !is_finite(z.clone()) || !is_finite(log_det) {
                return Some(format!("level {index}"));
            }
            if index + 1 == self.levels.len() {
                return None;
            }
            h = split_channels(z).0;
        }
        None
    }
}

/// As a flow, a stack is its map alone: the latent's parts put back together in the shape of `x`
/// (each level's squeezes undone), the priors left out.
impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> Flow<D> for FlowStack<D, F, P, S>
where
    Self: Module,
{
    on_an_empty_tape!();

    fn forward_on(&self, x: Tensor<D>, tape: &mut Tape) -> (Tensor<D>, Tensor<1>) {
        let (latents, log_det) = self.encode_on(x, tape);
        (self.assemble(latents), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.decode(self.disassemble(z))
    }

    fn initialize(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        self.data_pass(x, F::initialize)
    }

    fn observe(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        self.data_pass(x, F::observe)
    }

    fn has_running_statistics(&self) -> bool {
        self.levels.iter().any(|level| level.has_running_statistics())
    }

    fn check(&self) -> Result<()> {
        self.levels.iter().try_for_each(|level| level.check())
    }

    fn pull_back_on(
        &self,
        z: Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let mut parts = self.disassemble(z).parts.into_iter().rev();
        // Putting the parts together only moves values, so gradients take the same way back.
        let mut dparts = self.disassemble(dz).parts.into_iter().rev();
        let mut z = parts.next().expect("a part for each level");
        let mut dz = dparts.next().expect("a part for each level");
        for (index, level) in self.levels.iter().enumerate().rev() {
            (z, dz) = level.pull_back_on(z, dz, dlog_det.clone(), tape, grads);
            if index > 0 {
                z = merge_channels(z, parts.next().expect("a part for each level"));
                dz = merge_channels(dz, dparts.next().expect("a part for each level"));
            }
        }
        (z, dz)
    }
}

impl<const D: usize, F: Module, P: Module, S: Module> FlowStack<D, F, P, S> {
    /// Sends a batch through the levels, which may change on the way.
    fn data_pass(
        mut self,
        x: Tensor<D>,
        pass: fn(F, Tensor<D>) -> (F, Tensor<D>),
    ) -> (Self, Tensor<D>) {
        self.assert_sample_shape(&x);
        let last = self.levels.len() - 1;
        let (mut levels, mut parts) = (Vec::new(), Vec::new());
        let mut h = x;
        for (index, level) in std::mem::take(&mut self.levels).into_iter().enumerate() {
            let (level, z) = pass(level, h);
            levels.push(level);
            if index == last {
                parts.push(z);
                break;
            }
            let (kept, out) = split_channels(z);
            parts.push(out);
            h = kept;
        }
        self.levels = levels;
        let z = self.assemble(Latents { parts });
        (self, z)
    }

    fn assemble(&self, latents: Latents<D>) -> Tensor<D> {
        let mut parts = latents.parts.into_iter().rev();
        let mut z = parts.next().expect("a part for each level");
        for (index, &shape) in self.shapes.inputs.iter().enumerate().rev() {
            z = unsqueeze_to(z, shape);
            if index > 0 {
                z = merge_channels(z, parts.next().expect("a part for each level"));
            }
        }
        z
    }

    fn disassemble(&self, z: Tensor<D>) -> Latents<D> {
        self.assert_sample_shape(&z);
        let last = self.shapes.parts.len() - 1;
        let mut parts = Vec::new();
        let mut h = z;
        for (index, &part) in self.shapes.parts.iter().enumerate() {
            h = squeeze_to(h, part);
            if index < last {
                let (kept, out) = split_channels(h);
                parts.push(out);
                h = kept;
            } else {
                parts.push(h.clone());
            }
        }
        Latents { parts }
    }
}

/// Unsqueezes until the spatial sides are those of `shape`.
fn unsqueeze_to<const D: usize>(mut z: Tensor<D>, shape: [usize; D]) -> Tensor<D> {
    while z.dims()[2..] != shape[2..] {
        z = through_images(z, Squeeze::unsqueeze);
    }
    z
}

/// Squeezes until the spatial sides are those of `shape`.
fn squeeze_to<const D: usize>(mut z: Tensor<D>, shape: [usize; D]) -> Tensor<D> {
    while z.dims()[2..] != shape[2..] {
        z = through_images(z, |z| Squeeze::new().forward(z).0);
    }
    z
}

/// Applies a map of images to a tensor whose rank is 4 when it runs: only images change their sides.
fn through_images<const D: usize>(
    z: Tensor<D>,
    map: impl FnOnce(Tensor<4>) -> Tensor<4>,
) -> Tensor<D> {
    let shape: [usize; 4] = z.dims()[..].try_into().expect("only images are squeezed");
    let image = map(z.reshape(shape));
    let mut out = [0; D];
    out.copy_from_slice(&image.dims());
    image.reshape(out)
}

/// Device and dtype of a model's first float parameter; the compiled-in device and f32 for a model
/// without any.
pub(crate) fn device_and_dtype<M: Module>(module: &M) -> (Device, DType) {
    struct First(Option<(Device, DType)>);
    impl ModuleVisitor for First {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if self.0.is_none() {
                let value = param.val();
                self.0 = Some((value.device(), value.dtype()));
            }
        }
    }
    let mut first = First(None);
    module.visit(&mut first);
    first.0.unwrap_or_else(|| (crate::backend::device(), DType::F32))
}
