//! Which layers inside of a model take something from data, wherever they are.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// The layers that take something from data, each with a mark in the field of this name once it has.
const LAYERS: [&str; 3] = ["ActNorm", "LinearActNorm", RUNNING_MOMENTS];
const RUNNING_MOMENTS: &str = "RunningMoments";
const MARK: &str = "initialized";

/// Whether a model has running statistics: a [`RunningMoments`](super::RunningMoments) anywhere inside.
pub(crate) fn has_running_moments<M: Module>(module: &M) -> bool {
    let mut found = false;
    visit_marks(module, |layer, _, _| found |= layer == RUNNING_MOMENTS);
    found
}

/// The first layer inside that has not seen its first batch, with its path.
pub(crate) fn waiting_for_data<M: Module>(module: &M) -> Option<String> {
    let mut first = None;
    visit_marks(module, |layer, path, mark| {
        if first.is_none() && mark.into_scalar::<f32>() < 0.5 {
            first = Some(if path.is_empty() { layer.into() } else { format!("{layer} at {path}") });
        }
    });
    first
}

fn visit_marks<M: Module>(module: &M, found: impl FnMut(&str, &str, Tensor<1>)) {
    struct Marks<F> {
        path: Vec<String>,
        /// The layer whose mark comes next.
        layer: Option<&'static str>,
        found: F,
    }
    impl<F: FnMut(&str, &str, Tensor<1>)> ModuleVisitor for Marks<F> {
        // `#[derive(Module)]` tells the name of the type with every field.
        fn enter_module(&mut self, name: &str, container_type: &str) {
            let of_type = container_type.strip_prefix("Struct:").filter(|_| name == MARK);
            self.layer = LAYERS.into_iter().find(|&layer| of_type == Some(layer));
            self.path.push(name.into());
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.layer = None;
            self.path.pop();
        }

        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if let Some(layer) = self.layer {
                let path = self.path[..self.path.len() - 1].join(".");
                (self.found)(layer, &path, param.val().reshape([1]));
            }
        }
    }
    module.visit(&mut Marks { path: Vec::new(), layer: None, found });
}
