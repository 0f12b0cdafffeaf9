-- Grafana's role, with the password from a file. Run it by psql before dashboards.sql, as a role that may create roles.
\set password `cat /run/secrets/grafana-postgres-password`
SELECT 'CREATE ROLE taskrunning_grafana LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'taskrunning_grafana') \gexec
ALTER ROLE taskrunning_grafana PASSWORD :'password';
-- Everybody who may open a dashboard may send any query as this role.
ALTER ROLE taskrunning_grafana SET default_transaction_read_only = on;
ALTER ROLE taskrunning_grafana SET statement_timeout = '30s';
ALTER ROLE taskrunning_grafana SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE taskrunning_grafana CONNECTION LIMIT 10;
