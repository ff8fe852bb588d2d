//! From data to latents and back.

use burn::module::Module;
use burn::tensor::Tensor;

use super::FlowStack;
use super::shapes::with_batch;
use crate::chain::zero_log_det;
use crate::flow::Flow;
use crate::host;
use crate::latent::{Latents, Noise};
use crate::prior::{Prior, SplitPrior};
use crate::reshape::{merge_channels, split_channels};
use crate::tape::Tape;

/// What a forward pass through the levels gives.
pub(crate) struct Encoded<const D: usize> {
    pub(crate) latents: Latents<D>,
    /// The kept half at every split, on which the split prior is conditioned.
    pub(crate) kept: Vec<Tensor<D>>,
    /// Log-determinant of each level, `[batch]`.
    pub(crate) log_dets: Vec<Tensor<1>>,
}

impl<const D: usize, F: Module, P: Module, S: Module> FlowStack<D, F, P, S> {
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

    pub(super) fn encode_on(&self, x: Tensor<D>, tape: &mut Tape) -> (Latents<D>, Tensor<1>) {
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
}
