//! What a training step keeps of its forward pass, where the options do not say.

use std::fs;
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::Tensor;
use burn_flows::prior::{Prior, SplitPrior};
use burn_flows::training::{Memory, Tape, reversible};
use burn_flows::{Flow, FlowStack};

/// How much slower than `stored` the default may be.
const SLOWER: f64 = 1.1;

/// Timed runs of each, of which the fastest counts: another program can only make them slower.
const RUNS: usize = 3;

/// Time after which no further run is started.
const PATIENCE: Duration = Duration::from_secs(10);

/// A choice and why it was made.
pub struct Choice {
    pub memory: Memory,
    pub reason: String,
}

/// `reversible`, unless it is more than 10 % slower than `stored` on the batch `x` and what `stored`
/// keeps fits the memory available.
pub fn choose<const D: usize, F, P, S>(stack: &FlowStack<D, F, P, S>, x: Tensor<D>) -> Choice
where
    F: Flow<D>,
    P: Prior<D>,
    S: SplitPrior<D>,
    FlowStack<D, F, P, S>: Module,
{
    let mut tape = Tape::new(Memory::Stored);
    let batch = x.dims()[0];
    stack.forward_on(x.clone().narrow(0, 0, 1), &mut tape);
    let bytes = tape.num_bytes() * batch;
    let mib = |bytes: usize| bytes as f64 / (1024.0 * 1024.0);
    if let Some(available) = available_bytes()
        && bytes > available
    {
        let (needed, available) = (mib(bytes), mib(available));
        let reason = format!("stored would take {needed:.0} MiB of {available:.0} available");
        return Choice { memory: Memory::Reversible, reason };
    }
    let model = stack.clone().train();
    let run = |memory| {
        let start = Instant::now();
        let (loss, _) = reversible::gradients_on(&model, x.clone(), &mut Tape::new(memory));
        loss.into_data();
        start.elapsed()
    };
    let start = Instant::now();
    // The first run of a program sets up threads and buffers.
    run(Memory::Reversible);
    let mut fastest = [Duration::MAX; 2];
    for _ in 0..RUNS {
        for (fastest, memory) in fastest.iter_mut().zip([Memory::Reversible, Memory::Stored]) {
            *fastest = run(memory).min(*fastest);
        }
        if start.elapsed() > PATIENCE {
            break;
        }
    }
    let ratio = fastest[0].as_secs_f64() / fastest[1].as_secs_f64();
    let memory = if ratio > SLOWER { Memory::Stored } else { Memory::Reversible };
    let stored = mib(bytes);
    let reason =
        format!("reversible takes {ratio:.2} times as long as stored, which keeps {stored:.0} MiB");
    Choice { memory, reason }
}

/// Memory that programs can still take, where the system tells it as Linux does.
fn available_bytes() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib * 1024)
}
