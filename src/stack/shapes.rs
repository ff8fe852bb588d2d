//! Shapes of one sample on its way through the levels.

use serde::{Serialize, Serializer};

use super::config;
use crate::error::Result;
use crate::flow::Flow;
use crate::reshape::num_kept;

/// Shapes of one sample (batch size 1) through the levels.
#[derive(Debug, Clone)]
pub(super) struct Shapes<const D: usize> {
    /// Into each level.
    pub(super) inputs: Vec<[usize; D]>,
    /// Of each part of the latent.
    pub(super) parts: Vec<[usize; D]>,
}

impl<const D: usize> Shapes<D> {
    pub(super) fn through<F: Flow<D>>(levels: &[F], mut shape: [usize; D]) -> Result<Self> {
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

impl<const D: usize> Serialize for Shapes<D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let samples = |shapes: &[[usize; D]]| -> Vec<Vec<usize>> {
            shapes.iter().map(|shape| shape[1..].to_vec()).collect()
        };
        let shapes = [("inputs", samples(&self.inputs)), ("latents", samples(&self.parts))];
        serializer.collect_map(shapes)
    }
}

pub(super) fn with_batch<const D: usize>(mut shape: [usize; D], batch: usize) -> [usize; D] {
    shape[0] = batch;
    shape
}
