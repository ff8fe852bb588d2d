//! Class-conditional models of normflows: densities of every class, and their gradients.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn_flows::conditioner::Mlp;
use burn_flows::context::Given;
use burn_flows::prior::{ContextNormal, Prior, SplitPrior};
use burn_flows::training::{Memory, Tape, reversible};
use burn_flows::weights::normflows::{self, ClassMultiscaleModel, MaskedScale};
use burn_flows::weights::{Array, Weights};
use burn_flows::{Flow, FlowStack};

use super::cases::{Order, glow_options, in_order, stack, text};
use super::{Computed, Golden, values};

/// The case for a class, if it is one of these.
pub fn case(golden: &Golden) -> Option<Result<Computed, String>> {
    match golden.meta("class") {
        "ClassCondFlow" => Some(vectors(golden)),
        "MultiscaleFlow of GlowBlock, class_cond, GlowBase(num_classes)" => Some(images(golden)),
        _ => None,
    }
}

/// Masked affine couplings under a normal of each class.
fn vectors(golden: &Golden) -> Result<Computed, String> {
    if golden.hyper("base")?["class"] != "ClassCondDiagGaussian" {
        return Err(format!("unknown base {}", golden.hyper("base")?));
    }
    let layers = golden.hyper("layers")?;
    let layers = layers.as_array().ok_or("layers is not a list")?;
    if let Some(other) = layers.iter().find(|layer| layer["class"] != "MaskedAffineFlow") {
        return Err(format!("unknown layer {other}"));
    }
    // The file's arguments leave it open, its formula says it.
    let scale = match golden.meta("formula").contains("tanh at the end of s") {
        true => MaskedScale::Tanh,
        false => MaskedScale::Linear,
    };
    let params = golden.params();
    let flows = params.under("flows");
    let steps = flows.indices().into_iter().rev();
    let steps = steps
        .map(|k| normflows::masked_affine(&flows.under(k.to_string()), scale))
        .collect::<Result<Vec<_>, _>>()
        .map_err(text)?;
    let prior = normflows::class_cond_diag_gaussian(&params.under("q0")).map_err(text)?;
    let model = FlowStack::single(steps, prior, &[golden.number("features")? as usize]);
    Ok(by_class(golden, model.map_err(text)?, in_order::<2>)?.0)
}

fn images(golden: &Golden) -> Result<Computed, String> {
    let (options, shape) = (glow_options(golden)?, golden.sizes("shape")?);
    let read = |weights: &Weights| normflows::class_multiscale(weights, options, None, shape);
    let model = read(&golden.params()).map_err(text)?;
    // Of loc and loc_logs only the product is known, so what is written is judged by what is read of it.
    let again = normflows::class_multiscale_weights(&model)
        .and_then(|written| read(&written.with_dtype(golden.weights.dtype())));
    let (mut computed, given) = by_class(golden, model, normflows::multiscale_order)?;
    let again =
        again.and_then(|again| again.log_prob_by_class(golden.tensor("x").expect("images")));
    computed.compare(
        "log_prob_by_class of what was written",
        values(again.map_err(text)?),
        golden.array("log_prob_by_class")?.values().to_vec(),
    );
    if golden.array("loss").is_ok() {
        gradients(golden, given, &mut computed)?;
    }
    Ok(computed)
}

/// All that the file has of densities, and the model given the classes `y`.
fn by_class<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>>(
    golden: &Golden,
    model: FlowStack<D, F, P, S>,
    order: Order<D>,
) -> Result<(Computed, FlowStack<D, F, P, S>), String>
where
    FlowStack<D, F, P, S>: Module,
{
    let num_classes = golden.number("num_classes")? as usize;
    let classes: Vec<usize> =
        golden.array("y")?.values().iter().map(|&class| class as usize).collect();
    let x: Tensor<D> = golden.tensor("x")?;
    let found = model.classify(x.clone(), &vec![1.0; num_classes]).map_err(text)?;
    let given = model.given_classes(&classes).map_err(text)?;
    let mut computed = stack(golden, Ok(given.clone()), order)?;
    // By Bayes' rule with equal weights, computed from the file's own densities.
    let (mut posterior, mut marginal) = (Vec::new(), Vec::new());
    for row in golden.array("log_prob_by_class")?.values().chunks(num_classes) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = largest + row.iter().map(|value| (value - largest).exp()).sum::<f64>().ln();
        posterior.extend(row.iter().map(|value| value - sum));
        marginal.push(sum - (num_classes as f64).ln());
    }
    computed.compare("log_posterior", values(found.log_posterior), posterior);
    computed.compare("log_prob of x", values(found.log_prob), marginal);
    computed.set("log_prob_by_class", found.log_prob_by_class);
    Ok((computed, given))
}

/// Gradients of the mean of `-ln p(x | y)`, by autodiff and by reversible backpropagation.
fn gradients(
    golden: &Golden,
    model: ClassMultiscaleModel,
    computed: &mut Computed,
) -> Result<(), String> {
    let x: Tensor<4> = golden.tensor("x")?;
    let training = model.train();
    let tracked = Tensor::from_inner(x.clone()).require_grad();
    let mut graph = training.log_prob(tracked.clone()).sum().backward();
    computed.set("grad_x", tracked.grad_remove(&mut graph).ok_or("no gradient by x")?);
    let loss = -training.log_prob(Tensor::from_inner(x.clone())).mean();
    computed.set("loss", loss.clone().inner());
    let by_autodiff = GradientsParams::from_grads(loss.backward(), &training);
    let mut tape = Tape::new(Memory::Stored);
    let (_, stored) = reversible::gradients_on(&training, x.clone(), &mut tape);
    let (_, by_inverses) = reversible::gradients(&training, x);
    for (road, grads) in [("", by_autodiff), (" stored", stored), (" reversible", by_inverses)] {
        for (name, values) in named(golden, &training, &grads)? {
            let expected = golden.array(&name)?.values().to_vec();
            if road.is_empty() {
                computed.values.insert(name, values);
            } else {
                computed.compare(&format!("{name}{road}"), values, expected);
            }
        }
    }
    Ok(())
}

/// The gradients under the file's names: written as the parameters would be, since to read a parameter
/// is to turn its sign or to move its rows.
fn named(
    golden: &Golden,
    model: &ClassMultiscaleModel,
    grads: &GradientsParams,
) -> Result<Vec<(String, Vec<f64>)>, String> {
    let of_gradients = with_gradients(model.valid(), grads);
    let written = normflows::class_multiscale_weights(&of_gradients).map_err(text)?;
    let mut named = Vec::new();
    let names: Vec<String> = golden.weights.names().map(str::to_string).collect();
    for name in names.iter().filter_map(|name| name.strip_prefix("grad.")) {
        let array = match name.split('.').collect::<Vec<_>>()[..] {
            ["q0", level, part] => of_base(golden, &of_gradients, level, part)?,
            _ => written.array(name).map_err(text)?,
        };
        named.push((format!("grad.{name}"), array.values().to_vec()));
    }
    Ok(named)
}

/// A model in which each parameter has the value of its gradient.
fn with_gradients(model: ClassMultiscaleModel, grads: &GradientsParams) -> ClassMultiscaleModel {
    use burn::module::{ModuleMapper, Param};
    struct Replace<'a>(&'a GradientsParams);
    impl ModuleMapper for Replace<'_> {
        fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
            match self.0.get::<N>(param.id) {
                Some(gradient) => param.map(|_| gradient),
                None => param,
            }
        }
    }
    model.map(&mut Replace(grads))
}

/// A gradient of a `GlowBase`, whose bias is `loc exp(3 loc_logs)`.
fn of_base(
    golden: &Golden,
    gradients: &ClassMultiscaleModel,
    level: &str,
    name: &str,
) -> Result<Array, String> {
    let from_deepest: usize = level.parse().map_err(|_| format!("no level {level}"))?;
    let base: &ContextNormal<Mlp> = match from_deepest {
        0 => &gradients.prior,
        above => &gradients.split_priors[gradients.split_priors.len() - above],
    };
    let layer = &base.net.layers[0];
    let (kind, what) = match name.strip_prefix("log_scale") {
        Some(what) => ("log_scale", what),
        None => ("loc", name.strip_prefix("loc").ok_or(format!("unknown tensor {name}"))?),
    };
    let bias = values(layer.bias.as_ref().ok_or("no bias")?.val());
    let channels = bias.len() / 2;
    let own = if kind == "loc" { 0..channels } else { channels..2 * channels };
    let param = |end: &str| golden.array(&format!("param.q0.{level}.{kind}{end}"));
    let (value, logs) = (param("")?, param("_logs")?);
    let by_mean = Array::new(vec![1, channels, 1, 1], bias[own.clone()].to_vec());
    let scaled = by_mean.zip(&logs, |gradient, log| gradient * (3.0 * log).exp());
    match what {
        "" => Ok(scaled),
        "_logs" => Ok(scaled.zip(&value, |gradient, value| 3.0 * gradient * value)),
        "_cc" => {
            let rows = values(layer.weight.val());
            let rows = rows.chunks(2 * channels).flat_map(|row| row[own.clone()].to_vec());
            Ok(Array::new(
                golden.array(&format!("param.q0.{level}.{name}"))?.shape(),
                rows.collect(),
            ))
        }
        _ => Err(format!("unknown tensor {name}")),
    }
}
