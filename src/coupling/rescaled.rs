//! A transform of numbers that are scaled and moved first.

use burn::module::Module;
use burn::tensor::Tensor;

use super::Transform;
use crate::error::{FlowError, Result};
use crate::record::Setting;

/// A [`Transform`] whose parameters are `factor_k n_k + offset_k` of the numbers `n_k` that a net gives,
/// one factor and one offset for each kind `k` of them.
///
/// - forward: `z = transform(x; factor n + offset)`, inverse and log-determinant as the transform's
///
/// The factors and offsets are fixed. They could stand in the last layer of the net; a model that is
/// trained on in another library needs them here, where that one has them.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::coupling::{Additive, Rescaled, Transform};
///
/// let device = burn_flows::backend::device();
/// let shift = Rescaled::new(Additive::default(), vec![(2.0, 1.0)])?;
/// let (x, n) = (Tensor::<2>::from_data([[3.0]], &device), Tensor::from_data([[5.0]], &device));
/// // 3 + (2 * 5 + 1).
/// assert_eq!(shift.forward(x, n).0.into_scalar::<f32>(), 14.0);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct Rescaled<T> {
    /// What the numbers are given to.
    pub transform: T,
    kinds: Setting<Vec<(f64, f64)>>,
}

impl<T: Transform> Rescaled<T> {
    /// A factor and an offset for each kind of number.
    ///
    /// # Errors
    /// If there are not as many as the transform has kinds, or one is not finite.
    pub fn new(transform: T, kinds: Vec<(f64, f64)>) -> Result<Self> {
        let needed = transform.params_per_channel();
        let is_finite = kinds.iter().all(|(factor, offset)| (factor + offset).is_finite());
        if kinds.len() != needed || !is_finite {
            return Err(FlowError::config(
                "Rescaled",
                "kinds",
                format!("{kinds:?}"),
                format!("{needed} pairs of finite numbers"),
                "give a factor and an offset for each of the transform's params_per_channel()",
            ));
        }
        Ok(Self { transform, kinds: kinds.into() })
    }

    /// Factor and offset of each kind.
    pub fn kinds(&self) -> &[(f64, f64)] {
        &self.kinds
    }

    fn rescaled<const D: usize>(&self, numbers: Tensor<D>) -> Tensor<D> {
        let channels = numbers.dims()[1] / self.kinds.len();
        let mut start = 0;
        let parts = self.kinds.chunk_by(|a, b| a == b).map(|alike| {
            let ((factor, offset), width) = (alike[0], alike.len() * channels);
            let part = numbers.clone().narrow(1, start, width);
            start += width;
            let part = if factor == 1.0 { part } else { part * factor };
            if offset == 0.0 { part } else { part + offset }
        });
        Tensor::cat(parts.collect(), 1)
    }
}

impl<T: Transform> Transform for Rescaled<T>
where
    Self: Module,
{
    fn params_per_channel(&self) -> usize {
        self.kinds.len()
    }

    fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        params: Tensor<D>,
    ) -> (Tensor<D>, Option<Tensor<D>>) {
        self.transform.forward(x, self.rescaled(params))
    }

    fn inverse<const D: usize>(&self, z: Tensor<D>, params: Tensor<D>) -> Tensor<D> {
        self.transform.inverse(z, self.rescaled(params))
    }

    fn inverse_of<const D: usize>(
        &self,
        channels: &[usize],
        z: Tensor<D>,
        params: Tensor<D>,
    ) -> Tensor<D> {
        self.transform.inverse_of(channels, z, self.rescaled(params))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coupling::Additive;

    #[test]
    fn every_kind_needs_its_pair() {
        let error = Rescaled::new(Additive::default(), vec![]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Rescaled: kinds is [], but must be 1 pairs of finite numbers; give a factor and an offset for \
             each of the transform's params_per_channel()"
        );
        assert!(Rescaled::new(Additive::default(), vec![(f64::NAN, 0.0)]).is_err());
    }
}
