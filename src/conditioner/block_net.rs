//! Nets of blocks for vectors: residual ones, other activations than ReLU, a context in every block.

use burn::module::{Module, Param};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::activation::sigmoid;
use super::{Activation, Conditioner, check_widths, drawn};
use crate::chain::assert_size;
use crate::context::Context;
use crate::error::Result;
use crate::param::frozen;
use crate::record::Setting;

const LAYER: &str = "BlockNet";

/// What a [`Block`] computes of its input `h`, with linear layers `L`, `L_1`, `L_2` and the activation `a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockForm {
    /// `L h`.
    Linear,
    /// `a(L h)`.
    FeedForward,
    /// `h + L_2 a(L_1 h)`.
    Residual,
    /// `h + L_2 a(L_1 a(h))`.
    PreActivated,
}

impl BlockForm {
    fn is_residual(self) -> bool {
        matches!(self, Self::Residual | Self::PreActivated)
    }
}

/// How a context `c` enters a [`Block`], by a linear layer `V` of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContextEntry {
    /// `V c` is added to the output of the block's first linear layer: the same as a context beside its
    /// input.
    Added,
    /// `a(V c)` is added there.
    Activated,
    /// The output of the block's last linear layer is multiplied by `sigmoid(V c)`.
    Gated,
}

/// A linear layer, of whose weights a mask may leave some out: `y = h (W * mask) + b`.
#[derive(Module, Debug)]
pub struct MaskedLinear {
    /// Weight `[inputs, outputs]` and bias.
    pub linear: Linear,
    /// 1 where a weight is used, not trained.
    pub mask: Option<Param<Tensor<2>>>,
}

impl MaskedLinear {
    /// All weights of a layer.
    pub fn new(linear: Linear) -> Self {
        Self { linear, mask: None }
    }

    /// Those where `mask`, `[inputs, outputs]`, is 1.
    pub fn masked(linear: Linear, mask: Tensor<2>) -> Self {
        Self { linear, mask: Some(frozen(mask)) }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let Some(mask) = &self.mask else { return self.linear.forward(x) };
        // Fixed, whatever `Module::unfreeze` asks of all parameters.
        let y = x.matmul(self.linear.weight.val() * mask.val().detach());
        match &self.linear.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }
}

/// Where a context enters a [`Block`].
#[derive(Module, Debug)]
pub struct BlockContext {
    /// `V`, from the context to the width of the layer that it meets.
    pub linear: Linear,
    entry: Setting<ContextEntry>,
}

impl BlockContext {
    /// `linear` maps the context to the width of the layer that it meets.
    pub fn new(linear: Linear, entry: ContextEntry) -> Self {
        Self { linear, entry: entry.into() }
    }
}

/// One or two linear layers of a [`BlockNet`].
#[derive(Module, Debug)]
pub struct Block {
    /// The first linear layer.
    pub first: MaskedLinear,
    /// The second one, of residual blocks.
    pub second: Option<MaskedLinear>,
    /// Where the context enters.
    pub context: Option<BlockContext>,
    form: Setting<BlockForm>,
}

impl Block {
    /// One linear layer.
    pub fn linear(first: MaskedLinear) -> Self {
        Self { first, second: None, context: None, form: BlockForm::Linear.into() }
    }

    /// One linear layer and the activation behind it.
    pub fn feed_forward(first: MaskedLinear) -> Self {
        Self { form: BlockForm::FeedForward.into(), ..Self::linear(first) }
    }

    /// Two linear layers around the activation, added to the input.
    pub fn residual(first: MaskedLinear, second: MaskedLinear) -> Self {
        let form = BlockForm::Residual.into();
        Self { first, second: Some(second), context: None, form }
    }

    /// As [`residual`](Block::residual), with an activation before the first linear layer as well.
    pub fn pre_activated(first: MaskedLinear, second: MaskedLinear) -> Self {
        Self { form: BlockForm::PreActivated.into(), ..Self::residual(first, second) }
    }

    /// A context enters the block.
    pub fn with_context(mut self, context: Option<BlockContext>) -> Self {
        self.context = context;
        self
    }

    /// What it computes.
    pub fn form(&self) -> BlockForm {
        *self.form
    }

    fn forward(&self, h: Tensor<2>, activation: Activation, context: &Context) -> Tensor<2> {
        let of_context = self
            .context
            .as_ref()
            .map(|place| (*place.entry, place.linear.forward(context.rows(h.dims()[0]))));
        let entering = match &of_context {
            Some((ContextEntry::Added, value)) => Some(value.clone()),
            Some((ContextEntry::Activated, value)) => Some(activation.of(value.clone())),
            _ => None,
        };
        let input = match *self.form {
            BlockForm::PreActivated => activation.of(h.clone()),
            _ => h.clone(),
        };
        let mut y = self.first.forward(input);
        if let Some(entering) = entering {
            y = y + entering;
        }
        if let Some(second) = &self.second {
            y = second.forward(activation.of(y));
        }
        if let Some((ContextEntry::Gated, value)) = of_context {
            y = y * sigmoid(value);
        }
        match *self.form {
            BlockForm::Linear => y,
            BlockForm::FeedForward => activation.of(y),
            BlockForm::Residual | BlockForm::PreActivated => h + y,
        }
    }
}

/// A number of periodic input of each feature on a circle: `w_0 sin(f) + w_1 cos(f)`, `f` its angle.
///
/// The net sees it in the place of the feature, and is the same at both ends of the circle.
#[derive(Module, Debug)]
pub struct PeriodicInput {
    /// `w`, `[features on a circle, 2]`.
    pub weights: Param<Tensor<2>>,
    /// Which of the inputs are on a circle, and the factor that makes angles of them.
    features: Setting<Vec<(usize, f64)>>,
}

impl PeriodicInput {
    /// For each feature on a circle its place among the inputs and the factor that makes an angle of it;
    /// `weights` has a row for each.
    ///
    /// # Panics
    /// If it does not.
    pub fn new(features: Vec<(usize, f64)>, weights: Param<Tensor<2>>) -> Self {
        assert!(
            weights.dims() == [features.len(), 2],
            "PeriodicInput: got weights of shape {:?} for {} features; give two numbers a feature",
            weights.dims(),
            features.len()
        );
        Self { weights, features: features.into() }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let weights = self.weights.val();
        let columns = (0..x.dims()[1]).map(|column| {
            let value = x.clone().narrow(1, column, 1);
            let place = self.features.iter().position(|(feature, _)| *feature == column);
            let Some(place) = place else { return value };
            let angle = value * self.features[place].1;
            let weight = |at| weights.clone().narrow(0, place, 1).narrow(1, at, 1);
            angle.clone().sin() * weight(0) + angle.cos() * weight(1)
        });
        Tensor::cat(columns.collect(), 1)
    }
}

/// Configuration of a [`BlockNet`].
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::conditioner::{Activation, BlockNetConfig, Conditioner};
///
/// let device = burn_flows::backend::device();
/// let net = BlockNetConfig::new(3, 16, 2, 5).with_activation(Activation::Tanh).init(&device)?;
/// assert_eq!(net.forward(Tensor::zeros([7, 3], &device)).dims(), [7, 5]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockNetConfig {
    /// Numbers that come in, without the context.
    pub features_in: usize,
    /// Numbers inside.
    pub hidden_width: usize,
    /// Blocks between the first and the last linear layer.
    pub num_blocks: usize,
    /// Numbers that come out.
    pub features_out: usize,
    /// Form of the blocks; default: [`BlockForm::PreActivated`].
    pub form: BlockForm,
    /// Default: [`Activation::Relu`].
    pub activation: Activation,
    /// Features of a [context](crate::context); default: 0, none.
    pub context_width: usize,
    /// How a context enters the blocks; in the first layer it is added. Default: gated.
    pub context_entry: ContextEntry,
    /// Whether the last layer starts at zero; default: no.
    pub zero_init: bool,
}

impl BlockNetConfig {
    /// A residual net without context, activated before each linear layer.
    pub fn new(
        features_in: usize,
        hidden_width: usize,
        num_blocks: usize,
        features_out: usize,
    ) -> Self {
        Self {
            features_in,
            hidden_width,
            num_blocks,
            features_out,
            form: BlockForm::PreActivated,
            activation: Activation::default(),
            context_width: 0,
            context_entry: ContextEntry::Gated,
            zero_init: false,
        }
    }

    /// Replaces the form of the blocks.
    pub fn with_form(mut self, form: BlockForm) -> Self {
        self.form = form;
        self
    }

    /// Replaces the activation.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// The net sees a [context](crate::context) of `width` features: added in the first layer, and in every
    /// block as [`with_context_entry`](BlockNetConfig::with_context_entry) says.
    pub fn with_context(mut self, width: usize) -> Self {
        self.context_width = width;
        self
    }

    /// How a context enters the blocks.
    pub fn with_context_entry(mut self, entry: ContextEntry) -> Self {
        self.context_entry = entry;
        self
    }

    /// Starts the last layer at zero, so that a fresh coupling is the identity.
    pub fn with_zero_init(mut self, zero_init: bool) -> Self {
        self.zero_init = zero_init;
        self
    }

    /// Builds the net.
    ///
    /// # Errors
    /// If a width is zero.
    pub fn init(&self, device: &Device) -> Result<BlockNet> {
        check_widths(LAYER, self.features_in, self.hidden_width, self.features_out)?;
        let width = self.hidden_width;
        let layer =
            |inputs, outputs| MaskedLinear::new(drawn(LinearConfig::new(inputs, outputs), device));
        let context = |entry| {
            let linear = LinearConfig::new(self.context_width, width);
            let has_context = self.context_width > 0;
            has_context.then(|| BlockContext::new(drawn(linear, device), entry))
        };
        let first = layer(self.features_in, width);
        let first = match self.form {
            BlockForm::FeedForward => Block::feed_forward(first),
            _ => Block::linear(first),
        };
        let mut blocks = vec![first.with_context(context(ContextEntry::Added))];
        for _ in 0..self.num_blocks {
            let second = self.form.is_residual().then(|| layer(width, width));
            let (first, form) = (layer(width, width), self.form.into());
            let context = context(self.context_entry);
            blocks.push(Block { first, second, context, form });
        }
        let last = LinearConfig::new(width, self.features_out);
        let last = if self.zero_init { last.with_initializer(Initializer::Zeros) } else { last };
        blocks.push(Block::linear(MaskedLinear::new(drawn(last, device))));
        Ok(BlockNet::from_blocks(blocks, self.activation, Context::new(self.context_width, device)))
    }
}

/// A net of blocks one after the other, `[batch, in] -> [batch, out]`, by default a residual one:
///
/// `h_0 = L x + V c`, `h_{k+1} = h_k + sigmoid(V_k c) L_k' a(L_k a(h_k))`, `y = L h`, without the terms of
/// the context `c` where there is none. What else a block can be is told at [`BlockForm`] and
/// [`ContextEntry`].
///
/// Deeper nets train better with residual blocks, and a smooth [`Activation`] makes a smooth density.
///
/// Source: He et al., *Identity Mappings in Deep Residual Networks*,
/// [arXiv:1603.05027](https://arxiv.org/abs/1603.05027), section 4; with contexts: Durkan et al., *Neural
/// Spline Flows*, [arXiv:1906.04032](https://arxiv.org/abs/1906.04032), and its code, nflows,
/// `nn/nets/resnet.py`.
#[derive(Module, Debug)]
pub struct BlockNet {
    /// What periodic inputs become first.
    pub periodic: Option<PeriodicInput>,
    /// The blocks, first to last.
    pub blocks: Vec<Block>,
    /// The place of the context, of width 0 for a net without.
    pub context: Context,
    activation: Setting<Activation>,
}

impl BlockNet {
    /// A net of blocks whose widths go together.
    pub fn from_blocks(blocks: Vec<Block>, activation: Activation, context: Context) -> Self {
        Self { periodic: None, blocks, context, activation: activation.into() }
    }

    /// Some of the inputs are on a circle.
    pub fn with_periodic(mut self, periodic: Option<PeriodicInput>) -> Self {
        self.periodic = periodic;
        self
    }

    /// The activation.
    pub fn activation(&self) -> Activation {
        *self.activation
    }

    /// Numbers that come in, without the context.
    pub fn features_in(&self) -> usize {
        self.blocks.first().map_or(0, |block| block.first.linear.weight.dims()[0])
    }

    /// Numbers that come out.
    pub fn features_out(&self) -> usize {
        self.blocks.last().map_or(0, |block| {
            block.second.as_ref().unwrap_or(&block.first).linear.weight.dims()[1]
        })
    }
}

impl Conditioner<2> for BlockNet {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        assert_size(LAYER, &x, self.features_in(), "features");
        let x = match &self.periodic {
            Some(periodic) => periodic.forward(x),
            None => x,
        };
        self.blocks.iter().fold(x, |h, block| block.forward(h, *self.activation, &self.context))
    }
}
