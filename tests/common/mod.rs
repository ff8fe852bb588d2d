//! What several tests need.

#![allow(dead_code)] // no test uses all of it

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use burn_flows::backend;
use proptest::test_runner::{Config, RngSeed};

/// Every compiled-in device that computes in main memory.
pub fn hosts() -> Vec<Device> {
    backend::hosts().into_iter().map(|(_, device)| device()).collect()
}

/// The first of [`hosts`]; the compiled-in device where there is none.
pub fn host() -> Device {
    hosts().into_iter().next().unwrap_or_else(backend::device)
}

/// So many cases of a property, the same at every run.
pub fn cases(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() }
}

/// The values of a tensor, row-major.
pub fn flat<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.try_into_vec_as().expect("a float tensor converts to f64")
}

/// Every gradient by the path of its parameter, in the order of the module.
pub fn gradients<M: Module>(module: &M, grads: &GradientsParams) -> Vec<(String, Vec<f64>)> {
    struct Collect<'a> {
        grads: &'a GradientsParams,
        path: Vec<String>,
        found: Vec<(String, Vec<f64>)>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if let Some(grad) = self.grads.get::<N>(param.id) {
                self.found.push((self.path.join("."), flat(grad)));
            }
        }
    }
    let mut collect = Collect { grads, path: Vec::new(), found: Vec::new() };
    module.visit(&mut collect);
    collect.found
}
