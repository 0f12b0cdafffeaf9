-- Where what is stored of a part and partition begins: the offset of the first record that was ever
-- stored of it. Null where that was stored before there was this column.
ALTER TABLE consumed_offset ADD COLUMN first_offset bigint;
