-- The four counts of a report's jobs as one array of arrays: total, running, failed and succeeded
-- tasks, each in the order of job_ids.
DROP VIEW task_progress_history;

UPDATE task_progress
    SET total_tasks = json_array(json(total_tasks), json(running_tasks), json(failed_tasks), json(succeed_tasks))
    WHERE total_tasks IS NOT NULL;
ALTER TABLE task_progress RENAME COLUMN total_tasks TO job_tasks;
ALTER TABLE task_progress DROP COLUMN running_tasks;
ALTER TABLE task_progress DROP COLUMN failed_tasks;
ALTER TABLE task_progress DROP COLUMN succeed_tasks;

CREATE VIEW task_progress_history AS
    SELECT t.exec_id, t.job_id, t.engine_instance, strftime('%Y-%m-%dT%H:%M:%S', (h.reported_at - (h.reported_at % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch')
               || printf('.%06dZ', (h.reported_at % 1000000 + 1000000) % 1000000) AS reported_at, h.sequence, h.status, h.progress,
           h.job_ids, json_extract(h.job_tasks, '$[0]') AS total_tasks, json_extract(h.job_tasks, '$[1]') AS running_tasks,
           json_extract(h.job_tasks, '$[2]') AS failed_tasks, json_extract(h.job_tasks, '$[3]') AS succeed_tasks,
           h.adjustments, h.event_partition, h.event_offset
    FROM task_progress h JOIN task t USING (task_id);
