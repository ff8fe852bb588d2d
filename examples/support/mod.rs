//! What the examples share: options, the folder of a run, pictures and plots.

#![allow(dead_code)] // no example uses all of it

pub mod arguments;
pub mod available;
pub mod classes;
pub mod corner;
pub mod data;
pub mod foreign;
pub mod images;
pub mod interrupt;
pub mod memory;
pub mod model;
pub mod moons;
#[cfg(feature = "images")]
pub mod photographs;
pub mod pictures;
pub mod plane;
pub mod plot;
pub mod report;
pub mod run;
pub mod saved;
#[cfg(feature = "images")]
pub mod subject;
pub mod table;
pub mod tasks;
pub mod train;

use std::process::{ExitCode, Termination};

use clap::Parser;

/// A line on standard output. That nobody reads it (`mnist | head -1`) is no reason to stop: what counts
/// is in the files.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}
pub(crate) use say;

/// The same on standard error.
macro_rules! say_err {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}
pub(crate) use say_err;

/// Runs an example with its arguments: whatever goes wrong, a wrong argument included, is one line on
/// standard error and a status that is not zero.
pub fn run<A: Parser, T: Termination>(example: fn(&A) -> burn_flows::Result<T>) -> ExitCode {
    let arguments = match A::try_parse() {
        Ok(arguments) => arguments,
        // --help and --version
        Err(answer) if !answer.use_stderr() => {
            let text = answer.to_string();
            say!("{}", text.trim_end());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            say_err!("{}", one_line(&error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    match example(&arguments) {
        Ok(end) => end.report(),
        Err(error) => {
            say_err!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A message of several lines in one.
fn one_line(message: &str) -> String {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}
