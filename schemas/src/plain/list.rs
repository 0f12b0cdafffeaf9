//! Zero-copy Avro arrays and maps.

use super::bytes::Bytes;
use crate::check::Rules;

/// A checked Avro array or map; each iteration parses its items again.
#[derive(Clone, Copy, Debug)]
pub struct List<'a, T> {
    /// The bytes from the first block's count on.
    bytes: &'a [u8],
    count: usize,
    /// Whether a map's keys ascend.
    ascending: bool,
    items: std::marker::PhantomData<T>,
}

#[expect(
    private_bounds,
    reason = "which types are items is this module's affair"
)]
impl<'a, T: Item<'a>> List<'a, T> {
    pub(super) const EMPTY: Self = Self {
        bytes: &[],
        count: 0,
        ascending: true,
        items: std::marker::PhantomData,
    };

    /// Number of items.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The items in the writer's order.
    pub fn iter(&self) -> Items<'a, T> {
        Items {
            // They were checked before by rules at least as strict.
            bytes: Bytes(self.bytes, Rules::EveryVersion),
            in_block: 0,
            left: self.count,
            items: std::marker::PhantomData,
        }
    }
}

#[expect(
    private_bounds,
    reason = "which types are items is this module's affair"
)]
impl<'a, T: Entry<'a>> List<'a, T> {
    /// The items in the order of their keys' bytes.
    pub fn sorted(&self) -> Sorted<'a, T> {
        if self.ascending {
            return Sorted::InPlace(self.iter());
        }
        let mut items = Vec::from_iter(self.iter());
        items.sort_unstable_by_key(|item| item.key());
        Sorted::Apart(items.into_iter())
    }
}

/// The items of a map, sorted.
#[derive(Clone, Debug)]
pub enum Sorted<'a, T> {
    /// Already in order.
    InPlace(Items<'a, T>),
    /// A sorted copy.
    Apart(std::vec::IntoIter<T>),
}

impl<'a, T: Item<'a>> Iterator for Sorted<'a, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        match self {
            Self::InPlace(items) => items.next(),
            Self::Apart(items) => items.next(),
        }
    }
}

/// The items of a [`List`].
#[derive(Clone, Debug)]
pub struct Items<'a, T> {
    bytes: Bytes<'a>,
    /// Items left in the current block.
    in_block: usize,
    /// Items left in total.
    left: usize,
    items: std::marker::PhantomData<T>,
}

impl<'a, T: Item<'a>> Iterator for Items<'a, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        if self.left == 0 {
            return None;
        }
        if self.in_block == 0 {
            self.in_block = self.bytes.index()?;
        }
        self.in_block = self.in_block.checked_sub(1)?;
        self.left -= 1;
        T::read(&mut self.bytes)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<'a, T: Item<'a>> ExactSizeIterator for Items<'a, T> {}

/// An item of an array or map.
pub(super) trait Item<'a>: Sized {
    /// `None` if incomplete or not plain.
    fn read(bytes: &mut Bytes<'a>) -> Option<Self>;
}

/// An item of a map.
pub(super) trait Entry<'a>: Item<'a> {
    fn key(&self) -> &'a str;
}

impl<'a> Bytes<'a> {
    /// An array. (Blocks with a negative count and a size in bytes are not plain.)
    pub(super) fn list<T: Item<'a>>(&mut self) -> Option<List<'a, T>> {
        self.items(|_: &T| {})
    }

    /// A map with unique keys.
    pub(super) fn map<T: Entry<'a>>(&mut self) -> Option<List<'a, T>> {
        let mut last: Option<&str> = None;
        let mut ascending = true;
        let mut list = self.items(|item: &T| {
            ascending &= last.is_none_or(|last| last < item.key());
            last = Some(item.key());
        })?;
        list.ascending = ascending;
        if !ascending {
            let mut keys = Vec::from_iter(list.iter().map(|item| item.key()));
            keys.sort_unstable();
            if keys.windows(2).any(|pair| pair[0] == pair[1]) {
                return None;
            }
        }
        Some(list)
    }

    fn items<T: Item<'a>>(&mut self, mut each: impl FnMut(&T)) -> Option<List<'a, T>> {
        let bytes = self.0;
        let mut count = 0;
        loop {
            let in_block = self.index()?;
            if in_block == 0 {
                break;
            }
            // Each item takes at least one byte, which bounds this loop for any count.
            for _ in 0..in_block {
                each(&T::read(self)?);
            }
            count += in_block;
        }
        Some(List {
            bytes,
            count,
            ascending: false,
            items: std::marker::PhantomData,
        })
    }
}
