//! Densities of the latent.

use burn::module::Module;

use super::graph::{Graph, Value};
use super::{Net, unknown, values};
use crate::conditioner::conv::ZeroConv;
use crate::coupling::LOG_SCALE_LIMIT;
use crate::error::Result;
use crate::models::{GlowPrior, GlowSplitPrior, NicePrior};
use crate::prior::{
    BlankNormal, ConditionalNormal, DiagonalNormal, HALF_LN_TAU, StandardLogistic, StandardNormal,
};

/// A prior that can be exported.
pub trait Density: Module {
    /// Adds `ln p(z)` to a graph, `[batch]`.
    ///
    /// # Errors
    /// If it has no counterpart.
    #[doc(hidden)]
    fn log_prob(&self, graph: &mut Graph, z: &Value) -> Result<Value>;

    /// Adds the draw that follows from a draw of the prior's standard form.
    ///
    /// # Errors
    /// If it has no counterpart.
    #[doc(hidden)]
    fn sample(&self, graph: &mut Graph, noise: &Value) -> Result<Value>;
}

/// A prior of what a split factors out that can be exported.
pub trait SplitDensity: Module {
    /// Adds `ln p(z | kept)` to a graph, `[batch]`.
    ///
    /// # Errors
    /// If it has no counterpart.
    #[doc(hidden)]
    fn log_prob(&self, graph: &mut Graph, z: &Value, kept: &Value) -> Result<Value>;

    /// Adds the draw that follows from a standard normal one.
    ///
    /// # Errors
    /// If it has no counterpart.
    #[doc(hidden)]
    fn sample(&self, graph: &mut Graph, noise: &Value, kept: &Value) -> Result<Value>;
}

/// `ln N(z; 0, 1)` summed over all entries.
fn standard_normal(graph: &mut Graph, z: &Value) -> Value {
    let square = graph.binary("Mul", z, z);
    let sum = graph.sum(&square);
    let sum = graph.with_number("Mul", &sum, -0.5);
    let entries: usize = z.shape().iter().product();
    graph.with_number("Add", &sum, -HALF_LN_TAU * entries as f64)
}

impl Density for StandardNormal {
    fn log_prob(&self, graph: &mut Graph, z: &Value) -> Result<Value> {
        Ok(standard_normal(graph, z))
    }

    fn sample(&self, _graph: &mut Graph, noise: &Value) -> Result<Value> {
        Ok(noise.clone())
    }
}

impl Density for StandardLogistic {
    fn log_prob(&self, graph: &mut Graph, z: &Value) -> Result<Value> {
        // softplus(z) + softplus(-z), which is minus ln p.
        let negative = graph.unary("Neg", z);
        let parts = [z, &negative].map(|part| graph.unary("Softplus", part));
        let sum = graph.binary("Add", &parts[0], &parts[1]);
        let sum = graph.sum(&sum);
        Ok(graph.unary("Neg", &sum))
    }

    fn sample(&self, _graph: &mut Graph, noise: &Value) -> Result<Value> {
        Ok(noise.clone())
    }
}

/// Normals whose numbers are constants of the shape `dims`, without the batch.
struct Constants {
    mean: Vec<f64>,
    log_std: Vec<f64>,
    dims: Vec<usize>,
}

impl Constants {
    fn log_prob(&self, graph: &mut Graph, z: &Value) -> Value {
        let inverse: Vec<f64> = self.log_std.iter().map(|log_std| (-log_std).exp()).collect();
        let centred = graph.with_constant("Sub", z, &self.mean, &self.dims);
        let standardized = graph.with_constant("Mul", &centred, &inverse, &self.dims);
        let log_prob = standard_normal(graph, &standardized);
        // Numbers of a channel count for each of its pixels.
        let times = z.shape().iter().product::<usize>() / self.log_std.len();
        let log_det = self.log_std.iter().sum::<f64>() * times as f64;
        graph.with_number("Sub", &log_prob, log_det)
    }

    fn sample(&self, graph: &mut Graph, noise: &Value) -> Value {
        let std: Vec<f64> = self.log_std.iter().map(|log_std| log_std.exp()).collect();
        let scaled = graph.with_constant("Mul", noise, &std, &self.dims);
        graph.with_constant("Add", &scaled, &self.mean, &self.dims)
    }
}

impl<const D: usize> DiagonalNormal<D> {
    fn constants(&self) -> Constants {
        Constants {
            mean: values(self.mean.val()),
            log_std: values(self.log_std.val()),
            dims: self.mean.dims()[1..].to_vec(),
        }
    }
}

impl<const D: usize> Density for DiagonalNormal<D> {
    fn log_prob(&self, graph: &mut Graph, z: &Value) -> Result<Value> {
        Ok(self.constants().log_prob(graph, z))
    }

    fn sample(&self, graph: &mut Graph, noise: &Value) -> Result<Value> {
        Ok(self.constants().sample(graph, noise))
    }
}

/// The numbers of a blank picture of a latent's size.
fn blank(prior: &BlankNormal, z: &Value) -> Result<Constants> {
    let &[_, height, width] = z.shape() else {
        return Err(unknown("the prior of a blank picture for what is no image"));
    };
    let (mean, log_std) = prior.parameters([height, width]);
    let dims = mean.dims()[1..].to_vec();
    Ok(Constants { mean: values(mean), log_std: values(log_std), dims })
}

impl Density for BlankNormal {
    fn log_prob(&self, graph: &mut Graph, z: &Value) -> Result<Value> {
        Ok(blank(self, z)?.log_prob(graph, z))
    }

    fn sample(&self, graph: &mut Graph, noise: &Value) -> Result<Value> {
        Ok(blank(self, noise)?.sample(graph, noise))
    }
}

impl<P: Density> SplitDensity for P {
    fn log_prob(&self, graph: &mut Graph, z: &Value, _kept: &Value) -> Result<Value> {
        Density::log_prob(self, graph, z)
    }

    fn sample(&self, graph: &mut Graph, noise: &Value, _kept: &Value) -> Result<Value> {
        Density::sample(self, graph, noise)
    }
}

impl SplitDensity for ConditionalNormal<ZeroConv> {
    fn log_prob(&self, graph: &mut Graph, z: &Value, kept: &Value) -> Result<Value> {
        let (mean, log_std) = conditional(self, graph, kept)?;
        let centred = graph.binary("Sub", z, &mean);
        let negative = graph.unary("Neg", &log_std);
        let inverse = graph.unary("Exp", &negative);
        let standardized = graph.binary("Mul", &centred, &inverse);
        let log_prob = standard_normal(graph, &standardized);
        let log_det = graph.sum(&log_std);
        Ok(graph.binary("Sub", &log_prob, &log_det))
    }

    fn sample(&self, graph: &mut Graph, noise: &Value, kept: &Value) -> Result<Value> {
        let (mean, log_std) = conditional(self, graph, kept)?;
        let std = graph.unary("Exp", &log_std);
        let scaled = graph.binary("Mul", noise, &std);
        Ok(graph.binary("Add", &scaled, &mean))
    }
}

fn conditional(
    prior: &ConditionalNormal<ZeroConv>,
    graph: &mut Graph,
    kept: &Value,
) -> Result<(Value, Value)> {
    let numbers = prior.conditioner.export(graph, kept)?;
    let channels = numbers.channels() / 2;
    let mean = graph.narrow(&numbers, 0, channels);
    let log_std = graph.narrow(&numbers, channels, channels);
    Ok((mean, graph.clip(&log_std, -LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)))
}

const CLASSES: &str = "a prior that depends on a class";

impl Density for GlowPrior {
    fn log_prob(&self, graph: &mut Graph, z: &Value) -> Result<Value> {
        match self {
            Self::Standard(prior) => Density::log_prob(prior, graph, z),
            Self::Learned(prior) => Density::log_prob(prior, graph, z),
            Self::Blank(prior) => Density::log_prob(prior, graph, z),
            Self::Class(_) => Err(unknown(CLASSES)),
        }
    }

    fn sample(&self, graph: &mut Graph, noise: &Value) -> Result<Value> {
        match self {
            Self::Standard(prior) => Density::sample(prior, graph, noise),
            Self::Learned(prior) => Density::sample(prior, graph, noise),
            Self::Blank(prior) => Density::sample(prior, graph, noise),
            Self::Class(_) => Err(unknown(CLASSES)),
        }
    }
}

impl SplitDensity for GlowSplitPrior {
    fn log_prob(&self, graph: &mut Graph, z: &Value, kept: &Value) -> Result<Value> {
        match self {
            Self::Standard(prior) => SplitDensity::log_prob(prior, graph, z, kept),
            Self::Conditional(prior) => prior.log_prob(graph, z, kept),
            Self::Class(_) | Self::ConditionalClass(_) => Err(unknown(CLASSES)),
        }
    }

    fn sample(&self, graph: &mut Graph, noise: &Value, kept: &Value) -> Result<Value> {
        match self {
            Self::Standard(prior) => SplitDensity::sample(prior, graph, noise, kept),
            Self::Conditional(prior) => prior.sample(graph, noise, kept),
            Self::Class(_) | Self::ConditionalClass(_) => Err(unknown(CLASSES)),
        }
    }
}

impl Density for NicePrior {
    fn log_prob(&self, graph: &mut Graph, z: &Value) -> Result<Value> {
        match self {
            Self::Logistic(prior) => Density::log_prob(prior, graph, z),
            Self::Normal(prior) => Density::log_prob(prior, graph, z),
        }
    }

    fn sample(&self, graph: &mut Graph, noise: &Value) -> Result<Value> {
        match self {
            Self::Logistic(prior) => Density::sample(prior, graph, noise),
            Self::Normal(prior) => Density::sample(prior, graph, noise),
        }
    }
}
