//! `iceoryx2`: publish and subscribe of slices, with one publisher that waits for room and one subscriber. It has no blocking receive; for
//! blocking, its documentation pairs the service with one of events.

use std::mem::MaybeUninit;

use iceoryx2::node::Node;
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use iceoryx2::sample::Sample;
use iceoryx2::service::port_factory::{event, publish_subscribe};

use crate::leftovers;
use crate::peer::{Halves, Kind, Outcome, Peer, Receiver, Sender, Spec, Wait, place};

/// What a sample has beside the payload, roughly.
const SAMPLE_HEADER: usize = 64;

/// A side's access to the service; it outlives the ports made from it.
struct Access {
    messages: publish_subscribe::PortFactory<ipc::Service, [u8], ()>,
    /// There where a receiver sleeps.
    events: Option<event::PortFactory<ipc::Service>>,
    _node: Node<ipc::Service>,
}

impl Access {
    fn new(spec: &Spec) -> Outcome<Access> {
        set_log_level(LogLevel::Fatal);
        let mut config = Config::default();
        config.global.prefix = FileName::new(spec.name.as_bytes())?;
        config.global.set_root_path(&Path::new(leftovers::directory(&spec.name).as_bytes())?);
        let node = NodeBuilder::new()
            .config(&config)
            .signal_handling_mode(SignalHandlingMode::Disabled)
            .create::<ipc::Service>()?;
        let service: ServiceName = spec.name.as_str().try_into()?;
        let messages = node
            .service_builder(&service)
            .publish_subscribe::<[u8]>()
            .enable_safe_overflow(false)
            .history_size(0)
            .subscriber_max_buffer_size(spec.slots(SAMPLE_HEADER))
            .max_publishers(1)
            .max_subscribers(1)
            .open_or_create()?;
        let events = match spec.wait {
            Wait::Block => Some(node.service_builder(&service).event().open_or_create()?),
            Wait::Stream | Wait::Spin => None,
        };
        Ok(Access { messages, events, _node: node })
    }
}

/// The sending side. Ports first: they go before what they were made from.
struct Out {
    publisher: Publisher<ipc::Service, [u8], ()>,
    notifier: Option<Notifier<ipc::Service>>,
    _access: Access,
}

impl Out {
    fn new(spec: &Spec) -> Outcome<Out> {
        let access = Access::new(spec)?;
        let publisher = access
            .messages
            .publisher_builder()
            .initial_max_slice_len(spec.size)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()?;
        let notifier = match &access.events {
            Some(events) => Some(events.notifier_builder().create()?),
            None => None,
        };
        Ok(Out { publisher, notifier, _access: access })
    }

    /// Sends a message of `len` bytes once `write` has filled it in.
    #[inline(always)]
    fn send(&self, len: usize, write: impl FnOnce(&mut [MaybeUninit<u8>])) -> Outcome<()> {
        let mut sample = self.publisher.loan_slice_uninit(len)?;
        write(sample.payload_mut());
        // SAFETY: mapped memory, of which every byte is a value of the type, whether it was written just now or in an earlier message.
        let sample = unsafe { sample.assume_init() };
        if sample.send()? != 1 {
            return Err("the subscriber is not there".into());
        }
        if let Some(notifier) = &self.notifier {
            notifier.notify()?;
        }
        Ok(())
    }
}

struct In {
    subscriber: Subscriber<ipc::Service, [u8], ()>,
    listener: Option<Listener<ipc::Service>>,
    _access: Access,
}

impl In {
    fn new(spec: &Spec) -> Outcome<In> {
        let access = Access::new(spec)?;
        let subscriber = access.messages.subscriber_builder().create()?;
        let listener = match &access.events {
            Some(events) => Some(events.listener_builder().create()?),
            None => None,
        };
        Ok(In { subscriber, listener, _access: access })
    }

    #[inline(always)]
    fn recv(&self) -> Outcome<Sample<ipc::Service, [u8], ()>> {
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                return Ok(sample);
            }
            match &self.listener {
                Some(listener) => drop(listener.blocking_wait(|_| {})?),
                None => std::hint::spin_loop(),
            }
        }
    }
}

pub(super) struct Copying;

pub(super) struct CopyIn(Out);

pub(super) struct CopyOut {
    from: In,
    buf: Vec<u8>,
}

impl Peer for Copying {
    const NAME: &'static str = "iceoryx2";
    const KIND: Kind = Kind::Copy;
    type Sender = CopyIn;
    type Receiver = CopyOut;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (here, there) = (spec.clone(), spec.clone());
        let receiver = move || Ok(CopyOut { from: In::new(&there)?, buf: vec![0; there.size] });
        Ok((Box::new(move || Ok(CopyIn(Out::new(&here)?))), Box::new(receiver)))
    }
}

impl Sender for CopyIn {
    #[inline(always)]
    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        self.0.send(message.len(), |loan| {
            loan.write_copy_of_slice(message);
        })
    }
}

impl Receiver for CopyOut {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        let sample = self.from.recv()?;
        let message = &mut self.buf[..sample.payload().len()];
        message.copy_from_slice(sample.payload());
        // Given back before it is looked at, as by everybody else.
        drop(sample);
        Ok(look(message))
    }
}

pub(super) struct Lending;

pub(super) struct Loan {
    to: Out,
    size: usize,
}

pub(super) struct Borrow(In);

impl Peer for Lending {
    const NAME: &'static str = "iceoryx2, in place";
    const KIND: Kind = Kind::Loan;
    type Sender = Loan;
    type Receiver = Borrow;

    fn open(spec: &Spec) -> Outcome<Halves<Self>> {
        let (here, there) = (spec.clone(), spec.clone());
        let sender = move || Ok(Loan { to: Out::new(&here)?, size: here.size });
        Ok((Box::new(sender), Box::new(move || Ok(Borrow(In::new(&there)?)))))
    }
}

impl Sender for Loan {
    #[inline(always)]
    fn send(&mut self, ends: &[u8]) -> Outcome<()> {
        self.to.send(self.size, |loan| place(ends, loan))
    }
}

impl Receiver for Borrow {
    #[inline(always)]
    fn recv<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
        Ok(look(self.0.recv()?.payload()))
    }
}
