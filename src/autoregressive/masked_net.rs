//! Masked nets of blocks: residual ones, other activations than ReLU, a context in every block.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::made::mask;
use super::{AutoregressiveNet, check_order};
use crate::chain::assert_size;
use crate::conditioner::{
    Activation, BlockForm, BlockNet, BlockNetConfig, Conditioner, ContextEntry,
};
use crate::error::{FlowError, Result};
use crate::host;
use crate::param::frozen;

const LAYER: &str = "MaskedNet";

/// Configuration of a [`MaskedNet`].
///
/// ```
/// use burn_flows::autoregressive::{AutoregressiveNet, MaskedNetConfig};
///
/// let device = burn_flows::backend::device();
/// let net = MaskedNetConfig::new(3, 8, 2, 2).init(&device)?;
/// // Two numbers for each of three features, known one after the other.
/// assert_eq!((net.num_outputs(), net.steps()), (6, vec![0, 1, 2]));
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone)]
pub struct MaskedNetConfig {
    net: BlockNetConfig,
    num_features: usize,
    order: Option<Vec<usize>>,
}

impl MaskedNetConfig {
    /// A residual net of `num_features` inputs and `params_per_feature` outputs for each, which see the
    /// features before it.
    pub fn new(
        num_features: usize,
        hidden_width: usize,
        num_blocks: usize,
        params_per_feature: usize,
    ) -> Self {
        let outputs = num_features * params_per_feature;
        let net = BlockNetConfig::new(num_features, hidden_width, num_blocks, outputs);
        Self { net, num_features, order: None }
    }

    /// The step at which each feature is known, as
    /// [`MadeConfig::with_order`](super::MadeConfig::with_order).
    pub fn with_order(mut self, order: Vec<usize>) -> Self {
        self.order = Some(order);
        self
    }

    /// Replaces the form of the blocks; default: [`BlockForm::PreActivated`].
    pub fn with_form(mut self, form: BlockForm) -> Self {
        self.net = self.net.with_form(form);
        self
    }

    /// Replaces the activation; default: [`Activation::Relu`].
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.net = self.net.with_activation(activation);
        self
    }

    /// The net sees a [context](crate::context) of `width` features: added in the first layer, and in every
    /// block as `entry` says.
    pub fn with_context(mut self, width: usize, entry: ContextEntry) -> Self {
        self.net = self.net.with_context(width).with_context_entry(entry);
        self
    }

    /// Starts the last layer at zero, so that a fresh layer is the identity.
    pub fn with_zero_init(mut self, zero_init: bool) -> Self {
        self.net = self.net.with_zero_init(zero_init);
        self
    }

    /// Builds the net.
    ///
    /// # Errors
    /// If a width is zero, or the order does not name a step for each feature, from 0 on and without a
    /// gap.
    pub fn init(&self, device: &Device) -> Result<MaskedNet> {
        let features = self.num_features;
        let order = self.order.clone().unwrap_or_else(|| (0..features).collect());
        let steps = check_order(LAYER, &order, features)?;
        let mut net = self.net.init(device)?;
        let first = usize::from(steps > 1 && self.net.context_width == 0);
        let width = self.net.hidden_width;
        let degrees: Vec<usize> =
            (0..width).map(|unit| first + unit * (steps - first) / width).collect();
        let outputs = order.repeat(self.net.features_out / features);
        let last = net.blocks.len() - 1;
        for (index, block) in net.blocks.iter_mut().enumerate() {
            let (from, to) = match index {
                0 => (&order, &degrees),
                index if index == last => (&degrees, &outputs),
                _ => (&degrees, &degrees),
            };
            let sees = |from: usize, to: usize| if index == 0 { from < to } else { from <= to };
            block.first.mask = Some(frozen(mask(from, to, sees, device)));
            if let Some(second) = &mut block.second {
                second.mask = Some(frozen(mask(&degrees, &degrees, |from, to| from <= to, device)));
            }
        }
        MaskedNet::from_net(net, order)
    }
}

/// A masked [`BlockNet`]: `[batch, features] -> [batch, params_per_feature * features]`, where the numbers
/// of a feature depend only on the features of earlier steps, and on all of a context.
///
/// What a [`Made`](super::Made) is to a perceptron, this is to a residual net. An inverse takes one pass
/// of the whole net for each step.
///
/// Source: Germain et al., *MADE*, [arXiv:1502.03509](https://arxiv.org/abs/1502.03509), section 4; with
/// residual blocks: Nash and Durkan, *Autoregressive Energy Machines*,
/// [arXiv:1904.05626](https://arxiv.org/abs/1904.05626), and nflows, `transforms/made.py`.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::Flow;
/// use burn_flows::autoregressive::{Autoregressive, MaskedNetConfig};
/// use burn_flows::conditioner::Activation;
/// use burn_flows::coupling::{Affine, AffineOrder, ScaleMap};
///
/// let device = burn_flows::backend::device();
/// let net = MaskedNetConfig::new(3, 16, 2, 2).with_activation(Activation::Silu).init(&device)?;
/// let affine = Affine::new(ScaleMap::default(), AffineOrder::ScaleThenShift, 3, &device);
/// let layer = Autoregressive::new(net, affine)?;
/// let x = Tensor::<2>::from_data([[0.5, -1.0, 2.0]], &device);
/// assert!((layer.inverse(layer.forward(x.clone()).0) - x).abs().max().into_scalar::<f32>() < 1e-4);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct MaskedNet {
    /// The net, with its masks.
    pub net: BlockNet,
    /// The step at which each feature is known, `[features]`, not trained.
    pub order: Param<Tensor<1>>,
}

impl MaskedNet {
    /// A net whose masks keep to the order: the numbers of feature `i` must not depend on a feature `j`
    /// with `order[j] >= order[i]`. The numbers of all features stand one kind after the other.
    ///
    /// # Errors
    /// If the order does not name a step for each feature, from 0 on and without a gap, or the net does not
    /// give as many numbers for each feature.
    pub fn from_net(net: BlockNet, order: Vec<usize>) -> Result<Self> {
        let features = net.features_in();
        check_order(LAYER, &order, features)?;
        let outputs = net.features_out();
        if outputs == 0 || !outputs.is_multiple_of(features) {
            return Err(FlowError::config(
                LAYER,
                "outputs",
                outputs,
                format!("a multiple of {features}"),
                "give every feature as many numbers as its map needs",
            ));
        }
        let block = &net.blocks[0].first.linear.weight;
        let (device, dtype) = (block.device(), block.dtype());
        let order = order.into_iter().map(|step| step as f64).collect();
        Ok(Self { net, order: frozen(host::from_f64(order, [features], &device, dtype)) })
    }
}

impl AutoregressiveNet for MaskedNet {
    fn steps(&self) -> Vec<usize> {
        let steps = host::to_f64(host::plain(self.order.val()));
        steps.into_iter().map(|step| step as usize).collect()
    }

    fn num_outputs(&self) -> usize {
        self.net.features_out()
    }

    fn params(&self, x: Tensor<2>) -> Tensor<2> {
        assert_size(LAYER, &x, self.order.dims()[0], "features");
        self.net.forward(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_feature_see_earlier_features_only() {
        let device = crate::backend::device();
        for form in [BlockForm::FeedForward, BlockForm::Residual, BlockForm::PreActivated] {
            let config = MaskedNetConfig::new(3, 12, 2, 1).with_form(form);
            let net = config.with_order(vec![1, 0, 2]).init(&device).unwrap();
            let numbers = |x: [f32; 3]| {
                net.params(Tensor::from_data([x], &device)).try_into_vec_as::<f32>().unwrap()
            };
            let before = numbers([0.3, -0.7, 0.2]);
            let last = numbers([0.3, -0.7, 5.0]);
            assert_eq!(before, last, "{form:?}: nothing sees the last feature");
            let first = numbers([0.3, 4.0, 0.2]);
            assert_eq!(before[1], first[1], "{form:?}: a feature does not see itself");
            assert!(before[0] != first[0] && before[2] != first[2], "{form:?}: later ones do");
        }
    }

    #[test]
    fn an_order_with_a_gap_is_refused() {
        let device = crate::backend::device();
        let error = MaskedNetConfig::new(2, 4, 1, 2).with_order(vec![0, 2]).init(&device);
        assert_eq!(
            error.unwrap_err().to_string(),
            "MaskedNet: order is [0, 2], but must be a step for each of 2 features, from 0 on without \
             a gap; a permutation of 0..features is an order of single features"
        );
    }
}
