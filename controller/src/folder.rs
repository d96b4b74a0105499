//! The files of the manifests folder: what each holds, and what all hold together. Pure.
//!
//! A file that does not parse is refused alone; its last good objects stay in force. Where two
//! files hold the same object, the file that comes first by name has it.

use crate::manifest::{self, ManifestError};
use crate::object::{Key, Object};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Files by name.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    files: BTreeMap<String, File>,
    /// Kinds that were already logged as not used.
    skipped: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
struct File {
    /// As it was last read, so that it is parsed once for each change.
    text: String,
    /// `None`: it never was good.
    objects: Option<Vec<(Key, Object)>>,
    refusal: Option<ManifestError>,
}

/// A file or object that is not in force as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Name of the file, or kind and name of the object.
    pub file: String,
    pub reason: String,
    /// Whether an older content is in force.
    pub last_good: bool,
}

impl Folder {
    /// Makes the files be exactly these; says whether anything changed.
    pub fn replace(&mut self, files: BTreeMap<String, String>) -> bool {
        let before = self.files.len();
        self.files.retain(|name, _| files.contains_key(name));
        let mut changed = self.files.len() != before;
        for (name, text) in files {
            changed |= self.put(&name, text);
        }
        changed
    }

    /// Adds or changes one file.
    pub fn put(&mut self, name: &str, text: String) -> bool {
        if self.files.get(name).is_some_and(|file| file.text == text) {
            return false;
        }
        let parsed = manifest::parse(&text);
        let file = self.files.entry(name.to_owned()).or_default();
        file.text = text;
        match parsed {
            Ok(manifest) => {
                file.objects = Some(manifest.objects);
                file.refusal = None;
                self.note_skipped(name, manifest.skipped);
            }
            Err(error) => {
                let last_good = file.objects.is_some();
                tracing::error!(file = name, %error, last_good, "manifest refused; its last good objects stay in force");
                file.refusal = Some(error);
            }
        }
        true
    }

    fn note_skipped(&mut self, file: &str, kinds: Vec<String>) {
        for kind in kinds {
            if self.skipped.insert(kind.clone()) {
                tracing::info!(file, kind, "objects of this kind are not used here and skipped");
            }
        }
    }

    /// Removes one file.
    pub fn remove(&mut self, name: &str) -> bool {
        self.files.remove(name).is_some()
    }

    /// All objects in force.
    pub fn objects(&self) -> BTreeMap<Key, Object> {
        let mut all = BTreeMap::new();
        for (key, object) in self.files.values().flat_map(|file| file.objects.iter().flatten()) {
            all.entry(key.clone()).or_insert_with(|| object.clone());
        }
        all
    }

    /// Files that are refused, and objects that an earlier file has already.
    pub fn refusals(&self) -> Vec<Refusal> {
        let mut owners: BTreeMap<&Key, &str> = BTreeMap::new();
        let mut refusals = Vec::new();
        for (name, file) in &self.files {
            if let Some(error) = &file.refusal {
                refusals.push(Refusal {
                    file: name.clone(),
                    reason: error.to_string(),
                    last_good: file.objects.is_some(),
                });
            }
            for (key, _) in file.objects.iter().flatten() {
                let owner = owners.entry(key).or_insert(name);
                if *owner != name {
                    let reason = format!("{key} is already in {owner}, which has it");
                    refusals.push(Refusal { file: name.clone(), reason, last_good: true });
                }
            }
        }
        refusals
    }

    /// A file that never was good is missing from the views: that is worth a person's attention.
    pub fn in_force(&self) -> Result<(), String> {
        let missing: Vec<String> = self
            .refusals()
            .iter()
            .filter(|refusal| !refusal.last_good)
            .map(|refusal| format!("{}: {}", refusal.file, refusal.reason))
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str, label: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{l: {label}}}}}\n")
    }

    #[test]
    fn a_bad_file_is_refused_alone_and_its_last_good_objects_stay() {
        let mut folder = Folder::default();
        folder.put("a.yaml", namespace("a", "1"));
        folder.put("b.yaml", namespace("b", "1"));
        let good = folder.objects();
        folder.put("a.yaml", "kind: [".to_owned());
        assert_eq!(folder.objects(), good);
        let refusals = folder.refusals();
        assert_eq!((refusals.len(), refusals[0].file.as_str(), refusals[0].last_good), (1, "a.yaml", true));
        folder.put("a.yaml", namespace("a", "2"));
        assert_eq!(folder.refusals(), []);
        assert_ne!(folder.objects(), good);
    }

    #[test]
    fn an_object_in_two_files_belongs_to_the_first_and_moves_on_when_that_goes() {
        let mut folder = Folder::default();
        folder.put("b.yaml", namespace("n", "b"));
        let of_b = folder.objects();
        folder.put("a.yaml", namespace("n", "a"));
        assert_ne!(folder.objects(), of_b);
        assert!(folder.refusals()[0].reason.contains("already in a.yaml"));
        folder.remove("a.yaml");
        assert_eq!(folder.objects(), of_b);
    }
}
