//! A normal conditioned on the kept half: the split prior of Glow.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use rand::Rng;

use super::diagonal_normal::normal_log_prob;
use super::{Prior, SplitPrior, StandardNormal, backward_by_autodiff, scaled_normal};
use crate::chain::zero_log_det;
use crate::conditioner::Conditioner;
use crate::conditioner::conv::ZeroConv;
use crate::coupling::{AffineOrder, Fused, FusedMap, LOG_SCALE_LIMIT, Mask, ScaleMap};
use crate::flow::Pass;
use crate::host;
use crate::reshape::{merge_channels, num_kept, split_channels};
use crate::tape::Tape;

/// Independent normals whose means and log standard deviations a net computes from the kept half.
///
/// `(mean, log_std) = net(kept)`: the net gives two channels for each one factored out, first all
/// means, then all log standard deviations, which are held within ±20.
///
/// Source: openai/glow, `model.py`, `split2d_prior`, where the net is one [`ZeroConv`].
#[derive(Module, Debug)]
pub struct ConditionalNormal<C> {
    /// The net.
    pub conditioner: C,
}

impl ConditionalNormal<ZeroConv> {
    /// Glow's: a 3x3 convolution that starts at zero, so a standard normal to start with.
    pub fn glow(channels_kept: usize, channels_out: usize, device: &Device) -> Self {
        Self { conditioner: ZeroConv::new([channels_kept, 2 * channels_out], device) }
    }
}

impl<C: Module> ConditionalNormal<C> {
    /// From any net.
    pub fn new(conditioner: C) -> Self {
        Self { conditioner }
    }

    fn parameters<const D: usize>(&self, kept: Tensor<D>, channels: usize) -> (Tensor<D>, Tensor<D>)
    where
        C: Conditioner<D>,
    {
        let parameters = self.conditioner.forward(kept);
        assert!(
            parameters.dims()[1] == 2 * channels,
            "ConditionalNormal: the net gave numbers of shape {:?}, but {channels} channels are factored out; \
             give it {} outputs",
            parameters.dims(),
            2 * channels
        );
        let mean = parameters.clone().narrow(1, 0, channels);
        let log_std = parameters.narrow(1, channels, channels);
        (mean, log_std.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT))
    }

    /// The density as that of a standard normal behind the coupling
    /// `[kept, z] -> [kept, (z - mean) exp(-log_std)]`, where there are kernels for it: they take the
    /// parts in one tensor.
    fn fused<const D: usize>(
        &self,
        kept: &Tensor<D>,
        z: &Tensor<D>,
    ) -> Option<(Fused<'_, D, C>, Tensor<D>)>
    where
        C: Conditioner<D>,
        Self: Module,
    {
        let open = host::runs_by_kernels(self, kept) && host::runs_by_kernels(self, z);
        if open { self.joined(kept, z) } else { None }
    }

    /// [`fused`](Self::fused) of a model in training, for its gradients.
    fn fused_in_training<const D: usize>(
        &self,
        kept: &Tensor<D>,
        z: &Tensor<D>,
    ) -> Option<(Fused<'_, D, C>, Tensor<D>)>
    where
        C: Conditioner<D>,
        Self: Module,
    {
        let open = host::pulls_back_by_kernels(self, kept) && host::pulls_back_by_kernels(self, z);
        if open { self.joined(kept, z) } else { None }
    }

    fn joined<const D: usize>(
        &self,
        kept: &Tensor<D>,
        z: &Tensor<D>,
    ) -> Option<(Fused<'_, D, C>, Tensor<D>)>
    where
        C: Conditioner<D>,
    {
        let (mask, channels) = (Mask::first_half(), kept.dims()[1] + z.dims()[1]);
        if !Fused::<D, C>::knows(mask) || kept.dims()[1] != num_kept(channels) {
            return None;
        }
        let mut net = self.conditioner.folded()?.fold()?;
        let (weight, bias) = net.layers.pop()?;
        net.layers.push((weight.neg(), bias.neg()));
        let (order, scale_map) = (AffineOrder::ShiftThenScale, ScaleMap::Exp);
        let limits = [-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT];
        let map = FusedMap::Affine { scale_map, order, gain: None, limits };
        let joined = merge_channels(kept.clone(), z.clone());
        Some((Fused::new(&self.conditioner, net, map, mask, &joined)?, joined))
    }
}

impl<const D: usize, C: Conditioner<D>> SplitPrior<D> for ConditionalNormal<C>
where
    Self: Module,
{
    fn log_prob(&self, z: Tensor<D>, kept: Tensor<D>) -> Tensor<1> {
        if host::has_no_samples(&z) {
            return zero_log_det(&z);
        }
        if let Some((fused, joined)) = self.fused(&kept, &z) {
            let (joined, log_det) = fused.forward(joined);
            return Prior::log_prob(&StandardNormal::new(), split_channels(joined).1) + log_det;
        }
        let (mean, log_std) = self.parameters(kept, z.dims()[1]);
        normal_log_prob(z, mean, log_std)
    }

    fn sample(
        &self,
        shape: [usize; D],
        kept: Tensor<D>,
        temperature: f64,
        rng: &mut impl Rng,
    ) -> Tensor<D> {
        let noise = scaled_normal(shape, temperature, rng, &kept.device(), kept.dtype());
        self.unstandardize(noise, kept)
    }

    fn standardize(&self, z: Tensor<D>, kept: Tensor<D>) -> Tensor<D> {
        if host::has_no_samples(&z) {
            return z;
        }
        if let Some((fused, joined)) = self.fused(&kept, &z) {
            return split_channels(fused.forward(joined).0).1;
        }
        let (mean, log_std) = self.parameters(kept, z.dims()[1]);
        (z - mean) * log_std.neg().exp()
    }

    fn unstandardize(&self, noise: Tensor<D>, kept: Tensor<D>) -> Tensor<D> {
        if host::has_no_samples(&noise) {
            return noise;
        }
        if let Some((fused, joined)) = self.fused(&kept, &noise) {
            return split_channels(fused.inverse(joined)).1;
        }
        let (mean, log_std) = self.parameters(kept, noise.dims()[1]);
        noise * log_std.exp() + mean
    }

    fn data_pass(mut self, _z: Tensor<D>, kept: Tensor<D>, pass: Pass) -> Self {
        self.conditioner = self.conditioner.data_pass(kept, pass).0;
        self
    }

    fn backward(
        &self,
        z: Tensor<D>,
        kept: Tensor<D>,
        weight: f64,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let Some((fused, joined)) = self.fused_in_training(&kept, &z) else {
            return backward_by_autodiff(self, z, kept, weight, grads);
        };
        let (out, log_det) = fused.forward(joined.clone());
        let dout = Prior::backward(&StandardNormal::new(), split_channels(out).1, weight, grads);
        let dout = merge_channels(kept.zeros_like(), dout);
        let dlog_det = log_det.ones_like() * weight;
        let (dkept, dz) =
            split_channels(fused.backward(joined, dout, dlog_det, &mut Tape::default(), grads));
        (dz, dkept)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::backend::hosts;
    use crate::conditioner::MlpConfig;
    use crate::testing::visit::gradients;
    use crate::testing::{inputs, move_parameters, seeded, to_f64};

    /// The density behind a fused coupling against the formula in tensors, which a tensor that takes
    /// part in autodiff goes through.
    #[test]
    fn the_fused_road_agrees_with_the_formula() {
        for (_, device) in hosts() {
            let device = device();
            for (kept, out) in [(2, 2), (3, 2)] {
                let prior = ConditionalNormal::glow(kept, out, &device);
                agree(prior, [3, kept, 5, 4], [3, out, 5, 4], &device);
                let mlp = MlpConfig::new(kept, vec![7, 5], 2 * out);
                let mlp = seeded(1, &device, || mlp.init(&device)).unwrap();
                agree(ConditionalNormal::new(mlp), [6, kept], [6, out], &device);
            }
        }
    }

    fn agree<const D: usize, C: Conditioner<D>>(
        prior: ConditionalNormal<C>,
        kept: [usize; D],
        out: [usize; D],
        device: &Device,
    ) where
        ConditionalNormal<C>: Module,
    {
        let prior = to_f64(move_parameters(prior, 1, 0.3));
        let z: Tensor<D> = inputs(out, 2, device, DType::F64);
        let kept: Tensor<D> = inputs(kept, 3, device, DType::F64);
        let close = |a: Vec<f64>, b: Vec<f64>| {
            assert_eq!(a.len(), b.len());
            for (a, b) in a.iter().zip(&b) {
                assert!((a - b).abs() < 1e-10 * (1.0 + b.abs()), "{a} is not {b}");
            }
        };
        assert!(prior.fused(&kept, &z).is_some());
        let tracked = |x: &Tensor<D>| Tensor::from_inner(x.clone());
        let training = prior.clone().train();
        let plain = training.log_prob(tracked(&z), tracked(&kept)).inner();
        close(host::to_f64(prior.log_prob(z.clone(), kept.clone())), host::to_f64(plain));
        let (mut fused, mut by_autodiff) = (GradientsParams::new(), GradientsParams::new());
        let (dz, dkept) = training.backward(z.clone(), kept.clone(), 0.7, &mut fused);
        let (dz_expected, dkept_expected) =
            backward_by_autodiff(&training, z, kept, 0.7, &mut by_autodiff);
        close(host::to_f64(dz), host::to_f64(dz_expected));
        close(host::to_f64(dkept), host::to_f64(dkept_expected));
        let by_autodiff = gradients(&training, &by_autodiff);
        for ((name, got), (_, expected)) in
            gradients(&training, &fused).into_iter().zip(by_autodiff)
        {
            let (got, expected) = (got.expect(&name), expected.expect(&name));
            close(got, expected);
        }
    }
}
