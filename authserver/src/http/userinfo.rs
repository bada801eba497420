//! Claims about the person (OpenID Connect Core, section 5.3).

use axum::Json;
use serde_json::{Value, json};

use super::{bearer::Bearer, error::ApiError};

pub(super) async fn userinfo(bearer: Bearer) -> Result<Json<Value>, ApiError> {
    bearer.needs("openid")?;
    let scopes = &bearer.identity.credential.scopes;
    let has = |scope: &str| scopes.iter().any(|own| own == scope);
    let person = bearer.person;
    let mut claims = json!({ "sub": person.subject });
    if has("profile") {
        claims["preferred_username"] = json!(person.name);
    }
    if let Some(email) = person.email.filter(|_| has("email")) {
        claims["email"] = json!(email);
    }
    if has("groups") {
        claims["groups"] = json!(person.groups);
    }
    Ok(Json(claims))
}
