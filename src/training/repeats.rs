//! Whether a model computes one function: the same at every call, in training as at inference.
//!
//! A step of a training is a forward pass of the model at inference and a backward pass that runs every
//! net once more, in training. Where a net has chance in it, or a state that a call changes, or is
//! another function in training, the gradients would be those of no function at all.

use burn::module::{Flag, Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::gradients::gradient_norm;
use crate::backend::is_host;
use crate::context::Embedding;
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::prior::{Prior, SplitPrior};
use crate::stack::FlowStack;
use crate::tape::Tape;

/// Samples that the check takes from a batch.
const SAMPLES: usize = 2;

/// How far two passes may be apart on a device that may add up in another order each time, relative to
/// the largest gradient.
const ANOTHER_ORDER: f64 = 1e-4;

/// How far the terms of `ln p` in training may be from those at inference, relative to the largest: many
/// times what rounding does to either, far less than a function of its own.
const ROUNDING: f64 = 1e-2;

/// How many samples the check takes from a batch.
pub(super) fn samples<const D: usize>(x: &Tensor<D>) -> usize {
    SAMPLES.min(x.dims()[0])
}

/// Refuses a model in training, or the part of one at `path`, with a layer of Burn's kind that acts otherwise in
/// training.
pub(super) fn refuse_flags<M: Module>(model: &M, path: &[&str]) -> Result<()> {
    let path = path.iter().map(|name| Field { name: (*name).into(), container: String::new() });
    let mut find = FindFlag { path: path.collect(), module: None };
    model.visit(&mut find);
    let Some(module) = find.module else { return Ok(()) };
    Err(FlowError::NotRepeatable {
        module,
        what: "computes something else in training than at inference".into(),
        advice: "leave it out, or freeze it (Module::freeze_group)".into(),
    })
}

/// Refuses a model with a parameter that is the output of something autodiff follows, such as a context
/// that a net has made: what is computed by hand ends at the parameter, and that net would get no
/// gradient.
pub(super) fn refuse_followed<M: Module>(model: &M) -> Result<()> {
    #[derive(Default)]
    struct Find {
        path: Vec<String>,
        found: Option<String>,
    }
    impl ModuleVisitor for Find {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.into());
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }

        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            let value = param.val();
            if self.found.is_none() && value.is_tracked() && !value.is_require_grad() {
                self.found = Some(self.path.join("."));
            }
        }
    }
    let mut find = Find::default();
    model.visit(&mut find);
    let Some(path) = find.found else { return Ok(()) };
    Err(FlowError::invalid(
        format!("reversible gradients: {path}"),
        "the output of a net, through which autodiff would go on",
        "a parameter or a plain context",
        "train the net with the model (context::Embedded), or give the context as a plain \
                 tensor and take its gradient from context::gradient",
    ))
}

/// Refuses a model in training that does not compute one function, judged by a batch.
pub(super) fn check<const D: usize, F, P, S>(
    model: &FlowStack<D, F, P, S>,
    x: Tensor<D>,
) -> Result<()>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    refuse_flags(model, &[])?;
    let samples = samples(&x);
    if samples == 0 {
        return Ok(());
    }
    let x = x.narrow(0, 0, samples);
    let pass = model.forward_log_prob(x.clone(), 1.0, &mut Tape::default());

    // Backward from the same latents: what does not repeat itself is met first from the last layer on.
    let gradients = || {
        let mut grads = GradientsParams::new();
        model.backward_log_prob(pass.clone(), &mut Tape::default(), &mut grads);
        grads
    };
    let (once, again) = (gradients(), gradients());
    let is_exact = is_host(&x.device());
    let tolerance = if is_exact { 0.0 } else { ANOTHER_ORDER * gradient_norm(model, &once) };
    let mut compare = Compare { path: Path::new(), once, again, tolerance, differing: Vec::new() };
    model.visit(&mut compare);
    let is_of_a_prior = |path: &&Path| path[0].name != "levels";
    let of_a_prior = compare.differing.iter().find(is_of_a_prior);
    if let Some(path) = of_a_prior.or(compare.differing.last()) {
        return Err(FlowError::NotRepeatable {
            module: net_of(path),
            what: "gives other gradients at every call, by chance or by a state of its own".into(),
            advice: "make it a function of its input and its parameters alone".into(),
        });
    }

    // Without gradients, autodiff keeps nothing of the pass.
    let training = model.clone().no_grad().log_prob_terms(x.clone().autodiff());
    let expected = model.valid().log_prob_terms(x);
    for (index, (got, expected)) in training.into_iter().zip(expected).enumerate() {
        if is_another(got.inner(), expected) {
            // For each level its log-determinant and the density of its part of the latent.
            return Err(FlowError::NotRepeatable {
                module: format!("levels.{} or the prior behind it", index / 2),
                what: "gives other values in training than at inference".into(),
                advice: "make it the same function of its input and its parameters in both".into(),
            });
        }
    }
    Ok(())
}

/// Refuses an embedding, in training, that gives something else there than at inference; gives its
/// contexts, plain.
pub(super) fn check_embedding<const R: usize, const C: usize, E: Embedding<R, C>>(
    embedding: &E,
    raw: Tensor<R>,
) -> Result<Tensor<C>> {
    refuse_flags(embedding, &["embedding"])?;
    let context = embedding.valid().embed(raw.clone());
    let training = embedding.clone().no_grad();
    let [once, again] = [(); 2].map(|()| training.embed(raw.clone().autodiff()).inner());
    if [once, again].into_iter().any(|got| is_another(got, context.clone())) {
        return Err(FlowError::NotRepeatable {
            module: "embedding".into(),
            what: "gives other values in training than at inference".into(),
            advice: "make it the same function of its input and its parameters in both".into(),
        });
    }
    Ok(context)
}

/// Whether values in training are further from those at inference than rounding brings them.
fn is_another<const N: usize>(got: Tensor<N>, expected: Tensor<N>) -> bool {
    let (got, expected) = (host::to_f64(got), host::to_f64(expected));
    let largest = expected.iter().fold(1.0, |largest: f64, value| largest.max(value.abs()));
    expected.iter().zip(&got).any(|(a, b)| (a - b).abs() > ROUNDING * largest)
}

/// A step of the way to a parameter.
#[derive(Debug, Clone)]
struct Field {
    name: String,
    /// The type that it is a field of.
    container: String,
}

type Path = Vec<Field>;

/// Looks for the first flag that is up.
struct FindFlag {
    path: Path,
    /// The module that it belongs to.
    module: Option<String>,
}

impl ModuleVisitor for FindFlag {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(Field { name: name.into(), container: container_type.into() });
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_flag(&mut self, flag: &Param<Flag>) {
        let Some((field, module)) = self.path.split_last() else { return };
        // Running moments change nothing by themselves, in training no more than at inference.
        let acts = flag.is_enabled() && field.container != "Struct:RunningMoments";
        if acts && self.module.is_none() {
            self.module = Some(named(module, &field.container));
        }
    }
}

/// Compares two sets of gradients of one model.
struct Compare {
    path: Path,
    once: GradientsParams,
    again: GradientsParams,
    tolerance: f64,
    /// The parameters whose gradients are not the same.
    differing: Vec<Path>,
}

impl ModuleVisitor for Compare {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(Field { name: name.into(), container: container_type.into() });
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
        let (once, again) = (self.once.get::<N>(param.id), self.again.get::<N>(param.id));
        let Some((once, again)) = once.zip(again) else { return };
        let (once, again) = (host::to_f64(once), host::to_f64(again));
        if once.iter().zip(&again).any(|(once, again)| (once - again).abs() > self.tolerance) {
            self.differing.push(self.path.clone());
        }
    }
}

/// The net that a parameter is in; the module that has it where it is in none.
fn net_of(path: &[Field]) -> String {
    let net = path.iter().position(|field| field.name == "conditioner");
    let end = net.map_or(path.len() - 1, |net| (net + 1).min(path.len() - 1));
    named(&path[..end], &path[end].container)
}

/// A module by its path and its type, which visitors are told as `Struct:Dropout`.
fn named(path: &[Field], kind: &str) -> String {
    let names: Vec<&str> = path.iter().map(|field| field.name.as_str()).collect();
    let path = if names.is_empty() { "the model".into() } else { names.join(".") };
    let kind = kind.split_once(':').map_or(kind, |(_, name)| name);
    format!("{path} ({kind})")
}
