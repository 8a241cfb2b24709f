//! State that only who has the GIL touches.

use std::cell::UnsafeCell;

use pyo3::prelude::*;

/// There always is a GIL: extensions for the stable ABI run nowhere else.
pub(crate) struct Guarded<T>(UnsafeCell<T>);

// SAFETY: `with` takes a proof that the GIL is held, and what is inside may go from thread to thread.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    pub(crate) fn new(state: T) -> Guarded<T> {
        Guarded(UnsafeCell::new(state))
    }

    /// `f` must not call into Python, which could come back here.
    #[inline]
    pub(crate) fn with<R>(&self, _py: Python<'_>, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: the GIL is held, so no other thread is here, and nor is a caller of this one, as `f` does not call into Python.
        f(unsafe { &mut *self.0.get() })
    }
}
