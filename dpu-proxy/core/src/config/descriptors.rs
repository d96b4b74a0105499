//! Descriptors of Envoy's API, by which text is read (`json`) and unread fields are found (`census`).
//!
//! `descriptors/envoy.binpb` is made by `descriptors/generate.py`. All of it takes 16 MiB once it is decoded, so it is
//! there only while a text is read; what stays is the part that describes the resources that are converted.

use super::census;
use prost::Message;
use prost_reflect::DescriptorPool;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

static ENVOY: &[u8] = include_bytes!("../../descriptors/envoy.binpb");

/// Everything that a configuration may name, for as long as it is held.
#[cfg(not(test))]
pub fn everything() -> DescriptorPool {
    decoded()
}

/// Tests read many texts: they keep it.
#[cfg(test)]
pub fn everything() -> DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(decoded).clone()
}

fn decoded() -> DescriptorPool {
    DescriptorPool::decode(ENVOY).expect("the descriptor set is part of the program")
}

/// The messages that are converted and what they hold; decoded at first use, and then kept.
pub fn converted() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let set = FileDescriptorSet::decode(ENVOY).expect("the descriptor set is part of the program");
        DescriptorPool::from_file_descriptor_set(with_dependencies(set)).expect("its dependencies are part of it")
    })
}

/// The files of the messages that are read, and what these import.
fn with_dependencies(set: FileDescriptorSet) -> FileDescriptorSet {
    let packages: HashSet<String> = census::packages().collect();
    let by_name: HashMap<&str, &FileDescriptorProto> = set.file.iter().map(|file| (file.name(), file)).collect();
    let mut wanted: HashSet<&str> = HashSet::new();
    let mut open: Vec<&str> =
        set.file.iter().filter(|file| packages.contains(file.package())).map(FileDescriptorProto::name).collect();
    while let Some(name) = open.pop() {
        if wanted.insert(name) {
            open.extend(by_name.get(name).into_iter().flat_map(|file| file.dependency.iter().map(String::as_str)));
        }
    }
    FileDescriptorSet { file: set.file.iter().filter(|file| wanted.contains(file.name())).cloned().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_a_part_of_everything() {
        let (kept, all) = (converted().all_messages().len(), everything().all_messages().len());
        assert!(kept * 2 < all, "{kept} of {all} messages stay");
    }
}
