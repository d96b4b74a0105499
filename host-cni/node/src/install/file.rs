//! Files that others read at any moment: whole or not there, also after a power cut.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Puts `content` at `path`, in one step. The draft has a name that no runtime reads as a configuration.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let draft = path.with_file_name(format!(".{name}.{}.draft", std::process::id()));
    let written = write(&draft, content, mode).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // It may not even have been made.
        let _ = fs::remove_file(&draft);
    }
    written?;
    sync_folder(path)
}

/// Removes it; one that is gone is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_folder(path),
    }
}

fn write(draft: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = File::create(draft)?;
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_no_draft() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("plugin");
        replace(&path, b"one", 0o755).expect("written");
        // A program that runs may be replaced: it keeps its own file.
        let open = File::open(&path).expect("open");
        replace(&path, b"two", 0o755).expect("replaced");
        assert_eq!(io::read_to_string(open).expect("read"), "one");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 1);
        remove(&path).expect("removed");
        remove(&path).expect("twice");
    }

    #[test]
    fn a_folder_that_is_missing_is_an_error() {
        assert!(replace(Path::new("/nonexistent/x"), b"", 0o644).is_err());
    }
}
