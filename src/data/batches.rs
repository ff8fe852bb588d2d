//! Which images make up which mini-batch.

use rand::seq::SliceRandom;

use super::seed::{random_for, streams};
use crate::{FlowError, Result};

/// The mini-batches of a data set, as indices.
///
/// Nothing is remembered between epochs: the order of epoch `e` depends on the seed and on `e`
/// alone, so an interrupted training goes on with exactly the batches it would have had
/// ([`from_step`](Self::from_step)).
///
/// | | order | last, incomplete batch |
/// |---|---|---|
/// | [`training`](Self::training) | shuffled anew each epoch | left out: every step has the same size |
/// | [`evaluation`](Self::evaluation) | `0, 1, 2, …` | kept: every image counts once |
///
/// ```
/// use burn_flows::data::Batches;
///
/// # fn main() -> Result<(), burn_flows::FlowError> {
/// let training = Batches::training(10, 4, 42)?;
/// assert_eq!(training.batches_per_epoch(), 2);
/// assert_eq!(training.epoch(3), training.epoch(3));
/// assert_ne!(training.epoch(3), training.epoch(4));
///
/// let evaluation = Batches::evaluation(10, 4)?;
/// assert_eq!(evaluation.epoch(0), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    num_images: usize,
    batch_size: usize,
    /// The seed of the shuffling; `None` leaves the order alone and keeps the incomplete batch.
    shuffle: Option<u64>,
}

impl Batches {
    /// Batches to train on: shuffled with `seed`, the incomplete last one left out.
    ///
    /// # Errors
    /// [`FlowError::Config`] if there are no images, or if `batch_size` is 0 or larger than
    /// `num_images` (an epoch would have no batch).
    pub fn training(num_images: usize, batch_size: usize, seed: u64) -> Result<Self> {
        Self::validate(num_images, batch_size)?;
        if batch_size > num_images {
            return Err(FlowError::config(
                "Batches",
                "batch_size",
                batch_size,
                format!("at most {num_images}, the number of images to train on"),
                "use smaller batches or more images",
            ));
        }
        Ok(Self { num_images, batch_size, shuffle: Some(seed) })
    }

    /// Batches to evaluate on: in order, every image once, so the last batch may be smaller
    /// (the only one, if `batch_size` is larger than `num_images`).
    ///
    /// # Errors
    /// [`FlowError::Config`] if there are no images or `batch_size` is 0.
    pub fn evaluation(num_images: usize, batch_size: usize) -> Result<Self> {
        Self::validate(num_images, batch_size)?;
        Ok(Self { num_images, batch_size, shuffle: None })
    }

    fn validate(num_images: usize, batch_size: usize) -> Result<()> {
        if num_images == 0 {
            return Err(FlowError::config(
                "Batches",
                "num_images",
                0,
                "at least 1",
                "check the data set",
            ));
        }
        if batch_size == 0 {
            return Err(FlowError::config(
                "Batches",
                "batch_size",
                0,
                "at least 1",
                "64 is usual for small images",
            ));
        }
        Ok(())
    }

    /// Batches in an epoch, at least 1.
    pub fn batches_per_epoch(&self) -> usize {
        match self.shuffle {
            Some(_) => self.num_images / self.batch_size,
            None => self.num_images.div_ceil(self.batch_size),
        }
    }

    /// Images in a batch (in evaluation the last batch may have fewer).
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// The batches of epoch `epoch`, counted from 0.
    pub fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.num_images).collect();
        if let Some(seed) = self.shuffle {
            order.shuffle(&mut random_for(seed, streams::SHUFFLE, epoch));
            order.truncate(self.batches_per_epoch() * self.batch_size);
        }
        order.chunks(self.batch_size).map(<[usize]>::to_vec).collect()
    }

    /// The batches of all steps from `step` on, without end; step 0 is the first batch of epoch 0.
    ///
    /// ```
    /// use burn_flows::data::Batches;
    ///
    /// # fn main() -> Result<(), burn_flows::FlowError> {
    /// let batches = Batches::training(100, 8, 42)?;
    /// let through: Vec<_> = batches.from_step(0).take(50).collect();
    /// let resumed: Vec<_> = batches.from_step(30).take(20).collect();
    /// assert_eq!(through[30..], resumed);
    /// assert_eq!((resumed[0].step, resumed[0].epoch), (30, 2)); // 12 batches an epoch
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_step(&self, step: u64) -> StepBatches {
        StepBatches { batches: *self, step, current: None }
    }
}

/// The batch of one training step; see [`Batches::from_step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepBatch {
    /// The step, counted from 0 over all epochs.
    pub step: u64,
    /// The epoch that the step belongs to, counted from 0.
    pub epoch: u64,
    /// The images of the batch.
    pub indices: Vec<usize>,
}

/// The endless iterator of [`Batches::from_step`].
#[derive(Clone, Debug)]
pub struct StepBatches {
    batches: Batches,
    step: u64,
    /// The epoch in progress, so that it is shuffled once and not at every step.
    current: Option<(u64, Vec<Vec<usize>>)>,
}

impl Iterator for StepBatches {
    type Item = StepBatch;

    fn next(&mut self) -> Option<StepBatch> {
        let per_epoch = self.batches.batches_per_epoch() as u64;
        let (step, epoch) = (self.step, self.step / per_epoch);
        if !matches!(&self.current, Some((current, _)) if *current == epoch) {
            self.current = Some((epoch, self.batches.epoch(epoch)));
        }
        let (_, batches) = self.current.as_mut()?;
        // Every batch is handed out once, so it is moved out.
        let indices = std::mem::take(&mut batches[(step % per_epoch) as usize]);
        self.step += 1;
        Some(StepBatch { step, epoch, indices })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(batches: Vec<Vec<usize>>) -> Vec<usize> {
        let mut indices = batches.concat();
        indices.sort_unstable();
        indices
    }

    #[test]
    fn training_gives_full_batches_of_different_images() {
        let batches = Batches::training(103, 10, 1).unwrap();
        assert_eq!(batches.batches_per_epoch(), 10);
        assert_eq!(batches.batch_size(), 10);
        for epoch in 0..20 {
            let epoch = batches.epoch(epoch);
            assert_eq!(epoch.len(), 10);
            assert!(epoch.iter().all(|batch| batch.len() == 10));
            let mut indices = sorted(epoch);
            indices.dedup();
            assert_eq!(indices.len(), 100, "an image appears twice");
            assert!(indices.iter().all(|&index| index < 103));
        }
    }

    #[test]
    fn every_image_is_left_out_in_some_epoch_only() {
        let batches = Batches::training(103, 10, 1).unwrap();
        let mut seen = [0; 103];
        for epoch in 0..200 {
            for index in batches.epoch(epoch).concat() {
                seen[index] += 1;
            }
        }
        // Each is left out with probability 3/103, so 5.8 times of 200 on average.
        assert!(seen.iter().all(|&times| times > 170 && times <= 200), "{seen:?}");
    }

    #[test]
    fn order_depends_on_seed_and_epoch_alone() {
        let batches = Batches::training(1000, 10, 1).unwrap();
        let late = batches.epoch(7);
        assert_eq!(late, Batches::training(1000, 10, 1).unwrap().epoch(7));
        assert_ne!(late, batches.epoch(8));
        assert_ne!(late, Batches::training(1000, 10, 2).unwrap().epoch(7));
        // The order of the images does not change with the batch size.
        assert_eq!(late.concat(), Batches::training(1000, 20, 1).unwrap().epoch(7).concat());
    }

    #[test]
    fn a_shuffle_is_pinned() {
        assert_eq!(
            Batches::training(10, 5, 42).unwrap().epoch(0),
            [vec![5, 8, 7, 1, 6], vec![2, 0, 3, 4, 9]]
        );
    }

    #[test]
    fn evaluation_keeps_every_image_in_order() {
        let batches = Batches::evaluation(103, 10).unwrap();
        assert_eq!(batches.batches_per_epoch(), 11);
        assert_eq!(batches.epoch(0).concat(), (0..103).collect::<Vec<_>>());
        assert_eq!(batches.epoch(0), batches.epoch(5));
        assert_eq!(batches.epoch(0)[10], [100, 101, 102]);
        assert_eq!(Batches::evaluation(3, 10).unwrap().epoch(0), [vec![0, 1, 2]]);
        assert_eq!(Batches::evaluation(20, 10).unwrap().batches_per_epoch(), 2);
    }

    #[test]
    fn one_image_is_enough() {
        assert_eq!(Batches::training(1, 1, 0).unwrap().epoch(9), [vec![0]]);
    }

    #[test]
    fn resuming_at_any_step_gives_the_same_batches() {
        let batches = Batches::training(23, 5, 3).unwrap();
        let through: Vec<StepBatch> = batches.from_step(0).take(40).collect();
        for step in 0..20_usize {
            let resumed: Vec<StepBatch> = batches.from_step(step as u64).take(20).collect();
            assert_eq!(resumed, through[step..step + 20]);
        }
        for (step, batch) in through.iter().enumerate() {
            assert_eq!((batch.step, batch.epoch), (step as u64, step as u64 / 4));
            assert_eq!(batch.indices, batches.epoch(batch.epoch)[step % 4]);
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let message = |result: Result<Batches>| result.unwrap_err().to_string();
        let no_batch = "Batches: batch_size is 0, but must be at least 1; \
                        64 is usual for small images";
        assert_eq!(message(Batches::training(10, 0, 0)), no_batch);
        assert_eq!(message(Batches::evaluation(10, 0)), no_batch);
        assert_eq!(
            message(Batches::training(10, 11, 0)),
            "Batches: batch_size is 11, but must be at most 10, the number of images to train on; \
             use smaller batches or more images"
        );
        let no_image = "Batches: num_images is 0, but must be at least 1; check the data set";
        assert_eq!(message(Batches::training(0, 5, 0)), no_image);
        assert_eq!(message(Batches::evaluation(0, 5)), no_image);
        assert!(Batches::training(10, 10, 0).is_ok());
    }
}
