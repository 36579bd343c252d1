//! What live connections are told from outside, whatever they are doing.

use super::Simulator;
use super::faults::{GoAway, Latency};
use super::peer::{Address, Spot};

/// Orders that wait for a connection to look; a connection that falls behind misses the oldest.
pub(super) const ORDERS_MAX: usize = 64;

/// What connections can be told, idle or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Send GOAWAY.
    GoAway(GoAway),
    /// Drop the transport.
    Close,
    /// Stand still, PINGs included; the transport stays open.
    Freeze,
    /// Stand still, and let new connections be accepted and met with silence: no TLS, no HTTP/2.
    Silence,
    /// Leave PINGs unanswered from now on, and serve as before.
    Deafen,
    /// Announce another stream limit, 0 included, and keep to it until it is healed. It cannot exceed
    /// [`Options::max_concurrent_streams`](super::Options::max_concurrent_streams), and where one stream is the rule
    /// for a while, that rule stands beside it.
    Limit(u32),
    /// Give window back that much later from now on: see
    /// [`ConnectAction::SlowWindow`](super::ConnectAction::SlowWindow).
    SlowWindow(Latency),
}

/// Who is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// All connections.
    Everybody,
    /// All connections of an address.
    Address(Address),
    /// One connection; they are numbered from 1.
    Connection(u64),
}

impl Target {
    pub(super) fn includes(self, spot: Spot) -> bool {
        match self {
            Self::Everybody => true,
            Self::Address(address) => spot.is_at(address),
            Self::Connection(number) => spot.connection == number,
        }
    }
}

impl From<Address> for Target {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Order(Order),
    Heal,
}

/// What is on its way to the connections.
#[derive(Debug, Clone)]
pub(super) struct Signal {
    pub(super) target: Target,
    pub(super) what: What,
}

impl Simulator {
    /// Tells all live connections something.
    pub fn order(&self, order: Order) {
        self.order_to(Target::Everybody, order);
    }

    /// Tells some live connections something.
    pub fn order_to(&self, target: Target, order: Order) {
        if order == Order::Silence {
            self.shared.faults.silence(target);
        }
        self.signal(target, What::Order(order));
    }

    /// Removes all faults, and lets connections that stand still go on, and PINGs be answered. Device states and keys
    /// stay. Requests that were met with silence stay unanswered: they are lost. Connections that were never served
    /// are closed.
    pub fn heal(&self) {
        self.shared.faults.clear();
        self.signal(Target::Everybody, What::Heal);
    }

    /// The same for one address or one connection: removes the faults that name it, and what it was ordered. Faults
    /// that strike others, too, stay.
    pub fn heal_at(&self, target: Target) {
        if target == Target::Everybody {
            return self.heal();
        }
        self.shared.faults.heal(target, &self.shared.addresses);
        self.signal(target, What::Heal);
    }

    fn signal(&self, target: Target, what: What) {
        let _ = self.shared.signals.send(Signal { target, what }); // an error only says that there is no connection
    }
}
