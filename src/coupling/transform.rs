//! The trait of elementwise maps of the transformed part; additive and affine ones.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::fused::FusedMap;
use super::scale::{LOG_SCALE_FLOOR, LOG_SCALE_LIMIT, ScaleMap};
use super::sum_per_sample;
use crate::chain::zero_log_det;
use crate::constants;
use crate::record::Setting;

/// An invertible elementwise map `x -> z`, with parameters from a conditioner.
///
/// A coupling is a conditioner and a transform; additive, affine and later maps share one coupling.
pub trait Transform: Module {
    /// Parameters per transformed channel: the conditioner gives this many times the channels.
    fn params_per_channel(&self) -> usize;

    /// `x -> (z, ln|dz/dx|)`, elementwise; `None` stands for a log-scale of zero everywhere.
    ///
    /// # Shapes
    /// - `x`, `z`, log-scale: `[batch, channels, ...]`; `params`: `[batch, params_per_channel * channels, ...]`
    fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        params: Tensor<D>,
    ) -> (Tensor<D>, Option<Tensor<D>>);

    /// `z -> x`, the inverse of [`forward`](Transform::forward).
    fn inverse<const D: usize>(&self, z: Tensor<D>, params: Tensor<D>) -> Tensor<D>;

    /// [`inverse`](Transform::inverse) of some of the channels, which an autoregressive layer inverts step
    /// by step: `z` and `params` hold those of `channels` alone. Maps with a parameter of their own for each
    /// channel override it; the default is for the others.
    fn inverse_of<const D: usize>(
        &self,
        _channels: &[usize],
        z: Tensor<D>,
        params: Tensor<D>,
    ) -> Tensor<D> {
        self.inverse(z, params)
    }

    /// The map as the fused kernels of the CPU know it, if they do.
    #[doc(hidden)]
    fn fused(&self) -> Option<FusedMap> {
        None
    }
}

/// `z = x + shift`: volume preserving (NICE).
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::coupling::{Additive, Transform};
///
/// let device = burn_flows::backend::device();
/// let (x, shift) = (Tensor::<2>::from_data([[3.0]], &device), Tensor::from_data([[2.0]], &device));
/// let (z, log_slope) = Additive::default().forward(x, shift);
/// assert_eq!(z.into_scalar::<f32>(), 5.0);
/// assert!(log_slope.is_none(), "no volume changes");
/// ```
#[derive(Module, Debug)]
pub struct Additive {
    kind: Setting<&'static str>,
}

impl Default for Additive {
    fn default() -> Self {
        Self { kind: Setting::new("additive") }
    }
}

impl Transform for Additive {
    fn params_per_channel(&self) -> usize {
        1
    }

    fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        params: Tensor<D>,
    ) -> (Tensor<D>, Option<Tensor<D>>) {
        (x + params, None)
    }

    fn inverse<const D: usize>(&self, z: Tensor<D>, params: Tensor<D>) -> Tensor<D> {
        z - params
    }

    fn fused(&self) -> Option<FusedMap> {
        Some(FusedMap::Additive)
    }
}

/// In which order an affine map applies its two parameters: of `x = 5` with scale 2 and shift 3 the one makes
/// 13, the other 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AffineOrder {
    /// `z = x * scale + shift` (RealNVP).
    ScaleThenShift,
    /// `z = (x + shift) * scale` (Glow's code; the paper writes the other).
    ShiftThenScale,
}

/// `z = x * scale + shift` or `z = (x + shift) * scale`, `scale = exp(log_scale(h))`.
///
/// The conditioner's output has the shifts in its first half of the channels and `h` in the second.
#[derive(Module, Debug)]
pub struct Affine {
    /// Learned gain of [`ScaleMap::Tanh`], `[channels]`.
    pub gain: Option<Param<Tensor<1>>>,
    scale_map: Setting<ScaleMap>,
    order: Setting<AffineOrder>,
}

impl Affine {
    /// An affine map of `num_transformed` channels.
    pub fn new(
        scale_map: ScaleMap,
        order: AffineOrder,
        num_transformed: usize,
        device: &Device,
    ) -> Self {
        let gain = (scale_map == ScaleMap::Tanh)
            .then(|| Param::from_tensor(Tensor::ones([num_transformed], device)));
        Self { gain, scale_map: scale_map.into(), order: order.into() }
    }

    /// With [`ScaleMap::Tanh`] of the given gain.
    pub(crate) fn tanh(order: AffineOrder, gain: Param<Tensor<1>>) -> Self {
        Self { gain: Some(gain), scale_map: ScaleMap::Tanh.into(), order: order.into() }
    }

    /// The scale map.
    pub fn scale_map(&self) -> ScaleMap {
        *self.scale_map
    }

    /// The order of scale and shift.
    pub fn order(&self) -> AffineOrder {
        *self.order
    }

    fn gain(&self) -> Option<Tensor<1>> {
        self.gain.as_ref().map(|gain| gain.val())
    }

    fn shift_and_log_scale<const D: usize>(
        &self,
        params: Tensor<D>,
        gain: Option<Tensor<1>>,
    ) -> (Tensor<D>, Tensor<D>) {
        let channels = params.dims()[1] / 2;
        let shift = params.clone().narrow(1, 0, channels);
        let h = params.narrow(1, channels, channels);
        (shift, self.scale_map.log_scale(h, gain.map(per_channel)))
    }

    fn inverse_with<const D: usize>(
        &self,
        gain: Option<Tensor<1>>,
        z: Tensor<D>,
        params: Tensor<D>,
    ) -> Tensor<D> {
        let (shift, log_scale) = self.shift_and_log_scale(params, gain);
        let inverse_scale = log_scale.neg().exp();
        match *self.order {
            AffineOrder::ScaleThenShift => (z - shift) * inverse_scale,
            AffineOrder::ShiftThenScale => z * inverse_scale - shift,
        }
    }
}

impl Transform for Affine {
    fn params_per_channel(&self) -> usize {
        2
    }

    fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        params: Tensor<D>,
    ) -> (Tensor<D>, Option<Tensor<D>>) {
        let (shift, log_scale) = self.shift_and_log_scale(params, self.gain());
        let scale = log_scale.clone().exp();
        let z = match *self.order {
            AffineOrder::ScaleThenShift => x * scale + shift,
            AffineOrder::ShiftThenScale => (x + shift) * scale,
        };
        (z, Some(log_scale))
    }

    fn inverse<const D: usize>(&self, z: Tensor<D>, params: Tensor<D>) -> Tensor<D> {
        self.inverse_with(self.gain(), z, params)
    }

    fn inverse_of<const D: usize>(
        &self,
        channels: &[usize],
        z: Tensor<D>,
        params: Tensor<D>,
    ) -> Tensor<D> {
        let gain = self.gain().map(|gain| {
            let channels = constants::places(channels.iter().copied(), &gain.device());
            gain.select(0, channels)
        });
        self.inverse_with(gain, z, params)
    }

    fn fused(&self) -> Option<FusedMap> {
        self.scale_map.has_kernel().then(|| FusedMap::Affine {
            scale_map: *self.scale_map,
            order: *self.order,
            gain: self.gain.clone(),
            limits: [LOG_SCALE_FLOOR, LOG_SCALE_LIMIT],
        })
    }
}

/// `z` and the log-determinant of an elementwise map, both of what `keep` leaves of the values.
pub(crate) fn map_and_log_det<const D: usize, T: Transform>(
    transform: &T,
    x: Tensor<D>,
    params: Tensor<D>,
    keep: impl Fn(Tensor<D>) -> Tensor<D>,
) -> (Tensor<D>, Tensor<1>) {
    let none = zero_log_det(&x);
    let (z, log_slope) = transform.forward(x, params);
    let log_det = log_slope.map_or(none, |log_slope| sum_per_sample(keep(log_slope)));
    (keep(z), log_det)
}

/// `[channels]` shaped `[1, channels, 1, ...]`, to broadcast over batch and space.
pub(crate) fn per_channel<const D: usize>(values: Tensor<1>) -> Tensor<D> {
    let mut shape = [1; D];
    shape[1] = values.dims()[0];
    values.reshape(shape)
}
