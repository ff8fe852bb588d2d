//! For each class of golden file the model that its metadata describe.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};
use burn_flows::context::{Given, gradient};
use burn_flows::coupling::{Mask, Parity};
use burn_flows::norm::{ActNorm, BatchNorm, Moments};
use burn_flows::preprocess::{Logit, LogitForm};
use burn_flows::prior::{Prior, SplitPrior, StandardNormal};
use burn_flows::reshape::Squeeze;
use burn_flows::weights::normflows::{
    self, CouplingScale, GlowBlockOptions, InitDirection, MaskedScale, RealNvpOptions, SplitMode,
};
use burn_flows::weights::{Weights, chrischute, rosinality, torch, y0ast};
use burn_flows::{Flow, FlowError, FlowStack, Pass};

use super::{
    Computed, Golden, INVERSE, cast, class_conditional, general, values, variational, vectors,
};

/// Builds the model of a file and computes all that the file holds.
pub fn compute(golden: &Golden) -> Result<Computed, String> {
    let class = golden.meta("class");
    let params = golden.params();
    if let Some(computed) = class_conditional::case(golden) {
        return computed;
    }
    match class {
        "flows.ActNorm" => by_rank(golden, act_norm::<2>, act_norm::<4>),
        "flows.Invertible1x1Conv" => layer::<4>(golden, normflows::conv1x1(&params)),
        "flows.Squeeze" => layer::<4>(golden, Ok(Squeeze::new())),
        "flows.GlowBlock" => {
            layer::<4>(golden, normflows::glow_block(&params, glow_options(golden)?))
        }
        "Nice" => stack(golden, torch::nice(&params), in_order),
        "Chain of Checkerboard" => {
            let layers = params.under("layers");
            let steps = layers.indices().into_iter().map(|k| checkerboard(&layers, k));
            let steps = steps.collect::<Result<Vec<_>, _>>();
            image_stack(golden, steps)
        }
        "Squeeze, then chain of ChannelMask" => {
            let layers = params.under("layers");
            // Layer 0 is the squeeze, which has no parameters.
            let steps = layers.indices().into_iter().map(|k| channel(&layers, k, k - 1));
            let steps = steps.collect::<Result<Vec<_>, _>>();
            image_stack(golden, steps.map(|steps| (Squeeze::new(), steps)))
        }
        "BatchNormFlow" => by_rank(golden, batch_norm::<2>, batch_norm::<4>),
        "Logit" => logit(golden),
        "RealNvpSmall" => real_nvp_small(golden),
        "models.RealNVP, eval mode" => chrischute_model(golden),
        "model.Glow" if golden.meta("source").starts_with("rosinality") => {
            let [_, height, width] = golden.sizes("shape")?;
            let model = rosinality::model(&params, [height, width]);
            written_back(golden, &params, model.as_ref().map(rosinality::weights))?;
            stack(golden, model, in_order)
        }
        "model.Glow" if golden.meta("source").starts_with("y0ast") => {
            let model = y0ast::model(&params, &mixing(golden)?);
            written_back(golden, &params, model.as_ref().map(y0ast::weights))?;
            stack(golden, model, in_order)
        }
        _ if class.starts_with("NormalizingFlow(DiagGaussian, [MaskedAffineFlow]") => {
            masked_affine(golden)
        }
        _ if class.starts_with("NormalizingFlow(DiagGaussian, [AffineCouplingBlock") => {
            coupling(golden)
        }
        _ if class.starts_with("MultiscaleFlow of GlowBlock") => multiscale(golden),
        _ if class.starts_with(vectors::CLASS) => vectors::case(golden),
        _ => variational::case(golden)
            .or_else(|| general::case(golden))
            .unwrap_or_else(|| Err(format!("unknown class {class:?}"))),
    }
}

/// The tensors that a model gives are those it was made of, to the last bit.
pub fn written_back(
    golden: &Golden,
    params: &Weights,
    written: Result<Result<Weights, FlowError>, &FlowError>,
) -> Result<(), String> {
    let written = match written {
        Ok(written) => written.map_err(text)?,
        // What is wrong is said when the model is used.
        Err(_) => return Ok(()),
    };
    let names: Vec<&str> = params.names().collect();
    if written.names().collect::<Vec<_>>() != names {
        return Err("the tensors that are written have other names".into());
    }
    for name in
        names.into_iter().filter(|name| !WITHOUT_MEANING.iter().any(|end| name.ends_with(end)))
    {
        let (before, after) =
            (params.array(name).map_err(text)?, written.array(name).map_err(text)?);
        let rounded = before.map(|value| match golden.weights.dtype() {
            DType::F32 => f64::from(value as f32),
            _ => value,
        });
        if rounded != after {
            return Err(format!("{name} is not written as it was read"));
        }
    }
    Ok(())
}

/// Tensors that are written with values of our own: counters, parts of a product of which only the product
/// counts, and of what a mask is made.
const WITHOUT_MEANING: [&str; 6] = [
    "num_batches_tracked",
    "rescale.weight_v",
    "rescale.weight_g",
    "data_dep_init_done",
    "_logs",
    "degrees",
];

/// What mixes the channels of a y0ast model.
fn mixing(golden: &Golden) -> Result<y0ast::Mixing, String> {
    match golden.text("flow_permutation")?.as_str() {
        "invconv" => Ok(y0ast::Mixing::Conv1x1),
        "reverse" => Ok(y0ast::Mixing::Reverse),
        "shuffle" => {
            let orders = serde_json::from_value(golden.hyper("indices")?);
            Ok(y0ast::Mixing::Shuffle(orders.map_err(|error| error.to_string())?))
        }
        other => Err(format!("unknown flow_permutation {other:?}")),
    }
}

/// chrischute's latent is one tensor in the shape of the image.
fn chrischute_model(golden: &Golden) -> Result<Computed, String> {
    let params = golden.params();
    let [_, height, width] = golden.sizes("shape")?;
    let model = chrischute::model(&params, [height, width]);
    written_back(golden, &params, model.as_ref().map(chrischute::weights))?;
    let model = model.map_err(text)?;
    let (latents, _) = model.encode(golden.tensor("x")?);
    let mut parts = latents.into_parts();
    let mut z = parts.pop().ok_or("a model without a latent")?;
    while let Some(part) = parts.pop() {
        let order = model.levels[parts.len()].4.as_ref().ok_or("a split without an order")?;
        let joined = order.inverse(Tensor::cat(vec![z, part], 1));
        z = Squeeze::new().inverse(joined);
    }
    let mut computed = stack(golden, Ok(model), in_order)?;
    computed.set("z", z);
    Ok(computed)
}

type Case = fn(&Golden) -> Result<Computed, String>;

fn by_rank(golden: &Golden, vectors: Case, images: Case) -> Result<Computed, String> {
    match golden.rank()? {
        2 => vectors(golden),
        4 => images(golden),
        rank => Err(format!("x has rank {rank}")),
    }
}

pub fn text(error: FlowError) -> String {
    error.to_string()
}

/// A flow without prior.
pub fn layer<const D: usize>(
    golden: &Golden,
    flow: Result<impl Flow<D>, FlowError>,
) -> Result<Computed, String> {
    let flow = flow.map_err(text)?;
    let (z, log_det) = flow.forward(golden.tensor("x")?);
    layer_outputs(golden, z.clone(), log_det, flow.inverse(z))
}

fn layer_outputs<const D: usize>(
    golden: &Golden,
    z: Tensor<D>,
    log_det: Tensor<1>,
    back: Tensor<D>,
) -> Result<Computed, String> {
    let mut computed = Computed::default();
    computed.set("z", z);
    computed.set("log_det_jacobian_0", log_det.clone().narrow(0, 0, 1));
    computed.set("log_det", log_det);
    computed.compare(INVERSE, values(back), golden.array("x")?.values().to_vec());
    Ok(computed)
}

/// The parts of the latent in the order of the file.
pub type Order<const D: usize> = fn(Vec<Tensor<D>>) -> Vec<Tensor<D>>;

pub fn in_order<const D: usize>(parts: Vec<Tensor<D>>) -> Vec<Tensor<D>> {
    parts
}

/// A model with a prior.
pub fn stack<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>>(
    golden: &Golden,
    stack: Result<FlowStack<D, F, P, S>, FlowError>,
    order: Order<D>,
) -> Result<Computed, String>
where
    FlowStack<D, F, P, S>: Module,
{
    let mut stack = stack.map_err(text)?;
    let x: Tensor<D> = golden.tensor("x")?;
    let mut computed = Computed::default();
    if golden.array("context").is_ok() {
        let context: Tensor<2> = golden.tensor("context")?;
        let first = stack.given(&context.clone().narrow(0, 0, 1)).map_err(text)?;
        computed.set("log_prob_context_0", first.log_prob(x.clone()));
        stack = stack.given(&context).map_err(text)?;
        // What the file has of gradients is of those by samples and contexts.
        let (x, training) = (Tensor::from_inner(x.clone()).require_grad(), stack.clone().train());
        let mut graph = training.log_prob(x.clone()).sum().backward();
        computed.set("grad_x", x.grad_remove(&mut graph).ok_or("no gradient by x")?);
        let grads = GradientsParams::from_grads(graph, &training);
        let by_context = gradient::<2, _>(&training, &grads).ok_or("no gradient by context")?;
        computed.set("grad_context", by_context);
    }
    let (latents, log_det) = stack.encode(x.clone());
    let back = stack.decode(latents.clone());
    let parts = order(latents.into_parts());
    let single = parts.len() == 1;
    for (index, part) in parts.into_iter().enumerate() {
        computed.set(&if single { "z".into() } else { format!("z.{index}") }, part);
    }
    computed.set("log_det_jacobian_0", log_det.clone().narrow(0, 0, 1));
    let log_prob = stack.log_prob(x.clone());
    computed.set("log_p", log_prob.clone() - log_det.clone());
    computed.set("log_det_library", log_det.clone());
    computed.set("log_det", log_det);
    computed.set("log_prob", log_prob);
    computed.set("bits_per_dim", stack.bits_per_dim(x.clone(), 1));
    let with_256_levels = stack.bits_per_dim(x, 256);
    computed.set("library_bpd", with_256_levels.clone());
    computed.set("bits_per_dim_8bit", with_256_levels);
    computed.compare(INVERSE, values(back), golden.array("x")?.values().to_vec());
    Ok(computed)
}

/// A flow of images under a standard normal.
fn image_stack<F: Flow<4>>(golden: &Golden, flow: Result<F, FlowError>) -> Result<Computed, String>
where
    FlowStack<4, F>: Module,
{
    let flow = flow.map_err(text)?;
    let shape = golden.array("x")?.shape()[1..].to_vec();
    let model: Result<FlowStack<4, F>, _> = FlowStack::single(flow, StandardNormal::new(), &shape);
    stack(golden, model, in_order)
}

fn act_norm<const D: usize>(golden: &Golden) -> Result<Computed, String> {
    let params = golden.params();
    let mut computed = layer::<D>(golden, normflows::act_norm(&params))?;
    let (s, t) = (golden.array("param.s")?, golden.array("param.t")?);
    let direction = match golden.text("init_direction")?.as_str() {
        "inverse" => InitDirection::Inverse,
        "forward" => InitDirection::Forward,
        other => return Err(format!("unknown init_direction {other:?}")),
    };
    let batch: Tensor<D> = golden.tensor("init_batch")?;
    let dims = batch.dims();
    let count = dims.iter().product::<usize>() / dims[1];
    let fresh = ActNorm::new(dims[1], golden.weights.device()).map_err(text)?;
    let (norm, _) = cast(fresh, golden.weights.dtype()).initialize(batch);
    let (got_s, got_t) = normflows::act_norm_initialization(&norm, count, direction);
    computed.compare("init s", got_s, s.values().to_vec());
    computed.compare("init t", got_t, t.values().to_vec());
    Ok(computed)
}

fn coupling_scale(golden: &Golden) -> Result<CouplingScale, String> {
    // Where it is not stated there is one, of the map that is.
    if golden.hyper("scale").is_ok() && !golden.flag("scale")? {
        return Ok(CouplingScale::None);
    }
    match golden.text("scale_map")?.as_str() {
        "exp" => Ok(CouplingScale::Exp),
        "sigmoid" => Ok(CouplingScale::Sigmoid),
        "sigmoid_inv" => Ok(CouplingScale::SigmoidInv),
        other => Err(format!("unknown scale_map {other:?}")),
    }
}

fn split_mode(mode: &str) -> Result<SplitMode, String> {
    match mode {
        "channel" => Ok(SplitMode::Channel),
        "channel_inv" => Ok(SplitMode::ChannelInv),
        other => Err(format!("unknown split mode {other:?}")),
    }
}

fn masked_affine(golden: &Golden) -> Result<Computed, String> {
    let scale = match golden.hyper("s_output_fn")?.as_str() {
        None => MaskedScale::Linear,
        Some("tanh") => MaskedScale::Tanh,
        Some(other) => return Err(format!("unknown s_output_fn {other:?}")),
    };
    let (params, options) =
        (golden.params(), RealNvpOptions { masked: scale, ..RealNvpOptions::default() });
    let model = normflows::real_nvp(&params, &options);
    written_back(golden, &params, model.as_ref().map(normflows::real_nvp_weights))?;
    stack(golden, model, in_order)
}

fn coupling(golden: &Golden) -> Result<Computed, String> {
    let modes = golden.hyper("split_modes")?;
    let modes = modes.as_array().ok_or("split_modes is not a list")?;
    let splits = modes
        .iter()
        .map(|mode| split_mode(mode.as_str().unwrap_or_default()))
        .collect::<Result<Vec<_>, _>>()?;
    let layers = golden.number("layers")? as usize;
    let scale = coupling_scale(golden)?;
    let params = golden.params();
    let model = normflows::coupling_model(&params, layers, scale, &splits);
    written_back(golden, &params, model.as_ref().map(normflows::real_nvp_weights))?;
    stack(golden, model, in_order)
}

pub fn glow_options(golden: &Golden) -> Result<GlowBlockOptions, String> {
    // Models of whole blocks leave these at normflows' defaults and do not state them.
    let split = golden.text("split_mode").unwrap_or("channel".into());
    Ok(GlowBlockOptions {
        scale: coupling_scale(golden)?,
        split: split_mode(&split)?,
        negative_slope: golden.number("leaky").unwrap_or(0.0),
    })
}

fn multiscale(golden: &Golden) -> Result<Computed, String> {
    // normflows' class has this alpha by default; the file states it in words alone.
    let transform = match golden.hyper("transform")?.as_str() {
        None => None,
        Some("logit") => Some(Logit::real_nvp()),
        Some(other) => return Err(format!("unknown transform {other:?}")),
    };
    let (options, shape) = (glow_options(golden)?, golden.sizes("shape")?);
    let params = golden.params();
    let model = normflows::multiscale(&params, options, transform, shape);
    // Of loc and loc_logs only the product is known.
    if golden.text("base")? == "diag" {
        written_back(golden, &params, model.as_ref().map(normflows::multiscale_weights))?;
    }
    stack(golden, model, normflows::multiscale_order)
}

type Step = burn_flows::models::RealNvpStep<burn_flows::conditioner::ConvNet>;

fn checkerboard(layers: &Weights, k: usize) -> Result<Step, FlowError> {
    let layer = layers.under(k.to_string());
    // The mask is 1 where x is kept; its first entry is the top left pixel.
    let parity = Parity::of(usize::from(layer.array("mask")?.values()[0] == 0.0));
    Ok((torch::real_nvp_coupling(&layer, Mask::Checkerboard(parity))?, None))
}

fn channel(layers: &Weights, k: usize, order: usize) -> Result<Step, FlowError> {
    let mask = Mask::ChannelHalves(Parity::of(order));
    Ok((torch::real_nvp_coupling(&layers.under(k.to_string()), mask)?, None))
}

fn real_nvp_small(golden: &Golden) -> Result<Computed, String> {
    let params = golden.params();
    let steps = |name: &str, step: fn(&Weights, usize) -> Result<Step, FlowError>| {
        let layers = params.under(name).under("layers");
        let steps = layers.indices().into_iter().map(|k| step(&layers, k));
        steps.collect::<Result<Vec<_>, _>>().map_err(text)
    };
    let alpha = golden.array("param.logit.alpha")?.values()[0];
    let logit = Logit::new(alpha, LogitForm::Code).map_err(text)?;
    let mut channels = steps("channel", |layers, k| channel(layers, k, k))?;
    // These are the layer's defaults in the script; the file does not state them.
    let norm = torch::batch_norm(&params.under("norm"), 0.1, 1e-4).map_err(text)?;
    channels.last_mut().ok_or("there are no channel couplings")?.1 = Some(norm);
    let levels = vec![
        (Some(logit), steps("checker", checkerboard)?, Some(Squeeze::new()), channels),
        (None, steps("last", checkerboard)?, None, Vec::new()),
    ];
    let shape: [usize; 3] = golden.sizes("shape")?;
    let normal = StandardNormal::new;
    stack(golden, FlowStack::new(levels, vec![normal()], normal(), &shape), in_order)
}

fn batch_norm<const D: usize>(golden: &Golden) -> Result<Computed, String> {
    let (momentum, epsilon) = (golden.number("momentum")?, golden.number("eps")?);
    let norm = torch::batch_norm(&golden.params(), momentum, epsilon).map_err(text)?;
    match golden.meta("mode") {
        "eval" => layer::<D>(golden, Ok(norm)),
        "train" => batch_norm_in_training::<D>(golden, norm, momentum, epsilon),
        other => Err(format!("unknown mode {other:?}")),
    }
}

/// Normalized by the moments of the batch itself; then two updates of the running moments.
fn batch_norm_in_training<const D: usize>(
    golden: &Golden,
    norm: BatchNorm,
    momentum: f64,
    epsilon: f64,
) -> Result<Computed, String> {
    let x: Tensor<D> = golden.tensor("x")?;
    let moments = Moments::of(x.clone());
    let (z, log_det) = norm.normalize_with(x.clone(), moments.clone());
    let back = norm.denormalize_with(z.clone(), moments.clone());
    let mut computed = layer_outputs(golden, z, log_det, back)?;

    // With momentum 1 the pass before the step makes `forward` the same.
    let eager = torch::batch_norm(&golden.params(), 1.0, epsilon).map_err(text)?;
    let (eager, z) = eager.data_pass(x.clone(), Pass::Observe);
    let expected = golden.array("z")?.values().to_vec();
    computed.compare("z with momentum 1", values(z.clone()), expected);
    let back = values(eager.inverse(z));
    computed.compare("inverse with momentum 1", back, golden.array("x")?.values().to_vec());

    let dims = x.dims();
    let count = (dims.iter().product::<usize>() / dims[1]) as f64;
    let before = norm.moments.current();
    let (after, _) = norm.data_pass(x, Pass::Observe);
    let after = after.moments.current();
    computed.set("batch_mean", moments.mean);
    computed.set("running_mean_after", after.mean);
    // PyTorch's rule: the newest batch's variance is divided by one less.
    let unbiased = moments.variance.clone() * (momentum * count / (count - 1.0));
    computed.set("running_var_after_unbiased", before.variance * (1.0 - momentum) + unbiased);
    computed.set("batch_var", moments.variance);
    computed.set("running_var_after", after.variance);
    Ok(computed)
}

fn logit(golden: &Golden) -> Result<Computed, String> {
    let form = if golden.flag("paper_text")? { LogitForm::Paper } else { LogitForm::Code };
    let logit = Logit::new(golden.number("alpha")?, form).map_err(text);
    let logit = logit?;
    let mut computed = by_rank_logit(golden, logit)?;
    let array = golden.array("x")?;
    let dims = array.shape()[1..].iter().product::<usize>() as f64;
    let constant = dims * 256f64.ln();
    let pixels = computed.values["log_det"].iter().map(|log_det| log_det - constant).collect();
    computed.values.insert("log_det_pixels".into(), pixels);
    Ok(computed)
}

fn by_rank_logit(golden: &Golden, logit: Logit) -> Result<Computed, String> {
    match golden.rank()? {
        4 => image_stack(golden, Ok(logit)),
        2 => {
            let features = golden.array("x")?.shape()[1];
            let model: Result<FlowStack<2, Logit>, _> =
                FlowStack::single(logit, StandardNormal::new(), &[features]);
            stack(golden, model, in_order)
        }
        rank => Err(format!("x has rank {rank}")),
    }
}
