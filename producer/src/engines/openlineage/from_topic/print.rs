//! A dry run: the reports of all events that the topic holds.

use std::collections::BTreeMap;

use anyhow::anyhow;
use jiff::Timestamp;
use rdkafka::message::Message;
use service::range::{End, Ranges, Reader};
use service::words::counted;
use tokio::task::block_in_place;

use crate::dry_run::Printer;
use crate::engines::openlineage::event::Event;
use crate::engines::openlineage::options::Options;
use crate::engines::openlineage::runs::{Runs, Taken};
use crate::session::Setup;

pub(super) async fn run(options: &Options, setup: &Setup) -> anyhow::Result<()> {
    let topic = &options.from_topic;
    let cluster = setup.kafka.cluster_soon(&setup.shutdown).await?;
    let cluster = cluster.ok_or_else(|| anyhow!("stopped by a signal"))?;
    let partitions = i32::try_from(cluster.require_topic(topic, "Read", None).await?)?;
    let reader = Reader::connect(&setup.kafka)?;
    let printer = Printer::new(setup.health.clone(), setup.shutdown.clone());
    let mut refused = 0_u64;
    let mut runs: BTreeMap<i32, Runs> = BTreeMap::new();
    let read = block_in_place(|| {
        let bounds = |partition| {
            let log = reader.bounds(topic, partition, End::Stable)?;
            Ok((partition, log))
        };
        let logs: Ranges = (0..partitions).map(bounds).collect::<anyhow::Result<_>>()?;
        reader.scan(topic, &logs, &setup.shutdown, |record| {
            let (partition, offset) = (record.partition(), record.offset());
            let runs = runs.entry(partition);
            let runs = runs.or_insert_with(|| Runs::new(options.runs as usize));
            let received = record.timestamp().to_millis();
            let received = received.and_then(|ms| Timestamp::from_millisecond(ms).ok());
            let event = record.payload().unwrap_or_default();
            let received = received.unwrap_or_else(Timestamp::now);
            match Event::parse(event).and_then(|event| runs.take(event, received)) {
                Ok(Taken::Report(info)) => {
                    printer.print(&info);
                }
                Ok(Taken::NoRun) => {}
                Err(why) => {
                    refused += 1;
                    tracing::warn!(topic, partition, offset, "{}", why.reason);
                }
            }
            Ok(())
        })
    });
    printer.check()?;
    if printer.reader_has_gone() {
        return Ok(());
    }
    read?;
    let reports = counted(printer.printed(), "report");
    let letters = counted(refused, "dead letter");
    tracing::info!("would have sent {reports}, {letters}");
    Ok(())
}
