//! The one place that chooses the atomics: `std`'s here, a model checker's where one is in use.

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence, fence};
