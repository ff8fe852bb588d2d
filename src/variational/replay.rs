//! A random generator whose numbers are kept, and one that gives them again.

use std::convert::Infallible;

use rand::{Rng, TryRng};

/// Hands on the numbers of another generator and keeps them.
pub(crate) struct Recorder<'a, R> {
    rng: &'a mut R,
    words: Vec<u64>,
}

impl<'a, R: Rng> Recorder<'a, R> {
    pub(crate) fn new(rng: &'a mut R) -> Self {
        Self { rng, words: Vec::new() }
    }

    pub(crate) fn into_words(self) -> Vec<u64> {
        self.words
    }
}

impl<R: Rng> TryRng for Recorder<'_, R> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let word = self.rng.next_u32();
        self.words.push(word.into());
        Ok(word)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let word = self.rng.next_u64();
        self.words.push(word);
        Ok(word)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.rng.fill_bytes(bytes);
        self.words.extend(bytes.iter().map(|&byte| u64::from(byte)));
        Ok(())
    }
}

/// Gives the numbers that a [`Recorder`] has kept, asked for in the same order.
pub(crate) struct Replay {
    words: std::vec::IntoIter<u64>,
}

impl Replay {
    pub(crate) fn new(words: Vec<u64>) -> Self {
        Self { words: words.into_iter() }
    }

    fn next(&mut self) -> u64 {
        self.words.next().expect(
            "FlowStack: a prior drew other numbers from the generator than at its first call; its sample \
             must depend on nothing else",
        )
    }
}

impl TryRng for Replay {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.next() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.next())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill_with(|| self.next() as u8);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn what_was_drawn_is_given_again() {
        fn draw(rng: &mut impl Rng) -> (u32, u64, f64, [u8; 5]) {
            let mut bytes = [0; 5];
            let words = (rng.next_u32(), rng.next_u64(), rng.random());
            rng.fill_bytes(&mut bytes);
            (words.0, words.1, words.2, bytes)
        }
        let mut rng = StdRng::seed_from_u64(1);
        let mut recorder = Recorder::new(&mut rng);
        let drawn = draw(&mut recorder);
        let words = recorder.into_words();
        assert_eq!(drawn, draw(&mut StdRng::seed_from_u64(1)));
        assert_eq!(drawn, draw(&mut Replay::new(words)));
    }
}
