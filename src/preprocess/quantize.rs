//! n-bit quantization and uniform dequantization.

use rand::{Rng, RngExt};

use crate::error::{FlowError, Result};

/// n-bit pixels and their uniform dequantization to `[0, 1)`.
///
/// A pixel `p` of 8 bits becomes level `l = floor(p / 2^(8 - n))` of `2^n`, and
/// `x = (l + u) / 2^n` with `u` uniform in `[0, 1)`. A density of `x` bounds the probability of the
/// level from below: `ln P(l) >= E_u[ln p(x)] - D ln 2^n` (see
/// [`bits_per_dim`](crate::metrics::bits_per_dim)). Glow's code takes off another 0.5, which the first
/// ActNorm does here.
///
/// Source: openai/glow, `model.py`, `preprocess`; Theis et al., *A note on the evaluation of
/// generative models*, [arXiv:1511.01844](https://arxiv.org/abs/1511.01844), section 3.1.
///
/// ```
/// use burn_flows::preprocess::Quantization;
///
/// let two_bits = Quantization::new(2)?;
/// assert_eq!(two_bits.level(255), 3);
/// assert_eq!(two_bits.pixel(two_bits.dequantize_with(255, 0.5)), 255);
/// # Ok::<(), burn_flows::FlowError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantization {
    num_bits: u32,
}

impl Quantization {
    /// Pixels of `num_bits` bits.
    ///
    /// # Errors
    /// If `num_bits` is not within 1 to 8.
    pub fn new(num_bits: u32) -> Result<Self> {
        if !(1..=8).contains(&num_bits) {
            return Err(FlowError::config(
                "Quantization",
                "num_bits",
                num_bits,
                "within 1 to 8",
                "8 keeps the pixels as they are, 5 is what Glow uses for faces",
            ));
        }
        Ok(Self { num_bits })
    }

    /// Bits a pixel.
    pub fn num_bits(self) -> u32 {
        self.num_bits
    }

    /// Levels a pixel, `2^n`.
    pub fn num_levels(self) -> u32 {
        1 << self.num_bits
    }

    /// The level of an 8-bit pixel, from 0 to `2^n - 1`.
    pub fn level(self, pixel: u8) -> u8 {
        pixel >> (8 - self.num_bits)
    }

    /// `(level + noise) / 2^n`, for noise in `[0, 1)`; below 1 and below the next level for every
    /// noise that an f32 can be, so that [`pixel`](Quantization::pixel) finds the level again.
    pub fn dequantize_with(self, pixel: u8, noise: f32) -> f32 {
        let level = f32::from(self.level(pixel));
        // The sum can round to the next level: 255 + (1 - 2^-24) is 256 in f32.
        let x = (level + noise).clamp(level, (level + 1.0).next_down());
        x / self.num_levels() as f32
    }

    /// Pixels with uniform noise from the given random stream.
    pub fn dequantize(self, pixels: &[u8], rng: &mut impl Rng) -> Vec<f32> {
        pixels.iter().map(|&pixel| self.dequantize_with(pixel, rng.random::<f32>())).collect()
    }

    /// The 8-bit pixel nearest to `x`, values outside of `[0, 1)` cut off: level `l` is shown
    /// as `255 l / (2^n - 1)`, so that the darkest is black and the brightest white.
    pub fn pixel(self, x: f32) -> u8 {
        let levels = self.num_levels() as f32;
        // A NaN becomes 0 in the cast; whoever draws it has checked before.
        let level = (x * levels).floor().clamp(0.0, levels - 1.0);
        (level * 255.0 / (levels - 1.0)).round() as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_survive_the_round_trip() {
        let quantization = Quantization::new(8).unwrap();
        for pixel in 0..=255 {
            for noise in [0.0, 0.5, 0.999] {
                assert_eq!(quantization.pixel(quantization.dequantize_with(pixel, noise)), pixel);
            }
        }
    }

    #[test]
    fn dequantized_values_stay_inside_the_unit() {
        for bits in 1..=8 {
            let quantization = Quantization::new(bits).unwrap();
            assert_eq!(quantization.dequantize_with(0, 0.0), 0.0);
            assert!(quantization.dequantize_with(255, 0.999) < 1.0);
        }
    }

    /// All 2^24 values that `random::<f32>()` has, on the darkest and the brightest levels and on one
    /// whose f32 has the fewest bits to spare.
    #[test]
    fn every_noise_gives_its_pixel_back() {
        const DRAWS: u32 = 1 << 24;
        for (bits, pixel) in [(8, 0), (8, 128), (8, 255), (5, 255), (1, 255)] {
            let quantization = Quantization::new(bits).unwrap();
            let level = quantization.level(pixel);
            for draw in 0..DRAWS {
                let x = quantization.dequantize_with(pixel, draw as f32 / DRAWS as f32);
                assert!(x < 1.0, "{bits} bits, pixel {pixel}, draw {draw}");
                let again = quantization.level(quantization.pixel(x));
                assert_eq!(again, level, "{bits} bits, pixel {pixel}, draw {draw}");
            }
        }
    }

    #[test]
    fn the_last_noise_gives_every_pixel_back_in_both_dtypes() {
        let last = 1.0 - f32::EPSILON / 2.0;
        for bits in 1..=8 {
            let quantization = Quantization::new(bits).unwrap();
            for pixel in 0..=255 {
                let x = quantization.dequantize_with(pixel, last);
                assert!(x < 1.0);
                let level = quantization.level(pixel);
                assert_eq!(quantization.level(quantization.pixel(x)), level, "{bits}, {pixel}");
                let wide = f64::from(x) * f64::from(quantization.num_levels());
                assert_eq!(wide.floor(), f64::from(level), "{bits}, {pixel}");
            }
        }
    }

    #[test]
    fn what_is_no_noise_is_not_hidden() {
        assert!(Quantization::new(8).unwrap().dequantize_with(3, f32::NAN).is_nan());
    }

    #[test]
    fn bits_outside_of_one_to_eight_are_refused() {
        for bits in [0, 9, 99] {
            let message = Quantization::new(bits).unwrap_err().to_string();
            assert_eq!(
                message,
                format!(
                    "Quantization: num_bits is {bits}, but must be within 1 to 8; 8 keeps the \
                     pixels as they are, 5 is what Glow uses for faces"
                )
            );
        }
    }
}
