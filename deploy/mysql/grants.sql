-- Run by the owner of the tables, in their database, after each `consumer migrate`.

-- consumer run
GRANT SELECT ON _sqlx_migrations TO taskrunning_writer;
GRANT SELECT, INSERT, UPDATE ON consumed_offset TO taskrunning_writer;
GRANT SELECT, INSERT, UPDATE ON task TO taskrunning_writer;
GRANT INSERT ON task_progress TO taskrunning_writer;
GRANT INSERT ON task_resource TO taskrunning_writer;
GRANT INSERT ON task_metrics TO taskrunning_writer;

-- consumer tasks, task, series, usage, jobs, engines, top, serve, audit, diff
GRANT SELECT ON consumed_offset TO taskrunning_reader;
GRANT SELECT ON expiry TO taskrunning_reader;
GRANT SELECT ON task TO taskrunning_reader;
GRANT SELECT ON task_progress TO taskrunning_reader;
GRANT SELECT ON task_resource TO taskrunning_reader;
GRANT SELECT ON task_metrics TO taskrunning_reader;

-- Queries of your own
GRANT SELECT ON task_progress_history TO taskrunning_reader;
GRANT SELECT ON task_resource_history TO taskrunning_reader;
GRANT SELECT ON task_metrics_history TO taskrunning_reader;
