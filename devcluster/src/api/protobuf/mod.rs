//! Reading `application/vnd.kubernetes.protobuf`, which kubectl's typed commands send
//! (`create namespace`, `auth can-i`). Only requests: answers are JSON, which clients
//! accept as well. A field that is not known is refused and never dropped.

mod messages;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use messages::{Kind, MESSAGES, Message};

/// What the body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages inside messages, at most.
const DEEPEST: usize = 32;

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Decodes a body to the JSON form of its object.
///
/// # Errors
/// What is malformed, or which type or field is not known here.
pub fn decode(body: &[u8]) -> Result<Value, String> {
    let body = body
        .strip_prefix(MAGIC)
        .ok_or("the body does not begin with the magic number of Kubernetes")?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(body) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?.to_owned(),
                        (2, Wire::Bytes(text)) => kind = utf8(text)?.to_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let message =
        find(&kind).ok_or_else(|| format!("objects of kind {kind:?} are accepted as JSON only"))?;
    let mut object = read(message, raw, 0)?;
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    Ok(object)
}

fn find(name: &str) -> Option<&'static Message> {
    MESSAGES.iter().find(|(known, _)| *known == name)
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8".to_owned())
}

enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message: number and value.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or("the message is cut off")?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long".to_owned())
    }

    fn field(&mut self) -> Result<(u64, Wire<'a>), String> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            2 => {
                let length =
                    usize::try_from(self.varint()?).map_err(|_| "a length is too large")?;
                let (bytes, rest) =
                    self.0.split_at_checked(length).ok_or("the message is cut off")?;
                self.0 = rest;
                Wire::Bytes(bytes)
            }
            other => return Err(format!("wire type {other} is not used by Kubernetes")),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn read(message: &Message, bytes: &[u8], depth: usize) -> Result<Value, String> {
    if depth > DEEPEST {
        return Err("the message is too deep".to_owned());
    }
    let (name, fields) = message;
    let mut map = Map::new();
    for field in Fields(bytes) {
        let (number, wire) = field?;
        let Some((_, key, kind)) = fields.iter().find(|(known, ..)| u64::from(*known) == number)
        else {
            // Go writes zero values; only they may be left out.
            match wire {
                Wire::Varint(0) | Wire::Bytes([]) => continue,
                _ => return Err(format!("field {number} of {name} is accepted as JSON only")),
            }
        };
        put(&mut map, key, kind, &wire, depth).map_err(|why| format!("{name}.{key}: {why}"))?;
    }
    Ok(Value::Object(map))
}

fn put(
    map: &mut Map<String, Value>,
    key: &str,
    kind: &Kind,
    wire: &Wire<'_>,
    depth: usize,
) -> Result<(), String> {
    let value = match (kind, wire) {
        (Kind::Ignored, _) => return Ok(()),
        (Kind::Text, Wire::Bytes([])) | (Kind::Int | Kind::Bool, Wire::Varint(0)) => return Ok(()),
        (Kind::Text | Kind::SomeText, Wire::Bytes(bytes)) => Value::from(utf8(bytes)?),
        #[allow(clippy::cast_possible_wrap)] // Negative numbers are sent as their two's complement.
        (Kind::Int | Kind::SomeInt, Wire::Varint(number)) => Value::from(*number as i64),
        (Kind::Bool | Kind::SomeBool, Wire::Varint(flag)) => Value::from(*flag != 0),
        (Kind::Time, Wire::Bytes(bytes)) => match time(bytes)? {
            None => return Ok(()),
            Some(time) => time.into(),
        },
        (Kind::IntOrText, Wire::Bytes(bytes)) => int_or_text(bytes)?,
        (Kind::One(name), Wire::Bytes(bytes)) => {
            let inner = read(find(name).ok_or("is accepted as JSON only")?, bytes, depth + 1)?;
            // An empty message stands for a struct without values.
            if inner.as_object().is_some_and(Map::is_empty) {
                return Ok(());
            }
            inner
        }
        (Kind::Empty(name), Wire::Bytes(bytes)) => {
            read(find(name).ok_or("is accepted as JSON only")?, bytes, depth + 1)?
        }
        (Kind::Many(name), Wire::Bytes(bytes)) => {
            let item = read(find(name).ok_or("is accepted as JSON only")?, bytes, depth + 1)?;
            return push(map, key, item);
        }
        (Kind::Texts, Wire::Bytes(bytes)) => return push(map, key, Value::from(utf8(bytes)?)),
        (Kind::MapOfText | Kind::MapOfBytes | Kind::MapOfQuantity, Wire::Bytes(bytes)) => {
            let (entry, value) = map_entry(kind, bytes)?;
            let entries = map.entry(key).or_insert_with(|| json!({}));
            entries[entry] = value;
            return Ok(());
        }
        _ => return Err("has another wire type".to_owned()),
    };
    map.insert(key.to_owned(), value);
    Ok(())
}

fn push(map: &mut Map<String, Value>, key: &str, item: Value) -> Result<(), String> {
    match map.entry(key).or_insert_with(|| json!([])) {
        Value::Array(list) => {
            list.push(item);
            Ok(())
        }
        _ => Err("is given twice".to_owned()),
    }
}

fn map_entry(kind: &Kind, bytes: &[u8]) -> Result<(String, Value), String> {
    let (mut key, mut value) = (String::new(), &[][..]);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Bytes(text)) => key = utf8(text)?.to_owned(),
            (2, Wire::Bytes(bytes)) => value = bytes,
            _ => return Err("a map entry has an unknown field".to_owned()),
        }
    }
    let value = match kind {
        Kind::MapOfBytes => STANDARD.encode(value),
        Kind::MapOfQuantity => quantity(value)?,
        _ => utf8(value)?.to_owned(),
    };
    Ok((key, value.into()))
}

fn time(bytes: &[u8]) -> Result<Option<String>, String> {
    let mut seconds = None;
    for field in Fields(bytes) {
        if let (1, Wire::Varint(number)) = field? {
            #[allow(clippy::cast_possible_wrap)] // Times before 1970 are negative.
            let number = number as i64;
            seconds = Some(number);
        }
    }
    // Go's zero time is "none".
    Ok(seconds
        .filter(|seconds| *seconds != -62_135_596_800)
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map(|time| time.to_string()))
}

fn quantity(bytes: &[u8]) -> Result<String, String> {
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(text)) = field? {
            return utf8(text).map(str::to_owned);
        }
    }
    Ok("0".to_owned())
}

fn int_or_text(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            #[allow(clippy::cast_possible_wrap)] // As above.
            (2, Wire::Varint(value)) => number = value as i64,
            (3, Wire::Bytes(bytes)) => text = utf8(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend(bytes);
        out
    }

    fn body(kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn a_config_map_is_read() {
        let meta = [
            field(1, b"c"),
            field(3, b"ns"),
            field(11, &[field(1, b"k"), field(2, b"v")].concat()),
        ]
        .concat();
        let raw = [field(1, &meta), field(2, &[field(1, b"a"), field(2, b"b")].concat())].concat();
        assert_eq!(
            decode(&body("ConfigMap", &raw)).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "ns", "labels": {"k": "v"}},
                "data": {"a": "b"}})
        );
    }

    #[test]
    fn an_unknown_field_is_refused_unless_it_is_zero() {
        assert!(decode(&body("ConfigMap", &field(15, b""))).is_ok());
        let error = decode(&body("ConfigMap", &field(15, b"x"))).unwrap_err();
        assert!(error.contains("field 15 of ConfigMap"), "{error}");
        assert!(decode(&body("Unheard", b"")).is_err());
        assert!(decode(b"{}").is_err());
    }

    #[test]
    fn each_message_that_is_named_exists() {
        for (name, fields) in MESSAGES {
            for (_, key, kind) in *fields {
                if let Kind::One(inner) | Kind::Many(inner) | Kind::Empty(inner) = kind {
                    assert!(find(inner).is_some(), "{name}.{key}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn nonsense_is_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let _ = decode(&body("Deployment", &bytes[..bytes.len().min(100)]));
        }
    }
}
