//! Errors by what a program does about them. Each counts anywhere in the chain of causes: `anyhow::Error::is` finds it.

/// An error that no restart cures; see [`CONFIG`](crate::exit::CONFIG).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NeedsAttention(pub String);

/// Wrong usage, or wrong input to a command that ends by itself; see [`USAGE`](crate::exit::USAGE).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongUsage(pub String);

/// An error that starting over inside the program cures: with new clients everything that is open is
/// settled and read on from.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartOver(pub String);

/// Kafka takes another process for the one with this identity. [`rival::look_for`](crate::rival::look_for) finds out
/// whether there is one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fenced(pub String);
