//! The stack as a flow: its map alone.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::FlowStack;
use crate::chain::{from_output, zero_log_det};
use crate::error::Result;
use crate::flow::{At, Flow, Pass};
use crate::host;
use crate::latent::Latents;
use crate::prior::{Prior, SplitPrior};
use crate::reshape::{Squeeze, merge_channels, split_channels};
use crate::tape::Tape;

/// As a flow, a stack is its map alone: the latent's parts put back together in the shape of `x`
/// (each level's squeezes undone), the priors left out. A [`data_pass`](Flow::data_pass) sends the parts
/// through the priors as well.
impl<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>> Flow<D> for FlowStack<D, F, P, S>
where
    Self: Module,
{
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        self.forward_on(x, &mut Tape::default())
    }

    fn forward_on(&self, x: Tensor<D>, tape: &mut Tape) -> (Tensor<D>, Tensor<1>) {
        if host::has_no_samples(&x) {
            self.assert_sample_shape(&x);
            return (x.clone(), zero_log_det(&x));
        }
        let (latents, log_det) = self.encode_on(x, tape);
        (self.assemble(latents), log_det)
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        if host::has_no_samples(&z) {
            self.assert_sample_shape(&z);
            return z;
        }
        self.decode(self.disassemble(z))
    }

    fn inverse_and_log_det(&self, z: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        if host::has_no_samples(&z) {
            self.assert_sample_shape(&z);
            return (z.clone(), zero_log_det(&z));
        }
        let mut parts = self.disassemble(z).parts.into_iter().rev();
        let mut h = parts.next().expect("a part for each level");
        let mut sum: Option<Tensor<1>> = None;
        for (index, level) in self.levels.iter().enumerate().rev() {
            let (x, log_det) = level.inverse_and_log_det(h);
            sum = Some(sum.map_or(log_det.clone(), |sum| sum + log_det));
            h = x;
            if index > 0 {
                h = merge_channels(h, parts.next().expect("a part for each level"));
            }
        }
        (h, sum.expect("a stack has at least one level"))
    }

    fn pull_back_inverse(
        &self,
        x: Tensor<D>,
        dx: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let (mut parts, mut dparts) = (Vec::new(), Vec::new());
        let (mut x, mut dx) = (x, dx);
        for (index, level) in self.levels.iter().enumerate() {
            let (z, dz) = level.pull_back_inverse(x, dx, dlog_det.clone(), grads);
            if index + 1 == self.levels.len() {
                parts.push(z);
                dparts.push(dz);
                break;
            }
            let ((kept, out), (dkept, dout)) = (split_channels(z), split_channels(dz));
            parts.push(out);
            dparts.push(dout);
            (x, dx) = (kept, dkept);
        }
        // Putting the parts together only moves values, so gradients take the same way.
        (self.assemble(Latents::of(parts)), self.assemble(Latents::of(dparts)))
    }

    fn data_pass(mut self, x: Tensor<D>, pass: Pass) -> (Self, Tensor<D>) {
        self.assert_sample_shape(&x);
        if host::has_no_samples(&x) {
            return (self, x);
        }
        let last = self.levels.len() - 1;
        let mut priors = std::mem::take(&mut self.split_priors).into_iter();
        let (mut levels, mut parts) = (Vec::new(), Vec::new());
        let mut h = x;
        for (index, level) in std::mem::take(&mut self.levels).into_iter().enumerate() {
            let (level, z) = level.data_pass(h, pass);
            levels.push(level);
            if index == last {
                self.prior = self.prior.data_pass(z.clone(), pass);
                parts.push(z);
                break;
            }
            let (kept, out) = split_channels(z);
            let prior = priors.next().expect("a split prior between every two levels");
            self.split_priors.push(prior.data_pass(out.clone(), kept.clone(), pass));
            parts.push(out);
            h = kept;
        }
        self.levels = levels;
        let z = self.assemble(Latents::of(parts));
        (self, z)
    }

    fn check(&self) -> Result<()> {
        self.levels.iter().try_for_each(|level| level.check())
    }

    fn pull_back(
        &self,
        at: At<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        from_output(self, at, tape, |z, tape| {
            let mut parts = self.disassemble(z).parts.into_iter().rev();
            // Putting the parts together only moves values, so gradients take the same way back.
            let mut dparts = self.disassemble(dz).parts.into_iter().rev();
            let mut z = parts.next().expect("a part for each level");
            let mut dz = dparts.next().expect("a part for each level");
            for (index, level) in self.levels.iter().enumerate().rev() {
                (z, dz) = level.pull_back(At::Output(z), dz, dlog_det.clone(), tape, grads);
                if index > 0 {
                    z = merge_channels(z, parts.next().expect("a part for each level"));
                    dz = merge_channels(dz, dparts.next().expect("a part for each level"));
                }
            }
            (z, dz)
        })
    }
}

impl<const D: usize, F: Module, P: Module, S: Module> FlowStack<D, F, P, S> {
    fn assemble(&self, latents: Latents<D>) -> Tensor<D> {
        let mut parts = latents.parts.into_iter().rev();
        let mut z = parts.next().expect("a part for each level");
        for (index, &shape) in self.shapes.inputs.iter().enumerate().rev() {
            z = unsqueeze_to(z, shape);
            if index > 0 {
                z = merge_channels(z, parts.next().expect("a part for each level"));
            }
        }
        z
    }

    fn disassemble(&self, z: Tensor<D>) -> Latents<D> {
        self.assert_sample_shape(&z);
        let last = self.shapes.parts.len() - 1;
        let mut parts = Vec::new();
        let mut h = z;
        for (index, &part) in self.shapes.parts.iter().enumerate() {
            h = squeeze_to(h, part);
            if index < last {
                let (kept, out) = split_channels(h);
                parts.push(out);
                h = kept;
            } else {
                parts.push(h.clone());
            }
        }
        Latents::of(parts)
    }
}

/// Unsqueezes until the spatial sides are those of `shape`; what no squeezes lead to is reshaped, row by row.
fn unsqueeze_to<const D: usize>(mut z: Tensor<D>, shape: [usize; D]) -> Tensor<D> {
    if !is_squeeze(shape, z.dims()) {
        return with_sides(z, shape);
    }
    while z.dims()[2..] != shape[2..] {
        z = through_images(z, Squeeze::unsqueeze);
    }
    z
}

/// Squeezes until the spatial sides are those of `shape`, as [`unsqueeze_to`] is undone.
fn squeeze_to<const D: usize>(mut z: Tensor<D>, shape: [usize; D]) -> Tensor<D> {
    if !is_squeeze(z.dims(), shape) {
        return with_sides(z, shape);
    }
    while z.dims()[2..] != shape[2..] {
        z = through_images(z, |z| Squeeze::new().forward(z).0);
    }
    z
}

/// Whether sides become those of `to` by squeezes, which halve both sides of an image.
fn is_squeeze<const D: usize>(from: [usize; D], to: [usize; D]) -> bool {
    if from[2..] == to[2..] {
        return true;
    }
    let mut sides = from;
    while D == 4 && sides[2..].iter().all(|side| side.is_multiple_of(2) && *side > 0) {
        sides[2..].iter_mut().for_each(|side| *side /= 2);
        if sides[2..] == to[2..] {
            return true;
        }
    }
    false
}

/// The same values with the spatial sides of `shape`, in as many channels as they need.
fn with_sides<const D: usize>(z: Tensor<D>, mut shape: [usize; D]) -> Tensor<D> {
    let [batch, pixels] = [z.dims()[0], shape[2..].iter().product()];
    shape[1] = z.dims()[1..].iter().product::<usize>() / pixels;
    shape[0] = batch;
    z.reshape(shape)
}

/// Applies a map of images to a tensor whose rank is 4 when it runs: only images change their sides.
fn through_images<const D: usize>(
    z: Tensor<D>,
    map: impl FnOnce(Tensor<4>) -> Tensor<4>,
) -> Tensor<D> {
    let shape: [usize; 4] = z.dims()[..].try_into().expect("only images are squeezed");
    let image = map(z.reshape(shape));
    let mut out = [0; D];
    out.copy_from_slice(&image.dims());
    image.reshape(out)
}
