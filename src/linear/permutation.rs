//! Fixed permutations of the channels.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, IndexingUpdateOp, Tensor};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::backend::{HostValues, is_host};
use crate::chain::{assert_size, zero_log_det};
use crate::constants;
use crate::error::{FlowError, Result};
use crate::flow::{At, Flow};
use crate::host::{self, by_dtype};
use crate::kernels::reorder_channels;
use crate::param::frozen;
use crate::tape::Tape;

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

    /// `z[i] = x[order[i]]`, or where `back`, `x[order[i]] = z[i]`.
    fn reorder<const D: usize>(&self, x: Tensor<D>, back: bool) -> Tensor<D> {
        let order = host::plain(self.order.val());
        assert_size("Permutation", &x, order.dims()[0], "channels");
        if host::has_no_samples(&x) {
            return x;
        }
        // The gate asks for no parameters: their values are at hand as the order.
        if host::suits_kernels(&x) {
            let (device, dims) = (x.device(), x.dims());
            let shape = host::kernel_shape(dims);
            let order = places(order, back);
            return by_dtype!(x, T => {
                let z = reorder_channels::<T>(HostValues::of(x).as_slice(), &order, shape);
                host::tensor(z, dims, &device)
            });
        }
        if is_host(&x.device()) {
            let order = constants::places(places(order, back), &x.device());
            return x.select(1, order);
        }
        // Without a look at the order, for which a GPU would have to wait.
        let order = order.int();
        match back {
            false => x.select(1, order),
            true => x.zeros_like().select_assign(1, order, x, IndexingUpdateOp::Add),
        }
    }
}

/// The places that an order, or its inverse, takes its values from.
fn places(order: Tensor<1>, back: bool) -> Vec<usize> {
    let order: Vec<_> = host::to_f64(order).into_iter().map(|index| index as usize).collect();
    if !back {
        return order;
    }
    let mut inverse = vec![0; order.len()];
    for (to, from) in order.into_iter().enumerate() {
        inverse[from] = to;
    }
    inverse
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

impl<const D: usize> Flow<D> for Permutation {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        let log_det = zero_log_det(&x);
        (self.reorder(x, false), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.reorder(z, true)
    }

    fn pull_back(
        &self,
        at: At<D>,
        dz: Tensor<D>,
        _dlog_det: Tensor<1>,
        tape: &mut Tape,
        _grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        (tape.input(at, |z| self.reorder(z, true)), self.reorder(dz, true))
    }
}
