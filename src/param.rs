//! Parameters that are saved but not trained, and replacing a parameter's value.

use burn::module::Param;
use burn::tensor::Tensor;

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
