//! Certificates in files, read again when they change. A new file that cannot be used changes
//! nothing but what is reported.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use sha2::{Digest as _, Sha256};

use super::{
    certificate::{Certificate, Unusable},
    config::CertificateFiles,
};

/// A chain and its key have a few kilobytes.
const SIZE_MAX: u64 = 1 << 20;
/// Certificates of one folder.
const ENTRIES_MAX: usize = 20_000;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is too large for a certificate")]
    TooLarge { path: PathBuf },
    #[error("{path}: {source}")]
    Unusable { path: PathBuf, source: Unusable },
}

/// Where to look, and what was there when it was looked at last.
pub struct Files {
    listed: Vec<CertificateFiles>,
    directory: Option<PathBuf>,
    provider: Arc<CryptoProvider>,
    known: BTreeMap<PathBuf, Known>,
    directory_fault: Option<String>,
}

/// What a look found.
#[derive(Debug)]
pub struct Scan {
    pub certificates: Vec<Arc<Certificate>>,
    /// Whether a certificate came, went or was replaced.
    pub changed: bool,
    pub faults: Vec<String>,
    /// Files read and taken, and read and refused.
    pub loaded: u64,
    pub broken: u64,
}

#[derive(Default)]
struct Known {
    stamps: Option<[Stamp; 2]>,
    /// Of what was read last, so that no second copy of a key lies about.
    digests: Option<[Digest; 2]>,
    certificate: Option<Arc<Certificate>>,
    fault: Option<String>,
}

/// Tells that a file is another one, or was written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

type Digest = [u8; 32];

struct Entry {
    name: String,
    chain: PathBuf,
    key: PathBuf,
}

impl Files {
    pub fn new(
        listed: Vec<CertificateFiles>,
        directory: Option<PathBuf>,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self { listed, directory, provider, known: BTreeMap::new(), directory_fault: None }
    }

    /// The first faulty one of the files that are named one by one.
    pub fn first_listed_fault(&self) -> Option<String> {
        self.listed.iter().find_map(|files| self.known.get(&files.certificate_file)?.fault.clone())
    }

    /// Looks at every file. Blocks.
    pub fn scan(&mut self) -> Scan {
        let mut scan = Scan {
            certificates: Vec::new(),
            changed: false,
            faults: Vec::new(),
            loaded: 0,
            broken: 0,
        };
        let listed = self.listed.iter().map(|files| Entry {
            name: files.certificate_file.display().to_string(),
            chain: files.certificate_file.clone(),
            key: files.key_file.clone(),
        });
        let mut entries: Vec<_> = listed.collect();
        let listed = entries.len();
        match self.directory.as_deref().map(in_directory).transpose() {
            Ok(found) => {
                self.directory_fault = None;
                entries.extend(found.into_iter().flatten());
                let before = self.known.len();
                let there: HashSet<_> = entries.iter().map(|entry| &entry.chain).collect();
                self.known.retain(|path, _| there.contains(path));
                scan.changed |= self.known.len() != before;
            }
            // What was there stays in use.
            Err(error) => self.directory_fault = Some(error.to_string()),
        }
        for entry in &entries {
            let known = self.known.entry(entry.chain.clone()).or_default();
            known.look(entry, &self.provider, &mut scan);
        }
        // In the order in which they are listed, then by name; also those of a folder that cannot
        // be listed now.
        let named = entries.iter().take(listed).map(|entry| &entry.chain);
        let first: HashSet<_> = self.listed.iter().map(|files| &files.certificate_file).collect();
        let rest = self.known.keys().filter(|path| !first.contains(path));
        for known in named.chain(rest).filter_map(|path| self.known.get(path)) {
            scan.certificates.extend(known.certificate.clone());
            scan.faults.extend(known.fault.clone());
        }
        scan.faults.extend(self.directory_fault.clone());
        scan
    }
}

impl Known {
    fn look(&mut self, entry: &Entry, provider: &CryptoProvider, scan: &mut Scan) {
        match self.read(entry, provider) {
            Ok(None) => {}
            Ok(Some(certificate)) => {
                self.fault = None;
                scan.loaded += 1;
                let same = self.certificate.as_ref().is_some_and(|old| old.is_same(&certificate));
                scan.changed |= !same;
                self.certificate = Some(Arc::new(certificate));
            }
            Err(error) => {
                let fault = error.to_string();
                if self.fault.as_ref() != Some(&fault) {
                    scan.broken += 1;
                }
                if matches!(error, FileError::Io { .. }) {
                    // It may come back as it was.
                    (self.stamps, self.digests) = (None, None);
                }
                self.fault = Some(fault);
            }
        }
    }

    /// `None` when nothing has changed.
    fn read(
        &mut self,
        entry: &Entry,
        provider: &CryptoProvider,
    ) -> Result<Option<Certificate>, FileError> {
        let stamps = [stamp(&entry.chain)?, stamp(&entry.key)?];
        if self.stamps == Some(stamps) {
            return Ok(None);
        }
        let (chain, key) = (read(&entry.chain)?, read(&entry.key)?);
        self.stamps = Some(stamps);
        let digests = [&chain, &key].map(|content| Sha256::digest(content).into());
        if self.digests.replace(digests) == Some(digests) {
            return Ok(None);
        }
        let made = Certificate::from_pem(entry.name.clone(), &chain, &key, provider);
        let unusable = |source| FileError::Unusable { path: entry.chain.clone(), source };
        made.map(Some).map_err(unusable)
    }
}

/// Looks without keeping others from running.
pub async fn scan(files: &Arc<Mutex<Files>>) -> Scan {
    let files = files.clone();
    tokio::task::spawn_blocking(move || files.lock().scan()).await.unwrap_or_else(|error| {
        let faults = vec![format!("looking at the files failed: {error}")];
        Scan { certificates: Vec::new(), changed: false, faults, loaded: 0, broken: 1 }
    })
}

fn stamp(path: &Path) -> Result<Stamp, FileError> {
    let meta =
        fs::metadata(path).map_err(|source| FileError::Io { path: path.to_owned(), source })?;
    Ok(Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        length: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(SIZE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > SIZE_MAX {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Other files of a folder, such as those that Kubernetes puts there, are none of ours.
fn in_directory(folder: &Path) -> Result<Vec<Entry>, FileError> {
    let failed = |source| FileError::Io { path: folder.to_owned(), source };
    let mut entries = Vec::new();
    for item in fs::read_dir(folder).map_err(failed)?.take(ENTRIES_MAX) {
        let path = item.map_err(failed)?.path();
        let Some(file_name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if file_name.starts_with('.') {
            continue;
        }
        let entry = |name: &str, chain, key| Entry { name: name.to_owned(), chain, key };
        if let Some(name) = file_name.strip_suffix(".pem") {
            entries.push(entry(name, path.clone(), path.clone()));
        } else if let Some(name) = file_name.strip_suffix(".crt") {
            let key = path.with_extension("key");
            if key.exists() {
                entries.push(entry(name, path.clone(), key));
            }
        } else if path.join("tls.crt").exists() {
            entries.push(entry(file_name, path.join("tls.crt"), path.join("tls.key")));
        }
    }
    entries.sort_by(|a, b| a.chain.cmp(&b.chain));
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::{super::certificate::tests::pem, *};
    use crate::tls::profile;

    fn files(listed: Vec<CertificateFiles>, directory: Option<&Path>) -> Files {
        Files::new(listed, directory.map(Path::to_owned), Arc::new(profile::provider()))
    }

    fn names(scan: &Scan) -> Vec<String> {
        scan.certificates.iter().map(|one| one.hosts.join(",")).collect()
    }

    #[test]
    fn a_broken_new_file_keeps_the_old_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let chain = folder.path().join("a.crt");
        let key = folder.path().join("a.key");
        let put = |(chain_pem, key_pem): &(String, String)| {
            fs::write(&chain, chain_pem).unwrap();
            fs::write(&key, key_pem).unwrap();
        };
        let mut files = files(
            vec![CertificateFiles { certificate_file: chain.clone(), key_file: key.clone() }],
            None,
        );
        assert_eq!(files.scan().faults.len(), 1);
        assert!(files.first_listed_fault().unwrap().contains("a.crt"));
        let first = pem(&["first.example.org"], 0, 100);
        put(&first);
        let scan = files.scan();
        assert!(scan.changed && scan.faults.is_empty());
        assert_eq!(names(&scan), ["first.example.org"]);
        let again = files.scan();
        assert!(!again.changed && again.loaded == 0);

        for broken in [
            (first.0.clone(), pem(&["other.example.org"], 0, 100).1),
            ("half of it".to_owned(), first.1.clone()),
            (String::new(), String::new()),
        ] {
            put(&broken);
            let scan = files.scan();
            assert_eq!((scan.changed, scan.broken, scan.faults.len()), (false, 1, 1));
            assert_eq!(names(&scan), ["first.example.org"]);
            let again = files.scan();
            assert_eq!((again.broken, again.faults.len()), (0, 1), "told once, and not forgotten");
        }
        fs::remove_file(&key).unwrap();
        assert_eq!(names(&files.scan()), ["first.example.org"]);
        put(&pem(&["second.example.org"], 0, 100));
        let scan = files.scan();
        assert!(scan.changed && scan.faults.is_empty());
        assert_eq!(names(&scan), ["second.example.org"]);
    }

    #[test]
    fn a_folder_as_people_and_kubernetes_keep_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let mut files = files(Vec::new(), Some(path));
        let (chain, key) = pem(&["pem.example.org"], 0, 100);
        fs::write(path.join("one.pem"), format!("{key}{chain}")).unwrap();
        let (chain, key) = pem(&["crt.example.org"], 0, 100);
        fs::write(path.join("two.crt"), chain).unwrap();
        fs::write(path.join("two.key"), key).unwrap();
        // A mounted Secret: links to a folder that is replaced as a whole.
        let mounted = |version: &str, host: &str| {
            let (chain, key) = pem(&[host], 0, 100);
            let real = path.join("three").join(version);
            fs::create_dir_all(&real).unwrap();
            fs::write(real.join("tls.crt"), chain).unwrap();
            fs::write(real.join("tls.key"), key).unwrap();
            let link = path.join("three/..data");
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(version, link).unwrap();
        };
        mounted("..1", "mounted.example.org");
        for file in ["tls.crt", "tls.key"] {
            let link = path.join("three").join(file);
            std::os::unix::fs::symlink(Path::new("..data").join(file), link).unwrap();
        }
        fs::write(path.join("README"), "not a certificate").unwrap();
        fs::write(path.join("ca.crt"), "a certificate without a key").unwrap();
        let scan = files.scan();
        assert_eq!(names(&scan), ["pem.example.org", "mounted.example.org", "crt.example.org"]);
        assert!(scan.faults.is_empty(), "{:?}", scan.faults);

        mounted("..2", "renewed.example.org");
        fs::remove_file(path.join("one.pem")).unwrap();
        let scan = files.scan();
        assert!(scan.changed);
        assert_eq!(names(&scan), ["renewed.example.org", "crt.example.org"]);
        fs::rename(path, path.with_extension("gone")).unwrap();
        let scan = files.scan();
        assert_eq!(names(&scan), ["renewed.example.org", "crt.example.org"]);
        assert!(!scan.changed && scan.faults.len() == 1, "{:?}", scan.faults);
        fs::rename(path.with_extension("gone"), path).unwrap();
        assert!(files.scan().faults.is_empty());
    }
}
