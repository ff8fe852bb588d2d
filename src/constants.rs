//! Tensors that depend on shapes alone and that layers need at each call: masks, places to select.
//!
//! They are kept where they are used: to send them to a GPU anew each time would make it wait.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use burn::tensor::{DType, Device, Int, Tensor};

use crate::host;

/// What a constant follows from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Places(Vec<usize>),
    Board { sides: Vec<usize>, starts_with_one: bool },
}

/// Numbers that are kept at most, over all constants: a few megabytes on a device. What is beyond starts
/// the collection anew.
const MOST: usize = 1 << 20;

/// A constant on a device, in a type.
type Entry = (Device, DType, Box<dyn Any + Send>);

#[derive(Default)]
struct Kept {
    /// By device and type: the devices are few.
    tensors: HashMap<Key, Vec<Entry>>,
    numbers: usize,
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Default::default);

fn kept<T: Any + Clone + Send>(
    key: Key,
    size: usize,
    device: &Device,
    dtype: DType,
    make: impl FnOnce() -> T,
) -> T {
    let mut kept = KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let of_key = kept.tensors.get(&key).into_iter().flatten();
    let mut found = of_key.filter(|(at, of, _)| at == device && *of == dtype);
    if let Some(tensor) = found.find_map(|(.., tensor)| tensor.downcast_ref::<T>()) {
        return tensor.clone();
    }
    let tensor = make();
    if kept.numbers + size > MOST {
        *kept = Kept::default();
    }
    if size <= MOST {
        kept.numbers += size;
        let tensor: Box<dyn Any + Send> = Box::new(tensor.clone());
        kept.tensors.entry(key).or_default().push((device.clone(), dtype, tensor));
    }
    tensor
}

/// Places along an axis, for `Tensor::select`; plain, whatever the device.
pub(crate) fn places(places: impl IntoIterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let (places, device) = (Vec::from_iter(places), device.clone().without_autodiff());
    let size = places.len();
    let tensor = || host::places(places.iter().copied(), &device);
    kept(Key::Places(places.clone()), size, &device, DType::I64, tensor)
}

/// A board, row by row, in as many dimensions as there are sides: 1 where the coordinates have an even sum
/// and 0 elsewhere, or the other way round; plain, whatever the device.
pub(crate) fn board(
    sides: &[usize],
    starts_with_one: bool,
    device: &Device,
    dtype: DType,
) -> Tensor<1> {
    let device = device.clone().without_autodiff();
    let size = sides.iter().product();
    let tensor = || host::from_f64(board_values(sides, starts_with_one), [size], &device, dtype);
    kept(Key::Board { sides: sides.to_vec(), starts_with_one }, size, &device, dtype, tensor)
}

fn board_values(sides: &[usize], starts_with_one: bool) -> Vec<f64> {
    let is_even = |mut square: usize| {
        let coordinates = sides.iter().rev().map(|side| {
            let coordinate = square % side;
            square /= side;
            coordinate
        });
        coordinates.sum::<usize>().is_multiple_of(2)
    };
    let squares = 0..sides.iter().product();
    squares.map(|square| f64::from(u8::from(is_even(square) == starts_with_one))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_those_that_were_asked_for() {
        for (_, device) in crate::backend::devices() {
            let device = device();
            for _ in 0..2 {
                for starts_with_one in [true, false] {
                    let board = board(&[2, 3], starts_with_one, &device, DType::F32);
                    let expected = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
                    let expected =
                        expected.map(|one| if starts_with_one { one } else { 1.0 - one });
                    assert_eq!(host::to_f64(board), expected);
                }
                let x = Tensor::<1>::from_data([3.0, 4.0, 5.0], &device);
                let chosen = x.select(0, places([2, 0], &device.clone().autodiff()));
                assert_eq!(host::to_f64(chosen), [5.0, 3.0]);
            }
        }
    }

    #[test]
    fn what_is_kept_has_an_end() {
        let (_, device) = crate::backend::devices().pop().expect("a device is compiled in");
        let device = device();
        for start in 0..5 {
            places(start..start + MOST / 3, &device);
            assert!(KEPT.lock().unwrap().numbers <= MOST);
        }
        let larger = places(0..MOST + 1, &device);
        assert_eq!(larger.dims(), [MOST + 1]);
        assert!(KEPT.lock().unwrap().numbers <= MOST);
    }
}
