//! The pure part: what an invite is, what a push looks like, what an answer means, what to do next.
//!
//! Nothing here knows tokio, a clock, randomness or a network: time comes in as an argument, a decision goes out as a
//! value.

pub mod app;
pub mod id;
pub mod invite;
pub mod json;
pub mod outcome;
pub mod policy;
pub mod push;
pub mod response;
pub mod timestamp;
pub mod token_event;
pub mod trace;
