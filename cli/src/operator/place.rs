//! Which authserver a command is about: its database, and where it writes its audit events.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use authserver::{Database, MasterKey, MasterKeys, Store};
use clap::Args;
use runtime::audit::Journal;

use crate::{dev, service::authserver as service};

/// The variable that the server, too, takes the master key from.
const MASTER_KEY: &str = "DORMOUSE_AUTHSERVER__MASTER_KEY";

/// The name under which the server writes its events.
const SERVICE: &str = "authserver";

/// Which authserver.
#[derive(Args)]
pub struct Place {
    /// The data directory of `dormouse dev`
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present_any = ["database", "config"],
        conflicts_with_all = ["database", "config"]
    )]
    data_dir: Option<PathBuf>,
    /// The settings' file of `dormouse authserver`, with which it finds all below by itself
    #[arg(long, value_name = "FILE", conflicts_with = "database")]
    config: Option<PathBuf>,
    /// The authserver's database: a file, or postgres://user@host/name (the password comes from
    /// the variable PGPASSWORD)
    #[arg(long, value_name = "FILE|URL")]
    database: Option<Database>,
    /// The master key's file, when keys are sealed with one; known when --data-dir or --config is
    /// given
    #[arg(long, value_name = "FILE", env = "DORMOUSE_AUTHSERVER__MASTER_KEY_FILE")]
    master_key_file: Option<PathBuf>,
    /// A file with a master key that only opens what is sealed with it, while the master key is
    /// changed; may be given several times, and is known when --config is given
    #[arg(long = "other-master-key-file", value_name = "FILE")]
    other_master_key_files: Vec<PathBuf>,
    /// Where changes are written down; known when --data-dir or --config is given, else standard
    /// error
    #[arg(long, value_name = "FILE", env = "DORMOUSE_AUDIT_FILE")]
    audit_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Place {
    pub async fn open(&self) -> anyhow::Result<Store> {
        let (database, mut keys) = self.find()?;
        keys.current = match &self.master_key_file {
            Some(file) => Some(MasterKey::from_file(file)?),
            None => keys.current.or(from_environment()?),
        };
        for file in &self.other_master_key_files {
            keys.others.push(MasterKey::from_file(file)?);
        }
        Ok(Store::open_with(&database, keys).await?)
    }

    /// Where the server writes its events, so that all are in one place. Nothing is made where there
    /// is no authserver.
    pub fn journal(&self) -> anyhow::Result<Journal> {
        self.find()?;
        let file = match (&self.audit_file, &self.config, &self.data_dir) {
            (Some(file), _, _) => Some(file.clone()),
            (None, Some(config), _) => service::read(config)?.audit_file,
            (None, None, Some(data_dir)) => Some(dev::audit_log(data_dir)),
            (None, None, None) => None,
        };
        let Some(file) = file else { return Ok(Journal::to_stderr(SERVICE)) };
        Journal::to_file(SERVICE, &file).with_context(|| {
            let shown = file.display();
            format!("nothing was changed: the audit log {shown} cannot be written")
        })
    }

    /// The URL that tokens name, where the place says it.
    pub fn issuer(&self) -> anyhow::Result<Option<String>> {
        if let Some(config) = &self.config {
            return Ok(Some(service::read(config)?.authserver.issuer.as_str().to_owned()));
        }
        let kept = |data_dir: &Path| {
            dev::issuer_of(data_dir).with_context(|| {
                format!("no issuer is known in {}; name it with --issuer", data_dir.display())
            })
        };
        self.data_dir.as_deref().map(kept).transpose()
    }

    /// False when it is known that passwords and passkeys count for nothing.
    pub fn local_sign_in(&self) -> anyhow::Result<bool> {
        let read = |config: &PathBuf| Ok(service::read(config)?.authserver.local_sign_in);
        self.config.as_ref().map_or(Ok(true), read)
    }

    /// The database, and the master keys as far as the place says them.
    fn find(&self) -> anyhow::Result<(Database, MasterKeys)> {
        let (database, master_keys) = match (&self.database, &self.config, &self.data_dir) {
            (Some(database), _, _) => (database.clone(), MasterKeys::default()),
            (None, Some(config), _) => service::read(config)?.authserver.storage()?,
            (None, None, Some(data_dir)) => {
                let file = Some(dev::master_key(data_dir)).filter(|file| file.exists());
                let key = file.map(|file| MasterKey::from_file(&file)).transpose()?;
                (Database::File(dev::database(data_dir)), key.into())
            }
            (None, None, None) => {
                bail!("name the authserver with --data-dir, --config or --database")
            }
        };
        if let Database::File(path) = &database
            && !path.exists()
        {
            bail!(
                "there is no database {}; check --data-dir, --config or --database",
                path.display()
            );
        }
        Ok((database, master_keys))
    }
}

fn from_environment() -> anyhow::Result<Option<MasterKey>> {
    let text = std::env::var(MASTER_KEY).ok();
    Ok(text.map(|text| MasterKey::from_text(&text)).transpose()?)
}
