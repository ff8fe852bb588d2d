//! Flows made of flows by `#[derive(Flow)]`, beside the same ones as tuples; priors made of priors.

mod common;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use burn_flows::conditioner::{Conditioner, GlowNet, GlowNetConfig, Mlp, MlpConfig};
use burn_flows::coupling::{AffineCoupling, AffineOrder, Coupling, Mask, ScaleMap};
use burn_flows::linear::{DiagonalScaling, InvertibleConv1x1, Permutation};
use burn_flows::norm::{ActNorm, BatchNorm, Moments, RunningMoments};
use burn_flows::prior::{ConditionalNormal, Prior, SplitPrior, StandardNormal};
use burn_flows::reshape::Squeeze;
use burn_flows::testing::{Law, check_laws, inputs, move_parameters, to_f64};
use burn_flows::training::{Memory, Schedule, Tape, Trainer};
use burn_flows::{At, Flow, FlowStack, Pass};
use common::{flat, gradients, host};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const MEMORIES: [Memory; 3] = [Memory::Reversible, Memory::Checkpoint { every: 2 }, Memory::Stored];

/// One of several, of every rank.
#[derive(Module, Debug, Flow)]
#[allow(clippy::large_enum_variant)]
enum Mix {
    Conv(InvertibleConv1x1),
    Permute(Permutation),
}

/// A Glow step, with a value and a module that are no part of the map.
#[derive(Module, Debug, Flow)]
struct Step<C> {
    norm: ActNorm,
    #[flow(skip)]
    spare: Option<ActNorm>,
    mix: Mix,
    couple: AffineCoupling<C>,
    #[module(skip)]
    index: usize,
}

type Parts<C> = (ActNorm, Mix, AffineCoupling<C>);

fn parts(device: &Device) -> Parts<GlowNet> {
    device.seed(1);
    let mask = Mask::first_half();
    let net = GlowNetConfig::new(2, 6, 4).init(device).unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    let parts = (
        ActNorm::new(4, device).unwrap(),
        Mix::Conv(InvertibleConv1x1::plain(4, &mut rng, device).unwrap()),
        Coupling::affine_ordered(
            net,
            mask,
            ScaleMap::Sigmoid,
            AffineOrder::ShiftThenScale,
            4,
            device,
        )
        .unwrap(),
    );
    move_parameters(parts, 3, 0.1)
}

fn step<C: Module>((norm, mix, couple): Parts<C>) -> Step<C> {
    Step { norm, spare: None, mix, couple, index: 7 }
}

/// Everything that a flow does with a batch, to the last bit.
#[derive(Debug, PartialEq)]
struct Trace {
    z: Vec<f64>,
    log_det: Vec<f64>,
    log_det_alone: Vec<f64>,
    back: Vec<f64>,
    on_tape: (usize, usize),
    pulled: [Vec<f64>; 2],
    gradients: Vec<Vec<f64>>,
}

fn trace<const D: usize, F: Flow<D>>(flow: &F, x: Tensor<D>, memory: Memory) -> Trace {
    let mut tape = Tape::new(memory).measuring(0);
    let (z, log_det) = flow.forward_on(x.clone(), &mut tape);
    let on_tape = (tape.num_layers(), tape.num_bytes());
    let training = flow.clone().train();
    let mut grads = GradientsParams::new();
    let (at, dz) = (At::Output(z.clone()), z.clone() * 0.3);
    let (back, dx) = training.pull_back(at, dz, log_det.ones_like(), &mut tape, &mut grads);
    Trace {
        z: flat(z.clone()),
        log_det: flat(log_det),
        log_det_alone: flat(flow.log_det(x)),
        back: flat(flow.inverse(z)),
        on_tape,
        pulled: [flat(back), flat(dx)],
        gradients: gradients(&training, &grads).into_iter().map(|(_, values)| values).collect(),
    }
}

#[test]
fn a_derived_struct_is_the_tuple_of_its_fields() {
    let device = host();
    let x: Tensor<4> = inputs([5, 4, 4, 4], 1, &device, DType::F32) * 3.0 + 1.0;
    let (tuple, _) = parts(&device).initialize(x.clone());
    let (step, _) = step(parts(&device)).initialize(x.clone());
    for memory in MEMORIES {
        let expected = trace(&tuple, x.clone(), memory);
        // The tape sees the three parts, not one layer.
        assert_eq!(expected.on_tape.0, 3);
        assert_eq!(trace(&step, x.clone(), memory), expected, "{memory}");
        let (many, tuples) = (vec![step.clone(), step.clone()], [tuple.clone(), tuple.clone()]);
        assert_eq!(trace(&many, x.clone(), memory), trace(&tuples, x.clone(), memory), "{memory}");
    }
    assert_eq!(step.index, 7);
}

#[test]
fn initialization_reaches_the_fields() {
    let device = host();
    let x: Tensor<4> = inputs([16, 4, 4, 4], 1, &device, DType::F32) * 3.0 + 1.0;
    let mut step = step(parts(&device));
    step.spare = Some(ActNorm::new(4, &device).unwrap());
    let (step, _) = step.initialize(x);
    let net = &step.couple.conditioner;
    let norms = [Some(&step.norm), net.norm1.as_ref(), net.norm2.as_ref()];
    assert!(norms.into_iter().flatten().all(ActNorm::is_initialized));
    // Not part of the map.
    assert!(!step.spare.unwrap().is_initialized());
}

#[test]
fn a_derived_struct_keeps_the_laws_in_every_rank_it_has() {
    let device = host();
    let x: Tensor<4> = inputs([3, 4, 2, 2], 1, &device, DType::F64);
    check_laws(&to_f64(step(parts(&device))), x).unwrap();

    #[derive(Module, Debug, Flow)]
    struct Plain {
        scale: DiagonalScaling,
        mix: Mix,
    }
    let plain = || {
        let permutation = Permutation::reverse(3, &device).unwrap();
        Plain { scale: DiagonalScaling::new(3, &device).unwrap(), mix: Mix::Permute(permutation) }
    };
    check_laws(&plain(), inputs([3, 3], 1, &device, DType::F32)).unwrap();
    check_laws(&plain(), inputs([3, 3, 2], 1, &device, DType::F32)).unwrap();
    check_laws(&plain(), inputs([2, 3, 2, 1], 1, &device, DType::F32)).unwrap();
    check_laws(&plain(), inputs([2, 3, 1, 2, 1], 1, &device, DType::F32)).unwrap();
}

/// `latent_shape` and `check` are those of the parts.
#[test]
fn shapes_and_checks_come_from_the_fields() {
    #[derive(Module, Debug, Flow)]
    struct Level {
        squeeze: Squeeze,
        mix: Mix,
    }
    let device = host();
    let level = |weight| Level {
        squeeze: Squeeze::new(),
        mix: Mix::Conv(InvertibleConv1x1::from_weight(weight)),
    };
    let sound = level(Tensor::eye(4, &device));
    assert_eq!(sound.latent_shape([2, 1, 4, 6]).unwrap(), [2, 4, 2, 3]);
    assert!(sound.latent_shape([2, 1, 3, 6]).is_err());
    assert!(sound.check().is_ok());
    assert!(level(Tensor::ones([4, 4], &device)).check().is_err());
}

/// What the fields do by hand, its parts never see.
#[derive(Module, Debug)]
struct ByHand {
    norm: ActNorm,
    couple: AffineCoupling<Mlp>,
}

impl Flow<2> for ByHand {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let (x, of_norm) = self.norm.forward(x);
        let (z, of_couple) = self.couple.forward(x);
        (z, of_norm + of_couple)
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.norm.inverse(self.couple.inverse(z))
    }
}

#[test]
fn a_struct_by_hand_that_is_not_initialized_breaks_the_laws() {
    let device = host();
    let net = MlpConfig::new(1, vec![5], 2).init(&device).unwrap();
    let map = ScaleMap::default();
    let flow = ByHand {
        norm: ActNorm::new(2, &device).unwrap(),
        couple: Coupling::affine(net, Mask::first_half(), map, 2, &device).unwrap(),
    };
    let x = inputs([4, 2], 1, &device, DType::F32);
    let violation = check_laws(&flow, x.clone()).unwrap_err();
    assert_eq!(violation.law, Law::Initialize);
    assert!(
        violation.to_string().contains("ActNorm at norm still waits for its first batch"),
        "{violation}"
    );
    // Wherever it is, and whatever it is: running moments as well.
    let violation = check_laws(&vec![flow], x.clone()).unwrap_err();
    assert!(violation.to_string().contains("ActNorm at 0.norm still waits"), "{violation}");
    let lazy = Lazy { norm: BatchNorm::new(2, &device).unwrap() };
    let violation = check_laws(&lazy, x).unwrap_err();
    assert!(
        violation.to_string().contains("RunningMoments at norm.moments still waits"),
        "{violation}"
    );
}

#[derive(Module, Debug)]
struct Lazy {
    norm: BatchNorm,
}

impl Flow<2> for Lazy {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        self.norm.forward(x)
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        self.norm.inverse(z)
    }
}

/// An override of `initialize` that compositions would never call.
#[test]
fn initialize_is_not_to_be_overridden() {
    #[derive(Module, Debug)]
    struct Old {
        norm: ActNorm,
    }
    impl Flow<2> for Old {
        fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
            self.norm.forward(x)
        }

        fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
            self.norm.inverse(z)
        }

        fn initialize(self, x: Tensor<2>) -> (Self, Tensor<2>) {
            let (norm, z) = self.norm.initialize(x);
            (Self { norm }, z)
        }
    }
    let device = host();
    let old = Old { norm: ActNorm::new(2, &device).unwrap() };
    let violation = check_laws(&old, inputs([4, 2], 1, &device, DType::F32)).unwrap_err();
    assert_eq!(violation.law, Law::Initialize);
}

/// A layer with running statistics of someone else's, which says so to nobody.
#[derive(Module, Debug)]
struct Centre {
    moments: RunningMoments,
}

impl Flow<2> for Centre {
    fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let zeros = Tensor::zeros([x.dims()[0]], (&x.device(), x.dtype()));
        (x - self.moments.mean.val().unsqueeze(), zeros)
    }

    fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
        z + self.moments.mean.val().unsqueeze()
    }

    fn data_pass(mut self, x: Tensor<2>, pass: Pass) -> (Self, Tensor<2>) {
        let batch = Moments::of(x.clone());
        self.moments = match pass {
            Pass::Initialize => self.moments.initialize(batch),
            Pass::Observe => self.moments.update(batch),
        };
        let z = self.forward(x).0;
        (self, z)
    }
}

#[test]
fn the_trainer_finds_running_statistics_inside_of_anything() {
    #[derive(Module, Debug, Flow)]
    struct Both {
        centre: Centre,
        scale: DiagonalScaling,
    }
    let device = host();
    let moments = || RunningMoments::new(2, 1.0, 1e-4, &device).unwrap();
    let both = Both {
        centre: Centre { moments: moments() },
        scale: DiagonalScaling::new(2, &device).unwrap(),
    };
    let stack: FlowStack<2, _> = FlowStack::single(both, StandardNormal::new(), &[2]).unwrap();
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-3));
    for seed in 0..2 {
        let x: Tensor<2> = inputs([8, 2], seed, &device, DType::F32) + 5.0;
        trainer.step(x.clone()).unwrap();
        let mean = flat(trainer.model().levels[0].centre.moments.mean.val());
        assert_eq!(mean, flat(Moments::of(x).mean));
    }
}

#[test]
fn tuples_go_to_eight() {
    let device = host();
    let scale = || DiagonalScaling::new(2, &device).unwrap();
    let flow = (scale(), scale(), scale(), scale(), scale(), scale(), scale(), scale());
    let flow = move_parameters(flow, 1, 0.3);
    let x: Tensor<2> = inputs([3, 2], 1, &device, DType::F64);
    check_laws(&to_f64(flow), x).unwrap();
}

#[test]
fn an_empty_composition_is_the_identity() {
    let device = host();
    let none: Vec<ActNorm> = Vec::new();
    let x: Tensor<2> = inputs([3, 2], 1, &device, DType::F32);
    let (z, log_det) = none.forward(x.clone());
    assert_eq!(flat(z), flat(x.clone()));
    assert_eq!(flat(log_det), [0.0; 3]);
    assert_eq!(flat(none.log_det(x.clone())), [0.0; 3]);
    for at in [At::Input(x.clone()), At::Output(x.clone())] {
        let (dz, dlog_det) = (x.clone() * 2.0, Tensor::zeros([3], &device));
        let (tape, grads) = (&mut Tape::default(), &mut GradientsParams::new());
        let (back, dx) = none.pull_back(at, dz.clone(), dlog_det, tape, grads);
        assert_eq!([flat(back), flat(dx)], [flat(x.clone()), flat(dz)]);
    }
}

/// A layer that pushes twice and pops once would take the inputs of others for its own.
#[test]
#[should_panic(expected = "1 layers are left after the backward pass")]
fn a_flow_that_leaves_layers_on_the_tape() {
    #[derive(Module, Debug)]
    struct Twice {
        scale: DiagonalScaling,
    }
    impl Flow<2> for Twice {
        fn forward(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
            self.scale.forward(x)
        }

        fn inverse(&self, z: Tensor<2>) -> Tensor<2> {
            self.scale.inverse(z)
        }

        fn forward_on(&self, x: Tensor<2>, tape: &mut Tape) -> (Tensor<2>, Tensor<1>) {
            tape.push(&x);
            self.scale.forward_on(x, tape)
        }
    }
    let device = host();
    let twice = Twice { scale: DiagonalScaling::new(2, &device).unwrap() };
    let stack: FlowStack<2, _> = FlowStack::single(twice, StandardNormal::new(), &[2]).unwrap();
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-3)).with_memory(Memory::Stored);
    let _ = trainer.step(inputs([4, 2], 1, &device, DType::F32));
}

/// A prior whose methods give what no other would.
#[derive(Module, Debug)]
struct Odd {
    scale: Param<Tensor<1>>,
}

impl SplitPrior<2> for Odd {
    fn log_prob(&self, z: Tensor<2>, _kept: Tensor<2>) -> Tensor<1> {
        z.sum_dim(1).squeeze_dim(1) * 2.0
    }

    fn sample(
        &self,
        shape: [usize; 2],
        kept: Tensor<2>,
        temperature: f64,
        _rng: &mut impl Rng,
    ) -> Tensor<2> {
        Tensor::full(shape, 3.0 * temperature, &kept.device())
    }

    fn standardize(&self, z: Tensor<2>, _kept: Tensor<2>) -> Tensor<2> {
        z * 4.0
    }

    fn unstandardize(&self, noise: Tensor<2>, _kept: Tensor<2>) -> Tensor<2> {
        noise * 5.0
    }

    fn data_pass(mut self, z: Tensor<2>, _kept: Tensor<2>, _pass: Pass) -> Self {
        self.scale = self.scale.map(|scale| scale * 3.0 * z.max());
        self
    }

    fn backward(
        &self,
        z: Tensor<2>,
        kept: Tensor<2>,
        weight: f64,
        _grads: &mut GradientsParams,
    ) -> (Tensor<2>, Tensor<2>) {
        (z * (7.0 * weight), kept * 8.0)
    }
}

#[derive(Module, Debug, SplitPrior)]
enum OddOrNormal {
    Odd(Odd),
    #[allow(dead_code)]
    Normal(StandardNormal),
}

#[test]
fn every_method_of_a_split_prior_is_that_of_the_variant() {
    let device = host();
    let prior = OddOrNormal::Odd(Odd { scale: Param::from_data([1.0], &device) });
    let x = || Tensor::<2>::from_data([[1.0, 2.0]], &device);
    let rng = &mut StdRng::seed_from_u64(0);
    assert_eq!(flat(prior.log_prob(x(), x())), [6.0]);
    assert_eq!(flat(prior.sample([1, 2], x(), 0.5, rng)), [1.5, 1.5]);
    assert_eq!(flat(prior.standardize(x(), x())), [4.0, 8.0]);
    assert_eq!(flat(prior.unstandardize(x(), x())), [5.0, 10.0]);
    let (dz, dkept) = prior.backward(x(), x(), 2.0, &mut GradientsParams::new());
    assert_eq!([flat(dz), flat(dkept)], [[14.0, 28.0], [8.0, 16.0]]);
    match prior.data_pass(x(), x(), Pass::Initialize) {
        OddOrNormal::Odd(odd) => assert_eq!(flat(odd.scale.val()), [6.0]),
        OddOrNormal::Normal(_) => unreachable!("it was odd"),
    }
}

#[test]
fn every_method_of_a_prior_is_that_of_the_variant() {
    #[derive(Module, Debug)]
    struct OddPrior {
        scale: Param<Tensor<1>>,
    }
    impl<const D: usize> Prior<D> for OddPrior {
        fn log_prob(&self, z: Tensor<D>) -> Tensor<1> {
            z.narrow(1, 0, 1).reshape([-1]) * 2.0
        }

        fn sample(
            &self,
            shape: [usize; D],
            temperature: f64,
            _rng: &mut impl Rng,
            device: &Device,
            dtype: DType,
        ) -> Tensor<D> {
            Tensor::full(shape, 3.0 * temperature, (device, dtype))
        }

        fn data_pass(mut self, z: Tensor<D>, _pass: Pass) -> Self {
            self.scale = self.scale.map(|scale| scale * 3.0 * z.max());
            self
        }

        fn backward(&self, z: Tensor<D>, weight: f64, _grads: &mut GradientsParams) -> Tensor<D> {
            z * (7.0 * weight)
        }
    }
    #[derive(Module, Debug, Prior)]
    enum Base {
        Odd(OddPrior),
        #[allow(dead_code)]
        Normal(StandardNormal),
    }
    let device = host();
    let base = Base::Odd(OddPrior { scale: Param::from_data([1.0], &device) });
    let x = || Tensor::<2>::from_data([[1.0, 2.0]], &device);
    let rng = &mut StdRng::seed_from_u64(0);
    assert_eq!(flat(Prior::log_prob(&base, x())), [2.0]);
    assert_eq!(flat(Prior::sample(&base, [1, 2], 0.5, rng, &device, DType::F32)), [1.5, 1.5]);
    let grads = &mut GradientsParams::new();
    assert_eq!(flat(Prior::backward(&base, x(), 2.0, grads)), [14.0, 28.0]);
    // As the prior of a split it is the same.
    let passes = [
        |base: Base, x: Tensor<2>| Prior::data_pass(base, x, Pass::Initialize),
        |base: Base, x: Tensor<2>| SplitPrior::data_pass(base, x.clone(), x, Pass::Initialize),
    ];
    for pass in passes {
        match pass(base.clone(), x()) {
            Base::Odd(odd) => assert_eq!(flat(odd.scale.val()), [6.0]),
            Base::Normal(_) => unreachable!("it was odd"),
        }
    }
}

#[test]
fn initialization_reaches_the_nets_of_split_priors() {
    let device = host();
    let x: Tensor<4> = inputs([16, 4, 4, 4], 1, &device, DType::F32) * 3.0 + 1.0;
    let net = GlowNetConfig::new(2, 6, 4).init(&device).unwrap();
    let levels = vec![Mix::Permute(Permutation::reverse(4, &device).unwrap())];
    let last = Mix::Permute(Permutation::reverse(2, &device).unwrap());
    let levels = levels.into_iter().chain([last]).collect();
    let priors = vec![ConditionalNormal::new(net)];
    let stack: FlowStack<4, _, _, _> =
        FlowStack::new(levels, priors, StandardNormal::new(), &[4, 4, 4]).unwrap();
    let (stack, _) = stack.initialize(x.clone());
    let net = &stack.split_priors[0].conditioner;
    assert!([&net.norm1, &net.norm2].into_iter().flatten().all(ActNorm::is_initialized));
    // From the kept half, which the net sees: a second pass changes nothing.
    let kept = x.flip([1]).narrow(1, 0, 2);
    let (again, _) = net.clone().data_pass(kept.clone(), Pass::Initialize);
    assert_eq!(flat(again.forward(kept.clone())), flat(net.forward(kept)));
}
