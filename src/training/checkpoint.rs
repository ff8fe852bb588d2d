//! Checkpoints: a training as files, from which it goes on exactly.
//!
//! A folder holds one checkpoint: `checkpoint.txt` and the files that it names, the model's record, the
//! optimizer's state and, where there are averaged parameters, the record of the model that has them. These have one of two names each and are written under those that are
//! not in use; then `checkpoint.txt` is replaced, so at every moment it names one whole checkpoint, the
//! newest or the one before, and what an interruption leaves is overwritten by the next call but one.
//! Nothing else in the folder is touched. `checkpoint.lock` makes those wait who come at the same time.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::store::burn_pack;
use burn::tensor::Bytes;

use super::Trainer;
use super::average::Average;
use crate::error::{FlowError, Result};
use crate::record;
use crate::tape::Memory;

const POINTER: &str = "checkpoint.txt";
const LOCK: &str = "checkpoint.lock";
const FORMAT: &str = "burn-flows checkpoint 3";

/// With a line for averages.
const FORMAT_4: &str = "burn-flows checkpoint 4";

/// Without a line for the optimizer, which was always [`Adam`](super::Adam), and with files that are named
/// by their step.
const FORMAT_2: &str = "burn-flows checkpoint 2";

/// In place of the name of an optimizer whose type is not known.
const UNNAMED: &str = "-";

/// In place of a memory that the first batch is to decide.
const UNDECIDED: &str = "undecided";

impl<M: Module> Trainer<M> {
    /// Writes model, optimizer, step and [`memory`](Trainer::memory) into `folder`, with a `note` of the caller's own (how far it
    /// has come in its files, for one).
    ///
    /// However the call is interrupted, the checkpoint that was there before stays whole until the
    /// new one is; of several calls at the same time, in one process or in many, one follows the other.
    /// Files that are not of a checkpoint stay as they are.
    ///
    /// # Errors
    /// [`FlowError::Io`] if a file cannot be written; [`FlowError::Record`] if `checkpoint.txt` is not
    /// of this crate, or a parameter is not finite.
    pub fn save(&self, folder: impl AsRef<Path>, note: &str) -> Result<()> {
        let folder = folder.as_ref();
        fs::create_dir_all(folder)
            .map_err(|source| FlowError::io("create the folder", folder, source, ADVICE))?;
        let _lock = lock(folder)?;
        let before = Pointer::read(folder)?;
        let slot = match &before {
            Some(Pointer { files: Files::InSlot('a'), .. }) => 'b',
            _ => 'a',
        };
        let files = Files::InSlot(slot);
        let [model, optimizer] = files.paths(folder);
        record::save(&self.model(), model)?;
        let average = self.average.as_ref().and_then(Average::model);
        if let (Some(average), Some(path)) = (average, files.of_average(folder)) {
            record::save(average, path)?;
        }
        let state = self.optimizer.into_bytes().map_err(|error| FlowError::Record {
            path: optimizer.clone(),
            reason: format!("the optimizer's state cannot be written ({error})"),
            advice: "report this as a bug".into(),
        })?;
        record::write_atomically(&optimizer, &state)?;
        let pointer = Pointer {
            files,
            step: self.num_steps,
            memory: Some(self.memory).filter(|_| !self.chooses_memory),
            optimizer: self.optimizer_name.clone(),
            num_updates: self.average.as_ref().map(Average::num_updates),
            note: note.into(),
        };
        record::write_atomically(folder.join(POINTER), pointer.to_string().as_bytes())?;
        if let Some(before) = before {
            before.files.remove(folder);
        }
        Ok(())
    }

    /// Goes on from the checkpoint in `folder`: the trainer and the note that
    /// [`save`](Trainer::save) was given; `None` where there is no checkpoint, with the trainer as it
    /// was.
    ///
    /// `self` is a new trainer of a model of the same configuration, with the same schedule and
    /// optimizer; its memory becomes that of the checkpoint.
    ///
    /// # Errors
    /// [`FlowError::Record`] if the checkpoint is of another configuration or optimizer, or not whole.
    /// Optimizers are told apart by the state that they have and by their types, where both trainings
    /// were given one and not Burn's wrapper around any of them: `AdamWConfig::new().build()` is known
    /// for AdamW, by `init()` it passes for Adam, whose state is of the same form.
    pub fn resume(mut self, folder: impl AsRef<Path>) -> Result<(Self, Option<String>)> {
        let folder = folder.as_ref();
        // Where the folder cannot be written there is nobody to wait for.
        let lock = File::open(folder.join(LOCK)).ok();
        let _ = lock.as_ref().map(File::lock_shared);
        let Some(pointer) = Pointer::read(folder)? else {
            return Ok((self, None));
        };
        let Pointer { files, step, memory, optimizer, num_updates, note } = pointer;
        let [model, path] = files.paths(folder);
        let model = record::load(self.model(), model)?;
        let average = match (&self.average, num_updates) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(FlowError::Record {
                    path: folder.join(POINTER),
                    reason: "this training keeps averages of its parameters, the trainer does not"
                        .into(),
                    advice: "resume with Trainer::with_average".into(),
                });
            }
            (Some(average), num_updates) => {
                let count = num_updates.unwrap_or(0);
                let path = files.of_average(folder).filter(|_| count > 0);
                let model = path.map(|path| record::load(self.model(), path)).transpose()?;
                Some(average.resumed(model, count))
            }
        };
        let bytes =
            fs::read(&path).map_err(|source| FlowError::io("read", &path, source, ADVICE))?;
        let wrong = |reason: String, advice: &str| FlowError::Record {
            path: path.clone(),
            reason,
            advice: advice.into(),
        };
        if let (Some(found), Some(own)) = (&optimizer, &self.optimizer_name)
            && found != own
        {
            return Err(wrong(
                format!("this is the state of {found}, the trainer has {own}"),
                OPTIMIZER,
            ));
        }
        let unreadable = |error: &dyn Display| {
            let reason = format!("this is not an optimizer's state ({error})");
            wrong(reason, ANOTHER)
        };
        let found = described(&bytes).map_err(|error| unreadable(&error))?;
        self.optimizer = self
            .optimizer
            .from_bytes(Bytes::from_bytes_vec(bytes))
            .map_err(|error| unreadable(&error))?;
        // What an optimizer does not know in a state it leaves out, without a word.
        let taken = self.optimizer.into_bytes().map_err(|error| unreadable(&error))?;
        let taken = described(&taken).map_err(|error| unreadable(&error))?;
        for (name, dtype) in &found {
            match taken.get(name) {
                None => {
                    let reason =
                        format!("this is the state of another optimizer, which has no {name}");
                    return Err(wrong(reason, OPTIMIZER));
                }
                Some(read) if read != dtype => {
                    let reason = format!("{name} is {dtype}, but Burn reads it as {read}");
                    return Err(wrong(
                        reason,
                        "train in f32, or with the optimizer training::Adam",
                    ));
                }
                Some(_) => {}
            }
        }
        self.model = Some(model.train());
        self.num_steps = step;
        self.chooses_memory = memory.is_none();
        self.memory = memory.unwrap_or_default();
        (self.good, self.average) = (None, average);
        Ok((self, Some(note)))
    }
}

/// Removes the checkpoint in `folder`, if there is one, and nothing else; however the call is
/// interrupted, what is left is the whole checkpoint or none.
///
/// # Errors
/// [`FlowError::Io`] if it cannot be removed; [`FlowError::Record`] if `checkpoint.txt` is not of this
/// crate.
pub fn remove_checkpoint(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    if Pointer::read(folder)?.is_none() {
        return Ok(());
    }
    let _lock = lock(folder)?;
    // Another one may have come first.
    if let Some(checkpoint) = Pointer::read(folder)? {
        let pointer = folder.join(POINTER);
        fs::remove_file(&pointer)
            .map_err(|source| FlowError::io("remove", &pointer, source, ADVICE))?;
        checkpoint.files.remove(folder);
    }
    Ok(())
}

const OPTIMIZER: &str = "resume with the optimizer that wrote it (Trainer::with_optimizer)";

/// Names and types of everything in an optimizer's state.
fn described(bytes: &[u8]) -> Result<BTreeMap<String, String>, burn_pack::Error> {
    let reader = burn_pack::Reader::from_bytes(Bytes::from_bytes_vec(bytes.to_vec()))?;
    let numbers = reader.scalars().keys().map(|name| (name.clone(), "a number".into()));
    let mut described: BTreeMap<String, String> = numbers.collect();
    for tensor in reader.into_tensors()? {
        described.insert(tensor.name.clone(), format!("{:?}", tensor.dtype));
    }
    Ok(described)
}

const ADVICE: &str = "give a folder that can be read and written";

const ANOTHER: &str = "give another folder, or remove checkpoint.txt to start from the beginning";

/// Waits until nobody else is at the checkpoint in `folder`, and keeps others waiting while the answer
/// lives.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| FlowError::io("write", &path, source, ADVICE))?;
    // Where the file system has no locks, the caller sees to it that there is one writer.
    let _ = file.lock();
    Ok(file)
}

/// The files of a checkpoint, the model's record, the optimizer's state and the record with averages, by what
/// names them.
enum Files {
    /// One of two places, `a` and `b`.
    InSlot(char),
    /// The step, in format 2.
    OfStep(usize),
}

impl Files {
    fn paths(&self, folder: &Path) -> [PathBuf; 2] {
        match self {
            Self::InSlot(slot) => {
                ["safetensors", "bpk"].map(|kind| folder.join(format!("checkpoint-{slot}.{kind}")))
            }
            Self::OfStep(step) => [
                folder.join(format!("model-{step}.safetensors")),
                folder.join(format!("optimizer-{step}.bpk")),
            ],
        }
    }

    /// The record of the model with averages; format 2 had none.
    fn of_average(&self, folder: &Path) -> Option<PathBuf> {
        match self {
            Self::InSlot(slot) => {
                Some(folder.join(format!("checkpoint-{slot}.average.safetensors")))
            }
            Self::OfStep(_) => None,
        }
    }

    /// Whether that works does not matter to the checkpoint that is there now.
    fn remove(&self, folder: &Path) {
        for path in self.paths(folder).into_iter().chain(self.of_average(folder)) {
            let _ = fs::remove_file(path);
        }
    }
}

/// What `checkpoint.txt` says.
struct Pointer {
    files: Files,
    step: usize,
    /// `None` before the first batch, which is to decide.
    memory: Option<Memory>,
    /// The name of its type, where it is known.
    optimizer: Option<String>,
    /// Updates of the averages, where there are any.
    num_updates: Option<usize>,
    note: String,
}

impl std::fmt::Display for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { files, step, memory, optimizer, num_updates, note } = self;
        let optimizer = optimizer.as_deref().unwrap_or(UNNAMED);
        let memory = memory.map_or(UNDECIDED.into(), |memory| memory.to_string());
        writeln!(f, "{}", if num_updates.is_some() { FORMAT_4 } else { FORMAT })?;
        if let Files::InSlot(slot) = files {
            writeln!(f, "files {slot}")?;
        }
        write!(f, "step {step}\nmemory {memory}\noptimizer {optimizer}\n")?;
        if let Some(count) = num_updates {
            writeln!(f, "average {count}")?;
        }
        f.write_str(note)
    }
}

impl Pointer {
    /// That of the checkpoint in `folder`; `None` where there is none, or no folder that could hold
    /// one.
    fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(POINTER);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(None);
            }
            Err(source) => return Err(FlowError::io("read", &path, source, ADVICE)),
        };
        match std::str::from_utf8(&bytes).ok().and_then(Self::parse) {
            Some(pointer) => Ok(Some(pointer)),
            None => Err(FlowError::Record {
                path,
                reason: "this is not a checkpoint of this version".into(),
                advice: ANOTHER.into(),
            }),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (format, rest) = text.split_once('\n')?;
        let (slot, rest) = match format {
            FORMAT | FORMAT_4 => {
                let (slot, rest) = rest.strip_prefix("files ")?.split_once('\n')?;
                (Some(slot.parse().ok().filter(|slot| matches!(slot, 'a' | 'b'))?), rest)
            }
            FORMAT_2 => (None, rest),
            _ => return None,
        };
        let (step, rest) = rest.strip_prefix("step ")?.split_once('\n')?;
        let (memory, rest) = rest.strip_prefix("memory ")?.split_once('\n')?;
        let (optimizer, rest) = match slot {
            Some(_) => rest.strip_prefix("optimizer ")?.split_once('\n')?,
            None => ("Adam", rest),
        };
        let (num_updates, note) = match format {
            FORMAT_4 => {
                let (count, note) = rest.strip_prefix("average ")?.split_once('\n')?;
                (Some(count.parse().ok()?), note)
            }
            _ => (None, rest),
        };
        let optimizer = Some(optimizer).filter(|&name| name != UNNAMED).map(str::to_string);
        let step = step.parse().ok()?;
        let files = slot.map_or(Files::OfStep(step), Files::InSlot);
        let memory = match memory {
            UNDECIDED => None,
            memory => Some(memory.parse().ok()?),
        };
        Some(Self { files, step, memory, optimizer, num_updates, note: note.into() })
    }
}
