//! Spline flows and masked autoregressive flows of vectors.

use std::path::Path;

use burn::module::Module;

use super::super::Weights;
use super::super::exchange::{Exchange, that_read_back};
use super::super::vectors::{
    Common, Couplings, Made, SplineOptions, VectorLayer, autoregressive, coupling, lu_linear,
    permutation,
};
use super::act_norm::act_norm_table;
use super::bases::{class_gaussian_table, conditional_table, diag_gaussian_table, mixture_table};
use crate::conditioner::{Activation, ContextEntry, Mlp};
use crate::coupling::ScaleMap;
#[cfg(doc)]
use crate::error::FlowError;
use crate::error::Result;
use crate::inverse::Inverse;
use crate::norm::ActNorm;
use crate::prior::{ContextNormal, DiagonalNormal, GaussianMixture, Prior};
use crate::stack::FlowStack;
use crate::{Flow, backend};

/// A flow of a model of splines.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // a handful of them exist in a model
pub enum SplineStep {
    /// `CoupledRationalQuadraticSpline`, `AutoregressiveRationalQuadraticSpline`, `LULinearPermute` or
    /// `MaskedAffineAutoregressive`.
    Layer(VectorLayer),
    /// `ActNorm`.
    Norm(ActNorm),
}

/// A base distribution of vectors.
#[derive(Module, Debug, Prior)]
#[allow(clippy::large_enum_variant)] // a model has one of them
pub enum Base {
    /// `DiagGaussian`.
    Diagonal(DiagonalNormal<2>),
    /// `GaussianMixture`.
    Mixture(GaussianMixture),
    /// `ConditionalDiagGaussian` with one linear layer as its encoder.
    Conditional(ContextNormal<Mlp>),
    /// `ClassCondDiagGaussian`, the class being the context.
    Classes(ContextNormal<Mlp>),
}

/// `NormalizingFlow`, `ConditionalNormalizingFlow` or `ClassCondFlow` of vectors.
pub type SplineModel = FlowStack<2, Vec<SplineStep>, Base>;

/// How a spline flow was built, as far as its tensors do not tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SplineFlowOptions {
    /// `activation` of all nets.
    pub activation: Activation,
    /// The splines' interval and least sizes.
    pub splines: SplineOptions,
}

impl Default for SplineFlowOptions {
    /// normflows' own defaults: ReLU, and splines from -3 to 3.
    fn default() -> Self {
        Self { activation: Activation::Relu, splines: SplineOptions::reaching(3.0) }
    }
}

const NAME: &str = "a NormalizingFlow of splines of normflows";

/// What every such model has.
const FLOWS: &str = "flows";

const MADE: Made = Made {
    first_entry: ContextEntry::Added,
    entry: ContextEntry::Gated,
    has_first_activation: false,
    scale_map: ScaleMap::FlooredSigmoid { floor: 1e-3 },
};

/// There are no affine ones among its couplings of this kind.
const COUPLINGS: Couplings = Couplings { scale_map: ScaleMap::FlooredSigmoid { floor: 1e-3 } };

/// Reads a spline flow with normflows' default options, on the compiled-in device in f32; for others see
/// [`spline_flow`].
///
/// # Errors
/// As [`Weights::read`] and [`spline_flow`].
pub fn load_spline_flow(path: impl AsRef<Path>) -> Result<SplineModel> {
    spline_flow(&Weights::read(path, &backend::device())?, &SplineFlowOptions::default())
}

/// `NormalizingFlow`, `ConditionalNormalizingFlow` or `ClassCondFlow` of vectors, the flows being
/// `CoupledRationalQuadraticSpline`, `AutoregressiveRationalQuadraticSpline`, `MaskedAffineAutoregressive`,
/// `LULinearPermute` and `ActNorm` in any order; those on a circle are not known.
///
/// # Errors
/// [`FlowError::Record`] if tensors are missing, superfluous, of another shape or not finite, which lists
/// all of them, or if a flow is none of those that are known.
pub fn spline_flow(weights: &Weights, options: &SplineFlowOptions) -> Result<SplineModel> {
    let weights = weights.state_dict(NAME, FLOWS)?;
    let (features, context) = sizes(&weights);
    let count = weights.under(FLOWS).indices().last().map_or(0, |last| last + 1);
    if count > MOST_FLOWS {
        return Err(weights.error(format!("{count} flows"), "give a model of fewer"));
    }
    let common = common(features, context, options);
    let mut io = Exchange::reading(&weights);
    let steps: Vec<Result<SplineStep>> = (0..count)
        .rev()
        .map(|index| io.under(format!("{FLOWS}.{index}"), |io| step(io, &common, None)))
        .collect();
    let base = io.under("q0", |io| base(io, &common, None));
    io.check(NAME)?;
    FlowStack::single(steps.into_iter().collect::<Result<_>>()?, base, &[features])
}

/// No model has as many; numbers of flows say how many there are.
const MOST_FLOWS: usize = 1 << 16;

/// The state dict of a model that [`spline_flow`] made, which the `load_state_dict` of its class takes.
///
/// # Errors
/// [`FlowError::Invalid`] if [`spline_flow`] would not read it back as it is, with the same options.
pub fn spline_flow_weights(model: &SplineModel, options: &SplineFlowOptions) -> Result<Weights> {
    let [features]: [usize; 1] = model.sample_shape().try_into().expect("a model of vectors");
    let steps = &model.levels[0];
    let of_flows = steps.iter().map(|step| match step {
        SplineStep::Layer(layer) => layer.context_width(),
        SplineStep::Norm(_) => 0,
    });
    let of_base = match &model.prior {
        Base::Conditional(own) => own.context.width(),
        _ => 0,
    };
    let context = of_flows.max().unwrap_or(0).max(of_base);
    let common = common(features, context, &SplineFlowOptions::default());
    let mut io = Exchange::writing(model);
    for (index, own) in steps.iter().rev().enumerate() {
        let written = io.under(format!("{FLOWS}.{index}"), |io| step(io, &common, Some(own)));
        written.expect("a flow that exists can be written");
    }
    io.under("q0", |io| base(io, &common, Some(&model.prior)));
    that_read_back(NAME, model, io.into_weights(), |weights| spline_flow(weights, options))
}

/// Writes the state dict of a spline flow: a file for `torch.load` where the name ends in `.pt` or `.pth`,
/// else safetensors.
///
/// # Errors
/// As [`spline_flow_weights`] and [`Weights::write`].
pub fn save_spline_flow(
    model: &SplineModel,
    path: impl AsRef<Path>,
    options: &SplineFlowOptions,
) -> Result<()> {
    spline_flow_weights(model, options)?.write(path)
}

fn common(features: usize, context: usize, options: &SplineFlowOptions) -> Common {
    Common {
        features,
        context,
        coupling_activation: options.activation,
        masked_activation: options.activation,
        splines: options.splines,
    }
}

/// Features of the data and of the context that nets and base see.
fn sizes(weights: &Weights) -> (usize, usize) {
    let (mut features, mut context) = (0, 0);
    let flows = weights.under(FLOWS);
    for index in flows.indices() {
        let flow = flows.under(index.to_string());
        let coupling = flow.under("prqct");
        let kept = coupling.size("identity_features", 0);
        let of_coupling = kept + coupling.size("transform_features", 0);
        let beside = coupling.size("transform_net.initial_layer.weight", 1).saturating_sub(kept);
        for place in ["autoregressive_net", "mprqat.autoregressive_net"] {
            features = features.max(flow.size(&format!("{place}.initial_layer.weight"), 1));
            context = context.max(flow.size(&format!("{place}.context_layer.weight"), 1));
        }
        features = features
            .max(of_coupling)
            .max(flow.size("permutation._permutation", 0))
            .max(if flow.has("t") { flow.size("s", 1) } else { 0 });
        context = context.max(if of_coupling > 0 { beside } else { 0 });
    }
    (features, context.max(weights.size("q0.context_encoder.weight", 1)))
}

fn base(io: &mut Exchange, common: &Common, ours: Option<&Base>) -> Base {
    let features = common.features;
    match ours {
        Some(Base::Diagonal(own)) => {
            Base::Diagonal(diag_gaussian_table(io, &[1, features], Some(own)))
        }
        Some(Base::Mixture(own)) => Base::Mixture(mixture_table(io, features, Some(own))),
        Some(Base::Conditional(own)) => {
            Base::Conditional(conditional_table(io, [features, common.context], Some(own)))
        }
        Some(Base::Classes(own)) => Base::Classes(class_gaussian_table(io, features, Some(own))),
        None if io.has("context_encoder") => {
            Base::Conditional(conditional_table(io, [features, common.context], None))
        }
        None if io.has("weight_scores") => Base::Mixture(mixture_table(io, features, None)),
        None if io.size("loc", 0) == features && features > 1 => {
            Base::Classes(class_gaussian_table(io, features, None))
        }
        None => Base::Diagonal(diag_gaussian_table(io, &[1, features], None)),
    }
}

fn step(io: &mut Exchange, common: &Common, ours: Option<&SplineStep>) -> Result<SplineStep> {
    let own = match ours {
        Some(SplineStep::Norm(own)) => {
            return Ok(SplineStep::Norm(act_norm_table(io, &[1, common.features], Some(own))));
        }
        Some(SplineStep::Layer(own)) => Some(own),
        None if io.has("s") && io.has("t") => {
            return Ok(SplineStep::Norm(act_norm_table(io, &[1, common.features], None)));
        }
        None => None,
    };
    layer(io, common, own).map(SplineStep::Layer)
}

fn layer(io: &mut Exchange, common: &Common, ours: Option<&VectorLayer>) -> Result<VectorLayer> {
    let is_permuted = matches!(ours, Some(VectorLayer::PermutedLinear(_)));
    if is_permuted || ours.is_none() && io.has("permutation._permutation") {
        let (order, linear) = match ours {
            Some(VectorLayer::PermutedLinear((order, linear))) => (Some(order), Some(linear)),
            _ => (None, None),
        };
        let name = "permutation._permutation";
        let order = permutation(io, name, common.features, order);
        let linear = io.under("linear", |io| lu_linear(io, common.features, linear));
        return Ok(VectorLayer::PermutedLinear((order?, linear?)));
    }
    let is_affine = matches!(ours, Some(VectorLayer::InverseAffine(_)));
    if is_affine || ours.is_none() && io.has("autoregressive_net") {
        // Its one pass is from the latent to the data.
        return match autoregressive(io, common, &MADE, ours)? {
            VectorLayer::Affine(own) => Ok(VectorLayer::InverseAffine(Inverse::new(own))),
            other if is_affine => Ok(other),
            _ => Err(io.unfit("more numbers than an affine map has")),
        };
    }
    let is_spline = matches!(ours, Some(VectorLayer::Spline(_)));
    if is_spline || ours.is_none() && io.has("mprqat") {
        return io.under("mprqat", |io| autoregressive(io, common, &MADE, ours));
    }
    if ours.is_some() || io.has("prqct") {
        return io.under("prqct", |io| coupling(io, common, &COUPLINGS, ours));
    }
    Err(io.unfit("none of the flows that are known"))
}
