//! The one place from which every random stream of training derives.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// The streams that the crate draws from, for [`random_for`]. A user's own start at
/// [`USER`](streams::USER).
pub mod streams {
    /// The order of the images in an epoch.
    pub const SHUFFLE: u64 = 1;
    /// Which images of a batch are mirrored.
    pub const FLIP: u64 = 2;
    /// The noise of dequantization in training.
    pub const DEQUANTIZE: u64 = 3;
    /// The noise of dequantization in evaluation.
    pub const EVALUATE: u64 = 4;
    /// The parameters at the start.
    pub const PARAMETERS: u64 = 5;
    /// Samples drawn from a model.
    pub const SAMPLE: u64 = 6;
    /// The first number that the crate never uses itself.
    pub const USER: u64 = 1 << 32;
}

/// A random generator for one purpose at one moment: stream `stream` of the seed `seed`, at step
/// (or epoch) `step`.
///
/// The same three numbers always give the same draws, and no two different triples share a
/// generator, so nothing has to be saved to resume a training exactly: step 1000 draws the same
/// numbers whether or not steps 0 to 999 ran in the same process. The draws are those of
/// [`StdRng`], which may change with a new version of `rand`; a test of this module pins them.
///
/// ```
/// use burn_flows::data::{random_for, streams};
/// use rand::RngExt;
///
/// let first: u64 = random_for(42, streams::SAMPLE, 0).random::<u64>();
/// assert_eq!(first, random_for(42, streams::SAMPLE, 0).random::<u64>());
/// assert_ne!(first, random_for(42, streams::SAMPLE, 1).random::<u64>());
/// assert_ne!(first, random_for(42, streams::SHUFFLE, 0).random::<u64>());
/// assert_ne!(first, random_for(43, streams::SAMPLE, 0).random::<u64>());
/// ```
pub fn random_for(seed: u64, stream: u64, step: u64) -> StdRng {
    // A chain of bijections, so that the map from the triple to the 256-bit key is injective
    // (adding or xor-ing the three would make (0, 1, 2) and (1, 0, 2) the same).
    let a = mix(seed.wrapping_add(GOLDEN_GAMMA));
    let b = mix(a ^ stream.wrapping_add(GOLDEN_GAMMA));
    let c = mix(b ^ step.wrapping_add(GOLDEN_GAMMA));
    let d = mix(c.wrapping_add(GOLDEN_GAMMA));
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([a, b, c, d]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    StdRng::from_seed(key)
}

/// 2^64 divided by the golden ratio, the increment of SplitMix64.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64, a bijection of the 64-bit words
/// (Steele, Lea & Flood, *Fast splittable pseudorandom number generators*, 2014; the constants of
/// D. Stafford's variant 13).
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::RngExt;

    use super::*;

    #[test]
    fn mix_is_the_published_split_mix_64() {
        // The first outputs of SplitMix64 from the state 1234567, as published with xoshiro's code.
        let mut state = 1_234_567_u64;
        let outputs = [(); 3].map(|()| {
            state = state.wrapping_add(GOLDEN_GAMMA);
            mix(state)
        });
        assert_eq!(
            outputs,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn same_triple_same_draws_and_no_two_triples_alike() {
        let draw = |seed, stream, step| random_for(seed, stream, step).random::<u128>();
        let values = [0, 1, 2, 3, GOLDEN_GAMMA, GOLDEN_GAMMA.wrapping_neg(), u64::MAX];
        let mut seen = HashSet::new();
        for seed in values {
            for stream in values {
                for step in values {
                    assert_eq!(draw(seed, stream, step), draw(seed, stream, step));
                    assert!(
                        seen.insert(draw(seed, stream, step)),
                        "({seed}, {stream}, {step}) draws what another triple drew"
                    );
                }
            }
        }
    }

    #[test]
    fn neighbouring_steps_are_not_correlated() {
        // The mean of 10,000 first draws; its standard deviation is 0.0029.
        let mean: f64 =
            (0..10_000).map(|step| random_for(0, 0, step).random::<f64>()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.0145, "mean {mean}");
    }

    #[test]
    fn draws_are_pinned() {
        // Other numbers here mean that an old training cannot be resumed exactly: a changelog line.
        assert_eq!(random_for(42, streams::SHUFFLE, 0).random::<u64>(), 13_483_955_322_615_143_846);
    }
}
