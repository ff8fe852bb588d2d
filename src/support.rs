//! Where a batch has no density: the question of a training step that failed to the layers.
//!
//! Outside of its support a layer gives the log-determinant minus infinity. Which layer it was, inside
//! of whatever composition, and which values it would take, is told by the layer itself, on the thread
//! of the [`watch`]ed forward pass: no flow has to hand the question on.

use std::cell::RefCell;

use burn::tensor::{Bool, Tensor};

use crate::error::FlowError;
use crate::host;

thread_local! {
    /// `None` where nobody asks; then what was answered first.
    static ANSWER: RefCell<Option<Option<FlowError>>> = const { RefCell::new(None) };
}

/// Runs a forward pass and gives the first answer of a layer to it.
pub(crate) fn watch(forward: impl FnOnce()) -> Option<FlowError> {
    /// Nobody asks any more, also where the pass panics.
    struct Asked;
    impl Drop for Asked {
        fn drop(&mut self) {
            ANSWER.set(None);
        }
    }
    ANSWER.set(Some(None));
    let _asked = Asked;
    forward();
    ANSWER.take().flatten()
}

/// The answer of a layer in its forward pass, computed only where somebody asks.
pub(crate) fn report(answer: impl FnOnce() -> Option<FlowError>) {
    let is_open = ANSWER.with_borrow(|asked| matches!(asked, Some(None)));
    if is_open && let Some(answer) = answer() {
        ANSWER.set(Some(Some(answer)));
    }
}

/// [`report`] of a layer whose support `outside` says that `x` leaves.
pub(crate) fn report_outside<const D: usize, const M: usize>(
    layer: &'static str,
    x: &Tensor<D>,
    outside: &Tensor<M, Bool>,
    support: impl FnOnce() -> String,
    advice: &'static str,
) {
    report(|| {
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
