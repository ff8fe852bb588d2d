//! Training by passes over data in memory, with early stopping.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use burn_flows::linear::DiagonalScaling;
use burn_flows::models::{Maf, MafConfig, SplineFlowConfig};
use burn_flows::preprocess::{Domain, Unconstrain};
use burn_flows::prior::StandardNormal;
use burn_flows::testing::seeded;
use burn_flows::training::{Epoch, Fit, Fitted, Schedule, Stopped, Trainer};
use burn_flows::{FlowError, FlowStack, Result};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::common::{flat, host};
use super::points;

/// Few samples and a wide net: it learns them by heart, and what is held out becomes less likely.
const FEW: usize = 40;

fn model() -> Maf {
    let device = host();
    seeded(3, &device, || MafConfig::new(2, 3, vec![64, 64]).init(&device).unwrap())
}

fn train() -> Tensor<2> {
    points(FEW, 1, &host())
}

fn held_out() -> Tensor<2> {
    points(200, 2, &host())
}

fn fit(
    fit: Fit,
    rates: impl Fn(usize) -> f64 + Send + Sync + 'static,
) -> Result<(Fitted<Maf>, Vec<Epoch>)> {
    let mut epochs = Vec::new();
    let fitted = fit.run(Trainer::new(model(), rates), train(), held_out(), |epoch| {
        epochs.push(*epoch);
        ControlFlow::Continue(())
    })?;
    Ok((fitted, epochs))
}

fn loss(model: &Maf, x: Tensor<2>) -> f64 {
    -model.log_prob(x).mean().into_scalar::<f64>()
}

#[test]
fn the_model_of_the_best_pass_is_kept() {
    let (fitted, epochs) = fit(Fit::new(10).with_patience(5), |_| 5e-3).unwrap();
    assert!(matches!(fitted.stopped, Stopped::Early), "{:?}", fitted.stopped);
    assert_eq!(fitted.num_epochs, fitted.best_epoch + 5);
    assert_eq!(fitted.num_epochs, epochs.len());
    let last = epochs.last().unwrap();
    assert!(last.train_loss < last.held_out_loss && last.held_out_loss > fitted.held_out_loss);
    for (number, epoch) in (1..).zip(&epochs) {
        let before = epochs[..number - 1].iter().map(|epoch| epoch.held_out_loss);
        assert_eq!(epoch.number, number);
        assert_eq!(epoch.is_best, before.fold(f64::INFINITY, f64::min) > epoch.held_out_loss);
    }
    let best = &epochs[fitted.best_epoch - 1];
    assert!(best.is_best && best.held_out_loss == fitted.held_out_loss);
    // Held-out samples are measured in parts.
    assert!((loss(&fitted.model, held_out()) - fitted.held_out_loss).abs() < 1e-5);
}

#[test]
fn the_same_seed_gives_the_same_model() {
    let run = |seed| {
        let (fitted, _) = fit(Fit::new(10).with_max_epochs(3).with_seed(seed), |_| 1e-3).unwrap();
        assert!(matches!(fitted.stopped, Stopped::MaxEpochs));
        assert_eq!(fitted.num_epochs, 3);
        flat(fitted.model.log_prob(held_out()))
    };
    assert_eq!(run(0), run(0));
    assert_ne!(run(0), run(1));
}

#[test]
fn a_caller_may_break_off() {
    let trainer = Trainer::new(model(), Schedule::constant(1e-3));
    let fitted = Fit::new(10).run(trainer, train(), held_out(), |epoch| match epoch.number {
        2 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let fitted = fitted.unwrap();
    assert!(matches!(fitted.stopped, Stopped::ByCaller));
    assert_eq!(fitted.num_epochs, 2);
}

#[test]
fn a_divergence_leaves_the_best_model() {
    // Four steps a pass: the second one breaks the model.
    let rates = |step: usize| if step < 4 { 1e-3 } else { 1e30 };
    let (fitted, _) = fit(Fit::new(10), rates).unwrap();
    assert!(matches!(fitted.stopped, Stopped::Diverged(_)), "{:?}", fitted.stopped);
    assert_eq!((fitted.best_epoch, fitted.num_epochs), (1, 2));
    assert!((loss(&fitted.model, held_out()) - fitted.held_out_loss).abs() < 1e-5);
    let error = fit(Fit::new(10), |_| 1e30).unwrap_err();
    assert!(matches!(error, FlowError::NotFinite { .. } | FlowError::Scale { .. }), "{error}");
}

#[test]
fn batches_of_pairs_and_larger_than_the_data() {
    let device = host();
    let config = SplineFlowConfig::new(2, 2, vec![16]).with_context(2);
    for context in [points(FEW, 5, &device), points(1, 5, &device)] {
        let model = config.init(&mut StdRng::seed_from_u64(0), &device).unwrap();
        let trainer = Trainer::new(model, Schedule::constant(1e-3));
        let data = (train(), context);
        let fit = Fit::new(usize::MAX).with_max_epochs(2);
        let fitted = fit.run(trainer, data.clone(), data, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(fitted.num_epochs, 2);
        assert!(fitted.held_out_loss.is_finite());
    }
}

#[test]
fn contexts_of_another_number_than_samples_are_refused() {
    let device = host();
    let pairs = |samples, contexts| (points(samples, 1, &device), points(contexts, 2, &device));
    for (train, held_out, what) in [
        ((64, 70), (8, 8), "train: the contexts: got 70 for 64 samples"),
        ((64, 60), (8, 8), "train: the contexts: got 60 for 64 samples"),
        ((32, 32), (8, 5), "held_out: the contexts: got 5 for 8 samples"),
        ((32, 32), (8, 12), "held_out: the contexts: got 12 for 8 samples"),
    ] {
        let config = SplineFlowConfig::new(2, 2, vec![16]).with_context(2);
        let model = config.init(&mut StdRng::seed_from_u64(0), &device).unwrap();
        let trainer = Trainer::new(model, Schedule::constant(1e-3));
        let (train, held_out) = (pairs(train.0, train.1), pairs(held_out.0, held_out.1));
        let fitted = Fit::new(16)
            .with_max_epochs(1)
            .run(trainer, train, held_out, |_| ControlFlow::Continue(()));
        let text = fitted.unwrap_err().to_string();
        assert!(text.contains(what), "{text}");
    }
}

#[test]
fn held_out_samples_outside_of_the_support_are_named() {
    let device = host();
    let flow = (
        Unconstrain::new(vec![Domain::Above(0.0), Domain::Real]).unwrap(),
        DiagonalScaling::new(2, &device).unwrap(),
    );
    let model: FlowStack<2, _> = FlowStack::single(flow, StandardNormal::new(), &[2]).unwrap();
    let trainer = Trainer::new(model, Schedule::constant(1e-3));
    let held_out = Tensor::from_data([[1.0f32, 0.5], [-0.5, 0.5]], &device);
    let fit = Fit::new(16).with_max_epochs(2);
    let error = fit
        .run(trainer, points(64, 1, &device).abs() + 0.1, held_out, |_| ControlFlow::Continue(()))
        .unwrap_err();
    assert!(matches!(error, FlowError::OutsideSupport { .. }), "{error}");
}

#[test]
fn what_cannot_be_fitted_is_refused() {
    let run = |fit: Fit, train: Tensor<2>, held_out: Tensor<2>| {
        let trainer = Trainer::new(model(), Schedule::constant(1e-3));
        fit.run(trainer, train, held_out, |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    let none = || points(1, 1, &host()).slice([0..0, 0..2]);
    let refused = [
        (run(Fit::new(0), train(), held_out()), "batch_size"),
        (run(Fit::new(8).with_max_epochs(0), train(), held_out()), "max_epochs"),
        (run(Fit::new(8).with_patience(0), train(), held_out()), "patience"),
        (run(Fit::new(8), train(), none()), "held_out samples"),
        (run(Fit::new(8), none(), held_out()), "train samples"),
    ];
    for (text, name) in refused {
        assert!(text.contains(name) && text.contains("is 0, but must be at least 1"), "{text}");
    }
    let infinite = run(Fit::new(8), train(), held_out() * f32::INFINITY);
    assert!(infinite.contains("the density of held-out samples is not finite"), "{infinite}");
}
