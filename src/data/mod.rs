//! Data sets: IDX files (MNIST), CIFAR-10, image folders and CelebA, and the order in which they are read.
//!
//! | You have | Use |
//! |---|---|
//! | the four IDX files of MNIST, Fashion-MNIST, … | [`Mnist::load`] |
//! | any other IDX file of bytes | [`idx::read`] |
//! | CIFAR-10 in its binary layout | [`Cifar10::load`] |
//! | pixels in memory | [`Images::new`] |
//! | numbers in rows, as CSV | [`Table::read`] |
//! | nothing yet, but a density that is known | [`two_moons()`] |
#![cfg_attr(feature = "images", doc = "| a folder of pictures | [`ImageFolder`] |")]
#![cfg_attr(feature = "images", doc = "| one picture | [`read_picture`] |")]
#![cfg_attr(feature = "images", doc = "| CelebA in its official layout | [`CelebA`] |")]
//!
//! All of them give [`Images`]: bytes in memory, `[num_images, num_channels, height, width]`.
//! [`Batches`] says which images make up which mini-batch of which epoch, and
//! [`random_for`] is the one source of randomness of training. Neither keeps a state, so a
//! training that was interrupted goes on with exactly the batches and draws it would have had.
//! [`Prefetch`] makes the batches ahead, so that the model does not wait for them.
//!
//! Pictures are decoded once, on all cores, before the training, and never during it: what that
//! costs in memory is a byte a value, so the 202,599 faces of CelebA take 0.6 GB at 32x32 pixels,
//! 2.5 GB at 64x64 and 10 GB at 128x128 (and as much on disk, if a cache is asked for).
//!
//! Nothing here but [`Table::to_tensor`] touches a backend: a batch becomes a tensor where it is used.
//!
//! ```
//! use burn_flows::data::{Batches, Images};
//!
//! # fn main() -> Result<(), burn_flows::FlowError> {
//! // Five grey images of 2x2 pixels.
//! let images = Images::new((0..20).collect(), [5, 1, 2, 2], None)?;
//! let batches = Batches::training(images.len(), 2, 7)?;
//! for indices in batches.epoch(0) {
//!     assert_eq!(images.gather(&indices).len(), 2 * 4);
//! }
//! # Ok(())
//! # }
//! ```

mod batches;
#[cfg(feature = "images")]
mod cache;
#[cfg(feature = "images")]
mod celeba;
mod cifar10;
pub mod idx;
#[cfg(feature = "images")]
mod image_folder;
mod images;
mod mnist;
mod outputs;
#[cfg(feature = "images")]
mod picture;
mod prefetch;
mod preparation;
mod seed;
mod table;
mod two_moons;

pub use batches::{Batches, StepBatch, StepBatches};
#[cfg(feature = "images")]
pub use celeba::{Attributes, CelebA, CelebAFaces, CelebAPartition};
pub use cifar10::Cifar10;
#[cfg(feature = "images")]
pub use image_folder::{ImageFolder, Pictures, SkippedPicture};
pub use images::Images;
pub use mnist::Mnist;
pub use outputs::note_output;
#[cfg(feature = "images")]
pub use picture::read_picture;
pub use prefetch::Prefetch;
pub use preparation::{Channels, Crop, Preparation};
pub use seed::{random_for, streams};
pub use table::Table;
#[cfg(feature = "run")]
pub(crate) use table::check_names;
pub use two_moons::{two_moons, two_moons_log_prob};
