//! The readers of `src/data` and what `tests/damaged` asks of them, under a fuzzer.

#![allow(dead_code)] // What the library uses beside the readers.

extern crate self as burn_flows;

#[path = "../../tests/damaged/readers.rs"]
pub mod damaged;
#[path = "../../src/data/mod.rs"]
pub mod data;
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/files.rs"]
mod files;
#[path = "../../src/preprocess/quantize.rs"]
mod preprocess;

pub use error::{FlowError, Result};

#[global_allocator]
static ALLOCATOR: damaged::Limited = damaged::Limited;
