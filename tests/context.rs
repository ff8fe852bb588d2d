//! Conditional densities: contexts for each sample or for all, through every composition, with the
//! gradients of a net that makes them.

mod common;
mod fixtures;

use burn::optim::GradientsParams;
use burn_flows::models::{Maf, SplineFlow};
use burn_flows::training::{Memory, Schedule, Tape, Trainable, Trainer, reversible};
use burn_flows::{FlowError, record};
use common::{flat, gradients, host, hosts};
use fixtures::*;

/// With ActNorm initialized, split prior and top prior moved off their start.
fn stack(
    device: &Device,
) -> FlowStack<2, ContextStep, ContextNormal<Mlp>, ConditionalNormal<WithContext<Mlp>>> {
    let stack = seeded(3, device, || conditional_stack(device).unwrap());
    let given = move_parameters(stack, 1, 0.1).given(&rows(64, 3, device)).unwrap();
    given.initialize(inputs([64, 4], 2, device, DType::F32)).0.without_context::<2>()
}

fn rows(count: usize, width: usize, device: &Device) -> Tensor<2> {
    inputs([count, width], 5, device, DType::F32)
}

fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() <= tolerance * (1.0 + expected.abs()),
            "{what}: {got} {expected}"
        );
    }
}

/// Each sample of a batch sees the context of its row, and nothing of the others.
#[test]
fn each_sample_has_its_own_context() {
    for device in hosts() {
        let (model, x, contexts) =
            (stack(&device), inputs([5, 4], 6, &device, DType::F32), rows(5, 3, &device));
        let together = model.given(&contexts).unwrap();
        let log_prob = flat(together.log_prob(x.clone()));
        let (latents, log_det) = together.encode(x.clone());
        let back = flat(together.decode(latents.clone()));
        assert_close("decode", &back, &flat(x.clone()), 1e-4);
        let mut differ = false;
        for row in 0..5 {
            let alone = model.given(&contexts.clone().narrow(0, row, 1)).unwrap();
            let of_row = flat(alone.log_prob(x.clone().narrow(0, row, 1)));
            assert_close("a sample alone", &of_row, &log_prob[row..=row], 1e-5);
            // One context for all samples.
            let for_all = flat(alone.log_prob(x.clone()));
            assert_close("one for all", &for_all[row..=row], &log_prob[row..=row], 1e-5);
            differ |= (for_all[(row + 1) % 5] - log_prob[(row + 1) % 5]).abs() > 1e-2;
        }
        assert!(differ, "the context changes nothing");
        assert_eq!(log_det.dims(), [5]);
    }
}

/// The density integrates to 1 for every context, and draws of a context are as its density says.
#[test]
fn every_context_has_a_density() {
    let device = host();
    let layer = seeded(4, &device, || spline_maf_of(2, 3, &device).unwrap());
    let prior = seeded(5, &device, || ContextNormal::new(mlp(3, 4, &device).unwrap(), 3, &device));
    let model: FlowStack<2, _, _> = FlowStack::single(layer, prior, &[2]).unwrap();
    let model = move_parameters(model, 7, 0.2);
    let (steps, bound) = (240, 12.0);
    let width = 2.0 * bound / steps as f64;
    let at = |i: usize| -bound + (i as f64 + 0.5) * width;
    let grid = (0..steps * steps).flat_map(|i| [at(i / steps), at(i % steps)]).collect::<Vec<_>>();
    let grid: Tensor<2> =
        Tensor::from_data(TensorData::new(grid, [steps * steps, 2]), (&device, DType::F32));
    let mut means = Vec::new();
    for row in 0..3 {
        let model = model.given(&rows(3, 3, &device).narrow(0, row, 1)).unwrap();
        let density: Vec<f64> =
            flat(model.log_prob(grid.clone())).iter().map(|log_prob| log_prob.exp()).collect();
        let total: f64 = density.iter().sum::<f64>() * width * width;
        assert!((total - 1.0).abs() < 2e-3, "{total}");
        let first = |i: usize| at(i / steps);
        let mean: f64 =
            density.iter().enumerate().map(|(i, p)| p * first(i)).sum::<f64>() * width * width;
        let draws = model.sample_with(20_000, 1.0, &mut StdRng::seed_from_u64(1));
        let drawn: f64 = draws.narrow(1, 0, 1).mean().into_scalar();
        assert!((drawn - mean).abs() < 0.05, "{drawn} {mean}");
        means.push(mean);
    }
    assert!(means.iter().any(|mean| (mean - means[0]).abs() > 0.05), "{means:?}");
}

/// Gradients of a loop of one's own, through an embedding and back, are those of a training step,
/// whatever the step keeps in memory.
#[test]
fn gradients_go_on_through_the_embedding() {
    for device in hosts() {
        let embedding = seeded(8, &device, || mlp(6, 3, &device).unwrap());
        let model = Embedded::new(embedding, stack(&device)).train();
        let x = inputs([5, 4], 6, &device, DType::F32);
        let raw = rows(5, 6, &device);

        let loss = -model.given(&raw).unwrap().log_prob(x.clone()).mean();
        let expected = gradients(&model, &GradientsParams::from_grads(loss.backward(), &model));
        let tracked = Tensor::from_inner(raw.clone());
        let loss = -model.given(&tracked).unwrap().log_prob(Tensor::from_inner(x.clone())).mean();
        let of_tracked = gradients(&model, &GradientsParams::from_grads(loss.backward(), &model));
        for memory in [Memory::Reversible, Memory::Stored, Memory::Checkpoint { every: 2 }] {
            let (mut grads, mut tape) = (GradientsParams::new(), Tape::new(memory));
            let batch = (x.clone(), raw.clone());
            let got = model.gradients(batch, -0.2, &mut tape, &mut grads, |_| true);
            let got: f64 = got.into_scalar();
            let loss: f64 = loss.clone().inner().into_scalar();
            assert!((got - loss).abs() < 1e-5 * loss.abs().max(1.0), "{got} {loss}");
            let step = gradients(&model, &grads);
            let names = |gradients: &[(String, Vec<f64>)]| -> Vec<String> {
                gradients.iter().map(|(name, _)| name.clone()).collect()
            };
            assert_eq!(names(&step), names(&expected));
            assert!(names(&step).iter().any(|name| name.starts_with("embedding")));
            for ((name, expected), ((_, step), (_, tracked))) in
                expected.iter().zip(step.iter().zip(&of_tracked))
            {
                assert_close(name, step, expected, 2e-4);
                assert_close(name, tracked, expected, 2e-4);
            }
        }
    }
}

/// The gradient by a context is that by finite differences.
#[test]
fn the_gradient_by_the_context_is_a_slope() {
    let device = host();
    let model = burn_flows::testing::to_f64(stack(&device));
    let x = inputs([4, 4], 6, &device, DType::F64);
    for count in [1, 4] {
        let context = inputs([count, 3], 7, &device, DType::F64);
        let training = model.clone().train().given(&context).unwrap();
        let (_, grads) = reversible::gradients(&training, x.clone());
        let got = flat(gradient::<2, _>(&training, &grads).unwrap());
        let loss = |context: Tensor<2>| -> f64 {
            let loss = -model.given(&context).unwrap().log_prob(x.clone()).mean();
            loss.into_scalar()
        };
        let step = 1e-5;
        let slopes: Vec<f64> = (0..got.len())
            .map(|i| {
                let mut one = vec![0.0; got.len()];
                one[i] = step;
                let one =
                    Tensor::from_data(TensorData::new(one, [count, 3]), (&device, DType::F64));
                (loss(context.clone() + one.clone()) - loss(context.clone() - one)) / (2.0 * step)
            })
            .collect();
        assert_close("gradient by the context", &got, &slopes, 1e-6);
    }
}

/// `x = context + noise` is learned to its entropy, by a step on pairs, with micro-batches as without.
#[test]
fn a_trainer_learns_what_the_context_says() {
    let device = host();
    let entropy = 2.0 * (0.5 * (2.0 * std::f64::consts::PI).ln() + 0.5 + 0.3f64.ln());
    for micro_batch in [usize::MAX, 48] {
        let made = MadeConfig::new(2, vec![32], 2).with_context(2).init(&device).unwrap();
        let affine = Affine::new(
            ScaleMap::BoundedExp { bound: 4.0 },
            AffineOrder::ScaleThenShift,
            2,
            &device,
        );
        let flow = (ActNorm::new(2, &device).unwrap(), Autoregressive::new(made, affine).unwrap());
        let model: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2]).unwrap();
        let mut trainer =
            Trainer::new(model, Schedule::constant(5e-3)).with_micro_batch(micro_batch);
        let mut last = Vec::new();
        for step in 0..1500 {
            let context = inputs([128, 2], 2 * step, &device, DType::F32);
            let noise = inputs([128, 2], 2 * step + 1, &device, DType::F32);
            last.push(trainer.step((context.clone() + noise * 0.3, context)).unwrap().loss);
        }
        let mean = last[1450..].iter().sum::<f64>() / 50.0;
        assert!(mean > entropy - 0.1 && mean < entropy + 0.1, "{mean} {entropy}");
    }
}

/// A feature map reaches levels of smaller pictures, four channels for one each time.
#[test]
fn feature_maps_are_squeezed_to_the_level() {
    let device = host();
    let context = Context::<4>::new(2, &device);
    let map = inputs([1, 2, 8, 4], 1, &device, DType::F32);
    #[derive(Module, Debug)]
    struct Holder {
        context: Context<4>,
    }
    let holder = Holder { context }.given(&map).unwrap();
    let beside = |channels, height, width| {
        holder.context.beside(Tensor::<4>::zeros([3, channels, height, width], &device))
    };
    assert_eq!(beside(1, 8, 4).dims(), [3, 3, 8, 4]);
    assert_eq!(beside(4, 4, 2).dims(), [3, 4 + 8, 4, 2]);
    assert_eq!(beside(8, 2, 1).dims(), [3, 8 + 32, 2, 1]);
    // The values are those of the map, in the order of a squeeze.
    let squeezed = Squeeze::new().forward(map).0;
    let difference = beside(4, 4, 2).narrow(0, 2, 1).narrow(1, 4, 8) - squeezed;
    assert_eq!(difference.abs().max().into_scalar::<f32>(), 0.0);
}

fn panic_of(what: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what)).unwrap_err();
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn wrong_contexts_are_refused() {
    let device = host();
    let model = stack(&device);
    let x = inputs([5, 4], 6, &device, DType::F32);

    let error = model.given(&rows(5, 2, &device)).unwrap_err().to_string();
    assert_eq!(
        error,
        "the width of the context at levels.0.1.conditioner.context: got 2, needs 3; build the layers \
         with the width that the contexts have on axis 1"
    );
    let map = inputs([1, 3, 2, 2], 1, &device, DType::F32);
    let error = model.given(&map).unwrap_err().to_string();
    assert!(error.contains("contexts of rank 4"), "{error}");
    let error = model.prior.net.given(&rows(1, 3, &device)).unwrap_err().to_string();
    assert!(error.contains("without a layer that depends on contexts"), "{error}");

    let panic = panic_of(|| drop(model.log_prob(x.clone())));
    assert!(panic.contains("call model.given(&context)"), "{panic}");
    let given = model.given(&rows(4, 3, &device)).unwrap();
    let panic = panic_of(|| drop(given.log_prob(x.clone())));
    assert!(panic.contains("got 5 samples, but contexts for 4"), "{panic}");
    let panic = panic_of(|| drop(given.without_context::<2>().sample(5, 1.0)));
    assert!(panic.contains("no context is given"), "{panic}");

    let error = model.given(&rows(5, 3, &device).cast(DType::F64)).unwrap_err().to_string();
    assert!(error.contains("got F64"), "{error}");
    let wide = WithContext::of_maps(mlp(2, 2, &device).unwrap(), 2, &device);
    let map = inputs([1, 2, 4, 4], 1, &device, DType::F32);
    let wide = wide.given(&map).unwrap();
    let panic = panic_of(|| drop(wide.forward(Tensor::<2>::zeros([1, 2], &device))));
    assert!(panic.contains("rank 4 cannot stand beside samples of rank 2"), "{panic}");

    let mut trainer = Trainer::new(model, Schedule::constant(1e-3));
    let error = trainer.step(x.clone()).unwrap_err().to_string();
    assert!(error.contains("pass (x, context) to the step"), "{error}");
    let error = trainer.step((x.clone(), rows(4, 3, &device))).unwrap_err();
    assert!(matches!(error, FlowError::Invalid { .. }), "{error}");
    assert!(error.to_string().contains("got 4, needs 5"), "{error}");
    let error = trainer.step((x.clone(), rows(5, 4, &device))).unwrap_err().to_string();
    assert!(error.contains("got 4, needs 3"), "{error}");
    trainer.step((x, rows(5, 3, &device))).unwrap();
}

/// Both parts of an embedded model are trained, initialized and told of data; a frozen part stays.
#[test]
fn embedded_models_are_trained() {
    let device = host();
    let net =
        || seeded(8, &device, || ResidualNetConfig::new(1, HIDDEN, 3, 1).init(&device).unwrap());
    #[derive(Module, Debug)]
    struct Look {
        net: ResidualNet,
    }
    impl Embedding<4, 2> for Look {
        fn embed(&self, raw: Tensor<4>) -> Tensor<2> {
            let y = Conditioner::<4>::forward(&self.net, raw);
            let [batch, channels, ..] = y.dims();
            y.reshape([batch, channels, 16]).mean_dim(2).reshape([batch, channels])
        }
        fn embed_pass(mut self, raw: Tensor<4>, pass: burn_flows::Pass) -> (Self, Tensor<2>) {
            let context = self.embed(raw.clone());
            self.net = Conditioner::<4>::data_pass(self.net, raw, pass).0;
            (self, context)
        }
    }
    let raw = inputs([6, 1, 4, 4], 3, &device, DType::F32);
    let x = inputs([6, 4], 4, &device, DType::F32);
    let moments = |model: &Embedded<Look, _>| record::to_bytes(&model.embedding).unwrap();
    for frozen in [false, true] {
        for micro_batch in [6, 4] {
            let look = Look { net: net() };
            let look = if frozen { look.freeze() } else { look };
            let conditional = seeded(3, &device, || conditional_stack(&device).unwrap());
            let model = Embedded::new(look, conditional);
            let before = moments(&model);
            let mut trainer =
                Trainer::new(model, Schedule::constant(1e-2)).with_micro_batch(micro_batch);
            let first = trainer.step((x.clone(), raw.clone())).unwrap().loss;
            for _ in 0..30 {
                trainer.step((x.clone(), raw.clone())).unwrap();
            }
            // One context for all samples is a batch as well.
            let one = trainer.step((x.clone(), raw.clone().narrow(0, 0, 1)));
            assert!(one.is_ok() || !frozen, "{:?}", one.err());
            let model = trainer.model();
            assert_eq!(moments(&model) == before, frozen);
            let last = -model.given(&raw).unwrap().log_prob(x.clone()).mean().into_scalar::<f64>();
            assert!(last < first, "{last} {first}");
        }
    }
}

/// What is computed by hand does not reach a net behind the context, and says so.
#[test]
fn gradients_that_would_end_at_a_context_are_refused() {
    let device = host();
    let embedding = seeded(8, &device, || mlp(6, 3, &device).unwrap());
    let model = Embedded::new(embedding, stack(&device)).train();
    let x = inputs([5, 4], 6, &device, DType::F32);
    let given = model.given(&rows(5, 6, &device)).unwrap();
    let panic = panic_of(|| drop(reversible::gradients(&given, x.clone())));
    assert!(panic.contains("levels.0.1.conditioner.context.value"), "{panic}");
    assert!(panic.contains("context::Embedded"), "{panic}");
    let loss = |z: Tensor<2>, _| z.sum();
    let panic = panic_of(|| {
        drop(reversible::gradients_of(&given, x.clone(), &mut Tape::default(), loss));
    });
    assert!(panic.contains("context::Embedded"), "{panic}");
    // A leaf of one's own is a parameter like others.
    let leaf = Tensor::from_inner(rows(5, 3, &device)).require_grad();
    let given = model.model.given(&leaf).unwrap();
    let (_, grads) = reversible::gradients(&given, x);
    assert_eq!(gradient::<2, _>(&given, &grads).unwrap().dims(), [5, 3]);
}

/// A record is that of the model, whatever it was given, and an empty place stays empty.
#[test]
fn contexts_come_and_go() {
    let device = host();
    let (model, x) = (stack(&device), inputs([2, 4], 6, &device, DType::F32));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    model.save(&path).unwrap();
    let given = model.given(&rows(2, 3, &device)).unwrap();
    let again = given.given(&rows(1, 3, &device)).unwrap();
    assert_ne!(flat(again.log_prob(x.clone())), flat(given.log_prob(x.clone())));
    let dropped = again.without_context::<2>();
    assert_eq!(record::to_bytes(&dropped).unwrap(), std::fs::read(&path).unwrap());

    let loaded = record::load(stack(&device), &path).unwrap();
    let loaded = loaded.given(&rows(2, 3, &device)).unwrap();
    assert_eq!(flat(loaded.log_prob(x.clone())), flat(given.log_prob(x)));
}

/// A model comes back as it was saved: with the context that it was given, or without one.
#[test]
fn a_record_holds_the_context_that_was_given() {
    let device = host();
    let x = inputs([2, 4], 3, &device, DType::F32);
    let model = || build(1, &device, |_, device| conditional_stack(device));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for count in [1, 2] {
        let context = rows(count, 3, &device);
        let given = model().given(&context).unwrap();
        let expected = flat(given.log_prob(x.clone()));
        given.save(&path).unwrap();
        let others = [model(), model().given(&rows(3 - count, 3, &device)).unwrap()];
        for other in others {
            let loaded = record::load(other, &path).unwrap();
            assert_eq!(flat(loaded.log_prob(x.clone())), expected);
            // It is one parameter in all places, as any that is given.
            let loaded = loaded.train();
            let (_, grads) = reversible::gradients(&loaded, x.clone());
            let (_, direct) = reversible::gradients(&given.clone().train(), x.clone());
            let by_context = gradient::<2, _>(&loaded, &grads).unwrap();
            let expected = gradient::<2, _>(&given, &direct).unwrap();
            assert_eq!(flat(by_context), flat(expected));
        }
        // One without comes back without, whatever it is loaded into.
        model().save(&path).unwrap();
        let loaded = record::load(given, &path).unwrap();
        assert_eq!(record::to_bytes(&loaded).unwrap(), record::to_bytes(&model()).unwrap());
    }
    // By the path alone, too.
    let config = MafConfig::new(4, 2, vec![8]).with_context(3);
    let given = config.init(&device).unwrap().given(&rows(1, 3, &device)).unwrap();
    given.save(&path).unwrap();
    let loaded = Maf::load(&path, &device).unwrap();
    assert_eq!(flat(loaded.log_prob(x.clone())), flat(given.log_prob(x.clone())));
    // Contexts of another width are those of another model.
    let other = MafConfig::new(4, 2, vec![8]).with_context(2).init(&device).unwrap();
    assert!(record::load(other, &path).is_err());
}

/// A net that makes vectors of vectors, with batch normalization.
#[test]
fn one_context_for_all_has_no_variance() {
    #[derive(Module, Debug)]
    struct Look {
        norm: BatchNorm,
        net: Mlp,
    }
    impl Embedding<2, 2> for Look {
        fn embed(&self, raw: Tensor<2>) -> Tensor<2> {
            self.net.forward(self.norm.forward(raw).0)
        }
        fn embed_pass(mut self, raw: Tensor<2>, pass: burn_flows::Pass) -> (Self, Tensor<2>) {
            let (norm, raw) = self.norm.data_pass(raw, pass);
            self.norm = norm;
            let context = self.net.forward(raw);
            (self, context)
        }
    }
    let device = host();
    let look = || Look {
        norm: BatchNorm::new(5, &device).unwrap(),
        net: seeded(8, &device, || mlp(5, 3, &device).unwrap()),
    };
    let model =
        |look| Embedded::new(look, build(1, &device, |_, device| conditional_stack(device)));
    let x = inputs([6, 4], 4, &device, DType::F32);
    let mut trainer = Trainer::new(model(look()), Schedule::constant(1e-3));
    let before = record::to_bytes(&trainer.model()).unwrap();
    let error = trainer.step((x.clone(), rows(1, 5, &device))).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, FlowError::Invalid { .. }), "{error:?}");
    assert!(
        text.starts_with("BatchNorm: the values of a channel: got 1 in a batch of shape [1, 5]"),
        "{text}"
    );
    assert!(record::to_bytes(&trainer.model()).unwrap() == before);
    trainer.step((x.clone(), rows(6, 5, &device))).unwrap();
    // Frozen, it asks for none.
    let mut look = look();
    look.norm = look.norm.freeze();
    let mut trainer = Trainer::new(model(look), Schedule::constant(1e-3));
    trainer.step((x, rows(1, 5, &device))).unwrap();
}

/// The ready-made conditional models are loaded by the path alone and go on being conditional.
#[test]
fn conditional_models_are_loaded_by_path() {
    let device = host();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (x, context) = (inputs([4, 3], 1, &device, DType::F32), rows(4, 2, &device));
    let rng = || StdRng::seed_from_u64(3);
    for kind in [SplineFlowKind::Coupling, SplineFlowKind::Autoregressive] {
        let config = SplineFlowConfig::new(3, 2, vec![8]).with_context(2).with_kind(kind);
        let model = seeded(1, &device, || config.init(&mut rng(), &device).unwrap());
        let model = move_parameters(model, 4, 0.1);
        model.save(&path).unwrap();
        let loaded = SplineFlow::load(&path, &device).unwrap();
        assert_eq!(loaded.configuration::<SplineFlowConfig>(), Some(config));
        let log_prob =
            |model: &SplineFlow| flat(model.given(&context).unwrap().log_prob(x.clone()));
        assert_eq!(log_prob(&loaded), log_prob(&model));
    }
    let config = MafConfig::new(3, 2, vec![8]).with_context(2);
    let model = move_parameters(config.init(&device).unwrap(), 4, 0.1);
    model.save(&path).unwrap();
    let log_prob = |model: &Maf| flat(model.given(&context).unwrap().log_prob(x.clone()));
    assert_eq!(log_prob(&Maf::load(&path, &device).unwrap()), log_prob(&model));
    let error = SplineFlow::load(&path, &device).unwrap_err().to_string();
    assert!(error.contains("Maf"), "{error}");
}

/// A net of one's own that takes the context where it wants it, in a struct of one's own.
#[test]
fn nets_of_ones_own_take_contexts() {
    #[derive(Module, Debug)]
    struct Modulated {
        net: Mlp,
        context: Context,
    }
    impl Conditioner<2> for Modulated {
        fn forward(&self, x: Tensor<2>) -> Tensor<2> {
            let batch = x.dims()[0];
            self.net.forward(x) * self.context.rows(batch)
        }
    }
    #[derive(Module, Debug, Flow)]
    struct Step {
        norm: ActNorm,
        couple: AdditiveCoupling<Modulated>,
    }
    let device = host();
    let net = seeded(1, &device, || mlp(2, 2, &device).unwrap());
    let couple = Coupling::additive(
        Modulated { net, context: Context::new(2, &device) },
        Mask::first_half(),
    );
    let step = Step { norm: ActNorm::new(4, &device).unwrap(), couple };
    let model: FlowStack<2, _> =
        FlowStack::single(vec![step], StandardNormal::new(), &[4]).unwrap();
    let x = inputs([3, 4], 1, &device, DType::F32);
    let first = model.given(&rows(1, 2, &device)).unwrap().encode(x.clone()).0.into_parts();
    let second = model.given(&(rows(1, 2, &device) * 2.0)).unwrap().encode(x).0.into_parts();
    assert!((first[0].clone() - second[0].clone()).abs().max().into_scalar::<f32>() > 1e-3);
}
