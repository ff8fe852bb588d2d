//! Elementwise maps of nflows and zuko, one a column, and mixtures of zuko.

use burn::tensor::{DType, Tensor};
use burn_flows::Flow;
use burn_flows::conditioner::{Activation, Block, BlockNet, MaskedLinear};
use burn_flows::preprocess::{ByColumn, DirectedMap, ScalarMap};
use burn_flows::prior::{ContextMixture, FullMixture};
use serde_json::Value;

use super::super::cases::text;
use super::super::traced::{Params, Reader, Traced};
use super::super::{Computed, Golden, INVERSE, cast, values};
use super::model::{self, Base, Model};
use super::nets::{layer, net};
use super::spec::{self, Spec};

pub fn by_column(golden: &Golden) -> Result<Computed, String> {
    let columns = spec::layers(golden.hyper("columns")?)?;
    let maps = columns.iter().map(map).collect::<Result<Vec<_>, _>>()?;
    let flow = ByColumn::new(maps).map_err(text)?;
    let x: Tensor<2> = golden.tensor("x")?;
    let (z, log_slope) = flow.forward_elementwise(x.clone());
    let log_det = flow.forward(x).1;
    let mut computed = Computed::default();
    let again = flow.forward(flow.inverse(golden.tensor("z")?)).0;
    computed.compare("z again", values(again), golden.array("z")?.values().to_vec());
    if golden.weights.dtype() == DType::F64 {
        let back = values(flow.inverse(z.clone()));
        computed.compare(INVERSE, back, golden.array("x")?.values().to_vec());
    }
    computed.set("z", z);
    computed.set("log_det_elementwise", log_slope);
    computed.set("log_det_jacobian_0", log_det.clone().narrow(0, 0, 1));
    computed.set("log_det", log_det);
    Ok(computed)
}

fn map(value: &Value) -> Result<DirectedMap, String> {
    let name = value["map"].as_str().ok_or_else(|| format!("{value} has no map"))?;
    let options =
        |known: &[&str]| Spec::of(value, &[known, &["map", "domain", "inverse"]].concat());
    let one = |key: &str, default: f64| options(&[key])?.number_or(key, default);
    let map: DirectedMap = match name {
        "Sigmoid" => ScalarMap::Sigmoid { temperature: one("temperature", 1.0)? }.into(),
        "Logit" => ScalarMap::Sigmoid { temperature: one("temperature", 1.0)? }.inverted(),
        "Tanh" => ScalarMap::Tanh.into(),
        "LeakyReLU" => ScalarMap::LeakyRelu { slope: one("negative_slope", 1e-2)? }.into(),
        "CauchyCDF" => ScalarMap::CauchyCdf.into(),
        "CauchyCDFInverse" => ScalarMap::CauchyCdf.inverted(),
        "Exp" => ScalarMap::Exp.into(),
        "PointwiseAffineTransform" => {
            let spec = options(&["scale", "shift"])?;
            let (scale, shift) = (spec.number_or("scale", 1.0)?, spec.number_or("shift", 0.0)?);
            ScalarMap::Affine { scale, shift }.into()
        }
        "IdentityTransform" => ScalarMap::Identity.into(),
        "SoftclipTransform" => ScalarMap::SoftClip { bound: one("bound", 5.0)? }.into(),
        "SigmoidTransform" => ScalarMap::Sigmoid { temperature: 1.0 }.into(),
        "TanhTransform" => ScalarMap::Tanh.into(),
        "ExpTransform" => ScalarMap::Exp.into(),
        "SoftplusTransform" => ScalarMap::Softplus.into(),
        "CircularShiftTransform" => {
            let bound = one("bound", 1.0)?;
            ScalarMap::Circle { lower: -bound, turn: 2.0 * bound, shift: -bound }.into()
        }
        "CosTransform" => ScalarMap::Cos.into(),
        "SinTransform" => ScalarMap::Sin.into(),
        "SignedPowerTransform" => {
            ScalarMap::SignedPower { exponent: one("alpha", 0.0)?.exp() }.into()
        }
        "MonotonicAffineTransform" => {
            let spec = options(&["scale", "shift", "slope"])?;
            let bound = spec.number_or("slope", 1e-3)?.ln();
            let scale = spec.number("scale")?;
            let scale = (scale / (1.0 + (scale / bound).abs())).exp();
            ScalarMap::Affine { scale, shift: spec.number("shift")? }.into()
        }
        other => return Err(format!("unknown map {other:?}")),
    };
    let is_turned = value["inverse"].as_bool().unwrap_or(false);
    Ok(DirectedMap { is_inverted: map.is_inverted != is_turned, ..map })
}

/// A mixture with any of zuko's covariances, whose numbers a net may give.
pub fn mixture(golden: &Golden) -> Result<Computed, String> {
    let reader = Reader::new(golden)?;
    let (count, features) =
        (golden.number("components")? as usize, golden.number("features")? as usize);
    let kind = golden.text("covariance_type")?;
    let (spread, is_full) = match kind.as_str() {
        "full" => (features, true),
        "diagonal" => (features, false),
        "spherical" => (1, false),
        other => return Err(format!("unknown covariance_type {other:?}")),
    };
    let kinds = if golden.flag("tied")? { 1 } else { count };
    let below = if is_full { features * (features - 1) / 2 } else { 0 };
    // Where the numbers of their diagonals and entries below start, one row of numbers each.
    let diagonal_at = count * (1 + features);
    let lower_at = diagonal_at + kinds * spread;
    let diagonal = (0..count)
        .flat_map(|k| (0..features).map(move |d| (k % kinds) * spread + d % spread + diagonal_at));
    let theirs = lower_at + kinds * below;
    let entries = features * (features - 1) / 2;
    let lower = (0..count).flat_map(|k| {
        // One behind the last: nothing.
        (0..entries)
            .map(move |at| if is_full { lower_at + (k % kinds) * below + at } else { theirs })
    });
    let rows: Vec<usize> = (0..diagonal_at).chain(diagonal).chain(lower).collect();
    let ours = |numbers: Traced| {
        let width: Vec<usize> = numbers.shape()[1..].to_vec();
        let zeros = vec![0.0; width.iter().product()];
        let row = Traced::constant([vec![1], width].concat(), zeros);
        numbers.stacked(&row).rows(rows.iter().copied())
    };
    let params = reader.params();
    let base = if golden.number("context")? > 0.0 {
        let net = mixture_net(&params.under("hyper"), ours)?;
        let context = golden.number("context")? as usize;
        let device = golden.weights.device();
        let prior = ContextMixture::new(net, count, context, device).map_err(text)?;
        Base::ContextMixture(cast(prior, golden.weights.dtype()))
    } else {
        let place = params.under("phi");
        let parts = place.indices().into_iter().map(|index| {
            let part = place.traced(&index.to_string())?;
            let count = part.shape().iter().product::<usize>();
            Ok(part.reshaped([count]))
        });
        let parts = parts.collect::<Result<Vec<_>, String>>()?;
        let all = parts.into_iter().reduce(|all, part| all.stacked(&part));
        let all = ours(all.ok_or("a mixture without numbers")?);
        let part = |start: usize, width: usize| {
            all.rows(start..start + count * width).reshaped([count, width])
        };
        Base::Full(FullMixture {
            logits: reader.param(all.rows(0..count)),
            mean: reader.param(part(count, features)),
            log_diagonal: reader.param(part(diagonal_at, features)),
            lower: (entries > 0).then(|| reader.param(part(count * (1 + 2 * features), entries))),
        })
    };
    model::compute(&reader, Model::new(Vec::new(), base))
}

fn mixture_net(params: &Params<'_>, ours: impl Fn(Traced) -> Traced) -> Result<BlockNet, String> {
    let indices = params.indices();
    let last = *indices.last().ok_or("a net without layers")?;
    let blocks = indices.into_iter().map(|index| {
        let place = params.under(index.to_string());
        if index < last {
            return Ok(Block::feed_forward(layer(&place)?));
        }
        let (weight, bias) = (ours(place.traced("weight")?), ours(place.traced("bias")?));
        Ok(Block::linear(MaskedLinear::new(params.reader.linear(weight, Some(bias)))))
    });
    let blocks = blocks.collect::<Result<Vec<_>, String>>()?;
    Ok(net(params, blocks, Activation::Relu, 0))
}
