//! What APNs did to senders, once each: `ringcast pipe`, the built program, against the simulator over real TLS.
//!
//! Each test is named after its incident, and ends by the sums of both sides ([`stage`]): what the worker said became of
//! each call, and what Apple's side saw of it. How long recovery may take is judged on virtual time elsewhere; here
//! nothing but the deadlines of the calls is about time.

mod answer;
mod cut;
mod goaway;
mod limit;
mod provider_token;
mod relay;
mod stage;
mod sums;
mod token;
