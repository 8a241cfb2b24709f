//! Objects to bytes and back, as `multiprocessing` does it.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::buffer::Buffer;
use crate::call::{call, call_with};
use crate::parts::{File, Gathered, LARGE, Scattered};

static PICKLER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
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
    let _ = PICKLER.set(py, py.import("ringpipe._pickling")?.getattr("Pickler")?.unbind());
    let pickle = py.import("pickle")?;
    let _ = DUMPS.set(py, pickle.getattr("dumps")?.unbind());
    let _ = LOADS.set(py, pickle.getattr("loads")?.unbind());
    Ok(())
}

fn prepared<'a, 'py>(py: Python<'py>, function: &'a PyOnceLock<Py<PyAny>>) -> &'a Bound<'py, PyAny> {
    function.get(py).expect("set when the module was imported").bind(py)
}

/// Makes a pickle of an object, not always the one that `multiprocessing` would make, and passes it on.
#[inline]
pub(crate) fn with_pickle<R>(object: &Bound<'_, PyAny>, pass: impl FnOnce(&[u8]) -> PyResult<R>) -> PyResult<R> {
    if let Some(pickle) = dump_short(object, &mut [0; SHORT]) {
        return pass(pickle);
    }
    let pickle = dumps(object)?;
    match pickle.cast_exact::<PyBytes>() {
        Ok(bytes) => pass(bytes.as_bytes()),
        Err(_) => pass(Buffer::readable(&pickle)?.bytes()),
    }
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

/// The object's pickle, in as many parts as need not be copied.
pub(crate) fn gather(object: &Bound<'_, PyAny>) -> PyResult<Gathered> {
    let py = object.py();
    if is_plain(object, &mut MOST.clone(), DEEPEST) {
        return Ok(Gathered::of(call(py, prepared(py, &DUMPS), (object,))?));
    }
    let file = Bound::new(py, File::new())?;
    let pickler = call(py, prepared(py, &PICKLER), (&file,))?;
    call(py, &pickler.getattr("dump")?, (object,))?;
    File::into_gathered(&file)
}

/// The object of a pickle that was received in several parts.
pub(crate) fn loads_scattered<'py>(py: Python<'py>, scattered: Scattered<'py>) -> PyResult<Bound<'py, PyAny>> {
    let (pickle, options) = scattered.filled(py)?;
    call_with(py, prepared(py, &LOADS), (pickle,), options.as_ref())
}

pub(crate) fn loads<'py>(pickle: Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
    let py = pickle.py();
    match load_short(py, pickle.as_bytes()) {
        Some(object) => Ok(object),
        None => call(py, prepared(py, &LOADS), (pickle,)),
    }
}

/// Whether an object is of none but types that every pickler knows by itself, and none of it is large.
fn is_plain(object: &Bound<'_, PyAny>, most: &mut usize, deepest: usize) -> bool {
    if *most == 0 || deepest == 0 {
        return false;
    }
    *most -= 1;
    let mut plain = |item: &Bound<'_, PyAny>| is_plain(item, most, deepest - 1);
    if object.is_none()
        || object.is_exact_instance_of::<PyInt>()
        || object.is_exact_instance_of::<PyFloat>()
        || object.is_exact_instance_of::<PyBool>()
    {
        true
    } else if object.is_exact_instance_of::<PyString>() || object.is_exact_instance_of::<PyBytes>() {
        object.len().is_ok_and(|len| len < LARGE)
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

/// Bytes of the longest pickle that is made, and read, here.
pub(crate) const SHORT: usize = 255 + 5;

/// What these pickles start and end with: protocol 4, stop.
const START: [u8; 2] = [0x80, 4];
const STOP: u8 = b'.';

const NONE: u8 = b'N';
const TRUE: u8 = 0x88;
const FALSE: u8 = 0x89;
const INT: u8 = b'J';
const LONG: u8 = 0x8a;
const FLOAT: u8 = b'G';
const BYTES: u8 = b'C';
const TEXT: u8 = 0x8c;

/// The pickle of an object of a few kinds, in a fraction of the time that it takes to call a pickler. Every pickler reads it.
#[inline]
fn dump_short<'a>(object: &Bound<'_, PyAny>, place: &'a mut [u8; SHORT]) -> Option<&'a [u8]> {
    let text;
    let number: [u8; 8];
    let (head, tail): (&[u8], &[u8]) = if let Ok(int) = object.cast_exact::<PyInt>() {
        let value: i64 = int.extract().ok()?;
        number = value.to_le_bytes();
        match i32::try_from(value) {
            Ok(_) => (&[INT], &number[..4]),
            Err(_) => (&[LONG, 8], &number),
        }
    } else if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        let bytes = bytes.as_bytes();
        (&[BYTES, u8::try_from(bytes.len()).ok()?], bytes)
    } else if let Ok(string) = object.cast_exact::<PyString>() {
        if string.len().ok()? > 255 {
            return None;
        }
        text = string.to_cow().ok()?;
        (&[TEXT, u8::try_from(text.len()).ok()?], text.as_bytes())
    } else if let Ok(float) = object.cast_exact::<PyFloat>() {
        number = float.value().to_be_bytes();
        (&[FLOAT], &number)
    } else if object.is_none() {
        (&[NONE], &[])
    } else if let Ok(truth) = object.cast_exact::<PyBool>() {
        (&[if truth.is_true() { TRUE } else { FALSE }], &[])
    } else {
        return None;
    };
    let mut len = 0;
    for part in [&START, head, tail, &[STOP]] {
        place[len..][..part.len()].copy_from_slice(part);
        len += part.len();
    }
    Some(&place[..len])
}

/// The object whose pickle this is, if it is one of those that [`dump_short`] makes. All others are for `pickle`.
#[inline]
pub(crate) fn load_short<'py>(py: Python<'py>, pickle: &[u8]) -> Option<Bound<'py, PyAny>> {
    let [0x80, 4, kind, rest @ .., STOP] = pickle else {
        return None;
    };
    Some(match (*kind, rest) {
        (INT, rest) => i32::from_le_bytes(rest.try_into().ok()?).into_pyobject(py).ok()?.into_any(),
        (LONG, [8, rest @ ..]) => i64::from_le_bytes(rest.try_into().ok()?).into_pyobject(py).ok()?.into_any(),
        (FLOAT, rest) => PyFloat::new(py, f64::from_be_bytes(rest.try_into().ok()?)).into_any(),
        (BYTES, [len, rest @ ..]) if rest.len() == usize::from(*len) => PyBytes::new(py, rest).into_any(),
        (TEXT, [len, rest @ ..]) if rest.len() == usize::from(*len) => {
            PyString::new(py, std::str::from_utf8(rest).ok()?).into_any()
        }
        (NONE, []) => py.None().into_bound(py),
        (TRUE | FALSE, []) => PyBool::new(py, *kind == TRUE).to_owned().into_any(),
        _ => return None,
    })
}
