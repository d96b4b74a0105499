//! `Any`s: by type, through the envelopes (`TypedStruct`) in which Istio sends types that Envoy does not compile in.

use super::descriptors::converted;
use super::report::{At, ConfigError};
use mesh_api::Any;
use mesh_api::envoy_pb::google::protobuf as wkt;
use prost::{Message, Name};
use serde::de::DeserializeSeed;
use serde_json::Value;
use std::borrow::Cow;

/// `udpa.type.v1.TypedStruct` (and `xds.type.v3.TypedStruct`: the same fields).
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypedStruct {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<wkt::Struct>,
}

/// `istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioAlpn {
    #[prost(message, repeated, tag = "1")]
    pub alpn_override: Vec<IstioAlpnOverride>,
}

/// One entry of `IstioAlpn`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioAlpnOverride {
    /// 0: HTTP/1.0, 1: HTTP/1.1, 2: HTTP/2.
    #[prost(int32, tag = "1")]
    pub upstream_protocol: i32,
    #[prost(string, repeated, tag = "2")]
    pub alpn_override: Vec<String>,
}

/// Full name of the message in it, without the host part of the type URL.
pub fn type_name(any: &Any) -> &str {
    bare(&any.type_url)
}

fn bare(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// Full name of what is meant: of the struct inside a `TypedStruct`.
pub fn effective_type(any: &Any) -> String {
    let inner = || TypedStruct::decode(any.value.as_slice()).ok().map(|typed| bare(&typed.type_url).to_owned());
    is_typed_struct(any).then(inner).flatten().unwrap_or_else(|| type_name(any).to_owned())
}

fn is_typed_struct(any: &Any) -> bool {
    matches!(type_name(any), "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct")
}

/// What is meant, out of its `TypedStruct`, if it is a type of Envoy's API; else as it is.
pub fn unwrapped<'a>(at: At<'_>, any: &'a Any) -> Result<Cow<'a, Any>, ConfigError> {
    if !is_typed_struct(any) {
        return Ok(Cow::Borrowed(any));
    }
    let typed: TypedStruct = decode(at, any)?;
    let Some(descriptor) = converted().get_message_by_name(bare(&typed.type_url)) else {
        return Ok(Cow::Borrowed(any));
    };
    let fields = typed.value.unwrap_or_default();
    let message = descriptor.deserialize(json_object(&fields));
    let message =
        message.map_err(|error| at.field("value").refuse(format!("not a {}: {error}", bare(&typed.type_url))))?;
    Ok(Cow::Owned(Any { type_url: typed.type_url, value: message.encode_to_vec() }))
}

fn json_object(fields: &wkt::Struct) -> Value {
    Value::Object(fields.fields.iter().map(|(key, value)| (key.clone(), json(value))).collect())
}

fn json(value: &wkt::Value) -> Value {
    use wkt::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(*flag),
        Some(Kind::NumberValue(number)) => whole(*number).unwrap_or_else(|| Value::from(*number)),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::StructValue(fields)) => json_object(fields),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(json).collect()),
    }
}

/// A number of a struct is a double; integers are written as such.
fn whole(number: f64) -> Option<Value> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() <= EXACT).then(|| Value::from(number as i64))
}

/// The message of a type that is certain.
pub fn decode<M: Message + Default>(at: At<'_>, any: &Any) -> Result<M, ConfigError> {
    at.check_depth()?;
    M::decode(any.value.as_slice())
        .map_err(|error| at.refuse(format!("not a valid {}: {error}; send it encoded anew", type_name(any))))
}

/// The message, if it is of type `M`.
pub fn decode_if<M: Message + Name + Default>(at: At<'_>, any: &Any) -> Result<Option<M>, ConfigError> {
    match type_name(any) == M::full_name() {
        true => decode(at, any).map(Some),
        false => Ok(None),
    }
}

/// The message, which must be of type `M`.
pub fn expect<M: Message + Name + Default>(at: At<'_>, any: &Any) -> Result<M, ConfigError> {
    decode_if(at, any)?.ok_or_else(|| {
        at.refuse(format!("{} is not supported here; {} is", shown(&effective_type(any)), M::full_name()))
    })
}

/// A type name for a person.
pub fn shown(type_name: &str) -> &str {
    if type_name.is_empty() { "an empty typed_config" } else { type_name }
}
