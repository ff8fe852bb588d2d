//! Fused couplings on the CPU: conditioner, elementwise map and log-determinant in one pass over
//! cache-sized blocks.
//!
//! A coupling leaves the *identity* channels as they are and changes the *transformed* ones by a
//! map whose parameters a conditioner computes from the identity channels. [`Coupling::forward`]
//! goes from data to latent, [`Coupling::inverse`] back, [`Coupling::pull_back`] from latent and
//! gradients to data and gradients without any stored activation, [`Coupling::backward`] does the
//! same where the data is at hand. All are written for slices, in NCHW order, and know nothing of
//! tensors. Results are the same, bit for bit, from call to call on the same number of threads.
//!
//! From the narrow to the wide: `scalar` number types; `vector` a register; `product` the matrix
//! products on packed operands; `log_scale` and `spline` the elementwise maps; `window` planes, panels, 3x3
//! windows; `channels` maps across the channels; `dispatch` the table of these routines for this
//! processor; `net` layers and packed weights, `masked` those with a mask; `conditioner` and `backward` the net on a block of
//! pictures; `team` threads (on `sync`), `batch` what each of them gets; `coupling` what is called from
//! outside, `autoregressive` the slow direction of layers that see all channels; `workspace` reused
//! buffers. `convolution`, `framed` and `residual` are RealNVP's net on
//! framed pictures; `adam` is the optimizer's step.

mod adam;
mod autoregressive;
mod backward;
mod batch;
mod channels;
mod conditioner;
mod convolution;
mod coupling;
mod dispatch;
mod framed;
mod log_scale;
mod masked;
mod net;
mod product;
mod residual;
mod scalar;
mod spline;
mod sync;
mod team;
mod vector;
mod window;
mod workspace;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use adam::{AdamStep, move_towards, sum_of_squares};
pub use autoregressive::Autoregressive;
pub use batch::Shape;
pub use channels::{
    ChannelAffine, ChannelMatrix, channel_products, channel_sums, reorder_channels,
};
pub use coupling::{Activations, Coupling};
pub use dispatch::Ops;
pub use framed::{Frame, Framed, Kernel, MOST_DEVIATION, Norm};
pub use log_scale::{LogScale, Map, Order};
pub use net::{Gradients, Layer, Net};
pub use residual::{Gradients as ResidualGradients, ResidualNet};
pub use scalar::Scalar;
pub use spline::{Form as SplineForm, MOST_BINS, Spline, Tails as SplineTails};
pub use window::Window;
