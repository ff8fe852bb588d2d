//! What a run finds out about its model and shows of it.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Tensor;
use rand::rngs::StdRng;

use super::corner::Corner;
use super::{Measured, Metrics, Unit};
use crate::Density;
use crate::data::{Table, check_names, note_output, random_for, streams};
use crate::error::{FlowError, Result};
use crate::metrics;
use crate::training::early::held_out_loss;
use crate::training::trainable::check_contexts;
use crate::training::{Batch, Trainable};

/// What a [`Run`](super::Run) measures and shows beside its training, of a model `M` that is trained.
///
/// [`HeldOut`] is the one for samples in memory, [`ImageRun`](super::ImageRun) has one for images, and `()`
/// is none at all. One of your own measures what you like: figures in
/// [`more`](super::Measured::more) are lines of `metrics.jsonl` and curves of the report.
pub trait Evaluation<M> {
    /// What of the model is saved, measured and drawn from: the model itself, or the density in it where
    /// something beside it is there for training alone.
    type Saved: Module;

    /// The part of the model that is saved.
    fn saved(&self, model: M) -> Self::Saved;

    /// In which unit the loss is told.
    fn unit(&self) -> Unit {
        Unit::Nats
    }

    /// Checks what can be checked before the run makes its folder.
    ///
    /// # Errors
    /// If the evaluation could not do its work at the end.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Before the first step, with the folder of the run.
    ///
    /// # Errors
    /// If the folder cannot be written.
    fn start(&mut self, _folder: &Path) -> Result<()> {
        Ok(())
    }

    /// Figures of held-out data; where they are to be the final ones, as exactly as it can be; `None` where
    /// nothing is held out.
    ///
    /// # Errors
    /// If they cannot be had; the run then ends as it does where a step fails.
    fn measure(
        &mut self,
        model: &Self::Saved,
        step: usize,
        is_final: bool,
    ) -> Result<Option<Measured>>;

    /// Pictures of a model on its way, after it was measured.
    ///
    /// # Errors
    /// If they cannot be written; the run then ends as it does where a step fails.
    fn progress(&mut self, _model: &Self::Saved, _step: usize, _folder: &Path) -> Result<()> {
        Ok(())
    }

    /// Samples and pictures of the final model.
    ///
    /// # Errors
    /// If they cannot be written.
    fn finish(&mut self, _model: &Self::Saved, _folder: &Path) -> Result<()> {
        Ok(())
    }

    /// The pictures that the report shows, of a run that is finished or not.
    fn sections(&self, _metrics: &[Metrics], _finished: bool) -> Vec<Section> {
        Vec::new()
    }
}

/// A part of the report.
#[derive(Debug, Clone)]
pub struct Section {
    /// Its heading.
    pub heading: String,
    /// What its pictures are.
    pub note: String,
    /// The files, by their paths in the folder of the run; those that are not there are left out.
    pub pictures: Vec<Shown>,
}

/// A picture of the report.
#[derive(Debug, Clone)]
pub struct Shown {
    /// What stands before it, for one of a series.
    pub label: Option<String>,
    /// Its path in the folder of the run.
    pub file: String,
}

/// No evaluation: the run has the loss of its training alone.
impl<M: Module> Evaluation<M> for () {
    type Saved = M;

    fn saved(&self, model: M) -> M {
        model
    }

    fn measure(&mut self, _model: &M, _step: usize, _is_final: bool) -> Result<Option<Measured>> {
        Ok(None)
    }
}

/// A number that says something of a model.
type Measure<M> = Box<dyn Fn(&M) -> f64>;

/// How samples are drawn from a model.
type Draw<M> = Box<dyn Fn(&M, &mut StdRng) -> Result<Tensor<2>>>;

/// Samples that are held out: their mean of `-ln p` is measured, and draws from the final model are written
/// beside them.
///
/// The draws go into `samples.csv`, and into `samples.png`: each feature by itself and each pair, in blue,
/// where the held-out samples are orange.
pub struct HeldOut<B, M> {
    samples: B,
    names: Option<Vec<String>>,
    draw: Option<Draw<M>>,
    /// What the draws are compared with.
    reference: Option<Tensor<2>>,
    inversion_error: Option<Measure<M>>,
    seed: u64,
}

/// Held-out samples whose densities are computed at once: no gradients are kept.
const AT_ONCE: usize = 1000;

/// Samples of which a round trip through the model is made.
const ROUND_TRIPS: usize = 1000;

/// Features in a picture of pairs: more of them are too small to be seen.
const MOST_PAIRS: usize = 8;

impl<M: Density<2> + Trainable<Tensor<2>>> HeldOut<Tensor<2>, M> {
    /// Vectors, of which as many are drawn from the model. Without any, [`Run::train`](super::Run::train) is an
    /// error.
    pub fn rows(samples: Tensor<2>) -> Self {
        let count = samples.dims()[0];
        let some = match count > ROUND_TRIPS {
            true => Batch::narrow(&samples, 0, ROUND_TRIPS),
            false => samples.clone(),
        };
        Self {
            inversion_error: Some(Box::new(move |model: &M| {
                metrics::inversion_error(model, some.clone())
            })),
            reference: Some(samples.clone()),
            ..Self::new(samples)
        }
        .with_draws(move |model, rng| Ok(model.sample_with(count, 1.0, rng)))
    }
}

impl<B: Batch, M: Trainable<B>> HeldOut<B, M> {
    /// Any samples, `x` or `(x, context)`, of which the loss is measured.
    pub fn new(samples: B) -> Self {
        Self { samples, names: None, draw: None, reference: None, inversion_error: None, seed: 0 }
    }

    /// The names of the features, as many as there are.
    pub fn with_names(mut self, names: &[String]) -> Self {
        self.names = Some(names.to_vec());
        self
    }

    /// How samples of the final model are drawn, for `samples.csv` and `samples.png`.
    pub fn with_draws(
        mut self,
        draw: impl Fn(&M, &mut StdRng) -> Result<Tensor<2>> + 'static,
    ) -> Self {
        self.draw = Some(Box::new(draw));
        self
    }

    /// What the draws are compared with in `samples.png`.
    pub fn with_reference(mut self, reference: Tensor<2>) -> Self {
        self.reference = Some(reference);
        self
    }

    /// The seed of the draws.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn check_names(&self, features: usize) -> Result<()> {
        match &self.names {
            Some(names) if names.len() != features => Err(FlowError::invalid(
                "HeldOut::with_names",
                format!("{} names", names.len()),
                format!("{features}, one for each feature"),
                "give the names of the columns that are learned",
            )),
            _ => Ok(()),
        }
    }
}

impl<B: Batch, M: Trainable<B>> Evaluation<M> for HeldOut<B, M> {
    type Saved = M;

    fn saved(&self, model: M) -> M {
        model
    }

    fn validate(&self) -> Result<()> {
        if self.samples.num_samples() == 0 {
            let advice = "hold out a tenth of the data";
            return Err(FlowError::invalid(
                "HeldOut: the held-out samples",
                "none",
                "at least one",
                advice,
            ));
        }
        check_contexts("HeldOut", &self.samples)?;
        // They head the file of the draws, which is written at the very end.
        self.names.as_deref().map_or(Ok(()), check_names)?;
        self.reference.as_ref().map_or(Ok(()), |rows| self.check_names(rows.dims()[1]))
    }

    fn measure(&mut self, model: &M, step: usize, _is_final: bool) -> Result<Option<Measured>> {
        Ok(Some(Measured {
            loss: held_out_loss(model, &self.samples, AT_ONCE, step)?,
            num_samples: self.samples.num_samples(),
            inversion_error: self.inversion_error.as_ref().map(|error| error(model)),
            ..Measured::default()
        }))
    }

    fn finish(&mut self, model: &M, folder: &Path) -> Result<()> {
        let Some(draw) = &self.draw else { return Ok(()) };
        let draws = draw(model, &mut random_for(self.seed, streams::SAMPLE, 0))?;
        let features = draws.dims()[1];
        self.check_names(features)?;
        if let Some(reference) = &self.reference
            && reference.dims()[1] != features
        {
            return Err(FlowError::invalid(
                "HeldOut::with_reference",
                format!("{} features", reference.dims()[1]),
                format!("{features}, as the draws have"),
                "compare with samples of the same kind",
            ));
        }
        let number = |column| format!("column_{}", column + 1);
        let names = self.names.clone();
        let names = names.unwrap_or_else(|| (0..features).map(number).collect());
        let table = Table::of(&names, draws);
        let path = folder.join("samples.csv");
        note_output(&path)?;
        table.write(&path)?;
        let reference = self.reference.clone().map(|rows| Table::of(&names, rows));
        Corner {
            names: &names[..names.len().min(MOST_PAIRS)],
            samples: &table.rows,
            reference: reference.as_ref().map(|table| &table.rows[..]),
            truth: None,
        }
        .write(folder.join("samples.png"))
    }

    fn sections(&self, _metrics: &[Metrics], finished: bool) -> Vec<Section> {
        if !finished || self.draw.is_none() {
            return Vec::new();
        }
        let note = match self.reference {
            Some(_) => {
                "Draws from the model in blue, held-out samples in orange; all are in samples.csv."
            }
            None => "Draws from the model; all are in samples.csv.",
        };
        let picture = Shown { label: None, file: "samples.png".into() };
        vec![Section { heading: "Samples".into(), note: note.into(), pictures: vec![picture] }]
    }
}
