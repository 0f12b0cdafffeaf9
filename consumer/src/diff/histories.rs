//! Compares the three histories: first by their sums of hashes, then row by row where those differ.

use std::collections::BTreeMap;

use anyhow::anyhow;
use tokio::task::block_in_place;

use super::compared::Compared;
use super::side::{Side, read_both};
use crate::audit::fingerprint::{Marks, Outside, Plan};
use crate::audit::merge::{Evidence, merge};
use crate::audit::moved::find_moved;
use crate::audit::spans::{NEAR, join};
use crate::audit::spinner;
use crate::store::{Order, Selection};
use crate::tables::Table;

/// Compares the histories over the shared range.
///
/// # Errors
/// If a database cannot be read.
pub(super) async fn compare_histories(
    a: &mut Side,
    b: &mut Side,
    compared: &mut Compared,
) -> anyhow::Result<()> {
    let plan = Plan::new(&compared.spans);
    let reported_from = a.expired_before.max(b.expired_before);
    let bar = spinner("rows");
    let (of_a, of_b) = block_in_place(|| {
        let runtime = tokio::runtime::Handle::current();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| runtime.block_on(b.fingerprint(&plan, reported_from, &bar)));
            let of_a = runtime.block_on(a.fingerprint(&plan, reported_from, &bar));
            (of_a, other.join())
        })
    });
    bar.finish_and_clear();
    let of_b = of_b.map_err(|_| anyhow!("{} failed", b.asking()))?;
    let (of_a, of_b) = (of_a?, of_b?);
    for ((table, partition), places) in of_a.differing(&of_b) {
        let places = join(&places, NEAR);
        let selection = |addressed: bool| {
            let of_partition = places.iter().map(|place| (partition, place.clone()));
            Selection {
                addressed,
                order: Some(Order::Place),
                reported_from,
                ..Selection::of_table(table, Some(of_partition.collect()))
            }
        };
        let findings = &mut compared.findings;
        read_both(
            a,
            b,
            [selection(false), selection(true)],
            async |mut feeds| {
                let evidence = Evidence {
                    dead_lettered: &Marks::default(),
                    records: None, // A takes the place of the topic
                };
                merge(&mut feeds, table, &evidence, findings).await;
                Ok(())
            },
        )
        .await?;
    }
    find_moved(&mut compared.findings);
    let rows = |outside: &BTreeMap<(Table, i32), Outside>| {
        let rows =
            |(at, outside): (&(Table, i32), &Outside)| (*at, outside.before + outside.behind);
        outside.iter().map(rows).collect()
    };
    compared.outside = [rows(&of_a.outside), rows(&of_b.outside)];
    compared.rows = [of_a.rows(), of_b.rows()];
    Ok(())
}
