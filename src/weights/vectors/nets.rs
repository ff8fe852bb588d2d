//! Nets of blocks, and the order that their masks allow.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use super::super::exchange::{Exchange, Rows};
use crate::autoregressive::{AutoregressiveNet, MaskedNet};
use crate::conditioner::{Activation, Block, BlockContext, BlockNet, ContextEntry, MaskedLinear};
use crate::context::Context;
use crate::error::Result;
use crate::host;
use crate::param::frozen;

/// `nn.Linear`, with a mask of the given type where there is one.
pub(in super::super) fn linear(
    io: &mut Exchange,
    [inputs, outputs]: [usize; 2],
    rows: Rows,
    mask: Option<DType>,
    ours: Option<&MaskedLinear>,
) -> MaskedLinear {
    let own = ours.map(|own| &own.linear);
    let weight = own.map(|own| &own.weight);
    let weight = io.transposed("weight", [outputs, inputs], rows.clone(), weight);
    let bias = own.and_then(|own| own.bias.as_ref());
    let bias = Some(io.param("bias", &[outputs], rows.clone(), bias));
    let linear = Linear { weight, bias };
    let Some(dtype) = mask else { return MaskedLinear::new(linear) };
    let own = ours.and_then(|own| own.mask.as_ref());
    MaskedLinear::masked(linear, io.mask("mask", [outputs, inputs, 0], dtype, rows, own))
}

/// A first layer that sees a context behind its inputs: a block's linear layer, and where the context
/// enters it.
pub(in super::super) fn first_layer(
    io: &mut Exchange,
    [inputs, context, outputs]: [usize; 3],
    rows: Rows,
    mask: Option<DType>,
    ours: Option<&Block>,
) -> (MaskedLinear, Option<BlockContext>) {
    let own = ours.map(|own| {
        let context = own.context.as_ref().map(|context| &context.linear.weight);
        (&own.first.linear.weight, context)
    });
    let (weight, of_context) =
        io.transposed_parts("weight", outputs, [inputs, context], rows.clone(), own);
    let bias = ours.and_then(|own| own.first.linear.bias.as_ref());
    let bias = Some(io.param("bias", &[outputs], rows.clone(), bias));
    let linear = Linear { weight, bias };
    let first = match mask {
        None => MaskedLinear::new(linear),
        Some(dtype) => {
            let own = ours.and_then(|own| own.first.mask.as_ref());
            let shape = [outputs, inputs, context];
            MaskedLinear::masked(linear, io.mask("mask", shape, dtype, rows, own))
        }
    };
    let of_context = of_context
        .map(|weight| BlockContext::new(Linear { weight, bias: None }, ContextEntry::Added));
    (first, of_context)
}

/// `context_layer`, from a context of `width` features, if there are any.
pub(super) fn context_layer(
    io: &mut Exchange,
    [width, outputs]: [usize; 2],
    entry: ContextEntry,
    ours: Option<&Block>,
) -> Option<BlockContext> {
    let own = ours.and_then(|own| own.context.as_ref()).map(|own| &own.linear);
    (width > 0).then(|| {
        io.under("context_layer", |io| {
            let weight = own.map(|own| &own.weight);
            let weight = io.transposed("weight", [outputs, width], Rows::same(), weight);
            let bias = own.and_then(|own| own.bias.as_ref());
            let bias = Some(io.param("bias", &[outputs], Rows::same(), bias));
            BlockContext::new(Linear { weight, bias }, entry)
        })
    })
}

/// `nets.ResidualNet` of so many inputs, a context behind them, and outputs, whose last layer's rows are
/// ours by `rows`.
pub(super) fn residual_net(
    io: &mut Exchange,
    [inputs, context, outputs]: [usize; 3],
    rows: Rows,
    activation: Activation,
    ours: Option<&BlockNet>,
) -> BlockNet {
    let hidden = match ours {
        Some(net) => net.blocks[0].first.linear.weight.dims()[1],
        None => io.size("initial_layer.weight", 0),
    };
    let count = ours.map_or_else(|| io.count("blocks"), |net| net.blocks.len() - 2);
    let own = |at: usize| ours.map(|net| &net.blocks[at]);
    let (first, of_context) = io.under("initial_layer", |io| {
        first_layer(io, [inputs, context, hidden], Rows::same(), None, own(0))
    });
    let mut blocks = vec![Block::linear(first).with_context(of_context)];
    for index in 0..count {
        let own = own(index + 1);
        blocks.push(io.under(format!("blocks.{index}"), |io| {
            residual_block(io, [context, hidden], ContextEntry::Gated, None, own)
        }));
    }
    let own = ours.map(|net| &net.blocks[count + 1].first);
    let last = io.under("final_layer", |io| linear(io, [hidden, outputs], rows, None, own));
    blocks.push(Block::linear(last));
    match ours {
        Some(net) => net.clone(),
        None => net_of(io, blocks, activation, context),
    }
}

/// A residual block of nflows or normflows.
pub(super) fn residual_block(
    io: &mut Exchange,
    [context, hidden]: [usize; 2],
    entry: ContextEntry,
    mut degrees: Option<&mut Degrees>,
    ours: Option<&Block>,
) -> Block {
    let own = ours.map(|own| [Some(&own.first), own.second.as_ref()]);
    let [first, second] = [0, 1].map(|at| {
        let own = own.and_then(|own| own[at]);
        io.under(format!("linear_layers.{at}"), |io| match &mut degrees {
            None => linear(io, [hidden, hidden], Rows::same(), None, own),
            Some(degrees) => degrees.hidden(io, hidden, own),
        })
    });
    let of_context = context_layer(io, [context, hidden], entry, ours);
    Block::pre_activated(first, second).with_context(of_context)
}

pub(super) fn net_of(
    io: &Exchange,
    blocks: Vec<Block>,
    activation: Activation,
    context: usize,
) -> BlockNet {
    let context = Context::in_dtype(context, io.device(), io.dtype());
    BlockNet::from_blocks(blocks, activation, context)
}

/// A masked net of such blocks, its features in the order that the masks allow.
pub(in super::super) fn masked_net(
    io: &Exchange,
    blocks: Vec<Block>,
    activation: Activation,
    context: usize,
) -> Result<MaskedNet> {
    if !io.is_sound() {
        return Err(io.unfit("a net that is not whole"));
    }
    let net = net_of(io, blocks, activation, context);
    match order_of(&net) {
        Some(order) => MaskedNet::from_net(net, order),
        None => Err(io.unfit("the masks let features depend on each other in a circle")),
    }
}

/// The numbers that nflows and normflows give the units of masked layers: how many features a unit may see.
/// Nothing is computed with them once there are masks.
pub(super) struct Degrees {
    /// Of the units before.
    before: Vec<usize>,
    of_features: Vec<usize>,
}

/// What their masks are kept in.
const MASK: DType = DType::F32;

impl Degrees {
    /// Of the features, in their order or in the one of a net that is written.
    pub(super) fn of_features(features: usize, ours: Option<&MaskedNet>) -> Self {
        let natural: Vec<usize> = (0..features).collect();
        let steps = match ours {
            Some(own) if !keeps_to(&own.net, &natural) => own.steps(),
            _ => natural,
        };
        let before: Vec<usize> = steps.into_iter().map(|step| step + 1).collect();
        Self { of_features: before.clone(), before }
    }

    /// A masked layer inside of a net.
    pub(super) fn hidden(
        &mut self,
        io: &mut Exchange,
        outputs: usize,
        ours: Option<&MaskedLinear>,
    ) -> MaskedLinear {
        let inputs = self.before.len();
        let layer = linear(io, [inputs, outputs], Rows::same(), Some(MASK), ours);
        let sees = |unit: usize, mask: &[f64]| {
            let seen = (0..inputs).filter(|input| mask[input * outputs + unit] > 0.0);
            seen.map(|input| self.before[input]).max().unwrap_or(0)
        };
        let degrees: Vec<usize> = match ours {
            Some(_) => {
                let mask = mask_of(&layer);
                (0..outputs).map(|unit| sees(unit, &mask)).collect()
            }
            None => vec![0; outputs],
        };
        io.given("degrees", &[outputs], DType::I64, || {
            degrees.iter().map(|&degree| degree as f64).collect()
        });
        self.before = degrees;
        layer
    }

    /// The last layer, which gives so many kinds of numbers for each feature.
    pub(super) fn last(
        self,
        io: &mut Exchange,
        kinds: usize,
        rows: Rows,
        ours: Option<&MaskedLinear>,
    ) -> MaskedLinear {
        let outputs = kinds * self.of_features.len();
        let layer = linear(io, [self.before.len(), outputs], rows, Some(MASK), ours);
        io.given("degrees", &[outputs], DType::I64, || {
            (0..outputs).map(|row| self.of_features[row / kinds] as f64).collect()
        });
        layer
    }
}

fn mask_of(layer: &MaskedLinear) -> Vec<f64> {
    layer.mask.as_ref().map_or(Vec::new(), |mask| host::to_f64(host::plain(mask.val())))
}

/// Which features the numbers of a feature depend on, by the masks of a net that gives them kind by kind.
fn dependencies(net: &BlockNet) -> Vec<Vec<usize>> {
    let features = net.features_in();
    // For each unit, the features that it sees.
    let mut sees: Vec<Vec<bool>> =
        (0..features).map(|unit| (0..features).map(|feature| feature == unit).collect()).collect();
    for block in &net.blocks {
        let mut inside = through(&block.first, &sees, features);
        if let Some(second) = &block.second {
            inside = through(second, &inside, features);
            // A residual block adds what it was given.
            for (unit, before) in inside.iter_mut().zip(&sees) {
                unit.iter_mut().zip(before).for_each(|(sees, before)| *sees |= before);
            }
        }
        sees = inside;
    }
    let depends = |feature: usize, on: usize| {
        sees.iter().skip(feature).step_by(features).any(|number| number[on])
    };
    (0..features)
        .map(|feature| (0..features).filter(|&on| depends(feature, on)).collect())
        .collect()
}

/// Whether the numbers of a feature depend only on those of earlier steps.
pub(in super::super) fn keeps_to(net: &BlockNet, steps: &[usize]) -> bool {
    let dependencies = dependencies(net);
    steps.len() == dependencies.len()
        && dependencies.iter().zip(steps).all(|(on, step)| on.iter().all(|&on| steps[on] < *step))
}

/// The step at which each feature is known; none if features depend on each other in a circle.
fn order_of(net: &BlockNet) -> Option<Vec<usize>> {
    let dependencies = dependencies(net);
    let mut steps: Vec<Option<usize>> = vec![None; dependencies.len()];
    let mut waiting: Vec<usize> = (0..dependencies.len()).collect();
    for step in 0..dependencies.len() {
        let is_known =
            |&feature: &usize| dependencies[feature].iter().all(|&on| steps[on].is_some());
        let (known, rest): (Vec<usize>, Vec<usize>) = waiting.into_iter().partition(is_known);
        known.into_iter().for_each(|feature| steps[feature] = Some(step));
        waiting = rest;
    }
    steps.into_iter().collect()
}

fn through(layer: &MaskedLinear, sees: &[Vec<bool>], features: usize) -> Vec<Vec<bool>> {
    let [inputs, outputs] = layer.linear.weight.dims();
    let mask = layer.mask.as_ref().map(|_| mask_of(layer));
    let unit = |unit: usize| {
        let mut all = vec![false; features];
        for input in 0..inputs {
            if mask.as_ref().is_none_or(|mask| mask[input * outputs + unit] > 0.0) {
                all.iter_mut().zip(&sees[input]).for_each(|(all, sees)| *all |= sees);
            }
        }
        all
    };
    (0..outputs).map(unit).collect()
}

/// A weight that is zero and not trained: of an input that a net does not see.
pub(super) fn unseen(io: &Exchange, outputs: usize) -> Param<Tensor<2>> {
    frozen(Tensor::zeros([1, outputs], (io.device(), io.dtype())))
}
