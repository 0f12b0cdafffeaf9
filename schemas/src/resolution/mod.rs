//! From the bytes that one version of a schema wrote to the bytes that another would have written.
//!
//! A [`Resolution`] is made once for a writer's and a reader's schema, which is where it shows whether
//! they fit: by Avro's rules ("Schema Resolution"), and by one of our own: a wider number than the
//! reader's is taken where its value fits. Then it walks each record's bytes a single time.
//!
//! No claim in the bytes is believed. A length is held against the bytes that are left before
//! anything is set aside for it; an item takes a byte at least, or is not walked at all; a number is
//! at most ten bytes long. So neither time nor memory is more than the bytes themselves are worth,
//! which apache-avro 0.22's decoder cannot say of itself: it sets aside for what is claimed, by
//! nested arrays again and again (apache/avro-rs#639), takes a text that is cut off for null, and
//! does not look at the size of a block.

mod datum;
mod plan;
mod schema;

use datum::{Fault, Input, within};
use plan::{Plan, Step};
use schema::MAX_DEPTH;

pub(crate) use schema::Parsed;

/// How what one schema wrote becomes what another reads.
pub(crate) struct Resolution {
    writer: Parsed,
    step: Step,
}

impl Resolution {
    /// # Errors
    /// Where and why no record of `writer` could be read as one of `reader`.
    pub(crate) fn new(writer: Parsed, reader: &Parsed) -> Result<Self, String> {
        let plan = Plan {
            writer: &writer,
            reader,
        };
        let step = plan.step(writer.schema(), reader.schema(), MAX_DEPTH)?;
        Ok(Self { writer, step })
    }

    /// The reader's bytes for a datum of the writer's, and the number of bytes left after that.
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
