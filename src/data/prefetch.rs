//! Work done ahead on another thread.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// An iterator that is run ahead of its user, on a thread of its own, into a queue of bounded length:
/// batches are made while the model computes.
///
/// The items and their order are those of the iterator, whatever the threads do in between. An
/// iterator that needs no state but its place, such as
/// [`Batches::from_step`](super::Batches::from_step) with draws from
/// [`random_for`](super::random_for), therefore goes on exactly after an interruption: what was made
/// ahead and not used is made again.
///
/// The queue holds `ahead` items, and one more is in the making. [`waited`](Self::waited) tells how
/// long the user had to wait, in all: if that grows with the steps, making a batch takes longer than
/// using one.
///
/// ```
/// use std::sync::Arc;
///
/// use burn_flows::data::{Batches, Images, Prefetch, random_for, streams};
/// use burn_flows::preprocess::Quantization;
///
/// # fn main() -> Result<(), burn_flows::FlowError> {
/// let images = Arc::new(Images::new((0..80).collect(), [20, 1, 2, 2], None)?);
/// let quantization = Quantization::new(5)?;
/// let batches = Batches::training(images.len(), 4, 42)?;
/// let mut ready = Prefetch::new(2, batches.from_step(0).take(10).map(move |batch| {
///     let mut flips = random_for(42, streams::FLIP, batch.step);
///     let mut noise = random_for(42, streams::DEQUANTIZE, batch.step);
///     let pixels = images.gather_with_flips(&batch.indices, &mut flips);
///     (batch.step, quantization.dequantize(&pixels, &mut noise))
/// }));
/// for (step, values) in &mut ready {
///     assert_eq!(values.len(), 4 * 4);
/// #   let _ = step;
/// }
/// println!("waited {:?} for {} batches", ready.waited(), ready.taken());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Prefetch<T> {
    /// `None` once the iterator is over.
    queue: Option<Receiver<T>>,
    worker: Option<JoinHandle<()>>,
    waited: Duration,
    /// In nanoseconds.
    working: Arc<AtomicU64>,
    taken: usize,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Starts to run `items` ahead, at most `ahead` finished items at a time (at least 1 is kept).
    ///
    /// The thread ends with the iterator, or after the item in the making when this is dropped.
    pub fn new(ahead: usize, items: impl Iterator<Item = T> + Send + 'static) -> Self {
        let (sender, queue) = sync_channel(ahead.max(1));
        let working = Arc::new(AtomicU64::new(0));
        let nanoseconds = working.clone();
        let worker = thread::spawn(move || {
            let mut items = items;
            loop {
                let start = Instant::now();
                let Some(item) = items.next() else { break };
                nanoseconds.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
                // Nobody takes any more: this was dropped.
                if sender.send(item).is_err() {
                    break;
                }
            }
        });
        Self { queue: Some(queue), worker: Some(worker), waited: Duration::ZERO, working, taken: 0 }
    }
}

impl<T> Prefetch<T> {
    /// Time spent in waiting for items, the first one left out: nothing can be ready before it.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Time in which the iterator made items, of those ahead too.
    pub fn working(&self) -> Duration {
        Duration::from_nanos(self.working.load(Ordering::Relaxed))
    }

    /// Items handed out so far.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Ends the thread; a panic in the iterator goes on here.
    fn join(&mut self) {
        // Without a queue, a worker that waits for room in it goes on and ends.
        self.queue = None;
        if let Some(worker) = self.worker.take()
            && let Err(panic) = worker.join()
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = T;

    /// # Panics
    /// With the panic of the iterator, if it panicked.
    fn next(&mut self) -> Option<T> {
        let queue = self.queue.as_ref()?;
        let item = match queue.try_recv() {
            Err(TryRecvError::Empty) => {
                let start = Instant::now();
                let item = queue.recv().ok();
                if self.taken > 0 {
                    self.waited += start.elapsed();
                }
                item
            }
            other => other.ok(),
        };
        match item {
            Some(_) => self.taken += 1,
            None => self.join(),
        }
        item
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread::sleep;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);

    /// Numbers from 0, and how many of them were made.
    fn counted(count: usize) -> (Arc<AtomicUsize>, impl Iterator<Item = usize> + Send + 'static) {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        (made, (0..count).inspect(move |_| _ = counter.fetch_add(1, Ordering::SeqCst)))
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(10), "it does not come");
            sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn items_come_in_order_and_end() {
        for ahead in [0, 1, 3, 1000] {
            let mut ready = Prefetch::new(ahead, 0..100);
            assert_eq!(ready.by_ref().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
            assert_eq!(ready.next(), None);
            assert_eq!(ready.taken(), 100);
        }
        assert_eq!(Prefetch::new(1, std::iter::empty::<u8>()).next(), None);
    }

    #[test]
    fn it_works_ahead_and_no_further_than_asked() {
        let (made, items) = counted(100);
        let mut ready = Prefetch::new(3, items);
        wait_until(|| made.load(Ordering::SeqCst) == 4);
        sleep(MOMENT);
        assert_eq!(made.load(Ordering::SeqCst), 4, "three in the queue and one in the making");
        assert_eq!(ready.next(), Some(0));
        wait_until(|| made.load(Ordering::SeqCst) == 5);
        sleep(MOMENT);
        assert_eq!(made.load(Ordering::SeqCst), 5);
    }

    #[test]
    fn waiting_is_measured_and_only_where_there_was_some() {
        let slow = (0..5).inspect(|_| sleep(MOMENT));
        let mut ready = Prefetch::new(2, slow);
        assert_eq!(ready.by_ref().count(), 5);
        // The first is not counted; the others take their moment each.
        assert!(ready.waited() >= MOMENT * 3, "{:?}", ready.waited());
        assert!(ready.working() >= MOMENT * 5, "{:?}", ready.working());

        let (made, items) = counted(5);
        let mut ready = Prefetch::new(5, items);
        wait_until(|| made.load(Ordering::SeqCst) == 5);
        sleep(MOMENT);
        assert_eq!(ready.by_ref().take(5).count(), 5);
        assert_eq!(ready.waited(), Duration::ZERO);
    }

    #[test]
    fn dropping_it_ends_the_thread() {
        let (made, items) = counted(usize::MAX);
        let alive = Arc::new(());
        let witness = alive.clone();
        let mut ready =
            Prefetch::new(2, items.map(move |item| (item, Arc::strong_count(&witness))));
        assert_eq!(ready.next().map(|(item, _)| item), Some(0));
        drop(ready);
        assert_eq!(Arc::strong_count(&alive), 1, "the thread still holds the iterator");
        assert!(made.load(Ordering::SeqCst) <= 4);
    }

    #[test]
    #[should_panic(expected = "no third batch")]
    fn a_panic_reaches_the_user() {
        let items = (0..10).inspect(|&item| assert!(item < 2, "no third batch"));
        let ready = Prefetch::new(5, items);
        assert_eq!(ready.count(), 2, "the panic was taken for the end");
    }
}
