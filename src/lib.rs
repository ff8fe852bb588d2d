//! Normalizing flows for Rust, on Burn: exact likelihood, exact sampling.

#![deny(missing_docs, unsafe_code)]

pub mod backend;
mod chain;
pub mod conditioner;
pub mod coupling;
mod error;
mod flow;
mod host;
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
pub mod testing;
pub mod training;

pub use error::{FlowError, Result};
pub use flow::Flow;
pub use stack::{FlowStack, Latents};
