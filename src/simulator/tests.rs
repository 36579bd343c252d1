//! The simulator seen from a client, over an in-memory pipe on a paused clock; and once over real TLS.

mod address;
mod answer;
mod certificate;
mod client;
mod faulty;
mod goaway;
mod honest;
mod key;
mod limit;
mod slow;
mod timeline;
mod tls;
