//! What a training step allocates: on the CPU the wide activations of the nets live in buffers that
//! are used again, so that what grows with the batch is the narrow tensors between the layers alone.

#[path = "common/counting.rs"]
mod counting;

use burn::tensor::DType;
use burn_flows::Flow;
use burn_flows::backend::hosts;
use burn_flows::models::GlowConfig;
use burn_flows::testing::inputs;
use burn_flows::training::{Memory, Schedule, Trainer};
use counting::Counting;
use rand::{SeedableRng, rngs::StdRng};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

const SIDE: usize = 16;
const NUM_STEPS: usize = 6;
const HIDDEN: usize = 128;

/// Bytes that a training step allocates at steady state.
fn step_bytes(device: &burn::tensor::Device, memory: Memory, batch: usize) -> usize {
    device.seed(0);
    let config = GlowConfig::new([3, SIDE, SIDE], 1, NUM_STEPS, HIDDEN);
    let stack = config.init(&mut StdRng::seed_from_u64(0), device).unwrap();
    let x = inputs([batch, 3, SIDE, SIDE], 0, device, DType::F32);
    let (stack, _) = stack.initialize(x.clone());
    let mut trainer = Trainer::new(stack, Schedule::constant(1e-4)).with_memory(memory);
    for _ in 0..3 {
        trainer.step(x.clone()).unwrap();
    }
    ALLOCATOR.during(|| trainer.step(x).unwrap()).1
}

/// Tensors of the size of the input that a layer may allocate in a step: its output and log-scale in
/// the forward pass, its input, the gradient and their halves in the backward pass, and some room for
/// what a backend copies.
const TENSORS_A_LAYER: usize = 5;

#[test]
fn only_narrow_tensors_grow_with_the_batch() {
    for (name, device) in hosts() {
        let device = device();
        for memory in [Memory::Reversible, Memory::Stored] {
            let (small, large) = (8, 24);
            let growth = step_bytes(&device, memory, large)
                .saturating_sub(step_bytes(&device, memory, small));
            let a_sample = growth / (large - small);
            let narrow = 3 * SIDE * SIDE * size_of::<f32>();
            let layers = 3 * NUM_STEPS;
            let wide = NUM_STEPS * 2 * HIDDEN * (SIDE / 2) * (SIDE / 2) * size_of::<f32>();
            println!(
                "{name}, {memory}: {a_sample} bytes a sample, {:.1} narrow tensors a layer, {:.2} of \
                 the hidden activations",
                a_sample as f64 / (narrow * layers) as f64,
                a_sample as f64 / wide as f64
            );
            assert!(
                a_sample <= TENSORS_A_LAYER * narrow * layers,
                "{name}, {memory}: {a_sample} bytes a sample"
            );
        }
    }
}
