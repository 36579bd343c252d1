#![doc = include_str!("README.md")]

pub mod admin;
pub mod amqp;
pub mod apns;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod logging;
pub mod metrics;
pub mod otlp;
pub mod pause;
pub mod simulator;
pub mod worker;
