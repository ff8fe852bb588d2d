//! The residual net of RealNVP's couplings, and its gradients by hand.

use super::Scalar;
use super::framed::{Framed, Join, Kernel, Norm};

/// `h = conv_in(relu(norm_in(x)))`, then blocks `h <- h + conv2(relu(norm2(conv1(relu(norm1(h))))))`;
/// the output is `conv_out(relu(norm_out(skip_in(h_0) + sum_k skip_k(h_k))))`.
///
/// Norms are affine maps of the channels. That of the input has twice its channels, `[n, -n]`.
pub struct ResidualNet<'a, T> {
    /// `conv_in`, `skip_in`, then `conv1`, `conv2` and `skip` of each block, `conv_out`.
    pub kernels: Vec<Kernel<'a, T>>,
}

/// Gradients of a [`ResidualNet`].
pub struct Gradients<T> {
    /// By scale and shift of each norm: that of the input, two of each block, that of the output.
    pub norms: Vec<[Vec<T>; 2]>,
    /// By weight and, where there is one, bias of each kernel.
    pub kernels: Vec<(Vec<T>, Option<Vec<T>>)>,
}

/// What a forward pass leaves for the backward pass, in the order of its making.
type Tape<'f, T> = Vec<Framed<'f, T>>;

impl<T: Scalar> ResidualNet<'_, T> {
    fn num_blocks(&self) -> usize {
        self.kernels.len() / 3 - 1
    }

    /// The net's output. `norm` is asked in order for scale and shift of each norm, and told what
    /// comes in.
    pub fn forward<'f>(
        &self,
        x: Framed<'f, T>,
        norm: impl FnMut(usize, &Framed<'f, T>) -> [Vec<T>; 2],
    ) -> Framed<'f, T> {
        self.run(x, norm, &mut |_| ())
    }

    /// Output and gradients in one: `dy` is told the output and gives the gradient by it. Returns the
    /// gradient by the input. The kernels must be packed with gradient.
    pub fn pull_back(
        &self,
        x: Framed<T>,
        norms: &[Norm<T>],
        dy: impl FnOnce(Vec<T>) -> Vec<T>,
    ) -> (Vec<T>, Gradients<T>) {
        let frame = x.frame();
        let mut tape = Vec::new();
        let y = self.run(x, |index, _| norms[index].affine.clone(), &mut |kept| tape.push(kept));
        let dy = frame.load(&dy(y.store()), y.num_channels());
        self.backward(dy, norms, tape)
    }

    fn run<'f>(
        &self,
        x: Framed<'f, T>,
        mut norm: impl FnMut(usize, &Framed<'f, T>) -> [Vec<T>; 2],
        keep: &mut dyn FnMut(Framed<'f, T>),
    ) -> Framed<'f, T> {
        let mut index = 0;
        let mut normed = |x: &Framed<'f, T>| {
            let [scale, shift] = norm(index, x);
            index += 1;
            x.affine_relu([&scale, &shift])
        };
        let mut kernels = self.kernels.iter();
        let mut next = || kernels.next().expect("three kernels a block and three more");
        let entry = normed(&x);
        keep(x);
        let mut h = entry.convolve(next(), Join::Nothing);
        keep(entry);
        let mut sum = h.convolve(next(), Join::Nothing);
        for _ in 0..self.num_blocks() {
            let before = normed(&h);
            let inner = before.convolve(next(), Join::Nothing);
            let after = normed(&inner);
            let out = after.convolve(next(), Join::Plus(&h));
            sum = out.convolve(next(), Join::Plus(&sum));
            [h, before, inner, after].into_iter().for_each(&mut *keep);
            h = out;
        }
        keep(h);
        let last = normed(&sum);
        keep(sum);
        let y = last.convolve(next(), Join::Nothing);
        keep(last);
        y
    }

    fn backward(
        &self,
        dy: Framed<T>,
        norms: &[Norm<T>],
        mut tape: Tape<T>,
    ) -> (Vec<T>, Gradients<T>) {
        let mut pop = || tape.pop().expect("as much as was kept");
        let mut back = Back { kernels: Vec::new(), norms: Vec::new() };
        let mut kernels = self.kernels.iter().rev();
        let mut next = || kernels.next().expect("three kernels a block and three more");
        let mut norms = norms.iter().rev();
        let mut next_norm = || norms.next().expect("two norms a block and two more");

        let (kernel, last, sum) = (next(), pop(), pop());
        back.kernel(kernel, &dy, &last);
        let dlast = dy.convolve_back(kernel, Join::WherePositive(&last));
        let dsum = back.norm(&dlast, &sum, next_norm(), sum.zeros_like());

        let mut h = pop();
        let mut dh: Option<Framed<T>> = None;
        for _ in 0..self.num_blocks() {
            let (skip, conv2, conv1) = (next(), next(), next());
            back.kernel(skip, &dsum, &h);
            let dout = dsum.convolve_back(skip, dh.as_ref().map_or(Join::Nothing, Join::Plus));
            let (after, inner, before) = (pop(), pop(), pop());
            h = pop();
            back.kernel(conv2, &dout, &after);
            let dafter = dout.convolve_back(conv2, Join::WherePositive(&after));
            let dinner = back.norm(&dafter, &inner, next_norm(), inner.zeros_like());
            back.kernel(conv1, &dinner, &before);
            let dbefore = dinner.convolve_back(conv1, Join::WherePositive(&before));
            dh = Some(back.norm(&dbefore, &h, next_norm(), dout));
        }
        let (skip_in, conv_in) = (next(), next());
        back.kernel(skip_in, &dsum, &h);
        let dh = dsum.convolve_back(skip_in, dh.as_ref().map_or(Join::Nothing, Join::Plus));
        let (entry, x) = (pop(), pop());
        back.kernel(conv_in, &dh, &entry);
        let dentry = dh.convolve_back(conv_in, Join::WherePositive(&entry));
        let dx = back.norm(&dentry, &x, next_norm(), x.zeros_like());

        let Back { mut kernels, mut norms } = back;
        kernels.reverse();
        norms.reverse();
        (dx.store(), Gradients { norms, kernels })
    }
}

/// Gradients in the order of the backward pass, the last layer's first.
struct Back<T> {
    kernels: Vec<(Vec<T>, Option<Vec<T>>)>,
    norms: Vec<[Vec<T>; 2]>,
}

impl<T: Scalar> Back<T> {
    fn kernel(&mut self, kernel: &Kernel<T>, doutput: &Framed<T>, input: &Framed<T>) {
        let bias = kernel.has_bias().then(|| doutput.totals());
        self.kernels.push((doutput.weight_gradient(input, kernel.window()), bias));
    }

    /// Returns the gradient by the norm's input `x`, added to `onto`.
    fn norm<'f>(
        &mut self,
        doutput: &Framed<'f, T>,
        x: &Framed<'f, T>,
        norm: &Norm<T>,
        onto: Framed<'f, T>,
    ) -> Framed<'f, T> {
        let (dx, gradients) = doutput.norm_gradient(x, norm, onto);
        self.norms.push(gradients);
        dx
    }
}
