//! An audit does not treat absence as proof: a row is wrong only if the topic's own record at its offset proves it.
//! Unprovable rows are reported and left alone.

mod absent;
mod positions;
mod repair;

use std::time::Duration;

use crate::strategies;
use crate::support::Pipeline;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

impl Pipeline {
    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .create()
            .unwrap()
    }

    async fn alter(&self, settings: &[(&str, &str)]) {
        let mut altered = AlterConfig::new(ResourceSpecifier::Topic(&self.events));
        for (name, value) in settings {
            altered = altered.set(name, value);
        }
        let options = AdminOptions::new();
        for answer in self
            .admin()
            .alter_configs([&altered], &options)
            .await
            .unwrap()
        {
            answer.unwrap();
        }
    }

    fn transact(&self, count: usize, commit: bool) {
        let within = Duration::from_secs(30);
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("transactional.id", format!("{}-engine", self.events))
            .create()
            .unwrap();
        producer.init_transactions(within).unwrap();
        producer.begin_transaction().unwrap();
        let mut event = strategies::sample_event();
        event.info.exec_id = "transacted".to_owned();
        for _ in 0..count {
            let value = schemas::encode_event(&event).unwrap();
            let record = BaseRecord::<str, [u8]>::to(&self.events).payload(&value);
            let record = record.key("k").partition(0);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(within).unwrap();
        match commit {
            true => producer.commit_transaction(within).unwrap(),
            false => producer.abort_transaction(within).unwrap(),
        }
    }
}
