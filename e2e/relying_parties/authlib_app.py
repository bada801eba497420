"""A Flask program that signs people in with Authlib and shows, as JSON, what it learnt of them.

environment: ISSUER, CLIENT_ID, CLIENT_SECRET, PORT
"""

import os
import secrets

from authlib.integrations.flask_client import OAuth
from flask import Flask, url_for

app = Flask(__name__)
app.secret_key = secrets.token_bytes(32)
oauth = OAuth(app)
oauth.register(
    "dormouse",
    server_metadata_url=os.environ["ISSUER"] + "/.well-known/openid-configuration",
    client_id=os.environ["CLIENT_ID"],
    client_secret=os.environ["CLIENT_SECRET"],
    client_kwargs={"scope": "openid profile email groups", "code_challenge_method": "S256"},
)


@app.get("/")
def up():
    return "", 204


@app.get("/sign-in")
def sign_in():
    return oauth.dormouse.authorize_redirect(url_for("callback", _external=True))


@app.get("/callback")
def callback():
    # Verifies the ID token: its signature, issuer, audience, times and nonce.
    token = oauth.dormouse.authorize_access_token()
    return {"claims": token["userinfo"], "userinfo": oauth.dormouse.userinfo(token=token)}


app.run("127.0.0.1", int(os.environ["PORT"]))
