//! Logit preprocessing.

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::coupling::sum_per_sample;
use crate::error::{FlowError, Result};
use crate::flow::Flow;

/// How values in `[0, 1]` are squeezed before the logit, which is infinite at 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogitForm {
    /// `p = alpha + (1 - 2 alpha) x`: RealNVP's released code.
    Code,
    /// `p = alpha + (1 - alpha) x`: the text of RealNVP's paper.
    Paper,
}

/// Maps values in `[0, 1)` to the whole line: `z = ln p - ln(1 - p)`, `p = alpha + slope x`.
///
/// - inverse: `x = (sigmoid(z) - alpha) / slope`
/// - `log_det = sum_i (ln slope - ln p_i - ln(1 - p_i))`
///
/// with `slope = 1 - 2 alpha` or `1 - alpha` by the [`LogitForm`]. What lies at the ends of the range
/// (a black background) is spread out, which makes densities of digits far easier to model: a small
/// `alpha` such as 1e-6 spreads the most, the papers' 0.05 little.
///
/// Of a value outside of the range the nearest one inside (within `alpha / 2` in `p`, or 1e-7 for
/// `alpha = 0`) is taken, so the density stays finite.
///
/// Source: Dinh et al., *Density estimation using Real NVP*,
/// [arXiv:1605.08803](https://arxiv.org/abs/1605.08803), section 4.1; the code is
/// tensorflow/models, `real_nvp_multiscale_dataset.py` (`data_constraint`).
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, preprocess::{Logit, LogitForm}};
///
/// let device = burn_flows::backend::device();
/// let logit = Logit::new(0.05, LogitForm::Code)?;
/// let (z, log_det) = logit.forward(Tensor::<2>::from_data([[0.5]], &device));
/// assert!(z.into_scalar::<f32>().abs() < 1e-6);
/// assert!((log_det.into_scalar::<f32>() - (0.9f32 * 4.0).ln()).abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Logit {
    #[module(skip)]
    alpha: f64,
    #[module(skip)]
    form: LogitForm,
}

/// Smallest distance of `p` from 0 and 1, which f32 can still tell from 1.
const SMALLEST_MARGIN: f64 = 1e-7;

impl Logit {
    /// A logit of `alpha + slope x`.
    ///
    /// # Errors
    /// If `alpha` is not at least 0 and below 0.5.
    pub fn new(alpha: f64, form: LogitForm) -> Result<Self> {
        if !(0.0..0.5).contains(&alpha) {
            return Err(FlowError::config(
                "Logit",
                "alpha",
                alpha,
                "at least 0 and below 0.5",
                "RealNVP uses 0.05, 1e-6 suits MNIST",
            ));
        }
        Ok(Self { alpha, form })
    }

    /// The distance kept from the ends.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// How values are squeezed.
    pub fn form(&self) -> LogitForm {
        self.form
    }

    fn slope(&self) -> f64 {
        match self.form {
            LogitForm::Code => 1.0 - 2.0 * self.alpha,
            LogitForm::Paper => 1.0 - self.alpha,
        }
    }

    /// `p` and `1 - p`, each from `x` directly: neither loses digits near its end of the range.
    fn probabilities<const D: usize>(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
        let slope = self.slope();
        let margin = (self.alpha / 2.0).max(SMALLEST_MARGIN);
        let p = (x.clone() * slope + self.alpha).clamp(margin, 1.0 - margin);
        let rest = (x * -slope + (1.0 - self.alpha)).clamp(margin, 1.0 - margin);
        (p, rest)
    }
}

impl<const D: usize> Flow<D> for Logit {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        let (p, rest) = self.probabilities(x);
        let (ln_p, ln_rest) = (p.log(), rest.log());
        let features: usize = ln_p.dims()[1..].iter().product();
        let log_det = sum_per_sample(ln_p.clone() + ln_rest.clone()).neg()
            + features as f64 * self.slope().ln();
        (ln_p - ln_rest, log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        // sigmoid(z) = 1 / (1 + exp(-z)); the exponential overflows to infinity and the quotient to
        // 0, which is the limit.
        let p = (z.neg().exp() + 1.0).recip();
        (p - self.alpha) / self.slope()
    }
}
