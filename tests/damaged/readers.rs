//! Readers of files from elsewhere, on any bytes: each answers without a panic and within memory that the
//! size of the file accounts for. `fuzz/` looks for bytes that break this.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn_flows::data::{CelebA, Cifar10, Crop, idx, read_picture};
use tempfile::TempDir;

/// The system's allocator, which has no more memory than [`within`] allows: who asks for more ends the
/// process.
pub struct Limited;

static USED: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

// SAFETY: it is the system's, but where it refuses.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Ordering::Relaxed).wrapping_add(layout.size());
        if used > LIMIT.load(Ordering::Relaxed) {
            USED.fetch_sub(layout.size(), Ordering::Relaxed);
            return null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What every reader may use for a file however small, threads and tables of decoders included.
const BASE: usize = 4 << 20;

/// Runs `action` where there are [`BASE`] and `factor` bytes for each of `len` beyond what is in use.
pub fn within<T>(len: usize, factor: usize, action: impl FnOnce() -> T) -> T {
    // There is one limit for all tests of a process.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    LIMIT.store(USED.load(Ordering::Relaxed) + BASE + factor * len, Ordering::Relaxed);
    let result = action();
    LIMIT.store(usize::MAX, Ordering::Relaxed);
    result
}

/// A folder in memory where the system has one.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Gives the bytes of a file to a reader.
type Reader = fn(&[u8]);

/// The readers that need no model, each with the name of its files in `corpus/`.
pub const READERS: [(&str, Reader); 4] =
    [("idx", idx), ("cifar10", cifar10), ("celeba", celeba), ("picture", picture)];

/// Deflate makes at most 1032 bytes of one, in a buffer that grows by doubling and moves then.
const INFLATED: usize = 3 * 1032;

/// An IDX file, plain or packed.
pub fn idx(bytes: &[u8]) {
    let folder = folder();
    let path = folder.path().join("file");
    fs::write(&path, bytes).unwrap();
    if let Ok(array) = within(bytes.len(), INFLATED, || idx::read(&path)) {
        assert_eq!(array.dims.iter().product::<usize>(), array.data.len());
    }
}

/// A file of CIFAR-10 among whole ones.
pub fn cifar10(bytes: &[u8]) {
    let folder = folder();
    for name in ["data_batch_1", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        fs::write(folder.path().join(name).with_extension("bin"), [0; 3073]).unwrap();
    }
    fs::write(folder.path().join("data_batch_2.bin"), bytes).unwrap();
    // The bytes, their pixels in a buffer that grows by doubling and moves then.
    if let Ok(images) = within(bytes.len(), 4, || Cifar10::load(folder.path())) {
        assert_eq!(images.train.len(), 4 + bytes.len() / 3073);
    }
}

/// The lists of CelebA, which the first byte chooses from, beside one picture.
pub fn celeba(bytes: &[u8]) {
    let Some((&choice, list)) = bytes.split_first() else { return };
    let folder = folder();
    let pictures = folder.path().join("img_align_celeba");
    fs::create_dir(&pictures).unwrap();
    fs::write(pictures.join("1.png"), include_bytes!("corpus/picture/one.png")).unwrap();
    let names = ["list_attr_celeba", "list_eval_partition"];
    let name = folder.path().join(names[usize::from(choice & 1)]);
    let ending = if choice & 2 == 0 { "txt" } else { "csv" };
    fs::write(name.with_extension(ending), list).unwrap();
    // A row of four bytes is a name, a number and a place in a table, in buffers that grow by doubling.
    let faces = within(bytes.len(), 400, || CelebA::new(folder.path(), 1).load());
    if let Ok(Some(attributes)) = faces.map(|faces| faces.attributes) {
        assert_eq!(attributes.of(0).len(), attributes.names().len());
        let _ = attributes.divide("Smiling");
    }
}

/// A picture, whole and cut.
pub fn picture(bytes: &[u8]) {
    let folder = folder();
    let path = folder.path().join("picture");
    fs::write(&path, bytes).unwrap();
    // Eight pixels of a byte that deflate made, and of each 16 bytes while its size is changed, beside the
    // picture itself.
    for (shape, crop) in [([1, 64, 3], Crop::Whole), ([3, 4, 4], Crop::CELEBA)] {
        let image = within(bytes.len(), 1032 * 8 * 24, || read_picture(&path, shape, crop));
        assert!(image.is_err() || image.is_ok_and(|image| image.image_shape() == shape));
    }
}
