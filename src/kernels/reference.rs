//! For tests: the conditioner and the coupling by direct loops in f64, and the odd sizes to try
//! them on.

use super::{Coupling, Layer, LogScale, Map, Net, Order, Scalar, Shape, Window};

/// Numbers in `[-1, 1]`, the same for the same seed.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    next();
    (0..count).map(|_| next()).collect()
}

/// Panics unless all numbers agree within `tolerance`, relative to the largest of them.
pub(super) fn close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    let size = b.iter().fold(1e-3_f64, |size, value| size.max(value.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * size,
            "number {i}: {a} against {b}, tolerance {tolerance} of {size}"
        );
    }
}

/// Weight and bias of each layer.
pub(super) type Parameters<T> = Vec<(Vec<T>, Vec<T>)>;

/// A net and a batch for it.
#[derive(Clone, Debug)]
pub(super) struct NetCase {
    pub batch: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub height: usize,
    pub width: usize,
    pub hidden: Vec<usize>,
    pub first: Window,
    pub last: Window,
    pub negative_slope: f64,
}

impl NetCase {
    /// Sizes that leave remainders everywhere.
    pub fn odd_ones() -> Vec<Self> {
        use Window::{Pixel, Square3};
        let case = |batch,
                    [inputs, outputs]: [usize; 2],
                    [height, width]: [usize; 2],
                    hidden: &[usize],
                    [first, last]: [Window; 2],
                    negative_slope| Self {
            batch,
            inputs,
            outputs,
            height,
            width,
            hidden: hidden.to_vec(),
            first,
            last,
            negative_slope,
        };
        vec![
            case(2, [3, 6], [7, 5], &[13, 17], [Square3, Square3], 0.0),
            case(1, [1, 2], [1, 1], &[4], [Square3, Square3], 0.0),
            case(1, [1, 4], [3, 1], &[5, 3], [Square3, Square3], 0.1),
            case(3, [2, 1], [1, 4], &[33, 70], [Square3, Pixel], 0.0),
            case(5, [2, 3], [2, 3], &[16], [Pixel, Square3], 0.3),
            case(67, [5, 9], [1, 1], &[21, 34, 12], [Pixel, Pixel], 0.01),
            case(1, [2, 4], [40, 33], &[10, 9], [Square3, Square3], 0.0),
            case(2, [3, 2], [4, 9], &[], [Square3, Square3], 0.0),
            case(4, [40, 3], [1, 1], &[], [Pixel, Pixel], 0.0),
        ]
    }

    pub fn shape(&self, channels: usize) -> Shape {
        Shape { batch: self.batch, channels, height: self.height, width: self.width }
    }

    pub fn input(&self) -> Vec<f64> {
        numbers(self.batch * self.inputs * self.height * self.width, 7)
    }

    /// Random parameters, scaled so that activations keep their size.
    pub fn parameters<T: Scalar>(&self) -> Parameters<T> {
        let mut inputs = self.inputs * self.first.taps();
        let widths = self
            .hidden
            .iter()
            .map(|&width| (width, width))
            .chain([(self.outputs * self.last.taps(), self.outputs)]);
        let layers = widths.enumerate().map(|(index, (outputs, biases))| {
            let scale = (2.0 / inputs as f64).sqrt();
            let weight = numbers(inputs * outputs, index as u64)
                .iter()
                .map(|&v| T::from_f64(v * scale))
                .collect();
            let bias =
                numbers(biases, 50 + index as u64).iter().map(|&v| T::from_f64(v * 0.3)).collect();
            inputs = outputs;
            (weight, bias)
        });
        layers.collect()
    }

    pub fn net<'a, T: Scalar>(&self, parameters: &'a Parameters<T>) -> Net<'a, T> {
        let mut inputs = self.inputs * self.first.taps();
        let layers = parameters.iter().map(|(weight, bias)| {
            let outputs = weight.len() / inputs;
            let layer = Layer { inputs, outputs, weight, transposed: false, mask: None, bias };
            inputs = outputs;
            layer
        });
        let layers = layers.collect();
        let negative_slope = T::from_f64(self.negative_slope);
        let (first, last) = (self.first, self.last);
        Net { layers, first, last, negative_slope }
    }

    /// The net's output, channel by channel and pixel by pixel.
    pub fn naive(&self, parameters: &Parameters<f64>, input: &[f64]) -> Vec<f64> {
        let (height, width) = (self.height as isize, self.width as isize);
        let pixel = |picture: usize, channels: usize, channel: usize, y: isize, x: isize| {
            let inside = y >= 0 && x >= 0 && y < height && x < width;
            inside.then(|| {
                ((picture * channels + channel) * self.height + y as usize) * self.width
                    + x as usize
            })
        };
        let neighbours = |window: Window| match window {
            Window::Pixel => vec![(0, 0)],
            Window::Square3 => (0..9).map(|k| (k / 3 - 1, k % 3 - 1)).collect(),
        };
        let last = parameters.len() - 1;
        let mut channels = self.inputs;
        let mut values = input.to_vec();
        for (index, (weight, bias)) in parameters.iter().enumerate() {
            let before = if index == 0 { neighbours(self.first) } else { vec![(0, 0)] };
            let after = if index == last { neighbours(self.last) } else { vec![(0, 0)] };
            let columns = channels * before.len();
            let outputs = bias.len();
            let mut next = vec![0.0; self.batch * outputs * self.height * self.width];
            for picture in 0..self.batch {
                for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                    for (output, &bias) in bias.iter().enumerate() {
                        let mut sum = bias;
                        for (a, (ay, ax)) in after.iter().enumerate() {
                            let (y, x) = (y + ay, x + ax);
                            if y < 0 || x < 0 || y >= height || x >= width {
                                continue;
                            }
                            for channel in 0..channels {
                                for (b, (by, bx)) in before.iter().enumerate() {
                                    if let Some(from) =
                                        pixel(picture, channels, channel, y + by, x + bx)
                                    {
                                        let column = channel * before.len() + b;
                                        let at = (output * columns + column) * after.len() + a;
                                        sum += weight[at] * values[from];
                                    }
                                }
                            }
                        }
                        let to = pixel(picture, outputs, output, y, x).expect("inside");
                        next[to] = if index == last || sum > 0.0 {
                            sum
                        } else {
                            sum * self.negative_slope
                        };
                    }
                }
            }
            (values, channels) = (next, outputs);
        }
        values
    }
}

/// A coupling whose identity part comes first or last.
#[derive(Clone, Debug)]
pub(super) struct CouplingCase {
    pub net: NetCase,
    pub identity_first: bool,
    pub transformed: usize,
    /// `None` for an additive map; `LogScale::Tanh` takes its gain from [`gain`](Self::gain).
    pub affine: Option<(Order, LogScale<'static, f64>, [f64; 2])>,
}

impl CouplingCase {
    pub fn channels(&self) -> usize {
        self.net.inputs + self.transformed
    }

    pub fn shape(&self) -> Shape {
        self.net.shape(self.channels())
    }

    pub fn gain<T: Scalar>(&self) -> Vec<T> {
        numbers(self.transformed, 90).into_iter().map(|v| T::from_f64(v + 0.2)).collect()
    }

    pub fn coupling<'a, T: Scalar>(
        &self,
        parameters: &'a Parameters<T>,
        gain: &'a [T],
    ) -> Coupling<'a, T> {
        let (inputs, transformed) = (self.net.inputs, self.transformed);
        let (identity, transformed) = if self.identity_first {
            (0..inputs, inputs..inputs + transformed)
        } else {
            (transformed..inputs + transformed, 0..transformed)
        };
        let map = match self.affine {
            None => Map::Additive,
            Some((order, log_scale, limits)) => {
                let log_scale = match log_scale {
                    LogScale::Sigmoid => LogScale::Sigmoid,
                    LogScale::InverseSigmoid => LogScale::InverseSigmoid,
                    LogScale::Exp => LogScale::Exp,
                    LogScale::Bounded { bound } => LogScale::Bounded { bound: T::from_f64(bound) },
                    LogScale::Tanh { .. } => LogScale::Tanh { gain },
                };
                Map::Affine { order, log_scale, limits: limits.map(T::from_f64) }
            }
        };
        let net = self.net.net(parameters);
        Coupling { identity, transformed, step: 1, context: &[], context_width: 0, map, net }
    }

    /// `z` and `log_det` by the formulas.
    pub fn naive(
        &self,
        parameters: &Parameters<f64>,
        gain: &[f64],
        x: &[f64],
    ) -> (Vec<f64>, Vec<f64>) {
        let coupling = self.coupling(parameters, gain);
        let pixels = self.net.height * self.net.width;
        let sample = self.channels() * pixels;
        let identity = x
            .chunks(sample)
            .flat_map(|x| &x[coupling.identity.start * pixels..coupling.identity.end * pixels]);
        let params = self.net.naive(parameters, &identity.copied().collect::<Vec<_>>());
        let (mut z, mut log_det) = (x.to_vec(), vec![0.0; self.net.batch]);
        for picture in 0..self.net.batch {
            let params = &params[picture * self.net.outputs * pixels..];
            for channel in 0..self.transformed {
                for pixel in 0..pixels {
                    let t = params[channel * pixels + pixel];
                    let to = &mut z[picture * sample
                        + (coupling.transformed.start + channel) * pixels
                        + pixel];
                    let Some((order, log_scale, [lowest, highest])) = self.affine else {
                        *to += t;
                        continue;
                    };
                    let r = params[(self.transformed + channel) * pixels + pixel];
                    let log_sigmoid = -(-(r + 2.0)).exp().ln_1p();
                    let l = match log_scale {
                        LogScale::Sigmoid => log_sigmoid,
                        LogScale::InverseSigmoid => -log_sigmoid,
                        LogScale::Exp => r,
                        LogScale::Bounded { bound } => bound * (r / bound).tanh(),
                        LogScale::Tanh { .. } => gain[channel] * r.tanh(),
                    }
                    .clamp(lowest, highest);
                    *to = match order {
                        Order::ScaleThenShift => *to * l.exp() + t,
                        Order::ShiftThenScale => (*to + t) * l.exp(),
                    };
                    log_det[picture] += l;
                }
            }
        }
        (z, log_det)
    }
}
