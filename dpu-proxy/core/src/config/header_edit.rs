//! Headers that a level adds or removes.

use super::convert::header_name;
use super::format;
use super::report::{At, ConfigError};
use crate::model::{AppendAction, HeaderEdit, HeaderEdits};
use mesh_api::envoy::config::core::v3 as core;

/// The four lists that a level has.
#[derive(Clone, Copy, Debug)]
pub struct Lists<'p> {
    pub request_add: &'p [core::HeaderValueOption],
    pub request_remove: &'p [String],
    pub response_add: &'p [core::HeaderValueOption],
    pub response_remove: &'p [String],
}

/// Of a route, virtual host, route configuration or weighted cluster: they name the fields alike.
macro_rules! header_lists {
    ($proto:expr) => {
        $crate::config::header_edit::Lists {
            request_add: &$proto.request_headers_to_add,
            request_remove: &$proto.request_headers_to_remove,
            response_add: &$proto.response_headers_to_add,
            response_remove: &$proto.response_headers_to_remove,
        }
    };
}
pub(crate) use header_lists;

/// Compiles the lists of a level.
pub fn edits(at: At<'_>, lists: Lists<'_>) -> Result<HeaderEdits, ConfigError> {
    Ok(HeaderEdits {
        request_add: additions(at, "request_headers_to_add", lists.request_add)?,
        request_remove: removals(at, "request_headers_to_remove", lists.request_remove)?,
        response_add: additions(at, "response_headers_to_add", lists.response_add)?,
        response_remove: removals(at, "response_headers_to_remove", lists.response_remove)?,
    })
}

fn removals(at: At<'_>, field: &str, names: &[String]) -> Result<Vec<String>, ConfigError> {
    let removal = |(index, name): (usize, &String)| {
        let at = at.item(field, index);
        match name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            true => Err(at.refuse(format!("{name} cannot be removed"))),
            false => header_name(at, name),
        }
    };
    names.iter().enumerate().map(removal).collect()
}

fn additions(at: At<'_>, field: &str, protos: &[core::HeaderValueOption]) -> Result<Vec<HeaderEdit>, ConfigError> {
    protos.iter().enumerate().map(|(index, proto)| addition(at.item(field, index), proto)).collect()
}

fn addition(at: At<'_>, proto: &core::HeaderValueOption) -> Result<HeaderEdit, ConfigError> {
    let at = at.field("header");
    let header = proto.header.as_ref().ok_or_else(|| at.refuse("required"))?;
    if !header.raw_value.is_empty() {
        return Err(at.field("raw_value").refuse("not supported; give value"));
    }
    let value = format::parse(&header.value).map_err(|error| at.field("value").refuse(error.to_string()))?;
    let name = header_name(at.field("key"), &header.key)?;
    if name.starts_with(':') || name == "host" {
        return Err(at.field("key").refuse(format!("{name} cannot be changed here; use a rewrite of the route")));
    }
    Ok(HeaderEdit { name, value, action: action(at, proto)?, keep_empty_value: proto.keep_empty_value })
}

fn action(at: At<'_>, proto: &core::HeaderValueOption) -> Result<AppendAction, ConfigError> {
    use core::header_value_option::HeaderAppendAction as Action;
    if let Some(append) = proto.append {
        return Ok(if append.value { AppendAction::AppendIfExistsOrAdd } else { AppendAction::OverwriteIfExistsOrAdd });
    }
    match Action::try_from(proto.append_action) {
        Ok(Action::AppendIfExistsOrAdd) => Ok(AppendAction::AppendIfExistsOrAdd),
        Ok(Action::AddIfAbsent) => Ok(AppendAction::AddIfAbsent),
        Ok(Action::OverwriteIfExistsOrAdd) => Ok(AppendAction::OverwriteIfExistsOrAdd),
        Ok(Action::OverwriteIfExists) => Ok(AppendAction::OverwriteIfExists),
        Err(_) => Err(at.field("append_action").refuse(super::convert::unknown_enum(proto.append_action))),
    }
}
