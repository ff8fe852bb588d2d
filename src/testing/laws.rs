//! The laws of a flow.

use std::path::Path;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use super::report::{Court, Law, LawViolation, Report, Tolerances};
use super::{inputs, move_parameters, visit};
use crate::flow::{At, Flow, Pass, collect};
use crate::norm::waiting_for_data;
use crate::tape::{Memory, Tape};
use crate::{host, linalg, record};

/// Standard deviation of the noise that moves the parameters: large enough for every term to count,
/// small enough for a rotation to stay invertible and a net to stay tame.
const SPREAD: f64 = 0.1;

/// Factors on the inputs at which outputs and gradients must be finite.
const SCALES: [f64; 4] = [1e-6, 1e-3, 1e2, 1e4];

/// How many times as many samples as there are initialize a flow.
const INITIALIZATION_COPIES: usize = 8;

/// How much more than elsewhere two computations of a batch may differ after a data-dependent
/// initialization, which divides by deviations that can be small.
const INITIALIZATION_GAIN: f64 = 10.0;

/// Checks every law of [`Flow`] on a flow whose parameters are moved by seeded noise first.
///
/// `flow` is not in training; `x` is a batch of at least two samples, on the flow's device and of its
/// dtype (see [`inputs`] and [`to_f64`](super::to_f64)). The cost is that of a forward and a backward
/// pass over as many samples as `x` has values.
///
/// # Errors
/// The first law that is broken.
///
/// # Panics
/// If `x` has fewer than two samples, or the flow itself panics.
pub fn check_laws<const D: usize, F: Flow<D>>(
    flow: &F,
    x: Tensor<D>,
) -> Result<Report, LawViolation> {
    Laws::new().check(flow, x)
}

/// [`check_laws`] with options.
///
/// ```
/// use burn::tensor::DType;
/// use burn_flows::linear::InvertibleConv1x1;
/// use burn_flows::testing::{Laws, inputs};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let device = burn_flows::backend::device();
/// let flow = InvertibleConv1x1::plain(3, &mut StdRng::seed_from_u64(0), &device)?;
/// let x = inputs([2, 3, 2, 2], 1, &device, DType::F32);
/// println!("{}", Laws::new().spread(0.02).check(&flow, x)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Laws {
    spread: f64,
    seed: u64,
    layers: usize,
    scales: Vec<f64>,
    unreached: Vec<String>,
    tolerances: Option<Tolerances>,
}

impl Default for Laws {
    fn default() -> Self {
        Self::new()
    }
}

impl Laws {
    /// As [`check_laws`] has them.
    pub fn new() -> Self {
        Self {
            spread: SPREAD,
            seed: 0,
            layers: 1,
            scales: SCALES.to_vec(),
            unreached: Vec::new(),
            tolerances: None,
        }
    }

    /// Standard deviation of the noise on the parameters; 0 leaves them where they are. Default: 0.1.
    pub fn spread(mut self, spread: f64) -> Self {
        self.spread = spread;
        self
    }

    /// Seed of the noise on the parameters and of the gradients that are pulled back. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The flow is as many layers after each other, which widens the tolerances as many times.
    /// Default: 1.
    pub fn layers(mut self, layers: usize) -> Self {
        self.layers = layers;
        self
    }

    /// Factors on `x` at which outputs and gradients must be finite; none for a flow that is defined
    /// on an interval alone. Default: 1e-6, 1e-3, 1e2 and 1e4.
    pub fn scales(mut self, scales: &[f64]) -> Self {
        self.scales = scales.to_vec();
        self
    }

    /// Names on the paths of parameters that take no part in the map, such as the priors of a nested
    /// stack: no gradient need reach them. Default: none.
    pub fn unreached(mut self, names: &[&str]) -> Self {
        self.unreached = names.iter().map(|name| (*name).into()).collect();
        self
    }

    /// Tolerances other than those of the dtype.
    pub fn tolerances(mut self, tolerances: Tolerances) -> Self {
        self.tolerances = Some(tolerances);
        self
    }

    /// The module with its parameters moved off their start, as a check moves them.
    pub fn moved<M: Module>(&self, module: M) -> M {
        move_parameters(module, self.seed, self.spread)
    }

    /// Checks every law; see [`check_laws`].
    ///
    /// # Errors
    /// The first law that is broken.
    ///
    /// # Panics
    /// If `x` has fewer than two samples, or the flow itself panics.
    pub fn check<const D: usize, F: Flow<D>>(
        &self,
        flow: &F,
        x: Tensor<D>,
    ) -> Result<Report, LawViolation> {
        assert!(x.dims()[0] >= 2, "check_laws: got {} samples, needs at least 2", x.dims()[0]);
        let tolerances = self.tolerances.unwrap_or_else(|| Tolerances::of(x.dtype()));
        let case = Case {
            flow: &self.moved(flow.clone()),
            x,
            tolerances: tolerances.times(self.layers),
            seed: self.seed,
            court: Court::of::<F>(),
        };
        let mut report = Report::default();
        case.shapes()?;
        (report.round_trip, report.round_trip_latent) = case.round_trip()?;
        report.log_det = case.log_det()?;
        report.batch = case.batch()?;
        report.jacobian = case.jacobian()?;
        (report.parameters, report.pull_back) = case.gradients(&self.unreached)?;
        for &scale in &self.scales {
            case.finite(scale)?;
        }
        case.initialize()?;
        check_record(case.flow, visit::filled(flow.clone(), 0.5), case.x.clone())?;
        Ok(report)
    }
}

/// Checks that `saved`, written to a record and loaded into `fresh`, gives bit-equal outputs.
///
/// `fresh` is a flow of the same configuration with other values (from another seed, say): whatever
/// `saved` keeps outside of its parameters, and so outside of its record, shows.
///
/// # Errors
/// If an output differs in a single bit, or the record cannot be loaded.
pub fn check_record<const D: usize, F: Flow<D>>(
    saved: &F,
    fresh: F,
    x: Tensor<D>,
) -> Result<(), LawViolation> {
    let court = Court::of::<F>();
    let loaded = record::to_bytes(saved)
        .and_then(|bytes| record::from_bytes(fresh, bytes, Path::new("the record in memory")))
        .map_err(|error| court.violation(Law::Record, error.to_string()))?;
    let outputs = |flow: &F| {
        let (z, log_det) = flow.forward(x.clone());
        let back = flow.inverse(z.clone());
        [host::to_f64(z), host::to_f64(log_det), host::to_f64(back)]
    };
    let (before, after) = (outputs(saved), outputs(&loaded));
    for (what, (before, after)) in
        ["z", "log_det", "inverse(z)"].into_iter().zip(before.iter().zip(&after))
    {
        let differ = before.iter().zip(after).position(|(a, b)| a.to_bits() != b.to_bits());
        if let Some(at) = differ {
            let detail = format!(
                "{what} was {:e} and is {:e} after loading (entry {at}); keep what must survive in \
                 a Param",
                before[at], after[at]
            );
            return Err(court.violation(Law::Record, detail));
        }
    }
    Ok(())
}

/// One flow on one batch.
struct Case<'a, const D: usize, F> {
    flow: &'a F,
    x: Tensor<D>,
    tolerances: Tolerances,
    seed: u64,
    court: Court,
}

impl<const D: usize, F: Flow<D>> Case<'_, D, F> {
    fn shapes(&self) -> Result<(), LawViolation> {
        let (z, log_det) = self.flow.forward(self.x.clone());
        let needed = self
            .flow
            .latent_shape(self.x.dims())
            .map_err(|error| self.court.violation(Law::Shapes, error.to_string()))?;
        self.court.require(Law::Shapes, z.dims() == needed, || {
            format!("z has shape {:?}, but latent_shape says {needed:?}", z.dims())
        })?;
        let batch = [self.x.dims()[0]];
        self.court.require(Law::Shapes, log_det.dims() == batch, || {
            format!("log_det has shape {:?}, but must have {batch:?}", log_det.dims())
        })?;
        let back = self.flow.inverse(z).dims();
        self.court.require(Law::Shapes, back == self.x.dims(), || {
            format!("inverse(z) has shape {back:?}, but x has {:?}", self.x.dims())
        })
    }

    fn round_trip(&self) -> Result<(f64, f64), LawViolation> {
        let tolerance = self.tolerances.round_trip;
        let z = self.flow.forward(self.x.clone()).0;
        let back = host::to_f64(self.flow.inverse(z.clone()));
        let x = host::to_f64(self.x.clone());
        let data =
            self.court.compare(Law::RoundTrip, "inverse(forward(x))", &back, &x, tolerance)?;
        // Latents of their own, not those of x: the way back must not lean on the way there.
        let z = inputs(z.dims(), self.seed ^ 1, &z.device(), z.dtype());
        let again = self.flow.forward(self.flow.inverse(z.clone())).0;
        let latent = self.court.compare(
            Law::RoundTrip,
            "forward(inverse(z))",
            &host::to_f64(again),
            &host::to_f64(z),
            tolerance,
        )?;
        Ok((data, latent))
    }

    fn log_det(&self) -> Result<f64, LawViolation> {
        self.court.compare(
            Law::LogDet,
            "log_det(x)",
            &host::to_f64(self.flow.log_det(self.x.clone())),
            &host::to_f64(self.flow.forward(self.x.clone()).1),
            self.tolerances.agreement,
        )
    }

    fn batch(&self) -> Result<f64, LawViolation> {
        let batch = self.x.dims()[0];
        let (z, log_det) = self.flow.forward(self.x.clone());
        let reversed = host::places((0..batch).rev(), &self.x.device());
        let (zr, log_det_r) = self.flow.forward(self.x.clone().select(0, reversed.clone()));
        let (z1, log_det_1) = self.flow.forward(self.x.clone().narrow(0, 0, 1));
        let back = self.flow.inverse(z.clone());
        let back1 = self.flow.inverse(z.clone().narrow(0, 0, 1));
        let compare = |what: &str, got: Vec<f64>, expected: Vec<f64>| {
            self.court.compare(Law::Batch, what, &got, &expected, self.tolerances.agreement)
        };
        let errors = [
            compare(
                "z of the batch in reverse",
                host::to_f64(zr),
                host::to_f64(z.clone().select(0, reversed.clone())),
            )?,
            compare(
                "log_det of the batch in reverse",
                host::to_f64(log_det_r),
                host::to_f64(log_det.clone().select(0, reversed)),
            )?,
            compare("z of a sample alone", host::to_f64(z1), host::to_f64(z.narrow(0, 0, 1)))?,
            compare(
                "log_det of a sample alone",
                host::to_f64(log_det_1),
                host::to_f64(log_det.narrow(0, 0, 1)),
            )?,
            compare(
                "inverse(z) of a sample alone",
                host::to_f64(back1),
                host::to_f64(back.narrow(0, 0, 1)),
            )?,
        ];
        Ok(errors.into_iter().fold(0.0, f64::max))
    }

    /// The Jacobian of a sample, by one backward pass over as many copies of it as there are
    /// outputs: copy `i` is asked for the gradient of output `i` alone. That needs the batch to be
    /// independent, which is checked before.
    fn jacobian(&self) -> Result<f64, LawViolation> {
        // Without the parameters' gradients, and with layers as they are at inference.
        let flow = self.flow.clone().freeze().train();
        let [batch, ..] = self.x.dims()[..] else { unreachable!("a flow has a batch axis") };
        let size = self.x.dims()[1..].iter().product::<usize>();
        let log_det = host::to_f64(self.flow.forward(self.x.clone()).1);
        let mut worst = 0.0f64;
        for (sample, log_det) in log_det.into_iter().enumerate().take(batch) {
            let copies = self.x.clone().narrow(0, sample, 1).repeat_dim(0, size);
            let x = Tensor::from_inner(copies).require_grad();
            let z = flow.forward(x.clone()).0.reshape([size, size]);
            let one_each: Vec<f64> =
                (0..size * size).map(|i| f64::from(u8::from(i / size == i % size))).collect();
            let one_each = host::from_f64(one_each, [size, size], &self.x.device(), self.x.dtype());
            let tape = (z * Tensor::from_inner(one_each)).sum().backward();
            let rows = x.grad(&tape).ok_or_else(|| {
                self.court.violation(Law::Jacobian, "z does not depend on x in autodiff")
            })?;
            let jacobian = linalg::Lu::new(&host::to_f64(rows), size).slogdet().1;
            worst = worst.max(self.court.compare(
                Law::Jacobian,
                &format!("log_det of sample {sample}"),
                &[log_det],
                &[jacobian],
                self.tolerances.jacobian,
            )?);
        }
        Ok(worst)
    }

    /// Gradients by autodiff reach every parameter, however the batch is wrapped, and `pull_back` gives the
    /// same, whatever it is given.
    fn gradients(&self, unreached: &[String]) -> Result<(usize, f64), LawViolation> {
        let flow = self.flow.clone().train();
        let pulled = self.pulled(&flow, self.x.clone());
        let mut reached = 0;
        for (path, grad) in &pulled.grads {
            if path.split('.').any(|part| unreached.iter().any(|name| name == part)) {
                continue;
            }
            let grad = grad.as_ref().ok_or_else(|| {
                self.court.violation(Law::Gradients, format!("{path} gets no gradient"))
            })?;
            self.court.require(Law::Gradients, grad.iter().any(|&value| value != 0.0), || {
                format!("the gradient of {path} is zero in all {} entries", grad.len())
            })?;
            reached += 1;
        }
        // As a loop of one's own may have it: plain, or on the autodiff device.
        for (wrapped, x) in
            [("plain", self.x.clone()), ("tracked", Tensor::from_inner(self.x.clone()))]
        {
            let own = self.by_autodiff(&flow, x);
            for ((path, got), (_, expected)) in own.grads.iter().zip(&pulled.grads) {
                let Some(expected) = expected else { continue };
                let got = got.as_ref().ok_or_else(|| {
                    let detail = format!("{path} gets no gradient from a {wrapped} batch");
                    self.court.violation(Law::OwnLoop, detail)
                })?;
                let what = format!("the gradient of {path} from a {wrapped} batch");
                let tolerance = self.tolerances.gradients;
                self.court.compare(Law::OwnLoop, &what, got, expected, tolerance)?;
            }
        }

        let mut worst = 0.0f64;
        // From either side, and with every input on the tape: the gradients are the same.
        let sides = [
            ("from z", At::Output(pulled.z.clone()), Memory::Reversible),
            ("from x", At::Input(self.x.clone()), Memory::Reversible),
            ("from z with x on the tape", At::Output(pulled.z.clone()), Memory::Stored),
        ];
        for (what, at, memory) in sides {
            let mut grads = GradientsParams::new();
            let mut pull_back = || {
                let mut tape = Tape::new(memory);
                if memory == Memory::Stored {
                    self.flow.forward_on(self.x.clone(), &mut tape);
                }
                let (dz, dlog_det) = (pulled.dz.clone(), pulled.dlog_det.clone());
                let (x, dx) = flow.pull_back(at.clone(), dz, dlog_det, &mut tape, &mut grads);
                (x, dx, tape.num_layers())
            };
            let (x, dx, left) = pull_back();
            self.court.require(Law::PullBack, left == 0, || {
                format!("{left} layers that forward_on pushed are left on the tape; pop them in pull_back")
            })?;
            // Once more into the same gradients, which must add up.
            pull_back();
            worst = worst.max(self.pulled_back(what, &flow, &pulled, x, dx, &grads)?);
        }
        Ok((reached, worst))
    }

    /// Compares what `pull_back` gave, run twice into the same gradients, with autodiff.
    fn pulled_back(
        &self,
        side: &str,
        flow: &F,
        pulled: &Pulled<D>,
        x: Tensor<D>,
        dx: Tensor<D>,
        grads: &GradientsParams,
    ) -> Result<f64, LawViolation> {
        let compare = |what: &str, got: &[f64], expected: &[f64], tolerance| {
            let what = format!("{what}, pulled back {side},");
            self.court.compare(Law::PullBack, &what, got, expected, tolerance)
        };
        compare("x", &host::to_f64(x), &host::to_f64(self.x.clone()), self.tolerances.round_trip)?;
        let tolerance = self.tolerances.gradients;
        let mut worst = compare("the gradient of x", &host::to_f64(dx), &pulled.dx, tolerance)?;
        for ((path, expected), (_, got)) in pulled.grads.iter().zip(visit::gradients(flow, grads)) {
            let got = match (got, expected) {
                (Some(got), _) => got,
                (None, None) => continue,
                (None, Some(expected)) => vec![0.0; expected.len()],
            };
            let half: Vec<f64> = got.iter().map(|value| value / 2.0).collect();
            let zeros = vec![0.0; half.len()];
            let expected = expected.as_ref().unwrap_or(&zeros);
            let what = format!("the gradient of {path}");
            worst = worst.max(compare(&what, &half, expected, tolerance)?);
        }
        Ok(worst)
    }

    /// Plain autodiff from random gradients of the outputs, to the parameters and to `x`.
    fn pulled(&self, flow: &F, x: Tensor<D>) -> Pulled<D> {
        self.by_autodiff(flow, Tensor::from_inner(x).require_grad())
    }

    /// [`pulled`](Self::pulled) from `x` as it is wrapped.
    fn by_autodiff(&self, flow: &F, x: Tensor<D>) -> Pulled<D> {
        let (z, log_det) = flow.forward(x.clone());
        let (device, dtype) = (self.x.device(), self.x.dtype());
        let dz = inputs(z.dims(), self.seed ^ 2, &device, dtype);
        let dlog_det = inputs(log_det.dims(), self.seed ^ 3, &device, dtype);
        let loss = (z.clone() * Tensor::from_inner(dz.clone())).sum()
            + (log_det.clone() * Tensor::from_inner(dlog_det.clone())).sum();
        let mut dx = vec![0.0; x.dims().iter().product()];
        let mut grads = GradientsParams::new();
        // Without parameters, a loss on a batch that asks for no gradient has none.
        if loss.is_tracked() {
            let mut tape = loss.backward();
            if let Some(grad) = x.grad_remove(&mut tape) {
                dx = host::to_f64(grad);
            }
            collect(&mut tape, flow, &mut grads);
        }
        let grads = visit::gradients(flow, &grads);
        let log_det = host::to_f64(log_det.inner());
        Pulled { z: z.inner(), log_det, dz, dlog_det, dx, grads }
    }

    fn finite(&self, scale: f64) -> Result<(), LawViolation> {
        let at = |what: &str, values: &[f64]| {
            let bad = values.iter().filter(|value| !value.is_finite()).count();
            self.court.require(Law::Finite, bad == 0, || {
                format!("{bad} of {} values of {what} are not, at {scale:e} times x", values.len())
            })
        };
        let x = self.x.clone() * scale;
        let pulled = self.pulled(&self.flow.clone().train(), x);
        at("z", &host::to_f64(pulled.z.clone()))?;
        at("log_det", &pulled.log_det)?;
        at("the gradient of x", &pulled.dx)?;
        for (path, grad) in &pulled.grads {
            at(&format!("the gradient of {path}"), grad.as_deref().unwrap_or(&[]))?;
        }
        at("inverse(forward(x))", &host::to_f64(self.flow.inverse(pulled.z.clone())))?;
        let z = inputs(pulled.z.dims(), self.seed ^ 1, &pulled.z.device(), pulled.z.dtype());
        at("inverse(z)", &host::to_f64(self.flow.inverse(z * scale)))
    }

    fn initialize(&self) -> Result<(), LawViolation> {
        // Mixtures of the batch and its reverse: inputs that the flow is defined on, and enough of
        // them for the moments that an initialization divides by to be of the order of one.
        let reverse = self.x.clone().flip([0]);
        let mixture = |weight: f64| self.x.clone() * weight + reverse.clone() * (1.0 - weight);
        let weights = (0..INITIALIZATION_COPIES).map(|i| i as f64 / INITIALIZATION_COPIES as f64);
        let batch = Tensor::cat(weights.map(mixture).collect(), 0);
        let (flow, z) = self.flow.clone().data_pass(batch.clone(), Pass::Initialize);
        if let Some(layer) = waiting_for_data(&flow) {
            let detail = format!(
                "{layer} still waits for its first batch after initialize; write #[derive(Flow)] on a \
                 struct or enum of flows, or hand the batch on to it in data_pass"
            );
            return Err(self.court.violation(Law::Initialize, detail));
        }
        let tolerance = self.tolerances.agreement * INITIALIZATION_GAIN;
        let compare = |what, got: Tensor<D>, expected: Tensor<D>| {
            let (got, expected) = (host::to_f64(got), host::to_f64(expected));
            self.court.compare(Law::Initialize, what, &got, &expected, tolerance)
        };
        let (_, by_name) = self.flow.clone().initialize(batch.clone());
        compare(
            "what initialize, not to be overridden, does instead of data_pass",
            by_name,
            z.clone(),
        )?;
        compare("the batch that initialize returns", z, flow.forward(batch).0)?;
        // Another batch, other moments: an initialized flow must not look at them. Of two
        // samples, as one has no variance.
        let (again, _) = flow.clone().initialize(self.x.clone().narrow(0, 0, 2));
        compare(
            "forward(x) after a second initialize",
            again.forward(self.x.clone()).0,
            flow.forward(self.x.clone()).0,
        )?;
        let (observed, z) = flow.data_pass(self.x.clone(), Pass::Observe);
        compare(
            "the batch that an observing data_pass returns",
            z,
            observed.forward(self.x.clone()).0,
        )?;
        Ok(())
    }
}

/// Outputs of one pass with the gradients that autodiff pulls back.
struct Pulled<const D: usize> {
    z: Tensor<D>,
    log_det: Vec<f64>,
    dz: Tensor<D>,
    dlog_det: Tensor<1>,
    dx: Vec<f64>,
    grads: Vec<(String, Option<Vec<f64>>)>,
}
