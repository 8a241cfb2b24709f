//! Shared memory made of the model's atomics, in the place of the crate's `src/segment.rs`.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use loom::cell::UnsafeCell;
use loom::sync::atomic;

use crate::layout::{CELL, Control, Geometry, Line, ManyControl, ReaderWords, Seat, TailWords, WriterWords};
use crate::sync::{AsFd, AtomicU32, AtomicU64, BorrowedFd};

pub(crate) struct Segment {
    geometry: Geometry,
    directions: Vec<Direction>,
    many: Option<Many>,
}

struct Direction {
    control: Box<Control>,
    /// Every word of the ring, whether it is a header now or payload...
    words: Box<[AtomicU64]>,
    /// ...and for each the accesses to it as payload, so that loom finds those that race.
    payload: Box<[UnsafeCell<()>]>,
}

/// The ring for many.
struct Many {
    control: Box<ManyControl>,
    words: Box<[AtomicU64]>,
    cells: Box<[ModelCell]>,
    /// For each cell the accesses to it as payload.
    payload: Box<[UnsafeCell<()>]>,
    /// The locks that members hold.
    members: Box<[atomic::AtomicU32]>,
}

/// Cells are handed on as a whole, so of their words it is enough that one can be read as it was.
#[repr(C)]
struct ModelCell {
    first: AtomicU64,
    rest: [Cell<u64>; CELL / 8 - 1],
}

const _: () = assert!(size_of::<ModelCell>() == CELL);

/// Members that a pipe for many can have.
const MEMBERS: usize = 4;

/// Where the rings are, so that [`crate::copy`] finds a word by its address.
#[derive(Clone, Copy)]
enum Region {
    Words(*const [AtomicU64], *const [UnsafeCell<()>]),
    Cells(*const [ModelCell], *const [UnsafeCell<()>]),
}

thread_local! {
    static REGIONS: RefCell<Vec<Region>> = const { RefCell::new(Vec::new()) };
}

// SAFETY: loom runs one thread at a time, and checks by itself what would race.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Cursors start at `start`.
    pub(crate) fn new(capacity: usize, directions: usize, start: u64) -> Segment {
        let geometry = Geometry::spsc(capacity, directions, 0);
        let directions: Vec<Direction> = (0..directions).map(|_| Direction::new(capacity, start)).collect();
        let segment = Segment { geometry, directions, many: None };
        REGIONS.with(|regions| regions.borrow_mut().extend(segment.regions()));
        segment
    }

    /// For many, of so many cells. Cursors start at `start`.
    pub(crate) fn many(cells: usize, start: u64) -> Segment {
        let geometry = Geometry::mpmc(cells * CELL, 0);
        let segment = Segment { geometry, directions: Vec::new(), many: Some(Many::new(cells, start)) };
        REGIONS.with(|regions| regions.borrow_mut().extend(segment.regions()));
        segment
    }

    fn regions(&self) -> impl Iterator<Item = Region> {
        let words = self.directions.iter().map(|d| Region::Words(&raw const *d.words, &raw const *d.payload));
        let cells = self.many.iter().map(|many| Region::Cells(&raw const *many.cells, &raw const *many.payload));
        words.chain(cells)
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn control(&self, direction: usize) -> NonNull<Control> {
        NonNull::from(&*self.directions[direction].control)
    }

    pub(crate) fn ring(&self, direction: usize) -> NonNull<u8> {
        match &self.many {
            None => NonNull::from(&*self.directions[direction].words).cast(),
            Some(many) => NonNull::from(&*many.cells).cast(),
        }
    }

    fn for_many(&self) -> &Many {
        self.many.as_ref().expect("a segment for many")
    }

    pub(crate) fn many_control(&self) -> NonNull<ManyControl> {
        NonNull::from(&*self.for_many().control)
    }

    pub(crate) fn cell_words(&self) -> NonNull<AtomicU64> {
        NonNull::from(&*self.for_many().words).cast()
    }

    /// A lock for each number that a member can have: 1 where it is locked.
    pub(crate) fn member_locks(&self) -> &[atomic::AtomicU32] {
        &self.for_many().members
    }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        unreachable!("what lies outside of the ring is not modelled")
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let mine = |region: &Region| self.regions().any(|own| own.start() == region.start());
        REGIONS.with(|regions| regions.borrow_mut().retain(|region| !mine(region)));
    }
}

impl Direction {
    fn new(capacity: usize, start: u64) -> Direction {
        let cursor = || AtomicU64::new(start);
        let control = Control {
            writer: Line(WriterWords { tail: cursor(), begun: cursor(), limit: cursor() }),
            reader: Line(ReaderWords { head: cursor() }),
            not_empty: Line(AtomicU32::new(0)),
            not_full: Line(AtomicU32::new(0)),
        };
        Direction {
            control: Box::new(control),
            words: (0..capacity / 8).map(|_| AtomicU64::new(0)).collect(),
            payload: (0..capacity / 8).map(|_| UnsafeCell::new(())).collect(),
        }
    }
}

impl Many {
    fn new(cells: usize, start: u64) -> Many {
        let cursor = || AtomicU64::new(start);
        let seat = || {
            let word = || AtomicU32::new(0);
            Line(Seat { bell: word(), sleepers: word(), leader: word(), woken_at: AtomicU64::new(0) })
        };
        let control = ManyControl {
            tail: Line(TailWords {
                tail: cursor(),
                free: cursor(),
                long: std::array::from_fn(|_| AtomicU64::new(0)),
                precedence: AtomicU64::new(0),
                pause: AtomicU64::new(0),
                extent: std::array::from_fn(|_| AtomicU64::new(0)),
            }),
            head: Line(cursor()),
            not_empty: seat(),
            not_full: seat(),
        };
        let cell = || ModelCell { first: AtomicU64::new(0), rest: [const { Cell::new(0) }; CELL / 8 - 1] };
        Many {
            control: Box::new(control),
            words: (0..cells).map(|_| AtomicU64::new(0)).collect(),
            cells: (0..cells).map(|_| cell()).collect(),
            payload: (0..cells).map(|_| UnsafeCell::new(())).collect(),
            members: (0..MEMBERS).map(|_| atomic::AtomicU32::new(0)).collect(),
        }
    }
}

impl Region {
    fn start(self) -> usize {
        match self {
            Region::Words(words, _) => words.cast::<u8>().addr(),
            Region::Cells(cells, _) => cells.cast::<u8>().addr(),
        }
    }

    fn len(self) -> usize {
        match self {
            Region::Words(words, _) => words.len() * 8,
            Region::Cells(cells, _) => cells.len() * CELL,
        }
    }
}

/// A word of a ring.
pub(crate) enum Place<'a> {
    /// One that loom knows, and the accesses to it as payload.
    Watched(&'a AtomicU64, &'a UnsafeCell<()>),
    /// One of a cell of which another word is watched.
    Plain(&'a Cell<u64>),
}

/// The words from `address` on, if that is in a ring.
///
/// # Safety
///
/// The segment must live for as long as what is returned is used.
pub(crate) unsafe fn words_at<'a>(address: *const u8) -> Option<impl Iterator<Item = Place<'a>>> {
    let find = |regions: &RefCell<Vec<Region>>| {
        regions.borrow().iter().find_map(|&region| {
            let offset = address.addr().checked_sub(region.start()).filter(|&at| at <= region.len())?;
            assert_eq!(offset % 8, 0, "the models copy whole words");
            Some((region, offset / 8))
        })
    };
    let (region, first) = REGIONS.with(find)?;
    Some((first..region.len() / 8).map(move |at| {
        // SAFETY: regions are those of segments that live, and `at` lies in it.
        unsafe {
            match region {
                Region::Words(words, payload) => Place::Watched(&(&*words)[at], &(&*payload)[at]),
                Region::Cells(cells, payload) => {
                    let (cell, within) = (at / (CELL / 8), at % (CELL / 8));
                    match within {
                        0 => Place::Watched(&(&*cells)[cell].first, &(&*payload)[cell]),
                        _ => Place::Plain(&(&*cells)[cell].rest[within - 1]),
                    }
                }
            }
        }
    }))
}
