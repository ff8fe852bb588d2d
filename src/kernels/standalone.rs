//! The conditioner outside of a coupling.

use super::batch::{Chunks, Shape};
use super::conditioner::Conditioner;
use super::window::Planes;
use super::{Gradient, Net, Scalar};

/// The conditioner alone: `[batch, inputs, height, width]` to `[batch, outputs, height, width]`.
///
/// # Panics
/// If the sizes of the net and the shape (that of `input`) do not fit together.
pub fn net_forward<T: Scalar>(net: &Net<T>, input: &[T], shape: Shape) -> Vec<T> {
    let out_shape = check_net(net, input, shape);
    let mut output = vec![T::ZERO; out_shape.numbers()];
    let chunks = Chunks::new(shape, net.weights());
    let conditioner = Conditioner::new(net, shape.height, shape.width, chunks.largest(), false);
    let (from, to) =
        (chunks.split(input, shape.sample()), chunks.split_mut(&mut output, out_shape.sample()));
    chunks.run(from.into_iter().zip(to).collect(), |(from, to): (&[T], &mut [T])| {
        let (geometry, pictures, pixels) =
            (&conditioner.geometry, conditioner.pictures, shape.pixels());
        let mut identity = Planes::new(geometry, shape.channels, pictures);
        let mut params = Planes::new(geometry, out_shape.channels, pictures);
        let mut buffers = conditioner.buffers(false);
        let blocks = from
            .chunks(pictures * shape.sample())
            .zip(to.chunks_mut(pictures * out_shape.sample()));
        for (from, to) in blocks {
            identity.load(from, shape.channels, 0, pixels);
            conditioner.forward(&mut buffers, &identity, &mut params, from.len() / shape.sample());
            params.store(to, out_shape.channels, 0, pixels);
        }
    });
    output
}

/// Gradients of [`net_forward`] by its input and its parameters, from those by its output.
///
/// # Panics
/// As [`net_forward`].
pub fn net_backward<T: Scalar>(
    net: &Net<T>,
    input: &[T],
    doutput: &[T],
    shape: Shape,
) -> Gradient<T> {
    let out_shape = check_net(net, input, shape);
    out_shape.check("Net: doutput", doutput.len());
    let mut dx = vec![T::ZERO; input.len()];
    let chunks = Chunks::new(shape, net.weights());
    let conditioner = Conditioner::new(net, shape.height, shape.width, chunks.largest(), true);
    let tasks = (chunks.split(input, shape.sample()).into_iter())
        .zip(chunks.split(doutput, out_shape.sample()))
        .zip(chunks.split_mut(&mut dx, shape.sample()));
    let parts = chunks.run(tasks.collect(), |((from, dout), dx)| {
        let (geometry, pictures, pixels) =
            (&conditioner.geometry, conditioner.pictures, shape.pixels());
        let mut identity = Planes::new(geometry, shape.channels, pictures);
        let mut didentity = Planes::new(geometry, shape.channels, pictures);
        let mut params = Planes::new(geometry, out_shape.channels, pictures);
        let mut buffers = conditioner.buffers(true);
        let mut sums = conditioner.partial_gradients();
        let blocks = (from.chunks(pictures * shape.sample()))
            .zip(dout.chunks(pictures * out_shape.sample()))
            .zip(dx.chunks_mut(pictures * shape.sample()));
        for ((from, dout), dx) in blocks {
            let count = from.len() / shape.sample();
            identity.load(from, shape.channels, 0, pixels);
            conditioner.hidden(&mut buffers, &identity, count);
            params.load(dout, out_shape.channels, 0, pixels);
            didentity.clear();
            conditioner.backward(
                &mut buffers,
                &identity,
                &params,
                &mut didentity,
                &mut sums,
                count,
            );
            didentity.store(dx, shape.channels, 0, pixels);
        }
        sums
    });
    Gradient { dx, gradients: conditioner.finish(&parts) }
}

/// Checks the net against its input and returns the shape of its output.
fn check_net<T: Scalar>(net: &Net<T>, input: &[T], shape: Shape) -> Shape {
    net.validate();
    shape.check("Net: the input", input.len());
    assert!(shape.pixels() > 0, "Net: the shape is empty: {shape:?}");
    assert_eq!(
        net.inputs(),
        shape.channels,
        "Net: reads {} channels, got {}",
        net.inputs(),
        shape.channels
    );
    Shape { channels: net.outputs(), ..shape }
}
