//! Text in YAML or JSON → a message of Envoy's API, as protobuf's JSON mapping says.
//!
//! Names are accepted in both spellings. A field, type or value that is not known is an error with its path.

use super::descriptors::everything;
use super::report::{At, ConfigError};
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde::de::DeserializeSeed;
use serde_json::{Map, Value};

/// The text as a message.
pub fn message<M: prost::Message + prost::Name + Default>(at: At<'_>, text: &str) -> Result<M, ConfigError> {
    let value = value(at, text)?;
    let pool = everything();
    let descriptor = pool.get_message_by_name(&M::full_name());
    let descriptor = descriptor.ok_or_else(|| at.refuse(format!("{} is not in the descriptors", M::full_name())))?;
    check_message(at, &descriptor, &value)?;
    let dynamic = descriptor.deserialize(value).map_err(|error| at.refuse(error.to_string()))?;
    DynamicMessage::transcode_to(&dynamic).map_err(|error| at.refuse(error.to_string()))
}

/// JSON when it begins as an object, else YAML.
fn value(at: At<'_>, text: &str) -> Result<Value, ConfigError> {
    let parsed = match text.trim_start().starts_with('{') {
        true => {
            serde_json::from_str(text).map_err(|error| error.to_string()).or_else(|error| yaml(text).map_err(|_| error))
        }
        false => yaml(text),
    };
    match parsed {
        Ok(Value::Null) => Ok(Value::Object(Map::new())),
        Ok(value) => Ok(value),
        Err(error) => Err(at.refuse(format!("not valid YAML or JSON: {error}"))),
    }
}

fn yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

/// Finds what the mapping would refuse without saying where.
fn check_message(at: At<'_>, descriptor: &MessageDescriptor, value: &Value) -> Result<(), ConfigError> {
    match descriptor.full_name() {
        "google.protobuf.Any" => return check_any(at, descriptor.parent_pool(), value),
        name if name.starts_with("google.protobuf.") => return check_leaf(at, descriptor, value),
        _ => {}
    }
    let Value::Object(fields) = value else {
        return Err(at.refuse(format!("an object is expected, not {value}")));
    };
    check_fields(at, descriptor, fields, &[])
}

fn check_fields(
    at: At<'_>,
    descriptor: &MessageDescriptor,
    fields: &Map<String, Value>,
    skip: &[&str],
) -> Result<(), ConfigError> {
    for (name, value) in fields.iter().filter(|(name, _)| !skip.contains(&name.as_str())) {
        let field = descriptor.get_field_by_json_name(name).or_else(|| descriptor.get_field_by_name(name));
        let Some(field) = field else {
            return Err(at
                .field(name)
                .refuse(format!("{} has no such field; correct or remove it", descriptor.full_name())));
        };
        if !value.is_null() {
            check_field(at, name, &field, value)?;
        }
    }
    Ok(())
}

fn check_field(at: At<'_>, name: &str, field: &FieldDescriptor, value: &Value) -> Result<(), ConfigError> {
    if let (true, Value::Object(entries), Kind::Message(entry)) = (field.is_map(), value, field.kind()) {
        let kind = entry.map_entry_value_field().kind();
        return entries.iter().try_for_each(|(key, value)| check_kind(at.entry(name, key), &kind, value));
    }
    if field.is_list() {
        let Value::Array(items) = value else {
            return Err(at.field(name).refuse("a list is expected"));
        };
        return items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| check_kind(at.item(name, index), &field.kind(), item));
    }
    check_kind(at.field(name), &field.kind(), value)
}

fn check_kind(at: At<'_>, kind: &Kind, value: &Value) -> Result<(), ConfigError> {
    match kind {
        Kind::Message(descriptor) => check_message(at, descriptor, value),
        Kind::Enum(descriptor) => match value {
            Value::String(name) if descriptor.get_value_by_name(name).is_none() => {
                let names: Vec<_> = descriptor.values().map(|value| value.name().to_owned()).collect();
                Err(at.refuse(format!("{name:?} is none of {}", names.join(", "))))
            }
            _ => Ok(()),
        },
        Kind::String if !value.is_string() => {
            Err(at.refuse(format!("a text is expected, not {value}; put it in quotes")))
        }
        Kind::Bool if !value.is_boolean() => Err(at.refuse(format!("true or false is expected, not {value}"))),
        _ => Ok(()),
    }
}

/// A well-known type is read alone, so that its error is known to be of this field.
fn check_leaf(at: At<'_>, descriptor: &MessageDescriptor, value: &Value) -> Result<(), ConfigError> {
    let read = descriptor.clone().deserialize(value.clone());
    read.map(|_| ()).map_err(|error| at.refuse(format!("not a valid {}: {error}", descriptor.name())))
}

fn check_any(at: At<'_>, pool: &DescriptorPool, value: &Value) -> Result<(), ConfigError> {
    let type_url = value.get("@type").and_then(Value::as_str);
    let type_url = type_url.ok_or_else(|| at.field("@type").refuse("the type of the configuration is required"))?;
    let name = type_url.rsplit('/').next().unwrap_or(type_url);
    let Some(descriptor) = pool.get_message_by_name(name) else {
        return Err(at.field("@type").refuse(format!("{name} is not a type that is known; correct its name")));
    };
    match (value, descriptor.full_name().starts_with("google.protobuf.")) {
        (Value::Object(fields), false) => check_fields(at, &descriptor, fields, &["@type"]),
        _ => Ok(()),
    }
}
