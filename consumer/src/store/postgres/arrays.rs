//! The states of tasks as one array per column: the parameters of `unnest`.

use schemas::Job;
use serde::Serialize;

use crate::batch::Tasks;
use crate::row_format::ValueSink;
use crate::tables::{Column, Kind, Table, TaskKey};

/// The values of one column.
pub(super) enum Array<'a> {
    I32(Vec<Option<i32>>),
    I64(Vec<Option<i64>>),
    F64(Vec<Option<f64>>),
    Bool(Vec<Option<bool>>),
    Text(Vec<Option<&'a str>>),
}

pub(super) struct Arrays<'a> {
    pub(super) columns: Vec<Array<'a>>,
    /// The index of the next value's column.
    next: usize,
}

impl<'a> Arrays<'a> {
    pub(super) fn of(tasks: &Tasks<'a>) -> Self {
        let array = |column: &Column| {
            let rows = tasks.newest.len();
            match column.kind {
                Kind::I32 => Array::I32(Vec::with_capacity(rows)),
                Kind::I64 | Kind::Time => Array::I64(Vec::with_capacity(rows)),
                Kind::F64 => Array::F64(Vec::with_capacity(rows)),
                Kind::Bool => Array::Bool(Vec::with_capacity(rows)),
                Kind::Text | Kind::Texts | Kind::JobTasks | Kind::Json => {
                    Array::Text(Vec::with_capacity(rows))
                }
            }
        };
        let mut arrays = Self {
            columns: Table::Task.columns().iter().map(array).collect(),
            next: 0,
        };
        for rows in &tasks.newest {
            Table::Task.write(&mut arrays, rows, TaskKey::ExecId);
        }
        arrays
    }
}

/// PostgreSQL has no arrays of arrays of different lengths.
const _: () = {
    let (columns, mut place) = (Table::Task.columns(), 0);
    while place < columns.len() {
        let kind = columns[place].kind;
        assert!(!matches!(kind, Kind::Texts | Kind::JobTasks | Kind::Json));
        place += 1;
    }
};

macro_rules! push {
    ($arrays:ident, $array:ident, $value:expr) => {
        if let Some(Array::$array(values)) = $arrays.columns.get_mut($arrays.next) {
            values.push(Some($value));
        }
        $arrays.next += 1;
    };
}

impl<'a> ValueSink<'a> for Arrays<'a> {
    fn row(&mut self, _columns: usize) {
        self.next = 0;
    }

    fn null(&mut self) {
        match self.columns.get_mut(self.next) {
            Some(Array::I32(values)) => values.push(None),
            Some(Array::I64(values)) => values.push(None),
            Some(Array::F64(values)) => values.push(None),
            Some(Array::Bool(values)) => values.push(None),
            Some(Array::Text(values)) => values.push(None),
            None => {}
        }
        self.next += 1;
    }

    fn i32(&mut self, value: i32) {
        push!(self, I32, value);
    }

    fn i64(&mut self, value: i64) {
        push!(self, I64, value);
    }

    fn f64(&mut self, value: f64) {
        push!(self, F64, value);
    }

    fn bool(&mut self, value: bool) {
        push!(self, Bool, value);
    }

    fn time(&mut self, micros: i64) {
        push!(self, I64, micros);
    }

    fn text(&mut self, text: &'a str) {
        push!(self, Text, text);
    }

    // `task` has no columns of these kinds.

    fn texts<'t>(&mut self, _: impl ExactSizeIterator<Item = &'t str>) {}

    fn job_tasks(&mut self, _: &[Job<'_>]) {}

    fn json(&mut self, _: &impl Serialize) {}
}
