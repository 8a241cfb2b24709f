//! Peers that hand over something else than they say, or that rewrite the shared memory while it is in use. They may spoil their own
//! pipe; nothing may crash, hang beyond a deadline, or allocate what they please.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringpipe::{
    AttachError, Builder, Connection, End, Receiver, RecvError, RecvIntoError, SendError, Sender, Waitable,
};
use support::{Random, Script, alone, fork_copy, fork_split, readable, stuff, stuff_up, watchdog};

/// Remembers the largest allocation, which no peer may choose.
struct Witness;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Witness {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: by this function's own contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: by this function's own contract.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: by this function's own contract.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static WITNESS: Witness = Witness;

/// Runs `body` and returns the size of its largest allocation.
fn largest_allocation(body: impl FnOnce()) -> usize {
    LARGEST.store(0, Ordering::Relaxed);
    body();
    LARGEST.load(Ordering::Relaxed)
}

// --- what travels when an end is handed over ----------------------------------------------------------

const RINGS_AT: usize = 4096;
const DIRECTION_0: usize = 256;
/// Of a direction's words, from its start.
const TAIL: usize = 0;
const BEGUN: usize = 8;
const LIMIT: usize = 16;
const HEAD: usize = 128;
const NOT_EMPTY: usize = 256;
const NOT_FULL: usize = 384;

const SENDER: u8 = 1;
const RECEIVER: u8 = 2;
const CONNECTION: u8 = 3;
const MANY_SENDER: u8 = 4;
const MANY_RECEIVER: u8 = 5;

const DATA: u64 = 0x5250_0001;
const FIRST: u64 = 0x5250_0003;
const MORE: u64 = 0x5250_0004;
const END: u64 = 0x5250_0006;

fn frame(kind: u8, direction: u8, fds: u8) -> [u8; 16] {
    let mut frame = [0; 16];
    frame[..8].copy_from_slice(b"ringpipe");
    frame[8..12].copy_from_slice(&[1, kind, direction, fds]);
    frame
}

fn checked(result: libc::c_int, what: &str) -> libc::c_int {
    assert!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
    result
}

/// Sends bytes with descriptors attached.
fn send_raw(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut control = [0_u64; 16];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut iov, 1);
    if !numbers.is_empty() {
        let len = size_of_val(&numbers[..]) as u32;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: `control` is aligned and larger than CMSG_SPACE for the few descriptors used here, so the first header and its data
        // lie within it.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(len) as _;
            assert!(message.msg_controllen as usize <= size_of_val(&control));
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().copy_from_nonoverlapping(numbers.as_ptr(), numbers.len());
        }
    }
    // SAFETY: the header points to live buffers of the lengths given.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    assert_eq!(sent, bytes.len() as isize, "{}", std::io::Error::last_os_error());
}

/// Receives bytes and the descriptors attached to them.
fn recv_raw(socket: &UnixStream, bytes: &mut [u8]) -> Vec<OwnedFd> {
    let mut control = [0_u64; 16];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut iov, 1);
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header points to live buffers of the lengths given.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    assert_eq!(got, bytes.len() as isize, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel filled in one header and as many descriptors as its length says; they are new and nobody else's.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        assert!(!header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS, "no descriptors came");
        let len = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
        let data = libc::CMSG_DATA(header).cast::<RawFd>();
        (0..len / size_of::<RawFd>()).map(|i| OwnedFd::from_raw_fd(data.add(i).read_unaligned())).collect()
    }
}

/// What is handed over for an end: the frame, the segment, the bells.
fn taken_apart<E: End>(end: E) -> ([u8; 16], Vec<OwnedFd>) {
    let (here, there) = UnixStream::pair().unwrap();
    end.send_to(&here).unwrap();
    let mut frame = [0; 16];
    let fds = recv_raw(&there, &mut frame);
    (frame, fds)
}

/// What comes of attaching to such a hand-over.
fn attach<E: End>(frame: &[u8], fds: &[BorrowedFd<'_>]) -> Result<E, AttachError> {
    let (here, there) = UnixStream::pair().unwrap();
    send_raw(&here, frame, fds);
    drop(here);
    E::recv_from(&there)
}

/// A memory file of so many bytes that starts with these, sealed as told.
fn memory_file(len: u64, start: &[u8], seals: libc::c_int) -> OwnedFd {
    // SAFETY: the name is a C string; a descriptor returned is new and nobody else's.
    let fd = unsafe {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        OwnedFd::from_raw_fd(checked(libc::memfd_create(c"crafted".as_ptr(), flags), "memfd_create"))
    };
    let mut file = File::from(fd);
    file.set_len(len).unwrap();
    file.write_all(start).unwrap();
    // SAFETY: the descriptor is open.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }, "F_ADD_SEALS");
    file.into()
}

const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// The header of a simplex pipe of 4096 bytes.
fn header() -> [u8; 32] {
    let mut header = [0; 32];
    header[..8].copy_from_slice(b"ringpipe");
    header[8..12].copy_from_slice(&1_u32.to_ne_bytes()); // version
    header[12..16].copy_from_slice(&1_u32.to_ne_bytes()); // mode
    header[16..24].copy_from_slice(&4096_u64.to_ne_bytes()); // capacity
    header[24..28].copy_from_slice(&1_u32.to_ne_bytes()); // directions
    header[28..32].copy_from_slice(&50_u32.to_ne_bytes()); // spin
    header
}

const GOOD_LEN: u64 = RINGS_AT as u64 + 4096;

fn with(at: usize, bytes: &[u8]) -> [u8; 32] {
    let mut header = header();
    header[at..at + bytes.len()].copy_from_slice(bytes);
    header
}

/// What comes of attaching a sender to this segment.
fn attach_segment(segment: &OwnedFd) -> Result<Sender, AttachError> {
    let (bell, _other) = UnixStream::pair().unwrap();
    attach::<Sender>(&frame(SENDER, 0, 2), &[segment.as_fd(), bell.as_fd()])
}

#[test]
fn a_segment_made_by_hand_is_accepted_if_it_is_right() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let segment = memory_file(GOOD_LEN, &header(), SEALS);
    let (bell, other) = UnixStream::pair().unwrap();
    let mut sender = attach::<Sender>(&frame(SENDER, 0, 2), &[segment.as_fd(), bell.as_fd()]).unwrap();
    let mut receiver = attach::<Receiver>(&frame(RECEIVER, 0, 2), &[segment.as_fd(), other.as_fd()]).unwrap();
    assert_eq!(sender.capacity(), 4096);
    sender.send_bytes(b"well made").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"well made");
}

#[test]
fn a_segment_that_is_too_short_or_too_long_is_refused() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    for len in [0, 1, 31] {
        let segment = memory_file(len, &header()[..len as usize], SEALS);
        assert!(matches!(attach_segment(&segment), Err(AttachError::NotRingpipe)), "{len} bytes");
    }
    for len in [32, 4095, RINGS_AT as u64, GOOD_LEN - 1, GOOD_LEN + 1, GOOD_LEN + 4096, 1 << 40] {
        let segment = memory_file(len, &header(), SEALS);
        let what = attach_segment(&segment).map(drop);
        assert!(matches!(what, Err(AttachError::Damaged { .. })), "{len} bytes: {what:?}");
    }
}

/// Such pages can be missing when they are needed, which is a SIGBUS.
#[test]
fn memory_of_huge_pages_is_refused_before_it_is_mapped() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    // SAFETY: the name is a C string.
    let fd = unsafe {
        libc::memfd_create(c"huge".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB)
    };
    if fd < 0 {
        println!("SKIPPED: this kernel has no memory files of huge pages");
        return;
    }
    // SAFETY: just made, and nobody else's.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let huge = file.metadata().unwrap().blksize();
    assert!(huge > GOOD_LEN);
    file.set_len(huge).unwrap();
    // SAFETY: the descriptor is open.
    checked(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, SEALS) }, "F_ADD_SEALS");
    let huge = OwnedFd::from(file);
    assert!(matches!(attach_segment(&huge).map(drop), Err(AttachError::NotSealed)));
    let (bell, _other) = UnixStream::pair().unwrap();
    let what = attach::<ringpipe::mpmc::Sender>(&frame(MANY_SENDER, 0, 2), &[huge.as_fd(), bell.as_fd()]).map(drop);
    assert!(matches!(what, Err(AttachError::NotSealed)), "{what:?}");
}

#[test]
fn memory_whose_size_could_change_is_refused() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let not_sealed = |fd: &OwnedFd| matches!(attach_segment(fd), Err(AttachError::NotSealed));
    let lacking = [
        0,
        libc::F_SEAL_SHRINK,
        libc::F_SEAL_GROW,
        libc::F_SEAL_SHRINK | libc::F_SEAL_GROW,
        libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL,
        libc::F_SEAL_GROW | libc::F_SEAL_SEAL,
    ];
    for seals in lacking {
        assert!(not_sealed(&memory_file(GOOD_LEN, &header(), seals)), "seals {seals:#x}");
    }

    let path = std::env::temp_dir().join(format!("ringpipe-hostile-{}", std::process::id()));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(&header()).unwrap();
    file.set_len(GOOD_LEN).unwrap();
    assert!(not_sealed(&file.into()), "a file");
    // Which the feature `posix-shm` takes, but only where the kernel refuses memory files.
    let mut file = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open("/dev/shm").unwrap();
    file.write_all(&header()).unwrap();
    file.set_len(GOOD_LEN).unwrap();
    assert!(not_sealed(&file.into()), "POSIX shared memory");
    assert!(not_sealed(&File::options().read(true).write(true).open("/dev/zero").unwrap().into()), "a device");
    assert!(not_sealed(&UnixStream::pair().unwrap().0.into()), "a socket");
}

#[test]
fn memory_that_cannot_be_written_is_refused() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let sealed = memory_file(GOOD_LEN, &header(), SEALS | libc::F_SEAL_WRITE);
    assert!(matches!(attach_segment(&sealed), Err(AttachError::Io(_))));
    let segment = memory_file(GOOD_LEN, &header(), SEALS);
    let read_only = File::open(format!("/proc/self/fd/{}", segment.as_raw_fd())).unwrap().into();
    assert!(matches!(attach_segment(&read_only), Err(AttachError::Io(_))));
}

#[test]
fn a_foreign_header_is_refused_with_an_error_that_says_why() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let refusal = |header: [u8; 32]| {
        let segment = memory_file(GOOD_LEN, &header, SEALS);
        attach_segment(&segment).map(drop).expect_err("it is not to be used")
    };
    assert!(matches!(refusal([0; 32]), AttachError::NotRingpipe));
    assert!(matches!(refusal(with(0, b"epipgnir")), AttachError::NotRingpipe));

    let error = refusal(with(8, &7_u32.to_ne_bytes()));
    assert!(matches!(error, AttachError::Version { ours: 1, theirs: 7 }), "{error:?}");
    assert!(error.to_string().contains('7') && error.to_string().contains('1'), "{error}");

    let error = refusal(with(12, &2_u32.to_ne_bytes()));
    assert!(matches!(error, AttachError::Mode { ours: 1, theirs: 2 }), "{error:?}");
    assert!(error.to_string().contains('2') && error.to_string().contains('1'), "{error}");

    for capacity in [0, 1, 8, 2048, 4095, 4097, 6144, 8192, 1 << 31, 1 << 40, 1 << 63, u64::MAX] {
        let error = refusal(with(16, &capacity.to_ne_bytes()));
        assert!(matches!(error, AttachError::Damaged { .. }), "capacity {capacity}: {error:?}");
    }
    for directions in [0, 2, 3, u32::MAX] {
        let error = refusal(with(24, &directions.to_ne_bytes()));
        assert!(matches!(error, AttachError::Damaged { .. }), "{directions} directions: {error:?}");
    }
}

#[test]
fn a_claim_to_spin_for_ever_is_not_believed() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let segment = memory_file(GOOD_LEN, &with(28, &u32::MAX.to_ne_bytes()), SEALS);
    let (bell, _other) = UnixStream::pair().unwrap();
    let mut receiver = attach::<Receiver>(&frame(RECEIVER, 0, 2), &[segment.as_fd(), bell.as_fd()]).unwrap();
    let start = Instant::now();
    assert!(matches!(receiver.recv_bytes_timeout(Duration::from_millis(50)), Err(RecvError::TimedOut)));
    assert!(start.elapsed() < Duration::from_secs(2), "it took {:?}", start.elapsed());
}

#[test]
fn a_frame_that_describes_something_else_is_refused() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let segment = memory_file(GOOD_LEN, &header(), SEALS);
    let duplex = {
        let mut header = header();
        header[24] = 2;
        memory_file(GOOD_LEN + 4096, &header, SEALS)
    };
    let (bell, other) = UnixStream::pair().unwrap();
    let two = [segment.as_fd(), bell.as_fd()];
    let three = [segment.as_fd(), bell.as_fd(), other.as_fd()];
    let bad = |what: Result<Sender, AttachError>| matches!(what, Err(AttachError::BadHandover { .. }));

    assert!(bad(attach(b"GET / HTTP/1.1\r\n", &[])), "no frame");
    assert!(bad(attach(b"short", &[])), "a piece of a frame");
    assert!(bad(attach(&frame(SENDER, 0, 2)[..15], &two)), "a frame less one byte");
    assert!(bad(attach(&frame(0, 0, 2), &two)), "no kind");
    assert!(bad(attach(&frame(9, 0, 2), &two)), "an unknown kind");
    assert!(bad(attach(&frame(SENDER, 0, 3), &three)), "a count for another kind");
    assert!(bad(attach(&frame(SENDER, 0, 2), &[])), "no descriptors");
    assert!(bad(attach(&frame(SENDER, 0, 2), &two[..1])), "no bell");
    assert!(bad(attach(&frame(SENDER, 0, 2), &three)), "a descriptor too many");

    let mut newer = frame(SENDER, 0, 2);
    newer[8] = 2;
    let what = attach::<Sender>(&newer, &two).map(drop);
    assert!(matches!(what, Err(AttachError::Version { ours: 1, theirs: 2 })), "{what:?}");

    let what = attach::<Sender>(&frame(RECEIVER, 0, 2), &two).map(drop);
    assert!(matches!(what, Err(AttachError::WrongEnd { ours: "sender", theirs: "receiver" })), "{what:?}");
    let what = attach::<Receiver>(&frame(CONNECTION, 0, 3), &three).map(drop);
    assert!(matches!(what, Err(AttachError::WrongEnd { ours: "receiver", theirs: "connection" })), "{what:?}");

    for direction in [1, 2, 255] {
        let what = attach::<Sender>(&frame(SENDER, direction, 2), &two).map(drop);
        assert!(matches!(what, Err(AttachError::Damaged { .. })), "direction {direction} of 1: {what:?}");
    }
    let what = attach::<Connection>(&frame(CONNECTION, 0, 3), &three).map(drop);
    assert!(matches!(what, Err(AttachError::Damaged { .. })), "a connection of one direction: {what:?}");
    let what = attach::<Connection>(&frame(CONNECTION, 2, 3), &[duplex.as_fd(), bell.as_fd(), other.as_fd()]).map(drop);
    assert!(matches!(what, Err(AttachError::Damaged { .. })), "direction 2 of 2: {what:?}");
}

/// A frame may lie about what it comes with; the segment tells.
#[test]
fn a_segment_for_two_is_refused_as_one_for_many_and_the_other_way_round() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let (receiver, sender) = ringpipe::mpmc::simplex().unwrap();
    let many_as_two = AttachError::Mode { ours: 1, theirs: 2 }.to_string();
    let (real, fds) = taken_apart(sender.clone());
    assert_eq!(real, frame(MANY_SENDER, 0, 2));
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let what = attach::<Sender>(&frame(SENDER, 0, 2), &borrowed).map(drop);
    assert!(matches!(what, Err(AttachError::Mode { ours: 1, theirs: 2 })), "{what:?}");
    let what = attach::<Receiver>(&frame(RECEIVER, 0, 2), &borrowed).map(drop);
    assert_eq!(what.unwrap_err().to_string(), many_as_two);
    let three = [borrowed[0], borrowed[1], borrowed[1]];
    let what = attach::<Connection>(&frame(CONNECTION, 0, 3), &three).map(drop);
    assert_eq!(what.unwrap_err().to_string(), many_as_two);
    let what = attach::<ringpipe::mpmc::Sender>(&frame(MANY_SENDER, 1, 2), &borrowed).map(drop);
    assert!(matches!(what, Err(AttachError::Damaged { .. })), "direction 1: {what:?}");
    // As what it is, it is fine.
    let again = attach::<ringpipe::mpmc::Sender>(&real, &borrowed).unwrap();
    again.send_bytes(b"well made").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"well made");

    let (single, single_sender) = ringpipe::simplex().unwrap();
    for (kind, (_, fds)) in [(MANY_RECEIVER, taken_apart(single)), (MANY_SENDER, taken_apart(single_sender))] {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let what = match kind {
            MANY_SENDER => attach::<ringpipe::mpmc::Sender>(&frame(kind, 0, 2), &borrowed).map(drop),
            _ => attach::<ringpipe::mpmc::Receiver>(&frame(kind, 0, 2), &borrowed).map(drop),
        };
        assert!(matches!(what, Err(AttachError::Mode { ours: 2, theirs: 1 })), "kind {kind}: {what:?}");
    }
}

/// Of a ring for many: where its cursors and words are, and what the latter say.
const MANY_TAIL: usize = 256;
const MANY_FREE: usize = 264;
const MANY_HEAD: usize = 384;
const MANY_WORDS: usize = RINGS_AT;

fn many_word(lap: u64, cells: u64, owner: u64, state: u64) -> u64 {
    lap << 22 | cells << 12 | owner << 2 | state
}

/// What two calls may take that each look once at all 65,536 words of a ring: a second or less, but for a sanitizer or an emulator on a
/// machine with other work. To look at all for each would take hours.
const WALK: Duration = Duration::from_secs(20);

#[test]
fn calls_end_in_time_in_a_ring_for_many_full_of_what_the_dead_held() {
    const WRITING: u64 = 0;
    const READING: u64 = 2;
    const CAPACITY: usize = 4 << 20;
    let _alone = alone();
    let _watchdog = watchdog(60);
    for state in [WRITING, READING] {
        let (receiver, sender, memory) = Mapping::many(CAPACITY);
        for cell in 0..CAPACITY / 64 {
            memory.word(MANY_WORDS + 8 * cell).store(many_word(1, 1, 777, state), Ordering::SeqCst);
        }
        let start = Instant::now();
        assert!(receiver.recv_bytes_timeout(Duration::from_millis(1)).is_err());
        let _ = sender.send_bytes_timeout(b"whatever", Duration::from_millis(1));
        assert!(start.elapsed() < WALK, "state {state}: it took {:?}", start.elapsed());
    }
}

#[test]
fn calls_end_in_time_in_a_ring_for_many_whose_cursors_contradict_its_words() {
    const DONE: u64 = 3;
    const CAPACITY: usize = 4 << 20;
    let _alone = alone();
    let _watchdog = watchdog(60);
    let cells = CAPACITY as u64 / 64;
    for [tail, free, head] in [[cells, cells - 1, cells], [2 * cells, 0, cells], [0, 3 * cells, 5]] {
        let (receiver, sender, memory) = Mapping::many(CAPACITY);
        for cell in 0..cells as usize {
            memory.word(MANY_WORDS + 8 * cell).store(many_word(2, 1, 0, DONE), Ordering::SeqCst);
        }
        for (at, cursor) in [(MANY_TAIL, tail), (MANY_FREE, free), (MANY_HEAD, head)] {
            memory.word(at).store(cursor, Ordering::SeqCst);
        }
        let start = Instant::now();
        let _ = sender.send_bytes_timeout(b"whatever", Duration::from_millis(1));
        let _ = receiver.recv_bytes_timeout(Duration::from_millis(1));
        assert!(start.elapsed() < WALK, "{tail}, {free}, {head}: it took {:?}", start.elapsed());
    }
}

/// The description of the memory file is one for all processes, so any of them can say for all that whatever is written goes to the end.
#[test]
fn long_messages_for_many_arrive_whole_though_a_peer_has_the_kernel_append_all_that_is_written() {
    const CAPACITY: usize = 64 << 10;
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (receiver, sender, memory) = Mapping::many(CAPACITY);
    let before = support::memory_of_pipes();
    let child = support::fork(|| {
        // SAFETY: the descriptor is open.
        let flags = unsafe { libc::fcntl(memory.fd.as_raw_fd(), libc::F_GETFL) };
        // SAFETY: as above.
        unsafe { libc::fcntl(memory.fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_APPEND | libc::O_NONBLOCK) }
    });
    child.succeeds();
    // SAFETY: as above.
    let flags = unsafe { libc::fcntl(memory.fd.as_raw_fd(), libc::F_GETFL) };
    assert!(flags & libc::O_APPEND != 0, "it is so for this process as well");
    for round in 0..3 {
        for len in [CAPACITY / 4 + 1, CAPACITY, 3 * CAPACITY + round, 4 << 20] {
            sender.try_send_bytes(&support::numbered(len)).unwrap();
            assert!(receiver.try_recv_bytes().unwrap() == support::numbered(len), "{len} bytes");
        }
    }
    assert!(support::memory_of_pipes() <= before + support::many::KEPT, "it is given back");
}

#[test]
fn a_bell_that_is_no_unix_stream_socket_is_refused() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let segment = memory_file(GOOD_LEN, &header(), SEALS);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let others: [OwnedFd; 4] = [
        File::open("/dev/null").unwrap().into(),
        std::os::unix::net::UnixDatagram::pair().unwrap().0.into(),
        listener.into(),
        File::open("/proc/self/status").unwrap().into(),
    ];
    for (i, other) in others.iter().enumerate() {
        let what = attach::<Sender>(&frame(SENDER, 0, 2), &[segment.as_fd(), other.as_fd()]).map(drop);
        assert!(matches!(what, Err(AttachError::NotABell { index: 1 })), "descriptor {i}: {what:?}");
    }
}

#[test]
fn a_refused_hand_over_leaves_no_descriptor_behind() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let segment = memory_file(GOOD_LEN, &header(), SEALS);
    let unsealed = memory_file(GOOD_LEN, &header(), 0);
    let (bell, other) = UnixStream::pair().unwrap();
    let before = support::open_fds();
    for _ in 0..10 {
        let three = [segment.as_fd(), bell.as_fd(), other.as_fd()];
        assert!(attach::<Sender>(&frame(SENDER, 0, 2), &three).is_err());
        assert!(attach::<Sender>(&frame(RECEIVER, 0, 2), &three[..2]).is_err());
        assert!(attach::<Sender>(&frame(SENDER, 0, 2), &three[..1]).is_err());
        assert!(attach::<Sender>(&frame(SENDER, 0, 2)[..9], &three[..2]).is_err());
        assert!(attach::<Sender>(&frame(SENDER, 0, 2), &[unsealed.as_fd(), bell.as_fd()]).is_err());
        assert!(attach::<Sender>(b"sixteen bytes...", &three).is_err());
    }
    assert_eq!(support::open_fds(), before);
}

// --- memory that changes under the library ------------------------------------------------------------

/// A segment mapped once more, as a peer that follows no protocol would.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
    fd: OwnedFd,
}

// SAFETY: all access is through atomics and raw system calls.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn of(fd: OwnedFd) -> Mapping {
        let len = File::from(fd.try_clone().unwrap()).metadata().unwrap().len() as usize;
        Mapping::of_start(fd, len)
    }

    fn of_start(fd: OwnedFd, len: usize) -> Mapping {
        // SAFETY: a fresh shared mapping, placed by the kernel.
        let base = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        assert_ne!(base, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Mapping { base: NonNull::new(base.cast()).unwrap(), len, fd }
    }

    /// A pipe for many of this capacity, and its memory without what long messages have outside of the ring.
    fn many(capacity: usize) -> (ringpipe::mpmc::Receiver, ringpipe::mpmc::Sender, Mapping) {
        let (receiver, sender) = Builder::new().capacity(capacity).spin(Duration::from_micros(20)).mpmc().unwrap();
        let (_, mut fds) = taken_apart(sender.clone());
        (receiver, sender, Mapping::of_start(fds.swap_remove(0), RINGS_AT + capacity / 8 + capacity))
    }

    /// A simplex pipe of this capacity, and its memory.
    fn simplex(capacity: usize) -> (Receiver, Sender, Mapping) {
        let (receiver, sender) = Builder::new().capacity(capacity).spin(Duration::from_micros(20)).simplex().unwrap();
        let (frame, fds) = taken_apart(sender);
        let sender = attach(&frame, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
        (receiver, sender, Mapping::of(fds.into_iter().next().unwrap()))
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at % 8 == 0 && at + 8 <= self.len);
        // SAFETY: in bounds and aligned, as just checked; the mapping lives as long as `self`.
        unsafe { self.base.add(at).cast().as_ref() }
    }

    fn control(&self, word: usize) -> &AtomicU64 {
        self.word(DIRECTION_0 + word)
    }

    /// Gives pages back, which then read as zeros.
    fn punch(&self, at: usize, len: usize) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open.
        let result = unsafe { libc::fallocate(self.fd.as_raw_fd(), mode, at as libc::off_t, len as libc::off_t) };
        checked(result, "punching a hole");
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `of` with this length; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Writes a record as a sender would: its header, and a zero header behind it.
fn write_record(memory: &Mapping, at: usize, kind: u64, len: u64, payload: &[u64]) {
    for (i, &word) in payload.iter().enumerate() {
        memory.word(RINGS_AT + at + 8 + 8 * i).store(word, Ordering::Relaxed);
    }
    memory.word(RINGS_AT + at).store(kind << 32 | len, Ordering::Release);
}

#[test]
fn a_claimed_length_allocates_nothing() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    for total in [1 << 20, 3 << 30, 1 << 32, 1 << 40, 1 << 62, i64::MAX as u64, 1 << 63, u64::MAX] {
        for form in 0..4 {
            let (mut receiver, _sender, memory) = Mapping::simplex(64 << 10);
            write_record(&memory, 0, FIRST, 1000, &[total]);
            let timeout = Duration::from_millis(5);
            let mut buf = [0; 100];
            let largest = largest_allocation(|| {
                let error = match form {
                    0 => receiver.recv_bytes_timeout(timeout).unwrap_err(),
                    1 => receiver.try_recv_bytes().unwrap_err(),
                    2 => receiver.recv_guard_timeout(timeout).map(drop).unwrap_err(),
                    _ => match receiver.recv_bytes_into_timeout(&mut buf, 0, timeout) {
                        Err(RecvIntoError::Recv(e)) => e,
                        other => panic!("{other:?}"),
                    },
                };
                let fine = match error {
                    // More than any memory of this process can be.
                    RecvError::TooLong { len, max } => len == total && len > max as u64 && max == isize::MAX as usize,
                    RecvError::TimedOut | RecvError::Empty => isize::try_from(total).is_ok(),
                    _ => false,
                };
                assert!(fine, "a claim of {total} bytes: {error:?}");
            });
            assert!(largest < 1 << 18, "a claim of {total} bytes allocated {largest}");
        }
    }
}

#[test]
fn headers_that_make_no_sense_are_reported_as_corruption() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let capacity = 16 << 10;
    let long = capacity as u64 - 7;
    let words = [
        1,
        u64::MAX,
        DATA,
        DATA << 32 | long,
        // A byte more than a sender puts in one piece.
        DATA << 32 | (capacity as u64 / 4 - 7),
        DATA << 32 | 0xffff_ffff,
        (DATA + 100) << 32 | 8,
        FIRST << 32 | 8,
        FIRST << 32,
        0x5250_0002 << 32 | 0xffff_fff8,
    ];
    for word in words {
        let (mut receiver, mut sender, memory) = Mapping::simplex(capacity);
        memory.word(RINGS_AT).store(word, Ordering::Release);
        let result = receiver.recv_bytes_timeout(Duration::from_millis(5));
        assert!(matches!(result, Err(RecvError::Corrupt)), "header {word:#x}: {result:?}");
        assert!(matches!(receiver.recv_bytes(), Err(RecvError::Ended)));
        assert!(matches!(receiver.poll(None), Err(RecvError::Ended)));
        // The honest half of such a peer learns that nobody receives any more.
        while sender.send_bytes_timeout(b"anyone?", Duration::from_secs(5)).is_ok() {}
        assert!(matches!(sender.send_bytes(b"anyone?"), Err(SendError::Disconnected)));
    }
    for (what, more) in [("nothing", 0), ("too much", 3000)] {
        let (mut receiver, _sender, memory) = Mapping::simplex(capacity);
        write_record(&memory, 0, FIRST, 1000, &[2000]);
        write_record(&memory, 1008, MORE, more, &[]);
        let result = receiver.recv_bytes_timeout(Duration::from_millis(5));
        assert!(matches!(result, Err(RecvError::Corrupt)), "a part with {what}: {result:?}");
    }
}

/// A ring that was filled by hand and would be gone round in for ever: its reader notices, also long after the writer has died.
#[test]
fn a_ring_filled_by_hand_does_not_feed_its_reader_for_ever() {
    const PAD: u64 = 0x5250_0002;
    let _alone = alone();
    let _watchdog = watchdog(60);
    let capacity = 4096;
    let fillings: [(&str, u64, usize); 4] =
        [("messages", DATA, 16), ("parts", MORE, 16), ("padding", PAD, capacity), ("short padding", PAD, 16)];
    for (what, kind, stride) in fillings {
        for dead in [false, true] {
            let (mut receiver, sender, memory) = Mapping::simplex(capacity);
            for at in (0..capacity).step_by(stride) {
                write_record(&memory, at, kind, stride as u64 - 8, &[]);
            }
            let sender = if dead { None } else { Some(sender) };
            let mut received = 0;
            let error = loop {
                match receiver.recv_bytes_timeout(Duration::from_secs(5)) {
                    Ok(_) => received += 1,
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, RecvError::Corrupt), "{what}: {error:?}");
            assert!(received <= 1024, "{received} {what}");
            drop(sender);
        }
    }
    // A claim of more than there is memory, in the first of many parts.
    let (mut receiver, sender, memory) = Mapping::simplex(capacity);
    write_record(&memory, 0, FIRST, 1008, &[1 << 61]);
    for at in [1016, 2032, 3048] {
        write_record(&memory, at, MORE, 1008, &[]);
    }
    write_record(&memory, 4064, MORE, 24, &[]);
    drop(sender);
    match receiver.recv_bytes() {
        Err(RecvError::Corrupt | RecvError::Cut) => {}
        Err(RecvError::TooLong { .. }) if usize::BITS < 64 => {}
        result => panic!("{result:?}"),
    }
}

/// Descriptors without an announcement, as a sender leaves that is killed between the two.
#[test]
fn descriptors_that_nobody_announced_do_not_get_in_the_way() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let (mut receiver, mut sender) = ringpipe::simplex().unwrap();
    let orphan = [0x80_u8, 1, 2, 3, 4, 0, 0, 0, 0, 0];
    // SAFETY: the bytes are read from a live array.
    let sent = unsafe { libc::send(sender.as_fd().as_raw_fd(), orphan.as_ptr().cast(), orphan.len(), 0) };
    assert_eq!(sent, orphan.len() as isize);
    // A wait that finds its bell ringing for nothing neither ends nor burns the processor.
    let before = cpu_time();
    let start = Instant::now();
    let result = receiver.recv_bytes_timeout(Duration::from_millis(300));
    assert!(matches!(result, Err(RecvError::TimedOut)), "{result:?}");
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(cpu_time() - before < Duration::from_millis(100), "{:?}", cpu_time() - before);

    sender.send_bytes(b"before").unwrap();
    let (end, mut other) = ringpipe::simplex().unwrap();
    other.send_bytes(b"through the end").unwrap();
    sender.send_end(end).unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"before");
    let mut end: Receiver = receiver.recv_end().unwrap();
    assert_eq!(end.recv_bytes().unwrap(), b"through the end");
}

/// Descriptors taken without what announced them, as a copy of the receiver's end leaves it that is killed between the two. The ends that
/// follow have been sent, so they arrive.
#[test]
fn descriptors_that_a_killed_receiver_had_taken_are_missing_alone() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let (mut receiver, mut sender) = ringpipe::simplex().unwrap();
    for i in 0..4_u8 {
        let (theirs, mut mine) = ringpipe::simplex().unwrap();
        mine.send_bytes(&[i]).unwrap();
        sender.send_end(theirs).unwrap();
    }
    // What comes up to the mark of the first, for which the kernel stops where the descriptors of the second would come.
    let mut taken = [0_u8; 64];
    // SAFETY: the bytes are written to a live array.
    let n =
        unsafe { libc::recv(receiver.as_fd().as_raw_fd(), taken.as_mut_ptr().cast(), taken.len(), libc::MSG_DONTWAIT) };
    assert!(n > 0 && taken.iter().any(|byte| byte & 0x80 != 0), "no descriptors were on their way");
    let first = receiver.recv_end::<Receiver>().map(drop);
    assert!(matches!(first, Err(RecvError::Cut)), "{first:?}");
    for i in 1..4 {
        let mut end: Receiver = receiver.recv_end().unwrap_or_else(|e| panic!("end {i}: {e}"));
        assert_eq!(end.recv_bytes().unwrap(), [i]);
    }
}

/// Asks the kernel to deliver a descriptor of the sender's process with everything that this socket receives. False where it cannot.
fn pass_process_descriptors(socket: BorrowedFd<'_>) -> bool {
    const SO_PASSPIDFD: libc::c_int = 76;
    let on: libc::c_int = 1;
    // SAFETY: the pointer leads to a live integer of the length given.
    unsafe {
        let (value, len) = ((&raw const on).cast(), size_of_val(&on) as libc::socklen_t);
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PASSPIDFD, value, len) == 0
    }
}

/// A peer can set options of a socket before it hands it over, and later.
#[test]
fn descriptors_that_a_peer_has_the_kernel_deliver_do_not_pile_up() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let (here, there) = UnixStream::pair().unwrap();
    let (mut receiver, mut sender) = ringpipe::simplex().unwrap();
    if !pass_process_descriptors(receiver.as_fd()) || !pass_process_descriptors(there.as_fd()) {
        support::skip("process descriptors with messages", "this kernel has none");
        return;
    }
    let before = support::open_fds();
    for _ in 0..20 {
        // Of no use to anybody, and dropped on the way to the end.
        let orphan = [0x80_u8, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: the bytes are read from a live array.
        let sent = unsafe { libc::send(sender.as_fd().as_raw_fd(), orphan.as_ptr().cast(), orphan.len(), 0) };
        assert_eq!(sent, orphan.len() as isize);
    }
    let (theirs, mut mine) = ringpipe::simplex().unwrap();
    sender.send_end(theirs).unwrap();
    mine.send_bytes(b"through the bell").unwrap();
    let mut end: Receiver = receiver.recv_end().unwrap();
    assert_eq!(end.recv_bytes().unwrap(), b"through the bell");
    end.send_to(&here).unwrap();
    mine.send_bytes(b"over the socket").unwrap();
    let mut end = Receiver::recv_from(&there).unwrap();
    assert_eq!(end.recv_bytes().unwrap(), b"over the socket");
    drop((end, mine));
    assert_eq!(support::open_fds(), before);
}

/// However many bytes somebody has stuffed into the bell, which a search for descriptors has to get past.
#[test]
fn an_end_behind_any_number_of_senseless_bytes_arrives() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    for stuffed in [1, 1013, 1014, 1015, 1016, 1020, 1023, 1024, 1025, 1033, 2048, 5000] {
        let (mut receiver, mut sender) = ringpipe::simplex().unwrap();
        let bytes = vec![0_u8; stuffed];
        // SAFETY: the bytes are read from a live vector.
        let sent = unsafe { libc::send(sender.as_fd().as_raw_fd(), bytes.as_ptr().cast(), stuffed, 0) };
        assert_eq!(sent, stuffed as isize);
        let (theirs, mut mine) = ringpipe::simplex().unwrap();
        sender.send_end(theirs).unwrap();
        mine.send_bytes(b"through").unwrap();
        let mut end: Receiver = receiver.recv_end().unwrap_or_else(|e| panic!("behind {stuffed} bytes: {e}"));
        assert_eq!(end.recv_bytes().unwrap(), b"through");
    }
}

/// A bell that holds no more bytes is left armed, or nobody would ring once it has been silenced.
#[test]
fn a_bell_that_is_full_stays_armed() {
    const ARMED: u64 = 2;
    let _alone = alone();
    let _watchdog = watchdog(30);
    let (mut receiver, mut sender, memory) = Mapping::simplex(4096);
    stuff_up(&sender);
    let armed = || memory.control(NOT_EMPTY).load(Ordering::SeqCst) & ARMED != 0;
    assert!(armed(), "nobody has rung yet");
    sender.send_bytes(b"first").unwrap();
    assert!(armed(), "though there was no room for a byte");
    assert_eq!(receiver.recv_bytes().unwrap(), b"first");
    // Watched, and so silenced, it rings.
    assert!(!readable(&receiver));
    sender.send_bytes(b"second").unwrap();
    assert!(!armed() && readable(&receiver));
}

/// One that says time and again that it is about to ring holds up one call, as one that was killed there does.
#[test]
fn a_peer_that_is_forever_about_to_ring_is_not_waited_for() {
    const RINGING: u64 = 16;
    let _alone = alone();
    let _watchdog = watchdog(60);
    let (mut receiver, mut sender, memory) = Mapping::simplex(4096);
    assert!(!readable(&receiver));
    let start = Instant::now();
    for round in 0..2000_u32 {
        sender.send_bytes(&round.to_le_bytes()).unwrap();
        assert!(readable(&receiver), "round {round}");
        memory.control(NOT_EMPTY).fetch_or(RINGING, Ordering::SeqCst);
        assert_eq!(receiver.try_recv_bytes().unwrap(), round.to_le_bytes());
        assert!(!readable(&receiver), "round {round}");
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}, where one call each would have taken a minute");
}

/// A receiver is stopped after it has rung for room, and before it has said that it is done. When it goes on, the sender, which waits for room again, is
/// woken by it.
#[test]
fn a_sender_is_woken_by_a_receiver_that_was_stopped_as_it_rang() {
    const ARMED: u64 = 2;
    const RINGING: u64 = 16;
    const GENERATIONS: u64 = 0xffff_ff00;
    let _alone = alone();
    let _watchdog = watchdog(30);
    let (mut receiver, mut sender, memory) = Mapping::simplex(16 << 10);
    let seat = memory.control(NOT_FULL);
    let now = || seat.load(Ordering::SeqCst);
    let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let took = std::thread::scope(|scope| {
        let (sent, over) = (&sent, &over);
        scope.spawn(move || {
            while !over.load(Ordering::SeqCst) && sender.send_bytes(&[7; 100]).is_ok() {
                sent.fetch_add(1, Ordering::SeqCst);
            }
        });
        while now() & ARMED == 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
        let generation = now() & GENERATIONS;
        while now() & ARMED != 0 {
            receiver.try_recv_bytes().unwrap();
        }
        // As it is before the end of the ringing; and then comes that end, if it still may.
        seat.fetch_or(RINGING, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(150));
        if now() & GENERATIONS == generation {
            seat.fetch_and(!RINGING, Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_millis(20));
        let (before, start) = (sent.load(Ordering::SeqCst), Instant::now());
        for _ in 0..100 {
            receiver.try_recv_bytes().unwrap();
        }
        while sent.load(Ordering::SeqCst) == before {
            std::thread::yield_now();
        }
        let took = start.elapsed();
        over.store(true, Ordering::SeqCst);
        drop(receiver);
        took
    });
    assert!(took < Duration::from_millis(500), "woken after {took:?} only");
}

/// Peers that say that they are about to ring, and have rung for nothing, do not keep a wait for many beyond its time.
#[test]
fn a_wait_for_many_ends_in_time_though_all_are_about_to_ring() {
    const RINGING: u64 = 16;
    let _alone = alone();
    let _watchdog = watchdog(30);
    let pipes: Vec<_> = (0..40).map(|_| Mapping::simplex(4096)).collect();
    for (_, sender, memory) in &pipes {
        memory.control(NOT_EMPTY).store(RINGING, Ordering::SeqCst);
        // SAFETY: one byte is read from a live array.
        let sent = unsafe { libc::send(sender.as_fd().as_raw_fd(), [0_u8].as_ptr().cast(), 1, 0) };
        assert_eq!(sent, 1);
    }
    let receivers: Vec<&dyn Waitable> = pipes.iter().map(|(receiver, ..)| receiver as &dyn Waitable).collect();
    let start = Instant::now();
    assert!(ringpipe::wait(&receivers, Some(Duration::from_millis(10))).unwrap().is_empty());
    let took = start.elapsed();
    assert!(took < Duration::from_millis(600), "{took:?} instead of 10 ms");
}

/// One that was killed as it silenced its bell keeps others from doing so for a moment, and not for ever.
#[test]
fn a_bell_that_somebody_dead_was_arming_is_silent_again_soon() {
    const ARMING: u64 = 32;
    let _alone = alone();
    let _watchdog = watchdog(30);
    let (mut receiver, mut sender, memory) = Mapping::simplex(4096);
    assert!(!readable(&receiver));
    sender.send_bytes(b"one").unwrap();
    memory.control(NOT_EMPTY).fetch_or(ARMING, Ordering::SeqCst);
    assert_eq!(receiver.recv_bytes().unwrap(), b"one");
    assert!(receiver.recv_bytes_timeout(Duration::from_millis(300)).is_err());
    assert!(!readable(&receiver));
    assert_eq!(memory.control(NOT_EMPTY).load(Ordering::SeqCst) & ARMING, 0);
    sender.send_bytes(b"two").unwrap();
    assert!(readable(&receiver));
}

/// As `descriptors_that_a_killed_receiver_had_taken_are_missing_alone`, with a descriptor that somebody watches: it goes on to be readable for as long as there is something.
#[test]
fn an_end_without_descriptors_leaves_the_receivers_own_descriptor_readable_for_what_follows() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let (receiver, mut sender) = ringpipe::simplex().unwrap();
    assert!(!readable(&receiver));
    let (theirs, mut mine) = ringpipe::simplex().unwrap();
    sender.send_end(theirs).unwrap();
    // A copy of the receiving end takes mark and descriptors, and is killed.
    let (child, mut receiver) = fork_copy(receiver, |receiver| {
        let bell = UnixStream::from(receiver.as_fd().try_clone_to_owned().unwrap());
        let taken = recv_raw(&bell, &mut [0; 9]);
        assert_eq!(taken.len(), 2);
        // SAFETY: no preconditions.
        unsafe { libc::raise(libc::SIGKILL) };
        0
    });
    assert!(child.wait().was_killed());
    sender.send_bytes(b"a").unwrap();
    assert!(readable(&receiver));
    let end = receiver.try_recv_end::<Receiver>().map(drop);
    assert!(matches!(end, Err(RecvError::Cut)), "{end:?}");
    assert!(readable(&receiver), "with a message behind the end");
    sender.send_bytes(b"b").unwrap();
    assert_eq!(receiver.try_recv_bytes().unwrap(), b"a");
    assert!(readable(&receiver), "with another message");
    assert_eq!(receiver.try_recv_bytes().unwrap(), b"b");
    assert!(!readable(&receiver));
    sender.send_bytes(b"c").unwrap();
    assert!(readable(&receiver));
    // Nobody has the end that was lost.
    while mine.send_bytes_timeout(&[0; 4096], Duration::from_secs(5)).is_ok() {}
    assert!(matches!(mine.send_bytes(b"anyone?"), Err(SendError::Disconnected)));
}

/// Processor time of this process.
fn cpu_time() -> Duration {
    // SAFETY: all zero bytes are a valid `rusage`, and the call fills one that is alive.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// An announcement without the descriptors it announces, as a sender leaves that is killed between the two.
#[test]
fn an_announced_end_that_never_comes_does_not_hold_the_receiver_for_ever() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let announced = || {
        let (receiver, sender, memory) = Mapping::simplex(16 << 10);
        write_record(&memory, 0, END, 24, &[0, 0, 0]);
        (receiver, sender)
    };

    // Descriptors are sent before they are announced, so there is nothing to wait for, and what follows can be received.
    let (mut receiver, mut sender) = announced();
    let result = receiver.recv_end::<Sender>().map(drop);
    assert!(matches!(result, Err(RecvError::Cut)), "while the sender lives: {result:?}");
    let result = receiver.recv_end_timeout::<Sender>(Duration::from_millis(20)).map(drop);
    assert!(matches!(result, Err(RecvError::TimedOut)), "with nothing else announced: {result:?}");
    drop(sender.send_bytes(b"lost"));
    drop(sender);

    // In processes of their own: a call that hangs here never looks at the time.
    type Form = fn(&mut Receiver) -> Result<Sender, RecvError>;
    let forms: [(&str, Form); 2] = [
        ("recv_end_timeout", |receiver| receiver.recv_end_timeout(Duration::from_millis(20))),
        ("recv_end", |receiver| receiver.recv_end()),
    ];
    for (name, form) in forms {
        // A bell that the sender leaves unread resets the socket as it closes.
        for unread in [false, true] {
            let (receiver, sender) = announced();
            if unread {
                assert!(stuff(&receiver));
            }
            let (child, ()) = fork_split((), (receiver, sender), |(mut receiver, sender)| {
                drop(sender);
                // SAFETY: no preconditions.
                unsafe { libc::alarm(3) };
                match form(&mut receiver) {
                    Err(RecvError::Cut | RecvError::Disconnected) => 0,
                    _ => 1,
                }
            });
            assert_eq!(child.wait().code(), Some(0), "{name}, when the sender is gone, with a bell unread: {unread}");
        }
    }
}

// --- what a killed sender leaves behind ----------------------------------------------------------------

/// A message that was published, with nobody left to ring the bell, while a silent copy of the sending end lives.
#[test]
fn a_message_that_nobody_announced_is_found_by_a_parked_receiver() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    let (mut receiver, _sender, memory) = Mapping::simplex(16 << 10);
    let found = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            // By then, the receiver is parked.
            std::thread::sleep(Duration::from_millis(40));
            write_record(&memory, 0, DATA, 8, &[42]);
            Instant::now()
        });
        let message = receiver.recv_bytes_timeout(Duration::from_secs(10)).expect("it is there");
        assert_eq!(message, 42_u64.to_ne_bytes());
        Instant::now().saturating_duration_since(writer.join().unwrap())
    });
    println!("a message that nobody announced was found after {found:.1?}");
    assert!(found < Duration::from_secs(3), "it took {found:?}");
}

/// The stores of a send, up to the one at which its process was killed; then a copy of the end sends on.
#[test]
fn a_send_cut_off_at_any_of_its_stores_leaves_a_whole_message_or_none() {
    let _alone = alone();
    let _watchdog = watchdog(30);
    for stores in 0..=4 {
        for (capacity, long_first) in [(4096, false), (4096, true), (16 << 10, false), (16 << 10, true)] {
            let (mut receiver, mut sender, memory) = Mapping::simplex(capacity);
            sender.send_bytes(b"before").unwrap();
            let (at, next) = (16, 16 + 8 + 16);
            assert_eq!(memory.control(TAIL).load(Ordering::SeqCst), at);
            if stores > 0 {
                // Payload, not published: of no consequence.
                memory.word(RINGS_AT + at as usize + 8).store(u64::MAX, Ordering::SeqCst);
                memory.word(RINGS_AT + at as usize + 16).store(u64::MAX, Ordering::SeqCst);
            }
            if stores > 1 {
                memory.control(BEGUN).store(next, Ordering::SeqCst);
            }
            if stores > 2 {
                memory.word(RINGS_AT + next as usize).store(0, Ordering::SeqCst);
            }
            if stores > 3 {
                memory.word(RINGS_AT + at as usize).store(DATA << 32 | 16, Ordering::SeqCst);
            }
            let receive_what_was_out = |receiver: &mut Receiver| {
                assert_eq!(receiver.recv_bytes().unwrap(), b"before");
                if stores > 3 {
                    assert_eq!(receiver.recv_bytes().unwrap(), [0xff; 16], "the message was out");
                }
            };
            // The copy of the end that lives on. First it may send more than a record holds, without waiting.
            if long_first {
                receive_what_was_out(&mut receiver);
                assert_eq!((sender.fill(), receiver.fill()), (0, 0), "after {stores} stores");
                let long = vec![7; capacity / 2];
                sender.try_send_bytes(&long).unwrap();
                assert_eq!(receiver.try_recv_bytes().unwrap(), long, "after {stores} stores");
            }
            for i in 0..2_000_u32 {
                sender.send_bytes(&i.to_le_bytes()).unwrap();
                if i == 0 && !long_first {
                    receive_what_was_out(&mut receiver);
                }
                assert_eq!(receiver.recv_bytes().unwrap(), i.to_le_bytes(), "after {stores} stores");
            }
        }
    }
}

// --- a peer that does all that at random -----------------------------------------------------------------

/// Rewrites whatever it likes, for a while; in most rounds only one sort of word, so that a pipe lives long enough to see more.
fn flip(memory: &Mapping, random: &mut Random, round: u64, until: Instant) {
    let capacity = memory.len - RINGS_AT;
    let kinds = [DATA, 0x5250_0002, FIRST, MORE, 0x5250_0005, END, DATA, FIRST];
    while Instant::now() < until {
        let near = |word: &AtomicU64, random: &mut Random| {
            let step = (random.below(64) * 8).wrapping_sub(256);
            word.store(word.load(Ordering::Relaxed).wrapping_add(step), Ordering::Relaxed);
        };
        let value = random.next();
        let what = match round % 5 {
            0 => random.below(12),
            1 => 2,
            2 => 4,
            3 => 8,
            _ => 11,
        };
        // With rests, for honest traffic in between.
        if random.below(8) == 0 {
            std::thread::sleep(Duration::from_micros(random.below(100)));
        }
        match what {
            0 => memory.word(random.below(512) as usize * 8).store(value, Ordering::Relaxed),
            1 => memory.control([TAIL, BEGUN, LIMIT, HEAD][random.below(4) as usize]).store(value, Ordering::Relaxed),
            2..=3 => near(memory.control([TAIL, BEGUN, LIMIT, HEAD][random.below(4) as usize]), random),
            4 => memory.control([NOT_EMPTY, NOT_FULL][random.below(2) as usize]).store(value, Ordering::Relaxed),
            5..=7 => {
                // A header where the receiver, or the sender, is about to look.
                let cursor = memory.control(if random.below(2) == 0 { HEAD } else { TAIL }).load(Ordering::Relaxed);
                let at = RINGS_AT + (cursor as usize & (capacity - 1) & !7);
                let len = [0, 8, 16, 100, 4000, 1 << 20, 0xffff_ffff][random.below(7) as usize];
                memory.word(at).store(kinds[random.below(8) as usize] << 32 | len, Ordering::Relaxed);
                if at + 16 <= memory.len {
                    let totals = [0, 1000, 1 << 20, 1 << 40, 1 << 62, u64::MAX];
                    memory.word(at + 8).store(totals[random.below(6) as usize], Ordering::Relaxed);
                }
            }
            8..=9 => {
                memory.word(RINGS_AT + random.below(capacity as u64 / 8) as usize * 8).store(value, Ordering::Relaxed)
            }
            10 => (0..capacity / 8).for_each(|i| memory.word(RINGS_AT + 8 * i).store(0, Ordering::Relaxed)),
            _ => {
                // The header of the next record, with a length that is wrong but might be right.
                let head = memory.control(HEAD).load(Ordering::Relaxed);
                let header = memory.word(RINGS_AT + (head as usize & (capacity - 1) & !7));
                let old = header.load(Ordering::Relaxed);
                if old != 0 {
                    let new = old & !0xfff | random.below(0x1000);
                    let _ = header.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
                }
            }
        }
    }
}

/// What an operation may take beyond its deadline on a busy machine.
const SLACK: Duration = Duration::from_secs(3);

/// One operation on a sender; false if it is of no further use.
fn send_something(sender: &mut Sender, random: &mut Random, script: &Script) -> bool {
    let message = script.message(random.below(1000));
    let timeout = Duration::from_micros(random.below(2_000));
    let result = match random.below(6) {
        0 => sender.try_send_bytes(message),
        1 => sender.send_bytes_timeout(message, timeout),
        2 => sender.send_vectored_timeout(&[IoSlice::new(message), IoSlice::new(b"tail")], timeout),
        3 => sender.try_reserve(message.len()).and_then(|mut guard| {
            guard.write(message);
            guard.commit()
        }),
        4 => sender.reserve_timeout(message.len() % 1000, timeout).and_then(|guard| guard.commit()),
        _ => {
            assert!(sender.fill() <= sender.capacity());
            assert!(!format!("{sender:?}").is_empty());
            Ok(())
        }
    };
    !matches!(result, Err(SendError::Disconnected))
}

/// One operation on a receiver; false if it is of no further use.
fn receive_something(receiver: &mut Receiver, random: &mut Random) -> bool {
    let timeout = Duration::from_micros(random.below(2_000));
    let mut buf = [0; 500];
    let result = match random.below(9) {
        0 => receiver.try_recv_bytes().map(drop),
        1 => receiver.recv_bytes_timeout(timeout).map(drop),
        2 => receiver.recv_bytes_max_timeout(1 << 20, timeout).map(drop),
        3 => match receiver.recv_bytes_into_timeout(&mut buf, 100, timeout) {
            Err(RecvIntoError::Recv(e)) => Err(e),
            _ => Ok(()),
        },
        4 => receiver.recv_guard_timeout(timeout).map(|guard| assert_eq!(guard.to_vec().len(), guard.len())),
        5 => receiver.poll(Some(timeout)).map(drop),
        6 => receiver.recv_end_timeout::<Connection>(timeout).map(drop),
        7 => receiver.try_iter().take(10).filter_map(Result::err).next().map_or(Ok(()), Err),
        _ => {
            assert!(receiver.fill() <= receiver.capacity());
            assert!(!format!("{receiver:?}").is_empty());
            assert!(receiver.as_fd().as_raw_fd() >= 0);
            Ok(())
        }
    };
    !matches!(result, Err(RecvError::Ended | RecvError::Disconnected))
}

#[test]
fn a_peer_that_rewrites_the_shared_memory_breaks_nothing_else() {
    const ROUNDS: u64 = 100;
    let _alone = alone();
    let _watchdog = watchdog(120);
    let script = Script::mixed(11, 16 << 10);
    let mut random = Random::new(11);
    let (mut operations, mut slowest) = (0, Duration::ZERO);
    let largest = largest_allocation(|| {
        for round in 0..ROUNDS {
            let (receiver, sender, memory) = Mapping::simplex(16 << 10);
            let until = Instant::now() + Duration::from_millis(40);
            let seed = random.next();
            let (flipper, (receiver, sender, memory)) =
                fork_copy((receiver, sender, memory), |(receiver, sender, memory)| {
                    drop((receiver, sender));
                    flip(&memory, &mut Random::new(seed), round, until);
                    0
                });
            // The ends in turn, so that the one gets what the other makes of the memory.
            let (mut receiver, mut sender) = (receiver, sender);
            let (mut receives, mut sends) = (true, true);
            while Instant::now() < until && (receives || sends) {
                let start = Instant::now();
                if random.below(2) == 0 {
                    sends = sends && send_something(&mut sender, &mut random, &script);
                } else {
                    receives = receives && receive_something(&mut receiver, &mut random);
                }
                slowest = slowest.max(start.elapsed());
                operations += 1;
                assert!(slowest < SLACK, "an operation of at most 2 ms took {slowest:?} in round {round}");
            }
            assert_eq!(flipper.wait().code(), Some(0));
            drop(memory);
        }
    });
    println!(
        "{operations} operations on memory that changes, the slowest took {slowest:.1?}, largest allocation {largest}"
    );
    assert!(operations > 10 * ROUNDS, "only {operations} operations, so little was shown");
    assert!(largest < 1 << 20, "a rewritten length allocated {largest} bytes");
}

#[test]
fn holes_punched_into_the_ring_do_no_more_than_spoil_the_pipe() {
    const ROUNDS: u64 = 30;
    let _alone = alone();
    let _watchdog = watchdog(120);
    let script = Script::mixed(12, 16 << 10);
    let mut random = Random::new(12);
    let (mut messages, mut slowest) = (0, Duration::ZERO);
    for round in 0..ROUNDS {
        let (receiver, sender, memory) = Mapping::simplex(16 << 10);
        let until = Instant::now() + Duration::from_millis(60);
        let seed = random.next();
        let (sending, receiver) = fork_split(receiver, sender, |mut sender| {
            let mut random = Random::new(seed);
            while Instant::now() < until && send_something(&mut sender, &mut random, &script) {}
            0
        });
        let (punching, (mut receiver, memory)) = fork_copy((receiver, memory), |(receiver, memory)| {
            drop(receiver);
            let mut random = Random::new(seed);
            while Instant::now() < until {
                // The first page holds header and cursors, the others the ring.
                let page = if random.below(40) == 0 { 0 } else { 1 + random.below(4) as usize };
                memory.punch(4096 * page, 4096);
                std::thread::sleep(Duration::from_micros(random.below(3_000)));
            }
            0
        });
        while Instant::now() < until {
            let start = Instant::now();
            match receiver.recv_bytes_timeout(Duration::from_millis(2)) {
                Ok(_) => messages += 1,
                Err(RecvError::Ended | RecvError::Disconnected) => break,
                Err(_) => {}
            }
            slowest = slowest.max(start.elapsed());
            assert!(slowest < SLACK, "a receive of at most 2 ms took {slowest:?} in round {round}");
        }
        drop(receiver);
        assert_eq!(sending.wait().code(), Some(0));
        assert_eq!(punching.wait().code(), Some(0));
        drop(memory);
    }
    println!("{messages} messages between holes, the slowest receive took {slowest:.1?}");
    assert!(messages > ROUNDS, "only {messages} messages, so little was shown");
}
