//! Models for Burn's Learner: `SupervisedTraining` with its dashboard, checkpointers, early stopping,
//! schedulers and devices.
//!
//! [`Learnable`] wraps a density model. A step of it is that of [`Trainer`](super::Trainer), with
//! [reversible gradients](super::reversible); Burn owns the loop, the optimizer and the files.
//! [`BitsPerDimMetric`], [`DriftMetric`] and [`InversionErrorMetric`] go beside Burn's `LossMetric`;
//! [`ImageBatcher`] makes batches of images in Burn's loaders.
//!
//! ```
//! use burn::data::dataloader::{DataLoaderBuilder, batcher::Batcher};
//! use burn::data::dataset::InMemDataset;
//! use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
//! use burn::tensor::{Device, Tensor};
//! use burn::train::{Learner, SupervisedTraining, metric::LossMetric};
//! use burn_flows::models::MafConfig;
//! use burn_flows::training::Adam;
//! use burn_flows::training::learner::{BitsPerDimMetric, Learnable};
//!
//! struct Rows;
//!
//! impl Batcher<[f32; 2], Tensor<2>> for Rows {
//!     fn batch(&self, rows: Vec<[f32; 2]>, device: &Device) -> Tensor<2> {
//!         let count = rows.len();
//!         Tensor::<1>::from_data(rows.concat().as_slice(), device).reshape([count, 2])
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = burn_flows::backend::device();
//! let rows: Vec<[f32; 2]> = (0..40).map(|i| [(i % 7) as f32, (i % 3) as f32 - 1.0]).collect();
//! let loader = |rows: &[[f32; 2]]| {
//!     let builder = DataLoaderBuilder::new(Rows).batch_size(8).set_device(device.clone());
//!     builder.build(InMemDataset::new(rows.to_vec()))
//! };
//! let (train, valid) = (loader(&rows[..32]), loader(&rows[32..]));
//!
//! let first = train.iter().next().expect("there are rows")?;
//! let folder = tempfile::tempdir()?;
//! let training = SupervisedTraining::new(folder.path(), train, valid)
//!     .metrics((LossMetric::new(), BitsPerDimMetric::new(2, 1)))
//!     .with_application_logger(None)
//!     .num_epochs(2);
//! let model = MafConfig::new(2, 2, vec![16]).init(&device)?;
//! let model = Learnable::new(model, first)?
//!     .with_max_gradient_norm(10.0)
//!     .with_interrupter(training.interrupter());
//! let rates = CosineAnnealingLrSchedulerConfig::new(1e-3, 8).init()?;
//! let result = training.launch(Learner::new(model, Adam::new().into(), rates));
//! assert!(result.error.is_none());
//! let model = result.model.model;
//! assert_eq!(model.sample(5, 1.0).dims(), [5, 2]);
//! # Ok(())
//! # }
//! ```
//!
//! The dashboard in the terminal is Burn's feature `tui` (`cargo run --features train,burn/tui`); without
//! it the progress is printed as text.
//!
//! # Several devices
//!
//! `ExecutionStrategy::multi` trains on several devices of one process. Burn adds up the gradients of all of
//! them, so that with models of its own a step is as many times too long, and shards of other sizes
//! weigh as much as the others. A `Learnable` hands out sums over samples and how many these were, and
//! divides when all are added up: the step is that of all the samples together. The same holds for
//! `grads_accumulation`.
//!
//! What is left of Burn's limits:
//!
//! - A batch of the loader is that of one device, the step's is as many times as large. Each device reads
//!   its own part of the data set, the last one what does not divide; where the parts have different numbers
//!   of batches, the last steps are made of the devices that have some.
//! - Running moments become the mean of those that the devices have each from their own part of a batch.
//! - With `MultiDeviceOptim::OptimSharded` the gradients are gathered on the first device as well, because
//!   they are clipped by the norm of them all.
//! - `ExecutionStrategy::ddp` is not for reversible training: it adds up gradients while autodiff goes back
//!   through the one graph of a loss, of which there is none here. Of Burn 0.22's own backends only CUDA
//!   has what it needs, an all-reduce.
//!
//! # Resuming
//!
//! `SupervisedTraining::checkpoint` goes on with model, optimizer and scheduler of an epoch. The order of a
//! loader that shuffles starts anew with its seed, so that such a run goes on with other batches than it
//! would have had. A [`Trainer`](super::Trainer), and with it `run::Run`, goes on with the same.

mod images;
mod learnable;
mod metrics;
mod output;

pub use images::ImageBatcher;
pub use learnable::Learnable;
pub use metrics::{BitsPerDimMetric, DriftMetric, InversionErrorMetric};
pub use output::DensityOutput;
