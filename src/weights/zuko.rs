//! Flows of zuko, and the density estimators that sbi makes of them.
//!
//! `flows.MAF`, `flows.NSF` and `flows.NCSF`: masked autoregressive transforms of affine maps, of splines and
//! of splines on a circle, one after the other, from data to noise as it is here. `passes=2`, which makes
//! couplings of them, random orders, an adjacency among the features, residual nets and contexts follow from the
//! masks in the file; of a context no net may leave out a part.
//!
//! sbi's `build_zuko_maf`, `build_zuko_nsf` and `build_zuko_ncsf` make such flows, with a standardization of the
//! data in front and one of the context in the embedding: see [`load_estimator`]. Those of a single feature, which
//! are no masked transforms, are not known.
//!
//! Which class it is decides the number of bins, that a file does hold, and the interval: whether splines are on a
//! circle is seen from the base. The activation of the nets and the least slope are asked for by [`Options`].
//!
//! ```no_run
//! use burn_flows::weights::zuko;
//!
//! let flow = zuko::load("nsf.pt", &zuko::Options::default())?;
//! let x = flow.sample(1000, 1.0);
//! let log_prob = flow.log_prob(x);
//! # Ok::<(), burn_flows::FlowError>(())
//! ```
//!
//! Source: probabilists/zuko 1.6, `flows/autoregressive.py`, `flows/spline.py`, `nn.py`, `transforms.py`;
//! sbi-dev/sbi 0.27, `neural_nets/net_builders/flow.py`, `neural_nets/estimators/zuko_flow.py`.

use std::f64::consts::PI;
use std::path::Path;

use burn::module::Module;
use burn::tensor::DType;

use super::Weights;
use super::embedding::{Embedding, embedding};
use super::exchange::{Exchange, Rows, that_read_back};
use super::vectors::{by_feature, first_layer, keeps_to, linear, masked_net, standardize};
use crate::autoregressive::{Autoregressive, AutoregressiveNet, MaskedNet};
use crate::conditioner::{Activation, Block};
use crate::context::Embedded;
use crate::coupling::{
    Affine, AffineOrder, Mapped, RationalQuadratic, RationalQuadraticConfig, ScaleMap, SplineForm,
    Transform,
};
use crate::error::Result;
use crate::preprocess::{ByColumn, ScalarMap};
use crate::prior::{Prior, StandardNormal, Uniform};
use crate::record::Setting;
use crate::stack::FlowStack;
use crate::{Flow, backend};

/// A transform of a flow.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // a handful of them exist in a model
pub enum Layer {
    /// sbi's standardization of the data.
    Standardize(ByColumn),
    /// Of affine maps.
    Affine(Masked<Affine>),
    /// Of splines.
    Spline(Masked<RationalQuadratic>),
    /// Of splines on a circle.
    Circle(Masked<Mapped<RationalQuadratic>>),
}

/// `MaskedAutoregressiveTransform`.
#[derive(Module, Debug, Flow)]
pub struct Masked<T> {
    /// The layer.
    pub layer: Autoregressive<T, MaskedNet>,
    /// Whether it was built of an order of the features, not of an adjacency.
    #[flow(skip)]
    has_order: Setting<bool>,
}

impl<T: Transform> Masked<T> {
    fn new(net: MaskedNet, transform: T, has_order: bool) -> Result<Self> {
        Ok(Self { layer: Autoregressive::new(net, transform)?, has_order: has_order.into() })
    }
}

/// The density of the noise.
#[derive(Module, Debug, Prior)]
pub enum Base {
    /// `DiagNormal` of mean 0 and deviation 1.
    Standard(StandardNormal),
    /// `BoxUniform` a little beyond the circle.
    Uniform(Uniform),
}

/// `flows.MAF`, `flows.NSF` or `flows.NCSF`: what [`load`] reads and [`save`] writes.
pub type Model = FlowStack<2, Vec<Layer>, Base>;

/// A flow and the net that makes its contexts, as sbi's `ZukoFlow` has them.
pub type Estimator = Embedded<Embedding, Model>;

/// How a flow was built, as far as its tensors do not tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// `activation` of the nets.
    pub activation: Activation,
    /// `slope`, the least one of every map.
    pub slope: f64,
    /// What stands between the linear layers of an embedding net.
    pub embedding_activation: Activation,
    /// Whether one stands behind the last of them, as in sbi's `FCEmbedding`.
    pub embedding_ends_activated: bool,
}

impl Default for Options {
    /// zuko's own defaults, which are sbi's as well.
    fn default() -> Self {
        Self {
            activation: Activation::Relu,
            slope: 1e-3,
            embedding_activation: Activation::Relu,
            embedding_ends_activated: true,
        }
    }
}

const NAME: &str = "flows.MAF, NSF or NCSF of zuko";

/// What every such model has.
const MARKER: &str = "transform.transforms";

/// What sbi keeps a flow below, and the embedding beside it.
const FLOW: &str = "net";
const EMBEDDING: &str = "_embedding_net";

/// How far splines reach.
const BOUND: f64 = 5.0;

/// How far the base of a flow on a circle reaches beyond it, so that rounding leaves nothing outside.
const BEYOND: f64 = 1e-5;

/// Reads a flow, on the compiled-in device in f32.
///
/// # Errors
/// As [`Weights::read`] and [`model`].
pub fn load(path: impl AsRef<Path>, options: &Options) -> Result<Model> {
    model(&Weights::read(path, &backend::device())?, options)
}

/// Reads sbi's `ZukoFlow`, a flow and the net that makes its contexts, on the compiled-in device in f32.
///
/// # Errors
/// As [`Weights::read`] and [`estimator`].
pub fn load_estimator(path: impl AsRef<Path>, options: &Options) -> Result<Estimator> {
    estimator(&Weights::read(path, &backend::device())?, options)
}

/// The flow of a state dict.
///
/// # Errors
/// [`FlowError::Record`](crate::FlowError::Record) if tensors are missing, superfluous, of another shape or
/// not finite, which lists all of them, or if masks allow no order of the features.
pub fn model(weights: &Weights, options: &Options) -> Result<Model> {
    // It stands beside the flow, not in it, and would not be missed.
    if weights.names().any(|name| name.contains(EMBEDDING)) {
        let advice = "read it with zuko::estimator";
        return Err(weights.error("a flow with an embedding net beside it", advice));
    }
    let weights = weights.state_dict(NAME, MARKER)?;
    let mut io = Exchange::reading(&weights);
    let parts = read(&mut io, options);
    io.check(NAME)?;
    parts.into_model()
}

/// The flow of sbi's `ZukoFlow` (`net`) and the net that makes its contexts (`_embedding_net`).
///
/// # Errors
/// As [`model`], or if the flow takes no context.
pub fn estimator(weights: &Weights, options: &Options) -> Result<Estimator> {
    let weights = weights.state_dict("ZukoFlow of sbi", &format!("{FLOW}.{MARKER}"))?;
    let mut io = Exchange::reading(&weights);
    let parts = io.under(FLOW, |io| read(io, options));
    let activation = (options.embedding_activation, options.embedding_ends_activated);
    let context = parts.context;
    let net = io.under(EMBEDDING, |io| embedding(io, context, activation, None));
    io.check(NAME)?;
    if context == 0 {
        let advice = "read it with zuko::model";
        return Err(weights.error("a flow that takes no context", advice));
    }
    Ok(Embedded::new(net, parts.into_model()?))
}

/// The state dict of a flow, which the `load_state_dict` of its class takes.
///
/// # Errors
/// [`FlowError::Invalid`](crate::FlowError::Invalid) if [`model`] would not read it back as it is, with the same
/// options: if it has a setting that the library does not have.
pub fn weights(model: &Model, options: &Options) -> Result<Weights> {
    let mut io = Exchange::writing(model);
    write(&mut io, model);
    that_read_back(NAME, model, io.into_weights(), |weights| self::model(weights, options))
}

/// The state dict of a flow and the net that makes its contexts, which sbi's `ZukoFlow.load_state_dict` takes.
///
/// # Errors
/// As [`weights`].
pub fn estimator_weights(estimator: &Estimator, options: &Options) -> Result<Weights> {
    let mut io = Exchange::writing(&estimator.model);
    io.under(FLOW, |io| write(io, &estimator.model));
    io.under(EMBEDDING, |io| {
        embedding(io, 0, Default::default(), Some(&estimator.embedding));
    });
    let read = |weights: &Weights| self::estimator(weights, options);
    that_read_back(NAME, estimator, io.into_weights(), read)
}

/// Writes the state dict of a flow: a file for `torch.load` where the name ends in `.pt` or `.pth`, else
/// safetensors.
///
/// # Errors
/// As [`weights`] and [`Weights::write`].
pub fn save(model: &Model, path: impl AsRef<Path>, options: &Options) -> Result<()> {
    weights(model, options)?.write(path)
}

/// Writes the state dict of a density estimator as sbi's `ZukoFlow` keeps it; see [`save`].
///
/// # Errors
/// As [`weights`] and [`Weights::write`].
pub fn save_estimator(
    estimator: &Estimator,
    path: impl AsRef<Path>,
    options: &Options,
) -> Result<()> {
    estimator_weights(estimator, options)?.write(path)
}

/// Layers, each made or not, and the base.
struct Parts {
    layers: Vec<Result<Layer>>,
    base: Result<Base>,
    features: usize,
    context: usize,
}

impl Parts {
    fn into_model(self) -> Result<Model> {
        let layers = self.layers.into_iter().collect::<Result<Vec<_>>>()?;
        FlowStack::single(layers, self.base?, &[self.features])
    }
}

/// What all layers have in common.
struct Common {
    features: usize,
    context: usize,
    is_on_circle: bool,
    options: Options,
}

fn read(io: &mut Exchange, options: &Options) -> Parts {
    let is_on_circle = io.has("base.lower");
    let features = io.size(if is_on_circle { "base.lower" } else { "base.loc" }, 0);
    let names: Vec<String> = io.indices(MARKER).iter().map(|at| format!("{MARKER}.{at}")).collect();
    let columns = names.iter().map(|name| io.size(&format!("{name}.hyper.0.weight"), 1)).max();
    let context = columns.unwrap_or(0).saturating_sub(features);
    let common = Common { features, context, is_on_circle, options: *options };
    let layers = names.iter().map(|name| io.under(name, |io| layer(io, &common, None)));
    let layers = layers.collect();
    Parts { layers, base: base(io, &common, None), features, context }
}

fn write(io: &mut Exchange, model: &Model) {
    let [features]: [usize; 1] = model.sample_shape().try_into().expect("a model of vectors");
    let is_on_circle = matches!(model.prior, Base::Uniform(_));
    let nets = model.levels[0].iter().filter_map(net);
    let context = nets.map(|(own, _)| own.net.context.width()).max().unwrap_or(0);
    let common = Common { features, context, is_on_circle, options: Options::default() };
    for (index, own) in model.levels[0].iter().enumerate() {
        let written = io.under(format!("{MARKER}.{index}"), |io| layer(io, &common, Some(own)));
        written.expect("a layer that exists can be written");
    }
    base(io, &common, Some(&model.prior)).expect("a base that exists can be written");
}

/// The bases hold what all of their class hold.
fn base(io: &mut Exchange, common: &Common, ours: Option<&Base>) -> Result<Base> {
    let names = if common.is_on_circle { ["lower", "upper"] } else { ["loc", "scale"] };
    let expected = if common.is_on_circle { [-PI - BEYOND, PI + BEYOND] } else { [0.0, 1.0] };
    let own = ours.map(|own| match own {
        Base::Standard(_) => expected,
        Base::Uniform(own) => own.interval(),
    });
    let [first, second] = io.under("base", |io| {
        [0, 1].map(|at| {
            let own = own.map(|own| own[at]);
            io.nearly(names[at], common.features, expected[at], own)
        })
    });
    Ok(match common.is_on_circle {
        true => Base::Uniform(Uniform::new(first, second)?),
        false => Base::Standard(StandardNormal::new()),
    })
}

/// The net of a transform, and whether it was built of an order.
fn net(layer: &Layer) -> Option<(&MaskedNet, bool)> {
    match layer {
        Layer::Standardize(_) => None,
        Layer::Affine(own) => Some((&own.layer.made, *own.has_order)),
        Layer::Spline(own) => Some((&own.layer.made, *own.has_order)),
        Layer::Circle(own) => Some((&own.layer.made, *own.has_order)),
    }
}

fn layer(io: &mut Exchange, common: &Common, ours: Option<&Layer>) -> Result<Layer> {
    let own = match ours {
        Some(Layer::Standardize(own)) => Some(own),
        _ => None,
    };
    if own.is_some() || ours.is_none() && io.has("scale") {
        let layer = standardize(io, ["scale", "loc"], common.features, own)?;
        return Ok(Layer::Standardize(layer));
    }
    let own = ours.and_then(net);
    let has_order = own.map_or_else(|| io.has("order"), |(_, has_order)| has_order);
    let own = own.map(|(own, _)| own);
    let order = has_order.then(|| {
        let own = own.map(AutoregressiveNet::steps);
        io.numbers("order", common.features, own.as_deref())
    });
    let (blocks, kinds) = io.under("hyper", |io| blocks(io, common, own));
    if let Some(own) = ours {
        return Ok(own.clone());
    }
    let net = masked_net(io, blocks, common.options.activation, common.context)?;
    let net = in_order(io, net, order)?;
    let slope = common.options.slope;
    if kinds == 2 && !common.is_on_circle {
        let map = ScaleMap::SoftClip { bound: -slope.ln() };
        let order = AffineOrder::ScaleThenShift;
        let affine = Affine::new(map, order, common.features, io.device());
        return Ok(Layer::Affine(Masked::new(net, affine, has_order)?));
    }
    if kinds % 3 != 2 {
        return Err(io.unfit(&format!("{kinds} numbers a feature make no spline")));
    }
    let spline = |bound| {
        let config = RationalQuadraticConfig::new(kinds.div_ceil(3), bound);
        config.with_form(SplineForm::Bent { slope }).init()
    };
    if !common.is_on_circle {
        return Ok(Layer::Spline(Masked::new(net, spline(BOUND)?, has_order)?));
    }
    let circle = ScalarMap::Circle { lower: -PI, turn: 2.0 * PI, shift: -PI };
    Ok(Layer::Circle(Masked::new(net, Mapped::new(circle, spline(PI)?)?, has_order)?))
}

/// The net with the order that it was built of, which its masks have to keep to: small nets leave out some of
/// what it allows.
fn in_order(io: &Exchange, net: MaskedNet, order: Option<Vec<usize>>) -> Result<MaskedNet> {
    let Some(order) = order else { return Ok(net) };
    match keeps_to(&net.net, &order) {
        true => MaskedNet::from_net(net.net, order),
        false => Err(io.unfit("the masks do not keep to the order of the features")),
    }
}

/// The type that masks are kept in.
const MASK: DType = DType::U8;

/// `MaskedMLP`: its blocks, and the numbers that it gives for each feature.
fn blocks(io: &mut Exchange, common: &Common, ours: Option<&MaskedNet>) -> (Vec<Block>, usize) {
    let own = ours.map(|own| &own.net.blocks);
    let is_residual = |at: usize, io: &Exchange| match own {
        Some(blocks) => blocks[at].second.is_some(),
        None => io.has(&format!("{at}.0.weight")),
    };
    let has_residual = match own {
        Some(blocks) => blocks.iter().any(|block| block.second.is_some()),
        None => is_residual(1, io),
    };
    // Activations have numbers of their own, but not inside of residual nets.
    let stride = if has_residual { 1 } else { 2 };
    let count = own.map_or_else(|| io.count(""), Vec::len);
    let (mut inputs, mut kinds) = (common.features, 0);
    let mut blocks = Vec::new();
    for at in 0..count {
        let own = own.map(|blocks| &blocks[at]);
        let is_last = at + 1 == count;
        if has_residual && is_residual(at, io) {
            let own = own.map(|own| [Some(&own.first), own.second.as_ref()]);
            let [first, second] = [0, 1].map(|part| {
                let own = own.and_then(|own| own[part]);
                io.under(format!("{at}.{}", 2 * part), |io| {
                    linear(io, [inputs, inputs], Rows::same(), Some(MASK), own)
                })
            });
            blocks.push(Block::residual(first, second));
            continue;
        }
        let name = format!("{}", at * stride);
        let outputs = match own {
            Some(own) => own.first.linear.weight.dims()[1],
            None => io.size(&format!("{name}.weight"), 0),
        };
        let rows = if is_last {
            kinds = outputs.checked_div(common.features).unwrap_or(0);
            by_feature(kinds, common.features)
        } else {
            Rows::same()
        };
        let outputs = if is_last { kinds * common.features } else { outputs };
        let (layer, of_context) = io.under(name, |io| match at {
            0 => first_layer(io, [inputs, common.context, outputs], rows, Some(MASK), own),
            _ => (linear(io, [inputs, outputs], rows, Some(MASK), own.map(|own| &own.first)), None),
        });
        let block = match has_residual || is_last {
            true => Block::linear(layer),
            false => Block::feed_forward(layer),
        };
        blocks.push(block.with_context(of_context));
        inputs = outputs;
    }
    (blocks, kinds)
}
