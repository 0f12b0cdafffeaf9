-- By psql, as a role that may make roles, before dashboards.sql: the role that Grafana reads with, and its password as it stands in a
-- file.
\set password `cat /run/secrets/grafana-postgres-password`
SELECT 'CREATE ROLE taskrunning_grafana LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'taskrunning_grafana') \gexec
ALTER ROLE taskrunning_grafana PASSWORD :'password';
