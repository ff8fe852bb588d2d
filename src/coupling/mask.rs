//! Which part of `x` a coupling passes unchanged.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::constants;

/// One of the two ways to apply a [`Mask`].
///
/// ```
/// use burn_flows::coupling::Parity;
///
/// let in_turn = [0, 1, 2].map(Parity::of);
/// assert_eq!(in_turn, [Parity::Even, Parity::Odd, Parity::Even]);
/// assert_eq!(Parity::Even.flip(), Parity::Odd);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parity {
    /// The identity part is the first half, the even channels, or the squares with `row + column`
    /// even.
    Even,
    /// The other part is the identity part.
    Odd,
}

impl Parity {
    /// The other parity.
    pub fn flip(self) -> Self {
        match self {
            Self::Even => Self::Odd,
            Self::Odd => Self::Even,
        }
    }

    /// `Even` for even numbers: the parity of layer `index` in an alternating stack.
    pub fn of(index: usize) -> Self {
        if index.is_multiple_of(2) { Self::Even } else { Self::Odd }
    }
}

/// How a coupling divides its input into the *identity* part, which passes unchanged and is what the
/// conditioner sees, and the *transformed* part, which is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mask {
    /// Halves of axis 1: the first `ceil(n / 2)` channels and the rest (Glow, RealNVP after a
    /// squeeze).
    ChannelHalves(Parity),
    /// Even and odd indices of axis 1 (NICE).
    Alternating(Parity),
    /// The given number of first channels and the rest, of which the parity says which part is the identity
    /// part. With a [`Permutation`](crate::linear::Permutation) before it and one behind, any channels.
    SplitAt(usize, Parity),
    /// A checkerboard of pixels, the same for all channels (RealNVP): squares whose coordinates have an
    /// even sum, in as many dimensions as the samples have behind their channels (every second place of
    /// a sequence `[batch, channels, length]`); for vectors, alternating features. The conditioner sees
    /// the whole tensor with the transformed part set to zero. On a board of one square one parity
    /// changes nothing, and the net of the other sees zeros.
    Checkerboard(Parity),
}

impl Mask {
    /// Identity: the first half of the channels. Transformed: the rest.
    pub fn first_half() -> Self {
        Self::ChannelHalves(Parity::Even)
    }

    /// Identity: the second half of the channels. Transformed: the first `ceil(n / 2)`.
    pub fn second_half() -> Self {
        Self::ChannelHalves(Parity::Odd)
    }

    /// The same mask with identity and transformed part exchanged.
    pub fn flip(self) -> Self {
        match self {
            Self::ChannelHalves(parity) => Self::ChannelHalves(parity.flip()),
            Self::Alternating(parity) => Self::Alternating(parity.flip()),
            Self::SplitAt(at, parity) => Self::SplitAt(at, parity.flip()),
            Self::Checkerboard(parity) => Self::Checkerboard(parity.flip()),
        }
    }

    /// Channels the conditioner sees, out of `num_channels`.
    pub fn num_identity(self, num_channels: usize) -> usize {
        match self {
            Self::ChannelHalves(parity) | Self::Alternating(parity) => match parity {
                Parity::Even => num_channels.div_ceil(2),
                Parity::Odd => num_channels / 2,
            },
            Self::SplitAt(at, Parity::Even) => at.min(num_channels),
            Self::SplitAt(at, Parity::Odd) => num_channels.saturating_sub(at),
            Self::Checkerboard(_) => num_channels,
        }
    }

    /// Channels the coupling changes, out of `num_channels`: the conditioner must give one shift
    /// (and one scale) for each.
    pub fn num_transformed(self, num_channels: usize) -> usize {
        match self {
            Self::Checkerboard(_) => num_channels,
            mask => num_channels - mask.num_identity(num_channels),
        }
    }

    /// Divides `x` into `(identity, transformed)`.
    pub(crate) fn split<const D: usize>(self, x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
        let channels = x.dims()[1];
        assert!(
            channels >= 2 || matches!(self, Self::Checkerboard(_)),
            "Coupling: got shape {:?}, but a split along axis 1 needs at least 2 there; squeeze the \
             image first, or use a checkerboard mask",
            x.dims()
        );
        match self {
            Self::ChannelHalves(parity) => {
                let first = channels.div_ceil(2);
                let halves = (x.clone().narrow(1, 0, first), x.narrow(1, first, channels - first));
                parity.order(halves)
            }
            Self::SplitAt(at, parity) => {
                assert!(
                    at > 0 && at < channels,
                    "Coupling: got shape {:?}, but a split behind channel {at} needs more on axis 1",
                    x.dims()
                );
                let parts = (x.clone().narrow(1, 0, at), x.narrow(1, at, channels - at));
                parity.order(parts)
            }
            Self::Alternating(parity) => {
                let halves = (every_second(x.clone(), 0), every_second(x, 1));
                parity.order(halves)
            }
            Self::Checkerboard(parity) => {
                let board = board(&x, parity);
                (x.clone() * board.clone(), x * (board.neg() + 1.0))
            }
        }
    }

    /// The inverse of [`split`](Mask::split).
    pub(crate) fn merge<const D: usize>(
        self,
        identity: Tensor<D>,
        transformed: Tensor<D>,
    ) -> Tensor<D> {
        match self {
            Self::ChannelHalves(parity) | Self::SplitAt(_, parity) => {
                let (first, second) = parity.order((identity, transformed));
                Tensor::cat(vec![first, second], 1)
            }
            Self::Alternating(parity) => {
                let (even, odd) = parity.order((identity, transformed));
                interleave(even, odd)
            }
            Self::Checkerboard(_) => identity + transformed,
        }
    }

    /// Sets to zero what does not belong to the transformed part.
    pub(crate) fn keep_transformed<const D: usize>(self, values: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Checkerboard(parity) => {
                let board = board(&values, parity.flip());
                values * board
            }
            _ => values,
        }
    }
}

impl Parity {
    fn order<T>(self, (first, second): (T, T)) -> (T, T) {
        match self {
            Self::Even => (first, second),
            Self::Odd => (second, first),
        }
    }
}

/// Every second channel from `start` on, as a view where the number of channels is even: places to select
/// would have to go to the device first.
fn every_second<const D: usize>(x: Tensor<D>, start: usize) -> Tensor<D> {
    let mut shape = x.dims();
    let [batch, channels] = [shape[0], shape[1]];
    let rest = shape[2..].iter().product::<usize>();
    let pairs = channels / 2;
    let x = x.reshape([batch, channels, rest]);
    let paired = x.clone().narrow(1, 0, 2 * pairs).reshape([batch, pairs, 2, rest]);
    let mut chosen = paired.narrow(2, start, 1).reshape([batch, pairs, rest]);
    if start == 0 && channels % 2 == 1 {
        chosen = Tensor::cat(vec![chosen, x.narrow(1, channels - 1, 1)], 1);
    }
    shape[1] = chosen.dims()[1];
    chosen.reshape(shape)
}

/// The inverse of [`every_second`], of both starts.
fn interleave<const D: usize>(even: Tensor<D>, odd: Tensor<D>) -> Tensor<D> {
    let mut shape = even.dims();
    let (batch, pairs, num_even) = (shape[0], odd.dims()[1], shape[1]);
    let rest = shape[2..].iter().product::<usize>();
    let even = even.reshape([batch, num_even, rest]);
    let in_pairs = |part: Tensor<3>| part.narrow(1, 0, pairs).reshape([batch, pairs, 1, rest]);
    let both = vec![in_pairs(even.clone()), in_pairs(odd.reshape([batch, pairs, rest]))];
    let mut all = Tensor::cat(both, 2).reshape([batch, 2 * pairs, rest]);
    if num_even > pairs {
        all = Tensor::cat(vec![all, even.narrow(1, pairs, 1)], 1);
    }
    shape[1] = num_even + pairs;
    all.reshape(shape)
}

/// 1 on the identity squares, 0 elsewhere; one channel, broadcast over the others.
fn board<const D: usize>(x: &Tensor<D>, parity: Parity) -> Tensor<D> {
    let (dims, device) = (x.dims(), x.device());
    let sides = board_sides(&dims);
    let mut shape = [1; D];
    shape[D - sides.len()..].copy_from_slice(sides);
    let board = constants::board(sides, parity == Parity::Even, &device, x.dtype()).reshape(shape);
    if device.is_autodiff() { Tensor::from_inner(board) } else { board }
}

/// The sides of the board. Vectors have no rows and columns, so their features are its one side.
fn board_sides<const D: usize>(dims: &[usize; D]) -> &[usize] {
    if D == 2 { &dims[1..] } else { &dims[2..] }
}
