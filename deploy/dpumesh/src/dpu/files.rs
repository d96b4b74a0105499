//! Writing files for a DPU: all or none, private ones for their owner only, nothing overwritten unasked.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file to be written.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Below the folder that is chosen, without a leading slash.
    pub path: String,
    pub text: String,
    /// Only its owner may read it.
    pub is_private: bool,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("path", &self.path).field("is_private", &self.is_private).finish_non_exhaustive()
    }
}

impl File {
    pub fn public(path: String, text: String) -> Self {
        Self { path, text, is_private: false }
    }

    pub fn private(path: String, text: String) -> Self {
        Self { path, text, is_private: true }
    }
}

/// Why nothing, or not all, was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{} is there already: nothing was written; --force replaces it", path.display())]
    Exists { path: PathBuf },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Writes below `folder`, which is made when it is missing. Each file is whole or as it was before.
pub fn write(folder: &Path, files: &[File], force: bool) -> Result<Vec<PathBuf>, WriteError> {
    let paths: Vec<PathBuf> = files.iter().map(|file| folder.join(&file.path)).collect();
    if let Some(path) = paths.iter().find(|path| !force && path.symlink_metadata().is_ok()) {
        return Err(WriteError::Exists { path: path.clone() });
    }
    for (file, path) in files.iter().zip(&paths) {
        put(path, file).map_err(|source| WriteError::Write { path: path.clone(), source })?;
    }
    Ok(paths)
}

fn put(path: &Path, file: &File) -> io::Result<()> {
    let folder_mode = if file.is_private { 0o700 } else { 0o755 };
    let file_mode = if file.is_private { 0o600 } else { 0o644 };
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(folder_mode).create(folder)?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.{}.draft", std::process::id()));
    let written = fill(&draft, &file.text, file_mode).and_then(|()| std::fs::rename(&draft, path));
    if written.is_err() {
        // It may not even have been made.
        let _ = std::fs::remove_file(&draft);
    }
    written
}

fn fill(draft: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_for_their_owner_and_so_is_their_folder() {
        let folder = tempfile::tempdir().expect("folder");
        let files = [File::private("tls/key.pem".into(), "k".into()), File::public("a.json".into(), "{}".into())];
        write(folder.path(), &files, false).expect("written");
        assert_eq!((mode(&folder.path().join("tls/key.pem")), mode(&folder.path().join("tls"))), (0o600, 0o700));
        assert_eq!(mode(&folder.path().join("a.json")), 0o644);
    }

    #[test]
    fn what_is_there_stays_unless_force_is_given() {
        let folder = tempfile::tempdir().expect("folder");
        let of = |text: &str| [File::private("new".into(), text.into()), File::private("old".into(), text.into())];
        std::fs::write(folder.path().join("old"), "kept").expect("write");
        let error = write(folder.path(), &of("x"), false).expect_err("refused");
        assert!(error.to_string().contains("--force"), "{error}");
        assert!(!folder.path().join("new").exists(), "nothing is written when one is refused");
        assert_eq!(std::fs::read_to_string(folder.path().join("old")).expect("read"), "kept");
        write(folder.path(), &of("y"), true).expect("forced");
        assert_eq!(std::fs::read_to_string(folder.path().join("old")).expect("read"), "y");
        assert_eq!(mode(&folder.path().join("old")), 0o600, "an open file becomes private");
    }

    #[test]
    fn a_key_does_not_show_in_debug_output() {
        let file = File::private("key".into(), "secret".into());
        assert!(!format!("{file:?}").contains("secret"));
    }
}
