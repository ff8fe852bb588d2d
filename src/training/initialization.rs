//! Which layers still wait for the batch that they start from.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::host;

/// The parameter in which a layer keeps whether it was initialized, 0 or 1.
const MARK: &str = "initialized";

/// The path of the first layer of `module` whose mark is 0 and which has parameters that are trained.
/// Running moments, which are not, need no batch before the first one that they observe.
pub(super) fn first_uninitialized<M: Module>(module: &M) -> Option<String> {
    /// A module on the way down.
    #[derive(Default)]
    struct Entered {
        name: String,
        is_trained: bool,
        is_unmarked: bool,
    }
    #[derive(Default)]
    struct Find {
        path: Vec<Entered>,
        found: Option<String>,
    }
    impl Find {
        fn names(&self) -> String {
            let names: Vec<&str> = self.path.iter().map(|entered| &*entered.name).collect();
            names.join(".")
        }
    }
    impl ModuleVisitor for Find {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(Entered { name: name.into(), ..Entered::default() });
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            if let Some(layer) = self.path.last()
                && layer.is_trained
                && layer.is_unmarked
                && self.found.is_none()
            {
                self.found = Some(self.names());
            }
            self.path.pop();
        }
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            let [.., layer, parameter] = &mut *self.path else { return };
            layer.is_trained |= param.is_require_grad();
            if parameter.name == MARK {
                let mark = host::to_f64(host::plain(param.val()));
                layer.is_unmarked = mark.iter().all(|&mark| mark == 0.0);
            }
        }
    }
    let mut find = Find::default();
    module.visit(&mut find);
    find.found
}
