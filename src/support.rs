//! What a layer cannot do with a batch: questions of a training step to the layers.
//!
//! Outside of its support a layer gives the log-determinant minus infinity; of one value a channel there is no
//! variance. Which layer it was, inside of whatever composition, and what it would take, is told by the layer
//! itself, on the thread of the [`watch`]ed pass: no flow has to hand the question on.

use std::cell::RefCell;

use burn::tensor::{Bool, Tensor};

use crate::error::FlowError;
use crate::host;

/// What is asked. An answer can cost a read from the device, so that there is one question at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// Where a batch has no density.
    Support,
    /// Where it has no variance.
    Variance,
}

thread_local! {
    /// `None` where nobody asks; then what was asked, and what was answered first.
    static ANSWER: RefCell<Option<(Question, Option<FlowError>)>> = const { RefCell::new(None) };
}

/// Runs a pass; what it gives, and the first answer of a layer to the question.
pub(crate) fn watch<T>(question: Question, pass: impl FnOnce() -> T) -> (T, Option<FlowError>) {
    /// Nobody asks any more, also where the pass panics.
    struct Asked;
    impl Drop for Asked {
        fn drop(&mut self) {
            ANSWER.set(None);
        }
    }
    ANSWER.set(Some((question, None)));
    let _asked = Asked;
    let given = pass();
    (given, ANSWER.take().and_then(|(_, answer)| answer))
}

/// The answer of a layer in its pass, computed only where somebody asks and none was given before; whether
/// somebody asks.
pub(crate) fn report(question: Question, answer: impl FnOnce() -> Option<FlowError>) -> bool {
    let asked = ANSWER.with_borrow(|asked| match asked {
        Some((of, answer)) if *of == question => Some(answer.is_none()),
        _ => None,
    });
    if asked == Some(true)
        && let Some(answer) = answer()
    {
        ANSWER.set(Some((question, Some(answer))));
    }
    asked.is_some()
}

/// [`report`] of a layer whose support `outside` says that `x` leaves.
pub(crate) fn report_outside<const D: usize, const M: usize>(
    layer: &'static str,
    x: &Tensor<D>,
    outside: &Tensor<M, Bool>,
    support: impl FnOnce() -> String,
    advice: &'static str,
) {
    report(Question::Support, || {
        let any = host::scalar(outside.clone().any().float()) > 0.5;
        any.then(|| FlowError::OutsideSupport {
            layer,
            lowest: host::scalar(host::plain(x.clone()).min()),
            highest: host::scalar(host::plain(x.clone()).max()),
            support: support(),
            advice,
        })
    });
}
