-- A task's reports are few and found by their task alone.
DROP INDEX task_progress_by_task;
DROP INDEX task_resource_by_task;
DROP INDEX task_metrics_by_task;
CREATE INDEX task_progress_by_task ON task_progress (task_id);
CREATE INDEX task_resource_by_task ON task_resource (task_id);
CREATE INDEX task_metrics_by_task ON task_metrics (task_id);
