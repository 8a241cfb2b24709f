//! Objects to bytes and back, as `multiprocessing` does it.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::call::call;

static FORKING_DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// How many objects are looked at, and how deep, to find out that they are plain.
const MOST: usize = 128;
const DEEPEST: usize = 4;

/// Gets the picklers, so that no thread has to that wants to be quick.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    let _ = FORKING_DUMPS
        .set(py, py.import("multiprocessing.reduction")?.getattr("ForkingPickler")?.getattr("dumps")?.unbind());
    let pickle = py.import("pickle")?;
    let _ = DUMPS.set(py, pickle.getattr("dumps")?.unbind());
    let _ = LOADS.set(py, pickle.getattr("loads")?.unbind());
    Ok(())
}

fn prepared<'a, 'py>(py: Python<'py>, function: &'a PyOnceLock<Py<PyAny>>) -> &'a Bound<'py, PyAny> {
    function.get(py).expect("set when the module was imported").bind(py)
}

/// The object's pickle, in an object that has a buffer.
///
/// `ForkingPickler` differs from a plain pickler in that it asks the registered reducers, which no pickler does for objects of the types that are looked for here. To
/// set it up takes longer than to pickle some of them.
pub(crate) fn dumps<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    let dumps = if is_plain(object, &mut MOST.clone(), DEEPEST) { &DUMPS } else { &FORKING_DUMPS };
    call(py, prepared(py, dumps), (object,))
}

pub(crate) fn loads<'py>(pickle: Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
    let py = pickle.py();
    call(py, prepared(py, &LOADS), (pickle,))
}

/// Whether an object is of none but types that every pickler knows by itself.
fn is_plain(object: &Bound<'_, PyAny>, most: &mut usize, deepest: usize) -> bool {
    if *most == 0 || deepest == 0 {
        return false;
    }
    *most -= 1;
    let mut plain = |item: &Bound<'_, PyAny>| is_plain(item, most, deepest - 1);
    if object.is_none()
        || object.is_exact_instance_of::<PyInt>()
        || object.is_exact_instance_of::<PyString>()
        || object.is_exact_instance_of::<PyBytes>()
        || object.is_exact_instance_of::<PyFloat>()
        || object.is_exact_instance_of::<PyBool>()
    {
        true
    } else if let Ok(tuple) = object.cast_exact::<PyTuple>() {
        tuple.iter().all(|item| plain(&item))
    } else if let Ok(list) = object.cast_exact::<PyList>() {
        list.len() <= MOST && list.iter().all(|item| plain(&item))
    } else if let Ok(dict) = object.cast_exact::<PyDict>() {
        dict.len() <= MOST && dict.iter().all(|(key, value)| plain(&key) && plain(&value))
    } else {
        false
    }
}
