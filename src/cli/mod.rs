//! The subcommands of `ringcast`, one file each.

pub mod check;
pub mod topology;
