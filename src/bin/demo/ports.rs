//! Ports on loopback that nobody else has.

use std::net::{Ipv4Addr, TcpListener};
use std::process::id;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that Linux hands out by itself (32768 and up), so that no outgoing connection takes one of ours.
const FIRST: u16 = 20_000;
const BLOCK: u16 = 20;
const BLOCKS: u16 = 600;

/// A block of ports that nobody else has: taken by listening on its last one for as long as it is used.
#[derive(Debug)]
pub(crate) struct Ports {
    /// The first of [`BLOCK`]; all but the last are free to use.
    pub(crate) first: u16,
    _claim: TcpListener,
}

impl Ports {
    /// Finds a block; `None` when there is none.
    pub(crate) fn claim() -> Option<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Processes that start at the same time begin to look at different places.
        let start = u32::from(NEXT.fetch_add(1, Ordering::Relaxed)) + id().wrapping_mul(37);
        (0..u32::from(BLOCKS)).find_map(|step| {
            let block = start.wrapping_add(step) % u32::from(BLOCKS);
            let first = FIRST + BLOCK * u16::try_from(block).ok()?;
            let claim = listen(first + BLOCK - 1)?;
            let free = (first..first + BLOCK - 1).all(|port| listen(port).is_some());
            free.then_some(Self { first, _claim: claim })
        })
    }

    /// For plain AMQP.
    pub(super) fn amqp(&self) -> u16 {
        self.first
    }

    /// For Erlang's nodes among themselves.
    pub(super) fn distribution(&self) -> u16 {
        self.first + 1
    }

    /// For Erlang's port mapper.
    pub(super) fn mapper(&self) -> u16 {
        self.first + 2
    }

    /// For AMQP over TLS.
    pub(super) fn amqps(&self) -> u16 {
        self.first + 3
    }
}

fn listen(port: u16) -> Option<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
}
