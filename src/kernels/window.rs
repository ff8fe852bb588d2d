//! Planes of pixels, and how a 3x3 window moves between them and the panels of a product.
//!
//! A block of pictures is held as one flat *plane* a channel: picture after picture, row after row,
//! with a margin on both sides. A neighbour is then a fixed distance away in memory, except over a
//! picture's edge, where a mask puts the zero of the padding; both directions are unaligned vector
//! copies, whatever the picture's size.

use std::ops::Range;

use super::workspace::{Lease, lease};
use super::{Ops, Scalar};

/// What a layer sees of its input, or spreads its output over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The pixel itself: a 1x1 convolution, or a linear layer on vectors.
    Pixel,
    /// The pixel and its eight neighbours, zero outside of the picture: a 3x3 convolution with
    /// padding 1.
    Square3,
}

impl Window {
    /// Number of pixels in the window.
    pub fn taps(self) -> usize {
        match self {
            Window::Pixel => 1,
            Window::Square3 => 9,
        }
    }
}

/// Sizes of a block of pictures and of its planes.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub height: usize,
    pub width: usize,
    /// Pixels in a panel.
    pub panel: usize,
}

impl Geometry {
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Panels for so many pictures, the last one filled up.
    pub fn panels(&self, pictures: usize) -> usize {
        (pictures * self.pixels()).div_ceil(self.panel)
    }

    /// Numbers before and after a plane, so that every neighbour of every lane is in memory.
    pub fn margin(&self) -> usize {
        (self.width + 1).next_multiple_of(self.panel)
    }
}

/// Vectors that are turned into planes together: few enough that they stay in the L1 cache while one
/// channel after the other is taken out of them.
const TURNED: usize = 64;

/// Channels of pictures: the first, and the distance to the next, out of so many.
#[derive(Clone, Copy)]
pub(super) struct Channels {
    pub total: usize,
    pub first: usize,
    pub step: usize,
}

impl Channels {
    /// All of them.
    pub fn all(total: usize) -> Self {
        Self { total, first: 0, step: 1 }
    }
}

/// One plane a channel; pixel `q` of channel `c` is at `c * stride + margin + q`.
pub(super) struct Planes<T> {
    data: Lease<T>,
    stride: usize,
    margin: usize,
}

impl<T: Scalar> Planes<T> {
    /// Planes for up to `pictures` pictures, to be filled, loaded or cleared before use.
    pub fn new(geometry: &Geometry, channels: usize, pictures: usize) -> Self {
        let margin = geometry.margin();
        let stride = geometry.panels(pictures) * geometry.panel + 2 * margin;
        let mut data = lease(channels * stride);
        // What comes after the margin is written when the planes are filled.
        for plane in data.chunks_exact_mut(stride) {
            plane[..margin].fill(T::ZERO);
        }
        Self { data, stride, margin }
    }

    /// Numbers in memory.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// The first `count` pixels of a channel.
    pub fn row(&self, channel: usize, count: usize) -> &[T] {
        &self.data[channel * self.stride + self.margin..][..count]
    }

    /// The first `count` pixels of a channel.
    pub fn row_mut(&mut self, channel: usize, count: usize) -> &mut [T] {
        &mut self.data[channel * self.stride + self.margin..][..count]
    }

    /// The first `count` pixels of channel `first` and of the later channel `second`, empty if
    /// there is none.
    pub fn pair_mut(
        &mut self,
        first: usize,
        second: Option<usize>,
        count: usize,
    ) -> (&mut [T], &mut [T]) {
        let Some(second) = second else { return (self.row_mut(first, count), &mut []) };
        let (before, after) = self.data.split_at_mut(second * self.stride);
        (
            &mut before[first * self.stride + self.margin..][..count],
            &mut after[self.margin..][..count],
        )
    }

    /// Sets the first `count` pixels of a channel to a value and all after them to zero.
    pub fn fill(&mut self, channel: usize, count: usize, value: T) {
        self.row_mut(channel, count).fill(value);
        self.clear_tail(channel, count);
    }

    /// Zeroes everything after the first `count` pixels, so that the lanes past the last picture
    /// carry no gradient.
    pub fn clear_tail(&mut self, channel: usize, count: usize) {
        self.data[channel * self.stride..][self.margin + count..self.stride].fill(T::ZERO);
    }

    /// Reads channels of pictures in NCHW order into the planes `planes`.
    pub fn load(&mut self, pictures: &[T], from: Channels, planes: Range<usize>, pixels: usize) {
        let Channels { total, first, step } = from;
        if total == 0 {
            return;
        }
        let count = pictures.len() / total;
        if pixels == 1 {
            // Vectors: a transposition; a copy of one number each would cost a call each.
            for (index, samples) in pictures.chunks(TURNED * total).enumerate() {
                for (channel, plane) in planes.clone().enumerate() {
                    let channel = first + channel * step;
                    let row = &mut self.row_mut(plane, count)[index * TURNED..];
                    for (to, sample) in row.iter_mut().zip(samples.chunks_exact(total)) {
                        *to = sample[channel];
                    }
                }
            }
        } else {
            for (channel, plane) in planes.clone().enumerate() {
                let channel = first + channel * step;
                let row = self.row_mut(plane, count);
                for (to, picture) in
                    row.chunks_exact_mut(pixels).zip(pictures.chunks_exact(total * pixels))
                {
                    to.copy_from_slice(&picture[channel * pixels..][..pixels]);
                }
            }
        }
        planes.for_each(|plane| self.clear_tail(plane, count));
    }

    /// Takes the first `count` pixels of the first `planes` planes of others, with zeros after them.
    pub fn copy(&mut self, from: &Self, planes: usize, count: usize) {
        for plane in 0..planes {
            self.row_mut(plane, count).copy_from_slice(from.row(plane, count));
            self.clear_tail(plane, count);
        }
    }

    /// Writes the planes `planes` back to channels; the reverse of [`load`](Self::load).
    pub fn store(&self, pictures: &mut [T], to: Channels, planes: Range<usize>, pixels: usize) {
        let Channels { total, first, step } = to;
        if total == 0 {
            return;
        }
        let count = pictures.len() / total;
        if pixels == 1 {
            for (index, samples) in pictures.chunks_mut(TURNED * total).enumerate() {
                for (channel, plane) in planes.clone().enumerate() {
                    let channel = first + channel * step;
                    let row = &self.row(plane, count)[index * TURNED..];
                    for (sample, from) in samples.chunks_exact_mut(total).zip(row) {
                        sample[channel] = *from;
                    }
                }
            }
            return;
        }
        for (channel, plane) in planes.enumerate() {
            let channel = first + channel * step;
            let row = self.row(plane, count);
            for (from, picture) in
                row.chunks_exact(pixels).zip(pictures.chunks_exact_mut(total * pixels))
            {
                picture[channel * pixels..][..pixels].copy_from_slice(from);
            }
        }
    }

    /// The numbers from the first pixel of a channel on, and the distance between two channels.
    pub fn rows_mut(&mut self, channel: usize) -> (&mut [T], usize) {
        (&mut self.data[channel * self.stride + self.margin..], self.stride)
    }

    /// Zeroes all pixels of all channels.
    pub fn clear(&mut self) {
        self.data.fill(T::ZERO);
    }
}

/// A window over a block of pictures: for each pixel and tap, is that neighbour inside of the
/// picture?
pub(super) struct Masks<T: 'static> {
    ops: &'static Ops<T>,
    window: Window,
    /// Whether each tap means the opposite neighbour: a window that a pixel spreads over instead of
    /// one that it sees.
    spreads: bool,
    /// 1 or 0, `[taps, stride]`.
    inside: Lease<T>,
    stride: usize,
    width: usize,
    margin: usize,
}

impl<T: Scalar> Masks<T> {
    pub fn new(
        ops: &'static Ops<T>,
        geometry: &Geometry,
        window: Window,
        spreads: bool,
        pictures: usize,
    ) -> Self {
        let stride = geometry.panels(pictures) * geometry.panel;
        let mut inside = lease(window.taps() * stride);
        let (height, width) = (geometry.height, geometry.width);
        for (tap, row) in inside.chunks_exact_mut(stride).enumerate() {
            let (dy, dx) = match window {
                Window::Pixel => (1, 1),
                Window::Square3 => (tap / 3, tap % 3),
            };
            let period = geometry.pixels().min(stride);
            for (y, line) in row[..period].chunks_mut(width).enumerate() {
                for (x, value) in line.iter_mut().enumerate() {
                    let (y, x) = (y + dy, x + dx);
                    let is_inside = y >= 1 && y <= height && x >= 1 && x <= width;
                    *value = if is_inside { T::ONE } else { T::ZERO };
                }
            }
            let mut done = period;
            while done < stride {
                let count = done.min(stride - done);
                row.copy_within(..count, done);
                done += count;
            }
        }
        Self { ops, window, spreads, inside, stride, width, margin: geometry.margin() }
    }

    /// The taps around the panel that starts at `pixel`, of planes with this stride.
    fn at(&self, pixel: usize, plane_stride: usize) -> Taps<'_, T> {
        let taps = self.window.taps();
        let mut list = [Tap { inside: &self.inside[..0], start: 0 }; 9];
        for (tap, entry) in list[..taps].iter_mut().enumerate() {
            let source = if self.spreads { taps - 1 - tap } else { tap };
            let center = self.margin + pixel;
            *entry = Tap {
                inside: &self.inside[source * self.stride + pixel..(source + 1) * self.stride],
                start: match self.window {
                    Window::Pixel => center,
                    Window::Square3 => {
                        center + (source / 3) * self.width + source % 3 - self.width - 1
                    }
                },
            };
        }
        Taps { list, taps, plane_stride }
    }

    /// Fills the panels from number `first` of the block on, `stride` apart in `panels`, with the
    /// windows around their pixels.
    pub fn gather(&self, planes: &Planes<T>, first: usize, panels: &mut [T], stride: usize) {
        for (index, panel) in panels.chunks_exact_mut(stride).enumerate() {
            let taps = self.at((first + index) * self.ops.panel, planes.stride);
            // SAFETY: `ops` is this processor's table.
            unsafe { (self.ops.gather)(&taps, &planes.data, panel) };
        }
    }

    /// The adjoint of [`gather`](Self::gather): adds the panels to the windows around their pixels.
    pub fn scatter(&self, panels: &[T], stride: usize, first: usize, planes: &mut Planes<T>) {
        for (index, panel) in panels.chunks_exact(stride).enumerate() {
            let taps = self.at((first + index) * self.ops.panel, planes.stride);
            // SAFETY: `ops` is this processor's table.
            unsafe { (self.ops.scatter)(&taps, panel, &mut planes.data) };
        }
    }
}

#[derive(Clone, Copy)]
struct Tap<'a, T> {
    inside: &'a [T],
    /// Where this neighbour of the panel's first pixel is in its plane.
    start: usize,
}

/// The neighbours of one panel.
pub(super) struct Taps<'a, T> {
    list: [Tap<'a, T>; 9],
    taps: usize,
    plane_stride: usize,
}

/// `panel[channel · taps + k] = plane[channel]` shifted by tap `k`, for each plane.
#[inline(always)]
pub(super) fn gather<T: Scalar, const PANEL: usize>(taps: &Taps<T>, planes: &[T], panel: &mut [T]) {
    for (k, tap) in taps.list[..taps.taps].iter().enumerate() {
        let inside: &[T; PANEL] = tap.inside.first_chunk().expect("masks cover whole panels");
        let rows = panel.as_chunks_mut::<PANEL>().0.iter_mut().skip(k).step_by(taps.taps);
        for (plane, row) in planes.chunks_exact(taps.plane_stride).zip(rows) {
            let from: &[T; PANEL] = plane[tap.start..].first_chunk().expect("a plane has margins");
            for i in 0..PANEL {
                row[i] = if inside[i] > T::ZERO { from[i] } else { T::ZERO };
            }
        }
    }
}

/// The adjoint of [`gather`]: adds `panel[channel · taps + k]` to `plane[channel]`, shifted by tap
/// `k`.
///
/// A pixel's sum runs over the taps in order, or in reverse, whatever the cut into panels.
#[inline(always)]
pub(super) fn scatter<T: Scalar, const PANEL: usize>(
    taps: &Taps<T>,
    panel: &[T],
    planes: &mut [T],
) {
    for (k, tap) in taps.list[..taps.taps].iter().enumerate() {
        let inside: &[T; PANEL] = tap.inside.first_chunk().expect("masks cover whole panels");
        let rows = panel.as_chunks::<PANEL>().0.iter().skip(k).step_by(taps.taps);
        for (plane, row) in planes.chunks_exact_mut(taps.plane_stride).zip(rows) {
            let to: &mut [T; PANEL] =
                plane[tap.start..].first_chunk_mut().expect("a plane has margins");
            for i in 0..PANEL {
                to[i] += if inside[i] > T::ZERO { row[i] } else { T::ZERO };
            }
        }
    }
}
