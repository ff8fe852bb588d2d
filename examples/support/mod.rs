//! What the examples share: options, the folder of a run, pictures and plots.

#![allow(dead_code)] // no example uses all of it

pub mod arguments;
pub mod data;
pub mod images;
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
pub mod train;

use std::process::{ExitCode, Termination};

use clap::Parser;

/// Runs an example with its arguments: whatever goes wrong, a wrong argument included, is one line on
/// standard error and a status that is not zero.
pub fn run<A: Parser, T: Termination>(example: fn(&A) -> burn_flows::Result<T>) -> ExitCode {
    let arguments = match A::try_parse() {
        Ok(arguments) => arguments,
        // --help and --version
        Err(answer) if !answer.use_stderr() => {
            print!("{answer}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{}", one_line(&error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    match example(&arguments) {
        Ok(end) => end.report(),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A message of several lines in one.
fn one_line(message: &str) -> String {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}
