//! The fast road of a coupling, or of an autoregressive layer, on the CPU: net, elementwise map and
//! log-determinant fused.
//!
//! Taken where the [gate](host::runs_by_kernels) is open, the net [folds](Fold) and the mask divides
//! channels; the formulation in tensors beside it is its test oracle and serves everything else. What
//! the net sees of a context are more inputs of its first layer.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use super::spline::{STEEPEST, slope_offset};
use super::{
    AffineOrder, Coupling, Mask, Parity, RationalQuadraticConfig, ScaleMap, SplineForm,
    SplineTails, Transform,
};
use crate::backend::{HostScalar, HostValues};
use crate::conditioner::{Conditioner, Fold, FoldedNet};
use crate::flow::add_grad;
use crate::host::{self, by_dtype};
use crate::kernels::{
    self, Activations, Gradients, Layer, LogScale, Map, Net, Order, Shape, Spline, Window,
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
    /// Rational-quadratic splines.
    Spline(RationalQuadraticConfig),
}

impl FusedMap {
    fn params_per_channel(&self) -> usize {
        match self {
            Self::Additive => 1,
            Self::Affine { .. } => 2,
            Self::Spline(config) => kernel_spline::<f64>(config).params_per_channel(),
        }
    }
}

fn kernel_spline<T: HostScalar>(config: &RationalQuadraticConfig) -> Spline<T> {
    let number = T::from_f64;
    let form = match config.form {
        SplineForm::Floored { min_width, min_height, min_slope } => kernels::SplineForm::Floored {
            least_width: number(min_width),
            least_height: number(min_height),
            least_slope: number(min_slope),
            slope_offset: number(slope_offset(min_slope)),
            steepest: number(STEEPEST),
        },
        SplineForm::Bent { slope } => kernels::SplineForm::Bent {
            size_limit: number(slope.ln() / 2.0),
            slope_limit: number(slope.ln()),
        },
    };
    let tails = match config.tails {
        SplineTails::Identity => kernels::SplineTails::Identity,
        SplineTails::Linear => kernels::SplineTails::Linear,
        SplineTails::Circular => kernels::SplineTails::Circular,
    };
    Spline { bins: config.num_bins, interval: config.interval.map(number), tails, form }
}

/// Which channels a layer's net sees, and which it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Those that a coupling's mask divides.
    Coupling(Mask),
    /// All, each by those before it.
    Autoregressive,
}

impl Layout {
    fn num_identity(self, channels: usize) -> usize {
        match self {
            Self::Coupling(mask) => mask.num_identity(channels),
            Self::Autoregressive => channels,
        }
    }

    fn num_transformed(self, channels: usize) -> usize {
        match self {
            Self::Coupling(mask) => mask.num_transformed(channels),
            Self::Autoregressive => channels,
        }
    }
}

/// A coupling whose parts all have a fused form, for tensors of one shape.
pub(crate) struct Fused<'a, const D: usize, C> {
    conditioner: &'a C,
    net: FoldedNet,
    map: FusedMap,
    layout: Layout,
    shape: [usize; D],
    /// What the net sees beside the channels, a row a sample.
    context: Option<Tensor<2>>,
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
        let layout = Layout::Coupling(coupling.mask());
        Self::of_parts(fold, &coupling.conditioner, &coupling.transform, layout, x)
    }

    /// From the parts of a layer, for inputs like `x`, for which the gate is open.
    pub(crate) fn of_parts<T: Transform>(
        fold: impl FnOnce(&dyn Fold) -> Option<FoldedNet>,
        conditioner: &'a C,
        transform: &T,
        layout: Layout,
        x: &Tensor<D>,
    ) -> Option<Self> {
        let map = transform.fused()?;
        let net = fold(conditioner.folded()?)?;
        let fused = Self::with_layout(conditioner, net, map, layout, x)?;
        Some(Self { as_folded: true, ..fused })
    }

    fn with_layout(
        conditioner: &'a C,
        net: FoldedNet,
        map: FusedMap,
        layout: Layout,
        x: &Tensor<D>,
    ) -> Option<Self> {
        let place = conditioner.folded_context().filter(|place| place.width() > 0);
        if place.is_some() && D != 2 {
            return None;
        }
        let context = place.map(|place| host::plain(place.rows(x.dims()[0])));
        let shape = x.dims();
        let fused = Self { conditioner, net, map, layout, shape, context, as_folded: false };
        fused.fits().then_some(fused)
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
        Self::with_layout(conditioner, net, map, Layout::Coupling(mask), x)
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
            (self.layout.num_identity(channels), self.layout.num_transformed(channels));
        let per_channel = self.map.params_per_channel();
        let seen = self.context.as_ref().map_or(0, |context| context.dims()[1]);
        let taps = |window| if window { 9 } else { 1 };
        let Some(last) = self.net.layers.len().checked_sub(1) else { return false };
        let ([inputs, _], [_, outputs]) = (self.net.sizes(0), self.net.sizes(last));
        transformed > 0
            && inputs == identity * taps(self.net.first_3x3) + seen
            && outputs == per_channel * transformed * taps(self.net.last_3x3)
    }

    pub(crate) fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        by_dtype!(x, T => self.forward_as::<T>(x, None))
    }

    /// [`forward`](Self::forward), with the net's activations for [`backward`](Self::backward) kept on
    /// the tape.
    pub(crate) fn forward_keeping(&self, x: Tensor<D>, tape: &mut Tape) -> (Tensor<D>, Tensor<1>) {
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
        let x = values(x);
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

    /// The inverse of an [autoregressive](Layout::Autoregressive) layer, whose features are known in
    /// this order and whose hidden units have these degrees, in ascending order.
    pub(crate) fn inverse_in_steps(
        &self,
        z: Tensor<D>,
        order: &[usize],
        degrees: &[Vec<usize>],
    ) -> Tensor<D> {
        let device = z.device();
        by_dtype!(z, T => {
            let z = values(z);
            let x = self.with_kernel::<T, _>(|layer, shape| {
                let layer = &layer;
                kernels::Autoregressive { layer, order, degrees }.inverse(z.as_slice(), shape)
            });
            self.tensor(x, &device)
        })
    }

    fn inverse_as<T: HostScalar>(&self, z: Tensor<D>) -> Tensor<D> {
        let device = z.device();
        let z = values(z);
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
        let (z, dz) = (values(z), values(dz));
        let dlog_det = values(dlog_det);
        let back = self.with_kernel::<T, _>(|kernel, shape| {
            kernel.pull_back(z.as_slice(), dz.as_slice(), dlog_det.as_slice(), shape)
        });
        let (x, dx) = (self.tensor(back.x, &device), self.tensor(back.dx, &device));
        self.add_gradients(back.gradients, back.dcontext, &device, grads);
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
        let (x, dz) = (values(x), values(dz));
        let dlog_det = values(dlog_det);
        let back = self.with_kernel::<T, _>(|kernel, shape| {
            let (x, dz, dlog_det) = (x.as_slice(), dz.as_slice(), dlog_det.as_slice());
            match tape.take::<Activations<T>>() {
                Some(kept) => kernel.backward_from(kept, x, dz, dlog_det, shape),
                None => kernel.backward(x, dz, dlog_det, shape),
            }
        });
        let dx = self.tensor(back.dx, &device);
        self.add_gradients(back.gradients, back.dcontext, &device, grads);
        dx
    }

    fn add_gradients<T: HostScalar>(
        self,
        gradients: Gradients<T>,
        dcontext: Vec<T>,
        device: &Device,
        grads: &mut GradientsParams,
    ) {
        if let (Some(place), Some(context)) = (self.conditioner.folded_context(), &self.context) {
            place.add_gradient(host::tensor(dcontext, context.dims(), device), grads);
        }
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
        host::tensor(values, self.shape, device)
    }

    fn with_kernel<T: HostScalar, R>(
        &self,
        run: impl FnOnce(kernels::Coupling<'_, T>, Shape) -> R,
    ) -> R {
        let channels = self.shape[1];
        let identity = self.layout.num_identity(channels);
        let transformed = channels - identity;
        let (identity, transformed, step) = match self.layout {
            Layout::Autoregressive => (0..channels, 0..channels, 1),
            Layout::Coupling(Mask::Alternating(Parity::Even)) => (0..channels, 1..channels, 2),
            Layout::Coupling(Mask::Alternating(Parity::Odd)) => (1..channels, 0..channels, 2),
            Layout::Coupling(Mask::ChannelHalves(Parity::Odd)) => {
                (transformed..channels, 0..transformed, 1)
            }
            Layout::Coupling(_) => (0..identity, identity..channels, 1),
        };
        let context = self.context.clone().map(values);
        let (context, context_width) = match (&context, &self.context) {
            (Some(values), Some(context)) => (values.as_slice(), context.dims()[1]),
            _ => (&[][..], 0),
        };
        let layers: Vec<_> = self
            .net
            .layers
            .iter()
            .enumerate()
            .map(|(index, (weight, bias))| {
                let mask = self.net.masks.get(index).cloned().map(values);
                (self.net.sizes(index), values(weight.clone()), mask, values(bias.clone()))
            })
            .collect();
        let layers = layers
            .iter()
            .map(|([inputs, outputs], weight, mask, bias)| Layer {
                inputs: *inputs,
                outputs: *outputs,
                weight: weight.as_slice(),
                transposed: self.net.transposed,
                mask: mask.as_ref().map(HostValues::as_slice),
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
            FusedMap::Spline(config) => Map::Spline(kernel_spline(config)),
        };
        let (height, width) = if D == 4 { (self.shape[2], self.shape[3]) } else { (1, 1) };
        let shape = Shape { batch: self.shape[0], channels, height, width };
        let coupling =
            kernels::Coupling { identity, transformed, step, context, context_width, map, net };
        run(coupling, shape)
    }
}

/// The values without the autodiff graph.
fn values<const N: usize>(tensor: Tensor<N>) -> HostValues {
    HostValues::of(host::plain(tensor))
}
