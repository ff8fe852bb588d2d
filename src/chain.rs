//! Compositions: tuples, arrays, `Vec` and `Option` of flows are flows.
//!
//! `forward` runs the first flow first, `inverse` the last; log-determinants add up. An empty
//! composition is the identity, with log-determinant 0. A [`Tape`] sees the parts, so `forward` and
//! `pull_back` are those on a tape that keeps nothing.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::error::Result;
use crate::flow::Flow;
use crate::tape::Tape;

/// A log-determinant of 0 for the batch of `x`.
pub(crate) fn zero_log_det<const D: usize>(x: &Tensor<D>) -> Tensor<1> {
    Tensor::zeros([x.dims()[0]], (&x.device(), x.dtype()))
}

fn forward_on<'a, const D: usize, F: Flow<D> + 'a>(
    flows: impl IntoIterator<Item = &'a F>,
    mut x: Tensor<D>,
    tape: &mut Tape,
) -> (Tensor<D>, Tensor<1>) {
    let mut log_det = None;
    for flow in flows {
        let (z, more) = flow.forward_on(x, tape);
        x = z;
        log_det = Some(match log_det {
            None => more,
            Some(log_det) => log_det + more,
        });
    }
    let log_det = log_det.unwrap_or_else(|| zero_log_det(&x));
    (x, log_det)
}

/// `forward` and `pull_back` of a composition, from its `forward_on` and `pull_back_on`.
macro_rules! on_an_empty_tape {
    () => {
        fn forward(&self, x: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
            self.forward_on(x, &mut Tape::default())
        }

        fn pull_back(
            &self,
            z: Tensor<D>,
            dz: Tensor<D>,
            dlog_det: Tensor<1>,
            grads: &mut GradientsParams,
        ) -> (Tensor<D>, Tensor<D>) {
            self.pull_back_on(z, dz, dlog_det, &mut Tape::default(), grads)
        }
    };
}
pub(crate) use on_an_empty_tape;

/// [`Flow::initialize`] or [`Flow::observe`].
type DataPass<const D: usize, F> = fn(F, Tensor<D>) -> (F, Tensor<D>);

fn next<const D: usize, F>(flow: F, x: &mut Option<Tensor<D>>, pass: DataPass<D, F>) -> F {
    let batch = x.take().expect("the batch is handed on from flow to flow");
    let (flow, z) = pass(flow, batch);
    *x = Some(z);
    flow
}

macro_rules! sequence {
    () => {
        on_an_empty_tape!();

        fn forward_on(&self, x: Tensor<D>, tape: &mut Tape) -> (Tensor<D>, Tensor<1>) {
            forward_on(self, x, tape)
        }

        fn pull_back_on(
            &self,
            z: Tensor<D>,
            dz: Tensor<D>,
            dlog_det: Tensor<1>,
            tape: &mut Tape,
            grads: &mut GradientsParams,
        ) -> (Tensor<D>, Tensor<D>) {
            self.iter().rev().fold((z, dz), |(z, dz), flow| {
                flow.pull_back_on(z, dz, dlog_det.clone(), tape, grads)
            })
        }

        fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
            self.iter().rev().fold(z, |z, flow| flow.inverse(z))
        }

        fn latent_shape(&self, shape: [usize; D]) -> Result<[usize; D]> {
            self.iter().try_fold(shape, |shape, flow| flow.latent_shape(shape))
        }

        fn has_running_statistics(&self) -> bool {
            self.iter().any(|flow| flow.has_running_statistics())
        }

        fn check(&self) -> Result<()> {
            self.iter().try_for_each(|flow| flow.check())
        }
    };
}

impl<const D: usize, F: Flow<D>> Flow<D> for Vec<F>
where
    Vec<F>: Module,
{
    sequence!();

    fn initialize(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        let mut x = Some(x);
        let flows = self.into_iter().map(|flow| next(flow, &mut x, F::initialize)).collect();
        (flows, x.expect("the batch is handed on from flow to flow"))
    }

    fn observe(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        let mut x = Some(x);
        let flows = self.into_iter().map(|flow| next(flow, &mut x, F::observe)).collect();
        (flows, x.expect("the batch is handed on from flow to flow"))
    }
}

impl<const D: usize, const N: usize, F: Flow<D>> Flow<D> for [F; N]
where
    [F; N]: Module,
{
    sequence!();

    fn initialize(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        let mut x = Some(x);
        let flows = self.map(|flow| next(flow, &mut x, F::initialize));
        (flows, x.expect("the batch is handed on from flow to flow"))
    }

    fn observe(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        let mut x = Some(x);
        let flows = self.map(|flow| next(flow, &mut x, F::observe));
        (flows, x.expect("the batch is handed on from flow to flow"))
    }
}

impl<const D: usize, F: Flow<D>> Flow<D> for Option<F>
where
    Option<F>: Module,
{
    sequence!();

    fn initialize(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        match self {
            Some(flow) => {
                let (flow, z) = flow.initialize(x);
                (Some(flow), z)
            }
            None => (None, x),
        }
    }

    fn observe(self, x: Tensor<D>) -> (Self, Tensor<D>) {
        match self {
            Some(flow) => {
                let (flow, z) = flow.observe(x);
                (Some(flow), z)
            }
            None => (None, x),
        }
    }
}

macro_rules! tuple {
    ($first:ident $first_index:tt $(, $flow:ident $index:tt)* ; $($back:tt),*) => {
        impl<const D: usize, $first: Flow<D> $(, $flow: Flow<D>)*> Flow<D> for ($first, $($flow,)*)
        where
            ($first, $($flow,)*): Module,
        {
            on_an_empty_tape!();

            fn forward_on(&self, x: Tensor<D>, tape: &mut Tape) -> (Tensor<D>, Tensor<1>) {
                let (x, log_det) = self.$first_index.forward_on(x, tape);
                $(
                    let (x, more) = self.$index.forward_on(x, tape);
                    let log_det = log_det + more;
                )*
                (x, log_det)
            }

            fn pull_back_on(
                &self,
                z: Tensor<D>,
                dz: Tensor<D>,
                dlog_det: Tensor<1>,
                tape: &mut Tape,
                grads: &mut GradientsParams,
            ) -> (Tensor<D>, Tensor<D>) {
                $(let (z, dz) = self.$back.pull_back_on(z, dz, dlog_det.clone(), tape, grads);)*
                (z, dz)
            }

            fn inverse(&self, z: Tensor<D>) -> Tensor<D> {
                $(let z = self.$back.inverse(z);)*
                z
            }

            fn initialize(self, x: Tensor<D>) -> (Self, Tensor<D>) {
                #[allow(non_snake_case)]
                let ($first, $($flow,)*) = self;
                #[allow(non_snake_case)]
                let ($first, x) = $first.initialize(x);
                $(#[allow(non_snake_case)] let ($flow, x) = $flow.initialize(x);)*
                (($first, $($flow,)*), x)
            }

            fn observe(self, x: Tensor<D>) -> (Self, Tensor<D>) {
                #[allow(non_snake_case)]
                let ($first, $($flow,)*) = self;
                #[allow(non_snake_case)]
                let ($first, x) = $first.observe(x);
                $(#[allow(non_snake_case)] let ($flow, x) = $flow.observe(x);)*
                (($first, $($flow,)*), x)
            }

            fn has_running_statistics(&self) -> bool {
                self.$first_index.has_running_statistics()
                    $(|| self.$index.has_running_statistics())*
            }

            fn latent_shape(&self, shape: [usize; D]) -> Result<[usize; D]> {
                let shape = self.$first_index.latent_shape(shape)?;
                $(let shape = self.$index.latent_shape(shape)?;)*
                Ok(shape)
            }

            fn check(&self) -> Result<()> {
                self.$first_index.check()?;
                $(self.$index.check()?;)*
                Ok(())
            }
        }
    };
}

tuple!(A 0, B 1; 1, 0);
tuple!(A 0, B 1, C 2; 2, 1, 0);
tuple!(A 0, B 1, C 2, E 3; 3, 2, 1, 0);
tuple!(A 0, B 1, C 2, E 3, G 4; 4, 3, 2, 1, 0);
tuple!(A 0, B 1, C 2, E 3, G 4, H 5; 5, 4, 3, 2, 1, 0);
