-- By psql, as a role that may make roles, before dashboards.sql: the role that Grafana reads with, and its password as it stands in a
-- file.
\set password `cat /run/secrets/grafana-postgres-password`
SELECT 'CREATE ROLE taskrunning_grafana LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'taskrunning_grafana') \gexec
ALTER ROLE taskrunning_grafana PASSWORD :'password';
-- Whoever may open a dashboard may send any query as this role.
ALTER ROLE taskrunning_grafana SET default_transaction_read_only = on;
ALTER ROLE taskrunning_grafana SET statement_timeout = '30s';
ALTER ROLE taskrunning_grafana SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE taskrunning_grafana CONNECTION LIMIT 10;
