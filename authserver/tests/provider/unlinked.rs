//! An operator unties a person from an account at a provider.

use reqwest::StatusCode;
use serde_json::json;

use super::federation::{carol, page, server, sign_in, tokens};
use crate::support::{upstream::Upstream, *};

#[tokio::test]
async fn an_account_that_is_untied_ends_its_sessions_and_no_others() {
    let (corp, lab) = (Upstream::start("corp", 0), Upstream::start("lab", 0));
    for (upstream, who) in [(&corp, "u-1"), (&lab, "l-7")] {
        upstream.set(who, carol(), false).await;
    }
    let server = server(&[&corp, &lab], false, json!({})).await;
    // So that she may approve a device.
    let says = json!({ "auth_time": server.now().as_second() });
    corp.set_saying("u-1", carol(), says).await;
    let name = "carol".parse().unwrap();
    let (mut at_corp, mut at_lab) = (Browser::default(), Browser::default());
    // Which of the two, we ask; the sign-in goes on where it began.
    let begin = async |browser: &mut Browser, upstream: &Upstream, who: &str| {
        let html = browser.open(&server, &authorize_with(&[])).await.text().await.unwrap();
        let mark = format!("href=\"/sign-in/with/{}?", upstream.id());
        let (_, rest) = html.split_once(&mark).unwrap();
        let query = rest.split('"').next().unwrap();
        let path = format!("/sign-in/with/{}?{query}", upstream.id());
        sign_in(browser, &server, upstream, &path, who).await
    };
    let first = tokens(&server, &begin(&mut at_corp, &corp, "u-1").await).await;
    server.store.link_upstream(&name, &lab.issuer(), "l-7", server.now()).await.unwrap();
    let second = tokens(&server, &begin(&mut at_lab, &lab, "l-7").await).await;
    assert_eq!(claims(text(&first, "id_token"))["sub"], claims(text(&second, "id_token"))["sub"]);

    // Not by another's name, and not another subject.
    let (corp_issuer, now) = (corp.issuer(), server.now());
    for (whose, subject) in [("bob", "u-1"), ("carol", "u-2"), ("carol", "l-7")] {
        let whose = whose.parse().unwrap();
        let error = server.store.unlink_upstream(&whose, &corp_issuer, subject, now).await;
        let told = format!("{whose} is not the subject {subject} of this provider");
        assert!(error.unwrap_err().to_string().starts_with(&told));
    }
    assert_eq!(server.refresh(text(&first, "refresh_token")).await.0, StatusCode::OK);

    // What she let in from there goes with it.
    let device = super::signed_in::device(&mut at_corp, &server).await;
    let done = server.store.unlink_upstream(&name, &corp_issuer, "u-1", now).await.unwrap();
    assert_eq!(done.ended, 2);
    assert!(!super::signed_in::device_goes_on(&server, &device).await);
    assert_eq!((done.left.password, done.left.passkeys), (false, 0));
    let left: Vec<_> = done.left.providers.iter().map(|at| (&*at.issuer, &*at.subject)).collect();
    assert_eq!(left, [(&*lab.issuer(), "l-7")]);
    let (status, answer) = server.refresh(text(&first, "refresh_token")).await;
    assert_eq!((status, text(&answer, "error")), (StatusCode::BAD_REQUEST, "invalid_grant"));
    let response = at_corp.open(&server, &authorize_with(&[])).await;
    assert_eq!(response.status(), StatusCode::OK, "she is asked how to sign in");
    // The other one has nothing to do with it.
    assert!(location(&at_lab.open(&server, &authorize_with(&[])).await).starts_with(CALLBACK));
    assert_eq!(server.refresh(text(&second, "refresh_token")).await.0, StatusCode::OK);

    // Whoever comes with the account now is a stranger, and is told so.
    let (status, html) = page(begin(&mut Browser::default(), &corp, "u-1").await).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(html.contains("the name carol belongs to another account here"), "{html}");

    let done = server.store.unlink_upstream(&name, &lab.issuer(), "l-7", now).await.unwrap();
    assert_eq!((done.ended, done.left.providers.len()), (1, 0));
    let again = server.store.unlink_upstream(&name, &lab.issuer(), "l-7", now).await;
    assert!(again.is_err(), "it was untied before");
    // Who has a password keeps that way.
    let alice = "alice".parse().unwrap();
    server.store.link_upstream(&alice, &corp_issuer, "u-9", now).await.unwrap();
    let done = server.store.unlink_upstream(&alice, &corp_issuer, "u-9", now).await.unwrap();
    assert!(done.left.password && done.ended == 0);
}
