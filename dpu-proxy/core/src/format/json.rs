//! JSON access logs: a value that is one command keeps its type, as Envoy's formatter has it.

use super::FormatContext;
use super::text::{Heads, Missing, command_text, render as render_text};
use crate::model::{Command, FormatPart, FormatTemplate, JsonValue};
use std::io::Write;

/// Appends the object of these fields, without a line end.
pub fn render(fields: &[(String, JsonValue)], context: &dyn FormatContext, output: &mut Vec<u8>) {
    object(fields, context, output);
}

fn object(fields: &[(String, JsonValue)], context: &dyn FormatContext, output: &mut Vec<u8>) {
    output.push(b'{');
    for (index, (key, field)) in fields.iter().enumerate() {
        if index > 0 {
            output.push(b',');
        }
        string(key, output);
        output.push(b':');
        value(field, context, output);
    }
    output.push(b'}');
}

fn value(field: &JsonValue, context: &dyn FormatContext, output: &mut Vec<u8>) {
    match field {
        JsonValue::Template(parts) => template(parts, context, output),
        JsonValue::Object(fields) => object(fields, context, output),
        JsonValue::List(items) => list(items, context, output),
        JsonValue::Number(number) => write!(output, "{number}").expect("a vector takes every byte"),
        JsonValue::Bool(true) => output.extend_from_slice(b"true"),
        JsonValue::Bool(false) => output.extend_from_slice(b"false"),
        JsonValue::Null => output.extend_from_slice(b"null"),
    }
}

fn list(items: &[JsonValue], context: &dyn FormatContext, output: &mut Vec<u8>) {
    output.push(b'[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            output.push(b',');
        }
        value(item, context, output);
    }
    output.push(b']');
}

fn template(template: &FormatTemplate, context: &dyn FormatContext, output: &mut Vec<u8>) {
    let mut text = Vec::with_capacity(64);
    let [FormatPart::Command { command, max_length }] = template.parts.as_slice() else {
        render_text(template, context, Missing::Dash, &mut text);
        return string(&String::from_utf8_lossy(&text), output);
    };
    match command_text(command, *max_length, &Heads::of(context), context, &mut text) {
        false => output.extend_from_slice(b"null"),
        true if is_number(command) => output.extend_from_slice(&text),
        true => string(&String::from_utf8_lossy(&text), output),
    }
}

fn is_number(command: &Command) -> bool {
    matches!(
        command,
        Command::ResponseCode
            | Command::BytesReceived
            | Command::BytesSent
            | Command::Duration
            | Command::RequestDuration
            | Command::ResponseDuration
            | Command::ConnectionId
            | Command::AttemptCount
            | Command::DownstreamLocalPort
    )
}

fn string(text: &str, output: &mut Vec<u8>) {
    serde_json::to_writer(output, text).expect("text is valid JSON and a vector takes every byte");
}
