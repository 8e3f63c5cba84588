//! Where a key of a YAML document stands: found by the parser, so that nothing but its own reading of
//! block, flow, comments and quotes counts.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// One step of a dotted key.
#[derive(Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Line of a dotted key such as `spec.ports[1].port`, or of the innermost part of it that is there.
pub(super) fn line_of(text: &str, key: &str) -> Option<u64> {
    let steps: Vec<_> = key.split('.').flat_map(steps).collect();
    let line = Cell::new(None);
    let options = serde_saphyr::options! { with_snippet: false };
    let walk = Walk { steps: &steps, line: &line, element: false };
    // What is malformed further on does not matter: the line was found before it.
    let _ =
        serde_saphyr::with_deserializer_from_str_with_options(text, options, |found| walk.deserialize(found));
    line.get()
}

/// `ports[1]` is the key and the index.
fn steps(part: &str) -> impl Iterator<Item = Step<'_>> {
    let mut pieces = part.split('[');
    let key = pieces.next().map(Step::Key);
    key.into_iter()
        .chain(pieces.filter_map(|index| index.trim_end_matches(']').parse().ok().map(Step::Index)))
}

/// Follows the steps through a document and notes the line of each it can take.
#[derive(Clone, Copy)]
struct Walk<'a> {
    steps: &'a [Step<'a>],
    line: &'a Cell<Option<u64>>,
    /// Inside an element of a list, which begins where its first key does.
    element: bool,
}

impl Walk<'_> {
    fn rest(&self, element: bool) -> Self {
        Self { steps: &self.steps[1..], line: self.line, element }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut begins = self.element;
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            if std::mem::take(&mut begins) {
                self.line.set(Some(key.referenced.line()));
            }
            match self.steps.first() {
                Some(Step::Key(wanted)) if key.value == *wanted => {
                    self.line.set(Some(key.referenced.line()));
                    map.next_value_seed(self.rest(false))?;
                }
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some(Step::Index(wanted)) = self.steps.first() else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        for _ in 0..*wanted {
            list.next_element::<IgnoredAny>()?;
        }
        if self.steps.len() > 1 {
            list.next_element_seed(self.rest(true))?;
        } else if let Some(found) = list.next_element::<Spanned<IgnoredAny>>()? {
            self.line.set(Some(found.referenced.line()));
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}
