//! The logit preprocessing of RealNVP.

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::coupling::sum_per_sample;
use crate::error::{FlowError, Result};
use crate::flow::Flow;

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
/// and 1 by half a rounding unit, so that no `x`, not even one far outside, gives an infinity.
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
    #[module(skip)]
    alpha: f64,
    #[module(skip)]
    form: LogitForm,
}

impl Logit {
    /// RealNVP's as its code has it, alpha 0.05.
    pub fn real_nvp() -> Self {
        Self { alpha: LOGIT_ALPHA, form: LogitForm::Code }
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
        Ok(Self { alpha, form })
    }

    /// How far from the ends the logit is taken.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Where it is taken.
    pub fn form(&self) -> LogitForm {
        self.form
    }

    /// `dp/dx`.
    pub fn slope(&self) -> f64 {
        match self.form {
            LogitForm::Code => 1.0 - 2.0 * self.alpha,
            LogitForm::Paper => 1.0 - self.alpha,
        }
    }

    /// `(ln p, ln(1 - p))`, the latter without the cancellation in `1 - p`.
    fn log_odds<const D: usize>(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
        let smallest = smallest(x.dtype());
        let slope = self.slope();
        let low = (smallest - self.alpha) / slope;
        let high = (1.0 - smallest - self.alpha) / slope;
        let x = x.clamp(low, high);
        let p = (x.clone() * slope + self.alpha).clamp_min(smallest);
        let rest = 1.0 - self.alpha - slope;
        let q = ((x.neg() + 1.0) * slope + rest).clamp_min(smallest);
        (p.log(), q.log())
    }
}

/// Half a rounding unit of 1.
fn smallest(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON / 2.0,
        _ => f64::from(f32::EPSILON) / 2.0,
    }
}

impl<const D: usize> Flow<D> for Logit {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        let features: usize = x.dims()[1..].iter().product();
        let (ln_p, ln_q) = self.log_odds(x);
        let constant = features as f64 * self.slope().ln();
        let log_det = sum_per_sample(ln_p.clone() + ln_q.clone()).neg() + constant;
        (ln_p - ln_q, log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        // sigmoid(z) = (tanh(z / 2) + 1) / 2: Burn's own sigmoid is in f32 on ndarray. Not a division:
        // Burn 0.22 rounds the gradient of a division by a scalar to f32.
        let p = ((z * 0.5).tanh() + 1.0) * 0.5;
        (p - self.alpha) * self.slope().recip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;

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

    #[test]
    fn ends_and_what_lies_beyond_them_stay_finite() {
        let device = crate::backend::device();
        for dtype in [DType::F32, DType::F64] {
            for form in [LogitForm::Code, LogitForm::Paper] {
                let logit = Logit::new(1e-6, form).unwrap();
                let x = host::from_f64(vec![-1e4, 0.0, 1.0, 1e4], [4, 1], &device, dtype);
                let (z, log_det) = logit.forward(x);
                let back = logit.inverse(z.clone());
                let values = [host::to_f64(z), host::to_f64(log_det), host::to_f64(back)].concat();
                assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
            }
        }
    }
}
