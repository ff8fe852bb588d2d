//! Masked autoregressive layers of affine maps and splines.

use super::super::exchange::{Exchange, Rows};
use super::coupling::by_feature;
use super::nets::{Degrees, context_layer, masked_net, residual_block};
use super::{Common, VectorLayer, is_of_splines};
use crate::autoregressive::{Autoregressive, MaskedNet};
use crate::conditioner::{Block, ContextEntry};
use crate::coupling::{Affine, AffineOrder, ScaleMap};
use crate::error::Result;

/// In what the masked nets of the libraries differ.
pub(in super::super) struct Made {
    /// How a context enters the first layer.
    pub(in super::super) first_entry: ContextEntry,
    /// How a context enters residual blocks.
    pub(in super::super) entry: ContextEntry,
    /// Whether an activation follows the first layer, where the blocks are not residual.
    pub(in super::super) has_first_activation: bool,
    /// The scale map of affine layers.
    pub(in super::super) scale_map: ScaleMap,
}

/// `MaskedAffineAutoregressiveTransform` or `MaskedPiecewiseRationalQuadraticAutoregressiveTransform`,
/// whichever the net gives the numbers for.
pub(in super::super) fn autoregressive(
    io: &mut Exchange,
    common: &Common,
    made: &Made,
    ours: Option<&VectorLayer>,
) -> Result<VectorLayer> {
    let own = match ours {
        Some(VectorLayer::Affine(own)) => Some((&own.made, true)),
        Some(VectorLayer::Spline(own)) => Some((&own.made, false)),
        Some(VectorLayer::InverseAffine(own)) => Some((&own.flow.made, true)),
        Some(VectorLayer::InverseSpline(own)) => Some((&own.flow.made, false)),
        _ => None,
    };
    let features = common.features;
    let outputs = match own {
        Some((own, _)) => own.net.features_out(),
        None => io.size("autoregressive_net.final_layer.weight", 0),
    };
    let kinds = outputs.checked_div(features).unwrap_or(0);
    let is_affine = own.map_or(kinds == 2, |(_, is_affine)| is_affine);
    // A scale and a shift there, the shift first here.
    let rows = match is_affine {
        true => Rows::in_order(
            [1, 0]
                .into_iter()
                .flat_map(|kind| (0..features).map(move |feature| 2 * feature + kind)),
        ),
        false => by_feature(kinds, features),
    };
    let own = own.map(|(own, _)| own);
    let blocks = io.under("autoregressive_net", |io| blocks(io, common, made, kinds, rows, own));
    if let Some(own) = ours {
        return Ok(own.clone());
    }
    let net = masked_net(io, blocks, common.masked_activation, common.context)?;
    if is_affine {
        let order = AffineOrder::ScaleThenShift;
        let affine = Affine::new(made.scale_map, order, features, io.device());
        return Ok(VectorLayer::Affine(Autoregressive::new(net, affine)?));
    }
    if !is_of_splines(kinds) {
        return Err(io.unfit(&format!("{kinds} numbers a feature make no spline")));
    }
    let spline = common.splines.spline(kinds, 1.0)?;
    Ok(VectorLayer::Spline(Autoregressive::new(net, spline)?))
}

fn blocks(
    io: &mut Exchange,
    common: &Common,
    made: &Made,
    kinds: usize,
    rows: Rows,
    ours: Option<&MaskedNet>,
) -> Vec<Block> {
    let own = |at: usize| ours.map(|own| &own.net.blocks[at]);
    let hidden = match own(0) {
        Some(block) => block.first.linear.weight.dims()[1],
        None => io.size("initial_layer.weight", 0),
    };
    let count = ours.map_or_else(|| io.count("blocks"), |own| own.net.blocks.len() - 2);
    let is_feed_forward = match ours {
        Some(own) => count > 0 && own.net.blocks[1].second.is_none(),
        None => io.has("blocks.0.linear"),
    };
    let mut degrees = Degrees::of_features(common.features, ours);
    let first = own(0).map(|own| &own.first);
    let first = io.under("initial_layer", |io| degrees.hidden(io, hidden, first));
    let context = context_layer(io, [common.context, hidden], made.first_entry, own(0));
    let first = match is_feed_forward && made.has_first_activation {
        true => Block::feed_forward(first),
        false => Block::linear(first),
    };
    let mut blocks = vec![first.with_context(context)];
    for index in 0..count {
        let own = own(index + 1);
        blocks.push(io.under(format!("blocks.{index}"), |io| {
            if !is_feed_forward {
                let sizes = [common.context, hidden];
                return residual_block(io, sizes, made.entry, Some(&mut degrees), own);
            }
            let own = own.map(|own| &own.first);
            Block::feed_forward(io.under("linear", |io| degrees.hidden(io, hidden, own)))
        }));
    }
    let own = own(count + 1).map(|own| &own.first);
    let last = io.under("final_layer", |io| degrees.last(io, kinds, rows, own));
    blocks.push(Block::linear(last));
    blocks
}
