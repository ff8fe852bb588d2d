//! A transform behind a fixed map.

use burn::module::Module;
use burn::tensor::Tensor;

use super::Transform;
use crate::error::Result;
use crate::preprocess::{DirectedMap, ScalarMap};
use crate::record::Setting;

/// A [`Transform`] of what a fixed [`ScalarMap`] makes of the value: `z = transform(map(x); params)`.
///
/// In a coupling or an autoregressive layer the net sees `x`, not what the map makes of it. With
/// [`ScalarMap::Circle`] a spline's ends lie at another place of the circle than the data's.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::coupling::{Additive, Mapped, Transform};
/// use burn_flows::preprocess::ScalarMap;
///
/// let device = burn_flows::backend::device();
/// let double = ScalarMap::Affine { scale: 2.0, shift: 0.0 };
/// let mapped = Mapped::new(double, Additive::default())?;
/// let (x, shift) = (Tensor::<2>::from_data([[3.0]], &device), Tensor::from_data([[1.0]], &device));
/// let (z, log_slope) = mapped.forward(x, shift);
/// assert_eq!(z.into_scalar::<f32>(), 7.0);
/// assert!((log_slope.unwrap().into_scalar::<f32>() - 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Mapped<T> {
    /// What comes behind the map.
    pub transform: T,
    map: Setting<ScalarMap>,
}

impl<T: Transform> Mapped<T> {
    /// `map`, then `transform`. A map that is not defined everywhere gives NaN outside.
    ///
    /// # Errors
    /// If the map has a scale of zero, or a number that is not finite or not positive.
    pub fn new(map: ScalarMap, transform: T) -> Result<Self> {
        map.validate("Mapped")?;
        Ok(Self { transform, map: map.into() })
    }

    /// The map that each value goes through.
    pub fn map(&self) -> ScalarMap {
        *self.map
    }
}

impl<T: Transform> Transform for Mapped<T>
where
    Self: Module,
{
    fn params_per_channel(&self) -> usize {
        self.transform.params_per_channel()
    }

    fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        params: Tensor<D>,
    ) -> (Tensor<D>, Option<Tensor<D>>) {
        let directed = DirectedMap::from(*self.map);
        let (x, of_map) = directed.forward(x);
        let (z, log_slope) = self.transform.forward(x, params);
        let log_slope = match log_slope {
            Some(log_slope) => log_slope + of_map,
            None => of_map,
        };
        (z, Some(log_slope))
    }

    fn inverse<const D: usize>(&self, z: Tensor<D>, params: Tensor<D>) -> Tensor<D> {
        self.map.inverse(self.transform.inverse(z, params))
    }

    fn inverse_of<const D: usize>(
        &self,
        channels: &[usize],
        z: Tensor<D>,
        params: Tensor<D>,
    ) -> Tensor<D> {
        self.map.inverse(self.transform.inverse_of(channels, z, params))
    }
}
