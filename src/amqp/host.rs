//! The hosts of one cluster: which of them a connection tries first, and when it tries the next.
//!
//! What ended last comes last: a host or address of which a try failed, was overtaken, or held a connection that is gone. The
//! others come in an order drawn anew for each dial, so that the workers of a fleet do not all begin with the same one.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::time::sleep;

use crate::pause::Jitter;

/// Hosts and addresses remembered at most.
const REMEMBERED_MAX: usize = 256;

/// A host with its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// A name, or an IP address without brackets.
    pub(super) name: String,
    pub(super) port: u16,
}

impl Host {
    /// Reads `HOST` or `HOST:PORT`, an IPv6 address in brackets. `port`: the one where none is given.
    pub(super) fn parse(text: &str, port: u16) -> Result<Self, String> {
        const RIGHT: &str = "give HOST or HOST:PORT, as in \"rabbit-2.internal:5671\"";
        if text.contains(['/', '@', '?']) {
            return Err(format!(
                "is more than a host; scheme, login, vhost and parameters are amqp.uri's: {RIGHT}"
            ));
        }
        let (name, given) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, rest)) => {
                (address, if rest.is_empty() { None } else { rest.strip_prefix(':').or(Some("")) })
            }
            None => text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
        };
        let port = match given.map(str::parse) {
            None => port,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return Err(format!("has no port from 1 to 65535 after its host; {RIGHT}")),
        };
        let bracketed = text.starts_with('[');
        if bracketed != name.parse::<Ipv6Addr>().is_ok() || ServerName::try_from(name).is_err() {
            return Err(format!("holds no host name or address; {RIGHT}"));
        }
        Ok(Self { name: name.to_owned(), port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port } = self;
        if name.contains(':') {
            write!(formatter, "[{name}]:{port}")
        } else {
            write!(formatter, "{name}:{port}")
        }
    }
}

/// Whose turn it is. Clones share what they remember.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Arc<Memory>);

#[derive(Debug, Default)]
struct Memory {
    /// `None`: those that did not end come as they are listed.
    jitter: Option<Jitter>,
    /// The latest at the back.
    ended: Mutex<VecDeque<String>>,
}

impl Turns {
    /// Draws the order of those that did not end.
    pub(super) fn drawn(jitter: Jitter) -> Self {
        Self(Arc::new(Memory { jitter: Some(jitter), ended: Mutex::default() }))
    }

    /// The order in which to try `places`.
    pub(super) fn order<T: fmt::Display>(&self, places: impl IntoIterator<Item = T>) -> Vec<T> {
        let ended = self.0.ended.lock();
        let mut ranked: Vec<_> = places
            .into_iter()
            .map(|place| {
                let name = place.to_string();
                let rank = ended.iter().position(|other| *other == name);
                (rank, self.0.jitter.as_ref().map_or(0.0, Jitter::draw), place)
            })
            .collect();
        ranked.sort_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
        ranked.into_iter().map(|(_, _, place)| place).collect()
    }

    /// A try begins. It lasts as long as the returned value, which goes with the connection.
    pub(super) fn begin(&self, place: &impl fmt::Display) -> Turn {
        Turn { turns: self.clone(), place: place.to_string() }
    }
}

/// A try, or the connection that came of it. Dropped, it has ended.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    place: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut ended = self.turns.0.ended.lock();
        ended.retain(|other| *other != self.place);
        if ended.len() >= REMEMBERED_MAX {
            ended.pop_front();
        }
        ended.push_back(std::mem::take(&mut self.place));
    }
}

/// The first of `tries` that succeeds; the others are then dropped. They begin one by one: the next when one has failed, or
/// when `head_start` has passed since the last began, so that a silent one costs no more. The error: of each its own.
pub(super) async fn race<T, E, F>(
    tries: impl IntoIterator<Item = F>,
    head_start: Duration,
) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let (mut tries, mut running) = (tries.into_iter().peekable(), FuturesUnordered::new());
    let mut errors = Vec::new();
    loop {
        running.extend(tries.next());
        tokio::select! {
            biased;
            ended = running.next() => match ended {
                Some(Ok(won)) => return Ok(won),
                Some(Err(error)) => errors.push(error),
                None => return Err(errors),
            },
            () = sleep(head_start), if tries.peek().is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn host(text: &str) -> Result<(String, u16), String> {
        Host::parse(text, 5671).map(|host| (host.name, host.port))
    }

    #[test]
    fn hosts_are_read() {
        assert_eq!(host("rabbit-2.internal"), Ok(("rabbit-2.internal".into(), 5671)));
        assert_eq!(host("rabbit_2:1"), Ok(("rabbit_2".into(), 1)));
        assert_eq!(host("10.0.0.1:5672"), Ok(("10.0.0.1".into(), 5672)));
        assert_eq!(host("[::1]"), Ok(("::1".into(), 5671)));
        assert_eq!(host("[::1]:5672"), Ok(("::1".into(), 5672)));
        for text in ["[::1]:5672", "a:1"] {
            assert_eq!(Host::parse(text, 0).unwrap().to_string(), text);
        }
        for wrong in [
            "", ":1", "a:", "a:0", "a:65536", "a:b", "::1", "[a]", "[::1", "[::1]5", "a b", "amqp://a",
            "u:p@a", "a/v",
        ] {
            assert!(host(wrong).is_err(), "{wrong:?} gave {:?}", host(wrong));
        }
    }

    #[test]
    fn who_ended_last_comes_last() {
        let turns = Turns::default();
        assert_eq!(turns.order(["a", "b", "c"]), ["a", "b", "c"]);
        drop(turns.begin(&"a"));
        let held = turns.begin(&"b");
        assert_eq!(turns.order(["a", "b", "c"]), ["b", "c", "a"]);
        drop(held);
        assert_eq!(turns.order(["a", "b", "c"]), ["c", "a", "b"]);
        drop(turns.begin(&"a"));
        assert_eq!(turns.order(["a", "b", "c"]), ["c", "b", "a"]);
        for place in 0..1000 {
            drop(turns.begin(&place));
        }
        assert_eq!(turns.0.ended.lock().len(), REMEMBERED_MAX);
    }

    #[test]
    fn a_fleet_begins_everywhere_and_a_seed_is_one_order() {
        let first = |seed| Turns::drawn(Jitter::seeded(seed)).order(["a", "b", "c"])[0];
        for place in ["a", "b", "c"] {
            let begin = (0..300).filter(|seed| first(*seed) == place).count();
            assert!((60..140).contains(&begin), "{begin} of 300 begin with {place}");
        }
        let order = |seed| Turns::drawn(Jitter::seeded(seed)).order(0..20);
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        let turns = Turns::drawn(Jitter::seeded(3));
        drop(turns.begin(&7));
        assert_eq!(turns.order(0..20).last(), Some(&7), "the draw is among those that did not end");
    }

    const HEAD_START: Duration = Duration::from_secs(1);

    /// Ends after so many seconds.
    async fn after(seconds: u64, end: Result<u8, u8>) -> Result<u8, u8> {
        sleep(Duration::from_secs(seconds)).await;
        end
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_one_costs_its_head_start_and_a_failed_one_nothing() {
        let began = Instant::now();
        let silent = || after(1_000_000, Ok(0));
        assert_eq!(race([silent(), silent(), after(0, Ok(3))], HEAD_START).await, Ok(3));
        assert_eq!(began.elapsed(), 2 * HEAD_START);
        let began = Instant::now();
        assert_eq!(race([after(0, Err(1)), after(0, Err(2)), after(0, Ok(3))], HEAD_START).await, Ok(3));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_one_still_wins_where_the_others_fail() {
        let began = Instant::now();
        assert_eq!(race([after(5, Ok(1)), after(0, Err(2)), after(9, Ok(3))], HEAD_START).await, Ok(1));
        assert_eq!(began.elapsed(), 5 * HEAD_START);
    }

    #[tokio::test(start_paused = true)]
    async fn none_gives_the_errors_of_all() {
        assert_eq!(race([after(3, Err(1)), after(0, Err(2))], HEAD_START).await, Err(vec![2, 1]));
        assert_eq!(race::<u8, u8, std::future::Ready<_>>([], HEAD_START).await, Err(vec![]));
    }
}
