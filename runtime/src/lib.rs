//! The plumbing of every service: settings, telemetry, admin endpoint, JWKS refresh, TLS, audit events, shutdown.
