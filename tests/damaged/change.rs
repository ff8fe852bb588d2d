//! Changes of a file at random: bytes, and numbers in a text.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Numbers at which readers break.
const NUMBERS: [&str; 16] = [
    "0",
    "1",
    "2",
    "3",
    "-1",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "99999999999",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "0.5",
    "null",
];

/// One to four changes of the bytes themselves.
pub fn of_bytes(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..5) {
        let at = rng.random_range(0..bytes.len().max(1)).min(bytes.len());
        let end = (at + rng.random_range(1..64)).min(bytes.len());
        match rng.random_range(0..6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, again));
            }
            3 => bytes.insert(at, rng.random()),
            4 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            _ => bytes[at..end].iter_mut().take(8).for_each(|byte| *byte = rng.random()),
        }
    }
}

/// One to three changes of the numbers in a JSON text, or of the text itself.
pub fn of_text(text: &mut String, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..4) {
        let numbers = numbers(text);
        match numbers.choose(rng) {
            Some(&(start, end)) if rng.random_range(0..5) > 0 => {
                let other = NUMBERS[rng.random_range(0..NUMBERS.len())];
                // A digit more is a size that memory may just hold.
                let number = if rng.random() {
                    other.to_string()
                } else {
                    text[start..end].to_string() + &"0".repeat(rng.random_range(1..12))
                };
                text.replace_range(start..end, &number);
            }
            _ => {
                let mut bytes = std::mem::take(text).into_bytes();
                of_bytes(&mut bytes, rng);
                *text = String::from_utf8_lossy(&bytes).into_owned();
            }
        }
    }
}

/// Where whole numbers begin and end.
fn numbers(text: &str) -> Vec<(usize, usize)> {
    let is_digit = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let starts = (0..text.len()).filter(|&at| is_digit(at) && (at == 0 || !is_digit(at - 1)));
    starts.map(|start| (start, (start..).find(|&at| !is_digit(at)).unwrap_or(start))).collect()
}

/// A change of a safetensors file, in its header as often as in all of it.
pub fn of_record(record: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = record.to_vec();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    if rng.random_range(0..4) == 0 {
        of_bytes(&mut bytes, rng);
        return bytes;
    }
    let values = bytes.split_off(8 + length);
    let mut header = String::from_utf8(bytes.split_off(8)).unwrap();
    of_text(&mut header, rng);
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &values].concat()
}
