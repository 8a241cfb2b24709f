//! Receiving values out of any bytes: an error or a value that took all of them, with no more memory than the message warrants; and what was
//! decoded encodes to bytes that decode to an equal value.
//!
//! The first byte of the input chooses the type, the rest is the message.
#![no_main]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use ringpipe::{Receiver, RecvError, Sender};
use ringpipe_fuzz::Allocated;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Equal if the bits are, so that a NaN equals itself.
#[derive(Serialize, Deserialize, Debug)]
struct Float(f64);

impl PartialEq for Float {
    fn eq(&self, other: &Float) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Unit;

#[derive(Serialize, Deserialize, Debug, PartialEq)]
enum Shape {
    Nothing,
    Wrapped(Box<Inner>),
    Pair(Option<u128>, i64),
    Named { name: String, values: Vec<Float>, flag: bool },
    Unit(Unit),
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
enum Inner {
    Char(char),
    Text(Option<String>),
    Result(Result<i32, String>),
    Deep(Vec<Vec<Option<u8>>>),
    Shapes(BTreeMap<u16, Leaf>),
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Leaf {
    small: i8,
    large: (u64, i128),
    single: f32,
    array: [u16; 5],
    time: Duration,
}

/// Recursive, so as deep as the message says.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
enum Tree {
    Leaf(u8),
    Branch(Vec<Tree>),
    Boxed(Box<Tree>),
}

/// Large elements, so that their number times their size is far beyond the message.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Large {
    numbers: [u64; 32],
}

/// What a message may hold: more would only make each execution longer.
const MAX_LEN: usize = 4096;
/// What serde reserves at most for the elements that a message says it has (1 MiB), rounded up by a hash map.
const RESERVED: usize = 3 << 20;

struct Pipe {
    receiver: Receiver,
    sender: Sender,
}

thread_local! {
    static PIPE: RefCell<Pipe> = RefCell::new({
        let (receiver, sender) = ringpipe::Builder::new().capacity(1 << 17).spin(Duration::ZERO).simplex().expect("a pipe");
        Pipe { receiver, sender }
    });
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, message)) = input.split_first() else {
        return;
    };
    let message = &message[..message.len().min(MAX_LEN)];
    PIPE.with_borrow_mut(|pipe| match choice % 16 {
        0 => pipe.try_as::<Shape>(message, Memory::Plain),
        1 => pipe.try_as::<Vec<Shape>>(message, Memory::Plain),
        2 => pipe.try_as::<BTreeMap<String, Inner>>(message, Memory::Plain),
        3 => pipe.try_as::<HashMap<u32, String>>(message, Memory::Reserved),
        4 => pipe.try_as::<Vec<HashMap<u8, Vec<u16>>>>(message, Memory::Reserved),
        5 => pipe.try_as::<Tree>(message, Memory::Plain),
        6 => pipe.try_as::<(String, Vec<u8>, Option<Option<u64>>)>(message, Memory::Plain),
        7 => pipe.try_as::<Vec<String>>(message, Memory::Plain),
        8 => pipe.try_as::<Vec<Large>>(message, Memory::Plain),
        9 => pipe.try_as::<(f32, Float, char, bool, i8, u16, i32, u64, i128)>(message, Memory::Plain),
        10 => pipe.try_as::<Result<Leaf, Vec<Leaf>>>(message, Memory::Plain),
        11 => pipe.try_as::<Vec<u64>>(message, Memory::Plain),
        12 => pipe.try_as::<Vec<Vec<Vec<u32>>>>(message, Memory::Plain),
        13 => pipe.try_as::<(Unit, (), Option<Unit>)>(message, Memory::Plain),
        14 => pipe.try_as::<Box<[Option<Box<str>>]>>(message, Memory::Plain),
        _ => pipe.try_as::<String>(message, Memory::Plain),
    });
});

/// What decoding may allocate.
#[derive(Clone, Copy, PartialEq)]
enum Memory {
    /// So many bytes for each of the message: that of the largest element which a single byte may announce, and twice that for a growing vector.
    Plain,
    /// In addition, what serde reserves for a hash map before it has seen an entry.
    Reserved,
}

impl Pipe {
    fn try_as<T: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, message: &[u8], memory: Memory) {
        self.sender.try_send_bytes(message).expect("there is room for one message");
        Allocated::reset();
        let result = self.receiver.try_recv::<T>();
        let allocated = Allocated::so_far();
        let element = size_of::<T>().max(256);
        let most = 1024 + 4 * element * (message.len() + 1) + if memory == Memory::Reserved { RESERVED } else { 0 };
        assert!(allocated.largest <= most, "{allocated:?} for {} bytes", message.len());
        let value = match result {
            Ok(value) => value,
            // And nothing of it is left.
            Err(RecvError::Decode(e)) => {
                assert!(!e.to_string().is_empty());
                assert!(matches!(self.receiver.try_recv::<T>(), Err(RecvError::Empty)));
                return;
            }
            Err(e) => panic!("{e:?}"),
        };
        let encoded = postcard::to_stdvec(&value).expect("it was decoded");
        // A duration carries too many nanoseconds over into its seconds, which may then take a byte more than they came in.
        assert!(encoded.len() <= 2 * message.len(), "a value of {} bytes out of {}", encoded.len(), message.len());
        self.sender.try_send(&value).expect("there is room for one message");
        let again = self.receiver.try_recv::<T>().expect("it was encoded");
        // Every byte belongs to the value: less is none.
        if let Some((_, start)) = message.split_last() {
            self.sender.try_send_bytes(start).expect("there is room for one message");
            assert!(matches!(self.receiver.try_recv::<T>(), Err(RecvError::Decode(_))), "some bytes were not used");
        }
        // A float that is not wrapped may be NaN, which equals nothing, but its bytes stay the same.
        let equal = again == value || postcard::to_stdvec(&again).expect("it was decoded") == encoded;
        assert!(equal, "{value:?} became {again:?}");
    }
}
