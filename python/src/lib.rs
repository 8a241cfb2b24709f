//! The native part of the Python package `ringpipe`: connections and queues that behave as those of `multiprocessing`, over the rings of the crate of the same name.
//!
//! - `connection.rs`: the methods of a connection, and what they check.
//! - `half.rs`: use by several threads, waiting, signals, fork.
//! - `queue.rs`: the methods of queues.
//! - `parts.rs`: objects with large buffers, which are not copied on their way.
//! - `view.rs`: messages that are looked at where they lie.
//! - `pickling.rs`, `buffer.rs`, `fresh.rs`, `call.rs`, `guarded.rs`: what they need of Python.
//!
//! What is rarely asked for is left to Python (`ringpipe/_arguments.py`).

mod buffer;
mod call;
mod connection;
mod fresh;
mod guarded;
mod half;
mod parts;
mod pickling;
mod queue;
mod view;

use pyo3::prelude::*;

#[cfg(Py_GIL_DISABLED)]
compile_error!("ringpipe does not support free-threaded builds of Python yet: use one with a GIL");

/// The native part of ringpipe.
// Without a GIL, `guarded.rs` would guard nothing.
#[pymodule(gil_used = true)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::connection::{Core, connect};

    #[pymodule_export]
    use super::queue::{Channel, QueueCore, SimpleCore};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::pickling::prepare(module.py())?;
        super::connection::prepare(module.py())?;
        super::queue::prepare(module.py())?;
        super::view::prepare(module.py())
    }

    /// To be called before a fork: see `half.rs`.
    #[pyfunction]
    fn before_fork() {
        super::half::before_fork();
    }

    /// To be called after a fork, in the parent, also if it has failed.
    #[pyfunction]
    fn after_fork_in_parent() {
        super::half::after_fork_in_parent();
    }

    /// To be called after a fork, in the child.
    #[pyfunction]
    fn after_fork_in_child() {
        super::half::after_fork_in_child();
    }
}
