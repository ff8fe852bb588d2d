//! What a training step keeps of its forward pass, where the user does not say.

use burn::optim::GradientsParams;

use super::available;
use super::{Batch, Trainable};
use crate::tape::{Memory, Tape};

/// A choice and why it was made.
pub(super) struct Choice {
    pub memory: Memory,
    pub reason: String,
}

/// `stored` where it saves products of the couplings' nets and fits the memory available, else
/// `reversible`.
///
/// Reversible training computes these products again, a third more than `stored` does, which is more
/// than the tenth of its time that its memory is worth. Where there is nothing to save, both take about
/// as long. The choice follows from the model alone and not from a measurement, so that a run that is
/// started again makes the same one. `model` is in training; `samples` of a batch go through it at once.
pub(super) fn choose<M: Trainable<B>, B: Batch>(model: &M, batch: &B, samples: usize) -> Choice {
    // Batch normalization has no variance of one value.
    let count = batch.num_samples().min(2);
    let few = batch.narrow(0, count);
    let bytes_of = |memory| {
        let (mut tape, mut grads) = (Tape::new(memory), GradientsParams::new());
        model.gradients(few.clone(), 1.0, &mut tape, &mut grads, |_| false);
        tape.num_bytes() * samples / count
    };
    // The second keeps the inputs of all layers and nothing of their inside.
    let (stored, inputs) = (bytes_of(Memory::Stored), bytes_of(Memory::Checkpoint { every: 1 }));
    let mib = |bytes: usize| bytes as f64 / (1024.0 * 1024.0);
    if stored <= inputs {
        let reason = "stored would save no work".into();
        return Choice { memory: Memory::Reversible, reason };
    }
    if let Some(available) = available::bytes()
        && stored > available
    {
        let (needed, available) = (mib(stored), mib(available));
        let reason = format!("stored would take {needed:.0} MiB of {available:.0} available");
        return Choice { memory: Memory::Reversible, reason };
    }
    let reason = format!("keeps {:.0} MiB instead of computing it again", mib(stored));
    Choice { memory: Memory::Stored, reason }
}
