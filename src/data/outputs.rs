//! Pictures that a program made, told from those it learns from.

#[cfg(feature = "images")]
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::{FlowError, Result};

/// The list of a folder's outputs, a name a line. The dot keeps it out of the way.
const LIST: &str = ".burn-flows";

/// Notes that the picture at `path` is an output and no data: [`ImageFolder`](super::ImageFolder)
/// passes it over, so that a program may write into the folder that it learns from.
///
/// The name goes into the list `.burn-flows` beside the picture, one a line. Call it before the picture
/// is written; delete the list to use outputs as data.
///
/// # Errors
/// [`FlowError::Io`] if the list cannot be written.
///
/// ```
/// use burn_flows::data::note_output;
///
/// let folder = tempfile::tempdir()?;
/// note_output(folder.path().join("samples.png"))?;
/// assert_eq!(std::fs::read(folder.path().join(".burn-flows"))?, b"samples.png\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn note_output(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let list = path.with_file_name(LIST);
    let write = || {
        let text = match fs::read(&list) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        if text.split(|byte| *byte == b'\n').any(|line| line == name.as_bytes()) {
            return Ok(());
        }
        // A line that was cut off must not swallow this one.
        let start = if text.last().is_none_or(|byte| *byte == b'\n') { "" } else { "\n" };
        let line = format!("{start}{name}\n");
        // In one piece, and at the end: programs may write into one folder at the same time.
        File::options().create(true).append(true).open(&list)?.write_all(line.as_bytes())
    };
    write().map_err(|source| {
        FlowError::io(
            "write",
            &list,
            source,
            "check that its folder exists, can be written and has room",
        )
    })
}

/// The outputs in `folder`.
#[cfg(feature = "images")]
pub(super) fn outputs(folder: &Path) -> HashSet<String> {
    let list = fs::read(folder.join(LIST)).unwrap_or_default();
    String::from_utf8_lossy(&list).lines().map(String::from).collect()
}
