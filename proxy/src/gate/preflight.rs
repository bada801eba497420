//! Preflights: may a page of another origin ask something of a workload? (Fetch, section 4.8)
//!
//! They bring no credentials, so no workload is shown them, none wakes, and nothing is said of which
//! exist: the gate answers by itself, the same for every host. Any origin may ask, without the
//! browser's own cookies: such a page has to bring a token, and the workload's answer says whether the
//! page may read it. With cookies only the origins may that the workload names.

use super::head::Head;
use crate::answer::Answer;

/// Seconds for which a browser need not ask again.
const MAX_AGE: &str = "600";

/// `named` says whether the workload names the page's origin.
pub fn answer(head: &Head<'_>, method: &str, named: bool) -> Answer {
    let origin = head.single("origin").filter(|_| named);
    let answer = Answer::new(200, "text/plain; charset=utf-8", "")
        .with(
            "Vary",
            "Origin, Access-Control-Request-Method, Access-Control-Request-Headers".to_owned(),
        )
        .with("Access-Control-Allow-Origin", origin.unwrap_or("*").to_owned())
        .with("Access-Control-Max-Age", MAX_AGE.to_owned());
    let answer = match origin {
        Some(_) => answer.with("Access-Control-Allow-Credentials", "true".to_owned()),
        None => answer,
    };
    let answer = match is_list_of_tokens(method) && !method.contains(',') {
        true => answer.with("Access-Control-Allow-Methods", method.to_owned()),
        false => answer,
    };
    match head.single("access-control-request-headers").filter(|names| is_list_of_tokens(names)) {
        Some(names) => answer.with("Access-Control-Allow-Headers", names.to_owned()),
        None => answer,
    }
}

/// Names as methods and fields have them (RFC 9110, section 5.6.2), with commas between.
fn is_list_of_tokens(text: &str) -> bool {
    let is_char = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let mut names = text.split(',').map(str::trim);
    text.len() <= 4096 && names.all(|name| !name.is_empty() && name.bytes().all(is_char))
}

#[cfg(test)]
mod tests {
    use super::{super::head::Field, *};

    fn answered(fields: &[(&str, &str)], named: bool) -> Vec<String> {
        let fields: Vec<_> =
            fields.iter().map(|(name, v)| Field { name, value: v.as_bytes() }).collect();
        let head = Head { method: "OPTIONS", target: "/", authority: "", fields: &fields };
        let method = head.preflight().unwrap();
        let answer = answer(&head, method, named);
        assert_eq!(answer.status, 200);
        let said = answer.headers.iter().filter(|(name, _)| name.starts_with("Access-"));
        said.map(|(name, value)| format!("{}: {value}", &name["Access-Control-".len()..])).collect()
    }

    #[test]
    fn attack_9_credentials_only_for_origins_that_the_workload_names() {
        let asked = [
            ("Origin", "https://front.example"),
            ("Access-Control-Request-Method", "PUT"),
            ("Access-Control-Request-Headers", "authorization, content-type"),
        ];
        assert_eq!(
            answered(&asked, false),
            [
                "Allow-Origin: *",
                "Max-Age: 600",
                "Allow-Methods: PUT",
                "Allow-Headers: authorization, content-type"
            ]
        );
        let named = answered(&asked, true);
        assert!(named.contains(&"Allow-Origin: https://front.example".to_owned()), "{named:?}");
        assert!(named.contains(&"Allow-Credentials: true".to_owned()), "{named:?}");
        let odd = [
            ("Origin", "https://front.example"),
            ("Access-Control-Request-Method", "P UT"),
            ("Access-Control-Request-Headers", "a,,b"),
        ];
        assert_eq!(answered(&odd, false), ["Allow-Origin: *", "Max-Age: 600"]);
    }
}
