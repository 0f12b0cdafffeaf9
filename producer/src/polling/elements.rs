//! Splits the bytes of a JSON list into its elements as they arrive: a list of any length takes the memory of its
//! longest element.

/// Maximum size of an element. A Spark stage with many metrics takes some 100 kB.
pub(crate) const ELEMENT_MAX_BYTES: usize = 8 << 20;

/// Why the bytes are not a list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum NotAList {
    /// It begins with this byte.
    Begins(u8),
    /// An element is larger than [`ELEMENT_MAX_BYTES`].
    TooLarge,
    /// It has not ended.
    Cut,
}

/// Where in the list the next byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Place {
    #[default]
    Before,
    /// Between brackets, outside any text; how many brackets are open, the list's own included.
    Inside(u32),
    /// In a text inside so many brackets.
    Text(u32),
    /// After a backslash in such a text.
    Escaped(u32),
    After,
}

#[derive(Default)]
pub(crate) struct Elements {
    place: Place,
    element: Vec<u8>,
}

impl Elements {
    /// Passes on every element that these bytes complete, unchecked.
    ///
    /// # Errors
    /// If it is no list, or what `each` returns.
    pub(crate) fn take<E: From<NotAList>>(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for &byte in bytes {
            let (next, ends) = match (self.place, byte) {
                (Place::Before | Place::After, b) if b.is_ascii_whitespace() => continue,
                (Place::Before, b'[') => {
                    self.place = Place::Inside(1);
                    continue;
                }
                (Place::Before | Place::After, b) => return Err(NotAList::Begins(b).into()),
                (Place::Inside(1), b',') => (Place::Inside(1), true),
                (Place::Inside(1), b']') => (Place::After, true),
                (Place::Inside(depth), b'[' | b'{') => (Place::Inside(depth + 1), false),
                (Place::Inside(depth), b']' | b'}') => {
                    (Place::Inside(depth.saturating_sub(1).max(1)), false)
                }
                (Place::Inside(depth), b'"') => (Place::Text(depth), false),
                (Place::Text(depth), b'"') => (Place::Inside(depth), false),
                (Place::Text(depth), b'\\') => (Place::Escaped(depth), false),
                (Place::Escaped(depth), _) => (Place::Text(depth), false),
                (place, _) => (place, false),
            };
            self.place = next;
            if !ends {
                if self.element.len() == ELEMENT_MAX_BYTES {
                    return Err(NotAList::TooLarge.into());
                }
                self.element.push(byte);
                continue;
            }
            // `[]` has no element.
            if next != Place::After || !self.element.trim_ascii().is_empty() {
                each(&self.element)?;
            }
            self.element.clear();
        }
        Ok(())
    }

    /// # Errors
    /// If the list has not ended.
    pub(crate) fn end(self) -> Result<(), NotAList> {
        match self.place {
            Place::After => Ok(()),
            _ => Err(NotAList::Cut),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn read(text: &[u8], piece: usize) -> Result<Vec<Value>, NotAList> {
        let mut found = Vec::new();
        let mut elements = Elements::default();
        for bytes in text.chunks(piece.max(1)) {
            elements.take(bytes, |element| {
                found.push(serde_json::from_slice(element).unwrap());
                Ok::<(), NotAList>(())
            })?;
        }
        elements.end()?;
        Ok(found)
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            r#"[\[\]{},"\\a ü]{0,8}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            let list = proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from);
            let keys = r#"[\]},"\\]{0,3}"#;
            let object = proptest::collection::hash_map(keys, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()));
            prop_oneof![list, object]
        })
    }

    proptest! {
        #[test]
        fn elements_are_those_of_the_list_however_its_bytes_arrive(
            list in proptest::collection::vec(json(), 0..6), piece in 1..30_usize, pretty: bool,
        ) {
            let value = Value::from(list.clone());
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            prop_assert_eq!(read(text.as_bytes(), piece), Ok(list));
            prop_assert_eq!(read(&text.as_bytes()[..text.len() - 1], piece), Err(NotAList::Cut));
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert_eq!(read(b" <html>", 3), Err(NotAList::Begins(b'<')));
        assert_eq!(read(b"[1] 2", 3), Err(NotAList::Begins(b'2')));
        assert_eq!(read(b"", 3), Err(NotAList::Cut));
        let long = format!("[\"{}\"]", "x".repeat(ELEMENT_MAX_BYTES));
        assert_eq!(read(long.as_bytes(), 4_096), Err(NotAList::TooLarge));
    }
}
