//! The error type of the crate.

use std::path::{Path, PathBuf};

/// Result of a fallible operation of this crate.
pub type Result<T, E = FlowError> = std::result::Result<T, E>;

/// What can go wrong outside of `forward` and `inverse`.
///
/// Every message names the part concerned, what it got, what it needs and what to do. Wrong shapes
/// inside `forward` / `inverse` panic instead, as everywhere in Burn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// A configuration that cannot be built.
    #[error("{layer}: {parameter} is {got}, but must be {needed}; {advice}")]
    Config {
        /// The layer or model configured.
        layer: &'static str,
        /// The offending field of the configuration.
        parameter: &'static str,
        /// The value it had.
        got: String,
        /// The values it can have.
        needed: String,
        /// What to do.
        advice: String,
    },

    /// A matrix that must be inverted has no inverse.
    #[error(
        "{layer}: the {size}x{size} weight is singular (smallest pivot {pivot:e}, largest {largest:e}); \
         load an earlier checkpoint and train with a lower learning rate or with the PLU parametrization"
    )]
    Singular {
        /// The layer that holds the matrix.
        layer: &'static str,
        /// Rows of the matrix.
        size: usize,
        /// The pivot of smallest magnitude.
        pivot: f64,
        /// The pivot of largest magnitude.
        largest: f64,
    },

    /// A scale that cannot be divided by: it or its inverse is beyond the numbers it is computed in.
    #[error(
        "{layer}: the log-scale of channel {channel} is {log_scale}, but must be within ±{limit} for the \
         scale and its inverse to be finite; load an earlier checkpoint and train with a lower learning \
         rate"
    )]
    Scale {
        /// The layer that holds the scale.
        layer: &'static str,
        /// The channel (or feature) that it belongs to, the first one if there are several.
        channel: usize,
        /// The logarithm of the scale.
        log_scale: f64,
        /// Largest magnitude of a log-scale in the layer's number type.
        limit: f64,
    },

    /// Data that a layer gives no density: outside of its support `ln p(x)` is minus infinity.
    #[error(
        "{layer}: got values from {lowest} to {highest}, but its support is {support}; {advice}"
    )]
    OutsideSupport {
        /// The layer.
        layer: &'static str,
        /// Smallest value of the batch.
        lowest: f64,
        /// Largest value of the batch.
        highest: f64,
        /// The values that have a density.
        support: String,
        /// What to do.
        advice: &'static str,
    },

    /// A value that is not finite appeared in training; nothing was overwritten.
    #[error(
        "training stopped at step {step}: {what} is not finite, first in {layer}; \
         the last good model is kept; {}",
        advice_on(layer)
    )]
    NotFinite {
        /// The optimizer step, counted from 1.
        step: usize,
        /// The layer in which the first value that is not finite appeared.
        layer: String,
        /// What is not finite (the loss, a gradient, an activation).
        what: String,
    },

    /// A module that is not one function: with chance in it, with a state that its calls change, or
    /// another one in training than at inference.
    #[error("{module} {what}, so that gradients would be those of no function; {advice}")]
    NotRepeatable {
        /// Path and type of the module.
        module: String,
        /// What it does.
        what: String,
        /// What to do.
        advice: String,
    },

    /// A file or folder that cannot be read or written.
    #[error("cannot {action} {}: {source}; {advice}", path.display())]
    Io {
        /// What was tried: "read", "write", …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
        /// What to do.
        advice: &'static str,
    },

    /// A file whose content is not what its format asks for.
    #[error("{}: {got}, expected {needed}; {advice}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found.
        got: String,
        /// What the format asks for.
        needed: String,
        /// What to do.
        advice: String,
    },

    /// A record that does not belong to the model it is loaded into.
    #[error("{}: {reason}; {advice}", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// In what it differs.
        reason: String,
        /// What to do.
        advice: String,
    },

    /// A request that the data or the model cannot meet.
    #[error("{what}: got {got}, needs {needed}; {advice}")]
    Invalid {
        /// The argument concerned.
        what: String,
        /// Its value.
        got: String,
        /// The values it can have.
        needed: String,
        /// What to do.
        advice: String,
    },
}

/// Where a batch itself is not finite, in [`FlowError::NotFinite`].
pub(crate) const INPUT_BATCH: &str = "the input batch";

fn advice_on(layer: &str) -> &'static str {
    match layer {
        INPUT_BATCH => "look at how the data are prepared",
        _ => "lower the learning rate or use a bounded scale map",
    }
}

impl FlowError {
    /// A request that cannot be met, in the four parts that make a message of use: an
    /// [`Invalid`](Self::Invalid) for code of your own.
    ///
    /// ```
    /// use burn_flows::FlowError;
    ///
    /// let error = FlowError::invalid("--batch", 0, "at least 1", "128 is usual");
    /// assert_eq!(error.to_string(), "--batch: got 0, needs at least 1; 128 is usual");
    /// ```
    pub fn invalid(
        what: impl ToString,
        got: impl ToString,
        needed: impl ToString,
        advice: impl ToString,
    ) -> Self {
        Self::Invalid {
            what: what.to_string(),
            got: got.to_string(),
            needed: needed.to_string(),
            advice: advice.to_string(),
        }
    }

    pub(crate) fn config(
        layer: &'static str,
        parameter: &'static str,
        got: impl ToString,
        needed: impl ToString,
        advice: impl ToString,
    ) -> Self {
        Self::Config {
            layer,
            parameter,
            got: got.to_string(),
            needed: needed.to_string(),
            advice: advice.to_string(),
        }
    }

    pub(crate) fn io(
        action: &'static str,
        path: &Path,
        source: std::io::Error,
        advice: &'static str,
    ) -> Self {
        Self::Io { action, path: path.into(), source, advice }
    }

    pub(crate) fn format(
        path: &Path,
        got: impl ToString,
        needed: impl ToString,
        advice: impl ToString,
    ) -> Self {
        Self::Format {
            path: path.into(),
            got: got.to_string(),
            needed: needed.to_string(),
            advice: advice.to_string(),
        }
    }
}
