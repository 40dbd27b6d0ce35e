//! JSON as Go programs write it.
//!
//! Registries, image builders and docker write their documents with Go. There any text, list or map may be `null` or
//! absent, unknown fields pass, and of a field that comes twice the last one counts.
//! Invariant: the memory of a value is bounded by the length of its text and by [`VALUES_MAX`], whatever it contains.

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::cell::Cell;
use std::fmt;

/// Values in one document. An index of 10,000 platforms has about 100,000.
pub const VALUES_MAX: usize = 1 << 18;

/// A JSON value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GoValue {
    /// `null`, and what is absent.
    #[default]
    Null,
    /// A text.
    Text(String),
    /// A whole number from 0 on.
    Number(u64),
    /// A list.
    List(Vec<GoValue>),
    /// A map, in the order of the document.
    Map(Vec<(String, GoValue)>),
    /// A truth value, or another number.
    Other,
}

/// A field that has another type than the format says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is not {expected}")]
pub struct FieldError {
    field: String,
    expected: &'static str,
}

static NULL: GoValue = GoValue::Null;

impl GoValue {
    /// Returns a field of a map, or [`GoValue::Null`] if this is not a map or lacks the field.
    pub fn get(&self, field: &str) -> &GoValue {
        match self {
            Self::Map(rows) => rows.iter().rev().find(|(name, _)| name == field).map_or(&NULL, |(_, value)| value),
            _ => &NULL,
        }
    }

    /// Returns this value if it is a map or `null`. `what` names it in the error.
    ///
    /// # Errors
    /// Fails for a value of another type.
    pub fn as_map_or_null(&self, what: &str) -> Result<&Self, FieldError> {
        match self {
            Self::Null | Self::Map(_) => Ok(self),
            _ => Err(FieldError { field: what.to_string(), expected: "a map" }),
        }
    }

    /// Returns this value as a text. `null` is empty. `what` names the value in the error.
    ///
    /// # Errors
    /// Fails for a value of another type.
    pub fn as_text(&self, what: &str) -> Result<&str, FieldError> {
        match self {
            Self::Null => Ok(""),
            Self::Text(text) => Ok(text),
            _ => Err(FieldError { field: what.to_string(), expected: "a text" }),
        }
    }

    /// Returns a text field. An absent one is empty.
    ///
    /// # Errors
    /// Fails for a value of another type.
    pub fn text(&self, field: &str) -> Result<&str, FieldError> {
        self.get(field).as_text(field)
    }

    /// Returns a number field. An absent one is 0.
    ///
    /// # Errors
    /// Fails for a value of another type, and for a number that is negative or has a fraction.
    pub fn number(&self, field: &str) -> Result<u64, FieldError> {
        match self.get(field) {
            Self::Null => Ok(0),
            Self::Number(number) => Ok(*number),
            _ => Err(FieldError { field: field.to_string(), expected: "a whole number from 0 on" }),
        }
    }

    /// Returns a list field. An absent one is empty.
    ///
    /// # Errors
    /// Fails for a value of another type.
    pub fn list(&self, field: &str) -> Result<&[GoValue], FieldError> {
        match self.get(field) {
            Self::Null => Ok(&[]),
            Self::List(list) => Ok(list),
            _ => Err(FieldError { field: field.to_string(), expected: "a list" }),
        }
    }

    /// Returns a field that is a list of texts. An absent list is empty, and so is an absent text.
    ///
    /// # Errors
    /// Fails for a value of another type.
    pub fn texts(&self, field: &str) -> Result<Vec<&str>, FieldError> {
        self.list(field)?.iter().map(|value| value.as_text(field)).collect()
    }

    /// Returns the rows of a map field. An absent map is empty.
    ///
    /// # Errors
    /// Fails for a value of another type.
    pub fn map(&self, field: &str) -> Result<&[(String, GoValue)], FieldError> {
        match self.get(field) {
            Self::Null => Ok(&[]),
            Self::Map(rows) => Ok(rows),
            _ => Err(FieldError { field: field.to_string(), expected: "a map" }),
        }
    }
}

impl<'de> Deserialize<'de> for GoValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(VALUES_MAX);
        Bounded { left: &left }.deserialize(deserializer)
    }
}

/// Reads values until the bound of the document is used up.
#[derive(Clone, Copy)]
struct Bounded<'a> {
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = GoValue;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<GoValue, D::Error> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(de::Error::custom(format_args!("the document has more than {VALUES_MAX} values")));
        };
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = GoValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<GoValue, E> {
        Ok(GoValue::Other)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<GoValue, E> {
        Ok(u64::try_from(number).map_or(GoValue::Other, GoValue::Number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<GoValue, E> {
        Ok(GoValue::Number(number))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<GoValue, E> {
        Ok(GoValue::Other)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<GoValue, E> {
        Ok(GoValue::Text(text.to_string()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<GoValue, E> {
        Ok(GoValue::Text(text))
    }

    fn visit_unit<E: de::Error>(self) -> Result<GoValue, E> {
        Ok(GoValue::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<GoValue, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = items.next_element_seed(self)? {
            list.push(value);
        }
        Ok(GoValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<GoValue, A::Error> {
        let mut rows = Vec::new();
        while let Some(field) = items.next_key::<String>()? {
            rows.push((field, items.next_value_seed(self)?));
        }
        Ok(GoValue::Map(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> GoValue {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_null_or_absent_is_empty() {
        for text in ["{}", r#"{"t":null,"n":null,"l":null,"m":null}"#, "null"] {
            let value = read(text);
            assert_eq!((value.text("t"), value.number("n")), (Ok(""), Ok(0)), "{text}");
            assert!(value.list("l").unwrap().is_empty() && value.map("m").unwrap().is_empty(), "{text}");
            assert!(value.texts("l").unwrap().is_empty() && value.as_map_or_null("it").is_ok(), "{text}");
        }
        assert_eq!(read(r#"{"l":["a",null]}"#).texts("l"), Ok(vec!["a", ""]));
        assert_eq!(read(r#"{"a":"first","a":"last"}"#).text("a"), Ok("last"));
    }

    #[test]
    fn another_type_is_an_error_that_names_the_field() {
        let value = read(r#"{"a":[1],"b":-1,"c":1.5,"d":true,"e":"x"}"#);
        assert_eq!(value.text("a").unwrap_err().to_string(), "`a` is not a text");
        for (field, is_wrong) in [("b", value.number("b").is_err()), ("c", value.number("c").is_err())] {
            assert!(is_wrong, "{field}");
        }
        assert!(value.list("d").is_err() && value.map("e").is_err() && value.texts("a").is_err());
        assert_eq!(read("[]").as_map_or_null("the index").unwrap_err().to_string(), "`the index` is not a map");
    }

    #[test]
    fn values_are_bounded() {
        let many = format!("[{}0]", "0,".repeat(VALUES_MAX));
        let error = serde_json::from_str::<GoValue>(&many).unwrap_err().to_string();
        assert!(error.contains("more than 262144 values"), "{error}");
        let deep = "[".repeat(100_000);
        assert!(serde_json::from_str::<GoValue>(&deep).is_err(), "nesting is bounded too");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,200}") {
            if let Ok(value) = serde_json::from_str::<GoValue>(&text) {
                let _ = (value.text("a"), value.number("a"), value.texts("a"), value.map("a"));
            }
        }
    }
}
