//! Coupling layers: split, condition, transform, merge.
//!
//! A coupling is a conditioner (any net) and an elementwise [`Transform`]: part of `x` passes
//! unchanged and tells the net how to change the rest. Its inverse needs no inverse of the net.

mod channel_splines;
mod elementwise;
mod fused;
mod kept_part;
mod mapped;
mod mask;
mod rescaled;
mod scale;
mod spline;
mod transform;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

pub use channel_splines::ChannelSplines;
pub use elementwise::Elementwise;
pub(crate) use fused::{Fused, FusedMap, Layout};
pub use kept_part::KeptPart;
pub use mapped::Mapped;
pub use mask::{Mask, Parity};
pub use rescaled::Rescaled;
pub use scale::{LOG_SCALE_FLOOR, LOG_SCALE_LIMIT, SIGMOID_OFFSET, ScaleMap};
pub(crate) use scale::{soft_clip, softplus};
pub(crate) use spline::slope_offset;
pub use spline::{Knots, RationalQuadratic, RationalQuadraticConfig, SplineForm, SplineTails};
pub use transform::{Additive, Affine, AffineOrder, Transform};
pub(crate) use transform::{map_and_log_det, per_channel};

use crate::chain::zero_log_det;
use crate::conditioner::Conditioner;
use crate::error::{FlowError, Result};
use crate::flow::{At, Flow, Pass, accumulate, collect};
use crate::host;
use crate::record::Setting;
use crate::tape::{Memory, Tape};

/// A coupling of conditioner `C` and transform `T`.
///
/// With `(a, b) = split(x)` by the [`Mask`] and `params = conditioner(a)`:
///
/// - forward: `z = merge(a, transform(b; params))`, `log_det = sum of ln|d transform / db|`
/// - inverse: `x = merge(a, transform^-1(b; params))`
///
/// The inverse is exact up to rounding; how much it can amplify rounding is the gain stated at
/// [`ScaleMap`].
///
/// Source: Dinh et al., *NICE*, [arXiv:1410.8516](https://arxiv.org/abs/1410.8516), section 3.2.
#[derive(Module, Debug)]
pub struct Coupling<C, T> {
    /// The net that maps the identity part to the transform's parameters.
    pub conditioner: C,
    /// The elementwise map of the transformed part.
    pub transform: T,
    mask: Setting<Mask>,
}

/// `z_b = b + shift(a)`: the additive coupling of NICE, `log_det = 0`.
///
/// ```
/// use burn::tensor::Tensor;
/// use burn_flows::{Flow, conditioner::MlpConfig, coupling::{AdditiveCoupling, Mask}};
///
/// let device = burn_flows::backend::device();
/// let mlp = MlpConfig::new(1, vec![16], 1).init(&device)?;
/// let coupling = AdditiveCoupling::additive(mlp, Mask::first_half());
/// let x = Tensor::<2>::from_data([[0.5, -1.0], [2.0, 3.0]], &device);
/// let (z, log_det) = coupling.forward(x.clone());
/// assert_eq!(log_det.sum().into_scalar::<f32>(), 0.0);
/// let error = (coupling.inverse(z) - x).abs().max().into_scalar::<f32>();
/// assert!(error < 1e-5);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
pub type AdditiveCoupling<C> = Coupling<C, Additive>;

/// `z_b = b * scale(a) + shift(a)` (RealNVP) or `(b + shift(a)) * scale(a)` (Glow):
/// `log_det = sum ln scale(a)`.
pub type AffineCoupling<C> = Coupling<C, Affine>;

impl<C: Module> Coupling<C, Additive> {
    /// An additive coupling; `conditioner` gives one channel for each transformed one.
    pub fn additive(conditioner: C, mask: Mask) -> Self {
        Self { conditioner, transform: Additive::default(), mask: mask.into() }
    }
}

impl<C: Module> Coupling<C, Affine> {
    /// An affine coupling of `num_channels` channels, `z_b = b * scale + shift`; `conditioner` gives
    /// two channels for each transformed one: first all shifts, then all raw scales.
    ///
    /// # Errors
    /// If `num_channels` leaves no channel to transform or none to condition on.
    pub fn affine(
        conditioner: C,
        mask: Mask,
        scale_map: ScaleMap,
        num_channels: usize,
        device: &Device,
    ) -> Result<Self> {
        Self::affine_ordered(
            conditioner,
            mask,
            scale_map,
            AffineOrder::ScaleThenShift,
            num_channels,
            device,
        )
    }

    /// As [`affine`](Coupling::affine), with the order of scale and shift given.
    ///
    /// # Errors
    /// If `num_channels` leaves no channel to transform or none to condition on.
    pub fn affine_ordered(
        conditioner: C,
        mask: Mask,
        scale_map: ScaleMap,
        order: AffineOrder,
        num_channels: usize,
        device: &Device,
    ) -> Result<Self> {
        let transformed = check_channels("AffineCoupling", mask, num_channels)?;
        scale_map.validate("AffineCoupling")?;
        Ok(Self {
            conditioner,
            transform: Affine::new(scale_map, order, transformed, device),
            mask: mask.into(),
        })
    }
}

/// The number of transformed channels, or an error where a coupling has nothing to do.
pub(crate) fn check_channels(
    layer: &'static str,
    mask: Mask,
    num_channels: usize,
) -> Result<usize> {
    let (identity, transformed) =
        (mask.num_identity(num_channels), mask.num_transformed(num_channels));
    if num_channels < 1 || identity < 1 || transformed < 1 {
        let (needed, advice) = match mask {
            Mask::SplitAt(at, _) if num_channels > 1 => (
                format!("more than {at}, and the split behind at least one of them"),
                "split behind another channel",
            ),
            _ => (
                "at least 2 for a split along the channels".into(),
                "squeeze the image first, or use a checkerboard mask",
            ),
        };
        return Err(FlowError::config(layer, "num_channels", num_channels, needed, advice));
    }
    Ok(transformed)
}

impl<C, T> Coupling<C, T> {
    /// A coupling from its parts: `transform` must be built for as many channels as `mask` leaves to
    /// transform, and `conditioner` give it the parameters it needs for each.
    pub fn from_transform(conditioner: C, transform: T, mask: Mask) -> Self {
        Self { conditioner, transform, mask: mask.into() }
    }

    /// How the input is divided.
    pub fn mask(&self) -> Mask {
        *self.mask
    }
}

impl<C: Module, T: Transform> Coupling<C, T> {
    fn params<const D: usize>(&self, identity: Tensor<D>, transformed: &Tensor<D>) -> Tensor<D>
    where
        C: Conditioner<D>,
    {
        let params = self.conditioner.forward(identity);
        self.assert_params(&params, transformed);
        params
    }

    fn assert_params<const D: usize>(&self, params: &Tensor<D>, transformed: &Tensor<D>) {
        let mut needed = transformed.dims();
        needed[1] *= self.transform.params_per_channel();
        assert!(
            params.dims() == needed,
            "Coupling: the conditioner gave params of shape {:?}, but {:?} transformed channels need \
             {needed:?}; give the conditioner {} output channels",
            params.dims(),
            transformed.dims(),
            needed[1],
        );
    }

    /// [`Flow::pull_back`] through the conditioner's own, with the elementwise map by autodiff; `to_data`
    /// makes the transformed part of `x` from what is given of it. The net's input is the same in `x` and
    /// `z`, so one pass of the net serves the inverse and the gradients.
    fn pull_back_through_net<const D: usize>(
        &self,
        given: Tensor<D>,
        to_data: impl FnOnce(Tensor<D>, Tensor<D>) -> Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>)
    where
        C: Conditioner<D>,
        Self: Module,
    {
        let (identity, given) = self.mask.split(given);
        let (didentity, dz) = self.mask.split(dz);
        let mut transformed = None;
        let mut of_transform = GradientsParams::new();
        let dparams = |params: Tensor<D>| {
            self.assert_params(&params, &given);
            let x = to_data(given, params.clone());
            let leaf = Tensor::from_inner(x.clone()).require_grad();
            let params = Tensor::from_inner(params).require_grad();
            let (z, log_det) = self.transform_forward(leaf.clone(), params.clone());
            let loss =
                (z * Tensor::from_inner(dz)).sum() + (log_det * Tensor::from_inner(dlog_det)).sum();
            let mut graph = loss.backward();
            let mut gradient = |part: Tensor<D>| {
                part.grad_remove(&mut graph).unwrap_or_else(|| part.inner().zeros_like())
            };
            transformed = Some((x, gradient(leaf)));
            let dparams = gradient(params);
            collect(&mut graph, &self.transform, &mut of_transform);
            dparams
        };
        let through_net = self.conditioner.pull_back(identity.clone(), dparams, grads);
        accumulate(&self.transform, of_transform, grads);
        let (x, dx) =
            transformed.expect("Conditioner::pull_back asks for the gradient by its output");
        // A checkerboard's parts are whole pictures, of which the other squares do not count.
        let didentity = didentity + self.mask.flip().keep_transformed(through_net);
        let dx = self.mask.keep_transformed(dx);
        (self.mask.merge(identity, x), self.mask.merge(didentity, dx))
    }

    /// The transformed part and its log-determinant.
    fn transform_forward<const D: usize>(
        &self,
        transformed: Tensor<D>,
        params: Tensor<D>,
    ) -> (Tensor<D>, Tensor<1>) {
        let keep = |values| self.mask.keep_transformed(values);
        map_and_log_det(&self.transform, transformed, params, keep)
    }
}

impl<const D: usize, C: Conditioner<D>, T: Transform> Flow<D> for Coupling<C, T>
where
    Self: Module,
{
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        if host::has_no_samples(&x) {
            return (x.clone(), zero_log_det(&x));
        }
        if let Some(fused) = Fused::of(self, &x) {
            return fused.forward(x);
        }
        let (identity, transformed) = self.mask.split(x);
        let params = self.params(identity.clone(), &transformed);
        let (z, log_det) = self.transform_forward(transformed, params);
        (self.mask.merge(identity, z), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        if host::has_no_samples(&z) {
            return z;
        }
        if let Some(fused) = Fused::of(self, &z) {
            return fused.inverse(z);
        }
        let (identity, transformed) = self.mask.split(z);
        let params = self.params(identity.clone(), &transformed);
        let x = self.mask.keep_transformed(self.transform.inverse(transformed, params));
        self.mask.merge(identity, x)
    }

    fn inverse_and_log_det(&self, z: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        if host::has_no_samples(&z) || Fused::of(self, &z).is_some() {
            let x = self.inverse(z);
            let log_det = self.log_det(x.clone());
            return (x, log_det);
        }
        let (identity, transformed) = self.mask.split(z);
        let params = self.params(identity.clone(), &transformed);
        let x = self.transform.inverse(transformed, params.clone());
        let x = self.mask.keep_transformed(x);
        let log_det = self.transform_forward(x.clone(), params).1;
        (self.mask.merge(identity, x), log_det)
    }

    fn data_pass(mut self, x: Tensor<D>, pass: Pass) -> (Self, Tensor<D>) {
        if host::has_no_samples(&x) {
            return (self, x);
        }
        let (identity, transformed) = self.mask.split(x.clone());
        let (conditioner, params) = self.conditioner.data_pass(identity.clone(), pass);
        self.conditioner = conditioner;
        // By the road that `forward` takes, so that the flows behind see to the last bit what they
        // will see in training: a small batch can make an ActNorm that amplifies the difference
        // between two roads.
        let z = match Fused::of(&self, &x) {
            Some(fused) => fused.forward(x).0,
            None => {
                self.assert_params(&params, &transformed);
                self.mask.merge(identity, self.transform_forward(transformed, params).0)
            }
        };
        (self, z)
    }

    fn forward_on(&self, x: Tensor<D>, tape: &mut Tape) -> (Tensor<D>, Tensor<1>) {
        tape.push(&x);
        if tape.memory() == Memory::Stored
            && let Some(fused) = Fused::of(self, &x)
        {
            return fused.forward_keeping(x, tape);
        }
        self.forward(x)
    }

    fn pull_back(
        &self,
        at: At<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        match tape.pop(at) {
            At::Input(x) => match Fused::in_training(self, &x) {
                Some(fused) => {
                    let dx = fused.backward(x.clone(), dz, dlog_det, tape, grads);
                    (x, dx)
                }
                None => {
                    let given = x.clone();
                    let (_, dx) = self.pull_back_through_net(given, |x, _| x, dz, dlog_det, grads);
                    (x, dx)
                }
            },
            At::Output(z) => {
                let (x, dx) = match Fused::in_training(self, &z) {
                    Some(fused) => fused.pull_back(z, dz, dlog_det, grads),
                    None => {
                        let invert = |z, params| {
                            self.mask.keep_transformed(self.transform.valid().inverse(z, params))
                        };
                        self.pull_back_through_net(z, invert, dz, dlog_det, grads)
                    }
                };
                tape.reconstructed(&x);
                (x, dx)
            }
        }
    }
}

/// Sums all axes but the first: `[batch, ...] -> [batch]`.
pub(crate) fn sum_per_sample<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let batch = x.dims()[0];
    let rest = x.dims()[1..].iter().product::<usize>();
    x.reshape([batch, rest]).sum_dim(1).reshape([batch])
}
