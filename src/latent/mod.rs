//! What to do with a trained model: walk between samples, change one attribute, fill in what is
//! missing, draw the details anew.
//!
//! | To | Use |
//! |---|---|
//! | walk from one sample to another | [`FlowStack::interpolate`], [`Latents::interpolate`] |
//! | find the direction of an attribute | [`FlowStack::attribute_direction`], [`LatentMean`] |
//! | change an attribute of a sample | [`FlowStack::manipulate`] |
//! | fill in the unknown part of a sample | [`FlowStack::inpaint`], [`Inpainting`] |
//! | keep what is coarse and draw what is fine | [`FlowStack::resample_finer`] |
//! | draw new samples | [`FlowStack::sample`] and its siblings |
//! | say how likely a sample is | [`FlowStack::log_prob`], [`FlowStack::score`] |
//!
//! Walks and directions are straight in the coordinates of
//! [`encode_noise`](crate::FlowStack::encode_noise), those of openai/glow. `examples/explore.rs` does each of
//! these to a saved model, from the command line.
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_flows::{FlowStack, linear::DiagonalScaling, prior::StandardNormal};
//!
//! let device = burn_flows::backend::device();
//! let flow = DiagonalScaling::new(2, &device)?;
//! let stack: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2])?;
//! let a = Tensor::from_data([[0.0, 0.0]], &device);
//! let b = Tensor::from_data([[2.0, 4.0]], &device);
//! let walk = stack.interpolate(a, b, &[0.0, 0.25, 1.0]);
//! walk[1].to_data().assert_eq(&burn::tensor::TensorData::from([[0.5f32, 1.0]]), false);
//! # Ok::<(), burn_flows::FlowError>(())
//! ```
//!
//! [`FlowStack::interpolate`]: crate::FlowStack::interpolate
//! [`FlowStack::attribute_direction`]: crate::FlowStack::attribute_direction
//! [`FlowStack::manipulate`]: crate::FlowStack::manipulate
//! [`FlowStack::inpaint`]: crate::FlowStack::inpaint
//! [`FlowStack::resample_finer`]: crate::FlowStack::resample_finer
//! [`FlowStack::sample`]: crate::FlowStack::sample
//! [`FlowStack::log_prob`]: crate::FlowStack::log_prob
//! [`FlowStack::score`]: crate::FlowStack::score

mod attributes;
mod inpaint;
mod interpolate;
mod latents;
mod resample;

pub use attributes::LatentMean;
pub use inpaint::{Inpainted, Inpainting, InpaintingCoordinates};
pub use latents::{Latents, Noise, Raw, Standardized};
