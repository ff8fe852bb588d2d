//! Layers of flows of vectors that several libraries share, and the tables of their names.

mod autoregressive;
mod coupling;
mod nets;

use burn::module::Module;

pub(super) use autoregressive::{Made, autoregressive};
pub(super) use coupling::{Couplings, by_feature, coupling};
pub(super) use nets::{first_layer, keeps_to, linear, masked_net};

use super::exchange::{Exchange, Rows, rounded};
use crate::Flow;
use crate::autoregressive::{Autoregressive, MaskedNet};
use crate::conditioner::{Activation, BlockNet};
use crate::coupling::{
    Affine, Coupling, Elementwise, KeptPart, RationalQuadratic, RationalQuadraticConfig, Rescaled,
    SplineForm, SplineTails, slope_offset,
};
use crate::error::Result;
use crate::host;
use crate::inverse::Inverse;
use crate::linear::{LuLinear, Permutation};
use crate::preprocess::{ByColumn, ScalarMap};

/// A spline of numbers as nflows and normflows have them.
pub type Spline = Rescaled<RationalQuadratic>;

/// A flow of the features in another order, which are put back behind it.
pub type Framed<F> = (Option<Permutation>, F, Option<Permutation>);

/// A coupling of splines, and one of what it keeps.
type SplineCoupling = (Coupling<BlockNet, Spline>, Option<KeptPart<Elementwise<Spline>>>);

/// A layer of a flow of vectors of nflows or normflows.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)] // a handful of them exist in a model
pub enum VectorLayer {
    /// `PointwiseAffineTransform`.
    Standardize(ByColumn),
    /// `Permutation` and those of its kind.
    Permutation(Permutation),
    /// `LULinear`.
    Linear(LuLinear),
    /// `LULinearPermute`.
    PermutedLinear((Permutation, LuLinear)),
    /// `AffineCouplingTransform`.
    AffineCoupling(Framed<Coupling<BlockNet, Affine>>),
    /// `PiecewiseRationalQuadraticCouplingTransform`, also with a spline of what it keeps.
    SplineCoupling(Framed<SplineCoupling>),
    /// The same for a single feature, whose spline follows from the context alone.
    SplineOfContext(Autoregressive<Spline, MaskedNet>),
    /// `MaskedAffineAutoregressiveTransform`.
    Affine(Autoregressive<Affine, MaskedNet>),
    /// `MaskedPiecewiseRationalQuadraticAutoregressiveTransform`.
    Spline(Autoregressive<Spline, MaskedNet>),
    /// An affine autoregressive layer turned around.
    InverseAffine(Inverse<Autoregressive<Affine, MaskedNet>>),
    /// An autoregressive layer of splines turned around.
    InverseSpline(Inverse<Autoregressive<Spline, MaskedNet>>),
}

impl VectorLayer {
    /// Features of the context that the nets of the layer see.
    pub(super) fn context_width(&self) -> usize {
        match self {
            Self::AffineCoupling((_, own, _)) => own.conditioner.context.width(),
            Self::SplineCoupling((_, (own, _), _)) => own.conditioner.context.width(),
            Self::Affine(own) => own.made.net.context.width(),
            Self::Spline(own) | Self::SplineOfContext(own) => own.made.net.context.width(),
            Self::InverseAffine(own) => own.flow.made.net.context.width(),
            Self::InverseSpline(own) => own.flow.made.net.context.width(),
            Self::Standardize(_)
            | Self::Permutation(_)
            | Self::Linear(_)
            | Self::PermutedLinear(_) => 0,
        }
    }
}

/// How the splines of a model were built, as far as its tensors do not tell: their bins and what they do
/// outside of their interval follow from the sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SplineOptions {
    /// `tail_bound`: splines reach from its negative to it. Those without tails reach from 0 to 1.
    pub tail_bound: f64,
    /// `min_bin_width`.
    pub min_bin_width: f64,
    /// `min_bin_height`.
    pub min_bin_height: f64,
    /// `min_derivative`.
    pub min_derivative: f64,
}

impl SplineOptions {
    /// With the least sizes that are the default of nflows and normflows.
    pub(super) const fn reaching(tail_bound: f64) -> Self {
        Self { tail_bound, min_bin_width: 1e-3, min_bin_height: 1e-3, min_derivative: 1e-3 }
    }

    /// The spline of so many numbers, of which the net divides widths and heights by `divisor`.
    fn spline(&self, kinds: usize, divisor: f64) -> Result<Spline> {
        // 3 K - 1 numbers with tails, 3 K + 1 without; no net gives fewer than one bin needs.
        let has_tails = kinds % 3 == 2;
        let bins = if has_tails { kinds.div_ceil(3) } else { kinds / 3 };
        let config = RationalQuadraticConfig::new(bins, self.tail_bound);
        let config = if has_tails {
            config
        } else {
            config.with_tails(SplineTails::Linear).with_interval(0.0, 1.0)
        };
        let config = config.with_form(SplineForm::Floored {
            min_width: self.min_bin_width,
            min_height: self.min_bin_height,
            min_slope: self.min_derivative,
        });
        let sizes = std::iter::repeat_n((divisor.recip(), 0.0), 2 * bins);
        let slopes =
            std::iter::repeat_n((1.0, -slope_offset(self.min_derivative)), kinds - 2 * bins);
        Rescaled::new(config.init()?, sizes.chain(slopes).collect())
    }
}

/// Whether splines can have so many numbers each.
fn is_of_splines(kinds: usize) -> bool {
    kinds >= 2 && !kinds.is_multiple_of(3)
}

/// What every layer of a model has in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Common {
    pub(super) features: usize,
    /// Features of the context that the nets see.
    pub(super) context: usize,
    /// Of the nets of couplings.
    pub(super) coupling_activation: Activation,
    /// Of masked nets.
    pub(super) masked_activation: Activation,
    pub(super) splines: SplineOptions,
}

/// `z = scale x + shift` with numbers that are not trained, kept under the given names for each feature, or
/// as one number for all.
pub(super) fn standardize(
    io: &mut Exchange,
    names: [&str; 2],
    features: usize,
    ours: Option<&ByColumn>,
) -> Result<ByColumn> {
    let own = ours.map(|own| {
        let numbers = own.maps().iter().map(|map| match map.map {
            ScalarMap::Affine { scale, shift } => [scale, shift],
            // `ByColumn::affine` has made it.
            _ => [1.0, 0.0],
        });
        numbers.collect::<Vec<_>>()
    });
    let dtype = io.dtype();
    let parts = [0, 1].map(|at| {
        let own: Option<Vec<f64>> =
            own.as_ref().map(|own| own.iter().map(|numbers| numbers[at]).collect());
        let is_one = match &own {
            Some(own) => own.len() > 1 && own.windows(2).all(|pair| pair[0] == pair[1]),
            None => io.is_scalar(names[at]),
        };
        if let Some(own) = own {
            let (shape, count) = if is_one { (vec![], 1) } else { (vec![own.len()], own.len()) };
            io.given(names[at], &shape, dtype, || own[..count].to_vec());
            return own;
        }
        let shape: &[usize] = if is_one { &[] } else { &[features] };
        let values = io.values(names[at], shape);
        let values = values.into_iter().map(|value| rounded(value, dtype));
        if is_one { values.cycle().take(features).collect() } else { values.collect() }
    });
    if let Some(own) = ours {
        return Ok(own.clone());
    }
    let [scale, shift] = parts;
    ByColumn::affine(scale.into_iter().zip(shift))
}

/// A permutation `z[i] = x[order[i]]` kept under `name`.
pub(super) fn permutation(
    io: &mut Exchange,
    name: &str,
    features: usize,
    ours: Option<&Permutation>,
) -> Result<Permutation> {
    if let Some(own) = ours {
        io.numbers(name, features, Some(&order(own)));
        return Ok(own.clone());
    }
    let order = io.numbers(name, features, None);
    reordering(io, &order)
}

pub(super) fn order(permutation: &Permutation) -> Vec<usize> {
    let order = host::to_f64(host::plain(permutation.order.val()));
    order.into_iter().map(|index| index as usize).collect()
}

/// A permutation of the layers' type.
pub(super) fn reordering(io: &Exchange, order: &[usize]) -> Result<Permutation> {
    let permutation = Permutation::new(order, io.device())?;
    let order = permutation.order.map(|order| order.cast(io.dtype()));
    Ok(Permutation { order })
}

/// The least entry of the diagonal of `LULinear`.
const LU_FLOOR: f64 = 1e-3;

/// `LULinear`: the entries of both triangles in rows, the raw diagonal, `bias`.
pub(super) fn lu_linear(
    io: &mut Exchange,
    features: usize,
    ours: Option<&LuLinear>,
) -> Result<LuLinear> {
    let n = features.max(1);
    let own = ours.map(|own| [&own.lower, &own.upper]);
    let triangles = [("lower_entries", false), ("upper_entries", true)].map(|(name, is_upper)| {
        let places = (0..n * n).filter(move |at| match is_upper {
            true => at % n > at / n,
            false => at % n < at / n,
        });
        let own = own.map(|own| host::to_f64(host::plain(own[usize::from(is_upper)].val())));
        io.scattered(name, [n, n], n * (n - 1) / 2, places, own)
    });
    let raw = ours.map(|own| &own.raw_diagonal);
    let raw = io.param("unconstrained_upper_diag", &[n], Rows::same(), raw);
    let shift = io.param("bias", &[n], Rows::same(), ours.map(|own| &own.shift));
    match ours {
        Some(own) => Ok(own.clone()),
        None => LuLinear::from_parts(triangles, raw, shift, LU_FLOOR),
    }
}
