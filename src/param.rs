//! Parameters that are saved but not trained, and replacing a parameter's value.

use burn::module::{Module, Param};
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
