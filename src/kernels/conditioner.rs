//! Runs a conditioner over a block of pictures, in tiles whose activations stay in cache.

use super::net::{Net, PackedLayer};
use super::product::{Finish, Product};
use super::window::{Geometry, Masks, Planes};
use super::workspace::{Lease, lease};
use super::{Ops, Scalar};

/// Pixels in a tile: enough to make the traffic of the weights and of their gradients small against
/// the products, few enough that the activations of a tile stay in the L2 cache. Sizes from 128 to
/// 384 measured within 2 % of each other.
const TILE: usize = 256;

/// Smallest and largest number of pixels in a block, within which the number that wastes fewest
/// lanes is taken.
const BLOCK: std::ops::RangeInclusive<usize> = 512..=2048;

/// Bytes of inputs and hidden activations, a thread, up to which they are kept for the backward
/// pass. Above (one picture of 256 x 256, say) a tile's activations are computed a second time.
const KEPT: usize = 48 << 20;

/// How many times the packed weights the kept activations have to be for the weights to stay packed with them.
/// Packing, which one thread does while the others wait, is the more of a step the smaller the batch is beside
/// the net: 6 % of the arithmetic of a masked autoregressive flow of 16 features at 1,024 samples.
const PER_PACKED: usize = 4;

/// What a [`Conditioner`] is made ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Outputs alone.
    Outputs,
    /// Outputs, and activations that stay for a backward pass of another conditioner.
    Keeping,
    /// Outputs and gradients.
    Gradients,
}

/// The first layer whose input is kept between a forward and a backward pass: the window in front of
/// the net is read again, which takes less time than writing nine copies of narrow channels would.
pub(super) const FIRST_KEPT: usize = 1;

/// A net made ready for pictures of one size.
pub(super) struct Conditioner<'a, T: Scalar> {
    pub net: &'a Net<'a, T>,
    pub ops: &'static Ops<T>,
    pub layers: Vec<PackedLayer<T>>,
    pub geometry: Geometry,
    pub first: Masks<T>,
    pub last: Masks<T>,
    /// Pictures in a block.
    pub pictures: usize,
    /// Panels in a tile.
    tile: usize,
    /// Whether a block's inputs and hidden activations are kept between forward and backward.
    pub keep: bool,
    /// Whether the packed weights are for the backward pass of another conditioner too.
    pub keep_packed: bool,
    /// The output that stands in each row of what the last layer gives, if not the one of its number.
    pub order: Option<&'a [usize]>,
}

/// Buffers of one thread.
pub(super) struct Buffers<T> {
    /// Inputs of all layers: what the window in front sees, then the hidden activations.
    pub inputs: Vec<Lease<T>>,
    /// Output of the last layer, and its gradient.
    pub output: Lease<T>,
    /// Gradients of the layers' inputs.
    pub delta: [Lease<T>; 2],
    /// Transposed input of a layer, or gradient of its output.
    pub transposed: Lease<T>,
}

impl<'a, T: Scalar> Conditioner<'a, T> {
    /// `order`: the output that stands in each row of the result; `batch`: pictures one thread will see;
    /// `packed`: the weights, if a conditioner of the same net has packed them for gradients.
    pub fn new(
        net: &'a Net<'a, T>,
        packed: Option<Vec<PackedLayer<T>>>,
        order: Option<&'a [usize]>,
        size: [usize; 2],
        batch: usize,
        pass: Pass,
    ) -> Self {
        Self::with_ops(T::ops(), net, packed, order, size, batch, pass)
    }

    pub fn with_ops(
        ops: &'static Ops<T>,
        net: &'a Net<'a, T>,
        packed: Option<Vec<PackedLayer<T>>>,
        order: Option<&'a [usize]>,
        [height, width]: [usize; 2],
        batch: usize,
        pass: Pass,
    ) -> Self {
        let geometry = Geometry { height, width, panel: ops.panel };
        let pictures = block_pictures(&geometry, batch);
        let columns = net.layers.iter().map(|layer| layer.inputs.next_multiple_of(ops.lanes));
        let kept = columns.sum::<usize>() * geometry.panels(pictures) * ops.panel;
        let keep = pass != Pass::Outputs && kept * size_of::<T>() <= KEPT;
        let keep_packed = keep && pass == Pass::Keeping && 2 * net.weights() * PER_PACKED <= kept;
        let last = net.layers.len() - 1;
        let pack = |(index, layer)| {
            let order = order.filter(|_| index == last);
            let with_gradient = keep_packed || pass == Pass::Gradients;
            PackedLayer::new(layer, order, net.taps_behind(index), ops, with_gradient)
        };
        let layers = packed.unwrap_or_else(|| net.layers.iter().enumerate().map(pack).collect());
        Self {
            net,
            ops,
            layers,
            geometry,
            first: Masks::new(ops, &geometry, net.first, false, pictures),
            last: Masks::new(ops, &geometry, net.last, true, pictures),
            pictures,
            tile: (TILE / ops.panel).min(geometry.panels(pictures)),
            keep,
            keep_packed,
            order,
        }
    }

    /// Distance between the panels of a layer's input, and of the last layer's output at
    /// `layers.len()`.
    ///
    /// One row more than is used: distances of a power of two would put all panels into the same
    /// few cache sets, which made the products with 512 channels 4 % slower.
    pub fn stride(&self, layer: usize) -> usize {
        let channels = match self.layers.get(layer) {
            Some(layer) => layer.columns,
            None => self.net.layers[layer - 1].outputs.next_multiple_of(self.ops.lanes),
        };
        (channels + 1) * self.ops.panel
    }

    pub fn buffers(&self, with_gradient: bool) -> Buffers<T> {
        let layers = 0..self.layers.len();
        let panels = if self.keep { self.geometry.panels(self.pictures) } else { self.tile };
        let widest = layers.clone().map(|layer| self.stride(layer)).max().unwrap_or(0);
        let widest_of_all = widest.max(self.stride(self.layers.len()));
        let tile = if with_gradient { self.tile } else { 0 };
        let group = self.ops.panel * self.ops.panel;
        Buffers {
            inputs: layers.map(|layer| lease(panels * self.stride(layer))).collect(),
            output: lease(self.tile * self.stride(self.layers.len())),
            delta: [lease(tile * widest), lease(tile * widest)],
            transposed: lease(tile * widest_of_all.next_multiple_of(group)),
        }
    }

    /// Tiles of a block: first panel and number of panels.
    pub fn tiles(&self, pictures: usize) -> impl Iterator<Item = (usize, usize)> + use<T> {
        let (panels, tile) = (self.geometry.panels(pictures), self.tile);
        (0..panels).step_by(tile).map(move |first| (first, tile.min(panels - first)))
    }

    /// The output that stands in a row of the result.
    pub fn output_of(&self, row: usize) -> usize {
        self.order.map_or(row, |order| order[row])
    }

    /// Where a tile's input of a layer starts in its buffer, which holds a block's or one tile's.
    pub fn kept_at(&self, layer: usize, first: usize) -> usize {
        if self.keep { first * self.stride(layer) } else { 0 }
    }

    /// `params = net(identity)`. The layers' inputs stay in `buffers` if there is to be a backward
    /// pass.
    pub fn forward(
        &self,
        buffers: &mut Buffers<T>,
        identity: &Planes<T>,
        params: &mut Planes<T>,
        pictures: usize,
    ) {
        let count = pictures * self.geometry.pixels();
        let last = self.layers.len() - 1;
        let bias = self.net.layers[last].bias;
        for row in 0..bias.len() {
            params.fill(row, count, bias[self.output_of(row)]);
        }
        for (first, panels) in self.tiles(pictures) {
            self.hidden_tile(buffers, identity, first, panels);
            let input = &buffers.inputs[last][self.kept_at(last, first)..];
            self.layer(last, input, &mut buffers.output, panels);
            let stride = self.stride(last + 1);
            self.last.scatter(&buffers.output[..panels * stride], stride, first, params);
        }
    }

    /// Puts the inputs of the layers before [`FIRST_KEPT`] into `buffers`, beside those kept.
    pub fn first_inputs(&self, buffers: &mut Buffers<T>, identity: &Planes<T>, pictures: usize) {
        for (first, panels) in self.tiles(pictures) {
            self.inputs_tile(buffers, identity, first, panels, FIRST_KEPT);
        }
    }

    /// The inputs of all layers on one tile.
    pub fn hidden_tile(
        &self,
        buffers: &mut Buffers<T>,
        identity: &Planes<T>,
        first: usize,
        panels: usize,
    ) {
        self.inputs_tile(buffers, identity, first, panels, self.layers.len());
    }

    /// The inputs of the first `count` layers on one tile.
    fn inputs_tile(
        &self,
        buffers: &mut Buffers<T>,
        identity: &Planes<T>,
        first: usize,
        panels: usize,
        count: usize,
    ) {
        let stride = self.stride(0);
        let input = &mut buffers.inputs[0][self.kept_at(0, first)..][..panels * stride];
        self.first.gather(identity, first, input, stride);
        for index in 0..self.layers.len().min(count) - 1 {
            let (before, after) = buffers.inputs.split_at_mut(index + 1);
            let input = &before[index][self.kept_at(index, first)..];
            let output = &mut after[0][self.kept_at(index + 1, first)..];
            self.layer(index, input, output, panels);
        }
    }

    /// One layer on one tile. The last one's bias is not in it: that comes after the window.
    fn layer(&self, index: usize, input: &[T], output: &mut [T], panels: usize) {
        let is_last = index + 1 == self.layers.len();
        let (bias, finish) = if is_last {
            (None, Finish::Linear)
        } else {
            (Some(&self.layers[index].bias[..]), Finish::Relu(self.net.negative_slope))
        };
        let (b_stride, c_stride) = (self.stride(index), self.stride(index + 1));
        let PackedLayer { inputs, rows, ref weight, ref steps, .. } = self.layers[index];
        let panel = self.ops.panel;
        assert!(weight.len() >= rows * inputs && bias.is_none_or(|bias| bias.len() >= rows));
        assert!(input.len() >= panels * b_stride && b_stride >= inputs * panel);
        assert!(output.len() >= panels * c_stride && c_stride >= rows * panel);
        let product = Product {
            a: weight.as_ptr(),
            rows,
            depth: inputs,
            steps: steps[0].as_ref().map_or(std::ptr::null(), |steps| steps.as_ptr()),
            b: input.as_ptr(),
            b_stride,
            c: output.as_mut_ptr(),
            c_stride,
            panels,
            bias: bias.map_or(std::ptr::null(), <[T]>::as_ptr),
            finish,
        };
        // SAFETY: the operands have the sizes that the product touches, checked above; `ops` is
        // this processor's table.
        unsafe { (self.ops.product)(&product) };
    }
}

/// Pictures in a block: the number between the limits that leaves fewest lanes empty, the smallest
/// of them.
fn block_pictures(geometry: &Geometry, batch: usize) -> usize {
    let pixels = geometry.pixels();
    let low = BLOCK.start().div_ceil(pixels).min(batch).max(1);
    let high = (BLOCK.end() / pixels).min(batch).max(low);
    let panels =
        |pictures| batch / pictures * geometry.panels(pictures) + geometry.panels(batch % pictures);
    let fewest = geometry.panels(batch);
    let candidates = low..=high;
    let perfect = candidates.clone().find(|&pictures| panels(pictures) == fewest);
    perfect.or_else(|| candidates.min_by_key(|&pictures| panels(pictures))).unwrap_or(low)
}
