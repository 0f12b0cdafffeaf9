-- Schema of the tasks dashboard (deploy/observe/grafana/dashboards/tasks.json); recreated by each run.
-- Run it as the owner of the tables, who needs CREATE on the database, after each `consumer migrate`. The role taskrunning_grafana
-- must exist; it needs no other right. `DROP SCHEMA dashboards CASCADE` removes the schema, for example before a migration that changes a column used here.
BEGIN;
DROP SCHEMA IF EXISTS dashboards CASCADE;
CREATE SCHEMA dashboards;

-- The tasks that have not ended. is_running: as in `consumer tasks --running`; the engines of the others ended without reporting it.
-- silent_seconds: age of the last report if the task is silent by the default of `consumer tasks --silent`: at least 60 s, and at
-- least five times the median of its last nine intervals.
CREATE VIEW dashboards.open_tasks AS
    SELECT t.exec_id, t.job_id, t.engine_type, t.engine_instance, t.engine_user, t.status, t.progress, t.status <> 'Unknown' AS is_running,
           t.first_reported_at AS started_at, t.reported_at,
           extract(epoch FROM CASE WHEN t.status = 'Unknown' THEN t.reported_at ELSE now() END - t.first_reported_at)::double precision AS running_seconds,
           CASE WHEN t.reported_at <= now() - interval '60 seconds' AND now() - t.reported_at >= 5 * coalesce(
               (SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY gaps.gap)
                FROM (SELECT times.reported_at - lead(times.reported_at) OVER (ORDER BY times.reported_at DESC) AS gap
                      FROM (SELECT DISTINCT h.reported_at FROM task_progress h WHERE h.task_id = t.task_id
                            ORDER BY h.reported_at DESC LIMIT 10) AS times) AS gaps
                WHERE gaps.gap IS NOT NULL), interval '0')
           THEN extract(epoch FROM now() - t.reported_at)::double precision END AS silent_seconds
    FROM task t WHERE NOT t.is_final;

-- Resources of open tasks in their newest reports: one row per task and application.
CREATE VIEW dashboards.held_resources AS
    SELECT t.exec_id, t.engine_type, t.engine_user, r.application_id, r.queue, r.memory_bytes, r.cores, r.instances, r.reported_at
    FROM task t
    CROSS JOIN LATERAL (SELECT h.event_partition, h.event_offset FROM task_resource h WHERE h.task_id = t.task_id
                        ORDER BY h.reported_at DESC, h.event_partition DESC, h.event_offset DESC LIMIT 1) AS newest
    JOIN task_resource r ON r.task_id = t.task_id AND r.event_partition = newest.event_partition AND r.event_offset = newest.event_offset
    WHERE NOT t.is_final;

-- Usage between two times, computed as by `consumer usage` with its default gap of five minutes. A function, because the times
-- determine the rows to read; it reads the tables with their owner's rights.
CREATE FUNCTION dashboards.usage(since timestamptz, upto timestamptz)
    RETURNS TABLE (engine_user text, engine_type text, core_seconds double precision, memory_byte_seconds double precision,
                   instance_seconds double precision)
    LANGUAGE sql STABLE SECURITY DEFINER
BEGIN ATOMIC
    WITH t AS MATERIALIZED (
        SELECT task.task_id, task.engine_user, task.engine_type,
               CASE WHEN task.is_final THEN coalesce(task.ended_at, task.reported_at) ELSE least(upto, now()) END AS ended_at
        FROM task
        WHERE task.reported_at > since - interval '5 minutes' AND coalesce(task.first_reported_at < least(upto, now()), true)
    ), reports AS (
        SELECT t.engine_user, t.engine_type, t.ended_at, r.memory_bytes, r.cores, r.instances, r.reported_at AS at,
               lead(r.reported_at, 1, least(upto, now())) OVER (PARTITION BY r.application_id COLLATE "C"
                   ORDER BY r.reported_at, r.event_partition, r.event_offset) AS next_at
        FROM t JOIN task_resource r ON r.task_id = t.task_id
        WHERE r.reported_at > since - interval '5 minutes' AND r.reported_at < least(upto, now()) AND r.reported_at < t.ended_at
    ), held AS (
        SELECT reports.*, extract(epoch FROM least(next_at, ended_at, upto, now(), at + interval '5 minutes')
                                             - greatest(at, since))::double precision AS seconds
        FROM reports
    )
    SELECT held.engine_user, held.engine_type, sum(held.cores * held.seconds),
           sum(held.memory_bytes::double precision * held.seconds), sum(held.instances * held.seconds)
    FROM held WHERE held.seconds > 0 GROUP BY held.engine_user, held.engine_type;
END;

REVOKE ALL ON FUNCTION dashboards.usage FROM PUBLIC;
GRANT USAGE ON SCHEMA dashboards TO taskrunning_grafana;
GRANT SELECT ON dashboards.open_tasks, dashboards.held_resources TO taskrunning_grafana;
GRANT EXECUTE ON FUNCTION dashboards.usage TO taskrunning_grafana;
COMMIT;
