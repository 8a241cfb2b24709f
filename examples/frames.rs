//! Frames of a video, drawn by one process and looked at by another, without a copy: the pixels are written into the pipe's shared memory,
//! and read there.
//!
//! ```sh
//! cargo run --release --example frames
//! ```
//!
//! A slice of memory that another process may change is more than Rust's rules allow, so the slices take `unsafe` and a promise: the
//! peer follows the protocol, which leaves a frame alone between `commit` and the end of the guard. Here both processes are this very
//! program, so it can promise that. For any other peer use the safe form, shown for every second frame: it costs one copy of a row.

use std::error::Error;
use std::process::Command;

use ringpipe::{Builder, Connection, End, ReadGuard, WriteGuard};

const WIDTH: usize = 640;
const HEIGHT: usize = 480;
const FRAMES: usize = 60;

/// The picture: a gradient that moves by a pixel a frame.
fn pixel(frame: usize, x: usize, y: usize) -> u8 {
    (x + y + frame) as u8
}

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("viewer") => viewer(),
        _ => camera(),
    }
}

fn camera() -> Result<(), Box<dyn Error>> {
    // A reservation is at most a quarter of the ring, less 8 bytes; this rounds up to a power of two and holds several frames.
    let (mut conn, theirs) = Builder::new().capacity(4 * (WIDTH * HEIGHT + 8)).pipe()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("viewer");
    theirs.inherit(&mut command, "FRAMES_PIPE");
    let mut viewer = command.spawn()?;
    drop(command);

    for frame in 0..FRAMES {
        // Waits while the viewer is behind by a whole ring. Nothing is sent before `commit`.
        let mut slot = conn.reserve(WIDTH * HEIGHT)?;
        if frame % 2 == 0 {
            draw_in_place(&mut slot, frame)
        } else {
            draw_by_rows(&mut slot, frame)
        }
        slot.commit()?;
    }
    let mut total = 0;
    for frame in 0..FRAMES {
        let sum: u64 = conn.recv()?;
        let expected: u64 = (0..WIDTH * HEIGHT).map(|i| u64::from(pixel(frame, i % WIDTH, i / WIDTH))).sum();
        if sum != expected {
            return Err(format!("frame {frame} arrived damaged: its pixels add up to {sum}, not {expected}").into());
        }
        total += sum;
    }
    println!("camera: {FRAMES} frames of {WIDTH} × {HEIGHT} arrived whole");
    println!("camera: the mean brightness is {:.1}", total as f64 / (FRAMES * WIDTH * HEIGHT) as f64);
    conn.close();
    if viewer.wait()?.success() { Ok(()) } else { Err("the viewer failed".into()) }
}

fn draw_in_place(slot: &mut WriteGuard<'_>, frame: usize) {
    // SAFETY: the viewer is this program, and does not write to the ring's free part.
    let pixels = unsafe { slot.as_uninit() };
    for (i, place) in pixels.iter_mut().enumerate() {
        place.write(pixel(frame, i % WIDTH, i / WIDTH));
    }
    slot.assume_written(WIDTH * HEIGHT);
}

fn draw_by_rows(slot: &mut WriteGuard<'_>, frame: usize) {
    for y in 0..HEIGHT {
        let row: [u8; WIDTH] = std::array::from_fn(|x| pixel(frame, x, y));
        slot.write(&row);
    }
}

fn viewer() -> Result<(), Box<dyn Error>> {
    let mut conn = Connection::from_env("FRAMES_PIPE")?;
    for frame in 0..FRAMES {
        // The frame's room in the ring is given back when the guard goes: do not hold it longer than needed.
        let guard = conn.recv_guard()?;
        let sum = if frame % 2 == 0 { sum_in_place(&guard) } else { sum_by_rows(&guard) };
        drop(guard);
        conn.send(&sum)?;
    }
    Ok(())
}

fn sum_in_place(guard: &ReadGuard<'_>) -> u64 {
    // SAFETY: the camera is this program, and does not touch a frame after it has committed it.
    let pixels = unsafe { guard.as_slice() };
    pixels.iter().map(|&p| u64::from(p)).sum()
}

fn sum_by_rows(guard: &ReadGuard<'_>) -> u64 {
    let mut row = [0; WIDTH];
    let mut sum = 0;
    for y in 0..HEIGHT {
        guard.copy_to(y * WIDTH, &mut row);
        sum += row.iter().map(|&p| u64::from(p)).sum::<u64>();
    }
    sum
}
