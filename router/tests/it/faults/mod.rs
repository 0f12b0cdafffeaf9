//! Faults of a router: it is suspended or duplicated, its broker freezes or disappears, its topic grows, or
//! loses unread records.

mod brokers;
mod stand_still;
mod topics;
