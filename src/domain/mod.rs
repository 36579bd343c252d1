//! The pure part: what an invite is, what a push looks like, what an answer means, what to do next.
//!
//! Nothing here knows tokio, a clock, randomness or a network.

pub mod app;
