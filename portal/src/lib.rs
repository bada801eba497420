//! The REST API and the web pages that people use.
