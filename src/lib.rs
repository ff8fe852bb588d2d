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
//! let mut trainer = Trainer::new(stack, Schedule::constant(1e-3));
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
//! | write a flow of your own | [`Flow`](trait@Flow), and [`testing`] to prove it |
//! | compose flows | tuples, arrays, `Vec` and `Option` of flows are flows, structs and enums with [`#[derive(Flow)]`](macro@Flow); [`FlowStack`] adds levels, splits and a prior |
//! | take a published model | [`models`] |
//! | choose layers | [`coupling`], [`autoregressive`], [`norm`], [`linear`], [`reshape`]; [`Inverse`] turns one around |
//! | choose nets | [`conditioner`] |
//! | choose densities of the latent | [`prior`] |
//! | condition on a context: `p(x given context)` | [`context`] |
//! | prepare pixels | [`preprocess`], [`data`] |
//! | train | [`training`], [`metrics`] |
//! | use a trained model: edit, interpolate, fill in, score | [`latent`], [`metrics`] |
//! | fit a density that is known up to a constant: variational inference | [`variational`], [`residual`] |
//! | save and load | [`record`] |
//! | take records of PyTorch libraries, and write theirs | [`weights`] |
//!
//! # The guide
//!
//! The module [`guide`] teaches all of it page by page: the [change of variables](guide::change_of_variables)
//! from scratch, [which flow](guide::which_flow) for which job, [a flow of your own](guide::your_own_flow),
//! [training](guide::training), [bits per dimension](guide::bits_per_dim), moving over
//! [from Python](guide::from_python), and [symptoms](guide::troubleshooting) with their causes.
//!
//! # Features
//!
//! The backend is chosen at compile time, one feature each: `ndarray` (CPU, the default), `flex`
//! (CPU, Burn's successor of ndarray) and `wgpu` (GPU: Vulkan, Metal, DirectX 12).
//! [`backend::device`] gives the compiled-in device; see [`backend`] for several at once. `images` (on
//! by default) reads folders of pictures, `onnx` writes models for onnxruntime (room `onnx`), `run` is a training
//! with report and resume by one call (room `run`), `train` takes models to Burn's Learner (room
//! `training::learner`).

#![deny(missing_docs, unsafe_code)]

// What the derive macros write names the crate from outside; they are used inside as well.
extern crate self as burn_flows;

pub mod autoregressive;
pub mod backend;
mod chain;
pub mod conditioner;
mod constants;
pub mod context;
pub mod coupling;
pub mod data;
mod density;
mod error;
mod files;
mod flow;
pub mod guide;
mod host;
mod inverse;
#[allow(unsafe_code)] // each block says why it is sound
mod kernels;
pub mod latent;
pub mod linalg;
pub mod linear;
pub mod metrics;
pub mod models;
pub mod norm;
#[cfg(feature = "onnx")]
pub mod onnx;
mod param;
pub mod preprocess;
pub mod prior;
pub mod record;
pub mod reshape;
pub mod residual;
#[cfg(feature = "run")]
pub mod run;
mod stack;
mod support;
mod tape;
pub mod testing;
pub mod training;
pub mod variational;
pub mod weights;

/// Makes a struct or an enum of flows a [`Flow`](trait@Flow), of every rank that all of its flows have.
///
/// - A **struct** is a sequence: its fields are run in their order, data to latent, as those of a tuple.
/// - An **enum** is one of several: every variant holds one flow.
///
/// It derives `burn::module::Module` and `Debug` as well. Every field is a flow, but for those that are
/// marked `#[flow(skip)]` (a module that takes no part in the map) or `#[module(skip)]` (a plain value).
/// The whole of the trait is passed on to the parts, by the code that does so for tuples and `Vec`:
/// initialization reaches them, and a training step sees each as a layer of its own.
///
/// ```
/// use burn::module::Module;
/// use burn::tensor::Tensor;
/// use burn_flows::conditioner::Mlp;
/// use burn_flows::coupling::AffineCoupling;
/// use burn_flows::linear::{DiagonalScaling, Permutation};
/// use burn_flows::{Flow, norm::ActNorm};
///
/// #[derive(Module, Debug, Flow)]
/// enum Mix {
///     Scale(DiagonalScaling),
///     Permute(Permutation),
/// }
///
/// #[derive(Module, Debug, Flow)]
/// struct Step {
///     norm: ActNorm,
///     mix: Mix,
/// }
///
/// let device = burn_flows::backend::device();
/// let step = Step { norm: ActNorm::new(2, &device)?, mix: Mix::Permute(Permutation::reverse(2, &device)?) };
/// let x = Tensor::<2>::from_data([[1.0, 10.0], [3.0, 30.0]], &device);
/// let (step, _) = step.initialize(x.clone());
/// assert!(step.norm.is_initialized());
/// let values: Vec<f32> = step.forward(x).0.try_into_vec_as().unwrap();
/// for (value, expected) in values.iter().zip([-1.0, -1.0, 1.0, 1.0]) {
///     assert!((value - expected).abs() < 1e-5);
/// }
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
///
/// A field that is no flow, and is not marked as such, does not compile:
///
/// ```compile_fail
/// # use burn::module::{Module, Param};
/// # use burn::tensor::Tensor;
/// # use burn_flows::{Flow, norm::ActNorm};
/// #[derive(Module, Debug, Flow)]
/// struct Step {
///     norm: ActNorm,
///     temperature: Param<Tensor<1>>,
/// }
/// ```
pub use burn_flows_derive::Flow;
pub use density::Density;
pub use error::{FlowError, Result};
pub use flow::{At, Flow, Pass};
pub use inverse::Inverse;
pub use latent::Latents;
pub use stack::FlowStack;

/// What the derive macros name.
#[doc(hidden)]
pub mod __private {
    pub use burn::module::Module;
    pub use burn::optim::GradientsParams;
    pub use burn::tensor::{DType, Device, Tensor};
    pub use rand::Rng;

    pub use crate::chain::{Parts, Relay, Walk};
}

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
