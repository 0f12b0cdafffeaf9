-- The same tables as on PostgreSQL. Times are bigint microseconds since 1970-01-01T00:00:00Z, because no time type has the
-- years 1 to 9999; the views show them as datetime(6) in UTC. Arrays and metrics are JSON texts, kept as they are: MySQL's
-- type json would sort keys and round numbers. COLLATION is the server's one that compares texts by bytes, trailing
-- spaces included.
--
-- Each statement can run again: MySQL commits after each, so a migration may end in the middle. Nothing here begins a
-- transaction.

-- The newest state of each exec task: the maximum of its reports by
-- (is_final, reported_at, sequence, event_partition, event_offset), so that arrival order never matters.
CREATE TABLE IF NOT EXISTS task (
    task_id           bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    exec_id           varchar(512) NOT NULL,
    job_id            varchar(512) NOT NULL,
    engine_instance   varchar(512) NOT NULL,
    engine_type       varchar(512) NOT NULL,
    engine_user       varchar(512) NOT NULL,
    ticket_id         varchar(512) NOT NULL,
    status            varchar(32) NOT NULL,
    is_final          boolean NOT NULL,
    progress          double,
    reported_at       bigint NOT NULL,
    sequence          bigint NOT NULL,
    event_partition   int NOT NULL,
    event_offset      bigint NOT NULL,
    -- The least times of all its reports, and of its final ones.
    first_reported_at bigint,
    ended_at          bigint,
    -- What lists of ended tasks are ordered by.
    final_reported_at bigint GENERATED ALWAYS AS (CASE WHEN is_final THEN reported_at END) VIRTUAL,
    UNIQUE KEY task_by_name (exec_id),
    KEY task_by_start (is_final, first_reported_at),
    KEY task_final_by_report (final_reported_at),
    KEY task_by_job (job_id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE COLLATION;

-- The three histories: append-only, one row set per event, keyed narrowly. There is no foreign key and no unique key on
-- (event_partition, event_offset): rows commit together with consumed_offset, which is what keeps them single. row_id is
-- the order of storing, and the address of a row.
CREATE TABLE IF NOT EXISTS task_progress (
    row_id          bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    task_id         bigint NOT NULL,
    event_offset    bigint NOT NULL,
    reported_at     bigint NOT NULL,
    sequence        bigint NOT NULL,
    progress        double,
    event_partition int NOT NULL,
    status          varchar(32) NOT NULL,
    job_ids         longtext,
    job_tasks       longtext,
    adjustments     longtext,
    KEY task_progress_by_task (task_id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE COLLATION;

CREATE TABLE IF NOT EXISTS task_resource (
    row_id          bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    task_id         bigint NOT NULL,
    event_offset    bigint NOT NULL,
    reported_at     bigint NOT NULL,
    memory_bytes    bigint NOT NULL,
    event_partition int NOT NULL,
    cores           int NOT NULL,
    instances       int NOT NULL,
    application_id  longtext NOT NULL,
    queue           longtext NOT NULL,
    status          longtext NOT NULL,
    KEY task_resource_by_task (task_id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE COLLATION;

CREATE TABLE IF NOT EXISTS task_metrics (
    row_id               bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    task_id              bigint NOT NULL,
    event_offset         bigint NOT NULL,
    reported_at          bigint NOT NULL,
    event_partition      int NOT NULL,
    engine_running_tasks int NOT NULL,
    metrics              longtext,
    KEY task_metrics_by_task (task_id)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE COLLATION;

-- How far each part of each partition is stored, and what identifies the topic it came from: the cluster, the topic's
-- id, and the last stored record's offset, timestamp and checksum.
CREATE TABLE IF NOT EXISTS consumed_offset (
    part                varchar(16) NOT NULL,
    topic               varchar(249) NOT NULL,
    "partition"         int NOT NULL,
    first_offset        bigint,
    next_offset         bigint NOT NULL,
    cluster_id          longtext NOT NULL,
    anchor_offset       bigint NOT NULL,
    anchor_timestamp_ms bigint NOT NULL,
    anchor_crc32        bigint NOT NULL,
    group_id            longtext NOT NULL,
    topic_id            longtext,
    updated_at          bigint NOT NULL,
    PRIMARY KEY (part, topic, "partition")
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE COLLATION;

-- Up to when history was removed by order (consumer expire): at most one row.
CREATE TABLE IF NOT EXISTS expiry (
    only_row        boolean NOT NULL DEFAULT true PRIMARY KEY CHECK (only_row = true),
    reported_before bigint NOT NULL,
    updated_at      bigint NOT NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE COLLATION;

CREATE OR REPLACE SQL SECURITY INVOKER VIEW task_progress_history AS
    SELECT t.exec_id, t.job_id, t.engine_instance,
           timestamp '1970-01-01 00:00:00' + INTERVAL h.reported_at MICROSECOND AS reported_at, h.sequence, h.status,
           h.progress, h.job_ids, json_extract(h.job_tasks, '$[0]') AS total_tasks,
           json_extract(h.job_tasks, '$[1]') AS running_tasks, json_extract(h.job_tasks, '$[2]') AS failed_tasks,
           json_extract(h.job_tasks, '$[3]') AS succeed_tasks, h.adjustments, h.event_partition, h.event_offset
    FROM task_progress h JOIN task t ON t.task_id = h.task_id;

CREATE OR REPLACE SQL SECURITY INVOKER VIEW task_resource_history AS
    SELECT t.exec_id, t.job_id, t.engine_instance,
           timestamp '1970-01-01 00:00:00' + INTERVAL h.reported_at MICROSECOND AS reported_at, h.application_id,
           h.memory_bytes, h.cores, h.instances, h.queue, h.status, h.event_partition, h.event_offset
    FROM task_resource h JOIN task t ON t.task_id = h.task_id;

CREATE OR REPLACE SQL SECURITY INVOKER VIEW task_metrics_history AS
    SELECT t.exec_id, t.job_id, t.engine_instance,
           timestamp '1970-01-01 00:00:00' + INTERVAL h.reported_at MICROSECOND AS reported_at, h.engine_running_tasks,
           h.metrics, h.event_partition, h.event_offset
    FROM task_metrics h JOIN task t ON t.task_id = h.task_id;
