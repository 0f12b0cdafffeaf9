-- When a task was first heard of and when it ended: the least times of all its reports, and of its final ones, in
-- whatever order they are stored. Filled from what task_progress holds and from the newest state. One UPDATE of all
-- tasks, which reads task_progress once. Null: stored by an older version since; such a row is a finding of an audit.
ALTER TABLE task ADD COLUMN first_reported_at INTEGER;
ALTER TABLE task ADD COLUMN ended_at INTEGER;

UPDATE task SET
    first_reported_at = min(task.reported_at, coalesce(h.first_reported_at, task.reported_at)),
    ended_at = CASE WHEN task.is_final THEN min(task.reported_at, coalesce(h.ended_at, task.reported_at)) END
FROM task t
LEFT JOIN (
    SELECT task_id, min(reported_at) AS first_reported_at,
           min(CASE WHEN status IN ('Succeed', 'Failed', 'Cancelled', 'Timeout') THEN reported_at END) AS ended_at
    FROM task_progress GROUP BY task_id
) h ON h.task_id = t.task_id
WHERE task.task_id = t.task_id;

-- What lists of tasks are ordered by. PostgreSQL updates a task in place only while no column of any index changes, a
-- partial one's included: so the last report of the tasks that have ended is a column of its own, and those that have
-- not, which are few, are sorted when a list is read. Each index costs an entry when a task is first stored or ends.
ALTER TABLE task ADD COLUMN final_reported_at INTEGER GENERATED ALWAYS AS (CASE WHEN is_final THEN reported_at END) VIRTUAL;
CREATE INDEX task_not_final ON task (first_reported_at) WHERE NOT is_final;
CREATE INDEX task_final_by_start ON task (first_reported_at) WHERE is_final;
CREATE INDEX task_final_by_report ON task (final_reported_at) WHERE is_final;
CREATE INDEX task_by_job ON task (job_id);
