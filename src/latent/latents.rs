//! [`Latents`]: what a [`FlowStack`](crate::FlowStack) maps data to.

use std::marker::PhantomData;

use burn::tensor::Tensor;

use crate::host;

/// The latent of a [`FlowStack`](crate::FlowStack): one part for each level, in the order in which
/// they leave the stack (the part factored out first is the finest, the last one the deepest).
///
/// `C` says in which coordinates: [`Raw`], those of [`encode`](crate::FlowStack::encode), or
/// [`Standardized`], those of [`encode_noise`](crate::FlowStack::encode_noise). Each is decoded by its
/// own method, so that one cannot be taken for the other.
#[derive(Debug, Clone)]
pub struct Latents<const D: usize, C = Raw> {
    pub(crate) parts: Vec<Tensor<D>>,
    coordinates: PhantomData<C>,
}

/// The coordinates of [`Latents`] as the levels give them.
#[derive(Debug, Clone, Copy)]
pub enum Raw {}

/// The coordinates of [`Noise`].
#[derive(Debug, Clone, Copy)]
pub enum Standardized {}

/// Latents whose parts are standardized by the priors of their splits: see
/// [`encode_noise`](crate::FlowStack::encode_noise).
pub type Noise<const D: usize> = Latents<D, Standardized>;

impl<const D: usize> Latents<D> {
    /// From parts as [`FlowStack::encode`](crate::FlowStack::encode) orders them.
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
        Self::of(parts)
    }
}

impl<const D: usize, C> Latents<D, C> {
    /// From at least one part, all of one batch size.
    pub(crate) fn of(parts: Vec<Tensor<D>>) -> Self {
        Self { parts, coordinates: PhantomData }
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
    /// [`FlowStack::unflatten`](crate::FlowStack::unflatten).
    pub fn flatten(&self) -> Tensor<2> {
        let batch = self.batch_size();
        if batch == 0 {
            let widths = self.parts.iter().map(|part| part.dims()[1..].iter().product::<usize>());
            return host::empty_like(&self.parts[0], [0, widths.sum()]);
        }
        let rows = self.parts.iter().map(|part| {
            let width = part.dims()[1..].iter().product::<usize>();
            part.clone().reshape([batch, width])
        });
        Tensor::cat(rows.collect(), 1)
    }

    /// `self + weight * other`, part by part. `other` has as many samples as `self`, or one for all.
    ///
    /// # Panics
    /// If the parts' shapes, or numbers of samples that are not 1, differ.
    pub fn add_scaled(&self, other: &Self, weight: f64) -> Self {
        let parts = self.with(other, |a, b| a + b * weight);
        Self::of(parts)
    }

    /// The point that divides the straight line from `self` (weight 0) to `other` (weight 1):
    /// `(1 - weight) * self + weight * other`. Both ends are exact, and weights outside of 0 to 1
    /// prolong the line.
    ///
    /// # Panics
    /// As [`add_scaled`](Latents::add_scaled).
    pub fn interpolate(&self, other: &Self, weight: f64) -> Self {
        // Not a + weight * (b - a), which misses b by rounding.
        let parts = self.with(other, |a, b| a * (1.0 - weight) + b * weight);
        Self::of(parts)
    }

    fn with(
        &self,
        other: &Self,
        join: impl Fn(Tensor<D>, Tensor<D>) -> Tensor<D>,
    ) -> Vec<Tensor<D>> {
        let shapes = |latents: &Self| -> Vec<_> {
            latents.parts.iter().map(|part| part.dims()[1..].to_vec()).collect()
        };
        let (own, others) = (shapes(self), shapes(other));
        assert!(own == others, "Latents: parts of shapes {own:?} and {others:?} differ");
        let (batch, count) = (self.batch_size(), other.batch_size());
        assert!(
            count == batch || count == 1,
            "Latents: got {count} samples to join with {batch}; give as many, or one for all"
        );
        self.parts
            .iter()
            .cloned()
            .zip(other.parts.iter().cloned())
            .map(|(a, b)| join(a, b))
            .collect()
    }
}
