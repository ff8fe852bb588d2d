//! Classes as contexts: the densities of all of them, and Bayes' rule.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{all_classes, depends_on_vectors, filled_with};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::prior::{Prior, SplitPrior, log_sum_exp};
use crate::stack::{Encoded, FlowStack};
use crate::tape::Tape;

/// What Bayes' rule makes of the densities of the classes, all in nats; see
/// [`FlowStack::classify`](crate::FlowStack::classify).
#[derive(Debug, Clone)]
pub struct Classification {
    /// `ln p(x | y)` for each class, `[batch, classes]`.
    pub log_prob_by_class: Tensor<2>,
    /// `ln p(y | x)`, `[batch, classes]`.
    pub log_posterior: Tensor<2>,
    /// `ln p(x) = ln sum_y p(y) p(x | y)`, `[batch]`.
    pub log_prob: Tensor<1>,
}

impl Classification {
    /// The likeliest class of each sample, the first of those that are equally likely; none where its
    /// log-densities are not numbers or it has no density under any class.
    pub fn classes(&self) -> Vec<Option<usize>> {
        let num_classes = self.log_posterior.dims()[1];
        let values = host::to_f64(host::plain(self.log_posterior.clone()));
        let likeliest = |row: &[f64]| {
            if row.iter().any(|value| value.is_nan()) {
                return None;
            }
            let better = |best: usize, at: usize| if row[at] > row[best] { at } else { best };
            (0..row.len()).reduce(better)
        };
        values.chunks(num_classes).map(likeliest).collect()
    }
}

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// `ln p(x | y)` in nats for every class `y` of a model whose contexts of rank 2 are
    /// [classes](super::Given::one_hot): `[batch, classes]`. What the model was given before in their
    /// place does not matter.
    ///
    /// Where the priors alone depend on the class, the flow runs once; otherwise once a class.
    ///
    /// # Errors
    /// If no layer takes a context of rank 2, several take different widths, or a layer waits for a
    /// context of another rank.
    ///
    /// # Panics
    /// As [`log_prob`](FlowStack::log_prob).
    pub fn log_prob_by_class(&self, x: Tensor<D>) -> Result<Tensor<2>> {
        let classes = all_classes(self)?;
        if host::has_no_samples(&x) {
            return Ok(host::empty_like(&x, [0, classes.len()]));
        }
        if depends_on_vectors(&self.levels) {
            let of_class = |class| filled_with(self, class).log_prob(x.clone());
            return Ok(Tensor::stack(classes.iter().map(of_class).collect(), 1));
        }
        self.assert_exact_score(&x);
        let Encoded { latents, kept, log_dets } = self.encode_levels(x, &mut Tape::default());
        let mut of_all = log_dets.into_iter().reduce(|sum, more| sum + more).expect("a level");
        let mut by_class: Vec<Option<Tensor<1>>> = vec![None; classes.len()];
        let mut add = |is_of_class: bool, term: &dyn Fn(usize) -> Tensor<1>| {
            if !is_of_class {
                of_all = of_all.clone() + term(0);
                return;
            }
            for (class, sum) in by_class.iter_mut().enumerate() {
                let term = term(class);
                *sum = Some(sum.take().map_or(term.clone(), |sum| sum + term));
            }
        };
        let mut parts = latents.into_parts().into_iter();
        for (prior, kept) in self.split_priors.iter().zip(kept) {
            let z = parts.next().expect("a part for each level");
            add(depends_on_vectors(prior), &|class| {
                let prior = filled_with(prior, &classes[class]);
                prior.log_prob(z.clone(), kept.clone())
            });
        }
        let z = parts.next().expect("a part for each level");
        add(depends_on_vectors(&self.prior), &|class| {
            Prior::log_prob(&filled_with(&self.prior, &classes[class]), z.clone())
        });
        let sums = by_class.into_iter().map(|sum| match sum {
            Some(sum) => sum + of_all.clone(),
            None => of_all.clone(),
        });
        Ok(Tensor::stack(sums.collect(), 1))
    }

    /// Finds the class by Bayes' rule, `p(y | x) = p(x | y) p(y) / p(x)`, and with it
    /// `p(x) = sum_y p(x | y) p(y)`. `class_weights` are in proportion to `p(y)`: how many samples of
    /// each class there are, or all 1.
    ///
    /// ```
    /// use burn::module::Param;
    /// use burn::tensor::Tensor;
    /// use burn_flows::conditioner::MlpConfig;
    /// use burn_flows::{FlowStack, linear::DiagonalScaling, prior::ContextNormal};
    ///
    /// let device = burn_flows::backend::device();
    /// // Class 0 is a normal around 1, class 1 one around -1.
    /// let mut net = MlpConfig::new(2, vec![], 2).with_zero_init(true).init(&device)?;
    /// net.layers[0].weight = Param::from_data([[1.0, 0.0], [-1.0, 0.0]], &device);
    /// let prior = ContextNormal::new(net, 2, &device);
    /// let model: FlowStack<2, _, _> =
    ///     FlowStack::single(DiagonalScaling::new(1, &device)?, prior, &[1])?;
    ///
    /// let x = Tensor::from_data([[0.5], [-0.1]], &device);
    /// let found = model.classify(x.clone(), &[1.0, 1.0])?;
    /// assert_eq!(found.classes(), [Some(0), Some(1)]);
    /// // ln p(0 | x) - ln p(1 | x) = 2 x, and another ln 3 where class 0 is three times as frequent.
    /// let odds = |log_posterior: Tensor<2>| -> Vec<f32> {
    ///     let difference = log_posterior.clone().narrow(1, 0, 1) - log_posterior.narrow(1, 1, 1);
    ///     difference.try_into_vec_as().unwrap()
    /// };
    /// assert!((odds(found.log_posterior)[0] - 1.0).abs() < 1e-5);
    /// let found = model.classify(x, &[3.0, 1.0])?;
    /// assert!((odds(found.log_posterior)[0] - 1.0 - 3_f32.ln()).abs() < 1e-5);
    /// # Ok::<(), burn_flows::FlowError>(())
    /// ```
    ///
    /// # Errors
    /// As [`log_prob_by_class`](FlowStack::log_prob_by_class); if there is not one weight a class, or
    /// the weights are not finite numbers of at least 0 with one above.
    ///
    /// # Panics
    /// As [`log_prob`](FlowStack::log_prob).
    pub fn classify(&self, x: Tensor<D>, class_weights: &[f64]) -> Result<Classification> {
        let num_classes = all_classes(self)?.len();
        let total: f64 = class_weights.iter().sum();
        let is_weight = |weight: &f64| *weight >= 0.0;
        if class_weights.len() != num_classes
            || !class_weights.iter().all(is_weight)
            || !(total > 0.0 && total.is_finite())
        {
            return Err(FlowError::invalid(
                "FlowStack: the weights of the classes",
                format!("{class_weights:?}"),
                format!("{num_classes} finite numbers of at least 0, one of them above"),
                "1 for each makes all classes equally likely",
            ));
        }
        let log_prob_by_class = self.log_prob_by_class(x)?;
        if log_prob_by_class.dims()[0] == 0 {
            let log_prob = host::empty_like(&log_prob_by_class, [0]);
            let log_posterior = log_prob_by_class.clone();
            return Ok(Classification { log_prob_by_class, log_posterior, log_prob });
        }
        let log_weights = class_weights.iter().map(|weight| (weight / total).ln()).collect();
        let (device, dtype) = (log_prob_by_class.device(), log_prob_by_class.dtype());
        let log_weights: Tensor<2> = host::from_f64(log_weights, [1, num_classes], &device, dtype);
        let joint = log_prob_by_class.clone() + log_weights;
        let log_prob = log_sum_exp(joint.clone());
        let log_posterior = joint - log_prob.clone().reshape([-1, 1]);
        Ok(Classification { log_prob_by_class, log_posterior, log_prob })
    }
}
