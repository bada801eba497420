//! Settings of the services that may be others in a development system.

use std::{sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

use super::clients;

/// The file of `--settings`, written as the files of the services are.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    pub proxy: ProxyOverrides,
    pub authserver: AuthserverOverrides,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyOverrides {
    pub limits: proxy::Limits,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuthserverOverrides {
    /// How long an access token is good.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    pub access_token_lifetime: Option<Duration>,
}

/// Reads the file while the command line is parsed, so that a mistake is told before anything starts.
pub fn read(file: &str) -> Result<Arc<Overrides>, String> {
    clients::read_file(file).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read_text(text: &str) -> Result<Arc<Overrides>, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        read(file.path().to_str().unwrap())
    }

    #[test]
    fn what_is_not_said_stays_as_it_is() {
        let text =
            "[authserver]\naccess_token_lifetime = \"10s\"\n[proxy.limits]\nkeep_alive = \"2s\"\n";
        let Overrides { proxy, authserver } = &*read_text(text).unwrap();
        assert_eq!(authserver.access_token_lifetime, Some(Duration::from_secs(10)));
        assert_eq!(proxy.limits.keep_alive, Duration::from_secs(2));
        assert_eq!(proxy.limits.body_stall, proxy::Limits::default().body_stall);
        let mistake = read_text("[proxy.limits]\nkeep_aliv = \"2s\"\n").unwrap_err();
        assert!(mistake.contains("did you mean"), "{mistake}");
    }
}
