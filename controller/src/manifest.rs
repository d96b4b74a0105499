//! The text of one manifest file: YAML with several documents, or JSON, to objects. Pure.
//!
//! A file is taken whole or refused whole, with the line (or the field) that is wrong.

use crate::crd;
use crate::kubernetes::Convert;
use crate::object::{Key, Object};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    pub objects: Vec<(Key, Object)>,
    /// `apiVersion kind` of what is not used here.
    pub skipped: Vec<String>,
}

/// Why a file is refused. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ManifestError {
    pub line: u64,
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    items: Vec<serde_json::Value>,
}

/// Parses a whole file.
pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
    let mut manifest = Manifest::default();
    for document in documents(text) {
        manifest.add(document)?;
    }
    Ok(manifest)
}

/// A part of the file, and the number of lines before it.
#[derive(Clone, Copy, Debug)]
struct Document<'a> {
    text: &'a str,
    lines_before: u64,
}

/// `---` at the start of a line always separates documents, also inside block text (YAML 1.2, §9.1).
fn documents(text: &str) -> Vec<Document<'_>> {
    let (mut all, mut start, mut offset, mut first_line) = (Vec::new(), 0, 0, 0);
    for (number, line) in (0u64..).zip(text.split_inclusive('\n')) {
        let is_marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if is_marker {
            all.push(Document { text: &text[start..offset], lines_before: first_line });
            (start, first_line) = (offset + 3, number);
        }
        offset += line.len();
    }
    all.push(Document { text: &text[start..], lines_before: first_line });
    all.retain(|document| !is_blank(document.text));
    all
}

fn is_blank(text: &str) -> bool {
    text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

impl Manifest {
    fn add(&mut self, document: Document<'_>) -> Result<(), ManifestError> {
        let header: Header = document.read()?;
        if header.kind == "List" {
            for (index, item) in header.items.into_iter().enumerate() {
                let text = item.to_string();
                let inner = Document { text: &text, ..document };
                self.add(inner).map_err(|error| ManifestError {
                    line: document.first_line(),
                    reason: format!("items[{index}]: {}", error.reason),
                })?;
            }
            return Ok(());
        }
        self.add_object(document, &header)
    }

    fn add_object(&mut self, document: Document<'_>, header: &Header) -> Result<(), ManifestError> {
        let object = match (header.api_version.as_str(), header.kind.as_str()) {
            ("v1", "Namespace") => document.object::<Namespace>()?,
            ("v1", "Node") => document.object::<Node>()?,
            ("v1", "Pod") => document.object::<Pod>()?,
            ("v1", "Service") => document.object::<Service>()?,
            ("apps/v1", "ReplicaSet") => document.object::<ReplicaSet>()?,
            ("discovery.k8s.io/v1", "EndpointSlice") => document.object::<EndpointSlice>()?,
            ("dpumesh.io/v1", "Network") => document.object::<crd::Network>()?,
            ("dpumesh.io/v1", "DpuNode") => document.object::<crd::DpuNode>()?,
            ("", _) | (_, "") => {
                return Err(document.wrong("apiVersion or kind is missing: this is no Kubernetes object"));
            }
            (version, kind) => {
                self.skipped.push(format!("{version} {kind}"));
                return Ok(());
            }
        };
        if self.objects.iter().any(|(key, _)| *key == object.0) {
            return Err(document.wrong(&format!("{} is in this file twice", object.0)));
        }
        self.objects.push(object);
        Ok(())
    }
}

impl Document<'_> {
    fn object<T: DeserializeOwned + Convert>(self) -> Result<(Key, Object), ManifestError> {
        self.read::<T>()?.convert().map_err(|error| self.wrong(&error.to_string()))
    }

    fn read<T: DeserializeOwned>(self) -> Result<T, ManifestError> {
        // As in YAML 1.2: a namespace called `n` or `yes` is a text.
        let options = serde_saphyr::options! { strict_booleans: true };
        serde_saphyr::from_str_with_options(self.text, options).map_err(|error| {
            let line = error.location().map_or(self.first_line(), |location| self.lines_before + location.line());
            ManifestError { line, reason: one_line(&error.without_snippet().to_string()) }
        })
    }

    fn wrong(self, reason: &str) -> ManifestError {
        ManifestError { line: self.first_line(), reason: reason.to_owned() }
    }

    /// The first line with content.
    fn first_line(self) -> u64 {
        let is_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
        let blank = self.text.lines().take_while(|line| !is_content(line)).count() as u64;
        self.lines_before + blank + 1
    }
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Kind;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: n}\nspec:\n  nodeName: host1\n  containers: [{name: c, image: x}]\n";

    #[test]
    fn several_documents_and_lists_and_json_are_read() {
        let text = format!(
            "# bookinfo\n---\n{POD}---\napiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: Namespace, metadata: {{name: n}}}}\n"
        );
        let keys: Vec<Key> = parse(&text).expect("valid").objects.into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [Key::new(Kind::Pod, "n", "a"), Key::new(Kind::Namespace, "", "n")]);
        let json = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}"#;
        assert_eq!(parse(json).expect("valid").objects.len(), 1);
        assert_eq!(parse("\n# nothing\n").expect("empty"), Manifest::default());
    }

    #[test]
    fn kinds_that_are_not_used_are_named() {
        let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n";
        assert_eq!(parse(text).expect("valid").skipped, ["apps/v1 Deployment"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let syntax = format!("{POD}---\nkind: [\n");
        assert!(parse(&syntax).expect_err("no YAML").line >= 7);
        let kind = parse(&format!("{POD}---\na: 1\n")).expect_err("no kind");
        assert_eq!((kind.line, kind.reason.contains("kind is missing")), (8, true), "{kind}");
        let port = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - port: many\n";
        assert_eq!(parse(port).expect_err("no number").line, 6);
        let port = port.replace("many", "70000");
        assert!(parse(&port).expect_err("range").reason.contains("spec.ports[0].port: 70000"));
        let twice = format!("{POD}---\n{POD}");
        assert!(parse(&twice).expect_err("twice").reason.contains("Pod n/a is in this file twice"));
    }

    #[test]
    fn wrong_fields_of_our_own_are_named() {
        for (manifest, reason) in [
            (
                "apiVersion: v1\nkind: Node\nmetadata: {name: h, annotations: {dpumesh.io/underlay-address: here}}",
                "metadata.annotations[dpumesh.io/underlay-address]: \"here\" is no address",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {dpumesh.io/on-failure: open}}\nspec: {containers: []}",
                "neither closed nor bypass",
            ),
            ("apiVersion: dpumesh.io/v1\nkind: Network\nmetadata: {name: n}\nspec: {vni: 16777216}", "spec.vni"),
            ("apiVersion: dpumesh.io/v1\nkind: Network\nmetadata: {name: n}\nspec: {vnj: 1}", "vnj"),
            ("apiVersion: v1\nkind: Node\nmetadata: {name: h}\nspec: {podCIDRs: [10.0.0.0]}", "spec.podCIDRs"),
        ] {
            let error = parse(manifest).expect_err(manifest);
            assert!(error.reason.contains(reason), "{error}");
        }
    }
}
