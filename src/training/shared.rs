//! Parameters that layers share: those of clones, which have one id.

use std::any::Any;
use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Bool, Int, Tensor};

use crate::param::is_trained;

/// Gives the parameters of `module` the ids 1, 2, 3, … in order; says whether any are shared.
///
/// Parameters are shared where they have one id and one value, and are all trained or all not: so are
/// those of clones of a layer until one of them is changed. They keep having one id.
pub(super) fn number_parameters<M: Module>(module: M) -> (M, bool) {
    let mut number = Number::default();
    let module = module.map(&mut number);
    (module, number.any_shared)
}

/// A value, whether it is trained, and its new id.
type Seen = (Box<dyn Any>, bool, ParamId);

#[derive(Default)]
struct Number {
    last: u64,
    /// By the id that each had.
    seen: HashMap<ParamId, Vec<Seen>>,
    any_shared: bool,
}

impl Number {
    fn next(&mut self) -> ParamId {
        self.last += 1;
        ParamId::from(self.last)
    }
}

impl ModuleMapper for Number {
    fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
        let trained = is_trained(&param);
        let (id, value, mapper) = param.consume();
        let is_same = |(before, is_trained, _): &&(Box<dyn Any>, bool, ParamId)| {
            let before = before.downcast_ref::<Tensor<N>>();
            let equal = |before: &Tensor<N>| before.to_data() == value.to_data();
            *is_trained == trained && before.is_some_and(equal)
        };
        let before = self.seen.get(&id).into_iter().flatten().find(is_same);
        let new = match before.map(|(_, _, new)| *new) {
            Some(new) => {
                self.any_shared = true;
                new
            }
            None => {
                let new = self.next();
                self.seen.entry(id).or_default().push((Box::new(value.clone()), trained, new));
                new
            }
        };
        Param::from_mapped_value(new, value, mapper)
    }

    fn map_int<const N: usize>(&mut self, param: Param<Tensor<N, Int>>) -> Param<Tensor<N, Int>> {
        let (_, value, mapper) = param.consume();
        Param::from_mapped_value(self.next(), value, mapper)
    }

    fn map_bool<const N: usize>(
        &mut self,
        param: Param<Tensor<N, Bool>>,
    ) -> Param<Tensor<N, Bool>> {
        let (_, value, mapper) = param.consume();
        Param::from_mapped_value(self.next(), value, mapper)
    }
}

/// After an optimizer's step, which moves a parameter in the first place where it is met: gives it that
/// value everywhere.
pub(super) fn share_step<M: Module>(module: M) -> M {
    struct Share(HashMap<ParamId, Box<dyn Any>>);
    impl ModuleMapper for Share {
        fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
            if let Some(first) = self.0.get(&param.id) {
                let first: &Tensor<N> = first.downcast_ref().expect("clones have one rank");
                return param.map(|_| first.clone());
            }
            self.0.insert(param.id, Box::new(param.val()));
            param
        }
    }
    module.map(&mut Share(HashMap::new()))
}

/// After a data pass, which moves a parameter in each place for itself: gives it the mean everywhere.
/// `module` is not in training.
pub(super) fn share_data_pass<M: Module>(module: M) -> M {
    struct Collect(HashMap<ParamId, (Box<dyn Any>, usize)>);
    impl ModuleVisitor for Collect {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            // Places for contexts have no values: not every device adds none up.
            if param.dims().contains(&0) {
                return;
            }
            let (sum, count) = match self.0.remove(&param.id) {
                Some((sum, count)) => {
                    let sum: Box<Tensor<N>> = sum.downcast().expect("clones have one rank");
                    (*sum + param.val(), count + 1)
                }
                None => (param.val(), 1),
            };
            self.0.insert(param.id, (Box::new(sum), count));
        }
    }
    struct Share(HashMap<ParamId, (Box<dyn Any>, usize)>);
    impl ModuleMapper for Share {
        fn map_float<const N: usize>(&mut self, param: Param<Tensor<N>>) -> Param<Tensor<N>> {
            match self.0.get(&param.id) {
                None | Some((_, 1)) => param,
                Some((sum, count)) => {
                    let sum: &Tensor<N> = sum.downcast_ref().expect("clones have one rank");
                    param.map(|_| sum.clone() / *count as f64)
                }
            }
        }
    }
    let mut sums = Collect(HashMap::new());
    module.visit(&mut sums);
    module.map(&mut Share(sums.0))
}
