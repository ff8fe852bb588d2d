//! The logit preprocessing of RealNVP.

use burn::module::Module;
use burn::tensor::{Bool, Tensor};
use serde::{Deserialize, Serialize};

use crate::chain::zero_log_det;
use crate::coupling::sum_per_sample;
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::record::Setting;
use crate::{host, support};

/// Rounding units by which `p` may lie outside of 0 to 1: those of the `inverse`.
const SUPPORT_ROUNDING: f64 = 4.0;

/// RealNVP's alpha (section 4.1).
pub const LOGIT_ALPHA: f64 = 0.05;

/// Where the logit is taken: paper and code of RealNVP differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogitForm {
    /// `p = alpha + (1 - 2 alpha) x`, away from both ends: the published code (`data_constraint`
    /// 0.9 is alpha 0.05).
    Code,
    /// `p = alpha + (1 - alpha) x`, away from zero alone: the paper's text.
    Paper,
}

/// From pixels in `[0, 1]` to real numbers: `z = logit(p)`, `p = alpha + slope x`.
///
/// - forward: `z = ln p - ln(1 - p)`
/// - inverse: `x = (sigmoid(z) - alpha) / slope`
/// - `log_det = sum (ln slope - ln p - ln(1 - p))`
///
/// `slope` is `1 - 2 alpha` or `1 - alpha`, see [`LogitForm`]. Every real `z` has its `x`, a little
/// outside of `[0, 1]` where `z` is large: cut it off where pixels are made of it. `p` is held off 0
/// and 1 by half a rounding unit, so that `z` is finite at both ends.
///
/// The support is where `0 <= p <= 1`: `-alpha <= x slope <= 1 - alpha`. An `x` outside, such as a pixel
/// of 0 to 255, is no `x` of any `z`: its `z` is that of the nearer end, and the log-determinant of its
/// sample is minus infinity, so `ln p(x)` is as well, and a code for it takes infinitely many bits.
/// [`Trainer::step`](crate::training::Trainer::step) refuses such a batch with
/// [`FlowError::OutsideSupport`].
///
/// Source: Dinh et al., *Density estimation using Real NVP*,
/// [arXiv:1605.08803](https://arxiv.org/abs/1605.08803), section 4.1; tensorflow/models,
/// `real_nvp_multiscale_dataset.py`.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, preprocess::Logit};
///
/// let device = burn_flows::backend::device();
/// let (z, log_det) = Logit::real_nvp().forward(Tensor::<2>::from_data([[0.5]], &device));
/// assert!(z.into_scalar::<f32>().abs() < 1e-6);
/// assert!((log_det.into_scalar::<f32>() - (0.9f32 * 4.0).ln()).abs() < 1e-6);
/// ```
#[derive(Module, Debug)]
pub struct Logit {
    alpha: Setting<f64>,
    form: Setting<LogitForm>,
}

impl Logit {
    /// RealNVP's as its code has it, alpha 0.05.
    pub fn real_nvp() -> Self {
        Self { alpha: LOGIT_ALPHA.into(), form: LogitForm::Code.into() }
    }

    /// A logit with the given alpha.
    ///
    /// # Errors
    /// If `alpha` is not above 0 and below 0.5.
    pub fn new(alpha: f64, form: LogitForm) -> Result<Self> {
        if !(alpha > 0.0 && alpha < 0.5) {
            return Err(FlowError::config(
                "Logit",
                "alpha",
                alpha,
                "above 0 and below 0.5",
                "0.05 is RealNVP's, 1e-6 is usual for MNIST",
            ));
        }
        Ok(Self { alpha: alpha.into(), form: form.into() })
    }

    /// How far from the ends the logit is taken.
    pub fn alpha(&self) -> f64 {
        *self.alpha
    }

    /// Where the logit is taken, by the code or by the paper.
    pub fn form(&self) -> LogitForm {
        *self.form
    }

    /// `dp/dx`, how much narrower than the data the interval of `p` is.
    pub fn slope(&self) -> f64 {
        match *self.form {
            LogitForm::Code => 1.0 - 2.0 * *self.alpha,
            LogitForm::Paper => 1.0 - *self.alpha,
        }
    }

    /// Which samples have a value outside of the support, `[batch]`.
    fn is_outside<const D: usize>(&self, x: &Tensor<D>) -> Tensor<1, Bool> {
        let (batch, features) = (x.dims()[0], x.dims()[1..].iter().product::<usize>());
        // What comes out of `inverse` is within, rounding included.
        let rounding = SUPPORT_ROUNDING * host::epsilon(x.dtype()) / self.slope();
        let low = -*self.alpha / self.slope() - rounding;
        let high = (1.0 - *self.alpha) / self.slope() + rounding;
        let x = host::plain(x.clone()).reshape([batch, features]);
        let is_outside = x.clone().lower_elem(low).bool_or(x.greater_elem(high));
        is_outside.any_dim(1).reshape([batch])
    }

    /// `(ln p, ln(1 - p))`, the latter without the cancellation in `1 - p`.
    fn log_odds<const D: usize>(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
        let smallest = host::epsilon(x.dtype()) / 2.0;
        let slope = self.slope();
        let low = (smallest - *self.alpha) / slope;
        let high = (1.0 - smallest - *self.alpha) / slope;
        let x = x.clamp(low, high);
        let p = (x.clone() * slope + *self.alpha).clamp_min(smallest);
        let rest = 1.0 - *self.alpha - slope;
        let q = ((x.neg() + 1.0) * slope + rest).clamp_min(smallest);
        (p.log(), q.log())
    }
}

impl<const D: usize> Flow<D> for Logit {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        let features: usize = x.dims()[1..].iter().product();
        let is_outside = self.is_outside(&x);
        let advice = "scale pixels to 0 to 1 and dequantize them (Quantization::dequantize)";
        support::report_outside("Logit", &x, &is_outside, || "0 to 1".into(), advice);
        let (ln_p, ln_q) = self.log_odds(x);
        let constant = features as f64 * self.slope().ln();
        let log_det = sum_per_sample(ln_p.clone() + ln_q.clone()).neg() + constant;
        (ln_p - ln_q, log_det.mask_fill(is_outside, f64::NEG_INFINITY))
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        if host::has_no_samples(&z) {
            return z;
        }
        // sigmoid(z) = (tanh(z / 2) + 1) / 2: Burn's own sigmoid is in f32 on ndarray. Not a division:
        // Burn 0.22 rounds the gradient of a division by a scalar to f32.
        let p = ((z * 0.5).tanh() + 1.0) * 0.5;
        (p - *self.alpha) * self.slope().recip()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;

    #[test]
    fn alpha_outside_of_its_range_is_refused() {
        for alpha in [0.0, 0.5, -1.0, f64::NAN] {
            assert!(Logit::new(alpha, LogitForm::Paper).is_err(), "{alpha}");
        }
        assert_eq!(
            Logit::new(0.5, LogitForm::Code).unwrap_err().to_string(),
            "Logit: alpha is 0.5, but must be above 0 and below 0.5; 0.05 is RealNVP's, 1e-6 is \
             usual for MNIST"
        );
    }

    /// Every device with the dtypes it computes in.
    fn devices() -> Vec<(burn::tensor::Device, DType)> {
        let devices = crate::backend::devices().into_iter().map(|(_, device)| device());
        let dtypes = |device| match crate::backend::is_host(&device) {
            true => vec![(device.clone(), DType::F32), (device, DType::F64)],
            false => vec![(device, DType::F32)],
        };
        devices.flat_map(dtypes).collect()
    }

    #[test]
    fn ends_are_finite_and_what_lies_beyond_them_has_no_density() {
        for ((device, dtype), form) in devices()
            .into_iter()
            .flat_map(|d| [LogitForm::Code, LogitForm::Paper].map(|f| (d.clone(), f)))
        {
            let logit = Logit::new(1e-6, form).unwrap();
            let x = host::from_f64(vec![-1e4, 0.0, 1.0, 1e4], [4, 1], &device, dtype);
            let (z, log_det) = logit.forward(x);
            let back = logit.inverse(z.clone());
            let values = [host::to_f64(z), host::to_f64(back)].concat();
            assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
            let log_det = host::to_f64(log_det);
            assert_eq!([log_det[0], log_det[3]], [f64::NEG_INFINITY; 2]);
            assert!(log_det[1].is_finite() && log_det[2].is_finite(), "{log_det:?}");
        }
    }

    /// One value outside is enough, and NaN is not hidden by it.
    #[test]
    fn a_sample_is_outside_by_any_of_its_values() {
        for (device, dtype) in devices() {
            let x = vec![0.5, 0.2, 0.5, 1.2, f64::NAN, 0.5];
            let x: Tensor<2> = host::from_f64(x, [3, 2], &device, dtype);
            let log_det = host::to_f64(Logit::real_nvp().log_det(x));
            assert!(log_det[0].is_finite());
            assert_eq!(log_det[1], f64::NEG_INFINITY);
            assert!(log_det[2].is_nan());
        }
    }

    /// A sample is within the support, wherever its latent lies.
    #[test]
    fn whatever_comes_out_of_the_inverse_has_a_density() {
        for (device, dtype) in devices() {
            for alpha in [1e-6, 0.05, 0.4, 0.4999] {
                for form in [LogitForm::Code, LogitForm::Paper] {
                    let logit = Logit::new(alpha, form).unwrap();
                    let z: Vec<f64> = (-400..=400).map(|z| f64::from(z) / 4.0).collect();
                    let z: Tensor<2> = host::from_f64(z, [801, 1], &device, dtype);
                    let log_det = host::to_f64(logit.log_det(logit.inverse(z)));
                    assert!(log_det.iter().all(|log_det| log_det.is_finite()), "{alpha} {form:?}");
                }
            }
        }
    }
}
