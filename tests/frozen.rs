//! What is frozen stays to the last bit, in steps and in data passes, and the rest trains as it does
//! without: every parameter and every module of every flow in turn.

mod common;
mod fixtures;

use std::collections::BTreeSet;

use burn::module::{Flag, ModuleVisitor, Param, ParamGroup, ParamId};
use burn_flows::Pass;
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::training::{Memory, Schedule, Trainer, reversible};
use common::{gradients, host};
use fixtures::*;

/// A parameter as the model's visitor meets it.
#[derive(Clone, PartialEq)]
struct Entry {
    path: String,
    id: ParamId,
    trained: bool,
    /// Of a flag, none.
    values: Vec<f64>,
}

fn entries<M: Module>(module: &M) -> Vec<Entry> {
    #[derive(Default)]
    struct Collect {
        path: Vec<String>,
        found: Vec<Entry>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            let trained = param.is_require_grad();
            let values = values(param.val().inner());
            self.found.push(Entry { path: self.path.join("."), id: param.id, trained, values });
        }
        fn visit_flag(&mut self, flag: &Param<Flag>) {
            let (path, trained) = (self.path.join("."), flag.is_enabled());
            self.found.push(Entry { path, id: flag.id, trained, values: Vec::new() });
        }
    }
    let mut collect = Collect::default();
    module.clone().train().visit(&mut collect);
    collect.found
}

/// Every trained parameter by itself, and every module with a trained parameter or a flag in it.
fn groups(entries: &[Entry]) -> BTreeSet<Vec<usize>> {
    let mut groups = BTreeSet::new();
    for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.trained) {
        groups.insert(vec![index]);
        for (end, _) in entry.path.match_indices('.') {
            let module = &entry.path[..=end];
            let inside = entries.iter().enumerate().filter(|(_, it)| it.path.starts_with(module));
            groups.insert(inside.map(|(index, _)| index).collect());
        }
    }
    groups
}

/// Of a larger model, no more than so many, from its first to its last.
const MOST_GROUPS: usize = 40;

fn same_bits(before: &[f64], after: &[f64]) -> bool {
    before.iter().map(|value| value.to_bits()).eq(after.iter().map(|value| value.to_bits()))
}

/// The parameters after each of three steps.
fn trained<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>>(
    stack: FlowStack<D, F, P, S>,
    x: &Tensor<D>,
    memory: Memory,
) -> [Vec<Entry>; 3]
where
    FlowStack<D, F, P, S>: Module,
{
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-3)).with_memory(memory);
    [1, 2, 3].map(|step| {
        trainer.step(x.clone() * (step as f64 * 0.5)).unwrap();
        entries(&trainer.model())
    })
}

fn check_stack<const D: usize, F: Flow<D>, P: Prior<D>, S: SplitPrior<D>>(
    stack: FlowStack<D, F, P, S>,
    x: Tensor<D>,
    memory: Memory,
) where
    FlowStack<D, F, P, S>: Module,
{
    // A trainer's first step is not to start the layers from data: frozen in part they start elsewhere.
    let fresh = stack.clone();
    let stack = move_parameters(stack.initialize(x.clone()).0, 5, 0.1);
    let start = entries(&stack);
    let [expected, ..] = trained(stack.clone(), &x, memory);
    let groups = groups(&start);
    for group in groups.iter().step_by(groups.len().div_ceil(MOST_GROUPS).max(1)) {
        let paths: Vec<&str> = group.iter().map(|&index| start[index].path.as_str()).collect();
        let ids: Vec<_> = group.iter().map(|&index| start[index].id).collect();
        // Where a parameter is shared, all of its places.
        let is_of_group = |index: usize| ids.contains(&start[index].id);
        let group_of_ids = ParamGroup::from_ids(ids.clone());
        let frozen = stack.clone().freeze_group(group_of_ids.clone());
        // A norm's moments, or its weight, tell the gradients of what is around it what to follow.
        let alters_others =
            paths.iter().any(|path| path.contains("norm") || path.contains("moments"))
                && start.iter().any(|entry| entry.path.contains("moments"));
        // The flag of moments is what says of them that they stay.
        let holds_moments = paths.iter().any(|path| path.ends_with("moments.training"));
        let is_held = |index| is_of_group(index) && (start[index].trained || holds_moments);

        let steps = trained(frozen.clone(), &x, memory);
        for (step, after) in steps.iter().enumerate() {
            for (index, (before, after)) in start.iter().zip(after).enumerate() {
                if is_held(index) {
                    let same = same_bits(&before.values, &after.values);
                    assert!(same, "{paths:?} frozen: {} moved in step {step}", before.path);
                } else if step == 0 && !alters_others {
                    let same = same_bits(&expected[index].values, &after.values);
                    assert!(same, "{paths:?} frozen: {} trains in another way", before.path);
                }
            }
        }
        let fresh = fresh.clone().freeze_group(group_of_ids);
        let passes = [
            (entries(&fresh), fresh.initialize(x.clone()).0),
            (start.clone(), frozen.data_pass(x.clone() * 2.0, Pass::Observe).0),
        ];
        for (before, after) in passes.map(|(before, after)| (before, entries(&after))) {
            for (index, (before, after)) in before.iter().zip(&after).enumerate() {
                // The mark of an ActNorm says that its initialization is over, whatever it did.
                let is_mark =
                    before.path.ends_with("initialized") && !before.path.contains("moments");
                let same = same_bits(&before.values, &after.values);
                assert!(
                    same || is_mark || !is_held(index),
                    "{paths:?} frozen: {} moved in a data pass",
                    before.path
                );
            }
        }
    }
    // Something moves where something can, or the test has seen nothing.
    let model = stack.train();
    let (_, grads) = reversible::gradients(&model, x);
    let has_gradient = gradients(&model, &grads)
        .iter()
        .any(|(_, values)| values.iter().any(|&value| value != 0.0));
    let has_moments = start.iter().any(|entry| entry.path.contains("moments"));
    let moved = |(before, after): (&Entry, &Entry)| !same_bits(&before.values, &after.values);
    assert_eq!(start.iter().zip(&expected).any(moved), has_gradient || has_moments);
}

fn check<const D: usize, F: Flow<D>>(
    shape: [usize; D],
    make: impl Fn(&mut StdRng, &Device) -> Result<F>,
) where
    FlowStack<D, F>: Module,
{
    let device = host();
    let flow = move_parameters(build(1, &device, make), 4, 0.1);
    let x = inputs(shape, 2, &device, DType::F32);
    let stack: FlowStack<D, F> =
        FlowStack::single(flow, StandardNormal::new(), &shape[1..]).unwrap();
    check_stack(stack, x, Memory::Reversible);
}

macro_rules! test_each {
    ($($name:ident, $shape:expr, $laws:expr, |$rng:ident, $device:ident| $flow:expr;)*) => {$(
        #[test]
        fn $name() {
            check($shape, |$rng: &mut StdRng, $device: &Device| Ok($flow));
        }
    )*};
}

flows!(test_each);

macro_rules! stacks {
    ($($name:ident, $shape:expr, |$rng:ident, $device:ident| $stack:expr;)*) => {$(
        #[test]
        fn $name() {
            let device = host();
            let make = |$rng: &mut StdRng, $device: &Device| Ok($stack);
            let stack = move_parameters(build(1, &device, make), 4, 0.1);
            let x = inputs($shape, 2, &device, DType::F32);
            check_stack(stack, x, Memory::Stored);
        }
    )*};
}

stacks! {
    all_of_glow, [3, 1, 4, 8], |rng, device| glow([1, 4, 8], 2).init(rng, device)?;
    all_of_glow_plu, [3, 1, 4, 4], |rng, device| glow([1, 4, 4], 2).with_mixing(GlowMixingKind::Conv1x1Plu).init(rng, device)?;
    all_of_real_nvp, [3, 1, 4, 4], |_rng, device| initialized(RealNvpConfig::new([1, 4, 4], 2, 4, 1).with_logit(None, LogitForm::Code).init(device)?, [8, 1, 4, 4], device);
    all_of_real_nvp_vectors, [8, 4], |_rng, device| initialized(RealNvpVectorConfig::new(4, 3, vec![HIDDEN]).with_batch_norm(true).init(device)?, [64, 4], device);
    all_of_nice, [8, 5], |_rng, device| NiceConfig::new(5, vec![HIDDEN]).init(device)?;
    all_of_a_split, [8, 5], |rng, device| split_vector_stack(rng, device)?;
}

/// The axes of `Whiten` are no weight, whatever `unfreeze` asks of all parameters.
#[test]
fn the_axes_of_whiten_stay_after_unfreeze() {
    let device = host();
    let data = inputs([50, 3], 6, &device, DType::F32) * 3.0;
    let flow = build(1, &device, |_, device| {
        Ok((Whiten::fit(data.clone())?, maf(3, None, ScaleMap::default(), device)?))
    });
    type Stack = FlowStack<2, (Whiten, Autoregressive<Affine>)>;
    let stack: Stack = FlowStack::single(flow, StandardNormal::new(), &[3]).unwrap();
    let stack = stack.freeze().unfreeze();
    let whiten = |model: &Stack| {
        let whiten = &model.levels[0].0;
        (values(whiten.axes.val()), values(whiten.deviation.val()))
    };
    let (axes, deviation) = whiten(&stack);
    let x = inputs([32, 3], 3, &device, DType::F32);
    for memory in [Memory::Reversible, Memory::Stored] {
        let mut trainer = Trainer::new(stack.clone(), Schedule::constant(1e-2)).with_memory(memory);
        for _ in 0..5 {
            trainer.step(x.clone()).unwrap();
        }
        let (axes_after, deviation_after) = whiten(&trainer.model());
        assert_eq!(axes, axes_after, "the axes moved");
        assert_ne!(deviation, deviation_after, "the deviations did not");
    }
}

/// A flow without a single parameter left to train is still one to take steps with.
#[test]
fn a_wholly_frozen_model_takes_steps() {
    let device = host();
    let mixing = GlowMixingKind::Conv1x1Plu;
    let stack =
        build(1, &device, |rng, device| glow([1, 4, 4], 2).with_mixing(mixing).init(rng, device));
    let x = inputs([3, 1, 4, 4], 2, &device, DType::F32);
    let stack = stack.initialize(x.clone()).0.freeze();
    let start = entries(&stack);
    for memory in [Memory::Reversible, Memory::Stored] {
        for after in trained(stack.clone(), &x, memory) {
            let same = start.iter().zip(&after).all(|(a, b)| same_bits(&a.values, &b.values));
            assert!(same && after.iter().all(|entry| !entry.trained));
        }
    }
}
