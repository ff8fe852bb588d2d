//! Nets, linear layers and splits that several libraries have.

use burn_flows::autoregressive::MaskedNet;
use burn_flows::conditioner::{
    Activation, Block, BlockContext, BlockNet, ContextEntry, MaskedLinear, PeriodicInput,
};
use burn_flows::context::Context;
use burn_flows::coupling::{Mask, Parity, RationalQuadraticConfig, SplineForm, SplineTails};
use burn_flows::linear::{InvertibleConv1x1, Permutation, PluWeight, Shift};
use burn_flows::weights::Array;

use super::super::cases::text;
use super::super::cast;
use super::super::traced::{Params, Traced};
use super::model::{Layer, frozen};
use super::spec::Spec;

/// In which order, scale and position a net gives the numbers of its features: for each kind of ours the
/// kind of theirs, a factor and an offset.
pub struct Numbers(pub Vec<(usize, f64, f64)>);

impl Numbers {
    /// Theirs are ours.
    pub fn same(kinds: usize) -> Self {
        Self((0..kinds).map(|kind| (kind, 1.0, 0.0)).collect())
    }

    /// A scale and a shift, in this order; ours has the shift first.
    pub fn scale_and_shift() -> Self {
        Self(vec![(1, 1.0, 0.0), (0, 1.0, 0.0)])
    }

    /// The numbers of a spline of nflows or normflows: widths and heights divided by a root, slopes
    /// without the constant that makes 0 the slope 1.
    pub fn spline(bins: usize, slopes: usize, divisor: f64, min_slope: f64) -> Self {
        let offset = -(1.0 - min_slope).exp_m1().ln();
        let sizes = (0..2 * bins).map(|kind| (kind, divisor.recip(), 0.0));
        Self(sizes.chain((0..slopes).map(|slope| (2 * bins + slope, 1.0, offset))).collect())
    }

    /// Rows that stand feature by feature, in our order: kind by kind.
    fn arrange(&self, rows: &Traced, has_offset: bool) -> Traced {
        let (count, kinds) = (rows.shape()[0] / self.0.len(), self.0.len());
        let from = self
            .0
            .iter()
            .flat_map(|(kind, ..)| (0..count).map(move |feature| feature * kinds + kind));
        let offset = |row: usize| if has_offset { self.0[row / count].2 } else { 0.0 };
        rows.rows(from).rows_mapped(|row| self.0[row / count].1, offset)
    }

    /// The layer that gives the numbers, `weight` `[outputs, inputs]`.
    pub fn layer(&self, params: &Params<'_>) -> Result<MaskedLinear, String> {
        let weight = self.arrange(&params.traced("weight")?, false);
        let bias = self.arrange(&params.traced("bias")?, true);
        let linear = params.reader.linear(weight, Some(bias));
        if !params.has("mask") {
            return Ok(MaskedLinear::new(linear));
        }
        let mask = self.arrange(&traced_mask(params)?, false);
        // Masks are neither scaled nor moved.
        let mask = mask.map(|value| if value == 0.0 { 0.0 } else { 1.0 }, |_| 0.0);
        Ok(masked(params, linear, &mask))
    }

    /// The parameters of a spline for each feature: theirs `[features, kinds]`, ours one row a kind.
    pub fn elementwise(&self, parts: &[Traced]) -> Traced {
        let kinds =
            parts.iter().map(Traced::transposed).reduce(|above, below| above.stacked(&below));
        let kinds = kinds.expect("a spline has parts");
        let rows = kinds.rows(self.0.iter().map(|(kind, ..)| *kind));
        let rows = rows.rows_mapped(|row| self.0[row].1, |row| self.0[row].2);
        let count = rows.shape().iter().product::<usize>();
        rows.reshaped([count])
    }
}

fn traced_mask(params: &Params<'_>) -> Result<Traced, String> {
    let mask = params.array("mask")?;
    Ok(Traced::constant(mask.shape().to_vec(), mask.values().to_vec()))
}

/// A layer with its mask, `[outputs, inputs]`.
fn masked(params: &Params<'_>, linear: burn::nn::Linear, mask: &Traced) -> MaskedLinear {
    let mask = mask.transposed();
    let array = Array::new(mask.shape().to_vec(), mask.values());
    MaskedLinear::masked(linear, params.reader.golden.tensor_of(&array))
}

/// A linear layer with its mask, if it has one.
pub fn layer(params: &Params<'_>) -> Result<MaskedLinear, String> {
    let linear = params.linear()?;
    match params.has("mask") {
        true => Ok(masked(params, linear, &traced_mask(params)?)),
        false => Ok(MaskedLinear::new(linear)),
    }
}

/// A first layer that sees a context behind its `inputs`: the two parts of its weight.
pub fn first_layer(
    params: &Params<'_>,
    inputs: usize,
) -> Result<(MaskedLinear, Option<BlockContext>), String> {
    let weight = params.traced("weight")?;
    let columns = weight.shape()[1];
    let part = |range: std::ops::Range<usize>| weight.transposed().rows(range).transposed();
    let linear = params.reader.linear(part(0..inputs), Some(params.traced("bias")?));
    let mask = if params.has("mask") { Some(traced_mask(params)?) } else { None };
    let first = match &mask {
        Some(mask) => masked(params, linear, &mask.transposed().rows(0..inputs).transposed()),
        None => MaskedLinear::new(linear),
    };
    if columns == inputs {
        return Ok((first, None));
    }
    let mut of_context = part(inputs..columns);
    if let Some(mask) = mask {
        let mask = mask.transposed().rows(inputs..columns).transposed();
        of_context = of_context.masked(&Array::new(mask.shape().to_vec(), mask.values()));
    }
    let linear = params.reader.linear(of_context, None);
    Ok((first, Some(BlockContext::new(linear, ContextEntry::Added))))
}

/// The context that a layer `context_layer` brings into a block.
pub fn block_context(
    params: &Params<'_>,
    entry: ContextEntry,
) -> Result<Option<BlockContext>, String> {
    let place = params.under("context_layer");
    let has_it = place.has("weight");
    has_it.then(|| Ok(BlockContext::new(place.linear()?, entry))).transpose()
}

pub fn net(
    params: &Params<'_>,
    blocks: Vec<Block>,
    activation: Activation,
    context_width: usize,
) -> BlockNet {
    let weights = &params.reader.golden.weights;
    let context = cast(Context::new(context_width, weights.device()), weights.dtype());
    BlockNet::from_blocks(blocks, activation, context)
}

/// The residual net of nflows and normflows, of `inputs` features and a context behind them.
pub fn residual_net(
    params: &Params<'_>,
    inputs: usize,
    context_width: usize,
    activation: Activation,
    numbers: &Numbers,
) -> Result<BlockNet, String> {
    let (first, context) = first_layer(&params.under("initial_layer"), inputs)?;
    let mut blocks = vec![Block::linear(first).with_context(context)];
    blocks.extend(residual_blocks(params, ContextEntry::Gated)?);
    blocks.push(Block::linear(numbers.layer(&params.under("final_layer"))?));
    Ok(net(params, blocks, activation, context_width))
}

/// The residual blocks of nflows and normflows, with masks where there are some.
pub fn residual_blocks(params: &Params<'_>, entry: ContextEntry) -> Result<Vec<Block>, String> {
    let blocks = params.under("blocks");
    let block = |index: usize| {
        let block = blocks.under(index.to_string());
        if block.has("batch_norm_layers") {
            return Err("batch normalization inside of nets is not built".to_string());
        }
        let linear = |index: usize| layer(&block.under(format!("linear_layers.{index}")));
        let context = block_context(&block, entry)?;
        Ok(Block::pre_activated(linear(0)?, linear(1)?).with_context(context))
    };
    blocks.indices().into_iter().map(block).collect()
}

/// The steps at which features are known, from which outputs see which inputs: `kinds` numbers of each
/// feature, feature by feature.
pub fn steps(masks: &[Array], features: usize) -> Result<Vec<usize>, String> {
    let mut sees: Option<Array> = None;
    for mask in masks {
        sees = Some(match sees {
            None => Array::new(
                [mask.shape()[0], features],
                (0..mask.shape()[0] * features)
                    .map(|at| mask.values()[at / features * mask.shape()[1] + at % features])
                    .collect(),
            ),
            Some(before) => {
                let [rows, inner] = [mask.shape()[0], mask.shape()[1]];
                let entry = |at: usize| {
                    let (row, feature) = (at / features, at % features);
                    let through = |k: usize| {
                        mask.values()[row * inner + k] > 0.0
                            && before.values()[k * features + feature] > 0.0
                    };
                    f64::from(u8::from((0..inner).any(through)))
                };
                Array::new([rows, features], (0..rows * features).map(entry).collect())
            }
        });
    }
    let sees = sees.ok_or("a masked net without masks")?;
    let kinds = sees.shape()[0] / features;
    let depends = |feature: usize, on: usize| {
        (0..kinds).any(|kind| sees.values()[(feature * kinds + kind) * features + on] > 0.0)
    };
    let mut steps = vec![0; features];
    // No chain of features is longer than there are features.
    for round in 0..=features {
        let next: Vec<usize> = (0..features)
            .map(|feature| {
                let before = (0..features).filter(|&on| depends(feature, on));
                before.map(|on| steps[on] + 1).max().unwrap_or(0)
            })
            .collect();
        if next == steps {
            return Ok(steps);
        }
        if round == features {
            break;
        }
        steps = next;
    }
    Err("the masks let features depend on each other in a circle".into())
}

/// A masked net whose order follows from the masks of its layers, `names` from the first to the last.
pub fn masked_net(
    params: &Params<'_>,
    names: &[String],
    net: BlockNet,
) -> Result<MaskedNet, String> {
    let masks = names.iter().map(|name| params.array(&format!("{name}.mask")));
    let masks = masks.collect::<Result<Vec<_>, _>>()?;
    let order = steps(&masks, net.features_in())?;
    MaskedNet::from_net(net, order).map_err(text)
}

/// A split of the features by which of them are kept, and the layers around it that bring them there.
pub struct Split {
    pub mask: Mask,
    pub kept: Vec<usize>,
    pub changed: Vec<usize>,
    order: Option<Vec<usize>>,
}

impl Split {
    pub fn new(is_kept: &[bool]) -> Result<Self, String> {
        let features = is_kept.len();
        let places =
            |kept: bool| (0..features).filter(|&at| is_kept[at] == kept).collect::<Vec<_>>();
        let (kept, changed) = (places(true), places(false));
        if kept.is_empty() || changed.is_empty() {
            return Err("a coupling keeps some features and changes others".into());
        }
        let parities = [Parity::Even, Parity::Odd];
        let alternating = parities.into_iter().find(|&parity| {
            (0..features).all(|at| is_kept[at] == (at % 2 == usize::from(parity == Parity::Odd)))
        });
        if let Some(parity) = alternating {
            return Ok(Self { mask: Mask::Alternating(parity), kept, changed, order: None });
        }
        let order = kept.iter().chain(&changed).copied().collect();
        let mask = Mask::SplitAt(kept.len(), Parity::Even);
        Ok(Self { mask, kept, changed, order: Some(order) })
    }

    /// Layers that run among the features as the mask has them.
    pub fn around(self, params: &Params<'_>, layers: Vec<Layer>) -> Result<Vec<Layer>, String> {
        let Some(order) = self.order else { return Ok(layers) };
        let mut back = vec![0; order.len()];
        for (at, &place) in order.iter().enumerate() {
            back[place] = at;
        }
        let mut all = vec![permutation(params, &order)?];
        all.extend(layers);
        all.push(permutation(params, &back)?);
        Ok(all)
    }
}

/// `z[i] = x[order[i]]`.
pub fn permutation(params: &Params<'_>, order: &[usize]) -> Result<Layer, String> {
    let weights = &params.reader.golden.weights;
    let permutation = Permutation::new(order, weights.device()).map_err(text)?;
    Ok(Layer::Permutation(cast(permutation, weights.dtype())))
}

/// `z = L (U x) + bias` of nflows and normflows: both triangles filled row by row, the diagonal of `U`
/// `softplus + 0.001`.
pub fn lu_linear(params: &Params<'_>) -> Result<Vec<Layer>, String> {
    let diagonal = params.traced("unconstrained_upper_diag")?;
    let n = diagonal.shape()[0];
    let triangle = |name: &str, is_inside: fn(usize, usize) -> bool| {
        let entries = params.traced(name)?;
        let entries = entries.clone().reshaped([entries.shape()[0], 1]);
        let zero = Traced::constant([1, 1], vec![0.0]);
        let count = entries.shape()[0];
        let all = entries.stacked(&zero);
        let mut next = 0;
        let places = (0..n * n).map(|at| {
            let place = if is_inside(at / n, at % n) { next } else { return count };
            next += 1;
            place
        });
        let places: Vec<usize> = places.collect();
        Ok::<_, String>(params.reader.param::<2>(all.rows(places).reshaped([n, n])))
    };
    let softplus = |u: f64| u.max(0.0) + (-u.abs()).exp().ln_1p();
    let scale = move |u: f64| softplus(u) + 1e-3;
    let slope = move |u: f64| 1.0 / (1.0 + (-u).exp()) / scale(u);
    let constant = |values: Vec<f64>, shape: Vec<usize>| Array::new(shape, values);
    let golden = params.reader.golden;
    let identity = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    let matrix = InvertibleConv1x1::from_parts(PluWeight {
        permutation: frozen(golden.tensor_of(&constant(identity, vec![n, n]))),
        lower: triangle("lower_entries", |row, column| column < row)?,
        upper: triangle("upper_entries", |row, column| column > row)?,
        log_s: params.reader.param(diagonal.map(move |u| scale(u).ln(), slope)),
        sign_s: frozen(golden.tensor_of(&constant(vec![1.0; n], vec![n]))),
    });
    let shift = Shift { shift: params.reader.param(params.traced("bias")?) };
    Ok(vec![Layer::Linear(matrix), Layer::Shift(shift)])
}

/// The splines of nflows and normflows: numbers as they have them, and what becomes of them.
pub fn floored_spline(
    spec: &Spec,
    bins: usize,
    bound: f64,
    tails: SplineTails,
) -> Result<(RationalQuadraticConfig, f64), String> {
    let min_slope = spec.number_or("min_derivative", 1e-3)?;
    let config = RationalQuadraticConfig::new(bins, bound).with_tails(tails);
    let config = config.with_form(SplineForm::Floored {
        min_width: spec.number_or("min_bin_width", 1e-3)?,
        min_height: spec.number_or("min_bin_height", 1e-3)?,
        min_slope,
    });
    Ok((config, min_slope))
}

/// Slopes that a spline learns.
pub fn num_slopes(bins: usize, tails: SplineTails) -> usize {
    match tails {
        SplineTails::Identity => bins - 1,
        SplineTails::Linear => bins + 1,
        SplineTails::Circular => bins,
    }
}

/// The number of periodic input of some features, of normflows.
pub fn periodic(params: &Params<'_>, factor: f64) -> Result<Option<PeriodicInput>, String> {
    let place = params.under("preprocessing");
    if !place.has("weights") {
        return Ok(None);
    }
    let features = place.sizes("ind")?.into_iter().map(|at| (at, factor)).collect();
    let weights = params.reader.param(place.traced("weights")?);
    Ok(Some(PeriodicInput::new(features, weights)))
}
