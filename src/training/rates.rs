//! The learning rate of every step, wherever it comes from.

use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};

use super::Schedule;
use crate::error::{FlowError, Result};

/// The learning rate of every step: a [`Schedule`], any function of the step (counted from 0), or one
/// of Burn's schedulers.
///
/// Whichever it is, the rate of a step follows from the number of the step alone, so that a training
/// goes on exactly after an interruption and no state of it is in a checkpoint: Burn's schedulers,
/// which count for themselves, are run again from where they were handed over.
///
/// ```
/// use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
/// use burn_flows::training::{LearningRates, Schedule};
///
/// let steps: LearningRates = Schedule::new(1e-3, 100).with_warm_up(10).into();
/// let inverse_root: LearningRates = (|step: usize| 1e-3 / (1.0 + step as f64).sqrt()).into();
/// let burns: LearningRates = CosineAnnealingLrSchedulerConfig::new(1e-3, 100).init()?.into();
/// # Ok::<(), String>(())
/// ```
pub struct LearningRates(Source);

enum Source {
    Function(Box<dyn Fn(usize) -> f64 + Send + Sync>),
    Scheduler {
        start: ModuleLrScheduler,
        /// `start`, asked for the rates of `num_asked` steps.
        now: ModuleLrScheduler,
        num_asked: usize,
    },
}

impl From<Schedule> for LearningRates {
    fn from(schedule: Schedule) -> Self {
        (move |step| schedule.learning_rate(step)).into()
    }
}

impl<F: Fn(usize) -> f64 + Send + Sync + 'static> From<F> for LearningRates {
    fn from(rate: F) -> Self {
        Self(Source::Function(Box::new(rate)))
    }
}

/// Every configuration of Burn's has one by its `init`; a scheduler of your own becomes one by
/// [`ModuleLrScheduler::new`].
impl From<ModuleLrScheduler> for LearningRates {
    fn from(start: ModuleLrScheduler) -> Self {
        Self(Source::Scheduler { now: start.clone(), start, num_asked: 0 })
    }
}

impl LearningRates {
    /// The rates of step `step`, counted from 0.
    pub(super) fn of_step(&mut self, step: usize) -> Result<ModuleLearningRate> {
        let rates = match &mut self.0 {
            Source::Function(rate) => rate(step).into(),
            Source::Scheduler { start, now, num_asked } => {
                if *num_asked > step {
                    (*now, *num_asked) = (start.clone(), 0);
                }
                while *num_asked < step {
                    now.step();
                    *num_asked += 1;
                }
                *num_asked += 1;
                now.step()
            }
        };
        let rate = rates.base();
        if rate.is_finite() && rate > 0.0 {
            return Ok(rates);
        }
        Err(FlowError::invalid(
            format!("Trainer: the learning rate of step {}", step + 1),
            rate,
            "a finite number above 0",
            "nothing was changed; look at the schedule, which may have come to its end",
        ))
    }
}

#[cfg(test)]
mod tests {
    use burn::lr_scheduler::LrSchedulerConfig;
    use burn::lr_scheduler::composed::ComposedLrSchedulerConfig;
    use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
    use burn::lr_scheduler::exponential::ExponentialLrSchedulerConfig;
    use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
    use burn::lr_scheduler::noam::NoamLrSchedulerConfig;
    use burn::lr_scheduler::sequential::SequentialLrSchedulerConfig;
    use burn::lr_scheduler::step::StepLrSchedulerConfig;

    use super::*;

    fn schedulers() -> Vec<(&'static str, ModuleLrScheduler)> {
        let linear = || LinearLrSchedulerConfig::new(0.9, 0.1, 20);
        let cosine = || CosineAnnealingLrSchedulerConfig::new(0.5, 40).with_min_lr(0.01);
        let exponential = || ExponentialLrSchedulerConfig::new(0.3, 0.93);
        let sequence: Vec<LrSchedulerConfig> = vec![linear().into(), exponential().into()];
        vec![
            ("constant", ModuleLrScheduler::new(0.25)),
            ("linear", linear().init().unwrap()),
            ("cosine", cosine().init().unwrap()),
            ("exponential", exponential().init().unwrap()),
            ("noam", NoamLrSchedulerConfig::new(1.0).with_warmup_steps(7).init().unwrap()),
            ("step", StepLrSchedulerConfig::new(0.4, 6).init().unwrap()),
            ("sequential", SequentialLrSchedulerConfig::new(sequence, vec![9]).init().unwrap()),
            (
                "composed",
                ComposedLrSchedulerConfig::new().cosine(cosine()).linear(linear()).init().unwrap(),
            ),
        ]
    }

    /// In order, from the middle (a training that was resumed), a step again (one that was refused)
    /// and going back: always what the scheduler itself gives at that step, to the last bit.
    #[test]
    fn schedulers_of_burn_give_the_rate_of_a_step() {
        for (name, scheduler) in schedulers() {
            let mut own = scheduler.clone();
            let expected: Vec<f64> = (0..30).map(|_| own.step().base()).collect();
            let mut rates = LearningRates::from(scheduler.clone());
            let mut resumed = LearningRates::from(scheduler);
            let rate = |rates: &mut LearningRates, step| rates.of_step(step).unwrap().base();
            for (step, &expected) in expected.iter().enumerate() {
                assert_eq!(rate(&mut rates, step), expected, "{name}, step {step}");
            }
            for step in [17, 18, 18, 3, 29] {
                assert_eq!(rate(&mut resumed, step), expected[step], "{name}, step {step}");
            }
        }
    }

    #[test]
    fn rates_that_are_no_rates_are_refused() {
        for bad in [0.0, -1e-3, f64::NAN, f64::INFINITY] {
            let mut rates = LearningRates::from(move |step| if step < 4 { 1e-3 } else { bad });
            assert_eq!(rates.of_step(3).unwrap().base(), 1e-3);
            let error = rates.of_step(4).err().expect("a rate that is no rate").to_string();
            let start = format!("Trainer: the learning rate of step 5: got {bad}, needs a finite");
            assert!(error.starts_with(&start), "{error}");
        }
    }
}
