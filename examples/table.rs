//! A flow of your own on a table of yours, with a report, early stopping and resume.
//!
//! `cargo run --release --example table -- FILE.csv`

use std::process::ExitCode;

use burn_flows::conditioner::MlpConfig;
use burn_flows::coupling::{Coupling, Mask, Parity, ScaleMap};
use burn_flows::data::Table;
use burn_flows::norm::ActNorm;
use burn_flows::run::{HeldOut, Run, Source, end_program};
use burn_flows::training::{Schedule, Trainer};
use burn_flows::{FlowStack, Result, backend, prior::StandardNormal};

fn main() -> ExitCode {
    end_program(run(), &[])
}

fn run() -> Result<String> {
    let table = Table::read(std::env::args().nth(1).unwrap_or("table.csv".into()))?;
    let (train, held_out) = table.divide(|row| row % 10 == 9);

    let (features, device) = (table.columns(), backend::device());
    let step = |i| {
        let mask = Mask::ChannelHalves(Parity::of(i));
        let kept = mask.num_identity(features);
        let net = MlpConfig::new(kept, vec![64, 64], 2 * (features - kept)).init(&device)?;
        let coupling = Coupling::affine(net, mask, ScaleMap::default(), features, &device)?;
        Ok((ActNorm::new(features, &device)?, coupling))
    };
    let steps = (0..8).map(step).collect::<Result<Vec<_>>>()?;
    let model: FlowStack<2, _> = FlowStack::single(steps, StandardNormal::new(), &[features])?;

    let trainer = Trainer::new(model, Schedule::constant(1e-3)).with_average(0.99);
    let source = Source::rows(train.to_tensor(&device), 256, 0)?;
    let held_out = HeldOut::rows(held_out.to_tensor(&device)).with_names(&table.names);
    let run = Run::new("runs/table").with_patience(20).with_resume(true);
    Ok(run.train(trainer, source, held_out)?.to_string())
}
