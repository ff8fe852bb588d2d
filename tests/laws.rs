//! Every flow of the crate keeps every law, in f32 and f64, on every compiled-in device.

mod fixtures;

use burn::module::ModuleVisitor;
use burn::optim::GradientsParams;
use burn_flows::testing::{Law, check_density, check_laws, check_record, to_f64};
use fixtures::*;

fn check<const D: usize, F: Flow<D>>(
    shape: [usize; D],
    laws: Laws,
    make: impl Fn(&mut StdRng, &Device) -> Result<F>,
) {
    for (name, device, dtype) in devices() {
        let in_dtype = |flow: F| if dtype == DType::F64 { to_f64(flow) } else { flow };
        let flow = in_dtype(build(1, &device, &make));
        let x = inputs(shape, 2, &device, dtype);
        match laws.check(&flow, x.clone()) {
            Ok(report) => println!("{name}: {report}"),
            Err(violation) => panic!("{name}: {violation}"),
        }
        // Into a flow from another seed: what is kept outside of the parameters would differ.
        let fresh = in_dtype(build(3, &device, &make));
        let flow = move_parameters(flow, 4, 0.1);
        if let Err(violation) = check_record(&flow, fresh, x) {
            panic!("{name}: {violation}");
        }
    }
}

macro_rules! test_each {
    ($($name:ident, $shape:expr, $laws:expr, |$rng:ident, $device:ident| $flow:expr;)*) => {$(
        #[test]
        fn $name() {
            check($shape, $laws, |$rng: &mut StdRng, $device: &Device| Ok($flow));
        }
    )*};
}

flows!(test_each);

/// Every stack of the list with its priors.
macro_rules! density_each {
    ($($name:ident, $shape:expr, |$rng:ident, $device:ident| $stack:expr;)*) => {$(
        #[test]
        fn $name() {
            for (name, device, dtype) in devices() {
                let make = |$rng: &mut StdRng, $device: &Device| Ok($stack);
                let stack = move_parameters(build(1, &device, make), 5, 0.1);
                let stack = if dtype == DType::F64 { to_f64(stack) } else { stack };
                match check_density(&stack, inputs($shape, 2, &device, dtype), 1) {
                    Ok(report) => println!("{name}: {report}"),
                    Err(violation) => panic!("{name}: {violation}"),
                }
            }
        }
    )*};
}

density_each! {
    density_of_vectors, [16, 4], |rng, device| vector_stack(4, rng, device)?;
    density_of_two_vector_levels, [16, 5], |rng, device| split_vector_stack(rng, device)?;
    density_of_glow_1_level, [3, 1, 4, 2], |rng, device| glow([1, 4, 2], 1).init(rng, device)?;
    density_of_glow_2_levels, [3, 3, 4, 8], |rng, device| glow([3, 4, 8], 2).init(rng, device)?;
    density_of_glow_3_levels, [3, 1, 8, 8], |rng, device| glow([1, 8, 8], 3).init(rng, device)?;
    density_of_glow_additive, [3, 3, 4, 4], |rng, device| glow([3, 4, 4], 2).with_coupling(GlowCouplingKind::Additive).with_mixing(GlowMixingKind::Conv1x1Plu).init(rng, device)?;
    density_of_glow_plain_priors, [3, 1, 4, 4], |rng, device| glow([1, 4, 4], 2).with_learned_top(false).with_conditional_split(false).init(rng, device)?;
}

/// Gradients through `inverse` (of a loss on samples) reach the weight: with `w` the gradient that they
/// give to `z`, those of the parameters are those of `-(forward(x) * w).sum()`, by the chain rule on
/// `forward(inverse(z)) = z`.
fn check_gradients_through_inverse<const D: usize, F: Flow<D>>(
    shape: [usize; D],
    make: impl Fn(&mut StdRng, &Device) -> Result<F>,
) {
    for (name, device, dtype) in devices() {
        let flow = move_parameters(build(1, &device, &make), 2, 0.1);
        let flow = if dtype == DType::F64 { to_f64(flow) } else { flow }.train();
        let z = Tensor::from_inner(inputs(shape, 3, &device, dtype)).require_grad();
        let x = flow.inverse(z.clone());
        let direction = inputs(shape, 4, &device, dtype);
        let mut tape = (x.clone() * Tensor::from_inner(direction)).sum().backward();
        let w = z.grad_remove(&mut tape).expect("z is tracked");
        let got = GradientsParams::from_module(&mut tape, &flow);
        let loss = (flow.forward(Tensor::from_inner(x.inner())).0 * Tensor::from_inner(w)).sum();
        let expected = GradientsParams::from_grads(loss.neg().backward(), &flow);

        struct Compare<'a> {
            got: &'a GradientsParams,
            expected: &'a GradientsParams,
            worst: f64,
        }
        impl ModuleVisitor for Compare<'_> {
            fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
                if let Some(expected) = self.expected.get::<N>(param.id) {
                    let got = self.got.get::<N>(param.id).expect("a gradient");
                    let largest = expected.clone().abs().max().into_scalar::<f64>();
                    let error = (got - expected).abs().max().into_scalar::<f64>();
                    self.worst = self.worst.max(error / (1.0 + largest));
                }
            }
        }
        let mut compare = Compare { got: &got, expected: &expected, worst: 0.0 };
        flow.visit(&mut compare);
        assert!(got.len() == expected.len() && !got.is_empty(), "{name}: {} gradients", got.len());
        let tolerance = if dtype == DType::F64 { 1e-12 } else { 1e-5 };
        assert!(compare.worst < tolerance, "{name}: {}", compare.worst);
    }
}

#[test]
fn gradients_through_the_inverse_of_a_plain_conv1x1() {
    check_gradients_through_inverse([3, 4, 2, 1], |rng, device| {
        InvertibleConv1x1::plain(4, rng, device)
    });
}

#[test]
fn gradients_through_the_inverse_of_a_plu_conv1x1() {
    check_gradients_through_inverse([3, 4], |rng, device| InvertibleConv1x1::plu(4, rng, device));
}

#[test]
fn gradients_through_the_inverse_of_a_stack() {
    check_gradients_through_inverse([3, 1, 4, 8], |rng, device| {
        glow([1, 4, 8], 2).init(rng, device)
    });
}

/// Flows that break one law each: the check must see it, or it proves nothing.
mod broken {
    use super::*;
    use burn_flows::testing::LawViolation;
    use burn_flows::training::Tape;
    use burn_flows::{At, Pass};

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Fault {
        Inverse,
        LogDet,
        LogDetAlone,
        Batch,
        PullBack,
        Unreached,
        Overflow,
        Record,
        Initialize,
    }

    /// `z = x exp(s)`, with a fault.
    #[derive(Module, Debug)]
    struct Broken {
        log_scale: Param<Tensor<1>>,
        spare: Param<Tensor<1>>,
        #[module(skip)]
        fault: Fault,
        #[module(skip)]
        hidden: f64,
    }

    impl Flow<2> for Broken {
        fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
            let [batch, features] = x.dims();
            let mut log_det = self.log_scale.val().expand([batch]) * features as f64;
            let mut z = x.clone() * self.log_scale.val().exp().unsqueeze();
            match self.fault {
                Fault::LogDet => log_det = log_det * 1.01,
                Fault::Batch => z = z + x.mean().unsqueeze(),
                Fault::Overflow => z = z.clone() + (z * 1e36) * 0.0,
                Fault::Record => z = z + self.hidden,
                _ => {}
            }
            if self.fault != Fault::Unreached {
                z = z + self.spare.val().unsqueeze();
            }
            (z, log_det)
        }

        fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
            let z = match self.fault {
                Fault::Unreached => z,
                Fault::Record => z - self.hidden - self.spare.val().unsqueeze(),
                _ => z - self.spare.val().unsqueeze(),
            };
            let x = z * self.log_scale.val().neg().exp().unsqueeze();
            if self.fault == Fault::Inverse { x + 1e-3 } else { x }
        }

        fn log_det(&self, x: Tensor<2>) -> Tensor<1> {
            let log_det = self.forward(x).1;
            if self.fault == Fault::LogDetAlone { log_det + 0.01 } else { log_det }
        }

        fn data_pass(mut self, x: Tensor<2>, _pass: Pass) -> (Self, Tensor<2>) {
            if self.fault == Fault::Initialize {
                let mean = x.clone().mean();
                self.spare = self.spare.map(|_| mean.neg());
            }
            let z = self.forward(x).0;
            (self, z)
        }

        fn pull_back(
            &self,
            at: At<2>,
            dz: Tensor<2>,
            _dlog_det: Tensor<1>,
            tape: &mut Tape,
            grads: &mut GradientsParams,
        ) -> (Tensor<2>, Tensor<2>) {
            let x = tape.input(at, |z| self.valid().inverse(z));
            let valid = self.valid();
            let scaled = dz.clone() * valid.log_scale.val().exp().unsqueeze();
            if self.fault != Fault::PullBack {
                let features = x.dims()[1] as f64;
                let of_scale = (scaled.clone() * x.clone()).sum() + _dlog_det.sum() * features;
                let of_spare = dz.sum();
                for (param, grad) in [(&self.log_scale, of_scale), (&self.spare, of_spare)] {
                    let before = grads.remove::<1>(param.id);
                    let sum = before.map_or(grad.clone(), |before| before + grad);
                    grads.register(param.id, sum);
                }
            }
            (x, scaled)
        }
    }

    fn verdict(fault: Fault) -> LawViolation {
        let (_, device, _) = devices().swap_remove(0);
        let broken = Broken {
            log_scale: Param::from_data([0.0], &device),
            spare: Param::from_data([0.0], &device),
            fault,
            hidden: 0.0,
        };
        let x = inputs([3, 2], 1, &device, DType::F32);
        if fault == Fault::Record {
            let fresh = Broken { hidden: 1.0, ..broken.clone() };
            return check_record(&broken, fresh, x).unwrap_err();
        }
        check_laws(&broken, x).unwrap_err()
    }

    #[test]
    fn every_fault_is_seen() {
        for (fault, law) in [
            (Fault::Inverse, Law::RoundTrip),
            (Fault::LogDet, Law::Jacobian),
            (Fault::LogDetAlone, Law::LogDet),
            (Fault::Unreached, Law::Gradients),
            (Fault::PullBack, Law::PullBack),
            (Fault::Overflow, Law::Finite),
            (Fault::Record, Law::Record),
            (Fault::Initialize, Law::Initialize),
        ] {
            let violation = verdict(fault);
            assert_eq!(violation.law, law, "{fault:?}: {violation}");
            assert!(
                violation.to_string().starts_with("Broken breaks the law that "),
                "{violation}"
            );
        }
        // The mean of the batch enters the inverse's error as well as the batch law: whichever
        // comes first, it is not accepted.
        let violation = verdict(Fault::Batch);
        assert!(matches!(violation.law, Law::RoundTrip | Law::Batch), "{violation}");
    }
}
