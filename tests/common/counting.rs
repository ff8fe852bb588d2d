//! How much a test allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator with a count of all bytes ever asked for.
pub struct Counting {
    bytes: AtomicUsize,
}

impl Counting {
    pub const fn new() -> Self {
        Self { bytes: AtomicUsize::new(0) }
    }

    /// Bytes that `action` asks for.
    pub fn during<T>(&self, action: impl FnOnce() -> T) -> (T, usize) {
        let before = self.bytes.load(Ordering::Relaxed);
        let result = action();
        (result, self.bytes.load(Ordering::Relaxed) - before)
    }
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.bytes.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: see above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.bytes.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: see above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.bytes.fetch_add(size.saturating_sub(layout.size()), Ordering::Relaxed);
        // SAFETY: see above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: see above.
        unsafe { System.dealloc(pointer, layout) }
    }
}
