//! Retry policies.

use super::any;
use super::convert::{duration, duration_or, number, timeout};
use super::matcher;
use super::report::{At, ConfigError};
use crate::model::{RetryOn, RetryPolicy};
use mesh_api::envoy::config::route::v3 as route;
use mesh_api::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use prost::Name;
use std::time::Duration;

/// `RetryPolicy`.
pub fn retry_policy(at: At<'_>, proto: &route::RetryPolicy) -> Result<RetryPolicy, ConfigError> {
    let (backoff_base, backoff_max) = backoff(at.field("retry_back_off"), proto.retry_back_off.as_ref())?;
    Ok(RetryPolicy {
        on: retry_on(at.field("retry_on"), &proto.retry_on),
        num_retries: number(proto.num_retries).unwrap_or(1),
        per_try_timeout: timeout(at.field("per_try_timeout"), proto.per_try_timeout.as_ref(), None)?,
        per_try_idle_timeout: timeout(at.field("per_try_idle_timeout"), proto.per_try_idle_timeout.as_ref(), None)?,
        retriable_status_codes: status_codes(at, &proto.retriable_status_codes)?,
        retriable_headers: matcher::headers(at, "retriable_headers", &proto.retriable_headers)?,
        retriable_request_headers: matcher::headers(at, "retriable_request_headers", &proto.retriable_request_headers)?,
        avoid_previous_hosts: avoids_previous_hosts(at, proto),
        backoff_base,
        backoff_max,
    })
}

fn status_codes(at: At<'_>, codes: &[u32]) -> Result<Vec<u16>, ConfigError> {
    let code = |(index, code): (usize, &u32)| {
        u16::try_from(*code)
            .map_err(|_| at.item("retriable_status_codes", index).refuse(format!("{code} is not a status code")))
    };
    codes.iter().enumerate().map(code).collect()
}

fn avoids_previous_hosts(at: At<'_>, proto: &route::RetryPolicy) -> bool {
    use route::retry_policy::retry_host_predicate::ConfigType;
    let mut avoids = false;
    for (index, predicate) in proto.retry_host_predicate.iter().enumerate() {
        let typed = match &predicate.config_type {
            Some(ConfigType::TypedConfig(config)) => any::type_name(config) == PreviousHostsPredicate::full_name(),
            None => predicate.name == "envoy.retry_host_predicates.previous_hosts",
        };
        match typed {
            true => avoids = true,
            false => at
                .item("retry_host_predicate", index)
                .unsupported(format!("{} is not supported; only previous_hosts is", predicate.name)),
        }
    }
    avoids
}

fn backoff(at: At<'_>, proto: Option<&route::retry_policy::RetryBackOff>) -> Result<(Duration, Duration), ConfigError> {
    let Some(proto) = proto else { return Ok((Duration::from_millis(25), Duration::from_millis(250))) };
    let base = proto.base_interval.as_ref().ok_or_else(|| at.field("base_interval").refuse("required"))?;
    let base = duration(at.field("base_interval"), base)?.max(Duration::from_millis(1));
    let max = duration_or(at.field("max_interval"), proto.max_interval.as_ref(), base.saturating_mul(10))?;
    match max >= base {
        true => Ok((base, max)),
        false => Err(at.field("max_interval").refuse("must not be less than base_interval")),
    }
}

/// Conditions by name, separated by commas. One that is not known is reported.
fn retry_on(at: At<'_>, text: &str) -> RetryOn {
    let mut on = RetryOn::default();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match condition(&mut on, name) {
            Some(condition) => *condition = true,
            None => at.unsupported(format!("{name:?} is not a condition that is retried on")),
        }
    }
    on
}

fn condition<'o>(on: &'o mut RetryOn, name: &str) -> Option<&'o mut bool> {
    Some(match name {
        "5xx" => &mut on.server_error_5xx,
        "gateway-error" => &mut on.gateway_error,
        "reset" => &mut on.reset,
        "reset-before-request" => &mut on.reset_before_request,
        "connect-failure" => &mut on.connect_failure,
        "envoy-ratelimited" => &mut on.envoy_ratelimited,
        "retriable-4xx" => &mut on.retriable_4xx,
        "refused-stream" => &mut on.refused_stream,
        "retriable-status-codes" => &mut on.retriable_status_codes,
        "retriable-headers" => &mut on.retriable_headers,
        "cancelled" => &mut on.grpc_cancelled,
        "deadline-exceeded" => &mut on.grpc_deadline_exceeded,
        "internal" => &mut on.grpc_internal,
        "resource-exhausted" => &mut on.grpc_resource_exhausted,
        "unavailable" => &mut on.grpc_unavailable,
        _ => return None,
    })
}
