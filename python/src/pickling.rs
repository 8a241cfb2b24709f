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

/// Items of the longest tuple.
const ITEMS: usize = 8;

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
/// What the items of a tuple are between.
const MARK: u8 = b'(';
const TUPLE: u8 = b't';

/// Where such a pickle is put together.
struct Place<'a> {
    bytes: &'a mut [u8; SHORT],
    len: usize,
}

impl Place<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        self.bytes.get_mut(self.len..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        self.len += bytes.len();
        Some(())
    }
}

/// The pickle of an object of a few kinds, or of a tuple of them, in a fraction of the time that it takes to call a pickler. Every pickler reads it.
#[inline]
fn dump_short<'a>(object: &Bound<'_, PyAny>, bytes: &'a mut [u8; SHORT]) -> Option<&'a [u8]> {
    let mut place = Place { bytes, len: 0 };
    place.put(&START)?;
    if let Ok(tuple) = object.cast_exact::<PyTuple>() {
        if tuple.len() > ITEMS {
            return None;
        }
        place.put(&[MARK])?;
        for item in tuple.iter_borrowed() {
            dump_item(&item, &mut place)?;
        }
        place.put(&[TUPLE])?;
    } else {
        dump_item(object, &mut place)?;
    }
    place.put(&[STOP])?;
    let Place { bytes, len } = place;
    Some(&bytes[..len])
}

#[inline]
fn dump_item(object: &Bound<'_, PyAny>, place: &mut Place<'_>) -> Option<()> {
    if let Ok(int) = object.cast_exact::<PyInt>() {
        let value: i64 = int.extract().ok()?;
        let number = value.to_le_bytes();
        match i32::try_from(value) {
            Ok(_) => {
                place.put(&[INT])?;
                place.put(&number[..4])
            }
            Err(_) => {
                place.put(&[LONG, 8])?;
                place.put(&number)
            }
        }
    } else if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        let bytes = bytes.as_bytes();
        place.put(&[BYTES, u8::try_from(bytes.len()).ok()?])?;
        place.put(bytes)
    } else if let Ok(string) = object.cast_exact::<PyString>() {
        if string.len().ok()? > 255 {
            return None;
        }
        let text = string.to_cow().ok()?;
        place.put(&[TEXT, u8::try_from(text.len()).ok()?])?;
        place.put(text.as_bytes())
    } else if let Ok(float) = object.cast_exact::<PyFloat>() {
        place.put(&[FLOAT])?;
        place.put(&float.value().to_be_bytes())
    } else if object.is_none() {
        place.put(&[NONE])
    } else {
        let truth = object.cast_exact::<PyBool>().ok()?;
        place.put(&[if truth.is_true() { TRUE } else { FALSE }])
    }
}

/// The object whose pickle this is, if it is one of those that [`dump_short`] makes. All others are for `pickle`.
#[inline]
pub(crate) fn load_short<'py>(py: Python<'py>, pickle: &[u8]) -> Option<Bound<'py, PyAny>> {
    let [0x80, 4, inner @ .., STOP] = pickle else {
        return None;
    };
    if let [MARK, items @ .., TUPLE] = inner {
        let (mut rest, mut found, mut count) = (items, [const { None }; ITEMS], 0);
        while !rest.is_empty() {
            *found.get_mut(count)? = Some(load_item(py, &mut rest)?);
            count += 1;
        }
        return Some(PyTuple::new(py, &found[..count]).ok()?.into_any());
    }
    let mut rest = inner;
    let object = load_item(py, &mut rest)?;
    rest.is_empty().then_some(object)
}

/// Takes an item off the front of a pickle.
#[inline]
fn load_item<'py>(py: Python<'py>, pickle: &mut &[u8]) -> Option<Bound<'py, PyAny>> {
    let (object, rest) = match *pickle {
        [INT, rest @ ..] => {
            let (number, rest) = rest.split_first_chunk()?;
            (i32::from_le_bytes(*number).into_pyobject(py).ok()?.into_any(), rest)
        }
        [LONG, 8, rest @ ..] => {
            let (number, rest) = rest.split_first_chunk()?;
            (i64::from_le_bytes(*number).into_pyobject(py).ok()?.into_any(), rest)
        }
        [FLOAT, rest @ ..] => {
            let (number, rest) = rest.split_first_chunk()?;
            (PyFloat::new(py, f64::from_be_bytes(*number)).into_any(), rest)
        }
        [BYTES, len, rest @ ..] => {
            let (bytes, rest) = rest.split_at_checked(usize::from(*len))?;
            (PyBytes::new(py, bytes).into_any(), rest)
        }
        [TEXT, len, rest @ ..] => {
            let (text, rest) = rest.split_at_checked(usize::from(*len))?;
            (PyString::new(py, std::str::from_utf8(text).ok()?).into_any(), rest)
        }
        [NONE, rest @ ..] => (py.None().into_bound(py), rest),
        [truth @ (TRUE | FALSE), rest @ ..] => (PyBool::new(py, *truth == TRUE).to_owned().into_any(), rest),
        _ => return None,
    };
    *pickle = rest;
    Some(object)
}
