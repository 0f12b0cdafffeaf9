-- The four counts of a report's jobs as one array instead of four, which each had a head of 20 bytes:
-- job_tasks[1] are the total tasks, [2] the running, [3] the failed and [4] the succeeded, each in the
-- order of job_ids. Rewrites the table once.
DROP VIEW task_progress_history;

ALTER TABLE task_progress
    ALTER COLUMN total_tasks TYPE integer[] USING CASE WHEN total_tasks IS NOT NULL
        THEN ARRAY[total_tasks, running_tasks, failed_tasks, succeed_tasks] END,
    DROP COLUMN running_tasks,
    DROP COLUMN failed_tasks,
    DROP COLUMN succeed_tasks;
ALTER TABLE task_progress RENAME COLUMN total_tasks TO job_tasks;

CREATE VIEW task_progress_history AS
    SELECT t.exec_id, t.job_id, t.engine_instance, h.reported_at, h.sequence, h.status, h.progress, h.job_ids,
           CASE WHEN h.job_tasks IS NOT NULL THEN ARRAY(SELECT unnest(h.job_tasks[1:1])) END AS total_tasks,
           CASE WHEN h.job_tasks IS NOT NULL THEN ARRAY(SELECT unnest(h.job_tasks[2:2])) END AS running_tasks,
           CASE WHEN h.job_tasks IS NOT NULL THEN ARRAY(SELECT unnest(h.job_tasks[3:3])) END AS failed_tasks,
           CASE WHEN h.job_tasks IS NOT NULL THEN ARRAY(SELECT unnest(h.job_tasks[4:4])) END AS succeed_tasks,
           h.adjustments, h.event_partition, h.event_offset
    FROM task_progress h JOIN task t USING (task_id);
