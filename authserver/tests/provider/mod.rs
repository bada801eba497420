//! Run by two programs: on SQLite, and on PostgreSQL.

mod account;
mod code_flow;
mod guessing;
mod sessions;
