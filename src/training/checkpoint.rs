//! Checkpoints: a training as files, from which it goes on exactly.
//!
//! A folder holds one checkpoint: the model's record and the optimizer's state, both named by their
//! step, and `checkpoint.txt`, which names them. That file is written beside and renamed after the
//! other two are on the disk, so at every moment the folder holds one whole checkpoint, the newest or
//! the one before.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Bytes;

use super::Trainer;
use crate::error::{FlowError, Result};
use crate::record;
use crate::tape::Memory;

const POINTER: &str = "checkpoint.txt";
const FORMAT: &str = "burn-flows checkpoint 2";

impl<M: Module> Trainer<M> {
    /// Writes model, optimizer, step and [`memory`](Trainer::memory) into `folder`, with a `note` of the caller's own (how far it
    /// has come in its files, for one).
    ///
    /// However the call is interrupted, the checkpoint that was there before stays whole until the
    /// new one is.
    ///
    /// # Errors
    /// [`FlowError::Io`] if a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>, note: &str) -> Result<()> {
        let folder = folder.as_ref();
        fs::create_dir_all(folder)
            .map_err(|source| FlowError::io("create the folder", folder, source, ADVICE))?;
        let step = self.num_steps;
        record::save(&self.model(), model_path(folder, step))?;
        let optimizer = self.optimizer.into_bytes().map_err(|error| FlowError::Record {
            path: optimizer_path(folder, step),
            reason: format!("the optimizer's state cannot be written ({error})"),
            advice: "report this as a bug".into(),
        })?;
        record::write_atomically(&optimizer_path(folder, step), &optimizer)?;
        let pointer = format!("{FORMAT}\nstep {step}\nmemory {}\n{note}", self.memory);
        record::write_atomically(&folder.join(POINTER), pointer.as_bytes())?;
        let keep = [model_path(folder, step), optimizer_path(folder, step), folder.join(POINTER)];
        remove_all_but(folder, &keep);
        Ok(())
    }

    /// Goes on from the checkpoint in `folder`: the trainer and the note that
    /// [`save`](Trainer::save) was given; `None` where there is no checkpoint, with the trainer as it
    /// was.
    ///
    /// `self` is a new trainer of a model of the same configuration, with the same schedule; its
    /// memory becomes that of the checkpoint.
    ///
    /// # Errors
    /// [`FlowError::Record`] if the checkpoint is of another configuration or not whole.
    pub fn resume(mut self, folder: impl AsRef<Path>) -> Result<(Self, Option<String>)> {
        let folder = folder.as_ref();
        let pointer = folder.join(POINTER);
        let text = match fs::read_to_string(&pointer) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((self, None)),
            Err(source) => return Err(FlowError::io("read", &pointer, source, ADVICE)),
        };
        let Pointer { step, memory, note } =
            Pointer::parse(&text).ok_or_else(|| FlowError::Record {
                path: pointer,
                reason: "this is not a checkpoint of this version".into(),
                advice: "remove the folder to start from the beginning".into(),
            })?;
        let model = record::load(self.model(), model_path(folder, step))?;
        let path = optimizer_path(folder, step);
        let bytes =
            fs::read(&path).map_err(|source| FlowError::io("read", &path, source, ADVICE))?;
        self.optimizer =
            self.optimizer.from_bytes(Bytes::from_bytes_vec(bytes)).map_err(|error| {
                FlowError::Record {
                    path,
                    reason: format!("this is not an optimizer's state ({error})"),
                    advice: "remove the folder to start from the beginning".into(),
                }
            })?;
        self.model = Some(model.train());
        (self.num_steps, self.memory) = (step, memory);
        Ok((self, Some(note.into())))
    }
}

/// Removes the checkpoint in `folder`, if there is one; however the call is interrupted, what is left
/// is the whole checkpoint or none.
///
/// # Errors
/// [`FlowError::Io`] if it cannot be removed.
pub fn remove_checkpoint(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    let pointer = folder.join(POINTER);
    match fs::remove_file(&pointer).map_err(|error| (error.kind(), error)) {
        // No checkpoint, or no folder that could hold one.
        Ok(()) | Err((ErrorKind::NotFound | ErrorKind::NotADirectory, _)) => {}
        Err((_, source)) => return Err(FlowError::io("remove", &pointer, source, ADVICE)),
    }
    remove_all_but(folder, &[]);
    Ok(())
}

const ADVICE: &str = "give a folder that can be read and written";

fn model_path(folder: &Path, step: usize) -> PathBuf {
    folder.join(format!("model-{step}.safetensors"))
}

fn optimizer_path(folder: &Path, step: usize) -> PathBuf {
    folder.join(format!("optimizer-{step}.bpk"))
}

/// What `checkpoint.txt` says.
struct Pointer<'a> {
    step: usize,
    memory: Memory,
    note: &'a str,
}

impl<'a> Pointer<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix(FORMAT)?.strip_prefix("\nstep ")?;
        let (step, rest) = rest.split_once('\n')?;
        let (memory, note) = rest.strip_prefix("memory ")?.split_once('\n')?;
        Some(Self { step: step.parse().ok()?, memory: memory.parse().ok()?, note })
    }
}

/// Removes the files of checkpoints other than those to keep, and what interrupted writes left;
/// whether that works does not matter to the checkpoint that is there.
fn remove_all_but(folder: &Path, keep: &[PathBuf]) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = ["model-", "optimizer-", POINTER].iter().any(|start| name.starts_with(start));
        if ours && !keep.contains(&path) {
            let _ = fs::remove_file(path);
        }
    }
}
