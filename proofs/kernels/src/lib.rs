//! `src/kernels` without Burn: its tests are compiled in a minute, for AddressSanitizer or valgrind.

#[allow(dead_code, unused_imports)] // What the library calls, and no test.
#[path = "../../../src/kernels/mod.rs"]
mod kernels;
