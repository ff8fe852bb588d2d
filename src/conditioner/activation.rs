//! Activations of the nets for vectors.

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};

/// What stands between the linear layers of a [`BlockNet`](super::BlockNet).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Activation {
    /// `max(u, 0)`.
    #[default]
    Relu,
    /// `u`, and `e^u - 1` below 0: its slope has no jump.
    Elu,
    /// `tanh(u)`.
    Tanh,
    /// `u sigmoid(u)`: smooth, so that the density is.
    Silu,
}

impl Activation {
    /// The activation of every value of a tensor.
    pub fn of<const D: usize>(self, u: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Relu => activation::relu(u),
            Self::Elu => {
                // Not as a sum of clamped parts, which both have a slope at 0.
                let below = u.clone().lower_elem(0.0);
                u.clone().mask_where(below, u.clamp_max(0.0).exp() - 1.0)
            }
            Self::Tanh => u.tanh(),
            Self::Silu => u.clone() * sigmoid(u),
        }
    }
}

/// `1 / (1 + e^-u)`, in the precision of the tensor: Burn 0.22 computes its own in f32.
pub(crate) fn sigmoid<const D: usize>(u: Tensor<D>) -> Tensor<D> {
    (u * 0.5).tanh() * 0.5 + 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_known() {
        let device = crate::backend::device();
        let of = |activation: Activation| {
            let u = Tensor::<1>::from_data([-1.0, 0.0, 2.0], &device);
            activation.of(u).try_into_vec_as::<f64>().unwrap()
        };
        let e = std::f64::consts::E;
        for (activation, expected) in [
            (Activation::Relu, [0.0, 0.0, 2.0]),
            (Activation::Elu, [1.0 / e - 1.0, 0.0, 2.0]),
            (Activation::Tanh, [(-1f64).tanh(), 0.0, 2f64.tanh()]),
            (Activation::Silu, [-1.0 / (1.0 + e), 0.0, 2.0 / (1.0 + (-2f64).exp())]),
        ] {
            for (got, expected) in of(activation).iter().zip(expected) {
                assert!((got - expected).abs() < 1e-6, "{activation:?}: {got} is not {expected}");
            }
        }
    }

    #[test]
    fn gradients_at_zero() {
        let device = crate::backend::device();
        for (activation, slope) in
            [(Activation::Elu, 1.0), (Activation::Tanh, 1.0), (Activation::Silu, 0.5)]
        {
            let u = Tensor::from_inner(Tensor::<1>::from_data([0.0], &device)).require_grad();
            let graph = activation.of(u.clone()).sum().backward();
            let got = u.grad(&graph).unwrap().into_scalar::<f64>();
            assert!((got - slope).abs() < 1e-6, "{activation:?}: {got} is not {slope}");
        }
    }
}
