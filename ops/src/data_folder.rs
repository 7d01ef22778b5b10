//! The data folder: what is where in it, who owns it, and how its private files are written.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Role;

/// A data folder. Only its owner may look inside (mode 0700).
#[derive(Debug, Clone)]
pub struct DataFolder(PathBuf);

/// Shows that this process owns the folder; given back when dropped, and by the system when the process dies.
#[derive(Debug)]
pub struct Owned(#[expect(dead_code, reason = "the lock lives as long as the file is open")] File);

impl DataFolder {
    /// The folder at a path, whether it exists or not.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Makes the folder if it does not exist. Takes access for others away if they have it.
    pub fn create(&self) -> Result<()> {
        let path = self.0.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .with_context(|| format!("the data folder {path} can't be made; give another one with --data"))?;
        let metadata = std::fs::metadata(&self.0).with_context(|| format!("the data folder {path} can't be read"))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            std::fs::set_permissions(&self.0, std::fs::Permissions::from_mode(0o700))
                .with_context(|| format!("the data folder {path} is open to others and belongs to someone else"))?;
        }
        Ok(())
    }

    /// Takes ownership, or says who has it.
    pub fn own(&self) -> Result<Owned> {
        let path = self.0.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("{} can't be opened", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _ = (&file).take(32).read_to_string(&mut owner);
                bail!(
                    "the data folder {} is in use by process {}; stop it first, or give another folder with --data",
                    self.0.display(),
                    owner.trim()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("{} can't be locked", path.display()));
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("{} can't be written", path.display()))?;
        Ok(Owned(file))
    }

    /// True while a process owns it.
    pub fn is_owned(&self) -> bool {
        File::open(self.0.join("lock")).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Remembers that this is the folder of a process with a part of the tiers, whose stores are elsewhere, or forgets it.
    pub fn note_role(&self, role: Role) -> Result<()> {
        match role {
            Role::All => match std::fs::remove_file(self.0.join("role")) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(error).context("the file role can't be removed")
                }
                _ => Ok(()),
            },
            _ => write_private(&self.0.join("role"), format!("{}\n", role.name()).as_bytes()),
        }
    }

    /// The role of the process whose folder this is; `None` where the stores are in it.
    pub fn role(&self) -> Option<String> {
        std::fs::read_to_string(self.0.join("role")).ok().map(|role| role.trim().to_owned())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The embedded sorted store, a folder.
    pub fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    /// The catalog, an SQLite file.
    pub fn catalog(&self) -> PathBuf {
        self.0.join("catalog.sqlite")
    }

    /// The Unix socket of `campanile app` and `campanile ctl`.
    pub fn socket(&self) -> PathBuf {
        self.0.join("campanile.sock")
    }

    /// What a running server says of itself.
    pub fn run(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// The server's own keys.
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys.json")
    }

    /// The demo application, with its secret.
    pub fn demo(&self) -> PathBuf {
        self.0.join("demo.json")
    }

    /// Certificates and their keys, a folder.
    pub fn tls(&self) -> PathBuf {
        self.0.join("tls")
    }

    /// The instance's own CA.
    pub fn ca(&self) -> PathBuf {
        self.tls().join("ca.pem")
    }
}

/// Writes a file that only its owner may read. It is there whole or not at all, and on disk when this returns.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(&fresh);
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        // A bare name is in the working folder.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("{} can't be written", path.display()))
}

/// Writes a private file of JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).context("can't be written as JSON")?;
    bytes.push(b'\n');
    write_private(path, &bytes)
}

/// Reads a file of JSON; `None` if it does not exist.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is damaged; restore it from a backup", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{} can't be read", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_and_a_second_learns_who_that_is() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::at(&temp.path().join("a/b"));
        folder.create().expect("makes");
        let owned = folder.own().expect("free");
        assert!(folder.is_owned());
        let error = folder.own().expect_err("owned").to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        drop(owned);
        assert!(!folder.is_owned());
        folder.own().expect("free again");
    }

    #[test]
    fn a_folder_and_its_private_files_are_closed_to_others() {
        let temp = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o755)).expect("opens up");
        let folder = DataFolder::at(temp.path());
        folder.create().expect("closes");
        let mode = |path: &Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        assert_eq!(mode(temp.path()), 0o700);
        write_json(&folder.keys(), &[1, 2]).expect("writes");
        assert_eq!(mode(&folder.keys()), 0o600);
        assert_eq!(read_json::<Vec<u8>>(&folder.keys()).expect("reads"), Some(vec![1, 2]));
        assert_eq!(read_json::<Vec<u8>>(&folder.demo()).expect("reads"), None);
    }
}
