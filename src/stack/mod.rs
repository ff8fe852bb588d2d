//! [`FlowStack`]: levels of flows with splits between them and a prior.
//!
//! Its methods stand by what they are for, a file each.

mod flow;
mod latents;
mod log_prob;
mod samples;
mod shapes;
mod training;

use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};

pub(crate) use self::latents::Encoded;

use self::shapes::{Shapes, with_batch};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::prior::{Prior, SplitPrior, StandardNormal};
use crate::record::{self, Configuration, Setting};

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

    pub(crate) fn assert_sample_shape(&self, x: &Tensor<D>) {
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
        Err(FlowError::invalid(
            "FlowStack: the values of an image",
            len,
            format!("{} for samples of shape {:?}", self.num_dims(), self.sample_shape()),
            "crop and resize the images to the shape that the model was built for",
        ))
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
