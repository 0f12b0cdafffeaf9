//! Text in the headers of records.

use rdkafka::message::{Header, Headers, Message, OwnedHeaders};

/// Headers of a record to send.
pub fn headers(list: &[(&str, String)]) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(list.len());
    list.iter().fold(empty, |headers, (key, value)| {
        headers.insert(Header {
            key,
            value: Some(value),
        })
    })
}

/// The text of the first header with this name.
pub fn header<'a>(record: &'a impl Message, name: &str) -> Option<&'a str> {
    let headers = record.headers()?;
    let found = headers.iter().find(|header| header.key == name)?;
    std::str::from_utf8(found.value?).ok()
}
