#![doc = include_str!("index.md")]

#[doc = include_str!("change_of_variables.md")]
pub mod change_of_variables {}

#[doc = include_str!("three_models.md")]
pub mod three_models {}

#[doc = include_str!("which_flow.md")]
pub mod which_flow {}

#[doc = include_str!("your_own_flow.md")]
pub mod your_own_flow {}

#[doc = include_str!("multi_scale.md")]
pub mod multi_scale {}

#[doc = include_str!("conditional.md")]
pub mod conditional {}

#[doc = include_str!("variational_inference.md")]
pub mod variational_inference {}

#[doc = include_str!("training.md")]
#[cfg_attr(feature = "run", doc = include_str!("training_run.md"))]
pub mod training {}

#[doc = include_str!("memory_and_speed.md")]
pub mod memory_and_speed {}

#[doc = include_str!("numbers.md")]
pub mod numbers {}

#[doc = include_str!("bits_per_dim.md")]
pub mod bits_per_dim {}

#[doc = include_str!("from_python.md")]
#[cfg_attr(feature = "onnx", doc = include_str!("from_python_onnx.md"))]
pub mod from_python {}

#[doc = include_str!("troubleshooting.md")]
pub mod troubleshooting {}
