//! The laws of a stack with its priors.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::report::{Court, Law, LawViolation, Report, Tolerances};
use super::visit;
use crate::flow::{Flow, collect};
use crate::host;
use crate::prior::{Prior, SplitPrior};
use crate::stack::FlowStack;
use crate::training::reversible;

/// Samples drawn.
const NUM_SAMPLES: usize = 3;

/// Checks what a stack adds to its map: `decode(encode(x)) = x`, exact flattening of the latents, a
/// density that is the sum of its terms, repeatable and finite samples, and gradients of `ln p(x)`
/// that reach every trainable parameter, the priors' included, the same by reversible
/// backpropagation as by autodiff, whether the batch is plain or on the autodiff device.
///
/// The parameters are taken as they are: see [`move_parameters`](super::move_parameters). `layers` is
/// the number of layers after each other, which widens the tolerances.
///
/// # Errors
/// The first law that is broken.
pub fn check_density<const D: usize, F, P, S>(
    stack: &FlowStack<D, F, P, S>,
    x: Tensor<D>,
    layers: usize,
) -> Result<Report, LawViolation>
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    let court = Court::of::<FlowStack<D, F, P, S>>();
    let tolerances = Tolerances::of(x.dtype()).times(layers);
    let mut report = Report::default();

    let (latents, log_det) = stack.encode(x.clone());
    report.round_trip = court.compare(
        Law::RoundTrip,
        "decode(encode(x))",
        &host::to_f64(stack.decode(latents.clone())),
        &host::to_f64(x.clone()),
        tolerances.round_trip,
    )?;
    let rows = latents.flatten();
    for (part, again) in latents.parts().iter().zip(stack.unflatten(rows).into_parts()) {
        let same = part.dims() == again.dims() && host::to_f64(part.clone()) == host::to_f64(again);
        court.require(Law::Density, same, || {
            "unflatten(flatten(latents)) is not what it was".into()
        })?;
    }
    report.log_det = court.compare(
        Law::LogDet,
        "the log-determinant of encode",
        &host::to_f64(log_det),
        &host::to_f64(stack.log_det(x.clone())),
        tolerances.agreement,
    )?;
    let log_prob = host::to_f64(stack.log_prob(x.clone()));
    let mut sum = vec![0.0; log_prob.len()];
    for term in stack.log_prob_terms(x.clone()) {
        for (sum, term) in sum.iter_mut().zip(host::to_f64(term)) {
            *sum += term;
        }
    }
    court.compare(Law::Density, "log_prob", &log_prob, &sum, tolerances.agreement)?;

    let draw = |temperature| {
        let mut rng = StdRng::seed_from_u64(0);
        stack.sample_with(NUM_SAMPLES, temperature, &mut rng)
    };
    for temperature in [0.0, 0.7, 1.0] {
        let samples = draw(temperature);
        let mut shape = x.dims();
        shape[0] = NUM_SAMPLES;
        court.require(Law::Density, samples.dims() == shape, || {
            format!("samples have shape {:?}, not {shape:?}", samples.dims())
        })?;
        let (samples, again) = (host::to_f64(samples), host::to_f64(draw(temperature)));
        court.require(Law::Density, samples == again, || {
            "one seed gives two different samples".into()
        })?;
        court.require(Law::Finite, samples.iter().all(|value| value.is_finite()), || {
            format!("samples at temperature {temperature}")
        })?;
    }

    let model = stack.clone().train();
    let (reversible_loss, grads) = reversible::gradients(&model, x.clone());
    let (loss, expected) = (host::to_f64(reversible_loss), visit::gradients(&model, &grads));
    report.parameters = expected.len();
    // As a loop of one's own may have the batch: on the autodiff device, or plain.
    for (wrapped, law, x) in
        [("tracked", Law::PullBack, Tensor::from_inner(x.clone())), ("plain", Law::OwnLoop, x)]
    {
        let own = model.log_prob(x).mean().neg();
        let value = host::to_f64(own.clone().inner());
        let what = format!("the loss of a {wrapped} batch");
        court.compare(law, &what, &value, &loss, tolerances.agreement)?;
        if !own.is_tracked() {
            let none = format!("the loss of a {wrapped} batch has no gradient");
            court.require(law, expected.is_empty(), || none)?;
            continue;
        }
        let mut grads = GradientsParams::new();
        collect(&mut own.backward(), &model, &mut grads);
        for ((path, own), (_, expected)) in visit::gradients(&model, &grads).iter().zip(&expected) {
            let none = || {
                let detail = format!("{path} gets no gradient from a {wrapped} batch");
                court.violation(Law::Gradients, detail)
            };
            let own = own.as_ref().ok_or_else(none)?;
            let expected = expected.as_ref().ok_or_else(none)?;
            court.require(Law::Gradients, own.iter().any(|&value| value != 0.0), || {
                format!("the gradient of {path} is zero in all {} entries", own.len())
            })?;
            let what = format!("the gradient of {path} from a {wrapped} batch");
            let error = court.compare(law, &what, expected, own, tolerances.gradients)?;
            report.pull_back = report.pull_back.max(error);
        }
    }
    Ok(report)
}
