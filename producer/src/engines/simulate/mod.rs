//! `producer simulate`: reports of made-up tasks.

mod run;
mod simulation;

pub use self::run::{Options, run};
pub use self::simulation::{Clock, Simulation};
