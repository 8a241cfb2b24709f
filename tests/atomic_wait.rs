//! Why the `atomic-wait` crate is not what a pipe waits with: its futexes are private to a process.
//!
//! A private futex is known to the kernel by the process and the address; a shared one by the page of memory behind the address. So the
//! `wake_all` of one process never finds a `wait` of another, even on the same word of shared memory. (`atomic-wait` has no time-outs
//! either, which is why the child that waits in vain has to be killed.)
//!
//! **If the first test here ever fails, the crate has changed**, and the choice of `rustix`'s futex should be revisited.

mod support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use support::{Child, Shared, alone, fork, watchdog};

/// The words of the shared page: the futex, whether the child is about to wait, and whether it has been woken.
const FUTEX: usize = 0;
const READY: usize = 1;
const AWAKE: usize = 2;

/// Time enough to fall asleep, and for a wake-up to arrive.
const A_WHILE: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(20);

/// The futex itself: a 32-bit half of a shared word.
fn futex(page: &Shared) -> &AtomicU32 {
    let word: *const AtomicU32 = std::ptr::from_ref(page.word(FUTEX)).cast();
    // SAFETY: the first half of a 64-bit atomic: in bounds, aligned, alive as long as the page, and only ever used as this 32-bit one.
    unsafe { &*word }
}

/// `futex(2)` without `FUTEX_PRIVATE_FLAG`; returns what the system call does.
fn shared_futex(word: &AtomicU32, operation: libc::c_int, value: u32) -> libc::c_long {
    let no_timeout = std::ptr::null::<libc::timespec>();
    // SAFETY: the word is alive, and both operations used here take no more than these arguments.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, no_timeout) }
}

/// Starts a child that calls `wait` on the futex while it holds 0, and gives it time to be asleep.
fn sleeper(page: &Shared, wait: impl FnOnce(&AtomicU32)) -> Child {
    let child = fork(|| {
        page.set(READY, 1);
        wait(futex(page));
        page.set(AWAKE, 1);
        0
    });
    page.await_at_least(READY, 1);
    let start = Instant::now();
    while !is_asleep(&child) {
        assert!(start.elapsed() < LIMIT, "the child does not fall asleep");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

/// Whether the child is in an interruptible sleep, which after `READY` only `wait` is.
fn is_asleep(child: &Child) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.pid)).expect("the child is there");
    let state = stat.rsplit(')').next().expect("a name in parentheses").trim_start();
    state.starts_with('S')
}

#[test]
fn atomic_wait_does_not_wake_another_process() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let page = Shared::new();
    let child = sleeper(&page, |word| atomic_wait::wait(word, 0));
    futex(&page).store(1, Ordering::SeqCst);
    for _ in 0..4 {
        atomic_wait::wake_all(futex(&page));
        std::thread::sleep(A_WHILE);
        assert_eq!(page.get(AWAKE), 0, "atomic-wait woke another process: it can be used after all");
        assert!(is_asleep(&child));
    }
    // A shared wake does not reach a private wait: the child is lost.
    assert_eq!(shared_futex(futex(&page), libc::FUTEX_WAKE, i32::MAX as u32), 0);
    std::thread::sleep(A_WHILE);
    assert_eq!(page.get(AWAKE), 0, "a shared wake reached atomic-wait's wait");
    child.kill();
    assert!(child.wait().was_killed());
}

/// The control: nothing else in the set-up keeps the child asleep.
#[test]
fn a_process_shared_futex_wakes_another_process() {
    let _alone = alone();
    let _watchdog = watchdog(60);
    let page = Shared::new();
    let child = sleeper(&page, |word| {
        while word.load(Ordering::SeqCst) == 0 {
            shared_futex(word, libc::FUTEX_WAIT, 0);
        }
    });
    futex(&page).store(1, Ordering::SeqCst);
    assert_eq!(shared_futex(futex(&page), libc::FUTEX_WAKE, i32::MAX as u32), 1, "sleepers woken");
    child.succeeds();
    assert_eq!(page.get(AWAKE), 1);
}

/// The other control: within one process, `atomic-wait` does wake.
#[test]
fn atomic_wait_wakes_its_own_process() {
    let _watchdog = watchdog(60);
    let word = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            while word.load(Ordering::SeqCst) == 0 {
                atomic_wait::wait(&word, 0);
            }
        });
        std::thread::sleep(A_WHILE);
        word.store(1, Ordering::SeqCst);
        atomic_wait::wake_all(&word);
        sleeper.join().expect("the sleeper does not panic");
    });
}
