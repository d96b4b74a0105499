//! Header edits: their order over the levels, their actions, their commands.

use super::*;
use crate::model::{Command, FormatTemplate};
use std::time::SystemTime;

struct Nothing;

impl FormatContext for Nothing {
    fn start_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
    fn upstream_cluster(&self) -> Option<&str> {
        Some("a")
    }
}

fn edit(name: &str, value: &str, action: AppendAction) -> HeaderEdit {
    let value = FormatTemplate { parts: vec![FormatPart::Literal(value.into())] };
    HeaderEdit { name: name.into(), value, action, keep_empty_value: false }
}

fn command(name: &str, command: Command) -> HeaderEdit {
    let value = FormatTemplate { parts: vec![FormatPart::Command { command, max_length: None }] };
    HeaderEdit { name: name.into(), value, action: AppendAction::AppendIfExistsOrAdd, keep_empty_value: false }
}

fn adding(request_add: Vec<HeaderEdit>) -> HeaderEdits {
    HeaderEdits { request_add, ..HeaderEdits::default() }
}

fn head(headers: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::default();
    head.set_path(b"/p");
    for (name, value) in headers {
        head.headers.append(name.as_bytes(), value.as_bytes());
    }
    head
}

fn edited(levels: Vec<&HeaderEdits>, mut head: RequestHead) -> Vec<(String, String)> {
    let mut edits = EditLevels::default();
    for (slot, level) in edits.levels.iter_mut().zip(levels) {
        *slot = Some(level);
    }
    edits.edit_request(&mut head, &Nothing);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    head.headers.iter().map(|(name, value)| (text(name), text(value))).collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn every_level_adds_in_turn() {
    use AppendAction::AppendIfExistsOrAdd as Append;
    let route = adding(vec![edit("x-level", "route", Append), edit("x-mine", "added", Append)]);
    let config = adding(vec![edit("x-level", "config", Append)]);
    let expected = pairs(&[("x-mine", "own"), ("x-level", "route"), ("x-mine", "added"), ("x-level", "config")]);
    assert_eq!(edited(vec![&route, &config], head(&[("x-mine", "own")])), expected);
}

#[test]
fn actions_look_at_what_was_there() {
    for (action, there, expected) in [
        (AppendAction::OverwriteIfExistsOrAdd, true, &[("x", "new")][..]),
        (AppendAction::OverwriteIfExistsOrAdd, false, &[("x", "new")]),
        (AppendAction::OverwriteIfExists, true, &[("x", "new")]),
        (AppendAction::OverwriteIfExists, false, &[]),
        (AppendAction::AddIfAbsent, true, &[("x", "own")]),
        (AppendAction::AddIfAbsent, false, &[("x", "new")]),
        (AppendAction::AppendIfExistsOrAdd, true, &[("x", "own"), ("x", "new")]),
    ] {
        let before = if there { head(&[("x", "own")]) } else { head(&[]) };
        assert_eq!(edited(vec![&adding(vec![edit("x", "new", action)])], before), pairs(expected), "{action:?}");
    }
}

#[test]
fn removal_comes_before_addition() {
    let edits = HeaderEdits {
        request_remove: vec!["x".into()],
        request_add: vec![edit("x", "new", AppendAction::AddIfAbsent)],
        ..HeaderEdits::default()
    };
    assert_eq!(edited(vec![&edits], head(&[("x", "own")])), pairs(&[("x", "new")]));
}

#[test]
fn templates_see_the_request_as_it_was_and_empty_values_are_left_out() {
    let edits = adding(vec![
        edit("x", "new", AppendAction::OverwriteIfExistsOrAdd),
        command("y", Command::Request("x".into(), None)),
        command("z", Command::Request("none".into(), None)),
        command("path", Command::Request(":path".into(), None)),
        command("cluster", Command::UpstreamCluster),
    ]);
    let expected = pairs(&[("x", "new"), ("y", "own"), ("path", "/p"), ("cluster", "a")]);
    assert_eq!(edited(vec![&edits], head(&[("x", "own")])), expected);
}

#[test]
fn a_response_is_edited_like_a_request() {
    let edits = HeaderEdits {
        response_remove: vec!["x-secret".into()],
        response_add: vec![command("x-code", Command::Response(":status".into(), None))],
        ..HeaderEdits::default()
    };
    let mut response = ResponseHead { status: 404, ..ResponseHead::default() };
    response.headers.append(b"x-secret", b"1");
    let mut levels = EditLevels::default();
    levels.levels[1] = Some(&edits);
    levels.edit_response(&mut response, &Nothing);
    assert_eq!(response.headers.get(b"x-secret"), None);
    assert_eq!(response.headers.get_str("x-code"), Some("404"));
}

#[test]
fn headers_that_envoy_knows_are_joined_instead_of_repeated() {
    let edits = adding(vec![edit("via", "v", AppendAction::AppendIfExistsOrAdd)]);
    assert_eq!(edited(vec![&edits], head(&[("via", "c")])), pairs(&[("via", "c,v")]));
}

fn appending(value: &str) -> HeaderEdits {
    adding(vec![edit("x", value, AppendAction::AppendIfExistsOrAdd)])
}

fn order(most_specific_wins: bool) -> (Vec<String>, String) {
    use crate::model::*;
    let cluster = WeightedCluster {
        name: "a".into(),
        weight: 1,
        headers: appending("weighted"),
        host_rewrite: Some("w.test".into()),
        overrides: FilterOverrides::default(),
    };
    let action = RouteAction::new(ClusterSpecifier::Weighted { clusters: vec![cluster], total: 1 });
    let any = RouteMatch::new(PathMatch::Prefix("/".into()));
    let route = std::sync::Arc::new(Route {
        name: String::new(),
        matches: any,
        action: RouteActionKind::Forward(Box::new(action)),
        headers: adding(vec![command("x", Command::Request(":authority".into(), None))]),
        cors: None,
        overrides: FilterOverrides::default(),
    });
    let virtual_host = std::sync::Arc::new(VirtualHost { headers: appending("host"), ..VirtualHost::default() });
    let config = RouteConfig { headers: appending("config"), most_specific_wins, ..RouteConfig::default() };
    let matched = Matched { virtual_host: &virtual_host, route: &route, weighted: Some(0) };
    let mut head = head(&[]);
    EditLevels::of(&config, &matched).edit_request(&mut head, &Nothing);
    let values = head.headers.get_all(b"x").map(|value| String::from_utf8_lossy(value).into_owned()).collect();
    (values, String::from_utf8_lossy(head.authority()).into_owned())
}

#[test]
fn a_weighted_cluster_comes_first_and_its_host_is_seen_by_the_other_levels() {
    assert_eq!(order(false).0, ["weighted", "w.test", "host", "config"]);
    let (values, host) = order(true);
    assert_eq!(values, ["weighted", "config", "host", "w.test"]);
    assert_eq!(host, "w.test");
}
