//! Putting a context into the places for it.

use std::any::Any;
use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};

use super::CONTAINER;
use crate::error::{FlowError, Result};
use crate::host;
use crate::param::frozen;

/// Gives a module a context, or takes it away: every module has it, flows, nets, priors, stacks and what
/// holds them.
pub trait Given: Module {
    /// The module with every place for a context of rank `C` filled: a clone, whose parameters are
    /// shared as those of clones are.
    ///
    /// The context is one parameter in all places. In a module in training, a plain context is a
    /// parameter with a gradient, which [`gradient`] finds among those of the others; one that
    /// autodiff follows already (the output of a net) is taken as it is, so that a loss's gradient
    /// goes on through it. Another call replaces the context. (A [`Trainer`](crate::training::Trainer)
    /// would train a context that its model was given before: hand it the model without, and each batch
    /// with its contexts.)
    ///
    /// # Shapes
    /// - `context`: `[batch, width, ...]`, one row a sample, or `[1, width, ...]` for all samples
    ///
    /// # Errors
    /// If no layer takes a context of that rank, one takes another width, the context is on another device
    /// or of another dtype than the model, or there are no rows.
    fn given<const C: usize>(&self, context: &Tensor<C>) -> Result<Self> {
        let places = Places::of(self);
        places.check(context)?;
        let tracked = places.in_training && !context.is_autodiff();
        let value = if tracked { Tensor::from_inner(context.clone()) } else { context.clone() };
        let param = match value.is_tracked() {
            true => Param::initialized(ParamId::new(), value),
            false => Param::from_tensor(value),
        };
        Ok(filled_with(self, &param))
    }

    /// Classes as contexts: for each sample 1 at its class and 0 elsewhere, as wide as the module's
    /// contexts of rank 2 are; on its device and in its dtype.
    ///
    /// # Shapes
    /// - result: `[classes.len(), num_classes]`
    ///
    /// # Errors
    /// If no layer takes a context of rank 2, there is no class, or one is not below the number of
    /// classes.
    fn one_hot<L: Copy + Into<usize>>(&self, classes: &[L]) -> Result<Tensor<2>> {
        Places::of(self).one_hot(classes)
    }

    /// The module [given](Given::given) a class for each sample, or one for all.
    ///
    /// ```
    /// use burn::tensor::Tensor;
    /// use burn_flows::conditioner::MlpConfig;
    /// use burn_flows::context::Given;
    /// use burn_flows::prior::{ContextNormal, Prior};
    ///
    /// let device = burn_flows::backend::device();
    /// // Two classes: the linear layer has a mean and a log standard deviation for each.
    /// let mut net = MlpConfig::new(2, vec![], 2).with_zero_init(true).init(&device)?;
    /// net.layers[0].weight =
    ///     burn::module::Param::from_data([[3.0, 0.0], [-3.0, 0.0]], &device);
    /// let prior = ContextNormal::new(net, 2, &device);
    /// let z = Tensor::<2>::from_data([[3.0], [3.0]], &device);
    /// let log_prob = prior.given_classes(&[0_u8, 1])?.log_prob(z);
    /// let log_prob: Vec<f32> = log_prob.try_into_vec_as().unwrap();
    /// assert!((log_prob[0] - log_prob[1] - 18.0).abs() < 1e-4);
    /// # Ok::<(), burn_flows::FlowError>(())
    /// ```
    ///
    /// # Errors
    /// As [`one_hot`](Given::one_hot) and [`given`](Given::given).
    fn given_classes<L: Copy + Into<usize>>(&self, classes: &[L]) -> Result<Self> {
        self.given(&self.one_hot(classes)?)
    }

    /// The module with every place for a context of rank `C` empty, as it was built.
    fn without_context<const C: usize>(&self) -> Self {
        self.clone().map(&mut Fill::new(|before: Param<Tensor<C>>| {
            let mut shape = [1; C];
            (shape[0], shape[1]) = (0, before.dims()[1]);
            frozen(host::empty_like(&before.val(), shape))
        }))
    }
}

impl<M: Module> Given for M {}

/// The module with `context` in every place for contexts of its rank, whatever its width.
pub(crate) fn filled_with<const C: usize, M: Module>(module: &M, context: &Param<Tensor<C>>) -> M {
    module.clone().map(&mut Fill::new(|_| context.clone()))
}

/// The module with as many contexts in its places, or none, as a record has there, which tells the shape of a
/// parameter by its path. Their values are still to come; as after [`Given::given`] they are one parameter.
pub(crate) fn shaped_by<M: Module>(module: M, shape_of: impl Fn(&str) -> Option<Vec<usize>>) -> M {
    module.map(&mut Shape { shape_of, way: Way::default(), given: BTreeMap::new() })
}

/// The gradient with respect to the context of rank `C` that `module` was [given](Given::given).
///
/// ```
/// use burn::module::Module;
/// use burn::tensor::Tensor;
/// use burn_flows::conditioner::MlpConfig;
/// use burn_flows::context::{Given, WithContext, gradient};
/// use burn_flows::coupling::{Coupling, Mask};
/// use burn_flows::training::reversible;
/// use burn_flows::{FlowStack, prior::StandardNormal};
///
/// let device = burn_flows::backend::device();
/// let net = WithContext::new(MlpConfig::new(1 + 3, vec![8], 1).init(&device)?, 3, &device);
/// let flow = Coupling::additive(net, Mask::first_half());
/// let model: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2])?;
///
/// let context = Tensor::<2>::from_data([[1.0, 0.0, 2.0]], &device);
/// let model = model.train().given(&context)?;
/// let x = Tensor::from_data([[0.5, -1.0], [2.0, 0.1]], &device);
/// let (_, grads) = reversible::gradients(&model, x);
/// assert_eq!(gradient::<2, _>(&model, &grads).unwrap().dims(), [1, 3]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
pub fn gradient<const C: usize, M: Module>(
    module: &M,
    grads: &GradientsParams,
) -> Option<Tensor<C>> {
    let places = Places::of(module).all;
    places.iter().find(|place| place.rank == C).and_then(|place| grads.get::<C>(place.id))
}

/// The path of the first place, of any rank, that waits for a context.
pub(crate) fn first_empty<M: Module>(module: &M) -> Option<String> {
    Places::of(module).all.into_iter().find(|place| place.is_empty).map(|place| place.path)
}

/// Whether `module` could be [given](Given::given) the context; then, as [`first_empty`], what it would
/// wait for after that.
///
/// # Errors
/// As [`Given::given`].
pub(crate) fn first_empty_beside<const C: usize, M: Module>(
    module: &M,
    context: &Tensor<C>,
) -> Result<Option<String>> {
    let places = Places::of(module);
    places.check(context)?;
    let waits = |place: &Place| place.is_empty && place.rank != C;
    Ok(places.all.into_iter().find(waits).map(|place| place.path))
}

/// Whether a layer of `module` takes contexts of rank 2, given or not.
pub(crate) fn depends_on_vectors<M: Module>(module: &M) -> bool {
    Places::of(module).all.iter().any(|place| place.rank == 2)
}

/// The contexts of all classes of `module`, one after another, `[1, num_classes]` each, as its layers
/// take them, without gradients.
///
/// # Errors
/// If no layer takes a context of rank 2, or one waits for a context of another rank.
pub(crate) fn all_classes<M: Module>(module: &M) -> Result<Vec<Param<Tensor<2>>>> {
    let places = Places::of(module);
    let num_classes = places.vectors()?.width;
    let contexts = (0..num_classes).map(|class| {
        let context = places.one_hot(&[class])?;
        places.check(&context)?;
        if let Some(place) = places.all.iter().find(|place| place.is_empty && place.rank != 2) {
            return Err(FlowError::invalid(
                format!("the context at {}", place.path),
                "none",
                format!("one of rank {}", place.rank),
                "give it before asking about classes (Given::given)",
            ));
        }
        let context = if places.in_training { Tensor::from_inner(context) } else { context };
        Ok(frozen(context))
    });
    contexts.collect()
}

/// The way down to where a walk through a module is.
#[derive(Default)]
struct Way {
    path: Vec<String>,
    /// How many places for a context it is inside of.
    inside: usize,
}

impl Way {
    fn enter(&mut self, name: &str, container_type: &str) {
        self.inside += usize::from(container_type == CONTAINER);
        self.path.push(name.into());
    }

    fn leave(&mut self, container_type: &str) {
        self.inside -= usize::from(container_type == CONTAINER);
        self.path.pop();
    }
}

/// A place for a context, as the layer was built.
struct Place {
    path: String,
    rank: usize,
    width: usize,
    is_empty: bool,
    dtype: DType,
    device: Device,
    id: ParamId,
}

/// The places for contexts; without those of width 0, which are never filled.
#[derive(Default)]
struct Places {
    way: Way,
    all: Vec<Place>,
    in_training: bool,
}

impl Places {
    fn of<M: Module>(module: &M) -> Self {
        let mut places = Self::default();
        module.visit(&mut places);
        places
    }

    /// The first place for vectors.
    fn vectors(&self) -> Result<&Place> {
        self.all.iter().find(|place| place.rank == 2).ok_or_else(|| {
            FlowError::invalid(
                "the classes",
                "a model without a layer that depends on contexts of rank 2",
                "at least one, such as GlowConfig::with_num_classes or ContextNormal",
                "build the model with classes, or leave them out",
            )
        })
    }

    fn one_hot<L: Copy + Into<usize>>(&self, classes: &[L]) -> Result<Tensor<2>> {
        let Place { width, device, dtype, .. } = self.vectors()?;
        let mut values = vec![0.0; classes.len() * width];
        for (sample, &class) in classes.iter().enumerate() {
            let class: usize = class.into();
            if class >= *width {
                return Err(FlowError::invalid(
                    format!("the class of sample {sample}"),
                    class,
                    format!("below {width}, the number of classes"),
                    "classes count from 0; build the model for as many as there are",
                ));
            }
            values[sample * width + class] = 1.0;
        }
        if classes.is_empty() {
            return Err(FlowError::invalid(
                "the classes",
                "none",
                "at least 1",
                "give one class for each sample, or a single one for all",
            ));
        }
        Ok(host::plain(host::from_f64(values, [classes.len(), *width], device, *dtype)))
    }

    /// Whether the places of the rank of `context` can take it.
    fn check<const C: usize>(&self, context: &Tensor<C>) -> Result<()> {
        let (rows, width) = (context.dims()[0], context.dims()[1]);
        let mut of_rank = self.all.iter().filter(|place| place.rank == C).peekable();
        let refuse = |what: &str, got: String, needed: String, advice: &str| {
            Err(FlowError::invalid(what, got, needed, advice))
        };
        if rows == 0 {
            let advice = "give one context for each sample, or a single one for all";
            return refuse("the rows of the context", "0".into(), "at least 1".into(), advice);
        }
        if of_rank.peek().is_none() {
            let got = format!("a model without a layer that depends on contexts of rank {C}");
            let needed = "at least one, such as WithContext or a Made with_context";
            let advice = "build the layers with a context, or leave it out";
            return refuse("the context", got, needed.into(), advice);
        }
        let (dtype, device) = (context.dtype(), context.device());
        let is_other = |place: &&Place| place.dtype != dtype || place.device != device;
        if let Some(place) = of_rank.clone().find(is_other) {
            let what = format!("dtype and device of the context at {}", place.path);
            let needed = format!("{:?} on {:?}", place.dtype, place.device);
            let advice = "bring the context to the model's (Tensor::cast, Tensor::to_device)";
            return refuse(&what, format!("{dtype:?} on {device:?}"), needed, advice);
        }
        let other_width = of_rank.find(|place| place.width != width);
        if let Some(Place { path, width: needed, .. }) = other_width {
            let what = format!("the width of the context at {path}");
            let advice = "build the layers with the width that the contexts have on axis 1";
            return refuse(&what, width.to_string(), needed.to_string(), advice);
        }
        Ok(())
    }
}

impl ModuleVisitor for Places {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.way.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.way.leave(container_type);
    }

    fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
        let value = param.val();
        self.in_training |= value.is_autodiff();
        if self.way.inside > 0 && value.dims()[1] > 0 {
            let (_, path) = self.way.path.split_last().expect("a place has a name");
            self.all.push(Place {
                path: path.join("."),
                rank: N,
                width: value.dims()[1],
                is_empty: value.dims()[0] == 0,
                dtype: value.dtype(),
                device: value.device(),
                id: param.id,
            });
        }
    }
}

/// Replaces what is in the places for contexts of rank `C`.
struct Fill<const C: usize, W> {
    with: W,
    inside: usize,
}

impl<const C: usize, W: FnMut(Param<Tensor<C>>) -> Param<Tensor<C>>> Fill<C, W> {
    fn new(with: W) -> Self {
        Self { with, inside: 0 }
    }
}

impl<const C: usize, W: FnMut(Param<Tensor<C>>) -> Param<Tensor<C>>> ModuleMapper for Fill<C, W> {
    fn enter_module(&mut self, _name: &str, container_type: &str) {
        self.inside += usize::from(container_type == CONTAINER);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.inside -= usize::from(container_type == CONTAINER);
    }

    fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
        if self.inside == 0 || N != C || param.dims()[1] == 0 {
            return param;
        }
        // The ranks are the same, which the compiler does not know.
        let param: Box<dyn Any> = Box::new(param);
        let param = (self.with)(*param.downcast().expect("the ranks are the same"));
        let param: Box<dyn Any> = Box::new(param);
        *param.downcast().expect("the ranks are the same")
    }
}

/// [`shaped_by`].
struct Shape<S> {
    shape_of: S,
    way: Way,
    /// The parameter of each rank.
    given: BTreeMap<usize, Box<dyn Any>>,
}

impl<S: Fn(&str) -> Option<Vec<usize>>> ModuleMapper for Shape<S> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.way.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.way.leave(container_type);
    }

    fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
        let width = param.dims()[1..].first().copied().unwrap_or(0);
        if self.way.inside == 0 || width == 0 {
            return param;
        }
        let shape = (self.shape_of)(&self.way.path.join("."));
        let Some(Ok(shape)) = shape.map(<[usize; N]>::try_from) else { return param };
        if shape == param.dims() || shape[1] != width {
            return param;
        }
        if shape[0] == 0 {
            return frozen(host::empty_like(&param.val(), shape));
        }
        let known = self.given.get(&N).and_then(|known| known.downcast_ref::<Param<Tensor<N>>>());
        if let Some(known) = known.filter(|known| known.dims() == shape) {
            return known.clone();
        }
        let value = param.val();
        let zeros = Tensor::zeros(shape, (&value.device(), value.dtype()));
        let given = Param::from_tensor(zeros);
        self.given.insert(N, Box::new(given.clone()));
        given
    }
}
