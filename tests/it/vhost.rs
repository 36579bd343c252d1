//! One broker for all tests of this process, and a virtual host of it for each test that wants a broker.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tokio::sync::OnceCell;

use crate::broker::{Broker, note_user};

/// What to say where there is no broker: the tests fail then, they do not pass in silence.
pub(crate) const NO_BROKER: &str =
    "RabbitMQ is not installed: 'apt-get install --no-install-recommends rabbitmq-server', or run tests/run";

/// Statics are never dropped; the broker's guardian sees the process end and cleans up.
static BROKER: OnceCell<Broker> = OnceCell::const_new();
static MADE: AtomicU32 = AtomicU32::new(0);

/// An empty virtual host on the shared broker.
#[derive(Debug)]
pub(crate) struct Vhost {
    name: String,
    broker: &'static Broker,
}

impl Vhost {
    /// Makes one, with all rights for `guest`.
    pub(crate) async fn new() -> Self {
        note_user().unwrap_or_else(|error| panic!("{error}"));
        let broker = BROKER.get_or_init(start_broker).await;
        let name = format!("v{}", MADE.fetch_add(1, Ordering::Relaxed));
        // One program for both: each start of rabbitmqctl costs most of a second.
        let make = format!(
            "ok = rabbit_vhost:add(<<\"{name}\">>, <<\"tests\">>), \
             rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, <<\"{name}\">>, <<\".*\">>, <<\".*\">>, \
             <<\".*\">>, <<\"tests\">>)."
        );
        broker.ctl(&["eval", &make]).await.unwrap_or_else(|error| panic!("no virtual host: {error}"));
        Self { name, broker }
    }

    /// Where clients connect.
    pub(crate) fn uri(&self) -> String {
        self.broker.uri_of(&self.name)
    }

    /// The port of plain AMQP.
    pub(crate) fn port(&self) -> u16 {
        self.broker.port()
    }

    /// Makes a quorum queue answer nobody, as when the majority of its nodes is lost: it takes what is published, and
    /// confirms nothing.
    pub(crate) async fn suspend(&self, queue: &str) {
        self.tell(queue, "suspend").await;
    }

    /// Limits the length of a queue; it refuses what is too much (`basic.nack`).
    pub(crate) async fn limit(&self, queue: &str, messages: usize) {
        let definition = format!(r#"{{"max-length":{messages},"overflow":"reject-publish"}}"#);
        let pattern = format!("^{queue}$");
        let args = ["set_policy", "-p", &self.name, "--apply-to", "queues", "limit", &pattern, &definition];
        self.broker.ctl(&args).await.unwrap_or_else(|error| panic!("{queue}: {error}"));
    }

    /// Takes the limit away.
    pub(crate) async fn unlimit(&self) {
        let args = ["clear_policy", "-p", &self.name, "limit"];
        self.broker.ctl(&args).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// It answers again.
    pub(crate) async fn resume(&self, queue: &str) {
        self.tell(queue, "resume").await;
    }

    /// Has the broker's own plugin serve what Prometheus scrapes, at that port.
    pub(crate) async fn serve_metrics(&self, port: u16) {
        // Before it starts, and kept when it does. Its command-line tool would do the same, at ten times the cost.
        let serve = format!(
            "application:set_env(rabbitmq_prometheus, tcp_config, [{{port, {port}}}, {{ip, \"127.0.0.1\"}}], \
             [{{persistent, true}}]), {{ok, F}} = application:get_env(rabbit, enabled_plugins_file), \
             ok = file:write_file(F, \"[rabbitmq_prometheus].\"), {{ok, _, _}} = rabbit_plugins:ensure(F)."
        );
        self.broker.ctl(&["eval", &serve]).await.unwrap_or_else(|error| panic!("no plugin: {error}"));
    }

    async fn tell(&self, queue: &str, what: &str) {
        let tell = format!("ok = sys:{what}('{}_{queue}').", self.name);
        self.broker.ctl(&["eval", &tell]).await.unwrap_or_else(|error| panic!("{queue}: {error}"));
    }

    /// Runs `rabbitmqctl` on its broker.
    pub(crate) async fn ctl(&self, args: &[&str]) {
        self.broker.ctl(args).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// A `rabbitmqctl list_…` of this virtual host.
    pub(crate) async fn list(&self, what: &str, columns: &[&str]) -> Vec<Value> {
        list(self.broker, &self.name, what, columns).await
    }
}

/// A `rabbitmqctl list_…`, row by row.
pub(crate) async fn list(broker: &Broker, vhost: &str, what: &str, columns: &[&str]) -> Vec<Value> {
    let mut args = vec![what];
    if !["list_connections", "list_channels"].contains(&what) {
        args.extend(["-p", vhost]);
    }
    args.extend(["--formatter", "json"]);
    args.extend(columns);
    let text = broker.ctl(&args).await.unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("rabbitmqctl {what}: {error} in {text}"))
}

/// Starts a broker or says why there is none.
pub(crate) async fn start_broker() -> Broker {
    match Broker::start().await {
        Ok(Some(broker)) => broker,
        Ok(None) => panic!("{NO_BROKER}"),
        Err(error) => panic!("{error}"),
    }
}

/// Which RabbitMQ a node runs, such as `3.10.8`.
pub(crate) async fn version(broker: &Broker) -> String {
    let told = broker.ctl(&["eval", "rabbit_misc:version()."]).await.expect("it says which it is");
    told.chars().filter(|letter| letter.is_ascii_digit() || *letter == '.').collect()
}

/// Closes those connections to a node whose name begins so.
pub(crate) async fn close_connections(broker: &Broker, name: &str) {
    let close = format!(
        "[rabbit_networking:close_connection(P, \"test\") || [{{pid, P}}, {{client_properties, C}}] <- \
         rabbit_networking:connection_info_all([pid, client_properties]), \
         case lists:keyfind(<<\"connection_name\">>, 1, C) of \
         {{_, _, N}} -> binary:match(N, <<\"{name}\">>) =:= {{0, {}}}; false -> false end].",
        name.len()
    );
    broker.ctl(&["eval", &close]).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn the_broker_is_the_one_that_was_asked_for() {
    let vhost = Vhost::new().await;
    let version = version(vhost.broker).await;
    // Debian's package names its folder by the version. Without the variable it is the installed one.
    let root = std::env::var("RINGCAST_TEST_BROKER").unwrap_or_default();
    let folder = format!("{root}/usr/lib/rabbitmq/lib/rabbitmq_server-{version}");
    assert!(std::fs::exists(&folder).expect("it can be looked for"), "the node runs {version}: no {folder}");
}
