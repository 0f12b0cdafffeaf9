//! Errors classified by the reaction of a program. Each counts anywhere in the chain of causes:
//! `anyhow::Error::is` finds it.

/// A configuration error that needs an operator; a restart does not help. See
/// [`CONFIG`](crate::exit::CONFIG).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NeedsAttention(pub String);

/// Wrong usage, or wrong input to a command that ends by itself; see [`USAGE`](crate::exit::USAGE).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongUsage(pub String);

/// An error that new clients inside the same process cure: they settle open transactions and continue from
/// the committed offsets.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartOver(pub String);

/// Kafka has fenced this process. [`rival::look_for`](crate::rival::look_for) checks whether another process
/// has its identity.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fenced(pub String);
