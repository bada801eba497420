//! Run by two programs: on SQLite, and on PostgreSQL.

mod account;
mod clients;
mod code_flow;
mod devices;
mod guessing;
mod killed;
mod rotation;
mod service_accounts;
mod sessions;
mod shown_tokens;
