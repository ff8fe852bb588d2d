//! Factoring out half of the channels between the levels of a multi-scale stack.

use burn::tensor::Tensor;

/// `(kept, factored out)`: the first `ceil(n / 2)` channels go on to the next level (Glow's code,
/// `split2d`).
pub(crate) fn split_channels<const D: usize>(x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
    let channels = x.dims()[1];
    let kept = num_kept(channels);
    (x.clone().narrow(1, 0, kept), x.narrow(1, kept, channels - kept))
}

/// The inverse of [`split_channels`].
pub(crate) fn merge_channels<const D: usize>(kept: Tensor<D>, out: Tensor<D>) -> Tensor<D> {
    Tensor::cat(vec![kept, out], 1)
}

/// How many of `channels` go on to the next level.
pub(crate) fn num_kept(channels: usize) -> usize {
    channels.div_ceil(2)
}
