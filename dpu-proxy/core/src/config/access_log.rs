//! Access logs: sinks, formats, filters.

use super::any;
use super::convert::{runtime_key, text_source};
use super::format;
use super::matcher;
use super::report::{At, ConfigError};
use crate::model::{AccessLog, CompareOp, FormatTemplate, JsonValue, LogFilter, LogFormat, LogSink};
use mesh_api::Any;
use mesh_api::envoy::config::accesslog::v3 as log;
use mesh_api::envoy::config::core::v3 as core;
use mesh_api::envoy::extensions::access_loggers::{file::v3 as file, stream::v3 as stream};
use mesh_api::envoy_pb::google::protobuf as wkt;
use prost::Name;
use std::sync::Arc;
use std::time::Duration;

/// Envoy's default format.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Access logs of a repeated field. Those of kinds that we don't write are reported.
pub fn logs(at: At<'_>, field: &str, protos: &[log::AccessLog]) -> Result<Vec<Arc<AccessLog>>, ConfigError> {
    let mut logs = Vec::new();
    for (index, proto) in protos.iter().enumerate() {
        logs.extend(access_log(at.item(field, index), proto)?.map(Arc::new));
    }
    Ok(logs)
}

fn access_log(at: At<'_>, proto: &log::AccessLog) -> Result<Option<AccessLog>, ConfigError> {
    let Some(log::access_log::ConfigType::TypedConfig(config)) = &proto.config_type else {
        return Err(at
            .field("typed_config")
            .refuse("required: e.g. envoy.extensions.access_loggers.file.v3.FileAccessLog"));
    };
    let filter = match &proto.filter {
        Some(proto) => match filter(at.field("filter"), proto)? {
            Some(filter) => Some(filter),
            // Without the filter more would be written than was asked for: the log is left out.
            None => return Ok(None),
        },
        None => None,
    };
    let sink = sink(at.field("typed_config"), config)?;
    Ok(sink.map(|(sink, format)| AccessLog { sink, format, filter }))
}

fn sink(at: At<'_>, config: &Any) -> Result<Option<(LogSink, LogFormat)>, ConfigError> {
    let name = any::type_name(config);
    if name == file::FileAccessLog::full_name() {
        return file_sink(at, &any::decode(at, config)?).map(Some);
    }
    if name == stream::StdoutAccessLog::full_name() {
        let proto: stream::StdoutAccessLog = any::decode(at, config)?;
        let format =
            proto.access_log_format.map(|stream::stdout_access_log::AccessLogFormat::LogFormat(format)| format);
        return Ok(Some((LogSink::Stdout, optional_format(at, format.as_ref())?)));
    }
    if name == stream::StderrAccessLog::full_name() {
        let proto: stream::StderrAccessLog = any::decode(at, config)?;
        let format =
            proto.access_log_format.map(|stream::stderr_access_log::AccessLogFormat::LogFormat(format)| format);
        return Ok(Some((LogSink::Stderr, optional_format(at, format.as_ref())?)));
    }
    at.unsupported(format!("access logs of type {} are not written; use a file, stdout or stderr", any::shown(name)));
    Ok(None)
}

fn file_sink(at: At<'_>, proto: &file::FileAccessLog) -> Result<(LogSink, LogFormat), ConfigError> {
    use file::file_access_log::AccessLogFormat;
    let sink = match proto.path.as_str() {
        "" => return Err(at.field("path").refuse("a path is required, e.g. /dev/stdout")),
        "/dev/stdout" => LogSink::Stdout,
        "/dev/stderr" => LogSink::Stderr,
        path => LogSink::File(path.to_owned()),
    };
    let format = match &proto.access_log_format {
        None => optional_format(at, None)?,
        Some(AccessLogFormat::Format(text)) if text.is_empty() => optional_format(at, None)?,
        Some(AccessLogFormat::Format(text)) => LogFormat::Text(template(at.field("format"), text)?),
        Some(AccessLogFormat::JsonFormat(json)) => json_format(at.field("json_format"), json)?,
        Some(AccessLogFormat::TypedJsonFormat(json)) => json_format(at.field("typed_json_format"), json)?,
        Some(AccessLogFormat::LogFormat(proto)) => optional_format(at, Some(proto))?,
    };
    Ok((sink, format))
}

fn optional_format(at: At<'_>, proto: Option<&core::SubstitutionFormatString>) -> Result<LogFormat, ConfigError> {
    match proto {
        Some(proto) => substitution_format(at.field("log_format"), proto),
        None => Ok(LogFormat::Text(template(at, DEFAULT_FORMAT)?)),
    }
}

fn substitution_format(at: At<'_>, proto: &core::SubstitutionFormatString) -> Result<LogFormat, ConfigError> {
    use core::substitution_format_string::Format;
    match &proto.format {
        Some(Format::TextFormat(text)) => Ok(LogFormat::Text(template(at.field("text_format"), text)?)),
        Some(Format::TextFormatSource(source)) => {
            let at = at.field("text_format_source");
            Ok(LogFormat::Text(template(at, &text_source(at, source)?)?))
        }
        Some(Format::JsonFormat(json)) => json_format(at.field("json_format"), json),
        None => Err(at.refuse("give text_format_source or json_format")),
    }
}

fn template(at: At<'_>, text: &str) -> Result<FormatTemplate, ConfigError> {
    let parsed = format::parse_lenient(text, &mut |error| at.unsupported(format!("{error}; - is written")));
    parsed.map_err(|error| at.refuse(error.to_string()))
}

fn json_format(at: At<'_>, json: &wkt::Struct) -> Result<LogFormat, ConfigError> {
    Ok(LogFormat::Json(object(at, json)?))
}

/// Keys in their order by name: a protobuf map has none of its own.
fn object(at: At<'_>, json: &wkt::Struct) -> Result<Vec<(String, JsonValue)>, ConfigError> {
    let mut fields: Vec<_> = json.fields.iter().collect();
    fields.sort_by_key(|(key, _)| *key);
    fields.into_iter().map(|(key, value)| Ok((key.clone(), json_value(at.field(key), value)?))).collect()
}

fn json_value(at: At<'_>, value: &wkt::Value) -> Result<JsonValue, ConfigError> {
    use wkt::value::Kind;
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => JsonValue::Null,
        Some(Kind::NumberValue(number)) => JsonValue::Number(*number),
        Some(Kind::BoolValue(flag)) => JsonValue::Bool(*flag),
        Some(Kind::StringValue(text)) => JsonValue::Template(template(at, text)?),
        Some(Kind::StructValue(json)) => JsonValue::Object(object(at, json)?),
        Some(Kind::ListValue(list)) => {
            let items = list.values.iter().enumerate().map(|(index, value)| json_value(at.item("", index), value));
            JsonValue::List(items.collect::<Result<_, _>>()?)
        }
    })
}

/// None: a filter that we don't have, reported.
fn filter(at: At<'_>, proto: &log::AccessLogFilter) -> Result<Option<LogFilter>, ConfigError> {
    use log::access_log_filter::FilterSpecifier as Filter;
    let made = match &proto.filter_specifier {
        Some(Filter::StatusCodeFilter(proto)) => {
            let (op, value) = comparison(at.field("status_code_filter"), proto.comparison.as_ref())?;
            LogFilter::StatusCode { op, value }
        }
        Some(Filter::DurationFilter(proto)) => {
            let (op, value) = comparison(at.field("duration_filter"), proto.comparison.as_ref())?;
            LogFilter::Duration { op, value: Duration::from_millis(value.into()) }
        }
        Some(Filter::ResponseFlagFilter(proto)) => LogFilter::ResponseFlags(proto.flags.clone()),
        Some(Filter::NotHealthCheckFilter(_)) => LogFilter::NotHealthCheck,
        Some(Filter::AndFilter(proto)) => match all(at.field("and_filter"), &proto.filters)? {
            Some(filters) => LogFilter::And(filters),
            None => return Ok(None),
        },
        Some(Filter::OrFilter(proto)) => match all(at.field("or_filter"), &proto.filters)? {
            Some(filters) => LogFilter::Or(filters),
            None => return Ok(None),
        },
        Some(Filter::HeaderFilter(proto)) => match &proto.header {
            Some(header) => LogFilter::Header(matcher::header(at.field("header_filter"), header)?),
            None => return Err(at.field("header_filter").refuse("a header is required")),
        },
        Some(_) => {
            at.unsupported("this access log filter is not supported: the log is not written; use a status code, duration, response flag or header filter");
            return Ok(None);
        }
        None => return Err(at.refuse("a filter is required")),
    };
    Ok(Some(made))
}

fn all(at: At<'_>, protos: &[log::AccessLogFilter]) -> Result<Option<Vec<LogFilter>>, ConfigError> {
    protos.iter().enumerate().map(|(index, proto)| filter(at.item("filters", index), proto)).collect()
}

fn comparison(at: At<'_>, proto: Option<&log::ComparisonFilter>) -> Result<(CompareOp, u32), ConfigError> {
    use log::comparison_filter::Op;
    let at = at.field("comparison");
    let proto = proto.ok_or_else(|| at.refuse("required"))?;
    let op = match Op::try_from(proto.op) {
        Ok(Op::Eq) => CompareOp::Eq,
        Ok(Op::Ge) => CompareOp::Ge,
        Ok(Op::Le) => CompareOp::Le,
        Ok(Op::Ne) => CompareOp::Ne,
        Err(_) => return Err(at.field("op").refuse(super::convert::unknown_enum(proto.op))),
    };
    let value = proto.value.as_ref().ok_or_else(|| at.field("value").refuse("required"))?;
    // Istio and Envoy's own examples always name a key; only one without default would be a question.
    if value.default_value == 0 {
        runtime_key(at.field("value"), &value.runtime_key);
    }
    Ok((op, value.default_value))
}
