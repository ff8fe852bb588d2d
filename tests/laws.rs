//! Every flow of the crate keeps every law, in f32 and f64, on every compiled-in device.

mod common;
mod fixtures;

use burn::module::Param;
use burn::optim::GradientsParams;
use burn_flows::testing::{Law, Tolerances, check_density, check_laws, check_record, to_f64};
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
        let flow = laws.moved(flow);
        if let Err(violation) = check_record(&flow, fresh, x.clone()) {
            panic!("{name}: {violation}");
        }
        // Not any latent: one that is far from all data may have no inverse in f32.
        let z = flow.forward(x).0;
        check_gradients_through_inverse(&name, &flow, z, Tolerances::of(dtype).gradients);
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
    density_of_glow_plu, [3, 1, 4, 8], |rng, device| glow([1, 4, 8], 2).with_mixing(GlowMixingKind::Conv1x1Plu).init(rng, device)?;
    density_of_a_mixture, [16, 4], |rng, device| FlowStack::<2, _, _>::single(maf(4, None, ScaleMap::default(), device)?, GaussianMixture::new(3, 4, rng, device)?, &[4])?;
    density_of_full_mixture, [16, 3], |rng, device| FlowStack::<2, _, _>::single(maf(3, None, ScaleMap::default(), device)?, FullMixture::new(3, 3, rng, device)?, &[3])?;
    density_of_one_full_feature, [16, 1], |rng, device| FlowStack::<2, _, _>::single(DiagonalScaling::new(1, device)?, FullMixture::new(2, 1, rng, device)?, &[1])?;
    density_of_context_mixture, [16, 3], |_rng, device| FlowStack::<2, _, _>::single(DiagonalScaling::new(3, device)?, context_mixture(device)?, &[3])?;
    density_of_diagonal_student_t, [16, 4], |_rng, device| FlowStack::<2, _, _>::single(maf(4, None, ScaleMap::default(), device)?, DiagonalStudentT::new(4, device)?, &[4])?;
    density_of_per_feature, [16, 2], |_rng, device| FlowStack::<2, _, _>::single(Elementwise::new(RationalQuadraticConfig::new(4, 9.0).init()?, 2, device)?, PerFeature::new(vec![FeatureDensity::Normal(2.0), FeatureDensity::Uniform(-9.0, 9.0)])?, &[2])?;
    density_of_student_t, [16, 4], |_rng, device| FlowStack::<2, _, _>::single(spline_maf(4, device)?, StudentT::new(4.0)?, &[4])?;
    density_of_nice, [16, 5], |_rng, device| NiceConfig::new(5, vec![HIDDEN]).init(device)?;
    density_of_real_nvp, [3, 1, 4, 4], |_rng, device| initialized(RealNvpConfig::new([1, 4, 4], 2, 4, 1).with_logit(None, LogitForm::Code).init(device)?, [8, 1, 4, 4], device);
    density_of_real_nvp_vectors, [16, 4], |_rng, device| initialized(RealNvpVectorConfig::new(4, 3, vec![HIDDEN]).with_batch_norm(true).init(device)?, [64, 4], device);
    density_of_glow_of_classes, [3, 1, 4, 4], |rng, device| given::<2, _>(glow([1, 4, 4], 2).with_num_classes(3).init(rng, device)?, device)?;
    density_of_glow_class_splits, [3, 1, 4, 4], |rng, device| given::<2, _>(glow([1, 4, 4], 2).with_num_classes(3).with_class_splits(true).init(rng, device)?, device)?;
    density_of_glow_class_priors, [3, 1, 4, 4], |rng, device| given::<2, _>(glow([1, 4, 4], 2).with_num_classes(3).with_class_splits(true).with_conditional_split(false).init(rng, device)?, device)?;
    density_of_glow_plain_priors, [3, 1, 4, 4], |rng, device| glow([1, 4, 4], 2).with_learned_top(false).with_conditional_split(false).init(rng, device)?;
}

/// Gradients through `inverse` (of a loss on samples) reach the parameters, whether `z` is tracked or
/// plain: with `w` the gradient that they give to `z`, those of the parameters are those of
/// `-(forward(x) * w).sum()`, by the chain rule on `forward(inverse(z)) = z`.
fn check_gradients_through_inverse<const D: usize, F: Flow<D>>(
    name: &str,
    flow: &F,
    z: Tensor<D>,
    tolerance: f64,
) {
    let flow = flow.clone().train();
    let leaf = z.clone().autodiff().require_grad();
    let x = flow.inverse(leaf.clone());
    let direction = inputs(x.dims(), 4, &z.device(), z.dtype()).autodiff();
    let mut tape = (x.clone() * direction.clone()).sum().backward();
    let w = leaf.grad_remove(&mut tape).expect("z is tracked");
    let loss = (flow.forward(x.inner()).0 * w.autodiff()).sum().neg();
    if !loss.is_tracked() {
        return; // nothing is trained
    }
    let expected = GradientsParams::from_grads(loss.backward(), &flow);
    let expected = common::gradients(&flow, &expected);
    let loss = (flow.inverse(z) * direction).sum();
    let plain = GradientsParams::from_grads(loss.backward(), &flow);
    for got in [GradientsParams::from_grads(tape, &flow), plain] {
        let got = common::gradients(&flow, &got);
        // What the parameters of a prior have, and what only moves `z`, has no gradient on one road.
        for (path, got) in &got {
            let zeros = vec![0.0; got.len()];
            let of_path = expected.iter().find(|(other, _)| other == path);
            let expected = of_path.map_or(&zeros, |(_, expected)| expected);
            let largest = expected.iter().fold(1.0, |size: f64, value| size.max(value.abs()));
            for (got, expected) in got.iter().zip(expected) {
                let error = (got - expected).abs() / largest;
                assert!(error < tolerance, "{name}, {path}: {got} is not {expected}");
            }
        }
        let missing = expected.iter().find(|(path, expected)| {
            got.iter().all(|(other, _)| other != path) && expected.iter().any(|&value| value != 0.0)
        });
        assert!(missing.is_none(), "{name}: no gradient through inverse at {missing:?}");
    }
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
