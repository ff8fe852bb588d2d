//! Compositions: tuples, arrays, `Vec` and `Option` of flows are flows, and what derives `Flow`.
//!
//! A composition says how to walk along its [`Parts`]; what it does as a flow is written here, once, for
//! a sequence of parts and, since that is a sequence of the one part at hand, for one of several.
//!
//! `forward` runs the first part first, `inverse` the last; log-determinants add up. An empty
//! composition is the identity, with log-determinant 0. A [`Tape`] sees the parts, so `forward` is that
//! on a tape that keeps nothing.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::error::Result;
use crate::flow::{At, Flow, Pass};
use crate::host;
use crate::tape::{Memory, Tape};

/// Axis 1 of `x` has the size that `layer` was built for.
pub(crate) fn assert_size<const D: usize>(layer: &str, x: &Tensor<D>, size: usize, what: &str) {
    assert!(
        x.dims()[1] == size,
        "{layer}: got shape {:?}, but was built for {size} {what} on axis 1",
        x.dims()
    );
}

/// A log-determinant of 0 for the batch of `x`.
pub(crate) fn zero_log_det<const D: usize>(x: &Tensor<D>) -> Tensor<1> {
    if host::has_no_samples(x) {
        return host::empty_like(x, [0]);
    }
    Tensor::zeros([x.dims()[0]], (&x.device(), x.dtype()))
}

/// A log-determinant, `[1]`, that is the same for every sample of the batch of `x`.
pub(crate) fn same_log_det<const D: usize>(log_det: Tensor<1>, x: &Tensor<D>) -> Tensor<1> {
    if host::has_no_samples(x) { zero_log_det(x) } else { log_det.expand([x.dims()[0]]) }
}

/// A flow made of flows, one after the other: all that `#[derive(Flow)]` writes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a flow of rank {D}",
    label = "not a `Flow<{D}>`",
    note = "implement `forward` and `inverse` of `Flow`, or write `#[derive(Flow)]` on a struct or enum of flows",
    note = "a field that is no flow is marked `#[flow(skip)]`"
)]
pub trait Parts<const D: usize>: Module {
    /// Goes along the parts, the data side first.
    fn walk<W: Walk<D>>(&self, walk: &mut W, state: W::State) -> W::State;

    /// Goes along the parts, the latent side first.
    fn walk_back<W: Walk<D>>(&self, walk: &mut W, state: W::State) -> W::State;

    /// The flow with every part sent [through](Relay::through) the relay, the data side first.
    fn relayed(self, relay: &mut Relay<D>) -> Self;
}

/// What is done with one part after the other.
pub trait Walk<const D: usize> {
    /// What goes from part to part.
    type State;

    /// Takes the state through a part.
    fn part<F: Flow<D>>(&mut self, flow: &F, state: Self::State) -> Self::State;
}

impl<const D: usize, C: Parts<D>> Flow<D> for C {
    fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        self.forward_on(x, &mut Tape::default())
    }

    fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
        self.walk_back(&mut Inverse, z)
    }

    fn inverse_and_log_det(&self, z: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
        let (x, log_det) = self.walk_back(&mut InverseAndLogDet, (z, None));
        let log_det = log_det.unwrap_or_else(|| zero_log_det(&x));
        (x, log_det)
    }

    fn log_det(&self, x: Tensor<D>) -> Tensor<1> {
        match num_parts(self) {
            0 => zero_log_det(&x),
            parts_left => {
                let (_, log_det) = self.walk(&mut LogDet { parts_left }, (Some(x), None));
                log_det.expect("every part adds its own")
            }
        }
    }

    fn data_pass(self, x: Tensor<D>, pass: Pass) -> (Self, Tensor<D>) {
        let mut relay = Relay { batch: Some(x), pass };
        let flow = self.relayed(&mut relay);
        (flow, relay.batch.expect("every part hands the batch on"))
    }

    fn latent_shape(&self, shape: [usize; D]) -> Result<[usize; D]> {
        self.walk(&mut LatentShape, Ok(shape))
    }

    fn check(&self) -> Result<()> {
        self.walk(&mut Check, Ok(()))
    }

    fn forward_on(&self, x: Tensor<D>, tape: &mut Tape) -> (Tensor<D>, Tensor<1>) {
        let (z, log_det) = self.walk(&mut Forward { tape }, (x, None));
        let log_det = log_det.unwrap_or_else(|| zero_log_det(&z));
        (z, log_det)
    }

    fn pull_back(
        &self,
        at: At<D>,
        dz: Tensor<D>,
        dlog_det: Tensor<1>,
        tape: &mut Tape,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        let back = |at, tape: &mut Tape| match self
            .walk_back(&mut PullBack { dlog_det, tape, grads }, (at, dz))
        {
            (At::Input(x) | At::Output(x), dx) => (x, dx),
        };
        // The input of the only part is that of the whole.
        if num_parts(self) == 1 {
            return back(at, tape);
        }
        from_output(self, at, tape, |z, tape| back(At::Output(z), tape))
    }

    fn pull_back_inverse(
        &self,
        x: Tensor<D>,
        dx: Tensor<D>,
        dlog_det: Tensor<1>,
        grads: &mut GradientsParams,
    ) -> (Tensor<D>, Tensor<D>) {
        self.walk(&mut PullBackInverse { dlog_det, grads }, (x, dx))
    }
}

/// Goes back through a composition, which starts at its output: where that is not given, after another
/// forward pass.
pub(crate) fn from_output<const D: usize, F: Flow<D>, R>(
    flow: &F,
    at: At<D>,
    tape: &mut Tape,
    back: impl FnOnce(Tensor<D>, &mut Tape) -> R,
) -> R {
    match at {
        At::Output(z) => back(z, tape),
        // With the inputs of the parts kept on a tape of its own, none is inverted.
        At::Input(x) if tape.keeps_nothing() => {
            let mut tape = Tape::new(Memory::Stored);
            let (z, _) = flow.valid().forward_on(x, &mut tape);
            back(z, &mut tape)
        }
        At::Input(x) => back(flow.valid().forward(x).0, tape),
    }
}

fn num_parts<const D: usize, C: Parts<D>>(flow: &C) -> usize {
    struct Count;
    impl<const D: usize> Walk<D> for Count {
        type State = usize;

        fn part<F: Flow<D>>(&mut self, _flow: &F, count: usize) -> usize {
            count + 1
        }
    }
    flow.walk(&mut Count, 0)
}

struct Forward<'a> {
    tape: &'a mut Tape,
}

impl<const D: usize> Walk<D> for Forward<'_> {
    type State = (Tensor<D>, Option<Tensor<1>>);

    fn part<F: Flow<D>>(&mut self, flow: &F, (x, log_det): Self::State) -> Self::State {
        let (z, more) = flow.forward_on(x, self.tape);
        (z, Some(added(log_det, more)))
    }
}

struct Inverse;

impl<const D: usize> Walk<D> for Inverse {
    type State = Tensor<D>;

    fn part<F: Flow<D>>(&mut self, flow: &F, z: Tensor<D>) -> Tensor<D> {
        flow.inverse(z)
    }
}

struct InverseAndLogDet;

impl<const D: usize> Walk<D> for InverseAndLogDet {
    type State = (Tensor<D>, Option<Tensor<1>>);

    fn part<F: Flow<D>>(&mut self, flow: &F, (z, log_det): Self::State) -> Self::State {
        let (x, more) = flow.inverse_and_log_det(z);
        (x, Some(added(log_det, more)))
    }
}

/// As [`Forward`], but the output of the last part is not needed.
struct LogDet {
    parts_left: usize,
}

impl<const D: usize> Walk<D> for LogDet {
    type State = (Option<Tensor<D>>, Option<Tensor<1>>);

    fn part<F: Flow<D>>(&mut self, flow: &F, (x, log_det): Self::State) -> Self::State {
        let x = x.expect("every part but the last has an output");
        self.parts_left -= 1;
        let (z, more) = match self.parts_left {
            0 => (None, flow.log_det(x)),
            _ => {
                let (z, more) = flow.forward(x);
                (Some(z), more)
            }
        };
        (z, Some(added(log_det, more)))
    }
}

fn added(sum: Option<Tensor<1>>, more: Tensor<1>) -> Tensor<1> {
    match sum {
        None => more,
        Some(sum) => sum + more,
    }
}

struct LatentShape;

impl<const D: usize> Walk<D> for LatentShape {
    type State = Result<[usize; D]>;

    fn part<F: Flow<D>>(&mut self, flow: &F, shape: Self::State) -> Self::State {
        flow.latent_shape(shape?)
    }
}

struct Check;

impl<const D: usize> Walk<D> for Check {
    type State = Result<()>;

    fn part<F: Flow<D>>(&mut self, flow: &F, so_far: Result<()>) -> Result<()> {
        so_far.and_then(|()| flow.check())
    }
}

struct PullBack<'a> {
    dlog_det: Tensor<1>,
    tape: &'a mut Tape,
    grads: &'a mut GradientsParams,
}

impl<const D: usize> Walk<D> for PullBack<'_> {
    type State = (At<D>, Tensor<D>);

    fn part<F: Flow<D>>(&mut self, flow: &F, (at, dz): Self::State) -> Self::State {
        let (x, dx) = flow.pull_back(at, dz, self.dlog_det.clone(), self.tape, self.grads);
        (At::Output(x), dx)
    }
}

struct PullBackInverse<'a> {
    dlog_det: Tensor<1>,
    grads: &'a mut GradientsParams,
}

impl<const D: usize> Walk<D> for PullBackInverse<'_> {
    type State = (Tensor<D>, Tensor<D>);

    fn part<F: Flow<D>>(&mut self, flow: &F, (x, dx): Self::State) -> Self::State {
        flow.pull_back_inverse(x, dx, self.dlog_det.clone(), self.grads)
    }
}

/// Hands a batch on, by [`Flow::data_pass`], through parts that are mapped one after the other.
pub struct Relay<const D: usize> {
    /// `None` only while a part has it.
    batch: Option<Tensor<D>>,
    pass: Pass,
}

impl<const D: usize> Relay<D> {
    /// The part after its data pass.
    pub fn through<F: Flow<D>>(&mut self, flow: F) -> F {
        let batch = self.batch.take().expect("every part hands the batch on");
        let (flow, z) = flow.data_pass(batch, self.pass);
        self.batch = Some(z);
        flow
    }
}

macro_rules! walked_by_iterator {
    () => {
        fn walk<W: Walk<D>>(&self, walk: &mut W, state: W::State) -> W::State {
            self.iter().fold(state, |state, flow| walk.part(flow, state))
        }

        fn walk_back<W: Walk<D>>(&self, walk: &mut W, state: W::State) -> W::State {
            self.iter().rev().fold(state, |state, flow| walk.part(flow, state))
        }
    };
}

impl<const D: usize, F: Flow<D>> Parts<D> for Vec<F>
where
    Vec<F>: Module,
{
    walked_by_iterator!();

    fn relayed(self, relay: &mut Relay<D>) -> Self {
        self.into_iter().map(|flow| relay.through(flow)).collect()
    }
}

impl<const D: usize, const N: usize, F: Flow<D>> Parts<D> for [F; N]
where
    [F; N]: Module,
{
    walked_by_iterator!();

    fn relayed(self, relay: &mut Relay<D>) -> Self {
        self.map(|flow| relay.through(flow))
    }
}

impl<const D: usize, F: Flow<D>> Parts<D> for Option<F>
where
    Option<F>: Module,
{
    walked_by_iterator!();

    fn relayed(self, relay: &mut Relay<D>) -> Self {
        self.map(|flow| relay.through(flow))
    }
}

macro_rules! tuple {
    ($($flow:ident $index:tt),+; $($back:tt),+) => {
        impl<const D: usize, $($flow: Flow<D>),+> Parts<D> for ($($flow,)+)
        where
            ($($flow,)+): Module,
        {
            fn walk<W: Walk<D>>(&self, walk: &mut W, state: W::State) -> W::State {
                $(let state = walk.part(&self.$index, state);)+
                state
            }

            fn walk_back<W: Walk<D>>(&self, walk: &mut W, state: W::State) -> W::State {
                $(let state = walk.part(&self.$back, state);)+
                state
            }

            fn relayed(self, relay: &mut Relay<D>) -> Self {
                ($(relay.through(self.$index),)+)
            }
        }
    };
}

tuple!(A 0, B 1; 1, 0);
tuple!(A 0, B 1, C 2; 2, 1, 0);
tuple!(A 0, B 1, C 2, E 3; 3, 2, 1, 0);
tuple!(A 0, B 1, C 2, E 3, G 4; 4, 3, 2, 1, 0);
tuple!(A 0, B 1, C 2, E 3, G 4, H 5; 5, 4, 3, 2, 1, 0);
tuple!(A 0, B 1, C 2, E 3, G 4, H 5, I 6; 6, 5, 4, 3, 2, 1, 0);
tuple!(A 0, B 1, C 2, E 3, G 4, H 5, I 6, J 7; 7, 6, 5, 4, 3, 2, 1, 0);
