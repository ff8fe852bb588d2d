//! A mixture of normals whose parameters depend on a context.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, activation};
use rand::Rng;

use super::full_mixture::Components;
use super::mixture::draw_components;
use super::{Prior, context_pass, standard_normal};
use crate::chain::zero_log_det;
use crate::conditioner::Conditioner;
use crate::context::Context;
use crate::error::{FlowError, Result};
use crate::flow::Pass;
use crate::host;
use crate::record::Setting;

const LAYER: &str = "ContextMixture";

/// A mixture density network: a mixture of normals with full covariance, all of whose parameters a net
/// computes from the [context](crate::context).
///
/// `(logits, means, log_diagonals, lower) = net(context)`, those of a [`FullMixture`](super::FullMixture)
/// in this order, component by component: `components (1 + 2 features + features (features - 1) / 2)`
/// numbers, see [`num_numbers`](ContextMixture::num_numbers).
///
/// Source: Bishop, *Mixture Density Networks*, NCRG/94/004, 1994.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::conditioner::{Mlp, MlpConfig};
/// use burn_flows::context::Given;
/// use burn_flows::prior::{ContextMixture, Prior};
///
/// let device = burn_flows::backend::device();
/// let numbers = ContextMixture::<Mlp>::num_numbers(2, 1);
/// assert_eq!(numbers, 2 * 3);
/// // All parameters 0: two standard normals on each other.
/// let net = MlpConfig::new(3, vec![8], numbers).with_zero_init(true).init(&device)?;
/// let prior = ContextMixture::new(net, 2, 3, &device)?.given(&Tensor::<2>::ones([1, 3], &device))?;
/// let log_prob = prior.log_prob(Tensor::<2>::zeros([1, 1], &device)).into_scalar::<f32>();
/// assert!((log_prob + (2.0 * std::f32::consts::PI).ln() / 2.0).abs() < 1e-4);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct ContextMixture<N> {
    /// The net: `[batch, width] -> [batch, numbers]`.
    pub net: N,
    /// The place of the context.
    pub context: Context,
    components: Setting<usize>,
}

impl<N: Conditioner<2>> ContextMixture<N> {
    /// A net, the number of components and the width of the contexts.
    ///
    /// `log_prob` and `sample` panic where the net does not give as many numbers as a mixture of the
    /// latent's features has, or no context is given.
    ///
    /// # Errors
    /// If there is no component.
    pub fn new(
        net: N,
        num_components: usize,
        context_width: usize,
        device: &Device,
    ) -> Result<Self> {
        if num_components == 0 {
            let advice = "one component is a normal";
            return Err(FlowError::config(LAYER, "num_components", 0, "at least 1", advice));
        }
        let context = Context::new(context_width, device);
        Ok(Self { net, context, components: num_components.into() })
    }

    /// Numbers that the net has to give for a mixture of so many features.
    pub fn num_numbers(num_components: usize, num_features: usize) -> usize {
        num_components * (1 + 2 * num_features + num_features * (num_features - 1) / 2)
    }

    fn components(&self, [batch, features]: [usize; 2]) -> Components {
        let count = *self.components;
        let numbers = self.net.forward(self.context.rows(batch));
        let needed = [batch, Self::num_numbers(count, features)];
        assert!(
            numbers.dims() == needed,
            "{LAYER}: the net gave numbers of shape {:?}, but {count} components of {features} features \
             need {needed:?}; give it {} outputs",
            numbers.dims(),
            needed[1]
        );
        let below = features * (features - 1) / 2;
        let part = |start: usize, width: usize| {
            numbers.clone().narrow(1, start, count * width).reshape([batch, count, width])
        };
        let logits = numbers.clone().narrow(1, 0, count);
        Components {
            log_weights: activation::log_softmax(logits, 1),
            mean: part(count, features),
            log_diagonal: part(count * (1 + features), features),
            lower: (below > 0).then(|| part(count * (1 + 2 * features), below)),
        }
    }
}

impl<N: Conditioner<2>> Prior<2> for ContextMixture<N>
where
    Self: Module,
{
    fn log_prob(&self, z: Tensor<2>) -> Tensor<1> {
        if host::has_no_samples(&z) {
            return zero_log_det(&z);
        }
        self.components(z.dims()).log_prob(z)
    }

    fn sample(
        &self,
        shape: [usize; 2],
        temperature: f64,
        rng: &mut impl Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<2> {
        let noise = standard_normal(shape, rng, device, dtype);
        if host::has_no_samples(&noise) {
            return noise;
        }
        let components = self.components(shape);
        let log_weights = host::to_f64(host::plain(components.log_weights.clone()));
        let rows = log_weights.chunks(*self.components);
        let choices = rows.map(|logits| draw_components(logits, 1, rng, device, dtype)).collect();
        components.draw(Tensor::cat(choices, 0), noise * temperature)
    }

    fn data_pass(mut self, z: Tensor<2>, pass: Pass) -> Self {
        self.net = context_pass(self.net, &self.context, z.dims()[0], pass);
        self
    }
}
