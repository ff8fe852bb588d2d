//! What the examples share: options, the folder of a run, pictures and plots.

#![allow(dead_code)] // no example uses all of it

pub mod arguments;
pub mod pictures;
pub mod plot;
pub mod run;
pub mod train;

use std::process::ExitCode;

/// Runs an example: an error is one line on standard error and a status that is not zero.
pub fn report(result: burn_flows::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
