#![allow(missing_docs)]
use std::time::Instant;
fn main() {
    let cap: usize = std::env::args().nth(1).map_or(1 << 18, |s| s.parse().unwrap());
    fn pin(c: usize) {
        unsafe {
            let mut s: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(c, &mut s);
            libc::sched_setaffinity(0, size_of_val(&s), &s);
        }
    }
    // throughput
    for size in [8usize, 64, 256, 1024, 4096, 65536, 1 << 20] {
        let n = (1usize << 31) / size.max(200);
        let n = n.min(10_000_000);
        let (mut a, mut b) = ringpipe::Builder::new().capacity(cap).pipe().unwrap();
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            drop(a);
            pin(1);
            let mut buf = vec![0u8; size];
            for _ in 0..n {
                b.recv_bytes_into(&mut buf, 0).unwrap();
            }
            b.send_bytes(b"x").unwrap();
            unsafe { libc::_exit(0) }
        }
        pin(0);
        drop(b);
        let msg = vec![7u8; size];
        let t = Instant::now();
        for _ in 0..n {
            a.send_bytes(&msg).unwrap();
        }
        a.recv_bytes().unwrap();
        let e = t.elapsed().as_secs_f64();
        println!("{size}: {:.2} M/s {:.2} GB/s", n as f64 / e / 1e6, (n * size) as f64 / e / 1e9);
        unsafe {
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
    for (spin, size, n) in [(1000u64, 8usize, 1_000_000), (50, 8, 300_000), (0, 8, 20_000), (1000, 65536, 20_000)] {
        let (mut a, mut b) =
            ringpipe::Builder::new().capacity(cap).spin(std::time::Duration::from_micros(spin)).pipe().unwrap();
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            drop(a);
            pin(1);
            let mut buf = vec![0u8; size];
            while let Ok(l) = b.recv_bytes_into(&mut buf, 0) {
                b.send_bytes(&buf[..l]).unwrap();
            }
            unsafe { libc::_exit(0) }
        }
        drop(b);
        let msg = vec![7u8; size];
        let mut buf = vec![0u8; size];
        let t = Instant::now();
        for _ in 0..n {
            a.send_bytes(&msg).unwrap();
            a.recv_bytes_into(&mut buf, 0).unwrap();
        }
        let e = t.elapsed().as_secs_f64();
        println!("rtt spin {spin} size {size}: {:.1} ns", e / n as f64 * 1e9);
        drop(a);
        unsafe {
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
}
