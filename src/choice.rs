//! A choice between flows, made when a model is built.

/// Makes an enum of flows a [`Flow`](crate::Flow) of rank `$rank`: every method is that of the
/// variant at hand.
///
/// A stack of steps of different kinds is a `Vec` of such an enum, which derives
/// `burn::module::Module` and `Debug`; every variant holds one flow of that rank. An enum that is
/// generic in one type names its bound: `choice_of_flows!(Step<C: Conditioner<4>>, 4, { .. })`.
///
/// ```
/// use burn::module::Module;
/// use burn::tensor::Tensor;
/// use burn_flows::linear::{DiagonalScaling, Permutation};
/// use burn_flows::{Flow, choice_of_flows};
///
/// #[derive(Module, Debug)]
/// enum Step {
///     Scale(DiagonalScaling),
///     Permute(Permutation),
/// }
/// choice_of_flows!(Step, 2, { Scale, Permute });
///
/// let device = burn_flows::backend::device();
/// let steps = vec![
///     Step::Scale(DiagonalScaling::new(2, &device)?),
///     Step::Permute(Permutation::reverse(2, &device)?),
/// ];
/// let (z, _) = steps.forward(Tensor::<2>::from_data([[1.0, 2.0]], &device));
/// assert_eq!(z.try_into_vec_as::<f32>().unwrap(), [2.0, 1.0]);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[macro_export]
macro_rules! choice_of_flows {
    ($name:ident, $rank:literal, { $($variant:ident),+ $(,)? }) => {
        impl $crate::Flow<$rank> for $name {
            $crate::choice_of_flows!(@methods $rank, { $($variant),+ });
        }
    };
    ($name:ident<$param:ident: $bound:path>, $rank:literal, { $($variant:ident),+ $(,)? }) => {
        impl<$param: $bound> $crate::Flow<$rank> for $name<$param>
        where
            Self: burn::module::Module,
        {
            $crate::choice_of_flows!(@methods $rank, { $($variant),+ });
        }
    };
    (@methods $rank:literal, { $($variant:ident),+ }) => {
        fn forward(
            &self,
            x: burn::tensor::Tensor<$rank>,
        ) -> (burn::tensor::Tensor<$rank>, burn::tensor::Tensor<1>) {
            match self { $(Self::$variant(flow) => $crate::Flow::<$rank>::forward(flow, x),)+ }
        }

        fn inverse(&self, z: burn::tensor::Tensor<$rank>) -> burn::tensor::Tensor<$rank> {
            match self { $(Self::$variant(flow) => $crate::Flow::<$rank>::inverse(flow, z),)+ }
        }

        fn log_det(&self, x: burn::tensor::Tensor<$rank>) -> burn::tensor::Tensor<1> {
            match self { $(Self::$variant(flow) => $crate::Flow::<$rank>::log_det(flow, x),)+ }
        }

        fn initialize(
            self,
            x: burn::tensor::Tensor<$rank>,
        ) -> (Self, burn::tensor::Tensor<$rank>) {
            match self {
                $(Self::$variant(flow) => {
                    let (flow, z) = $crate::Flow::<$rank>::initialize(flow, x);
                    (Self::$variant(flow), z)
                })+
            }
        }

        fn observe(
            self,
            x: burn::tensor::Tensor<$rank>,
        ) -> (Self, burn::tensor::Tensor<$rank>) {
            match self {
                $(Self::$variant(flow) => {
                    let (flow, z) = $crate::Flow::<$rank>::observe(flow, x);
                    (Self::$variant(flow), z)
                })+
            }
        }

        fn has_running_statistics(&self) -> bool {
            match self {
                $(Self::$variant(flow) => $crate::Flow::<$rank>::has_running_statistics(flow),)+
            }
        }

        fn latent_shape(&self, shape: [usize; $rank]) -> $crate::Result<[usize; $rank]> {
            match self {
                $(Self::$variant(flow) => $crate::Flow::<$rank>::latent_shape(flow, shape),)+
            }
        }

        fn check(&self) -> $crate::Result<()> {
            match self { $(Self::$variant(flow) => $crate::Flow::<$rank>::check(flow),)+ }
        }

        fn pull_back(
            &self,
            z: burn::tensor::Tensor<$rank>,
            dz: burn::tensor::Tensor<$rank>,
            dlog_det: burn::tensor::Tensor<1>,
            grads: &mut burn::optim::GradientsParams,
        ) -> (burn::tensor::Tensor<$rank>, burn::tensor::Tensor<$rank>) {
            match self {
                $(Self::$variant(flow) => {
                    $crate::Flow::<$rank>::pull_back(flow, z, dz, dlog_det, grads)
                })+
            }
        }

        fn backward(
            &self,
            x: burn::tensor::Tensor<$rank>,
            dz: burn::tensor::Tensor<$rank>,
            dlog_det: burn::tensor::Tensor<1>,
            grads: &mut burn::optim::GradientsParams,
        ) -> burn::tensor::Tensor<$rank> {
            match self {
                $(Self::$variant(flow) => {
                    $crate::Flow::<$rank>::backward(flow, x, dz, dlog_det, grads)
                })+
            }
        }

        fn forward_on(
            &self,
            x: burn::tensor::Tensor<$rank>,
            tape: &mut $crate::training::Tape,
        ) -> (burn::tensor::Tensor<$rank>, burn::tensor::Tensor<1>) {
            match self {
                $(Self::$variant(flow) => $crate::Flow::<$rank>::forward_on(flow, x, tape),)+
            }
        }

        fn pull_back_on(
            &self,
            z: burn::tensor::Tensor<$rank>,
            dz: burn::tensor::Tensor<$rank>,
            dlog_det: burn::tensor::Tensor<1>,
            tape: &mut $crate::training::Tape,
            grads: &mut burn::optim::GradientsParams,
        ) -> (burn::tensor::Tensor<$rank>, burn::tensor::Tensor<$rank>) {
            match self {
                $(Self::$variant(flow) => {
                    $crate::Flow::<$rank>::pull_back_on(flow, z, dz, dlog_det, tape, grads)
                })+
            }
        }
    };
}
