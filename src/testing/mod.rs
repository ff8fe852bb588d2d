//! The laws of [`Flow`](trait@crate::Flow) as a test: one call proves a flow of your own.
//!
//! [`check_laws`] moves a flow's parameters off their start by seeded noise and checks every law on a
//! batch that you give; what breaks is a [`LawViolation`] that names the law, the flow and the
//! figures. [`Laws`] is the same with options, [`check_density`] its counterpart for a
//! [`FlowStack`](crate::FlowStack) with its priors. In the guide: [a flow of your own](crate::guide::your_own_flow).
//!
//! ```
//! use burn::tensor::DType;
//! use burn_flows::linear::DiagonalScaling;
//! use burn_flows::testing::{check_laws, inputs, to_f64};
//!
//! let device = burn_flows::backend::device();
//! let flow = DiagonalScaling::new(3, &device)?;
//! let report = check_laws(&flow, inputs([4, 3], 1, &device, DType::F32))?;
//! assert!(report.round_trip < 1e-5);
//!
//! // A CPU device computes in f64 as well, where a wrong log-determinant cannot hide in rounding.
//! # if burn_flows::backend::is_host(&device) {
//! let report = check_laws(&to_f64(flow), inputs([4, 3], 1, &device, DType::F64))?;
//! assert!(report.jacobian < 1e-12);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod density;
mod laws;
mod report;
pub(crate) mod visit;

pub use crate::host::count_reads;
pub use density::check_density;
pub use laws::{Laws, check_laws, check_record};
pub use report::{Law, LawViolation, Report, Tolerances};

use std::sync::{Mutex, PoisonError};

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{DType, Device, Tensor};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::prior::standard_normal;

/// What `build` makes where the device's generator, from which nets draw their weights, starts at `seed`.
///
/// All threads share that generator, and tests run on several: one call waits for the others, so that
/// what draws in such calls alone is the same at every run. `build` does not call this again.
///
/// ```
/// use burn_flows::conditioner::MlpConfig;
/// use burn_flows::testing::seeded;
///
/// let device = burn_flows::backend::device();
/// let net = || seeded(7, &device, || MlpConfig::new(2, vec![8], 3).init(&device));
/// let weights = [net()?, net()?].map(|net| net.layers[0].weight.val().into_data());
/// assert_eq!(weights[0], weights[1]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
pub fn seeded<T>(seed: u64, device: &Device, build: impl FnOnce() -> T) -> T {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    device.seed(seed);
    build()
}

/// Adds independent normal noise of standard deviation `spread` to every trainable parameter, the
/// same for the same `seed` on every device.
///
/// Many layers start as the identity, and a test of the identity passes whatever the layer does:
/// tests move the parameters first. `module` is not in training.
pub fn move_parameters<M: Module>(module: M, seed: u64, spread: f64) -> M {
    struct Move {
        trainable: Vec<ParamId>,
        rng: StdRng,
        spread: f64,
    }
    impl ModuleMapper for Move {
        fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
            if !self.trainable.contains(&param.id) {
                return param;
            }
            let (rng, spread) = (&mut self.rng, self.spread);
            param.map(|value| {
                let noise = standard_normal(value.dims(), rng, &value.device(), value.dtype());
                value + noise * spread
            })
        }
    }
    let trainable = visit::trainable(&module);
    module.map(&mut Move { trainable, rng: StdRng::seed_from_u64(seed), spread })
}

/// The module with every float parameter cast to f64, for tests in double precision on a CPU device
/// (a GPU has no f64).
pub fn to_f64<M: Module>(module: M) -> M {
    struct Cast;
    impl ModuleMapper for Cast {
        fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
            param.map(|value| value.cast(DType::F64))
        }
    }
    module.map(&mut Cast)
}

/// Standard normal inputs of the given shape, the same for the same `seed` on every device.
pub fn inputs<const D: usize>(
    shape: [usize; D],
    seed: u64,
    device: &Device,
    dtype: DType,
) -> Tensor<D> {
    standard_normal(shape, &mut StdRng::seed_from_u64(seed), device, dtype)
}
