//! One connection from the choice of its address to its first PONG.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use h2::PingPong;
use tokio::time::{Instant, timeout};

use super::connection::{self, Connection, Observer, OpenError};
use super::dial::DialError;
use super::pool::{End, Pool};

/// From the dial to the first PONG.
const OPEN_WAIT: Duration = Duration::from_secs(5);

/// A connection that is proven alive, with what drives it.
pub(super) struct Opened {
    pub connection: Arc<Connection>,
    pub ping_pong: PingPong,
    /// How long its first PONG took.
    pub way: Duration,
    pub driving: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// An opening that failed, and on which address if it got so far.
pub(super) struct Failed {
    pub error: OpenError,
    pub address: Option<SocketAddr>,
}

/// Opens one connection, on the address that does best as far as is known.
pub(super) async fn open(pool: Arc<Pool>) -> Result<Opened, Failed> {
    let environment = pool.environment();
    let metrics = Arc::clone(&pool.parts.metrics);
    let mut dialled = Dialled::new(&pool);
    let opened = timeout(OPEN_WAIT, open_on(&pool, &mut dialled)).await;
    let opened = opened.unwrap_or(Err(OpenError::Slow(dialled.address, OPEN_WAIT)));
    if let (Err(error), Some(address)) = (&opened, dialled.address)
        && (!error.blames_configuration() || pool.is_serving())
    {
        pool.parts.addresses.failed(address);
    }
    let address = dialled.address;
    drop(dialled);
    metrics.apns_dial(environment, if opened.is_ok() { "connected" } else { "failed" });
    if let Err(error) = &opened {
        metrics.apns_dial_failure(environment, error.label());
    }
    opened.map_err(|error| Failed { error, address })
}

async fn open_on(pool: &Arc<Pool>, dialled: &mut Dialled<'_>) -> Result<Opened, OpenError> {
    let parts = &pool.parts;
    // A key that cannot sign needs no connection.
    parts.mint.as_ref().map(|mint| mint.current()).transpose()?;
    let found = parts.dial.resolve().await?;
    let address = {
        let mut state = pool.state.lock();
        let address = parts.addresses.choose(&found, &state.addresses_in_use());
        state.found = found;
        state.dialling.extend(address);
        address
    };
    dialled.address = address;
    let address = address.ok_or_else(|| DialError::Network("the name has no address".to_owned()))?;
    let io = parts.dial.connect(address).await?;
    let id = parts.ids.fetch_add(1, Ordering::Relaxed) + 1;
    let (connection, mut driver) = connection::shake_hands(io, id, address).await?;
    let mut ping_pong = driver.ping_pong().expect("taken once, here");
    let observer = Reporter(Arc::clone(pool));
    let mut driving: Pin<Box<dyn Future<Output = ()> + Send>> =
        Box::pin(connection::drive(driver, Arc::downgrade(&connection), observer));
    let closed = || connection.retired().cloned().map(OpenError::Closed);
    let asked = Instant::now();
    // Biased: an end of its own says more than a PING that failed of it.
    let proven = tokio::select! {
        biased;
        () = &mut driving => Err(closed().unwrap_or_else(|| OpenError::Closed("the peer closed it".into()))),
        proven = connection::prove_alive(&mut ping_pong) => proven.map_err(|error| closed().unwrap_or(OpenError::Handshake(error))),
    };
    proven?;
    if let Some(error) = closed() {
        return Err(error);
    }
    let way = asked.elapsed();
    parts.metrics.apns_ping(pool.environment(), way);
    Ok(Opened { connection, ping_pong, way, driving })
}

/// A dial that is under way, and its address once that is chosen.
struct Dialled<'a> {
    pool: &'a Pool,
    address: Option<SocketAddr>,
}

impl<'a> Dialled<'a> {
    fn new(pool: &'a Pool) -> Self {
        pool.parts.metrics.apns_connections(pool.environment(), "dialing", 1);
        Self { pool, address: None }
    }
}

impl Drop for Dialled<'_> {
    fn drop(&mut self) {
        self.pool.parts.metrics.apns_connections(self.pool.environment(), "dialing", -1);
        let Some(address) = self.address else { return };
        let mut state = self.pool.state.lock();
        if let Some(place) = state.dialling.iter().position(|other| *other == address) {
            state.dialling.remove(place);
        }
    }
}

/// Tells the pool what happens on a connection.
struct Reporter(Arc<Pool>);

impl Observer for Reporter {
    fn limit_changed(&self) {
        self.0.limit_changed();
    }

    fn ended(&self, connection: &Connection, why: &str, goaway: Option<&'static str>) {
        if let Some(reason) = goaway {
            self.0.parts.metrics.apns_goaway(reason);
        }
        let end = if goaway.is_some() { End::GoAway } else { End::Closed };
        self.0.retire(connection, end, why);
    }
}
