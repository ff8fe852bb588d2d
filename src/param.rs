//! Parameters that are saved but not trained, and replacing a parameter's value.

use burn::module::{Flag, Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::error::{FlowError, Result};
use crate::host;

/// A parameter that is saved with the model but not trained.
pub(crate) fn frozen<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_tensor(tensor).set_require_grad(false)
}

/// Replaces the value of a parameter; its identity and whether it is trained stay.
pub(crate) fn replace<const D: usize>(
    param: Param<Tensor<D>>,
    value: Tensor<D>,
) -> Param<Tensor<D>> {
    param.map(|_| value)
}

/// Whether scales `exp(log_scale)` can be divided by in the numbers that they are computed in.
pub(crate) fn check_log_scale(layer: &'static str, log_scale: Tensor<1>) -> Result<()> {
    let limit = host::largest_log_scale(log_scale.dtype());
    let log_scale = host::to_f64(host::plain(log_scale));
    let is_outside = |log_scale: &f64| log_scale.is_nan() || log_scale.abs() > limit;
    match log_scale.iter().position(is_outside) {
        None => Ok(()),
        Some(channel) => {
            Err(FlowError::Scale { layer, channel, log_scale: log_scale[channel], limit })
        }
    }
}

/// [`replace`] of a parameter that is trained; a frozen one keeps its value.
pub(crate) fn replace_trained<const D: usize>(
    param: Param<Tensor<D>>,
    value: Tensor<D>,
) -> Param<Tensor<D>> {
    if is_trained(&param) { replace(param, value) } else { param }
}

/// Whether a parameter is trained once its model is in training.
pub(crate) fn is_trained<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    // A plain tensor requires no gradient in any case; what was asked for is kept aside.
    param.clone().train().is_require_grad()
}

/// The path of the first module of the type `container` in which the parameter `field` is trained, if `holds`
/// of the last flag that was met before it (off, where there was none).
pub(crate) fn first_trained<M: Module>(
    module: &M,
    container: &'static str,
    field: &'static str,
    holds: fn(bool) -> bool,
) -> Option<String> {
    struct Find {
        wanted: (&'static str, &'static str),
        holds: fn(bool) -> bool,
        /// Name of each field on the way, and the type that it is a field of.
        path: Vec<(String, String)>,
        last_flag: bool,
        found: Option<String>,
    }
    impl ModuleVisitor for Find {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.push((name.into(), container_type.into()));
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_flag(&mut self, flag: &Param<Flag>) {
            self.last_flag = flag.is_enabled();
        }
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            let Some(((field, container), place)) = self.path.split_last() else { return };
            let is_it = (container.as_str(), field.as_str()) == self.wanted;
            let is_wanted = is_it && param.is_require_grad() && (self.holds)(self.last_flag);
            if is_wanted && self.found.is_none() {
                let place: Vec<&str> = place.iter().map(|(name, _)| name.as_str()).collect();
                self.found = Some(place.join("."));
            }
        }
    }
    let wanted = (container, field);
    let mut find = Find { wanted, holds, path: Vec::new(), last_flag: false, found: None };
    module.visit(&mut find);
    find.found
}
