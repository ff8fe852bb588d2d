//! Simulators whose posteriors are known, from the benchmark `sbibm` (Lueckmann et al., *Benchmarking
//! simulation-based inference*, [arXiv:2101.04653](https://arxiv.org/abs/2101.04653)).

use std::f64::consts::{FRAC_PI_2, SQRT_2};

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;

/// A prior of parameters and a simulator of data.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// 2 parameters, 2 data: a posterior of two crescents
    TwoMoons,
    /// 5 parameters, 8 data: a simple likelihood, four modes
    Slcp,
    /// 10 parameters, 10 data: a normal posterior
    GaussianLinear,
    /// 2 parameters, 2 data: a broad and a narrow normal around one mean
    GaussianMixture,
}

/// Variance of prior and noise of the linear Gaussian.
const LINEAR_VARIANCE: f64 = 0.1;

impl Task {
    /// The name that the option takes.
    pub fn name(self) -> String {
        self.to_possible_value().expect("no task is hidden").get_name().into()
    }

    pub fn num_parameters(self) -> usize {
        match self {
            Self::TwoMoons | Self::GaussianMixture => 2,
            Self::Slcp => 5,
            Self::GaussianLinear => 10,
        }
    }

    pub fn num_data(self) -> usize {
        match self {
            Self::TwoMoons | Self::GaussianMixture => 2,
            Self::Slcp => 8,
            Self::GaussianLinear => 10,
        }
    }

    /// The prior is uniform from minus this to this; without a bound it is normal.
    pub fn bound(self) -> Option<f64> {
        match self {
            Self::TwoMoons => Some(1.0),
            Self::Slcp => Some(3.0),
            Self::GaussianMixture => Some(10.0),
            Self::GaussianLinear => None,
        }
    }

    /// Parameters of the prior.
    pub fn draw(self, rng: &mut StdRng) -> Vec<f64> {
        let mut parameter = || match self.bound() {
            Some(bound) => rng.random_range(-bound..bound),
            None => LINEAR_VARIANCE.sqrt() * normal(rng),
        };
        (0..self.num_parameters()).map(|_| parameter()).collect()
    }

    /// Data of these parameters.
    pub fn simulate(self, theta: &[f64], rng: &mut StdRng) -> Vec<f64> {
        match self {
            Self::TwoMoons => {
                let angle = rng.random_range(-FRAC_PI_2..FRAC_PI_2);
                let radius = 0.1 + 0.01 * normal(rng);
                vec![
                    radius * angle.cos() + 0.25 - (theta[0] + theta[1]).abs() / SQRT_2,
                    radius * angle.sin() + (theta[1] - theta[0]) / SQRT_2,
                ]
            }
            Self::Slcp => {
                let (s1, s2, correlation) = (theta[2].powi(2), theta[3].powi(2), theta[4].tanh());
                // The factor of the covariance, which has 1e-6 on its diagonal so that it never is singular.
                let (a, b) = (s1.powi(2) + 1e-6, correlation * s1 * s2);
                let rest = (s2.powi(2) + 1e-6 - b * b / a).max(0.0).sqrt();
                let mut point = || {
                    let (u, v) = (normal(rng), normal(rng));
                    [theta[0] + a.sqrt() * u, theta[1] + b / a.sqrt() * u + rest * v]
                };
                (0..4).flat_map(|_| point()).collect()
            }
            Self::GaussianLinear => {
                theta.iter().map(|mean| mean + LINEAR_VARIANCE.sqrt() * normal(rng)).collect()
            }
            Self::GaussianMixture => {
                let deviation = if rng.random::<bool>() { 1.0 } else { 0.1 };
                theta.iter().map(|mean| mean + deviation * normal(rng)).collect()
            }
        }
    }
}

fn normal(rng: &mut impl Rng) -> f64 {
    StandardNormal.sample(rng)
}
