#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| burn_flows::damaged::cifar10(bytes));
