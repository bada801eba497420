//! Whose shell it is, and what a session finds in its environment.

use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use domain::variables;
use nix::unistd::{User, getuid};
use tokio::process::Command;

/// The user that the pod runs as.
#[derive(Debug, Clone)]
pub struct Login {
    user: Option<String>,
    shell: PathBuf,
    home: PathBuf,
}

impl Login {
    /// Images often run under a number that has no entry in their password file: then `SHELL`, bash
    /// or sh is the shell.
    pub fn of_this_process(home: &Path) -> Self {
        let entry = User::from_uid(getuid()).ok().flatten();
        let candidates = [
            entry.as_ref().map(|entry| entry.shell.clone()),
            std::env::var_os("SHELL").map(PathBuf::from),
            Some(PathBuf::from("/bin/bash")),
        ];
        let shell = candidates.into_iter().flatten().find(|shell| is_shell(shell));
        Self {
            user: entry.map(|entry| entry.name),
            shell: shell.unwrap_or_else(|| PathBuf::from("/bin/sh")),
            home: home.to_owned(),
        }
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    /// `-bash`, by which a shell knows that it is a login shell.
    pub fn shell(&self) -> Command {
        let mut name = OsString::from("-");
        name.push(self.shell.file_name().unwrap_or(OsStr::new("sh")));
        let mut command = std::process::Command::new(&self.shell);
        std::os::unix::process::CommandExt::arg0(&mut command, name);
        self.prepare(command.into())
    }

    pub fn exec(&self, line: &[u8]) -> Command {
        let mut command = Command::new(&self.shell);
        command.arg("-c").arg(OsStr::from_bytes(line));
        self.prepare(command)
    }

    fn prepare(&self, mut command: Command) -> Command {
        for (name, _) in std::env::vars_os() {
            if name.as_bytes().starts_with(b"DORMOUSE_AGENT_") {
                command.env_remove(name);
            }
        }
        // bash reads ~/.bashrc for a command over SSH in the outermost shell only.
        command.env_remove("SHLVL");
        command.env("SHELL", &self.shell).env("HOME", &self.home).current_dir(&self.home);
        if let Some(user) = &self.user {
            command.env("USER", user).env("LOGNAME", user);
        }
        command
    }
}

fn is_shell(path: &Path) -> bool {
    let no_login = matches!(path.file_name().and_then(OsStr::to_str), Some("nologin" | "false"));
    !no_login
        && path.is_absolute()
        && std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Variables that the gateway may set: those that it passes on, and its own. It is the only client.
pub fn may_set(name: &str) -> bool {
    variables::passes(name) || variables::CONNECTION.contains(&name)
}
