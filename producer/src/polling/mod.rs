//! Shared by the adapters that poll an engine's REST API: following what a server lists, a client with limits, bounded
//! parallel polls, faults that are logged once, how long something has been silent, and values within the limits of a
//! report.

pub(crate) mod complaints;
mod elements;
pub(crate) mod follow;
pub(crate) mod limits;
pub(crate) mod poll_limit;
pub(crate) mod rest;
pub(crate) mod server;
pub(crate) mod silence;
