//! The fast road of a coupling on the CPU: net, elementwise map and log-determinant fused.
//!
//! Taken where the [gate](host::runs_by_kernels) is open, the net [folds](Fold) and the mask divides
//! channels; the formulation in tensors beside it is its test oracle and serves everything else.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use super::{AffineOrder, Coupling, Mask, Parity, ScaleMap, Transform};
use crate::backend::{HostScalar, HostValues};
use crate::conditioner::{Conditioner, Fold, FoldedNet};
use crate::flow::add_grad;
use crate::host::{self, by_dtype};
use crate::kernels::{
    self, Activations, Gradients, Layer, LogScale, Map, Net, Order, Shape, Window,
};
use crate::tape::Tape;

/// What the fused kernels need to know of an elementwise map.
#[derive(Debug, Clone)]
pub enum FusedMap {
    /// `z = x + shift`.
    Additive,
    /// `z = x * scale + shift` or `(x + shift) * scale`.
    Affine {
        /// From raw output to log-scale.
        scale_map: ScaleMap,
        /// Which comes first.
        order: AffineOrder,
        /// Learned gain of [`ScaleMap::Tanh`].
        gain: Option<burn::module::Param<Tensor<1>>>,
        /// Lowest and highest log-scale.
        limits: [f64; 2],
    },
}

/// A coupling whose parts all have a fused form, for tensors of one shape.
pub(crate) struct Fused<'a, const D: usize, C> {
    conditioner: &'a C,
    net: FoldedNet,
    map: FusedMap,
    mask: Mask,
    shape: [usize; D],
    /// Whether `net` is as the conditioner folded it.
    as_folded: bool,
}

impl<'a, const D: usize, C: Conditioner<D>> Fused<'a, D, C> {
    /// The fused form for inputs like `x`, if there is one; of a plain model.
    pub(super) fn of<T: Transform>(coupling: &'a Coupling<C, T>, x: &Tensor<D>) -> Option<Self>
    where
        Coupling<C, T>: Module,
    {
        let open = Self::knows(coupling.mask()) && host::runs_by_kernels(coupling, x);
        if open { Self::folded_by(|net| net.fold(), coupling, x) } else { None }
    }

    /// [`of`](Self::of) a model in training, for its gradients.
    pub(super) fn in_training<T: Transform>(
        coupling: &'a Coupling<C, T>,
        x: &Tensor<D>,
    ) -> Option<Self>
    where
        Coupling<C, T>: Module,
    {
        let open = Self::knows(coupling.mask()) && host::pulls_back_by_kernels(coupling, x);
        if open { Self::folded_by(|net| net.fold_plain(), coupling, x) } else { None }
    }

    fn folded_by<T: Transform>(
        fold: impl FnOnce(&dyn Fold) -> Option<FoldedNet>,
        coupling: &'a Coupling<C, T>,
        x: &Tensor<D>,
    ) -> Option<Self> {
        let map = coupling.transform.fused()?;
        let net = fold(coupling.conditioner.folded()?)?;
        let fused = Self::new(&coupling.conditioner, net, map, coupling.mask(), x)?;
        Some(Self { as_folded: true, ..fused })
    }

    /// From a conditioner's folded net, which may have been changed by differentiable operations, for
    /// inputs like `x`, for which the gate is open.
    pub(crate) fn new(
        conditioner: &'a C,
        net: FoldedNet,
        map: FusedMap,
        mask: Mask,
        x: &Tensor<D>,
    ) -> Option<Self> {
        let fused = Self { conditioner, net, map, mask, shape: x.dims(), as_folded: false };
        fused.fits().then_some(fused)
    }

    /// Whether there are kernels for a coupling with this mask.
    pub(crate) fn knows(mask: Mask) -> bool {
        matches!(mask, Mask::ChannelHalves(_) | Mask::Alternating(_)) && (D == 2 || D == 4)
    }

    /// Whether the net's widths are those the shape asks for; the tensor formulation says what is
    /// wrong where they are not.
    fn fits(&self) -> bool {
        let channels = self.shape[1];
        let (identity, transformed) =
            (self.mask.num_identity(channels), self.mask.num_transformed(channels));
        let per_channel = match self.map {
            FusedMap::Additive => 1,
            FusedMap::Affine { .. } => 2,
        };
        let taps = |window| if window { 9 } else { 1 };
        let Some(last) = self.net.layers.len().checked_sub(1) else { return false };
        let ([inputs, _], [_, outputs]) = (self.net.sizes(0), self.net.sizes(last));
        transformed > 0
            && inputs == identity * taps(self.net.first_3x3)
            && outputs == per_channel * transformed * taps(self.net.last_3x3)
    }

    pub(crate) fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        by_dtype!(x, T => self.forward_as::<T>(x, None))
    }

    /// [`forward`](Self::forward), with the net's activations for [`backward`](Self::backward) kept on
    /// the tape.
    pub(super) fn forward_keeping(&self, x: Tensor<D>, tape: &mut Tape) -> (Tensor<D>, Tensor<1>) {
        by_dtype!(x, T => self.forward_as::<T>(x, Some(tape)))
    }

    pub(crate) fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        by_dtype!(z, T => self.inverse_as::<T>(z))
    }

    pub(super) fn pull_back(
        self,
        z: Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        by_dtype!(z, T => self.pull_back_as::<T>(z, dz, dlog_det, grads))
    }

    /// The gradient by `x`, from the activations that the tape has of the layer popped last, where it
    /// has any.
    pub(crate) fn backward(
        self,
        x: Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> Tensor<D> {
        by_dtype!(x, T => self.backward_as::<T>(x, dz, dlog_det, tape, grads))
    }

    fn forward_as<T: HostScalar>(
        &self,
        x: Tensor<D>,
        tape: Option<&mut Tape>,
    ) -> (Tensor<D>, Tensor<1>) {
        let device = x.device();
        let x = values(self.in_halves(x));
        let (z, log_det) = self.with_kernel::<T, _>(|kernel, shape| {
            let Some(tape) = tape else { return kernel.forward(x.as_slice(), shape) };
            let (z, log_det, kept) = kernel.forward_keeping(x.as_slice(), shape);
            if let Some(kept) = kept {
                let num_bytes = kept.num_bytes();
                tape.keep(kept, num_bytes);
            }
            (z, log_det)
        });
        (self.tensor(z, &device), host::tensor(log_det, [self.shape[0]], &device))
    }

    fn inverse_as<T: HostScalar>(&self, z: Tensor<D>) -> Tensor<D> {
        let device = z.device();
        let z = values(self.in_halves(z));
        let x = self.with_kernel::<T, _>(|kernel, shape| kernel.inverse(z.as_slice(), shape));
        self.tensor(x, &device)
    }

    fn pull_back_as<T: HostScalar>(
        self,
        z: Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let device = z.device();
        let (z, dz) = (values(self.in_halves(z)), values(self.in_halves(dz)));
        let dlog_det = values(dlog_det);
        let back = self.with_kernel::<T, _>(|kernel, shape| {
            kernel.pull_back(z.as_slice(), dz.as_slice(), dlog_det.as_slice(), shape)
        });
        let (x, dx) = (self.tensor(back.x, &device), self.tensor(back.dx, &device));
        self.add_gradients(back.gradients, &device, grads);
        (x, dx)
    }

    fn backward_as<T: HostScalar>(
        self,
        x: Tensor<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> Tensor<D> {
        let device = x.device();
        let (x, dz) = (values(self.in_halves(x)), values(self.in_halves(dz)));
        let dlog_det = values(dlog_det);
        let back = self.with_kernel::<T, _>(|kernel, shape| {
            let (x, dz, dlog_det) = (x.as_slice(), dz.as_slice(), dlog_det.as_slice());
            match tape.take::<Activations<T>>() {
                Some(kept) => kernel.backward_from(kept, x, dz, dlog_det, shape),
                None => kernel.backward(x, dz, dlog_det, shape),
            }
        });
        let dx = self.tensor(back.dx, &device);
        self.add_gradients(back.gradients, &device, grads);
        dx
    }

    fn add_gradients<T: HostScalar>(
        self,
        gradients: Gradients<T>,
        device: &Device,
        grads: &mut GradientsParams,
    ) {
        if let FusedMap::Affine { gain: Some(gain), .. } = &self.map {
            let channels = gradients.gain.len();
            add_grad(grads, gain, host::tensor(gradients.gain, [channels], device));
        }
        let layers = self.net.layers.iter().zip(gradients.layers).map(|((weight, bias), back)| {
            let dweight = host::tensor(back.weight, weight.dims(), device);
            (dweight, host::tensor(back.bias, bias.dims(), device))
        });
        let layers = layers.collect();
        match self.conditioner.folded() {
            Some(conditioner) if self.as_folded => {
                conditioner.pull_back_folded(self.net, layers, grads);
            }
            _ => self.net.pull_back(self.conditioner, layers, grads),
        }
    }

    /// A tensor of what a kernel gives for every entry.
    fn tensor<T: HostScalar>(&self, values: Vec<T>, device: &Device) -> Tensor<D> {
        self.out_of_halves(host::tensor(values, self.shape, device))
    }

    /// The channels as the kernels take them: two contiguous ranges.
    fn in_halves(&self, x: Tensor<D>) -> Tensor<D> {
        match self.mask {
            Mask::Alternating(_) => {
                let (identity, transformed) = self.mask.split(x);
                Tensor::cat(vec![identity, transformed], 1)
            }
            _ => x,
        }
    }

    fn out_of_halves(&self, z: Tensor<D>) -> Tensor<D> {
        match self.mask {
            Mask::Alternating(_) => {
                let identity = self.mask.num_identity(self.shape[1]);
                let transformed = self.shape[1] - identity;
                let (a, b) = (z.clone().narrow(1, 0, identity), z.narrow(1, identity, transformed));
                self.mask.merge(a, b)
            }
            _ => z,
        }
    }

    fn with_kernel<T: HostScalar, R>(
        &self,
        run: impl FnOnce(kernels::Coupling<'_, T>, Shape) -> R,
    ) -> R {
        let channels = self.shape[1];
        let identity = self.mask.num_identity(channels);
        let transformed = channels - identity;
        let (identity, transformed) = match self.mask {
            Mask::ChannelHalves(Parity::Odd) => (transformed..channels, 0..transformed),
            _ => (0..identity, identity..channels),
        };
        let layers: Vec<_> = self
            .net
            .layers
            .iter()
            .enumerate()
            .map(|(index, (weight, bias))| {
                (self.net.sizes(index), values(weight.clone()), values(bias.clone()))
            })
            .collect();
        let layers = layers
            .iter()
            .map(|([inputs, outputs], weight, bias)| Layer {
                inputs: *inputs,
                outputs: *outputs,
                weight: weight.as_slice(),
                transposed: self.net.transposed,
                bias: bias.as_slice(),
            })
            .collect();
        let window = |window| if window { Window::Square3 } else { Window::Pixel };
        let net = Net {
            layers,
            first: window(self.net.first_3x3),
            last: window(self.net.last_3x3),
            negative_slope: T::from_f64(self.net.negative_slope),
        };
        let gain = match &self.map {
            FusedMap::Affine { gain: Some(gain), .. } => Some(values(gain.val())),
            _ => None,
        };
        let map = match &self.map {
            FusedMap::Additive => Map::Additive,
            FusedMap::Affine { scale_map, order, limits, .. } => Map::Affine {
                order: match order {
                    AffineOrder::ScaleThenShift => Order::ScaleThenShift,
                    AffineOrder::ShiftThenScale => Order::ShiftThenScale,
                },
                log_scale: match scale_map {
                    ScaleMap::Sigmoid => LogScale::Sigmoid,
                    ScaleMap::InverseSigmoid => LogScale::InverseSigmoid,
                    ScaleMap::Exp => LogScale::Exp,
                    ScaleMap::BoundedExp { bound } => {
                        LogScale::Bounded { bound: T::from_f64(*bound) }
                    }
                    ScaleMap::SoftClip { .. }
                    | ScaleMap::FlooredSigmoid { .. }
                    | ScaleMap::FlooredSoftplus { .. } => {
                        unreachable!("Affine::fused answers for the others alone")
                    }
                    ScaleMap::Tanh => LogScale::Tanh {
                        gain: gain
                            .as_ref()
                            .map(HostValues::as_slice)
                            .expect("ScaleMap::Tanh has a gain"),
                    },
                },
                limits: limits.map(T::from_f64),
            },
        };
        let (height, width) = if D == 4 { (self.shape[2], self.shape[3]) } else { (1, 1) };
        let shape = Shape { batch: self.shape[0], channels, height, width };
        run(kernels::Coupling { identity, transformed, map, net }, shape)
    }
}

/// The values without the autodiff graph.
fn values<const N: usize>(tensor: Tensor<N>) -> HostValues {
    HostValues::of(host::plain(tensor))
}
