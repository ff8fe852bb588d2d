//! Figures of density models, as metrics of burn-train.

use std::sync::Arc;

use burn::tensor::TensorReadError;
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes, NumericEntry,
    SerializedEntry, format_float,
};

use super::DensityOutput;
use crate::metrics::bits_per_dim;

/// Digits behind the point.
const PRECISION: usize = 3;

fn lower_is_better(unit: Option<&str>) -> MetricAttributes {
    NumericAttributes { unit: unit.map(String::from), higher_is_better: false }.into()
}

/// Bits per dimension, [`metrics::bits_per_dim`](bits_per_dim): the mean over the samples of an epoch.
#[derive(Clone)]
pub struct BitsPerDimMetric {
    num_dims: usize,
    levels: u32,
    state: NumericMetricState,
}

impl BitsPerDimMetric {
    /// Of samples of `num_dims` values with `levels` levels each; 1 level for data that are not quantized.
    pub fn new(num_dims: usize, levels: u32) -> Self {
        Self { num_dims, levels, state: NumericMetricState::new() }
    }

    fn format(&self) -> FormatOptions {
        FormatOptions::new(self.name()).precision(PRECISION)
    }
}

impl Metric for BitsPerDimMetric {
    type Input = DensityOutput;

    fn name(&self) -> MetricName {
        Arc::new("Bits per dimension".into())
    }

    fn attributes(&self) -> MetricAttributes {
        lower_is_better(Some("bits/dim"))
    }

    fn update(
        &mut self,
        item: &DensityOutput,
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        let loss = item.loss.clone().try_into_scalar::<f64>()?;
        self.state.update(bits_per_dim(-loss, self.num_dims, self.levels), item.num_samples);
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.state.compute_final(self.format()))
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for BitsPerDimMetric {
    fn value(&self) -> Option<NumericEntry> {
        Some(self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(self.state.running_value())
    }

    fn final_value(&self) -> NumericEntry {
        self.state.final_value()
    }
}

/// The largest value of an epoch of a figure that not every step has.
#[derive(Debug, Clone, Default)]
struct Largest {
    now: Option<f64>,
    largest: Option<f64>,
}

impl Largest {
    fn update(&mut self, now: Option<f64>) -> SerializedEntry {
        self.now = now;
        let Some(now) = now else { return SerializedEntry::not_available(None) };
        // NaN, once met, stays.
        let is_larger = |largest: f64| now > largest || now.is_nan();
        if self.largest.is_none_or(is_larger) {
            self.largest = Some(now);
        }
        let (largest, batch) =
            (format_float(self.final_figure(), PRECISION), format_float(now, PRECISION));
        let entry = NumericEntry::Value(now).serialize();
        SerializedEntry::new(format!("epoch {largest} - batch {batch}"), entry)
    }

    fn compute(&self) -> SerializedEntry {
        let Some(largest) = self.largest else { return SerializedEntry::not_available(None) };
        let text = format!("epoch {}", format_float(largest, PRECISION));
        SerializedEntry::new(text, NumericEntry::Final(largest).serialize())
    }

    fn final_figure(&self) -> f64 {
        self.largest.unwrap_or(f64::NAN)
    }
}

macro_rules! largest_metric {
    ($metric:ident, $name:literal, $field:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, Default)]
        pub struct $metric(Largest);

        impl $metric {
            /// The metric, before its first batch.
            pub fn new() -> Self {
                Self::default()
            }
        }

        impl Metric for $metric {
            type Input = DensityOutput;

            fn name(&self) -> MetricName {
                Arc::new($name.into())
            }

            fn attributes(&self) -> MetricAttributes {
                lower_is_better(None)
            }

            fn update(
                &mut self,
                item: &DensityOutput,
                _metadata: &MetricMetadata,
            ) -> Result<SerializedEntry, TensorReadError> {
                Ok(self.0.update(item.$field))
            }

            fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
                Ok(self.0.compute())
            }

            fn clear(&mut self) {
                self.0 = Largest::default();
            }
        }

        impl Numeric for $metric {
            fn value(&self) -> Option<NumericEntry> {
                self.0.now.map(NumericEntry::Value)
            }

            fn running_value(&self) -> Option<NumericEntry> {
                self.0.largest.map(NumericEntry::Value)
            }

            fn final_value(&self) -> NumericEntry {
                NumericEntry::Final(self.0.final_figure())
            }
        }
    };
}

largest_metric!(
    DriftMetric,
    "Drift",
    drift,
    "The [drift](crate::training::Drift) of the activations that reversible training computes again, where it
was measured: the largest of an epoch. Of training; in validation nothing is computed again."
);

largest_metric!(
    InversionErrorMetric,
    "Inversion error",
    inversion_error,
    "`|x - inverse(forward(x))|` ([`metrics::inversion_error`](crate::metrics::inversion_error)) of some samples of
each batch: the largest of an epoch. Of validation; a step of training makes no round trip."
);

#[cfg(test)]
mod tests {
    use burn::data::dataloader::Progress;
    use burn::tensor::Tensor;

    use super::*;

    fn output(loss: f32, num_samples: usize, drift: Option<f64>) -> DensityOutput {
        let loss = Tensor::from_data([loss], &crate::backend::device());
        DensityOutput { loss, num_samples, drift, inversion_error: drift }
    }

    fn feed<Me: Metric<Input = DensityOutput>>(metric: &mut Me, outputs: &[DensityOutput]) {
        let progress = Progress::new(1, 1, None);
        let metadata = MetricMetadata { progress, iteration: None, lr: None };
        for output in outputs {
            metric.update(output, &metadata).unwrap();
        }
    }

    #[test]
    fn bits_are_the_mean_over_samples() {
        let mut metric = BitsPerDimMetric::new(2, 4);
        let ln_2 = std::f32::consts::LN_2;
        // 2 bits of 4 levels and, of 2 dimensions, half the bits of the loss: 3 and 4.
        feed(&mut metric, &[output(2.0 * ln_2, 3, None), output(4.0 * ln_2, 1, None)]);
        assert!((metric.value().unwrap().current() - 4.0).abs() < 1e-6);
        let serialized = metric.compute().unwrap().serialized;
        let mean = NumericEntry::deserialize(&serialized).unwrap().current();
        assert!((mean - 3.25).abs() < 1e-6, "{serialized}");
    }

    #[test]
    fn errors_are_the_largest_of_those_measured() {
        let mut metric = DriftMetric::new();
        feed(&mut metric, &[output(0.0, 1, None)]);
        assert!(metric.value().is_none() && metric.compute().unwrap().is_not_available());
        feed(&mut metric, &[output(0.0, 1, Some(3e-4)), output(0.0, 1, Some(1e-4))]);
        assert_eq!(metric.value().unwrap().current(), 1e-4);
        feed(&mut metric, &[output(0.0, 1, None)]);
        assert!(metric.value().is_none());
        assert_eq!(metric.compute().unwrap().serialized, "0.0003,final");
        assert_eq!(metric.final_value().current(), 3e-4);
        metric.clear();
        assert!(metric.running_value().is_none());
    }

    #[test]
    fn an_error_that_is_no_number_is_not_lost() {
        let mut metric = InversionErrorMetric::new();
        feed(&mut metric, &[output(0.0, 1, Some(f64::NAN)), output(0.0, 1, Some(1.0))]);
        assert!(metric.final_value().current().is_nan());
    }
}
