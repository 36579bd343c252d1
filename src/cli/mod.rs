//! The subcommands of `ringcast`, one file each.

pub mod check;
pub mod connect;
pub mod pipe;
pub mod topology;
pub mod watch;
