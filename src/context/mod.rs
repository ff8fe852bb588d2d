//! Context: what a density is conditional on.
//!
//! A layer that depends on a context holds a [`Context`], a place for it that is empty at first.
//! [`Given::given`] puts a context into all places of a model, whatever the model is composed of, and
//! returns what is then an ordinary flow or density: `p(x | context)` has the methods of `p(x)`. In the guide:
//! [conditional densities](crate::guide::conditional).
//!
//! | to condition | write |
//! |---|---|
//! | a coupling, or the prior of a split | [`WithContext`] around its net |
//! | the same, block by block of its net | [`BlockNetConfig::with_context`](crate::conditioner::BlockNetConfig::with_context) |
//! | an autoregressive layer | [`MadeConfig::with_context`](crate::autoregressive::MadeConfig::with_context) |
//! | the prior of the whole | [`ContextNormal`](crate::prior::ContextNormal), [`ContextMixture`](crate::prior::ContextMixture) |
//! | a Glow, on classes | [`GlowConfig::with_num_classes`](crate::models::GlowConfig::with_num_classes) |
//! | a net of your own | a [`Context`] among its fields, [`Context::beside`] or [`Context::rows`] in `forward` |
//! | on something that a net has to look at first | [`Embedded`] around the model |
//!
//! A class is a context of 0 and 1 ([`Given::one_hot`], [`Given::given_classes`]), and
//! [`FlowStack::classify`](crate::FlowStack::classify) finds it by Bayes' rule.
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_flows::autoregressive::{Autoregressive, MadeConfig};
//! use burn_flows::context::Given;
//! use burn_flows::coupling::{RationalQuadraticConfig, Transform};
//! use burn_flows::{FlowStack, prior::StandardNormal};
//!
//! let device = burn_flows::backend::device();
//! let spline = RationalQuadraticConfig::new(8, 3.0).init()?;
//! let made = MadeConfig::new(2, vec![16], spline.params_per_channel()).with_context(3);
//! let layer = Autoregressive::new(made.init(&device)?, spline)?;
//! let model: FlowStack<2, _> = FlowStack::single(layer, StandardNormal::new(), &[2])?;
//!
//! // A context for each sample, or one for all of them.
//! let x = Tensor::from_data([[0.5, -1.0], [2.0, 0.1]], &device);
//! let contexts = Tensor::<2>::from_data([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]], &device);
//! let log_prob = model.given(&contexts)?.log_prob(x.clone());
//! let posterior = model.given(&contexts.narrow(0, 1, 1))?;
//! let difference = posterior.log_prob(x) - log_prob;
//! assert!(difference.narrow(0, 1, 1).abs().into_scalar::<f32>() < 1e-5);
//! assert_eq!(posterior.sample(1000, 1.0).dims(), [1000, 2]);
//! # Ok::<(), burn_flows::FlowError>(())
//! ```

mod classes;
mod embedded;
mod given;
mod with_context;

pub use classes::Classification;
pub(crate) use embedded::assert_rows;
pub use embedded::{Embedded, Embedding};
pub use given::{Given, gradient};
pub(crate) use given::{
    all_classes, depends_on_vectors, filled_with, first_empty, first_empty_beside, shaped_by,
};
pub use with_context::WithContext;

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
    Param,
};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};

use crate::flow::{Flow, add_grad};
use crate::host;
use crate::param::frozen;
use crate::reshape::Squeeze;

/// What visitors are told that they enter.
const CONTAINER: &str = "Struct:burn_flows::Context";
const NAME: &str = "value";

/// The place of a context in a layer: vectors `[batch, width]` (`D = 2`) or feature maps
/// `[batch, channels, height, width]` (`D = 4`).
///
/// [`Given::given`] fills it. A record holds what is in it, which is nothing but its width before: save a
/// model as it was built, or after [`Given::without_context`], for `load` to take it.
#[derive(Debug, Clone)]
pub struct Context<const D: usize = 2> {
    /// No rows while no context is given.
    value: Param<Tensor<D>>,
}

impl<const D: usize> Context<D> {
    /// An empty place for contexts of that many features or channels; with none, a place that is never
    /// filled, for nets that have none to look at.
    ///
    /// # Panics
    /// If the rank is below 2.
    pub fn new(width: usize, device: &Device) -> Self {
        Self::in_dtype(width, device, DType::F32)
    }

    /// [`new`](Self::new) in a model of that dtype.
    pub(crate) fn in_dtype(width: usize, device: &Device, dtype: DType) -> Self {
        assert!(D >= 2, "Context: got rank {D}, but a context is [batch, width, ...]");
        let mut shape = [1; D];
        (shape[0], shape[1]) = (0, width);
        Self { value: frozen(host::from_f64(Vec::new(), shape, device, dtype)) }
    }

    /// Features or channels of a context.
    pub fn width(&self) -> usize {
        self.value.dims()[1]
    }

    /// Whether a context is given.
    pub fn is_given(&self) -> bool {
        self.value.dims()[0] > 0
    }

    /// The context of each of `batch` samples: one row a sample.
    ///
    /// # Panics
    /// If no context is given, or contexts for another number of samples; if the place is one of width 0.
    pub fn rows(&self, batch: usize) -> Tensor<D> {
        assert!(
            self.width() > 0,
            "Context: a place of width 0 has none to give; build the layer with the width of the contexts"
        );
        let value = self.value.val();
        let mut shape = value.dims();
        match shape[0] {
            rows if rows == batch => value,
            1 => {
                shape[0] = batch;
                value.expand(shape)
            }
            0 => panic!(
                "Context: no context is given, but the layer depends on {} features of one; call \
                 model.given(&context)",
                self.width()
            ),
            rows => panic!(
                "Context: got {batch} samples, but contexts for {rows}; give one context for each \
                 sample, or a single one for all"
            ),
        }
    }

    /// `x` with the context behind it on axis 1, for a net that is to see both.
    ///
    /// Vectors stand at every pixel. A feature map that is a multiple as large as `x` is squeezed to its
    /// sides, which makes four channels of one each time.
    ///
    /// # Shapes
    /// - `x`: `[batch, channels, ...]`; result: `[batch, channels + width, ...]`, with
    ///   `4 * width` after one squeeze
    ///
    /// # Panics
    /// As [`rows`](Context::rows); if a feature map cannot be squeezed to the sides of `x`.
    pub fn beside<const N: usize>(&self, x: Tensor<N>) -> Tensor<N> {
        if self.width() == 0 {
            return x;
        }
        let context = self.at(x.dims());
        Tensor::cat(vec![x, context], 1)
    }

    /// The context for samples of these dimensions, at every pixel.
    fn at<const N: usize>(&self, dims: [usize; N]) -> Tensor<N> {
        let rows = self.rows(dims[0]);
        if D == 2 {
            let (mut narrow, mut wide) = ([1; N], dims);
            narrow[..2].copy_from_slice(&rows.dims());
            wide[1] = narrow[1];
            return rows.reshape(narrow).expand(wide);
        }
        assert!(
            N == D,
            "Context: feature maps of rank {D} cannot stand beside samples of rank {N}; give the layer a \
             context of rank 2, or a net that takes the map itself"
        );
        let from = rows.dims();
        let fits = |squeezes: &u32| {
            let sides = |axis: usize| from[axis] == dims[axis] << squeezes;
            (2..D).all(sides)
        };
        let most = usize::BITS - from.iter().max().map_or(0, |side| side.leading_zeros());
        let Some(squeezes) =
            (0..most).find(|squeezes| (D == 4 || *squeezes == 0) && fits(squeezes))
        else {
            panic!(
                "Context: got samples of shape {dims:?}, but a feature map of shape {from:?}; its \
                 sides must be those of the samples, or 2, 4, 8, ... times as large"
            )
        };
        let mut shape = [1; N];
        if squeezes == 0 {
            shape.copy_from_slice(&from);
            return rows.reshape(shape);
        }
        let image: [usize; 4] = from[..].try_into().expect("only images are squeezed");
        let image =
            (0..squeezes).fold(rows.reshape(image), |image, _| Squeeze::new().forward(image).0);
        shape.copy_from_slice(&image.dims());
        image.reshape(shape)
    }

    /// Adds to `grads` the gradient with respect to the context, given that with respect to what is
    /// [beside](Context::beside) the samples.
    pub(crate) fn add_gradient<const N: usize>(&self, at: Tensor<N>, grads: &mut GradientsParams) {
        if !self.value.is_require_grad() {
            assert!(
                !self.value.val().is_tracked(),
                "Context: the context is the output of a net, to which no gradient would get from here; \
                 train the net with the model (context::Embedded), or give the context as a plain tensor \
                 and take its gradient from context::gradient"
            );
            return;
        }
        // The way there only repeats and moves values: by autodiff, which knows the way back.
        let leaf = Tensor::from_inner(host::plain(self.value.val())).require_grad();
        let context = Self { value: Param::initialized(self.value.id, leaf.clone()) };
        let mut graph = (context.at(at.dims()) * Tensor::from_inner(at)).sum().backward();
        if let Some(gradient) = leaf.grad_remove(&mut graph) {
            add_grad(grads, &self.value, gradient);
        }
    }
}

/// As that of a struct with one field, but for the type that visitors are told: by that
/// [`Given::given`] knows a place for a context.
impl<const D: usize> Module for Context<D> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.enter_module(NAME, CONTAINER);
        Module::visit(&self.value, visitor);
        visitor.exit_module(NAME, CONTAINER);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        mapper.enter_module(NAME, CONTAINER);
        let value = Module::map(self.value, mapper);
        mapper.exit_module(NAME, CONTAINER);
        Self { value }
    }

    fn to_device(self, device: &Device) -> Self {
        Self { value: Module::to_device(self.value, device) }
    }

    fn fork(self, device: &Device) -> Self {
        Self { value: Module::fork(self.value, device) }
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        self.value.collect_devices(devices)
    }

    fn materialize(self) -> Self {
        Self { value: self.value.materialize() }
    }

    fn valid(&self) -> Self {
        Self { value: Module::valid(&self.value) }
    }

    fn train(self) -> Self {
        Self { value: Module::train(self.value) }
    }
}

impl<const D: usize> ModuleDisplayDefault for Context<D> {
    fn content(&self, content: Content) -> Option<Content> {
        content.add("width", &self.width()).optional()
    }
}

impl<const D: usize> ModuleDisplay for Context<D> {}
