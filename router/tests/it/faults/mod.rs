//! What may befall a router: it stands still, it is doubled, its broker freezes or goes away, its
//! topic grows, or loses what it had not read.

mod brokers;
mod stand_still;
mod topics;
