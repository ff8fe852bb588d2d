//! The compiled-in devices.

use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device};
use burn_flows::backend::{devices, hosts};
use burn_flows::testing::inputs;

/// Gives a device work for a while, and does not wait for it.
fn leave_work(device: &Device) {
    let mut x = inputs([256, 256], 1, device, DType::F32);
    for _ in 0..20 {
        x = x.clone().matmul(x) / 256.0;
    }
    device.flush().unwrap();
}

fn time_of(action: impl FnOnce()) -> Duration {
    let start = Instant::now();
    action();
    start.elapsed()
}

/// A process may end with the thread, and the driver that stands in for a GPU crashes where it is still
/// at work then.
#[test]
fn a_thread_ends_when_the_gpu_has_done_what_it_left() {
    let is_gpu = |name| !hosts().iter().any(|(host, _)| *host == name);
    for (_, device) in devices().into_iter().filter(|(name, _)| is_gpu(*name)) {
        let work = move || leave_work(&device());
        let sync = || device().sync().unwrap();
        work(); // with what has to be compiled first
        sync();
        let whole = time_of(|| {
            work();
            sync();
        });
        thread::spawn(work).join().unwrap();
        let rest = time_of(sync);
        assert!(rest < whole / 2, "{rest:?} after the end of the thread, of {whole:?}");
    }
}

#[test]
fn hosts_are_the_devices_in_main_memory() {
    let names =
        |devices: Vec<(&'static str, _)>| devices.into_iter().map(|(name, _)| name).collect();
    let (all, main): (Vec<_>, Vec<_>) = (names(devices()), names(hosts()));
    assert!(all.ends_with(&main) && all.len() <= main.len() + 1, "{all:?}, {main:?}");
    for (_, device) in hosts() {
        assert!(burn_flows::backend::is_host(&device()));
    }
}
