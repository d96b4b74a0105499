//! `Reply`: an answer of the proxy itself.

use crate::stream_info::ResponseFlags;
use dpu_proxy_core::head::{RequestHead, ResponseHead};
use dpu_proxy_core::matching::route::is_grpc;
use dpu_proxy_core::policy::grpc;
use dpu_proxy_core::policy::local_reply::LocalReply;
use std::borrow::Cow;

/// An answer of the proxy itself. Small to pass around: most requests get none.
#[derive(Clone, Debug)]
pub struct Reply(Box<Parts>);

/// What it is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    pub status: u16,
    pub flags: ResponseFlags,
    pub details: Cow<'static, str>,
    pub body: Cow<'static, [u8]>,
    pub headers: Vec<(&'static str, String)>,
    /// The gRPC status, where it is not that of the HTTP status.
    pub grpc_status: Option<u32>,
    /// The head, where it was made elsewhere.
    pub prepared: Option<ResponseHead>,
    /// The connection ends after it.
    pub closes: bool,
}

impl std::ops::Deref for Reply {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl std::ops::DerefMut for Reply {
    fn deref_mut(&mut self) -> &mut Parts {
        &mut self.0
    }
}

impl From<LocalReply> for Reply {
    fn from(reply: LocalReply) -> Self {
        let body = match reply.body {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Self::new(reply.status, reply.details).body(body).grpc(reply.grpc_status)
    }
}

impl Reply {
    /// Status and details, without a body.
    pub fn new(status: u16, details: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Parts {
            status,
            flags: ResponseFlags::default(),
            details: details.into(),
            body: Cow::Borrowed(b""),
            headers: Vec::new(),
            grpc_status: None,
            prepared: None,
            closes: false,
        }))
    }

    /// With a gRPC status, where there is one.
    pub fn grpc(mut self, status: Option<u32>) -> Self {
        self.grpc_status = status;
        self
    }

    /// After it the connection ends.
    pub fn close(mut self) -> Self {
        self.closes = true;
        self
    }

    /// With a head that was made elsewhere.
    pub fn prepared(mut self, head: ResponseHead) -> Self {
        self.prepared = Some(head);
        self
    }

    /// With other details.
    pub fn details(mut self, details: String) -> Self {
        self.details = details.into();
        self
    }

    /// With a response flag.
    pub fn flag(mut self, flags: ResponseFlags) -> Self {
        self.flags.insert(flags);
        self
    }

    /// With a body.
    pub fn body(mut self, body: impl Into<Cow<'static, [u8]>>) -> Self {
        self.body = body.into();
        self
    }

    /// With a text as body.
    pub fn text(self, body: &'static str) -> Self {
        self.body(body.as_bytes())
    }

    /// With a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Writes the head of the answer to `request`; the body that follows it. `edit` makes the route's edits: before
    /// length and type, as Envoy does. A head that was made elsewhere goes without.
    pub fn head(
        &self,
        request: &RequestHead,
        response: &mut ResponseHead,
        edit: impl FnOnce(&mut ResponseHead),
    ) -> &[u8] {
        if let Some(prepared) = &self.prepared {
            response.clone_from(prepared);
            return b"";
        }
        response.clear();
        let is_grpc = is_grpc(request);
        response.status = if is_grpc { 200 } else { self.status };
        for (name, value) in &self.headers {
            response.headers.append(name.as_bytes(), value.as_bytes());
        }
        edit(response);
        if is_grpc {
            self.grpc_head(response);
            return b"";
        }
        if !self.body.is_empty() {
            response.headers.set(b"content-length", self.body.len().to_string().as_bytes());
            if response.headers.get(b"content-type").is_none() {
                response.headers.append(b"content-type", b"text/plain");
            }
        }
        &self.body
    }

    /// A gRPC answer is a head alone, with its status.
    fn grpc_head(&self, response: &mut ResponseHead) {
        let status = self.grpc_status.unwrap_or_else(|| grpc::of_http(self.status));
        response.headers.set(b"content-type", b"application/grpc");
        response.headers.set(b"grpc-status", status.to_string().as_bytes());
        if !self.body.is_empty() {
            response.headers.set(b"grpc-message", &percent_encoded(&self.body));
        }
    }
}

/// gRPC's encoding of messages.
fn percent_encoded(text: &[u8]) -> Vec<u8> {
    let mut output = Vec::with_capacity(text.len());
    for byte in text {
        match byte {
            b' '..=b'~' if *byte != b'%' => output.push(*byte),
            _ => output.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    output
}
