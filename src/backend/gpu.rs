//! Kernels of this crate for GPUs, where no operation of Burn's does without a read from the device.

use std::any::Any;

use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::{CubeCount, CubeDim};

/// The backend of every tensor that is computed by CubeCL, whatever its runtime.
type Cube = burn_wgpu::Wgpu;

/// One group of threads, a row each, and within the rounds of a loop that every driver allows.
const MOST_ROWS: usize = 192;

/// `A^-1` and `ln|det A|`, `[1]`, of a plain matrix; `None` where the kernel does not reach it. A singular
/// matrix gives numbers that are not finite.
pub(crate) fn invert(matrix: Tensor<2>) -> Option<(Tensor<2>, Tensor<1>)> {
    let [size, _] = matrix.dims();
    let matrix = operand(matrix)?;
    if !fits(&matrix, size) {
        return None;
    }
    let [rows, inverse] = [(); 2].map(|()| output(&matrix, &[size, size]));
    let log_abs_det = output(&matrix, &[1]);
    on_device::invert_by_rows::launch(
        &matrix.client.clone(),
        CubeCount::new_single(),
        CubeDim::new_1d(size as u32),
        matrix.into_tensor_arg(),
        rows.into_tensor_arg(),
        inverse.clone().into_tensor_arg(),
        log_abs_det.clone().into_tensor_arg(),
        size,
        ElemType::Float(FloatKind::F32),
    );
    Some((tensor(inverse)?, tensor(log_abs_det)?))
}

/// `(P L (U + diag(s)))^-1` by substitution in the triangles `L`, whose diagonal counts as ones, and `U`;
/// `None` where the kernel does not reach them.
pub(crate) fn invert_triangles(
    [permutation, lower, upper]: [Tensor<2>; 3],
    diagonal: Tensor<1>,
) -> Option<Tensor<2>> {
    let [size, _] = lower.dims();
    let lower = operand(lower)?;
    if !fits(&lower, size) {
        return None;
    }
    let inverse = output(&lower, &[size, size]);
    on_device::substitute::launch(
        &lower.client.clone(),
        CubeCount::new_single(),
        CubeDim::new_1d(size as u32),
        operand(permutation)?.into_tensor_arg(),
        lower.into_tensor_arg(),
        operand(upper)?.into_tensor_arg(),
        operand(diagonal)?.into_tensor_arg(),
        inverse.clone().into_tensor_arg(),
        size,
        ElemType::Float(FloatKind::F32),
    );
    tensor(inverse)
}

/// The tensor as a kernel takes it. With Burn's `fusion` it is a promise of one, and no kernel's business.
fn operand<const D: usize>(tensor: Tensor<D>) -> Option<CubeTensor> {
    let primitive: Box<dyn Any> = Box::new(tensor.try_into_primitive::<Cube>().ok()?);
    primitive.downcast().ok().map(|tensor| into_contiguous(*tensor))
}

fn fits(matrix: &CubeTensor, size: usize) -> bool {
    let hardware = &matrix.client.properties().hardware;
    let most = hardware.max_cube_dim.0.min(hardware.max_units_per_cube) as usize;
    matrix.dtype == DType::F32 && size <= most.min(MOST_ROWS)
}

fn output(like: &CubeTensor, shape: &[usize]) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), like.dtype)
}

fn tensor<const D: usize>(tensor: CubeTensor) -> Option<Tensor<D>> {
    let tensor: Box<dyn Any> = Box::new(tensor);
    tensor.downcast().ok().map(|primitive| Tensor::from_primitive::<Cube>(*primitive))
}

/// What runs there.
mod on_device {
    use cubecl::ir::ElemType;
    use cubecl::prelude::*;

    /// Steps of the inner loops that are written out: Mesa's driver for the CPU leaves a kernel after 65,535
    /// rounds of all its loops together.
    const UNROLLED: usize = 8;

    /// Gauss-Jordan elimination in place with partial pivoting: every unit holds a row, and rows are not
    /// exchanged but numbered in the order in which they are pivots.
    #[cube(launch)]
    pub fn invert_by_rows<F: Float>(
        matrix: &Tensor<F>,
        rows: &mut Tensor<F>,
        inverse: &mut Tensor<F>,
        log_abs_det: &mut Tensor<F>,
        #[comptime] size: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        let unit = UNIT_POS_X as usize;
        // Column by column: what the units of a group read at once lies together.
        for column in 0..size {
            rows[column * size + unit] = matrix[unit * size + column];
        }
        // In each step: the candidates for the pivot, then its row, divided by it.
        let padded = size.next_multiple_of(UNROLLED);
        let mut candidates = Shared::new_slice(padded);
        let mut pivot_row = Shared::new_slice(padded);
        let mut rows_by_step = Shared::new_slice(size);
        let mut logarithms = Shared::new_slice(size);
        let mut own_step = size.runtime();
        for step in 0..size {
            let mut candidate = F::new(-1.0);
            if own_step == size {
                candidate = rows[step * size + unit].abs();
            }
            candidates[unit] = candidate;
            sync_cube();
            let mut best = 0;
            let mut largest = F::new(-1.0);
            for group in 0..size.div_ceil(UNROLLED) {
                #[unroll]
                for place in 0..UNROLLED {
                    let other = group * UNROLLED + place;
                    if other < size && candidates[other] > largest {
                        largest = candidates[other];
                        best = other;
                    }
                }
            }
            if unit == best {
                let pivot = rows[step * size + unit];
                rows[step * size + unit] = F::new(1.0);
                for column in 0..size {
                    rows[column * size + unit] /= pivot;
                    pivot_row[column] = rows[column * size + unit];
                }
                own_step = step;
                rows_by_step[step] = unit as u32;
                logarithms[step] = pivot.abs().ln();
            }
            sync_cube();
            if unit != best {
                let factor = rows[step * size + unit];
                rows[step * size + unit] = F::new(0.0);
                for group in 0..size.div_ceil(UNROLLED) {
                    #[unroll]
                    for place in 0..UNROLLED {
                        let column = group * UNROLLED + place;
                        if column < size {
                            rows[column * size + unit] -= factor * pivot_row[column];
                        }
                    }
                }
            }
        }
        for step in 0..size {
            inverse[own_step * size + rows_by_step[step] as usize] = rows[step * size + unit];
        }
        if unit == 0 {
            let mut sum = F::new(0.0);
            for step in 0..size {
                sum += logarithms[step];
            }
            log_abs_det[0] = sum;
        }
    }

    /// Every unit computes a column of the inverse.
    #[cube(launch)]
    pub fn substitute<F: Float>(
        permutation: &Tensor<F>,
        lower: &Tensor<F>,
        upper: &Tensor<F>,
        diagonal: &Tensor<F>,
        inverse: &mut Tensor<F>,
        #[comptime] size: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        let unit = UNIT_POS_X as usize;
        for i in 0..size {
            let mut value = permutation[unit * size + i];
            for k in 0..i {
                value -= lower[i * size + k] * inverse[k * size + unit];
            }
            inverse[i * size + unit] = value;
        }
        for back in 0..size {
            let i = size - 1 - back;
            let mut value = inverse[i * size + unit];
            for k in i + 1..size {
                value -= upper[i * size + k] * inverse[k * size + unit];
            }
            inverse[i * size + unit] = value / diagonal[i];
        }
    }
}
