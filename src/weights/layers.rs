//! Tables of the layers that several libraries share.

use super::exchange::{Exchange, Rows};
use crate::conditioner::conv::{Conv, ZeroConv};
use crate::linear::{Conv1x1Weight, InvertibleConv1x1, PluWeight};

/// `nn.Conv2d` of a shape `[out, in, k, k]`.
pub(super) fn conv(
    io: &mut Exchange,
    shape: [usize; 4],
    has_bias: bool,
    rows: Rows,
    ours: Option<&Conv>,
) -> Conv {
    let weight = io.param("weight", &shape, rows.clone(), ours.map(|conv| &conv.weight));
    let bias = ours.and_then(|conv| conv.bias.as_ref());
    Conv { weight, bias: has_bias.then(|| io.param("bias", &shape[..1], rows, bias)) }
}

/// A convolution `conv` with a bias, and the third of a log-scale under a name and in a shape of the
/// library's own.
pub(super) fn zero_conv(
    io: &mut Exchange,
    [inputs, outputs]: [usize; 2],
    (scale, scale_shape): (&str, &[usize]),
    rows: Rows,
    ours: Option<&ZeroConv>,
) -> ZeroConv {
    let shape = [outputs, inputs, 3, 3];
    let inner = ours.map(|ours| &ours.conv);
    let conv = io.under("conv", |io| conv(io, shape, true, rows.clone(), inner));
    let log_scale = ours.map(|ours| &ours.log_scale);
    ZeroConv::from_parts(conv, io.param(scale, scale_shape, rows, log_scale))
}

/// Names of the parts of `W = P L (U + diag(sign exp(log_s)))`.
pub(super) struct PluNames {
    pub(super) permutation: &'static str,
    pub(super) lower: &'static str,
    pub(super) upper: &'static str,
    pub(super) log_s: &'static str,
    pub(super) sign_s: &'static str,
}

impl PluNames {
    /// The table of a 1x1 convolution of `n` channels in these parts.
    pub(super) fn conv1x1(
        &self,
        io: &mut Exchange,
        n: usize,
        ours: Option<&InvertibleConv1x1>,
    ) -> InvertibleConv1x1 {
        let parts = ours.and_then(|conv| match &conv.weight {
            Conv1x1Weight::Plu(parts) => Some(parts),
            Conv1x1Weight::Plain(_) => None,
        });
        let (square, same) = ([n, n], Rows::same);
        InvertibleConv1x1::from_parts(PluWeight {
            permutation: io.frozen(
                self.permutation,
                &square,
                same(),
                parts.map(|parts| &parts.permutation),
            ),
            lower: io.param(self.lower, &square, same(), parts.map(|parts| &parts.lower)),
            upper: io.param(self.upper, &square, same(), parts.map(|parts| &parts.upper)),
            log_s: io.param(self.log_s, &[n], same(), parts.map(|parts| &parts.log_s)),
            sign_s: io.frozen(self.sign_s, &[n], same(), parts.map(|parts| &parts.sign_s)),
        })
    }
}

/// The table of a 1x1 convolution whose matrix is kept as it is, in a shape of the library's own.
pub(super) fn plain_conv1x1(
    io: &mut Exchange,
    name: &str,
    shape: &[usize],
    ours: Option<&InvertibleConv1x1>,
) -> InvertibleConv1x1 {
    let weight = ours.and_then(|conv| match &conv.weight {
        Conv1x1Weight::Plain(weight) => Some(weight),
        Conv1x1Weight::Plu(_) => None,
    });
    InvertibleConv1x1::from_weight(io.param::<2>(name, shape, Rows::same(), weight).val())
}

/// Whether a 1x1 convolution that is written is in parts.
pub(super) fn is_plu(conv: &InvertibleConv1x1) -> bool {
    matches!(conv.weight, Conv1x1Weight::Plu(_))
}
