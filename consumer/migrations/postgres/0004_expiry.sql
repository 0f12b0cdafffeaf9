-- Up to when history was removed by order (consumer expire): at most one row, which is written in the
-- transaction that removes the first rows, and never moves back. Rows that were reported before then
-- may be there or not; nothing is proven of them.
CREATE TABLE expiry (
    only_row        boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    reported_before timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL
);
