//! What a step tells the metrics.

use burn::tensor::{ExecutionError, Tensor};
use burn::train::ItemLazy;
use burn::train::metric::{Adaptor, LossInput};

/// What a step of a [`Learnable`](super::Learnable) found out about its batch, for metrics: Burn's
/// `LossMetric` and those of this room, and what else takes a [`LossInput`] or a `DensityOutput`.
#[derive(Debug, Clone)]
pub struct DensityOutput {
    /// Mean of `-ln p(x)` over the batch, in nats, `[1]`.
    pub loss: Tensor<1>,
    /// Samples of the batch.
    pub num_samples: usize,
    /// Largest [drift](super::super::Drift), in the steps of training that measure it.
    pub drift: Option<f64>,
    /// Largest `|x - inverse(forward(x))|` of some samples, in validation.
    pub inversion_error: Option<f64>,
}

impl ItemLazy for DensityOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        // Its values are read on the thread of the metrics.
        self.loss.device().flush()?;
        Ok(self)
    }
}

impl Adaptor<DensityOutput> for DensityOutput {
    fn adapt(&self) -> DensityOutput {
        self.clone()
    }
}

impl Adaptor<LossInput> for DensityOutput {
    fn adapt(&self) -> LossInput {
        // The metric weighs a batch by the length of its losses.
        LossInput::new(self.loss.clone().expand([self.num_samples]))
    }
}
