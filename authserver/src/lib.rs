//! Issues tokens: a small OpenID Connect provider.
