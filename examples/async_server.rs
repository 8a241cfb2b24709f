//! A server whose requests are worked on by other processes: what comes over TCP goes to worker programs over pipes, and their answers go back. A worker that is killed
//! is replaced, and what it had not answered is asked again.
//!
//! ```sh
//! cargo run --features tokio --example async_server                      # serves some clients of its own, and ends
//! cargo run --features tokio --example async_server -- 127.0.0.1:7000    # serves for ever: try `nc 127.0.0.1 7000`, and type numbers
//! ```
//!
//! A request is a line with a number, and its answer a line with the smallest factor of that. The server waits for everything in one thread, in tasks; the
//! workers are plain programs that know nothing of tokio.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringpipe::End;
use ringpipe::tokio::Connection;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc, oneshot};

type Failure = Box<dyn Error + Send + Sync>;

/// The environment variable through which a worker finds its end.
const PIPE: &str = "ASYNC_SERVER_PIPE";
const WORKERS: usize = 2;
/// What a worker has been asked and not answered yet, at most. So little that it fits in the pipe: the server must not wait for room for a question while the
/// worker waits for room for an answer.
const DEPTH: usize = 64;

const CLIENTS: u64 = 8;
const REQUESTS: u64 = 200;

fn main() -> Result<(), Failure> {
    match std::env::args().nth(1).as_deref() {
        Some("worker") => worker(),
        address => tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            match address {
                Some(address) => serve(TcpListener::bind(address).await?, Arc::new(Pool::start()?)).await,
                None => show().await,
            }
        }),
    }
}

// --- a worker ---------------------------------------------------------------------------------------------

fn worker() -> Result<(), Failure> {
    let mut connection = ringpipe::Connection::from_env(PIPE)?;
    // Until the server closes its end, or is dead.
    while let Ok(number) = connection.recv::<u64>() {
        connection.send(&smallest_factor(number))?;
    }
    Ok(())
}

fn smallest_factor(number: u64) -> u64 {
    (2..).take_while(|factor| factor * factor <= number).find(|factor| number % factor == 0).unwrap_or(number)
}

// --- the server -------------------------------------------------------------------------------------------

/// A question for a worker, and where the answer goes.
struct Job {
    number: u64,
    answer: oneshot::Sender<u64>,
}

struct Pool {
    queues: Vec<mpsc::Sender<Job>>,
    /// The programs that are at work, each of which its task looks after.
    workers: Vec<Arc<Mutex<Child>>>,
    next: AtomicUsize,
}

impl Pool {
    fn start() -> Result<Pool, Failure> {
        let mut pool = Pool { queues: Vec::new(), workers: Vec::new(), next: AtomicUsize::new(0) };
        for _ in 0..WORKERS {
            let (queue, jobs) = mpsc::channel(DEPTH);
            let (child, connection) = start_worker()?;
            let child = Arc::new(Mutex::new(child));
            tokio::spawn(look_after(Arc::clone(&child), connection, jobs));
            pool.queues.push(queue);
            pool.workers.push(child);
        }
        Ok(pool)
    }

    /// Has one of the workers, taken in turn, answer a question.
    async fn ask(&self, number: u64) -> Result<u64, Failure> {
        let (answer, answered) = oneshot::channel();
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.queues.len();
        self.queues[turn].send(Job { number, answer }).await?;
        Ok(answered.await?)
    }
}

/// Starts this program again, as a worker that has one end of a new pipe.
fn start_worker() -> Result<(Child, Connection), Failure> {
    let (mine, theirs) = ringpipe::pipe()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("worker").kill_on_drop(true);
    theirs.inherit(command.as_std_mut(), PIPE);
    // The command, which holds a copy of the worker's end, is dropped here: otherwise nobody would learn of the worker's death.
    Ok((command.spawn()?, Connection::from_blocking(mine)?))
}

/// Looks after one worker, and replaces it when it dies.
async fn look_after(child: Arc<Mutex<Child>>, mut connection: Connection, mut jobs: mpsc::Receiver<Job>) {
    let mut asked = VecDeque::new();
    while let Err(e) = converse(&mut connection, &mut jobs, &mut asked).await {
        println!("server: a worker is gone with {} questions: {e}", asked.len());
        let mut child = child.lock().await;
        let _ = child.wait().await;
        match start_worker() {
            Ok(started) => (*child, connection) = started,
            Err(e) => return println!("server: no worker in its place: {e}"),
        }
    }
}

/// Passes questions and answers on until nobody has any more questions. An error means that the worker is gone.
async fn converse(
    connection: &mut Connection,
    jobs: &mut mpsc::Receiver<Job>,
    asked: &mut VecDeque<Job>,
) -> Result<(), Failure> {
    let (to_worker, from_worker) = connection.halves_mut();
    // What the one before has left.
    for job in asked.iter() {
        to_worker.send(&job.number).await?;
    }
    loop {
        tokio::select! {
            // Given up whenever there is a new question first, which loses nothing.
            answer = from_worker.recv::<u64>(), if !asked.is_empty() => {
                let answer = answer?;
                // Answers come in the order of the questions. Whoever asked may be gone.
                let _ = asked.pop_front().map(|job| job.answer.send(answer));
            }
            job = jobs.recv(), if asked.len() < DEPTH => {
                let Some(job) = job else { return Ok(()) };
                // Its own even before it is sent: so it is asked again if that fails.
                let number = job.number;
                asked.push_back(job);
                to_worker.send(&number).await?;
            }
        }
    }
}

async fn serve(listener: TcpListener, pool: Arc<Pool>) -> Result<(), Failure> {
    println!("server: {WORKERS} workers");
    loop {
        let (client, _) = listener.accept().await?;
        let pool = Arc::clone(&pool);
        tokio::spawn(async move {
            if let Err(e) = serve_client(client, &pool).await {
                println!("server: a client: {e}");
            }
        });
    }
}

async fn serve_client(mut client: TcpStream, pool: &Pool) -> Result<(), Failure> {
    let (requests, mut answers) = client.split();
    let mut lines = BufReader::new(requests).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match line.trim().parse() {
            Ok(number) => pool.ask(number).await?.to_string(),
            Err(_) => "not a number".to_owned(),
        };
        answers.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

// --- clients ----------------------------------------------------------------------------------------------

/// Serves clients that check their answers, and kills every worker meanwhile.
async fn show() -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let pool = Arc::new(Pool::start()?);
    let server = tokio::spawn(serve(listener, Arc::clone(&pool)));
    let (half_way, mut first) = mpsc::channel(CLIENTS as usize);
    let clients: Vec<_> =
        (0..CLIENTS).map(|client| tokio::spawn(ask_server(address, client, half_way.clone()))).collect();
    first.recv().await;
    for worker in &pool.workers {
        worker.lock().await.start_kill()?;
    }
    for client in clients {
        client.await??;
    }
    server.abort();
    println!("all {} answers were right", CLIENTS * REQUESTS);
    Ok(())
}

async fn ask_server(server: std::net::SocketAddr, client: u64, half_way: mpsc::Sender<()>) -> Result<(), Failure> {
    let mut stream = BufReader::new(TcpStream::connect(server).await?);
    let mut line = String::new();
    for i in 0..REQUESTS {
        if i == REQUESTS / 2 {
            half_way.send(()).await?;
        }
        let number = 1_000_003 * (client + 2) + i;
        stream.write_all(format!("{number}\n").as_bytes()).await?;
        line.clear();
        stream.read_line(&mut line).await?;
        if line.trim().parse() != Ok(smallest_factor(number)) {
            return Err(format!("asked for a factor of {number}, got {line:?}").into());
        }
    }
    stream.write_all(b"none\n").await?;
    line.clear();
    stream.read_line(&mut line).await?;
    if line != "not a number\n" {
        return Err(format!("asked for nothing, got {line:?}").into());
    }
    Ok(())
}
