-- The same tables as on PostgreSQL. Times are INTEGER microseconds since 1970-01-01T00:00:00Z, arrays and
-- metrics are JSON TEXT; the views show times as ISO 8601 text.

-- The newest state of each exec task: the maximum of its reports by
-- (is_final, reported_at, sequence, event_partition, event_offset), so that arrival order never matters.
CREATE TABLE task (
    task_id         INTEGER PRIMARY KEY,
    exec_id         TEXT NOT NULL UNIQUE,
    job_id          TEXT NOT NULL,
    engine_instance TEXT NOT NULL,
    engine_type     TEXT NOT NULL,
    engine_user     TEXT NOT NULL,
    ticket_id       TEXT NOT NULL,
    status          TEXT NOT NULL,
    is_final        INTEGER NOT NULL,
    progress        REAL,
    reported_at     INTEGER NOT NULL,
    sequence        INTEGER NOT NULL,
    event_partition INTEGER NOT NULL,
    event_offset    INTEGER NOT NULL
);

-- The three histories: append-only, one row set per event, keyed narrowly. There is no foreign key
-- and no unique key on (event_partition, event_offset): rows commit together with consumed_offset,
-- which is what keeps them single.
CREATE TABLE task_progress (
    task_id         INTEGER NOT NULL,
    event_offset    INTEGER NOT NULL,
    reported_at     INTEGER NOT NULL,
    sequence        INTEGER NOT NULL,
    progress        REAL,
    event_partition INTEGER NOT NULL,
    status          TEXT NOT NULL,
    job_ids         TEXT,
    total_tasks     TEXT,
    running_tasks   TEXT,
    failed_tasks    TEXT,
    succeed_tasks   TEXT,
    adjustments     TEXT
);

CREATE TABLE task_resource (
    task_id         INTEGER NOT NULL,
    event_offset    INTEGER NOT NULL,
    reported_at     INTEGER NOT NULL,
    memory_bytes    INTEGER NOT NULL,
    event_partition INTEGER NOT NULL,
    cores           INTEGER NOT NULL,
    instances       INTEGER NOT NULL,
    application_id  TEXT NOT NULL,
    queue           TEXT NOT NULL,
    status          TEXT NOT NULL
);

CREATE TABLE task_metrics (
    task_id              INTEGER NOT NULL,
    event_offset         INTEGER NOT NULL,
    reported_at          INTEGER NOT NULL,
    event_partition      INTEGER NOT NULL,
    engine_running_tasks INTEGER NOT NULL,
    metrics              TEXT
);

CREATE INDEX task_progress_by_task ON task_progress (task_id, reported_at);
CREATE INDEX task_resource_by_task ON task_resource (task_id, reported_at);
CREATE INDEX task_metrics_by_task ON task_metrics (task_id, reported_at);

-- How far each part of each partition is stored, and what identifies the topic it came from: the
-- cluster, and the last stored record's offset, timestamp and checksum.
CREATE TABLE consumed_offset (
    part                TEXT NOT NULL,
    topic               TEXT NOT NULL,
    partition           INTEGER NOT NULL,
    next_offset         INTEGER NOT NULL,
    cluster_id          TEXT NOT NULL,
    anchor_offset       INTEGER NOT NULL,
    anchor_timestamp_ms INTEGER NOT NULL,
    anchor_crc32        INTEGER NOT NULL,
    group_id            TEXT NOT NULL,
    updated_at          INTEGER NOT NULL,
    PRIMARY KEY (part, topic, partition)
) WITHOUT ROWID;

CREATE VIEW task_progress_history AS
    SELECT t.exec_id, t.job_id, t.engine_instance, strftime('%Y-%m-%dT%H:%M:%S', (h.reported_at - (h.reported_at % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch')
               || printf('.%06dZ', (h.reported_at % 1000000 + 1000000) % 1000000) AS reported_at, h.sequence, h.status, h.progress,
           h.job_ids, h.total_tasks, h.running_tasks, h.failed_tasks, h.succeed_tasks, h.adjustments,
           h.event_partition, h.event_offset
    FROM task_progress h JOIN task t USING (task_id);

CREATE VIEW task_resource_history AS
    SELECT t.exec_id, t.job_id, t.engine_instance, strftime('%Y-%m-%dT%H:%M:%S', (h.reported_at - (h.reported_at % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch')
               || printf('.%06dZ', (h.reported_at % 1000000 + 1000000) % 1000000) AS reported_at, h.application_id, h.memory_bytes,
           h.cores, h.instances, h.queue, h.status, h.event_partition, h.event_offset
    FROM task_resource h JOIN task t USING (task_id);

CREATE VIEW task_metrics_history AS
    SELECT t.exec_id, t.job_id, t.engine_instance, strftime('%Y-%m-%dT%H:%M:%S', (h.reported_at - (h.reported_at % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch')
               || printf('.%06dZ', (h.reported_at % 1000000 + 1000000) % 1000000) AS reported_at, h.engine_running_tasks, h.metrics,
           h.event_partition, h.event_offset
    FROM task_metrics h JOIN task t USING (task_id);
