//! Who is at the other end, and at which of the simulator's addresses.
//!
//! Apple answers at many addresses, and they fail one by one. One simulator can stand for all of them: each
//! [`Simulator::listen`](super::Simulator::listen) is an address, and so is each that
//! [`Simulator::serve_at`](super::Simulator::serve_at) is told of. They are numbered from 1 in the order in which they
//! first appear.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use parking_lot::Mutex;

use super::certificate::Certificate;

/// Names one address of a simulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// By address and port.
    Socket(SocketAddr),
    /// By its number, from 1, in the order in which they first appeared.
    Number(usize),
}

impl From<SocketAddr> for Address {
    fn from(socket: SocketAddr) -> Self {
        Self::Socket(socket)
    }
}

impl From<usize> for Address {
    fn from(number: usize) -> Self {
        Self::Number(number)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(socket) => socket.fmt(f),
            Self::Number(number) => write!(f, "address {number}"),
        }
    }
}

/// What is known of a connection before its first byte.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// The address it came to; `None`: no fault or order for an address meets it.
    pub address: Option<SocketAddr>,
    /// The certificate it has shown; `None`: it must authenticate each request with a provider token.
    pub certificate: Option<Certificate>,
}

impl Peer {
    /// Somebody who came to this address.
    pub fn at(address: SocketAddr) -> Self {
        Self { address: Some(address), certificate: None }
    }
}

/// An address and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) number: usize,
    pub(super) socket: SocketAddr,
}

/// Where a connection stands: all that faults and orders are chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) connection: u64,
    pub(super) address: Option<Numbered>,
}

impl Spot {
    pub(super) fn is_at(self, address: Address) -> bool {
        self.address.is_some_and(|here| match address {
            Address::Socket(socket) => here.socket == socket,
            Address::Number(number) => here.number == number,
        })
    }
}

/// The addresses that have appeared.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    numbers: Mutex<BTreeMap<SocketAddr, usize>>,
}

impl Addresses {
    /// Gives an address its number, the next one if it is new.
    pub(super) fn number(&self, socket: SocketAddr) -> Numbered {
        let mut numbers = self.numbers.lock();
        let next = numbers.len() + 1;
        Numbered { number: *numbers.entry(socket).or_insert(next), socket }
    }

    /// True when both name one address.
    pub(super) fn are_same(&self, one: Address, other: Address) -> bool {
        let number = |address| match address {
            Address::Socket(socket) => self.numbers.lock().get(&socket).copied(),
            Address::Number(number) => Some(number),
        };
        one == other || number(one).is_some_and(|known| number(other) == Some(known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_two_names() {
        let addresses = Addresses::default();
        let [one, two] = ["127.0.0.1:2197", "127.0.0.2:2197"].map(|text| text.parse::<SocketAddr>().unwrap());
        assert_eq!([one, two, one].map(|socket| addresses.number(socket).number), [1, 2, 1]);
        assert!(addresses.are_same(one.into(), 1.into()) && addresses.are_same(2.into(), two.into()));
        assert!(!addresses.are_same(one.into(), two.into()) && !addresses.are_same(one.into(), 2.into()));
        let spot = Spot { connection: 7, address: Some(addresses.number(two)) };
        assert!(spot.is_at(two.into()) && spot.is_at(2.into()) && !spot.is_at(1.into()));
        let nowhere = Spot { connection: 7, address: None };
        assert!(!nowhere.is_at(two.into()) && !nowhere.is_at(1.into()));
    }
}
