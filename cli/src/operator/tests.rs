use std::collections::BTreeSet;

use clap::{Command, CommandFactory, FromArgMatches, Parser};

use super::*;

#[derive(Parser)]
struct Auth {
    #[command(subcommand)]
    order: Order,
}

/// One call of each command, with the verb of what it changes.
const CALLS: [(&str, Option<&str>); 27] = [
    ("user add --name carol", Some("person-added")),
    ("user list", None),
    ("user show --name carol", None),
    ("user second-password --name carol", Some("second-password-set")),
    ("user disable --name carol", Some("person-disabled")),
    ("user enable --name carol", Some("person-enabled")),
    ("user link-upstream --name carol --provider P --subject S", Some("upstream-linked")),
    ("user unlink-upstream --name carol --provider P --subject S", Some("upstream-unlinked")),
    ("token --user carol --issuer https://auth.example.org", Some("token-issued")),
    ("key list", None),
    ("key rotate", Some("key-rotated")),
    ("key rotate --void-all-tokens", Some("keys-replaced")),
    ("key rotate --all", Some("all-keys-replaced")),
    ("key reseal", Some("keys-resealed")),
    ("session list", None),
    ("session end --user carol", Some("sessions-ended")),
    ("session end --id S", Some("session-ended")),
    ("client create --id hub", Some("client-added")),
    ("client list", None),
    ("client show --id hub", None),
    ("client rotate-secret --id hub", Some("client-secret-rotated")),
    ("client delete --id hub", Some("client-deleted")),
    ("passkey list --user carol", None),
    ("passkey remove --user carol --all", Some("passkey-removed")),
    ("service-account add --name bot --scope workload:use", Some("service-account-added")),
    ("service-account list", None),
    ("service-account revoke --name bot", Some("service-account-revoked")),
];

/// `user add`, `token`, ...: the commands that have no others below them.
fn leaves(command: &Command, above: &str, found: &mut BTreeSet<String>) {
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        let name = format!("{above} {}", below.get_name()).trim().to_owned();
        match below.has_subcommands() {
            true => leaves(below, &name, found),
            false => _ = found.insert(name),
        }
    }
}

#[test]
fn every_command_leaves_an_event_unless_it_only_lists_or_shows() {
    let mut commands = BTreeSet::new();
    leaves(&Auth::command(), "", &mut commands);
    assert!(commands.len() > 20, "{commands:?}");
    let mut called = BTreeSet::new();
    for (call, did) in CALLS {
        let words = format!("auth {call} --database auth.db");
        let matches = Auth::command().try_get_matches_from(words.split(' ')).unwrap();
        let Auth { order } = Auth::from_arg_matches(&matches).unwrap();
        assert_eq!(order.change().map(|(_, act)| act.did), did, "{call}");
        let name = call.split(" --").next().unwrap().to_owned();
        let reads = name.ends_with(" list") || name.ends_with(" show");
        assert_eq!(did.is_none(), reads, "{call}: only what lists or shows changes nothing");
        called.insert(name);
    }
    assert_eq!(commands, called, "each command is called above");
}
