//! What is asked of gradients before a step: their norm, and where they are not finite.

use std::collections::HashSet;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::host;

/// The Euclidean norm of all gradients of `module` together, that of a shared parameter counted once.
pub fn gradient_norm<M: Module>(module: &M, grads: &GradientsParams) -> f64 {
    struct Norm<'a> {
        grads: &'a GradientsParams,
        seen: HashSet<ParamId>,
        /// Summed already.
        sum: f64,
        /// On a device still.
        squares: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Norm<'_> {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if let Some(grad) = self.grads.get::<N>(param.id)
                && self.seen.insert(param.id)
            {
                match host::sum_of_squares(&grad) {
                    Some(sum) => self.sum += sum,
                    None => self.squares.push(grad.square().sum()),
                }
            }
        }
    }
    let mut norm = Norm { grads, seen: HashSet::new(), sum: 0.0, squares: Vec::new() };
    module.visit(&mut norm);
    if !norm.squares.is_empty() {
        // One read from the device instead of one a parameter.
        norm.sum += Tensor::cat(norm.squares, 0).sum().into_scalar::<f64>();
    }
    norm.sum.sqrt()
}

/// Multiplies all gradients of `module` by `factor`.
pub fn scale_gradients<M: Module>(module: &M, grads: &mut GradientsParams, factor: f64) {
    struct Scale<'a> {
        grads: &'a mut GradientsParams,
        seen: HashSet<ParamId>,
        factor: f64,
    }
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if self.seen.insert(param.id)
                && let Some(grad) = self.grads.remove::<N>(param.id)
            {
                self.grads.register(param.id, grad * self.factor);
            }
        }
    }
    module.visit(&mut Scale { grads, seen: HashSet::new(), factor });
}

/// The path of the first parameter of `module` that is not finite, or whose gradient is not.
pub fn first_not_finite<M: Module>(module: &M, grads: &GradientsParams) -> Option<String> {
    struct Find<'a> {
        grads: &'a GradientsParams,
        path: Vec<String>,
        found: Option<String>,
    }
    impl ModuleVisitor for Find<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if self.found.is_some() {
                return;
            }
            let value = host::plain(param.val());
            if !host::is_finite(value) || !self.grads.get::<N>(param.id).is_none_or(host::is_finite)
            {
                self.found = Some(self.path.join("."));
            }
        }
    }
    let mut find = Find { grads, path: Vec::new(), found: None };
    module.visit(&mut find);
    find.found
}
