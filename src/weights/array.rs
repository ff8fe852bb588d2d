//! Host arrays of f64, with the few rearrangements that conversions need.

use burn::tensor::TensorData;

/// An array of f64 on the host, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Array {
    /// From values in row-major order.
    ///
    /// # Panics
    /// If there are not as many values as the shape says.
    pub fn new(shape: impl Into<Vec<usize>>, values: Vec<f64>) -> Self {
        let shape = shape.into();
        assert!(
            shape.iter().product::<usize>() == values.len(),
            "Array: got {} values for shape {shape:?}",
            values.len()
        );
        Self { shape, values }
    }

    pub(crate) fn from_data(data: TensorData) -> Self {
        let shape = data.shape().to_vec();
        Self::new(shape, data.iter::<f64>().collect())
    }

    /// The shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    pub(crate) fn into_values(self) -> Vec<f64> {
        self.values
    }

    /// `f` of every value.
    pub fn map(mut self, f: impl Fn(f64) -> f64) -> Self {
        self.values.iter_mut().for_each(|value| *value = f(*value));
        self
    }

    /// `f` of every pair of values.
    ///
    /// # Panics
    /// If the numbers of values differ.
    pub fn zip(mut self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        assert!(
            self.values.len() == other.values.len(),
            "Array: shapes {:?} and {:?} do not go together",
            self.shape,
            other.shape
        );
        for (value, &other) in self.values.iter_mut().zip(&other.values) {
            *value = f(*value, other);
        }
        self
    }

    /// The values as a vector: `[1, n, 1, 1] -> [n]`.
    pub fn flat(mut self) -> Self {
        self.shape = vec![self.values.len()];
        self
    }

    /// The rows (slices along the first axis) of the given numbers, in that order.
    pub fn rows(&self, indices: impl IntoIterator<Item = usize>) -> Self {
        let width: usize = self.shape[1..].iter().product();
        let (mut shape, mut values) = (self.shape.clone(), Vec::new());
        shape[0] = 0;
        for index in indices {
            shape[0] += 1;
            values.extend_from_slice(&self.values[index * width..(index + 1) * width]);
        }
        Self { shape, values }
    }

    /// The rows of `self`, then those of `below`.
    pub fn stack(mut self, below: &Self) -> Self {
        assert!(
            self.shape[1..] == below.shape[1..],
            "Array: rows of shapes {:?} and {:?} do not go together",
            self.shape,
            below.shape
        );
        self.shape[0] += below.shape[0];
        self.values.extend_from_slice(&below.values);
        self
    }

    /// A matrix with `self` and `other` on its diagonal and zeros elsewhere.
    pub fn block_diagonal(&self, other: &Self) -> Self {
        let [rows, columns] = [self.shape[0], self.shape[1]];
        let [more_rows, more_columns] = [other.shape[0], other.shape[1]];
        let width = columns + more_columns;
        let mut values = vec![0.0; (rows + more_rows) * width];
        for i in 0..rows {
            values[i * width..i * width + columns]
                .copy_from_slice(&self.values[i * columns..(i + 1) * columns]);
        }
        for i in 0..more_rows {
            let start = (rows + i) * width + columns;
            values[start..start + more_columns]
                .copy_from_slice(&other.values[i * more_columns..(i + 1) * more_columns]);
        }
        Self { shape: vec![rows + more_rows, width], values }
    }

    /// The transpose of a matrix.
    pub fn transposed(&self) -> Self {
        let [rows, columns] = [self.shape[0], self.shape[1]];
        let values =
            (0..rows * columns).map(|i| self.values[i % rows * columns + i / rows]).collect();
        Self { shape: vec![columns, rows], values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Array {
        Array::new([rows, columns], (0..rows * columns).map(|i| i as f64).collect())
    }

    #[test]
    fn rearrangements_of_a_small_matrix() {
        let a = matrix(2, 3);
        assert_eq!(a.transposed().values(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(a.rows([1, 0]).values(), [3.0, 4.0, 5.0, 0.0, 1.0, 2.0]);
        let both = matrix(1, 2).map(|v| v + 1.0).block_diagonal(&matrix(1, 1).map(|v| v + 7.0));
        assert_eq!(
            (both.shape(), both.values()),
            (&[2, 3][..], &[1.0, 2.0, 0.0, 0.0, 0.0, 7.0][..])
        );
        assert_eq!(a.rows([1]).stack(&a).values()[..4], [3.0, 4.0, 5.0, 0.0]);
    }
}
