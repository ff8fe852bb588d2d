//! A class-conditional model and a classifier on its top latent.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, activation};

use super::Trainable;
use super::trainable::constant;
use crate::context::all_classes;
use crate::error::{FlowError, Result};
use crate::flow::{Flow, Pass, pull_back_through};
use crate::host;
use crate::prior::{Prior, SplitPrior};
use crate::record::Setting;
use crate::stack::{Encoded, FlowStack, device_and_dtype};
use crate::tape::Tape;

/// A class-conditional model together with a linear classifier on its top latent, for training: it
/// makes the flow keep in the top latent what tells the classes apart.
///
/// For a sample with the class `y` the objective is, in nats,
///
/// `ln p(x | y) + weight * num_dims * ln q(y | h)`, `q(. | h) = softmax(W h + b)`
///
/// where `h` is the mean of the top latent over its pixels and `W` and `b` start at zero. In bits that
/// is the published loss, bits per dimension plus `weight` times the bits of the class. A
/// [`Trainer`](super::Trainer)'s [loss](super::Step::loss) is the mean of minus the objective.
///
/// The classifier serves training alone: `trainer.model().model` is the model to save and to use, and
/// [`FlowStack::classify`] finds classes by the densities.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::context::Given;
/// use burn_flows::models::GlowConfig;
/// use burn_flows::training::{Schedule, Trainer, WithClassifier};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let device = burn_flows::backend::device();
/// let config = GlowConfig::new([1, 4, 4], 1, 1, 4).with_num_classes(2);
/// let model = config.init(&mut StdRng::seed_from_u64(0), &device)?;
/// let classes = model.one_hot(&[0_u8, 1])?;
/// let mut trainer = Trainer::new(WithClassifier::new(model, 0.01)?, Schedule::constant(1e-3));
/// let x = Tensor::from_data([[[[0.5, -1.0, 0.0, 2.0]; 4]], [[[1.0, -0.5, 0.3, 0.1]; 4]]], &device);
/// let loss = trainer.step((x.clone(), classes))?.loss;
/// // At the start both classes have the same density, and the classifier says 1/2.
/// let model = trainer.model().model;
/// assert_eq!(model.classify(x, &[1.0, 1.0])?.log_posterior.dims(), [2, 2]);
/// assert!(loss.is_finite());
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
///
/// Source: openai/glow, `model.py`, `codec` (its `ycond`, `weight_y` 0.01), without the learned scale
/// of its last layer.
#[derive(Module, Debug)]
pub struct WithClassifier<M> {
    /// The model.
    pub model: M,
    /// The classifier, from the channels of the top latent to the classes.
    pub classifier: Linear,
    weight: Setting<f64>,
}

impl<const D: usize, F, P, S> WithClassifier<FlowStack<D, F, P, S>>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    /// The model, with a classifier of as many classes as its contexts of rank 2 are wide; 0.01 is the
    /// published weight.
    ///
    /// # Errors
    /// If no layer takes a context of rank 2, or `weight` is not a finite number of at least 0.
    pub fn new(model: FlowStack<D, F, P, S>, weight: f64) -> Result<Self> {
        if !(weight >= 0.0 && weight.is_finite()) {
            return Err(FlowError::config(
                "WithClassifier",
                "weight",
                weight,
                "a finite number of at least 0",
                "0.01 is the published one",
            ));
        }
        let num_classes = all_classes(&model)?.len();
        let channels = model.latent_shapes().last().expect("a stack has a level")[1];
        let (device, dtype) = device_and_dtype(&model);
        let zeros = || (&device, dtype);
        let classifier = Linear {
            weight: Param::from_tensor(Tensor::zeros([channels, num_classes], zeros())),
            bias: Some(Param::from_tensor(Tensor::zeros([num_classes], zeros()))),
        };
        Ok(Self { model, classifier, weight: weight.into() })
    }

    /// The weight of the classifier in the loss.
    pub fn weight(&self) -> f64 {
        *self.weight
    }

    /// `weight * num_dims * ln q(y | h)` of each sample, `[batch]`.
    fn term(&self, classifier: &Linear, top: Tensor<D>, classes: Tensor<2>) -> Tensor<1> {
        let dims = top.dims();
        let (batch, channels) = (dims[0], dims[1]);
        let pixels = dims[2..].iter().product::<usize>();
        let mean = top.reshape([batch, channels, pixels]).mean_dim(2).reshape([batch, channels]);
        let log_q = activation::log_softmax(classifier.forward(mean), 1);
        let of_class = (log_q * classes).sum_dim(1).reshape([batch]);
        of_class * (*self.weight * self.model.num_dims() as f64)
    }
}

impl<const D: usize, F, P, S> Trainable<(Tensor<D>, Tensor<2>)>
    for WithClassifier<FlowStack<D, F, P, S>>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
    Self: Module,
{
    /// The objective: `ln p(x | y)` and the classifier's term.
    fn log_prob(&self, (x, classes): (Tensor<D>, Tensor<2>)) -> Tensor<1> {
        let stack = constant(&self.model, classes.clone());
        let Encoded { latents, kept, log_dets } = stack.encode_levels(x, &mut Tape::default());
        let top = latents.parts().last().expect("a part for each level").clone();
        let priors = stack.prior_log_probs(latents.into_parts(), kept);
        let terms = log_dets.into_iter().chain(priors);
        let log_prob = terms.reduce(|sum, more| sum + more).expect("two terms a level");
        log_prob + self.term(&self.classifier, top, classes)
    }

    fn data_pass(mut self, batch: (Tensor<D>, Tensor<2>), pass: Pass) -> Self {
        self.model = Trainable::data_pass(self.model, batch, pass);
        self
    }

    fn check_batch(&self, batch: &(Tensor<D>, Tensor<2>)) -> Result<()> {
        Trainable::check_batch(&self.model, batch)
    }

    fn check(&self) -> Result<()> {
        Flow::check(&self.model)
    }

    fn check_repeats(&self, batch: (Tensor<D>, Tensor<2>)) -> Result<()> {
        Trainable::check_repeats(&self.model, batch)
    }

    fn gradients(
        &self,
        (x, classes): (Tensor<D>, Tensor<2>),
        weight: f64,
        tape: &mut Tape,
        grads: &mut GradientsParams,
        goes_back: impl FnOnce(&Tensor<1>) -> bool,
    ) -> Tensor<1> {
        let stack = constant(&self.model, Tensor::from_inner(classes.clone()));
        let pass = stack.forward_log_prob(x, weight, tape);
        let term = self.term(&self.classifier.valid(), pass.top(), classes.clone()).sum() * weight;
        let sum = pass.weighted_log_prob.clone() + term;
        if goes_back(&sum) {
            let classes = Tensor::from_inner(classes);
            let more = |top, grads: &mut GradientsParams| {
                let loss = |top| self.term(&self.classifier, top, classes).sum() * weight;
                Some(pull_back_through(&self.classifier, top, loss, grads))
            };
            stack.backward_log_prob_and(pass, more, tape, grads);
        }
        sum
    }

    fn first_not_finite(&self, (x, classes): (Tensor<D>, Tensor<2>)) -> Option<String> {
        let batch = (x.clone(), classes.clone());
        Trainable::first_not_finite(&self.model, batch).or_else(|| {
            let (latents, _) = constant(&self.model, classes.clone()).encode(x);
            let top = latents.into_parts().pop().expect("a part for each level");
            let is_finite = host::is_finite(self.term(&self.classifier, top, classes));
            (!is_finite).then(|| "the classifier".into())
        })
    }

    fn inversion_error(&self, batch: (Tensor<D>, Tensor<2>)) -> Option<f64> {
        Trainable::inversion_error(&self.model, batch)
    }
}
