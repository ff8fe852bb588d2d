//! The fast road of a [`ResidualNet`] on the CPU: kernels on framed pictures, without autodiff.
//!
//! Taken where the [gate](host::runs_by_kernels) is open; the formulation in tensors is its test oracle
//! and serves everything else.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::residual_net::{NetBatchNorm, ResidualNet};
use super::weight_norm::WeightNormConv;
use crate::backend::{HostScalar, HostValues};
use crate::flow::{Pass, pull_back_surrogate, weighted};
use crate::host::{self, by_dtype};
use crate::kernels::{self, Frame, Framed, Kernel, Norm, ResidualGradients, Window};
use crate::norm::{Moments, assert_variance};

impl ResidualNet {
    pub(super) fn runs_on_host(&self, x: &Tensor<4>) -> bool {
        self.takes(x) && host::runs_by_kernels(self, x)
    }

    pub(super) fn pulls_back_on_host(&self, x: &Tensor<4>) -> bool {
        self.takes(x) && host::pulls_back_by_kernels(self, x)
    }

    /// The formulation in tensors says what is wrong where it is.
    fn takes(&self, x: &Tensor<4>) -> bool {
        x.dims()[1] == self.norm_in.weight.dims()[0]
    }

    pub(super) fn forward_on_host(&self, x: Tensor<4>) -> Tensor<4> {
        by_dtype!(x, T => self.forward_as::<T>(x))
    }

    pub(super) fn data_pass_on_host(&mut self, x: Tensor<4>, pass: Pass) -> Tensor<4> {
        if self.net_norms().any(|norm| !norm.moments.is_frozen()) {
            assert_variance(x.dims());
        }
        by_dtype!(x, T => self.data_pass_as::<T>(x, pass))
    }

    pub(super) fn pull_back_on_host(
        &self,
        x: Tensor<4>,
        dparams: impl FnOnce(Tensor<4>) -> Tensor<4>,
        grads: &mut GradientsParams,
    ) -> Tensor<4> {
        by_dtype!(x, T => self.pull_back_as::<T>(x, dparams, grads))
    }

    fn forward_as<T: HostScalar>(&self, x: Tensor<4>) -> Tensor<4> {
        let norms = self.norms().map(|norm| norm.map(numbers::<T, _>)).collect::<Vec<_>>();
        self.run(x, false, |net, x| net.forward(x, |index, _| norms[index].clone()).store())
    }

    fn data_pass_as<T: HostScalar>(&mut self, x: Tensor<4>, pass: Pass) -> Tensor<4> {
        let (device, gain) = (x.device(), *self.input_gain);
        let mut changed: Vec<NetBatchNorm> = self.net_norms().cloned().collect();
        let y = self.run(x, false, |net, x| {
            let norm = |index: usize, x: &Framed<T>| {
                let norm: &mut NetBatchNorm = &mut changed[index];
                let [mean, variance] = x.moments().map(|values| {
                    let channels = values.len();
                    host::tensor(values, [channels], &device)
                });
                norm.moments = norm.moments.clone().data_pass(Moments { mean, variance }, pass);
                let affine = norm.affine();
                let affine = if index == 0 { entry(affine, gain) } else { affine };
                affine.map(numbers)
            };
            net.forward(x, norm).store()
        });
        self.net_norms_mut().zip(changed).for_each(|(norm, changed)| *norm = changed);
        y
    }

    fn pull_back_as<T: HostScalar>(
        &self,
        x: Tensor<4>,
        dparams: impl FnOnce(Tensor<4>) -> Tensor<4>,
        grads: &mut GradientsParams,
    ) -> Tensor<4> {
        let (device, shape) = (x.device(), x.dims());
        let channels_out = self.conv_out.gain.dims()[0];
        let params_shape = [shape[0], channels_out, shape[2], shape[3]];
        let norms: Vec<_> = self.norms().collect();
        let norm_values: Vec<_> = (norms.iter().cloned().zip(self.net_norms()))
            .map(|(affine, norm)| Norm {
                affine: affine.map(numbers::<T, _>),
                moments: norm.followed_moments().map(|moments| moments.map(numbers)),
            })
            .collect();
        let mut gradients = None;
        let dx = self.run(x, true, |net, x| {
            let (dx, new) = net.pull_back(x, &norm_values, |params| {
                numbers(dparams(host::tensor(params, params_shape, &device)))
            });
            gradients = Some(new);
            dx
        });
        let ResidualGradients { norms: dnorms, kernels: dkernels } = gradients.expect("was run");
        // The chain rule of weight normalization, and from scale and shift to a norm's weight and bias,
        // is that of tensors: the surrogate sum(W * dW) has the gradient asked for. What the moments
        // add is in `dx` already.
        let norms = norms.into_iter().flatten().zip(dnorms.into_iter().flatten());
        let norms = norms.map(|(norm, dnorm)| {
            let shape = norm.dims();
            weighted(norm, host::tensor(dnorm, shape, &device))
        });
        let kernels = self.convs().zip(dkernels).flat_map(|(conv, (dweight, dbias))| {
            let weight = conv.weight();
            let shape = weight.dims();
            let bias = conv.bias.as_ref().zip(dbias).and_then(|(bias, dbias)| {
                weighted(bias.val(), host::tensor(dbias, [shape[0]], &device))
            });
            [weighted(weight, host::tensor(dweight, shape, &device)), bias]
        });
        pull_back_surrogate(self, norms.chain(kernels).flatten(), grads);
        dx
    }

    /// Runs the kernels' net on the numbers of `x`; the result has the batch and the sides of `x`.
    fn run<T: HostScalar>(
        &self,
        x: Tensor<4>,
        with_gradient: bool,
        f: impl FnOnce(&kernels::ResidualNet<T>, Framed<T>) -> Vec<T>,
    ) -> Tensor<4> {
        let device = x.device();
        let [batch, channels, height, width] = x.dims();
        let convs = self.convs().map(|conv| {
            let [outputs, inputs, kernel, _] = conv.direction.dims();
            let bias = conv.bias.as_ref().map(|bias| numbers::<T, _>(bias.val()));
            let window = if kernel == 3 { Window::Square3 } else { Window::Pixel };
            (numbers::<T, _>(conv.weight()), bias, [inputs, outputs], window)
        });
        let convs: Vec<_> = convs.collect();
        let kernels = convs.iter().map(|(weight, bias, sizes, window)| {
            Kernel::new(weight, bias.as_deref(), *sizes, *window, with_gradient)
        });
        let net = kernels::ResidualNet { kernels: kernels.collect() };
        let work = convs.iter().map(|(weight, ..)| weight.len()).sum();
        let frame = Frame::new([batch, height, width], work);
        let y = f(&net, frame.load(&numbers(x), channels));
        let channels = y.len() / (batch * height * width);
        host::tensor(y, [batch, channels, height, width], &device)
    }

    /// Scale and shift of each norm, in the order of the kernels.
    fn norms(&self) -> impl Iterator<Item = [Tensor<1>; 2]> {
        self.net_norms().enumerate().map(|(index, norm)| match index {
            0 => entry(norm.affine(), *self.input_gain),
            _ => norm.affine(),
        })
    }

    fn net_norms(&self) -> impl Iterator<Item = &NetBatchNorm> {
        let blocks = self.blocks.iter().flat_map(|block| [&block.norm1, &block.norm2]);
        [&self.norm_in].into_iter().chain(blocks).chain([&self.norm_out])
    }

    fn net_norms_mut(&mut self) -> impl Iterator<Item = &mut NetBatchNorm> {
        let blocks = self.blocks.iter_mut().flat_map(|block| [&mut block.norm1, &mut block.norm2]);
        [&mut self.norm_in].into_iter().chain(blocks).chain([&mut self.norm_out])
    }

    /// The convolutions, in the order of the kernels.
    fn convs(&self) -> impl Iterator<Item = &WeightNormConv> {
        let blocks = self.blocks.iter().zip(&self.skips);
        let blocks = blocks.flat_map(|(block, skip)| [&block.conv1, &block.conv2, skip]);
        [&self.conv_in, &self.skip_in].into_iter().chain(blocks).chain([&self.conv_out])
    }
}

/// Scale and shift of `gain [n, -n]` from those of `n`.
fn entry(affine: [Tensor<1>; 2], gain: f64) -> [Tensor<1>; 2] {
    affine.map(|values| {
        let values = values * gain;
        Tensor::cat(vec![values.clone(), values.neg()], 0)
    })
}

/// The values without the autodiff graph.
fn numbers<T: HostScalar, const N: usize>(values: Tensor<N>) -> Vec<T> {
    HostValues::of(host::plain(values)).as_slice().to_vec()
}
