//! What is shared with `ringpipe bench`, file by file: the same messages and checks, the same bare cache line, the same framing of the kernel's
//! streams. Each file says what it is for.

#[path = "../../../cli/src/bench/cpu.rs"]
pub(crate) mod cpu;
#[path = "../../../cli/src/bench/flags.rs"]
pub(crate) mod flags;
#[path = "../../../cli/src/bench/message.rs"]
pub(crate) mod message;
#[path = "../../../cli/src/bench/size.rs"]
pub(crate) mod size;
#[path = "../../../cli/src/bench/transport.rs"]
pub(crate) mod transport;
