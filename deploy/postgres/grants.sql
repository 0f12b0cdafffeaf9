-- Run by the owner of the tables, after each `consumer migrate`.

-- consumer run
GRANT SELECT ON _sqlx_migrations TO taskrunning_writer;
GRANT SELECT, INSERT, UPDATE ON consumed_offset, task TO taskrunning_writer;
GRANT INSERT ON task_progress, task_resource, task_metrics TO taskrunning_writer;

-- consumer tasks, task, series, usage, jobs, engines, top, serve, audit, diff
GRANT SELECT ON consumed_offset, expiry, task, task_progress, task_resource, task_metrics TO taskrunning_reader;

-- Queries of your own
GRANT SELECT ON task_progress_history, task_resource_history, task_metrics_history TO taskrunning_reader;
