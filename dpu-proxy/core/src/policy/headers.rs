//! Header edits of the levels of a route, in Envoy's order.
//!
//! From the most specific level to the least (so that, on overwriting, the least specific wins), or the
//! other way round with `most_specific_header_mutations_wins`; a weighted cluster always comes first. Within a level: remove, then overwrite,
//! then add; templates see the headers as they were before the level's additions.

use super::overrides::weighted_cluster;
use crate::format::text::{Heads, render_with};
use crate::format::{FormatContext, Missing};
use crate::head::{HeaderBlock, RequestHead, ResponseHead};
use crate::matching::route::Matched;
use crate::model::{AppendAction, FormatPart, HeaderEdit, HeaderEdits, RouteConfig};

/// Edits in the order in which they are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct EditLevels<'a> {
    levels: [Option<&'a HeaderEdits>; 4],
    /// Of the weighted cluster: templates of the other levels see it.
    host: Option<&'a str>,
}

impl<'a> EditLevels<'a> {
    /// Those of a matched route.
    pub fn of(config: &'a RouteConfig, matched: &Matched<'a>) -> Self {
        let weighted = weighted_cluster(matched);
        let mut levels = [
            weighted.map(|cluster| &cluster.headers),
            Some(&matched.route.headers),
            Some(&matched.virtual_host.headers),
            Some(&config.headers),
        ];
        if config.most_specific_wins {
            levels[1..].reverse();
        }
        Self { levels, host: weighted.and_then(|cluster| cluster.host_rewrite.as_deref()) }
    }

    /// Edits a request before it goes upstream. Request headers in templates are those of `head`.
    pub fn edit_request(&self, head: &mut RequestHead, context: &dyn FormatContext) {
        let (first, rest) = self.levels.split_at(1);
        edit_request(first, head, context);
        if let Some(host) = self.host {
            head.set_authority(host.as_bytes());
        }
        edit_request(rest, head, context);
    }

    /// Edits a response before it goes downstream. Response headers in templates are those of `head`.
    pub fn edit_response(&self, head: &mut ResponseHead, context: &dyn FormatContext) {
        for edits in self.levels.iter().flatten() {
            for name in &edits.response_remove {
                head.headers.remove(name.as_bytes());
            }
            if !edits.response_add.is_empty() {
                let heads = Heads { response: Some(head), ..Heads::of(context) };
                let values = evaluate(&edits.response_add, &heads, context);
                apply(&edits.response_add, values, &mut head.headers);
            }
        }
    }
}

fn edit_request(levels: &[Option<&HeaderEdits>], head: &mut RequestHead, context: &dyn FormatContext) {
    for edits in levels.iter().flatten() {
        for name in &edits.request_remove {
            head.headers.remove(name.as_bytes());
        }
        if !edits.request_add.is_empty() {
            let heads = Heads { request: Some(head), ..Heads::of(context) };
            let values = evaluate(&edits.request_add, &heads, context);
            apply(&edits.request_add, values, &mut head.headers);
        }
    }
}

/// The values of a level; `None` for what is not set because it is empty.
fn evaluate(edits: &[HeaderEdit], heads: &Heads<'_>, context: &dyn FormatContext) -> Vec<Option<Vec<u8>>> {
    edits.iter().map(|edit| value(edit, heads, context)).collect()
}

fn value(edit: &HeaderEdit, heads: &Heads<'_>, context: &dyn FormatContext) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    match edit.value.parts.as_slice() {
        [FormatPart::Literal(literal)] => text.extend_from_slice(literal.as_bytes()),
        _ => render_with(&edit.value, heads, context, Missing::Empty, &mut text),
    }
    (!text.is_empty() || edit.keep_empty_value).then_some(text)
}

fn apply(edits: &[HeaderEdit], values: Vec<Option<Vec<u8>>>, headers: &mut HeaderBlock) {
    let exists: Vec<bool> = edits.iter().map(|edit| headers.get(edit.name.as_bytes()).is_some()).collect();
    let known = || {
        edits
            .iter()
            .zip(&values)
            .zip(&exists)
            .filter_map(|((edit, value), exists)| value.as_ref().map(|value| (edit, value, *exists)))
    };
    for (edit, value, exists) in known() {
        let overwrites = match edit.action {
            AppendAction::OverwriteIfExistsOrAdd => true,
            AppendAction::OverwriteIfExists => exists,
            AppendAction::AppendIfExistsOrAdd | AppendAction::AddIfAbsent => false,
        };
        if overwrites {
            headers.set(edit.name.as_bytes(), value);
        }
    }
    for (edit, value, exists) in known() {
        let adds = match edit.action {
            AppendAction::AppendIfExistsOrAdd => true,
            AppendAction::AddIfAbsent => !exists,
            AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists => false,
        };
        if adds {
            add(edit.name.as_bytes(), value, headers);
        }
    }
}

/// Envoy keeps these as one value; others get a line of their own.
const JOINED: [&[u8]; 24] = [
    b"accept",
    b"accept-encoding",
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-type",
    b"date",
    b"etag",
    b"expect",
    b"grpc-timeout",
    b"location",
    b"origin",
    b"proxy-status",
    b"server",
    b"te",
    b"user-agent",
    b"vary",
    b"via",
    b"x-forwarded-client-cert",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-port",
    b"x-forwarded-proto",
    b"x-request-id",
];

fn add(name: &[u8], value: &[u8], headers: &mut HeaderBlock) {
    match headers.get(name).filter(|_| JOINED.contains(&name)) {
        None => headers.append(name, value),
        Some(old) => {
            let joined = [old, b",", value].concat();
            headers.set(name, &joined);
        }
    }
}

#[cfg(test)]
mod tests;
