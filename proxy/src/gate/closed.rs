//! Paths that are closed to the outside, however they are spelled.

/// Whether a path is below another one however it is spelled: percent signs decoded, doubled
/// slashes, dots and case taken away. For closing paths only; what is forwarded stays as it came.
pub fn is_below(path: &str, closed: &str) -> bool {
    let mut bytes = path.as_bytes().to_vec();
    // Twice, for whoever decodes what was decoded.
    for _ in 0..2 {
        bytes = percent_decode(&bytes);
    }
    let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase().replace('\\', "/");
    let closed: Vec<&str> = closed.split('/').filter(|part| !part.is_empty()).collect();
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
        // Also on the way through, for whoever does not resolve dots.
        if parts.starts_with(&closed) {
            return true;
        }
    }
    false
}

pub(super) fn percent_decode(bytes: &[u8]) -> Vec<u8> {
    let hex = |byte: Option<&u8>| byte.and_then(|&b| char::from(b).to_digit(16));
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = match (byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => u8::try_from(high * 16 + low).ok(),
            _ => None,
        };
        decoded.push(code.unwrap_or(byte));
        at += if code.is_some() { 3 } else { 1 };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_3_no_spelling_opens_a_closed_path() {
        for path in [
            "/internal",
            "/internal/",
            "/internal/ssh-keys",
            "//internal/x",
            "/./internal/x",
            "/a/../internal/x",
            "/../internal",
            "/internal/../a",
            "/INTERNAL/x",
            "/%69nternal/x",
            "/%2569nternal/x",
            "/%2finternal",
            "\\internal",
        ] {
            assert!(is_below(path, "/internal/"), "{path}");
        }
        for path in ["/", "/internals", "/a/internal", "/x?/internal"] {
            assert!(!is_below(path, "/internal/"), "{path}");
        }
    }
}
