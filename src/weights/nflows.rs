//! Flows of nflows, and the density estimators that sbi makes of them.
//!
//! A flow is a list of transforms from data to noise, as it is here. Of the transforms those are known that
//! masked autoregressive flows and spline flows are made of: `MaskedAffineAutoregressiveTransform`,
//! `MaskedPiecewiseRationalQuadraticAutoregressiveTransform`, `AffineCouplingTransform`,
//! `PiecewiseRationalQuadraticCouplingTransform`, the permutations, `LULinear`,
//! `PointwiseAffineTransform`, and `InverseTransform` of an autoregressive one; the nets inside are `MADE` and
//! `ResidualNet` without batch normalization. Conditional flows are given their context as every model is.
//!
//! sbi's `build_maf`, `build_maf_rqs` and `build_nsf` make such flows, with a standardization of the data in
//! front and one of the context in the embedding: see [`load_estimator`]. With one feature `build_nsf` makes a
//! spline of the context alone, which is read as well.
//!
//! A file holds permutations, masks and sizes. What it does not hold is asked for by [`Options`].
//!
//! ```no_run
//! use burn::tensor::Tensor;
//! use burn_flows::weights::nflows;
//!
//! // torch.save(posterior_estimator.state_dict(), "estimator.pt")
//! let estimator = nflows::load_estimator("estimator.pt", &nflows::Options::sbi_maf())?;
//! let observed = Tensor::<2>::from_data([[3.0, -4.0]], &burn_flows::backend::device());
//! let posterior = estimator.given(&observed)?;
//! let draws = posterior.sample(1000, 1.0);
//! # Ok::<(), burn_flows::FlowError>(())
//! ```
//!
//! Source: bayesiains/nflows 0.14, `transforms/`, `nn/nets/resnet.py`, `flows/base.py`; sbi-dev/sbi 0.27,
//! `neural_nets/net_builders/flow.py`, `utils/sbiutils.py`.

use std::path::Path;

use burn::module::Module;

use super::Weights;
use super::embedding::{Embedding, embedding};
use super::exchange::{Exchange, Rows, that_read_back};
use super::vectors::{
    Common, Couplings, Made, autoregressive, coupling, lu_linear, permutation, standardize,
};
pub use super::vectors::{Framed, Spline, SplineOptions, VectorLayer as Layer};
use crate::backend;
use crate::conditioner::{Activation, ContextEntry};
use crate::context::Embedded;
use crate::coupling::ScaleMap;
use crate::error::Result;
use crate::inverse::Inverse;
use crate::prior::{DiagonalNormal, Prior, StandardNormal};
use crate::stack::FlowStack;

/// `Flow(CompositeTransform(...), ...)`: what [`load`] reads and [`save`] writes.
pub type Model = FlowStack<2, Vec<Layer>, Base>;

/// A flow and the net that makes its contexts: `Flow(..., embedding_net)`, as sbi builds them.
pub type Estimator = Embedded<Embedding, Model>;

/// The density of the noise.
#[derive(Module, Debug, Prior)]
pub enum Base {
    /// `StandardNormal`.
    Standard(StandardNormal),
    /// `DiagonalNormal`.
    Diagonal(DiagonalNormal<2>),
}

/// How a flow was built, as far as its tensors do not tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// `activation` of the residual nets of couplings.
    pub coupling_activation: Activation,
    /// `activation` of masked nets.
    pub masked_activation: Activation,
    /// The splines' interval and least sizes.
    pub splines: SplineOptions,
    /// What stands between the linear layers of an embedding net.
    pub embedding_activation: Activation,
    /// Whether one stands behind the last of them, as in sbi's `FCEmbedding`.
    pub embedding_ends_activated: bool,
}

impl Default for Options {
    /// nflows' own defaults: ReLU everywhere, and splines from -1 to 1.
    fn default() -> Self {
        Self {
            coupling_activation: Activation::Relu,
            masked_activation: Activation::Relu,
            splines: SplineOptions::reaching(1.0),
            embedding_activation: Activation::Relu,
            embedding_ends_activated: true,
        }
    }
}

impl Options {
    /// What sbi's `build_maf` and `build_maf_rqs` give: masked nets with tanh, splines from -3 to 3.
    pub fn sbi_maf() -> Self {
        Self { masked_activation: Activation::Tanh, ..Self::sbi_nsf() }
    }

    /// What sbi's `build_nsf` gives: splines from -3 to 3.
    pub fn sbi_nsf() -> Self {
        Self { splines: SplineOptions::reaching(3.0), ..Self::default() }
    }

    fn common(&self, features: usize, context: usize) -> Common {
        Common {
            features,
            context,
            coupling_activation: self.coupling_activation,
            masked_activation: self.masked_activation,
            splines: self.splines,
        }
    }
}

const NAME: &str = "flows.Flow of nflows";

/// What every such model has.
const MARKER: &str = "_transform._transforms";

const EMBEDDING: &str = "_embedding_net";

const MADE: Made = Made {
    first_entry: ContextEntry::Activated,
    entry: ContextEntry::Added,
    has_first_activation: true,
    scale_map: ScaleMap::FlooredSoftplus { floor: 1e-3 },
};

const COUPLINGS: Couplings = Couplings { scale_map: ScaleMap::FlooredSigmoid { floor: 1e-3 } };

/// Reads a flow without an embedding net, on the compiled-in device in f32.
///
/// # Errors
/// As [`Weights::read`] and [`model`].
pub fn load(path: impl AsRef<Path>, options: &Options) -> Result<Model> {
    model(&Weights::read(path, &backend::device())?, options)
}

/// Reads a flow and its embedding net, as sbi's `NFlowsFlow` or nflows' `Flow` keeps them, on the compiled-in
/// device in f32.
///
/// # Errors
/// As [`Weights::read`] and [`estimator`].
pub fn load_estimator(path: impl AsRef<Path>, options: &Options) -> Result<Estimator> {
    estimator(&Weights::read(path, &backend::device())?, options)
}

/// The flow of a state dict that has no embedding net.
///
/// # Errors
/// [`FlowError::Record`](crate::FlowError::Record) if tensors are missing, superfluous, of another shape or
/// not finite, which lists all of them, or if a layer is none of those that are known.
pub fn model(weights: &Weights, options: &Options) -> Result<Model> {
    let weights = weights.state_dict(NAME, MARKER)?;
    let mut io = Exchange::reading(&weights);
    let parts = read(&mut io, &weights, options);
    io.check(NAME)?;
    parts?.into_model()
}

/// The flow of a state dict and its embedding net: a standardization, and linear layers with an activation
/// between, or either.
///
/// # Errors
/// As [`model`], or if the flow takes no context.
pub fn estimator(weights: &Weights, options: &Options) -> Result<Estimator> {
    let weights = weights.state_dict(NAME, MARKER)?;
    let mut io = Exchange::reading(&weights);
    let parts = read(&mut io, &weights, options);
    let context = sizes(&weights).1;
    let activation = (options.embedding_activation, options.embedding_ends_activated);
    let net = io.under(EMBEDDING, |io| embedding(io, context, activation, None));
    io.check(NAME)?;
    if context == 0 {
        let advice = "read it with nflows::model";
        return Err(weights.error("a flow that takes no context", advice));
    }
    Ok(Embedded::new(net, parts?.into_model()?))
}

/// The state dict of a flow, which `Flow.load_state_dict` takes.
///
/// # Errors
/// [`FlowError::Invalid`](crate::FlowError::Invalid) if [`model`] would not read it back as it is, with the same
/// options: if it has a setting that the library does not have.
pub fn weights(model: &Model, options: &Options) -> Result<Weights> {
    let mut io = Exchange::writing(model);
    write(&mut io, model);
    that_read_back(NAME, model, io.into_weights(), |weights| self::model(weights, options))
}

/// The state dict of a flow and its embedding net, which nflows' `Flow.load_state_dict` takes; with
/// [`below`](Weights::below) `"net"` the one of sbi's `NFlowsFlow`.
///
/// # Errors
/// As [`weights`].
pub fn estimator_weights(estimator: &Estimator, options: &Options) -> Result<Weights> {
    let mut io = Exchange::writing(&estimator.model);
    write(&mut io, &estimator.model);
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

/// Writes the state dict of a density estimator as sbi's `NFlowsFlow` keeps it; see [`save`].
///
/// # Errors
/// As [`weights`] and [`Weights::write`].
pub fn save_estimator(
    estimator: &Estimator,
    path: impl AsRef<Path>,
    options: &Options,
) -> Result<()> {
    estimator_weights(estimator, options)?.below("net").write(path)
}

/// Layers, each made or not, and the base.
struct Parts {
    layers: Vec<Result<Layer>>,
    base: Base,
    features: usize,
}

impl Parts {
    fn into_model(self) -> Result<Model> {
        let layers = self.layers.into_iter().collect::<Result<Vec<_>>>()?;
        FlowStack::single(layers, self.base, &[self.features])
    }
}

/// Features of the data and of the context that the nets see.
fn sizes(weights: &Weights) -> (usize, usize) {
    let (mut features, mut context) = (0, 0);
    let transforms = weights.under(MARKER);
    for index in transforms.indices() {
        let layer = transforms.under(index.to_string());
        let layer = if layer.has("_transform") { layer.under("_transform") } else { layer };
        let net = layer.under("autoregressive_net");
        let kept = layer.size("identity_features", 0);
        let of_coupling = kept + layer.size("transform_features", 0);
        let beside = layer.size("transform_net.initial_layer.weight", 1).saturating_sub(kept);
        let found = [
            of_coupling,
            net.size("initial_layer.weight", 1),
            layer.size("_permutation", 0),
            layer.size("unconstrained_upper_diag", 0),
            layer.size("_scale", 0),
        ];
        features = features.max(found.into_iter().max().unwrap_or(0));
        context = context
            .max(net.size("context_layer.weight", 1))
            .max(if of_coupling > 0 { beside } else { 0 })
            .max(layer.size("transform_net.spline_predictor.0.weight", 1));
    }
    (features, context)
}

fn read(io: &mut Exchange, weights: &Weights, options: &Options) -> Result<Parts> {
    let (features, context) = sizes(weights);
    let count = weights.under(MARKER).indices().len();
    let common = options.common(features, context);
    let layers = (0..count)
        .map(|index| io.under(format!("{MARKER}.{index}"), |io| layer(io, &common, None)));
    let layers = layers.collect();
    Ok(Parts { layers, base: base(io, features, None), features })
}

fn write(io: &mut Exchange, model: &Model) {
    let [features]: [usize; 1] = model.sample_shape().try_into().expect("a model of vectors");
    let context = model.levels[0].iter().map(Layer::context_width).max().unwrap_or(0);
    let common = Options::default().common(features, context);
    for (index, own) in model.levels[0].iter().enumerate() {
        let written = io.under(format!("{MARKER}.{index}"), |io| layer(io, &common, Some(own)));
        written.expect("a layer that exists can be written");
    }
    base(io, features, Some(&model.prior));
}

fn base(io: &mut Exchange, features: usize, ours: Option<&Base>) -> Base {
    let own = match ours {
        Some(Base::Diagonal(own)) => Some(own),
        Some(Base::Standard(own)) => return Base::Standard(own.clone()),
        None if !io.has("_distribution.mean_") => return Base::Standard(StandardNormal::new()),
        None => None,
    };
    let shape = [1, features];
    let part = |io: &mut Exchange, name: &str, own| io.param(name, &shape, Rows::same(), own);
    io.under("_distribution", |io| {
        Base::Diagonal(DiagonalNormal {
            mean: part(io, "mean_", own.map(|own| &own.mean)),
            log_std: part(io, "log_std_", own.map(|own| &own.log_std)),
        })
    })
}

/// Any of the transforms.
fn layer(io: &mut Exchange, common: &Common, ours: Option<&Layer>) -> Result<Layer> {
    let is = |name: &str, io: &Exchange| ours.is_none() && io.has(name);
    match ours {
        Some(Layer::Standardize(own)) => {
            standardize(io, ["_scale", "_shift"], common.features, Some(own))?;
        }
        Some(Layer::Permutation(own)) => {
            permutation(io, "_permutation", common.features, Some(own))?;
        }
        Some(Layer::Linear(own)) => {
            lu_linear(io, common.features, Some(own))?;
        }
        Some(Layer::PermutedLinear((order, own))) => {
            permutation(io, "_permutation", common.features, Some(order))?;
            lu_linear(io, common.features, Some(own))?;
        }
        Some(Layer::AffineCoupling(_) | Layer::SplineCoupling(_) | Layer::SplineOfContext(_)) => {
            coupling(io, common, &COUPLINGS, ours)?;
        }
        Some(Layer::Affine(_) | Layer::Spline(_)) => {
            autoregressive(io, common, &MADE, ours)?;
        }
        Some(Layer::InverseAffine(_) | Layer::InverseSpline(_)) => {
            io.under("_transform", |io| autoregressive(io, common, &MADE, ours))?;
        }
        None => {}
    }
    if let Some(own) = ours {
        return Ok(own.clone());
    }
    if is("_scale", io) {
        let names = ["_scale", "_shift"];
        return standardize(io, names, common.features, None).map(Layer::Standardize);
    }
    if is("_permutation", io) {
        return permutation(io, "_permutation", common.features, None).map(Layer::Permutation);
    }
    if is("unconstrained_upper_diag", io) {
        return lu_linear(io, common.features, None).map(Layer::Linear);
    }
    if is("transform_features", io) {
        return coupling(io, common, &COUPLINGS, None);
    }
    if is("autoregressive_net", io) {
        return autoregressive(io, common, &MADE, None);
    }
    if is("_transform.autoregressive_net", io) {
        return match io.under("_transform", |io| autoregressive(io, common, &MADE, None))? {
            Layer::Affine(own) => Ok(Layer::InverseAffine(Inverse::new(own))),
            Layer::Spline(own) => Ok(Layer::InverseSpline(Inverse::new(own))),
            other => Ok(other),
        };
    }
    Err(io.unfit("none of the layers that are known"))
}
