//! The invertible residual network.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use super::softplus;
use crate::chain::{assert_size, zero_log_det};
use crate::conditioner::drawn;
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::linalg::Lu;
use crate::record::Setting;

/// Configuration of a [`Residual`] flow: the widths of its net, and how steep it may be.
#[derive(Debug, Clone)]
pub struct ResidualConfig {
    num_features: usize,
    hidden: Vec<usize>,
    coefficient: f64,
}

impl ResidualConfig {
    /// A flow of vectors whose net has hidden layers of the given widths.
    pub fn new(num_features: usize, hidden: Vec<usize>) -> Self {
        Self { num_features, hidden, coefficient: 0.9 }
    }

    /// The largest spectral norm of a layer; default: 0.9. The nearer to 1, the more the flow can do, and the
    /// more steps its inverse takes.
    pub fn with_coefficient(mut self, coefficient: f64) -> Self {
        self.coefficient = coefficient;
        self
    }

    /// Builds the flow.
    ///
    /// # Errors
    /// If a width is zero or the coefficient is not between 0 and 1.
    pub fn init(&self, device: &Device) -> Result<Residual> {
        let ends = [self.num_features];
        let widths: Vec<usize> = ends.iter().chain(&self.hidden).chain(&ends).copied().collect();
        if widths.contains(&0) {
            return Err(FlowError::config(
                "Residual",
                "widths",
                format!("{widths:?}"),
                "at least 1 each",
                "give every layer a width",
            ));
        }
        if !(self.coefficient > 0.0 && self.coefficient < 1.0) {
            return Err(FlowError::config(
                "Residual",
                "coefficient",
                self.coefficient,
                "between 0 and 1, both excluded",
                "0.9 is usual; from 1 on the map need not have an inverse",
            ));
        }
        let layers: Vec<Linear> = widths
            .windows(2)
            .map(|pair| drawn(LinearConfig::new(pair[0], pair[1]), device))
            .collect();
        let beta = || Param::from_tensor(Tensor::<1>::zeros([1], device) + SWISH_START);
        let betas = layers.iter().map(|_| beta()).collect();
        Ok(Residual { layers, betas, coefficient: self.coefficient.into() })
    }
}

/// Start of the Swish's parameter (rtqichen/residual-flows, `Swish`).
const SWISH_START: f64 = 0.5;

/// Divisor of the Swish, whose steepest slope is 1.0998.
const SWISH_LIPSCHITZ: f64 = 1.1;

/// Power iterations for a spectral norm at most; fewer where it stands still before.
const POWER_ITERATIONS: usize = 300;

/// Fixed-point steps of the inverse at most: with a contraction by 0.99 a step these reach the rounding of f64.
const MAX_STEPS: usize = 4000;

/// An invertible residual network: `z = x + g(x)` with a net `g` that contracts.
///
/// - forward: `z = x + g(x)`, `g = A_n . s . ... . A_1 . s`, each layer `A` linear, behind a Swish
///   `s(v) = v sigmoid(softplus(beta) v) / 1.1` of slope at most 1
/// - `log_det = ln det(1 + dg/dx)`, exact
/// - inverse: the fixed point of `x = z - g(x)`, iterated until every sample stands still in the numbers of the
///   tensors, and one Newton step, by which gradients go on
///
/// A layer's matrix is `W / max(1, |W| / coefficient)`, `|W|` its largest singular value, which is found by
/// power iteration in f64 at every call, so the flow has no state. Each layer contracts by `coefficient` at
/// least, which makes `g` a contraction and the map invertible whatever the parameters.
///
/// # Cost
/// With `D` features the log-determinant takes `D` tangents through the net and an elimination of
/// `D^3 / 3` products a sample: right for some ten features. For pictures the papers estimate it by a random
/// series instead, which this layer does not. The elimination needs no pivots, since every leading block
/// of `1 + dg/dx` has an inverse.
///
/// Sources: Behrmann et al., *Invertible Residual Networks*,
/// [arXiv:1811.00995](https://arxiv.org/abs/1811.00995), theorem 1 and algorithm 1; Chen et al., *Residual Flows*,
/// [arXiv:1906.02735](https://arxiv.org/abs/1906.02735), section 3.3 (the Swish).
///
/// ```
/// use burn::module::Param;
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, residual::ResidualConfig};
///
/// let device = burn_flows::backend::device();
/// let mut residual = ResidualConfig::new(1, vec![]).with_coefficient(0.5).init(&device)?;
/// // The matrix 2 has norm 2, so 1/2 is left of it.
/// residual.layers[0].weight = Param::from_data([[2.0]], &device);
/// residual.layers[0].bias = Some(Param::from_data([1.0], &device));
/// let (z, log_det) = residual.forward(Tensor::<2>::from_data([[0.0]], &device));
/// assert!((z.clone().into_scalar::<f32>() - 1.0).abs() < 1e-6);
/// // The Swish has slope 1/2 / 1.1 at 0.
/// assert!((log_det.into_scalar::<f32>() - (1.0f32 + 0.25 / 1.1).ln()).abs() < 1e-6);
/// assert!(residual.inverse(z).into_scalar::<f32>().abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Residual {
    /// The linear layers, first to last.
    pub layers: Vec<Linear>,
    /// `beta` of the Swish before each layer, `[1]`.
    pub betas: Vec<Param<Tensor<1>>>,
    coefficient: Setting<f64>,
}

/// A layer as it is used: the matrix within its norm, the bias, and `softplus(beta)`.
struct Used {
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    beta: Tensor<2>,
}

impl Residual {
    /// The largest spectral norm of a layer.
    pub fn coefficient(&self) -> f64 {
        *self.coefficient
    }

    fn net(&self) -> Vec<Used> {
        let layers = self.layers.iter().zip(&self.betas);
        layers
            .map(|(layer, beta)| Used {
                weight: within(layer.weight.val(), *self.coefficient),
                bias: layer.bias.as_ref().map(|bias| bias.val()),
                beta: softplus(beta.val()).reshape([1, 1]),
            })
            .collect()
    }

    fn assert_features(&self, x: &Tensor<2>) {
        let features = self.layers[0].weight.dims()[0];
        assert_size("Residual", x, features, "features");
    }
}

/// The net without its graph.
fn plain(net: &[Used]) -> Vec<Used> {
    let layer = |used: &Used| Used {
        weight: host::plain(used.weight.clone()),
        bias: used.bias.clone().map(host::plain),
        beta: host::plain(used.beta.clone()),
    };
    net.iter().map(layer).collect()
}

/// `W / max(1, |W| / coefficient)`.
fn within(weight: Tensor<2>, coefficient: f64) -> Tensor<2> {
    let [inputs, outputs] = weight.dims();
    let plain = host::plain(weight.clone());
    let (left, right) = singular_vectors(&host::to_f64(plain.clone()), inputs, outputs);
    let (device, dtype) = (plain.device(), plain.dtype());
    let left: Tensor<2> = host::from_f64(left, [1, inputs], &device, dtype);
    let right: Tensor<2> = host::from_f64(right, [outputs, 1], &device, dtype);
    // With the vectors held fixed, the gradient is that of the norm.
    let norm = left.matmul(weight.clone()).matmul(right);
    weight / (norm * coefficient.recip()).clamp_min(1.0)
}

/// The singular vectors of the largest singular value of a row-major matrix.
fn singular_vectors(matrix: &[f64], rows: usize, columns: usize) -> (Vec<f64>, Vec<f64>) {
    // No start is orthogonal to every vector; an irregular one is to few.
    let mut right: Vec<f64> = (0..columns).map(|j| 1.0 + 0.5 * (j as f64 + 1.0).sin()).collect();
    let mut left = vec![0.0; rows];
    let mut norm = 0.0;
    for _ in 0..POWER_ITERATIONS {
        normalize(&mut right);
        for (entry, row) in left.iter_mut().zip(matrix.chunks(columns)) {
            *entry = row.iter().zip(&right).map(|(a, b)| a * b).sum();
        }
        let length = normalize(&mut left);
        right.fill(0.0);
        for (entry, row) in left.iter().zip(matrix.chunks(columns)) {
            for (sum, value) in right.iter_mut().zip(row) {
                *sum += entry * value;
            }
        }
        let stands = length <= norm * (1.0 + f64::EPSILON);
        norm = length;
        if stands {
            break;
        }
    }
    normalize(&mut right);
    (left, right)
}

/// Makes the length of a vector 1, unless it is 0; gives what it was.
fn normalize(vector: &mut [f64]) -> f64 {
    let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
    length
}

/// `1 / (1 + exp(-v))`. Burn's own is computed in f32 on some devices, whatever the type.
fn sigmoid(v: Tensor<2>) -> Tensor<2> {
    ((v * 0.5).tanh() + 1.0) * 0.5
}

/// `g(x)`.
fn apply(net: &[Used], x: Tensor<2>) -> Tensor<2> {
    net.iter().fold(x, |h, used| {
        let gate = sigmoid(h.clone() * used.beta.clone());
        linear(used, h * gate * SWISH_LIPSCHITZ.recip())
    })
}

fn linear(used: &Used, h: Tensor<2>) -> Tensor<2> {
    let y = h.matmul(used.weight.clone());
    match &used.bias {
        Some(bias) => {
            let width = bias.dims()[0];
            y + bias.clone().reshape([1, width])
        }
        None => y,
    }
}

/// `g(x)` and its Jacobian, transposed: `[batch, inputs, outputs]`.
fn apply_with_jacobian(net: &[Used], x: Tensor<2>) -> (Tensor<2>, Tensor<3>) {
    let [batch, features] = x.dims();
    let ones = |i: usize| f64::from(u8::from(i % features == i / features));
    let identity = (0..features * features).map(ones).collect();
    let identity: Tensor<3> =
        host::from_f64(identity, [1, features, features], &x.device(), x.dtype());
    let mut tangents = identity.expand([batch, features, features]);
    let mut h = x;
    for used in net {
        let width = h.dims()[1];
        let gate = sigmoid(h.clone() * used.beta.clone());
        let swish = h.clone() * gate.clone();
        // (v s)' = s + v beta s (1 - s)
        let slope = gate.clone() + swish.clone() * used.beta.clone() * (gate.neg() + 1.0);
        let slope = (slope * SWISH_LIPSCHITZ.recip()).reshape([batch, 1, width]);
        let rows = (tangents * slope).reshape([batch * features, width]);
        let outputs = used.weight.dims()[1];
        tangents = rows.matmul(used.weight.clone()).reshape([batch, features, outputs]);
        h = linear(used, swish * SWISH_LIPSCHITZ.recip());
    }
    (h, tangents)
}

/// `1 + jacobian`.
fn plus_identity(jacobian: Tensor<3>) -> Tensor<3> {
    let [batch, size, _] = jacobian.dims();
    let ones = |i: usize| f64::from(u8::from(i % size == i / size));
    let identity = (0..size * size).map(ones).collect();
    let identity: Tensor<3> =
        host::from_f64(identity, [1, size, size], &jacobian.device(), jacobian.dtype());
    jacobian + identity.expand([batch, size, size])
}

/// `ln det` of matrices whose leading blocks all have positive determinants, by elimination.
fn log_det(mut matrix: Tensor<3>) -> Tensor<1> {
    let [batch, size, _] = matrix.dims();
    let mut sum: Option<Tensor<1>> = None;
    for left in (0..size).rev() {
        let pivot = matrix.clone().narrow(1, 0, 1).narrow(2, 0, 1);
        let more = pivot.clone().reshape([batch]).log();
        sum = Some(match sum {
            Some(sum) => sum + more,
            None => more,
        });
        if left > 0 {
            let column = matrix.clone().narrow(1, 1, left).narrow(2, 0, 1);
            let row = matrix.clone().narrow(1, 0, 1).narrow(2, 1, left);
            let rest = matrix.narrow(1, 1, left).narrow(2, 1, left);
            matrix = rest - (column / pivot) * row;
        }
    }
    sum.expect("there is at least one feature")
}

/// The inverses of plain matrices.
fn inverses(matrices: Tensor<3>) -> Tensor<3> {
    let [batch, size, _] = matrices.dims();
    let (device, dtype) = (matrices.device(), matrices.dtype());
    let values = host::to_f64(matrices);
    let inverse = |matrix: &[f64]| Lu::new(matrix, size).solve();
    let values = values.chunks(size * size).flat_map(inverse).collect();
    host::from_f64(values, [batch, size, size], &device, dtype)
}

impl Flow<2> for Residual {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        self.assert_features(&x);
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        let (g, jacobian) = apply_with_jacobian(&self.net(), x.clone());
        (x + g, log_det(plus_identity(jacobian)))
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.assert_features(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        let net = self.net();
        let constant = plain(&net);
        let latent = host::plain(z.clone());
        let epsilon = host::epsilon(z.dtype());
        let mut x = latent.clone();
        for _ in 0..MAX_STEPS {
            let next = latent.clone() - apply(&constant, x.clone());
            // Each sample beside its own size, so that its inverse is that of no batch. One with a NaN
            // moves no more, and lets the others go on.
            let change = (next.clone() - x).abs().max_dim(1);
            let rounding = (next.clone().abs().max_dim(1) + 1.0) * (2.0 * epsilon);
            x = next;
            let moves = host::scalar(change.greater(rounding).any().float()) > 0.5;
            if !moves {
                break;
            }
        }
        // One step from the solution changes its value by rounding alone, and knows the gradients: the
        // matrix is a constant there.
        let [batch, features] = x.dims();
        let jacobian = plus_identity(apply_with_jacobian(&constant, x.clone()).1);
        let off = z - x.clone() - apply(&net, x.clone());
        let step = off.reshape([batch, 1, features]).matmul(inverses(jacobian));
        x + step.reshape([batch, features])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_of_a_matrix_is_its_largest_singular_value() {
        // [[3, 0], [4, 5]] has singular values sqrt(45) and sqrt(5).
        let (left, right) = singular_vectors(&[3.0, 0.0, 4.0, 5.0], 2, 2);
        let image = [3.0 * right[0], 4.0 * right[0] + 5.0 * right[1]];
        let norm = left[0] * image[0] + left[1] * image[1];
        assert!((norm - 45f64.sqrt()).abs() < 1e-12, "{norm}");
        let (left, _) = singular_vectors(&[0.0; 4], 2, 2);
        assert_eq!(left, [0.0, 0.0]);
    }

    #[test]
    fn what_need_not_have_an_inverse_is_refused() {
        let device = crate::backend::device();
        for coefficient in [0.0, 1.0, f64::NAN] {
            let config = ResidualConfig::new(2, vec![4]).with_coefficient(coefficient);
            assert_eq!(
                config.init(&device).unwrap_err().to_string(),
                format!(
                    "Residual: coefficient is {coefficient}, but must be between 0 and 1, both excluded; \
                     0.9 is usual; from 1 on the map need not have an inverse"
                )
            );
        }
        let text = ResidualConfig::new(2, vec![0]).init(&device).unwrap_err().to_string();
        assert!(
            text.starts_with("Residual: widths is [2, 0, 2], but must be at least 1 each"),
            "{text}"
        );
    }
}
