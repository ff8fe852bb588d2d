//! Multilayer perceptrons, for vectors.

use burn::module::Module;
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, activation};

use super::{Conditioner, Fold, FoldedNet};
use crate::chain::assert_size;
use crate::error::{FlowError, Result};
use crate::flow::add_grad;
use crate::host;

/// Configuration of an [`Mlp`].
///
/// ```
/// use burn::module::Module;
/// use burn_flows::conditioner::MlpConfig;
///
/// let device = burn_flows::backend::device();
/// let mlp = MlpConfig::new(2, vec![16], 4).init(&device)?;
/// // 2 * 16 weights and 16 biases, then 16 * 4 and 4.
/// assert_eq!(mlp.num_params(), 48 + 68);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone)]
pub struct MlpConfig {
    features_in: usize,
    hidden: Vec<usize>,
    features_out: usize,
    zero_init: bool,
    initializer: Option<Initializer>,
}

impl MlpConfig {
    /// A net `features_in -> hidden[0] -> ... -> features_out` with ReLU between.
    pub fn new(features_in: usize, hidden: Vec<usize>, features_out: usize) -> Self {
        Self { features_in, hidden, features_out, zero_init: false, initializer: None }
    }

    /// Starts the last layer at zero, so that a fresh coupling is the identity.
    pub fn with_zero_init(mut self, zero_init: bool) -> Self {
        self.zero_init = zero_init;
        self
    }

    /// The distribution of the initial weights and biases; default: Burn's `Linear`.
    pub fn with_initializer(mut self, initializer: Initializer) -> Self {
        self.initializer = Some(initializer);
        self
    }

    /// Builds the net.
    ///
    /// # Errors
    /// If a width is zero.
    pub fn init(&self, device: &Device) -> Result<Mlp> {
        let widths: Vec<usize> = [self.features_in]
            .into_iter()
            .chain(self.hidden.iter().copied())
            .chain([self.features_out])
            .collect();
        if widths.contains(&0) {
            return Err(FlowError::config(
                "Mlp",
                "widths",
                format!("{widths:?}"),
                "at least 1 each",
                "give every layer a width",
            ));
        }
        let last = widths.len() - 2;
        let layers = widths
            .windows(2)
            .enumerate()
            .map(|(i, pair)| {
                let mut config = LinearConfig::new(pair[0], pair[1]);
                if let Some(initializer) = &self.initializer {
                    config = config.with_initializer(initializer.clone());
                }
                if i == last && self.zero_init {
                    config = config.with_initializer(Initializer::Zeros);
                }
                drawn(config, device)
            })
            .collect();
        Ok(Mlp { layers })
    }
}

/// A layer with its weights drawn. Burn draws them when they are first asked for: asked for here, they are
/// those of the device's seed whatever draws from it before the layer is used.
pub(crate) fn drawn(config: LinearConfig, device: &Device) -> Linear {
    let layer = config.init(device);
    layer.weight.val();
    if let Some(bias) = &layer.bias {
        bias.val();
    }
    layer
}

/// A multilayer perceptron: linear layers with ReLU between, `[batch, in] -> [batch, out]`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// The linear layers, first to last.
    pub layers: Vec<Linear>,
}

impl Conditioner<2> for Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let mut layers = self.layers.iter();
        let first = layers.next().expect("an Mlp has at least one layer");
        let [features, _] = first.weight.dims();
        assert_size("Mlp", &x, features, "features");
        layers.fold(first.forward(x), |h, layer| layer.forward(activation::relu(h)))
    }

    fn folded(&self) -> Option<&dyn Fold> {
        Some(self)
    }
}

impl Fold for Mlp {
    fn fold(&self) -> Option<FoldedNet> {
        let layers = self
            .layers
            .iter()
            .map(|layer| Some((layer.weight.val(), layer.bias.as_ref()?.val())))
            .collect::<Option<Vec<_>>>()?;
        Some(FoldedNet {
            layers,
            masks: Vec::new(),
            transposed: true,
            first_3x3: false,
            last_3x3: false,
            negative_slope: 0.0,
        })
    }

    fn fold_plain(&self) -> Option<FoldedNet> {
        let net = self.fold()?;
        let plain = |(weight, bias)| (host::plain(weight), host::plain(bias));
        Some(FoldedNet { layers: net.layers.into_iter().map(plain).collect(), ..net })
    }

    fn pull_back_folded(
        &self,
        _net: FoldedNet,
        gradients: Vec<(Tensor<2>, Tensor<1>)>,
        grads: &mut GradientsParams,
    ) {
        for (layer, (weight, bias)) in self.layers.iter().zip(gradients) {
            add_grad(grads, &layer.weight, weight);
            if let Some(param) = &layer.bias {
                add_grad(grads, param, bias);
            }
        }
    }
}
