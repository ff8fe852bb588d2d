//! Learning-rate schedules.

/// Linear warm-up, then a cosine to a fraction of the peak: a function of the step alone, so that an
/// interrupted training resumes exactly.
///
/// Step `t`, counted from 0, of `n` steps with `w` of warm-up:
/// `peak (t + 1) / w` for `t < w`, then
/// `peak (f + (1 - f) (1 + cos(pi (t - w) / (n - w))) / 2)` with `f` the final fraction.
///
/// ```
/// use burn_flows::training::Schedule;
///
/// let schedule = Schedule::new(1e-3, 100).with_warm_up(10);
/// assert_eq!(schedule.learning_rate(4), 5e-4);
/// assert_eq!(schedule.learning_rate(10), 1e-3);
/// assert!(schedule.learning_rate(99) < 1e-5);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    peak: f64,
    num_steps: usize,
    warm_up: usize,
    final_fraction: f64,
}

impl Schedule {
    /// A cosine from `peak` to zero over `num_steps` steps, without warm-up.
    pub fn new(peak: f64, num_steps: usize) -> Self {
        Self { peak, num_steps, warm_up: 0, final_fraction: 0.0 }
    }

    /// The same rate at every step.
    pub fn constant(rate: f64) -> Self {
        Self { peak: rate, num_steps: 0, warm_up: 0, final_fraction: 1.0 }
    }

    /// Steps over which the rate rises to its peak.
    pub fn with_warm_up(mut self, warm_up: usize) -> Self {
        self.warm_up = warm_up;
        self
    }

    /// The fraction of the peak with which the schedule ends.
    pub fn with_final_fraction(mut self, final_fraction: f64) -> Self {
        self.final_fraction = final_fraction;
        self
    }

    /// The rate of step `step`, counted from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warm_up {
            return self.peak * (step + 1) as f64 / self.warm_up as f64;
        }
        let length = self.num_steps.saturating_sub(self.warm_up).max(1) as f64;
        let progress = ((step - self.warm_up) as f64 / length).min(1.0);
        let cosine = (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0;
        self.peak * (self.final_fraction + (1.0 - self.final_fraction) * cosine)
    }
}
