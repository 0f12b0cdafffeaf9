//! Schema resolution: converts bytes of one version of a schema to the bytes of another.
//!
//! A [`Resolution`] is created once for a writer's and a reader's schema, and checks that they are
//! compatible: by Avro's rules ("Schema Resolution") and one extension: a number of a wider type than the
//! reader's is accepted if its value fits. It then scans each record's bytes a single time.
//!
//! No claim in the bytes is trusted. A length is compared with the remaining bytes before anything is
//! allocated for it; an item takes at least one byte, or is not scanned at all; a number has at most ten
//! bytes. So time and memory are proportional to the size of the bytes. apache-avro 0.22's decoder does not
//! guarantee that: it allocates for claimed lengths, repeatedly for nested arrays (apache/avro-rs#639), reads
//! a truncated text as null, and ignores the size of a block.

mod datum;
mod plan;
mod schema;

use datum::{Fault, Input, within};
use plan::{Plan, Step};
use schema::MAX_DEPTH;

pub(crate) use schema::Parsed;

/// The resolution from one schema to another.
pub(crate) struct Resolution {
    writer: Parsed,
    step: Step,
}

impl Resolution {
    /// # Errors
    /// Where and why `writer` is incompatible with `reader`.
    pub(crate) fn new(writer: Parsed, reader: &Parsed) -> Result<Self, String> {
        let plan = Plan {
            writer: &writer,
            reader,
        };
        let step = plan.step(writer.schema(), reader.schema(), MAX_DEPTH)?;
        Ok(Self { writer, step })
    }

    /// Converts a datum of the writer's; returns the reader's bytes, and the number of bytes left over.
    pub(crate) fn resolve(&self, datum: &[u8]) -> Result<(Vec<u8>, usize), Fault> {
        let mut input = Input::new(datum);
        let mut output = Vec::with_capacity(datum.len());
        self.run(&self.step, &mut input, &mut output)?;
        Ok((output, input.left()))
    }

    fn run(&self, step: &Step, input: &mut Input<'_>, output: &mut Vec<u8>) -> Result<(), Fault> {
        match step {
            Step::Nothing => {}
            Step::Boolean => output.push(input.boolean()?),
            Step::Whole { from_int, to_int } => {
                let at = input.at;
                let number = if *from_int {
                    input.int()?
                } else {
                    input.long()?
                };
                if *to_int && i32::try_from(number).is_err() {
                    return Err(Fault::new(
                        at,
                        format!("{number} is more than the int of the version this program reads"),
                    ));
                }
                write_long(output, number);
            }
            Step::WholeToFloat => output.extend((input.long()? as f32).to_le_bytes()),
            Step::WholeToDouble => output.extend((input.long()? as f64).to_le_bytes()),
            Step::FloatToDouble => {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(input.take(4, "a float")?);
                output.extend(f64::from(f32::from_le_bytes(bytes)).to_le_bytes());
            }
            Step::Copied(size) => output.extend(input.take(*size, "fixed bytes")?),
            Step::Text => copy_text(input, output)?,
            Step::Enum(symbols) => {
                let symbol = symbols[input.index("symbol", symbols.len())?];
                write_long(output, symbol as i64);
            }
            Step::Array(items) => {
                while let Some(block) = input.block(true)? {
                    write_long(output, block.items as i64);
                    for _ in 0..block.items {
                        self.run(items, input, output)?;
                    }
                    input.end(&block)?;
                }
                output.push(0);
            }
            Step::Map(values) => {
                while let Some(block) = input.block(true)? {
                    write_long(output, block.items as i64);
                    for _ in 0..block.items {
                        copy_text(input, output)?;
                        self.run(values, input, output)?;
                    }
                    input.end(&block)?;
                }
                output.push(0);
            }
            Step::Union(branches) => {
                let branch = &branches[input.index("branch", branches.len())?];
                self.run(branch, input, output)?;
            }
            Step::Branch(branch, step) => {
                write_long(output, *branch as i64);
                self.run(step, input, output)?;
            }
            Step::Record { fields, order } => {
                let begin = output.len();
                let mut ends = Vec::with_capacity(fields.len());
                for (name, step) in fields {
                    self.run(step, input, output)
                        .map_err(|fault| within(fault, name))?;
                    ends.push(output.len() - begin);
                }
                if let Some(order) = order {
                    let written = output.split_off(begin);
                    for &field in order {
                        let from = field.checked_sub(1).map_or(0, |before| ends[before]);
                        output.extend(&written[from..ends[field]]);
                    }
                }
            }
            Step::Default(bytes) => output.extend(bytes),
            Step::LeftOut(schema) => self.writer.skip(schema, input, MAX_DEPTH)?,
            Step::Refused(reason) => return Err(input.fault(reason)),
        }
        Ok(())
    }
}

fn copy_text(input: &mut Input<'_>, output: &mut Vec<u8>) -> Result<(), Fault> {
    let text = input.text()?;
    write_long(output, text.len() as i64);
    output.extend(text);
    Ok(())
}

fn write_long(output: &mut Vec<u8>, number: i64) {
    let mut zigzag = ((number << 1) ^ (number >> 63)) as u64;
    while zigzag > 0x7F {
        output.push(0x80 | (zigzag & 0x7F) as u8);
        zigzag >>= 7;
    }
    output.push(zigzag as u8);
}
