//! The end of a program.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::data::SkippedPicture;

/// A line on standard output. That nobody reads it (`mnist | head -1`) is no reason to stop: what counts is in the
/// files.
pub fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Ends a program: what it came to is said on standard output, if that is anything, an error in one line on standard error, with a
/// status that is not zero.
///
/// `words` are names of the library, each with what the program's user knows it by; a name that begins the
/// message and becomes an option is spelled as one.
///
/// ```no_run
/// use burn_flows::run::{Run, end_program};
///
/// fn main() -> std::process::ExitCode {
///     // "error: --checkpoint-every: got 0, needs at least 1; leave it out for the default"
///     let run = Run::new("runs/mine").with_steps(10).with_checkpoint_every(0);
///     end_program(run.validate().map(|()| "all is well"), &[("Run::with_", "--")])
/// }
/// ```
pub fn end_program<T: Display, E: Display>(
    answer: Result<T, E>,
    words: &[(&str, &str)],
) -> ExitCode {
    match answer {
        Ok(said) => {
            let said = said.to_string();
            if !said.is_empty() {
                say(said.trim_end());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", in_words(&error.to_string(), words));
            ExitCode::FAILURE
        }
    }
}

/// Names the pictures that were left out on standard error, and counts them.
pub fn say_skipped(skipped: &[SkippedPicture]) {
    let mut to = io::stderr();
    for picture in skipped {
        let _ = writeln!(to, "left out {}: {}", picture.name, picture.reason);
    }
    if !skipped.is_empty() {
        let _ = writeln!(to, "pictures left out: {}", skipped.len());
    }
}

/// A message in one line and in other words.
fn in_words(message: &str, words: &[(&str, &str)]) -> String {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines.join("; ");
    let text = text.strip_prefix("error: ").unwrap_or(&text).to_string();
    let text = words.iter().fold(text, |text, (name, word)| text.replace(name, word));
    match text.split_once(':') {
        Some((option, rest)) if option.starts_with("--") => {
            format!("{}:{rest}", option.replace('_', "-"))
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_in_the_words_of_the_program() {
        let words = [("Run::with_", "--"), ("Run::new", "--out")];
        let message = "Run::with_micro_batch: got a_b, needs more; say Run::with_resume";
        assert_eq!(in_words(message, &words), "--micro-batch: got a_b, needs more; say --resume");
        assert_eq!(in_words("error: one\n\n  two\n", &words), "one; two");
        assert_eq!(in_words("cannot read a_b: gone", &words), "cannot read a_b: gone");
    }
}
