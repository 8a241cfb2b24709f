//! Shared memory made of the model's atomics, in the place of the crate's `src/segment.rs`.

use std::cell::RefCell;
use std::ptr::NonNull;

use loom::cell::UnsafeCell;

use crate::layout::{Control, Geometry, Line, ReaderWords, WriterWords};
use crate::sync::{AtomicU32, AtomicU64};

pub(crate) struct Segment {
    geometry: Geometry,
    directions: Vec<Direction>,
}

struct Direction {
    control: Box<Control>,
    /// Every word of the ring, whether it is a header now or payload...
    words: Box<[AtomicU64]>,
    /// ...and for each the accesses to it as payload, so that loom finds those that race.
    payload: Box<[UnsafeCell<()>]>,
}

/// Where the rings are, so that [`crate::copy`] finds a word by its address.
struct Region {
    start: usize,
    words: *const [AtomicU64],
    payload: *const [UnsafeCell<()>],
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
        REGIONS.with(|regions| {
            regions.borrow_mut().extend(directions.iter().map(|direction| Region {
                start: direction.words.as_ptr().addr(),
                words: &raw const *direction.words,
                payload: &raw const *direction.payload,
            }));
        });
        Segment { geometry, directions }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn control(&self, direction: usize) -> NonNull<Control> {
        NonNull::from(&*self.directions[direction].control)
    }

    pub(crate) fn ring(&self, direction: usize) -> NonNull<u8> {
        NonNull::from(&*self.directions[direction].words).cast()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let mine = |region: &Region| self.directions.iter().any(|d| d.words.as_ptr().addr() == region.start);
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

/// The words from `address` on, if that is in a ring.
///
/// # Safety
///
/// The segment must live for as long as what is returned is used.
pub(crate) unsafe fn words_at<'a>(address: *const u8) -> Option<(&'a [AtomicU64], &'a [UnsafeCell<()>])> {
    REGIONS.with(|regions| {
        regions.borrow().iter().find_map(|region| {
            // SAFETY: regions are those of segments that live.
            let (words, payload) = unsafe { (&*region.words, &*region.payload) };
            let offset = address.addr().checked_sub(region.start).filter(|&at| at <= size_of_val(words))?;
            assert_eq!(offset % 8, 0, "the models copy whole words");
            Some((&words[offset / 8..], &payload[offset / 8..]))
        })
    })
}
