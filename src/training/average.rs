//! Averages of the trained parameters over the steps.

use std::any::Any;
use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Tensor};

use crate::backend::{HostScalar, HostValues, is_host};
use crate::host;
use crate::kernels::move_towards;

/// The exponential moving average of a model's parameters.
#[derive(Clone)]
pub(super) struct Average<M> {
    decay: f64,
    /// None before the first update.
    model: Option<M>,
    num_updates: usize,
}

impl<M: Module> Average<M> {
    pub fn new(decay: f64) -> Self {
        Self { decay, model: None, num_updates: 0 }
    }

    /// An average as it was after so many updates.
    pub fn resumed(&self, model: Option<M>, num_updates: usize) -> Self {
        Self { decay: self.decay, model, num_updates }
    }

    pub fn model(&self) -> Option<&M> {
        self.model.as_ref()
    }

    pub fn num_updates(&self) -> usize {
        self.num_updates
    }

    /// Takes in a model in training, whose parameters an optimizer has just moved.
    pub fn update(&mut self, trained: &M) {
        let updates = self.num_updates as f64;
        self.num_updates += 1;
        let Some(average) = self.model.take() else {
            self.model = Some(trained.valid());
            return;
        };
        // The first models are far from good, and soon forgotten.
        let decay = self.decay.min((1.0 + updates) / (10.0 + updates));
        let mut values = Values(HashMap::new());
        trained.visit(&mut values);
        self.model = Some(average.map(&mut Move { values: values.0, share: 1.0 - decay }));
    }
}

/// The parameters by their ids, each a tensor, and whether it is trained.
struct Values(HashMap<ParamId, (Box<dyn Any>, bool)>);

impl ModuleVisitor for Values {
    fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
        let value: Box<dyn Any> = Box::new(host::plain(param.val()));
        self.0.insert(param.id, (value, param.is_require_grad()));
    }
}

/// Moves trained parameters by a share of the way to their values; others, running moments for one, take
/// the values.
struct Move {
    values: HashMap<ParamId, (Box<dyn Any>, bool)>,
    share: f64,
}

impl ModuleMapper for Move {
    fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
        let Some((value, is_trained)) = self.values.get(&param.id) else { return param };
        let value: &Tensor<N> = value.downcast_ref().expect("a parameter has one rank");
        let (value, share) = (value.clone(), self.share);
        param.map(|average| if *is_trained { moved(average, value, share) } else { value })
    }
}

/// `average + share (value - average)`.
fn moved<const N: usize>(average: Tensor<N>, value: Tensor<N>, share: f64) -> Tensor<N> {
    match average.dtype() {
        DType::F32 if is_host(&average.device()) => moved_on_host::<f32, N>(average, value, share),
        DType::F64 if is_host(&average.device()) => moved_on_host::<f64, N>(average, value, share),
        _ => average.clone() + (value - average) * share,
    }
}

fn moved_on_host<T: HostScalar, const N: usize>(
    average: Tensor<N>,
    value: Tensor<N>,
    share: f64,
) -> Tensor<N> {
    let (device, shape) = (average.device(), average.dims());
    let mut values = HostValues::of(average).into_vec::<T>();
    move_towards(&mut values, HostValues::of(value).as_slice(), T::from_f64(share));
    host::tensor(values, shape, &device)
}
