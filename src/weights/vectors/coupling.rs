//! Couplings of affine maps and splines, over residual nets.

use burn::nn::Linear;
use burn::tensor::Tensor;

use super::super::exchange::{Exchange, Rows};
use super::nets::{masked_net, residual_net, unseen};
use super::{Common, Framed, Spline, VectorLayer, is_of_splines, order, reordering};
use crate::autoregressive::{Autoregressive, MaskedNet};
use crate::conditioner::{Block, BlockContext, BlockForm, ContextEntry, MaskedLinear};
use crate::coupling::{
    Affine, AffineOrder, Coupling, Elementwise, KeptPart, Mask, Parity, ScaleMap,
};
use crate::error::Result;
use crate::linear::Permutation;

/// What a coupling's tensors do not tell.
pub(in super::super) struct Couplings {
    /// The scale map of affine ones.
    pub(in super::super) scale_map: ScaleMap,
}

/// Which features a coupling keeps and which it changes, each in ascending order.
struct Split {
    kept: Vec<usize>,
    changed: Vec<usize>,
}

impl Split {
    fn of(mask: Mask, before: Option<&Permutation>, features: usize) -> Self {
        let (kept, changed) = match mask {
            Mask::SplitAt(count, _) => {
                let order = before.map_or((0..features).collect(), order);
                (order[..count].to_vec(), order[count..].to_vec())
            }
            Mask::Alternating(Parity::Odd) => {
                ((1..features).step_by(2).collect(), (0..features).step_by(2).collect())
            }
            _ => ((0..features).step_by(2).collect(), (1..features).step_by(2).collect()),
        };
        Self { kept, changed }
    }

    /// `identity_features` and `transform_features`.
    fn table(io: &mut Exchange, features: usize, ours: Option<&Self>) -> Self {
        let names = ["identity_features", "transform_features"];
        let own = ours.map(|own| [&own.kept, &own.changed]);
        let [kept, changed] = [0, 1].map(|at| {
            let own = own.map(|own| &own[at][..]);
            let count = own.map_or_else(|| io.size(names[at], 0), <[usize]>::len);
            io.numbers(names[at], count, own)
        });
        let mut all = [&kept[..], &changed].concat();
        all.sort_unstable();
        let is_ascending = |places: &[usize]| places.is_sorted();
        let is_partition = all.iter().copied().eq(0..features);
        if !is_partition || !is_ascending(&kept) || !is_ascending(&changed) {
            io.refuse_value(names[1], "does not name the features that identity_features leaves");
        }
        Self { kept, changed }
    }

    /// The mask, and in which order the features are where it is used.
    fn mask(&self) -> (Mask, Option<Vec<usize>>) {
        let starts_at = |place: usize, of: &[usize]| {
            of.iter().enumerate().all(|(at, &feature)| feature == 2 * at + place)
        };
        if starts_at(0, &self.kept) && starts_at(1, &self.changed) {
            return (Mask::Alternating(Parity::Even), None);
        }
        if starts_at(1, &self.kept) && starts_at(0, &self.changed) {
            return (Mask::Alternating(Parity::Odd), None);
        }
        let order = [&self.kept[..], &self.changed].concat();
        (Mask::SplitAt(self.kept.len(), Parity::Even), Some(order))
    }
}

fn framed<F>(io: &Exchange, flow: F, order: Option<Vec<usize>>) -> Result<Framed<F>> {
    let Some(order) = order else { return Ok((None, flow, None)) };
    let mut back = vec![0; order.len()];
    for (at, &place) in order.iter().enumerate() {
        back[place] = at;
    }
    Ok((Some(reordering(io, &order)?), flow, Some(reordering(io, &back)?)))
}

/// `AffineCouplingTransform` or `PiecewiseRationalQuadraticCouplingTransform`, whichever the net gives the
/// numbers for.
pub(in super::super) fn coupling(
    io: &mut Exchange,
    common: &Common,
    couplings: &Couplings,
    ours: Option<&VectorLayer>,
) -> Result<VectorLayer> {
    if let Some(VectorLayer::SplineOfContext(own)) = ours {
        return spline_of_context(io, common, Some(own));
    }
    let (own_split, own_net) = match ours {
        Some(VectorLayer::AffineCoupling((before, own, _))) => {
            (Some((own.mask(), before)), Some(&own.conditioner))
        }
        Some(VectorLayer::SplineCoupling((before, (own, _), _))) => {
            (Some((own.mask(), before)), Some(&own.conditioner))
        }
        _ => (None, None),
    };
    let own_split =
        own_split.map(|(mask, before)| Split::of(mask, before.as_ref(), common.features));
    let split = Split::table(io, common.features, own_split.as_ref());
    let (kept, changed) = (split.kept.len(), split.changed.len());
    if own_net.is_none() && kept == 0 && io.has("transform_net.spline_predictor") {
        return spline_of_context(io, common, None);
    }
    let outputs = match own_net {
        Some(net) => net.features_out(),
        None => io.size("transform_net.final_layer.weight", 0),
    };
    let kinds = outputs.checked_div(changed).unwrap_or(0);
    let is_affine = match ours {
        Some(layer) => matches!(layer, VectorLayer::AffineCoupling(_)),
        None => kinds == 2,
    };
    let outputs = kinds * changed;
    let rows = if is_affine { Rows::same() } else { by_feature(kinds, changed) };
    let net = io.under("transform_net", |io| {
        let sizes = [kept, common.context, outputs];
        residual_net(io, sizes, rows, common.coupling_activation, own_net)
    });
    let has_spline_of_kept = match ours {
        Some(VectorLayer::SplineCoupling((_, (_, own), _))) => own.is_some(),
        Some(_) => false,
        None => io.has("unconditional_transform"),
    };
    let of_kept = (!is_affine && has_spline_of_kept).then(|| {
        let own = match ours {
            Some(VectorLayer::SplineCoupling((_, (_, own), _))) => own.as_ref(),
            _ => None,
        };
        io.under("unconditional_transform", |io| spline_of_kept(io, common, [kept, kinds], own))
    });
    if let Some(own) = ours {
        return Ok(own.clone());
    }
    if !io.is_sound() || kept == 0 || changed == 0 {
        return Err(io.unfit("a coupling keeps some features and changes others"));
    }
    let (mask, order) = split.mask();
    if is_affine {
        let affine =
            Affine::new(couplings.scale_map, AffineOrder::ScaleThenShift, changed, io.device());
        let flow = Coupling::from_transform(net, affine, mask);
        return Ok(VectorLayer::AffineCoupling(framed(io, flow, order)?));
    }
    if !is_of_splines(kinds) {
        return Err(io.unfit(&format!("{kinds} numbers a feature make no spline")));
    }
    let hidden = net.blocks[0].first.linear.weight.dims()[1];
    let spline = common.splines.spline(kinds, (hidden as f64).sqrt())?;
    let coupling = Coupling::from_transform(net, spline, mask);
    let of_kept = match of_kept {
        Some(flow) => Some(KeptPart::new(flow?, mask)),
        None => None,
    };
    Ok(VectorLayer::SplineCoupling(framed(io, (coupling, of_kept), order)?))
}

/// Rows that stand feature by feature, ours kind by kind.
pub(in super::super) fn by_feature(kinds: usize, features: usize) -> Rows {
    let rows = (0..kinds).flat_map(|kind| (0..features).map(move |feature| feature * kinds + kind));
    Rows::in_order(rows)
}

/// `PiecewiseRationalQuadraticCDF` of the features that a coupling keeps: theirs `[features, kinds]`, ours
/// one row a kind.
fn spline_of_kept(
    io: &mut Exchange,
    common: &Common,
    [features, kinds]: [usize; 2],
    ours: Option<&KeptPart<Elementwise<Spline>>>,
) -> Result<Elementwise<Spline>> {
    // As many widths as heights; the slopes are one less, or one more.
    let bins = (kinds + 1) / 3;
    let parts = [
        ("unnormalized_widths", bins),
        ("unnormalized_heights", bins),
        ("unnormalized_derivatives", kinds.saturating_sub(2 * bins)),
    ];
    let own = ours.map(|own| &own.flow.params);
    let params = io.by_kind(&parts, features, own);
    match ours {
        Some(own) => Ok(own.flow.clone()),
        None if is_of_splines(kinds) => {
            Ok(Elementwise { params, transform: common.splines.spline(kinds, 1.0)? })
        }
        None => Err(io.unfit("no spline of the features that are kept")),
    }
}

/// sbi's spline of a single feature: a perceptron that sees the context alone, `transform_net.spline_predictor`.
fn spline_of_context(
    io: &mut Exchange,
    common: &Common,
    ours: Option<&Autoregressive<Spline, MaskedNet>>,
) -> Result<VectorLayer> {
    const NET: &str = "transform_net.spline_predictor";
    if ours.is_some() {
        Split::table(io, 1, Some(&Split { kept: vec![], changed: vec![0] }));
    }
    let own = ours.map(|own| &own.made.net.blocks);
    let count = own.map_or_else(|| io.count(NET), Vec::len);
    let mut inputs = common.context;
    let mut blocks = Vec::new();
    for at in 0..count {
        let own = own.map(|blocks| &blocks[at]);
        // An activation stands behind each layer but the last.
        let name = format!("{NET}.{}", 2 * at);
        let is_last = at + 1 == count;
        let outputs = match own {
            Some(block) => block.first.linear.weight.dims()[1],
            None => io.size(&format!("{name}.weight"), 0),
        };
        blocks.push(io.under(name, |io| {
            if at > 0 {
                let own = own.map(|own| &own.first);
                let layer = super::linear(io, [inputs, outputs], Rows::same(), None, own);
                return if is_last { Block::linear(layer) } else { Block::feed_forward(layer) };
            }
            let weight = own.and_then(|own| own.context.as_ref()).map(|own| &own.linear.weight);
            let weight = io.transposed("weight", [outputs, inputs], Rows::same(), weight);
            let bias = own.and_then(|own| own.first.linear.bias.as_ref());
            let bias = Some(io.param("bias", &[outputs], Rows::same(), bias));
            let linear = Linear { weight: unseen(io, outputs), bias };
            let mask = Tensor::zeros([1, outputs], (io.device(), io.dtype()));
            let entry = ContextEntry::Added;
            Block::feed_forward(MaskedLinear::masked(linear, mask))
                .with_context(Some(BlockContext::new(Linear { weight, bias: None }, entry)))
        }));
        inputs = outputs;
    }
    if let Some(own) = ours {
        return Ok(VectorLayer::SplineOfContext(own.clone()));
    }
    let hidden = blocks.first().map_or(0, |block| block.first.linear.weight.dims()[1]);
    if count < 2 || !is_of_splines(inputs) || blocks[0].form() != BlockForm::FeedForward {
        return Err(io.unfit("a net without layers, or one that gives no spline"));
    }
    let net = masked_net(io, blocks, common.coupling_activation, common.context)?;
    let spline = common.splines.spline(inputs, (hidden as f64).sqrt())?;
    Ok(VectorLayer::SplineOfContext(Autoregressive::new(net, spline)?))
}
