//! A fixed map for each column.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{DirectedMap, ScalarMap};
use crate::chain::{assert_size, zero_log_det};
use crate::error::{FlowError, Result};
use crate::flow::Flow;
use crate::record::Setting;
use crate::{host, support};

/// Takes each feature of a vector through a [`ScalarMap`] of its own, in either direction.
///
/// - forward: `z_i = map_i(x_i)`, `log_det = sum_i ln|map_i'(x_i)|`
/// - inverse: `x_i = map_i^-1(z_i)`
///
/// A sample with a value outside of its map's domain has the log-determinant `-inf`: no density there. What
/// `z` is then means nothing. To take bounded variables to the real numbers,
/// [`Unconstrain`](super::Unconstrain) asks for the bounds alone.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::Flow;
/// use burn_flows::preprocess::{ByColumn, ScalarMap};
///
/// let device = burn_flows::backend::device();
/// let logit = ScalarMap::Sigmoid { temperature: 1.0 }.inverted();
/// let flow = ByColumn::new(vec![ScalarMap::Exp.into(), logit])?;
/// let (z, log_det) = flow.forward(Tensor::<2>::from_data([[0.0, 0.5]], &device));
/// let z = z.try_into_vec_as::<f32>().unwrap();
/// assert!((z[0] - 1.0).abs() < 1e-6 && z[1].abs() < 1e-6);
/// // The slopes are 1 and 1 / (0.5 * 0.5).
/// assert!((log_det.into_scalar::<f32>() - 4f32.ln()).abs() < 1e-5);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Module, Debug)]
pub struct ByColumn {
    maps: Setting<Vec<DirectedMap>>,
}

const LAYER: &str = "ByColumn";

impl ByColumn {
    /// One map for each feature.
    ///
    /// # Errors
    /// If there is none, or one has a scale of zero, or a number that is not finite or not positive.
    pub fn new(maps: Vec<DirectedMap>) -> Result<Self> {
        if maps.is_empty() {
            let advice = "give ScalarMap::Identity for a column that stays as it is";
            return Err(FlowError::config(LAYER, "maps", "empty", "one for each feature", advice));
        }
        maps.iter().try_for_each(|directed| directed.map.validate(LAYER))?;
        Ok(Self { maps: maps.into() })
    }

    /// `z = scale x + shift` of each feature, with numbers that are not trained.
    ///
    /// # Errors
    /// As [`new`](ByColumn::new).
    pub fn affine(numbers: impl IntoIterator<Item = (f64, f64)>) -> Result<Self> {
        let map = |(scale, shift)| ScalarMap::Affine { scale, shift }.into();
        Self::new(numbers.into_iter().map(map).collect())
    }

    /// The map of each feature.
    pub fn maps(&self) -> &[DirectedMap] {
        &self.maps
    }

    /// `z`, and `ln|dz/dx|` of each entry, `[batch, features]` both.
    ///
    /// # Panics
    /// If `x` has another number of features.
    pub fn forward_elementwise(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        self.assert_features(&x);
        let columns = self.maps.iter().enumerate().map(|(index, map)| {
            let column = x.clone().narrow(1, index, 1);
            let (held, outside) = map.held(column.clone());
            let (z, log_slope) = map.forward(held);
            let Some(outside) = outside else { return (z, log_slope) };
            if let Some([lower, upper]) = map.domain() {
                let support = || format!("between {lower} and {upper} for feature {index}");
                let advice = "look at the data, or give the feature another map";
                support::report_outside(LAYER, &column, &outside, support, advice);
            }
            (z, log_slope.mask_fill(outside, f64::NEG_INFINITY))
        });
        let (z, log_slopes): (Vec<_>, Vec<_>) = columns.unzip();
        (Tensor::cat(z, 1), Tensor::cat(log_slopes, 1))
    }

    fn assert_features(&self, x: &Tensor<2>) {
        assert_size(LAYER, x, self.maps.len(), "features");
    }
}

impl Flow<2> for ByColumn {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        self.assert_features(&x);
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        let batch = x.dims()[0];
        let (z, log_slopes) = self.forward_elementwise(x);
        (z, log_slopes.sum_dim(1).reshape([batch]))
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.assert_features(&z);
        if host::has_no_samples(&z) {
            return z;
        }
        let columns = self.maps.iter().enumerate();
        let columns = columns.map(|(index, map)| map.inverse(z.clone().narrow(1, index, 1)));
        Tensor::cat(columns.collect(), 1)
    }
}
