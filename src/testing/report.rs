//! What a check of the laws reports: the figures, or the law that is broken.

use std::fmt;

use burn::tensor::DType;

use crate::error::FlowError;

/// A law of [`Flow`](trait@crate::Flow).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Law {
    /// The shapes of `z` and of the log-determinant are those documented.
    Shapes,
    /// `inverse(forward(x)) = x` and `forward(inverse(z)) = z`.
    RoundTrip,
    /// The log-determinant is that of the autograd Jacobian.
    Jacobian,
    /// `log_det(x)` and `forward(x).1` agree.
    LogDet,
    /// A sample's result does not depend on its batch.
    Batch,
    /// `initialize` leaves nothing inside waiting for a first batch, gives back what the initialized flow
    /// does, and a second one changes nothing.
    Initialize,
    /// Gradients reach every trainable parameter.
    Gradients,
    /// `pull_back` gives the gradients that autodiff gives.
    PullBack,
    /// Autodiff gives the parameters the same gradients whether the batch is plain or on the autodiff
    /// device.
    OwnLoop,
    /// Outputs and gradients are finite for inputs of extreme size.
    Finite,
    /// Saving and loading gives bit-equal outputs.
    Record,
    /// The parts of a stack's density add up, and its latents and samples are sound.
    Density,
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shapes => "z and log_det have the documented shapes",
            Self::RoundTrip => "inverse(forward(x)) = x and forward(inverse(z)) = z",
            Self::Jacobian => "log_det is that of the Jacobian",
            Self::LogDet => "log_det(x) = forward(x).1",
            Self::Batch => "a sample's result does not depend on its batch",
            Self::Initialize => {
                "initialization reaches all, happens once and returns what forward gives"
            }
            Self::Gradients => "gradients reach every trainable parameter",
            Self::PullBack => "pull_back gives the gradients of autodiff",
            Self::OwnLoop => "gradients do not depend on how the batch is wrapped",
            Self::Finite => "outputs and gradients are finite at extreme inputs",
            Self::Record => "saving and loading gives bit-equal outputs",
            Self::Density => "the density of a stack is the sum of its parts",
        })
    }
}

/// A law that a flow breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flow} breaks the law that {law}: {detail}")]
pub struct LawViolation {
    /// The law.
    pub law: Law,
    /// The type of the flow.
    pub flow: String,
    /// What was found.
    pub detail: String,
}

impl From<LawViolation> for FlowError {
    fn from(violation: LawViolation) -> Self {
        Self::Invalid {
            what: "the flow".into(),
            got: violation.to_string(),
            needed: "a flow that keeps its laws".into(),
            advice: "compare forward, inverse and log_det with the formula".into(),
        }
    }
}

/// How far two figures that must be equal may differ.
///
/// Differences are relative to `1 + ` the largest magnitude concerned, so that a tolerance means the
/// same for large and for small values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerances {
    /// Of `x` after `forward` and `inverse`, and of `z` after `inverse` and `forward`.
    pub round_trip: f64,
    /// Of the log-determinant against the Jacobian's.
    pub jacobian: f64,
    /// Of two ways to compute the same value: `log_det` and `forward`, one batch and another.
    pub agreement: f64,
    /// Of gradients by `pull_back` against those by autodiff.
    pub gradients: f64,
}

/// One layer in f32: about a hundred roundings of 6e-8, in the forward pass and as many back.
const F32_ROUND_TRIP: f64 = 1e-5;
/// In f32 every entry of the Jacobian is rounded and the logarithm of the determinant adds up as
/// many errors as there are entries on its diagonal.
const F32_JACOBIAN: f64 = 1e-4;
/// Two orders of summation of one value.
const F32_AGREEMENT: f64 = 1e-5;
/// Gradients at an `x` that has drifted by the error of a round trip.
const F32_GRADIENTS: f64 = 1e-4;
/// As in f32, with roundings of 1e-16.
const F64_ROUND_TRIP: f64 = 1e-12;
/// As in f32; wide enough for a map whose Jacobian has a condition of 1e6.
const F64_JACOBIAN: f64 = 1e-9;
/// As in f32.
const F64_AGREEMENT: f64 = 1e-12;
/// As in f32.
const F64_GRADIENTS: f64 = 1e-9;

impl Tolerances {
    /// Those of one layer computed in the given dtype; f32's for anything but f64.
    pub fn of(dtype: DType) -> Self {
        if dtype == DType::F64 {
            Self {
                round_trip: F64_ROUND_TRIP,
                jacobian: F64_JACOBIAN,
                agreement: F64_AGREEMENT,
                gradients: F64_GRADIENTS,
            }
        } else {
            Self {
                round_trip: F32_ROUND_TRIP,
                jacobian: F32_JACOBIAN,
                agreement: F32_AGREEMENT,
                gradients: F32_GRADIENTS,
            }
        }
    }

    /// Those of `layers` layers after each other: rounding errors add up.
    pub fn times(self, layers: usize) -> Self {
        let n = layers.max(1) as f64;
        Self {
            round_trip: self.round_trip * n,
            jacobian: self.jacobian * n,
            agreement: self.agreement * n,
            gradients: self.gradients * n,
        }
    }
}

/// The largest errors that a check has seen; each relative to `1 + ` the largest magnitude concerned.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Report {
    /// Of `inverse(forward(x))`.
    pub round_trip: f64,
    /// Of `forward(inverse(z))`.
    pub round_trip_latent: f64,
    /// Of the log-determinant against the Jacobian's.
    pub jacobian: f64,
    /// Of `log_det(x)` against `forward(x).1`.
    pub log_det: f64,
    /// Of one sample in another batch.
    pub batch: f64,
    /// Of the gradients by `pull_back` against those by autodiff.
    pub pull_back: f64,
    /// Trainable parameters reached by gradients.
    pub parameters: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "round trip {:.1e} and {:.1e}, jacobian {:.1e}, log_det {:.1e}, batch {:.1e}, \
             pull_back {:.1e}, {} parameters",
            self.round_trip,
            self.round_trip_latent,
            self.jacobian,
            self.log_det,
            self.batch,
            self.pull_back,
            self.parameters
        )
    }
}

impl Report {
    /// Every figure replaced by the larger one of the two reports.
    pub fn max(self, other: Self) -> Self {
        Self {
            round_trip: self.round_trip.max(other.round_trip),
            round_trip_latent: self.round_trip_latent.max(other.round_trip_latent),
            jacobian: self.jacobian.max(other.jacobian),
            log_det: self.log_det.max(other.log_det),
            batch: self.batch.max(other.batch),
            pull_back: self.pull_back.max(other.pull_back),
            parameters: self.parameters.max(other.parameters),
        }
    }
}

/// Breaks of the laws by one type of flow.
pub(super) struct Court {
    flow: String,
}

impl Court {
    pub(super) fn of<F>() -> Self {
        Self { flow: short_type_name(std::any::type_name::<F>()) }
    }

    pub(super) fn violation(&self, law: Law, detail: impl Into<String>) -> LawViolation {
        LawViolation { law, flow: self.flow.clone(), detail: detail.into() }
    }

    pub(super) fn require(
        &self,
        law: Law,
        holds: bool,
        detail: impl FnOnce() -> String,
    ) -> Result<(), LawViolation> {
        if holds { Ok(()) } else { Err(self.violation(law, detail())) }
    }

    /// The error of `got` against `expected`, or a violation where it is above the tolerance or NaN.
    pub(super) fn compare(
        &self,
        law: Law,
        what: &str,
        got: &[f64],
        expected: &[f64],
        tolerance: f64,
    ) -> Result<f64, LawViolation> {
        self.require(law, got.len() == expected.len(), || {
            format!("{what} has {} values, not {}", got.len(), expected.len())
        })?;
        let largest = expected.iter().fold(0.0f64, |max, value| max.max(value.abs()));
        let (mut worst, mut at) = (0.0, 0);
        for (i, (a, b)) in got.iter().zip(expected).enumerate() {
            let error = (a - b).abs() / (1.0 + largest);
            // A NaN is the worst error.
            if error.is_nan() || error > worst {
                (worst, at) = (error, i);
                if worst.is_nan() {
                    break;
                }
            }
        }
        self.require(law, worst <= tolerance, || {
            format!(
                "{what} is {:e} where {:e} is right (entry {at} of {}), an error of {worst:.1e} \
                 relative to 1 + {largest:.3e}; the tolerance is {tolerance:.0e}",
                got[at],
                expected[at],
                got.len()
            )
        })?;
        Ok(worst)
    }
}

/// A type's name without the modules its parts are in.
fn short_type_name(name: &str) -> String {
    let mut short = String::new();
    let mut word = String::new();
    for c in name.chars() {
        if c.is_alphanumeric() || c == '_' || c == ':' {
            word.push(c);
        } else {
            short.push_str(last_segment(&word));
            word.clear();
            short.push(c);
        }
    }
    short.push_str(last_segment(&word));
    short
}

fn last_segment(word: &str) -> &str {
    word.rsplit("::").next().unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_names_lose_their_modules() {
        assert_eq!(
            short_type_name("alloc::vec::Vec<(a::b::ActNorm, [c::D; 3])>"),
            "Vec<(ActNorm, [D; 3])>"
        );
    }

    #[test]
    fn a_nan_is_an_error_above_every_tolerance() {
        let court = Court::of::<u8>();
        let error = court.compare(Law::RoundTrip, "x", &[1.0, f64::NAN], &[1.0, 2.0], 1e9);
        assert_eq!(error.unwrap_err().law, Law::RoundTrip);
    }
}
