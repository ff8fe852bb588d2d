//! Walks through a module's parameters.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::host;

/// The parameters that gradients go to once `module` is in training.
pub(super) fn trainable<M: Module>(module: &M) -> Vec<ParamId> {
    struct Collect(Vec<ParamId>);
    impl ModuleVisitor for Collect {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if param.val().is_require_grad() {
                self.0.push(param.id);
            }
        }
    }
    let mut collect = Collect(Vec::new());
    module.valid().train().visit(&mut collect);
    collect.0
}

/// Path and gradient (if there is one) of every trainable parameter of a model in training.
pub(crate) fn gradients<M: Module>(
    module: &M,
    grads: &GradientsParams,
) -> Vec<(String, Option<Vec<f64>>)> {
    struct Named<'a> {
        path: Vec<String>,
        grads: &'a GradientsParams,
        found: Vec<(String, Option<Vec<f64>>)>,
    }
    impl ModuleVisitor for Named<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.into());
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }

        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if param.val().is_require_grad() {
                let grad = self.grads.get::<N>(param.id).map(host::to_f64);
                self.found.push((self.path.join("."), grad));
            }
        }
    }
    let mut named = Named { path: Vec::new(), grads, found: Vec::new() };
    module.visit(&mut named);
    named.found
}

/// The module with every float parameter, trainable or not, set to `value`.
pub(super) fn filled<M: Module>(module: M, value: f64) -> M {
    struct Fill(f64);
    impl ModuleMapper for Fill {
        fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
            param.map(|old| old.full_like(self.0))
        }
    }
    module.map(&mut Fill(value))
}
