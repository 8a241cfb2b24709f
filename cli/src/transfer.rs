//! `ringpipe send`, `recv` and `queue`: a stream of bytes, or of messages, from one process to another by a name.
//!
//! Between one sender and one receiver, the receiver listens: it is the one that has to be there. Once it has written everything it says so, so that the
//! sender's success means that nothing was lost. A queue has an owner of its own, since senders and receivers come and go.
//!
//! A stream without messages of its own is read right into the ring and written right out of it, so that each byte is copied twice: by the kernel, which
//! has to anyway. A pipe at either end is made as large as the kernel allows, or the process on its other side would be woken for every 64 KiB.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use ringpipe::{
    AcceptError, Builder, ConnectError, Connection, ListenError, Listener, RecvError, SendError, Sender, WaitStrategy,
    connect, mpmc, simplex,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::progress::Progress;
use crate::soak::clock;

/// What `--help` says under the options of each.
pub(crate) const CODES: &str = "\
Exit codes: 0 at the end of the stream; 1 for other errors; 2 for bad arguments, names included; 3 if the other side went away before the \
end, killed or not; 4 if the time was over before it came.";

const GONE: u8 = 3;
const LATE: u8 = 4;
/// Bytes of a piece of a stream, at most: a quarter of the ring.
const PIECE: usize = 1 << 20;
/// Bytes of the buffer that messages are read from.
const BUFFER: usize = 64 << 10;
/// Bytes of what small messages are gathered in before they are written. Longer ones are written as they are.
const GATHERED: usize = 16 << 10;
/// Bytes of a ring: several pieces, so that both sides can be at work at the same time.
const RING: usize = 4 << 20;
/// Bytes of the pipes at either end: what the kernel allows everybody.
const KERNEL_PIPE: usize = 1 << 20;
/// What a receiver says when it has written everything.
const WRITTEN: &[u8] = b"written";
/// What a sender says first, with what its stream consists of.
const GREETING: &str = "ringpipe send";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A word, or the path of a socket (with a `/` in it)
    name: String,
    /// Each line is a message
    #[arg(long, conflicts_with = "frames")]
    lines: bool,
    /// Each message has its length in front, in 4 bytes, the lowest first
    #[arg(long)]
    frames: bool,
    /// Join the queue that `ringpipe queue NAME` keeps
    #[arg(long)]
    shared: bool,
    /// How long to wait for the other side, such as 30s [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = clock::parse)]
    timeout: Option<Duration>,
    /// Show no progress, which is shown where standard error is a terminal
    #[arg(short, long)]
    quiet: bool,
}

#[derive(clap::Args)]
pub(crate) struct QueueArgs {
    /// A word, or the path of a socket (with a `/` in it)
    name: String,
}

/// Says what is wrong, to whoever can hear it.
pub(crate) fn complain(what: &impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "ringpipe: {what}");
}

/// Why a transfer did not come to its end.
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn report(self) -> ExitCode {
        complain(&self.message);
        self.code.into()
    }

    pub(crate) fn new(code: u8, message: impl ToString) -> Failure {
        Failure { code, message: message.to_string() }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        // Out of what reads the input.
        e.downcast::<SendError>().map_or_else(|e| Failure::new(1, e), Failure::from)
    }
}

impl From<ListenError> for Failure {
    fn from(e: ListenError) -> Failure {
        Failure::new(if matches!(e, ListenError::Name(_)) { 2 } else { 1 }, e)
    }
}

impl From<AcceptError> for Failure {
    fn from(e: AcceptError) -> Failure {
        Failure::new(if matches!(e, AcceptError::TimedOut) { LATE } else { 1 }, e)
    }
}

impl From<ConnectError> for Failure {
    fn from(e: ConnectError) -> Failure {
        let code = match e {
            ConnectError::Name(_) => 2,
            ConnectError::TimedOut { .. } => LATE,
            _ => 1,
        };
        Failure::new(code, e)
    }
}

impl From<SendError> for Failure {
    fn from(e: SendError) -> Failure {
        Failure::new(if matches!(e, SendError::Disconnected) { GONE } else { 1 }, e)
    }
}

impl From<RecvError> for Failure {
    fn from(e: RecvError) -> Failure {
        Failure::new(if matches!(e, RecvError::Disconnected | RecvError::Cut) { GONE } else { 1 }, e)
    }
}

impl Args {
    fn progress(&self) -> Progress {
        Progress::start(self.quiet)
    }

    fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(Duration::MAX)
    }

    /// What a stream consists of: the option for it.
    fn unit(&self) -> &'static str {
        match (self.lines, self.frames) {
            (true, _) => " --lines",
            (_, true) => " --frames",
            _ => "",
        }
    }

    /// The first message of a transfer between two, since what one side takes for messages must not be a mere stream to the other.
    fn greeting(&self) -> String {
        format!("{GREETING}{}", self.unit())
    }

    /// Whether the other side's greeting is the one wanted.
    fn check_greeting(&self, greeting: &[u8]) -> Result<(), Failure> {
        let theirs = std::str::from_utf8(greeting).ok().and_then(|greeting| greeting.strip_prefix(GREETING));
        match theirs {
            Some(theirs) if theirs == self.unit() => Ok(()),
            Some(theirs @ ("" | " --lines" | " --frames")) => Err(Failure::new(
                1,
                format!("the other side is `ringpipe send{theirs}`, and this is `ringpipe recv{}`", self.unit()),
            )),
            _ => Err(Failure::new(1, "what sends there is no `ringpipe send`")),
        }
    }
}

pub(crate) fn send(args: &Args) -> Result<(), Failure> {
    if args.shared {
        let sender: mpmc::Sender = connect(&args.name, args.timeout())?;
        let (input, progress) = (Input::new(None)?, args.progress());
        return each_message(args, input, &progress, |message| sender.send_bytes(message));
    }
    let mut connection: Connection = connect(&args.name, args.timeout())?;
    connection.send_bytes(args.greeting().as_bytes())?;
    let (input, progress) = (Input::new(Some(connection.sender()))?, args.progress());
    if args.unit().is_empty() {
        enlarge(&input.file);
        send_stream(&input, &progress, connection.sender_mut())?;
    } else {
        each_message(args, input, &progress, |message| connection.send_bytes(message))?;
    }
    drop(progress);
    // What no message looks like: so whoever receives knows that this was all.
    let (end, _) = simplex().map_err(io::Error::from)?;
    connection.send_end(end).map_err(|e| match e.error.kind() {
        io::ErrorKind::BrokenPipe => Failure::from(SendError::Disconnected),
        _ => Failure::from(e.error),
    })?;
    let (sender, mut receiver) = connection.split();
    drop(sender);
    match receiver.recv_bytes()? {
        said if said == WRITTEN => Ok(()),
        _ => Err(Failure::new(1, "what receives there is no `ringpipe recv`")),
    }
}

/// A file of its own, without the buffer that `std` puts in front.
fn own(stream: impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

/// Makes a pipe larger, unless it is large already. What is no pipe, or the limit of a user's pipes, is no reason to stop.
fn enlarge(pipe: &File) {
    if rustix::pipe::fcntl_getpipe_size(pipe).is_ok_and(|bytes| bytes < KERNEL_PIPE) {
        let _ = rustix::pipe::fcntl_setpipe_size(pipe, KERNEL_PIPE);
    }
}

/// Waits for what a file is polled for, or until the other side of a pipe is gone; whether it is.
fn await_file(file: &File, what: PollFlags, peer: Option<&OwnedFd>) -> io::Result<bool> {
    loop {
        let mut fds = vec![PollFd::new(file, what)];
        // A socket whose other end is closed is hung up, whether or not that was asked for.
        fds.extend(peer.map(|peer| PollFd::new(peer, PollFlags::empty())));
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => return Ok(fds.get(1).is_some_and(|peer| !peer.revents().is_empty())),
        }
    }
}

/// Standard input. It may be one that does not wait by itself (somebody else may have made it so), and is not waited for any longer when there is nobody left to send it to.
struct Input {
    file: File,
    /// What tells that the receiver is gone.
    peer: Option<OwnedFd>,
}

impl Input {
    fn new(sender: Option<&Sender>) -> io::Result<Input> {
        let peer = sender.map(|sender| sender.as_fd().try_clone_to_owned()).transpose()?;
        Ok(Input { file: own(io::stdin())?, peer })
    }

    fn wait(&self) -> io::Result<()> {
        match await_file(&self.file, PollFlags::IN, self.peer.as_ref())? {
            true => Err(io::Error::other(SendError::Disconnected)),
            false => Ok(()),
        }
    }
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait()?;
            match self.file.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

/// Standard output, which may not wait by itself either.
struct Output(File);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => drop(await_file(&self.0, PollFlags::OUT, None)?),
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Reads what there is into the ring, piece by piece, until the end.
fn send_stream(input: &Input, progress: &Progress, sender: &mut Sender) -> Result<(), Failure> {
    let piece = PIECE.min(sender.max_reserve());
    loop {
        input.wait()?;
        let mut room = sender.reserve(piece)?;
        // SAFETY: the other side is a process of this user's, which `connect` has made sure of, and could do anything to this one anyway.
        let into = unsafe { room.as_uninit() };
        let read = match rustix::io::read(&input.file, into) {
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(e) => return Err(io::Error::from(e).into()),
            Ok((read, _)) => read.len(),
        };
        if read == 0 {
            return Ok(());
        }
        room.assume_written(read);
        room.commit()?;
        progress.add(read);
    }
}

fn each_message(
    args: &Args,
    input: Input,
    progress: &Progress,
    mut send: impl FnMut(&[u8]) -> Result<(), SendError>,
) -> Result<(), Failure> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let mut message = Vec::new();
    let mut send = |message: &[u8]| {
        send(message)?;
        progress.add(message.len());
        Ok::<(), Failure>(())
    };
    loop {
        message.clear();
        if args.lines {
            if input.read_until(b'\n', &mut message)? == 0 {
                return Ok(());
            }
            send(message.strip_suffix(b"\n").unwrap_or(&message))?;
        } else if args.frames {
            let mut length = Vec::new();
            match input.by_ref().take(4).read_to_end(&mut length)? {
                0 => return Ok(()),
                4 => {}
                _ => return Err(Failure::new(1, "the input ends inside the length of a frame")),
            }
            let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
            if input.by_ref().take(length.into()).read_to_end(&mut message)? < length as usize {
                return Err(Failure::new(1, "the input ends inside a frame"));
            }
            send(&message)?;
        } else {
            let piece = match input.fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                piece => piece?,
            };
            if piece.is_empty() {
                return Ok(());
            }
            send(piece)?;
            let len = piece.len();
            input.consume(len);
        }
    }
}

pub(crate) fn recv(args: &Args) -> Result<(), Failure> {
    let stdout = own(io::stdout())?;
    if args.shared {
        let receiver: mpmc::Receiver = connect(&args.name, args.timeout())?;
        return write_all(
            args,
            &args.progress(),
            // Nothing is gathered: what was taken from the others and not written would be lost if this process is killed.
            &mut BufWriter::with_capacity(0, Output(stdout)),
            |e| matches!(e, RecvError::Disconnected),
            // A copy: in place, a message would keep its room, and all behind it, for as long as it takes to be written.
            |wait, to| {
                let message = if wait { receiver.recv_bytes() } else { receiver.try_recv_bytes() }?;
                Ok(to(&message))
            },
        );
    }
    let mut pipes = Builder::new().capacity(RING);
    if args.unit().is_empty() {
        // A piece takes far longer than a wake-up, and who spins takes a processor from those who fill the pipe at one end or empty that at the other.
        pipes = pipes.wait_strategy(WaitStrategy::Blocking);
    }
    let mut listener = Listener::builder().pipes(pipes).bind(&args.name)?;
    let (connection, _) = listener.accept_timeout(args.timeout())?;
    // The name is for this one transfer: the next one has to wait for the next `recv`.
    drop(listener);
    let (mut sender, mut receiver) = connection.split();
    args.check_greeting(&receiver.recv_bytes()?)?;
    if args.unit().is_empty() {
        enlarge(&stdout);
    }
    write_all(
        args,
        &args.progress(),
        &mut BufWriter::with_capacity(GATHERED, Output(stdout)),
        |e| matches!(e, RecvError::IsEnd),
        |wait, to| {
            let message = if wait { receiver.recv_guard() } else { receiver.try_recv_guard() }?;
            // SAFETY: the other side is a process of this user's, which the listener has made sure of, and could do anything to this one anyway.
            Ok(to(unsafe { message.as_slice() }))
        },
    )?;
    // A sender that has been killed since does not hear it.
    let _ = sender.send_bytes(WRITTEN);
    Ok(())
}

fn write_message(
    args: &Args,
    progress: &Progress,
    output: &mut BufWriter<Output>,
    message: &[u8],
) -> Result<(), Failure> {
    if args.frames {
        let length = u32::try_from(message.len());
        let length = length.map_err(|_| Failure::new(1, "a message is too long for a frame"))?;
        output.write_all(&length.to_le_bytes())?;
    }
    output.write_all(message)?;
    if args.lines {
        output.write_all(b"\n")?;
    }
    progress.add(message.len());
    Ok(())
}

/// Writes what is received, with or without waiting, until the end, and lets nothing lie in the buffer while it waits.
fn write_all(
    args: &Args,
    progress: &Progress,
    output: &mut BufWriter<Output>,
    is_end: impl Fn(&RecvError) -> bool,
    mut receive: impl FnMut(bool, &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<Result<(), Failure>, RecvError>,
) -> Result<(), Failure> {
    loop {
        let received = match receive(false, &mut |message| write_message(args, progress, output, message)) {
            Err(RecvError::Empty) => {
                output.flush()?;
                receive(true, &mut |message| write_message(args, progress, output, message))
            }
            other => other,
        };
        match received {
            Ok(written) => written?,
            Err(e) if is_end(&e) => return Ok(output.flush()?),
            Err(e) => {
                output.flush()?;
                return Err(e.into());
            }
        }
    }
}

pub(crate) fn queue(args: &QueueArgs) -> Result<(), Failure> {
    let mut queue = mpmc::Listener::bind(&args.name)?;
    loop {
        let error = queue.serve();
        complain(&error);
        // Out of descriptors, it would be the same at once.
        std::thread::sleep(Duration::from_millis(100));
    }
}
