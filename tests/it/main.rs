//! Black box: the built programs against a real RabbitMQ, over real TLS, with a foreign client. Nothing here knows the
//! worker's code; what it knows is the contract. The exceptions: `amqp` holds the worker's ends of the two flows;
//! `credential`, `client_certificate` and `incident` run the simulator, which shares nothing with the worker, in their own process.
//!
//! Without RabbitMQ, Python's pika and OpenTelemetry's protocol, curl, h2load, tinyproxy, Prometheus, promtool, hadolint or Helm these
//! tests fail and say what to install; they never pass in silence. `tests/run` installs them all. `image` makes a release build first.

mod alerts;
mod amqp;
mod amqps;
mod apple;
mod bad_input;
mod base64;
mod black_hole;
mod board;
mod breaker;
#[path = "../../src/bin/demo/broker.rs"]
mod broker;
mod broker_restart;
mod certificate;
mod chart;
mod check;
mod client;
mod client_certificate;
mod cluster;
mod connect;
mod contract;
mod credential;
mod expired;
mod fleet;
mod foreign;
mod health;
mod held;
mod http;
mod image;
mod incident;
mod load;
mod metrics;
mod operator;
mod pipe;
mod place;
mod plan;
mod probes;
mod process;
mod prometheus;
mod proxy;
mod reload;
mod rollout;
mod scaling;
mod shards;
mod sizing;
mod soak;
mod stop;
mod tally;
mod tidy;
mod trace;
mod twice;
mod untaken;
mod vhost;
mod watch;
mod worker;
