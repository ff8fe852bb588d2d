//! Uncorrelated features of deviation 1, from data.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::chain::{assert_size, same_log_det, zero_log_det};
use crate::error::{FlowError, Result};
use crate::flow::{At, Flow, backward_by_autodiff};
use crate::host;
use crate::linalg::principal_axes;
use crate::param::frozen;
use crate::tape::Tape;

const LAYER: &str = "Whiten";

/// A smallest deviation below this share of the largest one is rounding, the units of the features left
/// aside: they are dependent.
const SMALLEST_SHARE: f64 = 1e-6;

/// Takes vectors to the principal axes of data, the widest first, with mean 0 and deviation 1 on each.
///
/// With the covariance `C = V diag(deviation^2) V^T` of the data, `V` orthogonal:
///
/// - forward: `z = V^T (x - mean) / deviation`
/// - inverse: `x = V (z deviation) + mean`
/// - `log_det = -sum ln deviation`
///
/// What is normal in all directions but a few is a standard normal in all coordinates but a few behind it,
/// which a flow of few samples need not learn. Where single features have bounds, spikes or gaps,
/// [`Standardize`](super::Standardize) is the better start: it leaves them as they are. Saved with the
/// model and never trained.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, preprocess::Whiten};
///
/// let device = burn_flows::backend::device();
/// // Wide along the diagonal, narrow across it.
/// let x = Tensor::<2>::from_data([[2.0, 2.0], [-2.0, -2.0], [1.0, -1.0], [-1.0, 1.0]], &device);
/// let (z, log_det) = Whiten::fit(x.clone())?.forward(x);
/// let z = z.try_into_vec_as::<f32>().unwrap();
/// // Unbiased variances of 16/3 and 4/3; the first sample is a root of 8 out on the first axis.
/// assert!((z[0].abs() - 1.5f32.sqrt()).abs() < 1e-5 && z[1].abs() < 1e-5);
/// let log_det = log_det.try_into_vec_as::<f32>().unwrap()[0];
/// assert!((log_det + 0.5 * (64.0f32 / 9.0).ln()).abs() < 1e-5);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Whiten {
    /// Mean of each feature, `[features]`, not trained.
    pub mean: Param<Tensor<1>>,
    /// An axis a column, `[features, features]`, not trained.
    pub axes: Param<Tensor<2>>,
    /// Standard deviation along each axis, `[features]`, not trained.
    pub deviation: Param<Tensor<1>>,
}

impl Whiten {
    /// Takes mean and unbiased covariance of `x`, `[samples, features]`, all of the data if they fit.
    ///
    /// # Errors
    /// If there are not more samples than features, one is not finite, or the features are linearly
    /// dependent.
    pub fn fit(x: Tensor<2>) -> Result<Self> {
        let ([count, size], device, dtype) = (x.dims(), x.device(), x.dtype());
        let refuse = |got: String, needed: &str, advice: &str| {
            FlowError::invalid(format!("{LAYER}: the data to fit"), got, needed, advice)
        };
        if size == 0 || count <= size {
            let (got, needed) =
                (format!("of shape [{count}, {size}]"), "more samples than features");
            return Err(refuse(got, needed, "give all of the data, or use Standardize"));
        }
        let mut values = host::to_f64(host::plain(x));
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let got = format!("a number of feature {} that is not finite", at % size);
            return Err(refuse(got, "finite numbers", "remove or repair those samples"));
        }
        let mean: Vec<f64> = (0..size)
            .map(|feature| values[feature..].iter().step_by(size).sum::<f64>() / count as f64)
            .collect();
        for row in values.chunks_exact_mut(size) {
            row.iter_mut().zip(&mean).for_each(|(value, mean)| *value -= mean);
        }
        let mut covariance = vec![0.0; size * size];
        for row in values.chunks_exact(size) {
            for (sums, value) in covariance.chunks_exact_mut(size).zip(row) {
                sums.iter_mut().zip(row).for_each(|(sum, other)| *sum += value * other);
            }
        }
        covariance.iter_mut().for_each(|sum| *sum /= (count - 1) as f64);
        let deviations = |variances: Vec<f64>| -> Vec<f64> {
            variances.iter().map(|variance| variance.max(0.0).sqrt()).collect()
        };
        // Units are no dependence: that is judged with each feature at deviation 1.
        let own = |feature: usize| {
            let deviation = covariance[feature * size + feature].sqrt();
            // What rounding of the mean alone leaves of a constant.
            let is_constant = deviation <= f64::EPSILON * count as f64 * mean[feature].abs();
            if is_constant { 0.0 } else { deviation.recip() }
        };
        let scales: Vec<f64> = (0..size).map(own).collect();
        let correlation = covariance.iter().enumerate();
        let correlation: Vec<f64> =
            correlation.map(|(at, sum)| sum * scales[at / size] * scales[at % size]).collect();
        let beside = deviations(principal_axes(&correlation, size).0);
        let (variances, axes) = principal_axes(&covariance, size);
        let deviation = deviations(variances);
        let (largest, smallest) = (beside[0], beside[size - 1]);
        let are_numbers =
            deviation.iter().all(|&deviation| deviation > 0.0 && deviation.is_finite());
        if smallest <= largest * SMALLEST_SHARE || !are_numbers {
            let got = format!(
                "a deviation of {smallest:e} beside {largest:e} along an axis of the features at deviation 1"
            );
            let advice = "leave out a feature that follows from the others, or use Standardize";
            return Err(refuse(got, "features of which none follows from the others", advice));
        }
        let row = |values| frozen(host::from_f64(values, [size], &device, dtype));
        Ok(Self {
            mean: row(mean),
            axes: frozen(host::from_f64(axes, [size, size], &device, dtype)),
            deviation: row(deviation),
        })
    }

    /// The axes, orthogonal to the rounding of the type that they are in now: cast from a narrower one they
    /// are not, and `V^T` would be no inverse. One step of Newton's squares what is amiss.
    fn orthogonal_axes(&self) -> Tensor<2> {
        // No step may take them off the orthogonal ones: they are no weight, whatever is unfrozen.
        let axes = self.axes.val().detach();
        let square = axes.clone().transpose().matmul(axes.clone());
        axes.clone() * 1.5 - axes.matmul(square) * 0.5
    }

    fn assert_features(&self, x: &Tensor<2>) {
        assert_size(LAYER, x, self.mean.dims()[0], "features");
    }
}

impl Flow<2> for Whiten {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        self.assert_features(&x);
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        let log_det = self.log_det(x.clone());
        let z = (x - self.mean.val().unsqueeze()).matmul(self.orthogonal_axes());
        (z / self.deviation.val().unsqueeze(), log_det)
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.assert_features(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        let along = z * self.deviation.val().unsqueeze();
        along.matmul(self.orthogonal_axes().transpose()) + self.mean.val().unsqueeze()
    }

    fn log_det(&self, x: Tensor<2>) -> Tensor<1> {
        same_log_det(-self.deviation.val().log().sum(), &x)
    }

    fn pull_back(
        &self,
        at: At<2>,
        dz: Tensor<2>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<2>, Tensor<2>) {
        let x = tape.input(at, |z| self.valid().inverse(z));
        let dx = match self.mean.is_require_grad() || self.deviation.is_require_grad() {
            true => backward_by_autodiff(self, x.clone(), dz, dlog_det, grads),
            false => {
                let along = dz / self.deviation.val().inner().unsqueeze();
                along.matmul(self.orthogonal_axes().inner().transpose())
            }
        };
        (x, dx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend;

    #[test]
    fn data_that_span_no_volume_are_refused() {
        let device = backend::device();
        let error = |rows: Vec<[f32; 2]>| {
            let count = rows.len();
            let x = host::tensor(rows.into_iter().flatten().collect(), [count, 2], &device);
            Whiten::fit(x).unwrap_err().to_string()
        };
        let text = error(vec![[1.0, 2.0], [3.0, 4.0]]);
        assert!(text.contains("[2, 2]") && text.contains("more samples than features"), "{text}");
        let text = error(vec![[1.0, 2.0], [2.0, 4.0], [3.0, 6.0], [5.0, 10.0]]);
        assert!(text.contains("none follows from the others"), "{text}");
        let text = error(vec![[1.0, 2.0], [2.0, f32::NAN], [3.0, 6.0]]);
        assert!(text.contains("feature 1 that is not finite"), "{text}");
    }
}
