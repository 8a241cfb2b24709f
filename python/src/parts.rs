//! Objects with large buffers, to and from messages, without a copy in between.
//!
//! What travels is an ordinary pickle of protocol 5, which anybody can load. The pickler hands large bytes to its file as they are, so they are sent from where they lie
//! ([`Gathered`]). Where they are in the message, the receiver is told by the *index*, an object that the pickle makes and drops before anything else:
//!
//! ```text
//! PROTO 5 | BINBYTES length, MAGIC, entries | POP | the rest of the pickle
//!           an entry: u64 where a buffer starts in the message, u64 twice its length, plus one if it is a bytearray (little endian)
//! ```
//!
//! The receiver believes no more of it than how much memory to set aside ([`Scattered`]): it has each buffer copied into an object of its own, and looks then whether there is
//! an opcode in front of each that makes such an object of so many bytes. If so, it puts NEXT_BUFFER in that place, and gives the unpickler the objects. If not, the
//! message was not made here, and is loaded as any other.

use std::io::IoSlice;
use std::iter;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyMemoryView};

use crate::buffer::Buffer;
use crate::fresh::Fresh;
use crate::guarded::Guarded;
use crate::half::Place;

/// What the pickler hands over as it is. The same as its `_FRAME_SIZE_TARGET`.
pub(crate) const LARGE: usize = 64 << 10;
/// The most buffers that the index has, so that the start of a message has all of it.
const MOST: usize = 512;

const START: [u8; 2] = [0x80, 5];
const BINBYTES: u8 = b'B';
const BINBYTES8: u8 = 0x8e;
const BYTEARRAY8: u8 = 0x96;
const NEXT_BUFFER: u8 = 0x97;
const NONE: u8 = b'N';
const POP: u8 = b'0';

const MAGIC: [u8; 8] = *b"\0ringpip";
/// Bytes before the entries, and of each.
pub(crate) const HEAD: usize = START.len() + 5 + MAGIC.len();
const ENTRY: usize = 16;
/// Bytes of the longest opcode that a buffer follows, with its argument.
const LONGEST_OPCODE: usize = 9;

/// What a buffer becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bytes,
    ByteArray,
}

#[derive(Clone, Copy)]
struct Entry {
    at: usize,
    len: usize,
    kind: Kind,
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&(self.at as u64).to_le_bytes());
        bytes[8..].copy_from_slice(&((self.len as u64) << 1 | u64::from(self.kind == Kind::ByteArray)).to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Entry> {
        let (at, len) = bytes.split_at(8);
        let len = u64::from_le_bytes(len.try_into().ok()?);
        let kind = if len & 1 == 1 { Kind::ByteArray } else { Kind::Bytes };
        let at = usize::try_from(u64::from_le_bytes(at.try_into().ok()?)).ok()?;
        Some(Entry { at, len: usize::try_from(len >> 1).ok()?, kind })
    }
}

/// What becomes of the `len` bytes that follow `before` in a pickle, and how long the opcode is in front of them.
fn opcode(before: &[u8], len: usize) -> Option<(Kind, usize)> {
    let len = len as u64;
    if let Some((_, &[op, ref length @ ..])) = before.split_last_chunk::<9>() {
        let kind = match op {
            BINBYTES8 => Some(Kind::Bytes),
            BYTEARRAY8 => Some(Kind::ByteArray),
            _ => None,
        };
        if let Some(kind) = kind.filter(|_| *length == len.to_le_bytes()) {
            return Some((kind, 9));
        }
    }
    let (_, &[op, ref length @ ..]) = before.split_last_chunk::<5>()?;
    (op == BINBYTES && u64::from(u32::from_le_bytes(*length)) == len).then_some((Kind::Bytes, 5))
}

/// The file of a pickler, which keeps what is written to it.
#[pyclass(frozen, module = "ringpipe._native")]
pub(crate) struct File(Guarded<Vec<Py<PyAny>>>);

impl File {
    pub(crate) fn new() -> File {
        File(Guarded::new(Vec::new()))
    }

    /// What has been written. There must be nothing to come.
    pub(crate) fn into_gathered(file: &Bound<'_, File>) -> PyResult<Gathered> {
        let py = file.py();
        Gathered::new(py, file.get().0.with(py, std::mem::take))
    }
}

#[pymethods]
impl File {
    fn write(&self, part: &Bound<'_, PyAny>) -> PyResult<usize> {
        let py = part.py();
        let (part, len) = match part.cast_exact::<PyBytes>() {
            Ok(bytes) => (part.clone().unbind(), bytes.as_bytes().len()),
            Err(_) => {
                // From now on nobody makes it shorter. What lies in memory in another order than C's is written as it lies there.
                let view = match part.hasattr("raw")? {
                    true => part.call_method0("raw")?,
                    false => PyMemoryView::from(part)?.into_any(),
                };
                let len = Buffer::readable(&view)?.bytes().len();
                (view.unbind(), len)
            }
        };
        self.0.with(py, |parts| parts.push(part));
        Ok(len)
    }
}

/// A pickle in several parts, to be sent as one message.
pub(crate) struct Gathered {
    /// The start, up to and with the index, if there is one, in place of the first bytes of the first part.
    start: Vec<u8>,
    parts: Vec<Py<PyAny>>,
}

impl Gathered {
    fn new(py: Python<'_>, parts: Vec<Py<PyAny>>) -> PyResult<Gathered> {
        let mut entries = Vec::new();
        let mut at = 0;
        for (i, part) in parts.iter().enumerate() {
            let part = part.bind(py);
            let len = Borrowed::of(part)?.bytes().len();
            if len >= LARGE && i > 0 && entries.len() < MOST {
                if let Ok(before) = parts[i - 1].bind(py).cast_exact::<PyBytes>() {
                    if let Some((kind, _)) = opcode(before.as_bytes(), len) {
                        entries.push(Entry { at, len, kind });
                    }
                }
            }
            at += len;
        }
        let begins = match parts.first().map(|part| part.bind(py).cast_exact::<PyBytes>()) {
            Some(Ok(first)) => first.as_bytes().starts_with(&START),
            _ => false,
        };
        if entries.is_empty() || !begins {
            return Ok(Gathered { start: Vec::new(), parts });
        }
        let more = HEAD + entries.len() * ENTRY + 1 - START.len();
        let mut start = Vec::with_capacity(START.len() + more);
        start.extend(START);
        start.push(BINBYTES);
        start.extend(((MAGIC.len() + entries.len() * ENTRY) as u32).to_le_bytes());
        start.extend(MAGIC);
        for entry in entries {
            start.extend(Entry { at: entry.at + more, ..entry }.to_bytes());
        }
        start.push(POP);
        Ok(Gathered { start, parts })
    }

    /// Passes all parts on, front to back.
    pub(crate) fn with<R>(&self, py: Python<'_>, pass: impl FnOnce(&[IoSlice<'_>]) -> PyResult<R>) -> PyResult<R> {
        let parts =
            self.parts.iter().map(|part| Borrowed::of(part.bind(py))).collect::<PyResult<Vec<Borrowed<'_, '_>>>>()?;
        let skip = self.start.len().min(START.len());
        let slices = parts.iter().enumerate().map(|(i, part)| &part.bytes()[if i == 0 { skip } else { 0 }..]);
        pass(&iter::once(&self.start[..]).chain(slices).map(IoSlice::new).collect::<Vec<_>>())
    }

    /// The message, if it is in one part.
    pub(crate) fn single<'a, 'py>(&'a self, py: Python<'py>) -> Option<&'a Bound<'py, PyBytes>> {
        match &self.parts[..] {
            [only] if self.start.is_empty() => only.bind(py).cast_exact().ok(),
            _ => None,
        }
    }

    /// A message that is sent as it is.
    pub(crate) fn of(part: Bound<'_, PyAny>) -> Gathered {
        Gathered { start: Vec::new(), parts: vec![part.unbind()] }
    }
}

/// The bytes of an object.
enum Borrowed<'a, 'py> {
    Bytes(&'a Bound<'py, PyBytes>),
    Buffer(Buffer<'py>),
}

impl<'a, 'py> Borrowed<'a, 'py> {
    fn of(object: &'a Bound<'py, PyAny>) -> PyResult<Borrowed<'a, 'py>> {
        Ok(match object.cast_exact::<PyBytes>() {
            Ok(bytes) => Borrowed::Bytes(bytes),
            Err(_) => Borrowed::Buffer(Buffer::readable(object)?),
        })
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Borrowed::Bytes(bytes) => bytes.as_bytes(),
            Borrowed::Buffer(buffer) => buffer.bytes(),
        }
    }
}

/// A message of which an index says where its buffers are.
pub(crate) struct Index {
    total: usize,
    entries: Vec<Entry>,
}

impl Index {
    /// How long the index is that a message starts with, with what is before and behind it, if `start` has the [start](HEAD) of one.
    pub(crate) fn len(start: &[u8]) -> Option<usize> {
        let [0x80, 5, BINBYTES, a, b, c, d, rest @ ..] = start else {
            return None;
        };
        let len = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).ok()?;
        let entries = len.checked_sub(MAGIC.len())?;
        (rest.starts_with(&MAGIC) && entries <= MOST * ENTRY && entries % ENTRY == 0).then_some(HEAD + entries + 1)
    }

    /// The index at the start of a message of `total` bytes, if it makes sense.
    pub(crate) fn read(start: &[u8], total: usize) -> Option<Index> {
        let start = start.get(..Index::len(start)?)?;
        let entries: Vec<Entry> = start[HEAD..start.len() - 1].chunks(ENTRY).map_while(Entry::from_bytes).collect();
        let mut end = start.len();
        for entry in &entries {
            // With room for the opcode.
            if entry.len < LARGE || entry.at < end.checked_add(LONGEST_OPCODE)? {
                return None;
            }
            end = entry.at.checked_add(entry.len)?;
        }
        (end <= total && !entries.is_empty()).then_some(Index { total, entries })
    }
}

/// Objects that a message with an index is received into.
pub(crate) struct Scattered<'py> {
    index: Index,
    /// All that is in no buffer.
    pickle: Fresh<'py>,
    buffers: Vec<Fresh<'py>>,
}

impl<'py> Scattered<'py> {
    pub(crate) fn new(py: Python<'py>, index: Index) -> PyResult<Scattered<'py>> {
        let rest = index.total - index.entries.iter().map(|entry| entry.len).sum::<usize>();
        let buffers = index.entries.iter().map(|entry| match entry.kind {
            Kind::Bytes => Fresh::bytes(py, entry.len),
            Kind::ByteArray => Fresh::byte_array(py, entry.len),
        });
        Ok(Scattered { buffers: buffers.collect::<PyResult<_>>()?, pickle: Fresh::bytes(py, rest)?, index })
    }

    /// Where the message goes, front to back. They are there as long as `self` is.
    pub(crate) fn places(&self) -> Vec<Place> {
        let Place(start, len) = self.pickle.place();
        let mut places = Vec::with_capacity(2 * self.buffers.len() + 1);
        let mut done = 0;
        for (at, buffer) in self.cuts().zip(&self.buffers) {
            // SAFETY: the pickle is as long as all between the buffers together.
            places.push(Place(unsafe { start.add(done) }, at - done));
            places.push(buffer.place());
            done = at;
        }
        // SAFETY: as above.
        places.push(Place(unsafe { start.add(done) }, len - done));
        places
    }

    /// Where the buffers were in the pickle.
    fn cuts(&self) -> impl Iterator<Item = usize> {
        self.index.entries.iter().scan(0, |before, entry| {
            let at = entry.at - *before;
            *before += entry.len;
            Some(at)
        })
    }

    /// Once all has been received: the pickle, and the buffers that it refers to, if any.
    pub(crate) fn filled(mut self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Option<Bound<'py, PyDict>>)> {
        let cuts: Vec<usize> = self.cuts().collect();
        let pickle = self.pickle.memory();
        // SAFETY: all of it has been written.
        let pickle: &mut [u8] = unsafe { &mut *(std::ptr::from_mut(pickle) as *mut [u8]) };
        let opcodes = cuts.iter().zip(&self.index.entries).map(|(&at, entry)| {
            let (kind, len) = opcode(&pickle[..at], entry.len)?;
            (kind == entry.kind).then_some(at - len..at)
        });
        let Some(opcodes) = opcodes.collect::<Option<Vec<_>>>() else {
            return Ok((self.joined(py)?, None));
        };
        for range in opcodes {
            // As long as what it replaces: makes and drops `None` twice, or four times.
            let (last, before) = pickle[range].split_last_mut().expect("an opcode and its argument");
            for pair in before.chunks_mut(2) {
                pair.copy_from_slice(&[NONE, POP]);
            }
            *last = NEXT_BUFFER;
        }
        let buffers = PyList::new(py, self.buffers.into_iter().map(Fresh::filled))?;
        let options = PyDict::new(py);
        options.set_item("buffers", buffers)?;
        Ok((self.pickle.filled_bytes(), Some(options)))
    }

    /// The message in one piece.
    #[cold]
    fn joined(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let mut whole = Fresh::bytes(py, self.index.total)?;
        let mut rest = whole.memory();
        for Place(start, len) in self.places() {
            let (now, later) = rest.split_at_mut(len);
            // SAFETY: the places have been written to, and lie elsewhere.
            unsafe { std::ptr::copy_nonoverlapping(start.as_ptr(), now.as_mut_ptr().cast(), len) };
            rest = later;
        }
        Ok(whole.filled_bytes())
    }
}
