//! What does a bridge cost, beside a plain TCP connection and beside Zenoh itself? One way, and there and back, over the loopback.
//!
//! ```sh
//! cargo bench -p ringpipe-bridge -- --cuts 1000     # how long does a round trip take whose line is cut?
//! cargo bench -p ringpipe-bridge                    # add `-- --quick` for a look, `--size BYTES` for one size, `--set PATH=VALUE` for one of Zenoh's settings
//! ```
//!
//! Two processes. Messages go from the second to the first: by TCP with a length of four bytes in front, one write for each message, read through a buffer of 64 KiB; by Zenoh's put and subscribe,
//! blocking, with its own batching; and through a pipe whose ends are in the two processes, with a bridge in each. All take turns in short rounds; every length is checked. Printed are medians,
//! and of the ratios to TCP the range as well; and the processor time that both processes took together for a megabyte, which says more where others are at work too.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ringpipe::{Batch, Connection, Listener, connect};
use ringpipe_bridge::{Bridge, Builder, zenoh_runtime};
use zenoh::qos::CongestionControl;
use zenoh::{Session, Wait};

/// That of the tool.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const SIZES: [usize; 6] = [64, 1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
const WAYS: [&str; 3] = ["tcp", "zenoh", "bridge"];
const SECOND: &str = "--second-process";
const ROUND_TRIPS: usize = 1000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(threads) = zenoh_runtime() {
        // As the tool does. SAFETY: there is no other thread yet.
        unsafe { std::env::set_var("ZENOH_RUNTIME", threads) };
    }
    let mut settings = Vec::new();
    for pair in arguments.windows(2).filter(|pair| pair[0] == "--set") {
        let (path, value) = pair[1].split_once('=').ok_or("--set needs a path, `=` and a value")?;
        settings.push((path.to_owned(), value.to_owned()));
    }
    if let Some(at) = arguments.iter().position(|argument| argument == SECOND) {
        return second(&arguments[at + 1..], &settings);
    }
    let mut sizes = SIZES.to_vec();
    if let Some(at) = arguments.iter().position(|argument| argument == "--size") {
        sizes = vec![arguments.get(at + 1).ok_or("--size needs a number of bytes")?.parse()?];
    }
    if let Some(at) = arguments.iter().position(|argument| argument == "--cuts") {
        return cuts(arguments.get(at + 1).ok_or("--cuts needs a number")?.parse()?, &settings);
    }
    first(arguments.iter().any(|argument| argument == "--quick"), &sizes, &settings)
}

/// Paths of Zenoh's settings, and their values.
type Settings = [(String, String)];

fn port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Zenoh as a bridge has it, and nothing around it.
fn zenoh(listen: Option<u16>, connect: Option<u16>, settings: &Settings) -> Result<Session> {
    let mut config = zenoh::Config::default();
    let endpoints = |port: Option<u16>| format!("{:?}", port.map(|port| format!("tcp/127.0.0.1:{port}")).as_slice());
    for (path, value) in [
        ("mode", "\"peer\"".to_owned()),
        ("scouting/multicast/enabled", "false".to_owned()),
        ("scouting/gossip/enabled", "false".to_owned()),
        ("transport/link/tx/queue/size/data", "16".to_owned()),
        ("listen/endpoints", endpoints(listen)),
        ("connect/endpoints", endpoints(connect)),
    ] {
        config.insert_json5(path, &value)?;
    }
    for (path, value) in settings {
        config.insert_json5(path, value)?;
    }
    zenoh::open(config).wait()
}

/// The second process sends what it is told to, and answers round trips.
struct Second {
    child: Child,
    orders: ChildStdin,
    said: BufReader<std::process::ChildStdout>,
}

impl Second {
    fn order(&mut self, way: &str, size: usize, count: usize) -> Result<()> {
        writeln!(self.orders, "{way} {size} {count}")?;
        Ok(self.orders.flush()?)
    }
}

/// The first process's ends.
struct Ends {
    tcp: BufReader<TcpStream>,
    zenoh: Session,
    arrived: mpsc::Receiver<usize>,
    pipe: Connection,
    _bridge: Bridge,
}

/// A bridge with these settings.
fn builder(settings: &Settings) -> Builder {
    settings.iter().fold(Builder::new(), |builder, (path, value)| builder.set(path, value))
}

/// Seconds of processor time that two processes have taken, in steps of 10 ms: this one, and another.
fn processor_time(other: u32) -> Result<f64> {
    let mut ticks = 0;
    for pid in [std::process::id(), other] {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Behind the name, which may have blanks: its own and the kernel's time are the 12th and 13th field.
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
        for field in fields {
            ticks += field.parse::<u64>()?;
        }
    }
    Ok(ticks as f64 / 100.0)
}

fn first(quick: bool, sizes: &[usize], settings: &Settings) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("ringpipe-wire-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let (zenoh_port, bridge_port) = (port()?, port()?);
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let mut listener = Listener::bind(directory.join("home"))?;
    let bridge = builder(settings).listen(format!("tcp/127.0.0.1:{bridge_port}")).open()?;
    bridge.export(directory.join("home"), "bench")?;
    let session = zenoh(Some(zenoh_port), None, settings)?;
    let (arrive, arrived) = mpsc::channel();
    session
        .declare_subscriber("bench/there")
        .callback(move |sample| {
            // It is gone at the end only.
            let _ = arrive.send(sample.payload().len());
        })
        .background()
        .wait()?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(settings.iter().flat_map(|(path, value)| ["--set".to_owned(), format!("{path}={value}")]))
        .args([SECOND, &tcp.local_addr()?.port().to_string(), &zenoh_port.to_string(), &bridge_port.to_string()])
        .arg(directory.join("away"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (orders, said) = (child.stdin.take().expect("it is piped"), child.stdout.take().expect("it is piped"));
    let mut second = Second { child, orders, said: BufReader::new(said) };
    let (stream, _) = tcp.accept()?;
    stream.set_nodelay(true)?;
    let (pipe, _) = listener.accept_timeout(Duration::from_secs(30))?;
    let mut ends =
        Ends { tcp: BufReader::with_capacity(64 << 10, stream), zenoh: session, arrived, pipe, _bridge: bridge };
    // The second has found everybody.
    second.said.read_line(&mut String::new())?;

    let (rounds, time) = if quick { (3, 0.03) } else { (15, 0.3) };
    println!(
        "One way, MB/s, processor time in ms for a MB; in brackets the ratio to TCP, median and range of {rounds} rounds\n"
    );
    println!("{:>8} {:>12} {:>34} {:>34}", "bytes", "tcp", "zenoh", "bridge");
    for &size in sizes {
        let mut counts: BTreeMap<&str, usize> = WAYS.map(|way| (way, 200)).into();
        let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut spent: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for round in 0..rounds + 2 {
            for way in WAYS {
                let count = counts[way];
                let before = processor_time(second.child.id())?;
                let rate = one_way(&mut ends, &mut second, way, size, count)?;
                counts.insert(way, ((rate * time) as usize).clamp(20, 3_000_000));
                // The first rounds find out how many messages make a round.
                if round >= 2 {
                    rates.entry(way).or_default().push(rate);
                    let (time, megabytes) = spent.entry(way).or_default();
                    *time += processor_time(second.child.id())? - before;
                    *megabytes += (count * size) as f64 / 1e6;
                }
            }
        }
        print!("{size:>8}");
        for way in WAYS {
            let ratios: Vec<f64> = rates[way].iter().zip(&rates["tcp"]).map(|(rate, tcp)| rate / tcp).collect();
            let rate = median(&rates[way]);
            let (time, megabytes) = spent[way];
            let text = format!("{:.0}, {:.2} ms", rate * size as f64 / 1e6, 1e3 * time / megabytes);
            if way == "tcp" {
                print!(" {text:>18}");
            } else {
                let (low, high) = range(&ratios);
                print!(" {:>34}", format!("{text} [{:.2}, {low:.2}-{high:.2}]", median(&ratios)));
            }
        }
        println!();
    }

    println!("\nThere and back, 64 bytes, microseconds: median of the rounds' medians\n");
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        for way in WAYS {
            times.entry(way).or_default().push(there_and_back(&mut ends, &mut second, way)?);
        }
    }
    for way in WAYS {
        let (low, high) = range(&times[way]);
        println!("{way:>8} {:>8.1}  ({low:.1}-{high:.1})", median(&times[way]));
    }
    let added: Vec<f64> = times["bridge"].iter().zip(&times["zenoh"]).map(|(bridge, zenoh)| bridge - zenoh).collect();
    println!("the bridge adds {:.1} to zenoh's", median(&added));
    drop(second.orders);
    second.child.wait()?;
    Ok(std::fs::remove_dir_all(directory)?)
}

/// Messages a second.
fn one_way(ends: &mut Ends, second: &mut Second, way: &str, size: usize, count: usize) -> Result<f64> {
    let mut buffer = vec![0; size];
    let start = Instant::now();
    second.order(way, size, count)?;
    match way {
        "tcp" => {
            for _ in 0..count {
                assert_eq!(read_frame(&mut ends.tcp, &mut buffer)?, size);
                black_box(&buffer);
            }
        }
        "zenoh" => {
            for _ in 0..count {
                assert_eq!(ends.arrived.recv()?, size);
            }
        }
        _ => {
            let (mut batch, mut received) = (Batch::new(), 0);
            while received < count {
                ends.pipe.receiver_mut().recv_batch(&mut batch)?;
                assert!(batch.iter().all(|message| message.len() == size));
                received += batch.len();
            }
            assert_eq!(received, count);
        }
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Messages go there and back while the line is cut three times a second, each time for up to 30 ms. All of this process.
fn cuts(count: u32, settings: &Settings) -> Result<()> {
    let (names, behind) = (support::Names::new(), support::port());
    let mut listener = Listener::bind(names.of("home"))?;
    let home = builder(settings).listen(support::endpoint(behind)).open()?;
    home.export(names.of("home"), "bench")?;
    let line = support::Line::to(behind);
    let away = builder(settings).connect(support::endpoint(line.port)).open()?;
    away.import(names.of("away"), "bench")?;
    let mut near: Connection = connect(names.of("away"), support::LONG)?;
    let (mut far, _) = listener.accept_timeout(support::LONG)?;
    let answering = std::thread::spawn(move || {
        while let Ok(message) = far.recv_bytes() {
            if far.send_bytes(&message).is_err() {
                return;
            }
        }
    });
    let mut times = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let cutting = scope.spawn(|| {
            for number in 0..u64::from(count) {
                // Not in step with what bridges and Zenoh do at times of their own.
                std::thread::sleep(Duration::from_millis(270 + number * 37 % 100));
                line.cut();
                std::thread::sleep(Duration::from_millis(number * 17 % 31));
                line.join();
            }
        });
        for number in 0.. {
            let (start, message) = (Instant::now(), support::message_of(number, 64));
            near.send_bytes(&message)?;
            assert!(near.recv_bytes()? == message, "a wrong message");
            times.push(start.elapsed().as_secs_f64() * 1e3);
            if cutting.is_finished() {
                break;
            }
        }
        Ok(())
    })?;
    drop(near);
    answering.join().expect("it only answers");
    let mut long: Vec<f64> = times.iter().copied().filter(|&time| time > 20.0).collect();
    long.sort_by(f64::total_cmp);
    let of = |part: f64| long[((long.len() - 1) as f64 * part) as usize];
    println!(
        "{count} cuts, {} round trips of 64 bytes, median {:.3} ms, none lost or doubled",
        times.len(),
        median(&times)
    );
    if !long.is_empty() {
        let (half, most, all) = (of(0.5), of(0.99), of(1.0));
        println!(
            "{} took more than 20 ms: half of them up to {half:.0} ms, 99 % up to {most:.0}, all up to {all:.0}",
            long.len()
        );
    }
    Ok(())
}

fn read_frame(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut prefix = [0; 4];
    from.read_exact(&mut prefix)?;
    let len = u32::from_le_bytes(prefix) as usize;
    from.read_exact(&mut buffer[..len])?;
    Ok(len)
}

fn write_frame(to: &mut impl Write, frame: &mut Vec<u8>, message: &[u8]) -> Result<()> {
    frame.clear();
    frame.extend_from_slice(&(message.len() as u32).to_le_bytes());
    frame.extend_from_slice(message);
    Ok(to.write_all(frame)?)
}

/// Microseconds of a round trip that the first process begins.
fn there_and_back(ends: &mut Ends, second: &mut Second, way: &str) -> Result<f64> {
    second.order(&format!("answer-{way}"), 64, ROUND_TRIPS)?;
    let (message, mut buffer, mut frame) = ([7; 64], [0; 64], Vec::new());
    let publisher = ends.zenoh.declare_publisher("bench/back").express(true).wait()?;
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        match way {
            "tcp" => {
                write_frame(ends.tcp.get_mut(), &mut frame, &message)?;
                read_frame(&mut ends.tcp, &mut buffer)?;
            }
            "zenoh" => {
                publisher.put(message).wait()?;
                ends.arrived.recv()?;
            }
            _ => {
                ends.pipe.send_bytes(&message)?;
                ends.pipe.recv_bytes_into(&mut buffer, 0)?;
            }
        }
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&times))
}

fn second(arguments: &[String], settings: &Settings) -> Result<()> {
    let ports: Vec<u16> = arguments[..3].iter().map(|port| Ok(port.parse()?)).collect::<Result<_>>()?;
    let mut tcp = TcpStream::connect(("127.0.0.1", ports[0]))?;
    tcp.set_nodelay(true)?;
    let mut reader = BufReader::new(tcp.try_clone()?);
    let session = zenoh(None, Some(ports[1]), settings)?;
    let (arrive, arrived) = mpsc::channel();
    session
        .declare_subscriber("bench/back")
        .callback(move |_| {
            // As above.
            let _ = arrive.send(());
        })
        .background()
        .wait()?;
    let there = session.declare_publisher("bench/there").congestion_control(CongestionControl::Block).wait()?;
    let at_once = session.declare_publisher("bench/there").express(true).wait()?;
    let bridge = builder(settings).connect(format!("tcp/127.0.0.1:{}", ports[2])).open()?;
    bridge.import(&arguments[3], "bench")?;
    let mut pipe: Connection = connect(&arguments[3], Duration::from_secs(30))?;
    while !there.matching_status().wait()?.matching() {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("ready");
    for order in std::io::stdin().lock().lines() {
        let order = order?;
        let words: Vec<&str> = order.split(' ').collect();
        let (size, count) = (words[1].parse::<usize>()?, words[2].parse::<usize>()?);
        let (message, mut frame) = (vec![7; size], Vec::new());
        match words[0] {
            "tcp" => (0..count).try_for_each(|_| write_frame(&mut tcp, &mut frame, &message))?,
            "zenoh" => (0..count).try_for_each(|_| there.put(&message).wait())?,
            "bridge" => pipe.sender_mut().send_batch((0..count).map(|_| &message))?,
            "answer-tcp" => {
                let mut buffer = vec![0; size];
                for _ in 0..count {
                    read_frame(&mut reader, &mut buffer)?;
                    write_frame(&mut tcp, &mut frame, &message)?;
                }
            }
            "answer-zenoh" => {
                for _ in 0..count {
                    arrived.recv()?;
                    at_once.put(&message).wait()?;
                }
            }
            _ => {
                for _ in 0..count {
                    pipe.recv_bytes()?;
                    pipe.send_bytes(&message)?;
                }
            }
        }
    }
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, 0.0), |(low, high), &value| (low.min(value), high.max(value)))
}
