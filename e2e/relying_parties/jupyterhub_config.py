"""A JupyterHub that people sign in to with GenericOAuthenticator. Nobody starts a server here.

environment: ISSUER, CLIENT_ID, CLIENT_SECRET, PORT, HUB_PORT, PROXY_API_PORT, API_TOKEN, PROXY_COMMAND,
and JUPYTERHUB_CRYPT_KEY, without which a hub keeps nothing of what it learnt
"""

import os

c = get_config()  # noqa: F821
env = os.environ
hub = f"http://127.0.0.1:{env['PORT']}"
issuer = env["ISSUER"]

c.JupyterHub.authenticator_class = "generic-oauth"
c.GenericOAuthenticator.login_service = "Dormouse"
c.GenericOAuthenticator.client_id = env["CLIENT_ID"]
c.GenericOAuthenticator.client_secret = env["CLIENT_SECRET"]
c.GenericOAuthenticator.oauth_callback_url = f"{hub}/hub/oauth_callback"
c.GenericOAuthenticator.authorize_url = f"{issuer}/authorize"
c.GenericOAuthenticator.token_url = f"{issuer}/token"
c.GenericOAuthenticator.userdata_url = f"{issuer}/userinfo"
c.GenericOAuthenticator.scope = ["openid", "profile", "email", "groups"]
c.GenericOAuthenticator.username_claim = "preferred_username"
c.GenericOAuthenticator.manage_groups = True
c.GenericOAuthenticator.auth_state_groups_key = "oauth_user.groups"
c.GenericOAuthenticator.allowed_groups = {"research"}
c.GenericOAuthenticator.enable_auth_state = True

c.JupyterHub.bind_url = hub
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{env['HUB_PORT']}"
c.JupyterHub.redirect_to_server = False
c.ConfigurableHTTPProxy.command = env["PROXY_COMMAND"].split("\n")
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{env['PROXY_API_PORT']}"

# The test reads through the hub's API what the hub knows of a person.
c.JupyterHub.services = [{"name": "test", "api_token": env["API_TOKEN"]}]
c.JupyterHub.load_roles = [
    {"name": "test", "scopes": ["read:users", "admin:auth_state"], "services": ["test"]}
]
