//! Filling in what is missing.

use burn::module::Module;
use burn::tensor::Tensor;
use rand::Rng;

use crate::coupling::sum_per_sample;
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::prior::{Prior, SplitPrior, standard_normal};
use crate::stack::FlowStack;

/// How [`FlowStack::inpaint`] climbs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inpainting {
    /// Steps, those that were taken back included; default: 300.
    pub num_steps: usize,
    /// Multiplies the step size of the paper, `10 / (100 + i)`, at the start; default: 1.
    pub step_size: f64,
    /// Standard deviation of the noise added to each gradient; default: 1, as in the paper.
    pub noise: f64,
    /// The interval that data lie in and that is not left; default: 0 to 1.
    pub range: [f64; 2],
    /// What moves; default: the data.
    pub coordinates: InpaintingCoordinates,
}

/// In which coordinates [`FlowStack::inpaint`] climbs, and of which the density is that it raises: a
/// density has other peaks in other coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InpaintingCoordinates {
    /// The data themselves, as in the paper: for models without a
    /// [`Logit`](crate::preprocess::Logit).
    Data,
    /// `y = ln((x - low) / (high - x))` of the unknown values: for models that start with a
    /// [`Logit`](crate::preprocess::Logit). With respect to `x` their density has a pole at either end
    /// of the range, and every value runs into the nearer one.
    Logit,
}

/// What [`FlowStack::inpaint`] came to.
#[derive(Debug, Clone)]
pub struct Inpainted<const D: usize> {
    /// The samples, filled in.
    pub x: Tensor<D>,
    /// `ln p` of each sample at the start, in nats, in the coordinates climbed in.
    pub log_prob_before: Vec<f64>,
    /// The same at the end, never lower.
    pub log_prob_after: Vec<f64>,
}

impl Default for Inpainting {
    fn default() -> Self {
        Self {
            num_steps: 300,
            step_size: 1.0,
            noise: 1.0,
            range: [0.0, 1.0],
            coordinates: InpaintingCoordinates::Data,
        }
    }
}

/// The step of a sample grows by this after a step that raised `ln p`, and shrinks by the other after
/// one that did not.
const GROWTH: f64 = 1.5;
const SHRINKAGE: f64 = 0.5;

/// How near to the ends of the range, as a share of it, a value can start in logit coordinates: a
/// hundredth of a level of 8 bits. Nearer, the gradient vanishes.
const LOGIT_MARGIN: f64 = 0.01 / 256.0;

/// Farthest logit coordinate: there `x` in f32 is still off both ends.
const LOGIT_LIMIT: f64 = 15.0;

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// Fills in the unknown values of samples by projected gradient ascent on `ln p`, the known ones
    /// held.
    ///
    /// `x` holds the known values and, in the place of the unknown ones, where the ascent starts;
    /// `known` is 1 where a value is known and 0 where it is not, of the shape of `x` or broadcast to
    /// it. In step `i`, counted from 0,
    ///
    /// `unknown <- clamp(unknown + c 10 / (100 + i) (gradient of ln p + noise N(0, 1)), range)`
    ///
    /// with a factor `c` for each sample, [`step_size`](Inpainting::step_size) at the start. In the
    /// paper it is 1 throughout, which fits its model and data; here a step after which `ln p` is not
    /// higher is taken back and `c` halved, after any other `c` grows by a half, so that it fits every
    /// model. `ln p` therefore never falls.
    ///
    /// It finds a peak of the density near the start, not a draw from it: start from several places.
    ///
    /// Source: Dinh et al., *NICE*, [arXiv:1410.8516](https://arxiv.org/abs/1410.8516), section 5.2.
    ///
    /// # Shapes
    /// - `x`: `[batch, ...]`, samples of the stack's shape; the known values come back bit by bit
    ///
    /// # Errors
    /// [`FlowError::Invalid`] if `ln p` of a start is not finite.
    ///
    /// # Panics
    /// If the samples do not have the shape the stack was built for.
    pub fn inpaint(
        &self,
        x: Tensor<D>,
        known: Tensor<D>,
        how: &Inpainting,
        rng: &mut impl Rng,
    ) -> Result<Inpainted<D>> {
        if host::has_no_samples(&x) {
            self.assert_sample_shape(&x);
            return Ok(Inpainted { x, log_prob_before: Vec::new(), log_prob_after: Vec::new() });
        }
        let model = self.clone().train().no_grad();
        let known = known.greater_elem(0.5).expand(x.dims());
        let climb = Climb { known: known.clone(), fixed: x.clone(), how };
        let batch = x.dims()[0];
        let mut per_sample = [1; D];
        per_sample[0] = batch;
        let column =
            |values: Vec<f64>| host::from_f64::<D>(values, per_sample, &x.device(), x.dtype());

        let mut now = climb.coordinates(x.clone());
        let (before, mut gradient) = climb.log_prob(&model, now.clone());
        if let Some(sample) = before.iter().position(|log_prob| !log_prob.is_finite()) {
            return Err(FlowError::invalid(
                "FlowStack: the start of inpainting",
                format!("a ln p of {} for sample {sample}", before[sample]),
                "a finite one",
                "start nearer to data, for example from samples of the model",
            ));
        }
        let mut reached = before.clone();
        let mut factors = vec![how.step_size; batch];
        for step in 0..how.num_steps {
            let size = 10.0 / (100.0 + step as f64);
            let sizes = column(factors.iter().map(|factor| factor * size).collect());
            let noise = standard_normal(x.dims(), rng, &x.device(), x.dtype()) * how.noise;
            let tried = climb.project(now.clone() + (gradient.clone() + noise) * sizes);
            let (log_probs, new_gradient) = climb.log_prob(&model, tried.clone());
            // A NaN is not higher.
            let rose: Vec<bool> =
                log_probs.iter().zip(&reached).map(|(new, old)| new > old).collect();
            for (sample, &rose) in rose.iter().enumerate() {
                if rose {
                    reached[sample] = log_probs[sample];
                }
                factors[sample] *= if rose { GROWTH } else { SHRINKAGE };
            }
            // Chosen, not multiplied by 0 and 1: what was taken back may be infinite.
            let rose = column(rose.into_iter().map(|rose| f64::from(u8::from(rose))).collect())
                .greater_elem(0.5)
                .expand(x.dims());
            now = now.mask_where(rose.clone(), tried);
            gradient = gradient.mask_where(rose, new_gradient);
        }
        let x = climb.data(now).mask_where(known, x);
        Ok(Inpainted { x, log_prob_before: before, log_prob_after: reached })
    }
}

/// What stays the same in an ascent.
struct Climb<'a, const D: usize> {
    known: Tensor<D, burn::tensor::Bool>,
    /// The samples given, of which the known values are held.
    fixed: Tensor<D>,
    how: &'a Inpainting,
}

impl<const D: usize> Climb<'_, D> {
    /// The coordinates of `x`.
    fn coordinates(&self, x: Tensor<D>) -> Tensor<D> {
        let [low, high] = self.how.range;
        match self.how.coordinates {
            InpaintingCoordinates::Data => self.project(x),
            InpaintingCoordinates::Logit => {
                let share = (x - low) * (high - low).recip();
                let share = share.clamp(LOGIT_MARGIN, 1.0 - LOGIT_MARGIN);
                share.clone().log() - (share.neg() + 1.0).log()
            }
        }
    }

    /// The data at the coordinates `y`; undoes [`coordinates`](Climb::coordinates).
    fn data(&self, y: Tensor<D>) -> Tensor<D> {
        let [low, high] = self.how.range;
        match self.how.coordinates {
            InpaintingCoordinates::Data => y,
            InpaintingCoordinates::Logit => ((y * 0.5).tanh() + 1.0) * (0.5 * (high - low)) + low,
        }
    }

    /// Puts coordinates that left the range back to its end.
    fn project(&self, y: Tensor<D>) -> Tensor<D> {
        match self.how.coordinates {
            InpaintingCoordinates::Data => y.clamp(self.how.range[0], self.how.range[1]),
            InpaintingCoordinates::Logit => y.clamp(-LOGIT_LIMIT, LOGIT_LIMIT),
        }
    }

    /// `ln p` of each sample and its gradient, both with respect to the coordinates `y`, of which the
    /// known ones count for nothing.
    fn log_prob<F: Flow<D>, P: Prior<D>, S: SplitPrior<D>>(
        &self,
        model: &FlowStack<D, F, P, S>,
        y: Tensor<D>,
    ) -> (Vec<f64>, Tensor<D>)
    where
        FlowStack<D, F, P, S>: Module,
    {
        let y = Tensor::from_inner(y).require_grad();
        let known = Tensor::from_inner(self.known.clone());
        let x =
            self.data(y.clone()).mask_where(known.clone(), Tensor::from_inner(self.fixed.clone()));
        let mut log_prob = model.log_prob(x);
        if self.how.coordinates == InpaintingCoordinates::Logit {
            // ln dx/dy = ln(high - low) + ln sigmoid(y) + ln sigmoid(-y), without overflow.
            let size = y.clone().abs();
            let [low, high] = self.how.range;
            let slope = size.clone().neg() - size.neg().exp().log1p() * 2.0 + (high - low).ln();
            log_prob = log_prob + sum_per_sample(slope.mask_fill(known, 0.0));
        }
        let values = host::to_f64(log_prob.clone().inner());
        let mut tape = log_prob.sum().backward();
        let gradient = y.grad_remove(&mut tape).expect("ln p depends on its input");
        (values, gradient)
    }
}
