//! Fixed permutations of the channels.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::chain::{assert_size, zero_log_det};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::param::frozen;

/// A fixed permutation of the channels: `z[i] = x[order[i]]`, `log_det = 0`.
///
/// The order is kept in the record: a random permutation is the same one after loading.
///
/// Source: Kingma and Dhariwal, *Glow*, [arXiv:1807.03039](https://arxiv.org/abs/1807.03039),
/// section 3.2 (reversal and fixed shuffle, its baselines).
#[derive(Module, Debug)]
pub struct Permutation {
    /// `z[i] = x[order[i]]`, `[channels]`, not trained. A float tensor, because that is what every
    /// record format and every device keeps unchanged.
    pub order: Param<Tensor<1>>,
}

impl Permutation {
    /// The permutation with `z[i] = x[order[i]]`.
    ///
    /// # Errors
    /// If `order` is empty or does not hold every index once.
    pub fn new(order: &[usize], device: &Device) -> Result<Self> {
        let mut seen = vec![false; order.len()];
        for &index in order {
            match seen.get_mut(index) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(not_a_permutation(order)),
            }
        }
        if order.is_empty() {
            return Err(not_a_permutation(order));
        }
        let order: Vec<f32> = order.iter().map(|&index| index as f32).collect();
        Ok(Self { order: frozen(Tensor::from_data(order.as_slice(), device)) })
    }

    /// The channels in reverse.
    ///
    /// # Errors
    /// If `num_channels` is zero.
    pub fn reverse(num_channels: usize, device: &Device) -> Result<Self> {
        Self::new(&(0..num_channels).rev().collect::<Vec<_>>(), device)
    }

    /// A random order.
    ///
    /// # Errors
    /// If `num_channels` is zero.
    pub fn shuffle(num_channels: usize, rng: &mut impl Rng, device: &Device) -> Result<Self> {
        let mut order: Vec<usize> = (0..num_channels).collect();
        order.shuffle(rng);
        Self::new(&order, device)
    }

    /// The first `ceil(n / 2)` channels move behind the rest.
    ///
    /// # Errors
    /// If `num_channels` is zero.
    pub fn swap_halves(num_channels: usize, device: &Device) -> Result<Self> {
        let first = num_channels.div_ceil(2);
        Self::new(&(first..num_channels).chain(0..first).collect::<Vec<_>>(), device)
    }

    fn indices(&self) -> Vec<usize> {
        host::to_f64(self.order.val()).into_iter().map(|index| index as usize).collect()
    }
}

fn not_a_permutation(order: &[usize]) -> FlowError {
    FlowError::config(
        "Permutation",
        "order",
        format!("{order:?}"),
        "every index from 0 to n - 1 once, and not empty",
        "pass a permutation of the channels",
    )
}

fn select<const D: usize>(x: Tensor<D>, order: &[usize]) -> Tensor<D> {
    assert_size("Permutation", &x, order.len(), "channels");
    if host::has_no_samples(&x) {
        return x;
    }
    let order = host::indices(order.iter().copied(), &x.device().without_autodiff());
    x.select(1, order)
}

impl<const D: usize> Flow<D> for Permutation {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        let log_det = zero_log_det(&x);
        (select(x, &self.indices()), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        let order = self.indices();
        let mut back = vec![0; order.len()];
        for (to, from) in order.into_iter().enumerate() {
            back[from] = to;
        }
        select(z, &back)
    }
}
