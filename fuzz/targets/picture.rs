#![no_main]

use std::io::Cursor;

use burn_flows::damaged::picture;
use image::ImageReader;
use libfuzzer_sys::Corpus;

/// Pixels that are decoded within milliseconds.
const FEW: u64 = 50_000;

/// As many as a byte of a file can hold: what claims more is refused at once.
const OF_A_BYTE: u64 = 1032 * 8;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| -> Corpus {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().unwrap();
    if let Ok((width, height)) = reader.into_dimensions() {
        let pixels = u64::from(width) * u64::from(height);
        if (FEW..=OF_A_BYTE * bytes.len() as u64).contains(&pixels) {
            return Corpus::Reject;
        }
    }
    picture(bytes);
    Corpus::Keep
});
