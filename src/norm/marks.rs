//! Which layers inside of a model take something from data, wherever they are, and which still wait for it.

use burn::module::{Flag, Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

use crate::host;

/// The parameter in which a layer keeps whether it has seen its first batch, 0 or 1.
const MARK: &str = "initialized";

/// The type that `#[derive(Module)]` tells with every field of a [`RunningMoments`](super::RunningMoments).
const RUNNING_MOMENTS: &str = "RunningMoments";

/// Whether a model in training has running moments that observe batches.
pub(crate) fn observes_moments<M: Module>(module: &M) -> bool {
    marks(module).iter().any(Mark::observes_moments)
}

/// The parameters of all running moments of a model in training that observe batches.
#[cfg(feature = "train")]
pub(crate) fn running_moments<M: Module>(module: &M) -> Vec<ParamId> {
    let observing = marks(module).into_iter().filter(Mark::observes_moments);
    observing.flat_map(|mark| mark.parameters).collect()
}

/// The path of the first layer of a model in training that starts from data, is trained and has not seen
/// its first batch. Running moments, which are not trained, need no batch before the first one that they
/// observe.
pub(crate) fn first_uninitialized<M: Module>(module: &M) -> Option<String> {
    let layer = marks(module).into_iter().find(|mark| mark.is_trained && mark.is_unset());
    layer.map(|mark| mark.path)
}

/// The path of the first running moments of a model in training that observe batches and have seen none.
pub(crate) fn first_unobserved<M: Module>(module: &M) -> Option<String> {
    let waits = |mark: &Mark| mark.observes_moments() && mark.is_unset();
    marks(module).into_iter().find(waits).map(|mark| mark.path)
}

/// Type and path of the first layer inside that has not seen its first batch, running moments as well;
/// `module` is not in training.
pub(crate) fn waiting_for_data<M: Module>(module: &M) -> Option<String> {
    let counts = |mark: &Mark| mark.is_trained || mark.is_of_moments();
    // Only in training do parameters tell whether they are trained.
    let layer =
        marks(&module.clone().train()).into_iter().find(|mark| counts(mark) && mark.is_unset());
    layer.map(|Mark { layer, path, .. }| match path.is_empty() {
        true => layer,
        false => format!("{layer} at {path}"),
    })
}

/// A layer that takes something from data.
struct Mark {
    /// Its type.
    layer: String,
    path: String,
    /// Its parameters, if it has moments.
    #[cfg_attr(not(feature = "train"), allow(dead_code))]
    parameters: Vec<ParamId>,
    /// Whether a parameter beside the mark is trained.
    is_trained: bool,
    /// Whether no flag beside the mark is off: of moments that are not frozen.
    observes: bool,
    value: Tensor<1>,
}

impl Mark {
    fn is_of_moments(&self) -> bool {
        self.layer == RUNNING_MOMENTS
    }

    fn observes_moments(&self) -> bool {
        self.is_of_moments() && self.observes
    }

    fn is_unset(&self) -> bool {
        host::to_f64(host::plain(self.value.clone())).iter().all(|&mark| mark == 0.0)
    }
}

/// Every layer with a mark, in the order of the module; the values are not looked at.
fn marks<M: Module>(module: &M) -> Vec<Mark> {
    /// A module on the way down, the root first.
    #[derive(Default)]
    struct Entered {
        name: String,
        parameters: Vec<ParamId>,
        is_trained: bool,
        is_off: bool,
        mark: Option<(String, Tensor<1>)>,
    }
    struct Find {
        path: Vec<Entered>,
        /// The type whose field was entered last.
        container: String,
        found: Vec<Mark>,
    }
    impl Find {
        fn leave(&mut self) {
            // Most have none, and this is asked at every step: their paths are not put together.
            if self.path.last().is_some_and(|entered| entered.mark.is_none()) {
                self.path.pop();
                return;
            }
            let names: Vec<&str> = self.path.iter().skip(1).map(|entered| &*entered.name).collect();
            let path = names.join(".");
            let entered = self.path.pop();
            if let Some(Entered {
                parameters,
                is_trained,
                is_off,
                mark: Some((layer, value)),
                ..
            }) = entered
            {
                let observes = !is_off;
                self.found.push(Mark { layer, path, parameters, is_trained, observes, value });
            }
        }
    }
    impl ModuleVisitor for Find {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            let container = container_type.split_once(':').map_or(container_type, |(_, name)| name);
            self.container = container.into();
            self.path.push(Entered { name: name.into(), ..Entered::default() });
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.leave();
        }

        fn visit_flag(&mut self, flag: &Param<Flag>) {
            if let [.., layer, _] = &mut *self.path {
                layer.is_off |= !flag.is_enabled();
            }
        }

        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            let [.., layer, parameter] = &mut *self.path else { return };
            if self.container == RUNNING_MOMENTS {
                layer.parameters.push(param.id);
            }
            layer.is_trained |= param.is_require_grad();
            if parameter.name == MARK {
                layer.mark = Some((self.container.clone(), param.val().reshape([-1])));
            }
        }
    }
    let path = vec![Entered::default()];
    let mut find = Find { path, container: String::new(), found: Vec::new() };
    module.visit(&mut find);
    find.leave();
    find.found
}
