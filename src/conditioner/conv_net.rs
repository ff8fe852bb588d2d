//! A plain stack of 3x3 convolutions.

use burn::module::Module;
use burn::tensor::{Device, Tensor, activation};

use super::Conditioner;
use super::conv::Conv;
use crate::error::{FlowError, Result};

/// 3x3 convolutions with ReLU between, `[batch, in, height, width] -> [batch, out, height, width]`.
///
/// The plainest net for image couplings; [`ResidualNet`](super::ResidualNet) is RealNVP's.
#[derive(Module, Debug)]
pub struct ConvNet {
    /// The convolutions, first to last.
    pub layers: Vec<Conv>,
}

impl ConvNet {
    /// `channels_in -> hidden[0] -> ... -> channels_out`; the last convolution starts at zero, the
    /// others with deviation `sqrt(2 / fan_in)` (He et al., 2015).
    ///
    /// # Errors
    /// If a width is zero.
    pub fn new(
        channels_in: usize,
        hidden: &[usize],
        channels_out: usize,
        device: &Device,
    ) -> Result<Self> {
        let widths = [&[channels_in], hidden, &[channels_out]].concat();
        if widths.contains(&0) {
            return Err(FlowError::config(
                "ConvNet",
                "widths",
                format!("{widths:?}"),
                "at least 1 each",
                "give every layer a width",
            ));
        }
        let last = widths.len() - 2;
        let layers = widths.windows(2).enumerate().map(|(i, pair)| {
            let deviation = if i == last { 0.0 } else { (2.0 / (9 * pair[0]) as f64).sqrt() };
            Conv::new([pair[0], pair[1]], 3, deviation, true, device)
        });
        Ok(Self { layers: layers.collect() })
    }
}

impl Conditioner<4> for ConvNet {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut layers = self.layers.iter();
        let first = layers.next().expect("a ConvNet has at least one layer");
        layers.fold(first.forward(x), |h, layer| layer.forward(activation::relu(h)))
    }
}
