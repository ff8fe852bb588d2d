//! Roads of one's own beside `Trainer`: loops with a batch that is plain or tracked, losses on samples,
//! scores, models at inference, frozen in part or spread over devices.

mod common;
mod fixtures;

use burn::module::{Lora, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::GradientsParams;
use burn_flows::At;
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::testing::to_f64;
use burn_flows::training::{Tape, reversible};
use common::{gradients, hosts};
use fixtures::*;

/// Two computations of a gradient in f64.
const EQUAL: f64 = 1e-10;

/// A gradient in f64 against a central difference.
const DIFFERENCE: f64 = 1e-6;

/// Half of the distance of a central difference: short, as few kinks of ReLUs as can be lie within.
const STEP: f64 = 1e-6;

fn close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1.0, |size: f64, value| size.max(value.abs()));
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= tolerance * size, "{what}: {got} is not {expected}");
    }
}

type Gradients = Vec<(String, Vec<f64>)>;

fn assert_same(what: &str, got: &Gradients, expected: &Gradients, tolerance: f64) {
    let names = |gradients: &Gradients| -> Vec<String> {
        gradients.iter().map(|(name, _)| name.clone()).collect()
    };
    assert_eq!(names(got), names(expected), "{what}");
    for ((name, got), (_, expected)) in got.iter().zip(expected) {
        close(&format!("{what}, {name}"), got, expected, tolerance);
    }
}

fn own<M: Module>(loss: Tensor<1>, model: &M) -> Gradients {
    gradients(model, &GradientsParams::from_grads(loss.backward(), model))
}

/// The readme's model, in a loop of one's own.
#[test]
fn a_loop_of_ones_own_trains_the_readmes_model() {
    for (name, device, dtype) in devices() {
        let step = |i| {
            let net = MlpConfig::new(1, vec![32, 32], 2).init(&device)?;
            let mask = Mask::ChannelHalves(Parity::of(i));
            let coupling = Coupling::affine(net, mask, ScaleMap::default(), 2, &device)?;
            Ok((ActNorm::new(2, &device)?, coupling))
        };
        let build = |_: &mut StdRng, _: &Device| (0..4).map(step).collect::<Result<Vec<_>>>();
        let steps = fixtures::build(1, &device, build);
        let stack = FlowStack::<2, _>::single(steps, StandardNormal::new(), &[2]).unwrap();
        let model = if dtype == DType::F64 { to_f64(stack) } else { stack }.train();
        let x = inputs([64, 2], 1, &device, dtype) * 2.0 + 1.0;
        let (_, expected) = reversible::gradients(&model, x.clone());
        let expected = gradients(&model, &expected);
        assert_eq!(expected.len(), 32);
        let tolerance = if dtype == DType::F64 { EQUAL } else { 1e-4 };
        for (wrapped, x) in [("plain", x.clone()), ("tracked", x.autodiff())] {
            let got = own(model.log_prob(x).mean().neg(), &model);
            assert_same(&format!("{name}, {wrapped}"), &got, &expected, tolerance);
        }
    }
}

/// The model with `by` added to entry `at` of one parameter.
fn nudged<M: Module>(model: &M, id: ParamId, at: usize, by: f64) -> M {
    struct Nudge(ParamId, usize, f64);
    impl ModuleMapper for Nudge {
        fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
            let &mut Self(id, at, by) = self;
            if param.id != id {
                return param;
            }
            param.map(|value| {
                let mut values = values(value.clone());
                values[at] += by;
                let data = burn::tensor::TensorData::new(values, value.dims());
                Tensor::from_data(data, (&value.device(), value.dtype()))
            })
        }
    }
    model.clone().map(&mut Nudge(id, at, by))
}

/// Id and path of every parameter that is trained once `model` is in training.
fn trained<M: Module>(model: &M) -> Vec<(ParamId, String)> {
    #[derive(Default)]
    struct Collect(Vec<String>, Vec<(ParamId, String)>);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.0.pop();
        }
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            if param.is_require_grad() {
                self.1.push((param.id, self.0.join(".")));
            }
        }
    }
    let mut collect = Collect::default();
    model.clone().train().visit(&mut collect);
    collect.1
}

/// The first, the middle and the last entry of every gradient of `loss` are central differences;
/// `missing` says of which parameters there is none.
fn assert_differences<M: Module>(
    what: &str,
    model: &M,
    missing: impl Fn(&str) -> bool,
    loss: impl Fn(&M) -> Tensor<1>,
) {
    let training = model.clone().train();
    let got = own(loss(&training), &training);
    let reached: Vec<_> = trained(model).into_iter().filter(|(_, path)| !missing(path)).collect();
    assert_eq!(got.len(), reached.len(), "{what}: a parameter without a gradient");
    for ((id, path), (name, gradient)) in reached.into_iter().zip(&got) {
        assert_eq!(path, *name);
        for at in [0, gradient.len() / 2, gradient.len() - 1] {
            let value = |by| loss(&nudged(model, id, at, by)).into_scalar::<f64>();
            let difference = (value(STEP) - value(-STEP)) / (2.0 * STEP);
            let what = format!("{what}, entry {at} of {path}");
            close(&what, &[gradient[at]], &[difference], DIFFERENCE);
        }
    }
}

/// A loss on samples, as for variational inference: through the priors' draws and every inverse.
fn learns_from_samples<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>>(
    what: &str,
    stack: FlowStack<D, F, P, S>,
    shape: [usize; D],
) where
    FlowStack<D, F, P, S>: Module,
{
    let stack = to_f64(move_parameters(stack, 3, 0.1));
    let device = stack.devices().swap_remove(0);
    let x = inputs(shape, 6, &device, DType::F64);
    // Smooth, and without a symmetry that would make it stationary.
    let energy = |x: Tensor<D>| ((x.clone() * 0.7 + 0.3).cos() + x.square() * 0.2).sum();
    let none = |_: &str| false;
    assert_differences(&format!("the divergence of {what}"), &stack, none, |model| {
        let x = model.sample_with(3, 0.8, &mut rng(5));
        model.log_prob(x.clone()).sum() + energy(x)
    });
    // The last part of noise is a latent as it is, and nothing of the prior's.
    let noise = stack.encode_noise(x.clone());
    let of_the_prior = |path: &str| path.starts_with("prior.");
    assert_differences(&format!("{what} from noise"), &stack, of_the_prior, |model| {
        energy(model.decode_noise(noise.clone()))
    });
    // The way there and back is the identity, whatever the parameters.
    let model = stack.train();
    for x in [x.clone(), x.clone().autodiff(), x.autodiff().require_grad()] {
        let tracked = x.is_require_grad().then(|| x.clone());
        let back = model.decode(model.encode(x).0);
        let mut tape = (back.clone() * back).sum().backward();
        if let Some(x) = tracked {
            let dx = values(x.grad_remove(&mut tape).expect("x is tracked"));
            close(what, &dx, &values(x.inner() * 2.0), EQUAL);
        }
        for (name, gradient) in gradients(&model, &GradientsParams::from_grads(tape, &model)) {
            close(&format!("{what}, {name}"), &gradient, &vec![0.0; gradient.len()], EQUAL);
        }
    }
}

#[test]
fn losses_on_samples_have_right_gradients() {
    for device in hosts() {
        let glow = |mixing| {
            let config = glow([1, 4, 4], 2).with_mixing(mixing);
            let config = config.with_coupling(GlowCouplingKind::Affine(ScaleMap::default()));
            build(1, &device, |rng, device| config.init(rng, device))
        };
        learns_from_samples("a Glow", glow(GlowMixingKind::Conv1x1), [3, 1, 4, 4]);
        learns_from_samples("a Glow by PLU", glow(GlowMixingKind::Conv1x1Plu), [3, 1, 4, 4]);
        let vectors = build(1, &device, split_vector_stack);
        learns_from_samples("a split of vectors", vectors, [3, 5]);
        let nice = |_: &mut StdRng, device: &Device| NiceConfig::new(4, vec![HIDDEN]).init(device);
        learns_from_samples("a NICE", build(1, &device, nice), [3, 4]);
        let real_nvp = build(1, &device, |_, device| {
            let config = RealNvpVectorConfig::new(4, 3, vec![HIDDEN]).with_batch_norm(true);
            Ok(initialized(config.init(device)?, [64, 4], device))
        });
        learns_from_samples("a RealNVP of vectors", real_nvp, [3, 4]);
    }
}

fn images_real_nvp(device: &Device) -> burn_flows::models::RealNvp {
    let model = build(1, device, |_, device| {
        let config = RealNvpConfig::new([1, 4, 4], 2, 4, 1).with_logit(None, LogitForm::Code);
        Ok(initialized(config.init(device)?, [8, 1, 4, 4], device))
    });
    to_f64(model)
}

/// The gradient of `ln p(x)` by `x`, from the model at inference.
fn assert_score<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>>(
    what: &str,
    stack: FlowStack<D, F, P, S>,
    shape: [usize; D],
) where
    FlowStack<D, F, P, S>: Module,
{
    let device = stack.devices().swap_remove(0);
    let x = inputs(shape, 2, &device, DType::F64);
    let value = |values: Vec<f64>| {
        let x =
            Tensor::from_data(burn::tensor::TensorData::new(values, shape), (&device, DType::F64));
        stack.log_prob(x).sum().into_scalar::<f64>()
    };
    let start = values(x.clone());
    let differences: Vec<f64> = (0..start.len())
        .map(|at| {
            let nudged = |by| {
                let mut x = start.clone();
                x[at] += by;
                value(x)
            };
            (nudged(STEP) - nudged(-STEP)) / (2.0 * STEP)
        })
        .collect();
    let training = stack.clone().train();
    for (road, model) in [
        ("as it is", stack.clone()),
        ("valid", training.valid()),
        ("frozen", stack.clone().freeze().train()),
        ("without gradients", training.clone().no_grad()),
    ] {
        let x = x.clone().autodiff().require_grad();
        let mut tape = model.log_prob(x.clone()).sum().backward();
        let score = values(x.grad_remove(&mut tape).expect("x is tracked"));
        close(&format!("{what}, {road}"), &score, &differences, DIFFERENCE);
        assert_eq!(GradientsParams::from_grads(tape, &model).len(), 0, "{what}, {road}");
    }
}

#[test]
fn scores_are_exact() {
    for device in hosts() {
        assert_score("a RealNVP", images_real_nvp(&device), [3, 1, 4, 4]);
        let glow = build(1, &device, |rng, device| glow([1, 4, 4], 2).init(rng, device));
        assert_score("a Glow", to_f64(move_parameters(glow, 2, 0.1)), [3, 1, 4, 4]);
        let vectors = build(1, &device, split_vector_stack);
        assert_score("vectors", to_f64(move_parameters(vectors, 2, 0.1)), [3, 5]);
    }
}

/// In training the moments of a net's normalization count as the batch's in gradients.
#[test]
fn the_score_of_a_training_that_follows_moments_is_refused() {
    for device in hosts() {
        let model = images_real_nvp(&device).train();
        let x = inputs([3, 1, 4, 4], 2, &device, DType::F64).autodiff();
        model.log_prob(x.clone());
        let message = panic_message(|| model.log_prob(x.clone().require_grad()));
        assert!(
            message.starts_with("FlowStack: ln p(x) was asked for with a gradient by x"),
            "{message}"
        );
        assert!(message.contains("conditioner.norm_in (NetBatchNorm)"), "{message}");
        assert!(message.ends_with("ask model.valid()"), "{message}");
        // Held where they are, the moments are constants.
        let held = model.freeze_group(ParamGroup::from_any_predicates(vec!["norm"]));
        held.log_prob(x.require_grad());
    }
}

/// A model at inference is plain, and so are its results.
#[test]
fn a_model_at_inference_leaves_no_graph() {
    for (name, device, _) in devices() {
        let model = build(1, &device, |rng, device| glow([1, 4, 4], 2).init(rng, device)).train();
        let x = inputs([3, 1, 4, 4], 2, &device, DType::F32);
        let valid = model.valid();
        assert!(!valid.log_prob(x.clone()).is_autodiff(), "{name}");
        assert!(!valid.sample(2, 1.0).is_autodiff(), "{name}");
        assert!(!model.clone().no_grad().log_prob(x).is_tracked(), "{name}");
    }
}

/// What is frozen has no gradient, and the rest has the gradients that it has without.
#[test]
fn a_loop_on_a_model_frozen_in_part() {
    for device in hosts() {
        let stack = build(1, &device, |rng, device| {
            glow([1, 4, 4], 2).with_mixing(GlowMixingKind::Conv1x1Plu).init(rng, device)
        });
        let stack = to_f64(move_parameters(stack, 2, 0.1));
        let x = inputs([3, 1, 4, 4], 3, &device, DType::F64);
        let model = stack.clone().train();
        let all = own(model.log_prob(x.clone()).sum(), &model);
        for part in
            ["log_scale", "lower", "conv2", "conditioner", "mean", "levels.0", "split_priors"]
        {
            let group = ParamGroup::from_predicate(part);
            let model = stack.clone().freeze_group(group).train();
            let kept: Gradients =
                all.iter().filter(|(name, _)| !name.contains(part)).cloned().collect();
            assert!(kept.len() < all.len(), "{part}");
            for x in [x.clone(), x.clone().autodiff(), x.clone().autodiff().require_grad()] {
                let got = own(model.log_prob(x).sum(), &model);
                assert_same(part, &got, &kept, EQUAL);
            }
            let (_, grads) = reversible::gradients(&model, x.clone());
            let mean: Gradients = kept
                .iter()
                .map(|(name, grad)| (name.clone(), grad.iter().map(|value| value / -3.0).collect()))
                .collect();
            assert_same(part, &gradients(&model, &grads), &mean, EQUAL);
        }
    }
}

/// Burn's adapters (LoRA) stand in for the weights of a net, and get the gradients in their place.
#[test]
fn adapters_have_the_gradients_of_autodiff() {
    for device in hosts() {
        let stack = build(1, &device, split_vector_stack);
        let group = ParamGroup::from_any_predicates(vec!["conditioner", "1.weight"]);
        let stack = stack.apply_lora(Lora::new(2, 4.0).set_param_group(group));
        let stack = to_f64(move_parameters(stack, 2, 0.1));
        let x = inputs([6, 5], 3, &device, DType::F64);
        let model = stack.clone().train();
        let (_, grads) = reversible::gradients(&model, x.clone());
        let expected = own(model.log_prob(x.clone().autodiff()).mean().neg(), &model);
        assert!(expected.len() > 12 && expected.iter().all(|(name, _)| name.contains("ora")));
        assert_same("adapters", &gradients(&model, &grads), &expected, EQUAL);
        close(
            "ln p",
            &values(stack.log_prob(x.clone())),
            &values(stack.materialize().log_prob(x)),
            EQUAL,
        );
    }
}

/// Neither a batch nor a part of the model is brought over from another device, nor cast, by one road
/// where the other would not.
#[test]
fn devices_and_types_that_differ_are_errors() {
    let hosts = hosts();
    let flows = |device: &Device| {
        let step = build(1, device, |rng, device| {
            Ok((
                Some(ActNorm::new(4, device)?),
                Some(InvertibleConv1x1::plain(4, rng, device)?),
                Some(affine_net(
                    4,
                    Mask::first_half(),
                    ScaleMap::default(),
                    NetNorm::Bias,
                    0.0,
                    device,
                )?),
                Some(residual_coupling(4, Mask::second_half(), device)?),
            ))
        });
        let (norm, mixing, coupling, residual) = step;
        [
            (norm, None, None, None),
            (None, mixing, None, None),
            (None, None, coupling, None),
            (None, None, None, residual),
        ]
    };
    for device in &hosts {
        for (kind, flow) in flows(device).into_iter().enumerate() {
            let x = inputs([2, 4, 2, 3], 1, device, DType::F32);
            flow.forward(x.clone());
            let mut others: Vec<Tensor<4>> = vec![x.clone().cast(DType::F64)];
            others.extend(
                hosts
                    .iter()
                    .filter(|other| *other != device)
                    .map(|other| inputs([2, 4, 2, 3], 1, other, DType::F32)),
            );
            for other in others {
                let what = format!("flow {kind} on {device:?}, a batch of {:?}", other.dtype());
                println!("{what}: {}", panic_message(|| flow.forward(other.clone())));
                println!("{what}: {}", panic_message(|| flow.inverse(other.clone())));
                panic_message(|| flow.clone().train().forward(other.clone()));
                let ones = Tensor::ones([2], (&other.device(), other.dtype()));
                let mut grads = GradientsParams::new();
                let training = flow.clone().train();
                panic_message(|| {
                    let tape = &mut Tape::default();
                    training.pull_back(
                        At::Output(other.clone()),
                        other.clone(),
                        ones,
                        tape,
                        &mut grads,
                    )
                });
            }
        }
    }
    let [first, second, ..] = &hosts[..] else { return };
    let x = inputs([2, 4], 1, first, DType::F32);
    let mut coupling =
        build(1, first, |_, device| affine_mlp(4, Mask::first_half(), ScaleMap::Tanh, device));
    coupling.conditioner = coupling.conditioner.to_device(second);
    println!("{}", panic_message(|| coupling.forward(x.clone())));
    let mut coupling = coupling.to_device(first);
    coupling.forward(x.clone());
    coupling.transform = coupling.transform.to_device(second);
    println!("{}", panic_message(|| coupling.forward(x.clone())));
}
