-- Kafka's id of the topic that this was stored from (KIP-516): a topic that was deleted and created again has another
-- one. Null where it was stored before there was this column, or where the brokers give none.
ALTER TABLE consumed_offset ADD COLUMN topic_id TEXT;

-- next_offset is the position of a committed reader: it passes commit markers and aborted records, so it may be larger
-- than anchor_offset + 1. Where no record was stored yet there is no anchor: anchor_offset and anchor_timestamp_ms are
-- -1, and anchor_crc32 is 0.
