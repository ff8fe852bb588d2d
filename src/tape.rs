//! [`Tape`]: what a forward pass keeps for the backward pass, and how far the rest may drift.

use std::any::Any;
use std::fmt;
use std::str::FromStr;

use burn::tensor::Tensor;

use crate::error::FlowError;
use crate::flow::At;
use crate::host;

/// Which activations a training step keeps between its forward and its backward pass.
///
/// A *layer* is a flow that is no composition: a Glow step has three. What is kept, or computed again
/// by the inverse, is the layer's *input*, a narrow tensor. The hidden values of a coupling's net are
/// computed again in its backward pass, save that with `Stored` the fused layers of the CPU keep
/// those behind their second layer, so that only the first one, whose input is narrow, runs twice.
///
/// With `n` layers, inputs of `m` bytes, hidden values of `h` bytes a layer of the net and `a` for the
/// arithmetic of one forward pass (a training step by plain autodiff, which keeps every hidden value
/// several times, takes `3 a`):
///
/// | | memory that grows with depth | arithmetic |
/// |---|---|---|
/// | `Reversible` | none | `4 a` in couplings, which need no second run of their net to invert; at most `5 a` in layers that leave [`Flow::pull_back`](crate::Flow::pull_back) to its default |
/// | `Checkpoint` | `n m / every` | the same |
/// | `Stored` | `n m`, and `h` for each net layer after the first in fused couplings | a little over `3 a` in fused couplings, else `4 a` |
///
/// All three give the same gradients; by rounding, those of `Stored` are nearest to plain autodiff,
/// since nothing is inverted.
///
/// Written and read as `reversible`, `checkpoint` (every [`CHECKPOINT_EVERY`] layers),
/// `checkpoint:N` and `stored`.
///
/// ```
/// use burn_flows::training::Memory;
///
/// let memory: Memory = "checkpoint:12".parse()?;
/// assert_eq!(memory, Memory::Checkpoint { every: 12 });
/// assert_eq!(memory.to_string(), "checkpoint:12");
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Memory {
    /// None: every layer's input is computed again from its output, by the inverse.
    #[default]
    Reversible,
    /// The input of every `every`-th layer, which is where rounding in the inverses starts anew.
    Checkpoint {
        /// Layers from one kept input to the next, at least 1.
        every: usize,
    },
    /// The input of every layer: no layer is inverted.
    Stored,
}

/// Layers from one checkpoint to the next where nothing else is asked for: about five Glow steps.
pub const CHECKPOINT_EVERY: usize = 16;

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reversible => f.write_str("reversible"),
            Self::Checkpoint { every } => write!(f, "checkpoint:{every}"),
            Self::Stored => f.write_str("stored"),
        }
    }
}

impl FromStr for Memory {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        let every = |digits: &str| digits.parse().ok().filter(|&every| every > 0);
        let memory = match text {
            "reversible" => Some(Self::Reversible),
            "checkpoint" => Some(Self::Checkpoint { every: CHECKPOINT_EVERY }),
            "stored" => Some(Self::Stored),
            _ => text
                .strip_prefix("checkpoint:")
                .and_then(every)
                .map(|every| Self::Checkpoint { every }),
        };
        memory.ok_or_else(|| {
            FlowError::invalid(
                "memory",
                text,
                "reversible, checkpoint, checkpoint:N or stored",
                "reversible takes least, stored inverts nothing",
            )
        })
    }
}

/// Reconstructed inputs compared in one measurement: so few that a measurement takes about the same
/// memory at every depth.
const MEASURED_LAYERS: usize = 8;

/// What a forward pass keeps for the backward pass: a stack of layers.
///
/// [`Flow::forward_on`](crate::Flow::forward_on) pushes every layer in the order of the forward
/// pass, [`Flow::pull_back`](crate::Flow::pull_back) pops them in the reverse order. What is
/// kept of a layer is decided by the [`Memory`] of the tape. The empty tape, [`Tape::default`],
/// keeps nothing and serves any backward pass.
///
/// A layer of your own needs to know nothing of it, unless it has something better to keep than its
/// input: see [`keep`](Tape::keep).
#[derive(Default)]
pub struct Tape {
    memory: Memory,
    measurement: Option<Measurement>,
    layers: Vec<Layer>,
    /// The layer popped last.
    current: Layer,
    /// Layers inverted one after the other since the last activation that is not a reconstruction.
    distance: usize,
    drift: Vec<LayerDrift>,
}

/// What is kept of one layer.
#[derive(Default)]
struct Layer {
    /// Position in the forward pass.
    index: usize,
    input: Option<Kept>,
    /// The layer's own.
    value: Option<Box<dyn Any + Send>>,
    value_bytes: usize,
}

struct Kept {
    tensor: Box<dyn Any + Send>,
    bytes: usize,
    /// To be compared with the reconstruction, not to replace it.
    probe: bool,
}

/// Which layers are measured: of the candidates, every `stride`-th, another choice at every turn.
struct Measurement {
    turn: usize,
    stride: usize,
    count: usize,
}

impl Measurement {
    fn takes(&self, candidate: usize) -> bool {
        (candidate + self.turn).is_multiple_of(self.stride)
    }
}

impl Tape {
    /// An empty tape that keeps what `memory` says.
    ///
    /// # Panics
    /// If `memory` is a checkpoint every 0 layers.
    pub fn new(memory: Memory) -> Self {
        assert!(
            memory != Memory::Checkpoint { every: 0 },
            "Tape: Memory::Checkpoint got every = 0, but needs at least 1"
        );
        Self { memory, ..Self::default() }
    }

    /// Measures the drift as well: the inputs of up to 9 layers are kept beside, the reconstructions
    /// compared with them, and otherwise not used, so that the gradients are to the last bit those
    /// without measurement.
    ///
    /// Without checkpoints the layers measured are the first one, where the errors of all others
    /// arrive, and others evenly spread; with checkpoints, those right after a checkpoint, farthest
    /// from the next. `turn` is a count of the measurements: over the turns all of them are measured.
    pub fn measuring(mut self, turn: usize) -> Self {
        self.measurement = Some(Measurement { turn, stride: 1, count: 0 });
        self
    }

    /// What the tape keeps.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Pushes a layer that is about to map `x` forward.
    pub fn push<const D: usize>(&mut self, x: &Tensor<D>) {
        if self.keeps_nothing() {
            return;
        }
        let index = self.layers.len();
        let kept = match self.memory {
            Memory::Reversible => false,
            Memory::Checkpoint { every } => index.is_multiple_of(every),
            Memory::Stored => true,
        };
        let probe = !kept && self.measures(index);
        let input = (kept || probe).then(|| Kept {
            bytes: x.dims().iter().product::<usize>() * x.dtype().size(),
            tensor: Box::new(x.clone()),
            probe,
        });
        self.layers.push(Layer { index, input, ..Layer::default() });
        if probe && index > 0 {
            self.thin_out();
        }
    }

    /// Keeps a value of the layer's own, of `num_bytes` bytes, beside the input of the layer pushed
    /// last: what saves its backward pass some work. Only where [`memory`](Tape::memory) is
    /// [`Memory::Stored`].
    ///
    /// # Panics
    /// If the tape keeps less, or no layer was pushed.
    pub fn keep(&mut self, value: impl Any + Send, num_bytes: usize) {
        assert!(
            self.memory == Memory::Stored,
            "Tape: keep was called on a tape of memory {}, but only a stored one keeps values",
            self.memory
        );
        let layer = self.layers.last_mut().expect("Tape: keep needs a layer that was pushed");
        layer.value = Some(Box::new(value));
        layer.value_bytes = num_bytes;
    }

    /// Pops a layer: gives its input, where it was kept, else `at` as it is. An input that is then
    /// computed from the output is to be handed to [`reconstructed`](Tape::reconstructed);
    /// [`input`](Tape::input) does both.
    ///
    /// # Panics
    /// If the layers do not come in the reverse order of the forward pass: a flow whose `forward_on`
    /// pushes other layers than its `pull_back` pops.
    pub fn pop<const D: usize>(&mut self, at: At<D>) -> At<D> {
        if self.keeps_nothing() {
            return at;
        }
        self.current = self.layers.pop().expect(
            "Tape: a layer was popped that was not pushed; forward_on and pull_back must go through \
             the same layers",
        );
        let kept = self.current.input.take_if(|kept| !kept.probe).map(tensor);
        let at = kept.map_or(at, At::Input);
        match &at {
            At::Input(_) => {
                self.distance = 0;
                // Nothing is reconstructed that it could be compared with.
                self.current.input = None;
            }
            At::Output(_) => self.distance += 1,
        }
        at
    }

    /// Pops a layer and gives its input: from the tape, as given, or by `invert` from the output.
    ///
    /// # Panics
    /// As [`pop`](Tape::pop).
    pub fn input<const D: usize>(
        &mut self,
        at: At<D>,
        invert: impl FnOnce(Tensor<D>) -> Tensor<D>,
    ) -> Tensor<D> {
        match self.pop(at) {
            At::Input(x) => x,
            At::Output(z) => {
                let x = invert(z);
                self.reconstructed(&x);
                x
            }
        }
    }

    /// What the layer popped last [kept](Tape::keep) of its own, if it is a `V`.
    pub fn take<V: Any>(&mut self) -> Option<V> {
        self.current.value.take().and_then(|value| value.downcast().ok()).map(|value| *value)
    }

    /// Takes note of the input that the layer popped last computed from its output.
    pub fn reconstructed<const D: usize>(&mut self, x: &Tensor<D>) {
        if let Some(kept) = self.current.input.take() {
            let error = relative_error(x.clone(), tensor(kept));
            let (layer, distance) = (self.current.index, self.distance);
            self.drift.push(LayerDrift { layer, distance, error });
        }
    }

    /// The drift measured, once the backward pass is over; `None` if the tape was not
    /// [`measuring`](Tape::measuring).
    pub fn into_drift(mut self) -> Option<Drift> {
        self.measurement?;
        self.drift.reverse();
        Some(Drift { layers: self.drift })
    }

    /// Bytes of what is on the tape.
    pub fn num_bytes(&self) -> usize {
        let bytes =
            |layer: &Layer| layer.input.as_ref().map_or(0, |kept| kept.bytes) + layer.value_bytes;
        self.layers.iter().map(bytes).sum()
    }

    /// Layers pushed and not popped yet; none on a tape that keeps nothing.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// # Panics
    /// If a layer is left after the backward pass: a flow whose `pull_back` pops fewer layers than its
    /// `forward_on` pushes, and so pops those of others.
    pub(crate) fn assert_done(&self) {
        assert!(
            self.layers.is_empty(),
            "Tape: {} layers are left after the backward pass; forward_on and pull_back must go \
             through the same layers",
            self.layers.len()
        );
    }

    pub(crate) fn keeps_nothing(&self) -> bool {
        self.memory == Memory::Reversible && self.measurement.is_none()
    }

    /// The number of a layer among those that may be measured.
    fn candidate(&self, index: usize) -> Option<usize> {
        match self.memory {
            Memory::Reversible => Some(index),
            Memory::Checkpoint { every } => (index % every == 1).then_some(index / every),
            Memory::Stored => None,
        }
    }

    fn measures(&self, index: usize) -> bool {
        let Some(measurement) = &self.measurement else { return false };
        let is_first = index == 0;
        is_first || self.candidate(index).is_some_and(|candidate| measurement.takes(candidate))
    }

    /// The number of layers is not known before the pass is over: where too many are measured, every
    /// second one is given up.
    fn thin_out(&mut self) {
        let Some(measurement) = &mut self.measurement else { return };
        measurement.count += 1;
        if measurement.count <= MEASURED_LAYERS {
            return;
        }
        measurement.stride *= 2;
        let mut count = 0;
        for index in 0..self.layers.len() {
            let stays = self.measures(index);
            let input = &mut self.layers[index].input;
            if input.as_ref().is_some_and(|kept| kept.probe) {
                match stays {
                    true => count += usize::from(index > 0),
                    false => *input = None,
                }
            }
        }
        self.measurement.as_mut().expect("it was there above").count = count;
    }
}

fn tensor<const D: usize>(kept: Kept) -> Tensor<D> {
    *kept.tensor.downcast().expect(
        "Tape: a layer was popped with another rank than it was pushed with; forward_on and \
         pull_back must go through the same layers",
    )
}

/// Largest error over the root mean square of the expected values; infinite where it is not finite.
fn relative_error<const D: usize>(x: Tensor<D>, expected: Tensor<D>) -> f64 {
    let difference = (x - expected.clone()).abs();
    if !host::is_finite(difference.clone()) {
        return f64::INFINITY;
    }
    let size = host::scalar(expected.square().mean().sqrt());
    host::scalar(difference.max()) / if size > 0.0 { size } else { 1.0 }
}

/// How far reconstructed activations are from those of the forward pass: rounding in the inverses.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Drift {
    /// The layers measured, in the order of the forward pass; none where none is inverted.
    pub layers: Vec<LayerDrift>,
}

/// The drift at the input of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerDrift {
    /// Position of the layer in the forward pass, from 0.
    pub layer: usize,
    /// Layers inverted one after the other up to here, since the end of the stack or the last
    /// checkpoint.
    pub distance: usize,
    /// Largest error of the batch's values over their root mean square.
    pub error: f64,
}

impl Drift {
    /// The largest error; 0 where no layer was inverted.
    pub fn largest(&self) -> f64 {
        self.layers.iter().fold(0.0, |largest, layer| largest.max(layer.error))
    }

    /// How often checkpoints must be kept for the error to stay within `bound`, `None` if it is:
    /// half the least distance at which it was not (at least 1).
    ///
    /// Errors grow with the distance, so half of it leaves a margin; where that is not enough, the
    /// next measurement, which sees the distances of the new checkpoints, halves it again.
    pub fn checkpoint_every(&self, bound: f64) -> Option<usize> {
        let outside = self.layers.iter().filter(|layer| layer.error > bound);
        outside.map(|layer| (layer.distance / 2).max(1)).min()
    }
}
