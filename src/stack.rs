//! [`FlowStack`]: levels of flows with splits between them and a prior.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Serialize, Serializer};

use crate::chain::{from_output, zero_log_det};
use crate::conditioner::first_following_norm;
use crate::error::{FlowError, Result};
use crate::flow::{At, Flow, Pass, pull_back_surrogate, pull_back_through};
use crate::host::{self, is_finite};
use crate::latent::{Latents, Noise};
use crate::metrics;
use crate::prior::{Prior, SplitPrior, StandardNormal};
use crate::record::{self, Configuration, Setting};
use crate::reshape::{Squeeze, merge_channels, num_kept, split_channels};
use crate::tape::Tape;
use crate::variational::replay::{Recorder, Replay};

/// A multi-scale model: levels of flows, half of the channels factored out after each level but the
/// last, and a prior on every part.
///
/// `x -> level 0 -> split -> level 1 -> split -> ... -> last level`
///
/// - `ln p(x) = sum over levels of (log_det + ln split_prior(out | kept)) + ln prior(last)`
/// - a level `F` is any flow: `(Squeeze, Vec<GlowStep>)` for Glow, `Vec<_>` of couplings for vectors;
///   one level is a plain stack
/// - the first `ceil(c / 2)` channels go on, the rest is factored out
/// - `S` is the split's prior: a [`Prior`](trait@Prior), or a
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
    shapes: Setting<Shapes<D>>,
    configuration: Setting<Option<Arc<str>>>,
}

/// Shapes of one sample (batch size 1) through the levels.
#[derive(Debug, Clone)]
struct Shapes<const D: usize> {
    /// Into each level.
    inputs: Vec<[usize; D]>,
    /// Of each part of the latent.
    parts: Vec<[usize; D]>,
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
        let (shapes, configuration) = (shapes.into(), Setting::of_json(None));
        Ok(Self { levels, split_priors, prior, shapes, configuration })
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

    /// The inverse of [`Latents::flatten`], for latents from [`encode`](FlowStack::encode).
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
        if batch == 0 {
            let empty = |&shape: &[usize; D]| host::empty_like(&rows, with_batch(shape, 0));
            return Latents::of(self.shapes.parts.iter().map(empty).collect());
        }
        let mut start = 0;
        let parts = self.shapes.parts.iter().map(|&shape| {
            let size = shape.iter().product::<usize>();
            let part = rows.clone().narrow(1, start, size).reshape(with_batch(shape, batch));
            start += size;
            part
        });
        Latents::of(parts.collect())
    }

    /// Keeps what the stack was built from, so that its record holds it and
    /// [`restore`](record::restore) needs nothing else.
    pub fn with_configuration<C: Configuration<Model = Self>>(mut self, configuration: &C) -> Self {
        self.configuration = Setting::of_json(Some(record::to_json(configuration)));
        self
    }

    /// What the stack was built from, if it is of this kind and was kept.
    pub fn configuration<C: Configuration<Model = Self>>(&self) -> Option<C> {
        record::from_json(self.configuration.as_deref()?)
    }

    /// Writes the model to a safetensors file: [`record::save`].
    ///
    /// # Errors
    /// As [`record::save`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()>
    where
        Self: Module,
    {
        record::save(self, path)
    }

    /// The fewest pixels that a channel has on the way through the levels.
    pub(crate) fn fewest_pixels(&self) -> usize {
        let shapes = self.shapes.inputs.iter().chain(&self.shapes.parts);
        let pixels = shapes.map(|shape| shape[2..].iter().product());
        pixels.min().expect("a stack has at least one level")
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

impl<const D: usize> Serialize for Shapes<D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let samples = |shapes: &[[usize; D]]| -> Vec<Vec<usize>> {
            shapes.iter().map(|shape| shape[1..].to_vec()).collect()
        };
        let shapes = [("inputs", samples(&self.inputs)), ("latents", samples(&self.parts))];
        serializer.collect_map(shapes)
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

/// What the forward half of a training step leaves for the backward half.
#[derive(Clone)]
pub(crate) struct LogProbPass<const D: usize> {
    /// `[1]`.
    pub(crate) weighted_log_prob: Tensor<1>,
    weight: f64,
    latents: Latents<D>,
    kept: Vec<Tensor<D>>,
    /// Gradient with respect to the log-determinant, `[batch]`.
    dlog_det: Tensor<1>,
}

impl<const D: usize> LogProbPass<D> {
    /// What comes out of the last level.
    pub(crate) fn top(&self) -> Tensor<D> {
        self.latents.parts.last().expect("a part for each level").clone()
    }
}

/// Draws of a step without stored activations.
pub(crate) struct SamplePass<const D: usize> {
    pub(crate) x: Tensor<D>,
    /// `ln p` of each draw, `[n]`.
    pub(crate) log_prob: Tensor<1>,
    /// What was drawn for the part of each level.
    noise: Vec<Vec<u64>>,
}

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// Whole samples, given value by value in row-major order, as a batch on the model's device and in
    /// its dtype: what comes from [`Quantization::dequantize`](crate::preprocess::Quantization) goes
    /// into the model by this, whether it is one of images or of vectors.
    ///
    /// # Panics
    /// If the values are not a whole number of samples.
    pub fn batch(&self, values: Vec<f32>) -> Tensor<D> {
        assert!(
            values.len().is_multiple_of(self.num_dims()),
            "FlowStack: batch got {} values, but a sample has {}",
            values.len(),
            self.num_dims()
        );
        let (device, dtype) = device_and_dtype(self);
        let shape = with_batch(self.shapes.inputs[0], values.len() / self.num_dims());
        Tensor::from_data(TensorData::new(values, shape), (&device, dtype))
    }

    /// Whether images of `len` values each can be samples of this model.
    pub(crate) fn check_image_len(&self, len: usize) -> Result<()> {
        if len == self.num_dims() {
            return Ok(());
        }
        Err(FlowError::Invalid {
            what: "FlowStack: the values of an image".into(),
            got: len.to_string(),
            needed: format!("{} for samples of shape {:?}", self.num_dims(), self.sample_shape()),
            advice: "crop and resize the images to the shape that the model was built for".into(),
        })
    }

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

    pub(crate) fn encode_levels(&self, x: Tensor<D>, tape: &mut Tape) -> Encoded<D> {
        self.assert_sample_shape(&x);
        if host::has_no_samples(&x) {
            let empty = |&shape: &[usize; D]| host::empty_like(&x, with_batch(shape, 0));
            let parts = self.shapes.parts.iter().map(empty).collect();
            let kept = self.shapes.inputs[1..].iter().map(empty).collect();
            let log_dets = self.levels.iter().map(|_| zero_log_det(&x)).collect();
            return Encoded { latents: Latents::of(parts), kept, log_dets };
        }
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
        Encoded { latents: Latents::of(parts), kept, log_dets }
    }

    /// Maps latents back to data: the inverse of [`encode`](FlowStack::encode), so `decode` of an
    /// image's latents is that image, not a new sample.
    ///
    /// # Panics
    /// If the parts do not have the shapes of [`latent_shapes`](FlowStack::latent_shapes).
    pub fn decode(&self, latents: Latents<D>) -> Tensor<D> {
        self.assert_latent_shapes("decode", latents.parts());
        let mut parts = latents.into_parts();
        self.descend(|_, _| parts.pop().expect("a part for each level"))
    }

    /// Maps data to the noise that [`sample_with`](FlowStack::sample_with) would make it from: the
    /// latents, each part that a split factored out standardized by its prior given the kept half.
    ///
    /// For a [`ConditionalNormal`](crate::prior::ConditionalNormal) that is `(z - mean) / std`, for a
    /// prior that does not depend on the kept half `z` itself. Moving in these coordinates
    /// ([`interpolate`](FlowStack::interpolate), [`manipulate`](FlowStack::manipulate)), the finer
    /// parts go with the coarser ones as the model has learned it; in the coordinates of
    /// [`encode`](FlowStack::encode) they would stay where they are and become improbable.
    ///
    /// Source: openai/glow, `model.py`, `split2d` (its `eps`); the paper does not say which it means.
    ///
    /// # Panics
    /// As [`encode`](FlowStack::encode).
    pub fn encode_noise(&self, x: Tensor<D>) -> Noise<D> {
        let Encoded { latents, kept, .. } = self.encode_levels(x, &mut Tape::default());
        let mut parts = latents.into_parts();
        for ((part, prior), kept) in parts.iter_mut().zip(&self.split_priors).zip(kept) {
            *part = prior.standardize(part.clone(), kept);
        }
        Latents::of(parts)
    }

    /// The inverse of [`encode_noise`](FlowStack::encode_noise).
    ///
    /// # Panics
    /// As [`decode`](FlowStack::decode).
    pub fn decode_noise(&self, noise: Noise<D>) -> Tensor<D> {
        self.assert_latent_shapes("decode_noise", noise.parts());
        let mut parts = noise.into_parts();
        self.descend(|level, kept| {
            let part = parts.pop().expect("a part for each level");
            match kept {
                Some(kept) => self.split_priors[level].unstandardize(part, kept),
                None => part,
            }
        })
    }

    pub(crate) fn assert_latent_shapes(&self, method: &str, parts: &[Tensor<D>]) {
        let batch = parts[0].dims()[0];
        let shapes: Vec<_> = parts.iter().map(|part| part.dims()).collect();
        let needed: Vec<_> =
            self.shapes.parts.iter().map(|&shape| with_batch(shape, batch)).collect();
        assert!(
            shapes == needed,
            "FlowStack: {method} got parts of shapes {shapes:?}, but needs {needed:?}"
        );
    }

    /// From the deepest level to the data. `part` gives the latent of each level, the last level
    /// first; the others are given the kept half of their split.
    pub(crate) fn descend(
        &self,
        mut part: impl FnMut(usize, Option<Tensor<D>>) -> Tensor<D>,
    ) -> Tensor<D> {
        let mut h = part(self.levels.len() - 1, None);
        if host::has_no_samples(&h) {
            return host::empty_like(&h, with_batch(self.shapes.inputs[0], 0));
        }
        for (index, level) in self.levels.iter().enumerate().rev() {
            h = level.inverse(h);
            if index > 0 {
                let out = part(index - 1, Some(h.clone()));
                h = merge_channels(h, out);
            }
        }
        h
    }

    /// `ln p(x)` in nats, `[batch]`; for images with respect to the values the model sees (see
    /// [`bits_per_dim`](FlowStack::bits_per_dim)).
    ///
    /// # The score
    ///
    /// The gradient of `ln p(x)` by `x` is asked of a model at inference, which is exact:
    ///
    /// ```
    /// use burn::module::Module;
    /// use burn::tensor::Tensor;
    /// use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
    ///
    /// let device = burn_flows::backend::device();
    /// let flow = DiagonalScaling::new(2, &device)?;
    /// let model = FlowStack::<2, _>::single(flow, StandardNormal::new(), &[2])?.train();
    ///
    /// let x = Tensor::<2>::from_data([[3.0, -2.0]], &device).autodiff().require_grad();
    /// let log_prob = model.valid().log_prob(x.clone());
    /// let score = x.grad(&log_prob.sum().backward()).unwrap();
    /// assert_eq!(score.try_into_vec_as::<f32>().unwrap(), [-3.0, 2.0]);
    /// # Ok::<(), burn_flows::FlowError>(())
    /// ```
    ///
    /// In training a [`NetBatchNorm`](crate::conditioner::NetBatchNorm) counts its moments as the
    /// batch's, so that the gradient by `x` is that of another function: it is refused.
    ///
    /// # Panics
    /// If the samples do not have the shape the stack was built for; if `x` requires a gradient and
    /// the stack has a [`NetBatchNorm`](crate::conditioner::NetBatchNorm) in training.
    pub fn log_prob(&self, x: Tensor<D>) -> Tensor<1> {
        self.log_prob_terms(x)
            .into_iter()
            .reduce(|sum, more| sum + more)
            .expect("two terms a level")
    }

    /// The terms that add up to [`log_prob`](FlowStack::log_prob): for each level its
    /// log-determinant, then the log-density of its part of the latent; each `[batch]`, in nats.
    ///
    /// # Panics
    /// As [`log_prob`](FlowStack::log_prob).
    pub fn log_prob_terms(&self, x: Tensor<D>) -> Vec<Tensor<1>> {
        self.assert_exact_score(&x);
        let Encoded { latents, kept, log_dets } = self.encode_levels(x, &mut Tape::default());
        let priors = self.prior_log_probs(latents.parts, kept);
        log_dets.into_iter().zip(priors).flat_map(|(log_det, prior)| [log_det, prior]).collect()
    }

    /// Whether the gradient of `ln p(x)` by `x`, if one is asked for, is that of `ln p`.
    pub(crate) fn assert_exact_score(&self, x: &Tensor<D>) {
        if x.is_require_grad()
            && !host::has_no_samples(x)
            && let Some(norm) = first_following_norm(self)
        {
            panic!(
                "FlowStack: ln p(x) was asked for with a gradient by x, but {norm} (NetBatchNorm) is \
                 in training, where its gradients by x are not those of ln p; ask model.valid()"
            );
        }
    }

    pub(crate) fn prior_log_probs(
        &self,
        parts: Vec<Tensor<D>>,
        kept: Vec<Tensor<D>>,
    ) -> Vec<Tensor<1>> {
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

    /// `n` draws from the model and `ln p` of each, `[n]` in nats, in one pass from the latent to the data;
    /// different at every call, see [`sample_and_log_prob_with`](FlowStack::sample_and_log_prob_with) for
    /// repeatable ones.
    pub fn sample_and_log_prob(&self, n: usize) -> (Tensor<D>, Tensor<1>) {
        let seed = RandomState::new().build_hasher().finish();
        self.sample_and_log_prob_with(n, &mut StdRng::seed_from_u64(seed))
    }

    /// `n` draws from the model and `ln p` of each, `[n]` in nats, from the given random generator: the draws
    /// of [`sample_with`](FlowStack::sample_with) at temperature 1.
    ///
    /// Of a model in training both carry gradients with respect to the parameters: those through the draws
    /// themselves, which are a function of parameters and noise (reparameterization), and those of the
    /// density. A [`GaussianMixture`](crate::prior::GaussianMixture) chooses a component for each draw, a
    /// choice without a gradient: freeze its `logits` there. After
    /// [`given`](crate::context::Given::given) the draws are those given the context.
    ///
    /// There is no temperature here: how much a flow stretches differs from place to place, so that draws at
    /// another one than 1 have no density in closed form. Losses on draws, and importance weights, are in
    /// [`variational`](crate::variational).
    ///
    /// Source: Rezende and Mohamed, *Variational Inference with Normalizing Flows*,
    /// [arXiv:1505.05770](https://arxiv.org/abs/1505.05770), section 3.
    ///
    /// ```
    /// use burn::module::Param;
    /// use burn::tensor::Tensor;
    /// use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
    /// use rand::{SeedableRng, rngs::StdRng};
    ///
    /// let device = burn_flows::backend::device();
    /// let mut flow = DiagonalScaling::new(1, &device)?;
    /// flow.log_scale = Param::from_data([2f32.ln()], &device);
    /// let model = FlowStack::<2, _>::single(flow, StandardNormal::new(), &[1])?;
    /// let (x, log_prob) = model.sample_and_log_prob_with(5, &mut StdRng::seed_from_u64(0));
    /// // A normal of standard deviation 1/2.
    /// let expected = (x * 2.0).square().reshape([5]) * -0.5 - 0.9189385 + 2f32.ln();
    /// assert!((log_prob - expected).abs().max().into_scalar::<f32>() < 1e-5);
    /// # Ok::<(), burn_flows::FlowError>(())
    /// ```
    ///
    /// # Panics
    /// If the model is in training with a [`NetBatchNorm`](crate::conditioner::NetBatchNorm) in it, whose
    /// gradients by its input are not those of the density; if there are contexts for another number of
    /// samples.
    pub fn sample_and_log_prob_with(&self, n: usize, rng: &mut impl Rng) -> (Tensor<D>, Tensor<1>) {
        if device_and_dtype(self).0.is_autodiff()
            && let Some(norm) = first_following_norm(self)
        {
            panic!(
                "FlowStack: draws were asked for with gradients, but {norm} (NetBatchNorm) is in training, \
                 where its gradients are not those of ln p; draw from model.valid(), or build the nets \
                 without batch normalization"
            );
        }
        let place = device_and_dtype(self);
        self.descend_with_log_prob(n, |level, kept| {
            self.sample_part(level, n, kept, 1.0, rng, &place)
        })
    }

    /// [`descend`](FlowStack::descend) with `ln p` of what comes out.
    fn descend_with_log_prob(
        &self,
        n: usize,
        mut part: impl FnMut(usize, Option<Tensor<D>>) -> Tensor<D>,
    ) -> (Tensor<D>, Tensor<1>) {
        let mut h = part(self.levels.len() - 1, None);
        if n == 0 {
            let log_prob = host::empty_like(&h, [0]);
            return (host::empty_like(&h, with_batch(self.shapes.inputs[0], 0)), log_prob);
        }
        let mut log_prob = self.prior.log_prob(h.clone());
        for (index, level) in self.levels.iter().enumerate().rev() {
            let (x, log_det) = level.inverse_and_log_det(h);
            log_prob = log_prob + log_det;
            h = x;
            if index > 0 {
                let out = part(index - 1, Some(h.clone()));
                let prior = &self.split_priors[index - 1];
                log_prob = log_prob + prior.log_prob(out.clone(), h.clone());
                h = merge_channels(h, out);
            }
        }
        (h, log_prob)
    }

    /// The forward half of a step on draws: [`sample_and_log_prob_with`](FlowStack::sample_and_log_prob_with)
    /// without gradients, and what the backward half needs. `self` is in training.
    pub(crate) fn forward_sample(&self, n: usize, rng: &mut impl Rng) -> SamplePass<D> {
        let frozen = self.valid();
        let place = device_and_dtype(&frozen);
        let mut noise = vec![Vec::new(); self.levels.len()];
        let (x, log_prob) = frozen.descend_with_log_prob(n, |level, kept| {
            let mut recorder = Recorder::new(&mut *rng);
            let part = frozen.sample_part(level, n, kept, 1.0, &mut recorder, &place);
            noise[level] = recorder.into_words();
            part
        });
        SamplePass { x, log_prob, noise }
    }

    /// The backward half: adds to `grads` the gradients of a loss on the draws, given those with respect to
    /// the draws `x` and to `ln p`, the latter `weight` for each draw.
    pub(crate) fn backward_sample(
        &self,
        pass: SamplePass<D>,
        dx: Tensor<D>,
        weight: f64,
        grads: &mut GradientsParams,
    ) {
        let SamplePass { x, log_prob, mut noise } = pass;
        let n = x.dims()[0];
        let dlog_det = log_prob.ones_like() * weight;
        let place = device_and_dtype(self);
        let last = self.levels.len() - 1;
        let (mut x, mut dx) = (x, dx);
        for (index, level) in self.levels.iter().enumerate() {
            let (z, dz) = level.pull_back_inverse(x, dx, dlog_det.clone(), grads);
            let mut replay = Replay::new(std::mem::take(&mut noise[index]));
            if index == last {
                let z = self.sample_part(last, n, None, 1.0, &mut replay, &place);
                let loss = (z.clone() * Tensor::from_inner(dz)).sum()
                    + self.prior.log_prob(z).sum() * weight;
                let loss = Some(loss).filter(|loss| loss.is_tracked());
                pull_back_surrogate(&self.prior, loss.into_iter(), grads);
                return;
            }
            let (kept, _) = split_channels(z);
            let (dkept, dout) = split_channels(dz);
            let prior = &self.split_priors[index];
            let loss = |kept: Tensor<D>| {
                let out = self.sample_part(index, n, Some(kept.clone()), 1.0, &mut replay, &place);
                (out.clone() * Tensor::from_inner(dout)).sum()
                    + prior.log_prob(out, kept).sum() * weight
            };
            dx = dkept + pull_back_through(prior, kept.clone(), loss, grads);
            x = kept;
        }
    }

    fn decode_with(
        &self,
        n: usize,
        rng: &mut impl Rng,
        temperature: impl Fn(usize) -> f64,
    ) -> Tensor<D> {
        let place = device_and_dtype(self);
        self.descend(|level, kept| {
            self.sample_part(level, n, kept, temperature(level), rng, &place)
        })
    }

    /// `n` draws of the latent of one level from its prior.
    pub(crate) fn sample_part(
        &self,
        level: usize,
        n: usize,
        kept: Option<Tensor<D>>,
        temperature: f64,
        rng: &mut impl Rng,
        (device, dtype): &(Device, DType),
    ) -> Tensor<D> {
        let shape = with_batch(self.shapes.parts[level], n);
        match kept {
            Some(kept) => self.split_priors[level].sample(shape, kept, temperature, rng),
            None => self.prior.sample(shape, temperature, rng, device, *dtype),
        }
    }

    /// The forward half of a training step: the sum of `weight ln p(x)` over the batch, and what the
    /// backward half needs. See [`training::reversible`](crate::training::reversible).
    pub(crate) fn forward_log_prob(
        &self,
        x: Tensor<D>,
        weight: f64,
        tape: &mut Tape,
    ) -> LogProbPass<D> {
        // Gone before the gradients come: its parameters are shared, but not all of it is.
        let frozen = self.valid();
        let Encoded { latents, kept, log_dets } = frozen.encode_levels(x, tape);
        let priors = frozen.prior_log_probs(latents.parts.clone(), kept.clone());
        let dlog_det = log_dets[0].ones_like() * weight;
        let terms = log_dets.into_iter().chain(priors);
        let log_prob = terms.reduce(|sum, more| sum + more).expect("two terms a level");
        let weighted_log_prob = log_prob.sum() * weight;
        LogProbPass { latents, kept, dlog_det, weight, weighted_log_prob }
    }

    /// The backward half: adds the gradients of the forward half's sum to `grads`; gives back `x` as
    /// the backward pass found it and the gradient with respect to it.
    pub(crate) fn backward_log_prob(
        &self,
        pass: LogProbPass<D>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        self.backward_log_prob_and(pass, |_, _| None, tape, grads)
    }

    /// [`backward_log_prob`](Self::backward_log_prob) of a sum to which `more` adds a term of the top
    /// latent: it is told the latent and gives the gradient with respect to it.
    pub(crate) fn backward_log_prob_and(
        &self,
        pass: LogProbPass<D>,
        more: impl FnOnce(Tensor<D>, &mut GradientsParams) -> Option<Tensor<D>>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let LogProbPass { latents, kept, dlog_det, weight, .. } = pass;
        let mut parts = latents.parts.into_iter().rev();
        let mut z = parts.next().expect("a part for each level");
        let mut dz = self.prior.backward(z.clone(), weight, grads);
        if let Some(more) = more(z.clone(), grads) {
            dz = dz + more;
        }
        let mut kept = kept.into_iter().rev();
        for (index, level) in self.levels.iter().enumerate().rev() {
            let (x, dx) = level.pull_back(At::Output(z), dz, dlog_det.clone(), tape, grads);
            if index == 0 {
                tape.assert_done();
                return (x, dx);
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
        if host::has_no_samples(&x) {
            return None;
        }
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
/// (each level's squeezes undone), the priors left out. A [`data_pass`](Flow::data_pass) sends the kept
/// halves through the split priors as well.
impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> Flow<D> for FlowStack<D, F, P, S>
where
    Self: Module,
{
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        self.forward_on(x, &mut Tape::default())
    }

    fn forward_on(&self, x: Tensor<D>, tape: &mut Tape) -> (Tensor<D>, Tensor<1>) {
        if host::has_no_samples(&x) {
            self.assert_sample_shape(&x);
            return (x.clone(), zero_log_det(&x));
        }
        let (latents, log_det) = self.encode_on(x, tape);
        (self.assemble(latents), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        if host::has_no_samples(&z) {
            self.assert_sample_shape(&z);
            return z;
        }
        self.decode(self.disassemble(z))
    }

    fn inverse_and_log_det(&self, z: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        if host::has_no_samples(&z) {
            self.assert_sample_shape(&z);
            return (z.clone(), zero_log_det(&z));
        }
        let mut parts = self.disassemble(z).parts.into_iter().rev();
        let mut h = parts.next().expect("a part for each level");
        let mut sum: Option<Tensor<1>> = None;
        for (index, level) in self.levels.iter().enumerate().rev() {
            let (x, log_det) = level.inverse_and_log_det(h);
            sum = Some(sum.map_or(log_det.clone(), |sum| sum + log_det));
            h = x;
            if index > 0 {
                h = merge_channels(h, parts.next().expect("a part for each level"));
            }
        }
        (h, sum.expect("a stack has at least one level"))
    }

    fn pull_back_inverse(
        &self,
        x: Tensor<D>,
        dx: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let (mut parts, mut dparts) = (Vec::new(), Vec::new());
        let (mut x, mut dx) = (x, dx);
        for (index, level) in self.levels.iter().enumerate() {
            let (z, dz) = level.pull_back_inverse(x, dx, dlog_det.clone(), grads);
            if index + 1 == self.levels.len() {
                parts.push(z);
                dparts.push(dz);
                break;
            }
            let ((kept, out), (dkept, dout)) = (split_channels(z), split_channels(dz));
            parts.push(out);
            dparts.push(dout);
            (x, dx) = (kept, dkept);
        }
        // Putting the parts together only moves values, so gradients take the same way.
        (self.assemble(Latents::of(parts)), self.assemble(Latents::of(dparts)))
    }

    fn data_pass(mut self, x: Tensor<D>, pass: Pass) -> (Self, Tensor<D>) {
        self.assert_sample_shape(&x);
        if host::has_no_samples(&x) {
            return (self, x);
        }
        let last = self.levels.len() - 1;
        let mut priors = std::mem::take(&mut self.split_priors).into_iter();
        let (mut levels, mut parts) = (Vec::new(), Vec::new());
        let mut h = x;
        for (index, level) in std::mem::take(&mut self.levels).into_iter().enumerate() {
            let (level, z) = level.data_pass(h, pass);
            levels.push(level);
            if index == last {
                parts.push(z);
                break;
            }
            let (kept, out) = split_channels(z);
            parts.push(out);
            let prior = priors.next().expect("a split prior between every two levels");
            self.split_priors.push(prior.data_pass(kept.clone(), pass));
            h = kept;
        }
        self.levels = levels;
        let z = self.assemble(Latents::of(parts));
        (self, z)
    }

    fn check(&self) -> Result<()> {
        self.levels.iter().try_for_each(|level| level.check())
    }

    fn pull_back(
        &self,
        at: At<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        from_output(self, at, tape, |z, tape| {
            let mut parts = self.disassemble(z).parts.into_iter().rev();
            // Putting the parts together only moves values, so gradients take the same way back.
            let mut dparts = self.disassemble(dz).parts.into_iter().rev();
            let mut z = parts.next().expect("a part for each level");
            let mut dz = dparts.next().expect("a part for each level");
            for (index, level) in self.levels.iter().enumerate().rev() {
                (z, dz) = level.pull_back(At::Output(z), dz, dlog_det.clone(), tape, grads);
                if index > 0 {
                    z = merge_channels(z, parts.next().expect("a part for each level"));
                    dz = merge_channels(dz, dparts.next().expect("a part for each level"));
                }
            }
            (z, dz)
        })
    }
}

impl<const D: usize, F: Module, P: Module, S: Module> FlowStack<D, F, P, S> {
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
        Latents::of(parts)
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
