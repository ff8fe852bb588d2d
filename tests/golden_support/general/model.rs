//! What a flow of vectors, a base and an embedding compute, compared with a file.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};
use burn_flows::autoregressive::{Autoregressive, Made, MaskedNet};
use burn_flows::conditioner::{Activation, BlockNet, Mlp};
use burn_flows::context::{Given, WithContext};
use burn_flows::coupling::{
    Affine, ChannelSplines, Coupling, Elementwise, KeptPart, Mapped, RationalQuadratic,
};
use burn_flows::linear::{Householder, InvertibleConv1x1, Permutation, Shift};
use burn_flows::preprocess::{ByColumn, Standardize};
use burn_flows::prior::{
    ContextMixture, ContextNormal, DiagonalNormal, DiagonalStudentT, FullMixture, GaussianMixture,
    PerFeature, Prior, StandardNormal, Uniform,
};
use burn_flows::record::Setting;
use burn_flows::{Flow, FlowStack, Inverse};

use super::super::cases::text;
use super::super::traced::Reader;
use super::super::{Computed, INVERSE, values};

/// A layer of one of the libraries, or a part of it.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // a model has few of them
pub enum Layer {
    Permutation(Permutation),
    Linear(InvertibleConv1x1),
    Shift(Shift),
    Householder(Householder),
    ByColumn(ByColumn),
    AffineMlp(Coupling<WithContext<Mlp>, Affine>),
    AffineCoupling(Coupling<BlockNet, Affine>),
    SplineCoupling(Coupling<BlockNet, RationalQuadratic>),
    ChannelSplineCoupling(Coupling<BlockNet, ChannelSplines>),
    KeptSplines(KeptPart<Elementwise<RationalQuadratic>>),
    KeptChannelSplines(KeptPart<Elementwise<ChannelSplines>>),
    AffineMade(Autoregressive<Affine, Made>),
    SplineMade(Autoregressive<RationalQuadratic, Made>),
    CircleMade(Autoregressive<Mapped<RationalQuadratic>, Made>),
    AffineMasked(Autoregressive<Affine, MaskedNet>),
    SplineMasked(Autoregressive<RationalQuadratic, MaskedNet>),
    ChannelSplineMasked(Autoregressive<ChannelSplines, MaskedNet>),
    CircleMasked(Autoregressive<Mapped<RationalQuadratic>, MaskedNet>),
}

/// A layer in one of its two directions.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // a model has few of them
pub enum Step {
    Forward(Layer),
    Inverse(Inverse<Layer>),
}

impl Step {
    /// Layers in their order, each as it is.
    pub fn all(layers: Vec<Layer>) -> Vec<Self> {
        layers.into_iter().map(Self::Forward).collect()
    }

    /// The steps in reverse, each turned around.
    pub fn inverted(steps: Vec<Self>) -> Vec<Self> {
        let turned = steps.into_iter().rev().map(|step| match step {
            Self::Forward(layer) => Self::Inverse(Inverse::new(layer)),
            Self::Inverse(inverse) => Self::Forward(inverse.flow),
        });
        turned.collect()
    }
}

/// The density of the latent.
#[derive(Module, Debug, Prior)]
#[allow(clippy::large_enum_variant)] // a model has one of them
pub enum Base {
    Standard(StandardNormal),
    Diagonal(DiagonalNormal<2>),
    StudentT(DiagonalStudentT),
    Uniform(Uniform),
    PerFeature(PerFeature),
    Context(ContextNormal<BlockNet>),
    Mixture(GaussianMixture),
    Full(FullMixture),
    ContextMixture(ContextMixture<BlockNet>),
}

/// A part of a net that makes contexts.
#[derive(Module, Debug)]
pub enum EmbeddingLayer {
    Linear(Linear),
    Activation(Setting<Activation>),
    Standardize(Standardize),
}

impl EmbeddingLayer {
    fn forward(&self, h: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Linear(linear) => linear.forward(h),
            Self::Activation(activation) => activation.of(h),
            Self::Standardize(standardize) => standardize.forward(h).0,
        }
    }
}

/// All that a file describes.
pub struct Model {
    pub steps: Vec<Step>,
    pub base: Base,
    pub embedding: Vec<EmbeddingLayer>,
    /// What the inverse gives back, where it is not `x`.
    pub back: Option<Vec<f64>>,
}

impl Model {
    pub fn new(steps: Vec<Step>, base: Base) -> Self {
        Self { steps, base, embedding: Vec::new(), back: None }
    }
}

fn embed(embedding: &[EmbeddingLayer], context: Tensor<2>) -> Tensor<2> {
    embedding.iter().fold(context, |h, layer| layer.forward(h))
}

type Stack = FlowStack<2, Vec<Step>, Base>;

/// Everything that the file holds, as the model computes it.
pub fn compute(reader: &Reader<'_>, model: Model) -> Result<Computed, String> {
    let golden = reader.golden;
    let x: Tensor<2> = golden.tensor("x")?;
    let features = x.dims()[1];
    let Model { steps, base, embedding, back: expected_back } = model;
    let stack: Stack = FlowStack::single(steps, base, &[features]).map_err(text)?;
    let context = golden.array("context").is_ok().then(|| golden.tensor::<2>("context"));
    let context = context.transpose()?;
    let mut computed = Computed::default();
    let given = match &context {
        Some(context) => {
            let first = embed(&embedding, context.clone().narrow(0, 0, 1));
            let first = stack.given(&first).map_err(text)?;
            computed.set("log_prob_context_0", first.log_prob(x.clone()));
            stack.given(&embed(&embedding, context.clone())).map_err(text)?
        }
        None => stack.clone(),
    };
    if golden.array("z").is_ok() {
        let (z, log_det) = given.forward(x.clone());
        computed.set("log_det_jacobian_0", log_det.clone().narrow(0, 0, 1));
        computed.set("log_det", log_det);
        // From the file's own latents: rounding z alone would move x by more than f32 has to lose
        // where a map is flat, so there it is z that has to be met again.
        let again = given.forward(given.inverse(golden.tensor("z")?)).0;
        computed.compare("z again", values(again), golden.array("z")?.values().to_vec());
        if golden.weights.dtype() == DType::F64 {
            let back = values(given.inverse(z.clone()));
            let expected = expected_back.unwrap_or(golden.array("x")?.values().to_vec());
            computed.compare(INVERSE, back, expected);
        }
        computed.set("z", z);
    }
    computed.set("log_prob", given.log_prob(x.clone()));
    if golden.array("loss").is_ok() || golden.array("grad_x").is_ok() {
        gradients(reader, &stack, &embedding, x, context, &mut computed)?;
    }
    Ok(computed)
}

/// The gradients of the log-densities by samples and contexts, and of the loss by the parameters.
fn gradients(
    reader: &Reader<'_>,
    stack: &Stack,
    embedding: &[EmbeddingLayer],
    x: Tensor<2>,
    context: Option<Tensor<2>>,
    computed: &mut Computed,
) -> Result<(), String> {
    let batch = x.dims()[0] as f64;
    let leaf = |tensor: Tensor<2>| Tensor::from_inner(tensor).require_grad();
    let (x, context) = (leaf(x), context.map(leaf));
    let embedding: Vec<EmbeddingLayer> = embedding.to_vec().train();
    let mut model = stack.clone().train();
    if let Some(context) = &context {
        model = model.given(&embed(&embedding, context.clone())).map_err(text)?;
    }
    let log_prob = model.log_prob(x.clone());
    computed.set("loss", log_prob.clone().inner().mean().neg());
    let mut graph = log_prob.sum().backward();
    computed.set("grad_x", x.grad_remove(&mut graph).ok_or("no gradient by x")?);
    if let Some(context) = context {
        let gradient = context.grad_remove(&mut graph).ok_or("no gradient by context")?;
        computed.set("grad_context", gradient);
    }
    let mut sums = reader.no_gradients();
    reader.add_gradients(&model, &GradientsParams::from_module(&mut graph, &model), &mut sums);
    let of_embedding = GradientsParams::from_module(&mut graph, &embedding);
    reader.add_gradients(&embedding, &of_embedding, &mut sums);
    sums.iter_mut().for_each(|sum| *sum /= -batch);
    let params = reader.golden.params();
    for name in params.names() {
        let gradient = reader.of_param(name, &sums).ok_or("a parameter without a place")?;
        computed.values.insert(format!("grad.{name}"), gradient);
    }
    Ok(())
}

/// A parameter that is not trained.
pub fn frozen<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_tensor(tensor).set_require_grad(false)
}
