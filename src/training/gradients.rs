//! What is asked of gradients before a step: their norm, and where they are not finite.

use std::collections::HashSet;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::host;

/// The Euclidean norm of all gradients of `module` together, that of a shared parameter counted once.
pub fn gradient_norm<M: Module>(module: &M, grads: &GradientsParams) -> f64 {
    let squares = SumOfSquares::of(module, grads);
    let on_device = squares.on_device.map_or(0.0, host::scalar);
    (squares.known + on_device).sqrt()
}

/// The square of the norm of all gradients, in two parts.
pub(super) struct SumOfSquares {
    /// Of those in main memory.
    pub known: f64,
    /// Of those on a device, `[1]`, for the caller to read together with what else it reads there.
    pub on_device: Option<Tensor<1>>,
}

impl SumOfSquares {
    pub fn of<M: Module>(module: &M, grads: &GradientsParams) -> Self {
        struct Squares<'a> {
            grads: &'a GradientsParams,
            seen: HashSet<ParamId>,
            known: f64,
            on_device: Vec<Tensor<1>>,
        }
        impl ModuleVisitor for Squares<'_> {
            fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
                if let Some(grad) = self.grads.get::<N>(param.id)
                    && self.seen.insert(param.id)
                {
                    match host::sum_of_squares(&grad) {
                        Some(sum) => self.known += sum,
                        None => self.on_device.push(grad.square().sum()),
                    }
                }
            }
        }
        let (seen, on_device) = (HashSet::new(), Vec::new());
        let mut squares = Squares { grads, seen, known: 0.0, on_device };
        module.visit(&mut squares);
        let Squares { known, on_device, .. } = squares;
        let on_device = (!on_device.is_empty()).then(|| Tensor::cat(on_device, 0).sum());
        Self { known, on_device }
    }
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
