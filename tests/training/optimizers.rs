//! Any optimizer and any learning rates, and a training of each that goes on exactly.

use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::composed::ComposedLrSchedulerConfig;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::lr_scheduler::exponential::ExponentialLrSchedulerConfig;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::lr_scheduler::noam::NoamLrSchedulerConfig;
use burn::lr_scheduler::step::StepLrSchedulerConfig;
use burn::module::{Module, ParamGroup};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{
    AdaGradConfig, AdafactorConfig, AdamConfig, AdamWConfig, AdanConfig, LambConfig, LionConfig,
    LionState, ModuleOptimizer, MuonConfig, Optimizer, RmsPropConfig, SgdConfig,
};
use burn::tensor::{DType, Device, Tensor};
use burn_flows::testing::to_f64;
use burn_flows::training::{
    Adam, LearningRates, Schedule, Trainer, remove_checkpoint, scale_gradients,
};
use burn_flows::{Flow, FlowError, FlowStack, backend};

use super::common::{flat, host, hosts};
use super::{Readme, bytes, points, readme, small};

/// A user's own: steps along an average of the gradient's signs.
#[derive(Debug, Clone)]
pub(super) struct Signs;

impl Optimizer for Signs {
    type State<const D: usize> = LionState<D>;

    fn step<const D: usize>(
        &self,
        rate: f64,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<LionState<D>>,
    ) -> (Tensor<D>, Option<LionState<D>>) {
        let sign = gradient.sign();
        let average = match state {
            Some(state) => state.momentum * 0.5 + sign * 0.5,
            None => sign,
        };
        (parameter - average.clone() * rate, Some(LionState::new(average)))
    }

    fn to_device<const D: usize>(state: LionState<D>, device: &Device) -> LionState<D> {
        LionState::new(state.momentum.to_device(device))
    }
}

type With = fn(Trainer<Readme>) -> Trainer<Readme>;

/// Muon for the matrices of the nets, Adam for the rest.
fn muon_and_adam() -> ModuleOptimizer {
    let matrices = ParamGroup::from_predicate("weight");
    AdamConfig::new().init().with_group(matrices, MuonConfig::new().build(), None)
}

/// Every optimizer, and a learning rate for it.
pub(super) const OPTIMIZERS: [(&str, f64, With); 19] = [
    ("default", 1e-2, |trainer| trainer),
    ("ours with decay", 1e-2, |trainer| {
        trainer.with_optimizer(Adam::new().with_betas(0.8, 0.99).with_weight_decay(0.1))
    }),
    ("Adam", 1e-2, |trainer| trainer.with_optimizer(AdamConfig::new().build())),
    ("AMSGrad", 1e-2, |trainer| {
        trainer.with_optimizer(AdamConfig::new().with_amsgrad(true).init())
    }),
    ("Adam with L2", 1e-2, |trainer| {
        let decay = Some(WeightDecayConfig::new(1e-2));
        trainer.with_optimizer(AdamConfig::new().with_weight_decay(decay).init())
    }),
    ("AdamW", 1e-2, |trainer| trainer.with_optimizer(AdamWConfig::new().build())),
    ("cautious AdamW", 1e-2, |trainer| {
        let config = AdamWConfig::new().with_cautious_weight_decay(true).with_amsgrad(true);
        trainer.with_optimizer(config.init())
    }),
    ("AdaGrad", 5e-2, |trainer| {
        trainer.with_optimizer(AdaGradConfig::new().with_lr_decay(1e-2).build())
    }),
    ("Adafactor", 1e-2, |trainer| trainer.with_optimizer(AdafactorConfig::new().build())),
    ("Adan", 1e-3, |trainer| trainer.with_optimizer(AdanConfig::new().build())),
    ("LAMB", 1e-2, |trainer| trainer.with_optimizer(LambConfig::new().build())),
    ("Lion", 1e-3, |trainer| trainer.with_optimizer(LionConfig::new().build())),
    ("RMSprop", 1e-3, |trainer| trainer.with_optimizer(RmsPropConfig::new().build())),
    ("centered RMSprop", 1e-3, |trainer| {
        trainer.with_optimizer(RmsPropConfig::new().with_centered(true).init())
    }),
    ("SGD", 1e-2, |trainer| trainer.with_optimizer(SgdConfig::new().build())),
    ("SGD with momentum", 1e-3, |trainer| {
        let momentum = Some(MomentumConfig::new());
        trainer.with_optimizer(SgdConfig::new().with_momentum(momentum).init())
    }),
    ("clipped SGD", 1e-2, |trainer| {
        let clipping = Some(GradientClippingConfig::Norm(0.5));
        trainer.with_optimizer(SgdConfig::new().with_gradient_clipping(clipping).init())
    }),
    ("Muon and Adam", 1e-2, |trainer| trainer.with_optimizer(muon_and_adam())),
    ("a user's own", 1e-3, |trainer| trainer.with_optimizer(Signs)),
];

/// Points on a bent line.
fn bent(seed: u64, device: &Device) -> Tensor<2> {
    let noise = points(64, seed, device);
    let (a, b) = (noise.clone().narrow(1, 0, 1), noise.narrow(1, 1, 1));
    Tensor::cat(vec![a.clone() * 3.0 + 5.0, a.square() + b * 0.2], 1)
}

#[test]
fn every_optimizer_learns() {
    let device = host();
    for (name, rate, with) in OPTIMIZERS {
        let mut trainer = with(Trainer::new(readme(&device), Schedule::constant(rate)));
        let first = trainer.step(bent(0, &device)).unwrap().loss;
        for seed in 1..60 {
            trainer.step(bent(seed, &device)).unwrap();
        }
        let loss = -trainer.model().log_prob(bent(99, &device)).mean().into_scalar::<f64>();
        assert!(loss < first - 0.05, "{name}: {loss} nats from {first}");
    }
}

/// Saved after some steps and taken up again, a training has the numbers of one that was not
/// interrupted, to the last bit.
fn goes_on_exactly<F: Flow<2>>(
    name: &str,
    trainer: impl Fn() -> Trainer<FlowStack<2, F>>,
    batch: impl Fn(u64) -> Tensor<2>,
) where
    FlowStack<2, F>: Module,
{
    let folder = tempfile::tempdir().unwrap();
    let mut whole = trainer();
    for seed in 0..6 {
        whole.step(batch(seed)).unwrap();
        if seed == 2 {
            whole.save(folder.path(), "").unwrap();
        }
    }
    let (mut resumed, note) = trainer().resume(folder.path()).unwrap();
    assert_eq!((resumed.num_steps(), note.as_deref()), (3, Some("")), "{name}");
    for seed in 3..6 {
        resumed.step(batch(seed)).unwrap();
    }
    assert_eq!(bytes(&resumed.model()), bytes(&whole.model()), "{name}");
}

#[test]
fn a_training_by_every_optimizer_goes_on_exactly() {
    let device = host();
    for (name, rate, with) in OPTIMIZERS {
        let trainer = || with(Trainer::new(readme(&device), Schedule::constant(rate)));
        goes_on_exactly(name, trainer, |seed| bent(seed, &device));
    }
}

/// Burn reads the states of its own optimizers in f32, which is said and not done.
#[test]
fn a_training_in_f64_goes_on_exactly_or_not_at_all() {
    for device in hosts() {
        let model = || to_f64(readme(&device));
        let batch = |seed| bent(seed, &device).cast(DType::F64);
        for (name, rate, with) in OPTIMIZERS {
            let trainer = || with(Trainer::new(model(), Schedule::constant(rate)));
            let folder = tempfile::tempdir().unwrap();
            let mut saved = trainer();
            saved.step(batch(0)).unwrap();
            saved.save(folder.path(), "").unwrap();
            match trainer().resume(folder.path()) {
                Ok(_) => goes_on_exactly(name, trainer, batch),
                Err(error) => {
                    let error = error.to_string();
                    assert!(!["default", "ours with decay", "SGD"].contains(&name), "{error}");
                    assert!(error.contains("is F64, but Burn reads it as F32"), "{name}: {error}");
                }
            }
        }
    }
}

#[test]
fn a_training_on_every_device_goes_on_exactly() {
    for (name, device) in backend::devices() {
        let device = device();
        let trainer = || Trainer::new(small(&device), Schedule::constant(1e-2));
        goes_on_exactly(name, trainer, |seed| bent(seed, &device));
        device.sync().unwrap();
    }
}

/// Where the gradient is zero, nothing is divided by it.
#[test]
fn gradients_of_zero_leave_a_model_finite() {
    let device = host();
    for (name, rate, with) in OPTIMIZERS {
        let mut trainer = with(Trainer::new(readme(&device), Schedule::constant(rate)));
        for seed in 0..3 {
            let mut gradients = trainer.gradients(bent(seed, &device)).unwrap();
            scale_gradients(&trainer.model(), &mut gradients.grads, 0.0);
            trainer.apply(gradients).unwrap();
        }
        let log_prob = flat(trainer.model().log_prob(bent(9, &device)));
        assert!(log_prob.iter().all(|value| value.is_finite()), "{name}");
    }
}

#[test]
fn a_checkpoint_of_another_optimizer_is_refused() {
    let device = host();
    let folder = tempfile::tempdir().unwrap();
    let trainer = |with: With| with(Trainer::new(readme(&device), Schedule::constant(1e-3)));
    let resume = |with| trainer(with).resume(folder.path()).err().map(|error| error.to_string());
    let of = |name: &str| OPTIMIZERS.iter().find(|(other, ..)| *other == name).unwrap().2;
    // Those whose types are known, and those that have other states.
    let told_apart = [
        "default",
        "AdamW",
        "AdaGrad",
        "Adafactor",
        "Adan",
        "LAMB",
        "Lion",
        "RMSprop",
        "SGD",
        "a user's own",
    ];
    for name in told_apart {
        remove_checkpoint(folder.path()).unwrap();
        let mut saved = trainer(of(name));
        saved.step(bent(0, &device)).unwrap();
        saved.save(folder.path(), "").unwrap();
        for other in told_apart {
            match resume(of(other)) {
                None => assert_eq!(name, other, "{other} goes on from the state of {name}"),
                Some(error) => {
                    assert_ne!(name, other, "{error}");
                    assert!(error.contains("resume with the optimizer that wrote it"), "{error}");
                }
            }
        }
    }
    let mut saved = trainer(of("AdamW"));
    saved.step(bent(0, &device)).unwrap();
    saved.save(folder.path(), "").unwrap();
    let error = trainer(of("default")).resume(folder.path()).err().unwrap();
    assert!(matches!(error, FlowError::Record { .. }));
    let error = error.to_string();
    assert!(error.contains("this is the state of AdamW, the trainer has Adam"), "{error}");
}

/// Checkpoints of the format before optimizers had names are those of Adam, which Burn's goes on from
/// as well as ours.
#[test]
fn a_checkpoint_without_an_optimizer_is_of_adam() {
    let device = host();
    let folder = tempfile::tempdir().unwrap();
    let trainer = |with: With| with(Trainer::new(readme(&device), Schedule::constant(1e-3)));
    let mut saved = trainer(OPTIMIZERS[0].2);
    saved.step(bent(0, &device)).unwrap();
    saved.save(folder.path(), "a note").unwrap();
    let pointer = folder.path().join("checkpoint.txt");
    let text = std::fs::read_to_string(&pointer).unwrap();
    let old = text.replace("checkpoint 3\nfiles a", "checkpoint 2").replace("optimizer Adam\n", "");
    assert_eq!(old, "burn-flows checkpoint 2\nstep 1\nmemory stored\na note");
    std::fs::write(&pointer, old).unwrap();
    for (from, to) in [("a.safetensors", "model-1.safetensors"), ("a.bpk", "optimizer-1.bpk")] {
        let from = folder.path().join(format!("checkpoint-{from}"));
        std::fs::rename(from, folder.path().join(to)).unwrap();
    }
    for (name, _, with) in &OPTIMIZERS[..3] {
        let (resumed, note) = trainer(*with).resume(folder.path()).unwrap();
        assert_eq!((resumed.num_steps(), note.as_deref()), (1, Some("a note")), "{name}");
    }
    let error = trainer(|trainer| trainer.with_optimizer(Signs)).resume(folder.path()).err();
    assert!(error.unwrap().to_string().contains("the trainer has Signs"));
}

#[test]
fn a_training_by_every_schedule_goes_on_exactly() {
    let device = host();
    let cosine = || CosineAnnealingLrSchedulerConfig::new(0.05, 20);
    let schedules: [(&str, &dyn Fn() -> LearningRates); 8] = [
        ("ours", &|| Schedule::new(0.05, 20).with_warm_up(4).into()),
        ("a function", &|| (|step: usize| 0.05 / (1.0 + step as f64)).into()),
        ("Noam", &|| NoamLrSchedulerConfig::new(0.5).with_warmup_steps(3).init().unwrap().into()),
        ("cosine", &|| cosine().init().unwrap().into()),
        ("exponential", &|| ExponentialLrSchedulerConfig::new(0.05, 0.7).init().unwrap().into()),
        ("linear", &|| LinearLrSchedulerConfig::new(0.05, 0.01, 10).init().unwrap().into()),
        ("step", &|| StepLrSchedulerConfig::new(0.05, 2).init().unwrap().into()),
        ("composed", &|| {
            ComposedLrSchedulerConfig::new().cosine(cosine()).constant(0.9).init().unwrap().into()
        }),
    ];
    for (name, rates) in schedules {
        let trainer = || Trainer::new(readme(&device), rates());
        goes_on_exactly(name, trainer, |seed| bent(seed, &device));
    }
}

#[test]
fn a_step_says_the_rate_of_burns_scheduler() {
    let device = host();
    let scheduler = || LinearLrSchedulerConfig::new(0.1, 0.02, 4).init().unwrap();
    let mut own = scheduler();
    let mut trainer = Trainer::new(readme(&device), scheduler());
    for seed in 0..6 {
        let step = trainer.step(bent(seed, &device)).unwrap();
        assert_eq!(step.learning_rate, own.step().base());
        // A batch that is refused takes no rate.
        trainer.step(bent(seed, &device) * f32::NAN).unwrap_err();
    }
}
