//! One line per exchange, without queries and without secrets.

use std::{net::IpAddr, time::Duration};

pub struct Line<'a> {
    pub from: IpAddr,
    pub method: &'a str,
    pub host: &'a str,
    /// Without the query: it may hold secrets.
    pub path: &'a str,
    /// 0 when nothing was answered.
    pub status: u16,
    pub bytes: u64,
    pub took: Duration,
    pub user: Option<&'a str>,
    /// Whether the gate let it pass. What it did not is logged as debug only, so that strangers
    /// cannot fill the log.
    pub admitted: bool,
    pub broken_off: bool,
}

impl Line<'_> {
    pub fn write(&self) {
        let Self { from, method, host, path, status, bytes, user, broken_off, .. } = *self;
        let ms = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX);
        let user = user.unwrap_or("-");
        if self.admitted {
            tracing::info!(target: "access", %from, user, method, host, path, status, bytes, ms, broken_off);
        } else {
            tracing::debug!(target: "access", %from, user, method, host, path, status, bytes, ms, broken_off);
        }
    }
}
