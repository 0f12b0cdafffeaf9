-- Up to when history was removed by order (consumer expire): at most one row, which is written in the
-- transaction that removes the first rows, and never moves back. Rows that were reported before then
-- may be there or not; nothing is proven of them.
CREATE TABLE expiry (
    only_row        INTEGER NOT NULL DEFAULT 1 PRIMARY KEY CHECK (only_row = 1),
    reported_before INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL
) WITHOUT ROWID;
