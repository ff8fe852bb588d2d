//! The conventions of normflows (PyTorch).
//!
//! normflows names latent → data `forward`; its `inverse` is this crate's `forward`. Its flow lists
//! are stored in that direction: they are read from the last entry to the first. Couplings subtract
//! the shift first, `z = (x - shift) * scale`, and their nets interleave shift and scale.
//!
//! Which scale map, split and activation a coupling has is not in a file, nor whether a logit comes first:
//! they are asked for where they are not normflows' defaults. Models with class-conditional bases have readers
//! of their own, [`class_multiscale`] and [`class_real_nvp`]; spline flows and masked autoregressive flows are
//! read by [`spline_flow`], with any base.
//!
//! Source: VincentStimper/normflows, `flows/affine/coupling.py`, `flows/affine/glow.py`,
//! `flows/normalization.py`, `flows/mixing.py`, `flows/neural_spline/`, `nets/made.py`, `core.py`.

mod act_norm;
mod bases;
mod block;
mod multiscale;
mod real_nvp;
mod splines;

pub use act_norm::{InitDirection, act_norm, act_norm_in_net, act_norm_initialization};
pub use bases::{class_cond_diag_gaussian, diag_gaussian, glow_base};
pub use block::{GlowBlockOptions, conv1x1, glow_block};
pub use multiscale::{
    BITS, ClassMultiscaleModel, IMAGE_SIDE, MultiscaleLevel, MultiscaleModel, class_glow,
    class_multiscale, class_multiscale_weights, glow, is_class_conditional, load, multiscale,
    multiscale_order, multiscale_weights, save,
};
pub use real_nvp::{
    ClassVectorModel, RealNvpOptions, VectorModel, VectorStep, class_real_nvp,
    class_real_nvp_weights, coupling_model, load_real_nvp, masked_affine, masked_affine_model,
    real_nvp, real_nvp_weights, save_real_nvp, vector_coupling,
};
pub use splines::{
    Base, SplineFlowOptions, SplineModel, SplineStep, load_spline_flow, save_spline_flow,
    spline_flow, spline_flow_weights,
};

use burn::module::Module;

use super::exchange::{Exchange, Rows};
use crate::coupling::{Affine, AffineCoupling, AffineOrder, Coupling, Mask, Parity, ScaleMap};
use crate::error::{FlowError, Result};

/// `scale_map` of `AffineCoupling`, or none (`scale=False`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CouplingScale {
    /// `z = x - shift`.
    None,
    /// `z = (x - shift) * exp(-h)`.
    Exp,
    /// `z = (x - shift) * sigmoid(h + 2)`.
    Sigmoid,
    /// `z = (x - shift) / sigmoid(h + 2)`.
    SigmoidInv,
}

impl CouplingScale {
    fn of(map: ScaleMap) -> Result<Self> {
        match map {
            ScaleMap::Exp => Ok(Self::Exp),
            ScaleMap::Sigmoid => Ok(Self::Sigmoid),
            ScaleMap::InverseSigmoid => Ok(Self::SigmoidInv),
            _ => Err(invalid(&format!("the scale map {map:?}"), "Exp, Sigmoid or InverseSigmoid")),
        }
    }

    /// Our map, and the factor on `h` that makes it theirs.
    fn scale_map(self) -> (ScaleMap, f64) {
        match self {
            Self::None | Self::Exp => (ScaleMap::Exp, -1.0),
            Self::Sigmoid => (ScaleMap::Sigmoid, 1.0),
            Self::SigmoidInv => (ScaleMap::InverseSigmoid, 1.0),
        }
    }

    /// Our output rows made of theirs.
    fn rows(self, outputs: usize) -> Rows {
        match self {
            Self::None => Rows::all_negated(outputs),
            _ => {
                let (_, factor) = self.scale_map();
                let shifts = (0..outputs).step_by(2).map(|row| (row, -1.0));
                Rows::signed(shifts.chain((1..outputs).step_by(2).map(|row| (row, factor))))
            }
        }
    }
}

/// `split_mode` of a coupling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitMode {
    /// The first half is kept.
    Channel,
    /// The second half is kept.
    ChannelInv,
}

impl SplitMode {
    fn of(mask: Mask) -> Result<Self> {
        match mask {
            Mask::ChannelHalves(Parity::Even) => Ok(Self::Channel),
            Mask::ChannelHalves(Parity::Odd) => Ok(Self::ChannelInv),
            _ => Err(invalid("a coupling of another mask", "channel halves")),
        }
    }

    fn mask(self) -> Mask {
        match self {
            Self::Channel => Mask::first_half(),
            Self::ChannelInv => Mask::second_half(),
        }
    }
}

/// What a `MaskedAffineFlow`'s net `s` ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskedScale {
    /// `scale = exp(-s)`.
    Linear,
    /// `scale = exp(-tanh(s))` (`output_fn="tanh"`).
    Tanh,
}

/// An affine coupling in normflows' order.
fn affine<C: Module>(
    io: &Exchange,
    net: C,
    scale: CouplingScale,
    split: SplitMode,
) -> AffineCoupling<C> {
    let transform = Affine::new(scale.scale_map().0, AffineOrder::ShiftThenScale, 0, io.device());
    Coupling::from_transform(net, transform, split.mask())
}

fn invalid(got: &str, needed: &str) -> FlowError {
    FlowError::invalid(
        "weights for normflows",
        got,
        needed,
        "export a model that was read from there",
    )
}
