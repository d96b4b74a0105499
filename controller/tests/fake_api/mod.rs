//! As much of an API server as statuses need: objects by path, server-side apply by field manager, events.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use kube::Client;
use kube::client::Body;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

/// Shared with the client.
#[derive(Clone, Default)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub struct State {
    objects: BTreeMap<String, Stored>,
    pub events: Vec<Value>,
    /// Status patches that were taken.
    pub status_patches: usize,
    /// So many requests are answered with this status.
    pub failures: Option<(usize, StatusCode)>,
    next_uid: usize,
}

#[derive(Clone)]
struct Stored {
    object: Value,
    /// Status as each manager applied it.
    statuses: BTreeMap<String, Value>,
}

impl Stored {
    fn whole(&self) -> Value {
        let mut status = Map::new();
        for part in self.statuses.values().filter_map(Value::as_object) {
            for (field, value) in part {
                match (status.get_mut(field).and_then(Value::as_array_mut), value.as_array()) {
                    (Some(list), Some(more)) => list.extend(more.iter().cloned()),
                    _ => drop(status.insert(field.clone(), value.clone())),
                }
            }
        }
        let mut object = self.object.clone();
        object["status"] = Value::Object(status);
        object
    }
}

impl FakeApi {
    pub fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds this")
    }

    /// The object as a reader sees it.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).map(Stored::whole)
    }

    /// An object that is there from the beginning.
    pub fn put(&self, path: &str, object: Value) {
        self.state().objects.insert(path.to_owned(), Stored { object, statuses: BTreeMap::new() });
    }

    async fn answer(&self, request: Request<Body>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body in memory").to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let manager =
            parts.uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("fieldManager="));
        self.state().dispatch(&parts.method, parts.uri.path(), manager.unwrap_or_default(), body)
    }
}

impl State {
    fn dispatch(&mut self, method: &Method, path: &str, manager: &str, body: Value) -> Response<Full<Bytes>> {
        if let Some((left, status)) = self.failures.as_mut().filter(|(left, _)| *left > 0) {
            *left -= 1;
            return refusal(*status);
        }
        if path.contains("/events.k8s.io/") {
            self.events.push(body.clone());
            return reply(&body);
        }
        let (path, is_status) = path.strip_suffix("/status").map_or((path, false), |path| (path, true));
        match (method, is_status) {
            (&Method::PATCH, false) => self.apply(path, body),
            (&Method::PATCH, true) => self.apply_status(path, manager, body),
            (&Method::DELETE, _) => self.objects.remove(path).map_or_else(not_found, |stored| reply(&stored.whole())),
            _ => self.objects.get(path).map_or_else(not_found, |stored| reply(&stored.whole())),
        }
    }

    fn apply(&mut self, path: &str, mut body: Value) -> Response<Full<Bytes>> {
        self.next_uid += 1;
        body["metadata"]["uid"] = json!(format!("uid-{}", self.next_uid));
        let stored = Stored { object: body, statuses: BTreeMap::new() };
        let answer = reply(&stored.whole());
        self.objects.insert(path.to_owned(), stored);
        answer
    }

    fn apply_status(&mut self, path: &str, manager: &str, body: Value) -> Response<Full<Bytes>> {
        let Some(stored) = self.objects.get_mut(path) else { return not_found() };
        self.status_patches += 1;
        stored.statuses.insert(manager.to_owned(), body["status"].clone());
        reply(&stored.whole())
    }
}

fn reply(value: &Value) -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from(value.to_string())))
}

fn not_found() -> Response<Full<Bytes>> {
    refusal(StatusCode::NOT_FOUND)
}

fn refusal(status: StatusCode) -> Response<Full<Bytes>> {
    let reason = if status == StatusCode::NOT_FOUND { "NotFound" } else { "Test" };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status.as_u16(),
        "message": status.to_string(), "reason": reason,
    });
    let mut response = reply(&body);
    *response.status_mut() = status;
    response
}
