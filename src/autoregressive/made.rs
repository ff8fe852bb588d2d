//! A net whose numbers for one feature see only the features before it.

use burn::module::{Module, Param};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, activation};

use super::check_order;
use crate::chain::assert_size;
use crate::conditioner::{Conditioner, Fold, FoldedNet, drawn};
use crate::constants;
use crate::context::Context;
use crate::error::{FlowError, Result};
use crate::flow::add_grad;
use crate::host;
use crate::param::frozen;

const LAYER: &str = "Made";

/// Configuration of a [`Made`].
///
/// ```
/// use burn_flows::autoregressive::MadeConfig;
///
/// let device = burn_flows::backend::device();
/// let config = MadeConfig::new(3, vec![8], 2);
/// assert_eq!(config.init(&device)?.steps(), [0, 1, 2]);
/// // The last feature is known first.
/// assert_eq!(config.with_order(vec![2, 1, 0]).init(&device)?.steps(), [2, 1, 0]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone)]
pub struct MadeConfig {
    num_features: usize,
    hidden: Vec<usize>,
    params_per_feature: usize,
    order: Option<Vec<usize>>,
    context: usize,
    zero_init: bool,
}

impl MadeConfig {
    /// A net of `num_features` inputs, hidden layers of the given widths with ReLU, and
    /// `params_per_feature` outputs for each feature, which see the features before it.
    pub fn new(num_features: usize, hidden: Vec<usize>, params_per_feature: usize) -> Self {
        Self { num_features, hidden, params_per_feature, order: None, context: 0, zero_init: false }
    }

    /// The step at which each feature is known: the numbers of feature `i` depend on the features `j`
    /// with `order[j] < order[i]`. Features of one step form a block that does not look at itself.
    /// Default: one feature a step, in order.
    pub fn with_order(mut self, order: Vec<usize>) -> Self {
        self.order = Some(order);
        self
    }

    /// The first layer sees a [context](crate::context) of `width` features as well, and hidden units that
    /// see nothing else join it, so that the numbers of every feature depend on it. Default: 0, none.
    pub fn with_context(mut self, width: usize) -> Self {
        self.context = width;
        self
    }

    /// Starts the last layer at zero, so that a fresh layer is the identity.
    pub fn with_zero_init(mut self, zero_init: bool) -> Self {
        self.zero_init = zero_init;
        self
    }

    /// Builds the net.
    ///
    /// # Errors
    /// If a width is zero, or the order does not name a step for each feature, from 0 on and without a
    /// gap.
    pub fn init(&self, device: &Device) -> Result<Made> {
        let Self { num_features: features, params_per_feature, .. } = *self;
        let widths: Vec<usize> =
            [features].into_iter().chain(self.hidden.iter().copied()).collect();
        if widths.contains(&0) || params_per_feature == 0 {
            return Err(FlowError::config(
                LAYER,
                "widths",
                format!("{widths:?} and {params_per_feature} numbers a feature"),
                "at least 1 each",
                "give every layer a width",
            ));
        }
        let order = self.order.clone().unwrap_or_else(|| (0..features).collect());
        let steps = check_order(LAYER, &order, features)?;
        // Units that see no feature are of use where they see a context: without them, the features of
        // the first step could not depend on it.
        let first = usize::from(steps > 1 && self.context == 0);
        let hidden = self.hidden.iter().map(|&width| {
            // In the order of the steps, so that what a step unlocks is one range.
            (0..width).map(|unit| first + unit * (steps - first) / width).collect()
        });
        let hidden: Vec<_> = hidden.collect();
        let mut made =
            Made::of_degrees(&order, &hidden, params_per_feature, self.zero_init, device);
        if self.context > 0 {
            let [_, width] = made.masks[0].dims();
            let config = LinearConfig::new(self.context, width).with_bias(false);
            // Without hidden layers the first one is the last.
            let starts_at_zero = self.zero_init && self.hidden.is_empty();
            made.context = Some(MadeContext {
                weight: drawn(zeros_if(starts_at_zero, config), device).weight,
                context: Context::new(self.context, device),
            });
        }
        Ok(made)
    }
}

/// 1 where an output may see an input, `[inputs, outputs]`.
pub(super) fn mask(
    from: &[usize],
    to: &[usize],
    sees: impl Fn(usize, usize) -> bool,
    device: &Device,
) -> Tensor<2> {
    let values: Vec<f32> = from
        .iter()
        .flat_map(|&from| to.iter().map(move |&to| (from, to)))
        .map(|(from, to)| if sees(from, to) { 1.0 } else { 0.0 })
        .collect();
    host::tensor(values, [from.len(), to.len()], device)
}

fn zeros_if(starts_at_zero: bool, config: LinearConfig) -> LinearConfig {
    if starts_at_zero { config.with_initializer(Initializer::Zeros) } else { config }
}

fn numbers(order: &[usize], device: &Device) -> Tensor<1> {
    host::tensor(order.iter().map(|&step| step as f32).collect(), [order.len()], device)
}

/// A masked multilayer perceptron (MADE): `[batch, features] -> [batch, params_per_feature * features]`,
/// where the numbers of a feature depend only on the features of earlier steps.
///
/// Feature `i` is known after step `order[i]`; a hidden unit of degree `k` sees the features of the steps
/// before `k`, and the numbers of feature `i` see the units of degrees up to `order[i]`. Weights behind
/// the masks that follow have no effect and no gradient.
///
/// Source: Germain et al., *MADE*, [arXiv:1502.03509](https://arxiv.org/abs/1502.03509), section 4.
#[derive(Module, Debug)]
pub struct Made {
    /// The linear layers, first to last.
    pub layers: Vec<Linear>,
    /// 1 where a weight is used, `[inputs, outputs]` of each layer, not trained.
    pub masks: Vec<Param<Tensor<2>>>,
    /// The step at which each feature is known, `[features]`, not trained.
    pub order: Param<Tensor<1>>,
    /// The degree of each unit of each hidden layer, in ascending order, not trained.
    pub degrees: Vec<Param<Tensor<1>>>,
    /// What the units of the first layer see of a context.
    pub context: Option<MadeContext>,
}

/// The part of a [`Made`]'s first layer that sees a context: `x W + context V + bias` with `V = weight`.
#[derive(Module, Debug)]
pub struct MadeContext {
    /// `[context, outputs of the first layer]`.
    pub weight: Param<Tensor<2>>,
    /// The place of the context.
    pub context: Context,
}

impl MadeContext {
    fn forward(&self, batch: usize) -> Tensor<2> {
        self.context.rows(batch).matmul(self.weight.val())
    }
}

impl Made {
    /// A net with the masks that follow from the steps of the features and the degrees of the hidden
    /// units, which are in ascending order in each layer.
    fn of_degrees(
        order: &[usize],
        degrees: &[Vec<usize>],
        params_per_feature: usize,
        zero_init: bool,
        device: &Device,
    ) -> Self {
        // Numbers of all features, one kind after the other, as a coupling's conditioner has them.
        let outputs = order.repeat(params_per_feature);
        let mut masks = Vec::new();
        match (degrees.first(), degrees.last()) {
            (Some(first), Some(last)) => {
                masks.push(mask(order, first, |from, to| from < to, device));
                for pair in degrees.windows(2) {
                    masks.push(mask(&pair[0], &pair[1], |from, to| from <= to, device));
                }
                masks.push(mask(last, &outputs, |from, to| from <= to, device));
            }
            _ => masks.push(mask(order, &outputs, |from, to| from < to, device)),
        }
        let last = masks.len() - 1;
        let layers = masks.iter().enumerate().map(|(index, mask)| {
            let [inputs, outputs] = mask.dims();
            let config = LinearConfig::new(inputs, outputs);
            let starts_at_zero = index == last && zero_init;
            drawn(zeros_if(starts_at_zero, config), device)
        });
        Self {
            layers: layers.collect(),
            order: frozen(numbers(order, device)),
            degrees: degrees.iter().map(|degrees| frozen(numbers(degrees, device))).collect(),
            masks: masks.into_iter().map(frozen).collect(),
            context: None,
        }
    }

    /// Number of features.
    pub fn num_features(&self) -> usize {
        self.order.dims()[0]
    }

    /// The step at which each feature is known.
    pub fn steps(&self) -> Vec<usize> {
        integers(&self.order)
    }

    /// Numbers of all features, given `x`.
    ///
    /// # Panics
    /// If `x` has another number of features.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.assert_features(&x);
        let mut h = x;
        for (index, (weight, bias)) in self.masked_layers().enumerate() {
            if index > 0 {
                h = activation::relu(h);
            }
            let batch = h.dims()[0];
            h = h.matmul(weight) + bias.unsqueeze();
            if let (0, Some(context)) = (index, &self.context) {
                h = h + context.forward(batch);
            }
        }
        h
    }

    pub(super) fn assert_features(&self, x: &Tensor<2>) {
        assert_size(LAYER, x, self.num_features(), "features");
    }

    /// Weight and bias of each layer, masked.
    fn masked_layers(&self) -> impl Iterator<Item = (Tensor<2>, Tensor<1>)> {
        self.layers.iter().zip(&self.masks).map(|(layer, mask)| {
            let bias = layer.bias.as_ref().expect("the layers of a Made have biases");
            // Of a model that was unfrozen the mask is a parameter like any other.
            (layer.weight.val() * mask.val().detach(), bias.val())
        })
    }

    /// The degrees of the units of each hidden layer.
    pub(super) fn unit_degrees(&self) -> Vec<Vec<usize>> {
        self.degrees.iter().map(integers).collect()
    }

    /// The layers as the kernels take them, the context's weight below the first one's.
    fn folded_as(
        &self,
        number: impl Fn(Tensor<2>) -> Tensor<2>,
        bias_of: impl Fn(Tensor<1>) -> Tensor<1>,
    ) -> FoldedNet {
        let mut layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| {
                let bias = layer.bias.as_ref().expect("the layers of a Made have biases");
                (number(layer.weight.val()), bias_of(bias.val()))
            })
            .collect();
        if let Some(context) = &self.context {
            let (weight, bias) = layers.remove(0);
            let weight = Tensor::cat(vec![weight, number(context.weight.val())], 0);
            layers.insert(0, (weight, bias));
        }
        FoldedNet {
            layers,
            masks: self.masks.iter().map(|mask| number(mask.val())).collect(),
            transposed: true,
            first_3x3: false,
            last_3x3: false,
            negative_slope: 0.0,
        }
    }

    /// The numbers of each step in turn, computed from what the steps before made known: each hidden
    /// unit is computed once, when the last feature that it sees is known.
    ///
    /// `next` is given the features of the step and their numbers, and answers with their values; all
    /// tensors are `[batch, ...]`.
    pub(super) fn in_steps(
        &self,
        batch: usize,
        mut next: impl FnMut(&[usize], Tensor<2>) -> Tensor<2>,
    ) {
        let layers: Vec<_> = self.masked_layers().collect();
        let order = self.steps();
        let degrees: Vec<_> = self.degrees.iter().map(integers).collect();
        // What each layer has summed up so far, before its activation.
        let mut sums: Vec<Tensor<2>> = layers
            .iter()
            .map(|(_, bias)| {
                let [width] = bias.dims();
                bias.clone().reshape([1, width]).expand([batch, width])
            })
            .collect();
        if let Some(context) = &self.context {
            sums[0] = sums[0].clone() + context.forward(batch);
        }
        for step in 0..=order.iter().copied().max().unwrap_or(0) {
            for (hidden, degrees) in degrees.iter().enumerate() {
                let unlocked = degrees.partition_point(|&degree| degree < step)
                    ..degrees.partition_point(|&degree| degree <= step);
                if unlocked.is_empty() {
                    continue;
                }
                let (first, count) = (unlocked.start, unlocked.len());
                let units = activation::relu(sums[hidden].clone().narrow(1, first, count));
                let rows = layers[hidden + 1].0.clone().narrow(0, first, count);
                sums[hidden + 1] = sums[hidden + 1].clone() + units.matmul(rows);
            }
            let sum = sums.last().expect("a Made has a layer").clone();
            let features: Vec<_> = (0..order.len()).filter(|&index| order[index] == step).collect();
            let count = order.len();
            let kinds = sum.dims()[1] / count;
            let numbers = (0..kinds)
                .flat_map(|kind| features.iter().map(move |&feature| kind * count + feature));
            let params = sum.clone().select(1, constants::places(numbers, &sum.device()));
            let values = next(&features, params);
            let rows = constants::places(features.iter().copied(), &sum.device());
            let rows = layers[0].0.clone().select(0, rows);
            sums[0] = sums[0].clone() + values.matmul(rows);
        }
    }
}

/// A net that is built for as many numbers a feature as the map needs.
impl Conditioner<2> for Made {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        Made::forward(self, x)
    }

    fn folded(&self) -> Option<&dyn Fold> {
        Some(self)
    }

    fn folded_context(&self) -> Option<&Context> {
        self.context.as_ref().map(|context| &context.context)
    }
}

impl Fold for Made {
    fn fold(&self) -> Option<FoldedNet> {
        Some(self.folded_as(|number| number, |bias| bias))
    }

    fn fold_plain(&self) -> Option<FoldedNet> {
        Some(self.folded_as(host::plain, host::plain))
    }

    fn pull_back_folded(
        &self,
        _net: FoldedNet,
        gradients: Vec<(Tensor<2>, Tensor<1>)>,
        grads: &mut GradientsParams,
    ) {
        for (layer, (mut weight, bias)) in self.layers.iter().zip(gradients) {
            let ([inputs, _], [rows, _]) = (layer.weight.dims(), weight.dims());
            if let Some(context) = self.context.as_ref().filter(|_| rows > inputs) {
                let of_context = weight.clone().narrow(0, inputs, rows - inputs);
                add_grad(grads, &context.weight, of_context);
                weight = weight.narrow(0, 0, inputs);
            }
            add_grad(grads, &layer.weight, weight);
            if let Some(param) = &layer.bias {
                add_grad(grads, param, bias);
            }
        }
    }
}

fn integers(values: &Param<Tensor<1>>) -> Vec<usize> {
    host::to_f64(host::plain(values.val())).into_iter().map(|value| value as usize).collect()
}
