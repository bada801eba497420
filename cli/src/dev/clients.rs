//! Other programs that sign people in at a development system.

use std::path::Path;

use authserver::ClientConfig;
use runtime::settings::{self, SettingsError};
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};

/// The file of `--clients`: the tables `[[clients]]`, as in the settings of `dormouse authserver`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Clients {
    /// Other applications that sign people in here.
    #[serde(default)]
    pub clients: Vec<ClientConfig>,
}

/// Reads the file while the command line is parsed, so that a mistake is told before anything starts.
pub fn read(file: &str) -> Result<Clients, String> {
    read_file(file)
}

pub(super) fn read_file<T: DeserializeOwned + JsonSchema>(file: &str) -> Result<T, String> {
    settings::load(Some(Path::new(file))).map_err(|error| match error {
        SettingsError::Read { source, .. } => format!("cannot read it: {source}"),
        mistake => mistake.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read_text(text: &str) -> Result<Clients, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        read(file.path().to_str().unwrap())
    }

    const HUB: &str = r#"
[[clients]]
id = "hub"
secret_file = "hub-secret"
redirect_uris = ["http://127.0.0.1:8000/hub/oauth_callback"]
"#;

    #[test]
    fn clients_are_written_as_in_the_authserver_s_settings() {
        let public = "[[clients]]\nid = \"cli\"\npublic = true\n";
        let Clients { clients } = read_text(&format!("{HUB}{public}")).unwrap();
        let ids: Vec<_> =
            clients.iter().map(|client| (client.id.as_str(), client.public)).collect();
        assert_eq!(ids, [("hub", false), ("cli", true)]);
        assert!(read_text("").unwrap().clients.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        let typo = read_text(&HUB.replace("redirect_uris", "redirect_uri")).unwrap_err();
        assert!(typo.contains("did you mean") && typo.contains("redirect_uris"), "{typo}");
        let absent = read("/nowhere/clients.toml").unwrap_err();
        assert!(absent.starts_with("cannot read it"), "{absent}");
    }
}
