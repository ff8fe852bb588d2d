//! Small dense matrices on the host, in f64: the exact parts of the invertible 1x1 convolution.

/// An LU decomposition with partial pivoting, `P A = L U`, of a square matrix.
#[derive(Debug, Clone)]
pub struct Lu {
    size: usize,
    /// `L` below the diagonal (its ones are not stored), `U` on and above it, row-major.
    factors: Vec<f64>,
    /// Row `i` of `P A` is row `pivots[i]` of `A`.
    pivots: Vec<usize>,
    negative: bool,
}

impl Lu {
    /// Decomposes the row-major `matrix` of `size * size` entries; works for singular ones too.
    ///
    /// # Panics
    /// If `matrix` does not have `size * size` entries.
    pub fn new(matrix: &[f64], size: usize) -> Self {
        assert_eq!(matrix.len(), size * size, "Lu: the matrix must be square");
        let mut a = matrix.to_vec();
        let mut pivots: Vec<usize> = (0..size).collect();
        let mut negative = false;
        for k in 0..size {
            let best = (k..size)
                .max_by(|&i, &j| a[i * size + k].abs().total_cmp(&a[j * size + k].abs()))
                .expect("k < size");
            if best != k {
                for j in 0..size {
                    a.swap(k * size + j, best * size + j);
                }
                pivots.swap(k, best);
                negative = !negative;
            }
            let pivot = a[k * size + k];
            if pivot == 0.0 {
                continue;
            }
            for i in k + 1..size {
                let factor = a[i * size + k] / pivot;
                a[i * size + k] = factor;
                for j in k + 1..size {
                    a[i * size + j] -= factor * a[k * size + j];
                }
            }
        }
        Self { size, factors: a, pivots, negative }
    }

    /// Of the matrix `permutation * lower * upper`, the parts as [`into_parts`](Lu::into_parts) gives
    /// them: those below the diagonal are taken from `lower`, the others from `upper`.
    ///
    /// # Panics
    /// If a part does not have `size * size` entries.
    pub fn from_parts(permutation: &[f64], lower: &[f64], upper: &[f64], size: usize) -> Self {
        let n = size;
        for part in [permutation, lower, upper] {
            assert_eq!(part.len(), n * n, "Lu: the parts must be square");
        }
        let row = |i: usize| {
            let entry = |&row: &usize| permutation[row * n + i];
            (0..n).max_by(|a, b| entry(a).total_cmp(&entry(b))).expect("i < size")
        };
        let pivots: Vec<usize> = (0..n).map(row).collect();
        let entry = |at: usize| if at % n < at / n { lower[at] } else { upper[at] };
        Self { size, factors: (0..n * n).map(entry).collect(), negative: is_odd(&pivots), pivots }
    }

    /// `(sign, ln|det A|)`; `(0, -inf)` for a singular matrix.
    pub fn slogdet(&self) -> (f64, f64) {
        let mut sign = if self.negative { -1.0 } else { 1.0 };
        let mut log_abs = 0.0;
        for pivot in self.diagonal() {
            if pivot == 0.0 {
                return (0.0, f64::NEG_INFINITY);
            }
            sign *= pivot.signum();
            log_abs += pivot.abs().ln();
        }
        (sign, log_abs)
    }

    /// Magnitudes of the smallest and the largest pivot.
    pub fn pivot_range(&self) -> (f64, f64) {
        // `min` and `max` would skip a NaN; it has to show.
        self.diagonal().map(f64::abs).fold((f64::INFINITY, 0.0), |(low, high), pivot| {
            if pivot.is_nan() || low.is_nan() {
                (f64::NAN, f64::NAN)
            } else {
                (pivot.min(low), pivot.max(high))
            }
        })
    }

    /// `A^-1`, row-major; `None` where `A` is singular to working precision or not finite.
    pub fn inverse(&self) -> Option<Vec<f64>> {
        (!self.is_singular()).then(|| self.solve())
    }

    /// Whether the smallest pivot is rounding beside the largest, or one is not finite.
    pub fn is_singular(&self) -> bool {
        let (smallest, largest) = self.pivot_range();
        // Written so that a NaN pivot counts as singular.
        !(smallest > largest * f64::EPSILON && largest.is_finite())
    }

    /// `A^-1`, row-major, by substitution in both triangles, whatever the pivots: for factors that are
    /// given rather than computed, of which the small ones are no rounding.
    pub fn solve(&self) -> Vec<f64> {
        let n = self.size;
        let mut inverse = vec![0.0; n * n];
        let mut column = vec![0.0; n];
        for j in 0..n {
            for i in 0..n {
                let below: f64 = (0..i).map(|k| self.factors[i * n + k] * column[k]).sum();
                column[i] = f64::from(u8::from(self.pivots[i] == j)) - below;
            }
            for i in (0..n).rev() {
                let above: f64 = (i + 1..n).map(|k| self.factors[i * n + k] * column[k]).sum();
                column[i] = (column[i] - above) / self.factors[i * n + i];
            }
            for i in 0..n {
                inverse[i * n + j] = column[i];
            }
        }
        inverse
    }

    /// `(permutation, lower, upper)` with `A = permutation * lower * upper`, each row-major.
    pub fn into_parts(self) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let n = self.size;
        let (mut permutation, mut lower, mut upper) =
            (vec![0.0; n * n], vec![0.0; n * n], vec![0.0; n * n]);
        for i in 0..n {
            // Row i of P A is row pivots[i] of A, so P^-1 puts it back there.
            permutation[self.pivots[i] * n + i] = 1.0;
            lower[i * n + i] = 1.0;
            for j in 0..n {
                let target = if j < i { &mut lower } else { &mut upper };
                target[i * n + j] = self.factors[i * n + j];
            }
        }
        (permutation, lower, upper)
    }

    fn diagonal(&self) -> impl Iterator<Item = f64> + '_ {
        (0..self.size).map(|i| self.factors[i * self.size + i])
    }
}

/// Whether a permutation is made of an odd number of exchanges.
fn is_odd(order: &[usize]) -> bool {
    let inversions = |i: usize| order[i + 1..].iter().filter(|&&later| later < order[i]).count();
    (0..order.len()).map(inversions).sum::<usize>() % 2 == 1
}

/// The orthogonal factor `Q` of the QR decomposition of a row-major square matrix, by modified
/// Gram-Schmidt applied twice (which keeps `Q^T Q = 1` to working precision).
///
/// A matrix of independent normals gives a rotation drawn uniformly.
pub fn orthogonal(matrix: &[f64], size: usize) -> Vec<f64> {
    let mut q = matrix.to_vec();
    for _ in 0..2 {
        for i in 0..size {
            for k in 0..i {
                let dot: f64 = (0..size).map(|j| q[i * size + j] * q[k * size + j]).sum();
                for j in 0..size {
                    q[i * size + j] -= dot * q[k * size + j];
                }
            }
            let norm = (0..size).map(|j| q[i * size + j].powi(2)).sum::<f64>().sqrt();
            for j in 0..size {
                q[i * size + j] /= norm;
            }
        }
    }
    q
}

/// Sweeps of the Jacobi method; a dozen is usual, each squares what is left beside the diagonal.
const MOST_SWEEPS: usize = 64;

/// Eigenvalues of a symmetric row-major matrix, the largest first, and the eigenvectors, a column each, by
/// Jacobi's rotations.
pub fn principal_axes(matrix: &[f64], size: usize) -> (Vec<f64>, Vec<f64>) {
    let n = size;
    let mut a = matrix.to_vec();
    let mut v: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    let total: f64 = a.iter().map(|value| value * value).sum();
    for _ in 0..MOST_SWEEPS {
        let beside: f64 = (0..n * n).filter(|at| at / n != at % n).map(|at| a[at] * a[at]).sum();
        let rounding = total * f64::EPSILON * f64::EPSILON;
        if beside <= rounding || !beside.is_finite() {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let off = a[p * n + q];
                if off == 0.0 {
                    continue;
                }
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * off);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let cos = 1.0 / t.hypot(1.0);
                let sin = t * cos;
                for k in 0..n {
                    let (kp, kq) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (cos * kp - sin * kq, sin * kp + cos * kq);
                }
                for k in 0..n {
                    let (pk, qk) = (a[p * n + k], a[q * n + k]);
                    (a[p * n + k], a[q * n + k]) = (cos * pk - sin * qk, sin * pk + cos * qk);
                    let (kp, kq) = (v[k * n + p], v[k * n + q]);
                    (v[k * n + p], v[k * n + q]) = (cos * kp - sin * kq, sin * kp + cos * kq);
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]));
    let values = order.iter().map(|&i| a[i * n + i]).collect();
    let vectors = (0..n).flat_map(|row| order.iter().map(move |&i| (row, i)));
    let vectors = vectors.map(|(row, i)| v[row * n + i]).collect();
    (values, vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
        (0..n * n).map(|ij| (0..n).map(|k| a[ij / n * n + k] * b[k * n + ij % n]).sum()).collect()
    }

    fn matrix(n: usize) -> Vec<f64> {
        (0..n * n).map(|i| ((i * i + 3 * i + 1) as f64 * 0.7).sin()).collect()
    }

    fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= tolerance, "{a} is not {b}");
        }
    }

    #[test]
    fn inverse_times_matrix_is_identity() {
        for n in [1, 2, 3, 12, 48] {
            let a = matrix(n);
            let inverse = Lu::new(&a, n).inverse().unwrap();
            let identity: Vec<f64> =
                (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
            assert_close(&product(&a, &inverse, n), &identity, 1e-9);
        }
    }

    #[test]
    fn parts_multiply_to_the_matrix() {
        let a = matrix(5);
        let (p, l, u) = Lu::new(&a, 5).into_parts();
        assert_close(&product(&p, &product(&l, &u, 5), 5), &a, 1e-12);
        let (lu, again) = (Lu::new(&a, 5), Lu::from_parts(&p, &l, &u, 5));
        assert_eq!(again.slogdet(), lu.slogdet());
        assert_eq!(again.solve(), lu.inverse().unwrap());
    }

    #[test]
    fn factors_that_are_given_are_inverted_whatever_their_pivots() {
        let (p, l) = ([0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.5, 1.0]);
        let u = [1.0, 3.0, 0.0, 1e-40];
        let lu = Lu::from_parts(&p, &l, &u, 2);
        assert!(lu.inverse().is_none());
        // U^-1 = [1, -3e40; 0, 1e40], L^-1 = [1, 0; -0.5, 1], and P exchanges the columns.
        let expected = [-3e40, 1.0 + 1.5e40, 1e40, -0.5e40];
        for (got, expected) in lu.solve().iter().zip(expected) {
            assert!((got / expected - 1.0).abs() < 1e-15, "{got} is not {expected}");
        }
    }

    #[test]
    fn slogdet_of_known_matrices() {
        assert_eq!(Lu::new(&[0.0, 2.0, 3.0, 0.0], 2).slogdet(), (-1.0, 6f64.ln()));
        assert_eq!(Lu::new(&[1.0, 2.0, 2.0, 4.0], 2).slogdet(), (0.0, f64::NEG_INFINITY));
        assert!(Lu::new(&[1.0, 2.0, 2.0, 4.0], 2).inverse().is_none());
        assert!(Lu::new(&[f64::NAN, 2.0, 2.0, 4.0], 2).inverse().is_none());
    }

    #[test]
    fn principal_axes_take_a_matrix_apart() {
        for n in [1, 2, 5, 24] {
            let half = matrix(n);
            let transposed: Vec<f64> = (0..n * n).map(|at| half[at % n * n + at / n]).collect();
            let symmetric = product(&half, &transposed, n);
            let (values, axes) = principal_axes(&symmetric, n);
            assert!(values.is_sorted_by(|a, b| a >= b));
            let scaled: Vec<f64> = (0..n * n).map(|at| axes[at] * values[at % n]).collect();
            let back: Vec<f64> = (0..n * n).map(|at| axes[at % n * n + at / n]).collect();
            assert_close(&product(&scaled, &back, n), &symmetric, 1e-12 * n as f64);
            let identity: Vec<f64> =
                (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
            assert_close(&product(&axes, &back, n), &identity, 1e-13 * n as f64);
        }
        assert_eq!(principal_axes(&[2.0, 0.0, 0.0, 3.0], 2).0, [3.0, 2.0]);
    }

    #[test]
    fn orthogonal_rows_are_orthonormal() {
        let q = orthogonal(&matrix(24), 24);
        for i in 0..24 {
            for k in 0..24 {
                let dot: f64 = (0..24).map(|j| q[i * 24 + j] * q[k * 24 + j]).sum();
                assert!((dot - f64::from(u8::from(i == k))).abs() < 1e-12);
            }
        }
    }
}
