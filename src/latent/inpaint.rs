//! Filling in what is missing.

use burn::module::Module;
use burn::tensor::Tensor;
use rand::Rng;

use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::host;
use crate::prior::{Prior, SplitPrior, standard_normal};
use crate::stack::FlowStack;

/// How [`FlowStack::inpaint`] climbs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inpainting {
    /// Steps; default: 200.
    pub num_steps: usize,
    /// Standard deviation of the noise added to each gradient; default: 1, as in the paper.
    pub noise: f64,
    /// Multiplies the paper's step size of `10 / (100 + i)`; default: 1.
    pub step_size: f64,
    /// The range that data lie in, to which each iterate is cut; default: 0 to 1.
    pub range: [f64; 2],
}

impl Default for Inpainting {
    fn default() -> Self {
        Self { num_steps: 200, noise: 1.0, step_size: 1.0, range: [0.0, 1.0] }
    }
}

impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> FlowStack<D, F, P, S>
where
    Self: Module,
{
    /// TODO
    pub fn inpaint(
        &self,
        x: Tensor<D>,
        known: Tensor<D>,
        how: &Inpainting,
        rng: &mut impl Rng,
    ) -> Result<Tensor<D>> {
        let model = self.clone().train().no_grad();
        let [low, high] = how.range;
        let mut now = x.clone();
        for step in 0..how.num_steps {
            let input = Tensor::from_inner(now.clone()).require_grad();
            let log_prob = model.log_prob(input.clone());
            if step % 10 == 0 { eprintln!("{step} {:?}", host::to_f64(log_prob.clone().inner())); }
            let mut tape = log_prob.sum().backward();
            let gradient = input.grad_remove(&mut tape).expect("the density depends on its input");
            let noise = standard_normal(x.dims(), rng, &x.device(), x.dtype()) * how.noise;
            let size = how.step_size * 10.0 / (100.0 + step as f64);
            let moved = (now + (gradient + noise) * size).clamp(low, high);
            now = x.clone() * known.clone() + moved * (known.clone() * -1.0 + 1.0);
        }
        let _: Option<FlowError> = None;
        Ok(now)
    }
}
