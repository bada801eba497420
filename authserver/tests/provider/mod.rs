//! Run by two programs: on SQLite, and on PostgreSQL.

mod account;
mod account_page;
mod back_channel;
mod certificates;
mod clients;
mod code_flow;
mod consent;
mod devices;
mod federation;
mod guessing;
mod keys;
mod killed;
mod lost_groups;
mod older_replica;
mod operators_clients;
mod passkey_counters;
mod passkeys;
mod pushed;
mod revocations;
mod rotation;
mod service_accounts;
mod sessions;
mod shown_tokens;
mod signed_in;
mod standards;
mod unlinked;
