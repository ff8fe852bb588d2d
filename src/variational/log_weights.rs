//! Importance weights, and what they estimate.

use burn::tensor::Tensor;

use crate::error::{FlowError, Result};
use crate::host;

/// Logarithms of importance weights `w = p~(x) / q(x)` of draws from `q`, in nats, and what they estimate.
///
/// All sums are taken in f64 with the largest weight as the unit, so that no `ln w`, however large, overflows.
/// The estimates hold where `q` reaches everywhere where `p` does: a mode that `q` has missed shows in none
/// of them.
///
/// ```
/// use burn_flows::variational::LogWeights;
///
/// // Weights 1, 1 and 2.
/// let weights = LogWeights::new(vec![1000.0, 1000.0, 1000.0 + 2f64.ln()])?;
/// assert!((weights.effective_sample_size() - 16.0 / 6.0).abs() < 1e-12);
/// assert!((weights.log_evidence() - (1000.0 + (4.0 / 3.0f64).ln())).abs() < 1e-12);
/// assert!((weights.mean(&[0.0, 1.0, 4.0])? - 2.25).abs() < 1e-12);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LogWeights {
    values: Vec<f64>,
    largest: f64,
}

impl LogWeights {
    /// From `ln w` of each draw. Minus infinity, of a draw where `p~` is 0, is a weight of 0.
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if there are none, if one is NaN or plus infinity, or all are minus infinity.
    pub fn new(values: Vec<f64>) -> Result<Self> {
        let refuse = |got: String, needed: &str, advice: &str| {
            Err(FlowError::invalid("LogWeights: ln w of the draws", got, needed, advice))
        };
        if values.is_empty() {
            return refuse("no draws".into(), "at least 1", "draw some from the model");
        }
        let is_bad = |value: &f64| value.is_nan() || *value == f64::INFINITY;
        if let Some(at) = values.iter().position(is_bad) {
            return refuse(
                format!("{} at draw {at}", values[at]),
                "numbers below infinity",
                "look at ln p there: it may overflow, or take the logarithm of a negative number",
            );
        }
        let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if largest == f64::NEG_INFINITY {
            return refuse(
                format!("minus infinity at all {} draws", values.len()),
                "at least one draw where p is above 0",
                "fit the model first, or keep it in the domain of p (preprocess::Unconstrain)",
            );
        }
        Ok(Self { values, largest })
    }

    /// From `ln w` of each draw, `[draws]`.
    ///
    /// # Errors
    /// As [`new`](LogWeights::new).
    pub fn from_tensor(log_w: Tensor<1>) -> Result<Self> {
        if host::has_no_samples(&log_w) {
            return Self::new(Vec::new());
        }
        Self::new(host::to_f64(host::plain(log_w)))
    }

    /// Those of the draws for each of `num_contexts` contexts, in the order of
    /// [`repeat_contexts`](super::repeat_contexts): each context has a posterior and an evidence of its own.
    ///
    /// # Errors
    /// If the draws are not a whole number for each context; as [`new`](LogWeights::new), also where all
    /// draws of a single context have no weight.
    pub fn by_context(&self, num_contexts: usize) -> Result<Vec<Self>> {
        let draws = self.values.len();
        if num_contexts == 0 || !draws.is_multiple_of(num_contexts) {
            return Err(FlowError::invalid(
                "LogWeights: the number of contexts",
                format!("{num_contexts} for {draws} draws"),
                "the same number of draws for each",
                "make the draws with repeat_contexts",
            ));
        }
        self.values.chunks(draws / num_contexts).map(|part| Self::new(part.to_vec())).collect()
    }

    /// `ln w` of each draw.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// `w / w_max` of each draw.
    fn relative(&self) -> impl Iterator<Item = f64> {
        self.values.iter().map(|value| (value - self.largest).exp())
    }

    /// The self-normalized weights `w_i / sum w`, which add up to 1.
    pub fn normalized(&self) -> Vec<f64> {
        let sum: f64 = self.relative().sum();
        self.relative().map(|weight| weight / sum).collect()
    }

    /// How many independent draws from `p` the draws are worth, `(sum w)^2 / sum w^2`: from 1, where one
    /// weight outweighs all others, to their number, where `q` is `p`.
    ///
    /// Source: Kish, *Survey Sampling* (1965); Kong, *A Note on Importance Sampling Using Standardized
    /// Weights* (1992).
    pub fn effective_sample_size(&self) -> f64 {
        let (sum, squares) = self
            .relative()
            .fold((0.0, 0.0), |(sum, squares), weight| (sum + weight, squares + weight * weight));
        sum * sum / squares
    }

    /// The estimate `ln(mean w)` of the log-evidence `ln Z`, in nats. The estimate of `Z` itself is unbiased,
    /// so that of `ln Z` is, in expectation, below it and above the [ELBO](LogWeights::elbo).
    pub fn log_evidence(&self) -> f64 {
        self.largest + (self.relative().sum::<f64>() / self.values.len() as f64).ln()
    }

    /// Standard error of [`log_evidence`](LogWeights::log_evidence), in nats, to first order:
    /// `sqrt((1 - ess / n) / ess)`; 0 for a single draw, which says nothing of it.
    pub fn log_evidence_error(&self) -> f64 {
        let ess = self.effective_sample_size();
        ((1.0 - ess / self.values.len() as f64).max(0.0) / ess).sqrt()
    }

    /// The evidence lower bound `mean ln w = -E_q[ln q - ln p~]`, in nats; minus infinity where a draw has
    /// weight 0.
    pub fn elbo(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }

    /// The self-normalized estimate of `E_p[f]` from `f` of each draw: `sum w_i f_i / sum w_i`. Draws of
    /// weight 0 do not count.
    ///
    /// # Errors
    /// If there is not one value for each draw.
    pub fn mean(&self, values: &[f64]) -> Result<f64> {
        if values.len() != self.values.len() {
            return Err(FlowError::invalid(
                "LogWeights: the values to take the mean of",
                values.len(),
                format!("{}, one for each draw", self.values.len()),
                "compute them from the draws that the weights belong to",
            ));
        }
        let weighted = self.normalized().into_iter().zip(values);
        Ok(weighted.filter(|(weight, _)| *weight > 0.0).map(|(weight, value)| weight * value).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_estimate_is_refused() {
        let text = |values: Vec<f64>| LogWeights::new(values).unwrap_err().to_string();
        assert_eq!(
            text(Vec::new()),
            "LogWeights: ln w of the draws: got no draws, needs at least 1; draw some from the model"
        );
        assert_eq!(
            text(vec![0.0, f64::NAN]),
            "LogWeights: ln w of the draws: got NaN at draw 1, needs numbers below infinity; look at ln p \
             there: it may overflow, or take the logarithm of a negative number"
        );
        assert!(text(vec![f64::INFINITY]).contains("got inf at draw 0"));
        assert!(text(vec![f64::NEG_INFINITY; 2]).contains("got minus infinity at all 2 draws"));
        let weights = LogWeights::new(vec![0.0; 6]).unwrap();
        assert!(weights.mean(&[1.0]).unwrap_err().to_string().contains("got 1, needs 6"));
        for contexts in [0, 4] {
            let text = weights.by_context(contexts).unwrap_err().to_string();
            assert!(text.contains(&format!("got {contexts} for 6 draws")), "{text}");
        }
    }

    #[test]
    fn a_draw_without_weight_counts_in_the_evidence_alone() {
        let weights = LogWeights::new(vec![1.0, f64::NEG_INFINITY]).unwrap();
        assert_eq!(weights.effective_sample_size(), 1.0);
        assert!((weights.log_evidence() - (1.0 - 2f64.ln())).abs() < 1e-15);
        assert!((weights.log_evidence_error() - 0.5f64.sqrt()).abs() < 1e-15);
        assert_eq!(weights.elbo(), f64::NEG_INFINITY);
        assert_eq!(weights.mean(&[3.0, f64::NAN]).unwrap(), 3.0);
    }

    #[test]
    fn each_context_has_its_own_evidence() {
        let weights = LogWeights::new(vec![1.0, 1.0, -700.0, -700.0]).unwrap();
        let evidence: Vec<f64> =
            weights.by_context(2).unwrap().iter().map(LogWeights::log_evidence).collect();
        assert_eq!(evidence, [1.0, -700.0]);
    }
}
