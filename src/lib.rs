//! Normalizing flows for Rust, on [Burn](https://burn.dev): exact likelihood, exact sampling.
//!
//! # What a flow is
//!
//! An invertible network `f` maps data `x` to a latent `z` whose density is known. The change of
//! variables gives the density of the data exactly,
//!
//! `ln p(x) = ln p_z(f(x)) + ln|det df/dx|`,
//!
//! so a flow is trained by plain maximum likelihood, and sampling is running `f` backwards on draws
//! of `z`. Layers are built so that inverse and determinant are cheap: NICE adds to one half of the
//! data what a net computes from the other, RealNVP scales as well, Glow mixes the channels with a
//! learned matrix between the couplings.
//!
//! # In twenty lines
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_flows::conditioner::MlpConfig;
//! use burn_flows::coupling::{Coupling, Mask, Parity, ScaleMap};
//! use burn_flows::training::{Schedule, Trainer};
//! use burn_flows::{FlowStack, backend, norm::ActNorm, prior::StandardNormal};
//!
//! # fn main() -> Result<(), burn_flows::FlowError> {
//! let device = backend::device();
//! // A flow is a plain value: a Vec of (ActNorm, affine coupling), the halves taking turns.
//! let mut steps = Vec::new();
//! for step in 0..4 {
//!     let net = MlpConfig::new(1, vec![32, 32], 2).with_zero_init(true).init(&device)?;
//!     let mask = Mask::ChannelHalves(Parity::of(step));
//!     let coupling = Coupling::affine(net, mask, ScaleMap::default(), 2, &device)?;
//!     steps.push((ActNorm::new(2, &device)?, coupling));
//! }
//! let stack: FlowStack<2, _> = FlowStack::single(steps, StandardNormal::new(), &[2])?;
//!
//! let x = Tensor::from_data([[0.0, 1.0], [1.0, 0.5], [2.0, 1.5], [3.0, -1.0]], &device);
//! let mut trainer = Trainer::new(stack, Schedule::constant(1e-2));
//! let before = trainer.step(x.clone())?.loss;
//! for _ in 0..20 {
//!     trainer.step(x.clone())?;
//! }
//! let model = trainer.model();
//! assert!(-model.log_prob(x).mean().into_scalar::<f64>() < before);
//! assert_eq!(model.sample(5, 1.0).dims(), [5, 2]);
//! # Ok(())
//! # }
//! ```
//!
//! # The rooms
//!
//! | to | look in |
//! |---|---|
//! | write a flow of your own | [`Flow`], and [`testing`] to prove it |
//! | compose flows | tuples, arrays, `Vec` and `Option` of flows are flows; [`FlowStack`] adds levels, splits and a prior |
//! | take a published model | [`models`] |
//! | choose layers | [`coupling`], [`norm`], [`linear`], [`reshape`] |
//! | choose nets | [`conditioner`] |
//! | choose densities of the latent | [`prior`] |
//! | prepare pixels | [`preprocess`], [`data`] |
//! | train | [`training`], [`metrics`] |
//! | use a trained model: edit, interpolate, fill in, score | [`latent`], [`metrics`] |
//! | save and load | [`record`] |
//! | take records of PyTorch libraries | [`weights`] |
//!
//! # Features
//!
//! The backend is chosen at compile time, one feature each: `ndarray` (CPU, the default), `flex`
//! (CPU, Burn's successor of ndarray) and `wgpu` (GPU: Vulkan, Metal, DirectX 12).
//! [`backend::device`] gives the compiled-in device; see [`backend`] for several at once. `images` (on
//! by default) reads folders of pictures.

#![deny(missing_docs, unsafe_code)]

pub mod backend;
mod chain;
mod choice;
pub mod conditioner;
pub mod coupling;
pub mod data;
mod error;
mod flow;
mod host;
#[allow(unsafe_code)] // each block says why it is sound
mod kernels;
pub mod latent;
pub mod linalg;
pub mod linear;
pub mod metrics;
pub mod models;
pub mod norm;
mod param;
pub mod preprocess;
pub mod prior;
pub mod record;
pub mod reshape;
mod stack;
mod tape;
pub mod testing;
pub mod training;
pub mod weights;

pub use error::{FlowError, Result};
pub use flow::Flow;
pub use latent::Latents;
pub use stack::FlowStack;

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
