//! A model of a density, by one name.

use burn::tensor::Tensor;
use rand::Rng;

use crate::context::Classification;
use crate::data::Images;
use crate::error::Result;
use crate::flow::Flow;
use crate::latent::{Inpainted, Inpainting, Latents, Noise};
use crate::metrics::Score;
use crate::preprocess::Quantization;
use crate::prior::{Prior, SplitPrior};
use crate::stack::FlowStack;

/// A model of the density of samples of rank `D` (batch first): every [`FlowStack`], whatever its flows and
/// priors are.
///
/// It is the bound of a function that takes any of them, `Glow`, `Nice` or a stack of your own. The methods
/// are those of the stack, where they are described.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Density, FlowStack, linear::DiagonalScaling, prior::StandardNormal};
///
/// /// Entropy in nats, from draws of the model.
/// fn entropy<const D: usize>(model: &impl Density<D>, draws: Tensor<D>) -> f64 {
///     -model.log_prob(draws).mean().into_scalar::<f64>()
/// }
///
/// let device = burn_flows::backend::device();
/// let flow = DiagonalScaling::new(2, &device)?;
/// let model = FlowStack::<2, _>::single(flow, StandardNormal::new(), &[2])?;
/// // At the mean of a standard normal of two dimensions.
/// let at_zero = entropy(&model, Tensor::zeros([1, 2], &device));
/// assert!((at_zero - std::f64::consts::TAU.ln()).abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
pub trait Density<const D: usize>: Flow<D> {
    /// [`FlowStack::sample_shape`].
    fn sample_shape(&self) -> &[usize];

    /// [`FlowStack::latent_shapes`].
    fn latent_shapes(&self) -> &[[usize; D]];

    /// [`FlowStack::log_prob_terms`].
    fn log_prob_terms(&self, x: Tensor<D>) -> Vec<Tensor<1>>;

    /// [`FlowStack::classify`].
    ///
    /// # Errors
    /// As [`FlowStack::classify`].
    fn classify(&self, x: Tensor<D>, class_weights: &[f64]) -> Result<Classification>;

    /// [`FlowStack::sample_with`].
    fn sample_with(&self, n: usize, temperature: f64, rng: &mut impl Rng) -> Tensor<D>;

    /// [`FlowStack::sample_and_log_prob_with`].
    fn sample_and_log_prob_with(&self, n: usize, rng: &mut impl Rng) -> (Tensor<D>, Tensor<1>);

    /// [`FlowStack::encode`].
    fn encode(&self, x: Tensor<D>) -> (Latents<D>, Tensor<1>);

    /// [`FlowStack::decode`].
    fn decode(&self, latents: Latents<D>) -> Tensor<D>;

    /// [`FlowStack::encode_noise`].
    fn encode_noise(&self, x: Tensor<D>) -> Noise<D>;

    /// [`FlowStack::decode_noise`].
    fn decode_noise(&self, noise: Noise<D>) -> Tensor<D>;

    /// [`FlowStack::resample_finer`].
    fn resample_finer(
        &self,
        latents: &Latents<D>,
        kept: usize,
        temperature: f64,
        rng: &mut impl Rng,
    ) -> Tensor<D>;

    /// [`FlowStack::inpaint`].
    ///
    /// # Errors
    /// As [`FlowStack::inpaint`].
    fn inpaint(
        &self,
        x: Tensor<D>,
        known: Tensor<D>,
        how: &Inpainting,
        rng: &mut impl Rng,
    ) -> Result<Inpainted<D>>;

    /// [`FlowStack::attribute_direction`].
    ///
    /// # Errors
    /// As [`FlowStack::attribute_direction`].
    fn attribute_direction(
        &self,
        images: &Images,
        with: &[usize],
        without: &[usize],
        quantization: Quantization,
        rng: &mut impl Rng,
    ) -> Result<Noise<D>>;

    /// [`FlowStack::score`].
    ///
    /// # Errors
    /// As [`FlowStack::score`].
    fn score(
        &self,
        pixels: &[u8],
        quantization: Quantization,
        num_draws: usize,
        rng: &mut impl Rng,
    ) -> Result<Vec<Score>>;

    /// [`FlowStack::batch`].
    fn batch(&self, values: Vec<f32>) -> Tensor<D>;

    /// [`FlowStack::interpolate`].
    fn interpolate(&self, a: Tensor<D>, b: Tensor<D>, weights: &[f64]) -> Vec<Tensor<D>>;

    /// [`FlowStack::log_prob`].
    fn log_prob(&self, x: Tensor<D>) -> Tensor<1>;

    /// [`FlowStack::num_dims`].
    fn num_dims(&self) -> usize;

    /// [`FlowStack::manipulate`].
    fn manipulate(&self, x: Tensor<D>, direction: &Noise<D>, alpha: f64) -> Tensor<D>;
}

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> Density<D> for FlowStack<D, F, P, S>
where
    Self: burn::module::Module,
{
    fn sample_shape(&self) -> &[usize] {
        self.sample_shape()
    }

    fn latent_shapes(&self) -> &[[usize; D]] {
        self.latent_shapes()
    }

    fn log_prob_terms(&self, x: Tensor<D>) -> Vec<Tensor<1>> {
        self.log_prob_terms(x)
    }

    fn classify(&self, x: Tensor<D>, class_weights: &[f64]) -> Result<Classification> {
        self.classify(x, class_weights)
    }

    fn sample_with(&self, n: usize, temperature: f64, rng: &mut impl Rng) -> Tensor<D> {
        self.sample_with(n, temperature, rng)
    }

    fn sample_and_log_prob_with(&self, n: usize, rng: &mut impl Rng) -> (Tensor<D>, Tensor<1>) {
        self.sample_and_log_prob_with(n, rng)
    }

    fn encode(&self, x: Tensor<D>) -> (Latents<D>, Tensor<1>) {
        self.encode(x)
    }

    fn decode(&self, latents: Latents<D>) -> Tensor<D> {
        self.decode(latents)
    }

    fn encode_noise(&self, x: Tensor<D>) -> Noise<D> {
        self.encode_noise(x)
    }

    fn decode_noise(&self, noise: Noise<D>) -> Tensor<D> {
        self.decode_noise(noise)
    }

    fn resample_finer(
        &self,
        latents: &Latents<D>,
        kept: usize,
        temperature: f64,
        rng: &mut impl Rng,
    ) -> Tensor<D> {
        self.resample_finer(latents, kept, temperature, rng)
    }

    fn inpaint(
        &self,
        x: Tensor<D>,
        known: Tensor<D>,
        how: &Inpainting,
        rng: &mut impl Rng,
    ) -> Result<Inpainted<D>> {
        self.inpaint(x, known, how, rng)
    }

    fn attribute_direction(
        &self,
        images: &Images,
        with: &[usize],
        without: &[usize],
        quantization: Quantization,
        rng: &mut impl Rng,
    ) -> Result<Noise<D>> {
        self.attribute_direction(images, with, without, quantization, rng)
    }

    fn score(
        &self,
        pixels: &[u8],
        quantization: Quantization,
        num_draws: usize,
        rng: &mut impl Rng,
    ) -> Result<Vec<Score>> {
        self.score(pixels, quantization, num_draws, rng)
    }

    fn batch(&self, values: Vec<f32>) -> Tensor<D> {
        self.batch(values)
    }

    fn interpolate(&self, a: Tensor<D>, b: Tensor<D>, weights: &[f64]) -> Vec<Tensor<D>> {
        self.interpolate(a, b, weights)
    }

    fn log_prob(&self, x: Tensor<D>) -> Tensor<1> {
        self.log_prob(x)
    }

    fn num_dims(&self) -> usize {
        self.num_dims()
    }

    fn manipulate(&self, x: Tensor<D>, direction: &Noise<D>, alpha: f64) -> Tensor<D> {
        self.manipulate(x, direction, alpha)
    }
}
