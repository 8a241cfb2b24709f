//! Named pipes: each client of the importing side's listener gets a connection to the listener on the exporting side.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use ringpipe::{AcceptError, Builder, Connection, Listener, connect};

use crate::carry::{Batches, inbound, outbound};
use crate::error::BridgeError;
use crate::link::Reason;
use crate::network::{Network, What, start};
use crate::wire::{LOOK, Wire};

/// Bytes of the rings that local programs get: a few segments are not to wait for each other.
const RING: usize = 1 << 20;

pub(crate) fn export(network: &Arc<Network>, name: &Path, key: &str) -> Result<(), BridgeError> {
    let (name, service) = (name.to_owned(), service(key));
    let of_whom = service.clone();
    let serve =
        move |network: &Arc<Network>, wire: Arc<Wire>| match connect::<Connection>(&name, network.settings.patience) {
            Ok(local) => carry(network, &of_whom, local, wire),
            Err(e) => {
                network.report(&of_whom, What::Broken(e.to_string()));
                wire.reset(Reason::NoListener);
            }
        };
    network.export(&service, Arc::new(serve))
}

pub(crate) fn import(network: &Arc<Network>, name: &Path, key: &str) -> Result<(), BridgeError> {
    let listener = Listener::builder().pipes(Builder::new().capacity(RING)).bind(name)?;
    let (network, service) = (Arc::clone(network), service(key));
    Ok(start("bridge-import", move || accept(&network, listener, &service))?)
}

fn service(key: &str) -> String {
    format!("pipe/{key}")
}

fn accept(network: &Arc<Network>, mut listener: Listener, service: &str) {
    while !network.is_closing() {
        match listener.accept_timeout(LOOK) {
            Ok((local, _)) => {
                let (network_of_client, service_of_client) = (Arc::clone(network), service.to_owned());
                let work = move || match network_of_client.call(&service_of_client) {
                    Ok(wire) => carry(&network_of_client, &service_of_client, local, wire),
                    Err(why) => network_of_client.report(&service_of_client, What::Broken(why)),
                };
                if let Err(e) = start("bridge-client", work) {
                    network.report(service, What::Broken(format!("cannot start a thread: {e}")));
                }
            }
            Err(AcceptError::TimedOut) => {}
            Err(e) => {
                network.report(service, What::Broken(e.to_string()));
                // Out of descriptors, say: some may become free.
                network.pause(LOOK);
            }
        }
    }
}

/// Both directions of a connection, until both are at their ends.
fn carry(network: &Arc<Network>, service: &str, local: Connection, wire: Arc<Wire>) {
    let (mut sender, receiver) = local.split();
    let longest = network.longest;
    let out = {
        let wire = Arc::clone(&wire);
        thread::Builder::new()
            .name("bridge-out".to_owned())
            .spawn(move || outbound(&wire, Batches::new(receiver, longest), longest))
    };
    match out {
        Ok(out) => {
            inbound(&wire, &mut sender, longest);
            drop(sender);
            // It reports by itself, if it panicked.
            let _ = out.join();
            wire.await_end();
        }
        Err(_) => wire.reset(Reason::Failed),
    }
    network.report_end(service, &wire);
}
