//! A topic's limit that could not be read at first is read later.

use std::net::{TcpListener, TcpStream};

use rdkafka::error::KafkaError;
use service::kafka::KafkaOptions;
use service::limits::{DEFAULT_RECORD_BYTES, SizeLimits};
use service::testing::{Topic, create_topics, free_port, kafka, set_max_bytes, unique};

/// Lets clients reach the broker through this port from now on.
fn open(port: u16, broker: String) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, broker) = (client.unwrap(), TcpStream::connect(&broker).unwrap());
            let ways = [
                (client.try_clone().unwrap(), broker.try_clone().unwrap()),
                (broker, client),
            ];
            for (mut from, mut to) in ways {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_was_not_answered_at_start_is_read_before_a_record_counts_as_too_large() {
    let Some(bootstrap) = kafka() else { return };
    let name = unique("limits");
    let topic = Topic {
        name: &name,
        partitions: 1,
        settings: &[("max.message.bytes", "5000000")],
    };
    create_topics(&bootstrap, &[topic]).await;
    let port = free_port();
    let options = KafkaOptions {
        bootstrap_servers: format!("127.0.0.1:{port}"),
        kafka_config: None,
        settings: Vec::new(),
        schema_registry: None,
        client_id: None,
    };
    let mut limits = SizeLimits::read(&options, &[&name]).await.unwrap();
    assert_eq!(limits.record_bytes(&name), DEFAULT_RECORD_BYTES);
    let unanswered = limits.confirm().await.unwrap_err();
    assert!(unanswered.is::<KafkaError>(), "{unanswered:#}");

    open(port, bootstrap.clone());
    assert!(limits.confirm().await.unwrap());
    assert_eq!(limits.record_bytes(&name), 5_000_000 - 128);
    // A limit read within the last seconds is not read again, except after a refusal.
    set_max_bytes(&bootstrap, &name, 3_000).await;
    assert!(!limits.confirm().await.unwrap());
    assert!(limits.read_again().await.unwrap());
    assert_eq!(
        (limits.record_bytes(&name), limits.smallest()),
        (2_872, 2_872)
    );
}
