//! Trains a flow on the device of the Burn that this crate brings.

use burn::tensor::{Device, Distribution, Tensor};
use burn_flows::backend;
use burn_flows::models::RealNvpVectorConfig;
use burn_flows::training::{Schedule, Trainer};

fn main() -> Result<(), burn_flows::FlowError> {
    assert!(backend::devices().is_empty(), "a feature of burn-flows brings a device");
    let device = backend::device();
    assert_eq!(device, Device::flex());
    device.seed(1);
    let model = RealNvpVectorConfig::new(2, 4, vec![16, 16]).init(&device)?;
    let x = Tensor::random([256, 2], Distribution::Normal(3.0, 0.5), &device);
    let mut trainer = Trainer::new(model, Schedule::constant(5e-3));
    let first = trainer.step(x.clone())?.loss;
    let mut last = first;
    for _ in 0..100 {
        last = trainer.step(x.clone())?.loss;
    }
    println!("{first:.3} nats before training, {last:.3} after it");
    assert!(last < first - 0.5);
    let samples = trainer.model().sample(1000, 1.0);
    let mean = samples.mean().into_scalar::<f32>();
    assert!((mean - 3.0).abs() < 0.5, "samples around {mean}, not 3");
    Ok(())
}
