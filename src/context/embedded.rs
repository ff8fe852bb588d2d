//! A model and the net that makes its context.

use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;

use super::Given;
use crate::conditioner::Conditioner;
use crate::error::Result;
use crate::flow::Pass;
use crate::record::{self, Configuration, Setting};

/// A net from something raw (a picture, a series, an observation) to a context of rank `C`.
///
/// Every [`Conditioner`] is one.
pub trait Embedding<const R: usize, const C: usize>: Module {
    /// `[batch, ...] -> [batch, width, ...]`: one row for each row, independent of the others.
    fn embed(&self, raw: Tensor<R>) -> Tensor<C>;

    /// Sends a batch through, by which the net may change, as
    /// [`Flow::data_pass`](crate::Flow::data_pass). The default changes nothing.
    fn embed_pass(self, raw: Tensor<R>, _pass: Pass) -> (Self, Tensor<C>) {
        let context = self.embed(raw);
        (self, context)
    }
}

impl<const D: usize, N: Conditioner<D>> Embedding<D, D> for N {
    fn embed(&self, raw: Tensor<D>) -> Tensor<D> {
        self.forward(raw)
    }

    fn embed_pass(self, raw: Tensor<D>, pass: Pass) -> (Self, Tensor<D>) {
        Conditioner::data_pass(self, raw, pass)
    }
}

/// A conditional model together with the net that makes its contexts, of rank `C`.
///
/// A [`Trainer`](crate::training::Trainer) trains both: `trainer.step((x, raw))`. As nets in couplings,
/// the embedding has to be a function of its input: dropout is refused, see
/// [`reversible::check`](crate::training::reversible::check).
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::conditioner::MlpConfig;
/// use burn_flows::context::{Embedded, WithContext};
/// use burn_flows::coupling::{Coupling, Mask};
/// use burn_flows::training::{Schedule, Trainer};
/// use burn_flows::{FlowStack, prior::StandardNormal};
///
/// let device = burn_flows::backend::device();
/// let net = WithContext::new(MlpConfig::new(1 + 2, vec![8], 1).init(&device)?, 2, &device);
/// let flow = Coupling::additive(net, Mask::first_half());
/// let model: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2])?;
/// // Eight numbers are observed; the model is told two that are made of them.
/// let model = Embedded::new(MlpConfig::new(8, vec![16], 2).init(&device)?, model);
///
/// let mut trainer = Trainer::new(model, Schedule::constant(1e-3));
/// let x = Tensor::<2>::from_data([[0.5, -1.0], [2.0, 0.1]], &device);
/// let raw = Tensor::<2>::ones([2, 8], &device);
/// trainer.step((x, raw.clone()))?;
/// let posterior = trainer.model().given(&raw.narrow(0, 0, 1))?;
/// assert_eq!(posterior.sample(100, 1.0).dims(), [100, 2]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Embedded<E, M, const C: usize = 2> {
    /// The net that makes the contexts.
    pub embedding: E,
    /// The model that they are given to.
    pub model: M,
    configuration: Setting<Option<Arc<str>>>,
}

impl<E: Module, M: Module> Embedded<E, M> {
    /// A net that makes vectors, and the model that they are given to.
    pub fn new(embedding: E, model: M) -> Self {
        Self { embedding, model, configuration: Setting::of_json(None) }
    }
}

impl<E: Module, M: Module> Embedded<E, M, 4> {
    /// A net that makes feature maps, and the model that they are given to.
    pub fn of_maps(embedding: E, model: M) -> Self {
        Self { embedding, model, configuration: Setting::of_json(None) }
    }
}

impl<E: Module, M: Module, const C: usize> Embedded<E, M, C> {
    /// The model, given what the embedding makes of `raw`. In training, a loss's gradient goes on
    /// through the embedding.
    ///
    /// # Errors
    /// As [`Given::given`].
    ///
    /// # Panics
    /// If the embedding does not give a context for each row.
    pub fn given<const R: usize>(&self, raw: &Tensor<R>) -> Result<M>
    where
        E: Embedding<R, C>,
    {
        self.model.given(&self.context(raw.clone()))
    }

    /// Keeps what the model and its embedding were built from, as
    /// [`FlowStack::with_configuration`](crate::FlowStack::with_configuration).
    pub fn with_configuration<F: Configuration<Model = Self>>(mut self, configuration: &F) -> Self {
        self.configuration = Setting::of_json(Some(record::to_json(configuration)));
        self
    }

    /// What they were built from, if it is of this kind and was kept.
    pub fn configuration<F: Configuration<Model = Self>>(&self) -> Option<F> {
        record::from_json(self.configuration.as_deref()?)
    }

    /// Writes model and embedding to a safetensors file: [`record::save`].
    ///
    /// # Errors
    /// As [`record::save`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()>
    where
        Self: Module,
    {
        record::save(self, path)
    }

    /// What the embedding makes of `raw`.
    pub(crate) fn context<const R: usize>(&self, raw: Tensor<R>) -> Tensor<C>
    where
        E: Embedding<R, C>,
    {
        let rows = raw.dims()[0];
        let context = self.embedding.embed(raw);
        assert_rows(rows, &context);
        context
    }
}

/// An embedding has given a context for each row.
pub(crate) fn assert_rows<const C: usize>(rows: usize, context: &Tensor<C>) {
    assert!(
        context.dims()[0] == rows,
        "Embedded: the embedding made {} contexts of {rows} rows; it must make one of each row",
        context.dims()[0]
    );
}
