//! A mixture of normals with full covariances.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, activation};
use rand::Rng;

use super::mixture::{draw_components, log_sum_exp};
use super::{HALF_LN_TAU, Prior, standard_normal};
use crate::chain::{assert_size, zero_log_det};
use crate::error::{FlowError, Result};
use crate::host;

const LAYER: &str = "FullMixture";

/// Added to the deviations on the diagonal, so that no component collapses: zuko's.
pub(super) const DIAGONAL_FLOOR: f64 = 1e-6;

/// A learned mixture of normals with full covariance, for vectors.
///
/// `ln p(z) = ln sum_k w_k N(z; mean_k, S_k S_k^T)`, `w = softmax(logits)`; `S_k` is lower triangular with
/// `exp(log_diagonal_k) + 1e-6` on the diagonal and the entries of `lower_k` below it, row by row. Where the
/// features of a component do not depend on each other, a [`GaussianMixture`](super::GaussianMixture)
/// is enough.
///
/// A temperature multiplies the deviations of the components; their weights and means stay.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::prior::{FullMixture, Prior};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let device = burn_flows::backend::device();
/// let mut mixture = FullMixture::new(1, 2, &mut StdRng::seed_from_u64(0), &device)?;
/// mixture.mean = burn::module::Param::from_data([[0.0, 0.0]], &device);
/// mixture.lower = Some(burn::module::Param::from_data([[3.0]], &device));
/// // z = S (1, 1) for S = [1, 0; 3, 1]: as dense as (1, 1) is under the standard normal.
/// let log_prob = mixture.log_prob(Tensor::<2>::from_data([[1.0, 4.0]], &device));
/// let expected = -1.0 - (2.0 * std::f32::consts::PI).ln();
/// assert!((log_prob.into_scalar::<f32>() - expected).abs() < 1e-4);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct FullMixture {
    /// Logarithms of the weights, up to a constant, `[components]`.
    pub logits: Param<Tensor<1>>,
    /// Means, `[components, features]`.
    pub mean: Param<Tensor<2>>,
    /// Logarithms of the diagonals, `[components, features]`.
    pub log_diagonal: Param<Tensor<2>>,
    /// Entries below the diagonals, row by row, `[components, features (features - 1) / 2]`; of a single
    /// feature, none.
    pub lower: Option<Param<Tensor<2>>>,
}

/// A mixture for each sample, or one for all with batch size 1.
pub(super) struct Components {
    /// `[batch, components]`, normalized.
    pub(super) log_weights: Tensor<2>,
    /// `[batch, components, features]`.
    pub(super) mean: Tensor<3>,
    /// `[batch, components, features]`.
    pub(super) log_diagonal: Tensor<3>,
    /// `[batch, components, entries]`.
    pub(super) lower: Option<Tensor<3>>,
}

impl Components {
    /// `ln p(z)` of each sample.
    pub(super) fn log_prob(self, z: Tensor<2>) -> Tensor<1> {
        let [batch, features] = z.dims();
        let [rows, components, _] = self.mean.dims();
        let diagonal = self.log_diagonal.exp() + DIAGONAL_FLOOR;
        let distance = z.reshape([batch, 1, features]) - self.mean;
        // S u = z - mean, solved from the first row down.
        let mut solved: Vec<Tensor<3>> = Vec::new();
        let mut entry = 0;
        for row in 0..features {
            let mut rest = distance.clone().narrow(2, row, 1);
            for before in &solved {
                let lower = self.lower.as_ref().expect("two features have an entry below");
                rest = rest - lower.clone().narrow(2, entry, 1) * before.clone();
                entry += 1;
            }
            solved.push(rest / diagonal.clone().narrow(2, row, 1));
        }
        let squares = Tensor::cat(solved, 2).square().sum_dim(2).reshape([batch, components]);
        let log_volume = diagonal.log().sum_dim(2).reshape([rows, components]);
        let constant = self.log_weights - log_volume - HALF_LN_TAU * features as f64;
        log_sum_exp(constant - squares * 0.5)
    }

    /// One draw for each row of `choices`, `[batch, components]` of 0 and 1.
    pub(super) fn draw(self, choices: Tensor<2>, noise: Tensor<2>) -> Tensor<2> {
        let [batch, features] = noise.dims();
        let components = choices.dims()[1];
        let choices = choices.reshape([batch, components, 1]);
        let chosen = |values: Tensor<3>| {
            let width = values.dims()[2];
            (values * choices.clone()).sum_dim(1).reshape([batch, width])
        };
        let (mean, diagonal) =
            (chosen(self.mean), chosen(self.log_diagonal.exp() + DIAGONAL_FLOOR));
        let lower = self.lower.map(chosen);
        let column = |values: &Tensor<2>, at: usize| values.clone().narrow(1, at, 1);
        let mut entry = 0;
        let rows = (0..features).map(|row| {
            let mut sum = column(&mean, row) + column(&diagonal, row) * column(&noise, row);
            for before in 0..row {
                let lower = lower.as_ref().expect("two features have an entry below");
                sum = sum + column(lower, entry) * column(&noise, before);
                entry += 1;
            }
            sum
        });
        Tensor::cat(rows.collect(), 1)
    }
}

impl FullMixture {
    /// `num_components` equal weights and identity covariances, means drawn from the standard normal.
    ///
    /// # Errors
    /// If one of the two numbers is zero.
    pub fn new(
        num_components: usize,
        num_features: usize,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Result<Self> {
        for (parameter, value) in
            [("num_components", num_components), ("num_features", num_features)]
        {
            if value == 0 {
                let advice = "one component is a normal";
                return Err(FlowError::config(LAYER, parameter, 0, "at least 1", advice));
            }
        }
        let zeros = |width| Tensor::<2>::zeros([num_components, width], device);
        let log_diagonal = zeros(num_features);
        let mean = standard_normal(log_diagonal.dims(), rng, device, log_diagonal.dtype());
        let below = num_features * (num_features - 1) / 2;
        Ok(Self {
            logits: Param::from_tensor(Tensor::zeros([num_components], device)),
            mean: Param::from_tensor(mean),
            log_diagonal: Param::from_tensor(log_diagonal),
            lower: (below > 0).then(|| Param::from_tensor(zeros(below))),
        })
    }

    fn components(&self) -> Components {
        Components {
            log_weights: activation::log_softmax(self.logits.val(), 0).unsqueeze(),
            mean: self.mean.val().unsqueeze(),
            log_diagonal: self.log_diagonal.val().unsqueeze(),
            lower: self.lower.as_ref().map(|lower| lower.val().unsqueeze()),
        }
    }
}

impl Prior<2> for FullMixture {
    fn log_prob(&self, z: Tensor<2>) -> Tensor<1> {
        assert_size(LAYER, &z, self.mean.dims()[1], "features");
        if host::has_no_samples(&z) {
            return zero_log_det(&z);
        }
        self.components().log_prob(z)
    }

    fn sample(
        &self,
        shape: [usize; 2],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<2> {
        if shape[0] == 0 {
            return standard_normal(shape, rng, device, dtype);
        }
        let logits = host::to_f64(host::plain(self.logits.val()));
        let choices = draw_components(&logits, shape[0], rng, device, dtype);
        let noise = standard_normal(shape, rng, device, dtype) * temperature;
        self.components().draw(choices, noise)
    }
}
