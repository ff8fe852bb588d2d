//! How far data, gradients and changes of shape reach: into flows that are turned around, through reshaping
//! flows of one's own, into nets of priors. Where they do not, that is an error by name.

mod common;
mod fixtures;

use burn::optim::{AdamConfig, GradientsParams};
use burn_flows::latent::Inpainting;
use burn_flows::prior::Prior;
use burn_flows::testing::to_f64;
use burn_flows::training::{Schedule, Trainer};
use burn_flows::variational::ReverseKl;
use burn_flows::{FlowError, Pass, linalg, metrics, record};
use common::{flat, host};
use fixtures::*;

fn vectors<F: Flow<2>>(flow: F, features: usize) -> FlowStack<2, F>
where
    FlowStack<2, F>: Module,
{
    FlowStack::single(flow, StandardNormal::new(), &[features]).unwrap()
}

fn far_from_normal() -> Tensor<2> {
    inputs([64, 2], 1, &host(), DType::F32) * 50.0 + 1000.0
}

fn refusal<M, B>(trainer: &mut Trainer<M>, batch: B) -> String
where
    B: burn_flows::training::Batch,
    M: burn_flows::training::Trainable<B>,
{
    let error = trainer.step(batch).expect_err("a layer that no data reach");
    assert!(matches!(error, FlowError::Invalid { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn a_stack_knows_the_shapes_of_a_turned_squeeze() {
    let device = host();
    let flow = (DiagonalScaling::new(4, &device).unwrap(), Inverse::new(Squeeze::new()));
    let stack: FlowStack<4, _> =
        FlowStack::single(flow, StandardNormal::new(), &[4, 2, 2]).unwrap();
    assert_eq!(stack.latent_shapes(), [[1, 1, 4, 4]]);
    assert_eq!(stack.sample(3, 1.0).dims(), [3, 4, 2, 2]);

    let no_shape =
        FlowStack::<4, _>::single(Inverse::new(Squeeze::new()), StandardNormal::new(), &[3, 2, 2]);
    let error = no_shape.map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("Inverse: the shape of a sample is [3, 2, 2]"), "{error}");
}

#[test]
fn turned_squeezes_stand_in_levels() {
    let device = host();
    let level = |channels| {
        let scaling = DiagonalScaling::new(channels, &device).unwrap();
        (HaarSqueeze::new(), scaling, Inverse::new(HaarSqueeze::new()))
    };
    let levels = vec![level(8), level(4)];
    let split = vec![StandardNormal::new()];
    let stack: FlowStack<4, _, StandardNormal, StandardNormal> =
        FlowStack::new(levels, split, StandardNormal::new(), &[2, 4, 4]).unwrap();
    assert_eq!(stack.sample(3, 1.0).dims(), [3, 2, 4, 4]);
    let x = inputs([3, 2, 4, 4], 1, &device, DType::F32);
    let (latents, _) = stack.encode(x.clone());
    assert!((stack.decode(latents) - x).abs().max().into_scalar::<f64>() < 1e-4);
}

#[test]
fn a_norm_that_waits_in_a_turned_flow_is_refused() {
    let device = host();
    let norm = ActNorm::new(2, &device).unwrap();
    let mut trainer = Trainer::new(vectors(Inverse::new(norm), 2), Schedule::constant(1e-3));
    let text = refusal(&mut trainer, far_from_normal());
    assert!(text.contains("turned around by Inverse"), "{text}");
    // Initialized before it is turned, it trains.
    let (norm, _) = ActNorm::new(2, &device).unwrap().initialize(far_from_normal());
    let mut trainer = Trainer::new(vectors(Inverse::new(norm), 2), Schedule::constant(1e-3));
    trainer.step(far_from_normal()).unwrap();
}

#[test]
fn moments_that_no_batch_reaches_are_refused() {
    let device = host();
    let flow = Inverse::new(BatchNorm::new(2, &device).unwrap());
    let mut trainer = Trainer::new(vectors(flow, 2), Schedule::constant(1e-3));
    let text = refusal(&mut trainer, far_from_normal());
    assert!(text.starts_with("Trainer: the running moments of levels.0.flow.moments"), "{text}");
    assert_eq!(trainer.num_steps(), 0);
    // Where they are frozen they observe nothing, and nothing is missing.
    let flow = Inverse::new(BatchNorm::new(2, &device).unwrap().freeze());
    let flow = (flow, DiagonalScaling::new(2, &device).unwrap());
    let mut trainer = Trainer::new(vectors(flow, 2), Schedule::constant(1e-3));
    trainer.step(inputs([64, 2], 1, &device, DType::F32)).unwrap();
}

/// A flow of one's own that changes shapes in another way than a squeeze.
#[derive(Module, Debug)]
struct Flatten {}

impl Flow<4> for Flatten {
    fn forward(&self, x: Tensor<4>) -> (Tensor<4>, Tensor<1>) {
        let [n, c, h, w] = x.dims();
        let zero = x.clone().reshape([n, c * h * w]).sum_dim(1).reshape([n]) * 0.0;
        (x.reshape([n, c * h * w, 1, 1]), zero)
    }

    fn inverse(&self, z: Tensor<4>) -> Tensor<4> {
        let n = z.dims()[0];
        z.reshape([n, 2, 3, 3])
    }

    fn latent_shape(&self, [n, c, h, w]: [usize; 4]) -> Result<[usize; 4]> {
        Ok([n, c * h * w, 1, 1])
    }
}

#[test]
fn a_reshaping_flow_of_ones_own_is_trained() {
    let device = host();
    let flow = (Flatten {}, ActNorm::new(18, &device).unwrap());
    let stack: FlowStack<4, _> =
        FlowStack::single(flow, StandardNormal::new(), &[2, 3, 3]).unwrap();
    let x = inputs([8, 2, 3, 3], 1, &device, DType::F32);
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-3));
    trainer.step(x.clone()).unwrap();
    // As a flow of its own it gives back what it was given.
    let stack = trainer.model();
    let (z, _) = Flow::forward(&stack, x.clone());
    assert_eq!(z.dims(), x.dims());
    assert!((Flow::inverse(&stack, z) - x).abs().max().into_scalar::<f64>() < 1e-4);
}

/// What `unfreeze` lets go are parameters; the masks of a `Made` are none, whatever Burn makes of them.
#[test]
fn a_made_is_autoregressive_after_unfreezing() {
    let device = host();
    for map in [ScaleMap::default(), ScaleMap::SoftClip { bound: 3.0 }] {
        let flow = build(1, &device, |_, device| maf(3, None, map, device));
        let mut model = vectors(flow, 3).freeze().unfreeze().train();
        let x = inputs([32, 3], 3, &device, DType::F32);
        let mut optimizer = AdamConfig::new().init();
        for _ in 0..30 {
            let loss = model.log_prob(x.clone()).mean().neg();
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-2, model, grads);
        }
        let flow = to_f64(model.valid()).levels.pop().unwrap();
        let row = inputs([1, 3], 4, &device, DType::F64);
        let got = flat(flow.forward(row.clone()).1)[0];
        let mut jacobian = Vec::new();
        for output in 0..3 {
            let leaf = Tensor::from_inner(row.clone()).require_grad();
            let z = flow.forward(leaf.clone()).0.narrow(1, output, 1).sum();
            jacobian.extend(flat(leaf.grad(&z.backward()).unwrap()));
        }
        let expected = linalg::Lu::new(&jacobian, 3).slogdet().1;
        assert!((got - expected).abs() < 1e-6, "ln|det| {got}, the Jacobian's is {expected}");
    }
}

#[test]
#[should_panic(expected = "the largest gradient norm is -1, but must be above 0")]
fn a_negative_bound_of_the_gradient_is_refused() {
    let stack = vectors(DiagonalScaling::new(2, &host()).unwrap(), 2);
    let _ = Trainer::new(stack, Schedule::constant(0.05)).with_max_gradient_norm(-1.0);
}

#[test]
#[should_panic(expected = "call gradients on a model in training")]
fn a_reversible_gradient_of_a_plain_model_is_refused() {
    let stack = vectors(DiagonalScaling::new(2, &host()).unwrap(), 2);
    let log_p = |x: Tensor<2>| StandardNormal::new().log_prob(x);
    let _ = ReverseKl::new(4).with_reversible(true).gradients(&stack, log_p, &mut rng(1));
}

#[test]
fn nothing_is_filled_in_and_off_by_nothing() {
    let flow = DiagonalScaling::new(2, &host()).unwrap();
    let none = inputs([0, 2], 1, &host(), DType::F32);
    assert_eq!(metrics::inversion_error(&flow, none.clone()), 0.0);
    let how = Inpainting { num_steps: 3, ..Default::default() };
    let filled = vectors(flow, 2).inpaint(none.clone(), none, &how, &mut rng(1)).unwrap();
    assert_eq!((filled.x.dims(), filled.log_prob_after.len()), ([0, 2], 0));
}

#[test]
fn a_split_behind_the_last_channel_says_so() {
    let device = host();
    for at in [0, 4, 9] {
        let net = build(1, &device, |_, device| MlpConfig::new(2, vec![HIDDEN], 4).init(device));
        let mask = Mask::SplitAt(at, Parity::Even);
        let coupling = Coupling::affine(net, mask, ScaleMap::default(), 4, &device);
        let error = coupling.map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("num_channels is 4, but must be more than {at}")),
            "{error}"
        );
    }
}

/// A net with all that takes something from data.
#[derive(Module, Debug)]
struct Normed {
    act: ActNorm,
    batch: BatchNorm,
    net: Mlp,
}

impl Normed {
    fn new(features: usize, outputs: usize, device: &Device) -> Self {
        let (act, batch) = (ActNorm::new(features, device), BatchNorm::new(features, device));
        let net = mlp(features, outputs, device).unwrap();
        Self { act: act.unwrap(), batch: batch.unwrap(), net }
    }

    fn has_seen_data(&self) -> bool {
        self.act.is_initialized() && self.batch.is_initialized()
    }
}

impl Conditioner<2> for Normed {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.net.forward(self.batch.forward(self.act.forward(x).0).0)
    }

    fn data_pass(self, x: Tensor<2>, pass: Pass) -> (Self, Tensor<2>) {
        let (act, x) = self.act.data_pass(x, pass);
        let (batch, x) = self.batch.data_pass(x, pass);
        let y = self.net.forward(x);
        (Self { act, batch, ..self }, y)
    }
}

/// A normal about what its net makes of the first feature.
#[derive(Module, Debug)]
struct Chained {
    net: Normed,
}

impl Prior<2> for Chained {
    fn log_prob(&self, z: Tensor<2>) -> Tensor<1> {
        let mean = self.net.forward(z.clone().narrow(1, 0, 1));
        let rest = z.clone().narrow(1, 1, 1) - mean;
        StandardNormal::new().log_prob(Tensor::cat(vec![z.narrow(1, 0, 1), rest], 1))
    }

    fn sample(
        &self,
        shape: [usize; 2],
        temperature: f64,
        rng: &mut impl rand::Rng,
        device: &Device,
        dtype: DType,
    ) -> Tensor<2> {
        let z = Prior::<2>::sample(&StandardNormal::new(), shape, temperature, rng, device, dtype);
        let first = z.clone().narrow(1, 0, 1);
        let rest = z.narrow(1, 1, 1) + self.net.forward(first.clone());
        Tensor::cat(vec![first, rest], 1)
    }

    fn data_pass(mut self, z: Tensor<2>, pass: Pass) -> Self {
        self.net = self.net.data_pass(z.narrow(1, 0, 1), pass).0;
        self
    }
}

#[derive(Module, Debug, burn_flows::prior::Prior)]
#[allow(clippy::large_enum_variant)] // there are two of it
enum Base {
    Chained(Chained),
    #[allow(dead_code)]
    Normal(StandardNormal),
}

/// A prior takes its start and its moments from data as layers do, at the end of a model and of its levels.
#[test]
fn data_reach_the_nets_of_priors() {
    let device = host();
    let base = || Base::Chained(Chained { net: Normed::new(1, 1, &device) });
    let scaling = |features| DiagonalScaling::new(features, &device).unwrap();
    let levels = vec![scaling(4), scaling(2)];
    let stack: FlowStack<2, _, Base, Base> =
        FlowStack::new(levels, vec![base()], base(), &[4]).unwrap();
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-3));
    let x = inputs([64, 4], 1, &device, DType::F32) * 50.0 + 1000.0;
    trainer.step(x.clone()).unwrap();
    let stack = trainer.model();
    for prior in [&stack.split_priors[0], &stack.prior] {
        let Base::Chained(prior) = prior else { unreachable!("it was chained") };
        assert!(prior.net.has_seen_data());
    }
    assert!(is_finite(stack.log_prob(x)));
}

fn is_finite(values: Tensor<1>) -> bool {
    flat(values).iter().all(|value| value.is_finite())
}

/// Where the net sees the contexts, it takes its start from them.
#[test]
fn contexts_reach_the_nets_of_priors() {
    let device = host();
    let contexts = inputs([64, 3], 2, &device, DType::F32) * 50.0 + 1000.0;
    let x = inputs([64, 2], 1, &device, DType::F32);
    let numbers = ContextMixture::<Normed>::num_numbers(2, 2);
    let mixture = ContextMixture::new(Normed::new(3, numbers, &device), 2, 3, &device).unwrap();
    let stack: FlowStack<2, _, _> =
        FlowStack::single(DiagonalScaling::new(2, &device).unwrap(), mixture, &[2]).unwrap();
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-3));
    trainer.step((x.clone(), contexts.clone())).unwrap();
    let net = trainer.model().prior.net;
    assert!(net.has_seen_data());
    let normed = net.act.forward(contexts.clone()).0;
    assert!(normed.mean().abs().into_scalar::<f64>() < 0.1, "not from the contexts");

    let normal = ContextNormal::new(Normed::new(3, 4, &device), 3, &device);
    let stack: FlowStack<2, _, _> =
        FlowStack::single(DiagonalScaling::new(2, &device).unwrap(), normal, &[2]).unwrap();
    // A prior without a context waits for it.
    let (stack, _) = stack.initialize(x.clone());
    assert!(!stack.prior.net.has_seen_data());
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-3));
    trainer.step((x, contexts)).unwrap();
    assert!(trainer.model().prior.net.has_seen_data());
}

#[derive(Module, Debug, Flow)]
struct Wrapped<F> {
    flow: F,
}

/// A flow and the same turned around are not one model.
#[test]
fn a_record_knows_which_way_a_flow_is_turned() {
    let device = host();
    let made = || build(1, &device, |_, device| maf(3, None, ScaleMap::default(), device));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    record::save(&vectors(Inverse::new(made()), 3), &path).unwrap();
    let wrapped = record::load(vectors(Wrapped { flow: made() }, 3), &path);
    assert!(wrapped.is_err(), "an IAF was loaded as a MAF");
    record::load(vectors(Inverse::new(made()), 3), &path).unwrap();
}

/// A parameter of the name that comes to mind first.
#[derive(Module, Debug, Flow)]
struct Pair<W> {
    first: W,
    norm: ActNorm,
}

#[test]
fn a_generic_struct_may_name_its_parameters_as_it_likes() {
    let device = host();
    let first = DiagonalScaling::new(2, &device).unwrap();
    let pair = Pair { first, norm: ActNorm::new(2, &device).unwrap() };
    let (pair, z) = pair.initialize(far_from_normal());
    assert!(pair.norm.is_initialized() && z.mean().abs().into_scalar::<f64>() < 1e-3);
}
