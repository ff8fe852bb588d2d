//! Running means and variances of channels, kept in the record.

use burn::module::{Flag, Module, Param};
use burn::tensor::{Device, Tensor};

use crate::chain::assert_size;
use crate::coupling::per_channel;
use crate::error::{FlowError, Result};
use crate::flow::Pass;
use crate::host;
use crate::kernels::MOST_DEVIATION;
use crate::param::{frozen, replace};
use crate::record::Setting;
use crate::support::{self, Question};

/// Mean and variance of every channel over batch and space, `[channels]` each.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Means.
    pub mean: Tensor<1>,
    /// Variances, divided by the number of values (not by one less).
    pub variance: Tensor<1>,
}

impl Moments {
    /// The moments of a batch `[batch, channels, ...]`.
    ///
    /// # Panics
    /// If there are fewer than two values a channel, which have no variance.
    pub fn of<const D: usize>(x: Tensor<D>) -> Self {
        assert_variance(x.dims());
        let rows = rows(x);
        let channels = rows.dims()[0];
        let mean = rows.clone().mean_dim(1);
        let variance = (rows - mean.clone()).square().mean_dim(1);
        Self { mean: mean.reshape([channels]), variance: variance.reshape([channels]) }
    }
}

/// Whether a batch of this shape has at least two values a channel. A training step
/// [asks](Question::Variance); elsewhere it has to.
///
/// # Panics
/// In the name of batch normalization, if it has not and nobody asked.
pub(crate) fn assert_variance<const D: usize>(shape: [usize; D]) {
    let values = shape[0] * shape[2..].iter().product::<usize>();
    if values >= 2 {
        return;
    }
    let error = FlowError::invalid(
        "BatchNorm: the values of a channel",
        format!("{values} in a batch of shape {shape:?}"),
        "at least 2, which have a variance",
        "give it a larger batch (one context for all samples is a batch of one), or freeze it",
    );
    let text = error.to_string();
    assert!(support::report(Question::Variance, || Some(error)), "{text}");
}

/// `[batch, channels, ...] -> [channels, values]`.
fn rows<const D: usize>(x: Tensor<D>) -> Tensor<2> {
    let shape = x.dims();
    let values = shape[0] * shape[2..].iter().product::<usize>();
    x.swap_dims(0, 1).reshape([shape[1], values])
}

/// Running moments: `running = (1 - momentum) running + momentum batch`; the first batch is taken as
/// it is.
///
/// They are parameters that are saved but not trained. `Module::freeze` holds them where they are,
/// whatever batches come, and `Module::unfreeze` lets them move again.
#[derive(Module, Debug)]
pub struct RunningMoments {
    /// Running means, `[channels]`, not trained.
    pub mean: Param<Tensor<1>>,
    /// Running variances, `[channels]`, not trained.
    pub variance: Param<Tensor<1>>,
    /// 1 once a batch was seen, else 0; `[1]`, not trained.
    pub initialized: Param<Tensor<1>>,
    /// Whether they move; not part of a record, as of no parameter what is trained is.
    pub training: Param<Flag>,
    momentum: Setting<f64>,
    epsilon: Setting<f64>,
}

impl RunningMoments {
    /// Mean 0 and variance 1 for `num_channels` channels, waiting for the first batch.
    ///
    /// # Errors
    /// If `num_channels` is zero, `momentum` not within 0 to 1, or `epsilon` not positive.
    pub fn new(num_channels: usize, momentum: f64, epsilon: f64, device: &Device) -> Result<Self> {
        let error = |parameter, got: String, needed, advice| {
            Err(FlowError::config("BatchNorm", parameter, got, needed, advice))
        };
        if num_channels == 0 {
            return error(
                "num_channels",
                "0".into(),
                "at least 1",
                "give the number of channels of the input",
            );
        }
        if !(momentum > 0.0 && momentum <= 1.0) {
            return error(
                "momentum",
                momentum.to_string(),
                "above 0, at most 1",
                "0.1 averages over about ten batches, 1 takes the last batch alone",
            );
        }
        if !(epsilon > 0.0 && epsilon.is_finite()) {
            return error("epsilon", epsilon.to_string(), "positive and finite", "1e-4 is usual");
        }
        Ok(Self {
            mean: frozen(Tensor::zeros([num_channels], device)),
            variance: frozen(Tensor::ones([num_channels], device)),
            initialized: frozen(Tensor::zeros([1], device)),
            training: Param::from_bool(true),
            momentum: momentum.into(),
            epsilon: epsilon.into(),
        })
    }

    /// Given moments, which count as those of batches that were seen.
    pub(crate) fn seen(
        mean: Param<Tensor<1>>,
        variance: Param<Tensor<1>>,
        momentum: f64,
        epsilon: f64,
    ) -> Self {
        let initialized = Tensor::ones([1], (&mean.val().device(), mean.val().dtype()));
        let (momentum, epsilon) = (momentum.into(), epsilon.into());
        let (initialized, training) = (frozen(initialized), Param::from_bool(true));
        Self { mean, variance, initialized, training, momentum, epsilon }
    }

    /// Weight of a new batch in the average.
    pub fn momentum(&self) -> f64 {
        *self.momentum
    }

    /// Added to the variance.
    pub fn epsilon(&self) -> f64 {
        *self.epsilon
    }

    /// Whether a batch was seen (also before saving and loading).
    pub fn is_initialized(&self) -> bool {
        host::scalar(host::plain(self.initialized.val())) > 0.5
    }

    /// Whether no batch moves them.
    pub fn is_frozen(&self) -> bool {
        // At inference the flag is down as well, and what it will be in training is kept aside.
        !self.training.clone().train().is_enabled()
    }

    /// The moments as they are now.
    pub fn current(&self) -> Moments {
        Moments { mean: self.mean.val(), variance: self.variance.val() }
    }

    /// The moments as they are now, with the gradients that those of `x` have; constants as long as no
    /// batch was seen, and in channels where `x` is farther away than [`MOST_DEVIATION`].
    pub(crate) fn with_gradients_of<const D: usize>(&self, x: &Tensor<D>) -> Moments {
        let running = self.current();
        let rows = rows(x.clone());
        let channels = rows.dims()[0];
        let mean = rows.clone().mean_dim(1).reshape([channels]);
        // About the running means, as they are what is subtracted.
        let deviations = rows - running.mean.clone().detach().reshape([channels, 1]);
        let variance = deviations.square().mean_dim(1).reshape([channels]);
        let is_near = (variance.clone() * self.precision()).lower_equal_elem(MOST_DEVIATION);
        // As a tensor: to ask a GPU for the value would be to wait for it.
        let is_initialized = self.initialized.val().greater_elem(0.5).expand([channels]);
        let is_constant = is_near.bool_and(is_initialized).bool_not();
        let through = |value: Tensor<1>, of: Tensor<1>| {
            value.detach() + (of.clone() - of.detach()).mask_fill(is_constant.clone(), 0.0)
        };
        Moments { mean: through(running.mean, mean), variance: through(running.variance, variance) }
    }

    /// `1 / (variance + epsilon)`, `[channels]`.
    pub(crate) fn precision(&self) -> Tensor<1> {
        (self.variance.val() + *self.epsilon).recip()
    }

    /// Takes in the moments of `x`, as [`data_pass`](Self::data_pass); an empty batch has none, and frozen
    /// moments ask for none.
    ///
    /// # Panics
    /// As [`Moments::of`].
    pub(crate) fn take_in<const D: usize>(self, x: &Tensor<D>, pass: Pass) -> Self {
        let stays = x.dims()[0] == 0 || self.is_frozen();
        if stays { self } else { self.data_pass(Moments::of(x.clone()), pass) }
    }

    /// Takes the moments of the first batch as they are; later ones change nothing.
    pub fn initialize(self, batch: Moments) -> Self {
        if self.is_initialized() { self } else { self.update(batch) }
    }

    /// Takes in the moments of a batch; [frozen](Self::is_frozen) ones stay.
    pub fn update(mut self, batch: Moments) -> Self {
        if self.is_frozen() {
            return self;
        }
        // As tensors, of which the first batch keeps nothing: to ask a GPU for the mark would be to wait.
        let seen = self.initialized.val();
        let kept = seen.clone() * (1.0 - *self.momentum);
        let taken = seen.clone() * *self.momentum - (seen - 1.0);
        let blend = |running: Tensor<1>, batch: Tensor<1>| {
            running * kept.clone() + batch.detach() * taken.clone()
        };
        let mean = blend(self.mean.val(), batch.mean);
        let variance = blend(self.variance.val(), batch.variance);
        let mark = self.initialized.val().ones_like();
        self.mean = replace(self.mean, mean);
        self.variance = replace(self.variance, variance);
        self.initialized = replace(self.initialized, mark);
        self
    }

    /// The part of a [`Flow::data_pass`](crate::Flow::data_pass): [`initialize`](Self::initialize) or
    /// [`update`](Self::update).
    pub(crate) fn data_pass(self, batch: Moments, pass: Pass) -> Self {
        match pass {
            Pass::Initialize => self.initialize(batch),
            Pass::Observe => self.update(batch),
        }
    }

    /// `(x - mean) / sqrt(variance + epsilon)`, the moments being constants, and the logarithm of
    /// `1 / sqrt(variance + epsilon)`, `[channels]`.
    pub(crate) fn normalize<const D: usize>(
        &self,
        x: Tensor<D>,
        moments: Moments,
    ) -> (Tensor<D>, Tensor<1>) {
        let log_scale = self.log_scale(moments.variance.detach());
        let z = (x - per_channel(moments.mean.detach())) * per_channel(log_scale.clone().exp());
        (z, log_scale)
    }

    /// The inverse of [`normalize`](RunningMoments::normalize).
    pub(crate) fn denormalize<const D: usize>(&self, z: Tensor<D>, moments: Moments) -> Tensor<D> {
        let log_scale = self.log_scale(moments.variance.detach());
        z * per_channel(log_scale.neg().exp()) + per_channel(moments.mean.detach())
    }

    /// The logarithm of `1 / sqrt(variance + epsilon)`, `[channels]`.
    pub(crate) fn log_scale(&self, variance: Tensor<1>) -> Tensor<1> {
        (variance + *self.epsilon).log() * -0.5
    }

    pub(crate) fn assert_channels<const D: usize>(&self, x: &Tensor<D>) {
        let channels = self.mean.dims()[0];
        assert_size("BatchNorm", x, channels, "channels");
    }
}
